//! Publishing in a closed loop: as many requests as wanted are under way, and each answer starts the next one.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use forebay::proto::v1::{Message, PublishRequest};
use forebay_testkit::payload::Random;
use forebay_testkit::{Clients, queue};
use tokio::task::JoinSet;

use crate::Failure;
use crate::progress::Progress;
use crate::publish_stream::{Request, by_stream};
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

/// The bodies of messages.
pub enum Content {
    Same(Bytes),
    /// Made from the message's number.
    Each(Box<dyn Fn(u64) -> Bytes + Send + Sync>),
}

/// The same body for each message.
pub fn same_body(size: u64) -> Content {
    Content::Same(Random::new(1).bytes(size as usize))
}

impl Content {
    fn body(&self, number: u64) -> Bytes {
        match self {
            Self::Same(body) => body.clone(),
            Self::Each(body) => body(number),
        }
    }

    fn message(&self, number: u64) -> Message {
        Message { body: self.body(number), ..Message::default() }
    }

    /// Messages one behind the other, as `PublishRequest` has them.
    fn encode(&self, numbers: Range<u64>) -> Bytes {
        let mut out = BytesMut::new();
        let mut put = |number| prost::encoding::message::encode(MESSAGES, &self.message(number), &mut out);
        numbers.for_each(&mut put);
        out.freeze()
    }
}

/// The field of `PublishRequest`.
const MESSAGES: u32 = 2;

/// What is published, shared by all who publish it.
pub struct Load {
    queues: Vec<Arc<str>>,
    content: Content,
    /// A whole batch of the same bodies, encoded.
    encoded: Option<Bytes>,
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
    pub fn new(what: &str, names: &[String], content: Content, batch: u64, length: Length) -> Arc<Self> {
        let from_now = |length| Window { start: Instant::now(), warm_up: Duration::ZERO, length };
        let (left, window) = match length {
            Length::Messages(messages) => (messages, from_now(None)),
            Length::Time(time) => (WITHOUT_END, from_now(Some(time))),
            Length::Within(window) => (WITHOUT_END, window),
        };
        let total = if left == WITHOUT_END { 0 } else { left };
        let is_same = matches!(content, Content::Same(_));
        Arc::new(Self {
            queues: names.iter().map(|name| queue(name).into()).collect(),
            encoded: is_same.then(|| content.encode(0..batch)),
            content,
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
        let numbers = self.take(Instant::now())?;
        Some(PublishRequest {
            queue: self.queue().to_string(),
            messages: numbers.map(|number| self.content.message(number)).collect(),
            ..PublishRequest::default()
        })
    }

    /// The same, encoded, and how many messages it has.
    pub fn next_encoded(&self, now: Instant) -> Option<(Request, u64)> {
        let numbers = self.take(now)?;
        let count = numbers.end - numbers.start;
        let messages = match &self.encoded {
            // They are all of one length.
            Some(batch) => batch.slice(..batch.len() / self.batch as usize * count as usize),
            None => self.content.encode(numbers),
        };
        Some((Request { queue: self.queue(), messages }, count))
    }

    /// The next message's body, for those who send no requests of Forebay; none when all is published.
    #[cfg(feature = "peers")]
    pub fn next_body(&self) -> Option<Bytes> {
        self.take(Instant::now()).map(|numbers| self.content.body(numbers.start))
    }

    /// The numbers of the next request's messages; none when all is published.
    fn take(&self, now: Instant) -> Option<Range<u64>> {
        if self.window.end().is_some_and(|end| now >= end) {
            return None;
        }
        let take = |left: u64| (left > 0).then(|| left.saturating_sub(self.batch));
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(left.saturating_sub(self.batch)..left)
    }

    /// The queue whose turn it is.
    fn queue(&self) -> Arc<str> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        Arc::clone(&self.queues[turn % self.queues.len()])
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

/// The form of a stream's requests.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub body_bytes: u64,
    pub batch: u64,
    pub in_flight: usize,
}

/// What was published, and how long it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Published {
    pub messages: u64,
    pub took: Duration,
}

impl Published {
    /// Messages a second.
    pub fn rate(self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }

    pub fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.took += more.took;
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
