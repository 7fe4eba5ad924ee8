//! Consuming: pull, print, settle, again.
//!
//! Invariants
//! - A message is settled only after the write that holds it has succeeded; what was leased and not printed is
//!   released, whatever ends the command.
//! - The command ends only when its settlements are answered, or cannot be.
//! - A pull waits a second at most and is never abandoned half-way, so no lease is left behind by Ctrl-C.
//! - While standard output blocks, leases are renewed.

use std::time::Duration;

use forebay::proto::v1::{ExtendLeaseRequest, GetSubscriptionRequest, PullRequest, ReceivedMessage};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tonic::Status;

use crate::client::{Server, answer};
use crate::errors::{CtlError, Signal, note};
use crate::message::{MessageFormat, encode};
use crate::retry::Backoff;
use crate::settle::{Ending, Settler};
use crate::signals::Signals;
use crate::stdout::{Printing, reader_is_gone};

/// Longest wait of one pull; Ctrl-C waits for it.
const PULL_WAIT: Duration = Duration::from_secs(1);
/// How long a pull may still take after a signal.
const LAST_PULL: Duration = Duration::from_secs(3);
/// How long settlements may still take after a signal.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);
const PULL_MESSAGES: u32 = 256;
/// Bodies of one pull, unless a single message is larger.
const PULL_BYTES: u64 = 1 << 20;
/// If the subscription does not tell its lease.
const LEASE: Duration = Duration::from_secs(30);

/// What becomes of a message after it was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Ack,
    Nack,
    Leave,
}

/// What to consume, checked.
#[derive(Debug)]
pub struct ConsumePlan {
    /// Full name.
    pub subscription: String,
    /// Messages until the end; without it, for ever.
    pub max: Option<u64>,
    pub idle_exit: Option<Duration>,
    pub after: After,
    pub format: MessageFormat,
}

/// Prints messages as they come.
pub async fn consume(server: &Server, plan: &ConsumePlan) -> Result<(), CtlError> {
    let name = plan.subscription.clone();
    let found = answer(server.queues().get_subscription(GetSubscriptionRequest { name })).await?;
    let lease = found.lease_duration.and_then(|lease| Duration::try_from(lease).ok()).unwrap_or(LEASE);
    Consumer {
        server,
        plan,
        lease,
        signals: Signals::listen()?,
        ended_by: None,
        remaining: plan.max.unwrap_or(u64::MAX),
        idle_since: Instant::now(),
    }
    .run()
    .await
}

struct Consumer<'a> {
    server: &'a Server,
    plan: &'a ConsumePlan,
    lease: Duration,
    signals: Signals,
    ended_by: Option<Signal>,
    remaining: u64,
    idle_since: Instant,
}

/// Why printing stopped.
enum Printed {
    All,
    Interrupted,
    ReaderGone,
    Failed(std::io::Error),
}

impl Consumer<'_> {
    async fn run(&mut self) -> Result<(), CtlError> {
        while self.remaining > 0 && !self.is_idle() && !reader_is_gone() {
            let batch = self.pull().await?;
            if batch.is_empty() {
                self.stop_if_signalled()?;
                continue;
            }
            let ids: Vec<String> = batch.iter().map(|received| received.ack_id.clone()).collect();
            let (count, printed) = self.print(batch, &ids).await;
            let hurry = !matches!(printed, Printed::All);
            let settled = self.settle(&ids, count, hurry).await;
            match printed {
                Printed::ReaderGone => return settled,
                Printed::Failed(error) => return Err(CtlError::Output(error)),
                Printed::All | Printed::Interrupted => settled?,
            }
            self.stop_if_signalled()?;
            self.remaining -= count as u64;
            self.idle_since = Instant::now();
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.plan.idle_exit.is_some_and(|limit| self.idle_since.elapsed() >= limit)
    }

    fn stop_if_signalled(&self) -> Result<(), CtlError> {
        self.ended_by.map_or(Ok(()), |signal| Err(CtlError::Interrupted(signal)))
    }

    /// The next messages; none if none came within the wait, or a signal did. Outlasts outages.
    async fn pull(&mut self) -> Result<Vec<ReceivedMessage>, CtlError> {
        let mut backoff = Backoff::new(None);
        let mut lost = false;
        loop {
            let result = self.pull_once().await;
            match result {
                Ok(messages) => {
                    if lost {
                        note("connected again");
                        self.idle_since = Instant::now();
                    }
                    return Ok(messages);
                }
                Err(status) => {
                    self.stop_if_signalled()?;
                    let Some(wait) = backoff.wait(&status) else { return Err(status.into()) };
                    if !lost {
                        note(&format!("{}; trying again", CtlError::from(status)));
                        lost = true;
                    }
                    if let Ok(signal) = timeout(wait, self.signals.next()).await {
                        self.ended_by = Some(signal);
                        return Ok(Vec::new());
                    }
                }
            }
        }
    }

    async fn pull_once(&mut self) -> Result<Vec<ReceivedMessage>, Status> {
        let idle_left =
            self.plan.idle_exit.map_or(PULL_WAIT, |l| l.saturating_sub(self.idle_since.elapsed()));
        let request = PullRequest {
            subscription: self.plan.subscription.clone(),
            max_messages: u32::try_from(self.remaining).unwrap_or(u32::MAX).min(PULL_MESSAGES),
            max_bytes: PULL_BYTES,
            wait: prost_types::Duration::try_from(PULL_WAIT.min(idle_left)).ok(),
            lease: None,
        };
        let mut client = self.server.messages();
        let call = answer(client.pull(request));
        tokio::pin!(call);
        tokio::select! {
            result = &mut call => result.map(|response| response.messages),
            signal = self.signals.next() => {
                self.ended_by = Some(signal);
                let result = timeout(LAST_PULL, call).await;
                result.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))).map(|r| r.messages)
            }
        }
    }

    /// Prints a batch; how many of it were printed, and why it ended.
    async fn print(&mut self, batch: Vec<ReceivedMessage>, ids: &[String]) -> (usize, Printed) {
        if self.ended_by.is_some() {
            return (0, Printed::Interrupted);
        }
        let text = |r: &ReceivedMessage| {
            let message = r.message.as_ref();
            encode(self.plan.format, message.unwrap_or(&Default::default()), Some(r.attempt))
        };
        let mut printing = Printing::start(batch.iter().map(text).collect());
        drop(batch);
        let third = (self.lease / 3).max(Duration::from_millis(100));
        let mut renewal = interval_at(Instant::now() + third, third);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                end = &mut printing.end => {
                    let why = match end.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())) {
                        Ok(()) => Printed::All,
                        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Printed::ReaderGone,
                        Err(error) => Printed::Failed(error),
                    };
                    return (printing.count(), why);
                }
                signal = self.signals.next() => {
                    self.ended_by = Some(signal);
                    return (printing.count(), Printed::Interrupted);
                }
                _ = renewal.tick(), if self.plan.after != After::Leave => self.renew(ids).await,
            }
        }
    }

    /// A failure is no error: it is tried again at the next tick, and a lost lease shows when it is settled.
    async fn renew(&self, ids: &[String]) {
        let request = ExtendLeaseRequest {
            subscription: self.plan.subscription.clone(),
            ack_ids: ids.to_vec(),
            lease: prost_types::Duration::try_from(self.lease).ok(),
        };
        let mut client = self.server.messages();
        let _ = timeout(RENEWAL_TIMEOUT, client.extend_lease(request)).await;
    }

    /// Ends the leases of a batch of which the first `printed` were printed; `hurry` if the command ends then.
    async fn settle(&mut self, ids: &[String], printed: usize, hurry: bool) -> Result<(), CtlError> {
        let (shown, unseen) = ids.split_at(printed);
        let settler = Settler::new(self.server, &self.plan.subscription);
        let work = async {
            let released = settler.settle(unseen, Ending::Release, hurry).await;
            let shown = match self.plan.after {
                After::Ack => settler.settle(shown, Ending::Ack, hurry).await,
                After::Nack => settler.settle(shown, Ending::Retry, hurry).await,
                After::Leave => Ok(()),
            };
            shown.and(released)
        };
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            signal = self.signals.next() => {
                // A second one: do not even wait for the answers.
                if self.ended_by.replace(signal).is_some() {
                    return Err(CtlError::Interrupted(signal));
                }
            }
        }
        tokio::select! {
            result = timeout(LAST_ANSWERS, work) => result.unwrap_or(Ok(())),
            signal = self.signals.next() => Err(CtlError::Interrupted(signal)),
        }
    }
}
