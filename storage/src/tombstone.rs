//! Deletes that are not materialised yet: rows of up to a snapshot that are named, or that pass a predicate.
//!
//! A tombstone travels, is journaled and is committed as a part of a transaction, like rows. It takes effect at its
//! own commit number `csn`: a scan at a snapshot from there on does not see the rows that it takes, which are of commits
//! up to the tombstone's own snapshot. Every replica evaluates it over the same rows, whatever their layout, so that
//! replicas agree.
//!
//! Which rows it takes is said by their values, not by where they lie: a statement deletes all rows with the same values
//! in the columns that it looked at, or none. So the rows that pass any condition, however it was computed, are named
//! by the different values that those columns have in them.
//!
//! ```text
//! payload  0  "HTdl"     4    no payload of rows begins so: those are zstd frames
//!          4  version    1    2
//!          5  tombstone       MessagePack; the values of named rows are a payload of rows
//! ```
//!
//! - Of its own transaction it takes the rows of parts with smaller numbers: they are gone when the commit is known.
//! - A column that the rows lack has the value of older rows in them where rows are named, and is NULL for a predicate.
//!   A test with a value of another kind than its column passes no row: nothing is ever deleted by mistake.
//! - It also reserves the places that its transaction has looked at, given as hashes, or the whole chunk: of two
//!   transactions with a place in common that do not know of each other one is refused at prepare (see `Replicas`). A
//!   tombstone that only reserves takes no row.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array},
    buffer::BooleanBuffer,
    compute::{cast, filter_record_batch},
    datatypes::{DataType, Field, FieldRef},
    row::{RowConverter, SortField},
};
use hypertide_proto::{
    ids::Csn,
    predicate::{Predicate, Test, Value},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    batch::{self, Encoded},
    exact,
    scan::older,
    segment::Segment,
};

mod list;

pub use self::list::Listed;

const MAGIC: [u8; 4] = *b"HTdl";
const VERSION: u8 = 2;
/// Most bytes of an encoded tombstone.
pub const TOMBSTONE_BYTES_MAX: usize = 4 << 20;

/// A delete: rows committed up to `snapshot` that pass the predicate and, if rows are named, are among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Rows that were committed later stay.
    pub snapshot: Csn,
    /// Hashes of the places that it reserves, in order; `None` for the whole chunk.
    pub touched: Option<Vec<u64>>,
    /// The predicate, exactly: not only what may be left out.
    pub predicate: Predicate,
    /// The rows that are named; all that pass the predicate when none are.
    pub listed: Option<Listed>,
}

/// A tombstone with its place among the commits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delete {
    /// It takes effect at snapshots from here on.
    pub(crate) csn: Csn,
    pub(crate) tombstone: Tombstone,
}

impl Tombstone {
    /// A delete of all rows that pass a predicate, which reserves the whole chunk.
    #[must_use]
    pub fn passing(snapshot: Csn, predicate: Predicate) -> Self {
        Self { snapshot, touched: None, predicate, listed: None }
    }

    /// A reservation that takes no row.
    #[must_use]
    pub fn reserving(snapshot: Csn, touched: Option<Vec<u64>>) -> Self {
        let listed = Some(Listed::default());
        Self { snapshot, touched, predicate: Predicate::default(), listed }
    }

    /// The payload of a part: it has no rows.
    pub fn encode(&self) -> Result<Encoded, Error> {
        let mut payload = MAGIC.to_vec();
        payload.push(VERSION);
        rmp_serde::encode::write(&mut payload, self)
            .map_err(|error| Error::Invalid(format!("encode a delete: {error}")))?;
        if payload.len() > TOMBSTONE_BYTES_MAX {
            let bytes = payload.len();
            let what = format!("a delete of {bytes} bytes is larger than {TOMBSTONE_BYTES_MAX}");
            return Err(Error::Invalid(what));
        }
        let listed = self.listed.as_ref().map_or(0, Listed::decoded_bytes);
        Ok(Encoded {
            rows: 0,
            hash: crate::batch::hash(&payload),
            decoded_bytes: payload.len() as u32 + listed,
            payload: payload.into(),
        })
    }

    /// The tombstone in a payload; `None` when the payload is of rows.
    pub(crate) fn decode(payload: &[u8]) -> Option<Result<Self, Error>> {
        let rest = payload.strip_prefix(&MAGIC)?;
        let wrong = |what: &str| Error::Invalid(format!("cannot decode a delete: {what}"));
        Some(match rest.split_first() {
            _ if payload.len() > TOMBSTONE_BYTES_MAX => Err(wrong("it is too large")),
            Some((&VERSION, body)) => match rmp_serde::from_slice::<Self>(body) {
                Ok(tombstone) => tombstone.checked(),
                Err(error) => Err(wrong(&error.to_string())),
            },
            Some((version, _)) => Err(wrong(&format!("its version is {version}"))),
            None => Err(wrong("it ends early")),
        })
    }

    /// The same, after a look at what only a use of it would show to be wrong.
    fn checked(self) -> Result<Self, Error> {
        if let Some(touched) = &self.touched
            && !touched.is_sorted()
        {
            let what = "cannot decode a delete: its places are not in order";
            return Err(Error::Invalid(what.to_owned()));
        }
        if let Some(listed) = &self.listed {
            listed.values()?;
        }
        Ok(self)
    }

    /// Whether it may take any row: one that only reserves does not.
    pub(crate) fn takes_rows(&self) -> bool {
        self.listed.as_ref().is_none_or(|listed| listed.rows() > 0)
    }

    /// Whether the two have a place in common.
    pub(crate) fn meets(&self, other: Option<&[u64]>) -> bool {
        let (Some(own), Some(other)) = (self.touched.as_deref(), other) else { return true };
        let (few, many) = if own.len() < other.len() { (own, other) } else { (other, own) };
        few.iter().any(|place| many.binary_search(place).is_ok())
    }

    /// The same without what it reserves, which is of no use after the commit.
    pub(crate) fn without_places(&self) -> Self {
        let Self { snapshot, predicate, listed, .. } = self.clone();
        Self { snapshot, touched: Some(Vec::new()), predicate, listed }
    }

    /// Whether it may take rows of a segment.
    fn concerns(&self, segment: &Segment) -> bool {
        segment.csn_range().0 <= self.snapshot
            && self.predicate.may_pass(|column| segment.zone(column))
    }

    /// Whether it may take rows of a block.
    fn concerns_block(&self, segment: &Segment, block: usize) -> bool {
        let early = segment.block_csn_range(block).is_none_or(|(min, _)| min <= self.snapshot);
        early && self.predicate.may_pass(|column| segment.block_zone(block, column))
    }

    /// Which rows pass the predicate, where `column` gives their values; `None` for a column that they lack.
    fn passed(&self, rows: usize, column: &mut Column<'_>) -> Result<BooleanBuffer, Error> {
        let mut passed = BooleanBuffer::new_set(rows);
        for term in &self.predicate.terms {
            let array = column(&term.column)?;
            let array = array.unwrap_or_else(|| new_null_array(&DataType::Null, rows));
            let absent = array.data_type().is_null();
            let possible = match &term.test {
                Test::IsNull => true,
                Test::IsNotNull => !absent,
                test => !absent && fits(test, batch::plain_type(array.data_type())),
            };
            if !possible {
                return Ok(BooleanBuffer::new_unset(rows));
            }
            passed = &passed & exact::passing(&term.test, array.as_ref()).values();
        }
        Ok(passed)
    }

    /// The rows that it leaves of an earlier part of its own transaction.
    pub(crate) fn leave_own(&self, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, Error> {
        // Whatever the snapshot: the transaction knows its own rows.
        Deletes::of(vec![self.clone()]).leave(batches, Csn(0))
    }
}

/// Gives the values of a column; `None` when the rows lack it.
type Column<'a> = dyn FnMut(&str) -> Result<Option<ArrayRef>, Error> + 'a;

/// Deletes that are applied together. However many rows are named in them, each row is looked up once for every set of
/// columns that they are named by. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deletes(Arc<Together>);

#[derive(Debug, Default)]
struct Together {
    all: Vec<Tombstone>,
    tables: OnceLock<Vec<Table>>,
}

/// Named rows by their values in a set of columns, with the greatest snapshot that one is deleted as of.
#[derive(Debug)]
struct Table {
    columns: Vec<FieldRef>,
    rows: HashMap<Box<[u8]>, Csn>,
}

impl Deletes {
    pub(crate) fn of(mut all: Vec<Tombstone>) -> Self {
        all.retain(Tombstone::takes_rows);
        Self(Arc::new(Together { all, tables: OnceLock::new() }))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.all.is_empty()
    }

    /// Whether they may take rows of a segment.
    pub(crate) fn concern(&self, segment: &Segment) -> bool {
        self.0.all.iter().any(|delete| delete.concerns(segment))
    }

    /// Whether they may take rows of a block.
    pub(crate) fn concern_block(&self, segment: &Segment, block: usize) -> bool {
        self.0.all.iter().any(|delete| delete.concerns_block(segment, block))
    }

    /// Which rows they leave of those whose values `column` gives, by the commit of each; `None` for all.
    pub(crate) fn kept(
        &self,
        csns: &[u64],
        mut column: impl FnMut(&str) -> Result<Option<ArrayRef>, Error>,
    ) -> Result<Option<BooleanArray>, Error> {
        let mut gone = BooleanBuffer::new_unset(csns.len());
        for delete in self.0.all.iter().filter(|delete| delete.listed.is_none()) {
            let passed = delete.passed(csns.len(), &mut column)?;
            let early: BooleanBuffer = csns.iter().map(|csn| *csn <= delete.snapshot.0).collect();
            gone = &gone | &(&passed & &early);
        }
        for table in self.tables()? {
            gone = &gone | &table.gone(csns, &mut column)?;
        }
        Ok((gone.count_set_bits() > 0).then(|| BooleanArray::new(!&gone, None)))
    }

    /// The rows that they leave of batches that were committed together at `csn`.
    pub(crate) fn leave(
        &self,
        batches: Vec<RecordBatch>,
        csn: Csn,
    ) -> Result<Vec<RecordBatch>, Error> {
        if self.0.all.iter().all(|delete| csn > delete.snapshot) {
            return Ok(batches);
        }
        let left = batches.into_iter().map(|batch| {
            let csns = vec![csn.0; batch.num_rows()];
            let column = |name: &str| Ok(batch.column_by_name(name).map(Arc::clone));
            match self.kept(&csns, column)? {
                None => Ok(batch),
                Some(kept) => filter_record_batch(&batch, &kept)
                    .map_err(|error| Error::Invalid(format!("leave out deleted rows: {error}"))),
            }
        });
        left.collect()
    }

    /// The named rows, put together at their first use.
    fn tables(&self) -> Result<&[Table], Error> {
        if let Some(tables) = self.0.tables.get() {
            return Ok(tables);
        }
        let mut tables: Vec<Table> = Vec::new();
        for Tombstone { snapshot, listed, .. } in &self.0.all {
            let Some(listed) = listed else { continue };
            let values = listed.values()?;
            let found = tables.iter().position(|table| table.columns == values.columns);
            let at = found.unwrap_or_else(|| {
                let columns = values.columns.clone();
                tables.push(Table { columns, rows: HashMap::new() });
                tables.len() - 1
            });
            let Some(table) = tables.get_mut(at) else { continue };
            for row in &values.rows {
                let last = table.rows.entry(row.clone()).or_insert(*snapshot);
                *last = (*last).max(*snapshot);
            }
        }
        Ok(self.0.tables.get_or_init(|| tables))
    }
}

impl Table {
    /// Which rows are among the named ones.
    fn gone(&self, csns: &[u64], column: &mut Column<'_>) -> Result<BooleanBuffer, Error> {
        let none = || BooleanBuffer::new_unset(csns.len());
        let mut arrays = Vec::with_capacity(self.columns.len());
        for field in &self.columns {
            let array = match column(field.name())? {
                Some(array) => plain(&array)?,
                None => older(field, csns.len())?,
            };
            if array.data_type() != field.data_type() {
                return Ok(none());
            }
            arrays.push(array);
        }
        let failed = |error| Error::Invalid(format!("compare rows with deleted ones: {error}"));
        let rows = converter(&self.columns)?.convert_columns(&arrays).map_err(failed)?;
        let gone = rows.iter().zip(csns).map(|(row, csn)| {
            let last = self.rows.get(row.as_ref());
            last.is_some_and(|last| *csn <= last.0)
        });
        Ok(gone.collect())
    }
}

/// What tells rows of these columns apart.
fn converter(columns: &[FieldRef]) -> Result<RowConverter, Error> {
    let sort = |field: &FieldRef| SortField::new(field.data_type().clone());
    RowConverter::new(columns.iter().map(sort).collect())
        .map_err(|error| Error::Invalid(format!("columns that rows cannot be named by: {error}")))
}

/// The values without a dictionary.
fn plain(array: &ArrayRef) -> Result<ArrayRef, Error> {
    match batch::plain_type(array.data_type()) {
        plain if plain == array.data_type() => Ok(Arc::clone(array)),
        plain => cast(array, plain)
            .map_err(|error| Error::Invalid(format!("texts of a dictionary: {error}"))),
    }
}

/// The fields of a schema without what does not matter to the rows that are named by them.
fn columns_of(fields: &[FieldRef]) -> Vec<FieldRef> {
    let bare = |field: &FieldRef| {
        let older = field.metadata().get(hypertide_proto::schema::OLDER_ROWS_KEY);
        let metadata =
            older.map(|text| (hypertide_proto::schema::OLDER_ROWS_KEY.to_owned(), text.clone()));
        let plain = batch::plain_type(field.data_type()).clone();
        let field = Field::new(field.name(), plain, true);
        Arc::new(field.with_metadata(metadata.into_iter().collect()))
    };
    fields.iter().map(bare).collect()
}

/// Whether the values of a test are of the kind of a column. One of another kind would let every row pass.
fn fits(test: &Test, data_type: &DataType) -> bool {
    let values: &[Value] = match test {
        Test::Lt(value) | Test::LtEq(value) | Test::Gt(value) | Test::GtEq(value) => {
            std::slice::from_ref(value)
        }
        Test::In(values) => values,
        Test::IsNull | Test::IsNotNull => &[],
    };
    values.iter().all(|value| match value {
        Value::Int(_) => {
            let decimal = matches!(data_type, DataType::Decimal128(..));
            decimal || data_type.is_signed_integer() || data_type.is_temporal()
        }
        Value::Float(_) => data_type.is_floating(),
        Value::Text(_) => *data_type == DataType::Utf8,
        Value::Bytes(_) => *data_type == DataType::Binary,
        Value::Bool(_) => *data_type == DataType::Boolean,
    })
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Float64Array, Int64Array, StringArray},
        datatypes::{Field, Schema},
    };
    use hypertide_proto::predicate::Term;

    use super::*;

    fn tombstone(terms: Vec<(&str, Test)>) -> Tombstone {
        let term = |(column, test): (&str, Test)| Term { column: column.to_owned(), test };
        let terms = terms.into_iter().map(term).collect();
        Tombstone::passing(Csn(10), Predicate { terms })
    }

    fn batch() -> RecordBatch {
        let fields = [
            Field::new("n", DataType::Int64, true),
            Field::new("f", DataType::Float64, true),
            Field::new("s", DataType::Utf8, true),
        ];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])),
            Arc::new(Float64Array::from(vec![Some(f64::NAN), Some(-0.0), None])),
            Arc::new(StringArray::from(vec![Some("a"), Some("b"), None])),
        ];
        RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).expect("it fits")
    }

    fn kept_rows(terms: Vec<(&str, Test)>, csns: [u64; 3]) -> [bool; 3] {
        let batch = batch();
        let column = |name: &str| Ok(batch.column_by_name(name).map(Arc::clone));
        let kept = Deletes::of(vec![tombstone(terms)]).kept(&csns, column).expect("kinds agree");
        let kept: Option<Vec<bool>> = kept.map(|kept| kept.values().iter().collect());
        kept.map_or([true; 3], |kept| kept.try_into().expect("as many as there were"))
    }

    #[test]
    fn only_early_rows_that_pass_go() {
        assert_eq!(kept_rows(vec![], [10, 11, 1]), [false, true, false]);
        let test = Test::GtEq(Value::Int(1));
        assert_eq!(kept_rows(vec![("n", test.clone())], [1, 1, 1]), [false, true, false]);
        assert_eq!(kept_rows(vec![("n", test)], [11, 11, 11]), [true; 3]);
        assert!(!kept_rows(vec![("f", Test::In(vec![Value::Float(0.0)]))], [1; 3])[1]);
        assert!(!kept_rows(vec![("s", Test::IsNull), ("n", Test::IsNotNull)], [1; 3])[2]);
    }

    #[test]
    fn a_column_that_is_not_there_is_null() {
        assert_eq!(kept_rows(vec![("new", Test::IsNull)], [1; 3]), [false; 3]);
        assert_eq!(kept_rows(vec![("new", Test::IsNotNull)], [1; 3]), [true; 3]);
        assert_eq!(kept_rows(vec![("new", Test::Lt(Value::Int(5)))], [1; 3]), [true; 3]);
    }

    #[test]
    fn another_kind_of_value_deletes_nothing() {
        let text = || Value::Text("x".into());
        assert_eq!(kept_rows(vec![("n", Test::Lt(text()))], [1; 3]), [true; 3]);
        assert_eq!(
            kept_rows(vec![("n", Test::In(vec![Value::Int(1), text()]))], [1; 3]),
            [true; 3]
        );
    }

    #[test]
    fn payloads_survive_and_are_told_from_rows() {
        let value = Value::Int(i128::MIN);
        let tombstone = tombstone(vec![("n", Test::Gt(value)), ("f", Test::In(vec![]))]);
        let encoded = tombstone.encode().expect("it is small");
        assert_eq!((encoded.rows, encoded.decoded_bytes as usize), (0, encoded.payload.len()));
        let decoded = Tombstone::decode(&encoded.payload).expect("it is one").expect("it is whole");
        assert_eq!(decoded, tombstone);
        for end in 4..encoded.payload.len() {
            assert!(Tombstone::decode(&encoded.payload[..end]).expect("it is one").is_err());
        }
        let rows = crate::batch::encode(&batch()).expect("it is small");
        assert!(Tombstone::decode(&rows.payload).is_none());
    }
}
