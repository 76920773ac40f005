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
    /// Log time is the greatest `at_ms` so far, so that a leader whose clock is behind cannot turn it back; one that is
    /// far ahead is not believed either.
    /// A reject leaves the catalog, and `changes`, as they were.
    pub fn apply(
        &mut self,
        command: &Command,
        csn: Csn,
        at_ms: u64,
        changes: &mut Changes,
    ) -> Result<Outcome, Reject> {
        let at_ms = self.believed(at_ms);
        let mut step = Step { csn, at_ms, changes: Changes::default() };
        let outcome = self.run(command, &mut step)?;
        self.counters.time_ms = step.at_ms;
        step.changes.touch(RowKey::Counters);
        self.sweep(&mut step);
        debug_assert_eq!(self.check_touched(&step.changes), Ok(()), "after {command}");
        changes.merge(step.changes);
        Ok(outcome)
    }

    /// Each arm checks in full before it writes.
    #[expect(clippy::too_many_lines, reason = "a line or two for each command")]
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
            Command::AlterTable { table, changes } => self.alter_table(*table, changes, step),
            Command::DropTables { tables } => self.drop_tables(tables, step),
            Command::TruncateTables { tables } => self.truncate_tables(tables, step),
            Command::EnsureChunks { table, points } => self.ensure_chunks(*table, points, step),
            Command::DropChunks { table, chunks } => self.drop_chunks(*table, chunks, step),
            Command::Commit(record) => self.commit(record, step),
            Command::Abort { txn } => self.abort(*txn, step),
            Command::Progress { rid, applied } => self.progress(*rid, applied, step),
            Command::BlockNewChunks(block) => self.block_new_chunks(*block, step),
            Command::AdvanceTime { access, at_ms } => self.advance_time(*access, *at_ms, step),
            Command::RemoveAccess { id } => self.remove_access(*id, step),
            Command::SetHealth { rid, health } => self.set_health(*rid, *health, step),
            Command::NodeReset { rid, disk, held } => self.reset_node(*rid, (*disk, held), step),
            Command::SetDraining { node, draining } => self.set_draining(node, *draining, step),
            Command::AlterDataNode { node, rpc, available } => {
                self.alter_data_node(node, rpc.as_deref(), *available, step)
            }
            Command::AttachDataNode { node, table, if_not_attached, repartition } => {
                self.attach_data_node((node, *table), *if_not_attached, *repartition, step)
            }
            Command::DetachDataNode { node, table, how } => {
                self.detach_data_node(node, *table, *how, step)
            }
            Command::DeleteDataNode { node, if_exists, how } => {
                self.delete_data_node(node, *if_exists, *how, step)
            }
            Command::SetReplicationFactor { table, factor } => {
                self.set_replication_factor(*table, *factor, step)
            }
            Command::SetMinInSync { table, replicas } => {
                self.set_min_in_sync(*table, *replicas, step)
            }
            Command::SetCompression { table, compression } => {
                self.set_compression(*table, compression.as_ref(), step)
            }
            Command::SetRebalancing(wanted) => self.set_rebalancing(wanted, step),
            Command::Shrink { rid, chunks } => self.shrink(*rid, chunks, step),
            Command::Return { rid, held } => self.return_replicas(*rid, held, step),
            Command::StartJoin { chunk, rid } => self.start_join(*chunk, *rid, step),
            Command::DropJoin { chunk, rid } => self.drop_join(*chunk, *rid, step),
            Command::FinishJoin { rid, held } => self.finish_join(*rid, held, step),
            Command::RemoveReplica { chunk, rid } => self.remove_replica(*chunk, *rid, step),
            Command::AcceptLoss { rid, held, rows } => self.accept_loss(*rid, (held, *rows), step),
            Command::Seal { chunk, epoch } => self.seal(*chunk, *epoch, step),
            Command::AskCompression { chunks, compress } => {
                self.ask_compression(chunks, *compress, step)
            }
            Command::SetChunkCompressed { chunk, bytes, csn } => {
                self.set_chunk_compressed(*chunk, *bytes, *csn, step)
            }
            Command::AddJob { table, owner, policy, schedule, if_not_exists } => {
                self.add_job((*table, owner), *policy, *schedule, *if_not_exists, step)
            }
            Command::RemoveJob { job } => self.remove_job(*job, step),
            Command::RunJob { job, at_once } => self.run_job(*job, *at_once, step),
            Command::OrderCopy(order) => self.order_copy(order, step),
            Command::CancelOrder { operation } => self.cancel_order(operation, step),
        }
    }
}
