//! What the broker reads for itself: messages that are given up, and delays that come back from the log.
//!
//! 1. Memory is taken before a read and given back when what came of it is on disk, or in the state. At most
//!    [`READ_BYTES_MAX`] are taken at one time, or one message that is larger.
//! 2. Who finds none waits in line, as an id. The line is served in order and nobody passes another who needs more, so
//!    what is large gets through; each turn is one read, so that none holds up the others for long.

use std::collections::VecDeque;

use super::shell::Shell;
use crate::admission::{Admission, Permit};
use crate::clock::Now;
use crate::ids::SubscriptionId;

/// Memory for all that the broker reads for itself.
pub const READ_BYTES_MAX: u64 = 8 << 20;

/// A subscription that something is to be read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    GiveUp(SubscriptionId),
    Recall(SubscriptionId),
}

/// See the module's header.
pub struct OwnReads {
    memory: Admission,
    line: VecDeque<Turn>,
}

impl Default for OwnReads {
    fn default() -> Self {
        Self { memory: Admission::new(READ_BYTES_MAX, 0), line: VecDeque::new() }
    }
}

impl OwnReads {
    pub fn line_up(&mut self, turn: Turn) {
        self.line.push_back(turn);
    }

    /// For who had its turn and must have it once more.
    pub fn line_up_first(&mut self, turn: Turn) {
        self.line.push_front(turn);
    }

    /// Takes memory if it is free now.
    pub fn try_take(&self, bytes: u64) -> Option<Permit> {
        self.memory.try_admit(bytes)
    }
}

impl Shell {
    /// Begins what waits, as far as there is memory for it.
    pub(super) fn take_turns(&mut self, now: Now) {
        while let Some(turn) = self.own_reads.line.pop_front() {
            let begun = match turn {
                Turn::GiveUp(id) => self.read_given_up(id, now),
                Turn::Recall(id) => self.read_refs(id, now),
            };
            if !begun {
                return self.own_reads.line_up_first(turn);
            }
        }
    }
}
