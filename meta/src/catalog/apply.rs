//! Applying commands.

use hypertide_proto::ids::Csn;

use super::{
    Catalog, Changes, Command, Outcome, Reject, RowKey, access::Endpoints, data::Arrival,
    table::NewTable,
};

/// The application of one command: where it stands in the log, and what it changes.
#[derive(Debug)]
pub(crate) struct Step {
    /// Commit number of the command, should it be a commit.
    pub(crate) csn: Csn,
    /// Log time.
    pub(crate) at_ms: u64,
    /// Rows changed so far.
    pub(crate) changes: Changes,
}

impl Catalog {
    /// Applies one command at `csn`, at the leader's time `at_ms`, and adds the rows it changed to `changes`.
    ///
    /// Log time is the greatest `at_ms` so far, so that a leader whose clock is behind cannot turn it back.
    /// A reject leaves the catalog, and `changes`, as they were.
    pub fn apply(
        &mut self,
        command: &Command,
        csn: Csn,
        at_ms: u64,
        changes: &mut Changes,
    ) -> Result<Outcome, Reject> {
        let at_ms = at_ms.max(self.counters.time_ms);
        let mut step = Step { csn, at_ms, changes: Changes::default() };
        let outcome = self.run(command, &mut step)?;
        self.counters.time_ms = at_ms;
        step.changes.touch(RowKey::Counters);
        self.sweep(&mut step);
        debug_assert_eq!(self.check_touched(&step.changes), Ok(()), "after {command}");
        changes.merge(step.changes);
        Ok(outcome)
    }

    /// Each arm checks in full before it writes.
    fn run(&mut self, command: &Command, step: &mut Step) -> Result<Outcome, Reject> {
        match command {
            Command::RegisterAccess { id, rpc, pg, flight, http } => {
                self.register_access(*id, Endpoints { rpc, pg, flight, http }, step)
            }
            Command::RegisterData { rid: None, name, disk, rpc, http } => {
                self.register_new_data(Arrival { name, disk: *disk, rpc, http }, step)
            }
            Command::RegisterData { rid: Some(rid), name, disk, rpc, http } => {
                self.register_known_data(*rid, Arrival { name, disk: *disk, rpc, http }, step)
            }
            Command::CreateTable { schema, name, owner, columns, if_not_exists } => {
                let new = NewTable { schema, name, owner, columns };
                self.create_table(new, *if_not_exists, step)
            }
            Command::CreateHypertable { table, spec, if_not_exists } => {
                self.create_hypertable(*table, spec, *if_not_exists, step)
            }
            Command::DropTables { tables } => self.drop_tables(tables, step),
            Command::TruncateTables { tables } => self.truncate_tables(tables, step),
            Command::EnsureChunks { table, points } => self.ensure_chunks(*table, points, step),
            Command::DropChunks { table, chunks } => self.drop_chunks(*table, chunks, step),
            Command::Commit(record) => self.commit(record, step),
            Command::Abort { txn } => self.abort(*txn, step),
            Command::Progress { rid, applied } => self.progress(*rid, applied, step),
            Command::BlockNewChunks { node, block } => self.block_new_chunks(*node, *block, step),
        }
    }
}
