//! What is tried again, and when.
//!
//! Tried again are: a lost connection, UNAVAILABLE, and whatever the server gave a retry delay. Nothing else.
//! The wait doubles from 50 ms to 2 s and has jitter; the server's delay, if longer, is kept instead.

use std::time::Duration;

use forebay::client;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::errors::retry_delay;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Whether trying again can help.
pub fn is_retryable(status: &Status) -> bool {
    // A deadline of this client passed without an answer; what it asks for may be done twice without harm.
    client::is_retryable(status) || status.code() == Code::DeadlineExceeded
}

/// The waits of one thing that is tried again until it succeeds or its time is over.
#[derive(Debug)]
pub struct Backoff {
    patience: Option<Duration>,
    failing_since: Option<Instant>,
    next: Duration,
}

impl Backoff {
    /// Gives up after failing for `patience`; never without one.
    pub fn new(patience: Option<Duration>) -> Self {
        Self { patience, failing_since: None, next: FIRST }
    }

    /// There was progress: patience and waits begin anew.
    pub fn reset(&mut self) {
        self.failing_since = None;
        self.next = FIRST;
    }

    /// How long to wait before the next try; `None` if this error is final or patience is over.
    pub fn wait(&mut self, status: &Status) -> Option<Duration> {
        if !is_retryable(status) {
            return None;
        }
        let now = Instant::now();
        let since = *self.failing_since.get_or_insert(now);
        let wait = jittered(self.next).max(retry_delay(status).unwrap_or_default());
        self.next = (self.next * 2).min(LONGEST);
        match self.patience {
            Some(patience) if now + wait > since + patience => None,
            _ => Some(wait),
        }
    }
}

/// Half to all of `wait`, so that clients of one outage do not come back as one.
fn jittered(wait: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    wait.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn status(code: Code, retry: Option<Duration>) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info("R", "forebay", HashMap::new());
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        Status::with_error_details(code, "m", details)
    }

    #[test]
    fn only_unavailable_lost_connections_and_retry_delays_are_tried_again() {
        assert!(is_retryable(&Status::unknown("transport error")));
        assert!(is_retryable(&status(Code::Unavailable, None)));
        assert!(is_retryable(&status(Code::ResourceExhausted, Some(Duration::from_secs(1)))));
        for code in [Code::ResourceExhausted, Code::NotFound, Code::Aborted, Code::Internal, Code::DataLoss] {
            assert!(!is_retryable(&status(code, None)), "{code:?}");
        }
    }

    #[test]
    fn waits_grow_respect_the_server_and_end() {
        let lost = status(Code::Unavailable, None);
        let mut backoff = Backoff::new(None);
        let first = backoff.wait(&lost).unwrap();
        assert!(first >= FIRST / 2 && first <= FIRST, "{first:?}");
        let waits: Vec<_> = (0..10).map(|_| backoff.wait(&lost).unwrap()).collect();
        assert!(waits.iter().all(|w| *w <= LONGEST) && waits[9] >= LONGEST / 2, "{waits:?}");

        let asked = Duration::from_secs(30);
        let busy = status(Code::ResourceExhausted, Some(asked));
        assert_eq!(Backoff::new(None).wait(&busy), Some(asked));
        assert_eq!(Backoff::new(Some(Duration::from_secs(10))).wait(&busy), None);
        assert_eq!(Backoff::new(None).wait(&status(Code::NotFound, None)), None);
    }
}
