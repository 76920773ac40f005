//! Partitioning columns.

use std::fmt;

use hypertide_proto::{
    ids::{DimensionId, NodeId},
    partition,
    time::TimeRange,
};
use serde::{Deserialize, Serialize};

/// A partitioning column and its rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dimension {
    /// Identity; never reused.
    pub id: DimensionId,
    /// Name of the column.
    pub column: String,
    /// The rule.
    pub rule: Rule,
}

/// How a dimension is cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Into slices of `interval`, aligned to the epoch, in the unit of [`hypertide_proto::time`].
    Time {
        /// Width of new slices.
        interval: i64,
        /// Name of the function that gives "now" for an integer column.
        now_function: Option<String>,
    },
    /// Into buckets of the hash.
    Hash {
        /// Nodes of each bucket: new chunks of bucket `i` go to `buckets[i]`, as many as the replication factor.
        buckets: Vec<Vec<NodeId>>,
    },
}

impl Dimension {
    /// The slice in which `point` lies by the rule, before it is cut at slices there are.
    #[must_use]
    pub fn slice(&self, point: i64) -> TimeRange {
        match &self.rule {
            Rule::Time { interval, .. } => TimeRange::aligned(point, *interval),
            Rule::Hash { buckets } => {
                let partitions = partitions(buckets);
                partition::bucket_range(partition::bucket(point.max(0), partitions), partitions)
            }
        }
    }

    /// The nodes of the bucket in which `hash` lies; none for a time dimension.
    pub(crate) fn bucket_nodes(&self, hash: i64) -> &[NodeId] {
        let Rule::Hash { buckets } = &self.rule else { return &[] };
        let bucket = partition::bucket(hash.max(0), partitions(buckets));
        buckets.get(usize::from(bucket)).map_or(&[], Vec::as_slice)
    }
}

/// The number of a hash dimension's partitions, of which there are never none nor too many to count.
fn partitions(buckets: &[Vec<NodeId>]) -> u16 {
    u16::try_from(buckets.len()).unwrap_or(partition::PARTITIONS_MAX).max(1)
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:", self.id, self.column)?;
        match &self.rule {
            Rule::Time { interval, .. } => write!(f, "time({interval})"),
            Rule::Hash { buckets } => {
                write!(f, "hash(")?;
                for (bucket, nodes) in buckets.iter().enumerate() {
                    let gap = if bucket == 0 { "" } else { " " };
                    write!(f, "{gap}{}", super::display::list(nodes))?;
                }
                write!(f, ")")
            }
        }
    }
}
