//! DataFusion's catalog over a catalog image: names are looked up when a statement mentions them, so that the number
//! of tables costs nothing.

mod schema;
mod table;
mod types;

pub(crate) use schema::{CATALOG, ImageCatalog, ImageCatalogs};
pub(crate) use table::ImageTable;
pub(crate) use types::SqlTypes;
