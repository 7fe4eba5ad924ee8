//! `cargo xtask torture`: a crew of clients works with real servers whose machine is tormented, and each history is
//! judged. Each [`Case`] torments in one way.

mod broken_disk;
mod clock;
mod full;
mod images;
mod kills;
mod lossy;
mod namespace;
mod network;
mod power;
mod report;
mod syscalls;

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use forebay_testkit::torture::history::History;
use forebay_testkit::torture::run::{Outcome, options};
use forebay_testkit::{Server, ServerOptions};
use indicatif::ProgressBar;
use tokio::runtime::Runtime;

use crate::disk::{self, Kind};
use crate::memory_limit;
use crate::shell::have;
use broken_disk::Trouble;

/// A way to torment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// The power goes at any write, on ext4
    PowerExt4,
    /// The same on xfs
    PowerXfs,
    /// Many cuts of one life, each judged by itself
    CrashImages,
    /// Writes to the disk fail
    EioWrite,
    /// Flushes of the disk fail
    EioSync,
    /// Reads from the disk fail
    EioRead,
    /// Each request to the disk takes long
    SlowDisk,
    /// The disk is full, in a start too, and has space again
    FullDisk,
    /// The kernel limits memory to 256 MiB, under large messages and slow consumers
    MemoryLimit,
    /// kill -9 at random moments, also of a start
    Kill,
    /// The same at any system call
    KillSyscall,
    /// The wall clock steps
    ClockSteps,
    /// Connections are cut, half closed, held up
    BadNetwork,
    /// Packets are lost, the network is narrow, cut, resets connections
    LossyNetwork,
}

/// What is asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Takes all cases in turn, with other seeds each time, for so long [default: each once]
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Repeats the choices of an earlier run [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Only these cases
    #[arg(long, value_enum, value_name = "CASE")]
    only: Vec<Case>,
    /// Cuts, images, kills or faults of each case in one turn [default: what CI takes]
    #[arg(long, visible_alias = "images", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    cycles: Option<u64>,
    /// Writes what happened into a file
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

/// What one case did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Tally {
    pub cycles: u64,
    /// Messages whose publish was answered.
    pub acknowledged: u64,
    pub delivered: u64,
    /// Faults that met the server at work.
    pub hits: u64,
    pub violations: Vec<String>,
}

/// One turn of a case.
pub struct Turn {
    pub seed: u64,
    pub cycles: u64,
    /// For histories and data; kept if something is wrong.
    pub dir: PathBuf,
    pub progress: ProgressBar,
}

impl Case {
    fn name(self) -> String {
        self.to_possible_value().expect("every case has a name").get_name().to_owned()
    }

    /// How much of it CI takes.
    fn cycles(self) -> u64 {
        match self {
            Self::PowerExt4 => 10,
            Self::PowerXfs => 3,
            Self::CrashImages => 20,
            Self::EioWrite | Self::EioSync | Self::EioRead | Self::SlowDisk => 1,
            Self::FullDisk => 2,
            Self::MemoryLimit => 1,
            Self::Kill | Self::KillSyscall => 10,
            Self::ClockSteps => 3,
            Self::BadNetwork => 1,
            Self::LossyNetwork => 2,
        }
    }

    /// Why it cannot run here.
    fn unavailable(self) -> Option<String> {
        match self {
            Self::PowerXfs => disk::unavailable(Kind::Xfs),
            Self::KillSyscall => have("strace", "strace").err(),
            Self::ClockSteps => clock::library().err(),
            Self::Kill | Self::BadNetwork => None,
            Self::MemoryLimit => memory_limit::unavailable(),
            Self::LossyNetwork => lossy::unavailable(),
            _ => disk::unavailable(Kind::Ext4),
        }
    }

    /// Runs it on this runtime, or on one of its own if that must be somewhere else.
    fn run_on(self, runtime: &Runtime, turn: &Turn) -> Result<Tally, String> {
        match self {
            Self::LossyNetwork => namespace::apart(|| crate::runtime()?.block_on(self.run(turn))),
            _ => runtime.block_on(self.run(turn)),
        }
    }

    async fn run(self, turn: &Turn) -> Result<Tally, String> {
        match self {
            Self::PowerExt4 => power::run(turn, Kind::Ext4).await,
            Self::PowerXfs => power::run(turn, Kind::Xfs).await,
            Self::CrashImages => images::run(turn, Kind::Ext4).await,
            Self::EioWrite => broken_disk::run(turn, Kind::Ext4, Trouble::Writes).await,
            Self::EioSync => broken_disk::run(turn, Kind::Ext4, Trouble::Flushes).await,
            Self::EioRead => broken_disk::run(turn, Kind::Ext4, Trouble::Reads).await,
            Self::SlowDisk => broken_disk::run(turn, Kind::Ext4, Trouble::Slow).await,
            Self::FullDisk => full::run(turn, Kind::Ext4).await,
            Self::MemoryLimit => memory(turn).await,
            Self::Kill => kills::run(turn).await,
            Self::KillSyscall => syscalls::run(turn).await,
            Self::ClockSteps => clock::run(turn).await,
            Self::BadNetwork => network::run(turn).await,
            Self::LossyNetwork => lossy::run(turn).await,
        }
    }
}

/// One trial a cycle. It keeps no history: its own ledger has each message.
async fn memory(turn: &Turn) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while tally.cycles < turn.cycles {
        let ledger = memory_limit::trial(memory_limit::SCALE_DEFAULT).await?;
        tally.acknowledged += ledger.acknowledged();
        tally.delivered += ledger.received();
        tally.hits += 1;
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    Ok(tally)
}

impl Tally {
    /// Adds what was judged.
    pub fn add(&mut self, what: &str, outcome: &Outcome) {
        self.acknowledged += outcome.figures.acknowledged;
        self.delivered += outcome.figures.deliveries;
        let violation = |violation: &_| format!("{what}: {violation:?}");
        self.violations.extend(outcome.violations.iter().map(violation));
    }
}

impl Turn {
    /// A history that follows a disk's log, if there is one.
    pub fn history(&self, name: &str, disk_log: Arc<AtomicU64>) -> Result<Arc<History>, String> {
        let path = self.dir.join(format!("{name}.history"));
        History::following(&path, disk_log).map(Arc::new).map_err(|error| told(&path, &error))
    }

    /// A history that goes on from where another was when its disk's log had this length.
    pub fn branch(&self, name: &str, history: &History, position: u64) -> Result<Arc<History>, String> {
        let path = self.dir.join(format!("{name}.history"));
        let branch = history.branch(&path, history.moment_at(position));
        branch.map(Arc::new).map_err(|error| told(&path, &error))
    }
}

fn told(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Starts a server that must become ready.
pub fn start(data: &Path) -> Result<Server, String> {
    Server::start_or_tell(data, &options())
}

pub fn start_with(data: &Path, options: &ServerOptions) -> Result<Server, String> {
    tokio::task::block_in_place(|| Server::try_start(data, options))
}

pub fn run(arguments: &Arguments) -> Result<(), String> {
    let cases = if arguments.only.is_empty() { Case::value_variants() } else { &arguments.only };
    let seed = arguments.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 1);
    let mut report = report::Report::new(seed);
    let runtime = crate::runtime()?;
    let end = arguments.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    for turn in 0u64.. {
        for case in cases {
            if let Some(why) = case.unavailable() {
                report.skipped(&case.name(), &why);
                continue;
            }
            let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
            let turn = Turn {
                seed: seed.wrapping_add(turn),
                cycles: arguments.cycles.unwrap_or(case.cycles()),
                dir: dir.path().to_owned(),
                progress: report::progress(&case.name()),
            };
            let start = Instant::now();
            let tally = case.run_on(&runtime, &turn);
            turn.progress.finish_and_clear();
            if report.add(&case.name(), turn.seed, start.elapsed(), tally) {
                eprintln!("kept for a look: {}", dir.keep().display());
            }
        }
        if end.is_none_or(|end| Instant::now() >= end) {
            break;
        }
    }
    report.finish(arguments.report.as_deref())
}
