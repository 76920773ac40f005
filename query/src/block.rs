//! The transaction block of a session: what its statements wrote so far, and where it can go back to.
//!
//! - BEGIN opens an explicit block, which lasts until COMMIT or ROLLBACK. Statements that came in one message, or in
//!   one series up to Sync, share an implicit block, which the server ends with them.
//! - All writes of a block go to one [`Writer`] and are committed by one record.
//! - With REPEATABLE READ all statements read by one snapshot. The catalog they find is the newest all the same, so that
//!   a block sees the chunks of its own rows; that no chunk of the snapshot went since, the scans check.
//! - A savepoint keeps what the writer held then. Going back makes a new transaction of exactly that and aborts the
//!   old one, so that data nodes need not know of savepoints. The kept rows are shared, not copied.
//! - What chunks were compressed or decompressed happened at once; the block knows what ROLLBACK is to bring back.
//! - A failed block has no writer: its transaction is aborted. Only its end, or a savepoint, brings it on.

use std::sync::Arc;

use hypertide_meta::Image;
use hypertide_proto::ids::ChunkId;

use crate::{
    Engine, Error, Settings, TransactionStatus,
    ingest::send::{Kept, Writer},
};

/// The transaction block; the default is none.
#[derive(Debug, Default)]
pub(crate) struct Block {
    state: State,
    /// Where its rows went, once it has some; only in an open block.
    writer: Option<Writer>,
    /// What all its statements read by, once one has read; only with REPEATABLE READ.
    view: Option<Arc<Image>>,
    /// Whether it changed tables, which no ROLLBACK takes back.
    ddl: bool,
    /// Chunks that it compressed or decompressed, in order.
    rewritten: Vec<Rewritten>,
    savepoints: Vec<Savepoint>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// Takes statements.
    Open(Kind),
    /// Takes only its end.
    Failed(Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Explicit,
    Implicit,
}

/// A chunk that a block compressed or decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// The chunk.
    pub(crate) chunk: ChunkId,
    /// Whether it was compressed before.
    pub(crate) compressed: bool,
}

/// A place to go back to.
#[derive(Debug)]
struct Savepoint {
    name: String,
    rows: Option<Kept>,
    settings: Settings,
    ddl: bool,
    /// How many chunks the block had rewritten.
    rewritten: usize,
}

/// What going back to a savepoint leaves to be done.
#[derive(Debug)]
pub(crate) struct Back {
    /// Settings as of then.
    pub(crate) settings: Settings,
    /// Whether tables were changed since.
    pub(crate) ddl: bool,
    /// Chunks rewritten since, the last first.
    pub(crate) rewritten: Vec<Rewritten>,
}

/// How a block ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What it wrote; none when it failed.
    pub(crate) writer: Option<Writer>,
    /// Whether it had failed.
    pub(crate) failed: bool,
    /// Whether it changed tables.
    pub(crate) ddl: bool,
    /// Chunks that it compressed or decompressed, the last first.
    pub(crate) rewritten: Vec<Rewritten>,
}

impl Block {
    pub(crate) fn status(&self) -> TransactionStatus {
        match self.state {
            State::Idle => TransactionStatus::Idle,
            State::Open(_) => TransactionStatus::Open,
            State::Failed(_) => TransactionStatus::Failed,
        }
    }

    /// Whether a BEGIN opened it.
    pub(crate) fn is_explicit(&self) -> bool {
        matches!(self.state, State::Open(Kind::Explicit) | State::Failed(Kind::Explicit))
    }

    /// Whether statements that came together opened it.
    pub(crate) fn is_implicit(&self) -> bool {
        matches!(self.state, State::Open(Kind::Implicit) | State::Failed(Kind::Implicit))
    }

    /// Opens an explicit block; an implicit one becomes explicit with what it wrote.
    pub(crate) fn begin(&mut self) {
        self.state = State::Open(Kind::Explicit);
    }

    /// Opens an implicit block unless there is one.
    pub(crate) fn begin_implicit(&mut self) {
        if self.state == State::Idle {
            self.state = State::Open(Kind::Implicit);
        }
    }

    /// Ends it.
    pub(crate) fn end(&mut self) -> Ended {
        let Self { state, writer, ddl, mut rewritten, .. } = std::mem::take(self);
        rewritten.reverse();
        Ended { writer, failed: matches!(state, State::Failed(_)), ddl, rewritten }
    }

    /// A statement in it failed. Dropping the writer aborts its transaction.
    pub(crate) fn fail(&mut self) {
        if let State::Open(kind) = self.state {
            self.state = State::Failed(kind);
            self.writer = None;
        }
    }

    /// Notes that a statement in it changes tables.
    pub(crate) fn note_ddl(&mut self) {
        self.ddl |= self.state != State::Idle;
    }

    /// Notes chunks that a statement in it compressed or decompressed.
    pub(crate) fn note_rewritten(&mut self, chunks: impl IntoIterator<Item = Rewritten>) {
        if self.state != State::Idle {
            self.rewritten.extend(chunks);
        }
    }

    /// What its statements read by: what the first that asks finds. It is a value of its own, so that it goes with the
    /// last transaction that reads by it ([`crate::sql::snapshot`]).
    pub(crate) fn view(&mut self, newest: &Arc<Image>) -> Arc<Image> {
        Arc::clone(self.view.get_or_insert_with(|| Arc::new(Image::clone(newest))))
    }

    /// Lets its statements read by what another transaction reads by.
    pub(crate) fn set_view(&mut self, view: Arc<Image>) {
        self.view = Some(view);
    }

    /// What its statements read by, when that is settled.
    pub(crate) fn settled_view(&self) -> Option<&Arc<Image>> {
        self.view.as_ref()
    }

    /// Whether it changed tables.
    pub(crate) fn has_ddl(&self) -> bool {
        self.ddl
    }

    pub(crate) fn writer(&self) -> Option<&Writer> {
        self.writer.as_ref()
    }

    pub(crate) fn take_writer(&mut self) -> Option<Writer> {
        self.writer.take()
    }

    pub(crate) fn keep_writer(&mut self, writer: Writer) {
        self.writer = Some(writer);
    }

    /// SAVEPOINT. Names may repeat: the last of a name is meant.
    pub(crate) fn save(&mut self, name: String, settings: &Settings) {
        let rows = self.writer.as_ref().map(Writer::kept);
        let (settings, ddl, rewritten) = (settings.clone(), self.ddl, self.rewritten.len());
        self.savepoints.push(Savepoint { name, rows, settings, ddl, rewritten });
    }

    /// RELEASE SAVEPOINT: forgets it and those after it.
    pub(crate) fn release(&mut self, name: &str) -> Result<(), Error> {
        let at = self.find(name)?;
        self.savepoints.truncate(at);
        Ok(())
    }

    /// ROLLBACK TO SAVEPOINT: what the block wrote since is gone, and it is open again.
    pub(crate) fn go_back(&mut self, name: &str, engine: &Arc<Engine>) -> Result<Back, Error> {
        let at = self.find(name)?;
        self.savepoints.truncate(at + 1);
        let savepoint = self.savepoints.last().ok_or_else(|| no_savepoint(name))?;
        self.writer = savepoint.rows.as_ref().map(|rows| Writer::again(engine, rows));
        self.state = State::Open(Kind::Explicit);
        let rewritten = self.rewritten.drain(savepoint.rewritten..).rev().collect();
        let (settings, ddl) = (savepoint.settings.clone(), self.ddl && !savepoint.ddl);
        Ok(Back { settings, ddl, rewritten })
    }

    fn find(&self, name: &str) -> Result<usize, Error> {
        let at = self.savepoints.iter().rposition(|savepoint| savepoint.name == name);
        at.ok_or_else(|| no_savepoint(name))
    }
}

fn no_savepoint(name: &str) -> Error {
    Error::of("3B001", format_args!("savepoint \"{name}\" does not exist"))
}
