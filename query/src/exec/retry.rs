//! What an error of a data node means: whether another node may do, and how the statement reports it.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use hypertide_proto::error::{Code, RpcError};

/// What arrow says when a number is divided by zero.
const DIVIDE_BY_ZERO: &str = "Divide by zero error";

/// Whether another replica may answer where this node failed with `error`.
///
/// A defect of one node may not be one of the next, and the transport reports a broken connection as such a defect.
/// What is wrong with the statement itself stays wrong elsewhere.
pub(super) fn other_node_may_do(error: &RpcError) -> bool {
    match error.code {
        Code::Unavailable
        | Code::Damaged
        | Code::Internal
        | Code::WrongNode
        | Code::NotFound
        | Code::Stale
        // How far back a replica can be read is its own.
        | Code::SnapshotTooOld
        | Code::Overloaded
        | Code::DiskFull => true,
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Invalid
        | Code::NotLeader
        | Code::Reserved
        | Code::Contended
        | Code::TooLarge
        | Code::Version => false,
    }
}

/// Whether the statement may fare better at a fresh snapshot: what it reads by was removed or rewritten meanwhile.
pub(crate) fn fresh_snapshot_may_do(error: &DataFusionError) -> bool {
    matches!(rpc_error(error).code, Code::SnapshotTooOld | Code::Stale)
}

/// The error for the statement: what is wrong with the statement reads as if it had run here, and what is wrong with
/// the node names the node.
pub(super) fn sql_error(node: &str, error: RpcError) -> DataFusionError {
    if error.code == Code::Invalid {
        if error.message.contains(DIVIDE_BY_ZERO) {
            return DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None);
        }
        return DataFusionError::External(Box::new(error));
    }
    let message = format_args!("[{node}]: {}", error.message);
    DataFusionError::External(Box::new(RpcError::new(error.code, message)))
}

/// The error as a data node reports it.
pub(crate) fn rpc_error(error: &DataFusionError) -> RpcError {
    match error.find_root() {
        DataFusionError::External(inner) => match inner.downcast_ref::<RpcError>() {
            Some(error) => error.clone(),
            None => RpcError::new(Code::Internal, inner),
        },
        DataFusionError::ResourcesExhausted(message) => RpcError::new(Code::Overloaded, message),
        root @ (DataFusionError::ArrowError(..) | DataFusionError::Execution(_)) => {
            RpcError::new(Code::Invalid, root.strip_backtrace())
        }
        root => RpcError::new(Code::Internal, root.strip_backtrace()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_statement_read_as_if_it_ran_here() {
        let here = DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None);
        let sent = rpc_error(&here);
        assert_eq!(sent.code, Code::Invalid);
        assert!(!other_node_may_do(&sent));
        assert_eq!(sql_error("d1", sent).to_string(), here.to_string());
        let overflow = DataFusionError::Execution("integer out of range".into());
        assert_eq!(rpc_error(&overflow).code, Code::Invalid);
    }

    #[test]
    fn errors_of_a_node_name_it() {
        let damaged = RpcError::new(Code::Damaged, "chunk c1: bad checksum");
        assert!(other_node_may_do(&damaged));
        let carried = DataFusionError::External(Box::new(damaged.clone()));
        assert_eq!(rpc_error(&carried), damaged);
        let reported = sql_error("d2", damaged);
        assert!(!fresh_snapshot_may_do(&reported));
        let reported = reported.to_string();
        assert!(reported.contains("[d2]: chunk c1: bad checksum"), "{reported}");
    }

    #[test]
    fn an_old_snapshot_is_told_from_all_else() {
        for code in [Code::SnapshotTooOld, Code::Stale] {
            let told = RpcError::new(code, "chunk c1 was removed");
            assert!(other_node_may_do(&told));
            let reported = sql_error("d2", told);
            assert!(fresh_snapshot_may_do(&reported));
            let carried = DataFusionError::ArrowError(
                Box::new(ArrowError::ExternalError(Box::new(reported))),
                None,
            );
            assert!(fresh_snapshot_may_do(&carried), "{carried}");
        }
    }
}
