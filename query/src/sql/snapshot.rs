//! Snapshots that several sessions read by: `pg_export_snapshot()` and `SET TRANSACTION SNAPSHOT`.
//!
//! A transaction of REPEATABLE READ gives what it reads by a name; others of the same access node read by the same. The
//! name is the entry of the log that `hypertide_snapshot()` tells. A snapshot lives as long as a transaction reads by it:
//! the list of names holds it weakly. As long as it lives, data nodes are asked again and again to keep what it sees, so
//! that neither the age of deleted rows nor that of dropped chunks ends it; only lack of room does, or an access node
//! that is away for longer than a lease.

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arrow::datatypes::DataType;
use datafusion::{
    common::ScalarValue,
    error::Result,
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
    prelude::SessionContext,
};
use hypertide_meta::{CatalogWriter, Image};
use hypertide_proto::{client::Channels, wire::storage::HoldSnapshotRequest};

use crate::{Engine, Error, Session};

/// How long data nodes keep a snapshot that nobody asks for again.
const LEASE: Duration = Duration::from_secs(60);
/// Pause between two renewals of a lease, so that some may be lost. Shorter than data nodes keep old versions anyway.
const RENEWAL: Duration = Duration::from_secs(10);
/// Time that a data node has to answer one.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Snapshots that have a name, by the entry of the log up to which they read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exports(Arc<Mutex<BTreeMap<u64, Weak<Image>>>>);

impl Exports {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Image>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a snapshot a name; whether it had none.
    fn add(&self, view: &Arc<Image>) -> bool {
        let mut named = self.lock();
        named.retain(|_, view| view.strong_count() > 0);
        let new = !named.contains_key(&view.applied);
        if new {
            named.insert(view.applied, Arc::downgrade(view));
        }
        new
    }

    fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.lock().get(&name.parse().ok()?)?.upgrade()
    }
}

/// Lets a transaction read by what another one exported.
pub(crate) fn import(session: &mut Session, name: &str) -> Result<(), Error> {
    if session.block.settled_view().is_some() {
        let message = "SET TRANSACTION SNAPSHOT must be called before any query";
        return Err(Error::of("25001", message));
    }
    if !session.block.is_explicit() || !session.repeats_reads() {
        let message = "a snapshot-importing transaction must have isolation level REPEATABLE READ";
        return Err(Error::of("22023", message));
    }
    let view = session.engine.exports.find(name).ok_or_else(|| {
        Error::of("22023", format_args!("invalid snapshot identifier: \"{name}\"")).with_hint(
            "It lives as long as the transaction that exported it, and is known at its access node only.",
        )
    })?;
    session.block.set_view(view);
    Ok(())
}

/// Makes `pg_export_snapshot()` known to a statement.
pub(crate) fn register(session: &Session, ctx: &SessionContext) {
    let view = session.repeats_reads().then(|| session.block.settled_view().cloned()).flatten();
    let engine = Arc::clone(&session.engine);
    let signature = Signature::nullary(Volatility::Stable);
    ctx.register_udf(ScalarUDF::from(Export { view, engine, signature }));
}

/// `pg_export_snapshot()`.
#[derive(Debug)]
struct Export {
    view: Option<Arc<Image>>,
    engine: Arc<Engine>,
    signature: Signature,
}

impl Export {
    fn index(&self) -> Option<u64> {
        self.view.as_ref().map(|view| view.applied)
    }
}

impl PartialEq for Export {
    fn eq(&self, other: &Self) -> bool {
        self.index() == other.index()
    }
}

impl Eq for Export {}

impl Hash for Export {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.index().hash(state);
    }
}

impl ScalarUDFImpl for Export {
    fn name(&self) -> &str {
        "pg_export_snapshot"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let view = self.view.as_ref().ok_or_else(|| {
            let message =
                "pg_export_snapshot() is for transactions of isolation level REPEATABLE READ";
            Error::of("25001", message)
        })?;
        if self.engine.exports.add(view) {
            let (catalog, channels) =
                (Arc::clone(&self.engine.catalog), self.engine.channels.clone());
            tokio::spawn(hold(Arc::downgrade(view), catalog, channels));
        }
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(view.applied.to_string()))))
    }
}

/// Has data nodes keep what a snapshot sees for as long as it lives. One that is not reached is asked the next time: what
/// it holds was not old when it went away, and is not when it comes back.
async fn hold(view: Weak<Image>, catalog: Arc<dyn CatalogWriter>, channels: Channels) {
    while let Some(csn) = view.upgrade().map(|view| view.snapshot()) {
        let Some(cluster) = catalog.cluster() else { return };
        let image = catalog.image();
        let asked = image.catalog.data_nodes().filter_map(|node| {
            let mut client = channels.linked_storage(&node.rpc).ok()?;
            let request = HoldSnapshotRequest {
                cluster: cluster.0.to_vec().into(),
                csn: csn.0,
                lease_ms: u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX),
            };
            let (id, call) = (node.id(), async move { client.hold_snapshot(request).await });
            Some(async move { (id, tokio::time::timeout(RENEWAL_TIMEOUT, call).await) })
        });
        for (node, answer) in futures::future::join_all(asked).await {
            if !matches!(answer, Ok(Ok(_))) {
                tracing::debug!(%node, "a data node did not hear of a snapshot to keep");
            }
        }
        tokio::time::sleep(RENEWAL).await;
    }
}
