//! Kills a server at random moments, again and again, while a [`Crew`] works with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::history::History;
use super::run::{Outcome, Run, complain, options};
use crate::Server;
use crate::payload::Random;

/// A ready server lives at most this long, milliseconds.
const LIFE_MS_MAX: u64 = 300;
/// One life in so many is long enough for leases to run out.
const LONG_LIFE_EVERY: u64 = 25;
const LONG_LIFE: Duration = Duration::from_millis(1_400);
/// One start in so many is killed before the server is ready.
const EARLY_KILL_EVERY: u64 = 6;
/// When, at the latest, microseconds after its process began.
const EARLY_KILL_US_MAX: u64 = 60_000;

/// What to do.
#[derive(Clone, Debug)]
pub struct KillLoop {
    /// Kills of a server that was ready.
    pub cycles: u64,
    pub seed: u64,
    /// Must not exist, or be empty.
    pub data_dir: PathBuf,
    /// Where the history goes.
    pub history: PathBuf,
}

impl KillLoop {
    /// Runs the loop; `progress` gets a line now and then. Needs a runtime of several threads.
    pub async fn run(&self, progress: impl Fn(String)) -> Result<Outcome, String> {
        let history = History::create(&self.history);
        let history = Arc::new(history.map_err(|error| format!("{}: {error}", self.history.display()))?);
        let mut random = Random::new(self.seed);
        let first = start(&self.data_dir)?;
        let mut run = Run::begin(history.clone(), random.bits(), &first).await?;
        let mut next = Some(first);
        for cycle in 0..self.cycles {
            if cycle > 0 && random.below(EARLY_KILL_EVERY) == 0 {
                let after = Duration::from_micros(random.below(EARLY_KILL_US_MAX));
                tokio::task::block_in_place(|| Server::kill_early(&self.data_dir, &options(), after));
                run.figures.early_kills += 1;
            }
            let server = next.take().map_or_else(|| start(&self.data_dir), Ok)?;
            let life = match cycle % LONG_LIFE_EVERY {
                LONG_LIFE_EVERY_LAST => LONG_LIFE,
                _ => Duration::from_micros(random.below(LIFE_MS_MAX * 1_000)),
            };
            complain(&history, &run.live(server, life, || false).await.stderr);
            if cycle % 10 == 9 {
                progress(format!("{} of {} kills, {} events", cycle + 1, self.cycles, history.now().i));
            }
        }
        progress("draining".to_owned());
        let mut outcome = run.finish(start(&self.data_dir)?).await;
        outcome.figures.segments_gone = segments_gone(&self.data_dir).map_err(|error| error.to_string())?;
        Ok(outcome)
    }
}

const LONG_LIFE_EVERY_LAST: u64 = LONG_LIFE_EVERY - 1;

/// How many segments there were and are no more.
fn segments_gone(data_dir: &Path) -> std::io::Result<u64> {
    let (mut highest, mut there) = (0, 0);
    for entry in std::fs::read_dir(data_dir.join("log"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.strip_suffix(".seg").and_then(|number| number.parse::<u64>().ok()) {
            highest = highest.max(number);
            there += 1;
        }
    }
    Ok(highest - there)
}

fn start(data_dir: &Path) -> Result<Server, String> {
    Server::start_or_tell(data_dir, &options())
}
