//! One SQL session: its settings, its transaction, its statements.
//!
//! A statement is read by [`crate::sql`], which also has one file a kind of statement. What they share is here: the
//! snapshot that a statement reads, the writer that its rows go to, and the transaction block they may stand in.
//!
//! - Outside of a block, a statement is a transaction.
//! - Statements that a client sends together are one transaction too, by an implicit block ([`crate::block`]).
//! - In a block, all writes go to one writer and are committed by one record. They are read back before that, through
//!   [`Snapshot::own`]. Each statement reads a snapshot of its own.
//! - A statement that fails, or whose future is dropped, leaves its block failed and its rows aborted.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::ScalarValue, execution::SendableRecordBatchStream, prelude::SessionContext,
};
use hypertide_meta::{
    Image,
    catalog::{Command, Outcome},
};
use hypertide_proto::{
    ids::{Csn, TxnId, WriteId},
    schema::ColumnType,
};

use crate::{
    Engine, Error, SqlState,
    block::Block,
    context,
    ingest::send::{Committed, WriteTag, Writer},
    measures,
    reply::{Notice, Reply},
    settings::{REPEATABLE_READ, Settings},
    sql::{self, copy_from::CopyIn, parse::Statement, zone::Zone},
};

/// Time that a statement may take when `statement_timeout` is off.
const STATEMENT_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Name of the database; every cluster has one.
pub(crate) const DATABASE: &str = "hypertide";

/// What one statement reads: fixed when it begins.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The catalog.
    pub image: Arc<Image>,
    /// Rows are visible when their commit number is at most this.
    pub csn: Csn,
    /// The session's open transaction, whose rows are visible too.
    pub own: Option<TxnId>,
    /// The catalog that `csn` is of, when that is an older one: in a transaction of REPEATABLE READ.
    pub view: Option<Arc<Image>>,
    /// Whether tables are read as they were in `view`, with chunks that were dropped since, as data nodes keep them: in a
    /// transaction that changes nothing itself.
    pub dropped_too: bool,
}

impl Snapshot {
    /// The entry of the log up to which it reads.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.view.as_ref().unwrap_or(&self.image).applied
    }
}

/// State of the transaction block, as ReadyForQuery reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// Not in a block.
    Idle,
    /// In a block.
    Open,
    /// In a block that failed: only its end is accepted.
    Failed,
}

/// A parsed and planned statement.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its text.
    pub sql: String,
    /// Types of its parameters `$1`, `$2` ...
    pub parameters: Vec<ColumnType>,
    /// Columns of its result, if it has one.
    pub columns: Option<SchemaRef>,
    /// What it says.
    pub(crate) statement: Arc<Statement>,
}

/// What a statement runs in.
pub(crate) struct Frame {
    /// What it reads.
    pub(crate) snapshot: Snapshot,
    /// DataFusion's side of it.
    pub(crate) ctx: SessionContext,
    /// When it must have ended.
    pub(crate) deadline: Instant,
    /// The session's time zone.
    pub(crate) zone: Zone,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame").field("csn", &self.snapshot.csn).finish_non_exhaustive()
    }
}

/// One SQL session.
#[derive(Debug)]
pub struct Session {
    pub(crate) engine: Arc<Engine>,
    pub(crate) settings: Settings,
    pub(crate) user: String,
    pub(crate) block: Block,
    pub(crate) named: BTreeMap<String, Arc<Prepared>>,
    notices: Vec<Notice>,
    /// Whether a statement began and did not end: its future was dropped if it is seen from outside.
    running: bool,
    /// Whether a COPY holds the writer of the block, which is not to go on without it.
    pub(crate) copying: bool,
    /// Entry of the session's last change, for `hypertide.read_consistency = session`.
    pub(crate) last_index: u64,
    pub(crate) number: u32,
    _counted: measures::CountedSession,
}

static NUMBERS: AtomicU32 = AtomicU32::new(1);

impl Session {
    /// A session of `user`, with the settings that came with the connection.
    #[must_use]
    pub fn new(engine: Arc<Engine>, user: &str) -> Self {
        Self {
            engine,
            settings: Settings::default(),
            user: user.to_owned(),
            block: Block::default(),
            named: BTreeMap::new(),
            notices: Vec::new(),
            running: false,
            copying: false,
            last_index: 0,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            _counted: measures::CountedSession::new(),
        }
    }

    /// What it runs on.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its settings, to change.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Splits text into statements, as the simple protocol sends several at once.
    pub fn split(&self, sql: &str) -> Result<Vec<String>, Error> {
        Ok(sql::split::split(sql).into_iter().map(str::to_owned).collect())
    }

    /// Parses and plans one statement. `hints` are parameter types that the client declared.
    pub async fn prepare(
        &mut self,
        sql: &str,
        hints: &[Option<ColumnType>],
    ) -> Result<Prepared, Error> {
        let result = self.prepare_in_block(sql, hints).await;
        if result.is_err() {
            self.fail();
        }
        result.map_err(|error| error.at(sql))
    }

    async fn prepare_in_block(
        &mut self,
        sql: &str,
        hints: &[Option<ColumnType>],
    ) -> Result<Prepared, Error> {
        let statement = Arc::new(sql::parse::parse(sql)?);
        if self.status() == TransactionStatus::Failed && !sql::transaction::ends_block(&statement) {
            return Err(failed_block());
        }
        let (parameters, columns) = sql::describe::describe(self, &statement, sql, hints).await?;
        Ok(Prepared { sql: sql.to_owned(), parameters, columns, statement })
    }

    /// Runs a statement.
    pub async fn execute(
        &mut self,
        statement: &Prepared,
        values: Vec<ScalarValue>,
    ) -> Result<Reply, Error> {
        if self.status() == TransactionStatus::Failed {
            self.fail();
            if !sql::transaction::ends_block(&statement.statement) {
                return Err(failed_block());
            }
        }
        let began = self.begin_statement();
        let result = Box::pin(sql::run::run(self, statement, values)).await;
        let result = self.end_statement(began, result);
        result.map_err(|error| error.at(&statement.sql))
    }

    /// Ends a COPY FROM STDIN: commits it (or adds it to the open transaction) and gives the tag.
    pub async fn finish_copy(&mut self, copy: CopyIn) -> Result<String, Error> {
        self.copying = false;
        if self.status() == TransactionStatus::Failed {
            return Err(failed_block());
        }
        let began = self.begin_statement();
        let result = Box::pin(copy.finish(self)).await;
        let result = self.end_statement(began, result);
        result.map(|rows| format!("COPY {rows}"))
    }

    /// Gives up a COPY FROM STDIN: nothing of it is visible ever.
    pub async fn abort_copy(&mut self, copy: CopyIn) {
        drop(copy);
        self.fail();
    }

    /// Appends record batches to a table as one statement, all or nothing, and gives the number of rows.
    /// Columns are matched by name; absent ones get their default.
    pub async fn ingest(
        &mut self,
        schema: &str,
        table: &str,
        rows: SendableRecordBatchStream,
    ) -> Result<u64, Error> {
        if self.status() == TransactionStatus::Failed {
            return Err(failed_block());
        }
        let began = self.begin_statement();
        let result = Box::pin(sql::ingest::ingest(self, schema, table, rows)).await;
        self.end_statement(began, result)
    }

    fn begin_statement(&mut self) -> Instant {
        self.running = true;
        Instant::now()
    }

    /// Counts a statement, and fails the block with it.
    fn end_statement<T>(&mut self, began: Instant, result: Result<T, Error>) -> Result<T, Error> {
        self.running = false;
        measures::statement(began.elapsed(), &result);
        if result.is_err() {
            self.fail();
        }
        result
    }

    /// Makes the statements up to [`Session::end_together`] one transaction, unless they stand in a block.
    pub fn begin_together(&mut self) {
        if self.status() == TransactionStatus::Idle {
            self.settings.begin();
            self.block.begin_implicit();
        }
    }

    /// Commits the statements since [`Session::begin_together`], or rolls them back when one failed. Does nothing to a
    /// block that a BEGIN opened.
    pub async fn end_together(&mut self) -> Result<(), Error> {
        if !self.block.is_implicit() {
            return Ok(());
        }
        if self.status() == TransactionStatus::Failed {
            self.fail();
        }
        sql::transaction::end(self).await.map(|_| ())
    }

    /// State of the transaction block.
    #[must_use]
    pub fn status(&self) -> TransactionStatus {
        match self.block.status() {
            // The future of a statement in the block, or a COPY, was dropped.
            TransactionStatus::Open if self.running || self.copying => TransactionStatus::Failed,
            status => status,
        }
    }

    /// Notes that a statement failed outside of [`Session::execute`], such as while its rows were sent.
    pub fn fail(&mut self) {
        (self.running, self.copying) = (false, false);
        self.block.fail();
    }

    /// Notices since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Ends the session: an open transaction is rolled back.
    pub async fn close(&mut self) {
        self.fail();
        self.block = Block::default();
        self.settings.end(false);
    }
}

/// What the files under `sql` share.
impl Session {
    /// Says something beside the result, unless `client_min_messages` is above it.
    pub(crate) fn notice(
        &mut self,
        severity: &'static str,
        code: &'static str,
        message: impl ToString,
    ) {
        self.notice_with(Notice {
            severity,
            state: SqlState(code),
            message: message.to_string(),
            detail: None,
            hint: None,
        });
    }

    /// Says something with more about it.
    pub(crate) fn notice_with(&mut self, notice: Notice) {
        let quiet = match self.settings.get("client_min_messages") {
            Some("error") => true,
            Some("warning") => notice.severity != "WARNING",
            _ => false,
        };
        if !quiet {
            self.notices.push(notice);
        }
    }

    /// When a statement that begins now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        let limit = match self.settings.millis("statement_timeout") {
            0 => STATEMENT_TIMEOUT_MAX,
            millis => Duration::from_millis(millis),
        };
        Instant::now() + limit
    }

    /// When a command to the catalog, or a commit, that begins now must have been answered.
    pub(crate) fn commit_deadline(&self) -> Instant {
        self.deadline().min(Instant::now() + self.engine.config.commit_deadline)
    }

    /// The snapshot of a statement that begins now.
    pub(crate) async fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let deadline = self.commit_deadline();
        let catalog = &self.engine.catalog;
        let image = match self.settings.get("hypertide.read_consistency") {
            Some("local") => catalog.image(),
            Some("session") => catalog.applied(self.last_index, deadline).await?,
            _ => catalog.barrier(deadline).await?,
        };
        Ok(self.snapshot_of(image))
    }

    /// The snapshot of a statement that changes rows: the last one, whatever is enough to read.
    pub(crate) async fn fresh_snapshot(&mut self) -> Result<Snapshot, Error> {
        let image = self.engine.catalog.barrier(self.commit_deadline()).await?;
        Ok(self.snapshot_of(image))
    }

    /// A snapshot to plan with that asks nobody: the catalog as it is known here. What a transaction reads by when that is
    /// settled.
    pub(crate) fn near_snapshot(&mut self) -> Snapshot {
        let image = self.engine.catalog.image();
        match self.block.settled_view() {
            Some(_) => self.snapshot_of(image),
            None => {
                let csn = image.snapshot();
                Snapshot { image, csn, own: None, view: None, dropped_too: false }
            }
        }
    }

    /// What a statement reads by that finds this catalog: the newest, or what the first of its transaction read by.
    fn snapshot_of(&mut self, image: Arc<Image>) -> Snapshot {
        let own = self.block.writer().map(Writer::txn);
        let view = self.repeats_reads().then(|| self.block.view(&image));
        let csn = view.as_ref().unwrap_or(&image).snapshot();
        let read_only = self.settings.on("transaction_read_only") && !self.block.has_ddl();
        let dropped_too = view.is_some() && read_only;
        Snapshot { image, csn, own, view, dropped_too }
    }

    /// Whether all statements of the transaction read by one snapshot.
    pub(crate) fn repeats_reads(&self) -> bool {
        let isolation = match self.block.is_explicit() {
            true => "transaction_isolation",
            false => "default_transaction_isolation",
        };
        self.block.status() != TransactionStatus::Idle
            && self.settings.get(isolation) == Some(REPEATABLE_READ)
    }

    /// What a statement that begins now runs in.
    pub(crate) async fn frame(&mut self) -> Result<Frame, Error> {
        let snapshot = self.snapshot().await?;
        self.frame_of(snapshot)
    }

    /// What a statement over this snapshot runs in.
    pub(crate) fn frame_of(&self, snapshot: Snapshot) -> Result<Frame, Error> {
        self.frame_until(snapshot, self.deadline())
    }

    /// [`Session::frame_of`] for a statement that has begun already.
    fn frame_until(&self, snapshot: Snapshot, deadline: Instant) -> Result<Frame, Error> {
        let ctx = context::session_context(&self.engine, &self.settings, &snapshot, deadline)?;
        crate::pg_catalog::register_pg_catalog(&ctx, &snapshot.image);
        sql::session_functions::register(self, &snapshot, &ctx);
        sql::snapshot::register(self, &ctx);
        crate::views::register_views(&ctx, &self.engine.catalog, &snapshot)?;
        Ok(Frame { snapshot, ctx, deadline, zone: self.settings.zone() })
    }

    /// A session as this one is now, to read by while this one goes on: it has no transaction of its own.
    pub(crate) fn reader(&self) -> Self {
        let (engine, settings) = (Arc::clone(&self.engine), self.settings.clone());
        let (last_index, number) = (self.last_index, self.number);
        Self { settings, last_index, number, ..Self::new(engine, &self.user) }
    }

    /// What a statement of another session that reads once more runs in: a fresh snapshot, with the pending rows that the
    /// one before had.
    pub(crate) async fn fresh_frame(
        &mut self,
        own: Option<TxnId>,
        deadline: Instant,
    ) -> Result<Frame, Error> {
        let snapshot = self.snapshot().await?;
        self.frame_until(Snapshot { own, ..snapshot }, deadline)
    }

    /// Notes a change of this session that was applied at `index`.
    pub(crate) fn changed_at(&mut self, index: u64) {
        self.last_index = self.last_index.max(index);
    }

    /// Puts a command into the log, waits until it is applied here, and gives its outcome.
    pub(crate) async fn propose(&mut self, command: Command) -> Result<Outcome, Error> {
        let deadline = self.commit_deadline();
        // What was compressed, the block brings back itself.
        if !matches!(command, Command::AskCompression { .. }) {
            self.block.note_ddl();
        }
        let (index, answer) = self.engine.catalog.propose(command, deadline).await?;
        let outcome = answer?;
        self.engine.catalog.applied(index, deadline).await?;
        self.changed_at(index);
        Ok(outcome)
    }

    /// The writer of a statement that begins now: that of the block, or its own.
    pub(crate) fn take_writer(&mut self) -> Result<Writer, Error> {
        if self.settings.on("transaction_read_only")
            || (!self.block.is_explicit() && self.settings.on("default_transaction_read_only"))
        {
            return Err(Error::of("25006", "cannot execute a write in a read-only transaction"));
        }
        Ok(self.block.take_writer().unwrap_or_else(|| Writer::new(&self.engine)))
    }

    /// Ends the writing of a statement: commits it, or gives the writer back to the block. Gives the rows to report.
    pub(crate) async fn end_write(
        &mut self,
        mut writer: Writer,
        rows: u64,
        write: Option<WriteTag>,
    ) -> Result<u64, Error> {
        // A write with a name for retries is committed by itself.
        if write.is_none() && self.block.status() == TransactionStatus::Open {
            writer.flush(Instant::now() + self.engine.config.commit_deadline).await?;
            self.block.keep_writer(writer);
            return Ok(rows);
        }
        match writer.commit(write, self.commit_deadline()).await? {
            Committed::Now(index) => {
                self.changed_at(index);
                Ok(rows)
            }
            Committed::Before(rows) => Ok(rows),
            Committed::Empty => Ok(rows),
        }
    }

    /// The name for retries that was set for the next statement; it is used up.
    pub(crate) fn take_write_id(&mut self) -> Result<Option<WriteId>, Error> {
        let Some(text) = self.settings.get("hypertide.write_id").filter(|text| !text.is_empty())
        else {
            return Ok(None);
        };
        let id = uuid::Uuid::parse_str(text).map_err(|_| Error::of("22023", "bad write id"))?;
        self.settings.reset("hypertide.write_id")?;
        if self.block.is_explicit() || self.block.writer().is_some() {
            return Err(Error::of(
                "25001",
                "hypertide.write_id is for single statements, not for a transaction block",
            ));
        }
        Ok(Some(WriteId(*id.as_bytes())))
    }
}

fn failed_block() -> Error {
    let message = "current transaction is aborted, commands ignored until end of transaction block";
    Error::of("25P02", message)
}
