//! The loads of `publish` and `consume` on a peer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Peer, Queue};
use crate::Failure;
use crate::args::{ConsumeArgs, PublishArgs};
use crate::consume::Drained;
use crate::fill::{Length, Load, all_done, same_body};
use crate::plot::Curves;
use crate::progress::Progress;
use crate::report::Figures;
use crate::site::{check, queue_names};
use crate::take::first_done;
use crate::{consume, publish};

/// Messages under way while a queue is filled.
const FILL_IN_FLIGHT: u64 = 256;

/// One run of `publish`.
pub async fn publish(args: &PublishArgs, peer: &Peer) -> Result<(Figures, Curves), Failure> {
    let name = new_name();
    let queue = Arc::new(Queue::create(peer, name.clone()).await?);
    let load = |what, length| Load::new(what, std::slice::from_ref(&name), same_body(args.size), 1, length);
    let warm_up = load("warming up", Length::Time(Duration::from_secs(args.warm_up)));
    by_connections(&queue, &warm_up, args.connections, args.in_flight).await?;
    let load = load("publishing", publish::length(args));
    let start = Instant::now();
    by_connections(&queue, &load, args.connections, args.in_flight).await?;
    let took = start.elapsed();
    let messages = load.progress.done();
    check("messages in the queue", queue.stored().await?, messages + warm_up.progress.done())?;
    queue.delete().await?;
    Ok(publish::figures(messages, args.size, took, load.samples()))
}

/// Publishes to a new queue for this long over one connection; messages a second.
pub async fn publish_for(peer: &Peer, size: u64, in_flight: u64, time: Duration) -> Result<f64, Failure> {
    let name = new_name();
    let queue = Arc::new(Queue::create(peer, name.clone()).await?);
    let start = Instant::now();
    let load = Load::new("publishing", &[name], same_body(size), 1, Length::Time(time));
    by_connections(&queue, &load, 1, in_flight).await?;
    let rate = load.progress.done() as f64 / start.elapsed().as_secs_f64();
    check("messages in the queue", queue.stored().await?, load.progress.done())?;
    queue.delete().await?;
    Ok(rate)
}

/// Spreads what is under way over connections.
async fn by_connections(
    queue: &Arc<Queue>,
    load: &Arc<Load>,
    connections: u64,
    in_flight: u64,
) -> Result<(), Failure> {
    let (connections, mut workers) = (connections.min(in_flight), JoinSet::new());
    for number in 0..connections {
        let (queue, load) = (Arc::clone(queue), Arc::clone(load));
        let own = ((in_flight + number) / connections) as usize;
        workers.spawn(async move { queue.publish(load, own).await });
    }
    all_done(workers).await
}

/// One run of `consume`.
pub async fn consume(args: &ConsumeArgs, peer: &Peer) -> Result<Figures, Failure> {
    let drained = drain(peer, args.messages, args.size, args.batch, args.consumers).await?;
    Ok(consume::figures(drained, args.size))
}

/// Fills a new queue and consumes it all.
pub async fn drain(
    peer: &Peer,
    messages: u64,
    size: u64,
    batch: u64,
    consumers: u64,
) -> Result<Drained, Failure> {
    let name = new_name();
    let queue = Arc::new(Queue::create(peer, name.clone()).await?);
    let load = Load::new("filling", &[name], same_body(size), 1, Length::Messages(messages));
    by_connections(&queue, &load, 1, FILL_IN_FLIGHT).await?;
    check("messages that wait", queue.stored().await?, messages)?;
    let (progress, mut workers) = (Arc::new(Progress::start("consuming", messages)), JoinSet::new());
    let start = Instant::now();
    for _ in 0..consumers {
        let (queue, progress) = (Arc::clone(&queue), Arc::clone(&progress));
        workers.spawn(async move { queue.consume(batch, messages, progress).await });
    }
    first_done(workers).await?;
    let took = start.elapsed();
    check("messages consumed", progress.done(), messages)?;
    check("messages left", queue.unfinished().await?, 0)?;
    queue.delete().await?;
    Ok(Drained { messages, took })
}

fn new_name() -> String {
    queue_names(1).remove(0)
}
