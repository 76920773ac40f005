//! The simple protocol: text with any number of statements, results as text.

use pgwire::messages::{PgWireBackendMessage as Message, response::EmptyQueryResponse};

use super::{
    connection::{Connection, Fault, Stop},
    portal::{Cursor, describe, result_types},
};
use crate::Reply;

impl Connection {
    /// Runs the statements of a Query. The first that fails ends it.
    pub(super) async fn simple(&mut self, sql: &str) -> Result<(), Stop> {
        // The unnamed portal and statement do not outlive a Query.
        self.portals.remove("");
        self.statements.remove("");
        let mut offset = 0;
        let done = match self.simple_statements(sql, &mut offset).await {
            Ok(()) => Ok(()),
            Err(Fault::Stop(stop)) => Err(stop),
            Err(Fault::Statement(mut error)) => {
                error.position = error.position.map(|position| position + offset);
                self.fail(&error, Some(sql))
            }
        };
        done?;
        self.end_together().await
    }

    /// `offset` is where the statement that runs begins.
    async fn simple_statements(&mut self, sql: &str, offset: &mut usize) -> Result<(), Fault> {
        let statements = self.session.split(sql)?;
        if statements.is_empty() {
            self.writer.put(&Message::EmptyQueryResponse(EmptyQueryResponse::new()))?;
        }
        let mut searched = 0;
        for statement in &statements {
            let rest = sql.get(searched..).unwrap_or_default();
            *offset = searched + rest.find(statement.as_str()).unwrap_or(0);
            searched = *offset + statement.len();
            if statements.len() > 1 {
                self.session.begin_together();
            }
            self.simple_statement(statement).await?;
        }
        Ok(())
    }

    async fn simple_statement(&mut self, sql: &str) -> Result<(), Fault> {
        self.begin_statement();
        if let Some(tag) = self.deallocate(sql) {
            return Ok(self.writer.complete(tag)?);
        }
        let preparing = self.session.prepare(sql, &[]);
        let prepared = self.watch.over(&mut self.reader, preparing).await??;
        let executing = self.session.execute(&prepared, Vec::new());
        let reply = self.watch.over(&mut self.reader, executing).await??;
        self.notices()?;
        match reply {
            Reply::Rows { schema, stream, tag, counted } => {
                let types = result_types(&schema, &[])?;
                self.writer.put(&describe(&schema, &types))?;
                let mut cursor = Cursor::new(
                    stream,
                    types,
                    self.session.settings().text_style(),
                    (tag, counted),
                );
                let ends = (&mut self.reader, &mut self.writer);
                cursor.send(u64::MAX, ends, &self.watch).await?;
                self.notices()?;
                Ok(self.writer.complete(cursor.tag())?)
            }
            reply => self.without_rows(reply).await,
        }
    }

    /// Answers with a reply that is not rows.
    pub(super) async fn without_rows(&mut self, reply: Reply) -> Result<(), Fault> {
        match reply {
            Reply::Done(tag) => {
                if tag == "DISCARD ALL" {
                    self.statements.clear();
                    self.portals.clear();
                }
                self.report_settings()?;
                self.writer.complete(tag)?;
            }
            Reply::CopyIn(copy) => self.copy_in(copy).await?,
            Reply::CopyOut { columns, rows } => self.copy_out(columns, rows).await?,
            Reply::Rows { .. } | Reply::Empty => {
                self.writer.put(&Message::EmptyQueryResponse(EmptyQueryResponse::new()))?;
            }
        }
        Ok(())
    }
}
