//! Pure: the data of COPY FROM, in text or CSV, to columns of values.
//!
//! Data comes in pieces that are cut anywhere. They are gathered to blocks, and the whole rows of a block are read
//! column by column into builders; what is left of the last row waits for the next block.
//!
//! Most rows have neither quotes nor backslashes, and most blocks are valid text: that is found out once a block, and
//! once a row, and such rows are cut at their delimiters without a look at anything else.

use std::{borrow::Cow, ops::Range, str};

use arrow::array::ArrayRef;
use hypertide_proto::schema::Column;
use memchr::{memchr, memchr_iter, memchr2};

use super::{
    binary,
    copy_options::{Format, Header},
    value::ValueBuilder,
    zone::Zone,
};
use crate::Error;

/// Bytes that are gathered before they are read.
const BLOCK_BYTES: usize = 1 << 20;
/// Longest row.
const ROW_BYTES_MAX: usize = 256 << 20;
/// Text of a value or a row that an error shows.
const SHOWN_CHARS_MAX: usize = 100;

/// A column that the data has.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// The table's column.
    pub(crate) column: Column,
    /// Text of its default, for the DEFAULT marker; `None` for NULL.
    pub(crate) default: Option<String>,
}

/// Reads rows.
#[derive(Debug)]
pub(crate) struct Rows {
    table: String,
    format: Format,
    fields: Vec<Field>,
    force_not_null: Vec<bool>,
    force_null: Vec<bool>,
    builders: Vec<ValueBuilder>,
    pending: Vec<u8>,
    /// Size of `pending` from which on it is worth a look.
    wanted: usize,
    line: u64,
    rows: usize,
    header_seen: bool,
    ended: bool,
}

/// A value as it was found.
struct Found<'a> {
    /// As it stands in the data, to compare with the marks of NULL and DEFAULT.
    raw: &'a [u8],
    /// What it means.
    value: Cow<'a, [u8]>,
    quoted: bool,
}

/// A row as it was cut from the data.
#[derive(Clone, Copy)]
struct Cut<'a> {
    /// Without its line end.
    row: &'a [u8],
    /// Where the next begins.
    next: usize,
    /// Whether it has neither quotes nor backslashes.
    plain: bool,
}

impl Rows {
    /// A reader of these columns, in the order of the data.
    pub(crate) fn new(
        table: &str,
        format: Format,
        fields: Vec<Field>,
        zone: Zone,
    ) -> Result<Self, Error> {
        let flags = |names: &[String]| -> Result<Vec<bool>, Error> {
            let known = |name: &String| {
                name == "*" || fields.iter().any(|field| field.column.name == *name)
            };
            if let Some(unknown) = names.iter().find(|name| !known(name)) {
                return Err(Error::of(
                    "42P10",
                    format_args!("column \"{unknown}\" is not among those copied"),
                ));
            }
            let named =
                |field: &Field| names.iter().any(|name| name == "*" || *name == field.column.name);
            Ok(fields.iter().map(named).collect())
        };
        Ok(Self {
            table: table.to_owned(),
            force_not_null: flags(&format.force_not_null)?,
            force_null: flags(&format.force_null)?,
            builders: fields
                .iter()
                .map(|field| ValueBuilder::new(field.column.column_type, zone))
                .collect(),
            header_seen: format.header == Header::None,
            format,
            fields,
            pending: Vec::new(),
            wanted: BLOCK_BYTES,
            line: 0,
            rows: 0,
            ended: false,
        })
    }

    /// Adds a piece; true when there is enough to call [`Rows::read`].
    pub(crate) fn push(&mut self, piece: &[u8]) -> bool {
        if !self.ended {
            self.pending.extend_from_slice(piece);
        }
        self.pending.len() >= self.wanted
    }

    /// Reads all whole rows; with `end` the last needs no line end.
    pub(crate) fn read(&mut self, end: bool) -> Result<(), Error> {
        let block = std::mem::take(&mut self.pending);
        // Text between delimiters that are no characters of their own would be cut within one.
        let cuts = self.format.delimiter.is_ascii() && !self.fields.is_empty();
        let valid = if cuts { valid_text(&block) } else { "" };
        let mut at = 0;
        while at < block.len() && !self.ended {
            let rest = block.get(at..).unwrap_or_default();
            let cut = match self.format.csv {
                true => self.csv_row(rest, end)?,
                false => self.text_row(rest, end),
            };
            let Some(Cut { row, next, plain }) = cut else { break };
            self.line += 1;
            match valid.get(at..at + row.len()).filter(|_| plain && self.header_seen) {
                Some(row) => self.plain_row(row)?,
                None => self.row(row)?,
            }
            if self.format.csv && !plain {
                self.line += row.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
            at += next;
        }
        if !self.ended {
            self.pending = block.get(at..).unwrap_or_default().to_vec();
        }
        if self.pending.len() > ROW_BYTES_MAX {
            return Err(self.at_line(
                Error::of("54000", format_args!("row is longer than {ROW_BYTES_MAX} bytes")),
                b"",
            ));
        }
        // A row that is longer than a block is not looked through again for every piece of it.
        self.wanted = BLOCK_BYTES.max(2 * self.pending.len());
        Ok(())
    }

    /// Rows read since the last [`Rows::take`].
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The rows read so far, as columns in the order of the data.
    pub(crate) fn take(&mut self) -> Vec<ArrayRef> {
        self.rows = 0;
        self.builders.iter_mut().map(ValueBuilder::finish).collect()
    }

    /// A row of the text format.
    fn text_row<'a>(&self, rest: &'a [u8], end: bool) -> Option<Cut<'a>> {
        let cut = |row: &'a [u8], next| Cut {
            row: without_return(row),
            next,
            plain: memchr(b'\\', row).is_none(),
        };
        let mut from = 0;
        loop {
            let found = memchr(b'\n', rest.get(from..)?);
            let Some(at) = found.map(|at| from + at) else {
                return end.then(|| cut(rest, rest.len()));
            };
            let row = rest.get(..at)?;
            // A newline after a backslash belongs to the value.
            let slashes = row.iter().rev().take_while(|byte| **byte == b'\\').count();
            if slashes % 2 == 0 {
                return Some(cut(row, at + 1));
            }
            from = at + 1;
        }
    }

    /// A row of CSV.
    fn csv_row<'a>(&self, rest: &'a [u8], end: bool) -> Result<Option<Cut<'a>>, Error> {
        let quote = self.format.quote;
        let (mut at, mut within, mut plain) = (0, false, true);
        loop {
            let tail = rest.get(at..).unwrap_or_default();
            let found = match within {
                true => memchr2(quote, self.format.escape, tail),
                false => memchr2(quote, b'\n', tail),
            };
            let Some(offset) = found else {
                return match (end, within) {
                    (false, _) => Ok(None),
                    (true, true) => {
                        Err(self.at_line(Error::of("22P04", "unterminated CSV quoted field"), rest))
                    }
                    (true, false) => {
                        Ok(Some(Cut { row: without_return(rest), next: rest.len(), plain }))
                    }
                };
            };
            at += offset;
            let byte = rest.get(at).copied();
            if byte == Some(b'\n') && !within {
                let row = without_return(rest.get(..at).unwrap_or_default());
                return Ok(Some(Cut { row, next: at + 1, plain }));
            }
            plain = false;
            // An escape of its own kind takes the byte after it along; a doubled quote opens again at once.
            let escape = within && byte == Some(self.format.escape) && self.format.escape != quote;
            let follows =
                rest.get(at + 1).is_some_and(|next| *next == quote || *next == self.format.escape);
            if escape {
                at += if follows { 2 } else { 1 };
            } else {
                within = !within;
                at += 1;
            }
        }
    }

    fn row(&mut self, row: &[u8]) -> Result<(), Error> {
        if row == b"\\." {
            self.ended = true;
            return Ok(());
        }
        if !self.header_seen {
            self.header_seen = true;
            return self.header(row);
        }
        let mut cursor = 0..row.len();
        let last = self.fields.len().saturating_sub(1);
        let mut more = true;
        for number in 0..self.fields.len() {
            if !more {
                let name = self.fields.get(number).map_or("", |field| field.column.name.as_str());
                let error = Error::of("22P04", format_args!("missing data for column \"{name}\""));
                return Err(self.at_line(error, row));
            }
            let (found, rest) = self.next(row, cursor)?;
            more = rest.is_some();
            cursor = rest.unwrap_or(row.len()..row.len());
            if number == last && more {
                let error = Error::of("22P04", "extra data after last expected column");
                return Err(self.at_line(error, row));
            }
            self.append(number, &found)?;
        }
        self.rows += 1;
        Ok(())
    }

    /// [`Rows::row`] of one that stands for itself from delimiter to delimiter.
    fn plain_row(&mut self, row: &str) -> Result<(), Error> {
        if row == "\\." {
            self.ended = true;
            return Ok(());
        }
        let last = self.fields.len().saturating_sub(1);
        let (mut start, mut number) = (0, 0);
        for end in memchr_iter(self.format.delimiter, row.as_bytes()).chain([row.len()]) {
            if number == last && end < row.len() {
                let error = Error::of("22P04", "extra data after last expected column");
                return Err(self.at_line(error, row.as_bytes()));
            }
            let value = row.get(start..end).unwrap_or_default();
            self.append_plain(number, value)?;
            (start, number) = (end + 1, number + 1);
        }
        if let Some(field) = self.fields.get(number) {
            let name = &field.column.name;
            let error = Error::of("22P04", format_args!("missing data for column \"{name}\""));
            return Err(self.at_line(error, row.as_bytes()));
        }
        self.rows += 1;
        Ok(())
    }

    fn append_plain(&mut self, number: usize, value: &str) -> Result<(), Error> {
        let (Some(builder), Some(field)) = (self.builders.get_mut(number), self.fields.get(number))
        else {
            return Err(Error::of("XX000", "a value without a column"));
        };
        let given = self.format.default.as_deref() == Some(value);
        let result = match &field.default {
            Some(text) if given => builder.append_text(text),
            None if given => {
                builder.append_null();
                Ok(())
            }
            _ if value == self.format.null
                && !self.force_not_null.get(number).is_some_and(|forced| *forced) =>
            {
                builder.append_null();
                Ok(())
            }
            _ => builder.append_text(value),
        };
        result.map_err(|error| self.at_column(error, &field.column.name, value.as_bytes()))
    }

    /// The value at the front of `left`, and what is left after its delimiter.
    fn next<'a>(
        &self,
        row: &'a [u8],
        left: Range<usize>,
    ) -> Result<(Found<'a>, Option<Range<usize>>), Error> {
        let rest = row.get(left.clone()).unwrap_or_default();
        let (found, used) = match self.format.csv {
            true => self.next_csv(row, rest)?,
            false => self.next_text(rest),
        };
        let after = (used < rest.len()).then(|| left.start + used + 1..left.end);
        Ok((found, after))
    }

    fn next_text<'a>(&self, rest: &'a [u8]) -> (Found<'a>, usize) {
        let delimiter = self.format.delimiter;
        match memchr2(delimiter, b'\\', rest) {
            Some(at) if rest.get(at) == Some(&b'\\') => {
                let mut end = at;
                while let Some(byte) = rest.get(end).filter(|byte| **byte != delimiter) {
                    end += if *byte == b'\\' { 2 } else { 1 };
                }
                let end = end.min(rest.len());
                let raw = rest.get(..end).unwrap_or_default();
                (Found { raw, value: Cow::Owned(unescape(raw)), quoted: false }, end)
            }
            found => {
                let end = found.unwrap_or(rest.len());
                let raw = rest.get(..end).unwrap_or_default();
                (Found { raw, value: Cow::Borrowed(raw), quoted: false }, end)
            }
        }
    }

    fn next_csv<'a>(&self, row: &[u8], rest: &'a [u8]) -> Result<(Found<'a>, usize), Error> {
        let Format { delimiter, quote, escape, .. } = self.format;
        let plain = memchr2(delimiter, quote, rest);
        if plain.is_none_or(|at| rest.get(at) == Some(&delimiter)) {
            let end = plain.unwrap_or(rest.len());
            let raw = rest.get(..end).unwrap_or_default();
            return Ok((Found { raw, value: Cow::Borrowed(raw), quoted: false }, end));
        }
        let (mut value, mut at, mut within) = (Vec::new(), 0, false);
        while let Some(&byte) = rest.get(at) {
            let next = rest.get(at + 1).copied();
            match byte {
                byte if within
                    && byte == escape
                    && (next == Some(quote) || (next == Some(escape) && escape != quote)) =>
                {
                    value.extend(next);
                    at += 1;
                }
                byte if byte == quote => within = !within,
                byte if byte == delimiter && !within => break,
                byte => value.push(byte),
            }
            at += 1;
        }
        if within {
            return Err(self.at_line(Error::of("22P04", "unterminated CSV quoted field"), row));
        }
        let raw = rest.get(..at).unwrap_or_default();
        Ok((Found { raw, value: Cow::Owned(value), quoted: true }, at))
    }

    fn append(&mut self, number: usize, found: &Found<'_>) -> Result<(), Error> {
        let flag = |flags: &[bool]| flags.get(number).copied().unwrap_or(false);
        let null = self.format.null.as_bytes();
        let is_null = match found.quoted {
            true => flag(&self.force_null) && *found.value == *null,
            false => !flag(&self.force_not_null) && found.raw == null,
        };
        let is_default = !found.quoted
            && self.format.default.as_deref().is_some_and(|mark| found.raw == mark.as_bytes());
        let (Some(builder), Some(field)) = (self.builders.get_mut(number), self.fields.get(number))
        else {
            return Err(Error::of("XX000", "a value without a column"));
        };
        let result = if is_default {
            match &field.default {
                Some(text) => builder.append_text(text),
                None => {
                    builder.append_null();
                    Ok(())
                }
            }
        } else if is_null {
            builder.append_null();
            Ok(())
        } else {
            binary::text(&found.value).and_then(|text| builder.append_text(text))
        };
        result.map_err(|error| self.at_column(error, &field.column.name, &found.value))
    }

    fn header(&self, row: &[u8]) -> Result<(), Error> {
        if self.format.header != Header::Match {
            return Ok(());
        }
        let mut names = Vec::new();
        let mut left = Some(0..row.len());
        while let Some(range) = left {
            let (found, rest) = self.next(row, range)?;
            names.push(String::from_utf8_lossy(&found.value).into_owned());
            left = rest;
        }
        if names.len() != self.fields.len() {
            let message = format_args!(
                "wrong number of fields in header line: got {}, expected {}",
                names.len(),
                self.fields.len()
            );
            return Err(self.at_line(Error::of("22P04", message), row));
        }
        let mut pairs = names.iter().zip(&self.fields).enumerate();
        let other = pairs.find(|(_, (name, field))| **name != field.column.name);
        if let Some((at, (name, field))) = other {
            let wanted = &field.column.name;
            let message = format_args!(
                "column name mismatch in header line field {}: got \"{name}\", expected \"{wanted}\"",
                at + 1
            );
            return Err(self.at_line(Error::of("22P04", message), row));
        }
        Ok(())
    }

    fn at_line(&self, mut error: Error, row: &[u8]) -> Error {
        let line = self.line.max(1);
        error.context = Some(format!("COPY {}, line {line}: \"{}\"", self.table, shown(row)));
        error
    }

    fn at_column(&self, mut error: Error, column: &str, value: &[u8]) -> Error {
        let (table, line) = (&self.table, self.line);
        error.context =
            Some(format!("COPY {table}, line {line}, column {column}: \"{}\"", shown(value)));
        error
    }
}

/// The front of a block that is valid text throughout.
fn valid_text(block: &[u8]) -> &str {
    let valid = match str::from_utf8(block) {
        Ok(_) => block,
        Err(error) => block.get(..error.valid_up_to()).unwrap_or_default(),
    };
    let whole = memchr(0, valid).map_or(valid, |at| valid.get(..at).unwrap_or_default());
    str::from_utf8(whole).unwrap_or_default()
}

fn without_return(row: &[u8]) -> &[u8] {
    row.strip_suffix(b"\r").unwrap_or(row)
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}...", text.split_at(at).0),
        None => text.into_owned(),
    }
}

/// What backslashes in the text format mean.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        let Some((&escaped, after)) = rest.split_first() else {
            value.push(b'\\');
            break;
        };
        rest = after;
        match escaped {
            b'b' => value.push(0x08),
            b'f' => value.push(0x0c),
            b'n' => value.push(b'\n'),
            b'r' => value.push(b'\r'),
            b't' => value.push(b'\t'),
            b'v' => value.push(0x0b),
            b'0'..=b'7' => {
                let (mut code, mut digits) = (u32::from(escaped - b'0'), 1);
                while let Some((&digit, after)) = rest
                    .split_first()
                    .filter(|(digit, _)| digits < 3 && (b'0'..=b'7').contains(*digit))
                {
                    code = code * 8 + u32::from(digit - b'0');
                    digits += 1;
                    rest = after;
                }
                value.push((code & 0xff) as u8);
            }
            b'x' if rest.first().is_some_and(u8::is_ascii_hexdigit) => {
                let length =
                    rest.iter().take(2).take_while(|digit| digit.is_ascii_hexdigit()).count();
                let (digits, after) = rest.split_at(length);
                let text = str::from_utf8(digits).unwrap_or_default();
                value.push(u8::from_str_radix(text, 16).unwrap_or_default());
                rest = after;
            }
            other => value.push(other),
        }
    }
    value
}

#[cfg(test)]
#[path = "copy_rows_tests.rs"]
mod tests;
