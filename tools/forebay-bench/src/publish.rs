//! `publish`: rate and latency of a closed loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::{PublishArgs, PublishMode};
use crate::fill::{Latencies, Length, Load, by_calls, by_stream};
use crate::report::{Figures, Report, percentile};
use crate::site::{Target, check, create_queues, delete_queues, queue_names, queue_stats};

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
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        runs.push(one(args, batch).await?);
    }
    let settings = json!({
        "mode": format!("{:?}", args.mode).to_lowercase(),
        "in_flight": args.in_flight,
        "batch": batch,
        "size": args.size,
        "queues": args.queues,
        "connections": args.connections,
    });
    Ok(Report { command: "publish", settings, runs, limit: None })
}

async fn one(args: &PublishArgs, batch: u64) -> Result<Figures, Failure> {
    let target = Target::new(&args.server)?;
    let (clients, names) = (target.clients(), queue_names(args.queues));
    create_queues(&clients, &names).await?;
    let length = match args.messages {
        Some(messages) => Length::Messages(messages),
        None => Length::Time(Duration::from_secs(args.seconds.unwrap_or(SECONDS_DEFAULT))),
    };
    let load = Load::new("publishing", &names, args.size, batch, length);
    let start = Instant::now();
    let mut latencies = publish(args, &target, &load).await?;
    let seconds = start.elapsed().as_secs_f64();
    let messages = load.progress.done();
    let stored = queue_stats(&clients, &names).await?.iter().map(|stats| stats.next_offset).sum();
    check("messages in the queues", stored, messages)?;
    delete_queues(&clients, &names).await?;
    latencies.sort_unstable();
    let latency_ms = |share| percentile(&latencies, share) / 1e3;
    Ok(vec![
        ("messages", messages as f64),
        ("seconds", seconds),
        ("messages_per_second", messages as f64 / seconds),
        ("mib_per_second", (messages * args.size) as f64 / seconds / f64::from(1 << 20)),
        ("latency_p50_ms", latency_ms(0.5)),
        ("latency_p99_ms", latency_ms(0.99)),
        ("latency_max_ms", latency_ms(1.0)),
    ])
}

/// Runs the loop; the requests under way are spread over the connections.
async fn publish(args: &PublishArgs, target: &Target, load: &Arc<Load>) -> Result<Latencies, Failure> {
    let connections = args.connections.min(args.in_flight);
    let mut workers = JoinSet::new();
    for connection in 0..connections {
        let (clients, load) = (target.clients(), Arc::clone(load));
        let own = (args.in_flight + connection) / connections;
        if args.mode == PublishMode::Stream {
            workers.spawn(by_stream(clients, load, own as usize));
            continue;
        }
        for _ in 0..own {
            workers.spawn(by_calls(clients.clone(), Arc::clone(&load)));
        }
    }
    let mut latencies = Latencies::new();
    while let Some(worker) = workers.join_next().await {
        latencies.extend(worker??);
    }
    Ok(latencies)
}
