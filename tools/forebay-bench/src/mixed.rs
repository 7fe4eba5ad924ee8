//! `mixed`: publishing and consuming at once, each as fast as the other lets it.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::Failure;
use crate::args::MixedArgs;
use crate::bodies::Bodies;
use crate::fill::{Content, Length, Load, all_done, in_flight_of};
use crate::flow::Flow;
use crate::limit::Limit;
use crate::plot::{Curves, draw_last};
use crate::publish_stream::by_stream;
use crate::report::{END_TO_END, Figures, PUBLISH, Report, percentiles};

/// Least messages a second, both ways, of this size.
const PER_SECOND_MIN: f64 = 300_000.0;
const JUDGED_BYTES: u64 = 1 << 10;
const PUBLISHED: &str = "published_per_second";
const CONSUMED: &str = "consumed_per_second";

pub async fn run(args: &MixedArgs) -> Result<Report, Failure> {
    let MixedArgs { flow, batch } = args;
    let runs =
        draw_last("forebay-bench mixed", flow.plot.as_deref(), flow.judged.runs, async || one(args).await);
    let runs = runs.await?;
    let mut settings = flow.settings();
    settings["batch"] = (*batch).into();
    let wanted = [Limit::Least(PUBLISHED, PER_SECOND_MIN), Limit::Least(CONSUMED, PER_SECOND_MIN)];
    let limits =
        if flow.sizes.only() == Some(JUDGED_BYTES) { flow.judged.limits(wanted) } else { Vec::new() };
    Ok(Report { command: "mixed", settings, runs, limits })
}

async fn one(args: &MixedArgs) -> Result<(Figures, Curves), Failure> {
    let flow = Flow::begin(&args.flow).await?;
    let load = publish(args, &flow).await?;
    let (published, messages) = (load.samples(), load.progress.done());
    let backlog = flow.waiting().await?;
    let delivered = flow.end(messages).await?;

    let per_second = |messages: u64| messages as f64 / args.flow.seconds as f64;
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
async fn publish(args: &MixedArgs, flow: &Flow) -> Result<Arc<Load>, Failure> {
    let (bodies, window) = (Bodies::new(&args.flow.sizes), flow.window);
    let stamped = move |number| bodies.stamped(number, window.start.elapsed());
    let stamped = Content::Each(Box::new(stamped));
    let load = Load::new("publishing", &flow.names, stamped, args.batch, Length::Within(window));
    let in_flight = in_flight_of(args.batch * args.flow.sizes.mean_bytes());
    let mut workers = JoinSet::new();
    for clients in flow.connections() {
        workers.spawn(by_stream(clients, Arc::clone(&load), in_flight));
    }
    all_done(workers).await?;
    Ok(load)
}
