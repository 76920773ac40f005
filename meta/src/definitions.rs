//! The definitions that data nodes keep, made anew when they change.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hypertide_proto::wire;
use xxhash_rust::xxh3::xxh3_64;

use crate::{catalog::Catalog, node::Image};

/// The definitions as of an entry of the log.
#[derive(Debug)]
pub(crate) struct Definitions {
    pub(crate) index: u64,
    pub(crate) body: Bytes,
    pub(crate) hash: u64,
}

impl Definitions {
    fn of(image: &Image) -> Self {
        let body = Bytes::from(image.catalog.definitions());
        Self { index: image.applied, hash: xxh3_64(&body), body }
    }

    pub(crate) fn to_wire(&self) -> wire::meta::Definitions {
        wire::meta::Definitions { index: self.index, body: self.body.clone() }
    }
}

/// The definitions made last, with the catalog that they are of.
#[derive(Debug, Default)]
pub(crate) struct Latest(Mutex<Option<(Catalog, Arc<Definitions>)>>);

impl Latest {
    /// The definitions of an image.
    pub(crate) fn of(&self, image: &Image) -> Arc<Definitions> {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((catalog, known)) = &*latest
            && catalog.shares_definitions(&image.catalog)
        {
            return Arc::clone(known);
        }
        let made = Arc::new(Definitions::of(image));
        *latest = Some((image.catalog.clone(), Arc::clone(&made)));
        made
    }
}
