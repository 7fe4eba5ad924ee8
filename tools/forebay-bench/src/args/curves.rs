//! The arguments of `curves`.

use std::path::PathBuf;

use clap::Args;

use super::OwnServer;
use crate::curves::Axis;

/// Measure along one axis: what changes as something grows
///
/// For each point a fresh server is brought into its state. Then 64 unary publishes are under way for some seconds,
/// over all queues and connections in turn; a rate, the 99th percentile of the answers, the memory above the empty
/// server, the disk in use. At last the server is killed, and the time until it is ready again is taken. What was
/// published must be there. Bodies have 1 KiB, unless they are the axis.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench curves queues --plot queues.svg
  forebay-bench curves backlog --points 10000,1000000,100000000 --dir /mnt/disk -o json
  forebay-bench curves backlog --backlog-size 3145728 --points 100,1000,13654 --dir /mnt/disk
  forebay-bench curves connections --points 1,100,10000 --runs 3

Points unless asked otherwise: backlog 10,000 to 10,000,000 messages; queues 1 to 100,000; subscriptions 1
to 1,000; connections 1 to 10,000; sizes 16 to 8,388,608 bytes. Subscriptions are those of one queue; each has a consumer,
and publishing waits for them. Many connections need as many open files: ulimit -Hn must allow them; a server is
configured to take them.
Disk: about 2 GB; backlog messages x (size + about 40 bytes).")]
pub struct CurvesArgs {
    #[arg(value_enum)]
    pub axis: Axis,
    #[command(flatten)]
    pub server: OwnServer,
    /// Points on the axis, rising
    #[arg(long, value_delimiter = ',', value_name = "N,...", value_parser = clap::value_parser!(u64).range(1..))]
    pub points: Vec<u64>,
    /// Bytes of a body that waits, on the axis backlog
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(0..=8 << 20))]
    pub backlog_size: u64,
    /// Seconds of publishing at each point
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Runs of each point
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
    /// Draws the medians
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}
