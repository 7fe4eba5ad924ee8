//! The protobuf of streams, read and written without forms in between.
//!
//! Generated code makes a message of a dozen fields, with texts and maps of its own, for each few bytes that pass; at
//! hundreds of thousands a second that is most of what a server does. What is usual is read and written here, by hand;
//! what is not is left to the generated code, and tests hold the one against the other.

pub mod publish;
pub mod subscribe;

use bytes::BufMut;
use prost::encoding::{decode_varint, encoded_len_varint};

/// The tag of a number's field.
const fn number(field: u32) -> u32 {
    field << 3
}

/// The tag of a field with a length: a text, bytes, a message.
const fn part(field: u32) -> u32 {
    field << 3 | 2
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    decode_varint(rest).ok()
}

/// The next field's tag; none at the end.
fn take_tag(rest: &mut &[u8]) -> Option<Option<u32>> {
    if rest.is_empty() {
        return Some(None);
    }
    u32::try_from(take_varint(rest)?).ok().map(Some)
}

/// A part with its length before it.
fn take_part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let (part, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(part)
}

/// The parts of a field, until the bytes end or are no fields: what is decoded from here on needs room for as many.
fn parts(bytes: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> + Clone {
    let part = move |(tag, value)| match value {
        Value::Part(part) if tag == wanted => Some(part),
        _ => None,
    };
    fields(bytes).filter_map(part)
}

/// A field's value, as far as it matters here.
enum Value<'a> {
    Number(u64),
    Part(&'a [u8]),
    Fixed,
}

/// The fields of a message with their tags, until the bytes end or are no fields.
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u32, Value<'_>)> + Clone {
    std::iter::from_fn(move || {
        let tag = take_tag(&mut rest)??;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut rest)?),
            2 => Value::Part(take_part(&mut rest)?),
            1 | 5 => {
                rest = rest.get(if tag & 7 == 1 { 8 } else { 4 }..)?;
                Value::Fixed
            }
            _ => return None,
        };
        Some((tag, value))
    })
}

/// Bytes of a part with its tag and length.
fn part_len(tag: u32, length: usize) -> usize {
    encoded_len_varint(tag.into()) + encoded_len_varint(length as u64) + length
}

/// Bytes of a number with its tag; none stands for 0.
fn number_len(tag: u32, number: u64) -> usize {
    if number == 0 { 0 } else { encoded_len_varint(tag.into()) + encoded_len_varint(number) }
}

/// Appends what comes before a part's bytes.
fn put_part(tag: u32, length: usize, out: &mut impl BufMut) {
    put_varint(tag.into(), out);
    put_varint(length as u64, out);
}

fn put_number(tag: u32, number: u64, out: &mut impl BufMut) {
    if number != 0 {
        put_varint(tag.into(), out);
        put_varint(number, out);
    }
}

fn put_message(tag: u32, message: &impl prost::Message, out: &mut impl BufMut) {
    put_part(tag, message.encoded_len(), out);
    message.encode(out).expect("a buffer grows");
}

/// Inlined, so that of a constant only its bytes are left.
#[inline(always)]
fn put_varint(mut value: u64, out: &mut impl BufMut) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}
