//! A database whose closing cannot end more than itself.

use std::ops::Deref;

use redb::{Database, DatabaseError};

use super::disk::contain;

/// An open database. It writes when it is closed, which a damaged file makes redb panic at.
#[derive(Debug)]
pub(crate) struct Held(Option<Database>);

impl Held {
    pub(crate) fn new(database: Database) -> Self {
        Self(Some(database))
    }

    /// Moves its pages to the front, as far as they go, so that closing it can cut off the rest. Only for a file that
    /// does not count yet.
    pub(crate) fn compact(&mut self) -> Result<(), redb::Error> {
        let Some(database) = &mut self.0 else { return Ok(()) };
        while database.compact()? {}
        Ok(())
    }

    /// Closes it, and says how that went.
    pub(crate) fn close(mut self) -> Result<Result<(), DatabaseError>, String> {
        let database = self.0.take();
        contain(|| database.map_or(Ok(()), Database::close))
    }
}

impl Deref for Held {
    type Target = Database;

    fn deref(&self) -> &Database {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let database = self.0.take();
        if let Err(what) = contain(|| drop(database)) {
            tracing::warn!("close a file: {what}");
        }
    }
}
