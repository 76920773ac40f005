//! A catalog without Raft, in memory only: for tests of what is built on the catalog.

use std::{
    fmt,
    sync::Arc,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use hypertide_proto::{
    ids::{AccessId, Boot, ClusterId, Csn, TxnId},
    wire::meta::StatusReply,
};
use tokio::sync::watch;

use crate::{
    Error,
    catalog::{Catalog, Changes, Command, Outcome},
    node::{Answer, CatalogWriter, Image},
    open::{OpenTxn, OpenTxns},
};

/// The access node that a [`MemoryCatalog`] is.
const OWN: AccessId = AccessId(1);

/// A catalog that applies commands at once.
pub struct MemoryCatalog {
    cluster: ClusterId,
    boot: Boot,
    seq: AtomicU64,
    open: OpenTxns,
    // Held while a command is applied, so that indexes and images are in order.
    applying: Mutex<()>,
    images: watch::Sender<Arc<Image>>,
}

impl fmt::Debug for MemoryCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCatalog").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Default for MemoryCatalog {
    fn default() -> Self {
        Self::new(ClusterId([7; 16]))
    }
}

impl MemoryCatalog {
    /// An empty catalog in which access node `a1` is registered.
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        let mut made = Self {
            cluster,
            boot: Boot(0),
            seq: AtomicU64::new(0),
            open: OpenTxns::default(),
            applying: Mutex::new(()),
            images: watch::Sender::new(Arc::new(Image { applied: 0, catalog: Catalog::default() })),
        };
        let nowhere = || "127.0.0.1:1".to_owned();
        let (_, answer) = made.apply(&Command::RegisterAccess {
            id: OWN,
            rpc: nowhere(),
            pg: nowhere(),
            flight: nowhere(),
            http: nowhere(),
        });
        if let Ok(Outcome::Boot(boot)) = answer {
            made.boot = boot;
        }
        made
    }

    /// Applies a command; gives the index and the answer.
    pub fn apply(&self, command: &Command) -> (u64, Answer) {
        let _one = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let image = self.image();
        let mut catalog = image.catalog.clone();
        let index = image.applied + 1;
        let csn = Csn::at(index, 0);
        let answer = catalog.apply(command, csn, now_ms(), &mut Changes::default());
        self.images.send_replace(Arc::new(Image { applied: index, catalog }));
        (index, answer)
    }
}

/// The system's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[async_trait]
impl CatalogWriter for MemoryCatalog {
    fn cluster(&self) -> Option<ClusterId> {
        Some(self.cluster)
    }

    fn image(&self) -> Arc<Image> {
        Arc::clone(&self.images.borrow())
    }

    async fn barrier(&self, _deadline: Instant) -> Result<Arc<Image>, Error> {
        Ok(self.image())
    }

    async fn applied(&self, index: u64, deadline: Instant) -> Result<Arc<Image>, Error> {
        crate::node::wait_applied(&self.images.subscribe(), index, deadline).await
    }

    async fn propose(&self, command: Command, _deadline: Instant) -> Result<(u64, Answer), Error> {
        Ok(self.apply(&command))
    }

    fn begin(&self) -> OpenTxn {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.open(TxnId { access: OWN, boot: self.boot, seq })
    }

    fn rpc(&self) -> String {
        "127.0.0.1:1".to_owned()
    }

    async fn status(&self) -> StatusReply {
        StatusReply { applied: self.image().applied, ..StatusReply::default() }
    }
}
