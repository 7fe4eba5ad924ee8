//! The traces: what each does, and what of it shows that it did.

use super::script::Step::{self, *};
use super::script::Then::*;
use crate::coverage::Coverage;
use crate::options::End;

/// A short story of a data directory; the fault happens in its last life.
pub struct Trace {
    pub name: &'static str,
    pub queues: u64,
    /// Lives before.
    pub before: &'static [Act],
    pub steps: &'static [Step],
    /// Bytes that the disk has in the last life.
    pub capacity: Option<u64>,
    /// A fault is tried at every so manieth operation, unless all are asked for.
    pub every: u64,
    /// Operations that the last life has at least: a sweep with fewer shows less than it says.
    pub changes_min: u64,
    pub looks_min: u64,
    /// Whether the last life did what the trace is for, as far as it is counted.
    pub shows: fn(&Coverage) -> bool,
}

/// A life in which nothing fails, and what happens behind it.
pub struct Act {
    pub steps: &'static [Step],
    pub end: End,
    /// Bits that flip, in files that end so.
    pub flips: &'static [&'static str],
}

const fn act(steps: &'static [Step], end: End) -> Act {
    Act { steps, end, flips: &[] }
}

const ANY: Trace = Trace {
    name: "",
    queues: 1,
    before: &[],
    steps: &[],
    capacity: None,
    every: 1,
    changes_min: 1,
    looks_min: 0,
    shows: |_| true,
};

/// A few messages of one queue that wait.
const FEW: &[Step] = &[Create(0), Publish(0, &[10, 2_000]), Publish(0, &[300])];
/// Three quarters of a segment.
const MUCH: Step = Publish(0, &[60_000, 60_000, 60_000]);
/// A segment with much of one queue and little of another.
const UNEVEN: &[Step] = &[Publish(0, &[90_000]), Publish(1, &[500]), Publish(0, &[90_000])];

pub const TRACES: &[Trace] = &[
    Trace { name: "first start", changes_min: 15, looks_min: 0, ..ANY },
    Trace { name: "publish", steps: FEW, changes_min: 29, looks_min: 0, ..ANY },
    Trace {
        name: "batches",
        queues: 2,
        before: &[act(&[Create(0), Create(1)], End::Close)],
        steps: &[
            Together(&[Publish(0, &[5, 6]), Publish(0, &[7_000]), Publish(1, &[1]), Stamped(1, 40)]),
            PublishSeveral(&[(0, 10), (1, 5_000), (0, 20)]),
            Together(&[PublishSeveral(&[(1, 1), (0, 2)]), Take(0, "default", 3, Ack)]),
        ],
        changes_min: 14,
        looks_min: 12,
        ..ANY
    },
    Trace {
        name: "producer",
        before: &[act(&[Create(0), Stamped(0, 10)], End::Close)],
        steps: &[Stamped(0, 20), Stamped(0, 3_000), Stamped(0, 30)],
        changes_min: 16,
        looks_min: 10,
        ..ANY
    },
    Trace {
        name: "deliver",
        before: &[act(FEW, End::Close)],
        steps: &[
            Take(0, "default", 1, Ack),
            Take(0, "default", 1, Release),
            Take(0, "default", 1, Retry(0)),
            Take(0, "default", 5, Ack),
        ],
        shows: |c| c.redeliveries > 0,
        changes_min: 13,
        looks_min: 18,
        ..ANY
    },
    Trace {
        name: "leases",
        before: &[act(FEW, End::Close)],
        steps: &[
            Take(0, "default", 1, Extend),
            Take(0, "default", 1, Ack),
            WaitMs(500),
            Take(0, "default", 5, Ack),
        ],
        shows: |c| c.redeliveries > 0,
        changes_min: 18,
        looks_min: 14,
        ..ANY
    },
    Trace {
        name: "delays",
        before: &[act(FEW, End::Close)],
        steps: &[Take(0, "default", 2, Retry(200)), WaitMs(300), Take(0, "default", 5, Ack)],
        shows: |c| c.redeliveries > 0,
        changes_min: 13,
        looks_min: 17,
        ..ANY
    },
    Trace {
        name: "dead letters",
        before: &[act(FEW, End::Close)],
        steps: &[
            Configure(0, 2),
            Take(0, "default", 1, Reject),
            Take(0, "default", 1, Retry(0)),
            Take(0, "default", 1, Retry(0)),
            WaitMs(50),
            TakeDead(0, 5),
        ],
        shows: |c| c.dead_letters == 2,
        changes_min: 21,
        looks_min: 17,
        ..ANY
    },
    Trace {
        name: "subscriptions",
        before: &[act(FEW, End::Close)],
        steps: &[
            Subscribe(0, "second"),
            Subscribe(0, "third"),
            Take(0, "second", 2, Ack),
            Unsubscribe(0, "third"),
            Configure(0, 3),
        ],
        changes_min: 15,
        looks_min: 12,
        ..ANY
    },
    Trace {
        name: "pause",
        before: &[act(FEW, End::Close)],
        steps: &[
            Pause(0),
            Publish(0, &[7]),
            Take(0, "default", 5, Ack),
            Resume(0),
            Take(0, "default", 5, Ack),
        ],
        changes_min: 15,
        looks_min: 17,
        ..ANY
    },
    Trace {
        name: "purge",
        before: &[act(FEW, End::Close)],
        steps: &[Take(0, "default", 1, Extend), Purge(0, 2), Publish(0, &[5]), Purge(0, 4), Publish(0, &[6])],
        changes_min: 13,
        looks_min: 15,
        ..ANY
    },
    Trace {
        name: "cancel",
        before: &[act(FEW, End::Close)],
        steps: &[Peek(0), Cancel(0, 1), Publish(0, &[5]), Cancel(0, 0), Take(0, "default", 5, Ack)],
        changes_min: 13,
        looks_min: 14,
        ..ANY
    },
    Trace {
        name: "delete",
        queues: 2,
        before: &[act(&[Create(0), Create(1), Publish(0, &[10]), Publish(1, &[10])], End::Close)],
        steps: &[Delete(0), Publish(1, &[5]), Create(0), Publish(0, &[6]), Stamped(0, 7)],
        changes_min: 15,
        looks_min: 14,
        ..ANY
    },
    Trace {
        name: "seal",
        before: &[act(&[Create(0), MUCH], End::Close)],
        steps: &[MUCH, WaitMs(20), MUCH, WaitMs(20)],
        shows: |c| c.segments_begun >= 2,
        every: 2,
        changes_min: 44,
        looks_min: 35,
        ..ANY
    },
    Trace {
        name: "checkpoints",
        before: &[act(&[Create(0), MUCH, MUCH, WaitMs(50)], End::Close)],
        steps: &[MUCH, WaitMs(50), Take(0, "default", 3, Ack), MUCH, WaitMs(50)],
        shows: |c| c.checkpoints >= 2 && c.checkpoint_bases >= 1,
        every: 2,
        changes_min: 56,
        looks_min: 64,
        ..ANY
    },
    Trace {
        name: "recycle",
        before: &[act(&[Create(0), Times(4, &[MUCH, Take(0, "default", 5, Ack), WaitMs(50)])], End::Close)],
        steps: &[Times(2, &[MUCH, Take(0, "default", 5, Ack), WaitMs(50)])],
        shows: |c| c.segments_dropped > 0 && c.segments_recycled > 0,
        every: 4,
        changes_min: 64,
        looks_min: 76,
        ..ANY
    },
    Trace {
        name: "pack",
        queues: 2,
        before: &[act(
            &[Create(0), Create(1), Times(4, &[Times(1, UNEVEN), Take(0, "default", 5, Ack), WaitMs(50)])],
            End::Close,
        )],
        steps: &[Times(2, &[MUCH, Take(0, "default", 5, Ack), WaitMs(50)])],
        shows: |c| c.segments_rewritten > 0,
        every: 4,
        changes_min: 68,
        looks_min: 120,
        ..ANY
    },
    Trace {
        name: "merge",
        queues: 8,
        before: &[act(
            &[
                Times(
                    1,
                    &[Create(0), Create(1), Create(2), Create(3), Create(4), Create(5), Create(6), Create(7)],
                ),
                Times(
                    15,
                    &[
                        PublishSeveral(&[(0, 30_000), (1, 30_000), (2, 30_000), (3, 30_000)]),
                        PublishSeveral(&[(4, 30_000), (5, 30_000), (6, 30_000), (7, 30_000)]),
                    ],
                ),
            ],
            End::Close,
        )],
        steps: &[MUCH, WaitMs(20), MUCH, WaitMs(500)],
        shows: |c| c.segments_merged > 0,
        every: 8,
        changes_min: 81,
        looks_min: 350,
        ..ANY
    },
    Trace {
        name: "restart",
        before: &[act(FEW, End::Close), act(&[Publish(0, &[9])], End::Close)],
        steps: &[Take(0, "default", 9, Ack)],
        changes_min: 8,
        looks_min: 17,
        ..ANY
    },
    Trace {
        name: "restart after a kill",
        before: &[act(&[Create(0), MUCH, MUCH, Take(0, "default", 2, Ack), Publish(0, &[9])], End::Kill)],
        steps: &[Publish(0, &[5]), Take(0, "default", 2, Ack)],
        changes_min: 10,
        looks_min: 20,
        ..ANY
    },
    Trace {
        name: "restart after a power cut",
        before: &[act(&[Create(0), MUCH, Together(&[MUCH, Publish(0, &[4])])], End::PowerLoss)],
        steps: &[Publish(0, &[5]), Take(0, "default", 2, Ack)],
        changes_min: 22,
        looks_min: 12,
        ..ANY
    },
    Trace {
        name: "salvage",
        before: &[Act {
            steps: &[Create(0), MUCH, MUCH, Publish(0, &[9])],
            end: End::Close,
            flips: &[".seg", ".seg"],
        }],
        steps: &[Publish(0, &[5]), Peek(0), Publish(0, &[5])],
        shows: |c| c.losses_told > 0,
        changes_min: 14,
        looks_min: 36,
        ..ANY
    },
    Trace {
        name: "damaged index",
        before: &[Act {
            steps: &[Create(0), MUCH, MUCH, MUCH, WaitMs(50)],
            end: End::Close,
            flips: &[".idx"],
        }],
        steps: &[Take(0, "default", 4, Ack)],
        changes_min: 9,
        looks_min: 50,
        ..ANY
    },
    Trace {
        name: "damaged checkpoint",
        before: &[Act {
            steps: &[Create(0), MUCH, MUCH, MUCH, WaitMs(50)],
            end: End::Close,
            flips: &["ckpt"],
        }],
        steps: &[Publish(0, &[5]), MUCH, WaitMs(50)],
        every: 2,
        changes_min: 30,
        looks_min: 59,
        ..ANY
    },
    Trace {
        name: "full disk",
        before: &[act(&[Create(0), MUCH, MUCH], End::Close)],
        steps: &[MUCH, MUCH, MUCH, MUCH, MUCH, MUCH, Take(0, "default", 2, Ack)],
        capacity: Some(7 << 19),
        shows: |c| c.disk_full > 0,
        every: 6,
        changes_min: 96,
        looks_min: 93,
        ..ANY
    },
];
