//! What is tried again, and when.
//!
//! Tried again are a lost connection, UNAVAILABLE, and whatever the server gave a retry delay. The wait doubles from
//! 50 ms to 5 s and has jitter; the server's delay, if longer, is kept instead.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Whether trying again can help.
pub fn is_retryable(status: &Status) -> bool {
    status.code() == Code::Unavailable || retry_delay(status).is_some() || is_lost_connection(status)
}

/// Whether an error was made on the way to the server or back: the request may have been carried out.
///
/// The server explains each of its errors; one without details is the client library's own, which has these codes
/// for a connection that could not be made or broke (INTERNAL where the server said that it was its last).
pub fn is_lost_connection(status: &Status) -> bool {
    status.details().is_empty()
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info()?.retry_delay
}

/// The waits of something that is tried until it succeeds.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// There was progress: waits begin anew.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// How long to wait after this error.
    pub fn wait(&mut self, status: &Status) -> Duration {
        let wait = jittered(self.next).max(retry_delay(status).unwrap_or_default());
        self.next = (self.next * 2).min(LONGEST);
        wait
    }
}

/// Half to all of `wait`, so that clients of one outage do not come back as one.
fn jittered(wait: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    wait.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_what_can_help_is_tried_again() {
        let explained = |code| {
            let details = ErrorDetails::with_error_info("INTERNAL_ERROR", "forebay", []);
            Status::with_error_details(code, "", details)
        };
        let delayed = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        let delayed = Status::with_error_details(Code::ResourceExhausted, "", delayed);
        let last = Status::internal("h2 protocol error: NO_ERROR");
        for retried in [explained(Code::Unavailable), delayed, Status::unknown("broken pipe"), last] {
            assert!(is_retryable(&retried), "{retried:?}");
        }
        for code in [Code::Internal, Code::ResourceExhausted, Code::Aborted, Code::Unknown] {
            assert!(!is_retryable(&explained(code)), "{code:?}");
        }
        assert!(!is_retryable(&Status::not_found("")));
    }

    #[test]
    fn waits_grow_and_keep_the_servers_delay() {
        let (mut backoff, lost) = (Backoff::default(), Status::unavailable(""));
        for longest_ms in [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let wait = backoff.wait(&lost);
            let longest = Duration::from_millis(longest_ms);
            assert!(wait <= longest && wait >= longest / 2, "{wait:?} of {longest:?}");
        }
        backoff.reset();
        assert!(backoff.wait(&lost) <= FIRST);
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
        let told = Status::with_error_details(Code::Unavailable, "", details);
        assert_eq!(backoff.wait(&told), Duration::from_secs(7));
    }
}
