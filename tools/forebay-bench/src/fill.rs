//! Publishing in a closed loop: as many requests as wanted are under way, and each answer starts the next one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::proto::v1::publish_stream_response::Result as Answer;
use forebay::proto::v1::{Message, PublishRequest, PublishStreamRequest};
use forebay_testkit::payload::Random;
use forebay_testkit::{Clients, queue};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::Failure;
use crate::progress::Progress;
use crate::samples::{Samples, Window, lock};

/// More than is ever published.
const WITHOUT_END: u64 = u64::MAX / 2;

/// How much is published.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Messages(u64),
    Time(Duration),
    /// Until the window's end; counted as it says.
    Within(Window),
}

/// Makes a message's body from its number.
pub type Bodies = Box<dyn Fn(u64) -> Bytes + Send + Sync>;

/// The same body for each message.
pub fn same_body(size: u64) -> Bodies {
    let body = Random::new(1).bytes(size as usize);
    Box::new(move |_| body.clone())
}

/// What is published, shared by all who publish it.
pub struct Load {
    queues: Vec<String>,
    bodies: Bodies,
    batch: u64,
    /// Messages that are not yet in a request; without end if time is the limit.
    left: AtomicU64,
    window: Window,
    samples: Mutex<Samples>,
    turn: AtomicU64,
    pub progress: Progress,
}

impl Load {
    /// `batch` messages in each request, to the queues in turn.
    pub fn new(what: &str, names: &[String], bodies: Bodies, batch: u64, length: Length) -> Arc<Self> {
        let from_now = |length| Window { start: Instant::now(), warm_up: Duration::ZERO, length };
        let (left, window) = match length {
            Length::Messages(messages) => (messages, from_now(None)),
            Length::Time(time) => (WITHOUT_END, from_now(Some(time))),
            Length::Within(window) => (WITHOUT_END, window),
        };
        let total = if left == WITHOUT_END { 0 } else { left };
        Arc::new(Self {
            queues: names.iter().map(|name| queue(name)).collect(),
            bodies,
            batch,
            left: left.into(),
            window,
            samples: Samples::new(window).into(),
            turn: AtomicU64::new(0),
            progress: Progress::start(what, total),
        })
    }

    /// The next request; none when all is published.
    pub fn next(&self) -> Option<PublishRequest> {
        if self.window.end().is_some_and(|end| Instant::now() >= end) {
            return None;
        }
        let take = |left: u64| (left > 0).then(|| left.saturating_sub(self.batch));
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let message = |number| Message { body: (self.bodies)(number), ..Message::default() };
        let first = left.saturating_sub(self.batch);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % self.queues.len();
        Some(PublishRequest {
            queue: self.queues[turn].clone(),
            messages: (first..left).map(message).collect(),
            ..PublishRequest::default()
        })
    }

    /// The next message's body, for those who send no requests of Forebay; none when all is published.
    #[cfg(feature = "peers")]
    pub fn next_body(&self) -> Option<Bytes> {
        self.next().and_then(|request| request.messages.into_iter().next()).map(|message| message.body)
    }

    /// A request with this many messages that began at `began` is answered.
    pub fn answered(&self, began: Instant, messages: u64) {
        let (mut samples, now) = (lock(&self.samples), Instant::now());
        samples.took(began, now);
        samples.done(messages, now);
        self.progress.add(messages);
    }

    /// What was seen so far.
    pub fn samples(&self) -> Samples {
        lock(&self.samples).clone()
    }
}

/// Publishes by unary calls, one at a time.
pub async fn by_calls(mut clients: Clients, load: Arc<Load>) -> Result<(), Failure> {
    while let Some(request) = load.next() {
        let (count, start) = (request.messages.len() as u64, Instant::now());
        clients.messages.publish(request).await?;
        load.answered(start, count);
    }
    Ok(())
}

/// Publishes by one stream with this many requests under way.
pub async fn by_stream(mut clients: Clients, load: Arc<Load>, in_flight: usize) -> Result<(), Failure> {
    let (up, requests) = mpsc::channel(in_flight);
    let mut answers = clients.messages.publish_stream(ReceiverStream::new(requests)).await?.into_inner();
    let mut under_way = VecDeque::with_capacity(in_flight);
    loop {
        while under_way.len() < in_flight
            && let Some(publish) = load.next()
        {
            under_way.push_back((Instant::now(), publish.messages.len() as u64));
            let request = PublishStreamRequest { correlation_id: 0, publish: Some(publish) };
            // Should it fail, the answers say why.
            let _ = up.send(request).await;
        }
        let Some((start, count)) = under_way.pop_front() else { return Ok(()) };
        let answer = answers.message().await?.ok_or("the server ended the stream")?;
        match answer.result {
            Some(Answer::Response(response)) if response.results.len() as u64 == count => {}
            other => return Err(format!("a publish failed: {other:?}").into()),
        }
        load.answered(start, count);
    }
}

/// The form of a stream's requests.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub body_bytes: u64,
    pub batch: u64,
    pub in_flight: usize,
}

/// What was published, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    pub messages: u64,
    pub took: Duration,
}

impl Published {
    /// Messages a second.
    pub fn rate(self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }
}

/// Publishes by one stream, to the queues in turn.
pub async fn publish_stream(
    clients: &Clients,
    names: &[String],
    form: Form,
    length: Length,
) -> Result<Published, Failure> {
    let start = Instant::now();
    let load = Load::new("publishing", names, same_body(form.body_bytes), form.batch, length);
    tokio::spawn(by_stream(clients.clone(), Arc::clone(&load), form.in_flight)).await??;
    Ok(Published { messages: load.progress.done(), took: start.elapsed() })
}

/// Waits until all workers are done, or one has failed.
pub async fn all_done(mut workers: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(())
}

/// Publishes messages to the queues in turn, `batch` at a time, as fast as one connection can.
pub async fn fill(
    clients: &Clients,
    names: &[String],
    messages: u64,
    size: u64,
    batch: u64,
) -> Result<(), Failure> {
    let load = Load::new("filling", names, same_body(size), batch, Length::Messages(messages));
    by_stream(clients.clone(), load, in_flight_of(batch * size)).await
}

/// The largest batch for bodies of this size: at most 1,000 messages and about 1 MiB.
pub fn batch_of(size: u64) -> u64 {
    ((1 << 20) / size.max(1)).clamp(1, 1_000)
}

/// Requests of this size to have under way: enough for the disk, and not all of the server's memory.
pub fn in_flight_of(request_bytes: u64) -> usize {
    ((8 << 20) / request_bytes.max(1)).clamp(2, 32) as usize
}
