//! Pure: the data of COPY FROM in PostgreSQL's binary format, to columns of values.
//!
//! A file header, then tuples (a count of fields, and a length and bytes for each, -1 for NULL), then a count of -1.
//! Data comes in pieces that are cut anywhere: whole tuples are read, the rest waits for more.

use arrow::array::ArrayRef;
use bytes::Buf;
use hypertide_proto::schema::Column;

use super::{binary::SIGNATURE, value::ValueBuilder, zone::Zone};
use crate::Error;

/// Bytes of the signature, the flags and the length of the header's extension.
const HEADER_BYTES: usize = SIGNATURE.len() + 8;
/// Flags that a reader must know; there is only that of row ids, which PostgreSQL gave up.
const CRITICAL_FLAGS: u32 = 0xffff_0000;
/// Bytes that are gathered before they are read.
const BLOCK_BYTES: usize = 1 << 20;
/// Longest tuple.
const ROW_BYTES_MAX: usize = 256 << 20;

/// Reads tuples.
#[derive(Debug)]
pub(crate) struct Tuples {
    table: String,
    columns: Vec<Column>,
    builders: Vec<ValueBuilder>,
    pending: Vec<u8>,
    wanted: usize,
    line: u64,
    rows: usize,
    header_seen: bool,
    ended: bool,
}

impl Tuples {
    /// A reader of these columns, in the order of the data.
    pub(crate) fn new(table: &str, columns: Vec<Column>, zone: Zone) -> Self {
        Self {
            table: table.to_owned(),
            builders: columns
                .iter()
                .map(|column| ValueBuilder::new(column.column_type, zone))
                .collect(),
            columns,
            pending: Vec::new(),
            wanted: BLOCK_BYTES,
            line: 0,
            rows: 0,
            header_seen: false,
            ended: false,
        }
    }

    /// Adds a piece; true when there is enough to call [`Tuples::read`].
    pub(crate) fn push(&mut self, piece: &[u8]) -> bool {
        self.pending.extend_from_slice(piece);
        self.pending.len() >= self.wanted
    }

    /// Reads all whole tuples; with `end` nothing may be left.
    pub(crate) fn read(&mut self, end: bool) -> Result<(), Error> {
        let block = std::mem::take(&mut self.pending);
        let mut rest = block.as_slice();
        if !self.header_seen {
            match header(rest)? {
                Some(after) => (self.header_seen, rest) = (true, after),
                None if end => return Err(bad("COPY file signature not recognized")),
                None => {}
            }
        }
        while self.header_seen && !self.ended {
            match self.tuple(rest)? {
                Some(after) => rest = after,
                None => break,
            }
        }
        if self.ended && !rest.is_empty() {
            return Err(self.at_line(bad("received copy data after EOF marker")));
        }
        if end && !rest.is_empty() {
            return Err(self.at_line(bad("unexpected EOF in COPY data")));
        }
        if rest.len() > ROW_BYTES_MAX {
            let message = format_args!("row is longer than {ROW_BYTES_MAX} bytes");
            return Err(self.at_line(Error::of("54000", message)));
        }
        self.pending = rest.to_vec();
        self.wanted = BLOCK_BYTES.max(2 * self.pending.len());
        Ok(())
    }

    /// Rows read since the last [`Tuples::take`].
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The rows read so far, as columns in the order of the data.
    pub(crate) fn take(&mut self) -> Vec<ArrayRef> {
        self.rows = 0;
        self.builders.iter_mut().map(ValueBuilder::finish).collect()
    }

    /// Reads the tuple in front, if all of it is here, and gives what follows it.
    fn tuple<'a>(&mut self, data: &'a [u8]) -> Result<Option<&'a [u8]>, Error> {
        let Some((count, mut rest)) = data.split_first_chunk() else { return Ok(None) };
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            self.ended = true;
            return Ok(Some(rest));
        }
        if usize::try_from(count) != Ok(self.columns.len()) {
            let wanted = self.columns.len();
            self.line += 1;
            let message = format_args!("row field count is {count}, expected {wanted}");
            return Err(self.at_line(bad(message)));
        }
        if !whole(rest, self.columns.len()) {
            return Ok(None);
        }
        self.line += 1;
        for at in 0..self.columns.len() {
            let Some((length, after)) = rest.split_first_chunk() else { return Ok(None) };
            let length = i32::from_be_bytes(*length);
            let value = match usize::try_from(length) {
                Ok(length) => {
                    let Some((value, after)) = after.split_at_checked(length) else {
                        return Ok(None);
                    };
                    rest = after;
                    Some(value)
                }
                Err(_) if length == -1 => {
                    rest = after;
                    None
                }
                Err(_) => return Err(self.at_column(at, bad("invalid field size"))),
            };
            let appended = match (self.builders.get_mut(at), value) {
                (Some(builder), Some(value)) => builder.append_binary(value),
                (Some(builder), None) => {
                    builder.append_null();
                    Ok(())
                }
                (None, _) => Ok(()),
            };
            appended.map_err(|error| self.at_column(at, error))?;
        }
        self.rows += 1;
        Ok(Some(rest))
    }

    fn at_line(&self, mut error: Error) -> Error {
        error.context = Some(format!("COPY {}, line {}", self.table, self.line.max(1)));
        error
    }

    fn at_column(&self, at: usize, mut error: Error) -> Error {
        let column = self.columns.get(at).map_or("", |column| column.name.as_str());
        error.context = Some(format!("COPY {}, line {}, column {column}", self.table, self.line));
        error
    }
}

/// Whether all of so many fields is here. A length that is not valid counts as here: reading it gives the error.
fn whole(mut rest: &[u8], fields: usize) -> bool {
    for _ in 0..fields {
        let Ok(length) = rest.try_get_i32() else { return false };
        match usize::try_from(length) {
            Ok(length) if length > rest.len() => return false,
            Ok(length) => rest.advance(length),
            Err(_) if length == -1 => {}
            Err(_) => return true,
        }
    }
    true
}

/// What follows the header; `None` when not all of it is here.
fn header(data: &[u8]) -> Result<Option<&[u8]>, Error> {
    let common = data.len().min(SIGNATURE.len());
    if data.get(..common) != SIGNATURE.get(..common) {
        return Err(bad("COPY file signature not recognized"));
    }
    let Some((head, rest)) = data.split_at_checked(HEADER_BYTES) else { return Ok(None) };
    let mut numbers = head.get(SIGNATURE.len()..).unwrap_or_default();
    let (flags, extension) = (numbers.get_u32(), numbers.get_i32());
    if flags & CRITICAL_FLAGS != 0 {
        return Err(bad("unrecognized critical flags in COPY file header"));
    }
    let Ok(extension) = usize::try_from(extension) else {
        return Err(bad("invalid COPY file header (wrong length)"));
    };
    if extension > BLOCK_BYTES {
        return Err(bad("invalid COPY file header (wrong length)"));
    }
    Ok(rest.get(extension..))
}

fn bad(message: impl std::fmt::Display) -> Error {
    Error::of("22P04", message)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, types::Int32Type};
    use hypertide_proto::schema::ColumnType;

    use super::*;

    fn tuples() -> Tuples {
        let column = |name: &str, column_type| Column::new(name, column_type);
        let columns = vec![column("n", ColumnType::Integer), column("t", ColumnType::Text)];
        Tuples::new("m", columns, Zone::UTC)
    }

    fn data(tuples: &[(Option<i32>, &str)]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 2, 9, 9]);
        for (number, text) in tuples {
            out.extend_from_slice(&2_i16.to_be_bytes());
            match number {
                Some(number) => {
                    out.extend_from_slice(&4_i32.to_be_bytes());
                    out.extend_from_slice(&number.to_be_bytes());
                }
                None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
            }
            out.extend_from_slice(&(text.len() as i32).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(&(-1_i16).to_be_bytes());
        out
    }

    #[test]
    fn tuples_are_read_however_they_are_cut() {
        let whole = data(&[(Some(7), "seven"), (None, ""), (Some(-1), "é")]);
        for size in [1, 2, 3, 7, 16, whole.len()] {
            let mut reader = tuples();
            for piece in whole.chunks(size) {
                reader.push(piece);
                reader.read(false).unwrap();
            }
            reader.read(true).unwrap();
            assert_eq!(reader.rows(), 3, "pieces of {size}");
            let columns = reader.take();
            let numbers: Vec<Option<i32>> = columns[0].as_primitive::<Int32Type>().iter().collect();
            assert_eq!(numbers, [Some(7), None, Some(-1)]);
            let texts: Vec<_> = columns[1].as_string::<i32>().iter().flatten().collect();
            assert_eq!(texts, ["seven", "", "é"]);
        }
    }

    #[test]
    fn broken_data_is_refused_with_its_place() {
        let whole = data(&[(Some(7), "seven"), (Some(8), "eight")]);
        let read = |bytes: &[u8]| {
            let mut reader = tuples();
            reader.push(bytes);
            reader.read(true).map(|()| reader.rows())
        };
        let failed = |bytes: &[u8]| read(bytes).unwrap_err();
        assert_eq!(failed(b"2020-01-01,1\n").state.0, "22P04");
        assert_eq!(failed(&whole[..10]).message, "COPY file signature not recognized");
        assert_eq!(failed(&whole[..41]).message, "unexpected EOF in COPY data");
        assert_eq!(read(&whole[..40]).unwrap(), 1, "the end mark may be missing");
        let mut more = whole.clone();
        more.push(0);
        assert_eq!(failed(&more).message, "received copy data after EOF marker");
        let mut flags = whole.clone();
        flags[12] = 1;
        assert_eq!(failed(&flags).message, "unrecognized critical flags in COPY file header");
        let mut count = whole.clone();
        count[22] = 3;
        assert_eq!(failed(&count).message, "row field count is 3, expected 2");
        let mut size = whole.clone();
        size[26] = 3;
        size.remove(27);
        let error = failed(&size);
        assert_eq!(error.state.0, "22P03");
        assert_eq!(error.context.as_deref(), Some("COPY m, line 1, column n"));
        let mut negative = whole;
        negative[23] = 0x80;
        assert_eq!(failed(&negative).message, "invalid field size");
    }
}
