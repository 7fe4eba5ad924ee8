//! `publish`: rate and latency of a closed loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_testkit::Clients;
use serde_json::json;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::{PublishArgs, PublishMode};
use crate::fill::{Length, Load, all_done, by_calls, same_body};
use crate::plot::{Curves, draw_last};
use crate::publish_stream::by_stream;
use crate::report::{Figures, Report};
use crate::samples::Samples;
use crate::site::{Target, check, create_queues, delete_queues, queue_names, stored};

/// Length of a run unless asked otherwise.
const SECONDS_DEFAULT: u64 = 5;
/// Messages of a request in mode batch unless asked otherwise.
const BATCH_DEFAULT: u64 = 100;

pub async fn run(args: &PublishArgs) -> Result<Report, Failure> {
    let batch = match (args.mode, args.batch) {
        (PublishMode::Unary, Some(2..)) => return Err("mode unary has one message a request".into()),
        (PublishMode::Batch, None) => BATCH_DEFAULT,
        (_, batch) => batch.unwrap_or(1),
    };
    let one = async || one(args, batch).await;
    let runs = draw_last("forebay-bench publish", args.plot.as_deref(), args.runs, one).await?;
    let settings = json!({
        "mode": format!("{:?}", args.mode).to_lowercase(),
        "in_flight": args.in_flight,
        "batch": batch,
        "size": args.size,
        "queues": args.queues,
        "connections": args.connections,
        "warm_up": args.warm_up,
    });
    #[cfg(feature = "peers")]
    let settings = crate::peers::named(settings, args.peer.as_ref());
    Ok(Report { command: "publish", settings, runs, limits: Vec::new() })
}

async fn one(args: &PublishArgs, batch: u64) -> Result<(Figures, Curves), Failure> {
    #[cfg(feature = "peers")]
    if let Some(peer) = &args.peer {
        return crate::peers::publish(args, peer).await;
    }
    let target = Target::new(&args.server)?;
    let (clients, names) = (target.clients(), queue_names(args.queues));
    create_queues(&clients, &names).await?;
    let connections: Vec<Clients> =
        (0..args.connections.min(args.in_flight)).map(|_| target.clients()).collect();
    let load = |what, length| Load::new(what, &names, same_body(args.size), batch, length);
    let warm_up = load("warming up", Length::Time(Duration::from_secs(args.warm_up)));
    publish(args, &connections, &warm_up).await?;
    let load = load("publishing", length(args));
    let start = Instant::now();
    publish(args, &connections, &load).await?;
    let (took, messages) = (start.elapsed(), load.progress.done());
    check("messages in the queues", stored(&clients, &names).await?, messages + warm_up.progress.done())?;
    delete_queues(&clients, &names).await?;
    Ok(figures(messages, args.size, took, load.samples()))
}

/// How long a run is.
pub fn length(args: &PublishArgs) -> Length {
    match args.messages {
        Some(messages) => Length::Messages(messages),
        None => Length::Time(Duration::from_secs(args.seconds.unwrap_or(SECONDS_DEFAULT))),
    }
}

/// The figures of a run.
pub fn figures(messages: u64, size: u64, took: Duration, samples: Samples) -> (Figures, Curves) {
    let seconds = took.as_secs_f64();
    let figures = vec![
        ("messages", messages as f64),
        ("seconds", seconds),
        ("messages_per_second", messages as f64 / seconds),
        ("mib_per_second", (messages * size) as f64 / seconds / f64::from(1 << 20)),
        ("latency_p50_ms", samples.latency_ms(0.5)),
        ("latency_p99_ms", samples.latency_ms(0.99)),
        ("latency_max_ms", samples.latency_ms(1.0)),
    ];
    (figures, vec![("published", samples)])
}

/// Runs the loop; the requests under way are spread over the connections.
async fn publish(args: &PublishArgs, connections: &[Clients], load: &Arc<Load>) -> Result<(), Failure> {
    let mut workers = JoinSet::new();
    for (number, clients) in connections.iter().enumerate() {
        let own = (args.in_flight as usize + number) / connections.len();
        if args.mode == PublishMode::Stream {
            workers.spawn(by_stream(clients.clone(), Arc::clone(load), own));
            continue;
        }
        for _ in 0..own {
            workers.spawn(by_calls(clients.clone(), Arc::clone(load)));
        }
    }
    all_done(workers).await
}
