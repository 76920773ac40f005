//! One connection after its startup: takes messages in order, answers them, and survives failing statements.

use std::{
    collections::HashMap, future::Future, panic::AssertUnwindSafe, pin::pin, sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    backend::Writer,
    cancel::Seat,
    frontend::{Frontend, Reader},
    portal::Portal,
    report::Reported,
};
use crate::{Error, Prepared, Session, SqlState, TransactionStatus, shield::Shield};

/// SQLSTATE of a cancelled statement.
pub(super) const QUERY_CANCELED: SqlState = SqlState("57014");
/// SQLSTATE of a shutdown.
const ADMIN_SHUTDOWN: SqlState = SqlState("57P01");

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// The client is gone, or said goodbye.
    Gone,
    /// To be told to the client as the last thing.
    Fatal(Error),
}

/// Why a statement ends before its end.
#[derive(Debug)]
pub(super) enum Fault {
    /// The statement failed; the connection goes on.
    Statement(Error),
    /// The connection ends.
    Stop(Stop),
}

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Statement(error)
    }
}

/// What ends a running statement from outside.
#[derive(Debug)]
pub(super) struct Watch {
    cancel: CancellationToken,
    deadline: Option<Instant>,
}

impl Watch {
    /// Waits for `work`, unless the client cancels it, goes away, or its time is over, and it did not begin to commit.
    pub(super) async fn over<T>(
        &self,
        reader: &mut Reader,
        work: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        let shield = Shield::default();
        let mut work = pin!(shield.over(AssertUnwindSafe(work).catch_unwind()));
        let interrupted = tokio::select! {
            biased;
            done = &mut work => return done.map_err(panicked),
            error = self.ended() => Fault::from(error),
            stop = reader.closed() => Fault::from(stop),
        };
        if !shield.raised() {
            return Err(interrupted);
        }
        let done = work.await.map_err(panicked)?;
        match interrupted {
            Fault::Statement(_) => Ok(done),
            stop => Err(stop),
        }
    }

    /// Waits until the client cancels the statement or its time is over.
    pub(super) async fn ended(&self) -> Error {
        let late = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            () = self.cancel.cancelled() => "canceling statement due to user request",
            () = late => "canceling statement due to statement timeout",
        };
        Error::new(QUERY_CANCELED, reason)
    }
}

/// After a panic, what the session holds is unknown.
fn panicked<E>(_: E) -> Fault {
    Fault::Stop(Stop::Fatal(Error::new(SqlState("XX000"), "internal error, the session ends")))
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) session: Session,
    pub(super) statements: HashMap<String, Arc<Prepared>>,
    pub(super) portals: HashMap<String, Portal>,
    pub(super) watch: Watch,
    reported: Reported,
    seat: Seat,
    /// After an error of the extended protocol: all is skipped until Sync.
    skipping: bool,
}

impl Connection {
    /// A connection of a session that has begun.
    pub(super) fn new(reader: Reader, writer: Writer, session: Session, seat: Seat) -> Self {
        let watch = Watch { cancel: seat.arm(), deadline: None };
        Self {
            reader,
            writer,
            session,
            statements: HashMap::new(),
            portals: HashMap::new(),
            watch,
            reported: Reported::default(),
            seat,
            skipping: false,
        }
    }

    /// Answers messages until the client leaves or the server stops.
    pub(super) async fn run(mut self, shutdown: watch::Receiver<bool>) {
        let stop = match self.serve(shutdown).await {
            Ok(()) => Stop::Gone,
            Err(stop) => stop,
        };
        self.portals.clear();
        self.session.close().await;
        if let Stop::Fatal(error) = stop {
            let _ = say_fatal(&mut self.writer, &error).await;
        }
    }

    async fn serve(&mut self, mut shutdown: watch::Receiver<bool>) -> Result<(), Stop> {
        self.ready()?;
        loop {
            let message = match self.reader.buffered()? {
                Some(message) => message,
                None => self.wait(&mut shutdown).await?,
            };
            if matches!(message, Frontend::Terminate) {
                return Ok(());
            }
            self.answer(message).await?;
        }
    }

    /// Sends what is buffered, and waits for the client.
    async fn wait(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<Frontend, Stop> {
        self.writer.flush().await?;
        let (limit, idle) = self.idle_limit();
        let idle_for_long = async {
            match limit.is_zero() {
                true => std::future::pending().await,
                false => tokio::time::sleep(limit).await,
            }
        };
        tokio::select! {
            biased;
            message = self.reader.next() => message,
            () = idle_for_long => Err(Stop::Fatal(idle)),
            () = stopped(shutdown) => {
                let message = "terminating connection due to administrator command";
                Err(Stop::Fatal(Error::new(ADMIN_SHUTDOWN, message)))
            }
        }
    }

    /// How long the client may say nothing, zero for any time, and what it is told then. A block that nobody ends would
    /// hold what it has written, and what it reserves.
    fn idle_limit(&self) -> (Duration, Error) {
        let (setting, state, kind) = match self.session.status() {
            TransactionStatus::Idle => ("idle_session_timeout", "57P05", "idle-session"),
            TransactionStatus::Open | TransactionStatus::Failed => {
                ("idle_in_transaction_session_timeout", "25P03", "idle-in-transaction")
            }
        };
        let message = format!("terminating connection due to {kind} timeout");
        let limit = Duration::from_millis(self.session.settings().millis(setting));
        (limit, Error::new(SqlState(state), message))
    }

    async fn answer(&mut self, message: Frontend) -> Result<(), Stop> {
        match message {
            Frontend::Sync => {
                self.skipping = false;
                self.end_together().await?;
                self.ready()
            }
            Frontend::Query(sql) => {
                self.skipping = false;
                self.simple(&sql).await?;
                self.ready()
            }
            Frontend::Refused { error, extended: false } => {
                self.fail(&error, None)?;
                self.ready()
            }
            // Left over from a COPY that failed.
            Frontend::CopyData(_) | Frontend::CopyDone | Frontend::CopyFail(_) => Ok(()),
            _ if self.skipping => Ok(()),
            Frontend::Refused { error, .. } => {
                self.skipping = true;
                self.fail(&error, None)
            }
            message => match self.extended(message).await {
                Ok(()) => Ok(()),
                Err((Fault::Stop(stop), _)) => Err(stop),
                Err((Fault::Statement(error), sql)) => {
                    self.skipping = true;
                    self.fail(&error, sql.as_deref())
                }
            },
        }
    }

    /// Commits the statements that came together, or rolls them back when one failed.
    pub(super) async fn end_together(&mut self) -> Result<(), Stop> {
        let ending = self.session.end_together();
        match self.watch.over(&mut self.reader, ending).await {
            Ok(Ok(())) => self.notices(),
            Ok(Err(error)) | Err(Fault::Statement(error)) => self.fail(&error, None),
            Err(Fault::Stop(stop)) => Err(stop),
        }
    }

    /// Begins a statement: its time runs, and cancel requests are for it.
    pub(super) fn begin_statement(&mut self) {
        let limit = Duration::from_millis(self.session.settings().millis("statement_timeout"));
        let deadline =
            Some(limit).filter(|limit| !limit.is_zero()).map(|limit| Instant::now() + limit);
        self.watch = Watch { cancel: self.seat.arm(), deadline };
    }

    /// Tells the client that a statement failed, and the session that its transaction did.
    pub(super) fn fail(&mut self, error: &Error, sql: Option<&str>) -> Result<(), Stop> {
        if self.session.status() == TransactionStatus::Open {
            self.session.fail();
        }
        self.notices()?;
        let position = error.position.zip(sql).and_then(|(at, sql)| characters(sql, at));
        self.writer.error("ERROR", error, position)
    }

    /// Passes on what the session has to say beside results.
    pub(super) fn notices(&mut self) -> Result<(), Stop> {
        let notices = self.session.take_notices();
        notices.iter().try_for_each(|notice| self.writer.notice(notice))
    }

    /// Tells which settings changed.
    pub(super) fn report_settings(&mut self) -> Result<(), Stop> {
        let changed = self.reported.changed(self.session.settings());
        changed.iter().try_for_each(|(name, value)| self.writer.parameter(name, value))
    }

    /// Ends a Query or a series of the extended protocol.
    fn ready(&mut self) -> Result<(), Stop> {
        let status = self.session.status();
        if status == TransactionStatus::Idle {
            // Portals live as long as their transaction.
            self.portals.clear();
        }
        self.report_settings()?;
        self.writer.ready(status)
    }
}

/// Says the last thing on a connection.
pub(super) async fn say_fatal(writer: &mut Writer, error: &Error) -> Result<(), Stop> {
    writer.error("FATAL", error, None)?;
    writer.flush().await
}

/// Waits until the server stops.
pub(super) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that nobody can stop the server any more: it goes on.
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// The position in characters of a position in bytes; both count from 1.
fn characters(sql: &str, position: usize) -> Option<usize> {
    let before = sql.get(..position.checked_sub(1)?)?;
    Some(before.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        assert_eq!(characters("select é, x", 11), Some(10));
        assert_eq!(characters("select", 1), Some(1));
        assert_eq!(characters("é", 2), None);
        assert_eq!(characters("é", 0), None);
    }
}
