//! `catalog.<n>.redb`: the durable form of the catalog, and `CURRENT`, which names the one that counts.
//!
//! | Table | Key | Value |
//! |---|---|---|
//! | `rows` | key bytes of a row | row |
//! | `state` | `applied` | last applied log id and membership |
//! | `state` | `file` | the number that `CURRENT` holds too |
//!
//! Rows and `applied` change in one durable transaction, now and then, behind the catalog in memory: what a crash loses
//! is applied again from the log. A file is never replaced in place: a raft snapshot makes a new one, and `CURRENT` is
//! switched when that is durable. `CURRENT` holds a number drawn for the file, so that a file that came back empty
//! after a repair is noticed.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::{
    directory::open_database,
    files::{damaged, disk, name_index, read_optional, replace_file, seal, sync_dir, unseal},
    types::{LogId, Membership, decode, encode},
    watchdog::Watchdog,
};
use crate::catalog::{Catalog, Changes};

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
const APPLIED: &str = "applied";
const FILE: &str = "file";
pub(super) const CURRENT: &str = "CURRENT";

/// What of the log the catalog holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    /// The last entry.
    pub(super) last: Option<LogId>,
    /// The last membership.
    pub(super) membership: Membership,
}

/// The file in use.
pub(super) struct CatalogFile {
    database: Database,
    place: Place,
}

/// Where a file lies, and who watches its writes.
#[derive(Clone)]
struct Place {
    dir: PathBuf,
    number: u64,
    watchdog: Arc<Watchdog>,
}

impl fmt::Debug for CatalogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogFile").field("number", &self.place.number).finish_non_exhaustive()
    }
}

impl CatalogFile {
    /// Opens the file that `CURRENT` names, or makes the first, and removes what a crash left over.
    pub(super) fn open(dir: &Path, watchdog: Arc<Watchdog>) -> io::Result<Self> {
        let Some(text) = read_optional(&dir.join(CURRENT))? else {
            let new = Place { dir: dir.to_owned(), number: 1, watchdog };
            return Self::create(new, &Catalog::default(), &Applied::default());
        };
        let (number, drawn) = parse_current(&text).ok_or_else(|| damaged("file CURRENT"))?;
        remove_others(dir, number)?;
        let name = file_name(number);
        if !dir.join(&name).exists() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing")));
        }
        let database = open_database(dir, &name).map_err(io::Error::other)?;
        let file = Self { database, place: Place { dir: dir.to_owned(), number, watchdog } };
        if file.state::<u64>(FILE).ok().flatten() != Some(drawn) {
            return Err(damaged(name));
        }
        Ok(file)
    }

    /// Makes a durable file that holds the catalog, and makes it the current one.
    fn create(place: Place, catalog: &Catalog, applied: &Applied) -> io::Result<Self> {
        let Place { dir, number, .. } = &place;
        let (dir, number) = (dir.clone(), *number);
        remove_file(&dir.join(file_name(number)))?;
        let drawn: u64 = rand::random();
        let database = open_database(&dir, &file_name(number)).map_err(io::Error::other)?;
        let file = Self { database, place };
        file.fill(drawn, catalog, applied)?;
        sync_dir(&dir)?;
        let text = format!("{} {drawn:016x}\n", file_name(number));
        replace_file(&dir, CURRENT, text.as_bytes())?;
        Ok(file)
    }

    /// Writes all of a catalog into a new file.
    fn fill(&self, drawn: u64, catalog: &Catalog, applied: &Applied) -> io::Result<()> {
        self.write(|txn| {
            let mut rows = txn.open_table(ROWS).map_err(disk)?;
            for (key, value) in catalog.rows() {
                put_row(&mut rows, &key, &value)?;
            }
            put_state(txn, FILE, &drawn)?;
            put_state(txn, APPLIED, applied)
        })
    }

    /// Makes a file that holds this catalog instead; the old one is removed.
    pub(super) fn replaced_by(&self, catalog: &Catalog, applied: &Applied) -> io::Result<Self> {
        let place = Place { number: self.place.number + 1, ..self.place.clone() };
        let next = Self::create(place, catalog, applied)?;
        remove_others(&self.place.dir, next.place.number)?;
        Ok(next)
    }

    /// The catalog that the file holds.
    pub(super) fn load(&self) -> io::Result<(Catalog, Applied)> {
        let applied = self.state(APPLIED)?.ok_or_else(|| damaged(file_name(self.place.number)))?;
        let txn = self.database.begin_read().map_err(disk)?;
        let table = txn.open_table(ROWS).map_err(disk)?;
        let mut rows = Vec::new();
        for row in table.iter().map_err(disk)? {
            let (key, value) = row.map_err(disk)?;
            let key = key.value().to_vec();
            let value = unseal(name_index(&key), value.value())?.to_vec();
            rows.push((key, value));
        }
        let catalog = Catalog::from_rows(rows)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((catalog, applied))
    }

    /// Writes the rows that applying changed, durably.
    pub(super) fn store(
        &self,
        catalog: &Catalog,
        changes: &Changes,
        applied: &Applied,
    ) -> io::Result<()> {
        self.write(|txn| {
            let mut rows = txn.open_table(ROWS).map_err(disk)?;
            for key in changes.keys() {
                let bytes = key.to_bytes();
                match catalog.row(key) {
                    Some(value) => put_row(&mut rows, &bytes, &value)?,
                    None => drop(rows.remove(bytes.as_slice()).map_err(disk)?),
                }
            }
            put_state(txn, APPLIED, applied)
        })
    }

    fn state<T: serde::de::DeserializeOwned>(&self, key: &str) -> io::Result<Option<T>> {
        let txn = self.database.begin_read().map_err(disk)?;
        let table = txn.open_table(STATE).map_err(disk)?;
        let Some(value) = table.get(key).map_err(disk)? else { return Ok(None) };
        decode(unseal(name_index(key.as_bytes()), value.value())?).map(Some)
    }

    fn write(&self, change: impl FnOnce(&WriteTransaction) -> io::Result<()>) -> io::Result<()> {
        self.place.watchdog.watch(|| {
            let mut txn = self.database.begin_write().map_err(disk)?;
            // Also stores what redb needs to open the file without walking through all of it.
            txn.set_quick_repair(true);
            txn.set_durability(Durability::Immediate).map_err(io::Error::other)?;
            change(&txn)?;
            txn.commit().map_err(disk)
        })
    }
}

fn put_row(rows: &mut redb::Table<'_, &[u8], &[u8]>, key: &[u8], value: &[u8]) -> io::Result<()> {
    rows.insert(key, seal(name_index(key), value).as_slice()).map_err(disk)?;
    Ok(())
}

fn put_state<T: Serialize>(txn: &WriteTransaction, key: &str, value: &T) -> io::Result<()> {
    let mut state = txn.open_table(STATE).map_err(disk)?;
    let body = seal(name_index(key.as_bytes()), &encode(value)?);
    state.insert(key, body.as_slice()).map_err(disk)?;
    Ok(())
}

fn file_name(number: u64) -> String {
    format!("catalog.{number}.redb")
}

fn file_number(name: &str) -> Option<u64> {
    name.strip_prefix("catalog.")?.strip_suffix(".redb")?.parse().ok()
}

fn parse_current(text: &str) -> Option<(u64, u64)> {
    let (name, drawn) = text.trim_end().split_once(' ')?;
    Some((file_number(name)?, u64::from_str_radix(drawn, 16).ok()?))
}

/// Removes the catalog files that `CURRENT` does not name.
fn remove_others(dir: &Path, number: u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let other = entry.file_name().to_str().and_then(file_number);
        if other.is_some_and(|other| other != number) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hypertide_proto::{ids::Csn, schema::TableSchema};
    use openraft::CommittedLeaderId;

    use super::*;
    use crate::{
        catalog::Command,
        raft::tests::power::{Cut, Recorder},
    };

    fn over(database: Database) -> CatalogFile {
        let place = Place { dir: PathBuf::new(), number: 1, watchdog: Arc::new(Watchdog::new()) };
        CatalogFile { database, place }
    }

    fn at(index: u64) -> Applied {
        let last = LogId::new(CommittedLeaderId::new(1, 1), index);
        Applied { last: Some(last), membership: Membership::default() }
    }

    /// Power is cut after every write: what comes back is the catalog as of one applied entry, whole, and none older
    /// than the last checkpoint.
    #[test]
    fn a_power_cut_leaves_the_catalog_as_of_some_entry_since_the_checkpoint() {
        let recorder = Recorder::default();
        let file = over(recorder.create());
        let mut catalog = Catalog::default();
        file.fill(7, &catalog, &Applied::default()).expect("filled");
        recorder.mark();
        // What the catalog was after every entry, and the newest entry that is durable then.
        let mut history = vec![(catalog.clone(), 0)];
        let mut changes = Changes::default();
        for index in 1..=24 {
            let command = Command::CreateTable {
                schema: "public".to_owned(),
                name: format!("t{index}"),
                owner: "tester".to_owned(),
                columns: TableSchema::default(),
                if_not_exists: false,
            };
            let csn = Csn::at(index, 0);
            catalog.apply(&command, csn, 1, &mut changes).expect("a new name");
            let mut checkpoint = history[history.len() - 1].1;
            if index % 3 == 0 {
                let changes = std::mem::take(&mut changes);
                file.store(&catalog, &changes, &at(index)).expect("stored");
                checkpoint = index;
            }
            recorder.mark();
            history.push((catalog.clone(), checkpoint));
        }
        let mut seen = std::collections::BTreeSet::new();
        recorder.each_cut(1, |Cut { database, marks }| {
            let (found, applied) = over(database).load().expect("it opens");
            let index = applied.last.map_or(0, |id| id.index);
            let begun = marks as u64;
            let oldest = history[marks - 1].1;
            assert!((oldest..=begun).contains(&index), "{index} after {oldest}..={begun}");
            assert!(found == history[index as usize].0, "the catalog as of entry {index}");
            seen.insert(index);
        });
        assert!(seen.len() == 9, "the cuts fell before and after every checkpoint: {seen:?}");
    }
}
