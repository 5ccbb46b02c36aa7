//! Files of the store are cut short or lose a bit. The node says so, and neither panics nor serves something else.
//!
//! On one node there is no other copy. So each case may end in one of two ways: the node serves, and then every
//! message is either as it was published or refused; or it does not start, or does not open the stream, and its
//! log says why. A tail of the log that was never acknowledged is the one thing that may go without a word, and
//! these tests damage what was acknowledged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use levee_tests::cluster::Cluster;
use levee_tests::disk::{files, flip, truncate};
use levee_tests::program::Program;
use levee_tests::raw::Raw;
use levee_tests::skip;
use levee_tests::wait::wait_until;
use serde_json::{Value, json};

const MESSAGES: u64 = 300;

/// The payload of a message: large enough that most bytes on the disk are of messages.
fn payload(number: u64) -> String {
    format!("{number:08}").repeat(128)
}

/// A node with a stream, ended after all was acknowledged.
async fn filled() -> Result<Cluster> {
    let mut cluster = Cluster::one().await?;
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;
    let config = json!({ "name": "HURT", "subjects": ["hurt.>"], "allow_direct": true }).to_string();
    let made = raw.request_json("$JS.API.STREAM.CREATE.HURT", &config).await?;
    ensure!(made.get("error").is_none(), "{made}");
    for number in 1..=MESSAGES {
        let ack = raw.request_json("hurt.a", &payload(number)).await?;
        assert_eq!(ack["seq"], number, "{ack}");
    }
    cluster.stop(0).await?;
    Ok(cluster)
}

/// What a damaged node may do.
#[derive(Debug)]
enum End {
    /// It ended, or says that it does not serve the stream.
    Refuses,
    /// It serves: so many as they were, so many refused.
    Serves { intact: u64, refused: u64 },
}

/// Starts the node and looks which end it takes.
async fn outcome(cluster: &mut Cluster) -> Result<End> {
    cluster.start(0)?;
    let address = cluster.node(0).address().to_owned();
    let info = wait_until(
        "the node serves the stream or says that it does not",
        Duration::from_secs(20),
        async || {
            let mut raw = match Raw::connect(&address).await {
                Ok(raw) => raw,
                Err(error) => return Err(error),
            };
            raw.hello(&json!({})).await?;
            let info = raw.request_json("$JS.API.STREAM.INFO.HURT", "").await?;
            ensure!(info["error"]["code"] != 503, "{info}");
            Ok(Some((raw, info)))
        },
    )
    .await;
    let Ok((mut raw, info)) = info else { return Ok(End::Refuses) };
    if info.get("error").is_some() {
        return Ok(End::Refuses);
    }
    let last = info["state"]["last_seq"].as_u64().context("last sequence")?;
    let (mut intact, mut refused) = (0, 0);
    for number in 1..=MESSAGES {
        let request = json!({ "seq": number }).to_string();
        match raw.request("$JS.API.DIRECT.GET.HURT", "", &request).await {
            Ok(answer) if answer.status().is_empty() => {
                ensure!(answer.payload == payload(number), "message {number} is not what was published");
                intact += 1;
            }
            // Told, or not answered by a replica that stopped.
            Ok(_) | Err(_) => refused += 1,
        }
    }
    ensure!(last <= MESSAGES, "{info}");
    Ok(End::Serves { intact, refused })
}

/// What must hold whichever end it takes.
fn judge(log: &str, end: &End, what: &str) -> Result<()> {
    ensure!(!log.contains("panicked"), "{what}: it panicked");
    let told = [
        "damaged",
        "Corruption",
        "corrupt",
        "checksum",
        "missing",
        "truncated",
        "can't be opened",
        "cannot be opened",
        "its log is gone",
    ];
    let says_so = told.iter().any(|word| log.contains(word));
    println!("{what}: {end:?}, said: {says_so}");
    match end {
        End::Serves { intact: MESSAGES, .. } => Ok(()),
        End::Serves { intact, refused } => {
            ensure!(intact + refused == MESSAGES, "{what}: {end:?}");
            ensure!(says_so, "{what}: {end:?}, and the log does not say why");
            Ok(())
        }
        End::Refuses => {
            ensure!(says_so, "{what}: {end:?}, and the log does not say why");
            Ok(())
        }
    }
}

/// Each file of the store, copied back between cases.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for (path, _) in files(from)? {
        let target = to.join(path.strip_prefix(from)?);
        std::fs::create_dir_all(target.parent().context("parent")?)?;
        std::fs::copy(&path, &target).with_context(|| format!("copy {}", path.display()))?;
    }
    Ok(())
}

/// The files that hold data: not locks and logs, largest first.
fn of_data(store: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = files(store)?;
    found.retain(|(path, length)| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        *length > 0 && !name.starts_with("LOG") && !name.to_lowercase().contains("lock") && name != "IDENTITY"
    });
    Ok(found)
}

/// Damages the store in several ways, one at a time, each on a fresh copy.
async fn cases(what: &str, harm: impl Fn(&Path, u64, u64) -> Result<()>) -> Result<()> {
    if !Program::subject()?.is_levee() {
        skip::not_claimed(what, "nats-server drops what does not match its checksum");
        return Ok(());
    }
    let mut cluster = filled().await?;
    let store = cluster.node(0).store().to_owned();
    let whole = cluster.dir().join("whole");
    copy(&store, &whole)?;
    let names: Vec<(PathBuf, u64)> = of_data(&whole)?.into_iter().take(4).collect();
    ensure!(!names.is_empty(), "the store has no files");
    for (file, length) in names {
        let relative = file.strip_prefix(&whole)?.to_owned();
        let what = format!("{what} of {}", relative.display());
        std::fs::remove_dir_all(&store)?;
        copy(&whole, &store)?;
        harm(&store.join(&relative), length, rand::random())?;

        let said_before = cluster.node(0).log().len();
        let end = outcome(&mut cluster).await.with_context(|| what.clone())?;
        judge(&cluster.node(0).log()[said_before..], &end, &what)?;
        if cluster.running().next().is_some() {
            // It may have ended by itself.
            let _ = cluster.kill(0);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_bit_that_flips_in_a_store_file_is_told_and_never_served() -> Result<()> {
    cases("a flipped bit", |file, length, chance| {
        println!("{}: byte {} of {length}", file.display(), chance % length);
        flip(file, chance % length, u32::try_from(chance % 8)?)
    })
    .await
}

#[tokio::test]
async fn a_store_file_that_is_cut_short_is_told_and_nothing_wrong_is_served() -> Result<()> {
    cases("a cut", |file, length, _| truncate(file, length / 2)).await
}

#[tokio::test]
async fn a_replica_that_lost_its_whole_store_takes_nothing_from_the_others() -> Result<()> {
    const NAME: &str = "a_replica_that_lost_its_whole_store_takes_nothing_from_the_others";
    let mut cluster = Cluster::three().await?;
    if !cluster.program().is_levee() {
        skip::not_claimed(NAME, "a claim about Levee's own way to come back");
        return Ok(());
    }
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;
    let config = json!({ "name": "LOST", "subjects": ["lost.>"], "num_replicas": 3, "allow_direct": true });
    let made = raw.request_json("$JS.API.STREAM.CREATE.LOST", &config.to_string()).await?;
    ensure!(made.get("error").is_none(), "{made}");
    for number in 1..=50 {
        let ack = raw.request_json("lost.a", &number.to_string()).await?;
        assert_eq!(ack["seq"], number, "{ack}");
    }

    cluster.stop(2).await?;
    std::fs::remove_dir_all(cluster.node(2).store())?;
    cluster.start(2)?;

    // Either it takes part again as what it was or it says that its name belongs to another; never does it vote
    // with an empty log, so what was acknowledged stays.
    let served = wait_until("the cluster serves on", Duration::from_secs(20), async || {
        let info = raw.request_json("$JS.API.STREAM.INFO.LOST", "").await?;
        ensure!(info["state"]["messages"] == 50, "{info}");
        let ack: Value = raw.request_json("lost.a", "more").await?;
        ensure!(ack["seq"] == 51, "{ack}");
        Ok(Some(()))
    });
    served.await?;
    let says = "can't join|joins the JetStream meta group|is connected";
    cluster.node(0).logs("somebody says what becomes of the node", Duration::from_secs(20), says).await
}
