//! The command line as typed; [`load`] has the subcommands that only publish and consume.

mod load;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::memory::Scenario;
use crate::reclaim;
use crate::report::Format;

pub use load::{ConsumeArgs, ConsumeMode, LatencyArgs, MixedArgs, PublishArgs, PublishMode};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed or over the limit (the reason is on standard error), 2 wrong \
usage.\nA server of its own keeps its data in a new folder under --dir, deleted at the end; a tmpfs there measures \
memory, not the disk.";

/// Measures a Forebay server: rates, latencies, memory, restarts
#[derive(Debug, Parser)]
#[command(name = "forebay-bench", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// How to show the result
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", global = true)]
    pub format: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Publish(PublishArgs),
    Consume(ConsumeArgs),
    Latency(LatencyArgs),
    Mixed(MixedArgs),
    Memory(MemoryArgs),
    Reclaim(ReclaimArgs),
    Restart(RestartArgs),
    Limits(LimitsArgs),
    /// Serves an empty gRPC handler for `limits`
    #[command(name = crate::limits::empty::SUBCOMMAND, hide = true)]
    EmptyServer,
}

/// A server of the tool's own.
#[derive(Clone, Debug, Args)]
pub struct OwnServer {
    /// The server's program [default: forebay beside this program]
    #[arg(long, value_name = "PATH")]
    pub server_bin: Option<PathBuf>,
    /// Where the folder for the server's data is made [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

impl OwnServer {
    /// Where folders are made.
    pub fn parent(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// The server that is measured.
#[derive(Clone, Debug, Args)]
pub struct AnyServer {
    /// A running server, for example http://127.0.0.1:7070 [default: one of its own for each run]
    #[arg(long, value_name = "URL", conflicts_with_all = ["server_bin", "dir"])]
    pub server: Option<String>,
    #[command(flatten)]
    pub own: OwnServer,
}

/// Compare with what the machine and the libraries allow
///
/// In turn, in each run: unary publishes beside an empty gRPC handler, group commit in one process beside a loop of
/// write and sync, publishing by stream, one message and 100 messages a request, and consuming in batches of 100.
/// Bodies have 1 KiB. Ratios are of one run, so that a noisy machine disturbs both sides.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench limits
  forebay-bench limits --runs 5 --seconds 3 -o json
  forebay-bench limits --runs 1 --seconds 1 --backlog 20000

Disk: about 3 GB; more with more seconds.")]
pub struct LimitsArgs {
    #[command(flatten)]
    pub server: OwnServer,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub seconds: u64,
    /// Messages that are consumed
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub backlog: u64,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
}

/// Fill a server and see how much memory it takes
///
/// Memory is RssAnon + RssShmem of the server's process above the same process when it was empty, once it has come to
/// rest; the highest reading on the way is shown too. The limit is 64 MiB, for idle-queues 2,048 bytes a queue.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench memory waiting-1k
  forebay-bench memory waiting-128 --messages 10000000 --dir /mnt/disk
  forebay-bench memory stuck --scale 0.01 --no-verdict -o json

Disk at scale 1: waiting-1k 1.1 GB, waiting-128 8 GB, large 9.5 GB, stuck 4 GB, queues 0.3 GB,
delayed and random-acks 0.6 GB, in-flight and idle-queues 0.1 GB.")]
pub struct MemoryArgs {
    #[arg(value_enum)]
    pub scenario: Scenario,
    #[command(flatten)]
    pub server: OwnServer,
    /// Multiplies the scenario's numbers
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    pub scale: f64,
    /// The scenario's messages (queues, for idle-queues), instead of its own number
    #[arg(long, conflicts_with = "scale", value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    /// Shows the figures without judging them
    #[arg(long)]
    pub no_verdict: bool,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
}

/// Let a backlog wait while others flow, or lie mixed, and see what that costs
///
/// slow-consumer: the disk may take twice what is needed and 8 segments. drain: a backlog that was mixed may take
/// twice as long to drain as one that was not (writes /proc/sys/vm/drop_caches: needs root).
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench reclaim slow-consumer --scale 0.05
  forebay-bench reclaim drain --dir /mnt/disk

Disk at scale 1: slow-consumer 3 GB, drain 5 GB. Below it, segments are smaller too, at least 1 MiB.")]
pub struct ReclaimArgs {
    #[arg(value_enum)]
    pub scenario: reclaim::Scenario,
    #[command(flatten)]
    pub server: OwnServer,
    /// Multiplies the scenario's numbers
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    pub scale: f64,
    /// Shows the figures without judging them
    #[arg(long)]
    pub no_verdict: bool,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
}

/// Kill a full server and see how soon it is ready again
///
/// Time runs from the start of the process to its ready line. The limit is a median of 200 ms; 1 s with --cold.
/// What waited must wait again.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench restart
  forebay-bench restart --messages 50000000 --size 128 --runs 5
  forebay-bench restart --cold --dir /mnt/disk

Disk: messages x (size + about 40 bytes).")]
pub struct RestartArgs {
    #[command(flatten)]
    pub server: OwnServer,
    /// Messages that wait
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: u64,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(0..=8 << 20))]
    pub size: u64,
    /// Nacks them all before: they wait for their retry in an hour
    #[arg(long)]
    pub delayed: bool,
    /// Drops the page cache before each start (writes /proc/sys/vm/drop_caches: needs root)
    #[arg(long)]
    pub cold: bool,
    /// Shows the figures without judging them
    #[arg(long)]
    pub no_verdict: bool,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
}

fn scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if scale > 0.0 && scale <= 1_000.0 { Ok(scale) } else { Err("above 0, at most 1000".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let args = ["forebay-bench", "publish", "--messages", "1", "--seconds", "1"];
        assert!(Cli::try_parse_from(args).is_err(), "a run has one length");
        assert!(Cli::try_parse_from(["forebay-bench", "memory", "stuck", "--scale", "0"]).is_err());
        assert!(Cli::try_parse_from(["forebay-bench", "memory", "waiting-1k", "-o", "json"]).is_ok());
    }
}
