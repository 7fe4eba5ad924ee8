//! One `Tail` stream.
//!
//! 1. The first answer comes at once, with the token of the place where the stream begins.
//! 2. Every answer's token belongs to the place behind it: whoever goes on by it misses nothing and gets nothing twice.
//! 3. A page is read only when there is a place for its answer, and memory for it. So what waits for a slow client is
//!    one answer here and one in the hands of the network, each of 256 KiB of messages, or one message if that is
//!    larger, and all of it counts in the memory budget.
//! 4. The stream ends with the error that ends it: the queue is gone, the server drains or has failed.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::caught::caught;
use super::check::{self, invalid, not_built};
use super::status::Refusal;
use super::{Shared, message, time, token};
use crate::admission::{Held, Outlet};
use crate::broker::api::BrokerError;
use crate::broker::follow::{Followed, Gap, GapReason, Page, Position as From};
use crate::clock;
use crate::ids::Offset;
use crate::limits::HEARTBEAT_US;
use crate::names::QueueName;
use crate::proto::v1::position::Position as Place;
use crate::proto::v1::tail_response::{self, gap::Reason};
use crate::proto::v1::{Position, TailRequest, TailResponse};

type Answer = Result<Held<TailResponse>, Status>;

/// Begins a tail and serves it in a task of its own; the answers come from what is returned.
pub async fn open(
    shared: Shared,
    outlet: Outlet,
    request: TailRequest,
) -> Result<ReceiverStream<Answer>, Status> {
    not_built("", &[("filter", !request.filter.is_empty())])?;
    let name = check::queue_name("queue", &request.queue)?;
    let from = begin(&shared, &name, request).await?;
    let followed = shared.broker.follow(name.clone(), from).await?;
    let mut heartbeat = tokio::time::interval(Duration::from_micros(HEARTBEAT_US));
    heartbeat.reset();
    let tail = Tail { shared, outlet, name, next: followed.next, followed, heartbeat };
    let (answers, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let served = tokio::select! {
            served = caught(tail.run(&answers)) => served,
            // The client has gone: its place is free now, not when the next answer fails.
            () = answers.closed() => return,
        };
        if let Err(status) = served.map_err(Status::from).flatten() {
            let _ = answers.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(stream))
}

/// Where a tail begins.
async fn begin(shared: &Shared, queue: &QueueName, request: TailRequest) -> Result<From, Status> {
    let TailRequest { start, resume_token, .. } = request;
    if !resume_token.is_empty() {
        if start.is_some() {
            return Err(invalid("start", "is set, and resume_token too; set one of them").into());
        }
        let (uid, next) = token::parse_resume_token(&resume_token)?;
        return Ok(From::OffsetOf(uid, next));
    }
    Ok(match start {
        None => From::Latest,
        Some(Position { position: None }) => {
            return Err(invalid("start.position", "is missing; set earliest, latest, offset or time").into());
        }
        Some(Position { position: Some(place) }) => match place {
            Place::Earliest(()) => From::Earliest,
            Place::Latest(()) => From::Latest,
            Place::Offset(offset) => From::Offset(Offset(offset)),
            Place::Time(time) => {
                let time_us = time::past_us("start.time", &time, clock::wall_us())?;
                From::Offset(shared.broker.locate(queue.clone(), time_us).await?)
            }
            Place::Snapshot(_) => {
                return Err(Refusal::FieldNotBuilt { field: "start.snapshot".into() }.into());
            }
        },
    })
}

struct Tail {
    shared: Shared,
    outlet: Outlet,
    name: QueueName,
    followed: Followed,
    /// Everything below it was told.
    next: Offset,
    heartbeat: Interval,
}

impl Tail {
    /// Answers until the client has gone, or to the error that ends the stream.
    async fn run(mut self, answers: &mpsc::Sender<Answer>) -> Result<(), Status> {
        let readiness = self.shared.readiness.clone();
        let mut draining = std::pin::pin!(readiness.draining());
        let mut first = Some(Held::free(self.empty()));
        loop {
            let next = tokio::select! {
                next = self.next_for(answers, first.take()) => next?,
                () = &mut draining => return Err(Refusal::Draining.into()),
            };
            let Some((place, answer)) = next else { return Ok(()) };
            place.send(Ok(answer));
            self.heartbeat.reset();
        }
    }

    /// A place for an answer, and then the answer; none if the client has gone.
    async fn next_for<'a>(
        &mut self,
        answers: &'a mpsc::Sender<Answer>,
        answer: Option<Held<TailResponse>>,
    ) -> Result<Option<(mpsc::Permit<'a, Answer>, Held<TailResponse>)>, Status> {
        let Ok(place) = answers.reserve().await else { return Ok(None) };
        let answer = match answer {
            Some(answer) => answer,
            None => self.answer().await?,
        };
        Ok(Some((place, answer)))
    }

    /// What comes next, waiting for it if need be.
    async fn answer(&mut self) -> Answer {
        loop {
            if self.next < *self.followed.end.borrow_and_update() {
                let page = self.shared.broker.read_on(self.followed.queue, self.next, &self.outlet).await?;
                return Ok(page.map(|page| self.show(page)));
            }
            tokio::select! {
                changed = self.followed.end.changed() => {
                    if changed.is_err() {
                        return Err(self.why_it_ended().await);
                    }
                }
                _ = self.heartbeat.tick() => return Ok(Held::free(self.empty())),
            }
        }
    }

    fn empty(&self) -> TailResponse {
        TailResponse { messages: Vec::new(), resume_token: self.token(), gap: None }
    }

    fn token(&self) -> String {
        token::resume_token(self.followed.uid, self.next)
    }

    /// A page as its reader sees it, up to a message whose metadata cannot be read: that one is lost.
    fn show(&mut self, page: Page) -> TailResponse {
        let Page { mut gap, messages: stored, next } = page;
        self.next = next;
        let mut messages = Vec::with_capacity(stored.len());
        for stored in stored {
            let offset = stored.offset;
            match message::to_show(&self.name, stored) {
                Ok(message) => messages.push(message),
                Err(status) => {
                    tracing::error!(queue = %self.name, %offset, %status, "a message cannot be shown");
                    self.next = offset;
                    if messages.is_empty() && gap.is_none() {
                        self.next = offset.plus(1);
                        gap = Some(Gap { first: offset, end: self.next, reason: GapReason::Lost });
                    }
                    break;
                }
            }
        }
        TailResponse { messages, resume_token: self.token(), gap: gap.map(show_gap) }
    }

    /// Why the broker tells no more: the queue is gone, or the broker itself.
    async fn why_it_ended(&self) -> Status {
        match self.shared.broker.read_on(self.followed.queue, self.next, &self.outlet).await {
            Err(error) => error.into(),
            Ok(_) => BrokerError::QueueDeleted.into(),
        }
    }
}

fn show_gap(gap: Gap) -> tail_response::Gap {
    let reason = match gap.reason {
        GapReason::Purged => Reason::Purged,
        GapReason::Reclaimed => Reason::Reclaimed,
        GapReason::Lost => Reason::Lost,
    };
    tail_response::Gap { first_offset: gap.first.0, end_offset: gap.end.0, reason: reason.into() }
}
