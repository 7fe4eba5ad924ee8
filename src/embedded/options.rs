//! What may be chosen about a subscription, checked.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::Error;
use super::queue_name;
use crate::core::types::{RetryPolicy, Start, SubscriptionConfig};
use crate::limits::*;

/// How a subscription behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Where it begins: at the earliest message that is retained, unless asked otherwise.
    pub start: Start,
    /// How long a delivery is leased: 1 s to 12 h, 30 s unless asked otherwise.
    pub lease: Duration,
    /// Most deliveries at one time: 1 to 10,000, which is also the default.
    pub in_flight_max: u64,
    /// Deliveries after which a message is given up: 1 to 1,000,000, 16 unless asked otherwise.
    pub attempts_max: u32,
    /// The delay before a message comes again, 1 ms to 7 days: it doubles from the shorter to the longer with each
    /// attempt. None means at once.
    pub backoff: Option<RangeInclusive<Duration>>,
    /// The queue for what is given up or rejected; none means `<queue>-dead`, which is made when it is first needed.
    pub dead_letter_queue: Option<String>,
}

impl Default for SubscriptionOptions {
    fn default() -> Self {
        Self {
            start: Start::Earliest,
            lease: Duration::from_micros(LEASE_US_DEFAULT),
            in_flight_max: IN_FLIGHT_MAX,
            attempts_max: ATTEMPTS_DEFAULT,
            backoff: None,
            dead_letter_queue: None,
        }
    }
}

impl SubscriptionOptions {
    pub(super) fn config(&self) -> Result<SubscriptionConfig, Error> {
        let (mut backoff_us_min, mut backoff_us_max) = (0, 0);
        if let Some(backoff) = &self.backoff {
            let range = BACKOFF_US_MIN..=RETRY_DELAY_US_MAX;
            backoff_us_min = duration_us("the shortest backoff", *backoff.start(), range)?;
            backoff_us_max =
                duration_us("the longest backoff", *backoff.end(), backoff_us_min..=RETRY_DELAY_US_MAX)?;
        }
        let dead_letter_queue = self.dead_letter_queue.as_deref().map(queue_name).transpose()?;
        let attempts = number("attempts_max", self.attempts_max.into(), ATTEMPTS_MAX.into())?;
        Ok(SubscriptionConfig {
            lease_us: lease_us(self.lease)?,
            in_flight_max: number("in_flight_max", self.in_flight_max, IN_FLIGHT_MAX)?,
            retry: RetryPolicy { attempts_max: attempts as u32, backoff_us_min, backoff_us_max },
            dead_letter_queue,
        })
    }
}

fn number(what: &'static str, given: u64, most: u64) -> Result<u64, Error> {
    if (1..=most).contains(&given) {
        return Ok(given);
    }
    Err(Error::Range { what, given: given.to_string(), allowed: format!("1 to {most}") })
}

pub(super) fn lease_us(lease: Duration) -> Result<u64, Error> {
    duration_us("the lease", lease, LEASE_US_MIN..=LEASE_US_MAX)
}

pub(super) fn duration_us(
    what: &'static str,
    given: Duration,
    range: RangeInclusive<u64>,
) -> Result<u64, Error> {
    let us = u64::try_from(given.as_micros()).unwrap_or(u64::MAX);
    if range.contains(&us) {
        return Ok(us);
    }
    let [least, most] = [range.start(), range.end()].map(|us| Duration::from_micros(*us));
    Err(Error::Range { what, given: format!("{given:?}"), allowed: format!("{least:?} to {most:?}") })
}
