//! The scenarios: each brings a server into its state and proves that it is there.

use std::sync::Arc;

use forebay_testkit::payload::Random;
use forebay_testkit::{Clients, subscription};

use super::Scenario;
use crate::Failure;
use crate::fill::{batch_of, fill};
use crate::progress::Progress;
use crate::site::{check, create_queues, queue_names, queue_stats, server_stats, waiting};
use crate::take::{acknowledge, delay_all, lease, pull_all};

/// Bodies of the scenarios whose matter is not size.
const SMALL_BYTES: u64 = 128;
/// Most messages in flight on a subscription, by default.
const HELD_MAX: u64 = 10_000;
/// Most messages that one pull gives.
const PULL_MAX: u64 = 1_000;
/// Messages published, then consumed, behind the one that is stuck.
const STUCK_CHUNK: u64 = 200_000;

/// Brings the server, which is empty, into a scenario's state.
pub async fn play(scenario: Scenario, clients: &Clients, count: u64) -> Result<(), Failure> {
    match scenario {
        Scenario::Waiting1k => wait(clients, 1, count, 1024, batch_of(1024)).await,
        Scenario::Waiting128 | Scenario::Huge128 => wait(clients, 1, count, SMALL_BYTES, PULL_MAX).await,
        Scenario::Large | Scenario::HugeLarge => wait(clients, 1, count, 3 << 20, 1).await,
        Scenario::Queues => wait(clients, count.div_ceil(100), count, SMALL_BYTES, 100).await,
        Scenario::Delayed => delayed(clients, count).await,
        Scenario::RandomAcks => random_acks(clients, count).await,
        Scenario::InFlight => in_flight(clients, count).await,
        Scenario::Stuck => stuck(clients, count).await,
        Scenario::IdleQueues => idle_queues(clients, count).await,
    }
}

/// Messages wait in queues, dealt out in batches.
async fn wait(clients: &Clients, queues: u64, count: u64, size: u64, batch: u64) -> Result<(), Failure> {
    let names = queue_names(queues);
    create_queues(clients, &names).await?;
    fill(clients, &names, count, size, batch).await?;
    check("messages that wait", waiting(clients, &names).await?, count)
}

/// One queue with small messages.
async fn one_queue(clients: &Clients, count: u64) -> Result<Vec<String>, Failure> {
    let names = queue_names(1);
    create_queues(clients, &names).await?;
    fill(clients, &names, count, SMALL_BYTES, PULL_MAX).await?;
    Ok(names)
}

/// Leased and delayed messages of all subscriptions of these queues.
async fn leased_and_delayed(clients: &Clients, names: &[String]) -> Result<(u64, u64), Failure> {
    let queues = queue_stats(clients, names).await?;
    let subscriptions = queues.iter().flat_map(|queue| &queue.subscriptions);
    let stats = subscriptions.filter_map(|entry| entry.stats.as_ref());
    Ok(stats.fold((0, 0), |(leased, delayed), stats| {
        (leased + stats.leased_messages, delayed + stats.delayed_messages)
    }))
}

async fn delayed(clients: &Clients, count: u64) -> Result<(), Failure> {
    let names = one_queue(clients, count).await?;
    delay_all(clients, &subscription(&names[0]), count).await?;
    check("messages that are delayed", leased_and_delayed(clients, &names).await?.1, count)
}

async fn random_acks(clients: &Clients, count: u64) -> Result<(), Failure> {
    let held = HELD_MAX.min(count);
    let names = one_queue(clients, count + held).await?;
    let (mut clients, name) = (clients.clone(), subscription(&names[0]));
    let (progress, mut random) = (Progress::start("acknowledging", count), Random::new(1));
    let mut ack_ids = lease(&mut clients, &name, held).await?;
    while progress.done() < count {
        let more = (held / 2).clamp(1, PULL_MAX).min(count - progress.done());
        let chosen =
            (0..more).map(|_| ack_ids.swap_remove(random.below(ack_ids.len() as u64) as usize)).collect();
        acknowledge(&mut clients, &name, chosen).await?;
        ack_ids.extend(lease(&mut clients, &name, more).await?);
        progress.add(more);
    }
    check("messages that wait", waiting(&clients, &names).await?, held)?;
    check("messages that are held", leased_and_delayed(&clients, &names).await?.0, held)
}

async fn in_flight(clients: &Clients, count: u64) -> Result<(), Failure> {
    let names = queue_names(count.div_ceil(HELD_MAX));
    create_queues(clients, &names).await?;
    let (mut clients, progress) = (clients.clone(), Progress::start("leasing", count));
    for name in &names {
        let own = HELD_MAX.min(count - progress.done());
        fill(&clients, std::slice::from_ref(name), own, SMALL_BYTES, PULL_MAX).await?;
        lease(&mut clients, &subscription(name), own).await?;
        progress.add(own);
    }
    check("messages that are leased", leased_and_delayed(&clients, &names).await?.0, count)
}

async fn stuck(clients: &Clients, count: u64) -> Result<(), Failure> {
    let names = one_queue(clients, 1).await?;
    let name = subscription(&names[0]);
    lease(&mut clients.clone(), &name, 1).await?;
    let everyone = [clients.clone(), clients.clone()];
    let progress = Arc::new(Progress::start("finishing", count));
    while progress.done() < count {
        let chunk = STUCK_CHUNK.min(count - progress.done());
        fill(clients, &names, chunk, SMALL_BYTES, PULL_MAX).await?;
        let until = progress.done() + chunk;
        pull_all(&everyone, &name, PULL_MAX, until, Arc::clone(&progress)).await?;
    }
    let stats = queue_stats(clients, &names).await?;
    let floor = stats[0].subscriptions.first().and_then(|entry| entry.stats.as_ref());
    check("the ack floor", floor.map_or(u64::MAX, |stats| stats.ack_floor), 0)?;
    check("messages published", stats[0].next_offset, count + 1)?;
    check("messages that wait", stats[0].waiting_messages, 1)
}

async fn idle_queues(clients: &Clients, count: u64) -> Result<(), Failure> {
    create_queues(clients, &queue_names(count)).await?;
    let stats = server_stats(clients).await?;
    check("queues", stats.queues, count)?;
    check("subscriptions", stats.subscriptions, count)
}
