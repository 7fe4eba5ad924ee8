//! `mixed`: publishing and consuming at once, each as fast as the other lets it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_testkit::Clients;
use serde_json::json;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::MixedArgs;
use crate::bodies::Bodies;
use crate::consumers::{Consumers, Stream};
use crate::fill::{Length, Load, all_done, by_stream, in_flight_of};
use crate::plot::{Curves, Plot};
use crate::report::{END_TO_END, Figures, Limit, PUBLISH, Report, percentiles};
use crate::samples::Window;
use crate::site::{Target, check, create_queues, delete_queues, queue_names, queue_stats, waiting};

/// Least messages a second, both ways, of this size.
const PER_SECOND_MIN: f64 = 300_000.0;
const JUDGED_BYTES: u64 = 1 << 10;
const PUBLISHED: &str = "published_per_second";
const CONSUMED: &str = "consumed_per_second";

pub async fn run(args: &MixedArgs) -> Result<Report, Failure> {
    let plot = Plot::create(args.plot.as_deref())?;
    let (mut runs, mut curves) = (Vec::new(), Curves::new());
    for _ in 0..args.runs {
        let (figures, seen) = one(args).await?;
        runs.push(figures);
        curves = seen;
    }
    let settings = json!({
        "batch": args.batch,
        "sizes": args.sizes.to_string(),
        "queues": args.queues,
        "connections": args.connections,
        "warm_up": args.warm_up,
    });
    let limits = if args.no_verdict || args.sizes.only() != Some(JUDGED_BYTES) {
        Vec::new()
    } else {
        vec![Limit::Least(PUBLISHED, PER_SECOND_MIN), Limit::Least(CONSUMED, PER_SECOND_MIN)]
    };
    if let Some(plot) = plot {
        plot.draw("forebay-bench mixed", &curves)?;
    }
    Ok(Report { command: "mixed", settings, runs, limits })
}

async fn one(args: &MixedArgs) -> Result<(Figures, Curves), Failure> {
    let target = Target::new(&args.server)?;
    let (clients, names) = (target.clients(), queue_names(args.queues));
    create_queues(&clients, &names).await?;
    let connect = || (0..args.connections).map(|_| target.clients()).collect::<Vec<_>>();
    let streams = Stream::open(&connect(), &names).await?;

    let (warm_up, length) = (Duration::from_secs(args.warm_up), Duration::from_secs(args.seconds));
    let window = Window { start: Instant::now(), warm_up, length: Some(length) };
    let consumers = Consumers::start(streams, window);
    let load = publish(args, connect(), &names, window).await?;
    let (published, messages) = (load.samples(), load.progress.done());
    let backlog = waiting(&clients, &names).await?;
    let delivered = consumers.finish(messages).await?;
    let stored = queue_stats(&clients, &names).await?.iter().map(|stats| stats.next_offset).sum();
    check("messages in the queues", stored, messages)?;
    check("messages left", waiting(&clients, &names).await?, 0)?;
    delete_queues(&clients, &names).await?;

    let per_second = |messages: u64| messages as f64 / length.as_secs_f64();
    let mut figures = vec![
        ("messages", messages as f64),
        (PUBLISHED, per_second(published.messages())),
        (CONSUMED, per_second(delivered.messages())),
        ("backlog_messages", backlog as f64),
    ];
    figures.extend(percentiles(PUBLISH, &published));
    figures.extend(percentiles(END_TO_END, &delivered));
    Ok((figures, vec![("published", published), ("delivered", delivered)]))
}

/// Publishes until the window's end; returns when all is answered.
async fn publish(
    args: &MixedArgs,
    connections: Vec<Clients>,
    names: &[String],
    window: Window,
) -> Result<Arc<Load>, Failure> {
    let bodies = Bodies::new(&args.sizes);
    let stamped = Box::new(move |number| bodies.stamped(number, window.start.elapsed()));
    let load = Load::new("publishing", names, stamped, args.batch, Length::Within(window));
    let in_flight = in_flight_of(args.batch * args.sizes.mean_bytes());
    let mut workers = JoinSet::new();
    for clients in connections {
        workers.spawn(by_stream(clients, Arc::clone(&load), in_flight));
    }
    all_done(workers).await?;
    Ok(load)
}
