//! Leases and delays that end: their messages go back, or on to the dead-letter queue after their last attempt.
//!
//! A message that is given up is set aside first, so that nobody gets it while its bytes are read. What does not move
//! for whatever reason comes due again, and is tried again.

use super::shell::Shell;
use crate::clock::Now;
use crate::core::consume;
use crate::ids::SubscriptionId;

impl Shell {
    /// Takes back what ended leases and delays hold.
    pub(super) fn come_due(&mut self, id: SubscriptionId, now: Now) {
        let expired = self.state.take_expired(id, now.log_us);
        let Some(subscription) = self.state.subscription(id) else { return };
        let decision = consume::come_due(&self.state, subscription, expired, now);
        self.enact_lazily(&decision.events, now);
        self.give_up_exhausted(id, decision.answer);
        self.recall(id, now);
        self.schedule(id);
        self.mark(id);
    }
}
