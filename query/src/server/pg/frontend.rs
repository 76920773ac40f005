//! What clients say: framing with limits, and a decoder that trusts no count and no length.

use bytes::{Buf, Bytes, BytesMut};
use tokio::{io::AsyncReadExt, net::tcp::OwnedReadHalf};

use super::connection::Stop;
use crate::{Error, SqlState};

/// Longest message that carries a statement, parameters or data.
const LARGE_BYTES_MAX: usize = 64 << 20;
/// Longest message of any other kind, and of startup, as in PostgreSQL.
const SMALL_BYTES_MAX: usize = 10_000;
/// Most bytes read ahead while a statement runs.
const READ_AHEAD_BYTES: usize = 256 << 10;
/// How much room a read gets at least.
const READ_BYTES: usize = 64 << 10;
/// Bytes of the type and the length.
const HEADER_BYTES: usize = 5;

/// SQLSTATE of a broken protocol.
pub(super) const PROTOCOL_VIOLATION: SqlState = SqlState("08P01");
/// SQLSTATE of text that is not UTF-8.
const NOT_IN_ENCODING: SqlState = SqlState("22021");

/// What Describe and Close are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A prepared statement.
    Statement(String),
    /// A portal.
    Portal(String),
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// As text.
    Text,
    /// As the type's bytes.
    Binary,
}

/// Parameters for a prepared statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bind {
    /// Name of the portal to make.
    pub(super) portal: String,
    /// Name of the statement.
    pub(super) statement: String,
    /// Formats of the values: none, one for all, or one each.
    pub(super) formats: Vec<Format>,
    /// Values.
    pub(super) values: Vec<Option<Bytes>>,
    /// Formats of the result's columns: none, one for all, or one each.
    pub(super) results: Vec<Format>,
}

/// A message of a client after startup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frontend {
    /// Statements of the simple protocol.
    Query(String),
    /// A statement to prepare, with the types of its first parameters; 0 is unspecified.
    Parse { name: String, sql: String, types: Vec<u32> },
    /// Parameters for a statement.
    Bind(Box<Bind>),
    /// A question for parameters and columns.
    Describe(Target),
    /// A portal to run, for so many rows; 0 is all.
    Execute { portal: String, rows: usize },
    /// A statement or portal to forget.
    Close(Target),
    /// Send what is buffered.
    Flush,
    /// The end of a series of the extended protocol.
    Sync,
    /// Rows of a COPY, cut anywhere.
    CopyData(Bytes),
    /// The end of a COPY.
    CopyDone,
    /// The client gives up its COPY, with a reason.
    CopyFail(String),
    /// Goodbye.
    Terminate,
    /// Well framed, but not to be run: its text is not UTF-8, or it is not supported.
    Refused { error: Error, extended: bool },
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Reader {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    /// A reader of this half.
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self { half, buffer: BytesMut::new() }
    }

    /// The next message, when it comes.
    pub(super) async fn next(&mut self) -> Result<Frontend, Stop> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message, if all of it is here.
    pub(super) fn buffered(&mut self) -> Result<Option<Frontend>, Stop> {
        take_message(&mut self.buffer).map_err(Stop::Fatal)
    }

    /// The next CopyData, if all of it is here; any other message stays.
    pub(super) fn buffered_copy_data(&mut self) -> Result<Option<Bytes>, Stop> {
        if self.buffer.first() != Some(&b'd') {
            return Ok(None);
        }
        match self.buffered()? {
            Some(Frontend::CopyData(data)) => Ok(Some(data)),
            _ => Ok(None),
        }
    }

    /// The next packet of startup, without its length.
    pub(super) async fn startup_packet(&mut self) -> Result<Bytes, Stop> {
        loop {
            if let Some(packet) = take_startup(&mut self.buffer).map_err(Stop::Fatal)? {
                return Ok(packet);
            }
            self.fill().await?;
        }
    }

    /// Whether the next message is here, and is Sync.
    pub(super) fn sync_follows(&self) -> bool {
        self.buffer.first() == Some(&b'S')
    }

    /// Whether bytes came that nobody has asked for yet.
    pub(super) fn pending(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Reads ahead within bounds; returns only when the client is gone.
    pub(super) async fn closed(&mut self) -> Stop {
        while self.buffer.len() < READ_AHEAD_BYTES {
            if let Err(stop) = self.fill().await {
                return stop;
            }
        }
        std::future::pending().await
    }

    async fn fill(&mut self) -> Result<(), Stop> {
        self.buffer.reserve(READ_BYTES);
        match self.half.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(Stop::Gone),
            Ok(_) => Ok(()),
        }
    }
}

/// Takes a packet of startup from the buffer, if all of it is here.
fn take_startup(buffer: &mut BytesMut) -> Result<Option<Bytes>, Error> {
    let Some(length) = buffer.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else {
        return Ok(None);
    };
    let length = length as usize;
    if !(8..=SMALL_BYTES_MAX).contains(&length) {
        return Err(Error::new(PROTOCOL_VIOLATION, "invalid length of startup packet"));
    }
    if buffer.len() < length {
        return Ok(None);
    }
    let mut packet = buffer.split_to(length);
    packet.advance(4);
    Ok(Some(packet.freeze()))
}

/// Takes a message from the buffer, if all of it is here.
fn take_message(buffer: &mut BytesMut) -> Result<Option<Frontend>, Error> {
    let Some([kind, length @ ..]) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let (kind, length) = (*kind, u32::from_be_bytes(*length) as usize);
    let most = match kind {
        b'Q' | b'P' | b'B' | b'd' | b'F' => LARGE_BYTES_MAX,
        b'D' | b'E' | b'C' | b'H' | b'S' | b'X' | b'c' | b'f' | b'p' => SMALL_BYTES_MAX,
        other => {
            let message = format!("invalid frontend message type {other}");
            return Err(Error::new(PROTOCOL_VIOLATION, message));
        }
    };
    if !(4..=most).contains(&length) {
        let message = format!("message of type {:?} has length {length}", char::from(kind));
        let mut error = Error::new(PROTOCOL_VIOLATION, message);
        error.detail = Some(format!("The length must be between 4 and {most}."));
        return Err(error);
    }
    if buffer.len() <= length {
        return Ok(None);
    }
    let mut frame = buffer.split_to(length + 1);
    frame.advance(HEADER_BYTES);
    decode(kind, frame.freeze()).map(Some)
}

fn decode(kind: u8, body: Bytes) -> Result<Frontend, Error> {
    if kind == b'd' {
        return Ok(Frontend::CopyData(body));
    }
    let mut fields = Fields(body);
    match fields.decode(kind) {
        Ok(message) if fields.0.is_empty() => Ok(message),
        Ok(_) => Err(malformed(kind)),
        Err(Bad::Frame) => Err(malformed(kind)),
        Err(Bad::Text) => {
            let error = Error::new(NOT_IN_ENCODING, "invalid byte sequence for encoding \"UTF8\"");
            Ok(Frontend::Refused { error, extended: kind != b'Q' })
        }
        Err(Bad::Unsupported) => {
            let error = Error::new(SqlState("0A000"), "function calls are not supported");
            Ok(Frontend::Refused { error, extended: false })
        }
    }
}

fn malformed(kind: u8) -> Error {
    let message = format!("message of type {:?} does not have its form", char::from(kind));
    Error::new(PROTOCOL_VIOLATION, message)
}

/// Why a message could not be decoded.
enum Bad {
    /// Lengths or counts that do not fit the message.
    Frame,
    /// Text that is not UTF-8.
    Text,
    /// A kind of message that is understood but not served.
    Unsupported,
}

/// A cursor over the body of a message.
struct Fields(Bytes);

impl Fields {
    fn decode(&mut self, kind: u8) -> Result<Frontend, Bad> {
        Ok(match kind {
            b'Q' => Frontend::Query(self.text()?),
            b'P' => {
                let (name, sql) = (self.text()?, self.text()?);
                let types = self.list(|fields| fields.0.try_get_u32().map_err(|_| Bad::Frame))?;
                Frontend::Parse { name, sql, types }
            }
            b'B' => Frontend::Bind(Box::new(self.bind()?)),
            b'D' => Frontend::Describe(self.target()?),
            b'C' => Frontend::Close(self.target()?),
            b'E' => {
                let portal = self.text()?;
                let rows = self.0.try_get_i32().map_err(|_| Bad::Frame)?;
                // Zero and negative mean all rows.
                Frontend::Execute { portal, rows: usize::try_from(rows).unwrap_or(0) }
            }
            b'H' => Frontend::Flush,
            b'S' => Frontend::Sync,
            b'X' => Frontend::Terminate,
            b'c' => Frontend::CopyDone,
            b'f' => Frontend::CopyFail(self.text()?),
            b'F' => return Err(Bad::Unsupported),
            _ => return Err(Bad::Frame),
        })
    }

    fn bind(&mut self) -> Result<Bind, Bad> {
        Ok(Bind {
            portal: self.text()?,
            statement: self.text()?,
            formats: self.list(Self::format)?,
            values: self.list(Self::value)?,
            results: self.list(Self::format)?,
        })
    }

    /// Text up to a zero byte.
    fn text(&mut self) -> Result<String, Bad> {
        let end = memchr::memchr(0, &self.0).ok_or(Bad::Frame)?;
        let bytes = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(bytes.into()).map_err(|_| Bad::Text)
    }

    /// A count and as many items. Nothing is reserved for a count that the message has no room for.
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Bad>,
    ) -> Result<Vec<T>, Bad> {
        let count = self.0.try_get_u16().map_err(|_| Bad::Frame)?;
        if usize::from(count) * 2 > self.0.len() {
            return Err(Bad::Frame);
        }
        (0..count).map(|_| item(self)).collect()
    }

    fn format(&mut self) -> Result<Format, Bad> {
        match self.0.try_get_i16() {
            Ok(0) => Ok(Format::Text),
            Ok(1) => Ok(Format::Binary),
            _ => Err(Bad::Frame),
        }
    }

    fn value(&mut self) -> Result<Option<Bytes>, Bad> {
        let length = self.0.try_get_i32().map_err(|_| Bad::Frame)?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| Bad::Frame)?;
        if length > self.0.len() {
            return Err(Bad::Frame);
        }
        Ok(Some(self.0.split_to(length)))
    }

    fn target(&mut self) -> Result<Target, Bad> {
        match self.0.try_get_u8() {
            Ok(b'S') => self.text().map(Target::Statement),
            Ok(b'P') => self.text().map(Target::Portal),
            _ => Err(Bad::Frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn frame(kind: u8, body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.put_u8(kind);
        bytes.put_u32(u32::try_from(body.len()).unwrap() + 4);
        bytes.put_slice(body);
        bytes
    }

    #[test]
    fn a_message_split_at_every_byte_is_the_same_message() {
        let whole = frame(b'B', b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\0");
        let expected = take_message(&mut whole.clone()).unwrap().unwrap();
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert_eq!(take_message(&mut part).unwrap(), None, "cut at {cut}");
            part.extend_from_slice(&whole[cut..]);
            assert_eq!(take_message(&mut part).unwrap().unwrap(), expected);
            assert!(part.is_empty());
        }
        let Frontend::Bind(bind) = expected else { panic!("a bind") };
        assert_eq!(bind.values, [Some(Bytes::from_static(b"x")), None]);
        assert_eq!(bind.formats, [Format::Binary]);
    }

    #[test]
    fn every_truncation_of_a_body_is_refused() {
        let body = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x01\0\0";
        assert!(take_message(&mut frame(b'B', body)).unwrap().is_some());
        for cut in 0..body.len() {
            let error = take_message(&mut frame(b'B', &body[..cut])).unwrap_err();
            assert_eq!(error.state, PROTOCOL_VIOLATION, "cut at {cut}");
        }
    }

    #[test]
    fn lying_counts_and_lengths_are_refused() {
        for body in [
            &b"\0\0\xff\xff"[..],
            b"\0\0\0\0\xff\xff\0\0",
            b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0",
            b"\0\0\0\0\0\x01\x80\0\0\0\0\0",
            b"\0\0\0\0\0\0\xff\xff\0\0",
            b"\0\0\0\x01\0\x02\0\0\0\0",
        ] {
            let error = take_message(&mut frame(b'B', body)).unwrap_err();
            assert_eq!(error.state, PROTOCOL_VIOLATION, "{body:?}");
        }
        for (kind, body) in [(b'P', &b"\0select 1\0\xff\xff"[..]), (b'S', b"x"), (b'D', b"Q\0")] {
            assert!(take_message(&mut frame(kind, body)).is_err());
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_body_comes() {
        for (kind, length) in
            [(b'Q', 3_u32), (b'Q', 0), (b'Q', u32::MAX), (b'Q', (64 << 20) + 1), (b'S', 10_001)]
        {
            let mut bytes = BytesMut::from(&[kind][..]);
            bytes.put_u32(length);
            assert_eq!(take_message(&mut bytes).unwrap_err().state, PROTOCOL_VIOLATION);
        }
        assert!(take_message(&mut BytesMut::from(&b"~\0\0\0\x04"[..])).is_err());
    }

    #[test]
    fn startup_takes_only_lengths_that_can_be() {
        for length in 0..=10_002_u32 {
            let mut bytes = BytesMut::new();
            bytes.put_u32(length);
            assert_eq!(take_startup(&mut bytes).is_ok(), (8..=10_000).contains(&length));
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_but_in_frame() {
        let message = take_message(&mut frame(b'Q', b"select '\xff'\0")).unwrap().unwrap();
        let Frontend::Refused { error, extended } = message else { panic!("refused") };
        assert_eq!((error.state, extended), (NOT_IN_ENCODING, false));
    }
}
