//! The names that a statement may use: catalog `hypertide`, the schemas of the image, and the schemas of views.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider},
    error::Result,
};
use hypertide_meta::{Image, catalog::DEFAULT_SCHEMA};

use super::ImageTable;
use crate::Snapshot;

/// Name of the only catalog; a client's database is it.
pub(crate) const CATALOG: &str = "hypertide";

/// The list that holds the one catalog.
#[derive(Debug)]
pub(crate) struct ImageCatalogs {
    only: Arc<dyn CatalogProvider>,
}

impl ImageCatalogs {
    /// The list of this catalog alone.
    pub(crate) fn new(only: Arc<dyn CatalogProvider>) -> Self {
        Self { only }
    }
}

impl CatalogProviderList for ImageCatalogs {
    fn register_catalog(
        &self,
        _name: String,
        _catalog: Arc<dyn CatalogProvider>,
    ) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::clone(&self.only))
    }
}

/// The schemas of an image, with those registered beside them, such as of views; the latter win.
#[derive(Debug)]
pub(crate) struct ImageCatalog {
    /// What the tables are.
    image: Arc<Image>,
    /// Where their rows are.
    newest: Arc<Image>,
    registered: RwLock<BTreeMap<String, Arc<dyn SchemaProvider>>>,
}

impl ImageCatalog {
    /// The catalog of a snapshot. One that reads what was dropped has the tables as they were, too.
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let newest = Arc::clone(&snapshot.image);
        let then = snapshot.view.as_ref().filter(|_| snapshot.dropped_too);
        let image = Arc::clone(then.unwrap_or(&newest));
        Self { image, newest, registered: RwLock::default() }
    }
}

impl CatalogProvider for ImageCatalog {
    fn schema_names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.image.catalog.tables().map(|table| table.schema.clone()).collect();
        names.push(DEFAULT_SCHEMA.to_owned());
        let registered = self.registered.read().unwrap_or_else(PoisonError::into_inner);
        names.extend(registered.keys().cloned());
        names.sort();
        names.dedup();
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let registered = self.registered.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(schema) = registered.get(name) {
            return Some(Arc::clone(schema));
        }
        // A schema without tables is not told from one that does not exist: both have no table of any name.
        let (image, newest) = (Arc::clone(&self.image), Arc::clone(&self.newest));
        Some(Arc::new(ImageSchema { image, newest, name: name.to_owned() }))
    }

    fn register_schema(
        &self,
        name: &str,
        schema: Arc<dyn SchemaProvider>,
    ) -> Result<Option<Arc<dyn SchemaProvider>>> {
        let mut registered = self.registered.write().unwrap_or_else(PoisonError::into_inner);
        Ok(registered.insert(name.to_owned(), schema))
    }
}

/// The tables of one schema of an image.
#[derive(Debug)]
struct ImageSchema {
    image: Arc<Image>,
    newest: Arc<Image>,
    name: String,
}

#[async_trait]
impl SchemaProvider for ImageSchema {
    fn table_names(&self) -> Vec<String> {
        let own = self.image.catalog.tables().filter(|table| table.schema == self.name);
        own.map(|table| table.name.clone()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let table = self.image.catalog.table_named(&self.name, name);
        Ok(table.map(|table| {
            let provider = ImageTable::new(Arc::clone(&self.newest), table.clone());
            Arc::new(provider) as Arc<dyn TableProvider>
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.image.catalog.table_named(&self.name, name).is_some()
    }
}
