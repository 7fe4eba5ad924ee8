//! Kills a server at random moments, again and again, while a [`Crew`] works with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::checker::{self, Violation};
use super::figures::Figures;
use super::history::{Event, History};
use super::{Crew, ONE_CONSUMER, consumers, create_queues, drain_all};
use crate::payload::Random;
use crate::{Server, ServerOptions};

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

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub figures: Figures,
    pub violations: Vec<Violation>,
}

/// Options of every server of a run: small log files, so that the log rolls over often.
pub fn options() -> ServerOptions {
    ServerOptions { config: "segment_bytes = 262144\n".to_owned(), ..ServerOptions::default() }
}

impl KillLoop {
    /// Runs the loop; `progress` gets a line now and then. Needs a runtime of several threads.
    pub async fn run(&self, progress: impl Fn(String)) -> std::io::Result<Outcome> {
        let history = Arc::new(History::create(&self.history)?);
        let mut figures = Figures::default();
        if let Err(what) = self.torment(&history, &mut figures, progress).await {
            history.unexpected(what);
        }
        let events = history.events();
        figures.count(&events);
        let violations = checker::check(&events, &ONE_CONSUMER);
        figures.violations = violations.len() as u64;
        Ok(Outcome { figures, violations })
    }

    async fn torment(
        &self,
        history: &Arc<History>,
        figures: &mut Figures,
        progress: impl Fn(String),
    ) -> Result<(), String> {
        let mut random = Random::new(self.seed);
        let mut crew = Crew::new(history.clone(), random.bits());
        for run in 0..self.cycles {
            if run > 0 && random.below(EARLY_KILL_EVERY) == 0 {
                let after = Duration::from_micros(random.below(EARLY_KILL_US_MAX));
                tokio::task::block_in_place(|| Server::kill_early(&self.data_dir, &options(), after));
                figures.early_kills += 1;
            }
            let server = start(&self.data_dir)?;
            figures.restarts += u64::from(run > 0);
            figures.recovery_ms_max = figures.recovery_ms_max.max(server.recovery_ms);
            if run == 0 {
                create_queues(&mut server.clients()).await.map_err(|status| status.to_string())?;
                crew.start_all();
                crew.start_churn();
            }
            crew.up(run, &server);
            let life = match run % LONG_LIFE_EVERY {
                LONG_LIFE_EVERY_LAST => LONG_LIFE,
                _ => Duration::from_micros(random.below(LIFE_MS_MAX * 1_000)),
            };
            tokio::time::sleep(life).await;
            history.record(Event::Killed { run });
            let stderr = tokio::task::block_in_place(|| server.kill());
            crew.down();
            complain(history, &stderr);
            figures.cycles += 1;
            if run % 10 == 9 {
                progress(format!("{} of {} kills, {} events", run + 1, self.cycles, history.now()));
            }
        }
        let fates = crew.fates.clone();
        crew.end().await;
        let server = start(&self.data_dir)?;
        figures.restarts += 1;
        figures.recovery_ms_max = figures.recovery_ms_max.max(server.recovery_ms);
        figures.queues_deleted = fates.gone();
        if let Err(status) = fates.verify(history, &mut server.clients()).await {
            history.unexpected(format!("the queues cannot be listed: {status}"));
        }
        progress("draining".to_owned());
        if let Err(status) = drain_all(history, &mut server.clients()).await {
            consumers::drain_failed(history, &status);
        }
        let (status, stderr) = tokio::task::block_in_place(|| server.terminate());
        complain(history, &stderr);
        if !status.success() {
            history.unexpected(format!("the server ended with {status}:\n{stderr}"));
        }
        figures.segments_gone = segments_gone(&self.data_dir).map_err(|error| error.to_string())?;
        Ok(())
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
    let started = tokio::task::block_in_place(|| Server::try_start(data_dir, &options()));
    started.map_err(|stderr| format!("the server did not start:\n{stderr}"))
}

/// A server that is only killed has no reason for errors and panics.
fn complain(history: &History, stderr: &str) {
    for line in stderr.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")) {
        history.unexpected(format!("the server wrote: {line}"));
    }
}
