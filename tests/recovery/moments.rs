//! A node that dies between any two steps of a write, and is started again: nothing acknowledged is lost, and nothing that
//! was removed comes back.
//!
//! `LEVEE_CRASH_AT` names the step (`storage/src/moments.rs`). The steps of what a single node under this load does not do
//! (imports of snapshots, cut logs, copying of values) are shown in `storage/tests`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use levee_tests::cluster::Setup;
use levee_tests::program::Program;
use levee_tests::skip;
use levee_tests::wait::wait_until;
use rand::Rng as _;

use crate::site::Site;

/// The steps, and how often each comes at most before a node has to die of it.
const MOMENTS: [(&str, u32); 9] = [
    ("segment-begun", 1),
    ("values-appended", 200),
    ("append-synced", 2000),
    ("vote-synced", 3),
    ("rows-written", 40),
    ("append-answered", 2000),
    ("applied", 2000),
    ("log-purged", 3),
    ("rows-written", 3),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_at_any_step_of_a_write_loses_nothing_and_revives_nothing() -> Result<()> {
    const NAME: &str = "a_node_that_dies_at_any_step_of_a_write_loses_nothing_and_revives_nothing";
    if !Program::subject()?.is_levee() {
        skip::not_claimed(NAME, "the steps are Levee's");
        return Ok(());
    }
    let mut site = Site::new(Setup::default(), Vec::new()).await?;
    site.create().await?;
    for (name, times_max) in MOMENTS {
        let moment = format!("{name}:{}", site.chance.random_range(1..=times_max));
        println!("---- {moment}");
        dies_at(&mut site, &moment).await.with_context(|| moment.clone())?;
    }
    Ok(())
}

async fn dies_at(site: &mut Site, moment: &str) -> Result<()> {
    site.cluster.stop(0).await?;
    site.cluster.start_with(0, &[("LEVEE_CRASH_AT", moment)])?;
    let limit = Duration::from_secs(30);
    let over = async || {
        wait_until("the node kills itself", limit, async || Ok(site.cluster.is_over(0).then_some(()))).await
    };
    // It may die before it takes clients.
    let work = tokio::select! {
        work = site.load() => Some(work?),
        ended = over() => { ended?; None }
    };
    over().await?;
    // What it had sent is read.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(work);
    site.cluster.kill(0)?;
    site.cluster.start(0)?;
    site.cluster.ready().await?;
    site.check().await?;
    site.repeat().await?;
    site.settle().await
}
