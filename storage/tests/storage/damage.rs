//! Bits that flip, files that are cut: an error that names the place, never other data.

use std::fs;
use std::path::{Path, PathBuf};

use levee_storage::{Error, MemoryDisk, Options, Storage, Sync, Table};
use proptest::prelude::*;

use crate::stream::{GROUP, Stream, append, inline};

fn filled(disk: &MemoryDisk) -> Vec<(u64, String)> {
    let mut stream = Stream::open(&Storage::in_memory(disk.clone()));
    for number in 0..6 {
        stream.publish(&["some message", "another message", "a third one"], number);
    }
    stream.remove(2, 3);
    stream.clean();
    stream.publish(&["in the log", "and in the stream"], 9);
    stream.checkpoint();
    append(&stream.log, vec![inline(7, b"an inline entry")]).unwrap();
    stream.scan(0)
}

/// Everything that can be read, or the error that reading it gave.
fn read_all(disk: &MemoryDisk) -> Result<Vec<(u64, String)>, Error> {
    let storage = Storage::open_memory(disk.clone(), Options::default())?;
    let log = storage.entry_log(GROUP, Sync::Always)?;
    assert_eq!(log.last().unwrap().index, 7);
    assert_eq!(log.read(6, 9, usize::MAX)?.len(), 2);
    storage.state_rows(GROUP, &mut |_, _, _| {})?;
    let messages = storage.messages(GROUP)?;
    let mut found = Vec::new();
    messages.scan(levee_protocol::ids::Seq(0), &mut |seq, record| {
        found.push((seq.0, String::from_utf8(record.payload.to_vec()).unwrap()));
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(found)
}

proptest! {
    #[test]
    fn a_flipped_bit_anywhere_is_an_error_and_never_other_data(
        table in prop::sample::select(vec![
            Table::Entries, Table::Blocks, Table::HardState, Table::BlockIndex, Table::Kept, Table::State, Table::Node,
        ]),
        choice in any::<u64>(),
    ) {
        let disk = MemoryDisk::new();
        let expected = filled(&disk);
        prop_assume!(disk.flip_bit(table, choice));

        match read_all(&disk) {
            Ok(found) => prop_assert_eq!(found, expected),
            Err(error) => prop_assert!(matches!(error, Error::Damaged { .. }), "{}", error),
        }
    }

    #[test]
    fn a_value_cut_short_is_an_error_and_never_other_data(
        table in prop::sample::select(vec![Table::Entries, Table::Blocks, Table::BlockIndex, Table::Kept, Table::State]),
        choice in any::<u64>(),
    ) {
        let disk = MemoryDisk::new();
        let expected = filled(&disk);
        prop_assume!(disk.cut_value(table, choice));

        match read_all(&disk) {
            Ok(found) => prop_assert_eq!(found, expected),
            Err(error) => prop_assert!(matches!(error, Error::Damaged { .. }), "{}", error),
        }
    }

    #[test]
    fn a_lost_log_row_or_block_stops_the_group(
        table in prop::sample::select(vec![Table::Entries, Table::Blocks]), choice in any::<u64>(),
    ) {
        let disk = MemoryDisk::new();
        filled(&disk);
        prop_assert!(disk.lose_row(table, choice));

        // The very last entry leaves no gap behind it, which is why the disk's sync mark exists.
        let storage = Storage::in_memory(disk.clone());
        if storage.entry_log(GROUP, Sync::Always).is_ok_and(|log| log.last().unwrap().index < 7) {
            return Ok(());
        }
        drop(storage);
        prop_assert!(read_all(&disk).is_err());
    }
}

#[test]
fn a_flipped_byte_in_a_table_file_is_an_error_and_never_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let text = "x".repeat(1000);
    let written = {
        let options = Options { write_buffer_bytes: 4 << 20, ..Options::default() };
        let mut stream = Stream::open(&Storage::open(dir.path(), options).unwrap());
        for number in 0..400 {
            stream.publish(&[text.as_str(); 20], number);
        }
        stream.checkpoint();
        stream.last_seq
    };
    let tables = files(&dir.path().join("db"), "sst");
    assert!(!tables.is_empty(), "enough was written for a flush");
    let mut errors = 0;
    for table in &tables {
        let whole = fs::read(table).unwrap();
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x10;
        fs::write(table, &damaged).unwrap();

        let outcome = (|| {
            let storage = Storage::open(dir.path(), Options::default())?;
            storage.entry_log(GROUP, Sync::Always)?;
            let messages = storage.messages(GROUP)?;
            let mut next = 1;
            messages.scan(levee_protocol::ids::Seq(0), &mut |seq, record| {
                assert_eq!((seq.0, record.payload), (next, text.as_bytes()));
                next += 1;
                std::ops::ControlFlow::Continue(())
            })?;
            Ok::<_, Error>(next - 1)
        })();

        match outcome {
            Ok(found) => assert_eq!(found, written),
            Err(_) => errors += 1,
        }
        if table.exists() {
            fs::write(table, &whole).unwrap();
        }
    }
    assert!(errors > 0, "{} files damaged and nobody noticed", tables.len());
}

#[test]
fn a_write_ahead_log_that_lost_acknowledged_writes_is_refused() {
    for damage in [cut as fn(&mut Vec<u8>), flip] {
        let dir = tempfile::tempdir().unwrap();
        {
            let storage = Storage::open(dir.path(), Options::default()).unwrap();
            let log = storage.entry_log(GROUP, Sync::Always).unwrap();
            for index in 0..100 {
                append(&log, vec![inline(index, &[7; 1000])]).unwrap();
            }
        }
        let logs = files(&dir.path().join("db"), "log");
        let newest = logs.last().unwrap();
        let mut bytes = fs::read(newest).unwrap();
        damage(&mut bytes);
        fs::write(newest, bytes).unwrap();

        for _ in 0..2 {
            let refused = Storage::open(dir.path(), Options::default()).err().unwrap().to_string();
            assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
        }
    }
}

/// At least what is in the log; the file may be longer, it is one that is written over.
const LOGGED_BYTES: usize = 100 * 1000;

fn cut(log: &mut Vec<u8>) {
    log.truncate(LOGGED_BYTES * 3 / 4);
}

#[expect(clippy::ptr_arg, reason = "damages of one type")]
fn flip(log: &mut Vec<u8>) {
    log[LOGGED_BYTES / 2] ^= 1;
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}
