//! About how many different values a column has: HyperLogLog, for the planner.
//!
//! A register remembers the most leading zeros among the hashes that fell to it. With 256 of them the estimate is
//! off by about 6.5 %; while many are empty, counting those is nearer still. Sketches of parts merge into the sketch
//! of the whole. The hashes are persisted in effect: they never change.

use arrow::{
    array::{Array, ArrowPrimitiveType, AsArray},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, TimestampMicrosecondType,
    },
};
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{CodecError, Reader, put_sized};

/// Bits of a hash that choose the register.
const INDEX_BITS: u32 = 8;
const REGISTERS: usize = 1 << INDEX_BITS;
/// Greatest value of a register: all remaining bits are zero.
const REGISTER_MAX: u8 = (u64::BITS - INDEX_BITS + 1) as u8;
/// Corrects the bias of the harmonic mean for 256 registers.
const ALPHA: f64 = 0.7213 / (1.0 + 1.079 / REGISTERS as f64);

/// A sketch of the values of a column.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sketch([u8; REGISTERS]);

impl Default for Sketch {
    fn default() -> Self {
        Self([0; REGISTERS])
    }
}

impl std::fmt::Debug for Sketch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sketch(about {})", self.estimate())
    }
}

impl Sketch {
    /// Adds the values of an array. Booleans and nulls do not count.
    pub(super) fn add(&mut self, array: &dyn Array) {
        match array.data_type() {
            DataType::Int16 => self.add_all::<Int16Type>(array, i64::from),
            DataType::Int32 => self.add_all::<Int32Type>(array, i64::from),
            DataType::Date32 => self.add_all::<Date32Type>(array, i64::from),
            DataType::Int64 => self.add_all::<Int64Type>(array, |value| value),
            DataType::Timestamp(..) => {
                self.add_all::<TimestampMicrosecondType>(array, |value| value);
            }
            // What the upper half adds is hashed by folding it onto the lower.
            DataType::Decimal128(..) => self.add_all::<Decimal128Type>(array, |value| {
                (value as i64) ^ ((value >> 64) as i64).rotate_left(32)
            }),
            DataType::Float32 => self.add_all::<Float32Type>(array, |value| bits(value.into())),
            DataType::Float64 => self.add_all::<Float64Type>(array, bits),
            DataType::Utf8 => {
                self.add_bytes(array.as_string::<i32>().iter().flatten().map(str::as_bytes));
            }
            DataType::Binary => self.add_bytes(array.as_binary::<i32>().iter().flatten()),
            _ => {}
        }
    }

    fn add_all<T: ArrowPrimitiveType>(
        &mut self,
        array: &dyn Array,
        number: impl Fn(T::Native) -> i64,
    ) {
        let array = array.as_primitive::<T>();
        let mut last = None;
        let mut add = |value| {
            let number = number(value);
            // Neighbours are often equal.
            if last != Some(number) {
                self.add_hash(xxh3_64(&number.to_le_bytes()));
                last = Some(number);
            }
        };
        match array.null_count() {
            0 => array.values().iter().for_each(|value| add(*value)),
            _ => array.iter().flatten().for_each(add),
        }
    }

    fn add_bytes<'a>(&mut self, strings: impl Iterator<Item = &'a [u8]>) {
        let mut last = None;
        for string in strings {
            if last != Some(string) {
                self.add_hash(xxh3_64(string));
                last = Some(string);
            }
        }
    }

    fn add_hash(&mut self, hash: u64) {
        let register = (hash >> (u64::BITS - INDEX_BITS)) as usize;
        let zeros = (hash << INDEX_BITS).leading_zeros().min(u64::BITS - INDEX_BITS) as u8 + 1;
        if let Some(register) = self.0.get_mut(register) {
            *register = zeros.max(*register);
        }
    }

    /// Adds all that another has seen.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (register, other) in self.0.iter_mut().zip(other.0) {
            *register = other.max(*register);
        }
    }

    /// About how many different values were added.
    pub(crate) fn estimate(&self) -> u64 {
        let registers = REGISTERS as f64;
        let empty = self.0.iter().filter(|register| **register == 0).count();
        let sum: f64 = self.0.iter().map(|register| (-f64::from(*register)).exp2()).sum();
        let raw = ALPHA * registers * registers / sum;
        let estimate = match empty {
            1.. if raw <= 2.5 * registers => registers * (registers / empty as f64).ln(),
            _ => raw,
        };
        estimate.round() as u64
    }

    /// Appends the registers, or nothing where none is set.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self.0.iter().all(|register| *register == 0) {
            true => put_sized(out, &[]),
            false => put_sized(out, &self.0),
        }
    }

    /// Reads what [`Sketch::put`] wrote.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let bytes = reader.sized()?;
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let registers = <[u8; REGISTERS]>::try_from(bytes).ok();
        registers
            .filter(|registers| registers.iter().all(|register| *register <= REGISTER_MAX))
            .map(Self)
            .ok_or(CodecError::Wrong("a sketch is out of range"))
    }
}

/// The bits of a float, the same for all that compare as equal.
fn bits(value: f64) -> i64 {
    let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
    value.to_bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array, StringArray};

    use super::*;

    fn sketch(array: &dyn Array) -> Sketch {
        let mut sketch = Sketch::default();
        sketch.add(array);
        sketch
    }

    #[test]
    fn estimates_are_near() {
        for distinct in [0i64, 1, 2, 10, 100, 1000, 10_000, 100_000] {
            let numbers = Int64Array::from_iter_values((0..distinct * 2).map(|i| i % distinct));
            let near = |estimate: u64| {
                let off = estimate.abs_diff(distinct as u64) as f64;
                assert!(off <= 0.2 * distinct as f64, "{estimate} of {distinct}");
            };
            near(sketch(&numbers).estimate());
            let texts: StringArray = (0..distinct).map(|i| Some(format!("host_{i}"))).collect();
            near(sketch(&texts).estimate());
        }
    }

    #[test]
    fn sketches_of_parts_are_the_sketch_of_the_whole() {
        let whole = Int64Array::from_iter_values(0..5000);
        let mut merged = sketch(&whole.slice(0, 3000));
        merged.merge(&sketch(&whole.slice(2000, 3000)));
        assert_eq!(merged, sketch(&whole));
        let mut out = Vec::new();
        merged.put(&mut out);
        assert_eq!(Sketch::read(&mut Reader::new(&out)), Ok(merged));
        assert!(Sketch::read(&mut Reader::new(&[3, 1, 1, 1])).is_err());
        assert_eq!(Sketch::read(&mut Reader::new(&[0])), Ok(Sketch::default()));
    }

    #[test]
    fn equal_floats_count_once() {
        let other = f64::from_bits(0xfff8_0000_0000_0001);
        let floats = Float64Array::from(vec![0.0, -0.0, f64::NAN, other, 1.0]);
        assert_eq!(sketch(&floats).estimate(), 3);
    }
}
