//! What must hold at every moment, and at the end.

use std::collections::BTreeMap;

use hypertide_meta::catalog::ChunkState;
use hypertide_proto::ids::{ChunkId, Csn, TxnId};

use crate::cluster::{Cluster, REPLICAS};

impl Cluster {
    /// What holds at every moment, looked at in every round: a replica in sync whose disk is the registered
    /// one holds every commit that no operator gave up.
    pub(crate) fn check_always(&self) -> Result<(), String> {
        let mut commits: BTreeMap<ChunkId, Vec<(TxnId, Csn)>> = BTreeMap::new();
        let all = self.writes.iter().flat_map(|write| &write.commits);
        for (chunk, txn, csn) in all.filter(|(chunk, _, csn)| !self.gave_up(*chunk, *csn)) {
            commits.entry(*chunk).or_default().push((*txn, *csn));
        }
        for chunk in self.catalog.chunks() {
            for rid in &chunk.in_sync {
                let node = rid.node.0 as usize - 1;
                let data = &self.data[node];
                let commits = commits.get(&chunk.id).map_or(&[][..], Vec::as_slice);
                if self.runs_as(*rid) && !data.holds_all(chunk.id, commits) {
                    return Err(format!("{rid} is in sync of {chunk} and lacks a commit"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check_end(&mut self) -> Result<(), String> {
        self.catalog.check().map_err(|broken| broken.to_string())?;
        for chunk in self.catalog.chunks() {
            if chunk.state == ChunkState::Damaged {
                // Right only when its last commit was on no disk but lost ones.
                let held = self.last_in_sync.get(&chunk.id).map_or(&[][..], Vec::as_slice);
                if held.iter().any(|rid| !self.wiped.contains(rid)) {
                    return Err(format!("{chunk} is damaged, and {held:?} held its last commit"));
                }
                if let Some((rid, _)) =
                    chunk.left.iter().find(|(rid, _)| self.may_take(*rid, chunk.id))
                {
                    return Err(format!("{chunk} is damaged, and nobody took what {rid} holds"));
                }
                self.totals.damaged += u64::from(self.totals.ruined == 0);
                continue;
            }
            if chunk.in_sync.len() != usize::from(REPLICAS) || !chunk.joining.is_empty() {
                return Err(format!("{chunk} does not have its replicas after healing"));
            }
            for rid in &chunk.in_sync {
                let data = &self.data[rid.node.0 as usize - 1];
                let (csn, chain) = data.point(chunk.id);
                if (csn, chain) != (chunk.last_csn, chunk.chain) {
                    return Err(format!("{rid} is at {csn} {chain:x} of {chunk}"));
                }
            }
        }
        self.check_disks()?;
        self.check_writes()
    }

    /// Nothing waits on a disk for ever, or is there without a reason.
    fn check_disks(&self) -> Result<(), String> {
        for (node, data) in self.data.iter().enumerate() {
            if !data.pending.is_empty() {
                let pending = data.pending.keys().collect::<Vec<_>>();
                return Err(format!("d{} still waits for {pending:?}", node + 1));
            }
            if let Some(((chunk, csn), _)) = data.waiting.first_key_value() {
                return Err(format!("d{} still keeps {csn} of {chunk} waiting", node + 1));
            }
            let strange = data.replicas.keys().find(|chunk| {
                let rid = data.rid.expect("registered");
                self.catalog.chunk(**chunk).is_none_or(|chunk| {
                    let left = chunk.left.iter().any(|(left, _)| *left == rid);
                    !left && !chunk.in_sync.contains(&rid)
                })
            });
            if let Some(chunk) = strange {
                return Err(format!("d{} still holds {chunk}, which it should not", node + 1));
            }
        }
        Ok(())
    }
}
