//! The law of pruning: no row that passes the filters lies in a chunk that was left out.

use std::sync::Arc;

use arrow::array::{BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::{
    common::{DFSchema, ToDFSchema, cast::as_boolean_array},
    execution::context::SessionContext,
    logical_expr::Expr,
};
use hypertide_meta::catalog::{Chunk, Dimension, Hypertable, Rule, Table, TableKind};
use hypertide_proto::{
    ids::{DimensionId, NodeId, TableId},
    partition::{HashKey, bucket, bucket_range, hash},
    schema::{Column, ColumnType, TableSchema},
    time::{DAY_MICROS, TimeRange},
};
use proptest::prelude::*;

use super::{condition, predicate};

const PARTITIONS: u16 = 3;
const INTERVAL: i64 = DAY_MICROS;

fn table() -> Table {
    let column = |name: &str, column_type| Column::new(name, column_type);
    let dimension =
        |id, name: &str, rule| Dimension { id: DimensionId(id), column: name.to_owned(), rule };
    let buckets = vec![vec![NodeId(1)]; usize::from(PARTITIONS)];
    let columns = vec![
        column("time", ColumnType::TimestampTz),
        column("location", ColumnType::Text),
        column("value", ColumnType::BigInt),
    ];
    Table {
        id: TableId(1),
        schema: "public".to_owned(),
        name: "t".to_owned(),
        owner: "hypertide".to_owned(),
        columns: TableSchema::of(columns),
        version: 1,
        oldest: 1,
        dropped: Vec::new(),
        kind: TableKind::Hypertable(Hypertable {
            attached_unasked: Vec::new(),
            blocked: Vec::new(),
            compression: None,
            distributed: true,
            dimensions: vec![
                dimension(1, "time", Rule::Time { interval: INTERVAL, now_function: None }),
                dimension(2, "location", Rule::Hash { buckets }),
            ],
            replication_factor: 1,
            min_in_sync: 1,
            data_nodes: vec![NodeId(1)],
            chunk_schema: "s".to_owned(),
            chunk_prefix: "p".to_owned(),
            next_chunk: 1,
        }),
        created_ms: 0,
    }
}

fn session() -> SessionContext {
    let runtime = Arc::new(datafusion::execution::runtime_env::RuntimeEnv::default());
    let state = crate::context::template(runtime).expect("the template is made");
    SessionContext::new_with_state(state)
}

fn schema() -> DFSchema {
    table().columns.to_arrow().as_ref().clone().to_dfschema().expect("it is a schema")
}

/// The filter as the planner hands it over: types coerced, constants folded.
fn filter(sql: &str) -> Expr {
    let (session, schema) = (session(), schema());
    let parsed = session.parse_sql_expr(sql, &schema).expect("it is parsed");
    let info = datafusion::logical_expr::simplify::SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(Arc::clone(session.state().config_options()))
        .with_current_time()
        .build();
    let simplifier = datafusion::optimizer::simplify_expressions::ExprSimplifier::new(info);
    let coerced = simplifier.coerce(parsed, &schema).expect("its types fit");
    simplifier.simplify(coerced).expect("it is simplified")
}

#[derive(Clone, Debug)]
struct Row {
    time: i64,
    location: Option<String>,
    value: i64,
}

impl Row {
    fn slices(&self) -> Vec<TimeRange> {
        let hashed = hash(self.location.as_deref().map_or(HashKey::Null, HashKey::Text));
        let bucket = bucket_range(bucket(hashed, PARTITIONS), PARTITIONS);
        vec![TimeRange::aligned(self.time, INTERVAL), bucket]
    }
}

fn passes(filter: &Expr, row: &Row) -> bool {
    let time = TimestampMicrosecondArray::from(vec![row.time]).with_timezone("UTC");
    let batch = RecordBatch::try_new(
        table().columns.to_arrow(),
        vec![
            Arc::new(time),
            Arc::new(StringArray::from(vec![row.location.as_deref()])),
            Arc::new(Int64Array::from(vec![row.value])),
        ],
    );
    let expr = session().create_physical_expr(filter.clone(), &schema()).expect("it is planned");
    let result = expr.evaluate(&batch.expect("a row")).expect("it is evaluated");
    let array = result.into_array(1).expect("one row");
    let array: &BooleanArray = as_boolean_array(&array).expect("a filter is boolean");
    array.iter().next().flatten().unwrap_or(false)
}

fn rows() -> impl Strategy<Value = Row> {
    let location = prop_oneof![
        Just(None),
        prop::sample::select(vec!["Seattle", "New York", "Berlin", "x"])
            .prop_map(|l| Some(l.to_owned())),
    ];
    // Around 1970 on both sides, on hours and between them.
    let time = (-100i64..100, prop::sample::select(vec![0i64, 1, -1, 1_800_000_000]));
    (time, location, -3i64..3).prop_map(|((hour, off), location, value)| Row {
        time: hour * 3_600_000_000 + off,
        location,
        value,
    })
}

fn terms() -> impl Strategy<Value = String> {
    let op = prop::sample::select(vec!["<", "<=", "=", ">=", ">", "<>"]);
    let stamp = (-4i64..4, 0i64..24).prop_map(|(day, hour)| {
        let time = chrono::DateTime::from_timestamp(day * 86_400 + hour * 3600, 0);
        time.expect("in range").format("%Y-%m-%d %H:%M:%S").to_string()
    });
    let day = (-4i64..4).prop_map(|day| {
        let time = chrono::DateTime::from_timestamp(day * 86_400, 0).expect("in range");
        time.format("%Y-%m-%d").to_string()
    });
    let place = prop::sample::select(vec!["Seattle", "New York", "Berlin", "y"]);
    prop_oneof![
        (op.clone(), stamp.clone()).prop_map(|(op, t)| format!("time {op} TIMESTAMPTZ '{t}Z'")),
        (op.clone(), stamp.clone()).prop_map(|(op, t)| format!("TIMESTAMP '{t}' {op} time")),
        (op.clone(), stamp.clone()).prop_map(|(op, t)| format!("time {op} '{t}'")),
        (op.clone(), day.clone()).prop_map(|(op, d)| format!("time {op} DATE '{d}'")),
        (op.clone(), day.clone()).prop_map(|(op, d)| format!("CAST(time AS DATE) {op} DATE '{d}'")),
        (op.clone(), stamp.clone())
            .prop_map(|(op, t)| format!("time_bucket('7 hours', time) {op} TIMESTAMPTZ '{t}Z'")),
        (op.clone(), stamp.clone()).prop_map(|(op, t)| format!(
            "time_bucket('1 day', time, 'Europe/Berlin') {op} TIMESTAMPTZ '{t}Z'"
        )),
        (op.clone(), stamp.clone())
            .prop_map(|(op, t)| format!("time_bucket('1 month', time) {op} TIMESTAMPTZ '{t}Z'")),
        (op.clone(), day).prop_map(|(op, d)| format!("date_trunc('week', time) {op} DATE '{d}'")),
        (stamp.clone(), stamp).prop_map(|(a, b)| format!("time BETWEEN '{a}' AND '{b}'")),
        (op.clone(), place.clone()).prop_map(|(op, place)| format!("location {op} '{place}'")),
        (place.clone(), place)
            .prop_map(|(a, b)| format!("location IN ('{a}', '{b}', 'p', 'q', 'r')")),
        Just("location IS NULL".to_owned()),
        Just("location IS NOT NULL".to_owned()),
        (op, -3i64..3).prop_map(|(op, value)| format!("value {op} {value}")),
    ]
}

fn filters() -> impl Strategy<Value = String> {
    terms().prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) AND ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) OR ({b})")),
            inner.prop_map(|a| format!("NOT ({a})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn pruning_never_loses_a_row(sql in filters(), rows in prop::collection::vec(rows(), 12)) {
        let (table, filter) = (table(), filter(&sql));
        let condition = condition(&table, std::slice::from_ref(&filter));
        for row in rows {
            if passes(&filter, &row) {
                prop_assert!(condition.may_hold(&row.slices()), "{sql}: {filter} loses {row:?}");
            }
        }
    }
}

/// How many of ten days, times three buckets, are read.
fn kept(sql: &str) -> usize {
    let (table, filter) = (table(), filter(sql));
    let condition = condition(&table, &[filter]);
    let days = (0..10).map(|day| TimeRange::aligned(day * INTERVAL, INTERVAL));
    let all = days.flat_map(|day| (0..PARTITIONS).map(move |b| [day, bucket_range(b, PARTITIONS)]));
    all.filter(|slices| condition.may_hold(slices)).count()
}

#[test]
fn filters_leave_chunks_out() {
    let cases = [
        ("value > 1", 30),
        ("time >= '1970-01-03'", 24),
        ("time < '1970-01-03'", 6),
        ("time <= '1970-01-03'", 9),
        ("time = '1970-01-03 12:00:00'", 3),
        ("time BETWEEN '1970-01-02' AND '1970-01-03'", 6),
        ("location = 'Seattle'", 10),
        ("location = 'Seattle' AND time < '1970-01-02'", 1),
        ("location = 'Seattle' AND location = 'New York' AND value = 1", 0),
        ("time < '1970-01-02' OR time >= '1970-01-09'", 9),
        ("time > '1970-01-05' AND time < '1970-01-04'", 0),
        ("time_bucket('1 day', time) = '1970-01-02'", 3),
        ("time_bucket('1 hour', time) < '1970-01-02'", 6),
        ("time_bucket('1 hour', time) >= '1970-01-10'", 3),
        ("CAST(time AS DATE) = '1970-01-02'", 3),
        ("time > now()", 0),
        ("time > now() - INTERVAL '1 hour' AND value = 1", 0),
        ("location IS NULL", 10),
        ("false", 0),
        ("(location = 'Seattle' AND time < '1970-01-02') OR time >= '1970-01-10'", 4),
        ("location = 'Seattle' OR value = 1", 30),
    ];
    for (sql, expected) in cases {
        assert_eq!(kept(sql), expected, "{sql}: {}", filter(sql));
    }
}

#[test]
fn reference_tables_are_never_pruned() {
    let table = Table { kind: TableKind::Reference, ..table() };
    let condition = condition(&table, &[filter("time > now() AND location = 'x'")]);
    assert!(condition.may_hold(&[]));
    let none: Vec<&Chunk> = Vec::new();
    assert_eq!(super::prune(&table, &[], none.into_iter()).len(), 0);
}

#[test]
fn predicates_keep_only_what_zone_maps_can_answer() {
    let cases = [
        ("value > 1 AND location = 'x'", "value > 1 and location in ('x')"),
        ("value = 1 OR value = 2", "value in (1, 2)"),
        ("value = 1 OR location = 'x'", "true"),
        ("location IN ('a', 'b', 'c', 'd', 'e')", "location in ('a', 'b', 'c', 'd', 'e')"),
        ("value + 1 > 2 AND location IS NULL", "location is null"),
        ("time >= '1970-01-02'", "time >= 86400000000"),
    ];
    for (sql, expected) in cases {
        assert_eq!(predicate(&table(), &[filter(sql)]).to_string(), expected, "{sql}");
    }
}
