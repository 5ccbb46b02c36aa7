//! `levee redrive`: publishes dead letters back to the subjects they came from, and deletes them from their stream.
//!
//! It is a client like others: it reads a letter, publishes the message, waits until that is stored, deletes the letter,
//! and only then goes on. So it may be stopped at any moment and started again: a letter that was published and not
//! deleted has the same message id the second time, and is stored once within the duplicate window of its stream.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, ServerAddr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// Where the message was, in a letter's headers.
const ORIGIN: &str = "Levee-Dead-Subject";
/// Headers of the letter that the message did not have.
const NOT_KEPT: [&str; 2] = ["levee-dead-", "nats-"];
/// How often it says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Publish dead letters back to the subjects they came from.
#[derive(Debug, clap::Args)]
pub(crate) struct Redrive {
    /// The stream that has the dead letters.
    stream: String,
    /// Servers, separated by commas. A URL may have a user and a password in it, or a token.
    #[arg(short, long, default_value = "nats://127.0.0.1:4222", env = "NATS_URL")]
    server: String,
    /// User to connect as.
    #[arg(long, env = "NATS_USER", requires = "password")]
    user: Option<String>,
    /// Password of the user.
    #[arg(long, env = "NATS_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Token to connect with.
    #[arg(long, env = "NATS_TOKEN", hide_env_values = true, conflicts_with = "user")]
    token: Option<String>,
    /// Only letters on subjects that match.
    #[arg(long, default_value = ">")]
    filter: String,
    /// First sequence in the stream of dead letters.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Last sequence. Letters that are stored after the start are left alone in any case.
    #[arg(long)]
    last: Option<u64>,
    /// Leave the letters where they are. Then a second run publishes them again once the duplicate window is over.
    #[arg(long)]
    keep: bool,
    /// Say what would be published, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What was done so far.
#[derive(Debug, Default)]
struct Tally {
    published: u64,
    duplicates: u64,
    skipped: u64,
    last: u64,
}

impl Redrive {
    /// Runs to the end of the range, or until it is interrupted between two letters.
    pub(crate) fn run(self) -> ExitCode {
        crate::run("redrive", self.redrive())
    }

    async fn redrive(&self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let js = jetstream::new(self.connect().await?);
        let stream = js.get_stream(&self.stream).await.with_context(|| format!("stream {}", self.stream))?;
        let mut tally = Tally::default();
        let done = self.walk(&js, &stream, &mut tally, [&mut interrupt, &mut terminate]).await;
        println!("{}", self.summary(&tally));
        let Err(error) = done else { return Ok(()) };
        Err(error.context(format!("stopped behind sequence {}; the same command goes on there", tally.last)))
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let servers = self.server.split(',').map(|server| server.trim().parse());
        let servers: Vec<ServerAddr> =
            servers.collect::<Result<_, _>>().context("the servers to connect to")?;
        let options = match (&self.user, &self.password, &self.token) {
            (Some(user), Some(password), _) => {
                ConnectOptions::with_user_and_password(user.clone(), password.clone())
            }
            (_, _, Some(token)) => ConnectOptions::with_token(token.clone()),
            _ => named_in(&servers),
        };
        let shown: Vec<String> =
            servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
        options
            .name("levee redrive")
            .connect(servers)
            .await
            .with_context(|| format!("connect to {}", shown.join(", ")))
    }

    async fn walk(
        &self,
        js: &Context,
        stream: &Stream,
        tally: &mut Tally,
        signals: [&mut Signal; 2],
    ) -> anyhow::Result<()> {
        let info = stream.cached_info();
        let newest = info.state.last_sequence;
        let last = self.last.map_or(newest, |last| last.min(newest));
        // A stream that is created again under the same name has letters of its own.
        let origin = format!("levee.redrive.{}.{}", self.stream, info.created.unix_timestamp_nanos());
        let [interrupt, terminate] = signals;
        let mut told = Instant::now();
        let mut next = self.first.max(1);
        while next <= last {
            let letter = tokio::select! {
                biased;
                _ = interrupt.recv() => bail!("interrupted"),
                _ = terminate.recv() => bail!("interrupted"),
                letter = stream.get_first_raw_message_by_subject(&self.filter, next) => letter,
            };
            let letter = match letter {
                Ok(letter) => letter,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(error).with_context(|| format!("read from sequence {next}")),
            };
            if letter.sequence > last {
                break;
            }
            let sequence = letter.sequence;
            self.one(js, stream, letter, &origin, tally)
                .await
                .with_context(|| format!("letter {sequence}"))?;
            tally.last = sequence;
            next = sequence + 1;
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                eprintln!("{sequence} of {last}: {}", self.summary(tally));
            }
        }
        Ok(())
    }

    async fn one(
        &self,
        js: &Context,
        stream: &Stream,
        letter: StreamMessage,
        origin: &str,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        let Some(subject) = letter.headers.get(ORIGIN).map(|subject| subject.as_str().to_owned()) else {
            eprintln!("{}: left alone, it has no {ORIGIN}", letter.sequence);
            tally.skipped += 1;
            return Ok(());
        };
        if self.dry_run {
            println!("{} -> {subject}", letter.sequence);
            tally.published += 1;
            return Ok(());
        }
        let mut headers = kept(&letter.headers);
        headers.insert("Nats-Msg-Id", format!("{origin}.{}", letter.sequence));
        let ack = js.publish_with_headers(subject.clone(), headers, letter.payload).await?;
        let ack = ack.await.with_context(|| format!("publish to {subject}"))?;
        if ack.duplicate {
            tally.duplicates += 1;
        } else {
            tally.published += 1;
        }
        if !self.keep {
            stream.delete_message(letter.sequence).await.context("delete it")?;
        }
        Ok(())
    }

    fn summary(&self, tally: &Tally) -> String {
        let verb = if self.dry_run { "would be redriven" } else { "redriven" };
        format!(
            "{} {verb}, {} were there already, {} left alone",
            tally.published, tally.duplicates, tally.skipped
        )
    }
}

/// The user and the password in a server's URL, or a token, which has none.
fn named_in(servers: &[ServerAddr]) -> ConnectOptions {
    let Some((server, name)) = servers.iter().find_map(|server| Some((server, server.username()?))) else {
        return ConnectOptions::new();
    };
    match server.password() {
        Some(password) => ConnectOptions::with_user_and_password(unescaped(name), unescaped(password)),
        None => ConnectOptions::with_token(unescaped(name)),
    }
}

/// A part of a URL in which `%` and two digits stand for a byte.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits =
            behind.get(..2).filter(|digits| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let text = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = text.and_then(|text| u8::from_str_radix(text, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The headers that the message had of its own.
fn kept(letter: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in letter.iter() {
        let text = name.to_string();
        let is_ours = NOT_KEPT.iter().any(|prefix| text.to_ascii_lowercase().starts_with(prefix));
        for value in values.iter().filter(|_| !is_ours) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_urls_are_bytes() {
        for (text, expected) in [
            ("plain", "plain"),
            ("p%40ss%3Aw%25rd", "p@ss:w%rd"),
            ("%c3%A9", "é"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
        ] {
            assert_eq!(unescaped(text), expected);
        }
    }

    #[test]
    fn a_message_goes_back_with_the_headers_it_had() {
        let mut letter = HeaderMap::new();
        letter.append("Trace", "a");
        letter.append("Trace", "b");
        letter.insert("Levee-Dead-Subject", "orders.1");
        letter.insert("Levee-Dead-Nats-Msg-Id", "mine");
        letter.insert("Nats-Msg-Id", "levee.dead.x");

        let headers = kept(&letter);

        let traces: Vec<&str> = headers.get_all("Trace").map(|value| value.as_str()).collect();
        assert_eq!((headers.len(), traces), (1, vec!["a", "b"]));
    }
}
