//! The power goes for all nodes at once. What was acknowledged is there when it is back, and nobody has to help.
//!
//! Each node has a disk of its own that can lose power ([`levee_tests::power`]): of what it wrote and did not flush, any
//! part may be lost. Cuts come at random moments of a load that reaches all of the store: messages that go to the
//! write-ahead log, to the value log and to both, alone and in windows, overwritten keys, work queues, purges and
//! deletes, so that checkpoints, purges of logs and cleaning run as well; and while nodes are starting.
//!
//! `LEVEE_POWER_CUTS` says how many cuts there are, `LEVEE_POWER_SEED` how they fall.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::Client;
use async_nats::jetstream::stream::{Config, StorageType};
use levee_tests::client::{leader, read_all, read_replica, replicas_current};
use levee_tests::cluster::Setup;
use levee_tests::disk::files;
use levee_tests::power::{Disk, Loss};
use levee_tests::program::Program;
use levee_tests::skip;
use levee_tests::tools;
use levee_tests::wait::{PATIENCE, wait_until};
use rand::Rng as _;

use crate::load::{Story, Work, body, patient};
use crate::site::{LARGE, MIDDLE, SMALL, Site, config};

/// A disk must have room beyond what a node holds in reserve.
const DISK_MEBIBYTES: u64 = 3072;

impl Site {
    /// Cuts the power of all nodes now, and gives it back when the clients of `work` have read what the nodes had sent.
    /// The processes are started. Gives when the power went.
    async fn cut(&mut self, loss: Loss, work: Option<Work>) -> Result<Instant> {
        if self.chance.random_bool(0.7) {
            let first = self.chance.random_range(0..self.disks.len());
            self.disks[first].wait_for_unflushed(Duration::from_millis(200));
        }
        let all: Vec<usize> = (0..self.nodes()).collect();
        self.cut_some(&all, loss, work).await
    }

    /// The same for some of the nodes.
    async fn cut_some(&mut self, nodes: &[usize], loss: Loss, work: Option<Work>) -> Result<Instant> {
        let now = Instant::now();
        for disk in nodes.iter().map(|node| &self.disks[*node]) {
            let cut = disk.cut(loss, &mut self.chance)?;
            println!("power cut, {loss:?}: {cut:?}, after {} flushes", disk.flushes());
        }
        let disks = &self.disks;
        self.cluster.kill_together(nodes, || disks.iter().for_each(Disk::release))?;
        if work.is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(work);
        for node in nodes {
            self.disks[*node].restore()?;
        }
        for node in nodes {
            self.cluster.start(*node)?;
        }
        Ok(now)
    }

    /// Load, a cut at some moment, maybe more while the nodes start, and what must hold afterwards.
    async fn round(&mut self) -> Result<()> {
        let work = self.load().await?;
        tokio::time::sleep(Duration::from_millis(self.chance.random_range(150..2500))).await;
        let loss = Loss::any(&mut self.chance);
        self.cut(loss, Some(work)).await?;
        while self.chance.random_bool(0.3) {
            tokio::time::sleep(Duration::from_millis(self.chance.random_range(5..1200))).await;
            let loss = Loss::any(&mut self.chance);
            self.cut(loss, None).await?;
        }
        let start = Instant::now();
        self.cluster.ready().await?;
        println!("ready after {:?}", start.elapsed());
        self.check().await?;
        self.repeat().await?;
        self.settle().await
    }
}

fn disks(count: usize) -> Result<Vec<Disk>> {
    (0..count).map(|_| Disk::mount(DISK_MEBIBYTES)).collect()
}

fn cuts(otherwise: usize) -> Result<usize> {
    std::env::var("LEVEE_POWER_CUTS").map_or(Ok(otherwise), |cuts| cuts.parse().context("LEVEE_POWER_CUTS"))
}

async fn survives(name: &str, nodes: usize, rounds: usize) -> Result<()> {
    if !Program::subject()?.is_levee() {
        skip::not_claimed(name, "nats-server acknowledges before it syncs, unless told otherwise");
        return Ok(());
    }
    let disks = match disks(nodes) {
        Ok(disks) => disks,
        Err(error) => return skip::missing(name, &format!("{error:#}")),
    };
    let mut site = Site::new(Setup { nodes, ..Setup::default() }, disks).await?;
    site.create().await?;
    for round in 1..=cuts(rounds)? {
        println!("---- cut {round}");
        site.round().await.with_context(|| format!("cut {round}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_loses_power_has_what_it_acknowledged() -> Result<()> {
    survives("one_node_that_loses_power_has_what_it_acknowledged", 1, 6).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_that_lose_power_at_once_have_what_they_acknowledged() -> Result<()> {
    survives("three_nodes_that_lose_power_at_once_have_what_they_acknowledged", 3, 4).await
}

/// Publishes to a stream until the power goes, and counts: acknowledged before, and of those lost.
async fn count_lost(
    nodes: usize,
    program: Option<Program>,
    jetstream: &str,
    storage: StorageType,
) -> Result<(usize, usize)> {
    let jetstream = jetstream.to_owned();
    let setup = Setup { nodes, program, jetstream, ..Setup::default() };
    let mut site = Site::new(setup, disks(nodes)?).await?;
    let js = patient(site.cluster.client(0).await?);
    js.create_stream(Config { storage, ..config("LOST", nodes) }).await?;
    // The disks have what the start wrote.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (story, mut work) = (Story::default(), Work::default());
    for number in 0..2 {
        let subject = move |_| format!("LOST.{number}");
        work.publisher(site.client(number).await?, &story, subject, &[SMALL, MIDDLE], 8, Duration::ZERO);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cut = site.cut(Loss::Everything, Some(work)).await?;
    site.cluster.ready().await?;
    let client = site.cluster.any_client().await?;
    let what = "the stream is back";
    let read = wait_until(what, PATIENCE, async || Ok(Some(read_replica(&client, "LOST").await?))).await;
    let there: BTreeSet<(u64, String)> = match read {
        Ok(read) => read.into_iter().map(|stored| (stored.seq, stored.id)).collect(),
        Err(error) => {
            println!("the stream is not back: {error:#}");
            BTreeSet::new()
        }
    };
    let known = story.known();
    let told = known.sent.iter().filter_map(|(id, sent)| Some((sent.acknowledged?, id)));
    let told: Vec<_> =
        told.filter(|(told, _)| told.at < cut).map(|(told, id)| (told.seq, id.clone())).collect();
    Ok((told.len(), told.iter().filter(|told| !there.contains(told)).count()))
}

/// The disks do lose what was not flushed: a stream in memory, which asks for no sync, is not what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_memory_shows_that_a_cut_loses_what_is_not_synced() -> Result<()> {
    const NAME: &str = "a_stream_in_memory_shows_that_a_cut_loses_what_is_not_synced";
    if let Err(error) = disks(1) {
        return skip::missing(NAME, &format!("{error:#}"));
    }
    let (told, lost) = count_lost(1, None, "", StorageType::Memory).await?;
    println!("{lost} of {told} acknowledged messages in memory are lost");
    ensure!(told > 100 && lost > 0, "{lost} of {told} are lost");
    Ok(())
}

/// Files that hold nothing but removed messages go at once. If they went before it is on the disk that the messages are
/// removed, a node that loses power would look for messages that are nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_purged_messages_go_after_the_purge_is_on_the_disk() -> Result<()> {
    const NAME: &str = "files_of_purged_messages_go_after_the_purge_is_on_the_disk";
    const KEPT_FROM: u64 = 5900;
    if !Program::subject()?.is_levee() {
        skip::not_claimed(NAME, "about Levee's own files");
        return Ok(());
    }
    let disks = match disks(1) {
        Ok(disks) => disks,
        Err(error) => return skip::missing(NAME, &format!("{error:#}")),
    };
    let mut site = Site::new(Setup::default(), disks).await?;
    let js = patient(site.cluster.client(0).await?);
    js.create_stream(config("BULK", 1)).await?;
    let mut last = 0;
    // Each start writes a file of what the log had; several are merged into one that can go as a whole. What follows
    // moves the end of the log far enough away from it.
    for (starts, messages) in [(true, 600), (true, 600), (true, 600), (true, 600), (true, 600), (false, 3000)]
    {
        let js = patient(site.cluster.client(0).await?);
        for _ in 0..messages {
            let subject = if last < KEPT_FROM { "BULK.purged" } else { "BULK.kept" };
            last = js.publish(subject, "x".repeat(3000).into()).await?.await?.sequence;
        }
        if starts {
            site.cluster.kill_all(|| ())?;
            site.cluster.start(0)?;
            site.cluster.ready().await?;
        }
    }
    let js = patient(site.cluster.client(0).await?);
    // The log is purged as far as it goes: nothing shows that from outside.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tables = site.disks[0].path().join("store/jetstream/db");
    let bytes = || -> Result<u64> {
        let tables =
            files(&tables)?.into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "sst"));
        Ok(tables.map(|(_, bytes)| bytes).sum())
    };
    let before = bytes()?;
    // A purge that looks at each message: the log has it on the disk, and it is applied again after the cut.
    js.get_stream_no_info("BULK").await?.purge().filter("BULK.purged").await?;
    wait_until("the space of purged messages returns", PATIENCE, async || {
        let now = bytes()?;
        ensure!(now + (5 << 20) < before, "{now} bytes of {before}");
        Ok(Some(()))
    })
    .await?;

    site.cut(Loss::Everything, None).await?;
    site.cluster.ready().await?;

    let js = patient(site.cluster.client(0).await?);
    let info = wait_until("the stream is back", PATIENCE, async || {
        Ok(Some(js.get_stream_no_info("BULK").await?.get_info().await?))
    })
    .await?;
    assert_eq!((info.state.messages, info.state.last_sequence), (last - KEPT_FROM, last));
    assert_eq!(js.publish("BULK.kept", "next".into()).await?.await?.sequence, last + 1);
    Ok(())
}

/// So many nodes and a stream in memory on them; `None` where the test is skipped.
async fn in_memory(name: &str, nodes: usize) -> Result<Option<Site>> {
    if !Program::subject()?.is_levee() {
        skip::not_claimed(name, "nats-server empties its streams in memory");
        return Ok(None);
    }
    let disks = match disks(nodes) {
        Ok(disks) => disks,
        Err(error) => return skip::missing(name, &format!("{error:#}")).map(|()| None),
    };
    let site = Site::new(Setup { nodes, ..Setup::default() }, disks).await?;
    let js = patient(site.cluster.client(0).await?);
    js.create_stream(Config { storage: StorageType::Memory, ..config("MEMORY", nodes) }).await?;
    Ok(Some(site))
}

/// Publishers of that stream. What they send in one round has other subjects than in another, and so other ids.
async fn written_in_memory(site: &Site, round: usize) -> Result<(Story, Work)> {
    let (story, mut work) = (Story::default(), Work::default());
    for number in 0..2 {
        let subject = move |_| format!("MEMORY.{round}.{number}");
        let pause = Duration::from_millis(1);
        work.publisher(site.client(number).await?, &story, subject, &[SMALL, MIDDLE], 4, pause);
    }
    let (subject, pause) = (move |_| format!("MEMORY.{round}.large"), Duration::from_millis(10));
    work.publisher(site.client(2).await?, &story, subject, &[LARGE, MIDDLE], 12, pause);
    Ok((story, work))
}

/// Large messages in memory lie in files that nobody syncs but checkpoints, and what names them is on the disk as soon as
/// another stream syncs. What a checkpoint covers is there after a cut, and what follows is there up to some message; each is
/// what was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_memory_on_one_node_goes_on_behind_its_last_checkpoint() -> Result<()> {
    const NAME: &str = "a_stream_in_memory_on_one_node_goes_on_behind_its_last_checkpoint";
    let Some(mut site) = in_memory(NAME, 1).await? else { return Ok(()) };
    patient(site.cluster.client(0).await?).create_stream(config("SYNCED", 1)).await?;
    for round in 1..=cuts(4)? {
        let js = patient(site.cluster.client(0).await?);
        let covered: Vec<String> = (0..400).map(|number| body(&format!("{round} {number}"), LARGE)).collect();
        let mut acks = Vec::new();
        for text in &covered {
            acks.push(js.publish(format!("MEMORY.covered.{round}"), text.clone().into()).await?);
        }
        for ack in acks {
            ack.await?;
        }
        // A checkpoint is due a second after the first change, and nothing shows from outside that it is written.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (story, work) = written_in_memory(&site, round).await?;
        tokio::time::sleep(Duration::from_millis(site.chance.random_range(50..1500))).await;
        js.publish("SYNCED.all", "before it".into()).await?.await?;
        let loss = if round == 1 { Loss::Everything } else { Loss::any(&mut site.chance) };
        site.cut(loss, Some(work)).await?;
        site.cluster.ready().await?;

        let client = site.cluster.client(0).await?;
        let mut read = wait_until("the stream is back", PATIENCE, async || {
            Ok(Some(read_replica(&client, "MEMORY").await?))
        })
        .await?;
        ensure!(read.iter().zip(1..).all(|(stored, seq)| stored.seq == seq), "there is a gap");
        let there = read.iter().filter(|stored| stored.subject == format!("MEMORY.covered.{round}"));
        let there: Vec<&String> = there.map(|stored| &stored.body).collect();
        ensure!(there.iter().copied().eq(&covered), "{} of {} are there", there.len(), covered.len());
        read.retain(|stored| stored.subject.starts_with(&format!("MEMORY.{round}.")));
        let known = story.known();
        println!("behind it {} are there, {} were acknowledged", read.len(), known.given.len());
        for stored in &read {
            let sent = known.sent.get(&stored.id);
            ensure!(
                sent.is_some_and(|sent| body(&stored.id, sent.bytes) == stored.body),
                "message {} is not what was sent as {}",
                stored.seq,
                stored.id
            );
        }
    }
    Ok(())
}

/// A stream in memory may lose its newest messages, and of three replicas each may lose others. They end up alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_in_memory_that_lost_their_ends_are_alike_again() -> Result<()> {
    const NAME: &str = "replicas_in_memory_that_lost_their_ends_are_alike_again";
    let Some(mut site) = in_memory(NAME, 3).await? else { return Ok(()) };
    for round in 1..=cuts(3)? {
        let (_, work) = written_in_memory(&site, round).await?;
        tokio::time::sleep(Duration::from_millis(site.chance.random_range(300..1500))).await;
        site.cut(Loss::Sectors(0.5), Some(work)).await?;
        site.cluster.ready().await?;

        let js = patient(site.cluster.client(0).await?);
        for number in 0..20 {
            js.publish("MEMORY.after", format!("{round} {number}").into()).await?.await?;
        }
        let mut replicas = Vec::new();
        for index in 0..3 {
            let client = site.cluster.client(index).await?;
            replicas_current(&client, "MEMORY", 3).await?;
            replicas.push(read_replica(&client, "MEMORY").await?);
        }
        println!("{} messages after cut {round}", replicas[0].len());
        ensure!(replicas[0] == replicas[1], "n1 and n2 differ");
        ensure!(replicas[0] == replicas[2], "n1 and n3 differ");
    }
    Ok(())
}

/// Two of three lose power and go on without the newest messages. The third had applied them: it gives them up by itself,
/// and is a replica like the others again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_in_memory_that_has_what_the_others_lost_gives_it_up_and_takes_part() -> Result<()> {
    const NAME: &str = "a_replica_in_memory_that_has_what_the_others_lost_gives_it_up_and_takes_part";
    let Some(mut site) = in_memory(NAME, 3).await? else { return Ok(()) };
    // The disks have what the start wrote.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (story, work) = written_in_memory(&site, 1).await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;

    // What the third has would win the election: it is away until there is another leader.
    site.cluster.pause(2)?;
    site.cut_some(&[0, 1], Loss::Everything, Some(work)).await?;
    let mut kept = BTreeSet::new();
    let client = site.cluster.client(0).await?;
    publish_after(&client, "without the third", &mut kept).await?;
    site.cluster.resume(2)?;
    site.cluster.node(2).logs("its replica starts over", PATIENCE, "held what the majority lost").await?;
    publish_after(&client, "with it", &mut kept).await?;

    replicas_current(&client, "MEMORY", 3).await?;
    let mut replicas = Vec::new();
    for index in 0..3 {
        replicas.push(read_replica(&site.cluster.client(index).await?, "MEMORY").await?);
    }
    println!("{} of {} acknowledged are left", replicas[0].len() - kept.len(), story.known().given.len());
    ensure!(replicas[0] == replicas[1] && replicas[0] == replicas[2], "the replicas differ");
    // Without the other leader, or another one, it is half of the majority.
    let leader = site.cluster.index_of(&leader(&client, "MEMORY").await?)?;
    site.cluster.kill(if leader == 2 { 0 } else { leader })?;
    let client = site.cluster.client(2).await?;
    publish_after(&client, "without one of the two", &mut kept).await?;
    let there: BTreeSet<String> =
        read_all(&client, "MEMORY").await?.into_iter().map(|stored| stored.body).collect();
    ensure!(kept.is_subset(&there), "lost: {:?}", kept.difference(&there));
    Ok(())
}

/// Publishes some messages and adds them to those that are to be kept.
async fn publish_after(client: &Client, what: &str, kept: &mut BTreeSet<String>) -> Result<()> {
    let js = patient(client.clone());
    for number in 0..20 {
        let text = format!("{what}, {number}");
        wait_until("a message is acknowledged", PATIENCE, async || {
            let publish = async { anyhow::Ok(js.publish("MEMORY.after", text.clone().into()).await?.await?) };
            // What went to a leader that is gone is not answered.
            tokio::time::timeout(Duration::from_secs(2), publish).await.context("no answer")??;
            Ok(Some(()))
        })
        .await?;
        kept.insert(text);
    }
    Ok(())
}

/// For deploy/OPERATING.md: the same cut with nats-server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures another server; run it to renew the figures"]
async fn what_nats_server_loses_in_the_same_cut() -> Result<()> {
    let server = tools::nats_server().context("LEVEE_NATS_SERVER")?;
    let levee = Program::subject()?;
    for nodes in [1, 3] {
        for (name, program, options) in [
            ("nats-server", &server, ""),
            ("nats-server, sync_interval: always", &server, "sync_interval: always"),
            ("levee", &levee, ""),
        ] {
            let (told, lost) = count_lost(nodes, Some(program.clone()), options, StorageType::File).await?;
            println!("FIGURE {name}, nodes: {nodes}, acknowledged: {told}, lost: {lost}");
        }
    }
    Ok(())
}
