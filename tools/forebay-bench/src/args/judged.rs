//! The arguments of what judges the server as a whole: rates beside limits and peers, memory, disk, restarts.

#[cfg(feature = "peers")]
use std::path::PathBuf;

use clap::Args;

use forebay_testkit::attack::Attack;

use super::{Judged, OwnServer, Scale};
use crate::latency::RATE_DEFAULT;
use crate::memory::Scenario;
use crate::{limits, reclaim};

/// Compare with what the machine and the libraries allow
///
/// In turn, in each run: unary publishes beside an empty gRPC handler, group commit in one process beside a loop of
/// write and sync, publishing by stream, one message and 100 messages a request, consuming in batches of 100, 10,000
/// queues beside one, and messages of 3 MiB beside a loop of write and sync. Other bodies have 1 KiB. Ratios are of one
/// run, so that a noisy machine disturbs both sides. All rows together take about 45 seconds a run.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench limits
  forebay-bench limits unary group --runs 9 -o json
  forebay-bench limits --runs 1 --seconds 1 --scale 0.02 --no-verdict

Disk: about 3 GB; more with more seconds.")]
pub struct LimitsArgs {
    /// Only these rows [default: all]
    #[arg(value_enum, value_name = "ROW")]
    pub rows: Vec<limits::Row>,
    #[command(flatten)]
    pub server: OwnServer,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub seconds: u64,
    #[command(flatten)]
    pub scale: Scale,
    #[command(flatten)]
    pub judged: Judged,
}

/// Compare with Redis Streams and NATS JetStream on this machine
///
/// Starts each system in turn in each run, in new folders and on loopback: Forebay; Redis with its append-only file
/// synced always, and every second; NATS with files, synced always, and as it comes. Publishes messages of 1 KiB over
/// one pipelined connection, 1, 16, 64 and 256 under way, and consumes with acks. With 256 under way Forebay must have 6
/// times the rate of Redis synced always, and 1.5 times that of the faster peer that syncs later.
#[cfg(feature = "peers")]
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench compare
  forebay-bench compare --nats-server ~/nats/bin/nats-server -o json
  forebay-bench compare --runs 1 --seconds 1 --scale 0.01 --no-verdict

Disk: about 5 GB; Redis needs memory for all of its part.")]
pub struct CompareArgs {
    #[command(flatten)]
    pub server: OwnServer,
    /// The program of Redis [default: redis-server on PATH]
    #[arg(long, value_name = "PATH")]
    pub redis_server: Option<PathBuf>,
    /// The program of NATS [default: nats-server on PATH]
    #[arg(long, value_name = "PATH")]
    pub nats_server: Option<PathBuf>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub seconds: u64,
    #[command(flatten)]
    pub scale: Scale,
    #[command(flatten)]
    pub judged: Judged,
}

/// Fill a server and see how much memory it takes
///
/// Memory is RssAnon + RssShmem of the server's process above the same process when it was empty, once it has come to
/// rest; the highest reading on the way is shown too. The limit is 64 MiB, for huge-128 and huge-large 128 MiB, for
/// idle-queues 2,048 bytes a queue.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:
  forebay-bench memory waiting-1k
  forebay-bench memory waiting-128 --messages 10000000 --dir /mnt/disk
  forebay-bench memory huge-large --dir /mnt/disk
  forebay-bench memory stuck --scale 0.01 --no-verdict -o json

Disk at scale 1: waiting-1k 1.1 GB, waiting-128 8 GB, huge-128 16 GB, large 9.5 GB, huge-large 43 GB,
stuck 4 GB, queues 0.3 GB, delayed and random-acks 0.6 GB, in-flight and idle-queues 0.1 GB.",
    mut_arg("runs", |runs| runs.default_value("1"))
)]
pub struct MemoryArgs {
    #[arg(value_enum)]
    pub scenario: Scenario,
    #[command(flatten)]
    pub server: OwnServer,
    #[command(flatten)]
    pub scale: Scale,
    /// The scenario's messages (queues, for idle-queues), instead of its own number
    #[arg(long, conflicts_with = "scale", value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: Option<u64>,
    #[command(flatten)]
    pub judged: Judged,
}

/// Let a backlog wait while others flow, or lie mixed, and see what that costs
///
/// slow-consumer: the disk may take twice what is needed and 8 segments. drain: a backlog that was mixed may take
/// twice as long to drain as one that was not (writes /proc/sys/vm/drop_caches: needs root).
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:
  forebay-bench reclaim slow-consumer --scale 0.05
  forebay-bench reclaim drain --dir /mnt/disk

Disk at scale 1: slow-consumer 3 GB, drain 5 GB. Below it, segments are smaller too, at least 1 MiB.",
    mut_arg("runs", |runs| runs.default_value("1"))
)]
pub struct ReclaimArgs {
    #[arg(value_enum)]
    pub scenario: reclaim::Scenario,
    #[command(flatten)]
    pub server: OwnServer,
    #[command(flatten)]
    pub scale: Scale,
    #[command(flatten)]
    pub judged: Judged,
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
    #[command(flatten)]
    pub judged: Judged,
}

/// Attack a server and see what that costs an honest client
///
/// The honest client publishes 500 messages of 1 KiB a second, by one call each; alone, then beside the attack, for every
/// attack in turn (slow-bodies only if it is named: it has others refused for two seconds). The 99th percentile of its latencies, counted from when each message was due, may be twice as long as
/// alone. Every publish must be answered well.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:
  forebay-bench attack
  forebay-bench attack ping-flood rapid-reset --seconds 5
  forebay-bench attack --runs 1 --seconds 1 --no-verdict -o json

Disk: 0.1 GB.",
    mut_arg("runs", |runs| runs.default_value("3"))
)]
pub struct AttackArgs {
    /// Only these attacks [default: all]
    #[arg(value_name = "ATTACK", value_parser = attack)]
    pub attacks: Vec<Attack>,
    #[command(flatten)]
    pub server: OwnServer,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    #[command(flatten)]
    pub judged: Judged,
}

fn attack(text: &str) -> Result<Attack, String> {
    let found = Attack::ALL.into_iter().find(|attack| attack.name() == text);
    found.ok_or_else(|| {
        let names: Vec<String> = Attack::ALL.into_iter().map(Attack::name).collect();
        format!("one of these is expected: {}", names.join(", "))
    })
}

/// Publish at a fixed rate beside the server's own work, and see whether the slowest publishes show it
///
/// In turn, in each run, on a server of its own: alone; with segments of 1 MiB and a queue that nobody consumes, so that
/// segments are sealed and rewritten, and checkpoints taken, all the time; and while a consumer reads a backlog
/// that is not in the page cache. At last the disk without a server: written to on the same schedule, alone and beside as
/// many reads. The slowest thousandth of the publishes may take twice as long as alone, and beside the reads twice as long
/// as the disk's does. A run whose generator was itself late by more than 1 ms (p99) is refused: the default rate is one that two cores can keep.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  forebay-bench tail
  forebay-bench tail --rate 10000 --seconds 30 --no-verdict --dir /mnt/disk
  forebay-bench tail --runs 1 --seconds 1 --scale 0.01 --no-verdict

Disk at scale 1: 5 GB.")]
pub struct TailArgs {
    #[command(flatten)]
    pub server: OwnServer,
    /// Messages a second
    #[arg(long, default_value_t = RATE_DEFAULT, value_parser = clap::value_parser!(u64).range(4..=1_000_000))]
    pub rate: u64,
    /// Seconds of each phase that count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    #[command(flatten)]
    pub scale: Scale,
    #[command(flatten)]
    pub judged: Judged,
}
