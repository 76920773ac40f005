//! Rows of COPY in both directions, with back-pressure: a piece is taken when the one before was.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use pgwire::messages::{PgWireBackendMessage as Message, copy::CopyDone};

use super::{
    connection::{Connection, Fault, QUERY_CANCELED, Stop},
    frontend::{Frontend, PROTOCOL_VIOLATION},
};
use crate::{CopyIn, Error};

/// Messages are joined up to this size: clients like psql send one a line.
const PIECE_BYTES: usize = 256 << 10;

/// How the data of a COPY ended.
enum Ended {
    /// With CopyDone.
    Done,
    /// The client gave it up or broke the protocol.
    Refused(Error),
}

impl Connection {
    /// Takes the rows of a COPY FROM STDIN, and answers with its end.
    pub(super) async fn copy_in(&mut self, mut copy: CopyIn) -> Result<(), Fault> {
        let ended = match self.copy_pieces(&mut copy).await {
            Ok(Ended::Done) => {
                // Not to be cancelled: a commit on its way ends one way or the other, within its own deadline.
                let tag = self.session.finish_copy(copy).await?;
                self.notices()?;
                return Ok(self.writer.complete(tag)?);
            }
            Ok(Ended::Refused(error)) => Fault::Statement(error),
            Err(fault) => fault,
        };
        self.session.abort_copy(copy).await;
        Err(ended)
    }

    async fn copy_pieces(&mut self, copy: &mut CopyIn) -> Result<Ended, Fault> {
        self.writer.copy_in(copy.columns, copy.binary)?;
        self.writer.flush().await?;
        loop {
            let next = self.reader.next();
            let message = tokio::select! {
                biased;
                message = next => message?,
                error = self.watch.ended() => return Err(error.into()),
            };
            match message {
                Frontend::CopyData(data) => {
                    let piece = self.join(data)?;
                    self.watch.over(&mut self.reader, copy.data(piece)).await??;
                }
                Frontend::CopyDone => return Ok(Ended::Done),
                Frontend::CopyFail(reason) => {
                    let message = format!("COPY from stdin failed: {reason}");
                    return Ok(Ended::Refused(Error::new(QUERY_CANCELED, message)));
                }
                // Clients may send them together with the COPY.
                Frontend::Flush | Frontend::Sync => {}
                Frontend::Terminate => return Err(Stop::Gone.into()),
                _ => {
                    let message = "unexpected message during COPY from stdin";
                    return Ok(Ended::Refused(Error::new(PROTOCOL_VIOLATION, message)));
                }
            }
        }
    }

    /// Joins data with the data that is here already.
    fn join(&mut self, first: Bytes) -> Result<Bytes, Stop> {
        let Some(second) = self.more_data(first.len())? else { return Ok(first) };
        let mut piece = BytesMut::with_capacity(PIECE_BYTES.max(first.len() + second.len()));
        piece.extend_from_slice(&first);
        piece.extend_from_slice(&second);
        while let Some(more) = self.more_data(piece.len())? {
            piece.extend_from_slice(&more);
        }
        Ok(piece.freeze())
    }

    fn more_data(&mut self, length: usize) -> Result<Option<Bytes>, Stop> {
        if length >= PIECE_BYTES { Ok(None) } else { self.reader.buffered_copy_data() }
    }

    /// Sends the rows of a COPY TO STDOUT.
    pub(super) async fn copy_out(
        &mut self,
        columns: usize,
        mut stream: BoxStream<'static, Result<Bytes, Error>>,
    ) -> Result<(), Fault> {
        self.writer.copy_out(columns)?;
        let mut rows = 0_u64;
        while let Some(lines) = self.watch.over(&mut self.reader, stream.next()).await? {
            let lines = lines?;
            rows += memchr::memchr_iter(b'\n', &lines).count() as u64;
            self.writer.copy_data(&lines);
            if self.writer.large() {
                self.watch.over(&mut self.reader, self.writer.flush()).await??;
            }
        }
        self.writer.put(&Message::CopyDone(CopyDone::new()))?;
        Ok(self.writer.complete(format!("COPY {rows}"))?)
    }
}
