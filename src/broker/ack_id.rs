//! Acknowledgement ids: opaque to clients, checked by a keyed MAC, so that none can be made up or altered.
//!
//! URL-safe base64 without padding over 36 bytes, little-endian:
//!
//! ```text
//!  0 subscription u64 | 8 offset u64 | 16 incarnation u32 | 20 lease number u64 | 28 MAC u64
//! ```
//! The MAC is SipHash-2-4 over the first 28 bytes with a key of the data directory: ids outlive a restart.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use siphasher::sip::SipHasher24;

use crate::core::delivery::LeaseId;
use crate::core::settle::AckToken;
use crate::ids::{Offset, SubscriptionId};

const BYTES: usize = 36;
const CHARACTERS: usize = 48;
const SIGNED: usize = 28;

/// Makes and checks acknowledgement ids.
#[derive(Clone)]
pub struct AckIds {
    hasher: SipHasher24,
}

impl AckIds {
    pub fn new(key: &[u8; 32]) -> Self {
        Self { hasher: SipHasher24::new_with_key(key.first_chunk().expect("32 bytes hold 16")) }
    }

    pub fn encode(&self, subscription: SubscriptionId, token: AckToken) -> String {
        let mut bytes = [0; BYTES];
        bytes[0..8].copy_from_slice(&subscription.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&token.offset.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&token.lease.incarnation.to_le_bytes());
        bytes[20..28].copy_from_slice(&token.lease.number.to_le_bytes());
        let mac = self.hasher.hash(&bytes[..SIGNED]);
        bytes[SIGNED..].copy_from_slice(&mac.to_le_bytes());
        let mut text = [0; CHARACTERS];
        URL_SAFE_NO_PAD.encode_slice(bytes, &mut text).expect("36 bytes are 48 characters");
        std::str::from_utf8(&text).expect("base64 is ASCII").to_owned()
    }

    /// The token of an id that was made here for this subscription.
    pub fn decode(&self, subscription: SubscriptionId, id: &str) -> Option<AckToken> {
        let mut bytes = [0; BYTES + 1];
        let length = URL_SAFE_NO_PAD.decode_slice(id, &mut bytes).ok()?;
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if length != BYTES
            || self.hasher.hash(&bytes[..SIGNED]) != u64_at(SIGNED)
            || u64_at(0) != subscription.0
        {
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
        for bad in ["", "x", &id[1..], &format!("{id}A"), &id.replace(&id[..1], "~")] {
            assert_eq!(ids.decode(SubscriptionId(5), bad), None, "{bad}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let ids = AckIds::new(&[1; 32]);
        let id = URL_SAFE_NO_PAD.decode(ids.encode(SubscriptionId(5), token())).unwrap();
        for bit in 0..id.len() * 8 {
            let mut flipped = id.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ids.decode(SubscriptionId(5), &URL_SAFE_NO_PAD.encode(flipped)), None, "bit {bit}");
        }
    }
}
