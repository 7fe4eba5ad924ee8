//! The whole broker on a simulated machine, many runs each decided by one seed.
//!
//! `FOREBAY_SIM_SEEDS=100000 FOREBAY_SIM_JOBS=2 cargo test --test sim seeds` runs more of them, `FOREBAY_SIM_FIRST`
//! and the next, two at a time; `FOREBAY_SIM_SEED=7` one, and
//! `FOREBAY_SIM_TRACE=1` prints what happens in it.

mod clients;
mod coverage;
mod disk;
mod host;
mod model;
mod options;
mod platter;
mod processor;
mod random;
mod run;
mod sweep;
mod trace;

use coverage::Coverage;
use run::run;

/// As many as a quick build runs in half a minute.
const SEEDS: u64 = 50;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text}, which is no number")))
}

#[test]
fn seeds() {
    if let Some(seed) = number("FOREBAY_SIM_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let first = number("FOREBAY_SIM_FIRST").unwrap_or(0);
    let count = number("FOREBAY_SIM_SEEDS").unwrap_or(SEEDS);
    let jobs = number("FOREBAY_SIM_JOBS").unwrap_or(1).clamp(1, count);
    let mut coverage = Coverage::default();
    std::thread::scope(|scope| {
        let share = |job| first + count * job / jobs..first + count * (job + 1) / jobs;
        let started: Vec<_> = (0..jobs).map(|job| scope.spawn(move || run_all(share(job)))).collect();
        for job in started {
            coverage.add(job.join().expect("a seed has failed"));
        }
    });
    print!("{coverage}");
}

fn run_all(seeds: std::ops::Range<u64>) -> Coverage {
    let mut coverage = Coverage::default();
    for seed in seeds {
        coverage.add(run(seed).coverage);
    }
    coverage
}

/// Two consumers each waited for memory for a large message while the other one read it with too little.
#[test]
fn a_large_message_comes_though_two_consumers_wait_for_it() {
    run(161);
}

/// A message that was the last of its queue was lost to a flipped bit; the next one got its offset, or nobody was told.
#[test]
fn what_is_lost_at_the_end_of_a_queue_keeps_its_offsets() {
    for seed in [101_198, 151_536, 200_027, 201_261] {
        run(seed);
    }
}

/// A start took segments for listed that had left the log; what had been put together over one of them was not found.
#[test]
fn what_was_moved_over_a_segment_that_left_is_found() {
    run(252_589);
}

/// Subscriptions were lost to a flipped bit, which was told, and their dead letters were not; or the dead letters' queue
/// lost its name.
#[test]
fn a_lost_subscription_is_told_though_its_dead_letters_are_there() {
    for seed in [279_210, 284_604, 297_634, 299_401] {
        run(seed);
    }
}

/// A start on a full disk took a request that was larger than what was left; acks waited behind it, and nothing left.
#[test]
fn a_start_on_a_full_disk_takes_nothing_that_has_to_wait() {
    run(293_134);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..3 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
