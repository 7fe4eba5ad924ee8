//! How often what the runs are for has happened in them.

use std::fmt;

use forebay::broker::api::ServerStats;

/// Counts of one run or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub runs: u64,
    pub deliveries: u64,
    pub redeliveries: u64,
    pub dead_letters: u64,
    pub segments_begun: u64,
    pub segments_dropped: u64,
    pub segments_recycled: u64,
    pub segments_rewritten: u64,
    pub segments_merged: u64,
    pub checkpoints: u64,
    pub checkpoint_bases: u64,
    pub lives: u64,
    pub power_losses: u64,
    pub kills: u64,
    /// Starts that the disk did not let come to their end.
    pub starts_failed: u64,
    /// Lives that a failure of the disk has ended.
    pub failures: u64,
    pub disk_full: u64,
    pub bits_flipped: u64,
    pub losses_told: u64,
}

impl Coverage {
    /// Adds what a life of the broker has done.
    pub fn take(&mut self, stats: &ServerStats) {
        self.segments_begun += stats.segments_created + stats.segments_recycled;
        self.segments_dropped += stats.segments_dropped;
        self.segments_recycled += stats.segments_recycled;
        self.segments_rewritten += stats.segments_rewritten;
        self.segments_merged += stats.segments_merged;
        self.checkpoints += stats.checkpoints;
        self.checkpoint_bases += stats.checkpoint_bases;
        self.disk_full += u64::from(stats.disk_full);
    }

    /// All counts, by name.
    pub fn counts(&mut self) -> [(&'static str, &mut u64); 19] {
        [
            ("runs", &mut self.runs),
            ("deliveries", &mut self.deliveries),
            ("redeliveries", &mut self.redeliveries),
            ("dead letters", &mut self.dead_letters),
            ("segments begun", &mut self.segments_begun),
            ("segments dropped", &mut self.segments_dropped),
            ("segments recycled", &mut self.segments_recycled),
            ("segments rewritten", &mut self.segments_rewritten),
            ("segments merged", &mut self.segments_merged),
            ("checkpoints", &mut self.checkpoints),
            ("checkpoint bases", &mut self.checkpoint_bases),
            ("lives", &mut self.lives),
            ("power losses", &mut self.power_losses),
            ("kills", &mut self.kills),
            ("starts failed", &mut self.starts_failed),
            ("failures of the disk", &mut self.failures),
            ("lives that end on a full disk", &mut self.disk_full),
            ("bits flipped", &mut self.bits_flipped),
            ("losses told", &mut self.losses_told),
        ]
    }

    /// What came after `before`.
    pub fn since(mut self, mut before: Self) -> Self {
        self.counts().into_iter().zip(before.counts()).for_each(|((_, sum), (_, less))| *sum -= *less);
        self
    }

    pub fn add(&mut self, mut other: Self) {
        self.counts().into_iter().zip(other.counts()).for_each(|((_, sum), (_, more))| *sum += *more);
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = *self;
        counts.counts().into_iter().try_for_each(|(name, count)| writeln!(f, "{count:>10} {name}"))
    }
}
