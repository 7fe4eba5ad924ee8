//! The rows that are measured over gRPC.

use std::time::{Duration, Instant};

use forebay_testkit::Clients;
use tokio::task::JoinSet;

use super::disk::Commit;
use super::{BODY_BYTES, WAITERS, empty, raw_per_second, recycled};
use crate::Failure;
use crate::args::{ConsumeMode, LimitsArgs};
use crate::consume::{self, Drain};
use crate::fill::{Form, Length, Load, Published, all_done, by_calls, publish_stream, same_body};
use crate::report::Figures;
use crate::site::{Site, check, create_queues, queue_names, stored};

const STREAM_IN_FLIGHT: usize = 256;
const BATCH: u64 = 100;
/// Batches under way: enough for the disk, and not all of the server's memory.
const BATCHES_IN_FLIGHT: usize = 32;
/// Messages that are consumed, and hot queues, at scale 1.
const BACKLOG: u64 = 500_000;
const HOT_QUEUES: u64 = 10_000;
/// One queue and the hot queues are published to so often, in turn.
const TURNS: u32 = 4;
const LARGE_BYTES: u64 = 3 << 20;
const LARGE_IN_FLIGHT: usize = 8;

/// A fresh server with queues.
pub struct Bed {
    pub site: Site,
    pub clients: Clients,
    pub names: Vec<String>,
}

impl Bed {
    pub async fn new(args: &LimitsArgs, queues: u64) -> Result<Self, Failure> {
        Self::on(Site::started(&args.server)?, queues).await
    }

    /// The same on this server.
    pub async fn on(site: Site, queues: u64) -> Result<Self, Failure> {
        let (clients, names) = (site.server().clients(), queue_names(queues));
        create_queues(&clients, &names).await?;
        Ok(Self { site, clients, names })
    }

    /// Publishes for this long by one stream to new queues; messages a second.
    async fn stream(&self, names: &[String], form: Form, time: Duration) -> Result<f64, Failure> {
        let published = publish_stream(&self.clients, names, form, Length::Time(time)).await?;
        check("messages in the queues", stored(&self.clients, names).await?, published.messages)?;
        Ok(published.rate())
    }
}

const ONE_BY_ONE: Form = Form { body_bytes: BODY_BYTES, batch: 1, in_flight: STREAM_IN_FLIGHT };
const IN_BATCHES: Form = Form { body_bytes: BODY_BYTES, batch: BATCH, in_flight: BATCHES_IN_FLIGHT };
const LARGE: Form = Form { body_bytes: LARGE_BYTES, batch: 1, in_flight: LARGE_IN_FLIGHT };

pub async fn unary(args: &LimitsArgs) -> Result<Figures, Failure> {
    let empty = empty::Process::start()?;
    let limit = calls(&Clients::of(empty.address()), &queue_names(1), args.time()).await?.rate();
    drop(empty);
    let bed = Bed::new(args, 1).await?;
    let unary = calls(&bed.clients, &bed.names, args.time()).await?;
    check("messages in the queue", stored(&bed.clients, &bed.names).await?, unary.messages)?;
    Ok(vec![
        ("empty_unary_64_per_s", limit),
        ("unary_64_per_s", unary.rate()),
        ("unary_64_ratio", unary.rate() / limit),
    ])
}

/// Publishes by unary calls of [`WAITERS`] callers.
async fn calls(clients: &Clients, names: &[String], time: Duration) -> Result<Published, Failure> {
    let load = Load::new("unary", names, same_body(BODY_BYTES), 1, Length::Time(time));
    let (start, mut callers) = (Instant::now(), JoinSet::new());
    for _ in 0..WAITERS {
        callers.spawn(by_calls(clients.clone(), load.clone()));
    }
    all_done(callers).await?;
    Ok(Published { messages: load.progress.done(), took: start.elapsed() })
}

pub async fn one_by_one(args: &LimitsArgs) -> Result<Figures, Failure> {
    let bed = Bed::new(args, 1).await?;
    Ok(vec![("stream_256_per_s", bed.stream(&bed.names, ONE_BY_ONE, args.time()).await?)])
}

pub async fn batch(args: &LimitsArgs) -> Result<Figures, Failure> {
    let bed = Bed::new(args, 1).await?;
    let growing = bed.stream(&bed.names, IN_BATCHES, args.time()).await?;
    drop(bed);
    let (recycled, new_share) = recycled::measure(args, IN_BATCHES).await?;
    Ok(vec![
        ("batch_100_growing_per_s", growing),
        ("batch_100_per_s", recycled.rate()),
        ("batch_100_new_file_share", new_share),
    ])
}

pub async fn consume(args: &LimitsArgs) -> Result<Figures, Failure> {
    let bed = Bed::new(args, 1).await?;
    let drain = Drain {
        mode: ConsumeMode::Subscribe,
        batch: BATCH,
        consumers: 1,
        messages: args.scale.of(BACKLOG),
        size: BODY_BYTES,
        warm_up: Duration::ZERO,
    };
    let consumed = consume::drain(&drain, &|| bed.site.server().clients(), &bed.names).await?;
    Ok(vec![("consume_100_per_s", consumed.rate())])
}

pub async fn queues(args: &LimitsArgs) -> Result<Figures, Failure> {
    let bed = Bed::new(args, 1 + args.scale.of(HOT_QUEUES)).await?;
    let names = bed.names.split_at(1);
    // In turn, so that both meet the same disk and the same machine.
    let (mut one, mut hot) = (Published::default(), Published::default());
    for _ in 0..TURNS {
        for (names, published) in [(names.0, &mut one), (names.1, &mut hot)] {
            let length = Length::Time(args.time() / TURNS);
            published.add(publish_stream(&bed.clients, names, ONE_BY_ONE, length).await?);
        }
    }
    check("messages in the queues", stored(&bed.clients, &bed.names).await?, one.messages + hot.messages)?;
    let (one, hot) = (one.rate(), hot.rate());
    Ok(vec![("one_queue_per_s", one), ("hot_queues_per_s", hot), ("hot_queues_ratio", hot / one)])
}

pub async fn large(args: &LimitsArgs) -> Result<Figures, Failure> {
    let raw = raw_per_second(args, Commit { messages: 1, body_bytes: LARGE_BYTES as usize }).await?;
    let bed = Bed::new(args, 1).await?;
    let growing = bed.stream(&bed.names, LARGE, args.time()).await?;
    drop(bed);
    let recycled = recycled::measure(args, LARGE).await?.0.rate();
    let mib = (LARGE_BYTES >> 20) as f64;
    Ok(vec![
        ("raw_large_mib_per_s", raw * mib),
        ("large_growing_mib_per_s", growing * mib),
        ("large_growing_ratio", growing / raw),
        ("large_mib_per_s", recycled * mib),
        ("large_ratio", recycled / raw),
    ])
}
