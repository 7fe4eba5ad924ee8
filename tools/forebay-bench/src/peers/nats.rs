//! NATS JetStream: a work-queue stream in files, so that what is acknowledged leaves it, as it leaves a queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{self, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Message, Subject, Subscriber};
use tokio_stream::StreamExt as _;

use crate::Failure;
use crate::fill::Load;
use crate::progress::Progress;

const CONSUMER: &str = "default";
/// No message comes again within a run.
const ACK_WAIT: Duration = Duration::from_secs(600);
/// As many as a subscription of Forebay has in flight by default, twice.
const ACK_PENDING_MAX: i64 = 20_000;
/// What does not come within this time does not come.
const STALL: Duration = Duration::from_secs(20);

pub struct Queue {
    url: String,
    /// Of the stream, and its only subject.
    name: String,
    context: Context,
}

impl Queue {
    pub async fn create(url: &str, name: String) -> Result<Self, Failure> {
        let context = jetstream::new(async_nats::connect(url).await?);
        let stream = context
            .create_stream(stream::Config {
                name: name.clone(),
                subjects: vec![name.clone()],
                storage: StorageType::File,
                retention: RetentionPolicy::WorkQueue,
                ..stream::Config::default()
            })
            .await?;
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: ACK_PENDING_MAX,
            ..pull::Config::default()
        };
        stream.create_consumer(config).await?;
        Ok(Self { url: url.to_owned(), name, context })
    }

    /// Answers of a stream come in the order of its messages, so one inbox takes them all.
    pub async fn publish(&self, load: &Load, in_flight: usize) -> Result<(), Failure> {
        let client = async_nats::connect(&self.url).await?;
        let (subject, inbox) = (Subject::from(self.name.as_str()), Subject::from(client.new_inbox()));
        let mut answers = client.subscribe(inbox.clone()).await?;
        let mut under_way = VecDeque::with_capacity(in_flight);
        loop {
            while under_way.len() < in_flight
                && let Some(body) = load.next_body()
            {
                under_way.push_back(Instant::now());
                client.publish_with_reply(subject.clone(), inbox.clone(), body).await?;
            }
            let Some(began) = under_way.pop_front() else { return Ok(()) };
            stored(&next(&mut answers).await?)?;
            load.answered(began, 1);
        }
    }

    pub async fn consume(&self, batch: u64, total: u64, progress: &Progress) -> Result<(), Failure> {
        let client = async_nats::connect(&self.url).await?;
        let consumer = consumer(&jetstream::new(client.clone()), &self.name).await?;
        let mut messages = consumer.stream().max_messages_per_batch(batch as usize).messages().await?;
        while progress.done() < total {
            let message = tokio::time::timeout(STALL, messages.next()).await;
            let message = message.map_err(|_| "nothing came any more")?;
            message.ok_or("the server ended the deliveries")??.ack().await?;
            progress.add(1);
        }
        // Acks are not answered: they count when the server says that none is missing.
        client.flush().await?;
        let start = Instant::now();
        while unfinished(&consumer).await? > 0 {
            if start.elapsed() > STALL {
                return Err("the server did not take all acks".into());
            }
        }
        Ok(())
    }

    pub async fn stored(&self) -> Result<u64, Failure> {
        Ok(self.context.get_stream(&self.name).await?.get_info().await?.state.messages)
    }

    pub async fn unfinished(&self) -> Result<u64, Failure> {
        unfinished(&consumer(&self.context, &self.name).await?).await
    }

    pub async fn delete(&self) -> Result<(), Failure> {
        self.context.delete_stream(&self.name).await?;
        Ok(())
    }
}

async fn consumer(context: &Context, stream: &str) -> Result<PullConsumer, Failure> {
    context.get_stream(stream).await?.get_consumer(CONSUMER).await
}

/// Messages that wait or are not acknowledged.
async fn unfinished(consumer: &PullConsumer) -> Result<u64, Failure> {
    let info = consumer.get_info().await?;
    Ok(info.num_pending + info.num_ack_pending as u64)
}

async fn next(answers: &mut Subscriber) -> Result<Message, Failure> {
    let answer = tokio::time::timeout(STALL, answers.next()).await.map_err(|_| "no answer came any more")?;
    answer.ok_or_else(|| "the server ended the connection".into())
}

/// Fails unless the answer says that a message was stored.
fn stored(answer: &Message) -> Result<(), Failure> {
    if answer.payload.starts_with(br#"{"stream":"#) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&answer.payload).into_owned();
    Err(format!("a publish failed: {said:?}, status {:?}", answer.status).into())
}
