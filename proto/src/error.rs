//! What an error means to the one who asked, and the only mapping to and from [`tonic::Status`].

use std::fmt;

use tonic::{Code as GrpcCode, Status};

/// Metadata key that carries the [`Code`] of a status: only an answer of our own has it, not one of the transport.
pub const CODE_KEY: &str = "hypertide-code";

/// What a caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing: the request is wrong, or its effect is unknown.
    Never,
    /// Ask the same node again after a pause.
    SameNode,
    /// Ask another node.
    OtherNode,
    /// Refresh what is known of the cluster, then ask again.
    AfterRefresh,
}

/// Kinds of errors that travel between processes; each exists because some caller acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request is malformed.
    Invalid,
    /// The object does not exist.
    NotFound,
    /// The request names another cluster, node or disk than the one it reached.
    WrongNode,
    /// The node does not lead; the leader, when known, is in the message.
    NotLeader,
    /// The node cannot be reached or does not serve yet; nothing was done.
    Unavailable,
    /// No answer in time; the effect is unknown.
    DeadlineExceeded,
    /// The node has as much work or memory in use as it may.
    Overloaded,
    /// The disk is full.
    DiskFull,
    /// The request holds an old view of the catalog.
    Stale,
    /// Another transaction is about to change the same.
    Reserved,
    /// A commit changed the same that the request's snapshot does not have.
    Contended,
    /// Stored bytes are wrong.
    Damaged,
    /// The snapshot's rows are merged away.
    SnapshotTooOld,
    /// The request was cancelled.
    Cancelled,
    /// The request is larger than the node takes.
    TooLarge,
    /// The plan or command is of another version.
    Version,
    /// A defect or a failure of the node itself.
    Internal,
}

/// Every code with its name on the wire and its gRPC counterpart.
const CODES: [(Code, &str, GrpcCode); 17] = [
    (Code::Invalid, "invalid", GrpcCode::InvalidArgument),
    (Code::NotFound, "not-found", GrpcCode::NotFound),
    (Code::WrongNode, "wrong-node", GrpcCode::FailedPrecondition),
    (Code::NotLeader, "not-leader", GrpcCode::FailedPrecondition),
    (Code::Unavailable, "unavailable", GrpcCode::Unavailable),
    (Code::DeadlineExceeded, "deadline-exceeded", GrpcCode::DeadlineExceeded),
    (Code::Overloaded, "overloaded", GrpcCode::ResourceExhausted),
    (Code::DiskFull, "disk-full", GrpcCode::ResourceExhausted),
    (Code::Stale, "stale", GrpcCode::Aborted),
    (Code::Reserved, "reserved", GrpcCode::Aborted),
    (Code::Contended, "contended", GrpcCode::Aborted),
    (Code::Damaged, "damaged", GrpcCode::DataLoss),
    (Code::SnapshotTooOld, "snapshot-too-old", GrpcCode::OutOfRange),
    (Code::Cancelled, "cancelled", GrpcCode::Cancelled),
    (Code::TooLarge, "too-large", GrpcCode::OutOfRange),
    (Code::Version, "version", GrpcCode::Unimplemented),
    (Code::Internal, "internal", GrpcCode::Internal),
];

impl Code {
    /// What a caller may do about it.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::Unavailable => Retry::OtherNode,
            Self::NotLeader | Self::Stale => Retry::AfterRefresh,
            Self::Overloaded => Retry::SameNode,
            Self::Damaged => Retry::OtherNode,
            _ => Retry::Never,
        }
    }

    fn row(self) -> &'static (Self, &'static str, GrpcCode) {
        CODES.iter().find(|row| row.0 == self).expect("every code has a row")
    }
}

/// An error that another process reported or is to be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// What it means.
    pub code: Code,
    /// What happened, with the name of the object.
    pub message: String,
}

impl RpcError {
    /// An error of `code` that says `message`.
    #[must_use]
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// What a caller may do about it.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        self.code.retry()
    }
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        let (_, name, grpc) = *error.code.row();
        let mut status = Self::new(grpc, error.message);
        status.metadata_mut().insert(CODE_KEY, tonic::metadata::MetadataValue::from_static(name));
        status
    }
}

impl From<Status> for RpcError {
    fn from(status: Status) -> Self {
        let named = status.metadata().get(CODE_KEY).and_then(|name| name.to_str().ok());
        let code = named.and_then(|name| CODES.iter().find(|row| row.1 == name).map(|row| row.0));
        Self {
            code: code.unwrap_or_else(|| foreign_code(&status)),
            message: status.message().to_owned(),
        }
    }
}

/// The code of a status that no process of ours made, such as one of the transport.
///
/// A status with a cause was made on this side, of a connection that broke; what a peer says comes without one. Such a
/// break is no defect of the peer's and nobody's cancelling, whatever the transport calls it.
fn foreign_code(status: &Status) -> Code {
    let caused = std::error::Error::source(status).is_some();
    match status.code() {
        GrpcCode::Unavailable => Code::Unavailable,
        GrpcCode::Unknown | GrpcCode::Internal | GrpcCode::Cancelled if caused => Code::Unavailable,
        GrpcCode::DeadlineExceeded => Code::DeadlineExceeded,
        GrpcCode::Cancelled => Code::Cancelled,
        GrpcCode::OutOfRange | GrpcCode::ResourceExhausted => Code::TooLarge,
        GrpcCode::Unimplemented => Code::Version,
        GrpcCode::InvalidArgument => Code::Invalid,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for (code, ..) in CODES {
            let error = RpcError::new(code, "chunk 17 is gone");
            assert_eq!(RpcError::from(Status::from(error.clone())), error);
        }
    }

    #[test]
    fn a_broken_connection_is_neither_a_defect_nor_a_cancelling() {
        for code in [GrpcCode::Unknown, GrpcCode::Internal, GrpcCode::Cancelled] {
            let mut broken = Status::new(code, "broken");
            broken.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
            assert_eq!(RpcError::from(broken).code, Code::Unavailable, "{code:?}");
        }
        let damaged = RpcError::new(Code::Damaged, "chunk 3: bad checksum");
        assert_eq!(RpcError::from(Status::from(damaged.clone())), damaged);
    }

    #[test]
    fn foreign_statuses_keep_their_meaning() {
        assert_eq!(RpcError::from(Status::unavailable("x")).retry(), Retry::OtherNode);
        assert_eq!(RpcError::from(Status::unknown("x")).code, Code::Internal);
        assert_eq!(RpcError::from(Status::cancelled("x")).code, Code::Cancelled);
    }
}
