//! Rows on their way: how record batches travel from the access node into the journal.
//!
//! A payload is an Arrow IPC stream of one or more record batches of one schema, zstd compressed as a whole. The
//! buffers of decoded batches all lie in the one decompressed stream: nothing is copied.
//!
//! Texts may travel, and stay in memory, as a dictionary with 16-bit keys ([`texts_type`]): the tags of a metric take two
//! bytes a row instead of a dozen, on the wire, in the journal and in memory. [`plain_schema`] says what they are.
//!
//! Payloads come over the network. `batch/ipc.rs` checks every claim in a stream before Arrow acts on it, since Arrow's
//! reader panics on what it does not expect; only column types of `hypertide_proto::schema` pass.

mod ipc;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Schema, SchemaRef},
    error::ArrowError,
    ipc::writer::{IpcWriteOptions, StreamWriter},
};
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::{Error, codec};

/// Most bytes of a payload after decompression.
pub const DECODED_BYTES_MAX: usize = 256 << 20;
/// Most rows of a payload.
pub const ROWS_MAX: usize = 1 << 24;
/// Most entries of a dictionary: as many as 16-bit keys can tell apart.
pub const DICTIONARY_ENTRIES_MAX: usize = 1 << 16;

const _: () = assert!(DECODED_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(ROWS_MAX <= u32::MAX as usize);
// A value that came in as a payload must fit a block of a segment.
const _: () = assert!(DECODED_BYTES_MAX <= codec::VALUE_BYTES_MAX);

/// An encoded payload and what is needed to check it.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Rows in it.
    pub rows: u32,
    /// xxh3-128 of `payload`.
    pub hash: u128,
    /// Compressed bytes.
    pub payload: Bytes,
    /// Size after decompression.
    pub decoded_bytes: u32,
}

/// The type of texts that are kept as a dictionary.
#[must_use]
pub fn texts_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt16), Box::new(DataType::Utf8))
}

/// Whether columns of the type can travel.
fn supports(data_type: &DataType) -> bool {
    codec::supports(data_type) || *data_type == texts_type()
}

/// The type of a column as its table has it: without a dictionary.
#[must_use]
pub fn plain_type(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

/// The schema of rows as their table has it: without dictionaries.
#[must_use]
pub fn plain_schema(schema: &SchemaRef) -> SchemaRef {
    if !schema.fields().iter().any(|field| matches!(field.data_type(), DataType::Dictionary(..))) {
        return Arc::clone(schema);
    }
    let fields = schema.fields().iter().map(|field| {
        let plain = plain_type(field.data_type()).clone();
        field.as_ref().clone().with_data_type(plain)
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

/// Encodes a batch. Fails when it has more rows or bytes than a payload may, or a type that no table has: the
/// sender is to split the batch.
pub fn encode(batch: &RecordBatch) -> Result<Encoded, Error> {
    check(batch)?;
    // A generous guess, so that the stream is rarely moved while it grows.
    let guess = bytes_of(batch) + 4096 + batch.num_columns() * 512;
    let stream = write(batch, guess.min(DECODED_BYTES_MAX))
        .map_err(|error| Error::Invalid(format!("cannot encode rows: {error}")))?;
    if stream.len() > DECODED_BYTES_MAX {
        let bytes = stream.len();
        let what = format!("a batch of {bytes} bytes is larger than {DECODED_BYTES_MAX}");
        return Err(Error::Invalid(what));
    }
    let mut payload = codec::compress(&stream).map_err(|error| Error::Disk {
        action: "compress rows".to_owned(),
        source: Box::new(error),
    })?;
    // The room for the worst case would otherwise stay taken as long as the payload waits.
    payload.shrink_to_fit();
    Ok(Encoded {
        rows: batch.num_rows() as u32,
        hash: hash(&payload),
        payload: payload.into(),
        decoded_bytes: stream.len() as u32,
    })
}

/// Bytes that the rows of a batch take, without what they share with other rows.
#[must_use]
pub fn bytes_of(batch: &RecordBatch) -> usize {
    let sizes = batch.columns().iter();
    sizes.map(|array| array.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

/// The hash of a payload, as [`Encoded::hash`] has it.
#[must_use]
pub fn hash(payload: &[u8]) -> u128 {
    xxh3_128(payload)
}

fn check(batch: &RecordBatch) -> Result<(), Error> {
    if batch.num_rows() > ROWS_MAX {
        let rows = batch.num_rows();
        return Err(Error::Invalid(format!("a batch of {rows} rows is larger than {ROWS_MAX}")));
    }
    for field in batch.schema_ref().fields() {
        if !supports(field.data_type()) {
            let (name, data_type) = (field.name(), field.data_type());
            let what = format!("column \"{name}\": rows cannot have the type {data_type}");
            return Err(Error::Invalid(what));
        }
    }
    Ok(())
}

fn write(batch: &RecordBatch, capacity: usize) -> Result<Vec<u8>, ArrowError> {
    let options = IpcWriteOptions::default();
    let out = Vec::with_capacity(capacity);
    let mut writer = StreamWriter::try_new_with_options(out, batch.schema_ref(), options)?;
    writer.write(batch)?;
    writer.into_inner()
}

/// Decodes a payload, which may come from anywhere: every claim in it is checked.
pub fn decode(payload: &[u8], decoded_bytes: u32) -> Result<Vec<RecordBatch>, Error> {
    let bytes = decoded_bytes as usize;
    if bytes > DECODED_BYTES_MAX {
        let what = format!("a payload of {bytes} bytes is larger than {DECODED_BYTES_MAX}");
        return Err(Error::Invalid(what));
    }
    let stream = codec::decompress(payload, bytes)
        .map_err(|error| Error::Invalid(format!("cannot decompress rows: {error}")))?;
    ipc::read(stream.into(), ROWS_MAX)
        .map_err(|what| Error::Invalid(format!("cannot decode rows: {what}")))
}
