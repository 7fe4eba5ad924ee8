//! What a seed decides before a run begins. Printed when the run fails.

use crate::disk::Mishaps;
use crate::random::Random;

/// One run: several lives of one data directory.
#[derive(Clone, Debug)]
pub struct Options {
    pub queues: u64,
    pub clients: u64,
    /// Clients that alone take from their subscription.
    pub loners: u64,
    pub body_bytes_max: u64,
    pub lease_us_max: u64,
    pub attempts_max: u32,
    pub backoff_us_max: u64,
    pub outflow_bytes: u64,
    /// Longest pause of a client between two calls, microseconds.
    pub think_us: u64,
    pub lives: Vec<Life>,
}

/// From one start of the process to the next.
#[derive(Clone, Debug)]
pub struct Life {
    /// When it ends at the latest, microseconds.
    pub time_us: u64,
    /// Calls that each client makes at most.
    pub calls: u64,
    pub mishaps: Mishaps,
    pub end: End,
    /// Bits that flip after it, in files that end so.
    pub flips: Vec<&'static str>,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The broker is closed.
    Close,
    /// The process is killed: what it has written is there.
    Kill,
    /// What was not synced is there or not.
    PowerLoss,
}

impl Options {
    pub fn of(random: &mut Random) -> Self {
        let has_flips = random.percent(15);
        let lives = random.within(2, 6);
        Self {
            queues: random.within(1, 4),
            clients: random.within(2, 6),
            loners: random.below(2),
            body_bytes_max: *random.pick(&[200, 10_000, 50_000, 100_000]),
            lease_us_max: *random.pick(&[50_000, 1_000_000, 10_000_000]),
            attempts_max: *random.pick(&[2, 3, 16, 1_000]),
            backoff_us_max: *random.pick(&[0, 100_000, 5_000_000]),
            outflow_bytes: *random.pick(&[300_000, 1_000_000, 24_000_000]),
            think_us: *random.pick(&[0, 1_000, 30_000]),
            lives: (0..lives).map(|_| Life::of(random, has_flips, lives.is_multiple_of(2))).collect(),
        }
    }
}

impl Life {
    fn of(random: &mut Random, has_flips: bool, only_indexes: bool) -> Self {
        let end = *random.pick(&[End::Close, End::Kill, End::PowerLoss, End::PowerLoss]);
        let end = if has_flips { End::Close } else { end };
        let mut mishaps = Mishaps { slow_us: *random.pick(&[0, 0, 300, 20_000]), ..Mishaps::default() };
        if end != End::Close && random.percent(80) {
            mishaps.ends_at = Some(random.scale(1_500));
        }
        if !has_flips && random.percent(25) {
            mishaps.fails_at = Some(random.scale(800));
            mishaps.fails_for_good = random.percent(50);
        }
        if !has_flips && random.percent(15) {
            mishaps.capacity = Some(random.within(2 << 20, 6 << 20));
        }
        let kinds = if only_indexes { [".idx"; 4] } else { [".seg", ".seg", ".idx", "ckpt"] };
        let flips = if has_flips { random.below(4) } else { 0 };
        let flips = (0..flips).map(|_| *random.pick(&kinds)).collect();
        Self { time_us: random.within(100_000, 8_000_000), calls: random.scale(600), mishaps, end, flips }
    }
}
