//! In which order the rows of a segment lie, and how a chunk is asked to be compressed.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{ChunkSpec, Error};

/// One column of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderBy {
    /// The column.
    pub column: String,
    /// Greatest first.
    pub descending: bool,
    /// NULL before all else.
    pub nulls_first: bool,
}

impl OrderBy {
    fn ascending(column: &str) -> Self {
        Self { column: column.to_owned(), descending: false, nulls_first: true }
    }
}

/// How a chunk is to be compressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionSpec {
    /// Columns whose equal values are brought together.
    pub segment_by: Vec<String>,
    /// The order among rows with equal values in those.
    pub order_by: Vec<OrderBy>,
}

impl CompressionSpec {
    /// Refuses a column that stands in it twice.
    pub fn check(&self) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        let columns = self.segment_by.iter().chain(self.order_by.iter().map(|by| &by.column));
        match columns.into_iter().find(|column| !seen.insert(column.as_str())) {
            Some(twice) => Err(Error::Invalid(format!(
                "column \"{twice}\" stands twice in the order of compression"
            ))),
            None => Ok(()),
        }
    }

    /// The order of the rows of a chunk compressed so.
    pub(crate) fn order(&self, spec: &ChunkSpec) -> Vec<OrderBy> {
        let by_value = self.segment_by.iter().map(|column| OrderBy::ascending(column));
        let order: Vec<OrderBy> = by_value.chain(self.order_by.iter().cloned()).collect();
        let by_time = spec.time_column.iter().filter(|_| self.order_by.is_empty());
        let by_time = by_time.filter(|time| !self.segment_by.contains(time));
        order.into_iter().chain(by_time.map(|time| OrderBy::ascending(time))).collect()
    }
}

impl fmt::Display for CompressionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segmented by ({})", self.segment_by.join(", "))?;
        for (at, by) in self.order_by.iter().enumerate() {
            let direction = if by.descending { " desc" } else { "" };
            let nulls = if by.nulls_first { " nulls first" } else { "" };
            let lead = if at == 0 { " ordered by " } else { ", " };
            write!(f, "{lead}{}{direction}{nulls}", by.column)?;
        }
        Ok(())
    }
}

/// The order of rows as they are flushed: the chunk's order columns, then time.
pub(crate) fn natural(spec: &ChunkSpec) -> Vec<OrderBy> {
    spec.order_columns
        .iter()
        .chain(&spec.time_column)
        .map(|column| OrderBy::ascending(column))
        .collect()
}

#[cfg(test)]
mod tests {
    use hypertide_proto::ids::{ChunkId, TableId};

    use super::*;

    #[test]
    fn orders_come_from_what_was_asked() {
        let chunk = ChunkSpec {
            chunk: ChunkId(1),
            table: TableId(1),
            time_column: Some("time".into()),
            order_columns: vec!["host".into()],
            origin: Default::default(),
        };
        let names = |order: Vec<OrderBy>| -> Vec<String> {
            order.into_iter().map(|by| by.column).collect()
        };
        assert_eq!(names(natural(&chunk)), ["host", "time"]);
        assert_eq!(names(CompressionSpec::default().order(&chunk)), ["time"]);
        let by_time = CompressionSpec { segment_by: vec!["time".into()], order_by: vec![] };
        assert_eq!(names(by_time.order(&chunk)), ["time"]);
        let order_by =
            vec![OrderBy { column: "usage".into(), descending: true, nulls_first: false }];
        let asked = CompressionSpec { segment_by: vec!["host".into()], order_by };
        assert_eq!(names(asked.order(&chunk)), ["host", "usage"]);
        assert_eq!(asked.to_string(), "segmented by (host) ordered by usage desc");
        assert!(asked.check().is_ok());
        let twice = CompressionSpec { segment_by: vec!["usage".into()], ..asked };
        assert!(twice.check().is_err_and(|error| error.to_string().contains("\"usage\"")));
    }
}
