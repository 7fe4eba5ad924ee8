//! `compare`: Forebay and its peers on one machine, one after the other in each run. Feature `peers`.
//!
//! Every system has a fresh server, and a new queue for each figure, which is deleted behind it. Publishing goes over one
//! pipelined connection, one message of 1 KiB at a time. Peers that answer before they sync are compared with a Forebay
//! that does not. Consuming is measured where filling takes no longer than it must: not on peers that sync before each
//! answer.

use std::path::PathBuf;
use std::time::Duration;

use forebay_testkit::Clients;
use serde_json::json;

use crate::Failure;
use crate::args::{CompareArgs, ConsumeMode};
use crate::consume::{self, Drain};
use crate::fill::{Form, Length, publish_stream};
use crate::limit::Limit;
use crate::peers;
use crate::peers::servers::{PeerServer, Syncing, find};
use crate::report::{Figures, Report, repeat};
use crate::site::{Site, check, create_queues, delete_queues, queue_names, stored};

const BODY_BYTES: u64 = 1 << 10;
/// Messages under way.
const IN_FLIGHT: [u64; 4] = [1, 16, 64, 256];
/// Messages that are consumed at scale 1, so many at a time.
const BACKLOG: u64 = 200_000;
const BATCH: u64 = 100;

/// Forebay with 256 under way, beside peers with as many.
const OVER_REDIS_ALWAYS: &str = "forebay_over_redis_always";
const OVER_FASTEST_LATER: &str = "forebay_over_fastest_later";
/// The same beside the best that they did with any number under way.
const OVER_BEST_LATER: &str = "forebay_over_best_later";
const OVER_REDIS_ALWAYS_MIN: f64 = 6.0;
const OVER_FASTEST_LATER_MIN: f64 = 1.5;

/// The figures of a system: publishing with each of [`IN_FLIGHT`] under way, and consuming if that is measured.
struct Names {
    publish: [&'static str; 4],
    consume: Option<&'static str>,
}

const FOREBAY: Names = Names {
    publish: ["forebay_1_per_s", "forebay_16_per_s", "forebay_64_per_s", "forebay_256_per_s"],
    consume: Some("forebay_consume_per_s"),
};
const REDIS_ALWAYS: Names = Names {
    publish: [
        "redis_always_1_per_s",
        "redis_always_16_per_s",
        "redis_always_64_per_s",
        "redis_always_256_per_s",
    ],
    consume: None,
};
const REDIS_LATER: Names = Names {
    publish: [
        "redis_everysec_1_per_s",
        "redis_everysec_16_per_s",
        "redis_everysec_64_per_s",
        "redis_everysec_256_per_s",
    ],
    consume: Some("redis_everysec_consume_per_s"),
};
const NATS_ALWAYS: Names = Names {
    publish: ["nats_always_1_per_s", "nats_always_16_per_s", "nats_always_64_per_s", "nats_always_256_per_s"],
    consume: None,
};
const NATS_LATER: Names = Names {
    publish: [
        "nats_default_1_per_s",
        "nats_default_16_per_s",
        "nats_default_64_per_s",
        "nats_default_256_per_s",
    ],
    consume: Some("nats_default_consume_per_s"),
};

/// The peers' programs, as far as they are there.
struct Programs {
    redis: Option<PathBuf>,
    nats: Option<PathBuf>,
}

impl Programs {
    /// A verdict needs both.
    fn find(args: &CompareArgs) -> Result<Self, Failure> {
        let redis = find(args.redis_server.as_deref(), "redis-server")?;
        let nats = find(args.nats_server.as_deref(), "nats-server")?;
        for (name, program) in [("redis-server", &redis), ("nats-server", &nats)] {
            if program.is_none() && !args.judged.no_verdict {
                return Err(format!(
                    "{name} is not on PATH; give --{name} PATH, or --no-verdict to compare with what is there"
                )
                .into());
            }
        }
        Ok(Self { redis, nats })
    }
}

impl CompareArgs {
    /// Of one measurement.
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

pub async fn run(args: &CompareArgs) -> Result<Report, Failure> {
    let programs = Programs::find(args)?;
    let runs = repeat(args.judged.runs, async || one(args, &programs).await).await?;
    let settings =
        json!({ "seconds": args.seconds, "scale": args.scale.factor, "size": BODY_BYTES, "batch": BATCH });
    let limits = args.judged.limits([
        Limit::Least(OVER_REDIS_ALWAYS, OVER_REDIS_ALWAYS_MIN),
        Limit::Least(OVER_FASTEST_LATER, OVER_FASTEST_LATER_MIN),
    ]);
    Ok(Report { command: "compare", settings, runs, limits })
}

async fn one(args: &CompareArgs, programs: &Programs) -> Result<Figures, Failure> {
    let parent = args.server.parent();
    let mut figures = Box::pin(forebay(args)).await?;
    if let Some(program) = &programs.redis {
        for (syncing, names) in [(Syncing::Always, REDIS_ALWAYS), (Syncing::Later, REDIS_LATER)] {
            let start = || PeerServer::redis(program, &parent, syncing);
            figures.extend(Box::pin(peer(args, start, names)).await?);
        }
    }
    if let Some(program) = &programs.nats {
        for (syncing, names) in [(Syncing::Always, NATS_ALWAYS), (Syncing::Later, NATS_LATER)] {
            let start = || PeerServer::nats(program, &parent, syncing);
            figures.extend(Box::pin(peer(args, start, names)).await?);
        }
    }
    let ratios = ratios(&figures);
    figures.extend(ratios);
    Ok(figures)
}

/// Forebay beside what there is of peers.
fn ratios(figures: &Figures) -> Figures {
    let greatest = |names: &[&str]| {
        let named = figures.iter().filter(|(name, _)| names.contains(name));
        named.map(|(_, value)| *value).max_by(f64::total_cmp)
    };
    let [.., own] = FOREBAY.publish;
    let later = [REDIS_LATER.publish, NATS_LATER.publish];
    let beside = [
        (OVER_REDIS_ALWAYS, greatest(&REDIS_ALWAYS.publish[3..])),
        (OVER_FASTEST_LATER, greatest(&later.map(|names| names[3]))),
        (OVER_BEST_LATER, greatest(later.as_flattened())),
    ];
    let own = greatest(&[own]).unwrap_or_default();
    beside.into_iter().filter_map(|(name, other)| Some((name, own / other?))).collect()
}

async fn forebay(args: &CompareArgs) -> Result<Figures, Failure> {
    let site = Site::started(&args.server)?;
    let connect = || site.server().clients();
    let mut figures = Figures::new();
    for (name, in_flight) in FOREBAY.publish.into_iter().zip(IN_FLIGHT) {
        figures.push((name, stream(&connect(), in_flight, args.time()).await?));
    }
    let queue = queue_names(1);
    create_queues(&connect(), &queue).await?;
    let drain = Drain {
        mode: ConsumeMode::Subscribe,
        batch: BATCH,
        consumers: 1,
        messages: args.scale.of(BACKLOG),
        size: BODY_BYTES,
        warm_up: Duration::ZERO,
    };
    let rate = consume::drain(&drain, &connect, &queue).await?.rate();
    figures.extend(FOREBAY.consume.map(|name| (name, rate)));
    Ok(figures)
}

/// Publishes to a new queue by one stream, one message a request; messages a second.
async fn stream(clients: &Clients, in_flight: u64, time: Duration) -> Result<f64, Failure> {
    let names = queue_names(1);
    create_queues(clients, &names).await?;
    let form = Form { body_bytes: BODY_BYTES, batch: 1, in_flight: in_flight as usize };
    let published = publish_stream(clients, &names, form, Length::Time(time)).await?;
    check("messages in the queue", stored(clients, &names).await?, published.messages)?;
    delete_queues(clients, &names).await?;
    Ok(published.rate())
}

async fn peer(
    args: &CompareArgs,
    start: impl FnOnce() -> Result<PeerServer, Failure>,
    names: Names,
) -> Result<Figures, Failure> {
    let server = tokio::task::block_in_place(start)?;
    let mut figures = Figures::new();
    for (name, in_flight) in names.publish.into_iter().zip(IN_FLIGHT) {
        figures.push((name, peers::publish_for(&server.peer, BODY_BYTES, in_flight, args.time()).await?));
    }
    if let Some(name) = names.consume {
        let messages = args.scale.of(BACKLOG);
        figures.push((name, peers::drain(&server.peer, messages, BODY_BYTES, BATCH, 1).await?.rate()));
    }
    Ok(figures)
}
