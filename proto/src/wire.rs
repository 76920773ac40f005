//! The generated messages, and the total conversions between them and the value types.

/// Value types.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unreachable_pub)]
pub mod types {
    tonic::include_proto!("hypertide.types");
}
/// Between access nodes, and from all to access nodes.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unreachable_pub)]
pub mod meta {
    tonic::include_proto!("hypertide.meta");
}
/// From access nodes to data nodes.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unreachable_pub)]
pub mod storage {
    tonic::include_proto!("hypertide.storage");
}
/// Fragments of plans.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unreachable_pub)]
pub mod query {
    tonic::include_proto!("hypertide.query");
}

use crate::{
    decision::{ChunkLink, Decision, Fate},
    error::{Code, RpcError},
    ids::{AccessId, Boot, ChunkId, ClusterId, Csn, Incarnation, NodeId, Rid, TxnId},
};

impl From<Rid> for types::Rid {
    fn from(rid: Rid) -> Self {
        Self { node: rid.node.0, incarnation: rid.incarnation.0 }
    }
}

impl From<types::Rid> for Rid {
    fn from(rid: types::Rid) -> Self {
        Self { node: NodeId(rid.node), incarnation: Incarnation(rid.incarnation) }
    }
}

impl From<TxnId> for types::TxnId {
    fn from(txn: TxnId) -> Self {
        Self { access: txn.access.0, boot: txn.boot.0, seq: txn.seq }
    }
}

impl From<types::TxnId> for TxnId {
    fn from(txn: types::TxnId) -> Self {
        Self { access: AccessId(txn.access), boot: Boot(txn.boot), seq: txn.seq }
    }
}

impl From<Decision> for types::Decision {
    fn from(decision: Decision) -> Self {
        let (csn, links) = match decision.fate {
            Fate::Aborted => (0, Vec::new()),
            Fate::Committed { csn, links } => (csn.0, links),
        };
        let link =
            |link: ChunkLink| types::ChunkLink { chunk: link.chunk.0, prev_csn: link.prev.0 };
        Self { txn: Some(decision.txn.into()), csn, links: links.into_iter().map(link).collect() }
    }
}

impl TryFrom<types::Decision> for Decision {
    type Error = RpcError;

    fn try_from(decision: types::Decision) -> Result<Self, RpcError> {
        let txn = required(decision.txn, "decision.txn")?.into();
        let link = |link: types::ChunkLink| ChunkLink {
            chunk: ChunkId(link.chunk),
            prev: Csn(link.prev_csn),
        };
        let fate = match decision.csn {
            0 => Fate::Aborted,
            csn => Fate::Committed {
                csn: Csn(csn),
                links: decision.links.into_iter().map(link).collect(),
            },
        };
        Ok(Self { txn, fate })
    }
}

/// The value of a field that a message must have.
pub fn required<T>(field: Option<T>, name: &str) -> Result<T, RpcError> {
    field.ok_or_else(|| RpcError::new(Code::Invalid, format_args!("field {name} is missing")))
}

/// The cluster that a message names.
pub fn cluster(bytes: &[u8]) -> Result<ClusterId, RpcError> {
    ClusterId::from_slice(bytes)
        .ok_or_else(|| RpcError::new(Code::Invalid, "field cluster does not have 16 bytes"))
}

/// Refuses a message that names another cluster than `own`.
pub fn check_cluster(bytes: &[u8], own: ClusterId) -> Result<(), RpcError> {
    let named = cluster(bytes)?;
    if named == own {
        return Ok(());
    }
    let message = format_args!("this node belongs to cluster {own}, the request to {named}");
    Err(RpcError::new(Code::WrongNode, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_survive_the_wire() {
        let txn = TxnId { access: AccessId(1), boot: Boot(2), seq: 3 };
        let links = vec![ChunkLink { chunk: ChunkId(4), prev: Csn(5) }];
        for fate in [Fate::Aborted, Fate::Committed { csn: Csn(6), links }] {
            let decision = Decision { txn, fate };
            let wire = types::Decision::from(decision.clone());
            assert_eq!(Decision::try_from(wire), Ok(decision));
        }
    }

    #[test]
    fn missing_fields_are_named() {
        let error = Decision::try_from(types::Decision::default()).expect_err("it names no txn");
        assert!(error.message.contains("decision.txn"), "{error}");
        assert!(cluster(&[1]).is_err());
        assert!(check_cluster(&[1; 16], ClusterId([2; 16])).is_err());
    }
}
