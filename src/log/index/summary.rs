//! What is kept in memory of a sealed segment's runs: whose they are, roughly.

use crate::ids::{QueueId, SegmentNumber};

/// Bytes of the filter.
pub const FILTER_BYTES: usize = 256;
const FILTER_BITS: u64 = FILTER_BYTES as u64 * 8;
/// Bits of the filter that each queue sets.
const BITS_PER_QUEUE: u32 = 4;

/// A segment's identity, and which queues may have runs in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub segment: SegmentNumber,
    /// The segment's own random number: no other segment has it.
    pub salt: u64,
    pub runs: u64,
    /// Lowest and highest queue with a run; both 0 if there is none.
    pub lowest: QueueId,
    pub highest: QueueId,
    /// A Bloom filter over queue ids.
    pub filter: [u8; FILTER_BYTES],
}

impl Summary {
    /// Of a segment whose `runs` runs belong to `queues`.
    pub fn new(
        segment: SegmentNumber,
        salt: u64,
        runs: usize,
        queues: impl Iterator<Item = QueueId>,
    ) -> Self {
        let (lowest, highest) = (QueueId(0), QueueId(0));
        let mut summary =
            Self { segment, salt, runs: runs as u64, lowest, highest, filter: [0; FILTER_BYTES] };
        for (index, queue) in queues.enumerate() {
            summary.lowest = if index == 0 { queue } else { summary.lowest.min(queue) };
            summary.highest = summary.highest.max(queue);
            bits(queue).for_each(|(at, bit)| summary.filter[at] |= bit);
        }
        summary
    }

    /// False only if the segment has no run of the queue.
    pub fn may_hold(&self, queue: QueueId) -> bool {
        (self.lowest..=self.highest).contains(&queue)
            && bits(queue).all(|(at, bit)| self.filter[at] & bit != 0)
    }
}

/// The bits of a queue: byte and mask. 16 bits each of its id, mixed as SplitMix64 (Steele, Lea and Flood, 2014)
/// finishes its numbers.
fn bits(queue: QueueId) -> impl Iterator<Item = (usize, u8)> {
    let mut mixed = queue.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (0..BITS_PER_QUEUE).map(move |index| {
        let bit = (mixed >> (16 * index)) % FILTER_BITS;
        ((bit / 8) as usize, 1 << (bit % 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_that_are_there_pass_and_most_others_do_not() {
        let there = || (0..100).map(|n| QueueId(10 + 7 * n));
        let summary = Summary::new(SegmentNumber(1), 2, 100, there());
        assert!(there().all(|queue| summary.may_hold(queue)));
        let others = (0..700).map(|n| QueueId(10 + n)).filter(|queue| queue.0 % 7 != 3);
        let passed = others.clone().filter(|queue| summary.may_hold(*queue)).count();
        assert!(passed < 30, "{passed} of {}", others.count());
        assert!(!summary.may_hold(QueueId(9)) && !summary.may_hold(QueueId(10 + 7 * 100)));
        assert_eq!((summary.lowest, summary.highest), (QueueId(10), QueueId(703)));
    }

    #[test]
    fn an_empty_segment_holds_no_queue() {
        let summary = Summary::new(SegmentNumber(1), 2, 0, std::iter::empty());
        assert!(!summary.may_hold(QueueId(0)) && !summary.may_hold(QueueId(1)));
    }
}
