//! BEGIN, COMMIT, ROLLBACK.

use datafusion::sql::sqlparser::ast::{
    Statement as Ast, TransactionAccessMode, TransactionIsolationLevel, TransactionMode,
};

use super::parse::Statement;
use crate::{Error, Reply, Session, ingest::send::Committed, session::Block, settings::Scope};

/// Whether a failed block takes the statement.
pub(crate) fn ends_block(statement: &Statement) -> bool {
    match statement {
        Statement::Sql(ast) => matches!(ast.as_ref(), Ast::Commit { .. } | Ast::Rollback { .. }),
        Statement::Empty => true,
        _ => false,
    }
}

/// BEGIN.
pub(crate) fn begin(session: &mut Session, modes: &[TransactionMode]) -> Result<Reply, Error> {
    if !matches!(session.block, Block::Idle) {
        session.notice("WARNING", "25001", "there is already a transaction in progress");
        return Ok(Reply::Done("BEGIN".into()));
    }
    session.settings.begin();
    session.block = Block::Open { writer: None, ddl: false };
    let read_only =
        session.settings.get("default_transaction_read_only").unwrap_or("off").to_owned();
    session.settings.set("transaction_read_only", &read_only, Scope::Local)?;
    for mode in modes {
        let (name, value) = match mode {
            TransactionMode::AccessMode(TransactionAccessMode::ReadOnly) => {
                ("transaction_read_only", "on")
            }
            TransactionMode::AccessMode(TransactionAccessMode::ReadWrite) => {
                ("transaction_read_only", "off")
            }
            TransactionMode::IsolationLevel(level) => (
                "transaction_isolation",
                match level {
                    TransactionIsolationLevel::ReadUncommitted => "read uncommitted",
                    TransactionIsolationLevel::ReadCommitted => "read committed",
                    TransactionIsolationLevel::RepeatableRead => "repeatable read",
                    _ => "serializable",
                },
            ),
        };
        session.settings.set(name, value, Scope::Local)?;
    }
    Ok(Reply::Done("BEGIN".into()))
}

/// COMMIT: one record for all that the block wrote. A failed block is rolled back instead.
pub(crate) async fn commit(session: &mut Session) -> Result<Reply, Error> {
    match std::mem::replace(&mut session.block, Block::Idle) {
        Block::Idle => {
            session.notice("WARNING", "25P01", "there is no transaction in progress");
            Ok(Reply::Done("COMMIT".into()))
        }
        Block::Failed { ddl } => {
            rolled_back(session, ddl);
            Ok(Reply::Done("ROLLBACK".into()))
        }
        Block::Open { writer, .. } => {
            let deadline = session.commit_deadline();
            let result = match writer {
                Some(writer) => writer.commit(None, deadline).await,
                None => Ok(Committed::Empty),
            };
            session.settings.end(result.is_ok());
            if let Committed::Now(index) = result? {
                session.changed_at(index);
            }
            Ok(Reply::Done("COMMIT".into()))
        }
    }
}

/// ROLLBACK.
pub(crate) fn rollback(session: &mut Session) -> Reply {
    match std::mem::replace(&mut session.block, Block::Idle) {
        Block::Idle => session.notice("WARNING", "25P01", "there is no transaction in progress"),
        // Dropping the writer aborts its transaction.
        Block::Open { ddl, .. } | Block::Failed { ddl } => rolled_back(session, ddl),
    }
    Reply::Done("ROLLBACK".into())
}

fn rolled_back(session: &mut Session, ddl: bool) {
    session.settings.end(false);
    if ddl {
        let message =
            "changes of tables take effect at once: those of this transaction were not rolled back";
        session.notice("WARNING", "25001", message);
    }
}
