//! Pure: filters to the chunks that may hold a row that passes them.
//!
//! A filter becomes a [`Condition`] on the slices of a chunk, once; each chunk is then tested by comparing numbers.
//! Everything that is not understood passes every chunk: pruning may keep too much and must never lose a row.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::ScalarValue,
    logical_expr::{BinaryExpr, Expr, Operator, expr::InList},
};
use hypertide_meta::catalog::{Chunk, Rule, Table, TableKind};
use hypertide_proto::{
    partition::{HashKey, hash},
    predicate::{Predicate, Term, Test, Value},
    schema::{ColumnType, UTC},
    time::{DAY_MICROS, TimeRange},
};

const DAY_NANOS: i128 = 86_400_000_000_000;
/// Months have at most so many days.
const MONTH_DAYS_MAX: i128 = 31;

/// What must hold of a chunk's slices for one of its rows to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Nothing: any chunk may hold such a row.
    Always,
    /// The slice of this dimension has a point in common with one of the ranges; none is left when there is no range.
    Within {
        /// Position of the dimension.
        dimension: usize,
        /// Sorted, without overlaps.
        ranges: Vec<TimeRange>,
    },
    /// All of these.
    All(Vec<Condition>),
    /// One of these.
    Any(Vec<Condition>),
}

impl Condition {
    /// Whether a chunk with these slices may hold a row that passes.
    pub(crate) fn may_hold(&self, slices: &[TimeRange]) -> bool {
        match self {
            Self::Always => true,
            Self::Within { dimension, ranges } => slices
                .get(*dimension)
                .is_none_or(|slice| ranges.iter().any(|range| range.overlaps(slice))),
            Self::All(parts) => parts.iter().all(|part| part.may_hold(slices)),
            Self::Any(parts) => parts.iter().any(|part| part.may_hold(slices)),
        }
    }

    /// Both must hold. Ranges of one dimension are cut with each other, so that a contradiction leaves none.
    fn and(self, other: Self) -> Self {
        let mut parts = Vec::new();
        for condition in [self, other] {
            match condition {
                Self::Always => {}
                Self::All(inner) => parts.extend(inner),
                other => parts.push(other),
            }
        }
        let mut merged: Vec<Self> = Vec::new();
        for part in parts {
            if let Self::Within { dimension, ranges } = &part
                && let Some(Self::Within { ranges: known, .. }) = merged.iter_mut().find(
                    |other| matches!(other, Self::Within { dimension: d, .. } if d == dimension),
                )
            {
                *known = cut(known, ranges);
                continue;
            }
            merged.push(part);
        }
        if merged.len() > 1 { Self::All(merged) } else { merged.pop().unwrap_or(Self::Always) }
    }

    /// One must hold.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Always, _) | (_, Self::Always) => Self::Always,
            (
                Self::Within { dimension: a, mut ranges },
                Self::Within { dimension: b, ranges: more },
            ) if a == b => {
                ranges.extend(more);
                Self::Within { dimension: a, ranges: union(ranges) }
            }
            (Self::Any(mut parts), other) => {
                parts.push(other);
                Self::Any(parts)
            }
            (a, b) => Self::Any(vec![a, b]),
        }
    }
}

/// Sorted ranges without overlaps that cover the same points.
fn union(mut ranges: Vec<TimeRange>) -> Vec<TimeRange> {
    ranges.sort();
    let mut merged: Vec<TimeRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end() => {
                let end = last.end().max(range.end());
                *last = TimeRange::new(last.start(), end).unwrap_or(*last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// What two lists of ranges have in common.
fn cut(a: &[TimeRange], b: &[TimeRange]) -> Vec<TimeRange> {
    union(a.iter().flat_map(|a| b.iter().filter_map(|b| a.intersection(b))).collect())
}

/// What all the filters together ask of a chunk of the table.
pub(crate) fn condition(table: &Table, filters: &[Expr]) -> Condition {
    let scope = Scope { table };
    filters.iter().fold(Condition::Always, |all, filter| all.and(scope.condition(filter)))
}

/// The chunks that may hold a row that passes all the filters.
pub(crate) fn prune<'a>(
    table: &Table,
    filters: &[Expr],
    chunks: impl Iterator<Item = &'a Chunk>,
) -> Vec<&'a Chunk> {
    let condition = condition(table, filters);
    chunks.filter(|chunk| condition.may_hold(&chunk.slices)).collect()
}

/// A table whose columns the filters name.
struct Scope<'a> {
    table: &'a Table,
}

impl Scope<'_> {
    fn condition(&self, filter: &Expr) -> Condition {
        let never = || Condition::Any(Vec::new());
        match filter {
            Expr::Alias(alias) => self.condition(&alias.expr),
            Expr::Literal(ScalarValue::Boolean(Some(false) | None), _) => never(),
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                self.condition(left).and(self.condition(right))
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                self.condition(left).or(self.condition(right))
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => self.comparison(left, *op, right),
            Expr::Between(between) if !between.negated => self
                .comparison(&between.expr, Operator::GtEq, &between.low)
                .and(self.comparison(&between.expr, Operator::LtEq, &between.high)),
            Expr::InList(InList { expr, list, negated: false }) => {
                let equal = |value: &Expr| self.comparison(expr, Operator::Eq, value);
                list.iter().map(equal).reduce(Condition::or).unwrap_or_else(never)
            }
            Expr::IsNull(inner) => self.hashed(inner, HashKey::Null).unwrap_or(Condition::Always),
            _ => Condition::Always,
        }
    }

    fn comparison(&self, left: &Expr, op: Operator, right: &Expr) -> Condition {
        let (expr, op, value) = match (left, right) {
            (expr, Expr::Literal(value, _)) => (expr, op, value),
            (Expr::Literal(value, _), expr) => match op.swap() {
                Some(op) => (expr, op, value),
                None => return Condition::Always,
            },
            _ => return Condition::Always,
        };
        if let Some(condition) = self.on_time(expr, op, value) {
            return condition;
        }
        if op == Operator::Eq
            && let Some((_, column_type)) = column(self.table, expr)
            // A literal of another type, such as a decimal of another scale, hashes otherwise.
            && value.data_type() == column_type.to_arrow()
            && let Some(key) = hash_key(value)
            && let Some(condition) = self.hashed(expr, key)
        {
            return condition;
        }
        Condition::Always
    }

    /// The condition that a column of a hash dimension has this value.
    fn hashed(&self, expr: &Expr, key: HashKey<'_>) -> Option<Condition> {
        let Expr::Column(column) = expr else { return None };
        let TableKind::Hypertable(hypertable) = &self.table.kind else { return None };
        let dimension = hypertable.dimensions.iter().position(|dimension| {
            matches!(dimension.rule, Rule::Hash { .. }) && dimension.column == column.name
        })?;
        let hashed = hash(key);
        let ranges = TimeRange::new(hashed, hashed + 1).into_iter().collect();
        Some(Condition::Within { dimension, ranges })
    }

    /// The condition of a comparison with the time column, or with a function that rounds it down.
    fn on_time(&self, expr: &Expr, op: Operator, value: &ScalarValue) -> Option<Condition> {
        let TableKind::Hypertable(hypertable) = &self.table.kind else { return None };
        let time = hypertable.dimensions.first()?;
        let column_type = self.table.columns.column(&time.column)?.column_type;
        let rounded = rounded(expr)?;
        if rounded.column != time.column {
            return None;
        }
        let value = Point::of(value, column_type)?;
        let range = match op {
            Operator::Lt => rounded.before(value.ceil()),
            Operator::LtEq => rounded.before(value.floor() + 1),
            Operator::Gt => after(value.floor() + 1),
            Operator::GtEq => after(value.ceil()),
            Operator::Eq => {
                return Some(Condition::Within {
                    dimension: 0,
                    ranges: cut(&after(value.ceil()), &rounded.before(value.floor() + 1)),
                });
            }
            _ => return None,
        };
        Some(Condition::Within { dimension: 0, ranges: range })
    }
}

/// The time column, rounded down by at most `width` less one point.
struct Rounded<'a> {
    column: &'a str,
    /// 1 for the column itself.
    width: i128,
}

impl Rounded<'_> {
    /// Points whose rounded value is less than `end`.
    fn before(&self, end: i128) -> Vec<TimeRange> {
        let end = clamp(end + self.width - 1);
        TimeRange::new(i64::MIN, end).into_iter().collect()
    }
}

/// Points at or after `start`, which holds for what was rounded down to `start` or later, too.
fn after(start: i128) -> Vec<TimeRange> {
    if start > i64::MAX.into() {
        return Vec::new();
    }
    TimeRange::new(clamp(start).min(i64::MAX - 1), i64::MAX).into_iter().collect()
}

fn clamp(point: i128) -> i64 {
    point.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Sees a column behind casts that keep its value and functions that round it down.
fn rounded(expr: &Expr) -> Option<Rounded<'_>> {
    match expr {
        Expr::Column(column) => Some(Rounded { column: &column.name, width: 1 }),
        Expr::Alias(alias) => rounded(&alias.expr),
        Expr::Cast(cast) => {
            let inner = rounded(&cast.expr)?;
            let rounding = match cast.field.data_type() {
                DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, zone)
                    if zone.as_deref().is_none_or(is_utc) =>
                {
                    0
                }
                DataType::Date32 => i128::from(DAY_MICROS) - 1,
                DataType::Int64 | DataType::Int32 => 0,
                _ => return None,
            };
            Some(Rounded { width: inner.width + rounding, ..inner })
        }
        Expr::ScalarFunction(call) => {
            let (width, arg) = match (call.func.name(), call.args.as_slice()) {
                ("time_bucket", [width, arg, rest @ ..]) => {
                    // With a time zone a day may last an hour or two longer.
                    let slack = if rest.is_empty() { 0 } else { i128::from(DAY_MICROS) };
                    (bucket_width(width)? + slack, arg)
                }
                ("date_trunc", [unit, arg]) => (unit_width(unit)? + i128::from(DAY_MICROS), arg),
                _ => return None,
            };
            let inner = rounded(arg)?;
            Some(Rounded { width: inner.width + width - 1, ..inner })
        }
        _ => None,
    }
}

/// Names of the zone in which timestamps are kept.
fn is_utc(zone: &str) -> bool {
    matches!(zone, UTC | "+00:00" | "Z" | "Etc/UTC")
}

/// The greatest width of a bucket, in points.
fn bucket_width(width: &Expr) -> Option<i128> {
    let Expr::Literal(value, _) = width else { return None };
    Some(match value {
        ScalarValue::IntervalMonthDayNano(Some(width)) => {
            let days = i128::from(width.months) * MONTH_DAYS_MAX + i128::from(width.days);
            days * i128::from(DAY_MICROS) + i128::from(width.nanoseconds) / 1000
        }
        ScalarValue::Int16(Some(width)) => i128::from(*width),
        ScalarValue::Int32(Some(width)) => i128::from(*width),
        ScalarValue::Int64(Some(width)) => i128::from(*width),
        _ => return None,
    })
    .filter(|width| *width > 0)
}

/// The greatest width of a unit of `date_trunc`, in microseconds.
fn unit_width(unit: &Expr) -> Option<i128> {
    let Expr::Literal(ScalarValue::Utf8(Some(unit)), _) = unit else { return None };
    let days = match unit.to_ascii_lowercase().as_str() {
        "microsecond" | "millisecond" | "second" | "minute" | "hour" | "day" => 1,
        "week" => 7,
        "month" => 31,
        "quarter" => 92,
        "year" => 366,
        _ => return None,
    };
    Some(days * i128::from(DAY_MICROS))
}

/// A literal on the time axis, in nanoseconds for temporal columns and in thousandths for integers, so that literals
/// between two points of the column are compared rightly.
struct Point(i128);

impl Point {
    fn of(value: &ScalarValue, column: ColumnType) -> Option<Self> {
        if column.integer() {
            return integer(value).map(|value| Self(value * 1000));
        }
        let nanos = |value: i64, scale: i128| Some(Self(i128::from(value) * scale));
        match value {
            ScalarValue::TimestampSecond(Some(value), _) => nanos(*value, 1_000_000_000),
            ScalarValue::TimestampMillisecond(Some(value), _) => nanos(*value, 1_000_000),
            ScalarValue::TimestampMicrosecond(Some(value), _) => nanos(*value, 1000),
            ScalarValue::TimestampNanosecond(Some(value), _) => nanos(*value, 1),
            ScalarValue::Date32(Some(value)) => nanos(i64::from(*value), DAY_NANOS),
            _ => None,
        }
    }

    fn floor(&self) -> i128 {
        self.0.div_euclid(1000)
    }

    fn ceil(&self) -> i128 {
        self.0.div_euclid(1000) + i128::from(self.0.rem_euclid(1000) > 0)
    }
}

fn integer(value: &ScalarValue) -> Option<i128> {
    Some(match value {
        ScalarValue::Int8(Some(value)) => i128::from(*value),
        ScalarValue::Int16(Some(value)) => i128::from(*value),
        ScalarValue::Int32(Some(value)) => i128::from(*value),
        ScalarValue::Int64(Some(value)) => i128::from(*value),
        ScalarValue::UInt8(Some(value)) => i128::from(*value),
        ScalarValue::UInt16(Some(value)) => i128::from(*value),
        ScalarValue::UInt32(Some(value)) => i128::from(*value),
        ScalarValue::UInt64(Some(value)) => i128::from(*value),
        _ => return None,
    })
}

/// How a literal is hashed; it has the column's type, or the column would stand behind a cast.
pub(crate) fn hash_key(value: &ScalarValue) -> Option<HashKey<'_>> {
    if let Some(value) = integer(value) {
        return Some(HashKey::Int(value));
    }
    Some(match value {
        ScalarValue::Utf8(Some(value)) => HashKey::Text(value),
        ScalarValue::Boolean(Some(value)) => HashKey::Bool(*value),
        ScalarValue::Binary(Some(value)) => HashKey::Bytes(value),
        ScalarValue::Float64(Some(value)) => HashKey::Float(*value),
        ScalarValue::Float32(Some(value)) => HashKey::Float(f64::from(*value)),
        ScalarValue::Date32(Some(value)) => HashKey::Int((*value).into()),
        ScalarValue::TimestampMicrosecond(Some(value), _) => HashKey::Int((*value).into()),
        ScalarValue::Decimal128(Some(value), ..) => HashKey::Int(*value),
        _ => return None,
    })
}

/// What of the filters a data node can use to leave out segments and blocks: comparisons of a column with a constant
/// of the column's own type, all of which must hold.
pub(crate) fn predicate(table: &Table, filters: &[Expr]) -> Predicate {
    let mut predicate = Predicate::default();
    for filter in filters {
        collect(table, filter, &mut predicate.terms);
    }
    predicate
}

fn collect(table: &Table, filter: &Expr, terms: &mut Vec<Term>) {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            collect(table, left, terms);
            collect(table, right, terms);
        }
        Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => {
            terms.extend(alternatives(table, filter));
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let term = match (left.as_ref(), right.as_ref()) {
                (expr, Expr::Literal(value, _)) => term(table, expr, *op, value),
                (Expr::Literal(value, _), expr) => {
                    op.swap().and_then(|op| term(table, expr, op, value))
                }
                _ => None,
            };
            terms.extend(term);
        }
        Expr::Between(between) if !between.negated => {
            if let (Expr::Literal(low, _), Expr::Literal(high, _)) =
                (between.low.as_ref(), between.high.as_ref())
            {
                terms.extend(term(table, &between.expr, Operator::GtEq, low));
                terms.extend(term(table, &between.expr, Operator::LtEq, high));
            }
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let values = list.iter().map(|value| match value {
                Expr::Literal(value, _) => equal_value(table, expr, value),
                _ => None,
            });
            if let (Some(column), Some(values)) = (column(table, expr), values.collect()) {
                terms.push(Term { column: column.0.to_owned(), test: Test::In(values) });
            }
        }
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => {
            let test =
                if matches!(filter, Expr::IsNull(_)) { Test::IsNull } else { Test::IsNotNull };
            terms.extend(
                column(table, inner).map(|(name, _)| Term { column: name.to_owned(), test }),
            );
        }
        _ => {}
    }
}

/// `a = 1 OR a = 2`, which is how short lists arrive.
fn alternatives(table: &Table, filter: &Expr) -> Option<Term> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    match op {
        Operator::Or => {
            let (a, b) = (alternatives(table, left)?, alternatives(table, right)?);
            match (a.test, b.test) {
                (Test::In(mut values), Test::In(more)) if a.column == b.column => {
                    values.extend(more);
                    Some(Term { column: a.column, test: Test::In(values) })
                }
                _ => None,
            }
        }
        Operator::Eq => match (left.as_ref(), right.as_ref()) {
            (expr, Expr::Literal(value, _)) | (Expr::Literal(value, _), expr) => {
                term(table, expr, Operator::Eq, value)
            }
            _ => None,
        },
        _ => None,
    }
}

fn term(table: &Table, expr: &Expr, op: Operator, value: &ScalarValue) -> Option<Term> {
    let (name, _) = column(table, expr)?;
    let value = equal_value(table, expr, value)?;
    let test = match op {
        Operator::Lt => Test::Lt(value),
        Operator::LtEq => Test::LtEq(value),
        Operator::Gt => Test::Gt(value),
        Operator::GtEq => Test::GtEq(value),
        Operator::Eq => Test::In(vec![value]),
        _ => return None,
    };
    Some(Term { column: name.to_owned(), test })
}

fn column<'a>(table: &Table, expr: &'a Expr) -> Option<(&'a str, ColumnType)> {
    let Expr::Column(column) = expr else { return None };
    Some((&column.name, table.columns.column(&column.name)?.column_type))
}

/// The constant as zone maps hold values of this column; `None` when its type is another.
fn equal_value(table: &Table, expr: &Expr, value: &ScalarValue) -> Option<Value> {
    let (_, column_type) = column(table, expr)?;
    if value.data_type() != column_type.to_arrow() {
        return None;
    }
    if let Some(value) = integer(value) {
        return Some(Value::Int(value));
    }
    Some(match value {
        ScalarValue::Utf8(Some(value)) => Value::Text(value.clone()),
        ScalarValue::Boolean(Some(value)) => Value::Bool(*value),
        ScalarValue::Binary(Some(value)) => Value::Bytes(value.clone()),
        ScalarValue::Float64(Some(value)) => Value::Float(*value),
        ScalarValue::Float32(Some(value)) => Value::Float(f64::from(*value)),
        ScalarValue::Date32(Some(value)) => Value::Int((*value).into()),
        ScalarValue::TimestampMicrosecond(Some(value), _) => Value::Int((*value).into()),
        ScalarValue::Decimal128(Some(value), ..) => Value::Int(*value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
