//! BEGIN, COMMIT, ROLLBACK, savepoints, and the block of statements that came together.

use datafusion::sql::sqlparser::ast::{
    Ident, Statement as Ast, TransactionAccessMode, TransactionIsolationLevel, TransactionMode,
};

use super::{
    compression,
    parse::{Statement, fold},
};
use crate::{
    Error, Reply, Session, TransactionStatus,
    block::{Back, Ended, Rewritten},
    ingest::send::Committed,
    settings::{READ_COMMITTED, REPEATABLE_READ, Scope, no_serializable},
};

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
    if session.block.is_explicit() {
        session.notice("WARNING", "25001", "there is already a transaction in progress");
        return Ok(Reply::Done("BEGIN".into()));
    }
    let modes: Vec<_> = modes.iter().map(mode).collect::<Result<_, _>>()?;
    if session.block.status() == TransactionStatus::Idle {
        session.settings.begin();
    }
    session.block.begin();
    let read_only =
        session.settings.get("default_transaction_read_only").unwrap_or("off").to_owned();
    session.settings.set("transaction_read_only", &read_only, Scope::Local)?;
    let isolation =
        session.settings.get("default_transaction_isolation").unwrap_or_default().to_owned();
    session.settings.set("transaction_isolation", &isolation, Scope::Local)?;
    for (name, value) in modes {
        session.settings.set(name, value, Scope::Local)?;
    }
    Ok(Reply::Done("BEGIN".into()))
}

/// The setting that a mode stands for, and its value.
fn mode(mode: &TransactionMode) -> Result<(&'static str, &'static str), Error> {
    Ok(match mode {
        TransactionMode::AccessMode(TransactionAccessMode::ReadOnly) => {
            ("transaction_read_only", "on")
        }
        TransactionMode::AccessMode(TransactionAccessMode::ReadWrite) => {
            ("transaction_read_only", "off")
        }
        TransactionMode::IsolationLevel(level) => {
            let level = match level {
                TransactionIsolationLevel::ReadUncommitted => "read uncommitted",
                TransactionIsolationLevel::ReadCommitted => READ_COMMITTED,
                TransactionIsolationLevel::RepeatableRead => REPEATABLE_READ,
                _ => return Err(no_serializable()),
            };
            ("transaction_isolation", level)
        }
    })
}

/// COMMIT: one record for all that the block wrote. A failed block is rolled back instead.
pub(crate) async fn commit(session: &mut Session) -> Result<Reply, Error> {
    if !session.block.is_explicit() {
        session.notice("WARNING", "25P01", "there is no transaction in progress");
    }
    let committed = end(session).await?;
    Ok(Reply::Done(if committed { "COMMIT" } else { "ROLLBACK" }.into()))
}

/// Ends the block and commits what it wrote, or rolls it back when it failed: false.
pub(crate) async fn end(session: &mut Session) -> Result<bool, Error> {
    if session.block.status() == TransactionStatus::Idle {
        return Ok(true);
    }
    let Ended { writer, failed, ddl, rewritten } = session.block.end();
    if failed {
        rolled_back(session, ddl, rewritten).await;
        return Ok(false);
    }
    let deadline = session.commit_deadline();
    let result = match writer {
        Some(writer) => writer.commit(None, deadline).await,
        None => Ok(Committed::Empty),
    };
    session.settings.end(result.is_ok());
    if result.is_err() {
        bring_back(session, rewritten).await;
    }
    if let Committed::Now(index) = result? {
        session.changed_at(index);
    }
    Ok(true)
}

/// ROLLBACK.
pub(crate) async fn rollback(session: &mut Session) -> Reply {
    if !session.block.is_explicit() {
        session.notice("WARNING", "25P01", "there is no transaction in progress");
    }
    if session.block.status() != TransactionStatus::Idle {
        // Dropping the writer aborts its transaction.
        let Ended { ddl, rewritten, .. } = session.block.end();
        rolled_back(session, ddl, rewritten).await;
    }
    Reply::Done("ROLLBACK".into())
}

/// SAVEPOINT.
pub(crate) fn savepoint(session: &mut Session, name: &Ident) -> Result<Reply, Error> {
    in_block(session, "SAVEPOINT")?;
    session.block.save(fold(name), &session.settings);
    Ok(Reply::Done("SAVEPOINT".into()))
}

/// RELEASE SAVEPOINT.
pub(crate) fn release(session: &mut Session, name: &Ident) -> Result<Reply, Error> {
    in_block(session, "RELEASE SAVEPOINT")?;
    session.block.release(&fold(name))?;
    Ok(Reply::Done("RELEASE".into()))
}

/// ROLLBACK TO SAVEPOINT. Rows from before it are sent again under the new transaction, so that it can read them.
pub(crate) async fn rollback_to(session: &mut Session, name: &Ident) -> Result<Reply, Error> {
    in_block(session, "ROLLBACK TO SAVEPOINT")?;
    let Back { settings, ddl, rewritten } = session.block.go_back(&fold(name), &session.engine)?;
    session.settings = settings;
    if ddl {
        warn_of_ddl(session);
    }
    bring_back(session, rewritten).await;
    if let Some(mut writer) = session.block.take_writer() {
        writer.flush(session.commit_deadline()).await?;
        session.block.keep_writer(writer);
    }
    Ok(Reply::Done("ROLLBACK".into()))
}

fn in_block(session: &Session, what: &str) -> Result<(), Error> {
    if session.block.is_explicit() {
        return Ok(());
    }
    Err(Error::of("25P01", format_args!("{what} can only be used in transaction blocks")))
}

async fn rolled_back(session: &mut Session, ddl: bool, rewritten: Vec<Rewritten>) {
    session.settings.end(false);
    if ddl {
        warn_of_ddl(session);
    }
    bring_back(session, rewritten).await;
}

/// Compresses chunks that were decompressed, and the other way. Their rows are the same either way: when it fails,
/// nothing is lost but room.
async fn bring_back(session: &mut Session, rewritten: Vec<Rewritten>) {
    for chunk in rewritten {
        if let Err(error) = compression::bring_back(session, chunk).await {
            let message = format!("a chunk was not brought back to what it was: {}", error.message);
            session.notice("WARNING", "55000", message);
        }
    }
}

fn warn_of_ddl(session: &mut Session) {
    let message =
        "changes of tables take effect at once: those of this transaction were not rolled back";
    session.notice("WARNING", "25001", message);
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
