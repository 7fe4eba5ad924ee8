//! Publishing: batches of the input as requests of one producer, several in flight, the input's order kept.
//!
//! The producer id is random for each run. `window.rs` says why the order holds; the window is smaller than the 64
//! answers that a server keeps for a producer, so a request that is sent again finds its first answer.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use forebay::proto::v1::{GetServerInfoRequest, Message, Producer, PublishRequest, PublishResponse};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

use crate::client::{Server, answer};
use crate::errors::{CtlError, Signal};
use crate::input::{BatchLimits, Batches, Cut, Source};
use crate::names::QueueName;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::window::Window;

/// Bytes of one request, unless a single message is larger.
pub const BATCH_BYTES: usize = 256 << 10;
/// Longest message if the server does not tell its limit.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// How long a publish that was interrupted waits for answers.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What to publish, checked.
#[derive(Debug)]
pub struct PublishPlan {
    pub queue: QueueName,
    pub source: Source,
    pub lines: bool,
    pub attributes: BTreeMap<String, String>,
    /// Requests in flight, 1 to 32.
    pub in_flight: usize,
    /// Messages in a request, 1 to 1,000.
    pub batch: usize,
    pub resume_from: u64,
    /// How long to try again without any progress.
    pub patience: Duration,
}

/// What was acknowledged: a prefix of the input after the skipped part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    pub messages: u64,
    /// Of bodies.
    pub bytes: u64,
    pub first_offset: Option<u64>,
    pub last_offset: Option<u64>,
}

/// Publishes the input; what was acknowledged is told in the case of an error, too.
pub async fn publish(server: &Server, plan: &PublishPlan) -> (Published, Result<(), CtlError>) {
    let mut publisher = match Publisher::start(server, plan).await {
        Ok(publisher) => publisher,
        Err(error) => return (Published::default(), Err(error)),
    };
    let result = publisher.run().await;
    publisher.progress.finish();
    (publisher.published, result)
}

struct Publisher<'a> {
    server: &'a Server,
    plan: &'a PublishPlan,
    producer_id: String,
    batches: Batches,
    signals: Signals,
    progress: Progress,
    window: Window,
    answers: JoinSet<(u64, Result<PublishResponse, Status>)>,
    /// No further batches are taken: the input has ended, or something failed.
    input_over: bool,
    /// What to report when the window is empty.
    ending: Option<CtlError>,
    give_up_at: Option<Instant>,
    retry_at: Option<Instant>,
    published: Published,
}

impl<'a> Publisher<'a> {
    async fn start(server: &'a Server, plan: &'a PublishPlan) -> Result<Self, CtlError> {
        let message_bytes_max = message_bytes_max(server).await?;
        let cut = Cut { lines: plan.lines, skip: plan.resume_from, message_bytes_max };
        let attribute_bytes = plan.attributes.iter().map(|(k, v)| k.len() + v.len()).sum();
        let limits = BatchLimits { messages: plan.batch, bytes: BATCH_BYTES, attribute_bytes };
        let random = getrandom::u64().map_err(CtlError::Random)?;
        Ok(Self {
            server,
            plan,
            producer_id: format!("forebayctl-{random:016x}"),
            batches: Batches::open(&plan.source, cut, limits)?,
            signals: Signals::listen()?,
            progress: Progress::start(),
            window: Window::new(plan.patience),
            answers: JoinSet::new(),
            input_over: false,
            ending: None,
            give_up_at: None,
            retry_at: None,
            published: Published::default(),
        })
    }

    async fn run(&mut self) -> Result<(), CtlError> {
        loop {
            if self.window.len() == 0 && self.input_over {
                return self.ending.take().map_or(Ok(()), Err);
            }
            let room = self.window.len() < self.plan.in_flight && self.window.takes_more();
            tokio::select! {
                biased;
                signal = self.signals.next() => self.interrupt(signal)?,
                () = at(self.give_up_at) => return Err(self.ending.take().unwrap_or(INTERRUPTED)),
                Some(done) = self.answers.join_next() => {
                    let (sequence, result) = done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                    self.answered(sequence, result)?;
                }
                () = at(self.retry_at) => {
                    self.retry_at = None;
                    self.window.retry().into_iter().for_each(|sequence| self.send(sequence));
                }
                batch = self.batches.next(), if room && !self.input_over => self.take(batch),
            }
        }
    }

    /// Takes no more input, but learns what became of what is in flight; a second signal ends that, too.
    fn interrupt(&mut self, signal: Signal) -> Result<(), CtlError> {
        if self.give_up_at.is_some() {
            return Err(CtlError::Interrupted(signal));
        }
        self.input_over = true;
        self.ending = Some(CtlError::Interrupted(signal));
        self.give_up_at = Some(Instant::now() + LAST_ANSWERS);
        Ok(())
    }

    fn take(&mut self, batch: Option<Result<Vec<Bytes>, CtlError>>) {
        match batch {
            Some(Ok(bodies)) => {
                let sequence = self.window.push(bodies);
                self.send(sequence);
            }
            Some(Err(error)) => {
                self.input_over = true;
                self.ending = Some(error);
            }
            None => self.input_over = true,
        }
    }

    fn send(&mut self, sequence: u64) {
        let message = |body: &Bytes| Message {
            body: body.clone(),
            attributes: self.plan.attributes.clone(),
            ..Message::default()
        };
        let call = PublishRequest {
            queue: self.plan.queue.as_str().to_owned(),
            messages: self.window.bodies(sequence).iter().map(message).collect(),
            producer: Some(Producer { producer_id: self.producer_id.clone(), epoch: 1, sequence }),
            expected_next_offset: None,
        };
        let mut client = self.server.messages();
        self.answers.spawn(async move { (sequence, answer(client.publish(call)).await) });
    }

    fn answered(&mut self, sequence: u64, result: Result<PublishResponse, Status>) -> Result<(), CtlError> {
        let outcome = self.window.answered(sequence, result);
        for (bodies, response) in &outcome.published {
            self.count(bodies, response);
        }
        if let Some(wait) = outcome.wait {
            self.retry_at = Some(Instant::now() + wait);
        }
        outcome.resend.into_iter().for_each(|sequence| self.send(sequence));
        outcome.failed.map_or(Ok(()), Err)
    }

    fn count(&mut self, bodies: &[Bytes], response: &PublishResponse) {
        let published = &mut self.published;
        published.messages += bodies.len() as u64;
        published.bytes += bodies.iter().map(|body| body.len() as u64).sum::<u64>();
        published.first_offset = published.first_offset.or(response.results.first().map(|r| r.offset));
        published.last_offset = response.results.last().map(|r| r.offset).or(published.last_offset);
        self.progress.show(published.messages, published.bytes);
    }
}

const INTERRUPTED: CtlError = CtlError::Interrupted(Signal::Interrupt);

async fn message_bytes_max(server: &Server) -> Result<usize, CtlError> {
    let limit = match answer(server.admin().get_server_info(GetServerInfoRequest {})).await {
        Ok(info) => info.limits.map_or(0, |limits| limits.max_body_bytes),
        Err(status) if status.code() == Code::Unimplemented => 0,
        Err(status) => return Err(status.into()),
    };
    Ok(match usize::try_from(limit) {
        Ok(0) | Err(_) => MESSAGE_BYTES_MAX,
        Ok(limit) => limit,
    })
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
