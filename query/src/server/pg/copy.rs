//! Rows of COPY in both directions, with back-pressure: a piece is taken when the one before was.

use bytes::{Bytes, BytesMut};
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, stream::BoxStream};
use pgwire::messages::{PgWireBackendMessage as Message, copy::CopyDone};

use super::{
    connection::{Connection, Fault, QUERY_CANCELED, Stop},
    encode::Rows,
    frontend::{Format, Frontend, PROTOCOL_VIOLATION},
    portal::result_types,
};
use crate::{CopyIn, CopyLines, CopyOut, Error, sql::binary::SIGNATURE};

/// Messages are joined up to this size: clients like psql send one a line.
const PIECE_BYTES: usize = 256 << 10;

/// A count of fields that no tuple has: the end of a binary COPY.
const TUPLES_END: [u8; 2] = (-1_i16).to_be_bytes();

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
    pub(super) async fn copy_out(&mut self, columns: usize, rows: CopyOut) -> Result<(), Fault> {
        self.writer.copy_out(columns, matches!(rows, CopyOut::Binary(_)))?;
        let count = match rows {
            CopyOut::Lines { header, rows } => self.copy_lines(header, rows).await?,
            CopyOut::Binary(batches) => self.copy_tuples(batches).await?,
        };
        self.writer.put(&Message::CopyDone(CopyDone::new()))?;
        Ok(self.writer.complete(format!("COPY {count}"))?)
    }

    async fn copy_lines(
        &mut self,
        header: Option<Vec<u8>>,
        mut pieces: BoxStream<'static, Result<CopyLines, Error>>,
    ) -> Result<usize, Fault> {
        if let Some(header) = header {
            self.writer.copy_data(&header);
        }
        let mut count = 0;
        while let Some(piece) = self.watch.over(&mut self.reader, pieces.next()).await? {
            let piece = piece?;
            count += piece.ends.len();
            for row in piece.rows() {
                self.copy_row(row).await?;
            }
        }
        Ok(count)
    }

    async fn copy_tuples(
        &mut self,
        mut batches: SendableRecordBatchStream,
    ) -> Result<usize, Fault> {
        let types = result_types(&batches.schema(), &[Format::Binary])?;
        let style = self.session.settings().text_style();
        let (mut count, mut tuple) = (0, binary_header());
        while let Some(batch) = self.watch.over(&mut self.reader, batches.next()).await? {
            let mut rows = Rows::new(&batch.map_err(Error::from)?, &types, style)?;
            while rows.copy_next(&mut tuple) {
                count += 1;
                self.copy_row(&tuple).await?;
                tuple.clear();
            }
        }
        tuple.extend_from_slice(&TUPLES_END);
        self.copy_row(&tuple).await?;
        Ok(count)
    }

    /// Sends one row as one message, which clients rely on to tell rows apart. The header of the binary format comes
    /// with the first.
    async fn copy_row(&mut self, row: &[u8]) -> Result<(), Fault> {
        self.writer.copy_data(row);
        if self.writer.large() {
            self.watch.over(&mut self.reader, self.writer.flush()).await??;
        }
        Ok(())
    }
}

/// Signature, no flags, no extension.
fn binary_header() -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[0; 8]);
    header
}
