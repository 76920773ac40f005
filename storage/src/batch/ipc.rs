//! Arrow IPC streams from others: all that Arrow's reader takes for granted is checked first.
//!
//! ```text
//! message  0xffffffff u32 | length of the metadata u32 | metadata, a flatbuffer | body
//! stream   a message with a schema | messages with dictionaries and record batches | 0xffffffff u32 | 0 u32
//! ```
//!
//! A dictionary stands before the first batch whose column has it, and counts until another takes its place.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch},
    buffer::Buffer,
    datatypes::{DataType, Field, Schema, SchemaRef},
    ipc::{self, convert::fb_to_schema, reader::read_record_batch},
};
use hypertide_proto::schema::COLUMNS_MAX;

use super::DICTIONARY_ENTRIES_MAX;

const CONTINUATION: u32 = u32::MAX;

/// Dictionaries by the number that the fields of the schema have for them.
type Dictionaries = HashMap<i64, ArrayRef>;

/// What is wrong with a stream, in words.
type Wrong = String;

/// Reads all batches of a stream, which together may have at most `rows_max` rows.
pub(super) fn read(stream: Buffer, rows_max: usize) -> Result<Vec<RecordBatch>, Wrong> {
    let mut messages = Messages { rest: stream };
    let first = messages.next()?.ok_or("there is no schema")?;
    let schema = read_schema(&first)?;
    let texts = Arc::new(Schema::new(vec![Field::new("", DataType::Utf8, true)]));
    let (mut batches, mut dictionaries) = (Vec::new(), Dictionaries::new());
    let mut rows_left = rows_max;
    while let Some(next) = messages.next()? {
        if let Some(dictionary) = next.root()?.header_as_dictionary_batch() {
            let values = read_dictionary(&next, dictionary, &texts)?;
            dictionaries.insert(dictionary.id(), values);
            continue;
        }
        let root = next.root()?;
        let batch = root.header_as_record_batch().ok_or("a message is neither schema nor rows")?;
        let batch = read_batch(&next, batch, (&schema, &dictionaries), rows_left)?;
        rows_left -= batch.num_rows();
        batches.push(batch);
    }
    Ok(batches)
}

/// The metadata and the body of a message.
struct Message {
    metadata: Buffer,
    body: Buffer,
}

impl Message {
    /// The metadata, whose structure flatbuffers verifies.
    fn root(&self) -> Result<ipc::Message<'_>, Wrong> {
        root(&self.metadata)
    }
}

fn root(metadata: &[u8]) -> Result<ipc::Message<'_>, Wrong> {
    ipc::root_as_message(metadata).map_err(|error| format!("malformed metadata: {error}"))
}

/// Takes messages off a stream.
struct Messages {
    rest: Buffer,
}

impl Messages {
    fn next(&mut self) -> Result<Option<Message>, Wrong> {
        if self.number()? != CONTINUATION {
            return Err("a message does not begin as one".to_owned());
        }
        let metadata_bytes = self.number()? as usize;
        if metadata_bytes == 0 {
            let rest = self.rest.len();
            let ended = rest == 0;
            return ended.then_some(None).ok_or_else(|| format!("{rest} bytes follow the end"));
        }
        let metadata = self.take(metadata_bytes)?;
        let body_bytes = usize::try_from(root(&metadata)?.bodyLength())
            .map_err(|_| "the body of a message has a negative length")?;
        let body = self.take(body_bytes)?;
        Ok(Some(Message { metadata, body }))
    }

    fn number(&mut self) -> Result<u32, Wrong> {
        let bytes = self.take(size_of::<u32>())?;
        let bytes = bytes.first_chunk().ok_or("the stream ends early")?;
        Ok(u32::from_le_bytes(*bytes))
    }

    fn take(&mut self, len: usize) -> Result<Buffer, Wrong> {
        if len > self.rest.len() {
            return Err("the stream ends early".to_owned());
        }
        let taken = self.rest.slice_with_length(0, len);
        self.rest.advance(len);
        Ok(taken)
    }
}

fn read_schema(message: &Message) -> Result<SchemaRef, Wrong> {
    let root = message.root()?;
    let schema = root.header_as_schema().ok_or("the first message is no schema")?;
    if root.version() != ipc::MetadataVersion::V5 || !message.body.is_empty() {
        return Err("the schema has another version than 5, or a body".to_owned());
    }
    if schema.endianness() != ipc::Endianness::Little {
        return Err("the stream is not little endian".to_owned());
    }
    let fields = schema.fields().ok_or("the schema has no fields")?;
    if fields.len() > COLUMNS_MAX {
        return Err(format!("there are more than {COLUMNS_MAX} columns"));
    }
    for field in fields {
        if !known(&field) {
            let name = field.name().unwrap_or_default();
            return Err(format!("column \"{name}\" has a type that no table has"));
        }
    }
    let schema = fb_to_schema(schema);
    debug_assert!(schema.fields().iter().all(|field| super::supports(field.data_type())));
    Ok(Arc::new(schema))
}

/// Whether a field has one of the types of tables, so that Arrow converts it without a panic.
fn known(field: &ipc::Field<'_>) -> bool {
    if field.children().is_some_and(|children| !children.is_empty()) {
        return false;
    }
    if let Some(dictionary) = field.dictionary() {
        let keys = |keys: ipc::Int<'_>| !keys.is_signed() && keys.bitWidth() == 16;
        return dictionary.indexType().is_some_and(keys) && field.type_as_utf_8().is_some();
    }
    let known = match field.type_type() {
        ipc::Type::Int => {
            field.type_as_int().map(|int| int.is_signed() && matches!(int.bitWidth(), 16 | 32 | 64))
        }
        ipc::Type::FloatingPoint => field.type_as_floating_point().map(|float| {
            matches!(float.precision(), ipc::Precision::SINGLE | ipc::Precision::DOUBLE)
        }),
        ipc::Type::Decimal => field.type_as_decimal().map(|decimal| {
            let precision = decimal.precision();
            let scales = i32::from(i8::MIN)..=precision;
            decimal.bitWidth() == 128
                && (1..=38).contains(&precision)
                && scales.contains(&decimal.scale())
        }),
        ipc::Type::Timestamp => field
            .type_as_timestamp()
            .map(|timestamp| timestamp.unit() == ipc::TimeUnit::MICROSECOND),
        ipc::Type::Date => field.type_as_date().map(|date| date.unit() == ipc::DateUnit::DAY),
        ipc::Type::Bool => field.type_as_bool().map(|_| true),
        ipc::Type::Utf8 => field.type_as_utf_8().map(|_| true),
        ipc::Type::Binary => field.type_as_binary().map(|_| true),
        _ => None,
    };
    known.unwrap_or(false)
}

/// The entries of a dictionary, which replace those that had its number.
fn read_dictionary(
    message: &Message,
    dictionary: ipc::DictionaryBatch<'_>,
    texts: &SchemaRef,
) -> Result<ArrayRef, Wrong> {
    if dictionary.isDelta() {
        return Err("a dictionary adds to another".to_owned());
    }
    let entries = dictionary.data().ok_or("a dictionary has no entries")?;
    let entries =
        read_batch(message, entries, (texts, &Dictionaries::new()), DICTIONARY_ENTRIES_MAX)?;
    match entries.columns().first() {
        Some(entries) if entries.null_count() == 0 => Ok(Arc::clone(entries)),
        Some(_) => Err("a dictionary has an entry that is null".to_owned()),
        None => Err("a dictionary has no entries".to_owned()),
    }
}

fn read_batch(
    message: &Message,
    batch: ipc::RecordBatch<'_>,
    (schema, dictionaries): (&SchemaRef, &Dictionaries),
    rows_max: usize,
) -> Result<RecordBatch, Wrong> {
    if batch.compression().is_some() {
        return Err("the body of a message is compressed".to_owned());
    }
    if batch.variadicBufferCounts().is_some_and(|counts| !counts.is_empty()) {
        return Err("a batch has buffers that its types do not".to_owned());
    }
    check_rows(&batch, schema, rows_max)?;
    check_buffers(&batch, schema, message.body.len())?;
    let (body, version) = (&message.body, message.root()?.version());
    // Arrow validates the rest: offsets, UTF-8, numbers of nulls, and that keys are in their dictionary.
    read_record_batch(body, batch, Arc::clone(schema), dictionaries, None, &version)
        .map_err(|error| error.to_string())
}

fn check_rows(
    batch: &ipc::RecordBatch<'_>,
    schema: &SchemaRef,
    rows_max: usize,
) -> Result<(), Wrong> {
    let rows = batch.length();
    if !usize::try_from(rows).is_ok_and(|rows| rows <= rows_max) {
        return Err(format!("{rows} rows are out of range"));
    }
    let nodes = batch.nodes().ok_or("a batch has no columns")?;
    if nodes.len() != schema.fields().len() {
        return Err("a batch has another number of columns than the schema".to_owned());
    }
    let whole =
        |node: &ipc::FieldNode| node.length() == rows && (0..=rows).contains(&node.null_count());
    let all = nodes.iter().all(whole);
    all.then_some(()).ok_or_else(|| "a column has another number of rows than the batch".to_owned())
}

/// Checks that every column has its buffers, that they lie in the body, and are long enough for its rows.
fn check_buffers(
    batch: &ipc::RecordBatch<'_>,
    schema: &SchemaRef,
    body_bytes: usize,
) -> Result<(), Wrong> {
    let nodes = batch.nodes().ok_or("a batch has no columns")?;
    let mut buffers = batch.buffers().ok_or("a batch has no buffers")?.iter();
    for (field, node) in schema.fields().iter().zip(nodes) {
        for needed in buffers_of(field.data_type(), node).into_iter().flatten() {
            let buffer = buffers.next().ok_or("a batch has fewer buffers than its columns need")?;
            let len =
                length_inside(buffer, body_bytes).ok_or("a buffer lies outside of its message")?;
            if len < needed.bytes_min || len % needed.multiple != 0 {
                let name = field.name();
                return Err(format!("column \"{name}\" has a buffer that does not fit its rows"));
            }
        }
    }
    let left = buffers.len();
    if left > 0 {
        return Err(format!("a batch has {left} buffers more than its columns need"));
    }
    Ok(())
}

/// What Arrow needs of a buffer.
struct Needed {
    bytes_min: usize,
    /// The length must be a multiple of this.
    multiple: usize,
}

/// The buffers of a column: validity, then values, or else offsets and bytes.
fn buffers_of(data_type: &DataType, node: &ipc::FieldNode) -> [Option<Needed>; 3] {
    const OFFSET_BYTES: usize = size_of::<i32>();
    let needed = |bytes_min| Some(Needed { bytes_min, multiple: 1 });
    // Checked before not to be negative or too large.
    let rows = usize::try_from(node.length()).unwrap_or(usize::MAX);
    let bitmap_bytes = rows.div_ceil(8);
    let validity = needed(if node.null_count() > 0 { bitmap_bytes } else { 0 });
    match data_type {
        DataType::Boolean => [validity, needed(bitmap_bytes), None],
        DataType::Utf8 | DataType::Binary => {
            // No rows may do without the one offset.
            let offsets = if rows == 0 { 0 } else { rows + 1 };
            let bytes_min = offsets * OFFSET_BYTES;
            [validity, Some(Needed { bytes_min, multiple: OFFSET_BYTES }), needed(0)]
        }
        DataType::Dictionary(keys, _) => {
            [validity, needed(rows * keys.primitive_width().unwrap_or(0)), None]
        }
        other => [validity, needed(rows * other.primitive_width().unwrap_or(0)), None],
    }
}

/// The length of a buffer that lies in the body.
fn length_inside(buffer: &ipc::Buffer, body_bytes: usize) -> Option<usize> {
    let start = usize::try_from(buffer.offset()).ok()?;
    let len = usize::try_from(buffer.length()).ok()?;
    (start.checked_add(len)? <= body_bytes).then_some(len)
}
