//! Core NATS byte for byte: what a connection hears after it said something, right or wrong.

use std::time::Duration;

use anyhow::{Context as _, Result};
use levee_tests::cluster::Cluster;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pair::{Differences, Pair};

/// A client that hears headers and no-responders.
const HELLO: &str =
    r#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":0}"#;

/// What is said. A PING follows each, so that the answer has an end.
const SAID: &[(&str, &str)] = &[
    ("nothing", ""),
    ("ping", "PING\r\n"),
    ("verbose by default", "SUB a 1\r\nPUB a 2\r\nhi\r\nUNSUB 1\r\nUNSUB 9\r\n"),
    ("verbose", "CONNECT {\"verbose\":true}\r\nSUB a 1\r\nPUB a 2\r\nhi\r\n"),
    ("publish and hear", "@SUB a 1\r\nPUB a 2\r\nhi\r\n"),
    ("with reply", "@SUB a 1\r\nPUB a r 2\r\nhi\r\n"),
    ("lower case", "@sub a 1\r\npub a 2\r\nhi\r\nping\r\n"),
    ("bare newlines", "@SUB a 1\nPUB a 2\r\nhi\r\n"),
    ("tabs and spaces", "@SUB \t a  1 \r\nPUB\ta\t 2\r\nhi\r\n"),
    ("empty payload", "@SUB a 1\r\nPUB a 0\r\n\r\n"),
    ("wildcards", "@SUB a.* 1\r\nSUB a.> 2\r\nSUB > 3\r\nPUB a.b 1\r\nx\r\n"),
    ("wildcard publish", "@SUB foo.> 1\r\nPUB foo.* 2\r\nab\r\n"),
    ("empty token publish", "@SUB > 1\r\nPUB foo..x 2\r\nab\r\n"),
    ("bad subjects", "@SUB foo..bar 1\r\nSUB foo.>.x 2\r\nSUB .a 3\r\nSUB a. 4\r\n"),
    ("bad subject verbose", "CONNECT {\"verbose\":true}\r\nSUB foo..bar 1\r\nSUB ok 2\r\n"),
    ("stars inside tokens are letters", "@SUB a* 1\r\nPUB a* 1\r\nx\r\nPUB ab 1\r\ny\r\n"),
    ("pedantic", "CONNECT {\"verbose\":false,\"pedantic\":true}\r\nPUB foo.* 1\r\nx\r\nPUB a..b 1\r\nx\r\n"),
    ("same sid twice", "@SUB d 1\r\nSUB e 1\r\nPUB d 1\r\nx\r\nPUB e 1\r\ny\r\n"),
    ("unsubscribe after two", "@SUB u 1\r\nUNSUB 1 2\r\nPUB u 1\r\n1\r\nPUB u 1\r\n2\r\nPUB u 1\r\n3\r\n"),
    ("unsubscribe after what is over", "@SUB u 1\r\nPUB u 1\r\n1\r\nUNSUB 1 1\r\nPUB u 1\r\n2\r\n"),
    ("unsubscribe", "@SUB u 1\r\nUNSUB 1\r\nPUB u 1\r\n1\r\n"),
    ("one member and one subscription", "@SUB q g 1\r\nSUB q 2\r\nPUB q 1\r\nx\r\n"),
    ("no echo", "CONNECT {\"verbose\":false,\"echo\":false}\r\nSUB a 1\r\nPUB a 1\r\nx\r\n"),
    ("no responders", "@SUB r 5\r\nPUB none r 0\r\n\r\n"),
    ("no responders, not asked for", "CONNECT {\"verbose\":false}\r\nSUB r 5\r\nPUB none r 0\r\n\r\n"),
    ("no responders without headers", "CONNECT {\"verbose\":false,\"no_responders\":true}\r\n"),
    ("headers", "@SUB h 1\r\nHPUB h 22 24\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n"),
    ("headers with reply", "@SUB h 1\r\nHPUB h r 22 24\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n"),
    ("headers that are none", "@SUB h 1\r\nHPUB h 4 6\r\nABCDhi\r\n"),
    (
        "headers to one without",
        "CONNECT {\"verbose\":false,\"headers\":false}\r\nSUB h 1\r\nHPUB h 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    ),
    ("header longer than all", "@HPUB h 24 22\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n"),
    ("header arity", "@HPUB h 24\r\n"),
    ("header sizes not numbers", "@HPUB h a b\r\n"),
    ("unknown", "@FOO\r\n"),
    ("unknown before connect", "FOO bar\r\n"),
    ("server's own verbs", "@MSG a 1 2\r\nhi\r\n"),
    ("route verbs", "@RS+ $G a\r\n"),
    ("leaf verbs", "@LS+ a\r\n"),
    ("account verbs", "@A+ x\r\n"),
    ("ok and info from a client", "@+OK\r\nINFO {}\r\n"),
    ("error from a client", "@-ERR 'x'\r\n"),
    ("publish arity", "@PUB foo\r\n"),
    ("publish too many", "@PUB a b c 1\r\nx\r\n"),
    ("size not a number", "@PUB foo x\r\n"),
    ("negative size", "@PUB foo -1\r\n"),
    ("size out of range", "@PUB foo 99999999999999999999\r\n"),
    ("payload too large", "@PUB foo 9999999\r\n"),
    ("payload longer than said", "@PUB foo 2\r\nabcd\r\n"),
    ("subscribe arity", "@SUB a\r\n"),
    ("subscribe too many", "@SUB a b c d\r\n"),
    ("subscribe nothing", "@SUB\r\n"),
    ("unsubscribe arity", "@UNSUB\r\n"),
    ("unsubscribe not a number", "@SUB a 1\r\nUNSUB 1 x\r\n"),
    ("connect is not json", "CONNECT x\r\n"),
    ("connect is cut", "CONNECT {\"verbose\":\r\n"),
    ("connect with wrong types", "CONNECT {\"verbose\":\"yes\"}\r\n"),
    ("connect is empty", "CONNECT {}\r\n"),
    ("connect without object", "CONNECT\r\n"),
    ("protocol of the future", "CONNECT {\"verbose\":false,\"protocol\":7}\r\n"),
    ("connect twice", "@SUB a 1\r\n@PUB a 1\r\nx\r\n"),
    ("reserved replies", "@PUB foo _R_.abc.def 1\r\nx\r\nPUB foo $JS.ACK.a 1\r\nx\r\n"),
    ("empty line", "@\r\n"),
    ("ping with more", "@PING now\r\n"),
    ("pong", "@PONG\r\n"),
    ("half of a verb", "@PI\r\n"),
    ("verb run together", "@PUBfoo 1\r\nx\r\n"),
    ("http", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
];

/// Says it on a new connection and gives what comes until PONG or the end. INFO is left out: it names the server.
async fn hear(cluster: &Cluster, said: &str) -> Result<String> {
    let said = said.replace('@', &format!("{HELLO}\r\n"));
    exchange(cluster, format!("{said}PING\r\n").as_bytes(), Duration::from_secs(5)).await
}

async fn exchange(cluster: &Cluster, said: &[u8], limit: Duration) -> Result<String> {
    let mut stream = TcpStream::connect(cluster.node(0).address()).await?;
    // The server may close before it has read everything.
    let _ = stream.write_all(said).await;
    let pings = said.windows(6).filter(|bytes| bytes.eq_ignore_ascii_case(b"PING\r\n")).count();
    let mut heard = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let reading = async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return "(closed)",
                // Closed with unread bytes.
                Err(_) => return "(closed)",
                Ok(read) => heard.extend_from_slice(&buffer[..read]),
            }
            let text = String::from_utf8_lossy(&heard);
            if text.ends_with("PONG\r\n") && text.matches("PONG\r\n").count() >= pings {
                return "";
            }
        }
    };
    let end = timeout(limit, reading).await.unwrap_or("(nothing more)");
    let text = String::from_utf8_lossy(&heard);
    let lines: Vec<&str> = text.split_inclusive("\r\n").filter(|line| !line.starts_with("INFO ")).collect();
    Ok(lines.concat() + end)
}

async fn compare(test: &str, extra: &str, said: &[(&str, &str)]) -> Result<()> {
    let Some(pair) = Pair::start(test, extra).await? else { return Ok(()) };
    let mut differences = Differences::default();
    for (name, said) in said {
        let expected = hear(&pair.reference, said).await.with_context(|| (*name).to_owned())?;
        let heard = hear(&pair.subject, said).await.with_context(|| (*name).to_owned())?;
        differences.compare(&format!("{name}: {said:?}"), &Value::String(expected), &Value::String(heard));
    }
    differences.demand_none()
}

#[tokio::test]
async fn the_protocol_is_spoken_as_nats_server_speaks_it() -> Result<()> {
    compare("the_protocol_is_spoken_as_nats_server_speaks_it", "", SAID).await
}

#[tokio::test]
async fn users_and_passwords_are_asked_for_as_nats_server_asks() -> Result<()> {
    let said = [
        ("nothing said", ""),
        ("publish first", "PUB a 1\r\nx\r\n"),
        ("no password", "CONNECT {\"verbose\":false}\r\n"),
        ("wrong password", "CONNECT {\"verbose\":false,\"user\":\"joe\",\"pass\":\"no\"}\r\n"),
        ("wrong user", "CONNECT {\"verbose\":false,\"user\":\"jim\",\"pass\":\"secret\"}\r\n"),
        (
            "right",
            "CONNECT {\"verbose\":false,\"user\":\"joe\",\"pass\":\"secret\"}\r\nSUB a 1\r\nPUB a 1\r\nx\r\n",
        ),
        ("verbose", "CONNECT {\"user\":\"joe\",\"pass\":\"secret\"}\r\n"),
    ];
    // The harness asks without a password, so this pair is not waited for by way of the API.
    users("users_and_passwords_are_asked_for_as_nats_server_asks", "user: joe, password: secret", &said).await
}

#[tokio::test]
async fn tokens_are_asked_for_as_nats_server_asks() -> Result<()> {
    let said = [
        ("no token", "CONNECT {\"verbose\":false}\r\n"),
        ("wrong", "CONNECT {\"verbose\":false,\"auth_token\":\"no\"}\r\n"),
        ("right", "CONNECT {\"verbose\":false,\"auth_token\":\"secret\"}\r\nSUB a 1\r\nPUB a 1\r\nx\r\n"),
    ];
    users("tokens_are_asked_for_as_nats_server_asks", "token: secret", &said).await
}

/// Like `compare`, on servers that want to know who asks.
async fn users(test: &str, authorization: &str, said: &[(&str, &str)]) -> Result<()> {
    use levee_tests::cluster::Setup;
    use levee_tests::wait::PATIENCE;
    use levee_tests::{skip, tools};

    let Some(program) = tools::nats_server() else {
        return skip::missing(test, "there is no nats-server to compare with");
    };
    let setup =
        || Setup { started: 0, extra: format!("authorization {{ {authorization} }}"), ..Setup::default() };
    let mut reference = Cluster::with(Setup { program: Some(program), ..setup() }).await?;
    let mut subject = Cluster::with(setup()).await?;
    for cluster in [&mut reference, &mut subject] {
        cluster.start(0)?;
        cluster.node(0).logs("it is ready", PATIENCE, "Server is ready").await?;
    }
    let mut differences = Differences::default();
    for (name, said) in said {
        let (expected, heard) = (hear(&reference, said).await?, hear(&subject, said).await?);
        differences.compare(&format!("{name}: {said:?}"), &Value::String(expected), &Value::String(heard));
    }
    differences.demand_none()
}

#[tokio::test]
async fn limits_are_told_as_nats_server_tells_them() -> Result<()> {
    let long = format!("@SUB {} 1\r\n", "a".repeat(5000));
    let most = format!("@SUB {} 1\r\n", "a".repeat(4000));
    let name = "n".repeat(5000);
    let connect = format!("CONNECT {{\"verbose\":false,\"name\":\"{name}\"}}\r\n");
    let said = [
        ("a long subject", most.as_str()),
        ("a longer one", long.as_str()),
        ("a long connect", connect.as_str()),
        ("a payload above the limit", "@PUB a 2001\r\n"),
        ("headers above the limit", "@HPUB a 12 2001\r\n"),
    ];
    compare("limits_are_told_as_nats_server_tells_them", "max_payload: 2000", &said).await
}

#[tokio::test]
async fn info_has_the_fields_that_nats_server_gives() -> Result<()> {
    let Some(pair) = Pair::start("info_has_the_fields_that_nats_server_gives", "").await? else {
        return Ok(());
    };

    let mut both = Vec::new();
    for cluster in [&pair.reference, &pair.subject] {
        let mut raw = levee_tests::raw::Raw::connect(cluster.node(0).address()).await?;
        let mut first = raw.info().clone();
        raw.hello(&json!({})).await?;
        let Some(levee_tests::raw::Frame::Info(second)) = raw.next(Duration::from_secs(5)).await? else {
            anyhow::bail!("no INFO after the first PONG");
        };
        let mut second: Value = serde_json::from_str(&second)?;
        for info in [&mut first, &mut second] {
            let fields = info.as_object_mut().context("INFO")?;
            for name in ["server_id", "port", "client_id", "go"] {
                if let Some(value) = fields.get_mut(name) {
                    *value = json!("(hidden)");
                }
            }
            // What the server is built of, and what it calls itself, is its own affair.
            for name in ["git_commit", "xkey", "levee"] {
                fields.remove(name);
            }
        }
        both.push(json!({ "first": first, "second": second }));
    }

    let mut differences = Differences::default();
    differences.compare("INFO", &both[0], &both[1]);
    differences.demand_none()
}
