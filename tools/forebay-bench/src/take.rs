//! Taking messages out of a queue, with every answer checked.

use std::sync::Arc;

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay::proto::v1::nack_entry::{Ending, Retry};
use forebay::proto::v1::{AckResult, AcknowledgeRequest, NackEntry, NackRequest, PullRequest};
use forebay_testkit::Clients;
use tokio::task::JoinSet;

use crate::Failure;
use crate::progress::Progress;

/// Leases of the tool: longer than any run.
pub const LEASE_S: i64 = 12 * 3600;

/// When delayed messages come again: long after the end of any run.
const RETRY_S: i64 = 3_600;
/// Most messages that one pull gives.
const PULL_MAX: u64 = 1_000;

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Leases up to `most` waiting messages for 12 h; their ack ids in order. Waits up to 10 s for the first.
pub async fn pull(clients: &mut Clients, subscription: &str, most: u64) -> Result<Vec<String>, Failure> {
    let request = PullRequest {
        subscription: subscription.to_owned(),
        max_messages: most.min(PULL_MAX) as u32,
        wait: Some(seconds(10)),
        lease: Some(seconds(LEASE_S)),
        ..PullRequest::default()
    };
    let messages = clients.messages.pull(request).await?.into_inner().messages;
    Ok(messages.into_iter().map(|message| message.ack_id).collect())
}

/// Leases exactly `count` messages.
pub async fn lease(clients: &mut Clients, subscription: &str, count: u64) -> Result<Vec<String>, Failure> {
    let mut ack_ids = Vec::with_capacity(count as usize);
    while (ack_ids.len() as u64) < count {
        let more = pull(clients, subscription, count - ack_ids.len() as u64).await?;
        if more.is_empty() {
            return Err(format!("only {} of {count} messages came", ack_ids.len()).into());
        }
        ack_ids.extend(more);
    }
    Ok(ack_ids)
}

/// Finishes deliveries, at most 10,000.
pub async fn acknowledge(
    clients: &mut Clients,
    subscription: &str,
    ack_ids: Vec<String>,
) -> Result<(), Failure> {
    let request = AcknowledgeRequest { subscription: subscription.to_owned(), ack_ids };
    all_ok(&clients.messages.acknowledge(request).await?.into_inner().results)
}

/// Ends deliveries, at most 10,000, with a retry after this delay.
async fn delay(
    clients: &mut Clients,
    subscription: &str,
    ack_ids: Vec<String>,
    delay_s: i64,
) -> Result<(), Failure> {
    let ending = || Some(Ending::Retry(Retry { delay: Some(seconds(delay_s)), error: String::new() }));
    let entries = ack_ids.into_iter().map(|ack_id| NackEntry { ack_id, ending: ending() }).collect();
    let request = NackRequest { subscription: subscription.to_owned(), entries };
    all_ok(&clients.messages.nack(request).await?.into_inner().results)
}

/// Leases `count` messages and lets them wait for a retry in an hour.
pub async fn delay_all(clients: &Clients, subscription: &str, count: u64) -> Result<(), Failure> {
    let (mut clients, progress) = (clients.clone(), Progress::start("delaying", count));
    while progress.done() < count {
        let ack_ids = lease(&mut clients, subscription, PULL_MAX.min(count - progress.done())).await?;
        let more = ack_ids.len() as u64;
        delay(&mut clients, subscription, ack_ids, RETRY_S).await?;
        progress.add(more);
    }
    Ok(())
}

/// Fails if an id's ending was not done.
pub fn all_ok(results: &[AckResult]) -> Result<(), Failure> {
    match results.iter().find(|result| result.status() != Outcome::Ok) {
        Some(result) => Err(format!("an ack id was answered with {result:?}").into()),
        None => Ok(()),
    }
}

/// Pulls and acknowledges, `batch` at a time, until `progress` has counted `total`; each of `everyone` works at once.
pub async fn pull_all(
    everyone: &[Clients],
    subscription: &str,
    batch: u64,
    total: u64,
    progress: Arc<Progress>,
) -> Result<(), Failure> {
    let mut workers = JoinSet::new();
    for clients in everyone {
        let (mut clients, subscription) = (clients.clone(), subscription.to_owned());
        let progress = Arc::clone(&progress);
        workers.spawn(async move {
            while progress.done() < total {
                let ack_ids = pull(&mut clients, &subscription, batch).await?;
                let count = ack_ids.len() as u64;
                if count == 0 && progress.done() < total {
                    return Err(format!("nothing came after {} messages", progress.done()).into());
                }
                if count > 0 {
                    acknowledge(&mut clients, &subscription, ack_ids).await?;
                    progress.add(count);
                }
            }
            Ok::<(), Failure>(())
        });
    }
    first_done(workers).await
}

/// Waits until the work is done: the first worker that ends has seen the end of it, or has failed. The others may
/// wait for messages that will not come.
pub async fn first_done(mut workers: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    workers.join_next().await.unwrap_or(Ok(Ok(())))?
}
