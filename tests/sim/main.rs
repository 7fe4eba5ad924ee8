//! The whole broker on a simulated machine, many runs each decided by one seed.
//!
//! `FOREBAY_SIM_SEEDS=100000 cargo test --test sim seeds` runs more of them; `FOREBAY_SIM_SEED=7` one, and
//! `FOREBAY_SIM_TRACE=1` prints what happens in it.

mod clients;
mod coverage;
mod disk;
mod host;
mod model;
mod options;
mod platter;
mod random;
mod run;
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
    let mut coverage = Coverage::default();
    for seed in first..first + count {
        coverage.add(run(seed).coverage);
    }
    print!("{coverage}");
}

/// Two consumers each waited for memory for a large message while the other one read it with too little.
#[test]
fn a_large_message_comes_though_two_consumers_wait_for_it() {
    run(161);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..3 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
