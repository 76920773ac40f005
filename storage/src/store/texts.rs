//! Texts with dictionaries on their way into segments: one dictionary for all.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, PrimitiveBuilder, StringBuilder},
    datatypes::{Int32Type, UInt16Type},
    error::ArrowError,
};

/// Ids of texts in order of their first appearance.
#[derive(Debug, Default)]
struct Ids<'a> {
    known: HashMap<&'a str, i32>,
    entries: StringBuilder,
}

impl<'a> Ids<'a> {
    fn of(&mut self, text: &'a str) -> Result<i32, ArrowError> {
        if let Some(id) = self.known.get(text) {
            return Ok(*id);
        }
        let id = i32::try_from(self.known.len())
            .map_err(|_| ArrowError::ComputeError("more than 2^31 different texts".into()))?;
        self.known.insert(text, id);
        self.entries.append_value(text);
        Ok(id)
    }
}

/// Texts, plain or with dictionaries of 16-bit keys, one after another with one dictionary.
pub(super) fn join_texts(arrays: &[&dyn Array]) -> Result<DictionaryArray<Int32Type>, ArrowError> {
    let mut ids = Ids::default();
    let rows = arrays.iter().map(|array| array.len()).sum();
    let mut keys = PrimitiveBuilder::<Int32Type>::with_capacity(rows);
    // Batches of one part share a dictionary.
    let mut last: Option<(&ArrayRef, Vec<i32>)> = None;
    for array in arrays {
        let Some(array) = array.as_dictionary_opt::<UInt16Type>() else {
            for text in array.as_string::<i32>() {
                match text {
                    Some(text) => keys.append_value(ids.of(text)?),
                    None => keys.append_null(),
                }
            }
            continue;
        };
        let known = last.take().filter(|(values, _)| Arc::ptr_eq(values, array.values()));
        let (values, new) = match known {
            Some(known) => known,
            None => {
                let texts = array.values().as_string::<i32>();
                let new: Result<_, _> =
                    texts.iter().map(|text| ids.of(text.unwrap_or(""))).collect();
                (array.values(), new?)
            }
        };
        let id = |key: u16| new.get(usize::from(key)).copied().unwrap_or_default();
        let old = array.keys();
        match old.nulls() {
            None => keys.extend(old.values().iter().map(|key| Some(id(*key)))),
            Some(_) => old.iter().for_each(|key| keys.append_option(key.map(id))),
        }
        last = Some((values, new));
    }
    DictionaryArray::try_new(keys.finish(), Arc::new(ids.entries.finish()))
}

#[cfg(test)]
mod tests {
    use arrow::{array::StringArray, compute::cast, datatypes::DataType};
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::batch::texts_type;

    proptest! {
        /// Over pieces that are plain or have dictionaries of their own.
        #[test]
        fn texts_survive_and_stand_once(
            pieces in vec((vec(option::weighted(0.9, "[a-c]{0,2}"), 0..20), any::<bool>()), 1..5),
        ) {
            let arrays: Vec<ArrayRef> = pieces.iter().map(|(piece, dictionary)| {
                let plain: ArrayRef =
                    Arc::new(piece.iter().map(Option::as_deref).collect::<StringArray>());
                match dictionary {
                    true => cast(&plain, &texts_type()).expect("there are few"),
                    false => plain,
                }
            }).collect();
            let all = pieces.iter().flat_map(|(piece, _)| piece);
            let plain: StringArray = all.map(Option::as_deref).collect();
            let views: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
            let joined: ArrayRef = Arc::new(join_texts(&views)?);
            prop_assert_eq!(&cast(&joined, &DataType::Utf8)?, &(Arc::new(plain) as ArrayRef));
            let entries = joined.as_dictionary::<Int32Type>().values().as_string::<i32>();
            let mut seen: Vec<&str> = entries.iter().flatten().collect();
            seen.sort_unstable();
            prop_assert!(seen.array_windows().all(|[one, other]| one < other));
        }
    }
}
