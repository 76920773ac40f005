//! Texts gathered row by row into a dictionary of 16-bit keys, as long as few of them are different. Pure.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, DictionaryArray, NullBufferBuilder, PrimitiveArray, StringArray,
        UInt16Array, UInt32Array,
    },
    buffer::ScalarBuffer,
    compute::{cast, concat, take},
    datatypes::{DataType, UInt16Type},
    error::ArrowError,
};

use crate::distinct_texts::DistinctTexts;

/// Rows up to which any share of the texts may be different.
const TRIAL_ROWS: usize = 1024;
/// Rows that each different text must stand for, or a dictionary is not worth it.
const ROWS_PER_ENTRY_MIN: usize = 2;
/// No key yet, in a translation from the keys of another dictionary.
const NO_KEY: u32 = u32::MAX;

/// Texts of a column, of at most `DICTIONARY_ENTRIES_MAX` rows.
#[derive(Debug)]
pub(super) enum Texts {
    /// As a dictionary.
    Dictionary(Dictionary),
    /// As they came, once too many were different.
    Plain(Vec<ArrayRef>),
}

/// A dictionary that grows.
#[derive(Debug)]
pub(super) struct Dictionary {
    entries: DistinctTexts,
    keys: Vec<u16>,
    nulls: NullBufferBuilder,
}

impl Texts {
    pub(super) fn new() -> Self {
        let (entries, nulls) = (DistinctTexts::default(), NullBufferBuilder::new(0));
        Self::Dictionary(Dictionary { entries, keys: Vec::new(), nulls })
    }

    /// Appends the texts at these positions of an array, which is plain or a dictionary.
    pub(super) fn add(&mut self, array: &ArrayRef, rows: &[u32]) -> Result<(), ArrowError> {
        if let Self::Dictionary(dictionary) = self
            && dictionary.entries.bytes().saturating_add(text_bytes(array))
                > DistinctTexts::BYTES_MAX
        {
            *self = Self::Plain(vec![cast(&dictionary.finish()?, &DataType::Utf8)?]);
        }
        match self {
            Self::Plain(pieces) => {
                let texts = take(array, &UInt32Array::from(rows.to_vec()), None)?;
                pieces.push(cast(&texts, &DataType::Utf8)?);
            }
            Self::Dictionary(dictionary) => {
                match array.as_dictionary_opt::<UInt16Type>() {
                    Some(array) => dictionary.add_keys(array, rows),
                    None => dictionary.add_texts(array.as_string::<i32>(), rows),
                }
                let rows = dictionary.keys.len();
                if rows > TRIAL_ROWS && !dictionary.worth() {
                    *self = Self::Plain(vec![cast(&dictionary.finish()?, &DataType::Utf8)?]);
                }
            }
        }
        Ok(())
    }

    /// All texts, with a dictionary where that is worth it.
    pub(super) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        match self {
            Self::Plain(pieces) => {
                concat(&pieces.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())
            }
            Self::Dictionary(dictionary) => {
                let worth = dictionary.worth();
                let texts = dictionary.finish()?;
                if worth { Ok(texts) } else { cast(&texts, &DataType::Utf8) }
            }
        }
    }
}

/// Bytes of the different texts of an array, at most.
fn text_bytes(array: &ArrayRef) -> usize {
    match array.as_dictionary_opt::<UInt16Type>() {
        Some(array) => text_bytes(array.values()),
        None => array.as_string::<i32>().value_data().len(),
    }
}

impl Dictionary {
    fn worth(&self) -> bool {
        self.entries.len() * ROWS_PER_ENTRY_MIN <= self.keys.len()
    }

    fn key_of(&mut self, text: &str) -> u16 {
        let number = self.entries.number_of(text);
        u16::try_from(number)
            .expect("a dictionary has no more entries than rows, and those are few")
    }

    fn add_texts(&mut self, array: &StringArray, rows: &[u32]) {
        self.keys.reserve(rows.len());
        for row in rows {
            let row = *row as usize;
            match array.is_null(row) {
                true => self.add_null(),
                false => {
                    let key = self.key_of(array.value(row));
                    self.keys.push(key);
                    self.nulls.append_non_null();
                }
            }
        }
    }

    fn add_keys(&mut self, array: &DictionaryArray<UInt16Type>, rows: &[u32]) {
        self.keys.reserve(rows.len());
        let (keys, texts) = (array.keys(), array.values().as_string::<i32>());
        let mut translated = vec![NO_KEY; texts.len()];
        for row in rows {
            let row = *row as usize;
            let key = if keys.is_null(row) { texts.len() } else { usize::from(keys.value(row)) };
            match translated.get_mut(key) {
                Some(new) if !texts.is_null(key) => {
                    if *new == NO_KEY {
                        *new = self.key_of(texts.value(key)).into();
                    }
                    self.keys.push(*new as u16);
                    self.nulls.append_non_null();
                }
                _ => self.add_null(),
            }
        }
    }

    fn add_null(&mut self) {
        // Any key will do, as long as there is an entry for it.
        if self.entries.len() == 0 {
            self.key_of("");
        }
        self.keys.push(0);
        self.nulls.append_null();
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let (keys, nulls) = (std::mem::take(&mut self.keys), self.nulls.finish());
        let keys: UInt16Array = PrimitiveArray::try_new(ScalarBuffer::from(keys), nulls)?;
        let entries = std::mem::take(&mut self.entries).into_array()?;
        Ok(Arc::new(DictionaryArray::try_new(keys, Arc::new(entries))?))
    }
}

#[cfg(test)]
mod tests {
    use hypertide_storage::batch::texts_type;
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn gathered(pieces: &[(Vec<Option<String>>, bool)]) -> ArrayRef {
        let mut texts = Texts::new();
        for (piece, dictionary) in pieces {
            let mut array: ArrayRef = Arc::new(StringArray::from(piece.clone()));
            if *dictionary {
                array = cast(&array, &texts_type()).expect("there are few");
            }
            let rows: Vec<u32> = (0..piece.len() as u32).collect();
            texts.add(&array, &rows).expect("they are texts");
        }
        texts.finish().expect("they are texts")
    }

    proptest! {
        #[test]
        fn texts_stay_what_they_are(
            pieces in vec((vec(option::weighted(0.9, "[a-d]{0,3}"), 0..60), any::<bool>()), 1..5),
        ) {
            let expected: StringArray =
                pieces.iter().flat_map(|(piece, _)| piece.iter().map(Option::as_deref)).collect();
            let found = cast(&gathered(&pieces), &DataType::Utf8)?;
            prop_assert_eq!(found.as_string::<i32>(), &expected);
        }
    }

    #[test]
    fn few_texts_are_a_dictionary_and_many_are_not() {
        let few: Vec<_> = (0..5000).map(|at| Some(format!("host_{}", at % 700))).collect();
        assert_eq!(*gathered(&[(few, false)]).data_type(), texts_type());
        for rows in [3, 5000] {
            let many: Vec<_> = (0..rows).map(|at| Some(format!("message {at}"))).collect();
            let more = vec![Some("message 1".to_owned()); 2];
            let all: Vec<_> = many.iter().chain(&more).cloned().collect();
            let found = gathered(&[(many, false), (more, true)]);
            assert_eq!(*found.data_type(), DataType::Utf8);
            assert_eq!(found.as_string::<i32>(), &StringArray::from(all));
        }
    }
}
