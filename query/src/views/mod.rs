//! Information views: `timescaledb_information.*`, `information_schema.*` and what users read of `_timescaledb_catalog`
//! over a catalog image, `hypertide.*` also over what the Raft leader knows beside it.
//!
//! A view's rows are made when a statement mentions it; its columns are those of TimescaleDB 2.13 and PostgreSQL, or, in
//! the schema `hypertide`, our own.

mod cluster;
mod definitions;
mod information;
mod jobs;
mod rows;
mod timescale;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    error::Result,
    prelude::SessionContext,
};
use hypertide_meta::{CatalogWriter, Image};
use hypertide_proto::wire::meta::StatusReply;

use crate::{Error, Snapshot};
use rows::Rows;

/// Makes the views known to a statement that reads this snapshot.
pub(crate) fn register_views(
    ctx: &SessionContext,
    source: &Arc<dyn CatalogWriter>,
    snapshot: &Snapshot,
) -> Result<(), Error> {
    let Some(catalog) = ctx.catalog(crate::catalog::CATALOG) else { return Ok(()) };
    for (name, views) in SCHEMAS {
        let (source, image) = (Arc::clone(source), Arc::clone(&snapshot.image));
        let view = Arc::clone(snapshot.view.as_ref().unwrap_or(&image));
        catalog.register_schema(name, Arc::new(Views { source, image, view, views }))?;
    }
    Ok(())
}

/// Schemas of views.
const SCHEMAS: [(&str, &[View]); 5] = [
    ("timescaledb_information", TIMESCALE),
    ("timescaledb_experimental", EXPERIMENTAL),
    ("information_schema", INFORMATION),
    ("_timescaledb_catalog", CATALOG_TABLES),
    ("hypertide", CLUSTER),
];

/// A view: its name, and what makes its rows.
type View = (&'static str, Maker);

/// What makes the rows of a view.
#[derive(Clone, Copy)]
enum Maker {
    /// The catalog alone.
    Image(fn(&Image) -> Rows),
    /// The catalog that the transaction reads rows by.
    View(fn(&Image) -> Rows),
    /// The catalog, and the cluster as the leader sees it.
    Cluster(fn(&Image, &StatusReply) -> Rows),
}

const TIMESCALE: &[View] = &[
    ("chunks", Maker::Image(timescale::chunks)),
    ("compression_settings", Maker::Image(timescale::compression_settings)),
    ("data_nodes", Maker::Image(timescale::data_nodes)),
    ("dimensions", Maker::Image(timescale::dimensions)),
    ("hypertables", Maker::Image(timescale::hypertables)),
    ("job_stats", Maker::Image(jobs::job_stats)),
    ("jobs", Maker::Image(jobs::jobs)),
];
const CATALOG_TABLES: &[View] = &[("chunk", Maker::Image(timescale::chunk_catalog))];
const EXPERIMENTAL: &[View] =
    &[("chunk_replication_status", Maker::Image(cluster::chunk_replication_status))];
const INFORMATION: &[View] = &[
    ("columns", Maker::Image(information::columns)),
    ("key_column_usage", Maker::Image(information::key_column_usage)),
    ("schemata", Maker::Image(information::schemata)),
    ("table_constraints", Maker::Image(information::table_constraints)),
    ("tables", Maker::Image(information::tables)),
];
const CLUSTER: &[View] = &[
    ("definitions", Maker::View(definitions::definitions)),
    ("joins", Maker::Cluster(cluster::joins)),
    ("moves", Maker::Cluster(cluster::moves)),
    ("nodes", Maker::Cluster(cluster::nodes)),
    ("parts", Maker::View(definitions::parts)),
    ("rebalancing", Maker::Cluster(cluster::rebalancing)),
    ("replicas", Maker::Cluster(cluster::replicas)),
];

/// A schema of views.
struct Views {
    source: Arc<dyn CatalogWriter>,
    image: Arc<Image>,
    view: Arc<Image>,
    views: &'static [View],
}

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Views")
    }
}

#[async_trait]
impl SchemaProvider for Views {
    fn table_names(&self) -> Vec<String> {
        self.views.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some((_, maker)) = self.views.iter().find(|(known, _)| *known == name) else {
            return Ok(None);
        };
        let rows = match maker {
            Maker::Image(rows) => rows(&self.image),
            Maker::View(rows) => rows(&self.view),
            Maker::Cluster(rows) => rows(&self.image, &self.source.status().await),
        };
        rows.into_table().map(Some)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.views.iter().any(|(known, _)| *known == name)
    }
}
