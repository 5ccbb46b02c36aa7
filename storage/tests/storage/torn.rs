//! The ends of files that a power cut left torn. What was synced is there; what was not may be there or not, and keeps
//! nobody from starting. An end that was synced and is gone is refused.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use levee_storage::{Batch, Durability, Options, Storage};

use crate::dying::{copy, die_at};
use crate::stream::{GROUP, Stream};

/// The write-ahead log in a file that grows, so that its end is the end of the log.
fn options() -> Options {
    Options { prepared_log_bytes: 0, ..Options::default() }
}

fn newest(dir: &Path, extension: &str) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == extension)).max().unwrap()
}

fn length(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

/// A store as a killed process left it: messages that are synced, then rows that are not. Also the length of its log
/// with what is synced, and with everything.
fn left(dir: &Path) -> (u64, u64) {
    let live = dir.join("live");
    let mut stream = Stream::open(&Storage::open(&live, options()).unwrap());
    for number in 0..20 {
        stream.publish(&[&format!("message {number}")], number);
    }
    let log = newest(&live.join("db"), "log");
    let synced = length(&log);
    for number in 0..60_u64 {
        let mut batch = Batch::new();
        batch.put_state(GROUP, 2, &number.to_le_bytes(), &20_u64.to_le_bytes());
        stream.storage.write(batch, Durability::Ordered).unwrap();
    }
    let all = length(&log);
    copy(&live, &dir.join("left"));
    (synced, all)
}

/// Opens a copy of what is left after `harm` was done to its log; what it has, or why it does not open.
fn open(dir: &Path, harm: impl Fn(&File)) -> Result<usize, String> {
    let torn = dir.join("torn");
    let _ = std::fs::remove_dir_all(&torn);
    copy(&dir.join("left"), &torn);
    harm(&File::options().write(true).open(newest(&torn.join("db"), "log")).unwrap());
    let storage = Storage::open(&torn, options()).map_err(|error| error.to_string())?;
    let stream = Stream::open(&storage);
    let end = stream.log.last().unwrap().index;
    let entries = stream.log.read(0, end + 1, usize::MAX).unwrap();
    Ok(entries.len())
}

#[test]
fn a_write_ahead_log_whose_unsynced_end_is_torn_opens_with_everything_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (synced, all) = left(dir.path());
    assert!(all > synced + 1000, "{synced} to {all}");
    for cut in (synced..all).step_by(149) {
        assert_eq!(open(dir.path(), |log| log.set_len(cut).unwrap()), Ok(20), "cut at {cut} of {all}");
    }
    for torn in (synced..all - 64).step_by(307) {
        let zeros = |log: &File| log.write_all_at(&[0; 64], torn).unwrap();
        assert_eq!(open(dir.path(), zeros), Ok(20), "zeros at {torn} of {all}");
        let garbage = |log: &File| log.write_all_at(&[0x5a; 64], torn).unwrap();
        assert_eq!(open(dir.path(), garbage), Ok(20), "garbage at {torn} of {all}");
    }
}

#[test]
fn a_write_ahead_log_whose_synced_end_is_gone_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (synced, _) = left(dir.path());
    for cut in [1, 20, synced / 2] {
        let refused = open(dir.path(), |log| log.set_len(synced - cut).unwrap()).unwrap_err();

        assert!(refused.contains("it was synced up to write"), "{refused}");
    }
}

#[test]
fn a_value_segment_whose_end_no_place_points_to_may_end_anyhow() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("left");
    let said = die_at("moments::works_until_it_dies", "values-appended:20", &left);
    let last = said.iter().filter_map(|line| line.strip_prefix("acknowledged ")).next_back().unwrap();
    let segment = newest(&left.join("values"), "values");
    // The value that was appended last takes 80 KiB and has no place.
    for harm in [1, 4095, 4096, 50_000, 80_000] {
        for is_cut in [true, false] {
            let torn = dir.path().join("torn");
            let _ = std::fs::remove_dir_all(&torn);
            copy(&left, &torn);
            let file = File::options().write(true).open(newest(&torn.join("values"), "values")).unwrap();
            let end = length(&segment);
            if is_cut {
                file.set_len(end - harm).unwrap();
            } else {
                file.write_all_at(&vec![0x5a; usize::try_from(harm).unwrap()], end - harm).unwrap();
            }

            crate::moments::check_after_crash(&torn, last.parse().unwrap());
        }
    }
}
