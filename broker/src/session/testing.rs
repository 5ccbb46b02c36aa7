//! A node's client side for tests, and clients that speak raw protocol text to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use levee_protocol::wire::ServerInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::frontend::nats::NatsListener;
use crate::router::Router;
use crate::runtime::clock::Clock;
use crate::runtime::net::TcpStream;
use crate::runtime::tasks;
use crate::session::{AuthConfig, SessionLimits, Sessions};

/// A listener with sessions behind it.
pub(crate) struct Server {
    pub(crate) router: Arc<Router>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) address: SocketAddr,
    pub(crate) _tasks: tasks::Scope,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(SessionLimits::default(), AuthConfig::default())
    }

    pub(crate) fn with(limits: SessionLimits, auth: AuthConfig) -> Self {
        let router = Router::new();
        let listener = NatsListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address();
        let info = ServerInfo {
            server_id: "NTEST".into(),
            server_name: "test".into(),
            version: "2.15.1".into(),
            proto: 1,
            go: "go1.27".into(),
            host: "127.0.0.1".into(),
            port: address.port(),
            headers: true,
            ..ServerInfo::default()
        };
        let sessions = Sessions::new(Arc::clone(&router), Clock::system(), limits, auth, info);
        let tasks = tasks::Scope::default();
        tasks.spawn("listener", listener.run(Arc::clone(&sessions)));
        Self { router, sessions, address, _tasks: tasks }
    }

    /// A connection on which only INFO was read.
    pub(crate) async fn dial(&self) -> Client {
        let mut client =
            Client { stream: TcpStream::connect(self.address).await.unwrap(), unread: Vec::new() };
        let info = client.line().await;
        assert!(info.starts_with("INFO {"), "{info}");
        client
    }

    /// A connection like that of an official client library.
    pub(crate) async fn client(&self) -> Client {
        self.client_with(r#""headers":true,"no_responders":true"#).await
    }

    pub(crate) async fn client_with(&self, options: &str) -> Client {
        let mut client = self.dial().await;
        client.send(&format!("CONNECT {{\"verbose\":false,\"pedantic\":false,{options}}}\r\nPING\r\n")).await;
        client.expect("PONG\r\n").await;
        client
    }
}

/// Speaks protocol text.
pub(crate) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next bytes are these.
    pub(crate) async fn expect(&mut self, text: &str) {
        while self.unread.len() < text.len() {
            if !self.fill().await {
                break;
            }
        }
        let seen = String::from_utf8_lossy(&self.unread[..self.unread.len().min(text.len())]).into_owned();
        assert_eq!(seen, text, "all unread: {:?}", String::from_utf8_lossy(&self.unread));
        self.unread.drain(..text.len());
    }

    /// Everything sent so far was worked off, and nothing came back.
    pub(crate) async fn expect_nothing(&mut self) {
        self.send("PING\r\n").await;
        self.expect("PONG\r\n").await;
        assert_eq!(String::from_utf8_lossy(&self.unread), "");
    }

    pub(crate) async fn expect_end(&mut self) {
        while self.fill().await {}
        assert_eq!(String::from_utf8_lossy(&self.unread), "", "before the end");
    }

    pub(crate) async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                return String::from_utf8(self.unread.drain(..=at).collect()).unwrap();
            }
            assert!(self.fill().await, "the connection ended: {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    async fn fill(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.unread);
        match tokio::time::timeout(Duration::from_secs(10), read).await {
            Ok(Ok(count)) => count > 0,
            Ok(Err(_)) => false,
            Err(_) => panic!("nothing came, unread: {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }
}

/// Waits for something that other tasks bring about.
pub(crate) async fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
