//! The meta group, as `raft` drives it.

use std::sync::Arc;

use levee_broker_core::meta::MetaMachine;
use levee_protocol::command::MetaCommand;
use levee_protocol::ids::GroupId;
use levee_raft::{CommittedEntry, ReplicatedMachine, Reply};
use levee_storage::{Batch, Error, Storage};

use crate::meta::Meta;
use crate::stream::machine::{read_rows, write_rows};

/// The replicated half of meta.
pub struct Machine {
    meta: Arc<Meta>,
}

impl Machine {
    /// A machine that applies to `meta`.
    #[must_use]
    pub fn new(meta: Arc<Meta>) -> Self {
        Self { meta }
    }
}

/// The machine as of the last checkpoint.
pub fn load(storage: &Storage) -> Result<MetaMachine, Error> {
    let rows = read_rows(storage, GroupId::META)?;
    MetaMachine::load(rows.into_iter()).map_err(|error| Error::Corrupt(format!("meta state: {error}")))
}

impl ReplicatedMachine for Machine {
    fn apply(&mut self, entry: CommittedEntry) -> Result<Reply, Error> {
        let command = MetaCommand::decode(&entry.payload)
            .map_err(|error| Error::Corrupt(format!("meta log entry {}: {error}", entry.index)))?;
        Ok(Box::new(self.meta.machine.write().apply(entry.index, &command)))
    }

    fn flushed(&mut self) {
        self.meta.changed.send_modify(|count| *count += 1);
    }

    fn checkpoint(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let rows = self.meta.machine.write().dirty_rows();
        write_rows(batch, GroupId::META, rows);
        Ok(())
    }

    fn reload(&mut self) -> Result<(), Error> {
        *self.meta.machine.write() = load(&self.meta.storage)?;
        self.meta.changed.send_modify(|count| *count += 1);
        Ok(())
    }
}
