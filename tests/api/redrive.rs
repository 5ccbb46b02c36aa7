//! `levee redrive` is stopped in the middle, kindly and not, and goes on. Only Levee claims it.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::RetentionPolicy;
use levee_tests::client::read_all;
use levee_tests::wait::{PATIENCE, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use crate::dead_letters::{holds, homes, worker};
use crate::ground::{Ground, Home, settle, take};

const LETTERS: u64 = 500;

/// Begins to redrive, sends the signal when some letters have gone, and waits for the end.
async fn interrupted(ground: &Ground, dead: &Home, signal: Signal) -> Result<Output> {
    let before = dead.messages().await?;
    let child = tokio::process::Command::new(ground.cluster.program().path())
        .args(["redrive", dead.name.as_str(), "--server", ground.cluster.node(0).url().as_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start levee redrive")?;
    wait_until("some letters are redriven", PATIENCE, async || {
        Ok((dead.messages().await? + 5 <= before).then_some(()))
    })
    .await?;
    let pid = child.id().context("it ended by itself")?;
    kill_process(Pid::from_raw(i32::try_from(pid)?).context("a process id")?, signal)?;
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await?.context("wait for levee redrive")
}

/// The numbers in `N redriven, N were there already, N left alone`.
fn tally(printed: &[u8]) -> Result<Vec<u64>> {
    let text = String::from_utf8_lossy(printed);
    let numbers = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    ensure!(text.contains(" redriven, "), "no summary: {text:?}");
    Ok(numbers)
}

pub(crate) async fn a_redrive_that_is_stopped_in_the_middle_goes_on(ground: &Ground) -> Result<()> {
    let Some((home, dead)) = homes(ground, "STOPPED", RetentionPolicy::Limits).await? else { return Ok(()) };
    home.publish_many("a", LETTERS).await?;
    let consumer = home.pull(pull::Config { max_deliver: 1, ..worker(&dead) }).await?;
    let mut given_up = 0;
    while given_up < LETTERS {
        for message in take(&consumer, 100).await? {
            settle(&message, AckKind::Term).await?;
            given_up += 1;
        }
    }
    holds(&dead, LETTERS).await?;

    let killed = interrupted(ground, &dead, Signal::KILL).await?;
    assert_eq!(killed.status.code(), None, "{killed:?}");
    // The last delete of the killed process may come yet.
    let mut left = LETTERS;
    while left != dead.messages().await? {
        left = dead.messages().await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(left < LETTERS && left > 0, "{left} letters are left: nothing was in the middle");

    let stopped = interrupted(ground, &dead, Signal::INT).await?;
    let said = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
    let [published, duplicates, alone] = tally(&stopped.stdout)?[..] else { panic!("{stopped:?}") };
    assert!(duplicates <= 1 && alone == 0, "{stopped:?}");
    let now_left = dead.messages().await?;
    assert_eq!(now_left, left - published - duplicates, "it says what it did");
    assert!(now_left > 0, "nothing was in the middle");
    // Where it stopped is a letter that is gone, and the next one is there.
    let behind = said.split_once("stopped behind sequence ").and_then(|(_, rest)| rest.split_once(';'));
    let behind: u64 = behind.context(said.clone())?.0.parse()?;
    assert!(said.contains("interrupted"), "{said}");
    assert_eq!(dead.stream.get_info().await?.state.first_sequence, behind + 1);

    let rest = tokio::process::Command::new(ground.cluster.program().path())
        .args(["redrive", dead.name.as_str(), "--server", ground.cluster.node(0).url().as_str()])
        .output()
        .await?;
    assert_eq!(rest.status.code(), Some(0), "{rest:?}");
    assert_eq!(tally(&rest.stdout)?, [now_left, 0, 0]);
    assert_eq!(dead.messages().await?, 0);
    let mut times: BTreeMap<String, u64> = BTreeMap::new();
    for message in read_all(&home.client, &home.name).await? {
        *times.entry(message.body).or_default() += 1;
    }
    let expected: BTreeMap<String, u64> = (1..=LETTERS).map(|number| (number.to_string(), 2)).collect();
    assert_eq!(times, expected, "each came back once");
    Ok(())
}
