//! A group out of one store and into another.

use bytes::Bytes;
use levee_protocol::ids::NodeId;
use levee_storage::{Error, LogId, MemoryDisk, Options, Storage, Sync, Table};
use proptest::prelude::*;

use crate::stream::{GROUP, Stream, append, block, block_entry, id, inline, vote};

const TABLES: [Table; 6] =
    [Table::Entries, Table::Blocks, Table::HardState, Table::BlockIndex, Table::Kept, Table::State];

/// A stream with all there can be: live blocks, partly dead ones, kept records, dead blocks that are not dropped yet.
fn filled(disk: &MemoryDisk) -> Stream {
    let mut stream = Stream::open(&Storage::in_memory(disk.clone()));
    for number in 0..20 {
        stream.publish(&["a", "b", "c", "d"], number);
    }
    stream.remove(10, 11);
    stream.remove(21, 23);
    stream.remove(29, 31);
    stream.clean();
    stream.publish(&[&"large ".repeat(300_000)], 21);
    stream.remove(1, 4);
    stream.checkpoint();
    // Behind the checkpoint: not part of the snapshot.
    stream.publish(&["late"], 22);
    stream
}

fn chunks(stream: &Stream) -> Vec<Bytes> {
    stream.storage.export(GROUP).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn an_imported_group_reads_as_the_exported_one_did_at_its_checkpoint() {
    let source = filled(&MemoryDisk::new());
    let mut expected = source.scan(0);
    assert_eq!(expected.pop().unwrap().1, "late");
    let dir = tempfile::tempdir().unwrap();
    {
        let storage = Storage::open(dir.path(), Options::default()).unwrap();
        let mut target = Stream::open(&storage);
        target.publish(&["to be replaced"], 1);
        target.checkpoint();
        vote(&target.log, b"promised").unwrap();

        let mut import = storage.import(GROUP).unwrap();
        let chunks = chunks(&source);
        assert!(chunks.len() > 3 && chunks.iter().all(|chunk| chunk.len() <= 1 << 20));
        for chunk in &chunks {
            import.push(chunk).unwrap();
        }
        assert_eq!(target.scan(0).len(), 1, "nothing changes before the end");
        import.finish(id(21)).unwrap();

        assert_eq!(target.scan(0), expected);
        assert_eq!((target.log.last(), target.log.purged()), (Some(id(21)), Some(id(21))));
    }

    let mut target = Stream::open(&Storage::open(dir.path(), Options::default()).unwrap());

    assert_eq!(target.scan(0), expected);
    assert_eq!(target.last_seq, 81);
    assert_eq!(target.log.vote().unwrap(), b"promised");
    target.publish(&["next"], 23);
    target.checkpoint();
    target.clean();
    assert_eq!(target.scan(81).last().unwrap(), &(82, "next".into()));
}

#[test]
fn what_the_log_holds_behind_a_snapshot_stays_if_it_agrees_and_goes_if_it_does_not() {
    let source = filled(&MemoryDisk::new());
    let chunks = chunks(&source);
    for (agrees, expected_last) in [(true, 24), (false, 21)] {
        let disk = MemoryDisk::new();
        let storage = Storage::in_memory(disk.clone());
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();
        let entries = (0..25).map(|index| block_entry(index, &block(&["x"], 1))).collect();
        append(&log, entries).unwrap();
        let applied = if agrees { id(21) } else { LogId { raft_term: 2, node: NodeId(3), index: 21 } };

        let mut import = storage.import(GROUP).unwrap();
        for chunk in &chunks {
            import.push(chunk).unwrap();
        }
        import.finish(applied).unwrap();

        assert_eq!(log.last().unwrap().index, expected_last);
        drop((log, storage));
        let log = Storage::in_memory(disk).entry_log(GROUP, Sync::Always).unwrap();
        assert_eq!(log.last().unwrap().index, expected_last);
        assert_eq!(log.read(22, 30, usize::MAX).unwrap().len() as u64, expected_last - 21);
    }
}

#[test]
fn an_interrupted_import_leaves_the_group_as_it_was_and_nothing_behind() {
    let source = filled(&MemoryDisk::new());
    let chunks = chunks(&source);
    for pushed in 0..chunks.len() {
        let disk = MemoryDisk::new();
        let mut target = Stream::open(&Storage::in_memory(disk.clone()));
        target.publish(&["old"], 1);
        target.checkpoint();
        append(&target.log, vec![inline(1, b"sync")]).unwrap();
        let clean_bytes: u64 = TABLES.iter().map(|table| disk.table_bytes(*table)).sum();
        let mut import = target.storage.import(GROUP).unwrap();
        for chunk in &chunks[..pushed] {
            import.push(chunk).unwrap();
        }

        disk.crash_keeping(usize::MAX);
        drop((import, target));

        let storage = Storage::in_memory(disk.clone());
        assert_eq!(Stream::open(&storage).scan(0), [(1, "old".into())]);
        let bytes: u64 = TABLES.iter().map(|table| disk.table_bytes(*table)).sum();
        assert_eq!(bytes, clean_bytes, "after {pushed} chunks");
    }
}

#[test]
fn cut_repeated_reordered_and_damaged_chunks_are_refused() {
    let source = filled(&MemoryDisk::new());
    let chunks = chunks(&source);
    let storage = Storage::in_memory(MemoryDisk::new());
    let refused = |chunks: &[Bytes]| {
        let mut import = storage.import(GROUP).unwrap();
        let result =
            chunks.iter().try_for_each(|chunk| import.push(chunk)).and_then(|()| import.finish(id(21)));
        assert!(matches!(result, Err(Error::Snapshot(_))), "{result:?}");
    };
    let mut flipped = chunks.clone();
    let mut bytes = flipped[1].to_vec();
    bytes[5000] ^= 4;
    flipped[1] = bytes.into();

    refused(&chunks[..chunks.len() - 1]);
    refused(&[]);
    refused(&[chunks[0].clone(), chunks[0].clone()]);
    refused(&chunks[1..]);
    refused(&flipped);
    refused(&[chunks[0].slice(..3)]);
    assert_eq!(Stream::open(&storage).scan(0), []);
}

#[test]
fn an_export_tells_what_it_covers_and_is_not_moved_by_later_writes() {
    let source = filled(&MemoryDisk::new());
    let (reader, row) = source.storage.export_with_row(GROUP, 1, b"state").unwrap();
    source.remove(5, 81);
    source.clean();

    let target = Storage::in_memory(MemoryDisk::new());
    let mut import = target.import(GROUP).unwrap();
    for chunk in reader {
        import.push(&chunk.unwrap()).unwrap();
    }
    import.finish(id(21)).unwrap();

    assert_eq!(row.unwrap(), 81_u64.to_le_bytes().as_slice());
    assert_eq!(Stream::open(&target).scan(0).last().unwrap().0, 81);
}

proptest! {
    #[test]
    fn arbitrary_chunks_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let storage = Storage::in_memory(MemoryDisk::new());
        let mut import = storage.import(GROUP).unwrap();
        let _ = import.push(&bytes);
        // The same bytes with a head that checks out.
        let mut chunk = vec![0; 4];
        chunk.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        chunk.extend_from_slice(&bytes);
        let mut import = storage.import(GROUP).unwrap();
        let _ = import.push(&chunk);
    }
}
