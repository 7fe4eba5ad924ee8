//! Publishers: one request after the other, sent again after an error, with a producer's stamp or without.

use std::time::Duration;

use bytes::Bytes;
use forebay::proto::v1::{Message, Producer, PublishRequest};
use forebay_checker::format::{self, Answer, Event, Op};

use super::history::{QueueName, hash};
use super::target::{ANSWER_WITHIN, Failure, Target};
use crate::payload::Random;
use crate::queue;

/// Most body bytes of one request: with segments of 256 KiB about the largest that fits one commit.
const REQUEST_BYTES_MAX: usize = 200 << 10;

/// One publisher.
#[derive(Debug)]
pub struct Publisher {
    pub target: Target,
    pub queue: QueueName,
    /// The producer's id; without one, requests have no stamp.
    pub producer: Option<String>,
    /// Most messages in a request.
    pub batch_max: u64,
    pub random: Random,
}

/// How an attempt to publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Published {
    Stored,
    Refused,
    Unknown,
}

struct Request {
    marks: Vec<format::Message>,
    message: PublishRequest,
}

impl Publisher {
    /// Publishes until it is over.
    pub async fn run(mut self) {
        let (mut epoch, mut sequence) = (1, 0);
        while !self.target.is_over() {
            if self.random.below(50) == 0 {
                (epoch, sequence) = (epoch + 1, 0);
            }
            sequence += 1;
            let request = self.request(epoch, sequence);
            if !self.publish(&request).await {
                return;
            }
            let pause = Duration::from_micros(self.random.below(3_000));
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends a request until its outcome is clear, or is given up; whether to go on.
    async fn publish(&mut self, request: &Request) -> bool {
        loop {
            let Some(outcome) = self.attempt(request).await else { return false };
            let again = match outcome {
                // Now and then a publisher does not know that it was answered.
                Published::Stored => self.producer.is_some() && self.random.below(30) == 0,
                Published::Refused => true,
                Published::Unknown => self.producer.is_some() || self.random.below(2) == 0,
            };
            if !again {
                return true;
            }
        }
    }

    async fn attempt(&mut self, request: &Request) -> Option<Published> {
        let mut clients = self.target.clients().await?;
        let history = self.target.history.clone();
        let call = history.invoke(Op::Publish {
            queue: self.queue.to_string(),
            stamped: self.producer.is_some(),
            messages: request.marks.clone(),
        });
        let answer =
            tokio::time::timeout(ANSWER_WITHIN, clients.messages.publish(request.message.clone())).await;
        let (event, outcome) = match answer {
            Ok(Ok(response)) => {
                let results = response.into_inner().results;
                let offsets = results.into_iter().map(|result| result.offset).collect();
                (Event::Ok { call, answer: Answer::Stored { offsets } }, Published::Stored)
            }
            Ok(Err(status)) => match self.target.failed("publish", &status).await {
                Failure::Refused => (Event::Fail { call }, Published::Refused),
                Failure::Unknown => (Event::Unknown { call }, Published::Unknown),
            },
            Err(_) => {
                history.unexpected("a publish was not answered in time");
                (Event::Unknown { call }, Published::Unknown)
            }
        };
        history.record(event);
        Some(outcome)
    }

    fn request(&mut self, epoch: u64, sequence: u64) -> Request {
        let count = if self.random.below(5) < 2 { 1 } else { 1 + self.random.below(self.batch_max) };
        let mut left = REQUEST_BYTES_MAX;
        let mut marks = Vec::new();
        let mut messages = Vec::new();
        for _ in 0..count {
            let size = self.size();
            if size > left {
                break;
            }
            left -= size;
            let body = self.random.bytes(size);
            let id = self.target.history.number();
            marks.push(format::Message { id, length: size as u32, hash: hash(&body), key: None });
            messages.push(message(id, body));
        }
        let producer = self.producer.clone().map(|producer_id| Producer { producer_id, epoch, sequence });
        let message = PublishRequest { queue: queue(&self.queue), messages, producer, ..Default::default() };
        Request { marks, message }
    }

    /// Most are small; some go past the size from which bodies are not copied, a few fill a commit.
    fn size(&mut self) -> usize {
        let (from, to) = match self.random.below(100) {
            0..10 => (0, 1),
            10..70 => (1, 2 << 10),
            70..90 => (2 << 10, 16 << 10),
            90..97 => (16 << 10, 64 << 10),
            _ => (64 << 10, REQUEST_BYTES_MAX as u64 + 1),
        };
        (from + self.random.below(to - from)) as usize
    }
}

fn message(id: u64, body: Bytes) -> Message {
    Message { body, attributes: [("id".to_owned(), id.to_string())].into(), ..Message::default() }
}
