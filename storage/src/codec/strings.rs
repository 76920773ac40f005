//! Texts and byte strings: plain, or as a dictionary with ids.
//!
//! ```text
//! plain       lengths, as integers | bytes
//! dictionary  entries u32 | lengths of the entries, as integers | bytes of the entries | ids, as integers
//! ```
//!
//! Rows sorted by a text column come in runs of one id, which are stored once a run.

use arrow::buffer::{NullBuffer, OffsetBuffer};
use xxhash_rust::xxh3::xxh3_64;

use super::{CodecError, bytes::Reader, ints};

/// Strings of an array, null ones empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strings<'a> {
    /// One more than there are strings.
    pub(crate) offsets: &'a [i32],
    /// What the offsets count in.
    pub(crate) bytes: &'a [u8],
    /// Which are null.
    pub(crate) nulls: Option<&'a NullBuffer>,
}

impl<'a> Strings<'a> {
    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Each, `None` for null.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Option<&'a [u8]>> {
        let Self { offsets, bytes, nulls } = *self;
        offsets.iter().zip(offsets.iter().skip(1)).enumerate().map(move |(row, (start, end))| {
            if nulls.is_some_and(|nulls| nulls.is_null(row)) {
                return None;
            }
            // Arrow keeps offsets ascending and within the bytes.
            Some(bytes.get(*start as usize..*end as usize).unwrap_or_default())
        })
    }

    /// Bytes that all take together.
    pub(crate) fn value_bytes(&self) -> u64 {
        self.iter().flatten().map(|string| string.len() as u64).sum()
    }

    /// Appends the plain form.
    pub(crate) fn put_plain(&self, out: &mut Vec<u8>) {
        let lengths: Vec<i64> =
            self.iter().map(|string| string.unwrap_or_default().len() as i64).collect();
        ints::encode(&lengths, out);
        self.iter().flatten().for_each(|string| out.extend_from_slice(string));
    }
}

/// The different strings in order of first appearance, and which of them each row has.
#[derive(Debug)]
pub(crate) struct Dictionary<'a> {
    entries: Vec<&'a [u8]>,
    ids: Vec<i64>,
}

impl<'a> Dictionary<'a> {
    /// The dictionary of these strings; `None` when more than half of them are different.
    pub(crate) fn new(strings: &Strings<'a>) -> Option<Self> {
        let mut table = Table::new(strings.len());
        let mut ids = Vec::with_capacity(strings.len());
        let mut last: Option<(&[u8], u32)> = None;
        for string in strings.iter() {
            // A null repeats the id before it, so that it does not end a run.
            let Some(string) = string else {
                ids.push(last.map_or(0, |(_, id)| i64::from(id)));
                continue;
            };
            let id = match last {
                Some((before, id)) if before == string => id,
                _ => table.id_of(string),
            };
            if table.entries.len() > strings.len() / 2 + 1 {
                return None;
            }
            last = Some((string, id));
            ids.push(i64::from(id));
        }
        Some(Self { entries: table.entries, ids })
    }

    /// Whether the plain form cannot be much smaller.
    pub(crate) const fn is_small(&self) -> bool {
        self.entries.len() <= self.ids.len() / 16
    }

    /// Appends the encoded form.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        let lengths: Vec<i64> = self.entries.iter().map(|entry| entry.len() as i64).collect();
        ints::encode(&lengths, out);
        self.entries.iter().for_each(|entry| out.extend_from_slice(entry));
        ints::encode(&self.ids, out);
    }
}

/// Finds the id of a string: open addressing over a table that never fills.
#[derive(Debug)]
struct Table<'a> {
    /// Ids plus one; zero is free.
    slots: Vec<u32>,
    entries: Vec<&'a [u8]>,
}

impl<'a> Table<'a> {
    fn new(strings: usize) -> Self {
        Self { slots: vec![0; (strings * 2 + 2).next_power_of_two()], entries: Vec::new() }
    }

    #[expect(clippy::indexing_slicing, reason = "the mask keeps slots in, ids come from entries")]
    fn id_of(&mut self, string: &'a [u8]) -> u32 {
        let mask = self.slots.len() - 1;
        let mut at = xxh3_64(string) as usize & mask;
        loop {
            match self.slots[at] {
                0 => {
                    let id = self.entries.len() as u32;
                    self.entries.push(string);
                    self.slots[at] = id + 1;
                    return id;
                }
                taken if self.entries[taken as usize - 1] == string => return taken - 1,
                _ => at = (at + 1) & mask,
            }
        }
    }
}

/// Decoded strings: offsets and bytes as Arrow wants them.
pub(crate) type Decoded = (OffsetBuffer<i32>, Vec<u8>);

/// Reads `count` strings that take `value_bytes` together, which the caller bounds.
pub(crate) fn decode_plain(
    reader: &mut Reader<'_>,
    count: usize,
    value_bytes: usize,
) -> Result<Decoded, CodecError> {
    let lengths = ints::decode(reader, count)?;
    let offsets = offsets_of(&lengths, value_bytes)?;
    Ok((offsets, reader.take(value_bytes)?.to_vec()))
}

/// Decoded entries, and the id of each row.
pub(crate) type Entries = (OffsetBuffer<i32>, Vec<u8>, Vec<i32>);

/// Reads a dictionary of `count` rows as it is. The caller checks that ids are in it.
pub(crate) fn decode_entries(reader: &mut Reader<'_>, count: usize) -> Result<Entries, CodecError> {
    let entries = reader.u32()? as usize;
    if entries > count {
        return Err(CodecError::Wrong("a dictionary has more entries than rows"));
    }
    let lengths = ints::decode(reader, entries)?;
    let mut bytes = 0usize;
    for length in &lengths {
        let length = usize::try_from(*length).map_err(|_| NEGATIVE)?;
        bytes = bytes
            .checked_add(length)
            .filter(|all| *all <= reader.rest().len())
            .ok_or(OTHER_SIZE)?;
    }
    let offsets = offsets_of(&lengths, bytes)?;
    let bytes = reader.take(bytes)?.to_vec();
    // An id that does not fit is not in the dictionary, and neither is -1.
    let ids = ints::decode_as(reader, count, |id| i32::try_from(id).unwrap_or(-1))?;
    Ok((offsets, bytes, ids))
}

/// As [`decode_plain`], from a dictionary. Null rows have an id, too, but take no bytes.
pub(crate) fn decode_dictionary(
    reader: &mut Reader<'_>,
    count: usize,
    value_bytes: usize,
    nulls: Option<&NullBuffer>,
) -> Result<Decoded, CodecError> {
    let (offsets, entries, ids) = decode_entries(reader, count)?;
    let find = |id: i32| {
        let range = usize::try_from(id).ok().and_then(|id| offsets.get(id..id + 2))?;
        let [start, end] = <[i32; 2]>::try_from(range).ok()?;
        entries.get(start as usize..end as usize)
    };
    let mut bytes = Vec::with_capacity(value_bytes);
    let mut ends = Vec::with_capacity(count + 1);
    ends.push(0);
    for (row, id) in ids.into_iter().enumerate() {
        let string = match nulls.is_some_and(|nulls| nulls.is_null(row)) {
            true => &[],
            false => find(id).ok_or(CodecError::Wrong("an id is not in the dictionary"))?,
        };
        if string.len() > value_bytes - bytes.len() {
            return Err(OTHER_SIZE);
        }
        bytes.extend_from_slice(string);
        ends.push(i32::try_from(bytes.len()).map_err(|_| OTHER_SIZE)?);
    }
    if bytes.len() != value_bytes {
        return Err(OTHER_SIZE);
    }
    Ok((OffsetBuffer::new(ends.into()), bytes))
}

const NEGATIVE: CodecError = CodecError::Wrong("a length is negative");
const OTHER_SIZE: CodecError = CodecError::Wrong("the strings take other bytes than they should");

/// Offsets of strings of these lengths, which must take exactly `value_bytes`.
fn offsets_of(lengths: &[i64], value_bytes: usize) -> Result<OffsetBuffer<i32>, CodecError> {
    let mut ends = Vec::with_capacity(lengths.len() + 1);
    ends.push(0);
    let mut end = 0u64;
    for length in lengths {
        let length = u64::try_from(*length).map_err(|_| NEGATIVE)?;
        end = end.checked_add(length).filter(|end| *end <= value_bytes as u64).ok_or(OTHER_SIZE)?;
        ends.push(i32::try_from(end).map_err(|_| OTHER_SIZE)?);
    }
    if end != value_bytes as u64 {
        return Err(OTHER_SIZE);
    }
    Ok(OffsetBuffer::new(ends.into()))
}
