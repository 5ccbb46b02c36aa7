//! Keeps strangers off the cluster port, with a line in the log that says what they are. Nodes speak HTTP/2 there,
//! which begins with a fixed text; everybody else is turned away before it reaches the server.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::router::peers::Refusals;
use crate::runtime::net::{TcpListener, TcpStream};
use crate::runtime::tasks;

/// Connections that may be nodes, for the server of the cluster port. Ends when the returned stream is dropped.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> + Send + 'static {
    let (pass, passed) = mpsc::channel(64);
    let told = Arc::new(Refusals::default());
    tasks::spawn("cluster port", async move {
        loop {
            // Cancel safe: both only wait.
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = pass.closed() => return,
            };
            match accepted {
                Ok((stream, remote)) => {
                    let (pass, told) = (pass.clone(), Arc::clone(&told));
                    tasks::spawn("look at a connection to the cluster port", async move {
                        if let Some(stream) = look(stream, remote, &told).await {
                            let _ = pass.send(Ok(stream)).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::error!("cluster port: accepting a connection failed: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    });
    ReceiverStream::new(passed)
}

async fn look(stream: TcpStream, remote: SocketAddr, told: &Refusals) -> Option<TcpStream> {
    let mut head = [0; 24];
    let peek = async {
        loop {
            let count = stream.peek(&mut head).await?;
            let seen = &head[..count];
            if count == 0 || count >= PREFACE.len() || !PREFACE.starts_with(seen) {
                return io::Result::Ok(count);
            }
            // Peeking does not wait for more than there is.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, peek).await;
    let count = match seen {
        Ok(Ok(count)) => count,
        Ok(Err(_)) => return None,
        Err(_) => {
            if told.is_news(&format!("{} is silent", remote.ip())) {
                tracing::warn!(
                    "cluster port: {remote} says nothing; a NATS client that waits for INFO? Clients connect to the client port. Closed"
                );
            }
            refuse(stream).await;
            return None;
        }
    };
    let head = &head[..count];
    if head.starts_with(PREFACE) {
        let _ = stream.set_nodelay(true);
        return Some(stream);
    }
    if head.is_empty() {
        tracing::debug!("cluster port: {remote} connected and left");
        return None;
    }
    let what = match head {
        _ if head.len() >= 4
            && (head[..4].eq_ignore_ascii_case(b"CONN") || head[..4].eq_ignore_ascii_case(b"PING")) =>
        {
            "a NATS client or a nats-server route; clients connect to the client port, and only Levee nodes form clusters with us"
        }
        _ if head.starts_with(b"INFO") => "a nats-server route; only Levee nodes form clusters with us",
        [0x16, 0x03, ..] => "a TLS client; this port speaks without TLS",
        _ => "not a Levee node",
    };
    if told.is_news(&format!("{} is {what}", remote.ip())) {
        tracing::warn!("cluster port: {remote} is {what} (it sent \"{}\"). Closed", head.escape_ascii());
    }
    refuse(stream).await;
    None
}

async fn refuse(mut stream: TcpStream) {
    // NATS clients show this to their users; for others it does not matter.
    let _ = stream.write_all(b"-ERR 'attempted to connect to route port'\r\n").await;
    let _ = stream.shutdown().await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0";
const PATIENCE: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
