//! A block of a column: chooses an encoding by measured size, and finds the way back.
//!
//! ```text
//! body  validity bitmap, when some but not all rows are null | values as the encoding has them
//! ```
//!
//! Encodings are offered from the fastest to read to the slowest, and each must save enough of the best before it: a
//! block is read more often than it is written. What is chosen is squeezed with zstd as a whole where that is worth
//! it. With [`Effort::Strong`], for rows that rarely change any more, pco is offered, too, and zstd tries harder.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, DictionaryArray,
        GenericByteArray, PrimitiveArray, new_null_array,
    },
    buffer::{BooleanBuffer, Buffer, NullBuffer},
    compute,
    datatypes::{
        ArrowNativeType, BinaryType, ByteArrayType, DataType, Date32Type, Decimal128Type,
        Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, TimeUnit,
        TimestampMicrosecondType, Utf8Type,
    },
};

use super::{
    CodecError,
    bytes::Reader,
    floats::{self, Real, Scaled},
    ints::{self, Layout, Plan},
    squeeze::{self, Effort},
    strings::{self, Dictionary, Strings},
};

/// All rows are null; there is no body.
const NULLS: u8 = 0;
/// Integers, timestamps, dates, and decimals of 64 bits.
const INTEGERS: u8 = 1;
/// Floats that are decimals.
const SCALED_FLOATS: u8 = 2;
/// Floats as their bits.
const FLOAT_BITS: u8 = 3;
/// Texts and byte strings one after another.
const PLAIN_STRINGS: u8 = 4;
/// Texts and byte strings as a dictionary.
const DICTIONARY_STRINGS: u8 = 5;
/// Booleans as a bitmap.
const BOOLEANS: u8 = 6;
/// Decimals of 128 bits: upper halves, then lower halves.
const WIDE_INTEGERS: u8 = 7;
/// Floats as pco has them.
const COLD_FLOATS: u8 = 8;
/// The highest that this version knows. The byte leaves room for as many again as anyone will think of.
const ENCODING_MAX: u8 = COLD_FLOATS;

/// Most bytes that the strings of a block may take together; at least one value of any size that comes in fits.
pub(crate) const VALUE_BYTES_MAX: usize = 256 << 20;
/// No encoding takes more a row besides the bytes of strings: two streams of whole words with bases and widths.
const ROW_BYTES_MAX: usize = 24;
/// No encoding takes more a block besides.
const BLOCK_OVERHEAD_BYTES_MAX: usize = 1024;
/// Planes, and texts not in a dictionary, are to take less than this share of the best before, in percent.
const SLOWER_SHARE_PERCENT_MAX: usize = 90;
/// The same for what pco makes of integers, which decodes at less than half the speed of planes.
const COLD_SHARE_PERCENT_MAX: usize = 80;
/// The same for what pco makes of floats, which decodes no slower than their bits in planes.
const COLD_FLOATS_SHARE_PERCENT_MAX: usize = 97;
/// Where the first encoding needs less than one byte for so many rows, others are not tried.
const ROWS_PER_BYTE_ENOUGH: usize = 16;

const _: () = assert!(VALUE_BYTES_MAX < i32::MAX as usize);

/// What a reader must know of a block besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Number of the encoding.
    pub(crate) encoding: u8,
    /// Whether the stored bytes are zstd.
    pub(crate) squeezed: bool,
    /// Rows.
    pub(crate) rows: u32,
    /// Rows that are null.
    pub(crate) nulls: u32,
    /// Bytes of the body, after zstd.
    pub(crate) body_bytes: u32,
    /// Bytes that the strings take together; zero for other types.
    pub(crate) value_bytes: u32,
}

/// Whether columns of the type can be stored.
pub(crate) const fn supports(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Float32
            | DataType::Float64
            | DataType::Decimal128(1..=38, _)
            | DataType::Boolean
            | DataType::Utf8
            | DataType::Binary
            | DataType::Timestamp(TimeUnit::Microsecond, _)
            | DataType::Date32
    )
}

/// A body that was offered.
#[derive(Debug)]
struct Offer {
    encoding: u8,
    /// Bytes before they were squeezed; `None` as long as they are not.
    squeezed_from: Option<usize>,
    stored: Vec<u8>,
}

/// The best body so far, and what it takes to make another.
#[derive(Debug)]
struct Choice {
    rows: usize,
    effort: Effort,
    /// Bitmap to begin each body with.
    validity: Vec<u8>,
    best: Option<Offer>,
}

impl Choice {
    /// Offers numbers, which are to take less than `percent` of the best before; nothing when `put` gives nothing.
    fn offer(&mut self, encoding: u8, percent: usize, put: impl FnOnce(&mut Vec<u8>) -> bool) {
        let mut stored = self.validity.clone();
        if put(&mut stored) {
            self.take(Offer { encoding, squeezed_from: None, stored }, percent);
        }
    }

    /// Offers texts or bits, which are compared as zstd leaves them.
    fn offer_squeezed(&mut self, encoding: u8, put: impl FnOnce(&mut Vec<u8>)) {
        let mut stored = self.validity.clone();
        put(&mut stored);
        let offer = Offer { encoding, squeezed_from: None, stored }.squeeze(self.effort);
        self.take(offer, SLOWER_SHARE_PERCENT_MAX);
    }

    fn take(&mut self, offer: Offer, percent: usize) {
        let better = self
            .best
            .as_ref()
            .is_none_or(|best| offer.stored.len() * 100 < best.stored.len() * percent);
        if better {
            self.best = Some(offer);
        }
    }

    /// Whether what was offered is so small that more offers are a waste of time.
    fn enough(&self) -> bool {
        let least = self.validity.len() + self.rows / ROWS_PER_BYTE_ENOUGH;
        self.best.as_ref().is_some_and(|best| best.stored.len() < least)
    }

    fn cold(&self) -> bool {
        self.effort == Effort::Strong && !self.enough()
    }

    fn offer_integers(&mut self, values: &[i64]) {
        self.offer(INTEGERS, SLOWER_SHARE_PERCENT_MAX, |out| ints::put_repeats(values, out));
        if self.enough() {
            return;
        }
        let plan = Plan::best(values);
        self.offer_layouts(INTEGERS, |layout, out| plan.put(layout, out));
        if self.cold() {
            let put = |out: &mut Vec<u8>| ints::put_cold(values, plan.order(), out);
            self.offer(INTEGERS, COLD_SHARE_PERCENT_MAX, put);
        }
    }

    /// Offers integers packed and in planes.
    fn offer_layouts(&mut self, encoding: u8, put: impl Fn(Layout, &mut Vec<u8>)) {
        for layout in [Layout::Packed, Layout::Nibbles] {
            if !self.enough() {
                self.offer(encoding, SLOWER_SHARE_PERCENT_MAX, |out| {
                    put(layout, out);
                    true
                });
            }
        }
    }

    fn offer_decimals(&mut self, values: &[i128]) {
        let narrow: Result<Vec<i64>, _> =
            values.iter().map(|value| i64::try_from(*value)).collect();
        if let Ok(narrow) = narrow {
            return self.offer_integers(&narrow);
        }
        let upper: Vec<i64> = values.iter().map(|value| (value >> 64) as i64).collect();
        let lower: Vec<i64> = values.iter().map(|value| *value as i64).collect();
        let plans = [Plan::best(&upper), Plan::best(&lower)];
        self.offer_layouts(WIDE_INTEGERS, |layout, out| {
            plans.iter().for_each(|plan| plan.put(layout, out));
        });
    }

    fn offer_floats<R: Real>(&mut self, values: &[R]) {
        if let Some(scaled) = Scaled::new(values) {
            self.offer(SCALED_FLOATS, SLOWER_SHARE_PERCENT_MAX, |out| {
                scaled.put_with::<R>(out, ints::put_repeats)
            });
            if self.enough() {
                return;
            }
            let plan = scaled.plan();
            self.offer_layouts(SCALED_FLOATS, |layout, out| {
                scaled.put_with::<R>(out, |_, out| {
                    plan.put(layout, out);
                    true
                });
            });
            if self.cold() {
                let put =
                    |values: &[i64], out: &mut Vec<u8>| ints::put_cold(values, plan.order(), out);
                self.offer(SCALED_FLOATS, COLD_SHARE_PERCENT_MAX, |out| {
                    scaled.put_with::<R>(out, put)
                });
            }
            return;
        }
        let bits = floats::to_bits(values);
        self.offer(FLOAT_BITS, SLOWER_SHARE_PERCENT_MAX, |out| {
            ints::encode(&bits, out);
            true
        });
        if !self.enough() {
            self.offer(FLOAT_BITS, SLOWER_SHARE_PERCENT_MAX, |out| {
                Plan::of_values(&bits).put(Layout::Bytes, out);
                true
            });
        }
        if self.cold() {
            let put = |out: &mut Vec<u8>| floats::put_cold(values, out);
            self.offer(COLD_FLOATS, COLD_FLOATS_SHARE_PERCENT_MAX, put);
        }
    }

    fn offer_strings(&mut self, values: &Strings<'_>) {
        let dictionary = Dictionary::new(values);
        if let Some(dictionary) = &dictionary {
            self.offer_squeezed(DICTIONARY_STRINGS, |out| dictionary.put(out));
        }
        if !dictionary.is_some_and(|dictionary| dictionary.is_small()) {
            self.offer_squeezed(PLAIN_STRINGS, |out| values.put_plain(out));
        }
    }
}

impl Offer {
    /// The offer as zstd leaves it, where that is worth it.
    fn squeeze(self, effort: Effort) -> Self {
        if self.squeezed_from.is_some() {
            return self;
        }
        match squeeze::squeeze(effort, &self.stored) {
            Some(stored) => {
                Self { squeezed_from: Some(self.stored.len()), stored, encoding: self.encoding }
            }
            None => self,
        }
    }
}

/// Encodes a block; the bytes are what to store.
pub(crate) fn encode(array: &dyn Array, effort: Effort) -> Result<(Shape, Vec<u8>), CodecError> {
    let rows = u32::try_from(array.len()).map_err(|_| TOO_LARGE)?;
    let nulls = array.null_count() as u32;
    if nulls == rows {
        return Ok((Shape { encoding: NULLS, rows, nulls, ..Shape::default() }, Vec::new()));
    }
    let present = array.nulls().filter(|_| nulls > 0);
    let validity = present.map(|nulls| nulls.inner().sliced().as_slice().to_vec());
    let validity = validity.unwrap_or_default();
    let mut choice = Choice { rows: array.len(), effort, validity, best: None };
    let value_bytes = offer_all(&mut choice, array)?;
    let value_bytes = u32::try_from(value_bytes).map_err(|_| TOO_LARGE)?;
    let best = choice.best.ok_or(OTHER_TYPE)?.squeeze(effort);
    let Offer { encoding, squeezed_from, stored } = best;
    let body_bytes = u32::try_from(squeezed_from.unwrap_or(stored.len()));
    let shape = Shape {
        encoding,
        squeezed: squeezed_from.is_some(),
        rows,
        nulls,
        body_bytes: body_bytes.map_err(|_| TOO_LARGE)?,
        value_bytes,
    };
    shape.check()?;
    Ok((shape, stored))
}

const TOO_LARGE: CodecError = CodecError::Wrong("the block is larger than a block may be");
const OTHER_TYPE: CodecError = CodecError::Wrong("the encoding is not one of the column's type");

/// Offers every encoding that fits the type; tells how many bytes strings take.
fn offer_all(choice: &mut Choice, array: &dyn Array) -> Result<u64, CodecError> {
    match array.data_type() {
        DataType::Int16 => choice.offer_integers(&integers::<Int16Type>(array)),
        DataType::Int32 => choice.offer_integers(&integers::<Int32Type>(array)),
        DataType::Int64 => choice.offer_integers(&integers::<Int64Type>(array)),
        DataType::Date32 => choice.offer_integers(&integers::<Date32Type>(array)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            choice.offer_integers(&integers::<TimestampMicrosecondType>(array));
        }
        DataType::Float32 => choice.offer_floats(&filled::<Float32Type>(array)),
        DataType::Float64 => choice.offer_floats(&filled::<Float64Type>(array)),
        DataType::Decimal128(..) => choice.offer_decimals(&filled::<Decimal128Type>(array)),
        DataType::Boolean => {
            let bits = array.as_boolean().values();
            let bits = match array.nulls() {
                Some(nulls) => bits & nulls.inner(),
                None => bits.clone(),
            };
            let bytes = bits.sliced();
            choice.offer_squeezed(BOOLEANS, |out| out.extend_from_slice(&bytes));
        }
        DataType::Utf8 => return offer_bytes(choice, array.as_bytes::<Utf8Type>()),
        DataType::Binary => return offer_bytes(choice, array.as_bytes::<BinaryType>()),
        _ => return Err(OTHER_TYPE),
    }
    Ok(0)
}

fn offer_bytes<T: ByteArrayType<Offset = i32>>(
    choice: &mut Choice,
    array: &GenericByteArray<T>,
) -> Result<u64, CodecError> {
    let bytes = array.values().as_slice();
    let values = Strings { offsets: array.value_offsets(), bytes, nulls: array.nulls() };
    let value_bytes = values.value_bytes();
    if value_bytes > VALUE_BYTES_MAX as u64 {
        return Err(TOO_LARGE);
    }
    choice.offer_strings(&values);
    Ok(value_bytes)
}

/// The values, with the one before in the place of each null.
fn filled<T: ArrowPrimitiveType>(array: &dyn Array) -> Cow<'_, [T::Native]> {
    let array = array.as_primitive::<T>();
    let values: &[T::Native] = array.values();
    let Some(nulls) = array.nulls().filter(|nulls| nulls.null_count() > 0) else {
        return Cow::Borrowed(values);
    };
    let mut last = nulls.valid_indices().next().and_then(|first| values.get(first)).copied();
    let fill = |(value, valid): (&T::Native, bool)| {
        if valid {
            last = Some(*value);
        }
        last.unwrap_or_default()
    };
    Cow::Owned(values.iter().zip(nulls.iter()).map(fill).collect())
}

/// As [`filled`], as 64-bit integers.
fn integers<T: ArrowPrimitiveType<Native: Into<i64>>>(array: &dyn Array) -> Vec<i64> {
    filled::<T>(array).iter().map(|value| (*value).into()).collect()
}

impl Shape {
    /// Checks that what a block claims to take is no more than its rows can take.
    pub(crate) fn check(&self) -> Result<(), CodecError> {
        if self.encoding > ENCODING_MAX {
            return Err(CodecError::Unknown { what: "encoding", id: self.encoding });
        }
        if self.nulls > self.rows {
            return Err(CodecError::Wrong("more rows are null than there are"));
        }
        let value_bytes = self.value_bytes as usize;
        let rows_bytes = self.rows as usize * ROW_BYTES_MAX;
        let body_bytes_max = value_bytes + rows_bytes + BLOCK_OVERHEAD_BYTES_MAX;
        if value_bytes > VALUE_BYTES_MAX || self.body_bytes as usize > body_bytes_max {
            return Err(TOO_LARGE);
        }
        Ok(())
    }
}

/// Decodes a block. The caller bounds its rows.
pub(crate) fn decode(
    data_type: &DataType,
    shape: &Shape,
    stored: &[u8],
) -> Result<ArrayRef, CodecError> {
    shape.check()?;
    let rows = shape.rows as usize;
    if shape.encoding == NULLS {
        let empty = shape.nulls == shape.rows && stored.is_empty();
        let nulls = || new_null_array(data_type, rows);
        return empty.then(nulls).ok_or(CodecError::Wrong("null rows have a body"));
    }
    let body = match shape.squeezed {
        true => Cow::Owned(squeeze::decompress(stored, shape.body_bytes as usize)?),
        false => Cow::Borrowed(stored),
    };
    if body.len() != shape.body_bytes as usize {
        return Err(CodecError::Wrong("the body has another size than it should"));
    }
    let mut reader = Reader::new(&body);
    let nulls = read_validity(&mut reader, shape)?;
    let array = read_values(&mut reader, data_type, shape, nulls)?;
    reader.finish()?;
    Ok(array)
}

fn read_validity(reader: &mut Reader<'_>, shape: &Shape) -> Result<Option<NullBuffer>, CodecError> {
    if shape.nulls == 0 {
        return Ok(None);
    }
    let nulls = NullBuffer::new(read_bitmap(reader, shape.rows as usize)?);
    if nulls.null_count() != shape.nulls as usize {
        return Err(CodecError::Wrong("the bitmap has another number of nulls than the block"));
    }
    Ok(Some(nulls))
}

fn read_bitmap(reader: &mut Reader<'_>, rows: usize) -> Result<BooleanBuffer, CodecError> {
    let bytes = reader.take(rows.div_ceil(8))?;
    Ok(BooleanBuffer::new(Buffer::from(bytes), 0, rows))
}

fn read_values(
    reader: &mut Reader<'_>,
    data_type: &DataType,
    shape: &Shape,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, CodecError> {
    match data_type {
        DataType::Int16 => narrow::<Int16Type>(read_integers(reader, shape)?, nulls),
        DataType::Int32 => narrow::<Int32Type>(read_integers(reader, shape)?, nulls),
        DataType::Date32 => narrow::<Date32Type>(read_integers(reader, shape)?, nulls),
        DataType::Int64 => {
            Ok(Arc::new(primitive::<Int64Type>(read_integers(reader, shape)?, nulls)?))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let values = read_integers(reader, shape)?;
            let array = primitive::<TimestampMicrosecondType>(values, nulls)?;
            Ok(Arc::new(array.with_timezone_opt(zone.clone())))
        }
        DataType::Float32 => {
            Ok(Arc::new(primitive::<Float32Type>(read_floats(reader, shape)?, nulls)?))
        }
        DataType::Float64 => {
            Ok(Arc::new(primitive::<Float64Type>(read_floats(reader, shape)?, nulls)?))
        }
        DataType::Decimal128(precision, scale) => {
            let array = primitive::<Decimal128Type>(read_decimals(reader, shape)?, nulls)?;
            let array = array.with_precision_and_scale(*precision, *scale);
            Ok(Arc::new(array.map_err(|_| OTHER_TYPE)?))
        }
        DataType::Boolean if shape.encoding == BOOLEANS => {
            let bits = read_bitmap(reader, shape.rows as usize)?;
            Ok(Arc::new(BooleanArray::new(bits, nulls)))
        }
        DataType::Utf8 => read_strings::<Utf8Type>(reader, shape, nulls),
        DataType::Binary => read_strings::<BinaryType>(reader, shape, nulls),
        DataType::Dictionary(key, value) if **key == DataType::Int32 => match **value {
            DataType::Utf8 => read_dictionary::<Utf8Type>(reader, shape, nulls),
            DataType::Binary => read_dictionary::<BinaryType>(reader, shape, nulls),
            _ => Err(OTHER_TYPE),
        },
        _ => Err(OTHER_TYPE),
    }
}

fn read_integers(reader: &mut Reader<'_>, shape: &Shape) -> Result<Vec<i64>, CodecError> {
    match shape.encoding {
        INTEGERS => ints::decode(reader, shape.rows as usize),
        _ => Err(OTHER_TYPE),
    }
}

fn read_floats<R: Real>(reader: &mut Reader<'_>, shape: &Shape) -> Result<Vec<R>, CodecError> {
    match shape.encoding {
        SCALED_FLOATS => floats::decode_scaled(reader, shape.rows as usize),
        FLOAT_BITS => floats::decode_bits(reader, shape.rows as usize),
        COLD_FLOATS => floats::decode_cold(reader, shape.rows as usize),
        _ => Err(OTHER_TYPE),
    }
}

fn read_decimals(reader: &mut Reader<'_>, shape: &Shape) -> Result<Vec<i128>, CodecError> {
    let rows = shape.rows as usize;
    match shape.encoding {
        INTEGERS => Ok(ints::decode(reader, rows)?.into_iter().map(i128::from).collect()),
        WIDE_INTEGERS => {
            let upper = ints::decode(reader, rows)?;
            let lower = ints::decode(reader, rows)?;
            let join = |(upper, lower): (i64, i64)| {
                i128::from(upper) << 64 | i128::from(lower.cast_unsigned())
            };
            Ok(upper.into_iter().zip(lower).map(join).collect())
        }
        _ => Err(OTHER_TYPE),
    }
}

fn read_strings<T: ByteArrayType<Offset = i32>>(
    reader: &mut Reader<'_>,
    shape: &Shape,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, CodecError> {
    let (rows, value_bytes) = (shape.rows as usize, shape.value_bytes as usize);
    let (offsets, bytes) = match shape.encoding {
        PLAIN_STRINGS => strings::decode_plain(reader, rows, value_bytes)?,
        DICTIONARY_STRINGS => {
            strings::decode_dictionary(reader, rows, value_bytes, nulls.as_ref())?
        }
        _ => return Err(OTHER_TYPE),
    };
    let array = GenericByteArray::<T>::try_new(offsets, bytes.into(), nulls);
    Ok(Arc::new(array.map_err(|_| CodecError::Wrong("a text is not UTF-8"))?))
}

/// Strings as a dictionary, without a copy of each row where they are stored as one.
fn read_dictionary<T: ByteArrayType<Offset = i32>>(
    reader: &mut Reader<'_>,
    shape: &Shape,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, CodecError> {
    if shape.encoding != DICTIONARY_STRINGS {
        let plain = read_strings::<T>(reader, shape, nulls)?;
        let wanted = DataType::Dictionary(Box::new(DataType::Int32), Box::new(T::DATA_TYPE));
        return compute::cast(&plain, &wanted).map_err(|_| OTHER_TYPE);
    }
    let (offsets, bytes, ids) = strings::decode_entries(reader, shape.rows as usize)?;
    let entries = GenericByteArray::<T>::try_new(offsets, bytes.into(), None)
        .map_err(|_| CodecError::Wrong("a text is not UTF-8"))?;
    let array = DictionaryArray::<Int32Type>::try_new(
        PrimitiveArray::try_new(ids.into(), nulls).map_err(|_| OTHER_TYPE)?,
        Arc::new(entries),
    );
    Ok(Arc::new(array.map_err(|_| CodecError::Wrong("an id is not in the dictionary"))?))
}

fn primitive<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    nulls: Option<NullBuffer>,
) -> Result<PrimitiveArray<T>, CodecError>
where
    T::Native: ArrowNativeType,
{
    PrimitiveArray::try_new(values.into(), nulls)
        .map_err(|_| CodecError::Wrong("the block has another number of values than rows"))
}

/// Integers of fewer bits, which all must fit.
fn narrow<T: ArrowPrimitiveType<Native: TryFrom<i64>>>(
    values: Vec<i64>,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, CodecError> {
    let values: Result<Vec<T::Native>, _> = values.into_iter().map(T::Native::try_from).collect();
    let values = values.map_err(|_| CodecError::Wrong("an integer is wider than its type"))?;
    Ok(Arc::new(primitive::<T>(values, nulls)?))
}
