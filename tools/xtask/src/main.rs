//! `cargo xtask`: runs that torment a real server and judge what its clients were told.

mod bit_flips;
#[cfg(target_os = "linux")]
mod disk;
mod faults;
mod fixtures;
mod full_disk;
mod hostile;
mod kill_loop;
mod memory_limit;
mod optimised;
mod planted_bugs;
mod real_input;
mod sanitize;
mod shadow;
mod shell;
#[cfg(target_os = "linux")]
mod torture;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Work on Forebay itself.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Arguments {
    #[command(flatten)]
    Task(Task),
}

#[derive(Subcommand)]
enum Task {
    /// Kill a server at random moments under load; nothing acknowledged may be lost, nothing finished come again
    KillLoop {
        /// Kills of a server that was ready
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        cycles: u64,
        /// Repeats the choices of an earlier run [default: another one each time]
        #[arg(long)]
        seed: Option<u64>,
        /// Where the server's data goes and, beside it, the history; kept [default: a temporary directory]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Fail writes and syncs of a server under load, by strace; it must stop, and lose nothing
    Faults {
        /// Only cases whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Fill a small file system again and again; the server must refuse in time, lose nothing and go on by itself
    FullDisk {
        /// How often it is filled and emptied; in every second round the server is killed while it is full
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
        rounds: u64,
    },
    /// Run a server under a memory limit of 256 MiB that the kernel enforces, with large messages and slow consumers; it
    /// must live and lose nothing
    MemoryLimit {
        /// 1 is a backlog of 20 GiB and 1,000 consumers
        #[arg(long, default_value_t = memory_limit::SCALE_DEFAULT, value_parser = scale)]
        scale: f64,
    },
    /// Send malformed and extreme requests to every call; each must get a typed answer, and none be applied by half
    Hostile {
        /// How many
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
        requests: u64,
        /// Repeats the requests of an earlier run
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Flip bits of segments, indexes and checkpoints; each is told, or means nothing, and costs no more than it hit
    BitFlips {
        /// Flips that a server is started after, and emptied
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..))]
        samples: u64,
    },
    /// Run the server under valgrind's memcheck, through two lives
    Sanitize,
    /// Simulate the broker, crashes and faults of its disk and all, once for each seed
    Sim {
        /// How many
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// The first
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Seeds at one time
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
        jobs: u64,
    },
    /// Fail every operation of the simulated disk in short lives of the broker, and flip every bit of small files
    Sweeps,
    /// Break the server on purpose, one bug at a time, and see which tests find it; each bug must be found
    PlantedBugs {
        /// Only bugs whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Torment servers and their machine in every way there is, one after the other, and judge what clients were told
    #[cfg(target_os = "linux")]
    Torture(torture::Arguments),
    /// Make data directories for later builds to be tried on, one file each
    Fixtures {
        /// The folder for them
        out: PathBuf,
    },
    /// Take real payloads through the command-line client: publish, kill, consume, kill, empty
    RealInput {
        /// The folder that has github-webhooks.jsonl
        payloads: PathBuf,
    },
}

fn scale(text: &str) -> Result<f64, String> {
    let scale = text.parse().ok().filter(|scale| (0.001..=10.0).contains(scale));
    scale.ok_or_else(|| "a number from 0.001 to 10 is expected".to_owned())
}

fn main() -> ExitCode {
    let Arguments::Task(task) = Arguments::parse();
    let builds_itself = matches!(task, Task::Sim { .. } | Task::Sweeps | Task::PlantedBugs { .. });
    let built = if builds_itself { Ok(()) } else { build() };
    let done = built.and_then(|()| match task {
        Task::KillLoop { cycles, seed, data_dir } => kill_loop::run(cycles, seed, data_dir),
        Task::Faults { only } => faults::run(&only),
        Task::BitFlips { samples } => bit_flips::run(samples),
        Task::FullDisk { rounds } => full_disk::run(rounds),
        Task::MemoryLimit { scale } => memory_limit::run(scale),
        Task::Hostile { requests, seed } => hostile::run(requests, seed),
        Task::Fixtures { out } => fixtures::run(&out),
        Task::RealInput { payloads } => real_input::run(&payloads),
        Task::PlantedBugs { only } => planted_bugs::run(&only),
        Task::Sanitize => sanitize::run(),
        #[cfg(target_os = "linux")]
        Task::Torture(arguments) => torture::run(&arguments),
        Task::Sim { seeds, from, jobs } => optimised::sim(seeds, from, jobs),
        Task::Sweeps => optimised::sweeps(),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The cargo that runs this.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The folder of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a tool is two folders down")
}

/// Builds the programs that are put to the test; the whole workspace, since its parts alone would be built anew.
fn build() -> Result<(), String> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--workspace"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.status().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo build: {status}")) }
}

/// A runtime for clients, apart from the thread that waits for the server.
fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| format!("no runtime: {error}"))
}
