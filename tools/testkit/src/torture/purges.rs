//! Purges: a client that purges a queue now and then, and what the checker makes of it.
//!
//! A purge that was answered has finished everything below its end. One without an answer may have, or not.

use std::collections::HashMap;
use std::time::Duration;

use forebay::proto::v1::{GetQueueRequest, PurgeRequest};
use tonic::Status;

use super::history::{Event, Moment, QueueName};
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
        let call = history.number();
        history.record(Event::PurgeInvoked { call, queue: self.queue.clone(), end });
        let request = PurgeRequest { name, end_offset: Some(end), ..PurgeRequest::default() };
        let answer = clients.queues.purge(request).await;
        history.record(Event::PurgeEnded { call, done: answer.is_ok() });
        let barrier = answer?.into_inner().barrier_offset;
        if barrier < end {
            history.unexpected(format!("{}: purged up to {end}, but the barrier is {barrier}", self.queue));
        }
        Ok(())
    }
}

/// What was purged, by queue.
#[derive(Debug, Default)]
pub struct Purges<'a> {
    calls: HashMap<u64, (&'a QueueName, u64)>,
    /// The highest end of all that were asked for.
    asked: HashMap<&'a QueueName, u64>,
    /// Ends of those that were answered, and when.
    done: HashMap<&'a QueueName, Vec<(u64, Moment)>>,
}

impl<'a> Purges<'a> {
    pub fn invoked(&mut self, call: u64, queue: &'a QueueName, end: u64) {
        self.calls.insert(call, (queue, end));
        let asked = self.asked.entry(queue).or_default();
        *asked = end.max(*asked);
    }

    pub fn ended(&mut self, call: u64, done: bool, moment: Moment) {
        let (queue, end) = self.calls.remove(&call).expect("a call is recorded before its end");
        if done {
            self.done.entry(queue).or_default().push((end, moment));
        }
    }

    /// Whether a purge that includes this place was asked for.
    pub fn may_have(&self, (queue, offset): &(QueueName, u64)) -> bool {
        self.asked.get(queue).is_some_and(|end| offset < end)
    }

    /// When a purge that includes this place was answered first.
    pub fn of(&self, (queue, offset): &(QueueName, u64)) -> Option<Moment> {
        let done = self.done.get(queue)?;
        // In order of time.
        done.iter().find(|(end, _)| offset < end).map(|(_, moment)| *moment)
    }
}
