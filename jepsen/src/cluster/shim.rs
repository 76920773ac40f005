//! The shim that nodes load before their C library, for faults of files and of the clock: `shim.c`, compiled when a run
//! needs it, and the switchboard that it shares with the harness.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::command::run;

const SOURCE: &str = include_str!("shim.c");
/// Bytes of a switchboard: a page.
const BOARD_BYTES: u64 = 4096;

/// The words of a switchboard, in the order of the same list in `shim.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Process id of the node that has loaded the shim.
    Ready,
    /// Microseconds that the clock is off.
    ClockUs,
    /// Whether syncs fail.
    SyncError,
    /// Milliseconds that every sync takes longer.
    SyncStallMs,
    /// Whether writes fail.
    WriteError,
    /// Whether what writes replace is kept for a power cut.
    Undo,
    /// Whether power is cut.
    Cut,
    /// What the choice of lost sectors follows from.
    Seed,
    /// Looks at a clock that was off.
    ClockReads,
    /// Syncs that failed.
    SyncsFailed,
    /// Syncs that took longer.
    SyncsStalled,
    /// Writes that failed.
    WritesFailed,
    /// Unsynced sectors that a power cut took.
    SectorsLost,
    /// Unsynced sectors that it left.
    SectorsKept,
}

/// Orders that end with the fault.
const ORDERS: [Word; 5] =
    [Word::ClockUs, Word::SyncError, Word::SyncStallMs, Word::WriteError, Word::Cut];

/// Compiles the shim into a directory; the reason if that is not possible here.
pub(crate) async fn compile(dir: &Path) -> Result<PathBuf, String> {
    let source = dir.join("shim.c");
    let library = dir.join("shim.so");
    std::fs::write(&source, SOURCE).map_err(|error| format!("write the shim: {error}"))?;
    let (from, to) = (source.to_string_lossy(), library.to_string_lossy());
    let line = ["cc", "-O2", "-shared", "-fPIC", "-o", &to, &from, "-ldl", "-lpthread"];
    run(&line).await.map_err(|error| format!("the shim cannot be compiled: {error:#}"))?;
    Ok(library)
}

/// What a node needs in its environment to load the shim.
pub(crate) fn environment(
    (library, program): (&Path, &Path),
    (dir, board): (&Path, &Path),
) -> Vec<(String, String)> {
    let pair = |name: &str, path: &Path| (name.to_owned(), path.to_string_lossy().into_owned());
    vec![
        pair("LD_PRELOAD", library),
        pair("HTJ_SHIM_DIR", dir),
        pair("HTJ_SHIM_BOARD", board),
        pair("HTJ_SHIM_PROGRAM", program),
    ]
}

/// A switchboard: words that the harness and a node both see.
#[derive(Debug)]
pub(crate) struct Board {
    file: File,
}

impl Board {
    /// Makes one in which nothing is ordered, but that power may be cut when `undo` says so.
    pub(crate) fn make(path: &Path, undo: bool) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("make {}", path.display()))?;
        file.set_len(BOARD_BYTES).context("make a switchboard")?;
        let board = Self { file };
        board.set(Word::Undo, u64::from(undo))?;
        Ok(board)
    }

    /// Writes a word.
    pub(crate) fn set(&self, word: Word, value: u64) -> anyhow::Result<()> {
        let at = word as u64 * 8;
        self.file.write_all_at(&value.to_ne_bytes(), at).context("write a switchboard")
    }

    /// Reads a word.
    pub(crate) fn get(&self, word: Word) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, word as u64 * 8).context("read a switchboard")?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Takes every order back.
    pub(crate) fn calm(&self) -> anyhow::Result<()> {
        ORDERS.into_iter().try_for_each(|word| self.set(word, 0))
    }

    /// Takes back what a process that is to start must not find: a cut, and its predecessor's sign.
    pub(crate) fn ready_for_start(&self) -> anyhow::Result<()> {
        self.set(Word::Ready, 0)?;
        self.set(Word::Cut, 0)
    }

    /// Whether the node has loaded the shim.
    pub(crate) fn loaded(&self) -> anyhow::Result<bool> {
        Ok(self.get(Word::Ready)? != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_where_the_shim_has_them() {
        let list = SOURCE.split_once("enum {").and_then(|(_, rest)| rest.split_once('}'));
        let names: Vec<&str> = list.expect("it has a list").0.split(',').map(str::trim).collect();
        let place = |name: &str| names.iter().position(|other| *other == name);
        for (name, word) in [
            ("READY", Word::Ready),
            ("CLOCK_US", Word::ClockUs),
            ("CUT", Word::Cut),
            ("SEED", Word::Seed),
            ("WRITES_FAILED", Word::WritesFailed),
            ("SECTORS_KEPT", Word::SectorsKept),
        ] {
            assert_eq!(place(name), Some(word as usize), "{name}");
        }
    }

    /// What a program wrote and never synced is gone in part after a power cut, whole sectors of it.
    #[tokio::test]
    async fn a_power_cut_takes_a_part_of_what_was_not_synced() {
        use std::{io::Write, process::Stdio, time::Instant};
        const SECTORS: usize = 256;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = dir.path().join("node");
        std::fs::create_dir(&place).expect("it can be made");
        let (file, board) = (place.join("file"), dir.path().join("board"));
        std::fs::write(&file, vec![b'a'; SECTORS * 512]).expect("it can be written");
        let library = compile(dir.path()).await.expect("there is a compiler");
        let program =
            run(&["sh", "-c", "readlink -f $(command -v dd)"]).await.expect("there is dd");
        let board_of = Board::make(&board, true).expect("it can be made");
        let names = environment((&library, Path::new(program.trim())), (&place, &board));
        let mut writer = std::process::Command::new("dd");
        writer.args(["bs=512", "conv=notrunc", &format!("of={}", file.display())]);
        writer.envs(names).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut writer = writer.spawn().expect("it can be run");
        // The pipe stays open, so that it waits for more.
        let mut pipe = writer.stdin.take().expect("it is a pipe");
        pipe.write_all(&[b'b'; SECTORS * 512]).expect("it reads");
        let deadline = Instant::now() + std::time::Duration::from_secs(20);
        let all_written =
            || std::fs::read(&file).is_ok_and(|bytes| bytes.iter().all(|b| *b == b'b'));
        while !all_written() {
            assert!(Instant::now() < deadline, "it does not write");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        board_of.set(Word::Seed, 6).expect("it can be written");
        board_of.set(Word::Cut, 1).expect("it can be written");
        let ended = writer.wait().expect("it ends");
        assert!(!ended.success());
        let bytes = std::fs::read(&file).expect("it is there");
        let sectors: Vec<&[u8]> = bytes.chunks(512).collect();
        let of = |byte: u8| sectors.iter().filter(|s| s.iter().all(|b| *b == byte)).count() as u64;
        assert_eq!(of(b'a') + of(b'b'), SECTORS as u64);
        assert_eq!(board_of.get(Word::SectorsLost).expect("it can be read"), of(b'a'));
        assert_eq!(board_of.get(Word::SectorsKept).expect("it can be read"), of(b'b'));
        assert!(of(b'a') > 0 && of(b'b') > 0, "{} lost, {} kept", of(b'a'), of(b'b'));
    }

    #[test]
    fn what_is_written_is_read_and_taken_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let board = Board::make(&dir.path().join("board"), true).expect("it can be made");
        board.set(Word::ClockUs, 5).expect("it can be written");
        board.set(Word::SyncsFailed, 7).expect("it can be written");
        board.calm().expect("it can be written");
        let word = |word| board.get(word).expect("it can be read");
        assert_eq!((word(Word::ClockUs), word(Word::SyncsFailed), word(Word::Undo)), (0, 7, 1));
    }
}
