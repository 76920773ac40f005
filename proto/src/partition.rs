//! The hash that spreads rows over the buckets of a hash dimension.
//!
//! It decides in which chunk a stored row lies and can therefore never change: the tests pin its values. A value is
//! hashed by its SQL meaning, not by its width, so that `smallint 7` and `bigint 7` fall into the same bucket.

use xxhash_rust::xxh3::xxh3_64;

/// Hash values lie in `[0, HASH_END)`, as in PostgreSQL's non-negative integers.
pub const HASH_END: i64 = (1 << 31) - 1;
/// Most partitions of a hash dimension.
pub const PARTITIONS_MAX: u16 = 32_767;

/// A value of a hash dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HashKey<'a> {
    /// NULL, which lies in the first bucket.
    Null,
    /// Any integer, timestamp (microseconds) or date (days), and decimals as their unscaled number.
    Int(i128),
    /// Any float.
    Float(f64),
    /// Any text, UUIDs and JSON included.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// Booleans.
    Bool(bool),
}

/// The hash of a value, in `[0, HASH_END)`.
#[must_use]
pub fn hash(key: HashKey<'_>) -> i64 {
    let hashed = match key {
        HashKey::Null => return 0,
        HashKey::Int(value) => match i64::try_from(value) {
            Ok(value) => xxh3_64(&value.to_le_bytes()),
            Err(_) => xxh3_64(&value.to_le_bytes()),
        },
        // -0 and 0 are equal in SQL, and so is every NaN to every other.
        HashKey::Float(value) if value.is_nan() => xxh3_64(&f64::NAN.to_bits().to_le_bytes()),
        HashKey::Float(value) => xxh3_64(&(value + 0.0).to_bits().to_le_bytes()),
        HashKey::Text(value) => xxh3_64(value.as_bytes()),
        HashKey::Bytes(value) => xxh3_64(value),
        HashKey::Bool(value) => xxh3_64(&[u8::from(value)]),
    };
    // As PostgreSQL does: the low 31 bits, so that the value is not negative.
    (hashed & 0x7fff_ffff) as i64 % HASH_END
}

/// The bucket, of `partitions`, in which a hash value lies.
///
/// Buckets are `HASH_END / partitions` wide, and the last takes the remainder.
#[must_use]
pub fn bucket(hash: i64, partitions: u16) -> u16 {
    assert!(partitions > 0, "a hash dimension has a partition");
    let width = HASH_END / i64::from(partitions);
    (hash / width).min(i64::from(partitions) - 1) as u16
}

/// The hash values of a bucket as a half-open range; the first starts at `i64::MIN`, the last ends at `i64::MAX`.
#[must_use]
pub fn bucket_range(bucket: u16, partitions: u16) -> crate::time::TimeRange {
    assert!(bucket < partitions, "a bucket is one of the partitions");
    let width = HASH_END / i64::from(partitions);
    let start = if bucket == 0 { i64::MIN } else { i64::from(bucket) * width };
    let end = if bucket + 1 == partitions { i64::MAX } else { (i64::from(bucket) + 1) * width };
    crate::time::TimeRange::new(start, end).expect("a bucket has a positive width")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_hash_lies_in_the_range_of_its_bucket(value: i64, partitions in 1..=PARTITIONS_MAX) {
            let hashed = hash(HashKey::Int(value.into()));
            prop_assert!((0..HASH_END).contains(&hashed));
            let bucket = bucket(hashed, partitions);
            prop_assert!(bucket < partitions);
            prop_assert!(bucket_range(bucket, partitions).contains(hashed));
        }
    }

    #[test]
    fn hashes_are_pinned() {
        // Rows on disk lie where these values put them: if this fails, restore the hash.
        let hashes = [
            hash(HashKey::Null),
            hash(HashKey::Int(0)),
            hash(HashKey::Int(-7)),
            hash(HashKey::Int(i128::MAX)),
            hash(HashKey::Float(1.5)),
            hash(HashKey::Text("Seattle")),
            hash(HashKey::Text("New York")),
            hash(HashKey::Bytes(&[1, 2, 3])),
            hash(HashKey::Bool(true)),
        ];
        assert_eq!(hashes, PINNED);
    }

    const PINNED: [i64; 9] = [
        0,
        1_871_162_585,
        140_083_124,
        675_189_311,
        536_228_952,
        733_778_942,
        622_753_418,
        850_293_563,
        1_803_996_907,
    ];

    #[test]
    fn equal_values_hash_alike() {
        assert_eq!(hash(HashKey::Float(0.0)), hash(HashKey::Float(-0.0)));
        assert_eq!(hash(HashKey::Float(f64::NAN)), hash(HashKey::Float(-f64::NAN)));
    }

    #[test]
    fn ranges_are_those_of_the_reference() {
        assert_eq!(bucket_range(1, 2).start(), 1_073_741_823);
        assert_eq!(bucket_range(1, 3).start(), 715_827_882);
        assert_eq!(bucket_range(2, 3).start(), 1_431_655_764);
        assert_eq!(bucket_range(4, 5).start(), 1_717_986_916);
        assert_eq!(bucket_range(0, 5).start(), i64::MIN);
        assert_eq!(bucket_range(4, 5).end(), i64::MAX);
    }
}
