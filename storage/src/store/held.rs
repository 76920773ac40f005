//! A database whose closing cannot end more than itself.
//!
//! redb commits once more when it closes a database. In one whose pages are wrong that may panic, and panic again while
//! it unwinds, which ends the process. One that is known to be wrong is therefore given up without that commit: redb
//! leaves it out when it is dropped by a thread that unwinds already.

use std::{
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use redb::{Database, DatabaseError};

use super::contain::contain;

/// An open database. It writes when it is closed, which a damaged file makes redb panic at.
#[derive(Debug)]
pub(crate) struct Held {
    database: Option<Database>,
    wrong: AtomicBool,
}

impl Held {
    pub(crate) fn new(database: Database) -> Self {
        Self { database: Some(database), wrong: AtomicBool::new(false) }
    }

    /// Its bytes are wrong: it is not to be written to any more, not even to close it.
    pub(crate) fn distrust(&self) {
        self.wrong.store(true, Ordering::Release);
    }

    /// Moves its pages to the front, as far as they go, so that closing it can cut off the rest. Only for a file that
    /// does not count yet.
    pub(crate) fn compact(&mut self) -> Result<(), redb::Error> {
        let Some(database) = &mut self.database else { return Ok(()) };
        while database.compact()? {}
        Ok(())
    }

    /// Closes it, and says how that went.
    pub(crate) fn close(mut self) -> Result<Result<(), DatabaseError>, String> {
        let database = self.database.take();
        contain(|| database.map_or(Ok(()), Database::close))
    }
}

impl Deref for Held {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.database.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let database = self.database.take();
        if self.wrong.load(Ordering::Acquire) {
            give_up(database);
        } else if let Err(what) = contain(|| drop(database)) {
            tracing::warn!("close a file: {what}");
        }
    }
}

/// Drops a database while this thread unwinds, of which nobody hears.
fn give_up(database: Option<Database>) {
    let _: std::thread::Result<()> = catch_unwind(AssertUnwindSafe(move || {
        let _dropped_by_unwinding = database;
        resume_unwind(Box::new(()))
    }));
}
