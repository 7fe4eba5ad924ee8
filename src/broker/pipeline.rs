//! Publishes that are handed over together and answered one by one.
//!
//! The broker takes a batch in one turn, so its records reach the log together however the batch was timed. Each
//! publish stands for itself: one that is refused does not touch its neighbours, and they are decided in order.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

use super::api::{Broker, BrokerError, NewMessage, Published, Request, gone};
use crate::core::types::ProducerStamp;
use crate::names::QueueName;

/// Publishes on their way; see [`Broker::batch`].
#[derive(Debug)]
pub struct PublishBatch {
    calls: Vec<Request>,
    requests: mpsc::UnboundedSender<Request>,
    stop_reason: Arc<OnceLock<String>>,
}

/// The answer to one publish of a batch. It comes after the batch was sent.
#[derive(Debug)]
pub struct Publishing {
    answer: oneshot::Receiver<Result<Published, BrokerError>>,
    stop_reason: Arc<OnceLock<String>>,
}

impl Broker {
    /// An empty batch of publishes.
    pub fn batch(&self) -> PublishBatch {
        let (requests, stop_reason) = (self.requests.clone(), Arc::clone(&self.stop_reason));
        PublishBatch { calls: Vec::new(), requests, stop_reason }
    }
}

impl PublishBatch {
    /// Adds messages to store, all or none. The answer comes when they are on disk.
    pub fn publish(
        &mut self,
        queue: QueueName,
        messages: Vec<NewMessage>,
        producer: Option<ProducerStamp>,
    ) -> Publishing {
        let (reply, answer) = oneshot::channel();
        self.calls.push(Request::Publish { queue, messages, producer, reply });
        Publishing { answer, stop_reason: Arc::clone(&self.stop_reason) }
    }

    /// Hands everything over, in order.
    pub fn send(self) {
        if !self.calls.is_empty() {
            // Should it fail, the broker has ended, and the answers say so.
            let _ = self.requests.send(Request::Many(self.calls));
        }
    }
}

impl Future for Publishing {
    type Output = Result<Published, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(cx);
        answer.map(|answer| answer.unwrap_or_else(|_| Err(gone(&self.stop_reason))))
    }
}
