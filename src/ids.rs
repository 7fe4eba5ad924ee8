//! Identifiers and positions, each a newtype so that one cannot stand in for another.
//!
//! Ids are given once and never reused: a queue that is deleted and created again under its old name is a new
//! queue with a new id. Zero is never a valid id. Ids of queues stay below 2^63: from there on are the [stores of
//! refs](QueueId::of_refs).

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one. Running out of 64 bits is a bug.
            pub fn next(self) -> Self {
                self.plus(1)
            }

            /// This number advanced by `count`. Running out of 64 bits is a bug.
            pub fn plus(self, count: u64) -> Self {
                Self(self.0.checked_add(count).expect("64-bit numbers do not run out"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A queue's identity inside its shard.
    QueueId
}
number! {
    /// A subscription's identity inside its shard.
    SubscriptionId
}
number! {
    /// A message's place in its queue: dense, from 0, never reused.
    Offset
}
number! {
    /// A record's place in the shard's log: dense, from 0. Kept when the record is moved.
    Lsn
}
number! {
    /// A segment file's number: from 1, never reused.
    SegmentNumber
}
number! {
    /// A submitted batch's place in the order of submission, counted since the process started.
    Ticket
}

/// The bit that tells stores of refs from queues.
const REFS: u64 = 1 << 63;

impl QueueId {
    /// Where the log keeps what a subscription has spilled: a queue that has no name and no messages, whose offsets
    /// count the runs of refs. It needs not be made, and goes with its subscription.
    pub fn of_refs(subscription: SubscriptionId) -> Self {
        Self(REFS | subscription.0)
    }

    /// The subscription, if this is such a store.
    pub fn refs_of(self) -> Option<SubscriptionId> {
        (self.0 & REFS != 0).then_some(SubscriptionId(self.0 & !REFS))
    }
}

/// 128 random bits that name something across machines: a cluster, a run of a node, a queue.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(pub [u8; 16]);

impl Uid {
    /// A fresh one from the operating system's randomness.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        Self(bytes)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uid({self})")
    }
}
