//! What the server says: one output buffer, flushed when it is large or when the client waits.

use std::time::Duration;

use bytes::BytesMut;
use pgwire::messages::{
    PgWireBackendMessage as Message,
    copy::{CopyInResponse, CopyOutResponse},
    response::{
        CommandComplete, ErrorResponse, NoticeResponse, ReadyForQuery,
        TransactionStatus as ReadyStatus,
    },
    startup::ParameterStatus,
};
use tokio::{io::AsyncWriteExt, net::tcp::OwnedWriteHalf, time::timeout};

use super::connection::Stop;
use crate::{Error, Notice, SqlState, TransactionStatus};

/// The buffer is sent when it holds this much.
const FLUSH_BYTES: usize = 64 << 10;
/// A client that takes nothing for so long is given up.
const STALL_MAX: Duration = Duration::from_secs(300);
/// Longest text of one field of an error or notice; pgwire bounds the whole message.
const FIELD_BYTES_MAX: usize = 6_000;

/// The sending half of a connection.
#[derive(Debug)]
pub(super) struct Writer {
    half: OwnedWriteHalf,
    buffer: Vec<u8>,
    /// How much of the buffer went out already.
    sent: usize,
    /// Where pgwire encodes a message, kept for its room.
    message: BytesMut,
}

impl Writer {
    /// A writer to this half.
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self { half, buffer: Vec::with_capacity(FLUSH_BYTES), sent: 0, message: BytesMut::new() }
    }

    /// Where rows are encoded to.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Whether the buffer is worth sending.
    pub(super) fn large(&self) -> bool {
        self.buffer.len() >= FLUSH_BYTES
    }

    /// Buffers a message.
    pub(super) fn put(&mut self, message: &Message) -> Result<(), Stop> {
        self.message.clear();
        message.encode(&mut self.message).map_err(|error| {
            let message = format!("could not encode a message: {error}");
            Stop::Fatal(Error::new(SqlState("XX000"), message))
        })?;
        self.buffer.extend_from_slice(&self.message);
        Ok(())
    }

    /// Buffers the end of a statement.
    pub(super) fn complete(&mut self, tag: String) -> Result<(), Stop> {
        self.put(&Message::CommandComplete(CommandComplete::new(tag)))
    }

    /// Buffers the state of the transaction block.
    pub(super) fn ready(&mut self, status: TransactionStatus) -> Result<(), Stop> {
        let status = match status {
            TransactionStatus::Idle => ReadyStatus::Idle,
            TransactionStatus::Open => ReadyStatus::Transaction,
            TransactionStatus::Failed => ReadyStatus::Error,
        };
        self.put(&Message::ReadyForQuery(ReadyForQuery::new(status)))
    }

    /// Buffers an error. `position` counts characters from 1.
    pub(super) fn error(
        &mut self,
        severity: &str,
        error: &Error,
        position: Option<usize>,
    ) -> Result<(), Stop> {
        let mut fields = vec![
            field(b'S', severity),
            field(b'V', severity),
            field(b'C', error.state.0),
            field(b'M', &error.message),
        ];
        fields.extend(error.detail.as_deref().map(|text| field(b'D', text)));
        fields.extend(error.hint.as_deref().map(|text| field(b'H', text)));
        fields.extend(position.map(|at| field(b'P', &at.to_string())));
        fields.extend(error.context.as_deref().map(|text| field(b'W', text)));
        self.put(&Message::ErrorResponse(ErrorResponse::new(fields)))
    }

    /// Buffers a notice.
    pub(super) fn notice(&mut self, notice: &Notice) -> Result<(), Stop> {
        let mut fields = vec![
            field(b'S', notice.severity),
            field(b'V', notice.severity),
            field(b'C', notice.state.0),
            field(b'M', &notice.message),
        ];
        fields.extend(notice.detail.as_deref().map(|text| field(b'D', text)));
        fields.extend(notice.hint.as_deref().map(|text| field(b'H', text)));
        self.put(&Message::NoticeResponse(NoticeResponse::new(fields)))
    }

    /// Buffers the value of a setting.
    pub(super) fn parameter(&mut self, name: &str, value: &str) -> Result<(), Stop> {
        let status = ParameterStatus::new(name.to_owned(), clean(value));
        self.put(&Message::ParameterStatus(status))
    }

    /// Asks for the rows of a COPY.
    pub(super) fn copy_in(&mut self, columns: usize, binary: bool) -> Result<(), Stop> {
        let (count, formats) = copy_formats(columns, binary)?;
        let response = CopyInResponse::new(i8::from(binary), count, formats);
        self.put(&Message::CopyInResponse(response))
    }

    /// Announces the rows of a COPY.
    pub(super) fn copy_out(&mut self, columns: usize, binary: bool) -> Result<(), Stop> {
        let (count, formats) = copy_formats(columns, binary)?;
        let response = CopyOutResponse::new(i8::from(binary), count, formats);
        self.put(&Message::CopyOutResponse(response))
    }

    /// Buffers a row of a COPY.
    pub(super) fn copy_data(&mut self, data: &[u8]) {
        self.buffer.push(b'd');
        self.buffer.extend_from_slice(&(data.len() as u32 + 4).to_be_bytes());
        self.buffer.extend_from_slice(data);
    }

    /// Sends what is buffered. Dropped in the midst, it goes on where it was when called again.
    pub(super) async fn flush(&mut self) -> Result<(), Stop> {
        while let Some(rest) = self.buffer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match timeout(STALL_MAX, self.half.write(rest)).await {
                Ok(Ok(written)) if written > 0 => self.sent += written,
                _ => return Err(Stop::Gone),
            }
        }
        self.buffer.clear();
        self.sent = 0;
        Ok(())
    }
}

fn copy_formats(columns: usize, binary: bool) -> Result<(i16, Vec<i16>), Stop> {
    let count = i16::try_from(columns).map_err(|_| {
        let message = format!("COPY of {columns} columns does not fit the protocol");
        Stop::Fatal(Error::new(SqlState("54011"), message))
    })?;
    Ok((count, vec![i16::from(binary); columns]))
}

fn field(kind: u8, text: &str) -> (u8, String) {
    (kind, clean(text))
}

/// Text as a message can hold it: without zero bytes, and not too long.
fn clean(text: &str) -> String {
    let mut end = text.len().min(FIELD_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().replace('\0', "\u{fffd}")
}
