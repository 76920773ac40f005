//! `create_hypertable` and `create_distributed_hypertable`.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Int32Array, StringArray},
    datatypes::{DataType, Field},
};
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::ast::{Expr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName},
};
use hypertide_meta::catalog::{Command, HypertableSpec, Outcome, Reject, Rule, Table, TableKind};
use hypertide_proto::partition::PARTITIONS_MAX;

use super::{
    call::Arguments,
    civil::DAY_MICROS,
    parse::{fold, regclass},
    query,
    table::find_named,
};
use crate::{Error, Notice, Session, SqlState, session::Frame};

/// Names of the parameters of both functions, in their order.
pub(crate) const PARAMETERS: &[&str] = &[
    "relation",
    "time_column_name",
    "partitioning_column",
    "number_partitions",
    "associated_schema_name",
    "associated_table_prefix",
    "chunk_time_interval",
    "create_default_indexes",
    "if_not_exists",
    "partitioning_func",
    "migrate_data",
    "chunk_target_size",
    "chunk_sizing_func",
    "time_partitioning_func",
    "replication_factor",
    "data_nodes",
    "distributed",
    "dimension",
];
/// Width of a slice when none is given.
const INTERVAL_DEFAULT: i64 = 7 * DAY_MICROS;
/// Days of a month in an interval.
const MONTH_DAYS: i64 = 30;
const REPLICATION_MAX: i64 = 32_767;

/// Columns of their rows.
pub(crate) fn columns() -> Vec<Field> {
    vec![
        Field::new("hypertable_id", DataType::Int32, true),
        Field::new("schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, true),
        Field::new("created", DataType::Boolean, true),
    ]
}

/// Whether a function builds a dimension: `by_range` or `by_hash`.
pub(crate) fn is_builder(name: &ObjectName) -> bool {
    let name = name.to_string().to_ascii_lowercase();
    ["by_range", "by_hash"].contains(&name.as_str())
}

/// What the arguments ask for, before the table is looked at.
struct Wish {
    /// Whether the function makes distributed hypertables only.
    distributed: bool,
    time_column: String,
    interval: Option<ScalarValue>,
    space: Option<(String, Option<i64>)>,
}

/// Makes a hypertable.
pub(crate) async fn create(
    session: &mut Session,
    frame: &Frame,
    mut arguments: Arguments,
    distributed: bool,
) -> Result<Vec<ArrayRef>, Error> {
    let relation = arguments.text("relation")?.ok_or_else(|| null_argument("relation"))?;
    let (schema, name) = regclass(&relation)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = find_named(&frame.snapshot.image, schema.as_deref(), &name, path)?;
    let mut wish = wish(frame, &mut arguments).await?;
    wish.distributed = distributed;
    let if_not_exists = arguments.bool("if_not_exists")?.unwrap_or(false);
    let spec = spec(session, &table, &wish, &arguments)?;
    if matches!(table.kind, TableKind::Hypertable(_)) {
        return already(session, &table, if_not_exists);
    }
    let nullable = table.columns.column(&spec.time_column).is_some_and(|column| column.nullable);
    let time_column = spec.time_column.clone();
    let command = Command::CreateHypertable { table: table.id, spec, if_not_exists };
    let outcome = session.propose(command).await.map_err(|error| not_empty(error, &table))?;
    let Outcome::Table(made, created) = outcome else {
        return Err(Error::of("XX000", "the catalog gave no table"));
    };
    if !created {
        return already(session, &made, true);
    }
    if nullable {
        session.notice_with(Notice {
            severity: "NOTICE",
            state: SqlState("00000"),
            message: format!("adding not-null constraint to column \"{time_column}\""),
            detail: Some("Dimensions cannot have NULL values.".into()),
            hint: None,
        });
    }
    warn(session, &made);
    Ok(row(&made, true))
}

fn null_argument(name: &str) -> Error {
    Error::of("22023", format_args!("{name} cannot be NULL"))
}

fn not_empty(error: Error, table: &Table) -> Error {
    match error.message.contains("is not empty") {
        true => Error::from(Reject::NotEmpty(table.name.clone()))
            .with_hint("Make the table a hypertable first, then insert the rows."),
        false => error,
    }
}

fn row(table: &Table, created: bool) -> Vec<ArrayRef> {
    vec![
        Arc::new(Int32Array::from(vec![i32::try_from(table.id.0).unwrap_or(i32::MAX)])),
        Arc::new(StringArray::from(vec![table.schema.clone()])),
        Arc::new(StringArray::from(vec![table.name.clone()])),
        Arc::new(BooleanArray::from(vec![created])),
    ]
}

fn already(
    session: &mut Session,
    table: &Table,
    if_not_exists: bool,
) -> Result<Vec<ArrayRef>, Error> {
    let reject = Reject::AlreadyHypertable(table.name.clone());
    if !if_not_exists {
        return Err(reject.into());
    }
    session.notice("NOTICE", "TS110", format_args!("{reject}, skipping"));
    Ok(row(table, false))
}

/// Reads the columns and rules from either form of the arguments.
async fn wish(frame: &Frame, arguments: &mut Arguments) -> Result<Wish, Error> {
    let by =
        arguments.inner.remove("time_column_name").or_else(|| arguments.inner.remove("dimension"));
    if let Some(Expr::Function(function)) = by {
        if !function.name.to_string().eq_ignore_ascii_case("by_range") {
            return Err(Error::of(
                "22023",
                "cannot partition using a closed dimension on primary column",
            )
            .with_hint("Use range partitioning on the primary column."));
        }
        let values = builder_arguments(
            frame,
            &function.args,
            &["column_name", "partition_interval", "partition_func"],
        )
        .await?;
        return Ok(Wish {
            distributed: false,
            time_column: values.text("column_name")?.ok_or_else(|| null_argument("column_name"))?,
            interval: values.get("partition_interval").cloned(),
            space: None,
        });
    }
    let space = match arguments.inner.remove("partitioning_column") {
        Some(Expr::Function(function)) => {
            let values = builder_arguments(
                frame,
                &function.args,
                &["column_name", "number_partitions", "partition_func"],
            )
            .await?;
            let column = values.text("column_name")?.ok_or_else(|| null_argument("column_name"))?;
            Some((column, values.int("number_partitions")?))
        }
        _ => arguments
            .text("partitioning_column")?
            .map(|column| arguments.int("number_partitions").map(|number| (column, number)))
            .transpose()?,
    };
    Ok(Wish {
        distributed: false,
        time_column: arguments
            .text("time_column_name")?
            .ok_or_else(|| null_argument("time_column_name"))?,
        interval: arguments.get("chunk_time_interval").cloned(),
        space,
    })
}

async fn builder_arguments(
    frame: &Frame,
    given: &FunctionArguments,
    names: &'static [&'static str],
) -> Result<Arguments, Error> {
    let FunctionArguments::List(list) = given else { return Err(null_argument("column_name")) };
    let mut found = Vec::new();
    for (position, argument) in list.args.iter().enumerate() {
        let (name, value) = match argument {
            FunctionArg::Named { name, arg, .. }
            | FunctionArg::ExprNamed { name: Expr::Identifier(name), arg, .. } => {
                (names.iter().find(|known| **known == fold(name)), arg)
            }
            FunctionArg::Unnamed(arg) => (names.get(position), arg),
            FunctionArg::ExprNamed { arg, .. } => (None, arg),
        };
        match (name, value) {
            (Some(name), FunctionArgExpr::Expr(expr)) => found.push((*name, expr.clone())),
            _ => return Err(Error::of("42883", format_args!("unknown argument {argument}"))),
        }
    }
    let expressions: Vec<Expr> = found.iter().map(|(_, expr)| expr.clone()).collect();
    let values = query::evaluate(&frame.ctx, &expressions, &[]).await?;
    let values = found.into_iter().map(|(name, _)| name).zip(values).collect();
    Ok(Arguments::new(values))
}

/// Checks what is asked for against the table.
fn spec(
    session: &Session,
    table: &Table,
    wish: &Wish,
    arguments: &Arguments,
) -> Result<HypertableSpec, Error> {
    if arguments.bool("migrate_data")?.unwrap_or(false) {
        return Err(Error::of("0A000", "cannot migrate data for distributed hypertable"));
    }
    for name in ["partitioning_func", "time_partitioning_func"] {
        if arguments.get(name).is_some() {
            return Err(Error::unsupported(format_args!("the argument {name}")));
        }
    }
    let column = |name: &str| {
        let found = table.columns.column(name);
        found.ok_or_else(|| Error::of("42703", format_args!("column \"{name}\" does not exist")))
    };
    let time = column(&wish.time_column)?;
    if !time.column_type.can_be_time() {
        let message = format_args!("invalid type for dimension \"{}\"", time.name);
        return Err(
            Error::of("22023", message).with_hint("Use an integer, timestamp, or date type.")
        );
    }
    let interval = match &wish.interval {
        Some(value) => interval(value, time.column_type.integer())?,
        None if time.column_type.integer() => {
            return Err(Error::of("22023", "integer dimensions require an explicit interval"));
        }
        None => INTERVAL_DEFAULT,
    };
    let rf_default = session.settings.get("timescaledb.hypertable_replication_factor_default");
    let factor = match arguments.int("replication_factor")? {
        Some(factor) => factor,
        None if arguments.given("replication_factor") && wish.distributed => 1,
        None => rf_default.and_then(|text| text.parse().ok()).unwrap_or(1),
    };
    if !(1..=REPLICATION_MAX).contains(&factor) {
        return Err(Error::of("22023", "invalid replication factor").with_hint(format_args!(
            "A hypertable's replication factor must be between 1 and {REPLICATION_MAX}."
        )));
    }
    let space = match &wish.space {
        Some((name, number)) => {
            Some((column(name)?.name.clone(), partitions(name, *number, wish.distributed)?))
        }
        None => None,
    };
    Ok(HypertableSpec {
        distributed: wish.distributed
            || arguments.get("replication_factor").is_some()
            || arguments.bool("distributed")?.unwrap_or(false)
            || session.settings.get("timescaledb.hypertable_distributed_default")
                == Some("distributed"),
        time_column: wish.time_column.clone(),
        interval,
        space,
        replication_factor: u16::try_from(factor).unwrap_or(u16::MAX),
        data_nodes: data_nodes(arguments)?,
        chunk_schema: arguments.text("associated_schema_name")?,
        chunk_prefix: arguments.text("associated_table_prefix")?,
    })
}

fn partitions(column: &str, number: Option<i64>, distributed: bool) -> Result<Option<u16>, Error> {
    let fits =
        |number: i64| u16::try_from(number).ok().filter(|n| (1..=PARTITIONS_MAX).contains(n));
    match number {
        None if distributed => Ok(None),
        Some(number) if fits(number).is_some() => Ok(fits(number)),
        _ => {
            let message = format_args!("invalid number of partitions for dimension \"{column}\"");
            Err(Error::of("22023", message).with_hint(format_args!(
                "A closed (space) dimension must specify between 1 and {PARTITIONS_MAX} partitions."
            )))
        }
    }
}

/// The names in an array, or in a text such as `{dn1,dn2}`.
fn data_nodes(arguments: &Arguments) -> Result<Option<Vec<String>>, Error> {
    let bad = || {
        Error::of("22023", "invalid data nodes format")
            .with_hint("Specify a one-dimensional array of data nodes.")
    };
    let Some(value) = arguments.get("data_nodes") else { return Ok(None) };
    let names: Vec<String> = match value {
        ScalarValue::List(list) => {
            let values = list.value(0);
            let texts = arrow::compute::cast(&values, &DataType::Utf8).map_err(|_| bad())?;
            let texts = arrow::array::AsArray::as_string::<i32>(&texts).clone();
            texts
                .iter()
                .map(|text| text.map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(bad)?
        }
        other => {
            let text = other.try_as_str().flatten().ok_or_else(bad)?;
            let inner = text
                .trim()
                .strip_prefix('{')
                .and_then(|text| text.strip_suffix('}'))
                .ok_or_else(bad)?;
            inner.split(',').map(|name| name.trim().trim_matches('"').to_owned()).collect()
        }
    };
    if names.is_empty() || names.iter().any(String::is_empty) {
        return Err(bad());
    }
    Ok(Some(names))
}

/// The width of a slice, in the unit of the time column.
pub(crate) fn interval(value: &ScalarValue, integer: bool) -> Result<i64, Error> {
    let width = match value {
        ScalarValue::IntervalMonthDayNano(Some(value)) if !integer => {
            let days = i64::from(value.months) * MONTH_DAYS + i64::from(value.days);
            days.checked_mul(DAY_MICROS)
                .and_then(|micros| micros.checked_add(value.nanoseconds / 1000))
        }
        ScalarValue::Utf8(Some(_)) if !integer => {
            let wanted = DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano);
            return interval(&value.cast_to(&wanted)?, integer);
        }
        other => match other.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(Some(width))) if other.data_type().is_integer() => Some(width),
            _ => {
                return Err(Error::of("22023", "invalid interval type for the time dimension")
                    .with_hint("Use an interval of the type of the time column: INTERVAL '1 day', or an integer."));
            }
        },
    };
    width.filter(|width| *width > 0).ok_or_else(|| {
        Error::of("22023", format_args!("invalid interval: must be between 1 and {}", i64::MAX))
    })
}

/// What is worth knowing about a hypertable just made.
fn warn(session: &mut Session, table: &Table) {
    let TableKind::Hypertable(hypertable) = &table.kind else { return };
    let nodes = hypertable.data_nodes.len();
    if nodes == 1 && hypertable.distributed {
        session.notice_with(Notice {
            severity: "WARNING",
            state: SqlState("01000"),
            message: "only one data node was assigned to the hypertable".into(),
            detail: Some("A distributed hypertable should have at least two data nodes for best performance.".into()),
            hint: Some("Add more data nodes to the cluster.".into()),
        });
    }
    for dimension in &hypertable.dimensions {
        if let Rule::Hash { buckets } = &dimension.rule
            && buckets.len() < nodes
        {
            session.notice_with(Notice {
                severity: "WARNING",
                state: SqlState("01000"),
                message: format!("insufficient number of partitions for dimension \"{}\"", dimension.column),
                detail: Some("There are not enough partitions to make use of all data nodes.".into()),
                hint: Some(format!(
                    "Increase the number of partitions in dimension \"{}\" to match or exceed the number of \
                     attached data nodes.",
                    dimension.column
                )),
            });
        }
    }
}
