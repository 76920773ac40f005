//! Tombstones of a transaction: what it deletes, and what it reserves so that nobody else changes it meanwhile.
//!
//! All replicas must acknowledge them within one epoch of their chunk: two transactions that reserve the same are then
//! both seen by one of them at least. When the epoch changes, the transaction cannot be committed any more, and its
//! statement has to look at the rows again.

use std::{sync::Arc, time::Instant};

use arrow::array::RecordBatch;
use hypertide_meta::catalog::{Chunk, Table};
use hypertide_storage::Tombstone;

use super::{BTreeMap, Members, Share, Writer, contended, split};
use crate::Error;

impl Writer {
    /// Takes tombstones; they are durable on every replica when it returns.
    pub(crate) async fn reserve(
        &mut self,
        table: &Arc<Table>,
        tombstones: Vec<(Chunk, Tombstone)>,
        deadline: Instant,
    ) -> Result<(), Error> {
        if tombstones.is_empty() {
            return Ok(());
        }
        let deadline = deadline.min(Instant::now() + self.engine.config.commit_deadline);
        // Rows that came before have smaller numbers: they are what a tombstone may take of its own transaction.
        self.flush(deadline).await?;
        for (chunk, tombstone) in tombstones {
            let part = tombstone.encode()?;
            self.keep_bytes(&part)?;
            let id = chunk.id;
            let share = self.shares.entry(id).or_insert_with(|| Share {
                chunk,
                table: Arc::clone(table),
                parts: Vec::new(),
                rows: 0,
                keyed: None,
                acks: BTreeMap::new(),
            });
            share.parts.push(Arc::new(part));
            if share.keyed.is_none() {
                let image = self.engine.catalog.image();
                let newer = image.catalog.chunk(id).filter(|at| at.epoch >= share.chunk.epoch);
                share.chunk = newer.unwrap_or(&share.chunk).clone();
                share.keyed = Some(share.chunk.epoch);
            }
        }
        self.cover(Members::First, deadline).await?;
        self.cover(Members::All, deadline).await
    }

    /// The chunks that rows belong in, with their positions; missing ones are made.
    pub(crate) async fn chunks_for(
        &mut self,
        table: &Arc<Table>,
        rows: &RecordBatch,
        deadline: Instant,
    ) -> Result<Vec<(Chunk, Vec<u32>)>, Error> {
        let deadline = deadline.min(Instant::now() + self.engine.config.commit_deadline);
        let groups = split(table, &self.edges(table), rows)?;
        self.find_chunks(table, &groups, deadline).await?;
        let found = groups.into_iter().filter_map(|group| {
            let chunk = self.found.get(&(table.id, group.key))?;
            Some((self.shares.get(chunk)?.chunk.clone(), group.rows))
        });
        Ok(found.collect())
    }

    /// Whether it holds tombstones.
    pub(super) fn reserves(&self) -> bool {
        self.shares.values().any(|share| share.keyed.is_some())
    }

    /// Fails when the replicas of a chunk that it reserved something in have changed.
    pub(super) fn check_epochs(&self) -> Result<(), Error> {
        #[cfg(feature = "bug_epoch_rule_off")]
        if hypertide_proto::planted::shown("bug_epoch_rule_off") {
            return Ok(());
        }
        let changed = |share: &&Share| share.keyed.is_some_and(|epoch| epoch != share.chunk.epoch);
        match self.shares.values().find(changed) {
            Some(share) => {
                let chunk = share.chunk.id;
                Err(contended(format_args!("the replicas of chunk {chunk} changed meanwhile")))
            }
            None => Ok(()),
        }
    }

    /// Reserves anew, in the epochs of now, what another transaction had reserved.
    pub(super) fn renew_epochs(&mut self) {
        self.refresh();
        for share in self.shares.values_mut().filter(|share| share.keyed.is_some()) {
            share.keyed = Some(share.chunk.epoch);
        }
    }
}
