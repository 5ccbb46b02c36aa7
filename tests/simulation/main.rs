//! A simulated cluster: three nodes in one thread, in virtual time, with the real rules, the real message store and
//! the real groups, on disks and a network that fail as a seed says, watched by an oracle.
//!
//! ```text
//! cargo sim                                    the seeds of a usual run
//! LEVEE_SIM_SEEDS=2000 cargo sim               more of them
//! LEVEE_SIM_FIRST=5000 cargo sim               other ones
//! LEVEE_SIM_SEED=17 cargo sim seeds            one; its trace stays in a file
//! ```
//!
//! Every run is a process of its own, so that nothing of an earlier one reaches it, and one that hangs is noticed.
//! [`entropy`] says why the same seed does the same thing again. A run is trouble first: clients work while
//! [`faults`] happen. Then everything heals, and the cluster must come to rest: one leader, equal replicas, and
//! every answer that a client got in them, once. The oracle looks on all the time.
#![allow(clippy::disallowed_methods, reason = "everything here runs in virtual time and in one thread")]

mod attached;
mod batches;
mod chance;
mod clients;
mod consumers;
mod copies;
mod counters;
mod deliveries;
mod driver;
mod entropy;
mod fast;
mod faults;
mod ingest;
mod keeper;
mod leading;
mod letters;
mod model;
mod network;
mod oracle;
mod plan;
mod post;
mod process;
mod progress;
mod replica;
mod restores;
mod run;
mod schedules;
mod streams;
mod subscribers;
mod trace;
mod world;

use plan::Breakage;
use process::{Ended, Run, many, number};

/// Seeds of a usual run: some dozens, in well under a minute.
const SEEDS: u64 = 48;

#[test]
fn seeds_keep_every_promise() {
    let runs: Vec<Run> = match number("LEVEE_SIM_SEED") {
        Some(seed) => vec![Run { keep_trace: true, ..Run::of(seed) }],
        None => {
            let first = number("LEVEE_SIM_FIRST").unwrap_or(1);
            (first..first + number("LEVEE_SIM_SEEDS").unwrap_or(SEEDS)).map(Run::of).collect()
        }
    };

    let ended = many(&runs);

    let mut failed = Vec::new();
    for (run, ended) in runs.iter().zip(&ended) {
        match ended {
            Ended::Kept(summary) => println!("seed {}: {summary}", run.seed),
            Ended::Broken(why) => failed.push(format!(
                "seed {}: {why}\n  repeat it: LEVEE_SIM_SEED={} cargo sim seeds_keep_every_promise\n  trace: {}",
                run.seed,
                run.seed,
                run.trace_file().display()
            )),
        }
    }
    assert!(failed.is_empty(), "{} of {} seeds failed\n{}", failed.len(), runs.len(), failed.join("\n"));
}

#[test]
fn the_same_seed_writes_the_same_trace() {
    let seeds = (1..).filter(|seed| plan::Plan::draw(*seed, Breakage::None).repeats_exactly).take(4);
    for seed in seeds {
        let again = |label| Run { keep_trace: true, label, ..Run::of(seed) };
        let runs = [again("once"), again("again")];

        let ended = many(&runs);

        assert!(ended.iter().all(|ended| matches!(ended, Ended::Kept(_))), "seed {seed}: {ended:?}");
        let traces =
            runs.each_ref().map(|run| std::fs::read_to_string(run.trace_file()).expect("a trace was kept"));
        assert!(traces[0].lines().count() > 500, "seed {seed}: a trace says what happened");
        let differs = traces[0].lines().zip(traces[1].lines()).position(|(once, again)| once != again);
        assert!(
            traces[0] == traces[1],
            "seed {seed}: the traces differ from line {}: {} and {}",
            differs.map_or(0, |line| line + 1),
            runs[0].trace_file().display(),
            runs[1].trace_file().display()
        );
    }
}

#[test]
fn the_oracle_notices_acks_before_the_sync() {
    must_notice(
        Breakage::AckBeforeSync,
        &[
            "acknowledged",
            "was applied there before",
            "was not applied when",
            "comes next",
            // What the log lost it may have said of consumers.
            "was the last that the log or this leader had",
            "its ack was confirmed",
        ],
    );
}

#[test]
fn the_oracle_notices_a_retry_that_is_stored_twice() {
    must_notice(Breakage::RetryWithoutId, &["is stored twice"]);
}

#[test]
fn the_oracle_notices_a_replica_that_decides_differently() {
    must_notice(
        Breakage::OneReplicaDiffers,
        &["the outcome was", "the stream had", "the state is not", "the model"],
    );
}

#[test]
fn the_oracle_notices_a_disk_that_loses_synced_messages() {
    must_notice(Breakage::DiskForgetsBlocks, &["does not read", "is not there", "does not start", "failed"]);
}

#[test]
fn the_oracle_notices_deliveries_after_a_confirmed_ack() {
    must_notice(Breakage::AcksAreForgotten, &["its ack was confirmed", "in clients' hands"]);
}

#[test]
fn the_oracle_notices_marks_of_what_was_never_sent() {
    must_notice(
        Breakage::DeliveriesAreSkipped,
        &["never sent", "which nobody was sent", "never delivered", "could be had"],
    );
}

#[test]
fn the_oracle_notices_dead_letters_that_are_not_stored() {
    must_notice(Breakage::LettersAreLost, &["settled as Terminated without a reason"]);
}

#[test]
fn the_oracle_notices_a_consumer_that_does_not_keep_to_its_configuration() {
    must_notice(
        Breakage::LeadersForgetOptions,
        &[
            "more often than",
            "is marked with attempt",
            "of the same key is not done",
            "has not heard of it",
            "in clients' hands",
            "without a reason",
        ],
    );
}

#[test]
fn the_oracle_notices_a_consumer_that_is_not_told_of_its_pause() {
    must_notice(Breakage::ChangesAreForgotten, &["is paused until", "in clients' hands", "could be had"]);
}

#[test]
fn the_oracle_notices_a_consumer_that_is_not_told_of_its_reset() {
    must_notice(
        Breakage::ResetsAreForgotten,
        &["has heard of a reset", "after everything healed", "in clients' hands", "could be had"],
    );
}

#[test]
fn the_oracle_notices_an_increment_that_counts_twice() {
    must_notice(Breakage::RetriesCountAgain, &["shows"]);
}

#[test]
fn the_oracle_notices_a_part_of_a_batch() {
    must_notice(Breakage::BatchesAreTorn, &["only part of", "part of it must not be"]);
}

#[test]
fn the_oracle_notices_a_hole_in_a_fast_batch() {
    must_notice(
        Breakage::ChainsAreLoose,
        &["there is a hole in it", "more is there than was counted", "is stored twice"],
    );
}

#[test]
fn the_oracle_notices_acks_of_what_is_not_stored() {
    must_notice(
        Breakage::OutcomesAreAssumed,
        &["acknowledged is not there", "a hole in it", "stored twice", "ends at another sequence"],
    );
}

#[test]
fn the_oracle_notices_a_schedule_that_is_not_kept() {
    must_notice(Breakage::SchedulesAreForgotten, &["nothing comes of what is scheduled"]);
}

#[test]
fn the_oracle_notices_a_consumer_that_stalls() {
    must_notice(Breakage::LeadersAreMean, &["could be had"]);
}

#[test]
fn the_oracle_notices_a_copy_that_lacks_messages() {
    must_notice(Breakage::OriginForgets, &["is not there", "lags behind"]);
}

#[test]
fn the_oracle_notices_an_ack_of_what_the_copy_does_not_have() {
    must_notice(Breakage::AnswersAreEarly, &["is acked, and its copy has"]);
}

#[test]
fn the_oracle_notices_a_copy_that_overlooks_what_was_not_delivered() {
    // Few lost deliveries end up as a gap: three of these seeds show it.
    must_notice_in(32, Breakage::GapsAreOverlooked, &["is not there"]);
}

#[test]
fn the_oracle_notices_a_restore_that_lacks_messages() {
    must_notice(Breakage::RestoreLeavesOut, &["of the archive is not there"]);
}

#[test]
fn the_oracle_notices_a_read_that_is_behind() {
    must_notice(Breakage::ReadWithoutBarrier, &["a read returned before"]);
}

/// Of a few seeds at least one must fail, and every one that fails must say one of `words`.
fn must_notice(breakage: Breakage, words: &[&str]) {
    must_notice_in(8, breakage, words);
}

fn must_notice_in(seeds: u64, breakage: Breakage, words: &[&str]) {
    let runs: Vec<Run> =
        (1..=seeds).map(|seed| Run { breakage, label: breakage.name(), ..Run::of(seed) }).collect();

    let ended = many(&runs);

    let noticed: Vec<&String> = ended
        .iter()
        .filter_map(|ended| match ended {
            Ended::Broken(why) => Some(why),
            Ended::Kept(_) => None,
        })
        .collect();
    assert!(!noticed.is_empty(), "{breakage:?} went unnoticed in {} runs", runs.len());
    for why in noticed {
        assert!(words.iter().any(|word| why.contains(word)), "{breakage:?} was noticed as: {why}");
    }
}

/// What the processes of the other tests run.
#[test]
#[ignore = "one run, as the other tests start it"]
fn one_run() {
    process::one_run();
}
