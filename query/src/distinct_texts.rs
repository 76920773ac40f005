//! Different texts, numbered in the order of their first appearance. Pure.

use arrow::{array::StringArray, buffer::OffsetBuffer, error::ArrowError};
use xxhash_rust::xxh3::xxh3_64;

/// Slots of a new table, a power of two.
const SLOTS_MIN: usize = 64;

/// Texts found by their hash: open addressing over a table that is never more than half full.
#[derive(Debug)]
pub(crate) struct DistinctTexts {
    /// Number of a text plus one; zero is free.
    slots: Vec<u32>,
    hashes: Vec<u64>,
    offsets: Vec<i32>,
    bytes: Vec<u8>,
}

impl Default for DistinctTexts {
    fn default() -> Self {
        let (hashes, bytes) = (Vec::new(), Vec::new());
        Self { slots: vec![0; SLOTS_MIN], hashes, offsets: vec![0], bytes }
    }
}

impl DistinctTexts {
    /// Bytes that all texts may have together, since offsets count them.
    pub(crate) const BYTES_MAX: usize = i32::MAX as usize;

    /// How many texts.
    pub(crate) const fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Bytes of all texts.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of memory.
    pub(crate) const fn memory(&self) -> usize {
        self.slots.capacity() * size_of::<u32>()
            + self.hashes.capacity() * size_of::<u64>()
            + self.offsets.capacity() * size_of::<i32>()
            + self.bytes.capacity()
    }

    /// The number of a text, which is the next one when the text is new. The caller keeps the bytes of all within
    /// [`Self::BYTES_MAX`].
    #[expect(clippy::indexing_slicing, reason = "the mask keeps slots in, numbers come from them")]
    pub(crate) fn number_of(&mut self, text: &str) -> u32 {
        let hash = xxh3_64(text.as_bytes());
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            match self.slots[at] {
                0 => return self.insert(at, hash, text.as_bytes()),
                taken => {
                    let number = taken - 1;
                    if self.hashes[number as usize] == hash
                        && self.text(number) == Some(text.as_bytes())
                    {
                        return number;
                    }
                    at = (at + 1) & mask;
                }
            }
        }
    }

    /// The text of a number.
    pub(crate) fn text(&self, number: u32) -> Option<&[u8]> {
        let number = number as usize;
        let (start, end) = (self.offsets.get(number)?, self.offsets.get(number + 1)?);
        self.bytes.get(*start as usize..*end as usize)
    }

    #[expect(clippy::indexing_slicing, reason = "the caller found the slot")]
    fn insert(&mut self, at: usize, hash: u64, text: &[u8]) -> u32 {
        let number = self.len() as u32;
        self.slots[at] = number + 1;
        self.hashes.push(hash);
        self.bytes.extend_from_slice(text);
        self.offsets.push(self.bytes.len() as i32);
        if self.len() * 2 > self.slots.len() {
            self.grow();
        }
        number
    }

    #[expect(clippy::indexing_slicing, reason = "the mask keeps slots in")]
    fn grow(&mut self) {
        let mask = self.slots.len() * 2 - 1;
        self.slots = vec![0; mask + 1];
        for (number, hash) in self.hashes.iter().enumerate() {
            let mut at = *hash as usize & mask;
            while self.slots[at] != 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = number as u32 + 1;
        }
    }

    /// All texts by their numbers.
    pub(crate) fn into_array(self) -> Result<StringArray, ArrowError> {
        StringArray::try_new(OffsetBuffer::new(self.offsets.into()), self.bytes.into(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_keeps_its_number_while_others_come() {
        let mut texts = DistinctTexts::default();
        for at in 0..70_000u32 {
            assert_eq!(texts.number_of(&format!("text {at}")), at);
            assert_eq!(texts.number_of(&format!("text {}", at / 2)), at / 2);
        }
        assert_eq!(texts.text(69_999), Some(&b"text 69999"[..]));
        assert_eq!(texts.text(70_000), None);
        assert!(texts.memory() > texts.bytes());
        assert_eq!(texts.into_array().expect("they are texts").value(3), "text 3");
    }
}
