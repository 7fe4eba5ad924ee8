//! Acknowledgement ids: opaque to clients, checked by a keyed MAC, so that none can be made up or altered.
//!
//! URL-safe base64 without padding over 36 bytes, little-endian:
//!
//! ```text
//!  0 subscription u64 | 8 offset u64 | 16 incarnation u32 | 20 lease number u64 | 28 MAC u64
//! ```
//! The MAC is SipHash-2-4 over the first 28 bytes with a key of the data directory: ids outlive a restart.

use std::fmt;

use base64_simd::{AsOut as _, URL_SAFE_NO_PAD};
use siphasher::sip::SipHasher24;

use crate::core::delivery::LeaseId;
use crate::core::settle::AckToken;
use crate::ids::{Offset, SubscriptionId};

const BYTES: usize = 36;
const CHARACTERS: usize = 48;
const SIGNED: usize = 28;

/// The text of an id, in place: there is one for each delivery and each of its ends. Ids of clients may be any text;
/// what is longer than the server's own is kept as none, which is no id either.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AckId {
    text: [u8; CHARACTERS],
    length: u8,
}

impl AckId {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("made of a text")
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length.into()]
    }
}

impl From<&str> for AckId {
    fn from(id: &str) -> Self {
        let mut text = [0; CHARACTERS];
        let Some(place) = text.get_mut(..id.len()) else { return Self { text, length: 0 } };
        place.copy_from_slice(id.as_bytes());
        Self { text, length: id.len() as u8 }
    }
}

impl From<String> for AckId {
    fn from(id: String) -> Self {
        Self::from(id.as_str())
    }
}

impl fmt::Debug for AckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Makes and checks acknowledgement ids.
#[derive(Clone)]
pub struct AckIds {
    hasher: SipHasher24,
}

impl AckIds {
    pub fn new(key: &[u8; 32]) -> Self {
        Self { hasher: SipHasher24::new_with_key(key.first_chunk().expect("32 bytes hold 16")) }
    }

    pub fn encode(&self, subscription: SubscriptionId, token: AckToken) -> AckId {
        let mut bytes = [0; BYTES];
        bytes[0..8].copy_from_slice(&subscription.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&token.offset.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&token.lease.incarnation.to_le_bytes());
        bytes[20..28].copy_from_slice(&token.lease.number.to_le_bytes());
        let mac = self.hasher.hash(&bytes[..SIGNED]);
        bytes[SIGNED..].copy_from_slice(&mac.to_le_bytes());
        let mut text = [0; CHARACTERS];
        let _ = URL_SAFE_NO_PAD.encode(&bytes, text[..].as_out());
        AckId { text, length: CHARACTERS as u8 }
    }

    /// The token of an id that was made here for this subscription.
    pub fn decode(&self, subscription: SubscriptionId, id: &AckId) -> Option<AckToken> {
        let mut bytes = [0; BYTES];
        if id.as_bytes().len() != CHARACTERS {
            return None;
        }
        URL_SAFE_NO_PAD.decode(id.as_bytes(), bytes[..].as_out()).ok()?;
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if self.hasher.hash(&bytes[..SIGNED]) != u64_at(SIGNED) || u64_at(0) != subscription.0 {
            return None;
        }
        let incarnation = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes"));
        Some(AckToken { offset: Offset(u64_at(8)), lease: LeaseId { incarnation, number: u64_at(20) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> AckToken {
        AckToken { offset: Offset(7), lease: LeaseId { incarnation: 3, number: u64::MAX } }
    }

    #[test]
    fn only_what_was_made_here_for_this_subscription_is_taken() {
        let ids = AckIds::new(&[1; 32]);
        let id = ids.encode(SubscriptionId(5), token());
        assert_eq!(ids.decode(SubscriptionId(5), &id), Some(token()));
        assert_eq!(ids.decode(SubscriptionId(6), &id), None, "of another subscription");
        assert_eq!(AckIds::new(&[2; 32]).decode(SubscriptionId(5), &id), None, "of another data directory");
        let text = id.as_str();
        assert_eq!(AckId::from(text), id);
        for bad in ["", "x", &text[1..], &format!("{text}A"), &text.replace(&text[..1], "~")] {
            assert_eq!(ids.decode(SubscriptionId(5), &AckId::from(bad)), None, "{bad}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let ids = AckIds::new(&[1; 32]);
        let id = URL_SAFE_NO_PAD.decode_to_vec(ids.encode(SubscriptionId(5), token()).as_str()).unwrap();
        for bit in 0..id.len() * 8 {
            let mut flipped = id.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flipped = AckId::from(URL_SAFE_NO_PAD.encode_to_string(flipped));
            assert_eq!(ids.decode(SubscriptionId(5), &flipped), None, "bit {bit}");
        }
    }
}
