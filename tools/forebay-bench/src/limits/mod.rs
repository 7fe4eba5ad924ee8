//! `limits`: Forebay beside what the machine and the libraries allow, measured in turn in the same run.
//!
//! | Figure | Beside |
//! |---|---|
//! | unary publishes, 64 in flight | the same calls to an empty handler ([`empty`]) |
//! | group commit, 64 waiters in one process without gRPC ([`group`]) | gather, write, sync of 64 messages ([`disk`]) |
//!
//! Bodies have 1 KiB. Absolute figures move with the machine's neighbours; ratios of one run hardly do.

mod disk;
pub mod empty;
mod group;

use std::path::Path;
use std::time::{Duration, Instant};

use forebay_testkit::Clients;
use serde_json::json;

use crate::Failure;
use crate::args::{ConsumeMode, LimitsArgs};
use crate::consume::{self, Drain};
use crate::fill::{Length, Load, by_calls, by_stream, same_body};
use crate::report::{Figures, Report};
use crate::site::{Site, check, create_queues, queue_names, queue_stats};

const BODY_BYTES: u64 = 1 << 10;
const WAITERS: usize = 64;
const STREAM_IN_FLIGHT: usize = 256;
const BATCH: u64 = 100;
/// Batches under way: enough for the disk, and not all of the server's memory.
const BATCHES_IN_FLIGHT: usize = 32;

pub async fn run(args: &LimitsArgs) -> Result<Report, Failure> {
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        runs.push(one(args).await?);
    }
    let settings = json!({ "seconds": args.seconds, "size": BODY_BYTES });
    Ok(Report { command: "limits", settings, runs, limits: Vec::new() })
}

async fn one(args: &LimitsArgs) -> Result<Figures, Failure> {
    let time = Duration::from_secs(args.seconds);
    let empty = empty::Process::start()?;
    let empty_unary = unary(&Clients::of(empty.address()), &["empty".to_owned()], time).await?.rate;
    drop(empty);

    let site = Site::started(&args.server)?;
    let (clients, names) = (site.server().clients(), queue_names(4));
    create_queues(&clients, &names).await?;
    let unary = unary(&clients, &names[..1], time).await?;
    let stream = stream(&clients, &names[1..2], 1, STREAM_IN_FLIGHT, time).await?;
    let batch = stream_of_batches(&clients, &names[2..3], time).await?;
    for (name, done) in names.iter().zip([unary.messages, stream.messages, batch.messages]) {
        let stats = queue_stats(&clients, std::slice::from_ref(name)).await?;
        check("messages in a queue", stats[0].next_offset, done)?;
    }
    let drain = Drain {
        mode: ConsumeMode::Subscribe,
        batch: BATCH,
        consumers: 1,
        messages: args.backlog,
        size: BODY_BYTES,
        warm_up: Duration::ZERO,
    };
    let consumed = consume::drain(&drain, &|| site.server().clients(), &names[3..]).await?;
    drop(site);

    let folder = tempfile::Builder::new().prefix("forebay-bench-").tempdir_in(args.server.parent())?;
    let (raw, group) = (
        in_thread(folder.path(), time, disk::messages_per_second).await?,
        in_thread(folder.path(), time, group::messages_per_second).await?,
    );
    Ok(vec![
        ("empty_unary_64_per_s", empty_unary),
        ("unary_64_per_s", unary.rate),
        ("unary_64_ratio", unary.rate / empty_unary),
        ("raw_commit_64_per_s", raw),
        ("group_commit_64_per_s", group),
        ("group_commit_64_ratio", group / raw),
        ("stream_256_per_s", stream.rate),
        ("batch_100_per_s", batch.rate),
        ("consume_100_per_s", consumed.messages as f64 / consumed.took.as_secs_f64()),
    ])
}

/// What was published, and messages a second.
struct Published {
    messages: u64,
    rate: f64,
}

impl Published {
    fn since(start: Instant, load: &Load) -> Self {
        let messages = load.progress.done();
        Self { messages, rate: messages as f64 / start.elapsed().as_secs_f64() }
    }
}

async fn unary(clients: &Clients, names: &[String], time: Duration) -> Result<Published, Failure> {
    let load = Load::new("unary", names, same_body(BODY_BYTES), 1, Length::Time(time));
    let start = Instant::now();
    let callers: Vec<_> =
        (0..WAITERS).map(|_| tokio::spawn(by_calls(clients.clone(), load.clone()))).collect();
    for caller in callers {
        caller.await??;
    }
    Ok(Published::since(start, &load))
}

async fn stream(
    clients: &Clients,
    names: &[String],
    batch: u64,
    in_flight: usize,
    time: Duration,
) -> Result<Published, Failure> {
    let load = Load::new("streaming", names, same_body(BODY_BYTES), batch, Length::Time(time));
    let start = Instant::now();
    tokio::spawn(by_stream(clients.clone(), load.clone(), in_flight)).await??;
    Ok(Published::since(start, &load))
}

async fn stream_of_batches(
    clients: &Clients,
    names: &[String],
    time: Duration,
) -> Result<Published, Failure> {
    stream(clients, names, BATCH, BATCHES_IN_FLIGHT, time).await
}

/// Runs a measurement in a thread of its own, away from the clients' runtime.
async fn in_thread(
    folder: &Path,
    time: Duration,
    measure: fn(&Path, Duration) -> Result<f64, Failure>,
) -> Result<f64, Failure> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || measure(&folder, time)).await?
}
