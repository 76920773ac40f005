//! Files: atomic replacement, directory fsync, and the frame that every stored value wears.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use xxhash_rust::xxh3::Xxh3;

/// Checksum and index before a value's body.
const FRAME_BYTES: usize = 16;

/// An error of redb as one of I/O.
pub(super) fn disk<E: Into<redb::Error>>(error: E) -> io::Error {
    io::Error::other(error.into())
}

/// Bytes that are not what was written.
pub(super) fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is damaged"))
}

/// A body with its checksum and the index it is stored at, so that a value that redb returns for the wrong key, or
/// with flipped bits, is noticed: redb itself does not verify what it reads.
pub(super) fn seal(index: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES + body.len());
    frame.extend_from_slice(&checksum(index, body).to_le_bytes());
    frame.extend_from_slice(&index.to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// The body in a frame that [`seal`] made for `index`.
pub(super) fn unseal(index: u64, frame: &[u8]) -> io::Result<&[u8]> {
    let wrong = || damaged(format_args!("the value stored at {index}"));
    let (sum, rest) = frame.split_first_chunk::<8>().ok_or_else(wrong)?;
    let (at, body) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
    let fits =
        u64::from_le_bytes(*at) == index && u64::from_le_bytes(*sum) == checksum(index, body);
    if fits { Ok(body) } else { Err(wrong()) }
}

fn checksum(index: u64, body: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&index.to_le_bytes());
    hash.update(body);
    hash.digest()
}

/// The index that the frame of a value under a name carries.
pub(super) fn name_index(name: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(name)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Puts `bytes` into the file of that name: a reader finds the old or the new content, whole, also after a crash.
pub(super) fn replace_file(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

/// The text of a file, or `None` when there is no such file.
pub(super) fn read_optional(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_notice_every_flipped_bit_and_every_wrong_place() {
        let frame = seal(7, b"entry");
        assert_eq!(unseal(7, &frame).expect("as sealed"), b"entry");
        assert!(unseal(8, &frame).is_err());
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(7, &bad).is_err(), "bit {bit}");
        }
        for length in 0..frame.len() {
            assert!(unseal(7, &frame[..length]).is_err(), "length {length}");
        }
    }
}
