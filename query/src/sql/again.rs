//! Once more at a fresh snapshot: what becomes of a query whose snapshot is too old.
//!
//! Chunks that were dropped, replicas that went elsewhere and rows that were deleted are kept for a minute. A query that
//! comes to them later cannot be answered as of its snapshot. As long as none of its rows was passed on, nobody has
//! seen that snapshot, and it may as well read at another: statements of a transaction see the commits of others one
//! statement after the other anyway. It does so once; a query that is too slow again says so.

use std::time::Instant;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    common::ScalarValue, error::DataFusionError, execution::SendableRecordBatchStream,
    physical_plan::stream::RecordBatchStreamAdapter, sql::sqlparser::ast::Statement as Ast,
};
use futures::{StreamExt, TryStreamExt, stream};
use hypertide_proto::ids::TxnId;

use super::query::{bind, plan};
use crate::{Error, Session, exec::fresh_snapshot_may_do, session::Frame};

/// A query that may be read again.
#[derive(Debug)]
pub(crate) struct Again {
    session: Session,
    own: Option<TxnId>,
    deadline: Instant,
    ast: Ast,
    values: Vec<ScalarValue>,
}

impl Again {
    /// For a statement that runs in this frame.
    pub(crate) fn new(session: &Session, frame: &Frame, query: (&Ast, &[ScalarValue])) -> Self {
        let (ast, values) = (query.0.clone(), query.1.to_vec());
        let (session, own) = (session.reader(), frame.snapshot.own);
        Self { session, own, deadline: frame.deadline, ast, values }
    }

    /// The rows of the statement, read again when they cannot be read at its snapshot and none was passed on.
    pub(crate) fn guard(self, mut rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let schema = rows.schema();
        let first = async move {
            loop {
                match rows.next().await {
                    Some(Ok(batch)) if batch.num_rows() == 0 => {}
                    Some(Err(error)) if fresh_snapshot_may_do(&error) => {
                        return self.read(error, &rows.schema()).await;
                    }
                    first => return Ok(stream::iter(first).chain(rows).boxed()),
                }
            }
        };
        let rows = stream::once(first).try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }

    /// The rows at a fresh snapshot. What the first try said stands when that has no answer of this shape.
    async fn read(
        mut self,
        error: DataFusionError,
        schema: &SchemaRef,
    ) -> Result<stream::BoxStream<'static, Result<RecordBatch, DataFusionError>>, DataFusionError>
    {
        tracing::info!("read again at a fresh snapshot: {error}");
        match self.run().await {
            Ok(rows) if rows.schema() == *schema => Ok(rows.boxed()),
            Ok(_) => Err(error),
            Err(other) => {
                tracing::debug!("read again at a fresh snapshot: {other}");
                Err(error)
            }
        }
    }

    async fn run(&mut self) -> Result<SendableRecordBatchStream, Error> {
        let frame = self.session.fresh_frame(self.own, self.deadline).await?;
        let plan = bind(plan(&frame.ctx, self.ast.clone()).await?, self.values.clone())?;
        Ok(frame.ctx.execute_logical_plan(plan).await?.execute_stream().await?)
    }
}
