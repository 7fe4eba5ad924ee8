//! Leases and delays that end: their messages go back, or on to the dead-letter queue after their last attempt.
//!
//! A message that is given up is set aside first, so that nobody gets it while its bytes are read. What does not move
//! for whatever reason comes due again, and is tried again.

use rustc_hash::FxHashMap;

use super::api::StoredMessage;
use super::pump::DAMAGED_RETRY_US;
use super::reads::{Purpose, READ_BYTES_MAX};
use super::shell::Shell;
use crate::clock::Now;
use crate::core::consume;
use crate::core::settle::GivenUp;
use crate::core::types::Settled;
use crate::ids::{Offset, SubscriptionId};

/// Bytes of messages that one read of given-up messages is meant to bring; their mean size tells how many that are.
const BYTES_PER_READ: u64 = 1 << 20;

impl Shell {
    /// Takes back what ended leases and delays hold.
    pub(super) fn come_due(&mut self, id: SubscriptionId, now: Now) {
        let expired = self.state.take_expired(id, now.log_us);
        let Some(subscription) = self.state.subscription(id) else { return };
        let decision = consume::come_due(&self.state, subscription, expired, now);
        self.enact_lazily(&decision.events, now);
        self.read_exhausted(id, decision.answer);
        self.recall(id, now);
        self.schedule(id);
        self.mark(id);
    }

    /// Reads messages that had their last attempt, as far as there is room for reads; the others come due again.
    fn read_exhausted(&mut self, id: SubscriptionId, given_up: Vec<GivenUp>) {
        let Some(queue) = self.state.subscription(id).map(|subscription| subscription.queue) else { return };
        let mean = self.mean_bytes(queue);
        let count = usize::try_from(BYTES_PER_READ / mean).unwrap_or(usize::MAX).max(1);
        for these in given_up.chunks(count) {
            let reserved = mean * these.len() as u64;
            if self.reading_bytes > 0 && self.reading_bytes + reserved > READ_BYTES_MAX {
                return;
            }
            let offsets = these.iter().map(|given_up| given_up.token.offset).collect();
            let purpose = Purpose::GiveUp { subscription: id, given_up: these.to_vec() };
            self.start_read(queue, offsets, READ_BYTES_MAX.into(), reserved, purpose);
        }
    }

    /// Messages that had their last attempt were read: they move, unless something else became of them meanwhile.
    pub(super) fn exhausted_read(
        &mut self,
        id: SubscriptionId,
        given_up: Vec<GivenUp>,
        messages: Vec<StoredMessage>,
        damaged: &[Offset],
        now: Now,
    ) {
        let mut given_up: FxHashMap<Offset, GivenUp> =
            given_up.into_iter().map(|given_up| (given_up.token.offset, given_up)).collect();
        for message in messages {
            let offset = message.offset;
            let given_up = given_up.remove(&offset).expect("what was asked for is read, once");
            if let Settled::Refused { why } = self.dead_letter(id, given_up, message, now) {
                tracing::warn!(subscription = %id, %offset, why, "a message cannot be given up");
                self.put_off(id, offset, now);
            }
        }
        damaged.iter().for_each(|offset| self.put_off(id, *offset, now));
        self.schedule(id);
    }

    /// Tries again later to give a message up, if it is still there.
    fn put_off(&mut self, id: SubscriptionId, offset: Offset, now: Now) {
        let Some(subscription) = self.state.subscription(id) else { return };
        let events = consume::set_aside(subscription, &[offset], now.log_us + DAMAGED_RETRY_US, true);
        self.enact_lazily(&events, now);
        self.schedule(id);
    }
}
