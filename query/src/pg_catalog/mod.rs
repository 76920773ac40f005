//! The catalog as PostgreSQL's tools ask for it: `\d`, `\dt`, `\l` of psql, and what drivers look up.
//!
//! ```text
//! rewrite     forms that only such queries have, into what DataFusion plans
//! schema      tables of `pg_catalog`, made from the catalog image when a query names them
//! functions   `format_type`, `pg_table_is_visible` ...
//! ```
//!
//! A table has the OID 16384 and its id; a schema has one that follows from its name, so that all access nodes agree.
//! Unique keys are shown as indexes and constraints. Much of what PostgreSQL has does not exist here (policies,
//! inheritance): those tables are known and empty, and a query of one of them is answered without being planned in full.

mod format;
mod functions;
mod oid;
mod rewrite;
mod schema;
mod tables;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use datafusion::prelude::SessionContext;
use hypertide_meta::Image;

pub(crate) use functions::reads_catalog;
pub(crate) use rewrite::rewrite;

/// Name of the schema.
const PG_CATALOG: &str = "pg_catalog";

/// Gives a statement's context the tables and functions of `pg_catalog`.
pub(crate) fn register_pg_catalog(ctx: &SessionContext, image: &Arc<Image>) {
    if let Some(catalog) = ctx.catalog(crate::server::DATABASE) {
        let schema = Arc::new(schema::PgCatalog::new(Arc::clone(image)));
        // Catalogs that take no schema have no place for these tables; queries then say what is missing.
        let _ = catalog.register_schema(PG_CATALOG, schema);
    }
    functions::register(ctx, image);
}
