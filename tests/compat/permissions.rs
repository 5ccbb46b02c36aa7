//! What users may do, said by several connections in turn on both servers, and what each of them hears.
//!
//! `permissions/*.txt` are the scripts. A script begins with `== name`; in its lines a connection, named by its user and
//! a digit if there are several, does one thing, and then waits for its PONG:
//!
//! | line | does |
//! |---|---|
//! | `who: SUB a 1\|SUB b 2` | says this; `\|` ends a line |
//! | `who! subject reply payload` | publishes; a reply of `-` is none |
//! | `who!2 subject reply payload` | publishes, and waits for that many messages |
//! | `who^ payload` | publishes to the reply subject of the last message it got that has one |
//! | `who?` | hears that nothing comes for a moment |
//!
//! At the end of a script each connection sends one more PING. A connection with a `+` in its name is verbose. What is
//! heard by the time of a line that begins with `~` differs on purpose, and the last words of a script whose name does; why
//! is in `README.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use levee_tests::cluster::Cluster;
use levee_tests::raw::{Frame, Raw};
use regex::Regex;
use serde_json::{Value, json};

use crate::pair::{Differences, Pair, normalized};

/// All users but the first are of one account or another with less than everything.
const USERS: &str = r#"accounts {
  A {
    jetstream: enabled
    users [
      { user: any, password: any, permissions: { } }
      {
        user: some, password: some
        permissions {
          publish { allow: ["foo.*", "req"], deny: "foo.no" }
          subscribe { allow: ["foo.*", "bar", "bar q1", "baz q.*", "_INBOX.>"], deny: ["foo.secret", "qq q9"] }
        }
      }
      { user: narrow, password: narrow, permissions { subscribe { deny: ["foo.bar", "x.*", "qq q9", "js.no"] } } }
      { user: answer, password: answer, permissions { subscribe: ">", allow_responses: true } }
      {
        user: often, password: often
        permissions { sub: ">", pub { allow: ok, deny: n }, allow_responses { max: 2, expires: "400ms" } }
      }
      {
        user: worker, password: worker
        permissions {
          publish: ["$JS.API.CONSUMER.MSG.NEXT.S.*"], subscribe: "_INBOX.>", allow_responses { max: 3 }
        }
      }
      { user: forger, password: forger, permissions { publish { deny: ["$JS.API.>", "$JS.ACK.>", "$JS.FC.>"] } } }
      { user: acker, password: acker, permissions { publish: "$JS.ACK.S.own.>" } }
      { user: plain, password: plain }
    ]
    default_permissions { publish: "dflt.>", subscribe: ["dflt.>", "_INBOX.>"] }
  }
  B { users [{ user: other, password: other }] }
}
authorization {
  users [{ user: own, password: own, permissions { publish: { } } }, { user: global, password: global }]
  default_permissions { publish: global }
}
no_auth_user: any"#;

#[derive(Debug)]
enum Deed {
    Say(String),
    Publish { messages: usize, subject: String, reply: String, payload: String },
    Answer(String),
    Quiet,
}

#[derive(Debug)]
struct Step {
    line: String,
    compared: bool,
    who: String,
    deed: Deed,
}

fn parse(file: &str) -> Result<Vec<(&str, Vec<Step>)>> {
    let mut scripts: Vec<(&str, Vec<Step>)> = Vec::new();
    for line in file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            scripts.push((name, Vec::new()));
            continue;
        }
        let text = line.strip_prefix('~').unwrap_or(line);
        let at = text.find(|letter: char| ":!^?".contains(letter)).with_context(|| line.to_owned())?;
        let (who, what) = (&text[..at], text[at + 1..].trim_start());
        let deed = match text.as_bytes()[at] {
            b':' => Deed::Say(format!("{}\r\n", what.replace('|', "\r\n"))),
            b'!' => {
                let mut words = text[at + 1..].splitn(4, ' ');
                let mut word = || words.next().unwrap_or_default().to_owned();
                let (messages, subject, reply, payload) = (word(), word(), word(), word());
                let messages = if messages.is_empty() { 0 } else { messages.parse()? };
                Deed::Publish { messages, subject, reply: reply.trim_matches('-').to_owned(), payload }
            }
            b'^' => Deed::Answer(what.to_owned()),
            _ => Deed::Quiet,
        };
        let (_, steps) = scripts.last_mut().context("a script begins with its name")?;
        steps.push(Step { line: line.to_owned(), compared: line == text, who: who.to_owned(), deed });
    }
    Ok(scripts)
}

struct Speaker {
    raw: Raw,
    /// Where the last message with a reply subject wants its answer.
    reply: String,
    /// Why it was not let in.
    refused: Option<String>,
}

impl Speaker {
    async fn connect(cluster: &Cluster, who: &str) -> Result<Self> {
        let mut raw = Raw::connect(cluster.node(0).address()).await?;
        let user = who.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '+');
        let credentials = json!({ "user": user, "pass": user, "verbose": who.contains('+') });
        let refused = raw.hello(&credentials).await.err().map(|error| error.to_string());
        Ok(Self { raw, reply: String::new(), refused })
    }

    async fn act(&mut self, deed: &Deed) -> Result<Vec<String>> {
        if let Some(refused) = &self.refused {
            return Ok(vec![refused.clone()]);
        }
        let frames = match deed {
            Deed::Say(text) => {
                self.raw.send(text.as_bytes()).await?;
                self.raw.until_pong().await?
            }
            Deed::Publish { messages, subject, reply, payload } => {
                self.raw.publish(subject, reply, "", payload).await?;
                let mut frames = self.await_messages(*messages).await?;
                frames.extend(self.raw.until_pong().await?);
                frames
            }
            Deed::Answer(payload) => {
                ensure!(!self.reply.is_empty(), "nothing to answer");
                self.raw.publish(&self.reply, "", "", payload).await?;
                self.raw.until_pong().await?
            }
            Deed::Quiet => self.raw.until_quiet(Duration::from_millis(300)).await?,
        };
        Ok(self.heard(frames))
    }

    async fn await_messages(&mut self, count: usize) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while frames.iter().filter(|frame| matches!(frame, Frame::Message(_))).count() < count {
            match self.raw.next(Duration::from_secs(5)).await? {
                Some(Frame::Closed) | None => bail!("{count} messages are awaited, heard {frames:?}"),
                Some(frame) => frames.push(frame),
            }
        }
        Ok(frames)
    }

    /// As text, without what must differ between two servers and two moments.
    fn heard(&mut self, frames: Vec<Frame>) -> Vec<String> {
        let times = Regex::new(r"\d{15,}|\d{4}-\d\d-\d\dT[\d:.]+Z").expect("a pattern");
        let mut heard = Vec::new();
        for frame in frames {
            let text = match frame {
                Frame::Info(_) => continue,
                Frame::Message(mut message) => {
                    if !message.reply.is_empty() {
                        self.reply.clone_from(&message.reply);
                    }
                    if let Ok(value) = serde_json::from_str::<Value>(&message.payload) {
                        message.payload = sorted(normalized(&value)).to_string();
                    }
                    format!("{message:?}")
                }
                other => format!("{other:?}"),
            };
            heard.push(times.replace_all(&text, "(time)").into_owned());
        }
        heard
    }
}

/// Which server answers is its own affair, and nats-server tells permissions in any order.
fn sorted(mut answer: Value) -> Value {
    if let Some(server) = answer.get_mut("server") {
        *server = json!("(hidden)");
    }
    for of in ["publish", "subscribe"] {
        for list in ["allow", "deny"] {
            if let Some(Value::Array(list)) = answer.pointer_mut(&format!("/data/permissions/{of}/{list}")) {
                list.sort_by_key(Value::to_string);
            }
        }
    }
    answer
}

async fn run(cluster: &Cluster, steps: &[Step]) -> Result<(Vec<Vec<String>>, BTreeMap<String, Vec<String>>)> {
    let mut speakers: BTreeMap<String, Speaker> = BTreeMap::new();
    let mut heard = Vec::new();
    for step in steps {
        if !speakers.contains_key(&step.who) {
            speakers.insert(step.who.clone(), Speaker::connect(cluster, &step.who).await?);
        }
        let speaker = speakers.get_mut(&step.who).context("connected")?;
        heard.push(speaker.act(&step.deed).await.with_context(|| step.line.clone())?);
    }
    let mut last = BTreeMap::new();
    for (who, mut speaker) in speakers {
        let words = speaker.act(&Deed::Say(String::new())).await?;
        last.insert(who, words);
    }
    Ok((heard, last))
}

async fn compare(test: &str, users: &str, file: &str) -> Result<()> {
    let Some(pair) = Pair::start(test, users).await? else { return Ok(()) };
    let mut differences = Differences::default();
    let (mut count, mut on_purpose) = (0, 0);
    for (name, steps) in parse(file)? {
        let (expected, expected_last) =
            run(&pair.reference, &steps).await.with_context(|| format!("{name}, there"))?;
        let (heard, last) = run(&pair.subject, &steps).await.with_context(|| format!("{name}, here"))?;
        for ((step, expected), heard) in steps.iter().zip(&expected).zip(&heard) {
            count += 1;
            if step.compared {
                differences.compare(&format!("{name}: {}", step.line), &json!(expected), &json!(heard));
            } else {
                on_purpose += 1;
                ensure!(expected != heard, "{name}: {} is answered the same by now", step.line);
            }
        }
        if name.starts_with('~') {
            ensure!(expected_last != last, "{name}: the last words are the same by now");
        } else {
            differences.compare(&format!("{name}, the last words"), &json!(expected_last), &json!(last));
        }
    }
    println!("{count} steps, {on_purpose} of them different on purpose");
    differences.demand_none()
}

/// Accounts that limit their clients; `$G` does not.
const LIMITS: &str = r#"accounts {
  A { users [{ user: few, password: few }], limits { max_connections: 2, max_subscriptions: 3, max_payload: 10 } }
  B { users [{ user: none, password: none }], limits { max_connections: 0 } }
  C { users [{ user: all, password: all }], limits { max_connections: -1, max_subs: -1, max_pay: -1 } }
  D { users [{ user: any, password: any }], jetstream: enabled }
}
no_auth_user: any"#;

#[tokio::test]
async fn users_publish_and_hear_what_they_may_on_nats_server() -> Result<()> {
    let test = "users_publish_and_hear_what_they_may_on_nats_server";
    compare(test, USERS, include_str!("permissions/core.txt")).await
}

#[tokio::test]
async fn users_have_of_streams_what_they_may_on_nats_server() -> Result<()> {
    let test = "users_have_of_streams_what_they_may_on_nats_server";
    compare(test, USERS, include_str!("permissions/streams.txt")).await
}

#[tokio::test]
async fn accounts_limit_their_clients_as_on_nats_server() -> Result<()> {
    let test = "accounts_limit_their_clients_as_on_nats_server";
    compare(test, LIMITS, include_str!("permissions/limits.txt")).await
}
