//! When a message is delivered again, and when it is given up.
//!
//! The delay before the next delivery doubles with each attempt, from the policy's shortest to its longest. Within
//! each doubling it is spread over [`STEPS`] steps by a hash of the subscription, the offset and the attempt, so that
//! messages that failed together do not all come back together, and replaying decides nothing anew.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::delivery::Outstanding;
use super::state::Subscription;
use super::types::RetryPolicy;
use crate::ids::Offset;

/// How many delays one doubling is spread over; few, so that messages with the same delay share an event.
const STEPS: u64 = 16;

/// How long a message is set aside while it moves to the dead-letter queue, microseconds. Should the move fail, it is
/// tried again after this time.
pub const GIVING_UP_US: u64 = 1_000_000;

impl Subscription {
    /// The delay before the delivery that follows this attempt, microseconds; 0 means at once.
    pub fn backoff_us(&self, offset: Offset, attempt: u32) -> u64 {
        let RetryPolicy { backoff_us_min: min, backoff_us_max: max, .. } = self.config.retry;
        let doublings = attempt.saturating_sub(1).min(63);
        let longest = min.saturating_mul(2).saturating_mul(1 << doublings).min(max);
        let shortest = (longest / 2).max(min).min(longest);
        let mut hasher = SipHasher13::new_with_key(&self.uid.0);
        hasher.write_u64(offset.0);
        hasher.write_u32(attempt);
        let step = hasher.finish() % STEPS;
        shortest + (longest - shortest) / (STEPS - 1) * step
    }

    /// Whether the message has had all the deliveries that the policy allows.
    pub fn is_exhausted(&self, message: &Outstanding) -> bool {
        message.attempts >= self.config.retry.attempts_max
    }
}
