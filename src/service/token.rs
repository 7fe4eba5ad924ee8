//! Opaque texts that clients keep: page and resume tokens, message ids and etags. All are base64url without padding.
//!
//! ```text
//! page token   CRC-32 of (list, parent, name) u32, name of the last item
//! message id   queue uid 16 bytes, offset u64 big-endian; 32 characters
//! etag         uid 16 bytes, revision u64 big-endian
//! resume token CRC-32 of the rest u32, queue uid 16 bytes, next offset u64 big-endian
//! ```
//! The checksum ties a page token to its listing, and tells a resume token from other texts; it is no secret.

use base64_simd::{AsOut as _, URL_SAFE_NO_PAD};

use super::check::invalid;
use super::status::Refusal;
use crate::core::types::Version;
use crate::ids::{Offset, Uid};
use crate::names::Name;

/// The token of the page after `last`; `list` names the kind of listing.
pub fn page_token(list: &str, parent: &str, last: &Name) -> String {
    let mut bytes = checksum(list, parent, last.as_str()).to_le_bytes().to_vec();
    bytes.extend_from_slice(last.as_str().as_bytes());
    URL_SAFE_NO_PAD.encode_to_string(bytes)
}

/// The name to go on after; none for the first page.
pub fn parse_page_token(list: &str, parent: &str, token: &str) -> Result<Option<Name>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode_to_vec(token).map_err(|_| Refusal::PageToken)?;
    let (sum, name) = bytes.split_first_chunk::<4>().ok_or(Refusal::PageToken)?;
    let name = std::str::from_utf8(name).map_err(|_| Refusal::PageToken)?;
    if u32::from_le_bytes(*sum) != checksum(list, parent, name) {
        return Err(Refusal::PageToken);
    }
    Name::new(name).map(Some).map_err(|_| Refusal::PageToken)
}

fn checksum(list: &str, parent: &str, name: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [list, parent, name] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize()
}

/// Characters of a message's id.
pub const MESSAGE_ID_BYTES: usize = 32;

/// The id of a message.
pub fn message_id(queue: Uid, offset: Offset) -> String {
    uid_and_number(queue, offset.0)
}

/// The id of a message, as bytes of its text.
pub fn message_id_text(queue: Uid, offset: Offset) -> [u8; MESSAGE_ID_BYTES] {
    text_of(queue, offset.0)
}

/// The queue's uid and the offset of a message.
pub fn parse_message_id(field: &str, id: &str) -> Result<(Uid, Offset), Refusal> {
    let (uid, offset) = parse_uid_and_number(id).ok_or_else(|| invalid(field, "is no message id"))?;
    Ok((uid, Offset(offset)))
}

/// The etag of a version.
pub fn etag(version: Version) -> String {
    uid_and_number(version.uid, version.revision)
}

/// The version that a request expects; none if it does not say.
pub fn parse_etag(field: &str, etag: &str) -> Result<Option<Version>, Refusal> {
    if etag.is_empty() {
        return Ok(None);
    }
    let parsed = parse_uid_and_number(etag).ok_or_else(|| invalid(field, "is no etag"))?;
    Ok(Some(Version { uid: parsed.0, revision: parsed.1 }))
}

/// The token of a tail that has told everything below `next`.
pub fn resume_token(queue: Uid, next: Offset) -> String {
    let place = place(queue, next.0);
    let mut bytes = crc32fast::hash(&place).to_le_bytes().to_vec();
    bytes.extend_from_slice(&place);
    URL_SAFE_NO_PAD.encode_to_string(bytes)
}

/// The queue's uid and the offset to go on from.
pub fn parse_resume_token(token: &str) -> Result<(Uid, Offset), Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode_to_vec(token).map_err(|_| Refusal::ResumeToken)?;
    let (sum, place) = bytes.split_first_chunk::<4>().ok_or(Refusal::ResumeToken)?;
    if u32::from_le_bytes(*sum) != crc32fast::hash(place) {
        return Err(Refusal::ResumeToken);
    }
    let (uid, next) = parse_place(place).ok_or(Refusal::ResumeToken)?;
    Ok((uid, Offset(next)))
}

fn uid_and_number(uid: Uid, number: u64) -> String {
    std::str::from_utf8(&text_of(uid, number)).expect("base64 is ASCII").to_owned()
}

fn text_of(uid: Uid, number: u64) -> [u8; MESSAGE_ID_BYTES] {
    let mut text = [0; MESSAGE_ID_BYTES];
    let _ = URL_SAFE_NO_PAD.encode(&place(uid, number), text[..].as_out());
    text
}

fn place(uid: Uid, number: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&uid.0);
    bytes[16..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn parse_uid_and_number(text: &str) -> Option<(Uid, u64)> {
    parse_place(&URL_SAFE_NO_PAD.decode_to_vec(text).ok()?)
}

fn parse_place(bytes: &[u8]) -> Option<(Uid, u64)> {
    let (uid, number) = bytes.split_first_chunk::<16>()?;
    Some((Uid(*uid), u64::from_be_bytes(number.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tokens_belong_to_their_listing() {
        let name = Name::new("q~1").unwrap();
        let token = page_token("queues", "namespaces/a", &name);
        assert_eq!(parse_page_token("queues", "namespaces/a", &token), Ok(Some(name)));
        assert_eq!(parse_page_token("queues", "namespaces/a", ""), Ok(None));
        for (list, parent) in [("queues", "namespaces/b"), ("subscriptions", "namespaces/a")] {
            assert_eq!(parse_page_token(list, parent, &token), Err(Refusal::PageToken));
        }
        let mut cut = token.clone();
        cut.pop();
        for bad in ["x", "!!!!", "AAAAAA", &cut, &format!("{token}A")] {
            assert_eq!(parse_page_token("queues", "namespaces/a", bad), Err(Refusal::PageToken), "{bad}");
        }
    }

    #[test]
    fn resume_tokens_name_queue_and_offset() {
        let token = resume_token(Uid([7; 16]), Offset(256));
        assert_eq!(parse_resume_token(&token), Ok((Uid([7; 16]), Offset(256))));
        let (mut cut, id) = (token.clone(), message_id(Uid([7; 16]), Offset(256)));
        cut.pop();
        let damaged = token.replace("BwcH", "BwgH");
        for bad in ["", "x", "!!!!", &cut, &damaged, &id, &format!("{token}AAAA")] {
            assert_eq!(parse_resume_token(bad), Err(Refusal::ResumeToken), "{bad}");
        }
    }

    #[test]
    fn message_ids_name_queue_and_offset() {
        let queue = Uid([7; 16]);
        let ids: Vec<String> = [0, 1, 255, 256].map(|offset| message_id(queue, Offset(offset))).into();
        assert_eq!(ids[1], "BwcHBwcHBwcHBwcHBwcHBwAAAAAAAAAB");
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_ne!(message_id(Uid([8; 16]), Offset(0)), ids[0]);
        assert_eq!(parse_message_id("id", &ids[3]), Ok((queue, Offset(256))));
        for bad in ["", "x", &ids[0][1..], &format!("{}A", ids[0]), &ids[0].replace('A', "!")] {
            assert!(parse_message_id("id", bad).is_err(), "{bad}");
        }
    }
}
