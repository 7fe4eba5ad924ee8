//! `memory`: what a server holds in memory for what lies on its disk.

pub mod rss;
mod scenarios;

use clap::ValueEnum;
use serde_json::json;

use crate::Failure;
use crate::args::MemoryArgs;
use crate::limit::Limit;
use crate::report::{Figures, Report, repeat};
use crate::site::Site;

/// Most growth, MiB.
const GROWTH_MIB_MAX: f64 = 64.0;
/// The same where tens of gigabytes wait.
const HUGE_GROWTH_MIB_MAX: f64 = 128.0;
/// Most growth for each idle queue, bytes.
const IDLE_QUEUE_BYTES_MAX: f64 = 2_048.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// 1,000,000 messages of 1 KiB wait
    #[value(name = "waiting-1k")]
    Waiting1k,
    /// 50,000,000 messages of 128 B wait
    #[value(name = "waiting-128")]
    Waiting128,
    /// 100,000,000 messages of 128 B wait
    #[value(name = "huge-128")]
    Huge128,
    /// 3,000 messages of 3 MiB wait
    Large,
    /// 40 GiB of messages of 3 MiB wait
    HugeLarge,
    /// 1,000,000 messages were nacked and wait for their retry in an hour
    Delayed,
    /// 1,000,000 messages were acknowledged, each one of 10,000 held ones at random; 10,000 are still held
    RandomAcks,
    /// 100,000 messages are leased, 10,000 in each of 10 queues
    InFlight,
    /// 10,000 queues have 100 messages each
    Queues,
    /// The first message is held while 10,000,000 behind it are finished
    Stuck,
    /// 10,000 queues have nothing
    IdleQueues,
}

impl Scenario {
    /// Messages at scale 1; queues for idle ones.
    fn count(self) -> u64 {
        match self {
            Self::Waiting1k | Self::Delayed | Self::RandomAcks | Self::Queues => 1_000_000,
            Self::Waiting128 => 50_000_000,
            Self::Huge128 => 100_000_000,
            Self::Large => 3_000,
            Self::HugeLarge => (40_u64 << 30).div_ceil(3 << 20),
            Self::InFlight => 100_000,
            Self::Stuck => 10_000_000,
            Self::IdleQueues => 10_000,
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

pub async fn run(args: &MemoryArgs) -> Result<Report, Failure> {
    let count = args.messages.unwrap_or_else(|| args.scale.of(args.scenario.count()));
    let runs = repeat(args.judged.runs, async || one(args, count).await).await?;
    let limit = match args.scenario {
        Scenario::IdleQueues => Limit::Most("bytes_per_queue", IDLE_QUEUE_BYTES_MAX),
        Scenario::Huge128 | Scenario::HugeLarge => Limit::Most("growth_mib", HUGE_GROWTH_MIB_MAX),
        _ => Limit::Most("growth_mib", GROWTH_MIB_MAX),
    };
    let settings = json!({ "scenario": args.scenario.name(), "count": count });
    Ok(Report { command: "memory", settings, runs, limits: args.judged.limits([limit]) })
}

async fn one(args: &MemoryArgs, count: u64) -> Result<Figures, Failure> {
    let site = Site::started(&args.server)?;
    let pid = site.server().pid();
    let empty_kib = rss::settled_kib(pid).await?;
    let watch = rss::Watch::start(pid);
    scenarios::play(args.scenario, &site.server().clients(), count).await?;
    let full_kib = rss::settled_kib(pid).await?;
    let growth_kib = full_kib.saturating_sub(empty_kib) as f64;
    let peak_kib = watch.peak_kib().max(full_kib).saturating_sub(empty_kib) as f64;
    let mut figures = vec![
        ("growth_mib", growth_kib / 1024.0),
        ("peak_growth_mib", peak_kib / 1024.0),
        ("empty_mib", empty_kib as f64 / 1024.0),
    ];
    match args.scenario {
        Scenario::IdleQueues => figures.push(("bytes_per_queue", growth_kib * 1024.0 / count as f64)),
        _ => figures.push(("bytes_per_message", growth_kib * 1024.0 / count as f64)),
    }
    Ok(figures)
}
