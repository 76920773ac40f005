//! Information views over a catalog image: `timescaledb_information.*`, `information_schema.*`, and what users read of
//! `_timescaledb_catalog`.
//!
//! A view's rows are made when a statement mentions it; its columns are those of TimescaleDB 2.13 and PostgreSQL.

mod information;
mod rows;
mod timescale;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    error::Result,
    prelude::SessionContext,
};
use hypertide_meta::Image;

use crate::Error;
use rows::Rows;

/// Makes the views known to a statement.
pub(crate) fn register_views(ctx: &SessionContext, image: &Arc<Image>) -> Result<(), Error> {
    let Some(catalog) = ctx.catalog(crate::catalog::CATALOG) else { return Ok(()) };
    for (name, views) in [
        ("timescaledb_information", TIMESCALE),
        ("information_schema", INFORMATION),
        ("_timescaledb_catalog", CATALOG_TABLES),
    ] {
        catalog.register_schema(name, Arc::new(Views { image: Arc::clone(image), views }))?;
    }
    Ok(())
}

/// A view: its name, and what makes its rows.
type View = (&'static str, fn(&Image) -> Rows);

const TIMESCALE: &[View] = &[
    ("chunks", timescale::chunks),
    ("compression_settings", timescale::compression_settings),
    ("data_nodes", timescale::data_nodes),
    ("dimensions", timescale::dimensions),
    ("hypertables", timescale::hypertables),
];
const CATALOG_TABLES: &[View] = &[("chunk", timescale::chunk_catalog)];
const INFORMATION: &[View] = &[
    ("columns", information::columns),
    ("schemata", information::schemata),
    ("tables", information::tables),
];

/// A schema of views.
struct Views {
    image: Arc<Image>,
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
        let view = self.views.iter().find(|(known, _)| *known == name);
        view.map(|(_, rows)| rows(&self.image).into_table()).transpose()
    }

    fn table_exist(&self, name: &str) -> bool {
        self.views.iter().any(|(known, _)| *known == name)
    }
}
