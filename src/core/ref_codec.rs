//! Refs in records: a count, then of each when it is due, less that of the one before (at first as it is), the
//! distance of its offset from behind the one before (zigzag; at first from 0), and its attempts. All are varints, so
//! that messages that were put back together take three bytes each.

use super::spilled::Ref;
use crate::ids::Offset;
use crate::record::wire::{Put, Reader, WireError};

/// Appends refs, which are in order of their time.
pub fn put(out: &mut Vec<u8>, refs: &[Ref]) {
    out.put_varint(refs.len() as u64);
    let (mut due_us, mut end) = (0, 0u64);
    for entry in refs {
        out.put_varint(entry.due_us - due_us);
        put_distance(out, end, entry.offset);
        out.put_varint(entry.attempts.into());
        (due_us, end) = (entry.due_us, entry.offset.0 + 1);
    }
}

/// Reads what [`put`] wrote.
pub fn read(body: &mut Reader<'_>) -> Result<Vec<Ref>, WireError> {
    let invalid = WireError::Invalid { what: "a ref" };
    let count = body.varint()?;
    let mut refs = Vec::new();
    let (mut before_us, mut end) = (0u64, 0u64);
    for _ in 0..count {
        let due_us = before_us.checked_add(body.varint()?).ok_or(invalid)?;
        let offset = distance(body, end)?;
        let attempts = u32::try_from(body.varint()?).map_err(|_| invalid)?;
        (before_us, end) = (due_us, offset.0.checked_add(1).ok_or(invalid)?);
        refs.push(Ref { due_us, offset, attempts });
    }
    Ok(refs)
}

/// Appends the distance of `to` from `from`, in zigzag.
pub fn put_distance(out: &mut Vec<u8>, from: u64, to: Offset) {
    let distance = to.0.wrapping_sub(from) as i64;
    out.put_varint((distance << 1 ^ distance >> 63) as u64);
}

/// What is at the distance that was written.
pub fn distance(body: &mut Reader<'_>, from: u64) -> Result<Offset, WireError> {
    let zigzag = body.varint()?;
    let distance = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    Ok(Offset(from.wrapping_add(distance as u64)))
}
