//! What an operator may choose about the disk.

/// Memory and disk bounds of one node's storage. The defaults let three nodes run on one small machine: together
/// about 200 MiB each under full load.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Cache of RocksDB's table blocks. Default 32 MiB.
    pub block_cache_bytes: usize,
    /// Memtables of all tables together. Default 64 MiB; more makes fewer and larger flushes.
    pub write_buffer_bytes: usize,
    /// The newest log entries of all groups, kept readable for followers and for restarts of reading. Default 32 MiB.
    pub tail_bytes: usize,
    /// Blocks of messages that were read recently, or stored where their stream is led, kept parsed for consumers. Default
    /// 64 MiB.
    pub read_cache_bytes: usize,
    /// What may wait for the writer. Default 32 MiB. When full, an append blocks its thread until there is room.
    pub queue_bytes: usize,
    /// What one write may hold. Default 8 MiB; larger delays the first callback, smaller syncs more often.
    pub batch_bytes: usize,
    /// Where blocks of messages live. Default [`Payloads::ValueLog`].
    pub payloads: Payloads,
    /// Size at which a file of the value log is full. Default 128 MiB: smaller gives space back sooner, larger needs
    /// fewer open files.
    pub value_segment_bytes: u64,
    /// Bytes of each of the two write-ahead log files that are filled when the store is opened, so that syncs overwrite
    /// instead of growing a file. Default 16 MiB; 0 for none.
    pub prepared_log_bytes: usize,
    /// Free disk space below which messages are refused. Default 256 MiB, never less than 64 MiB: what is queued,
    /// buffered and being compacted must still fit, or the storage stops for good.
    pub reserve_bytes: u64,
    /// Threads for flushes and compactions. Default 2, which is also the least.
    pub background_jobs: i32,
    /// Most bytes per second that flushes and compactions write. They begin with a twentieth of it and get more for as long
    /// as they need it, so that syncs do not wait behind them. Default twice what the disk takes when the store is opened,
    /// 640 MiB at least.
    pub background_bytes_per_second: Option<u64>,
}

/// Where blocks of messages live. Stores can be opened with either, whatever they were written with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Payloads {
    /// In RocksDB like everything else.
    Tables,
    /// In RocksDB, which keeps large values apart in blob files of its own. To be measured against the others.
    BlobFiles,
    /// Large writes in files beside RocksDB, small ones in it.
    #[default]
    ValueLog,
}

/// The least that must stay free, whatever the configuration says.
pub(crate) const RESERVE_BYTES_MIN: u64 = 64 << 20;

impl Default for Options {
    fn default() -> Self {
        Self {
            block_cache_bytes: 32 << 20,
            write_buffer_bytes: 64 << 20,
            tail_bytes: 32 << 20,
            read_cache_bytes: 64 << 20,
            queue_bytes: 32 << 20,
            batch_bytes: 8 << 20,
            payloads: Payloads::default(),
            value_segment_bytes: 128 << 20,
            prepared_log_bytes: 16 << 20,
            reserve_bytes: 256 << 20,
            background_jobs: 2,
            background_bytes_per_second: None,
        }
    }
}
