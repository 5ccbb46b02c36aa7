//! Reads the block that comes next, in the background: whoever replays a large stream then waits for the disk once, and
//! not at the beginning of every block.
//!
//! What is read goes to the block cache. A reader that comes to a block which is just being read waits for that. A request that finds the queue full is left out, and an error is left to the
//! reader, who gets there and sees it too.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::block_row::BlockRow;
use crate::error::Error;
use crate::group::Group;
use crate::keys::Space;

/// Blocks that wait to be read.
const REQUESTS_MAX: usize = 16;

pub(crate) struct ReadAhead {
    under_way: Arc<UnderWay>,
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// The block that is being read now.
#[derive(Default)]
struct UnderWay {
    block: Mutex<Option<(Space, u64)>>,
    done: Condvar,
}

/// Ends what is under way, also when reading panics: nobody waits for ever.
struct Done<'a>(&'a UnderWay);

impl UnderWay {
    fn begin(&self, block: (Space, u64)) -> Done<'_> {
        *self.block.lock() = Some(block);
        Done(self)
    }
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        *self.0.block.lock() = None;
        self.0.done.notify_all();
    }
}

struct Request {
    group: Arc<Group>,
    space: Space,
    row: Arc<BlockRow>,
}

impl ReadAhead {
    pub(crate) fn start() -> Result<Self, Error> {
        let (requests, receiver) = sync_channel::<Request>(REQUESTS_MAX);
        let under_way = Arc::new(UnderWay::default());
        let shared = Arc::clone(&under_way);
        let thread = std::thread::Builder::new()
            .name("storage-ahead".into())
            .spawn(move || {
                while let Ok(Request { group, space, row }) = receiver.recv() {
                    let messages = group.messages.lock().upgrade();
                    let _done = UnderWay::begin(&shared, (space, row.log_index));
                    if let Some(messages) = messages
                        && let Err(error) = messages.block(space, &row)
                    {
                        tracing::debug!(group = %group.id, block = row.log_index, %error, "reading ahead failed");
                    }
                }
            })
            .map_err(|error| Error::Engine(format!("read-ahead thread: {error}")))?;
        Ok(Self { under_way, requests: Some(requests), thread: Some(thread) })
    }

    /// Returns when the block is not being read: it was, and is in the cache, or nobody does. True if it waited.
    pub(crate) fn wait_for(&self, space: Space, index: u64) -> bool {
        let mut block = self.under_way.block.lock();
        let mut waited = false;
        while *block == Some((space, index)) {
            waited = true;
            self.under_way.done.wait(&mut block);
        }
        waited
    }

    pub(crate) fn request(&self, group: &Arc<Group>, space: Space, row: &Arc<BlockRow>) {
        if let Some(requests) = &self.requests {
            let _ = requests.try_send(Request { group: Arc::clone(group), space, row: Arc::clone(row) });
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.requests = None;
        // It may hold what keeps the store open, and so be the one that closes it.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
