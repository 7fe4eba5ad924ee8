//! `consume`: the rate at which a backlog is taken and acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::proto::v1::subscribe_request::{Credit, Open};
use forebay_testkit::{Clients, subscription};
use serde_json::json;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::{ConsumeArgs, ConsumeMode};
use crate::fill::{batch_of, fill};
use crate::progress::Progress;
use crate::report::{Figures, Report, repeat};
use crate::site::{Target, check, create_queues, delete_queues, queue_names, waiting};
use crate::subscribe_stream::{self, Wanted};
use crate::take::{first_done, pull_all};

/// Credit in bytes that never runs out within a run.
const BYTES_CREDIT: u64 = 1 << 40;
/// Messages that a stream may be sent ahead of its acks, in batches.
const CREDIT_BATCHES: u64 = 20;

pub async fn run(args: &ConsumeArgs) -> Result<Report, Failure> {
    let runs = repeat(args.runs, async || one(args).await).await?;
    let settings = json!({
        "mode": format!("{:?}", args.mode).to_lowercase(),
        "batch": args.batch,
        "consumers": args.consumers,
        "size": args.size,
        "warm_up": args.warm_up,
    });
    #[cfg(feature = "peers")]
    let settings = crate::peers::named(settings, args.peer.as_ref());
    Ok(Report { command: "consume", settings, runs, limits: Vec::new() })
}

async fn one(args: &ConsumeArgs) -> Result<Figures, Failure> {
    #[cfg(feature = "peers")]
    if let Some(peer) = &args.peer {
        return crate::peers::consume(args, peer).await;
    }
    let target = Target::new(&args.server)?;
    let (clients, names) = (target.clients(), queue_names(1));
    create_queues(&clients, &names).await?;
    let ConsumeArgs { mode, batch, consumers, messages, size, .. } = *args;
    let warm_up = Duration::from_secs(args.warm_up);
    let drain = Drain { mode, batch, consumers, messages, size, warm_up };
    let drained = self::drain(&drain, &|| target.clients(), &names).await?;
    delete_queues(&clients, &names).await?;
    Ok(figures(drained, size))
}

/// The figures of a run.
pub fn figures(drained: Drained, size: u64) -> Figures {
    let (messages, seconds) = (drained.messages, drained.took.as_secs_f64());
    vec![
        ("messages", messages as f64),
        ("seconds", seconds),
        ("messages_per_second", drained.rate()),
        ("mib_per_second", (messages * size) as f64 / seconds / f64::from(1 << 20)),
    ]
}

/// How a backlog is consumed.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    pub mode: ConsumeMode,
    pub batch: u64,
    pub consumers: u64,
    pub messages: u64,
    pub size: u64,
    /// What is consumed in this time does not count.
    pub warm_up: Duration,
}

/// What was consumed after the warm-up.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    pub messages: u64,
    pub took: Duration,
}

impl Drained {
    /// Messages a second.
    pub fn rate(self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }
}

/// Fills the first of the queues and consumes it all. `connect` makes a connection.
pub async fn drain(
    drain: &Drain,
    connect: &dyn Fn() -> Clients,
    names: &[String],
) -> Result<Drained, Failure> {
    let (clients, names) = (connect(), &names[..1]);
    fill(&clients, names, drain.messages, drain.size, batch_of(drain.size)).await?;
    check("messages that wait", waiting(&clients, names).await?, drain.messages)?;
    let everyone: Vec<Clients> = (0..drain.consumers).map(|_| connect()).collect();
    let progress = Arc::new(Progress::start("consuming", drain.messages));
    let name = subscription(&names[0]);
    let warm_up = async {
        // Even a sleep of nothing takes a millisecond.
        if !drain.warm_up.is_zero() {
            tokio::time::sleep(drain.warm_up).await;
        }
        Ok((progress.done(), Instant::now()))
    };
    let all = async {
        match drain.mode {
            ConsumeMode::Pull => {
                pull_all(&everyone, &name, drain.batch, drain.messages, Arc::clone(&progress)).await?;
            }
            ConsumeMode::Subscribe => subscribe_all(drain, &everyone, &name, &progress).await?,
        }
        Ok::<_, Failure>(Instant::now())
    };
    let ((before, start), end) = tokio::try_join!(warm_up, all)?;
    let took = end.saturating_duration_since(start);
    check("messages consumed", progress.done(), drain.messages)?;
    check("messages left", waiting(&clients, names).await?, 0)?;
    if took.is_zero() {
        return Err("all was consumed before the warm-up was over; take more messages".into());
    }
    Ok(Drained { messages: drain.messages - before, took })
}

async fn subscribe_all(
    drain: &Drain,
    everyone: &[Clients],
    subscription: &str,
    progress: &Arc<Progress>,
) -> Result<(), Failure> {
    let mut workers = JoinSet::new();
    for clients in everyone {
        let credit = Credit { messages: drain.batch * CREDIT_BATCHES, bytes: BYTES_CREDIT };
        let open = Open { subscription: subscription.to_owned(), credit: Some(credit), ..Open::default() };
        let wanted = Wanted { messages: drain.messages, body_bytes: drain.size };
        workers.spawn(subscribe_stream::by_stream(clients.clone(), open, wanted, Arc::clone(progress)));
    }
    first_done(workers).await
}
