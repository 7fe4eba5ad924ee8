//! The machine that the process runs on.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Host, Parking, Thread, Work};

/// See the module's header.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealHost;

impl Host for RealHost {
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// 0 on a machine set before 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn wall_us(&self) -> u64 {
        let micros = |time: Duration| u64::try_from(time.as_micros()).expect("500,000 years fit");
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives randomness");
    }

    fn spawn(&self, name: &str, work: Work) -> io::Result<Thread> {
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Thread::new(move || drop(handle.join())))
    }

    fn spawn_blocking(&self, work: Work) {
        drop(tokio::task::spawn_blocking(work));
    }

    fn parking(&self) -> Option<Arc<dyn Parking>> {
        None
    }
}
