//! Which segments are rewritten. Pure.
//!
//! - **Sparse**: less than half of the file is still needed (64 KiB aside, for what a file costs). Neighbours that are sparse go together into one packed
//!   segment. A rewrite copies less than it frees, so all rewrites together write less than was published; and what
//!   is not sparse takes at most twice what is needed of it.
//! - **Mixed**: 16 neighbours whose queues have less than 64 KiB each in a segment, in the mean: reading such a backlog
//!   is mostly seeking. Their needed records are merged, once: packed segments that come of a merge are rewritten when
//!   they are sparse, and merged no more.
//!
//! Neither is touched while a consumer is at work in it: a segment must be *settled*, which is that less than an eighth
//! of what was needed at the look before has been finished since; or, for a merge, that nothing in it was finished yet.
//! What a fast consumer leaves behind dies before it is settled, and is dropped without being rewritten.

use std::ops::Range;

use crate::log::index::{Look, Sealed};

/// Most segments that are rewritten together, and as many as a merge takes.
pub const TOGETHER: usize = 16;
/// A queue's records in a segment are worth a read of their own from this many bytes on: such reads take about as long
/// as finding the place does, on the disks that we know.
const STRETCH_BYTES: u64 = 64 << 10;

/// What a packed segment may need beside its records; smaller files are not worth a rewrite.
const FILE_BYTES: u64 = 64 << 10;

/// A segment as the policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    look: Look,
    /// It can be rewritten.
    usable: bool,
    merged: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub range: Range<usize>,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Sparse,
    Mixed,
}

impl Look {
    /// The same, knowing what was seen before.
    pub fn after(self, before: Option<Look>) -> Self {
        let few = |before: Look| {
            let finished = before.live_bytes.saturating_sub(self.live_bytes);
            finished < before.live_bytes.div_ceil(8)
        };
        Self { settled: before.is_some_and(few), ..self }
    }
}

impl Candidate {
    pub fn of(sealed: &Sealed) -> Self {
        let look = sealed.look().unwrap_or_default();
        Self { look, usable: !sealed.is_damaged(), merged: sealed.merged }
    }

    /// It is worth a rewrite for the space.
    pub fn is_sparse(&self) -> bool {
        let Look { settled, live_bytes, file_bytes, .. } = self.look;
        self.usable && settled && 2 * live_bytes + FILE_BYTES < file_bytes
    }

    /// It may be one of those that are merged.
    fn is_mergeable(&self) -> bool {
        let Look { settled, run_bytes, live_bytes, .. } = self.look;
        self.usable && (settled || live_bytes == run_bytes) && !self.merged && !self.is_sparse()
    }
}

/// The next rewrite among neighbouring segments; `segment_bytes` is the most that a packed one may have.
pub fn choose(candidates: &[Candidate], segment_bytes: u64) -> Option<Choice> {
    sparse(candidates, segment_bytes).or_else(|| mixed(candidates))
}

fn sparse(candidates: &[Candidate], segment_bytes: u64) -> Option<Choice> {
    let start = candidates.iter().position(Candidate::is_sparse)?;
    let mut bytes = 0;
    let fits = |candidate: &&Candidate| {
        bytes += candidate.look.live_bytes;
        candidate.is_sparse() && bytes <= segment_bytes
    };
    let count = candidates[start..].iter().take(TOGETHER).take_while(fits).count();
    // One whose needed part alone is larger than a segment comes of larger segments of the past.
    Some(Choice { range: start..start + count.max(1), reason: Reason::Sparse })
}

fn mixed(candidates: &[Candidate]) -> Option<Choice> {
    let pays = |group: &[Candidate]| {
        let bytes: u64 = group.iter().map(|candidate| candidate.look.live_bytes).sum();
        let stretches: u64 = group.iter().map(|candidate| candidate.look.live_queues).sum();
        group.iter().all(Candidate::is_mergeable) && bytes < STRETCH_BYTES * stretches
    };
    let start = candidates.windows(TOGETHER).position(pays)?;
    Some(Choice { range: start..start + TOGETHER, reason: Reason::Mixed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 64 << 20;

    fn candidate(live_bytes: u64, live_queues: u64) -> Candidate {
        let look = Look { file_bytes: FILE, run_bytes: FILE, live_bytes, live_queues, settled: true };
        Candidate { look, usable: true, merged: false }
    }

    fn chosen(candidates: &[Candidate]) -> Option<(Range<usize>, Reason)> {
        choose(candidates, FILE).map(|choice| (choice.range, choice.reason))
    }

    #[test]
    fn sparse_neighbours_go_together_as_far_as_they_fit() {
        let half = (FILE - FILE_BYTES) / 2;
        let (full, sparse) = (candidate(half, 1), candidate(half - 1, 1));
        assert_eq!(chosen(&[full, full]), None);
        assert_eq!(chosen(&[full, sparse, full]), Some((1..2, Reason::Sparse)));
        assert_eq!(chosen(&[full, sparse, sparse, sparse]), Some((1..3, Reason::Sparse)));
        assert_eq!(chosen(&[candidate(1, 1); 40]), Some((0..TOGETHER, Reason::Sparse)));
        assert_eq!(choose(&[sparse], 1_000).map(|choice| choice.range), Some(0..1));
    }

    #[test]
    fn what_is_being_consumed_or_cannot_be_read_is_left_alone() {
        let mut busy = candidate(1, 1);
        busy.look.settled = false;
        let damaged = Candidate { usable: false, ..candidate(1, 1) };
        assert_eq!(chosen(&[busy, damaged]), None);
        let untouched = Candidate { look: Look { settled: false, ..candidate(FILE, 10_000).look }, ..busy };
        assert_eq!(chosen(&[untouched; TOGETHER]).map(|(_, reason)| reason), Some(Reason::Mixed));
        let begun = Candidate { look: Look { live_bytes: FILE - 1, ..untouched.look }, ..busy };
        assert_eq!(chosen(&[begun; TOGETHER]), None);
        let mut mixed = vec![candidate(FILE, 10_000); TOGETHER];
        mixed[7] = Candidate { usable: false, ..mixed[7] };
        assert_eq!(chosen(&mixed), None);
    }

    #[test]
    fn sixteen_mixed_neighbours_are_merged_and_only_once() {
        let (mixed, long) = (candidate(FILE, 1_025), candidate(FILE, 1_024));
        assert_eq!(chosen(&[mixed; TOGETHER - 1]), None);
        assert_eq!(chosen(&[mixed; TOGETHER]), Some((0..TOGETHER, Reason::Mixed)));
        assert_eq!(chosen(&[long; TOGETHER]), None, "64 KiB of each queue");
        let merged = Candidate { merged: true, ..mixed };
        assert_eq!(chosen(&[merged; TOGETHER]), None);
        let behind = [[merged; 3].as_slice(), &[mixed; 20]].concat();
        assert_eq!(chosen(&behind), Some((3..3 + TOGETHER, Reason::Mixed)));
    }

    #[test]
    fn settled_is_what_nobody_works_in() {
        let look = |live_bytes| Look { run_bytes: 800, live_bytes, ..Look::default() };
        assert!(!look(800).after(None).settled, "it may be under way");
        assert!(look(701).after(Some(look(800))).settled);
        assert!(!look(700).after(Some(look(800))).settled, "an eighth is finished");
        assert!(look(1).after(Some(look(1))).settled);
    }
}
