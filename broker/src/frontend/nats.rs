//! The listener of NATS clients.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::runtime::net::{self, TcpListener};
use crate::runtime::tasks;
use crate::session::Sessions;

/// A bound port. Clients wait in the kernel until [`NatsListener::run`].
pub struct NatsListener {
    listener: TcpListener,
    address: SocketAddr,
    stop: tasks::Stop,
}

impl NatsListener {
    /// Binds the port; port 0 takes any free one.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = net::listen(address)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, stop: tasks::Stop::new() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the signal to let nobody in any more; connections stay.
    #[must_use]
    pub fn stop(&self) -> tasks::Stop {
        self.stop.clone()
    }

    /// Lets clients in until it is stopped.
    pub async fn run(self, sessions: Arc<Sessions>) {
        loop {
            // Cancel safe: both only wait.
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.stop.stopped() => return,
            };
            match accepted {
                Ok((stream, remote)) => sessions.welcome(stream, remote),
                Err(error) => {
                    // Mostly too many open files: others have to leave first.
                    tracing::error!("accepting a client connection failed: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

const ACCEPT_RETRY: Duration = Duration::from_millis(100);
