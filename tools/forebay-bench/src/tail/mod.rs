//! `tail`: the slowest thousandth of publishes beside the server's own work, and without it, in turn.
//!
//! | Phase | What goes on beside the same publishes |
//! |---|---|
//! | alone | nothing: no segment is full before the end |
//! | upkeep | small segments, and a queue that nobody consumes: segments are sealed and rewritten, and checkpoints taken, all the time |
//! | cold | a consumer reads a backlog that is not in the page cache, as fast as it comes |
//! | disk alone, disk cold | the disk without a server ([`bare`]): nothing, and reads of that backlog as fast as the consumer's |
//!
//! The publishes are an open loop, so a stall counts with all that waits behind it. Each phase has a server of its own.
//! Upkeep is judged by the server alone. Reads are judged by the disk beside as many reads, which has its own group
//! commit: what they do to that, no server can undo.

mod bare;

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_testkit::{Clients, subscription};
use serde_json::json;

use crate::Failure;
use crate::args::TailArgs;
use crate::bodies::Mix;
use crate::consumers::{Consumers, Stream};
use crate::fill::{batch_of, fill};
use crate::latency::{Generator, in_time};
use crate::limit::Limit;
use crate::progress::Progress;
use crate::report::{Figures, Report, repeat};
use crate::samples::{Samples, Window};
use crate::schedule::Schedule;
use crate::site::{Site, check, create_queues, forget_cached, queue_names, server_stats, stored};
use crate::take::pull_all;

/// Bytes of a body.
const SIZE: u64 = 1 << 10;
/// Queues of the publishes, used in turn; nobody consumes the first.
const QUEUES: u64 = 4;
/// Of the phase upkeep.
const SEGMENT_BYTES: u64 = 1 << 20;
/// What is read cold, at scale 1.
const BACKLOG: u64 = 4_000_000;
/// Messages of a pull of the cold backlog: the consumer's own work must not keep the generator from its schedule.
const PULL: u64 = 100;
/// For how long the cold backlog is read before publishes begin.
const READ_ALONE: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_secs(1);
/// A virtual machine gives freed memory back to its host, which holds everything up; by then it is done.
const SETTLE: Duration = Duration::from_secs(6);
/// How many times as long the slowest thousandth may take.
const RATIO_MAX: f64 = 2.0;

pub async fn run(args: &TailArgs) -> Result<Report, Failure> {
    let runs = repeat(args.judged.runs, async || one(args).await).await?;
    let settings = json!({ "rate": args.rate, "seconds": args.seconds, "scale": args.scale.factor });
    let judged = ["upkeep_over_alone_p999", "cold_over_disk_p999"];
    let limits = judged.map(|figure| Limit::Most(figure, RATIO_MAX));
    Ok(Report { command: "tail", settings, runs, limits: args.judged.limits(limits) })
}

async fn one(args: &TailArgs) -> Result<Figures, Failure> {
    let mut figures = Figures::new();
    let alone = alone(args, &mut figures).await?;
    let upkeep = upkeep(args, &mut figures).await?;
    let (cold, disk) = cold(args, &mut figures).await?;
    figures.extend([
        ("upkeep_over_alone_p999", upkeep / alone),
        ("cold_over_alone_p999", cold / alone),
        ("cold_over_disk_p999", cold / disk),
    ]);
    Ok(figures)
}

async fn alone(args: &TailArgs, figures: &mut Figures) -> Result<f64, Failure> {
    let site = Site::started(&args.server)?;
    let alone = publish(args, &site).await?;
    figures.extend([("alone_p50_ms", alone.latency_ms(0.5)), ("alone_p999_ms", alone.latency_ms(0.999))]);
    Ok(alone.latency_ms(0.999))
}

async fn upkeep(args: &TailArgs, figures: &mut Figures) -> Result<f64, Failure> {
    let mut site = Site::new(&args.server)?;
    site.configure(format!("segment_bytes = {SEGMENT_BYTES}\n"));
    site.start()?;
    let upkeep = publish(args, &site).await?;
    let stats = server_stats(&site.server().clients()).await?;
    figures.extend([
        ("upkeep_p50_ms", upkeep.latency_ms(0.5)),
        ("upkeep_p999_ms", upkeep.latency_ms(0.999)),
        ("upkeep_segments_rewritten", (stats.segments_rewritten + stats.segments_merged) as f64),
    ]);
    Ok(upkeep.latency_ms(0.999))
}

/// The slowest thousandth of the server's and of the disk's.
async fn cold(args: &TailArgs, figures: &mut Figures) -> Result<(f64, f64), Failure> {
    let mut site = Site::started(&args.server)?;
    let (names, backlog) = (queue_names(1), args.scale.of(BACKLOG));
    create_queues(&site.server().clients(), &names).await?;
    fill(&site.server().clients(), &names, backlog, SIZE, batch_of(SIZE)).await?;
    site.kill();
    forget_cached(&site.data())?;
    tokio::time::sleep(SETTLE).await;
    site.start()?;
    let progress = Arc::new(Progress::start("reading", backlog));
    let everyone = [site.server().clients()];
    let (name, read) = (subscription(&names[0]), Arc::clone(&progress));
    let reading = tokio::spawn(async move { pull_all(&everyone, &name, PULL, backlog, read).await });
    tokio::time::sleep(READ_ALONE).await;
    let (before, start) = (progress.done(), Instant::now());
    let cold = publish(args, &site).await?;
    let (read, took) = (progress.done() - before, start.elapsed());
    if progress.done() == backlog && !args.judged.no_verdict {
        return Err(format!("all {backlog} messages were read before the end; give a larger --scale").into());
    }
    reading.abort();
    let mib =
        |messages: u64, took: Duration| (messages * SIZE) as f64 / f64::from(1 << 20) / took.as_secs_f64();
    figures.extend([
        ("cold_p50_ms", cold.latency_ms(0.5)),
        ("cold_p999_ms", cold.latency_ms(0.999)),
        ("cold_read_alone_mib_per_second", mib(before, READ_ALONE)),
        ("cold_read_beside_mib_per_second", mib(read, took)),
    ]);
    site.kill();
    // Of a small backlog nothing may have been left.
    let bytes_per_second = (read.max(1) * SIZE) as f64 / took.as_secs_f64();
    let disk = disk(args, &site, bytes_per_second, figures).await?;
    Ok((cold.latency_ms(0.999), disk))
}

/// The disk alone, and beside reads of what is left of the backlog; the slowest thousandth of the latter.
async fn disk(
    args: &TailArgs,
    site: &Site,
    bytes_per_second: f64,
    figures: &mut Figures,
) -> Result<f64, Failure> {
    let (folder, schedule) = (site.data(), args.schedule());
    let mut files: Vec<_> = std::fs::read_dir(folder.join("log"))?.collect::<Result<_, _>>()?;
    files.sort_unstable_by_key(|entry| entry.file_name());
    let files =
        files.iter().map(|entry| entry.path()).filter(|path| path.extension() == Some("seg".as_ref()));
    let reads = bare::Reads { files: files.collect(), bytes_per_second };
    forget_cached(&folder)?;
    tokio::time::sleep(SETTLE).await;
    let measure = move || {
        let alone = bare::measure(&folder, schedule, None)?;
        Ok::<_, Failure>((alone, bare::measure(&folder, schedule, Some(reads))?))
    };
    let (alone, cold) = tokio::task::spawn_blocking(measure).await??;
    figures.extend([
        ("disk_alone_p50_ms", alone.latency_ms(0.5)),
        ("disk_alone_p999_ms", alone.latency_ms(0.999)),
        ("disk_cold_p50_ms", cold.latency_ms(0.5)),
        ("disk_cold_p999_ms", cold.latency_ms(0.999)),
    ]);
    Ok(cold.latency_ms(0.999))
}

impl TailArgs {
    /// When publishes are due, those of the warm-up too.
    fn schedule(&self) -> Schedule {
        Schedule { rate: self.rate, length: WARM_UP + Duration::from_secs(self.seconds) }
    }
}

/// Publishes on a schedule, and consumes all queues but the first; latencies to the answer.
async fn publish(args: &TailArgs, site: &Site) -> Result<Samples, Failure> {
    let clients = || site.server().clients();
    let names = queue_names(QUEUES);
    create_queues(&clients(), &names).await?;
    let consumers = consume(&clients(), &names[1..]).await?;
    let length = Duration::from_secs(args.seconds);
    let window = Window { start: Instant::now(), warm_up: WARM_UP, length: Some(length) };
    let schedule = args.schedule();
    let generator = Arc::new(Generator::new(schedule, window, &Mix::from(SIZE), &names));
    Generator::run(&generator, vec![clients()]).await?;
    let all = schedule.messages();
    check("messages in the queues", stored(&clients(), &names).await?, all)?;
    consumers.finish(all - all.div_ceil(QUEUES)).await?;
    let (answered, late) = generator.seen();
    if !args.judged.no_verdict {
        in_time(&late)?;
    }
    Ok(answered)
}

async fn consume(clients: &Clients, names: &[String]) -> Result<Consumers, Failure> {
    let subscriptions: Vec<String> = names.iter().map(|name| subscription(name)).collect();
    let streams = Stream::open(std::slice::from_ref(clients), &subscriptions).await?;
    Ok(Consumers::start(streams, Window { start: Instant::now(), warm_up: Duration::ZERO, length: None }))
}
