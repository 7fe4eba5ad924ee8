//! The format of histories, version 1: UTF-8, one JSON object a line, `{"i":…,"t":…,"event":{KIND:{…}}}`.
//!
//! - `i` is the line's place, from 0 without gaps; line `i + 1` of the file. What has a lower index happened before.
//! - `t` is the moment in nanoseconds on one monotonic clock of the writer; it never decreases.
//! - The first event is `history` with the version.
//!
//! A call is written before it is sent, as `invoke` with a number of its own, and its end when it is known: `ok` with
//! the answer, `fail` if it had no effect for certain, else `unknown`. A time-out, a broken connection and a server that
//! died are unknown, never failures. A call without an end is unknown too.
//!
//! ```json
//! {"i":0,"t":0,"event":{"history":{"version":1}}}
//! {"i":1,"t":9,"event":{"queue":{"queue":"q","one_consumer":true}}}
//! {"i":2,"t":10,"event":{"invoke":{"call":1,"op":{"publish":{"queue":"q","stamped":false,"messages":[{"id":7,"length":5,"hash":"0f"}]}}}}}
//! {"i":3,"t":20,"event":{"ok":{"call":1,"answer":{"stored":{"offsets":[0]}}}}}
//! {"i":4,"t":30,"event":{"delivered":{"queue":"q","offset":0,"id":7,"length":5,"hash":"0f","attempt":1,"after":{"i":4,"t":21},"lease_ns":1000000000,"session":1,"life":0}}}
//! {"i":5,"t":40,"event":{"invoke":{"call":2,"op":{"settle":{"queue":"q","life":0,"endings":[{"offset":0,"delivery":4,"how":"ack"}]}}}}}
//! {"i":6,"t":50,"event":{"ok":{"call":2,"answer":{"settled":{"results":["ok"]}}}}}
//! {"i":7,"t":60,"event":{"waiting":{"queue":"q","ranges":[]}}}
//! ```
//!
//! The file must not lie on the disk that is tormented. A queue has one subscription in a history; its dead letters go to
//! the queue of its name with `-dead` behind it, and come of rejects alone.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version that this program writes and reads.
pub const VERSION: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    pub i: u64,
    pub t: u64,
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The first line.
    History {
        version: u32,
    },
    /// What a queue promises besides; may be said again.
    Queue {
        queue: String,
        /// It is read by one consumer at a time, so that first deliveries come in order.
        #[serde(default)]
        one_consumer: bool,
        /// Its leases hold over a crash of the server.
        #[serde(default)]
        exactly_once: bool,
    },
    Invoke {
        call: u64,
        op: Op,
    },
    Ok {
        call: u64,
        answer: Answer,
    },
    /// It had no effect, for certain.
    Fail {
        call: u64,
    },
    Unknown {
        call: u64,
    },
    Delivered(Delivery),
    /// What waits at the end, leased or delayed or ready, as ranges of offsets without their ends. Nothing is said to be
    /// lost of a queue that has no such line.
    Waiting {
        queue: String,
        ranges: Vec<(u64, u64)>,
    },
    /// A server was killed; how many were before. For readers: no rule needs it.
    Killed {
        life: u64,
    },
    /// Something that a correct server never does, as the writer found.
    Unexpected {
        what: String,
    },
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// One sending of a request; another sending of the same one has the same messages.
    Publish {
        queue: String,
        /// With producer and sequence: it is stored once at most, however often it is sent.
        stamped: bool,
        messages: Vec<Message>,
    },
    /// Ends deliveries, or lets their leases last longer.
    Settle {
        queue: String,
        /// The server's life that it was sent to.
        life: u64,
        endings: Vec<Ending>,
    },
    /// Finishes everything below an offset.
    Purge { queue: String, end: u64 },
}

/// A message as its publisher knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Travels with the message, and is never used for another one.
    pub id: u64,
    /// Bytes of the body.
    pub length: u32,
    pub hash: BodyHash,
    /// Its ordering key, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A message that a consumer got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    pub queue: String,
    pub offset: u64,
    pub id: u64,
    pub length: u32,
    pub hash: BodyHash,
    /// Deliveries so far, as the server counts them.
    pub attempt: u32,
    /// The server cannot have sent it before.
    pub after: Moment,
    /// How long the lease lasts from when the message was handed out.
    pub lease_ns: u64,
    /// One consumer on one connection.
    pub session: u64,
    /// The server's life that sent it, counted up by each start.
    pub life: u64,
    /// Queue and offset it had before it was rejected, in a dead-letter queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<(String, u64)>,
}

/// A moment between two lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moment {
    /// Lines that were written before.
    pub i: u64,
    pub t: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    pub offset: u64,
    /// `i` of the delivery that it ends.
    pub delivery: u64,
    pub how: How,
}

/// How a consumer ends a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum How {
    Ack,
    /// It is to come again, not before the delay is over.
    Retry {
        delay_ns: u64,
    },
    Release,
    /// It is to become a dead letter.
    Reject,
    /// It is not ended: its lease is to last this long from now.
    Extend {
        lease_ns: u64,
    },
}

/// The answer to a call that took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The offset of each message.
    Stored {
        offsets: Vec<u64>,
    },
    /// One result for each ending.
    Settled {
        results: Vec<Settled>,
    },
    Purged,
}

/// What the server said to one ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settled {
    Ok,
    Stale,
    Invalid,
    Transient,
    Refused,
}

/// Identifies a body: up to 128 bits of any hash that the writer uses throughout, in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BodyHash(pub u128);

impl fmt::Display for BodyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for BodyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BodyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        u128::from_str_radix(&digits, 16)
            .map(Self)
            .map_err(|_| D::Error::custom(format!("{digits:?} is not a hash of up to 32 hexadecimal digits")))
    }
}
