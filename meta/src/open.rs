//! Transactions that this access node coordinates and that have not ended. A data node that holds rows of one for long
//! asks what became of it: as long as it is open here it may take its time.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use hypertide_proto::ids::TxnId;

/// The open transactions of an access node.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenTxns(Arc<Mutex<BTreeSet<TxnId>>>);

impl OpenTxns {
    /// Opens a transaction.
    pub(crate) fn open(&self, id: TxnId) -> OpenTxn {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        OpenTxn { id, among: self.clone() }
    }

    /// Those of these that are open.
    pub(crate) fn of(&self, ids: impl IntoIterator<Item = TxnId>) -> Vec<TxnId> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.into_iter().filter(|id| open.contains(id)).collect()
    }
}

/// A transaction under way; when this is dropped it has ended, or nobody goes on with it.
#[derive(Debug)]
pub struct OpenTxn {
    id: TxnId,
    among: OpenTxns,
}

impl OpenTxn {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.id
    }
}

impl Drop for OpenTxn {
    fn drop(&mut self) {
        self.among.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
