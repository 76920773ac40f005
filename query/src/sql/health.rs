//! `health()`: how the nodes are, from what the leader has heard; it waits for no node that is away.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray, StringArray},
    datatypes::{DataType, Field},
};
use hypertide_meta::catalog::Health;
use hypertide_proto::ids::NodeId;

use crate::session::Frame;

/// Columns: the access node that was asked, without a name, then the data nodes.
pub(crate) fn columns() -> Vec<Field> {
    vec![
        Field::new("node_name", DataType::Utf8, true),
        Field::new("healthy", DataType::Boolean, true),
        // Whether replicas of the node catch up.
        Field::new("in_recovery", DataType::Boolean, true),
        Field::new("error", DataType::Utf8, true),
    ]
}

/// The rows.
pub(crate) fn rows(frame: &Frame) -> Vec<ArrayRef> {
    let catalog = &frame.snapshot.image.catalog;
    let mut behind: BTreeSet<NodeId> = BTreeSet::new();
    for chunk in catalog.chunks() {
        behind.extend(chunk.joining.iter().map(|joiner| joiner.rid.node));
        behind.extend(chunk.left.iter().map(|(rid, _)| rid.node));
    }
    // The statement has got its snapshot, so that this node is in the cluster's majority.
    let mut rows = vec![(None, true, false, None)];
    for node in catalog.data_nodes() {
        let error = match node.health {
            _ if node.unavailable => Some("the data node was taken out of service".to_owned()),
            Health::Up => None,
            Health::Suspect => Some("the data node is silent".to_owned()),
            Health::Down => Some("the data node is down".to_owned()),
        };
        let recovers = behind.contains(&node.id());
        rows.push((Some(node.name.clone()), error.is_none(), recovers, error));
    }
    let column = |at: fn(&Row) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(at).collect::<StringArray>())
    };
    vec![
        column(|row| row.0.as_deref()),
        Arc::new(rows.iter().map(|row| Some(row.1)).collect::<BooleanArray>()),
        Arc::new(rows.iter().map(|row| Some(row.2)).collect::<BooleanArray>()),
        column(|row| row.3.as_deref()),
    ]
}

type Row = (Option<String>, bool, bool, Option<String>);
