//! What a trace does, step by step, with nothing left to chance but the order of threads.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use forebay::broker::api::{BrokerError, Delivery, PullOptions};
use forebay::core::pause::Target;
use forebay::core::types::{Ending, QueueConfig, RetryPolicy, Start, SubscriptionConfig};
use forebay::ids::Offset;

use crate::clients::*;
use crate::model::Pull;

/// One step; queues are `q0`, `q1` …, subscriptions are `default` unless another is named.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Create(u64),
    /// Deliveries at most of a message of `default`.
    Configure(u64, u32),
    Subscribe(u64, &'static str),
    Unsubscribe(u64, &'static str),
    /// Messages of these sizes, in one request.
    Publish(u64, &'static [u32]),
    /// One message each to several queues, in one request.
    PublishSeveral(&'static [(u64, u32)]),
    /// One message by a producer that numbers its requests.
    Stamped(u64, u32),
    /// Pulls so many messages at most, and ends their deliveries.
    Take(u64, &'static str, u32, Then),
    /// From the dead-letter queue.
    TakeDead(u64, u32),
    Peek(u64),
    Purge(u64, u64),
    Cancel(u64, u64),
    Pause(u64),
    Resume(u64),
    Delete(u64),
    WaitMs(u64),
    /// All at one time.
    Together(&'static [Step]),
    Times(u32, &'static [Step]),
}

/// How a delivery ends.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    Ack,
    /// Comes again after so many milliseconds.
    Retry(u64),
    Release,
    Reject,
    /// Stays leased, for longer than it was.
    Extend,
}

const LEASE_US: u64 = 200_000;
/// A pull waits so long for a message: an order of steps is none of threads.
const PATIENCE: Duration = Duration::from_millis(50);

type Told<'a> = Pin<Box<dyn Future<Output = Result<(), Over>> + Send + 'a>>;

/// Does the steps, until the broker's life is over.
pub async fn play(world: &World, client: &mut Client, steps: &[Step]) -> Result<(), Over> {
    for step in steps {
        do_step(world, client, *step).await?;
    }
    Ok(())
}

fn do_step<'a>(world: &'a World, client: &'a mut Client, step: Step) -> Told<'a> {
    Box::pin(async move {
        let queue = |number: u64| format!("q{number}");
        match step {
            Step::Create(q) => create(world, &queue(q)).await,
            Step::Configure(q, attempts_max) => configure(world, &queue(q), attempts_max).await,
            Step::Subscribe(q, name) => subscribe(world, &queue(q), name).await,
            Step::Unsubscribe(q, name) => {
                world.model().unsubscribing(&queue(q), name);
                let told = world.broker.delete_subscription(subscription_name(&queue(q), name), None).await;
                world.heard("delete subscription", told).map(drop)
            }
            Step::Publish(q, sizes) => publish(world, &queue(q), sizes.to_vec()).await,
            Step::PublishSeveral(parts) => {
                let parts = parts.iter().map(|(q, size)| (queue(*q), vec![*size])).collect();
                publish_several(world, parts).await
            }
            Step::Stamped(q, size) => client.stamp(world, q, vec![size]).await,
            Step::Take(q, name, count, then) => take(world, &queue(q), name, count, then).await,
            Step::TakeDead(q, count) => take(world, &format!("q{q}-dead"), "default", count, Then::Ack).await,
            Step::Peek(q) => look(world, &queue(q)).await,
            Step::Purge(q, end) => {
                let view = world.broker.get_queue(queue_name(&queue(q))).await;
                let Ok(view) = world.heard("get queue", view)? else { return Ok(()) };
                purge(world, &queue(q), view.uid, Offset(end)).await
            }
            Step::Cancel(q, offset) => cancel(world, &queue(q), Offset(offset)).await,
            Step::Pause(q) => pause(world, &queue(q), whole(&queue(q)), false).await,
            Step::Resume(q) => resume(world, &queue(q), whole(&queue(q))).await,
            Step::Delete(q) => delete(world, &queue(q)).await,
            Step::WaitMs(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(())
            }
            Step::Together(steps) => together(world, client, steps).await,
            Step::Times(times, steps) => {
                for _ in 0..times {
                    play(world, client, steps).await?;
                }
                Ok(())
            }
        }
    })
}

fn whole(queue: &str) -> Target {
    Target { queue: queue_name(queue), subscription: None }
}

async fn together(world: &World, client: &Client, steps: &'static [Step]) -> Result<(), Over> {
    let begin = |step: &Step| {
        let (world, mut client, step) = (world.clone(), client.clone(), *step);
        tokio::spawn(async move { do_step(&world, &mut client, step).await })
    };
    let tasks: Vec<_> = steps.iter().map(begin).collect();
    let mut all = Ok(());
    for task in tasks {
        let told = task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        all = all.and(told);
    }
    all
}

async fn create(world: &World, queue: &str) -> Result<(), Over> {
    let made = world.broker.create_queue(queue_name(queue), QueueConfig::default(), true).await;
    if let Ok(view) = world.heard("create queue", made)? {
        world.model().created(queue, view.uid);
    }
    Ok(())
}

async fn configure(world: &World, queue: &str, attempts_max: u32) -> Result<(), Over> {
    let retry = RetryPolicy { attempts_max, backoff_us_min: 0, backoff_us_max: 0 };
    let config = SubscriptionConfig { retry, ..SubscriptionConfig::default() };
    let told = world.broker.update_subscription(subscription_name(queue, "default"), None, config).await;
    world.heard("update subscription", told).map(drop)
}

async fn subscribe(world: &World, queue: &str, name: &str) -> Result<(), Over> {
    let view = world.broker.get_queue(queue_name(queue)).await;
    let Ok(view) = world.heard("get queue", view)? else { return Ok(()) };
    let (name_of, config) = (subscription_name(queue, name), SubscriptionConfig::default());
    let made = world.broker.create_subscription(name_of, config, Start::Earliest).await;
    if world.heard("create subscription", made)?.is_ok() {
        world.model().subscribed(view.uid, name);
    }
    Ok(())
}

async fn cancel(world: &World, queue: &str, offset: Offset) -> Result<(), Over> {
    let view = world.broker.get_queue(queue_name(queue)).await;
    let Ok(view) = world.heard("get queue", view)? else { return Ok(()) };
    world.model().cancelling(view.uid, offset);
    let told = world.broker.cancel(queue_name(queue), view.uid, offset).await;
    if world.heard("cancel", told)?.is_ok() {
        world.model().cancelled(view.uid, offset);
    }
    Ok(())
}

/// A read failed, and it was said; the disk is asked for it again another time.
async fn unreadable(world: &World, queue: &str, offset: Offset) -> Result<(), Over> {
    if world.disk.fails_looks() { Ok(()) } else { told_of_loss(world, queue, offset).await }
}

async fn look(world: &World, queue: &str) -> Result<(), Over> {
    match peek(world, queue, 100, 1 << 20).await? {
        Some(offset) => unreadable(world, queue, offset).await,
        None => Ok(()),
    }
}

async fn take(world: &World, queue: &str, name: &str, count: u32, then: Then) -> Result<(), Over> {
    let options =
        PullOptions { messages_max: count, bytes_max: 4 << 20, wait: PATIENCE, lease_us: Some(LEASE_US) };
    let at_us = world.host.elapsed().as_micros() as u64;
    let pull = Pull { moment: world.model().moment(), at_us, life: world.life, alone: false };
    let pulling = world.broker.pull(subscription_name(queue, name), options, world.outflow.outlet()).await;
    match world.heard("pull", pulling.map(|batch| batch.value))? {
        Ok(batch) => {
            let seen_us = world.host.elapsed().as_micros() as u64;
            world.model().pulled(queue, name, pull, seen_us, &batch);
            finish(world, queue, name, batch, then).await
        }
        Err(BrokerError::DataLoss { offset, .. }) => unreadable(world, queue, offset).await,
        Err(_) => Ok(()),
    }
}

async fn finish(
    world: &World,
    queue: &str,
    name: &str,
    batch: Vec<Delivery>,
    then: Then,
) -> Result<(), Over> {
    let error = || "so the trace says".to_owned();
    let ending = match then {
        Then::Ack => Ending::Ack,
        Then::Retry(ms) => Ending::Retry { delay_us: Some(1_000 * ms), error: error() },
        Then::Release => Ending::Release,
        Then::Reject => Ending::Reject { error: error() },
        Then::Extend => {
            for delivery in &batch {
                extend(world, queue, name, delivery, 2 * LEASE_US).await?;
            }
            return Ok(());
        }
    };
    let chosen = batch.into_iter().map(|delivery| (delivery, ending.clone())).collect();
    settle(world, queue, name, chosen).await.map(drop)
}

/// After a failure: a request that has no answer is sent again, and every queue takes one more message.
pub async fn go_on(world: &World, client: &mut Client) -> Result<(), Over> {
    if let Some(unanswered) = client.unanswered.take() {
        client.publish_stamped(world, unanswered).await?;
    }
    for number in 0..world.options.queues {
        publish(world, &format!("q{number}"), vec![100]).await?;
    }
    Ok(())
}
