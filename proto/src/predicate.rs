//! The conjunction of column comparisons that prunes chunks, segments and blocks.
//!
//! It only ever says what can be left out: rows that pass it are still filtered exactly by the plan above the scan.
//! Comparisons follow SQL, so that a NULL in the column never satisfies one.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize};

/// A value that zone maps hold and predicates compare with.
///
/// Timestamps are microseconds and dates are days, both as [`Value::Int`]; decimals are their unscaled number in
/// the column's own scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Integers, timestamps, dates and unscaled decimals.
    Int(i128),
    /// Floats, compared in total order: NaN is the greatest, as in PostgreSQL.
    Float(f64),
    /// Text, compared byte by byte.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Booleans, false before true.
    Bool(bool),
}

impl Value {
    /// Order within a kind; `None` between kinds.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Float(a), Self::Float(b)) => Some(compare_floats(*a, *b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

/// PostgreSQL's order of floats: NaN equals NaN and is greater than all else, and -0 equals 0.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "'{}'", value.replace('\'', "''")),
            Self::Bytes(value) => {
                write!(f, "'\\x")?;
                value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, "'")
            }
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// What a term asks of its column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Test {
    /// Less than.
    Lt(Value),
    /// Less than or equal.
    LtEq(Value),
    /// Greater than.
    Gt(Value),
    /// Greater than or equal.
    GtEq(Value),
    /// Equal to one of these; one value for `=`, none for a contradiction.
    In(Vec<Value>),
    /// NULL.
    IsNull,
    /// Not NULL.
    IsNotNull,
}

/// A test of one column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// Name of the column.
    pub column: String,
    /// What is asked of it.
    pub test: Test,
}

/// A conjunction of terms; without terms everything passes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicate {
    /// All of these must hold.
    pub terms: Vec<Term>,
}

/// What is known of one column in a run of rows.
#[derive(Clone, Copy, Debug)]
pub struct Zone<'a> {
    /// Least value that is not NULL; `None` when unknown or when all are NULL.
    pub min: Option<&'a Value>,
    /// Greatest value that is not NULL.
    pub max: Option<&'a Value>,
    /// Rows in which it is NULL.
    pub nulls: u64,
    /// Rows in all.
    pub rows: u64,
}

impl Test {
    /// Whether some row of the zone may pass. True when in doubt.
    #[must_use]
    pub fn may_pass(&self, zone: Zone<'_>) -> bool {
        let not_null = zone.nulls < zone.rows;
        match self {
            Self::IsNull => zone.nulls > 0,
            Self::IsNotNull => not_null,
            Self::Lt(value) => not_null && edge(zone.min, value, Ordering::is_lt),
            Self::LtEq(value) => not_null && edge(zone.min, value, Ordering::is_le),
            Self::Gt(value) => not_null && edge(zone.max, value, Ordering::is_gt),
            Self::GtEq(value) => not_null && edge(zone.max, value, Ordering::is_ge),
            Self::In(values) => {
                let within = |value| {
                    edge(zone.min, value, Ordering::is_le) && edge(zone.max, value, Ordering::is_ge)
                };
                not_null && values.iter().any(within)
            }
        }
    }
}

/// Whether an edge of a zone stands to `value` as asked; true when the edge is unknown or of another kind.
fn edge(edge: Option<&Value>, value: &Value, asked: fn(Ordering) -> bool) -> bool {
    edge.and_then(|edge| edge.compare(value)).is_none_or(asked)
}

impl Predicate {
    /// Whether some row of a run may pass, where `zone` tells what is known of a column; `None` for nothing.
    #[must_use]
    pub fn may_pass<'a>(&self, zone: impl Fn(&str) -> Option<Zone<'a>>) -> bool {
        let passes = |term: &Term| zone(&term.column).is_none_or(|zone| term.test.may_pass(zone));
        self.terms.iter().all(passes)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = &self.column;
        match &self.test {
            Test::Lt(value) => write!(f, "{column} < {value}"),
            Test::LtEq(value) => write!(f, "{column} <= {value}"),
            Test::Gt(value) => write!(f, "{column} > {value}"),
            Test::GtEq(value) => write!(f, "{column} >= {value}"),
            Test::In(values) => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                write!(f, "{column} in ({})", values.join(", "))
            }
            Test::IsNull => write!(f, "{column} is null"),
            Test::IsNotNull => write!(f, "{column} is not null"),
        }
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return write!(f, "true");
        }
        let terms: Vec<String> = self.terms.iter().map(Term::to_string).collect();
        write!(f, "{}", terms.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tests() -> impl Strategy<Value = Test> {
        let value = || (-5i128..5).prop_map(Value::Int);
        prop_oneof![
            value().prop_map(Test::Lt),
            value().prop_map(Test::LtEq),
            value().prop_map(Test::Gt),
            value().prop_map(Test::GtEq),
            proptest::collection::vec(value(), 0..3).prop_map(Test::In),
            Just(Test::IsNull),
            Just(Test::IsNotNull),
        ]
    }

    fn row_passes(test: &Test, row: Option<i128>) -> bool {
        let Some(row) = row.map(Value::Int) else { return matches!(test, Test::IsNull) };
        let order = |value: &Value| row.compare(value).expect("both are integers");
        match test {
            Test::Lt(value) => order(value).is_lt(),
            Test::LtEq(value) => order(value).is_le(),
            Test::Gt(value) => order(value).is_gt(),
            Test::GtEq(value) => order(value).is_ge(),
            Test::In(values) => values.iter().any(|value| order(value).is_eq()),
            Test::IsNull => false,
            Test::IsNotNull => true,
        }
    }

    proptest! {
        #[test]
        fn pruning_never_loses_a_row(
            test in tests(),
            rows in proptest::collection::vec(proptest::option::of(-5i128..5), 1..6),
        ) {
            let present: Vec<Value> = rows.iter().flatten().copied().map(Value::Int).collect();
            let order = |a: &&Value, b: &&Value| a.compare(b).expect("both are integers");
            let zone = Zone {
                min: present.iter().min_by(order),
                max: present.iter().max_by(order),
                nulls: (rows.len() - present.len()) as u64,
                rows: rows.len() as u64,
            };
            if rows.iter().any(|row| row_passes(&test, *row)) {
                prop_assert!(test.may_pass(zone));
            }
        }
    }

    #[test]
    fn nan_is_the_greatest() {
        let nan = Value::Float(f64::NAN);
        assert_eq!(nan.compare(&Value::Float(f64::INFINITY)), Some(Ordering::Greater));
        assert_eq!(nan.compare(&nan), Some(Ordering::Equal));
        assert_eq!(Value::Float(-0.0).compare(&Value::Float(0.0)), Some(Ordering::Equal));
        assert_eq!(nan.compare(&Value::Bool(true)), None);
    }

    #[test]
    fn kinds_that_do_not_compare_prune_nothing() {
        let (min, max) = (Value::Int(1), Value::Int(2));
        let zone = Zone { min: Some(&min), max: Some(&max), nulls: 0, rows: 2 };
        assert!(Test::Lt(Value::Text("a".into())).may_pass(zone));
    }
}
