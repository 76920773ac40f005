//! A cursor over bytes that may be wrong, and variable-length numbers.

use super::CodecError;

/// Reads from the front of a slice; every read may find that the bytes end early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// All bytes not read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    /// A byte.
    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes, little endian.
    pub(crate) fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, little endian.
    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little endian.
    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes, little endian, signed.
    pub(crate) fn i64(&mut self) -> Result<i64, CodecError> {
        self.array().map(i64::from_le_bytes)
    }

    /// A number of at most 128 bits in groups of seven bits, the lowest first.
    pub(crate) fn varint(&mut self) -> Result<u128, CodecError> {
        let mut value = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.u8()?;
            let bits = u128::from(byte & 0x7f);
            if shift == 126 && bits > 3 {
                return Err(CodecError::Wrong("a number has more than 128 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(CodecError::Wrong("a number has more than 128 bits"))
    }

    /// A number of at most 64 bits.
    pub(crate) fn varint_u64(&mut self) -> Result<u64, CodecError> {
        u64::try_from(self.varint()?)
            .map_err(|_| CodecError::Wrong("a number has more than 64 bits"))
    }

    /// A signed number in zigzag form.
    pub(crate) fn varint_signed(&mut self) -> Result<i128, CodecError> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// A length that must lie in the rest, and the bytes it counts.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], CodecError> {
        let len = usize::try_from(self.varint()?).map_err(|_| CodecError::Short)?;
        self.take(len)
    }

    /// As [`Reader::sized`], as text.
    pub(crate) fn text(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.sized()?).map_err(|_| CodecError::Wrong("a text is not UTF-8"))
    }

    /// Refuses bytes that nothing asked for.
    pub(crate) const fn finish(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Wrong("bytes are left over")) }
    }
}

/// Appends what [`Reader::varint`] reads.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u128) {
    while value > 0x7f {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends what [`Reader::varint_signed`] reads.
pub(crate) fn put_varint_signed(out: &mut Vec<u8>, value: i128) {
    put_varint(out, ((value << 1) ^ (value >> 127)).cast_unsigned());
}

/// Appends what [`Reader::sized`] reads.
pub(crate) fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u128);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_survive(value: u128, signed: i128) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_varint_signed(&mut out, signed);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.varint_signed(), Ok(signed));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            let _ = reader.text();
            while reader.varint_signed().is_ok() {}
        }
    }

    #[test]
    fn a_number_of_more_than_128_bits_is_refused() {
        let bytes = [0xff; 19];
        assert!(Reader::new(&bytes).varint().is_err());
        let mut bytes = [0xff; 19];
        bytes[18] = 4;
        assert!(Reader::new(&bytes).varint().is_err());
        assert_eq!(Reader::new(&[0x80]).varint(), Err(CodecError::Short));
    }
}
