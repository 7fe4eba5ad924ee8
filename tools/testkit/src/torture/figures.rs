//! Counts over a history.

use std::fmt;

use forebay_checker::Report;

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub cycles: u64,
    /// Kills before the server was ready, besides `cycles`.
    pub early_kills: u64,
    pub restarts: u64,
    /// Messages whose publish was answered.
    pub acknowledged: u64,
    /// Calls without a clear answer.
    pub unknown: u64,
    pub deliveries: u64,
    /// Of these, not the first of their message.
    pub redeliveries: u64,
    /// Endings that were answered OK.
    pub acks: u64,
    pub recovery_ms_max: u64,
    /// Purges that were answered.
    pub purges: u64,
    /// Queues that came and went.
    pub queues_deleted: u64,
    /// Segments that nothing needed any more.
    pub segments_gone: u64,
    pub violations: u64,
}

impl Figures {
    /// Adds up what the history tells.
    pub fn count(&mut self, report: &Report) {
        self.acknowledged += report.acknowledged;
        self.unknown += report.unknown;
        self.deliveries += report.deliveries;
        self.redeliveries += report.redeliveries;
        self.acks += report.endings;
        self.purges += report.purges;
        self.violations += report.broken();
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cycles, early_kills, restarts, acknowledged, unknown, .. } = self;
        let Self { deliveries, redeliveries, acks, recovery_ms_max, violations, .. } = self;
        let Self { purges, queues_deleted, segments_gone, .. } = self;
        write!(
            f,
            "cycles={cycles} early_kills={early_kills} restarts={restarts} acknowledged={acknowledged} \
             unknown={unknown} deliveries={deliveries} redeliveries={redeliveries} acks={acks} \
             recovery_ms_max={recovery_ms_max} purges={purges} queues_deleted={queues_deleted} segments_gone={segments_gone} \
             violations={violations}"
        )
    }
}
