//! Tagged values, so that a format can grow.
//!
//! ```text
//! tag u16 | length u16 | value
//! ```
//! The top bit of a tag says that it is critical: a build that does not know it must refuse what carries it. Others
//! may be skipped by those who do not know them. Tags are never reused; 0 is not a tag.

use super::wire::{Put, Reader, WireError};

/// The bit of a tag that forbids skipping it.
pub const CRITICAL: u16 = 0x8000;

/// Why a list of tagged values was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlvError {
    #[error("a tagged value is damaged: {0}")]
    Wire(#[from] WireError),
    #[error("tag {tag:#06x} must be understood, and this build does not know it; use a newer build")]
    UnknownCritical { tag: u16 },
}

/// Appends one value. A tag of 0 or a value over 65,535 bytes is a bug.
pub fn put(out: &mut Vec<u8>, tag: u16, value: &[u8]) {
    put_with(out, tag, |out| out.extend_from_slice(value));
}

/// Appends one value written by `fill`.
pub fn put_with(out: &mut Vec<u8>, tag: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    assert_ne!(tag, 0, "0 is not a tag");
    out.put_u16(tag);
    let length_at = out.len();
    out.put_u16(0);
    fill(out);
    let length = u16::try_from(out.len() - length_at - 2).expect("a tagged value is shorter than 64 KiB");
    out[length_at..length_at + 2].copy_from_slice(&length.to_le_bytes());
}

/// The tagged values in `bytes`, in order; ends after the first error.
pub fn iter(bytes: &[u8]) -> Iter<'_> {
    Iter { reader: Reader::new(bytes), failed: false }
}

/// See [`iter`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    reader: Reader<'a>,
    failed: bool,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Result<(u16, &'a [u8]), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.is_empty() {
            return None;
        }
        let item = next(&mut self.reader);
        self.failed = item.is_err();
        Some(item)
    }
}

fn next<'a>(reader: &mut Reader<'a>) -> Result<(u16, &'a [u8]), WireError> {
    let tag = reader.u16()?;
    if tag == 0 {
        return Err(WireError::Invalid { what: "tag 0" });
    }
    let length = reader.u16()?;
    Ok((tag, reader.take(usize::from(length))?))
}

/// Refuses damage, and critical tags that are not in `known`.
pub fn check(bytes: &[u8], known: &[u16]) -> Result<(), TlvError> {
    for item in iter(bytes) {
        let (tag, _) = item?;
        if tag & CRITICAL != 0 && !known.contains(&tag) {
            return Err(TlvError::UnknownCritical { tag });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_come_back(values in proptest::collection::vec((1u16.., any::<Vec<u8>>()), 0..8)) {
            let mut out = Vec::new();
            for (tag, value) in &values {
                put(&mut out, *tag, value);
            }
            let read: Result<Vec<_>, _> = iter(&out).map(|item| item.map(|(t, v)| (t, v.to_vec()))).collect();
            prop_assert_eq!(read, Ok(values));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = check(&bytes, &[]);
            prop_assert!(iter(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn only_unknown_critical_tags_are_refused() {
        let mut out = Vec::new();
        put(&mut out, 7, b"skip me");
        put(&mut out, CRITICAL | 8, b"");
        assert_eq!(check(&out, &[CRITICAL | 8]), Ok(()));
        assert_eq!(check(&out, &[8]), Err(TlvError::UnknownCritical { tag: CRITICAL | 8 }));
        assert_eq!(check(&out[..5], &[]), Err(TlvError::Wire(WireError::Truncated)));
        assert_eq!(check(&[0; 4], &[]), Err(TlvError::Wire(WireError::Invalid { what: "tag 0" })));
    }
}
