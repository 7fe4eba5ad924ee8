//! Senders that have memory for a request and bring nothing for it.
//!
//! Nothing else would end that: what they send may be held up behind requests of their own connection that wait for
//! this very memory.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::Admission;

/// How long a sender may bring nothing while others want its memory.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// Watches one request that has memory and is not whole.
#[derive(Debug, Default)]
pub struct Stall {
    /// The end of its time, and how often memory had been short when that began.
    since: Option<(Pin<Box<Sleep>>, u64)>,
}

impl Stall {
    /// Something has come.
    pub fn moved(&mut self) {
        self.since = None;
    }

    /// To be polled while nothing comes; ready when that has been too long, and others wanted the memory meanwhile.
    pub fn poll(&mut self, admission: &Admission, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let begin = || (Box::pin(sleep(STALLED_AFTER)), admission.shortages());
            let (end, shortages) = self.since.get_or_insert_with(begin);
            ready!(end.as_mut().poll(cx));
            let is_wanted = admission.shortages() > *shortages || admission.waiting() > 0;
            self.since = None;
            if is_wanted {
                return Poll::Ready(());
            }
        }
    }
}
