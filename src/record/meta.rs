//! A message's metadata, as it lies in the log before the body: tagged values ([`tlv`]), none for a plain message.
//!
//! ```text
//! tag      value
//! 0x0001   attribute: key length u16, key, value (the rest); one per attribute, in order
//! 0x0002   source
//! 0x8003   ordering key
//! 0x8010   reserved: deliver_time, u64 microseconds since the Unix epoch
//! 0x8011   reserved: expire_time, u64 microseconds since the Unix epoch
//! 0x0012   reserved: dedupe_id
//! 0x0013   reserved: origin_id
//! 0x0014   reserved: hops, u32
//! 0x0015   reserved: caused_by, a message id; one per parent
//! 0x0020   dead letter: reason u8, attempts u32, time u64 microseconds since the Unix epoch, queue uid 16 bytes,
//!          offset u64, then three texts with u16 lengths: error, queue name, subscription; more may follow
//! ```
//! Text is UTF-8. Tags 2, 3 and 0x20 occur at most once. Unknown tags are skipped unless critical.

use bytes::Bytes;

use super::tlv::{self, TlvError};
use super::wire::{Put, Reader, WireError, utf8};
use crate::ids::{Offset, Uid};

const ATTRIBUTE: u16 = 0x0001;
const SOURCE: u16 = 0x0002;
const ORDERING_KEY: u16 = tlv::CRITICAL | 0x0003;
const DEAD_LETTER: u16 = 0x0020;

/// Reserved for the wall time before which a message is not delivered.
pub const DELIVER_TIME: u16 = tlv::CRITICAL | 0x0010;
/// Reserved for the wall time after which a message is no longer delivered.
pub const EXPIRE_TIME: u16 = tlv::CRITICAL | 0x0011;
/// Reserved for the producer's de-duplication id.
pub const DEDUPE_ID: u16 = 0x0012;
/// Reserved for the first message of a lineage.
pub const ORIGIN_ID: u16 = 0x0013;
/// Reserved for the length of a lineage.
pub const HOPS: u16 = 0x0014;
/// Reserved for the messages that made a producer send this one.
pub const CAUSED_BY: u16 = 0x0015;

/// What is known of a message besides its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Keys and values as the producer gave them, in its order.
    pub attributes: Vec<(String, String)>,
    /// Who produced it.
    pub source: Option<String>,
    /// Messages with the same key are delivered strictly one after the other.
    pub ordering_key: Option<String>,
    /// How it came into a dead-letter queue.
    pub dead_letter: Option<DeadLetter>,
}

/// Where a dead letter comes from and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub reason: DeadLetterReason,
    /// What the consumer said; empty if nothing.
    pub error: String,
    /// Full name of the queue that it was published to.
    pub queue: String,
    pub queue_uid: Uid,
    /// Its offset there.
    pub offset: Offset,
    /// The subscription that gave it up; empty if it was the queue.
    pub subscription: String,
    /// Deliveries before it was given up.
    pub attempts: u32,
    /// Wall time of that, microseconds since the Unix epoch.
    pub time_us: u64,
}

/// Why a message became a dead letter. Numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeadLetterReason {
    Rejected = 1,
    AttemptsExhausted = 2,
    HopLimit = 3,
    Expired = 4,
    DroppedOldest = 5,
}

impl TryFrom<u8> for DeadLetterReason {
    type Error = WireError;

    fn try_from(number: u8) -> Result<Self, WireError> {
        Ok(match number {
            1 => Self::Rejected,
            2 => Self::AttemptsExhausted,
            3 => Self::HopLimit,
            4 => Self::Expired,
            5 => Self::DroppedOldest,
            _ => return Err(WireError::Invalid { what: "a dead letter's reason" }),
        })
    }
}

impl Meta {
    /// Bytes for the log; empty, and without allocating, if there is nothing to say. Text beyond the limits of
    /// admission (64 KiB and more) is a bug.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        for (key, value) in &self.attributes {
            tlv::put_with(&mut out, ATTRIBUTE, |out| {
                out.put_str(key);
                out.extend_from_slice(value.as_bytes());
            });
        }
        if let Some(source) = &self.source {
            tlv::put(&mut out, SOURCE, source.as_bytes());
        }
        if let Some(key) = &self.ordering_key {
            tlv::put(&mut out, ORDERING_KEY, key.as_bytes());
        }
        if let Some(letter) = &self.dead_letter {
            tlv::put_with(&mut out, DEAD_LETTER, |out| letter.encode(out));
        }
        if out.is_empty() { Bytes::new() } else { Bytes::from(out) }
    }

    /// Reads what [`encode`](Self::encode) wrote, or what a newer build wrote for this one to understand.
    pub fn decode(bytes: &[u8]) -> Result<Self, TlvError> {
        let mut meta = Self::default();
        for item in tlv::iter(bytes) {
            let (tag, value) = item?;
            match tag {
                ATTRIBUTE => meta.attributes.push(attribute(value)?),
                SOURCE => once(&mut meta.source, utf8(value)?.to_owned())?,
                ORDERING_KEY => once(&mut meta.ordering_key, utf8(value)?.to_owned())?,
                DEAD_LETTER => once(&mut meta.dead_letter, DeadLetter::decode(value)?)?,
                tag if tag & tlv::CRITICAL != 0 => return Err(TlvError::UnknownCritical { tag }),
                _ => {}
            }
        }
        Ok(meta)
    }
}

impl DeadLetter {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.reason as u8);
        out.put_u32(self.attempts);
        out.put_u64(self.time_us);
        out.extend_from_slice(&self.queue_uid.0);
        out.put_u64(self.offset.0);
        out.put_str(&self.error);
        out.put_str(&self.queue);
        out.put_str(&self.subscription);
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        Ok(Self {
            reason: reader.u8()?.try_into()?,
            attempts: reader.u32()?,
            time_us: reader.u64()?,
            queue_uid: Uid(reader.array()?),
            offset: Offset(reader.u64()?),
            error: reader.str()?.to_owned(),
            queue: reader.str()?.to_owned(),
            subscription: reader.str()?.to_owned(),
        })
    }
}

fn attribute(value: &[u8]) -> Result<(String, String), WireError> {
    let mut reader = Reader::new(value);
    let key = reader.str()?;
    Ok((key.to_owned(), utf8(reader.rest())?.to_owned()))
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), WireError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(WireError::Invalid { what: "a value given twice" }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn letters() -> impl Strategy<Value = DeadLetter> {
        (1u8..6, any::<[String; 3]>(), any::<[u8; 16]>(), any::<u64>(), any::<u32>(), any::<u64>()).prop_map(
            |(reason, [error, queue, subscription], uid, offset, attempts, time_us)| DeadLetter {
                reason: reason.try_into().unwrap(),
                error,
                queue,
                queue_uid: Uid(uid),
                offset: Offset(offset),
                subscription,
                attempts,
                time_us,
            },
        )
    }

    fn metas() -> impl Strategy<Value = Meta> {
        let attributes = proptest::collection::vec(any::<(String, String)>(), 0..5);
        (attributes, any::<Option<String>>(), any::<Option<String>>(), proptest::option::of(letters()))
            .prop_map(|(attributes, source, ordering_key, dead_letter)| Meta {
                attributes,
                source,
                ordering_key,
                dead_letter,
            })
    }

    proptest! {
        #[test]
        fn meta_comes_back(meta in metas()) {
            prop_assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Meta::decode(&bytes);
        }
    }

    #[test]
    fn nothing_is_no_bytes() {
        assert_eq!(Meta::default().encode(), Bytes::new());
        assert_eq!(Meta::decode(b""), Ok(Meta::default()));
    }

    #[test]
    fn unknown_tags_are_skipped_unless_critical() {
        let mut bytes = Meta { source: Some("tenant".into()), ..Meta::default() }.encode().to_vec();
        tlv::put(&mut bytes, 0x0777, b"from the future");
        assert_eq!(Meta::decode(&bytes).unwrap().source.as_deref(), Some("tenant"));
        tlv::put(&mut bytes, DELIVER_TIME, &[0; 8]);
        assert_eq!(Meta::decode(&bytes), Err(TlvError::UnknownCritical { tag: DELIVER_TIME }));
    }

    #[test]
    fn one_source_only() {
        let once = Meta { source: Some("a".into()), ..Meta::default() }.encode();
        let twice = [once.as_ref(), once.as_ref()].concat();
        assert!(matches!(Meta::decode(&twice), Err(TlvError::Wire(WireError::Invalid { .. }))));
    }
}
