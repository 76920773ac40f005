//! Errors as gRPC knows them: a code for programs that know no SQLSTATE, and the SQLSTATE for those that do.

use arrow_flight::error::FlightError;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::Error;

/// Key of the metadata that holds the SQLSTATE.
const SQLSTATE_KEY: &str = "x-sqlstate";

/// The error as a status.
pub(super) fn status(error: Error) -> Status {
    let sqlstate = error.state.0;
    let mut message = error.message;
    for (name, text) in [("DETAIL", error.detail), ("HINT", error.hint), ("CONTEXT", error.context)]
    {
        if let Some(text) = text {
            message = format!("{message}\n{name}: {text}");
        }
    }
    let mut status = Status::new(code(sqlstate), format!("{message} (SQLSTATE {sqlstate})"));
    status.metadata_mut().insert(SQLSTATE_KEY, MetadataValue::from_static(sqlstate));
    status
}

fn code(sqlstate: &str) -> Code {
    match sqlstate {
        "42P01" | "42703" | "42883" | "42704" | "3D000" | "3F000" | "26000" => Code::NotFound,
        "42P07" | "42P06" | "42710" | "42701" | "23505" => Code::AlreadyExists,
        "57014" => Code::Cancelled,
        "57P01" | "57P02" | "57P03" => Code::Unavailable,
        "0A000" => Code::Unimplemented,
        "42501" => Code::PermissionDenied,
        "XX001" => Code::DataLoss,
        "08007" => Code::Unknown,
        _ => match sqlstate.get(..2) {
            Some("08") => Code::Unavailable,
            Some("22" | "42" | "21") => Code::InvalidArgument,
            Some("23" | "25" | "55") => Code::FailedPrecondition,
            Some("28") => Code::Unauthenticated,
            Some("40") => Code::Aborted,
            Some("53" | "54") => Code::ResourceExhausted,
            _ => Code::Internal,
        },
    }
}

/// A status as an error of a Flight stream.
pub(super) fn flight_error(error: Error) -> FlightError {
    FlightError::Tonic(Box::new(status(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqlState;

    #[test]
    fn a_status_keeps_what_the_error_says() {
        let mut error = Error::new(SqlState("42P01"), "relation \"x\" does not exist");
        error.hint = Some("Make it.".to_owned());
        let status = status(error);
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(
            status.message(),
            "relation \"x\" does not exist\nHINT: Make it. (SQLSTATE 42P01)"
        );
        assert_eq!(status.metadata().get(SQLSTATE_KEY).unwrap(), "42P01");
    }

    #[test]
    fn classes_have_codes() {
        for (sqlstate, expected) in [
            ("22P02", Code::InvalidArgument),
            ("53300", Code::ResourceExhausted),
            ("23502", Code::FailedPrecondition),
            ("08006", Code::Unavailable),
            ("XX000", Code::Internal),
        ] {
            assert_eq!(code(sqlstate), expected, "{sqlstate}");
        }
    }
}
