//! A client that speaks the protocol by hand, for what client libraries hide.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// One thing that the server said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Frame {
    /// `INFO`
    Info(String),
    /// `+OK`
    Ok,
    /// `-ERR`, with its text and quotes.
    Err(String),
    /// `PING`
    Ping,
    /// `PONG`
    Pong,
    /// `MSG` or `HMSG`
    Message(Message),
    /// The end of the connection.
    Closed,
}

/// A delivered message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Subject.
    pub subject: String,
    /// Subscription.
    pub sid: String,
    /// Reply subject, or nothing.
    pub reply: String,
    /// Header block, or nothing.
    pub header: String,
    /// Payload.
    pub payload: String,
}

impl Message {
    /// What follows `NATS/1.0` in the first line of the header block: `404 No Messages`.
    #[must_use]
    pub fn status(&self) -> &str {
        self.header.lines().next().unwrap_or_default().trim_start_matches("NATS/1.0").trim()
    }
}

/// A connection.
#[derive(Debug)]
pub struct Raw {
    stream: BufReader<TcpStream>,
    info: Value,
    requests: u64,
}

impl Raw {
    /// Connects and reads the first INFO. Sends nothing.
    ///
    /// # Errors
    /// When there is no server or it says something else.
    pub async fn connect(address: &str) -> Result<Self> {
        let connecting = timeout(ANSWER, TcpStream::connect(address)).await;
        let stream = connecting.context("no answer")?.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let mut raw = Self { stream: BufReader::new(stream), info: Value::Null, requests: 0 };
        match raw.next(ANSWER).await? {
            Some(Frame::Info(info)) => raw.info = serde_json::from_str(&info).context("INFO")?,
            other => bail!("expected INFO, got {other:?}"),
        }
        Ok(raw)
    }

    /// The first INFO.
    #[must_use]
    pub fn info(&self) -> &Value {
        &self.info
    }

    /// CONNECT as clients do (not verbose, headers, no responders), with `options` on top, and waits for PONG.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn hello(&mut self, options: &Value) -> Result<()> {
        let mut connect = serde_json::json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1,
            "lang": "raw", "version": "1"
        });
        if let (Some(connect), Some(options)) = (connect.as_object_mut(), options.as_object()) {
            connect.extend(options.clone());
        }
        self.send(format!("CONNECT {connect}\r\n").as_bytes()).await?;
        for frame in self.until_pong().await? {
            ensure!(matches!(frame, Frame::Info(_) | Frame::Ok), "refused: {frame:?}");
        }
        Ok(())
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).await.context("write")
    }

    /// Publishes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn publish(&mut self, subject: &str, reply: &str, header: &str, payload: &str) -> Result<()> {
        let total = header.len() + payload.len();
        let text = if header.is_empty() {
            format!("PUB {subject} {reply} {total}\r\n{payload}\r\n")
        } else {
            format!("HPUB {subject} {reply} {} {total}\r\n{header}{payload}\r\n", header.len())
        };
        self.send(text.as_bytes()).await
    }

    /// Sends a request and gives its first answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn request(&mut self, subject: &str, header: &str, payload: &str) -> Result<Message> {
        self.requests += 1;
        let sid = format!("r{}", self.requests);
        let inbox = format!("_INBOX.raw.{}", self.requests);
        self.send(format!("SUB {inbox} {sid}\r\nUNSUB {sid} 1\r\n").as_bytes()).await?;
        self.publish(subject, &inbox, header, payload).await?;
        loop {
            match self.next(ANSWER).await? {
                Some(Frame::Message(message)) if message.sid == sid => return Ok(message),
                Some(Frame::Err(error)) => bail!("{subject}: {error}"),
                Some(Frame::Closed) => bail!("{subject}: closed"),
                Some(_) => {}
                None => bail!("{subject}: no answer within {ANSWER:?}"),
            }
        }
    }

    /// Sends a request and parses its answer.
    ///
    /// # Errors
    /// When there is none, or it is not JSON.
    pub async fn request_json(&mut self, subject: &str, payload: &str) -> Result<Value> {
        let message = self.request(subject, "", payload).await?;
        serde_json::from_str(&message.payload)
            .with_context(|| format!("{subject} answered {} {}", message.header, message.payload))
    }

    /// Sends PING and gives what came before its PONG, or before the end of the connection (which is given too).
    ///
    /// # Errors
    /// When neither comes.
    pub async fn until_pong(&mut self) -> Result<Vec<Frame>> {
        // The connection may be closing, which the frames tell.
        let _ = self.send(b"PING\r\n").await;
        let mut frames = Vec::new();
        loop {
            match self.next(ANSWER).await? {
                Some(Frame::Pong) => return Ok(frames),
                Some(Frame::Closed) => {
                    frames.push(Frame::Closed);
                    return Ok(frames);
                }
                Some(frame) => frames.push(frame),
                None => bail!("no PONG within {ANSWER:?}, after {frames:?}"),
            }
        }
    }

    /// What comes until the server says nothing for `quiet`.
    ///
    /// # Errors
    /// When something comes that is not the protocol.
    pub async fn until_quiet(&mut self, quiet: Duration) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next(quiet).await? {
            let closed = frame == Frame::Closed;
            frames.push(frame);
            if closed {
                break;
            }
        }
        Ok(frames)
    }

    /// The next message, past INFO: one follows the first PONG, and others come when the cluster changes.
    ///
    /// # Errors
    /// When something else comes, or nothing within `limit`.
    pub async fn next_message(&mut self, limit: Duration) -> Result<Message> {
        loop {
            match self.next(limit).await? {
                Some(Frame::Message(message)) => return Ok(message),
                Some(Frame::Info(_)) => {}
                other => bail!("expected a message, got {other:?}"),
            }
        }
    }

    /// The next frame, or nothing when none begins within `limit`. PING is answered here.
    ///
    /// # Errors
    /// When something comes that is not the protocol.
    pub async fn next(&mut self, limit: Duration) -> Result<Option<Frame>> {
        loop {
            let mut line = Vec::new();
            match timeout(limit, self.stream.read_until(b'\n', &mut line)).await {
                Err(_) if line.is_empty() => return Ok(None),
                Err(_) => bail!("half a line: {:?}", String::from_utf8_lossy(&line)),
                // Closed, or reset because we wrote what nobody read any more.
                Ok(Ok(0) | Err(_)) => return Ok(Some(Frame::Closed)),
                Ok(Ok(_)) => {}
            }
            let line = String::from_utf8(line).context("control line")?;
            let line = line.trim_end_matches(['\r', '\n']);
            let (verb, arguments) = line.split_once(' ').unwrap_or((line, ""));
            let frame = match verb {
                "INFO" => Frame::Info(arguments.trim().to_owned()),
                "+OK" => Frame::Ok,
                "-ERR" => Frame::Err(arguments.to_owned()),
                "PONG" => Frame::Pong,
                "PING" => {
                    self.send(b"PONG\r\n").await?;
                    continue;
                }
                "MSG" | "HMSG" => Frame::Message(self.message(verb == "HMSG", arguments).await?),
                _ => bail!("not the protocol: {line}"),
            };
            return Ok(Some(frame));
        }
    }

    async fn message(&mut self, has_header: bool, arguments: &str) -> Result<Message> {
        let mut words: Vec<&str> = arguments.split_ascii_whitespace().collect();
        let total: usize = words.pop().context("size")?.parse().context("size")?;
        let header: usize =
            if has_header { words.pop().context("size")?.parse().context("size")? } else { 0 };
        let (subject, sid, reply) = match words[..] {
            [subject, sid] => (subject, sid, ""),
            [subject, sid, reply] => (subject, sid, reply),
            _ => bail!("arguments of a message: {arguments}"),
        };
        let mut body = vec![0; total + 2];
        timeout(ANSWER, self.stream.read_exact(&mut body)).await.context("half a message")??;
        ensure!(body.ends_with(b"\r\n"), "a message does not end where it says");
        body.truncate(total);
        Ok(Message {
            subject: subject.to_owned(),
            sid: sid.to_owned(),
            reply: reply.to_owned(),
            header: String::from_utf8_lossy(&body[..header]).into_owned(),
            payload: String::from_utf8_lossy(&body[header..]).into_owned(),
        })
    }
}
