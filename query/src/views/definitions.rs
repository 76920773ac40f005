//! `hypertide.definitions` and `hypertide.parts`: what a table is made again by, and read part by part.

use hypertide_meta::Image;

use super::rows::{
    Kind::{BigInt, Bool, Int, Text},
    Rows,
};
use crate::sql::definition;

/// `hypertide.definitions`: the statements that make each table again, in their order.
pub(super) fn definitions(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("table_schema", Text),
        ("table_name", Text),
        // Never given to another table.
        ("table_id", BigInt),
        ("position", Int),
        ("statement", Text),
        // Whether it is to be run when the rows are there: it compresses them, or would drop them.
        ("after_data", Bool),
    ]);
    for table in image.catalog.tables() {
        for (at, definition) in definition::definitions(image, table).into_iter().enumerate() {
            rows.push([
                table.schema.as_str().into(),
                table.name.as_str().into(),
                table.id.0.into(),
                (at + 1).into(),
                definition.statement.into(),
                definition.after_data.into(),
            ]);
        }
    }
    rows
}

/// `hypertide.parts`: for each table conditions of which each row satisfies exactly one, the oldest rows first.
pub(super) fn parts(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("table_schema", Text),
        ("table_name", Text),
        ("position", Int),
        ("condition", Text),
    ]);
    for table in image.catalog.tables() {
        for (at, condition) in definition::parts(image, table).into_iter().enumerate() {
            rows.push([
                table.schema.as_str().into(),
                table.name.as_str().into(),
                (at + 1).into(),
                condition.into(),
            ]);
        }
    }
    rows
}
