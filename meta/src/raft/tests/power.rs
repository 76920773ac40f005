//! A disk that can be cut off from power after any of its writes.
//!
//! [`Recorder`] keeps every operation that redb does on its file. A cut takes those before it: what was written before
//! the last fsync is there, and of what came after it, an arbitrary part.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::{Database, StorageBackend};

/// An operation on the file.
#[derive(Clone, Debug)]
enum Operation {
    Write(usize, Vec<u8>),
    Resize(usize),
    Sync,
    /// The program was told that all before is done.
    Mark,
}

/// A file in memory that may record what is done to it.
#[derive(Debug)]
struct File {
    bytes: Mutex<Vec<u8>>,
    record: Option<Arc<Mutex<Vec<Operation>>>>,
}

impl File {
    fn note(&self, operation: Operation) {
        if let Some(record) = &self.record {
            record.lock().expect("no panic").push(operation);
        }
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().expect("no panic").len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().expect("no panic");
        let end = offset as usize + out.len();
        let from = bytes.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().expect("no panic").resize(len as usize, 0);
        self.note(Operation::Resize(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Operation::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        apply(
            &mut self.bytes.lock().expect("no panic"),
            &Operation::Write(offset as usize, data.to_vec()),
        );
        self.note(Operation::Write(offset as usize, data.to_vec()));
        Ok(())
    }
}

fn apply(bytes: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(offset, data) => {
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
        Operation::Resize(length) => bytes.resize(*length, 0),
        Operation::Sync | Operation::Mark => {}
    }
}

/// What is left after a cut.
pub(in crate::raft) struct Cut {
    /// The file, opened again.
    pub(in crate::raft) database: Database,
    /// How many marks were set before the cut.
    pub(in crate::raft) marks: usize,
}

/// Records a program's operations and plays cuts of them back.
#[derive(Default)]
pub(in crate::raft) struct Recorder {
    record: Arc<Mutex<Vec<Operation>>>,
}

impl Recorder {
    /// A new database whose operations are recorded.
    pub(in crate::raft) fn create(&self) -> Database {
        open(Vec::new(), Some(Arc::clone(&self.record)))
    }

    /// Notes that the program was told that all so far is done.
    pub(in crate::raft) fn mark(&self) {
        self.record.lock().expect("no panic").push(Operation::Mark);
    }

    /// Opens the file as it may be after a cut between any two operations, once at least `marks` marks were set: with
    /// nothing of what was not synced, with all of it, and with several parts of it.
    pub(in crate::raft) fn each_cut(&self, marks: usize, mut check: impl FnMut(Cut)) {
        let record = self.record.lock().expect("no panic").clone();
        let last = record.iter().rposition(|operation| matches!(operation, Operation::Mark));
        let record = &record[..=last.expect("a mark")];
        let (mut durable, mut loose, mut seen) = (Vec::new(), Vec::new(), 0);
        let mut seed = 1u64;
        for operation in record {
            match operation {
                Operation::Mark => seen += 1,
                Operation::Sync => {
                    for done in loose.drain(..) {
                        apply(&mut durable, done);
                    }
                }
                Operation::Write(..) | Operation::Resize(_) => loose.push(operation),
            }
            if seen < marks {
                continue;
            }
            for part in 0..4u64 {
                let mut bytes = durable.clone();
                for done in &loose {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(part | 1);
                    let keep = match part {
                        0 => false,
                        1 => true,
                        _ => seed >> 63 == 0,
                    };
                    // The length of a file is kept by the file system's journal, in order.
                    if keep || matches!(done, Operation::Resize(_)) {
                        apply(&mut bytes, done);
                    }
                }
                check(Cut { database: open(bytes, None), marks: seen });
            }
        }
    }
}

fn open(bytes: Vec<u8>, record: Option<Arc<Mutex<Vec<Operation>>>>) -> Database {
    let file = File { bytes: Mutex::new(bytes), record };
    Database::builder()
        .set_cache_size(1 << 20)
        .create_with_backend(file)
        .expect("a database opens after every cut")
}
