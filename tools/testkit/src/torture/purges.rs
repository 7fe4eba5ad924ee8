//! A client that purges a queue now and then.

use std::time::Duration;

use forebay::proto::v1::{GetQueueRequest, PurgeRequest};
use forebay_checker::format::{Answer, Event, Op};
use tonic::Status;

use super::history::QueueName;
use super::target::Target;
use crate::payload::Random;
use crate::{Clients, queue};

/// Longest pause between two purges.
const PAUSE_MS_MAX: u64 = 100;

/// The client.
#[derive(Debug)]
pub struct Purger {
    pub target: Target,
    pub queue: QueueName,
    pub random: Random,
}

impl Purger {
    /// Works until it is over.
    pub async fn run(mut self) {
        while let Some(mut clients) = self.target.clients().await {
            if let Err(status) = self.purge(&mut clients).await {
                self.target.failed("purge", &status).await;
            }
            tokio::time::sleep(Duration::from_millis(self.random.below(PAUSE_MS_MAX))).await;
        }
    }

    /// Purges a part of what is there, or all.
    async fn purge(&mut self, clients: &mut Clients) -> Result<(), Status> {
        let name = queue(&self.queue);
        let request = GetQueueRequest { name: name.clone() };
        let next = clients.queues.get_queue(request).await?.into_inner().next_offset;
        let end = next.saturating_sub(self.random.below(20));
        let history = self.target.history.clone();
        let call = history.invoke(Op::Purge { queue: self.queue.to_string(), end });
        let request = PurgeRequest { name, end_offset: Some(end), ..PurgeRequest::default() };
        let answer = clients.queues.purge(request).await;
        history.record(match answer {
            Ok(_) => Event::Ok { call, answer: Answer::Purged },
            Err(_) => Event::Unknown { call },
        });
        let barrier = answer?.into_inner().barrier_offset;
        if barrier < end {
            history.unexpected(format!("{}: purged up to {end}, but the barrier is {barrier}", self.queue));
        }
        Ok(())
    }
}
