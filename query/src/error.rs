//! Errors as SQL clients see them: a SQLSTATE, a message, and where it helps a detail and a hint.
//!
//! This file is the only mapping from the errors below SQL (DataFusion, the parser, arrow, the catalog, other nodes) to
//! SQLSTATEs and PostgreSQL's wording.

use std::fmt;

use arrow::error::ArrowError;
use datafusion::{
    common::SchemaError, error::DataFusionError, sql::sqlparser::parser::ParserError,
};
use hypertide_meta::catalog::Reject;
use hypertide_proto::error::{Code, RpcError};

/// A five-letter SQLSTATE as in PostgreSQL's appendix A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqlState(pub &'static str);

/// An error for a SQL client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Class of the error.
    pub state: SqlState,
    /// What happened, with the name of the object.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// Byte position in the statement, from 1.
    pub position: Option<usize>,
    /// Where it happened, such as `COPY conditions, line 3, column temperature: "x"`.
    pub context: Option<String>,
}

impl Error {
    /// An error of this class.
    pub fn new(state: SqlState, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { state, message, detail: None, hint: None, position: None, context: None }
    }

    /// An error of the class with this code.
    pub(crate) fn of(code: &'static str, message: impl fmt::Display) -> Self {
        Self::new(SqlState(code), message)
    }

    /// What SQL can say and we do not do.
    pub(crate) fn unsupported(what: impl fmt::Display) -> Self {
        Self::of("0A000", format_args!("{what} is not supported"))
    }

    /// A table that does not exist.
    pub(crate) fn no_relation(name: &str) -> Self {
        Self::of("42P01", format_args!("relation \"{name}\" does not exist"))
    }

    /// A column of a table that does not exist.
    pub(crate) fn no_column(column: &str, table: &str) -> Self {
        let message = format_args!("column \"{column}\" of relation \"{table}\" does not exist");
        Self::of("42703", message)
    }

    /// The error with more about it.
    pub(crate) fn with_detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// The error with advice.
    pub(crate) fn with_hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The error of a parser that read `sql`.
    pub(crate) fn syntax(error: &ParserError, sql: &str) -> Self {
        let text = match error {
            ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
            ParserError::RecursionLimitExceeded => {
                return Self::of("54001", "statement is nested too deeply");
            }
        };
        syntax_error(text, sql)
    }

    /// The same error; a syntax error that names a token of `sql` without saying where gets its place.
    pub(crate) fn at(mut self, sql: &str) -> Self {
        if self.position.is_none()
            && self.state.0 == "42703"
            && let Some(name) = self.message.split('"').nth(1)
        {
            self.position = sql.find(name).map(|at| at + 1);
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        Self::External(Box::new(error))
    }
}

/// Turns `Expected: an expression, found: FROM at Line: 1, Column: 8` into PostgreSQL's form.
fn syntax_error(text: &str, sql: &str) -> Error {
    let (what, place) = text.split_once(" at Line: ").unwrap_or((text, ""));
    let found = what.split_once("found: ").map(|(_, found)| found.trim());
    let message = match found {
        Some("EOF") => "syntax error at end of input".to_owned(),
        Some(found) => format!("syntax error at or near \"{found}\""),
        None => format!("syntax error: {what}"),
    };
    let mut error = Error::of("42601", message);
    error.position = position(place, sql);
    if let Some((expected, _)) = what.split_once(", found: ") {
        error.detail = Some(format!("{}.", expected.trim_start_matches("sql parser error: ")));
    }
    error
}

/// Byte position, from 1, of `1, Column: 8`.
fn position(place: &str, sql: &str) -> Option<usize> {
    let (line, column) = place.split_once(", Column: ")?;
    let line: usize = line.trim().parse().ok()?;
    let digits = column.find(|c: char| !c.is_ascii_digit()).unwrap_or(column.len());
    let column: usize = column.split_at(digits).0.parse().ok()?;
    let before: usize = sql.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let rest = sql.get(before..)?;
    let within = rest.char_indices().nth(column.checked_sub(1)?).map_or(rest.len(), |(at, _)| at);
    Some(before + within + 1)
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::SQL(error, _) => Self::syntax(&error, ""),
            DataFusionError::ArrowError(error, _) => (*error).into(),
            DataFusionError::SchemaError(error, _) => schema_error(&error),
            DataFusionError::Plan(message) => plan_error(&message),
            DataFusionError::NotImplemented(message) => Self::of("0A000", message),
            DataFusionError::ResourcesExhausted(message) => Self::of("53200", message),
            DataFusionError::Execution(message) => execution_error(&message),
            DataFusionError::Configuration(message) => Self::of("22023", message),
            DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => {
                (*inner).into()
            }
            DataFusionError::Collection(errors) => errors
                .into_iter()
                .next()
                .map_or_else(|| Self::of("XX000", "unknown error"), Self::from),
            DataFusionError::Shared(shared) => shared_error(&shared),
            DataFusionError::External(error) => external_error(error.as_ref()),
            DataFusionError::IoError(error) => match error.kind() {
                std::io::ErrorKind::StorageFull => Self::of("53100", error),
                _ => Self::of("58030", error),
            },
            other => Self::of("XX000", other),
        }
    }
}

/// An error that others hold too, so that it can only be looked at.
fn shared_error(error: &DataFusionError) -> Error {
    match error {
        DataFusionError::ArrowError(error, _) => arrow_error(error),
        DataFusionError::Plan(message) => plan_error(message),
        DataFusionError::ResourcesExhausted(message) => Error::of("53200", message),
        DataFusionError::Execution(message) => execution_error(message),
        DataFusionError::External(error) => external_error(error.as_ref()),
        DataFusionError::Shared(error) => shared_error(error),
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => {
            shared_error(inner)
        }
        other => Error::of("XX000", other),
    }
}

fn external_error(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Error {
    if let Some(error) = error.downcast_ref::<Error>() {
        return error.clone();
    }
    if let Some(error) = error.downcast_ref::<RpcError>() {
        return error.clone().into();
    }
    if let Some(error) = error.downcast_ref::<DataFusionError>() {
        return shared_error(error);
    }
    if let Some(error) = error.downcast_ref::<ArrowError>() {
        return arrow_error(error);
    }
    Error::of("XX000", error)
}

fn schema_error(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, .. } => {
            let message = match &field.relation {
                Some(table) => format!("column {}.{} does not exist", table.table(), field.name),
                None => format!("column \"{}\" does not exist", field.name),
            };
            Error::of("42703", message)
        }
        SchemaError::AmbiguousReference { field } => {
            Error::of("42702", format_args!("column reference \"{}\" is ambiguous", field.name))
        }
        other => Error::of("42701", other),
    }
}

/// The classes of planning errors that DataFusion tells apart by their words only.
fn plan_error(message: &str) -> Error {
    let between = |before: &str, after: &str| {
        message
            .split_once(before)
            .and_then(|(_, rest)| rest.split_once(after))
            .map(|(name, _)| name)
    };
    if message.starts_with("table '") && message.contains("' not found") {
        let name = between("table '", "'").unwrap_or_default();
        return Error::no_relation(name.rsplit('.').next().unwrap_or(name));
    }
    if let Some(name) = between("Invalid function '", "'") {
        return Error::of("42883", format_args!("function {name} does not exist"))
            .with_hint("No function of that name and argument types exists.");
    }
    if let Some(name) = between("table function '", "' not found") {
        return Error::of("42883", format_args!("function {name} does not exist"));
    }
    if let Some(call) = between("No function matches the given name and argument types '", "'") {
        let message = format_args!("function {} does not exist", call.to_lowercase());
        return Error::of("42883", message)
            .with_hint("No function matches the given name and argument types. You might need to add explicit type casts.");
    }
    if message.starts_with("Column in SELECT must be in GROUP BY")
        && let Some(column) = between("column \"", "\" must appear")
    {
        let message = format_args!(
            "column \"{column}\" must appear in the GROUP BY clause or be used in an aggregate function"
        );
        return Error::of("42803", message);
    }
    let lower = message.to_ascii_lowercase();
    let state = [
        ("must appear in the group by", "42803"),
        ("must be in group by", "42803"),
        ("aggregate function calls cannot", "42803"),
        ("ambiguous", "42702"),
        ("cannot coerce", "42883"),
        ("cannot infer common argument type", "42883"),
        ("no field named", "42703"),
        ("not found", "42704"),
        ("failed to coerce", "42883"),
        ("not supported", "0A000"),
        ("unsupported", "0A000"),
        ("not implemented", "0A000"),
        ("placeholder", "42P02"),
        ("duplicate", "42701"),
        ("already exists", "42P07"),
        ("cast", "42846"),
        ("type", "42804"),
    ]
    .iter()
    .find(|(words, _)| lower.contains(words))
    .map_or("42601", |(_, state)| state);
    Error::of(state, message)
}

fn execution_error(message: &str) -> Error {
    let lower = message.to_ascii_lowercase();
    if lower.contains("divide by zero") || lower.contains("division by zero") {
        return Error::of("22012", "division by zero");
    }
    let state = [
        ("overflow", "22003"),
        ("interval out of range", "22008"),
        ("out of range", "22003"),
        ("error parsing timestamp", "22007"),
        ("parsing", "22P02"),
        ("cast", "22P02"),
        ("cancel", "57014"),
        ("timed out", "57014"),
        ("more than one row", "21000"),
    ]
    .iter()
    .find(|(words, _)| lower.contains(words))
    .map_or("XX000", |(_, state)| state);
    Error::of(state, message)
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::ExternalError(error) => external_error(error.as_ref()),
            error => arrow_error(&error),
        }
    }
}

fn arrow_error(error: &ArrowError) -> Error {
    match error {
        ArrowError::DivideByZero => Error::of("22012", "division by zero"),
        ArrowError::ArithmeticOverflow(_) => Error::of("22003", "value out of range"),
        ArrowError::CastError(message) | ArrowError::ParseError(message) => {
            if let Some(error) = bad_text(message) {
                return error;
            }
            let range = message.contains("out of range") || message.contains("too large");
            Error::of(if range { "22003" } else { "22P02" }, message)
        }
        ArrowError::MemoryError(message) => Error::of("53200", message),
        ArrowError::NotYetImplemented(message) => Error::of("0A000", message),
        ArrowError::ComputeError(message) | ArrowError::InvalidArgumentError(message) => {
            execution_error(message)
        }
        ArrowError::ExternalError(error) => external_error(error.as_ref()),
        other => Error::of("XX000", other),
    }
}

/// The error of a text that is no value of a type, from arrow's wording of it.
fn bad_text(message: &str) -> Option<Error> {
    let (text, wanted) = match message.strip_prefix("Cannot cast string '") {
        Some(rest) => rest.split_once("' to value of ")?,
        None => (
            message.strip_prefix("Error parsing timestamp from '")?.rsplit_once("':")?.0,
            "Timestamp type",
        ),
    };
    let wanted = wanted.strip_suffix(" type").unwrap_or(wanted);
    let (name, state) = match wanted {
        "Int8" | "Int16" | "UInt8" => ("smallint", "22P02"),
        "Int32" | "UInt16" => ("integer", "22P02"),
        "Int64" | "UInt32" | "UInt64" => ("bigint", "22P02"),
        "Float16" | "Float32" => ("real", "22P02"),
        "Float64" => ("double precision", "22P02"),
        "Boolean" => ("boolean", "22P02"),
        "Date32" | "Date64" => ("date", "22007"),
        _ if wanted.starts_with("Decimal") => ("numeric", "22P02"),
        _ if wanted.starts_with("Timestamp") => ("timestamp", "22007"),
        _ if wanted.starts_with("Interval") => ("interval", "22007"),
        _ => return None,
    };
    Some(Error::of(state, format_args!("invalid input syntax for type {name}: \"{text}\"")))
}

impl From<RpcError> for Error {
    fn from(error: RpcError) -> Self {
        let state = match error.code {
            Code::NotLeader | Code::Unavailable => "57P03",
            Code::DeadlineExceeded | Code::Cancelled => "57014",
            Code::Overloaded => "53200",
            Code::TooLarge => "54000",
            Code::DiskFull => "53100",
            Code::Damaged => "XX001",
            Code::SnapshotTooOld => "72000",
            Code::Stale | Code::Reserved | Code::Contended => "40001",
            _ => "XX000",
        };
        Self::of(state, error.message)
    }
}

impl From<hypertide_meta::Error> for Error {
    fn from(error: hypertide_meta::Error) -> Self {
        use hypertide_meta::Error as Meta;
        match error {
            Meta::Rpc(error) => error.into(),
            Meta::Unavailable(_) => Self::of("57P03", error),
            Meta::Unknown(_) => Self::of("08007", error),
            Meta::Identity(_) | Meta::Storage(_) => Self::of("58000", error),
        }
    }
}

impl From<hypertide_storage::Error> for Error {
    fn from(error: hypertide_storage::Error) -> Self {
        RpcError::from(error).into()
    }
}

impl From<Reject> for Error {
    fn from(reject: Reject) -> Self {
        let state = match &reject {
            Reject::UnknownTable(_) => "42P01",
            Reject::UnknownColumn(_) => "42703",
            Reject::UnknownNode(_) => "42704",
            Reject::TableExists(_) => "42P07",
            Reject::ColumnExists { .. } => "42701",
            Reject::NoColumn { .. } => "42703",
            Reject::NullValues { .. } => "23502",
            Reject::AlreadyHypertable(_) => "TS110",
            Reject::NotEmpty(_) => "0A000",
            Reject::ChunkClosed(_) => "55000",
            Reject::InvalidDimension(_) => "22023",
            Reject::InvalidSchema(_) => "42P16",
            Reject::KeyWithout(_) => "TS103",
            Reject::UnknownKey(_) => "42704",
            Reject::NoDataNodes(_) => "TS160",
            Reject::ReplicationFactor { .. } => "22023",
            Reject::Fenced(_) => "25P02",
            Reject::Uncovered(_) | Reject::StaleSchema(_) => "40001",
            Reject::TooFewInSync { .. } => "53000",
            Reject::WriteIdReused(_) => "22023",
            Reject::UnknownChunk(_) => "42P01",
            Reject::StaleEpoch { .. } | Reject::Replica(_) => "55000",
            Reject::LastReplica(_) | Reject::InsufficientNodes(_) => "TS160",
            Reject::NotHypertable(_) => "TS001",
            Reject::AlreadyAttached(_) => "TS170",
            Reject::NotAttached(_) => "TS171",
            Reject::NodeHoldsData(_) => "TS172",
            Reject::InvalidMove(_) => "22023",
            Reject::UnknownJob(_) => "42704",
            Reject::PolicyExists(_) => "42710",
            Reject::Compression(_) | Reject::NotSupported(_) => "0A000",
            Reject::Identity(_) | Reject::Overlap(_) => "XX000",
        };
        let mut error = Self::of(state, &reject);
        if let Reject::ReplicationFactor { nodes, factor, .. } = reject {
            error.detail = Some(format!(
                "The hypertable has {nodes} data nodes attached, while the replication factor is {factor}."
            ));
            error.hint = Some(
                "Decrease the replication factor or attach more data nodes to the hypertable."
                    .into(),
            );
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_errors_say_where() {
        let sql = "select 1\nfrom from";
        let error = ParserError::ParserError(
            "Expected: identifier, found: from at Line: 2, Column: 6".into(),
        );
        let error = Error::syntax(&error, sql);
        assert_eq!(error.state, SqlState("42601"));
        assert_eq!(error.message, "syntax error at or near \"from\"");
        assert_eq!(error.position, Some(15));
    }

    #[test]
    fn names_that_do_not_exist() {
        let error =
            Error::from(DataFusionError::Plan("table 'hypertide.public.nope' not found".into()));
        assert_eq!(
            (error.state.0, error.message.as_str()),
            ("42P01", "relation \"nope\" does not exist")
        );
        let message = "Invalid function 'flor'.\nDid you mean 'floor'?".to_owned();
        let error = Error::from(DataFusionError::Plan(message));
        assert_eq!(
            (error.state.0, error.message.as_str()),
            ("42883", "function flor does not exist")
        );
    }

    #[test]
    fn errors_below_keep_their_class_through_datafusion() {
        let inner = Error::of("22P02", "bad");
        let wrapped =
            DataFusionError::Context("x".into(), Box::new(DataFusionError::from(inner.clone())));
        assert_eq!(Error::from(wrapped), inner);
        let rpc = RpcError::new(Code::Damaged, "chunk 3");
        assert_eq!(Error::from(DataFusionError::External(Box::new(rpc))).state, SqlState("XX001"));
        let zero = DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None);
        assert_eq!(Error::from(zero).state, SqlState("22012"));
    }
}
