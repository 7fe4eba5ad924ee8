//! The registry of record kinds. Numbers are part of the format: never change or reuse one.

/// What a record says. 0 is invalid, so that zeroed bytes never decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    // The log's own: 1 to 15.
    NoOp = 1,
    ServerStarted = 2,
    SegmentAdded = 3,
    SegmentReplaced = 4,
    SegmentDropped = 5,
    EpochStart = 6,
    Membership = 7,
    // Messages: 16 to 31.
    Publish = 16,
    UploadChunk = 17,
    UploadCommit = 18,
    Prepare = 19,
    // Queues and subscriptions: 32 to 63.
    QueueCreated = 32,
    QueueDeleted = 33,
    SubscriptionCreated = 34,
    SubscriptionDeleted = 35,
    // Delivery: 64 to 95.
    Leased = 64,
    LeaseExtended = 65,
    Acked = 66,
    Requeued = 67,
    DeadLettered = 68,
    Purged = 69,
    Cancelled = 70,
    Spilled = 71,
    Recalled = 72,
    QueueUpdated = 75,
    SubscriptionUpdated = 76,
    Paused = 77,
    Resumed = 78,
    OffsetsSkipped = 79,
}

/// A number that no kind of record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record kind {0} is unknown to this build; a newer one may have written it")]
pub struct UnknownKind(pub u8);

impl Kind {
    /// Every kind there is, in order of its number.
    pub const ALL: [Kind; 29] = [
        Kind::NoOp,
        Kind::ServerStarted,
        Kind::SegmentAdded,
        Kind::SegmentReplaced,
        Kind::SegmentDropped,
        Kind::EpochStart,
        Kind::Membership,
        Kind::Publish,
        Kind::UploadChunk,
        Kind::UploadCommit,
        Kind::Prepare,
        Kind::QueueCreated,
        Kind::QueueDeleted,
        Kind::SubscriptionCreated,
        Kind::SubscriptionDeleted,
        Kind::Leased,
        Kind::LeaseExtended,
        Kind::Acked,
        Kind::Requeued,
        Kind::DeadLettered,
        Kind::Purged,
        Kind::Cancelled,
        Kind::Spilled,
        Kind::Recalled,
        Kind::QueueUpdated,
        Kind::SubscriptionUpdated,
        Kind::Paused,
        Kind::Resumed,
        Kind::OffsetsSkipped,
    ];

    /// Whether a plain record of this kind is found again by its queue and offset, as a message is.
    pub fn is_indexed(self) -> bool {
        self == Kind::Spilled
    }
}

impl TryFrom<u8> for Kind {
    type Error = UnknownKind;

    fn try_from(number: u8) -> Result<Self, UnknownKind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number).ok_or(UnknownKind(number))
    }
}
