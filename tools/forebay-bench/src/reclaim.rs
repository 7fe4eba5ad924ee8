//! `reclaim`: what a backlog costs on the disk while others flow, and how fast a mixed backlog is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use forebay::proto::v1::ServerStats;
use forebay_testkit::{Clients, subscription};
use serde_json::json;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::ReclaimArgs;
use crate::fill::{batch_of, fill};
use crate::limit::Limit;
use crate::progress::Progress;
use crate::report::{Figures, Report, repeat};
use crate::restart::drop_page_cache;
use crate::site::{Site, bytes_under, check, create_queues, queue_names, quiet, server_stats, waiting};
use crate::take::{acknowledge, pull, pull_all};

const GIB: u64 = 1 << 30;
/// Bytes of a body.
const SIZE: u64 = 1_024;

/// One message in so many goes to the slow consumer's queue.
const FLOWING: usize = 19;
/// Segments published in one round, then consumed.
const ROUND_SEGMENTS: u64 = 2;
/// Most segments beyond twice what is needed. The reserve for a full disk is not counted: it is always there.
const SEGMENTS_MAX: f64 = 8.0;

/// Who takes the backlog at once, and how much each at a time.
const WORKERS: usize = 16;
const PULL: u64 = 1_000;
/// A mixed backlog may take so much longer to drain than one of a single queue.
const SLOWDOWN_MAX: f64 = 2.0;
/// Reclaim has had its time when it has done nothing for so long.
const QUIET: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Nobody consumes one queue, a twentieth of 20 GiB that flow: disk use over twice what is needed
    SlowConsumer,
    /// 1 GiB over 10,000 queues, in turn, against as much in one queue: time to drain it from a cold cache
    Drain,
}

pub async fn run(args: &ReclaimArgs) -> Result<Report, Failure> {
    let one = async || match args.scenario {
        Scenario::SlowConsumer => slow_consumer(args).await,
        Scenario::Drain => drain(args).await,
    };
    let runs = repeat(args.judged.runs, one).await?;
    let limit = match args.scenario {
        Scenario::SlowConsumer => Limit::Most("segments_beyond_twice_needed", SEGMENTS_MAX),
        Scenario::Drain => Limit::Most("slowdown", SLOWDOWN_MAX),
    };
    let name = args.scenario.to_possible_value().map(|value| value.get_name().to_owned());
    let settings = json!({
        "scenario": name,
        "scale": args.scale.factor,
        "segment_bytes": args.scale.segment_bytes(),
    });
    let limits = args.judged.limits([limit]);
    Ok(Report { command: "reclaim", settings, runs, limits })
}

fn site(args: &ReclaimArgs) -> Result<Site, Failure> {
    let mut site = Site::new(&args.server)?;
    site.configure(format!("segment_bytes = {}\n", args.scale.segment_bytes()));
    site.start()?;
    Ok(site)
}

async fn slow_consumer(args: &ReclaimArgs) -> Result<Figures, Failure> {
    let site = site(args)?;
    let (clients, segment) = (site.server().clients(), args.scale.segment_bytes());
    // The last one is the slow one.
    let names = queue_names(FLOWING as u64 + 1);
    create_queues(&clients, &names).await?;
    let total = args.scale.of(20 * GIB / SIZE);
    let queues = names.len() as u64;
    let round = (ROUND_SEGMENTS * segment / SIZE).div_ceil(queues) * queues;
    let (progress, mut most) = (Progress::start("flowing", total), f64::MIN);
    let (mut needed, mut used) = (0, 0);
    while progress.done() < total {
        fill(&clients, &names, round, SIZE, (round / queues).min(batch_of(SIZE))).await?;
        for name in &names[..FLOWING] {
            let waits = waiting(&clients, std::slice::from_ref(name)).await?;
            let taken = Arc::new(Progress::start("consuming", waits));
            let everyone = [clients.clone(), clients.clone()];
            pull_all(&everyone, &subscription(name), PULL, waits, taken).await?;
        }
        needed = SIZE * waiting(&clients, &names).await?;
        let reserve = server_stats(&clients).await?.reserve_bytes;
        used = bytes_under(&site.data())?.saturating_sub(reserve);
        most = most.max((used as f64 - 2.0 * needed as f64) / segment as f64);
        progress.add(round);
    }
    let stats = server_stats(&clients).await?;
    let mut figures = vec![
        ("published_bytes", (progress.done() * SIZE) as f64),
        ("needed_bytes", needed as f64),
        ("disk_bytes", used as f64),
        ("bound_bytes", 2.0 * needed as f64 + SEGMENTS_MAX * segment as f64),
        ("segments_beyond_twice_needed", most),
    ];
    figures.extend(rewriting(&stats));
    Ok(figures)
}

fn rewriting(stats: &ServerStats) -> Figures {
    vec![
        ("write_amplification", stats.write_amplification),
        ("segments_dropped", stats.segments_dropped as f64),
        ("segments_rewritten", stats.segments_rewritten as f64),
        ("segments_merged", stats.segments_merged as f64),
        ("packed_bytes", stats.packed_bytes as f64),
    ]
}

async fn drain(args: &ReclaimArgs) -> Result<Figures, Failure> {
    let queues = args.scale.of(10_000).max(10);
    let messages = args.scale.of(GIB / SIZE).next_multiple_of(queues);
    let (mixed, stats) = drained(args, queues, messages).await?;
    let (single, _) = drained(args, 1, messages).await?;
    let rate = |seconds: f64| messages as f64 / seconds;
    let mut figures = vec![
        ("queues", queues as f64),
        ("mixed_messages_per_second", rate(mixed)),
        ("single_messages_per_second", rate(single)),
        ("slowdown", mixed / single),
    ];
    figures.extend(rewriting(&stats));
    Ok(figures)
}

/// Seconds that it takes to drain as many messages, dealt out to as many queues; and the figures before.
async fn drained(args: &ReclaimArgs, queues: u64, messages: u64) -> Result<(f64, ServerStats), Failure> {
    let mut site = site(args)?;
    let clients = site.server().clients();
    let names = queue_names(queues + 1);
    create_queues(&clients, &names).await?;
    let (passing, names) = names.split_first().expect("there is one more");
    fill(&clients, names, messages, SIZE, 1).await?;
    // What follows takes the backlog out of the reach of checkpoints.
    let behind = 20 * args.scale.segment_bytes() / SIZE;
    fill(&clients, std::slice::from_ref(passing), behind, SIZE, batch_of(SIZE)).await?;
    let taken = Arc::new(Progress::start("passing by", behind));
    pull_all(&[clients.clone(), clients.clone()], &subscription(passing), PULL, behind, taken).await?;
    let stats = quiet(&clients, QUIET).await?;
    drop(clients);
    site.kill();
    drop_page_cache()?;
    site.start()?;
    let clients = site.server().clients();
    check("messages that wait", waiting(&clients, names).await?, messages)?;
    let start = Instant::now();
    drain_all(&clients, names, messages).await?;
    let seconds = start.elapsed().as_secs_f64();
    check("messages that wait", waiting(&clients, names).await?, 0)?;
    Ok((seconds, stats))
}

/// Takes all messages of the queues, by several workers, each at a queue of its own while there are enough.
async fn drain_all(clients: &Clients, names: &[String], messages: u64) -> Result<(), Failure> {
    let names: Arc<[String]> = names.iter().map(|name| subscription(name)).collect();
    let each = messages.div_ceil(names.len() as u64);
    let (next, progress) = (Arc::new(AtomicUsize::new(0)), Arc::new(Progress::start("draining", messages)));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (mut clients, names) = (clients.clone(), Arc::clone(&names));
        let (next, progress) = (Arc::clone(&next), Arc::clone(&progress));
        workers.spawn(async move {
            while progress.done() < messages {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let name = &names[at % names.len()];
                // Behind the last queue nothing waits: others have it all under way.
                if at >= names.len() && names.len() > 1 {
                    return Ok(());
                }
                take(&mut clients, name, each, &progress, messages).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
        if progress.done() >= messages {
            return Ok(());
        }
    }
    Ok(())
}

/// Takes up to `each` messages of one queue, or until all are taken.
async fn take(
    clients: &mut Clients,
    subscription: &str,
    each: u64,
    progress: &Progress,
    messages: u64,
) -> Result<(), Failure> {
    let mut taken = 0;
    while taken < each && progress.done() < messages {
        let ack_ids = pull(clients, subscription, PULL.min(each)).await?;
        let count = ack_ids.len() as u64;
        if count == 0 {
            return Ok(());
        }
        acknowledge(clients, subscription, ack_ids).await?;
        progress.add(count);
        taken += count;
    }
    Ok(())
}
