//! `levee redrive` where one has to say who one is, where there are several servers, and where there is none. Only Levee
//! claims it.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, ConnectOptions, HeaderMap};
use levee_tests::archive::api;
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::ports::Port;
use levee_tests::program::Program;
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

/// Redrives the letters of the stream `DEAD`. The environment says nothing of servers and users but this.
async fn redrive(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Output> {
    let mut command = tokio::process::Command::new(Program::subject()?.path());
    for name in ["NATS_URL", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN"] {
        command.env_remove(name);
    }
    command.args(["redrive", "DEAD"]).args(arguments).envs(environment.iter().copied()).kill_on_drop(true);
    tokio::time::timeout(PATIENCE, command.output()).await?.context("run levee redrive")
}

/// It did not work, and says why.
fn check_refused(output: &Output, said: &[&str]) {
    let complaint = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(complaint.starts_with("levee redrive: "), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(said.iter().all(|said| complaint.contains(said)), "{complaint} does not say {said:?}");
}

/// A letter in the stream `DEAD`, which is to come back to the stream `WORK`.
async fn letter(client: &Client) -> Result<()> {
    for (name, subject) in [("WORK", "work"), ("DEAD", "dead")] {
        wait_until(&format!("there is {name}"), PATIENCE, async || {
            let config = json!({"name": name, "subjects": [subject]});
            let created = api(client, &format!("STREAM.CREATE.{name}"), &config).await?;
            ensure!(created.get("error").is_none(), "{created}");
            Ok(Some(()))
        })
        .await?;
    }
    let mut headers = HeaderMap::new();
    headers.insert("Levee-Dead-Subject", "work");
    client.request_with_headers("dead", headers, "body".into()).await?;
    Ok(())
}

async fn count(client: &Client, stream: &str) -> Result<u64> {
    let info = api(client, &format!("STREAM.INFO.{stream}"), &json!({})).await?;
    info["state"]["messages"].as_u64().with_context(|| info.to_string())
}

/// Arguments, and what is in the environment.
type Way<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

/// Redrives one letter after the other on a server that wants to know who asks: refused with each of the `wrong`
/// arguments, done with each of the `right` ones and their environment.
async fn authorized(authorization: &str, who: &str, wrong: &[&[&str]], right: &[Way<'_>]) -> Result<()> {
    let extra = format!("authorization {{ {authorization} }}");
    let mut cluster = Cluster::with(Setup { extra, started: 0, ..Setup::default() }).await?;
    if !cluster.program().is_levee() {
        skip::not_claimed("levee redrive", "it is Levee's own");
        return Ok(());
    }
    cluster.start(0)?;
    let (plain, address) = (cluster.node(0).url(), cluster.node(0).address().to_owned());
    let named = format!("nats://{who}@{address}");
    let client = wait_until("a client can connect", PATIENCE, async || {
        let options = match who.split_once(':') {
            Some((user, password)) => ConnectOptions::with_user_and_password(user.into(), password.into()),
            None => ConnectOptions::with_token(who.into()),
        };
        Ok(Some(options.connect(plain.as_str()).await?))
    })
    .await?;
    letter(&client).await?;

    for arguments in wrong {
        let output = redrive(&[&["--server", &plain], *arguments].concat(), &[]).await?;
        check_refused(&output, &["connect to 127.0.0.1:", "authorization"]);
    }
    assert_eq!((count(&client, "DEAD").await?, count(&client, "WORK").await?), (1, 0));
    let with_url: [Way<'_>; 1] = [(&["--server", &named], &[])];
    for (number, (arguments, environment)) in (1..).zip(right.iter().chain(&with_url)) {
        let server = if arguments.contains(&"--server") { vec![] } else { vec!["--server", &plain] };
        let output = redrive(&[&server[..], *arguments].concat(), environment).await?;
        assert!(output.status.success(), "{arguments:?} {environment:?}: {output:?}");
        assert_eq!((count(&client, "DEAD").await?, count(&client, "WORK").await?), (0, number));
        letter(&client).await?;
    }
    Ok(())
}

#[tokio::test]
async fn letters_are_redriven_by_a_user_with_a_password() -> Result<()> {
    authorized(
        "user: someone, password: s3cret",
        "someone:s3cret",
        &[&[], &["--user", "someone", "--password", "other"], &["--token", "s3cret"]],
        &[
            (&["--user", "someone", "--password", "s3cret"], &[]),
            (&[], &[("NATS_USER", "someone"), ("NATS_PASSWORD", "s3cret")]),
        ],
    )
    .await
}

#[tokio::test]
async fn letters_are_redriven_by_whoever_has_the_token() -> Result<()> {
    authorized(
        "token: s3cret",
        "s3cret",
        &[&[], &["--token", "other"]],
        &[(&["--token", "s3cret"], &[]), (&[], &[("NATS_TOKEN", "s3cret")])],
    )
    .await
}

#[tokio::test]
async fn a_redrive_without_a_server_or_a_stream_says_so() -> Result<()> {
    let cluster = Cluster::three().await?;
    if !cluster.program().is_levee() {
        skip::not_claimed("levee redrive", "it is Levee's own");
        return Ok(());
    }
    let free = Port::take()?;
    let nobody = format!("nats://127.0.0.1:{}", free.number());

    check_refused(&redrive(&["--server", &nobody], &[]).await?, &["connect to 127.0.0.1:", "refused"]);
    let there = cluster.node(1).url();
    check_refused(&redrive(&["--server", &there], &[]).await?, &["stream dead", "not found"]);
    check_refused(&redrive(&["--server", "nats://a b"], &[]).await?, &["the servers to connect to"]);
    let half = redrive(&["--server", &there, "--user", "someone"], &[]).await?;
    assert_eq!(half.status.code(), Some(2), "{half:?}");

    // One of several servers is enough.
    let client = cluster.client(0).await?;
    letter(&client).await?;
    let output = redrive(&["--server", &format!("{nobody},{there}")], &[]).await?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!((count(&client, "DEAD").await?, count(&client, "WORK").await?), (0, 1));
    Ok(())
}
