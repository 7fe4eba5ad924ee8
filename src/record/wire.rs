//! Little-endian primitives of every format that Forebay writes.
//!
//! Integers are little-endian and unaligned. Byte strings are a u32 length and the bytes; text is a u16 length and
//! UTF-8; varints are unsigned LEB128 in its shortest form. A [`Reader`] checks every bound and never panics,
//! whatever the bytes.

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the bytes end too early")]
    Truncated,
    #[error("{what} is not valid")]
    Invalid { what: &'static str },
}

/// Appends primitives to a buffer.
pub trait Put {
    fn put_u8(&mut self, value: u8);
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    /// Unsigned LEB128.
    fn put_varint(&mut self, value: u64);
    /// A u32 length and the bytes. More than `u32::MAX` bytes are a bug.
    fn put_bytes(&mut self, value: &[u8]);
    /// A u16 length and the text. More than `u16::MAX` bytes are a bug: limits are checked at admission.
    fn put_str(&mut self, value: &str);
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn put_bytes(&mut self, value: &[u8]) {
        self.put_u32(u32::try_from(value.len()).expect("byte strings are shorter than 4 GiB"));
        self.extend_from_slice(value);
    }

    fn put_str(&mut self, value: &str) {
        self.put_u16(u16::try_from(value.len()).expect("stored text is shorter than 64 KiB"));
        self.extend_from_slice(value.as_bytes());
    }
}

/// Takes primitives from the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next `count` bytes as they are.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(WireError::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Unsigned LEB128; longer forms than needed and more than 64 bits are invalid.
    pub fn varint(&mut self) -> Result<u64, WireError> {
        let invalid = WireError::Invalid { what: "a varint" };
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || byte == 0 && shift > 0 {
                return Err(invalid);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(invalid)
    }

    /// A u32 length and that many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| WireError::Truncated)?)
    }

    /// A u16 length and that many bytes of UTF-8.
    pub fn str(&mut self) -> Result<&'a str, WireError> {
        let length = self.u16()?;
        utf8(self.take(usize::from(length))?)
    }

    /// Says that nothing may be left.
    pub fn finish(self) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(WireError::Invalid { what: "what follows the end" }) }
    }
}

/// Bytes that must be UTF-8.
pub fn utf8(bytes: &[u8]) -> Result<&str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::Invalid { what: "text that is not UTF-8" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn primitives_come_back(a: u8, b: u16, c: u32, d: u64, v: u64, bytes: Vec<u8>, text: String) {
            let mut out = Vec::new();
            out.put_u8(a);
            out.put_u16(b);
            out.put_u32(c);
            out.put_u64(d);
            out.put_varint(v);
            out.put_bytes(&bytes);
            out.put_str(&text);
            for end in 0..out.len() {
                let mut short = Reader::new(&out[..end]);
                prop_assert!(read_all(&mut short).is_err());
            }
            let mut reader = Reader::new(&out);
            prop_assert_eq!(read_all(&mut reader), Ok((a, b, c, d, v, bytes, text)));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = read_all(&mut Reader::new(&bytes));
            let mut reader = Reader::new(&bytes);
            while reader.varint().is_ok() {}
        }
    }

    type All = (u8, u16, u32, u64, u64, Vec<u8>, String);

    fn read_all(reader: &mut Reader<'_>) -> Result<All, WireError> {
        Ok((
            reader.u8()?,
            reader.u16()?,
            reader.u32()?,
            reader.u64()?,
            reader.varint()?,
            reader.bytes()?.to_vec(),
            reader.str()?.to_owned(),
        ))
    }

    #[test]
    fn varints_have_one_form_only() {
        let invalid = Err(WireError::Invalid { what: "a varint" });
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), invalid);
        assert_eq!(Reader::new(&[0xff; 10]).varint(), invalid);
        assert_eq!(Reader::new(&[0x80]).varint(), Err(WireError::Truncated));
        assert_eq!(Reader::new(&[0x00]).varint(), Ok(0));
    }

    #[test]
    fn rest_and_text_are_checked() {
        assert_eq!(Reader::new(&[1]).finish(), Err(WireError::Invalid { what: "what follows the end" }));
        assert!(matches!(Reader::new(&[1, 0, 0xff]).str(), Err(WireError::Invalid { .. })));
    }
}
