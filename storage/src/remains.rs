//! What a data directory holds of a cluster whose access nodes are gone, for the catalog to be made anew.
//!
//! The directory is opened as a data node would at its start, without one. What the transactions that are pending in it
//! became may be known in other directories: they are told each other's decisions first.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use hypertide_proto::{
    decision::Decision,
    ids::{ClusterId, DiskId, Rid, TxnId},
};

use crate::{
    ChunkReport, ChunkStore, Error, FileDisk, StoreConfig,
    tables::{Definitions, Identity, Member},
};

/// A data directory that is open for this.
#[derive(Debug)]
pub struct Remains {
    dir: PathBuf,
    store: ChunkStore,
    decisions: Vec<Decision>,
    member: Member,
}

/// A replica in it.
#[derive(Clone, Debug)]
pub struct RemainingReplica {
    /// What it holds.
    pub report: ChunkReport,
    /// All rows of its commits, also those that were deleted since.
    pub rows: u64,
    /// Where it belongs, in the catalog's own form; empty when its file cannot say.
    pub origin: Vec<u8>,
    /// Whether some of its bytes are known to be wrong.
    pub damaged: bool,
}

impl Remains {
    /// Opens a directory. Blocking.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let shown = dir.display();
        if !dir.is_dir() {
            return Err(Error::Identity(format!("there is no directory {shown}")));
        }
        let config = StoreConfig { background: false, ..StoreConfig::new(dir) };
        let (store, decisions) = ChunkStore::open_with_decisions(config, Arc::new(FileDisk))?;
        let member = store.identity().member.ok_or_else(|| {
            Error::Identity(format!("data directory {shown} never belonged to a cluster"))
        })?;
        Ok(Self { dir: dir.to_owned(), store, decisions, member })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.member.cluster
    }

    /// The data node, its name and its disk.
    #[must_use]
    pub fn node(&self) -> (Rid, &str, DiskId) {
        (self.member.rid, &self.member.name, self.store.identity().disk)
    }

    /// The copy of the catalog's definitions, with the index of the log that it is of.
    #[must_use]
    pub fn definitions(&self) -> Option<(u64, Bytes)> {
        self.store.definitions().map(|Definitions { index, body }| (index, body))
    }

    /// Decisions that are known here and not flushed yet.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Takes in decisions that other directories know, durably. Blocking.
    pub fn learn(&self, decisions: &[Decision]) -> Result<(), Error> {
        self.store.decide_durably(decisions)
    }

    /// Transactions of which nothing says what became of them.
    #[must_use]
    pub fn undecided(&self) -> Vec<TxnId> {
        self.store.pending(&[]).into_iter().map(|(txn, _)| txn).collect()
    }

    /// The replicas, without those that the catalog had removed. Blocking.
    pub fn replicas(&self) -> Result<Vec<RemainingReplica>, Error> {
        let removed = self.store.removed();
        let reports = self.store.report(&[]).into_iter();
        let reports = reports.filter(|report| !removed.contains(&report.chunk));
        reports.map(|report| self.replica(report)).collect()
    }

    fn replica(&self, report: ChunkReport) -> Result<RemainingReplica, Error> {
        let standing = self.store.standing(report.chunk);
        let standing = standing.unwrap_or_default();
        let (mut spec, mut damaged) = (standing.spec, standing.damaged);
        match self.store.file_header(report.chunk) {
            Ok(header) => spec = spec.or(header.map(|header| header.spec)),
            Err(Error::Damaged { what, chunk }) => {
                tracing::warn!("chunk {chunk} in {}: {what}", self.dir.display());
                damaged = true;
            }
            Err(error) => return Err(error),
        }
        let origin = spec.map(|spec| spec.origin).unwrap_or_default();
        Ok(RemainingReplica { report, rows: standing.applied.rows, origin, damaged })
    }

    /// Makes the directory one of another cluster, durably, with access nodes at these addresses.
    pub fn adopt(&self, cluster: ClusterId, access: Vec<String>) -> Result<(), Error> {
        let member = Some(Member { cluster, ..self.member.clone() });
        let identity = Identity { member, access, ..self.store.identity() };
        self.store.save_identity(identity)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use hypertide_proto::{
        decision::{ChunkLink, Fate},
        ids::{AccessId, Boot, ChunkId, Csn, Epoch, Incarnation, NodeId, TableId, TxnId},
    };

    use super::*;
    use crate::{ChunkSpec, ChunkState, Part, batch};

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    fn txn(seq: u64) -> TxnId {
        TxnId { access: AccessId(1), boot: Boot(1), seq }
    }

    /// The commit of a transaction that wrote to chunks 1 and 2, as the first in each.
    fn committed(seq: u64) -> Decision {
        let links = [1, 2].map(|chunk| ChunkLink { chunk: ChunkId(chunk), prev: Csn(0) });
        let fate = Fate::Committed { csn: Csn(10), links: links.to_vec() };
        Decision { txn: txn(seq), fate }
    }

    /// A data node with a chunk of its own number, of which the parts of two transactions are prepared.
    fn prepared(dir: &Path, node: u64) -> Arc<ChunkStore> {
        let store = ChunkStore::open(StoreConfig::new(dir)).expect("it opens");
        let rid = Rid { node: NodeId(node), incarnation: Incarnation(1) };
        let member = Member { cluster: CLUSTER, rid, name: format!("d{node}") };
        let identity = Identity { member: Some(member), ..store.identity() };
        store.save_identity(identity).expect("it is saved");
        let definitions = Definitions { index: node, body: Bytes::from_static(b"tables") };
        store.save_definitions(definitions).expect("they are saved");
        let older = Definitions { index: 0, body: Bytes::new() };
        store.save_definitions(older).expect("they are left alone");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("it builds");
        for seq in 1..=2 {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![seq as i64; 5]));
            let rows = RecordBatch::try_from_iter([("time", column)]).expect("one column");
            let batch::Encoded { rows, hash, payload, decoded_bytes } =
                batch::encode(&rows).expect("it encodes");
            let spec = ChunkSpec {
                chunk: ChunkId(node),
                table: TableId(1),
                time_column: Some("time".to_owned()),
                order_columns: Vec::new(),
                origin: vec![b'c', node as u8],
            };
            let (epoch, number) = (Epoch(0), 0);
            let part = Part { spec, epoch, number, rows, hash, payload, decoded_bytes };
            runtime.block_on(store.prepare(txn(seq), vec![part])).expect("it is journaled");
        }
        store
    }

    #[test]
    fn what_one_directory_knows_of_a_transaction_counts_in_all() {
        let dirs = [tempfile::tempdir(), tempfile::tempdir()].map(|dir| dir.expect("a directory"));
        let decided = prepared(dirs[0].path(), 1);
        decided.decide(&[committed(1)]).expect("it is decided");
        assert!(Remains::open(dirs[0].path()).is_err(), "its process runs");
        decided.close();
        drop((decided, prepared(dirs[1].path(), 2)));

        let all = [0, 1].map(|at| Remains::open(dirs[at].path()).expect("it opens"));
        let known: Vec<Decision> = all.iter().flat_map(Remains::decisions).cloned().collect();
        assert_eq!(known, [committed(1)]);
        for (remains, node) in all.iter().zip(1..) {
            remains.learn(&known).expect("it learns");
            assert_eq!(remains.undecided(), [txn(2)]);
            assert_eq!(remains.definitions(), Some((node, Bytes::from_static(b"tables"))));
            let replicas = remains.replicas().expect("they are read");
            let [replica] = replicas.as_slice() else { panic!("{replicas:?}") };
            assert_eq!(
                (replica.report.chunk, replica.report.applied_csn),
                (ChunkId(node), Csn(10))
            );
            assert_eq!((replica.rows, replica.report.state), (5, ChunkState::Plain));
            assert_eq!((&replica.origin[..], replica.damaged), (&[b'c', node as u8][..], false));
            remains.adopt(ClusterId([2; 16]), vec!["a:1".to_owned()]).expect("it is moved");
        }
        drop(all);
        let again = Remains::open(dirs[1].path()).expect("it opens");
        assert_eq!((again.cluster(), again.node().1), (ClusterId([2; 16]), "d2"));
        assert_eq!(again.decisions(), [committed(1)], "what it learned lasts");
    }

    #[test]
    fn a_directory_of_no_cluster_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(ChunkStore::open(StoreConfig::new(dir.path())).expect("it opens"));
        let refused = Remains::open(dir.path()).expect_err("it has no cluster").to_string();
        assert!(refused.contains("never belonged"), "{refused}");
        let missing = Remains::open(&dir.path().join("nothing")).expect_err("it is not there");
        assert!(missing.to_string().contains("there is no directory"), "{missing}");
        assert!(!dir.path().join("nothing").exists(), "and is not made");
    }
}
