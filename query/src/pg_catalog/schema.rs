//! The schema `pg_catalog`: tables are made when a query names them.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::{MemTable, SchemaProvider, TableProvider},
    error::Result,
};
use hypertide_meta::Image;

use super::tables;

/// The tables of `pg_catalog` over a catalog image.
#[derive(Debug)]
pub(super) struct PgCatalog {
    image: Arc<Image>,
}

impl PgCatalog {
    /// Those of this image.
    pub(super) fn new(image: Arc<Image>) -> Self {
        Self { image }
    }
}

#[async_trait]
impl SchemaProvider for PgCatalog {
    fn table_names(&self) -> Vec<String> {
        tables::names().map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(batch) = tables::build(name, &self.image) else { return Ok(None) };
        let table = MemTable::try_new(batch.schema(), vec![vec![batch]])?;
        Ok(Some(Arc::new(table)))
    }

    fn table_exist(&self, name: &str) -> bool {
        tables::names().any(|known| known == name)
    }
}
