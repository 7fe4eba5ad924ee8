//! What came of judging a history.

use std::collections::BTreeMap;

use serde::Serialize;

/// Violations that are told in full; the rest is counted.
const TOLD_MAX: usize = 1_000;

/// A rule that was broken; the crate's documentation has the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Lost,
    Stranded,
    Invented,
    WrongBody,
    Moved,
    Redelivered,
    OutOfOrder,
    Duplicated,
    Torn,
    Overlapping,
    Early,
    StaleTaken,
    Unexpected,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub kind: Kind,
    pub queue: Option<String>,
    pub offset: Option<u64>,
    /// The message's id.
    pub message: Option<u64>,
    /// The lines of the history that show it, from 1.
    pub lines: Vec<u64>,
    pub what: String,
}

/// Counts and violations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub events: u64,
    /// Messages that somebody tried to publish.
    pub messages: u64,
    /// Messages whose publish was answered, each sending that was answered.
    pub acknowledged: u64,
    pub deliveries: u64,
    /// Of these, not the first of their message, as the server counts.
    pub redeliveries: u64,
    /// Endings that were answered OK.
    pub endings: u64,
    /// Purges that were answered.
    pub purges: u64,
    /// Calls whose outcome nobody knows.
    pub unknown: u64,
    /// Queues whose end the history does not tell, so that nothing is said to be lost of them.
    pub open_ended: Vec<String>,
    /// How many there are of each kind.
    pub counts: BTreeMap<Kind, u64>,
    /// The first ones, in the order in which they were found.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Whether no rule was broken.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// All violations, those too that are not told in full.
    pub fn broken(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn add(&mut self, violation: Violation) {
        *self.counts.entry(violation.kind).or_default() += 1;
        if self.violations.len() < TOLD_MAX {
            self.violations.push(violation);
        }
    }
}
