//! Publishes that came together: handed over together, and answered together.
//!
//! Each publish stands for itself: one that is refused does not touch its neighbours, and they are decided in order.
//! Their records reach the log together, and one message between the tasks tells how all of them went.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::api::{Broker, BrokerError, NewMessage, Published, Request, gone};
use crate::admission::Permit;
use crate::core::types::ProducerStamp;
use crate::names::QueueName;

/// Messages to store, all or none.
#[derive(Debug)]
pub struct Publish {
    pub queue: QueueName,
    pub messages: Vec<NewMessage>,
    pub producer: Option<ProducerStamp>,
}

/// How each of the publishes went, in order.
pub type PublishResults = Vec<Result<Published, BrokerError>>;

/// The answers to publishes that came together. They come when all of them are on disk.
#[derive(Debug)]
pub struct Publishing {
    count: usize,
    answer: oneshot::Receiver<PublishResults>,
    stop_reason: Arc<OnceLock<String>>,
}

impl Broker {
    /// Hands publishes over, in order, with their memory. They are stored whether or not the answers are waited for, and
    /// their memory is given back when the answers are there.
    pub fn publish_all(&self, publishes: Vec<Publish>, memory: Option<Permit>) -> Publishing {
        let (reply, answer) = oneshot::channel();
        let count = publishes.len();
        // Should it fail, the broker has ended, and the answers say so.
        let _ = self.requests.send(Request::PublishAll { publishes, memory, reply });
        Publishing { count, answer, stop_reason: Arc::clone(&self.stop_reason) }
    }
}

impl Future for Publishing {
    type Output = PublishResults;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(cx);
        answer.map(|answer| answer.unwrap_or_else(|_| vec![Err(gone(&self.stop_reason)); self.count]))
    }
}
