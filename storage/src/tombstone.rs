//! Deletes that are not materialised yet: rows of up to a snapshot that pass a predicate.
//!
//! A tombstone travels, is journaled and is committed as a part of a transaction, like rows. It takes effect at its
//! own commit number `csn`: a scan at a snapshot from there on does not see the rows that were committed up to the
//! tombstone's own snapshot and pass its predicate. Every replica evaluates it over the same rows, whatever their
//! layout, so that replicas agree.
//!
//! ```text
//! payload  0  "HTdl"     4    no payload of rows begins so: those are zstd frames
//!          4  version    1    1
//!          5  snapshot and predicate, MessagePack
//! ```
//!
//! - A column that the rows lack is NULL in them. A test with a value of another kind than its column passes no row:
//!   nothing is ever deleted by mistake.
//! - Two deletes that do not know of each other never both commit: one is refused at prepare (see `Replicas`).

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, BooleanArray, RecordBatch, new_null_array},
    buffer::BooleanBuffer,
    compute::filter_record_batch,
    datatypes::DataType,
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
    segment::Segment,
};

const MAGIC: [u8; 4] = *b"HTdl";
const VERSION: u8 = 1;
/// Most bytes of an encoded tombstone.
const BYTES_MAX: usize = 64 << 10;

/// A delete: rows committed up to `snapshot` that pass the predicate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Rows that were committed later stay.
    pub snapshot: Csn,
    /// The predicate, exactly: not only what may be left out.
    pub predicate: Predicate,
}

/// A tombstone with its place among the commits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delete {
    /// It takes effect at snapshots from here on.
    pub(crate) csn: Csn,
    pub(crate) tombstone: Tombstone,
}

impl Tombstone {
    /// The payload of a part: it has no rows.
    pub fn encode(&self) -> Result<Encoded, Error> {
        let mut payload = MAGIC.to_vec();
        payload.push(VERSION);
        rmp_serde::encode::write(&mut payload, self)
            .map_err(|error| Error::Invalid(format!("encode a delete: {error}")))?;
        if payload.len() > BYTES_MAX {
            let bytes = payload.len();
            let what = format!("a delete of {bytes} bytes is larger than {BYTES_MAX}");
            return Err(Error::Invalid(what));
        }
        Ok(Encoded {
            rows: 0,
            hash: crate::batch::hash(&payload),
            decoded_bytes: payload.len() as u32,
            payload: payload.into(),
        })
    }

    /// The tombstone in a payload; `None` when the payload is of rows.
    pub(crate) fn decode(payload: &[u8]) -> Option<Result<Self, Error>> {
        let rest = payload.strip_prefix(&MAGIC)?;
        let wrong = |what: &str| Error::Invalid(format!("cannot decode a delete: {what}"));
        Some(match rest.split_first() {
            _ if payload.len() > BYTES_MAX => Err(wrong("it is too large")),
            Some((&VERSION, body)) => {
                rmp_serde::from_slice(body).map_err(|error| wrong(&error.to_string()))
            }
            Some((version, _)) => Err(wrong(&format!("its version is {version}"))),
            None => Err(wrong("it ends early")),
        })
    }

    /// Whether it may take rows of a segment.
    pub(crate) fn concerns(&self, segment: &Segment) -> bool {
        segment.csn_range().0 <= self.snapshot
            && self.predicate.may_pass(|column| segment.zone(column))
    }

    /// Whether it may take rows of a block.
    pub(crate) fn concerns_block(&self, segment: &Segment, block: usize) -> bool {
        let early = segment.block_csn_range(block).is_none_or(|(min, _)| min <= self.snapshot);
        early && self.predicate.may_pass(|column| segment.block_zone(block, column))
    }

    /// Which rows pass the predicate, where `column` gives their values; `None` for a column that they lack.
    pub(crate) fn passing(
        &self,
        rows: usize,
        mut column: impl FnMut(&str) -> Result<Option<ArrayRef>, Error>,
    ) -> Result<BooleanBuffer, Error> {
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

    /// Which rows of a batch in memory pass the predicate.
    fn passing_batch(&self, batch: &RecordBatch) -> Result<BooleanBuffer, Error> {
        let column = |name: &str| Ok(batch.column_by_name(name).map(Arc::clone));
        self.passing(batch.num_rows(), column)
    }

    /// Which rows it leaves of a batch whose rows are of these commits; `None` for all.
    pub(crate) fn kept(
        &self,
        batch: &RecordBatch,
        csns: &[u64],
    ) -> Result<Option<BooleanArray>, Error> {
        Ok(kept(&self.passing_batch(batch)?, self.snapshot, csns))
    }

    /// The rows it leaves of batches that were committed together at `csn`.
    pub(crate) fn leave(
        &self,
        batches: Vec<RecordBatch>,
        csn: Csn,
    ) -> Result<Vec<RecordBatch>, Error> {
        if csn > self.snapshot {
            return Ok(batches);
        }
        let left = batches.into_iter().map(|batch| {
            let mask = BooleanArray::new(!&self.passing_batch(&batch)?, None);
            filter_record_batch(&batch, &mask)
                .map_err(|error| Error::Invalid(format!("leave out deleted rows: {error}")))
        });
        left.collect()
    }
}

/// Of rows that passed a predicate those of commits up to the snapshot are gone; `None` when all are left.
pub(crate) fn kept(passed: &BooleanBuffer, snapshot: Csn, csns: &[u64]) -> Option<BooleanArray> {
    let early: BooleanBuffer = csns.iter().map(|csn| *csn <= snapshot.0).collect();
    let gone = passed & &early;
    (gone.count_set_bits() > 0).then(|| BooleanArray::new(!&gone, None))
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
        Tombstone { snapshot: Csn(10), predicate: Predicate { terms } }
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
        let kept = tombstone(terms).kept(&batch(), &csns).expect("kinds agree");
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
