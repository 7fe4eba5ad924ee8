//! Publishing in a closed loop: as many requests as wanted are under way, and each answer starts the next one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::proto::v1::publish_stream_response::Result as Answer;
use forebay::proto::v1::{Message, PublishRequest, PublishStreamRequest};
use forebay_testkit::payload::Random;
use forebay_testkit::{Clients, queue};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::Failure;
use crate::progress::Progress;

/// How much is published.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Messages(u64),
    Time(Duration),
}

/// What is published, shared by all who publish it.
pub struct Load {
    queues: Vec<String>,
    body: Bytes,
    batch: u64,
    /// Messages that are not yet in a request; without end if time is the limit.
    left: AtomicU64,
    deadline: Option<Instant>,
    turn: AtomicU64,
    pub progress: Progress,
}

impl Load {
    /// `batch` messages of `size` bytes in each request, to the queues in turn.
    pub fn new(what: &str, names: &[String], size: u64, batch: u64, length: Length) -> Arc<Self> {
        let (left, deadline) = match length {
            Length::Messages(messages) => (messages, None),
            Length::Time(time) => (u64::MAX / 2, Some(Instant::now() + time)),
        };
        let total = if deadline.is_none() { left } else { 0 };
        Arc::new(Self {
            queues: names.iter().map(|name| queue(name)).collect(),
            body: Random::new(1).bytes(size as usize),
            batch,
            left: left.into(),
            deadline,
            turn: AtomicU64::new(0),
            progress: Progress::start(what, total),
        })
    }

    /// The next request; none when all is published.
    fn next(&self) -> Option<PublishRequest> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return None;
        }
        let take = |left: u64| (left > 0).then(|| left.saturating_sub(self.batch));
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let message = Message { body: self.body.clone(), ..Message::default() };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % self.queues.len();
        Some(PublishRequest {
            queue: self.queues[turn].clone(),
            messages: vec![message; left.min(self.batch) as usize],
            ..PublishRequest::default()
        })
    }
}

/// The time that each request took, microseconds.
pub type Latencies = Vec<u32>;

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Publishes by unary calls, one at a time.
pub async fn by_calls(mut clients: Clients, load: Arc<Load>) -> Result<Latencies, Failure> {
    let mut latencies = Latencies::new();
    while let Some(request) = load.next() {
        let (count, start) = (request.messages.len() as u64, Instant::now());
        clients.messages.publish(request).await?;
        latencies.push(micros(start));
        load.progress.add(count);
    }
    Ok(latencies)
}

/// Publishes by one stream with this many requests under way.
pub async fn by_stream(
    mut clients: Clients,
    load: Arc<Load>,
    in_flight: usize,
) -> Result<Latencies, Failure> {
    let (up, requests) = mpsc::channel(in_flight);
    let mut answers = clients.messages.publish_stream(ReceiverStream::new(requests)).await?.into_inner();
    let (mut latencies, mut under_way) = (Latencies::new(), VecDeque::with_capacity(in_flight));
    loop {
        while under_way.len() < in_flight
            && let Some(publish) = load.next()
        {
            under_way.push_back((Instant::now(), publish.messages.len() as u64));
            let request = PublishStreamRequest { correlation_id: 0, publish: Some(publish) };
            // Should it fail, the answers say why.
            let _ = up.send(request).await;
        }
        let Some((start, count)) = under_way.pop_front() else { return Ok(latencies) };
        let answer = answers.message().await?.ok_or("the server ended the stream")?;
        match answer.result {
            Some(Answer::Response(response)) if response.results.len() as u64 == count => {}
            other => return Err(format!("a publish failed: {other:?}").into()),
        }
        latencies.push(micros(start));
        load.progress.add(count);
    }
}

/// Publishes messages to the queues in turn, `batch` at a time, as fast as one connection can.
pub async fn fill(
    clients: &Clients,
    names: &[String],
    messages: u64,
    size: u64,
    batch: u64,
) -> Result<(), Failure> {
    // Enough under way for the disk, and not all of the server's memory.
    let in_flight = ((8 << 20) / (batch * size).max(1)).clamp(2, 32) as usize;
    let load = Load::new("filling", names, size, batch, Length::Messages(messages));
    by_stream(clients.clone(), load, in_flight).await.map(drop)
}

/// The largest batch for bodies of this size: at most 1,000 messages and about 1 MiB.
pub fn batch_of(size: u64) -> u64 {
    ((1 << 20) / size.max(1)).clamp(1, 1_000)
}
