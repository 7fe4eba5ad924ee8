//! Senders that have memory for a request and bring little or nothing for it.
//!
//! Nothing else would end that: what they send may be held up behind requests of their own connection that wait for
//! this very memory, or they bring a byte now and then to keep it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::Admission;

/// How long a sender may bring less than [`BYTES_MIN`] while others want its memory.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// What it must bring in that time, bytes: 1 Mbit/s.
const BYTES_MIN: u64 = 256 << 10;
/// Who was asked so much later has not been asked in time: that it brought nothing is not its fault.
const LATE: Duration = Duration::from_millis(500);

/// Watches one request that has memory and is not whole.
#[derive(Debug, Default)]
pub struct Stall {
    /// The end of its time, and how often memory had been short when that began.
    since: Option<(Pin<Box<Sleep>>, u64)>,
    /// What it has brought meanwhile, bytes.
    brought: u64,
}

impl Stall {
    /// Bytes have come.
    pub fn brought(&mut self, bytes: u64) {
        self.brought += bytes;
    }

    /// The request is whole, or the next one begins.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// To be polled while nothing comes; ready when too little has come for too long, and others wanted the memory
    /// meanwhile.
    pub fn poll(&mut self, admission: &Admission, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.since.is_none() {
                self.brought = 0;
            }
            let begin = || (Box::pin(sleep(STALLED_AFTER)), admission.shortages());
            let (end, shortages) = self.since.get_or_insert_with(begin);
            ready!(end.as_mut().poll(cx));
            let is_wanted = admission.shortages() > *shortages || admission.waiting() > 0;
            let is_late = Instant::now().duration_since(end.deadline()) > LATE;
            let is_slow = self.brought < BYTES_MIN;
            self.since = None;
            if is_wanted && is_slow && !is_late {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Whether a sender is cut off that brings so many bytes every half a second, for a minute.
    async fn is_cut(bytes: u64, is_wanted: bool) -> bool {
        let admission = Admission::new(1 << 10, 0);
        let _all = admission.try_admit(1 << 10);
        let mut stall = Stall::default();
        for _ in 0..120 {
            let half = Duration::from_millis(500);
            if tokio::time::timeout(half, poll_fn(|cx| stall.poll(&admission, cx))).await.is_ok() {
                return true;
            }
            stall.brought(bytes);
            assert!(!is_wanted || admission.try_admit(1).is_none());
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_keeps_no_memory_that_others_want() {
        assert!(is_cut(1, true).await);
        assert!(is_cut(60 << 10, true).await);
        assert!(!is_cut(1, false).await, "nobody wants it");
        assert!(!is_cut(128 << 10, true).await, "it comes fast enough");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_asked_is_not_late() {
        let admission = Admission::new(1 << 10, 0);
        let _all = admission.try_admit(1 << 10);
        let mut stall = Stall::default();
        let once = Duration::from_millis(10);
        for _ in 0..20 {
            assert!(tokio::time::timeout(once, poll_fn(|cx| stall.poll(&admission, cx))).await.is_err());
            assert!(admission.try_admit(1).is_none());
            tokio::time::advance(2 * STALLED_AFTER).await;
        }
    }
}
