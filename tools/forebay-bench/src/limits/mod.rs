//! `limits`: Forebay beside what the machine and the libraries allow, measured in turn in the same run.
//!
//! | Row | Measured | Wanted |
//! |---|---|---|
//! | `unary` | unary publishes, 64 in flight, beside the same calls to an empty handler ([`empty`]) | a ratio |
//! | `group` | group commit, 64 waiters in one process without gRPC, into recycled files and new ones ([`group`]), beside gather, write, sync of 64 messages into one file ([`disk`]) | a ratio |
//! | `stream` | a publish stream, one message a request, 256 in flight | a rate |
//! | `batch` | a publish stream, 100 messages a request, into new files and into recycled ones ([`recycled`]) | rates |
//! | `consume` | a warm backlog by Subscribe, an ack for each message, 100 together | a rate |
//! | `queues` | `stream` over 10,000 queues in turn beside one queue of the same server | a ratio |
//! | `large` | messages of 3 MiB, 8 in flight, into recycled files and new ones, beside write and sync of as many bytes into one file | a ratio |
//!
//! Each row has a server of its own, which is fresh. Bodies have 1 KiB except in `large`. Absolute figures move with
//! the machine's neighbours; ratios of one run hardly do.

mod disk;
pub mod empty;
mod group;
mod recycled;
mod served;

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;

use crate::Failure;
use crate::args::LimitsArgs;
use crate::limit::Limit;
use crate::report::{Figures, Report, repeat};
use disk::Commit;

const BODY_BYTES: u64 = 1 << 10;
const WAITERS: usize = 64;

/// What is measured together. See the module's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// One message a call, 64 in flight, beside an empty gRPC handler
    Unary,
    /// Group commit without gRPC, 64 waiters, beside a loop of write and sync
    Group,
    /// A stream, one message a request, 256 in flight
    Stream,
    /// A stream, 100 messages a request, into new and into recycled files
    Batch,
    /// Subscribe with an ack for each message, batches of 100
    Consume,
    /// 10,000 queues in turn beside one
    Queues,
    /// Messages of 3 MiB beside a loop of write and sync
    Large,
}

pub async fn run(args: &LimitsArgs) -> Result<Report, Failure> {
    let wanted = |row: &&Row| args.rows.is_empty() || args.rows.contains(row);
    let rows: Vec<Row> = Row::value_variants().iter().filter(wanted).copied().collect();
    let runs = repeat(args.judged.runs, async || {
        let mut figures = Figures::new();
        for row in &rows {
            figures.extend(Box::pin(row.measure(args)).await?);
        }
        Ok(figures)
    });
    let runs = runs.await?;
    let settings = json!({ "seconds": args.seconds, "scale": args.scale.factor });
    let limits = args.judged.limits(rows.iter().flat_map(|row| row.limits()));
    Ok(Report { command: "limits", settings, runs, limits })
}

impl Row {
    async fn measure(self, args: &LimitsArgs) -> Result<Figures, Failure> {
        match self {
            Self::Unary => served::unary(args).await,
            Self::Group => group(args).await,
            Self::Stream => served::one_by_one(args).await,
            Self::Batch => served::batch(args).await,
            Self::Consume => served::consume(args).await,
            Self::Queues => served::queues(args).await,
            Self::Large => served::large(args).await,
        }
    }

    fn limits(self) -> Vec<Limit> {
        match self {
            Self::Unary => vec![Limit::Least("unary_64_ratio", 0.65)],
            Self::Group => vec![Limit::Least("group_commit_64_ratio", 0.75)],
            Self::Stream => vec![Limit::Least("stream_256_per_s", 350_000.0)],
            Self::Batch => vec![
                Limit::Least("batch_100_growing_per_s", 400_000.0),
                Limit::Least("batch_100_per_s", 1_000_000.0),
                Limit::Most("batch_100_new_file_share", 0.1),
            ],
            Self::Consume => vec![Limit::Least("consume_100_per_s", 1_000_000.0)],
            Self::Queues => vec![Limit::Least("hot_queues_ratio", 0.7)],
            Self::Large => vec![Limit::Least("large_ratio", 0.5)],
        }
    }
}

impl LimitsArgs {
    /// Of one measurement.
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

async fn group(args: &LimitsArgs) -> Result<Figures, Failure> {
    let commit = Commit { messages: WAITERS, body_bytes: BODY_BYTES as usize };
    let raw = raw_per_second(args, commit).await?;
    let segment_bytes = args.scale.segment_bytes();
    let measure = move |folder: &Path, time| group::measure(folder, time, segment_bytes);
    let (growing, recycled) = in_folder(args, measure).await?;
    Ok(vec![
        ("raw_commit_64_per_s", raw),
        ("group_commit_64_growing_per_s", growing.rate()),
        ("group_commit_64_growing_ratio", growing.rate() / raw),
        ("group_commit_64_per_s", recycled.rate()),
        ("group_commit_64_ratio", recycled.rate() / raw),
    ])
}

/// Messages a second that the disk takes in such commits.
async fn raw_per_second(args: &LimitsArgs, commit: Commit) -> Result<f64, Failure> {
    in_folder(args, move |folder, time| disk::messages_per_second(folder, time, commit)).await
}

/// Measures in a thread of its own, away from the clients' runtime, and in a new folder.
async fn in_folder<T: Send + 'static>(
    args: &LimitsArgs,
    measure: impl FnOnce(&Path, Duration) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let folder = tempfile::Builder::new().prefix("forebay-bench-").tempdir_in(args.server.parent())?;
    let time = args.time();
    tokio::task::spawn_blocking(move || measure(folder.path(), time)).await?
}
