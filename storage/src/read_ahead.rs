//! Reads the block that comes next, in the background: whoever replays a large stream then waits for the disk once, and
//! not at the beginning of every block.
//!
//! What is read goes to the block cache. A reader that comes to a block which is just being read waits for that. An error
//! is left to the reader, who gets there and sees it too.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::background::Background;
use crate::block_row::BlockRow;
use crate::error::Error;
use crate::group::Group;
use crate::keys::Space;

/// Blocks that wait to be read.
const REQUESTS_MAX: usize = 16;

pub(crate) struct ReadAhead {
    under_way: Arc<UnderWay>,
    thread: Background<Request>,
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
        let under_way = Arc::new(UnderWay::default());
        let shared = Arc::clone(&under_way);
        let thread = Background::start("storage-ahead", REQUESTS_MAX, move |requests| {
            for Request { group, space, row } in requests {
                let messages = group.messages.lock().upgrade();
                let _done = UnderWay::begin(&shared, (space, row.log_index));
                if let Some(messages) = messages
                    && let Err(error) = messages.block(space, &row)
                {
                    tracing::debug!(group = %group.id, block = row.log_index, %error, "reading ahead failed");
                }
            }
        })?;
        Ok(Self { under_way, thread })
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
        self.thread.request(Request { group: Arc::clone(group), space, row: Arc::clone(row) });
    }
}
