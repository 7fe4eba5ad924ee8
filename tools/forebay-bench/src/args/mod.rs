//! The command line as typed: what subcommands share; their own arguments are in the modules.

mod curves;
mod judged;
mod load;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use forebay::log::SEGMENT_BYTES_DEFAULT;

use crate::limit::Limit;
use crate::report::Format;

pub use curves::CurvesArgs;
#[cfg(feature = "peers")]
pub use judged::CompareArgs;
pub use judged::{AttackArgs, LimitsArgs, MemoryArgs, ReclaimArgs, RestartArgs, TailArgs};
pub use load::{ConsumeArgs, ConsumeMode, FlowArgs, LatencyArgs, MixedArgs, PublishArgs, PublishMode};

/// Of any run, however small.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

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
    Attack(AttackArgs),
    Tail(TailArgs),
    Limits(LimitsArgs),
    Curves(CurvesArgs),
    #[cfg(feature = "peers")]
    Compare(CompareArgs),
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

/// What all commands that judge have in common.
#[derive(Clone, Copy, Debug, Args)]
pub struct Judged {
    /// Shows the figures without judging them
    #[arg(long)]
    pub no_verdict: bool,
    /// Runs; their medians are judged
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
}

impl Judged {
    /// These limits, if there is to be a verdict.
    pub fn limits(self, limits: impl IntoIterator<Item = Limit>) -> Vec<Limit> {
        if self.no_verdict { Vec::new() } else { limits.into_iter().collect() }
    }
}

/// How large a run is.
#[derive(Clone, Copy, Debug, Args)]
pub struct Scale {
    /// Multiplies the numbers of messages and queues
    #[arg(id = "scale", long, default_value_t = 1.0, value_parser = scale)]
    pub factor: f64,
}

impl Scale {
    /// This many at scale 1; at least one.
    pub fn of(self, count: u64) -> u64 {
        (count as f64 * self.factor).round().max(1.0) as u64
    }

    /// Length of a segment where its number matters: small runs have as many, at least of 1 MiB.
    pub fn segment_bytes(self) -> u64 {
        let scaled = (SEGMENT_BYTES_DEFAULT as f64 * self.factor.min(1.0)) as u64;
        scaled.max(SEGMENT_BYTES_MIN).next_multiple_of(4_096)
    }
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
