//! kill -9 at system calls that a seed picks, in servers at work and in servers that are starting, by `strace`.

use std::path::PathBuf;
use std::time::Duration;

use forebay_testkit::ServerOptions;
use forebay_testkit::payload::Random;
use forebay_testkit::torture::run::{Run, complain, options};

use super::{Tally, Turn, start, start_with};

/// Names, as `strace` takes them: what changes files, and what else a life is made of.
const CALLS: [&str; 10] = [
    "openat",
    "/^rename",
    "/^unlink",
    "fdatasync",
    "fsync",
    "/^pwrite",
    "ftruncate",
    "fallocate",
    "close",
    "mmap",
];
/// After so many kills all is drained and judged, and the next directory is a new one.
const KILLS_MAX: u64 = 25;
/// A life without its kill ends after this, by one.
const LIFE_MAX: Duration = Duration::from_millis(500);
/// The n-th such call of a thread.
const NTH_BITS_MAX: u64 = 8;

pub async fn run(turn: &Turn) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut random = Random::new(turn.seed);
    while tally.cycles < turn.cycles {
        let kills = KILLS_MAX.min(turn.cycles - tally.cycles);
        one_directory(turn, kills, &mut random, &mut tally).await?;
    }
    Ok(tally)
}

async fn one_directory(
    turn: &Turn,
    kills: u64,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<(), String> {
    let name = format!("kills-{}", tally.cycles);
    let data: PathBuf = turn.dir.join(&name);
    let history = turn.history(&name, std::sync::Arc::default())?;
    let first = start(&data)?;
    let mut run = Run::begin(history.clone(), random.bits(), &first).await?;
    run.live(first, LIFE_MAX, || false).await;
    for _ in 0..kills {
        let call = CALLS[random.below(CALLS.len() as u64) as usize];
        let bits = random.below(NTH_BITS_MAX + 1);
        let nth = 1 + random.below(1 << bits);
        match start_with(&data, &killed_at(call, nth)) {
            Ok(server) => {
                let ended = run.live(server, LIFE_MAX, || false).await;
                complain(&history, &ended.stderr);
                tally.hits += u64::from(ended.status.is_some());
            }
            // Whether it was killed or cannot start is seen by the next one.
            Err(stderr) => {
                complain(&history, &stderr);
                tally.hits += 1;
            }
        }
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    turn.progress.set_message("draining");
    let last = start(&data)?;
    tally.add(&name, &run.finish(last).await);
    turn.progress.set_message("");
    Ok(())
}

fn killed_at(call: &str, nth: u64) -> ServerOptions {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    let wrapper = ["strace", "-f", "-o", "/dev/null", "-e", &inject].map(str::to_owned).to_vec();
    ServerOptions { wrapper, ..options() }
}
