//! Texts with dictionaries on their way into segments: one dictionary for all, and the order by series and time.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, DictionaryArray, PrimitiveBuilder, StringArray, StringBuilder,
    },
    datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType, UInt16Type},
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

/// Positions of the rows by name, then time, then as they came: null names first. `None` where the columns are not a
/// dictionary of texts and a time without nulls.
pub(super) fn series_order(names: &ArrayRef, times: &ArrayRef) -> Option<Vec<u32>> {
    let names = names.as_dictionary_opt::<Int32Type>()?;
    let times: &[i64] = match times.data_type() {
        _ if times.null_count() > 0 => return None,
        DataType::Timestamp(..) => times.as_primitive_opt::<TimestampMicrosecondType>()?.values(),
        DataType::Int64 => times.as_primitive_opt::<Int64Type>()?.values(),
        _ => return None,
    };
    let rows = u32::try_from(names.len()).ok()?;
    let ranks = ranks(names.values().as_string_opt::<i32>()?);
    let rank = |row: usize| match names.keys().is_null(row) {
        true => 0,
        false => {
            let key = names.keys().values().get(row).and_then(|key| usize::try_from(*key).ok());
            key.and_then(|key| ranks.get(key)).copied().unwrap_or_default()
        }
    };
    // Counted, then put in their places: rows of a name stay as they came.
    let mut ends = vec![0usize; ranks.len() + 2];
    for row in 0..names.len() {
        *ends.get_mut(rank(row) + 1)? += 1;
    }
    for at in 1..ends.len() {
        let before = *ends.get(at - 1)?;
        *ends.get_mut(at)? += before;
    }
    let starts = ends.clone();
    let mut positions = vec![0u32; names.len()];
    for (row, position) in (0..names.len()).zip(0..rows) {
        let next = ends.get_mut(rank(row))?;
        *positions.get_mut(*next)? = position;
        *next += 1;
    }
    let time = |position: &u32| times.get(*position as usize).copied().unwrap_or_default();
    for (start, end) in starts.iter().zip(starts.iter().skip(1)) {
        let series = positions.get_mut(*start..*end)?;
        if !series.is_sorted_by_key(time) {
            series.sort_by_key(time);
        }
    }
    Some(positions)
}

/// The place of each text among all, from 1.
fn ranks(texts: &StringArray) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..texts.len()).collect();
    sorted.sort_unstable_by_key(|at| texts.value(*at));
    let mut ranks = vec![0; texts.len()];
    for (rank, at) in sorted.into_iter().enumerate() {
        if let Some(place) = ranks.get_mut(at) {
            *place = rank + 1;
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{RecordBatch, TimestampMicrosecondArray},
        compute::cast,
    };
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::{
        batch::texts_type,
        store::{
            order::OrderBy,
            sort::{Sorted, sort},
        },
    };

    fn by(column: &str) -> OrderBy {
        OrderBy { column: column.to_owned(), descending: false, nulls_first: true }
    }

    fn rows(names: ArrayRef, times: &[i64]) -> Sorted {
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times.to_vec()));
        let csns = (0..times.len() as u64).collect();
        let rows = RecordBatch::try_from_iter([("name", names), ("time", times)]);
        Sorted { rows: rows.expect("they are as many"), csns }
    }

    proptest! {
        /// Against arrow's row format, over pieces that are plain or have dictionaries of their own.
        #[test]
        fn names_and_times_are_in_order(
            pieces in vec((vec((option::weighted(0.9, "[a-c]{0,2}"), 0i64..9), 0..20), any::<bool>()), 1..5),
        ) {
            let arrays: Vec<ArrayRef> = pieces.iter().map(|(piece, dictionary)| {
                let plain: ArrayRef =
                    Arc::new(piece.iter().map(|(name, _)| name.as_deref()).collect::<StringArray>());
                match dictionary {
                    true => cast(&plain, &texts_type()).expect("there are few"),
                    false => plain,
                }
            }).collect();
            let all = pieces.iter().flat_map(|(piece, _)| piece);
            let times: Vec<i64> = all.clone().map(|(_, time)| *time).collect();
            let plain: StringArray = all.map(|(name, _)| name.as_deref()).collect();
            let views: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
            let joined: ArrayRef = Arc::new(join_texts(&views)?);
            prop_assert_eq!(&cast(&joined, &DataType::Utf8)?, &(Arc::new(plain.clone()) as ArrayRef));

            let order = [by("name"), by("time")];
            let expected = sort(&order, rows(Arc::new(plain), &times))?;
            let sorted = sort(&order, rows(Arc::clone(&joined), &times))?;
            prop_assert_eq!(sorted.csns, expected.csns);
            let found = cast(sorted.rows.column(0), &DataType::Utf8)?;
            prop_assert_eq!(&found, expected.rows.column(0));
            prop_assert_eq!(sorted.rows.column(1), expected.rows.column(1));
        }
    }
}
