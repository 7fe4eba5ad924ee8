//! Ending leases, until the server has answered for each.

use std::time::Duration;

use forebay::proto::v1::ack_result::Status as AckStatus;
use forebay::proto::v1::nack_entry;
use forebay::proto::v1::{AckResult, AcknowledgeRequest, NackEntry, NackRequest};
use tonic::Status;

use crate::client::{Server, answer};
use crate::errors::{CtlError, note};
use crate::retry::Backoff;

/// How long to try while the command is ending anyway.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// How a delivery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Ack,
    /// Delivered again at once; the attempt counts.
    Retry,
    /// Delivered again at once; the attempt does not count.
    Release,
}

/// Ends deliveries of one subscription.
#[derive(Debug)]
pub struct Settler<'a> {
    server: &'a Server,
    subscription: String,
}

impl<'a> Settler<'a> {
    pub fn new(server: &'a Server, subscription: &str) -> Self {
        Self { server, subscription: subscription.to_owned() }
    }

    /// Sends the endings again until each is answered, through outages too; `hurry` bounds that. Those that came
    /// too late are told on standard error, for their messages come again.
    pub async fn settle(&self, ids: &[String], ending: Ending, hurry: bool) -> Result<(), CtlError> {
        let mut open = ids.to_vec();
        let mut backoff = Backoff::new(hurry.then_some(LAST_TRIES));
        let mut late = 0;
        while !open.is_empty() {
            let status = match self.call(&open, ending).await {
                Ok(results) => {
                    late += results.iter().filter(|result| is_late(result.status())).count();
                    let answered =
                        |index: usize| results.get(index).is_none_or(|r| !is_transient(r.status()));
                    let mut index = 0;
                    open.retain(|_| {
                        index += 1;
                        !answered(index - 1)
                    });
                    Status::unavailable("the server could not end some leases for now")
                }
                Err(status) => status,
            };
            if open.is_empty() {
                break;
            }
            let Some(wait) = backoff.wait(&status) else { return Err(status.into()) };
            tokio::time::sleep(wait).await;
        }
        if late > 0 {
            note(&format!("{late} of {} leases had ended before; their messages may come again", ids.len()));
        }
        Ok(())
    }

    async fn call(&self, ids: &[String], ending: Ending) -> Result<Vec<AckResult>, Status> {
        let subscription = self.subscription.clone();
        let mut client = self.server.messages();
        let ending = match ending {
            Ending::Ack => {
                let request = AcknowledgeRequest { subscription, ack_ids: ids.to_vec() };
                return answer(client.acknowledge(request)).await.map(|response| response.results);
            }
            Ending::Retry => nack_entry::Ending::Retry(nack_entry::Retry {
                delay: Some(prost_types::Duration::default()),
                error: String::new(),
            }),
            Ending::Release => nack_entry::Ending::Release(nack_entry::Release {}),
        };
        let entry = |id: &String| NackEntry { ack_id: id.clone(), ending: Some(ending.clone()) };
        let request = NackRequest { subscription, entries: ids.iter().map(entry).collect() };
        answer(client.nack(request)).await.map(|response| response.results)
    }
}

fn is_transient(status: AckStatus) -> bool {
    status == AckStatus::Transient
}

fn is_late(status: AckStatus) -> bool {
    !matches!(status, AckStatus::Ok | AckStatus::Transient)
}
