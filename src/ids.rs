//! Identifiers and positions, each a newtype so that one cannot stand in for another.
//!
//! Ids are given once and never reused: a queue that is deleted and created again under its old name is a new
//! queue with a new id. Zero is never a valid id.

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
