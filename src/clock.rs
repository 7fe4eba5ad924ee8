//! Time as the broker stamps it on commands. The core only ever sees these numbers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::host::{Host, RealHost};

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The log's clock, microseconds: never steps back, stands still while the server is down.
    pub log_us: u64,
    /// Wall time, microseconds since the Unix epoch: may step.
    pub wall_us: u64,
}

/// Reads a machine's clocks, carrying the log's clock on from where the log left it.
#[derive(Clone, Debug)]
pub struct Clock {
    host: Arc<dyn Host>,
    started: Instant,
    log_us_at_start: u64,
}

impl Clock {
    /// A clock whose log time goes on from `log_us`.
    pub fn starting_at(log_us: u64, host: Arc<dyn Host>) -> Self {
        Self { started: host.now(), host, log_us_at_start: log_us }
    }

    pub fn now(&self) -> Now {
        let elapsed = self.host.now().saturating_duration_since(self.started);
        Now { log_us: self.log_us_at_start + micros(elapsed), wall_us: self.host.wall_us() }
    }

    /// The instant at which the log's clock will read `log_us`.
    pub fn instant_of(&self, log_us: u64) -> Instant {
        self.started + Duration::from_micros(log_us.saturating_sub(self.log_us_at_start))
    }
}

/// Wall time of this machine, microseconds since the Unix epoch; 0 if it is set before that.
pub fn wall_us() -> u64 {
    RealHost.wall_us()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("microseconds of 500,000 years fit")
}
