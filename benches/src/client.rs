//! A blocking NATS connection for load: writes what it is given, reads messages in place.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

/// Nothing measured here takes this long without a byte.
const STALL: Duration = Duration::from_secs(30);

/// One connection.
pub struct Client {
    stream: TcpStream,
    writer: Writer,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// The writing half of a connection. Whole writes do not mix, whichever thread they come from.
#[derive(Clone)]
pub struct Writer(Arc<Mutex<TcpStream>>);

impl Writer {
    /// Writes protocol text.
    pub fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(bytes).context("the server closed the connection")
    }
}

/// A message as it lies in the read buffer.
pub struct Message<'a> {
    /// Where it was published.
    pub subject: &'a [u8],
    /// Where answers go.
    pub reply: &'a [u8],
    /// The header block, or empty.
    pub header: &'a [u8],
    /// The body.
    pub payload: &'a [u8],
}

impl Client {
    /// Connects and waits until the server answers.
    pub fn connect(address: &str) -> anyhow::Result<Self> {
        Self::connect_within(address, STALL)
    }

    /// Connects; a read or a write that takes longer than this is an error.
    pub fn connect_within(address: &str, stall: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("can not connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(stall))?;
        stream.set_write_timeout(Some(stall))?;
        let writer = Writer(Arc::new(Mutex::new(stream.try_clone()?)));
        let mut client = Self { stream, writer, buffer: vec![0; 1 << 20], start: 0, end: 0 };
        client.write(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"protocol\":1,\"lang\":\"bench\",\"version\":\"0\"}\r\n",
        )?;
        client.flush_barrier()?;
        Ok(client)
    }

    /// Skips whole frames that begin with `head`, and answers how many there were: at least one, at most `limit`.
    /// Cheaper than [`Self::receive`] where every message has the same length.
    pub fn skip_frames(&mut self, head: &[u8], frame_bytes: usize, limit: u64) -> anyhow::Result<u64> {
        loop {
            let mut skipped = 0;
            while skipped < limit
                && self.end - self.start >= frame_bytes
                && self.buffer[self.start..self.end].starts_with(head)
            {
                self.start += frame_bytes;
                skipped += 1;
            }
            if skipped > 0 {
                return Ok(skipped);
            }
            if self.end - self.start >= head.len() && !self.buffer[self.start..self.end].starts_with(head) {
                // Something else, a PING perhaps.
                self.receive()?;
                return Ok(1);
            }
            self.fill(frame_bytes)?;
        }
    }

    /// Whether the next thing to take is a message of which something has arrived. A PING is none: nothing need come
    /// after it before we write.
    #[must_use]
    pub fn has_message(&self) -> bool {
        let unread = &self.buffer[self.start..self.end];
        unread.starts_with(b"MSG ") || unread.starts_with(b"HMSG ")
    }

    /// Another handle on the same connection, for a thread that only writes.
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Writes protocol text.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.writer.write(bytes)
    }

    /// Waits until the server has taken everything written before.
    pub fn flush_barrier(&mut self) -> anyhow::Result<()> {
        self.write(b"PING\r\n")?;
        while !self.line_is(b"PONG")? {}
        Ok(())
    }

    /// A request with one answer, on a connection that has no other subscriptions.
    pub fn request(&mut self, subject: &str, body: &str) -> anyhow::Result<String> {
        // An answer that comes late must not be taken for another's.
        static REQUESTS: AtomicU64 = AtomicU64::new(0);
        let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
        let inbox = format!("_INBOX.bench.{}.{number}", std::process::id());
        let text = format!("SUB {inbox} 9999\r\nPUB {subject} {inbox} {}\r\n{body}\r\n", body.len());
        self.write(text.as_bytes())?;
        let answer = self.receive()?;
        let nobody = answer.header.starts_with(b"NATS/1.0 503");
        let answer = String::from_utf8_lossy(answer.payload).into_owned();
        self.write(b"UNSUB 9999\r\n")?;
        if nobody {
            bail!("nobody answers {subject}");
        }
        Ok(answer)
    }

    /// The next message; answers PINGs on the way.
    pub fn receive(&mut self) -> anyhow::Result<Message<'_>> {
        loop {
            let line = self.line()?;
            let text = &self.buffer[line.clone()];
            if text.starts_with(b"MSG ") || text.starts_with(b"HMSG ") {
                return self.message(line);
            }
            if text.starts_with(b"PING") {
                self.write(b"PONG\r\n")?;
            } else if text.starts_with(b"-ERR") {
                bail!("the server says {}", String::from_utf8_lossy(text));
            }
        }
    }

    fn message(&mut self, line: std::ops::Range<usize>) -> anyhow::Result<Message<'_>> {
        let text = &self.buffer[line.clone()];
        let with_header = text[0] == b'H';
        let mut sizes = text.rsplit(|byte| *byte == b' ');
        let total = number(sizes.next().unwrap_or_default())?;
        let header = if with_header { number(sizes.next().unwrap_or_default())? } else { 0 };
        // What is left: verb, subject, sid and perhaps a reply.
        let reply = sizes.next().filter(|_| sizes.count() == 3);
        let reply = reply.map(|reply| {
            let at = reply.as_ptr() as usize - self.buffer.as_ptr() as usize;
            (at - line.start, reply.len())
        });
        let keep = line.end - line.start;
        // The line stays in front of the payload while more is read: the buffer may move it.
        self.start = line.start;
        let needed = keep + 2 + total + 2;
        while self.end - self.start < needed {
            self.fill(needed)?;
        }
        let base = self.start;
        self.start += needed;
        let payload = base + keep + 2;
        let (reply_at, reply_len) = reply.unwrap_or((0, 0));
        let subject_at = base + if with_header { 5 } else { 4 };
        let subject_len =
            memchr::memchr(b' ', &self.buffer[subject_at..payload]).context("a message without a subject")?;
        Ok(Message {
            subject: &self.buffer[subject_at..subject_at + subject_len],
            reply: &self.buffer[base + reply_at..base + reply_at + reply_len],
            header: &self.buffer[payload..payload + header],
            payload: &self.buffer[payload + header..payload + total],
        })
    }

    fn line_is(&mut self, expected: &[u8]) -> anyhow::Result<bool> {
        let line = self.line()?;
        let text = &self.buffer[line];
        if text.starts_with(b"-ERR") {
            bail!("the server says {}", String::from_utf8_lossy(text));
        }
        Ok(text == expected)
    }

    fn line(&mut self) -> anyhow::Result<std::ops::Range<usize>> {
        let mut looked = 0;
        loop {
            let unread = &self.buffer[self.start + looked..self.end];
            if let Some(at) = memchr::memchr(b'\n', unread) {
                let end = self.start + looked + at;
                let line = self.start..end.saturating_sub(1).max(self.start);
                self.start = end + 1;
                return Ok(line);
            }
            looked = self.end - self.start;
            self.fill(0)?;
        }
    }

    fn fill(&mut self, needed: usize) -> anyhow::Result<()> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        if self.end == self.buffer.len() || self.buffer.len() - self.start < needed {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.len() < needed || self.end == self.buffer.len() {
                self.buffer.resize((self.buffer.len() * 2).max(needed), 0);
            }
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).context("the server stopped answering")?;
        if read == 0 {
            bail!("the server closed the connection");
        }
        self.end += read;
        Ok(())
    }
}

fn number(text: &[u8]) -> anyhow::Result<usize> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .context("the server sent a malformed size")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_ping_behind_a_message_is_no_message() -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let server = std::thread::spawn(move || -> anyhow::Result<_> {
            let (mut stream, _) = listener.accept()?;
            let mut text = Vec::new();
            let mut part = [0; 1024];
            while !text.ends_with(b"PING\r\n") {
                let read = stream.read(&mut part)?;
                text.extend_from_slice(&part[..read]);
            }
            stream.write_all(b"PONG\r\nMSG a 1 r 1\r\nx\r\nMSG a 1 r 1\r\ny\r\nPING\r\n")?;
            Ok(stream)
        });
        let mut client = Client::connect(&address)?;
        let _stream = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;

        assert_eq!(client.receive()?.payload, b"x");
        assert!(client.has_message());
        assert_eq!(client.receive()?.payload, b"y");
        assert!(!client.has_message());
        Ok(())
    }
}
