//! Splitting against its laws: no row is lost or doubled, every row lies in the box of its group's point, and pruning
//! by a row's own values always keeps its chunk.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use datafusion::{
    common::ScalarValue,
    logical_expr::{Expr, col, lit},
};
use hypertide_meta::catalog::{Chunk, ChunkState, Dimension, Hypertable};
use hypertide_proto::{
    ids::{ChunkId, Csn, DimensionId, Epoch, Generation, NodeId, TableId},
    partition::bucket_range,
    schema::{Column, ColumnType, TableSchema, UTC},
    time::TimeRange,
};
use proptest::prelude::*;

use super::*;
use crate::prune::prune;

const INTERVAL: i64 = 1000;

fn table(buckets: usize) -> Table {
    let column = |name: &str, column_type| Column::new(name, column_type);
    let dimension = |number: u64, column: &str, rule| Dimension {
        id: DimensionId(number),
        column: column.into(),
        rule,
    };
    Table {
        id: TableId(1),
        schema: "public".into(),
        name: "t".into(),
        owner: "ann".into(),
        columns: TableSchema {
            columns: vec![
                column("time", ColumnType::TimestampTz),
                column("place", ColumnType::Text),
                column("number", ColumnType::BigInt),
            ],
            keys: Vec::new(),
        },
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
                dimension(2, "place", Rule::Hash { buckets: vec![vec![NodeId(1)]; buckets] }),
            ],
            replication_factor: 1,
            min_in_sync: 1,
            data_nodes: vec![NodeId(1)],
            chunk_schema: "c".into(),
            chunk_prefix: "p".into(),
            next_chunk: 1,
        }),
        created_ms: 0,
    }
}

fn rows(values: &[(i64, Option<String>)]) -> RecordBatch {
    let times: TimestampMicrosecondArray = values.iter().map(|(time, _)| Some(*time)).collect();
    let places: StringArray = values.iter().map(|(_, place)| place.as_deref()).collect();
    let numbers: Int64Array = (0..values.len() as i64).map(Some).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(times.with_timezone(UTC)), Arc::new(places), Arc::new(numbers)];
    RecordBatch::try_new(table(1).columns.to_arrow(), columns).expect("the columns fit")
}

fn numbers(group: &Group) -> Vec<i64> {
    group.rows.iter().map(|row| i64::from(*row)).collect()
}

/// The chunk of a group, as the catalog would make it.
fn chunk(group: &Group, buckets: u16) -> Chunk {
    let time = TimeRange::aligned(group.point[0], INTERVAL);
    let place = bucket_range(bucket(group.point[1], buckets), buckets);
    Chunk {
        id: ChunkId(1),
        table: TableId(1),
        name: "c".into(),
        slices: vec![time, place],
        generation: Generation(1),
        state: ChunkState::Open,
        epoch: Epoch(0),
        in_sync: Vec::new(),
        joining: Vec::new(),
        left: Vec::new(),
        last_csn: Csn(0),
        chain: 0,
        rows: 0,
        compressed: None,
        asked: None,
        lost: Vec::new(),
        created_ms: 0,
    }
}

proptest! {
    #[test]
    fn rows_lie_where_pruning_looks_for_them(
        values in proptest::collection::vec((-5_000i64..5_000, proptest::option::of("[a-f]{0,2}")), 1..40),
        buckets in 1u16..6,
    ) {
        let table = table(buckets.into());
        let groups = split(&table, &Edges::default(), &rows(&values)).expect("the rows are right");
        let mut seen: Vec<i64> = groups.iter().flat_map(numbers).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..values.len() as i64).collect::<Vec<_>>());
        for group in &groups {
            let chunk = chunk(group, buckets);
            for number in numbers(group) {
                let (time, place) = &values[number as usize];
                prop_assert!(chunk.slices[0].contains(*time));
                let moment = ScalarValue::TimestampMicrosecond(Some(*time), Some(UTC.into()));
                let place: Expr = match place {
                    Some(place) => col("place").eq(lit(place.clone())),
                    None => col("place").is_null(),
                };
                let filters = [col("time").eq(lit(moment)), place];
                prop_assert_eq!(prune(&table, &filters, std::iter::once(&chunk)).len(), 1);
            }
        }
        let mut keys: Vec<&Vec<i64>> = groups.iter().map(|group| &group.key).collect();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(keys.len(), groups.len());
    }
}

proptest! {
    /// Chunks from before a change of partitions and interval hold all rows of a group or none.
    #[test]
    fn rows_are_told_apart_by_the_edges_of_older_chunks(
        values in proptest::collection::vec((-5_000i64..5_000, proptest::option::of("[a-f]{0,2}")), 1..60),
        older in 1usize..10,
        (before, after) in (1u16..6, 1u16..6),
        width in 150i64..2_500,
    ) {
        let mut earlier = table(before.into());
        if let TableKind::Hypertable(made) = &mut earlier.kind
            && let Rule::Time { interval, .. } = &mut made.dimensions[0].rule
        {
            *interval = width;
        }
        let rows = rows(&values);
        let groups = split(&earlier, &Edges::default(), &rows).expect("the rows are right");
        let chunks: Vec<Chunk> = groups.iter().take(older).map(|group| {
            let dimensions = &earlier.hypertable().expect("it is one").dimensions;
            let sides = dimensions.iter().zip(&group.point);
            let slices = sides.map(|(dimension, at)| dimension.slice(*at)).collect();
            Chunk { slices, ..chunk(group, before) }
        }).collect();
        prop_assert!(groups.iter().zip(&chunks).all(|(group, chunk)| group.lies_in(chunk)));

        let now = table(after.into());
        let edges = Edges::of(&now, chunks.iter());
        let groups = split(&now, &edges, &rows).expect("the rows are right");
        let points = |group: &Group| -> Vec<(i64, i64)> {
            let hash_of = |place: &Option<String>| hash(place.as_deref().map_or(HashKey::Null, HashKey::Text));
            let point = |row: &u32| &values[*row as usize];
            group.rows.iter().map(point).map(|(time, place)| (*time, hash_of(place))).collect()
        };
        for (group, chunk) in groups.iter().flat_map(|group| chunks.iter().map(move |chunk| (group, chunk))) {
            let within = |(time, hash): &(i64, i64)| {
                chunk.slices[0].contains(*time) && chunk.slices[1].contains(*hash)
            };
            let inside = points(group).iter().filter(|point| within(point)).count();
            prop_assert!(inside == 0 || inside == group.rows.len());
            prop_assert_eq!(group.lies_in(chunk), inside > 0);
        }
    }
}

#[test]
fn a_dictionary_lies_where_its_texts_do() {
    let values: Vec<(i64, Option<String>)> = (0i64..100)
        .map(|number| (number * 90, (number % 7 != 0).then(|| format!("p{}", number % 30))))
        .collect();
    let plain = rows(&values);
    let mut columns = plain.columns().to_vec();
    let places = hypertide_storage::batch::texts_type();
    columns[1] = cast(&columns[1], &places).expect("there are few");
    let names = ["time", "place", "number"].into_iter().zip(columns);
    let batch = RecordBatch::try_from_iter(names).expect("the columns fit");
    let groups = split(&table(4), &Edges::default(), &batch).expect("the rows are right");
    assert!(groups.len() > NEAR_GROUPS, "{}", groups.len());
    assert_eq!(groups, split(&table(4), &Edges::default(), &plain).expect("the rows are right"));
}

#[test]
fn slices_are_those_of_a_division() {
    let times = [i64::MIN, -1001, -1000, -1, 0, 999, 1000, i64::MAX, i64::MIN, 5];
    let expected: Vec<i64> = times.iter().map(|time| time.div_euclid(1000)).collect();
    assert_eq!(slices(&times, 1000), expected);
}

#[test]
fn times_that_lie_in_no_chunk_are_refused() {
    let infinite =
        split(&table(1), &Edges::default(), &rows(&[(i64::MAX, None)])).expect_err("infinity");
    assert_eq!(infinite.state.0, "22008");
    let mut columns = rows(&[(1, None)]).columns().to_vec();
    columns[0] = arrow::array::new_null_array(columns[0].data_type(), 1);
    let batch =
        RecordBatch::try_new(table(1).columns.to_arrow(), columns).expect("the columns fit");
    let error = split(&table(1), &Edges::default(), &batch).expect_err("NULL");
    assert_eq!(error.state.0, "23502");
    assert_eq!(error.message, "null value in column \"time\" violates not-null constraint");
}
