//! The arguments of loads: publishing, consuming, both at once.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Value, json};

use super::{AnyServer, Judged};
use crate::bodies::Mix;
use crate::latency::RATE_DEFAULT;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PublishMode {
    /// Publish, one message a request
    Unary,
    /// PublishStream, one stream a connection, --batch messages a request
    Stream,
    /// Publish, --batch messages a request
    Batch,
}

/// Publish as fast as answers come: rate and latency
///
/// A closed loop: --in-flight requests are under way, and each answer starts the next one. At the end the queues
/// must hold what was answered.
#[derive(Clone, Debug, Args)]
#[command(
    group = ArgGroup::new("length").args(["messages", "seconds"]),
    after_help = "Examples:
  forebay-bench publish
  forebay-bench publish --mode unary --in-flight 512 --connections 4 --runs 5
  forebay-bench publish --mode batch --batch 1000 --size 256 --messages 10000000 -o json
  forebay-bench publish --mode stream --batch 100 --in-flight 32 --warm-up 2
  forebay-bench publish --server http://127.0.0.1:7070 --queues 10000 --seconds 10

Disk: messages x (size + about 40 bytes)."
)]
pub struct PublishArgs {
    #[command(flatten)]
    pub server: AnyServer,
    /// Another queue's server instead, redis://HOST:PORT or nats://HOST:PORT, one message at a time
    #[cfg(feature = "peers")]
    #[arg(long, value_name = "URL", conflicts_with_all = ["server", "server_bin", "dir", "mode", "batch", "queues"])]
    pub peer: Option<crate::peers::Peer>,
    #[arg(long, value_enum, default_value = "stream")]
    pub mode: PublishMode,
    /// Requests under way, over all connections
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub in_flight: u64,
    /// Messages of one request [default: 1; 100 in mode batch]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub batch: Option<u64>,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(0..=8 << 20))]
    pub size: u64,
    /// Messages of one run
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    /// Seconds of one run [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Queues, used in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub queues: u64,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub connections: u64,
    /// Seconds of the same load before a run, not counted
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub warm_up: u64,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
    /// Draws the last run: latency by percentile, and throughput over time
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsumeMode {
    /// Pull --batch messages and acknowledge them, in turn
    Pull,
    /// Subscribe with credit for 4 x --batch messages, acknowledging on the stream
    Subscribe,
}

/// Consume and acknowledge a backlog as fast as it comes
///
/// Fills a queue, then takes all of it. At the end nothing may wait.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench consume
  forebay-bench consume --mode pull --batch 1000 --consumers 4
  forebay-bench consume --messages 5000000 --size 128 --runs 5 -o json

Disk: messages x (size + about 60 bytes).")]
pub struct ConsumeArgs {
    #[command(flatten)]
    pub server: AnyServer,
    /// Another queue's server instead, redis://HOST:PORT or nats://HOST:PORT
    #[cfg(feature = "peers")]
    #[arg(long, value_name = "URL", conflicts_with_all = ["server", "server_bin", "dir", "mode", "warm_up"])]
    pub peer: Option<crate::peers::Peer>,
    #[arg(long, value_enum, default_value = "subscribe")]
    pub mode: ConsumeMode,
    /// Messages of one pull; acknowledged together
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub batch: u64,
    /// Consumers, each on a connection of its own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub consumers: u64,
    /// Messages of one run
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: u64,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(0..=8 << 20))]
    pub size: u64,
    /// Seconds of consuming that are not counted; the backlog must outlast them
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub warm_up: u64,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
}

/// A flow of messages through queues to their consumers: what `latency` and `mixed` have in common.
#[derive(Clone, Debug, Args)]
pub struct FlowArgs {
    #[command(flatten)]
    pub server: AnyServer,
    /// Seconds of one run that count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// Seconds before them that do not
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub warm_up: u64,
    /// Bytes of a body, at least 8; or several sizes with their weights, SIZE:WEIGHT,...
    #[arg(long, default_value = "1024")]
    pub sizes: Mix,
    /// Queues, used in turn; each has a consumer, each connection too
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub queues: u64,
    /// Connections for publishing, and as many for consuming
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub connections: u64,
    #[command(flatten)]
    pub judged: Judged,
    /// Draws the last run: latency by percentile, and throughput over time
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

impl FlowArgs {
    /// As a report shows them.
    pub fn settings(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "warm_up": self.warm_up,
            "sizes": self.sizes.to_string(),
            "queues": self.queues,
            "connections": self.connections,
        })
    }
}

/// Publish at a fixed rate and see how long answers and deliveries take
///
/// An open loop: messages are due at --rate, spread evenly, whatever became of those before, and a latency counts from
/// the time at which its message was due, to the publish's answer (it is on disk) and to the delivery at a consumer of
/// this process, which acknowledges it at once. The limits hold at the default rate: end to end, a median over the runs
/// of 0.5 ms (p50) and 3 ms (p99). A run whose generator was itself late by more than 1 ms (p99) is refused.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench latency
  forebay-bench latency --rate 50000 --connections 4 --seconds 30 --plot latency.svg
  forebay-bench latency --sizes 128:70,1024:25,65536:5 --queues 100 --no-verdict -o json

Disk: rate x seconds x (size + about 60 bytes).")]
pub struct LatencyArgs {
    #[command(flatten)]
    pub flow: FlowArgs,
    /// Messages a second, over all connections
    #[arg(long, default_value_t = RATE_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: u64,
}

/// Publish and consume at once, as fast as both go
///
/// A closed loop of PublishStream beside consumers by Subscribe that acknowledge at once. Rates are of the same time,
/// consumed is what was acknowledged on disk; the backlog is what waits when publishing ends. Then the rest is consumed,
/// and nothing may wait. The limit for bodies of 1 KiB: medians of 300,000 messages a second each.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench mixed
  forebay-bench mixed --batch 1 --connections 2 --seconds 30 --plot mixed.svg
  forebay-bench mixed --sizes 128:70,1024:25,65536:5 --queues 100 -o json

Disk: what is published until reclaim takes it; about 1 GB a second at most.")]
pub struct MixedArgs {
    #[command(flatten)]
    pub flow: FlowArgs,
    /// Messages of one request; up to 32 requests or 8 MiB are under way on a connection
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub batch: u64,
}
