//! Time as the broker stamps it on commands. The core only ever sees these numbers.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The log's clock, microseconds: never steps back, stands still while the server is down.
    pub log_us: u64,
    /// Wall time, microseconds since the Unix epoch: may step.
    pub wall_us: u64,
}

/// Reads the machine's clocks, carrying the log's clock on from where the log left it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    log_us_at_start: u64,
}

impl Clock {
    /// A clock whose log time goes on from `log_us`.
    pub fn starting_at(log_us: u64) -> Self {
        Self { started: Instant::now(), log_us_at_start: log_us }
    }

    pub fn now(&self) -> Now {
        Now { log_us: self.log_us_at_start + micros(self.started.elapsed()), wall_us: wall_us() }
    }

    /// The instant at which the log's clock will read `log_us`.
    pub fn instant_of(&self, log_us: u64) -> Instant {
        self.started + std::time::Duration::from_micros(log_us.saturating_sub(self.log_us_at_start))
    }
}

/// Wall time now, microseconds since the Unix epoch; 0 on a machine set before it.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("microseconds of 500,000 years fit")
}
