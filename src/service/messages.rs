//! `MessageService`: publishing, delivery and its ending. Streams of deliveries are in [`super::subscribe`],
//! those that only read in [`super::tail`].

use std::time::Duration;

use tonic::{Request, Response, Status, Streaming};

use super::check::{self, not_built};
use super::outgoing::{self, Answers};
use super::status::Refusal;
use super::wire::publish::Naming;
use super::{Shared, ending, message, rpc_not_built, tail, time, token};
use crate::admission::Held;
use crate::broker::api::{AckId, BrokerError, PullOptions};
use crate::broker::pipeline::Publish;
use crate::clock;
use crate::core::types::{Reject, Settled};
use crate::ids::Offset;
use crate::limits::*;
use crate::names::QueueName;
use crate::proto::v1::message_service_server::MessageService;
use crate::proto::v1::*;

/// The service; its clones share everything.
#[derive(Clone, Debug)]
pub struct Messages {
    pub(super) shared: Shared,
}

impl Messages {
    /// The response of results, which counts until it has gone.
    async fn counted<T: prost::Message>(
        &self,
        settled: Vec<Settled>,
        answer: impl FnOnce(Vec<AckResult>) -> T,
    ) -> Response<T> {
        let results = ending::results(settled);
        let own_bytes = results.len() * size_of::<AckResult>();
        let answer = answer(results);
        let bytes = own_bytes + answer.encoded_len();
        outgoing::counted(answer, bytes, &self.shared.outflow).await
    }
}

/// The name that was checked last: requests of one stream mostly name one queue.
#[derive(Debug, Default)]
pub(super) struct NameCache {
    last: Option<QueueName>,
}

impl NameCache {
    pub(super) fn queue(&mut self, text: &str) -> Result<QueueName, Refusal> {
        match &self.last {
            Some(last) if last.is(text) => Ok(last.clone()),
            _ => {
                let name = check::queue_name("queue", text)?;
                self.last = Some(name.clone());
                Ok(name)
            }
        }
    }
}

/// Checks one publish, of a call of its own or of a stream.
pub(super) fn checked_publish(request: PublishRequest, mut name: impl Naming) -> Result<Publish, Refusal> {
    let queue = name(&request.queue)?;
    not_built("", &[("expected_next_offset", request.expected_next_offset.is_some())])?;
    let producer = message::producer(request.producer)?;
    let messages = message::to_store(request.messages)?;
    Ok(Publish { queue, messages, producer })
}

fn pull_options(request: &PullRequest, timeout: Option<Duration>) -> Result<PullOptions, Refusal> {
    let wait = request.wait.unwrap_or_default();
    let wait_us = time::duration_us("wait", &wait, 0..=PULL_WAIT_US_MAX)?;
    Ok(PullOptions {
        messages_max: check::messages_max(request.max_messages),
        bytes_max: check::bytes_max(request.max_bytes),
        wait: time::wait_within(Duration::from_micros(wait_us), timeout),
        lease_us: check::lease_if_set("lease", request.lease.as_ref())?,
    })
}

#[tonic::async_trait]
impl MessageService for Messages {
    async fn publish(&self, _: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        Err(Refusal::Internal { why: "publishes are served before they come here" }.into())
    }

    type PublishStreamStream = Answers<PublishStreamResponse>;

    async fn publish_stream(
        &self,
        _: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        Err(Refusal::Internal { why: "streams are served before they come here" }.into())
    }

    async fn publish_large(
        &self,
        _: Request<Streaming<PublishLargeRequest>>,
    ) -> Result<Response<PublishLargeResponse>, Status> {
        rpc_not_built("MessageService.PublishLarge")
    }

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<PullResponse>, Status> {
        let timeout = time::grpc_timeout(request.metadata());
        let request = request.into_inner();
        let name = check::subscription_name("subscription", &request.subscription)?;
        let options = pull_options(&request, timeout)?;
        let outlet = self.shared.outflow.outlet();
        let Held { value, memory } = self.shared.broker.pull(name.clone(), options, outlet.clone()).await?;
        let now_us = clock::wall_us();
        let show = |delivery| message::to_deliver(&name.queue, delivery, now_us);
        let messages = value.into_iter().map(show).collect::<Result<_, Status>>()?;
        Ok(outgoing::call(Held { value: PullResponse { messages }, memory }, outlet))
    }

    type SubscribeStream = Answers<SubscribeResponse>;

    async fn subscribe(
        &self,
        _: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Refusal::Internal { why: "subscribe streams are served before they come here" }.into())
    }

    async fn acknowledge(
        &self,
        request: Request<AcknowledgeRequest>,
    ) -> Result<Response<AcknowledgeResponse>, Status> {
        let request = request.into_inner();
        let name = check::subscription_name("subscription", &request.subscription)?;
        check::ack_id_count("ack_ids", request.ack_ids.len())?;
        let settlements = ending::acks(request.ack_ids).collect();
        let settled = self.shared.broker.settle(name, settlements).await?;
        Ok(self.counted(settled, |results| AcknowledgeResponse { results }).await)
    }

    async fn nack(&self, request: Request<NackRequest>) -> Result<Response<NackResponse>, Status> {
        let request = request.into_inner();
        let name = check::subscription_name("subscription", &request.subscription)?;
        check::ack_id_count("entries", request.entries.len())?;
        let settlements = ending::nacks("entries", request.entries)?;
        let settled = self.shared.broker.settle(name, settlements).await?;
        Ok(self.counted(settled, |results| NackResponse { results }).await)
    }

    async fn extend_lease(
        &self,
        request: Request<ExtendLeaseRequest>,
    ) -> Result<Response<ExtendLeaseResponse>, Status> {
        let request = request.into_inner();
        let name = check::subscription_name("subscription", &request.subscription)?;
        check::ack_id_count("ack_ids", request.ack_ids.len())?;
        let lease = check::required("lease", request.lease)?;
        let lease_us = check::lease("lease", &lease)?;
        let ack_ids = request.ack_ids.into_iter().map(AckId::from).collect();
        let settled = self.shared.broker.extend(name, ack_ids, lease_us).await?;
        Ok(self.counted(settled, |results| ExtendLeaseResponse { results }).await)
    }

    async fn commit(&self, _: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        rpc_not_built("MessageService.Commit")
    }

    async fn peek(&self, request: Request<PeekRequest>) -> Result<Response<PeekResponse>, Status> {
        let request = request.into_inner();
        let queue = check::queue_name("queue", &request.queue)?;
        let (messages_max, bytes_max) =
            (check::messages_max(request.max_messages), check::bytes_max(request.max_bytes));
        let from = request.from_offset.map(Offset);
        let (broker, outlet) = (&self.shared.broker, self.shared.outflow.outlet());
        let Held { value, memory } =
            broker.peek(queue.clone(), from, messages_max, bytes_max, &outlet).await?;
        let show = |stored| message::to_show(&queue, stored);
        let messages = value.into_iter().map(show).collect::<Result<_, Status>>()?;
        Ok(outgoing::call(Held { value: PeekResponse { messages }, memory }, outlet))
    }

    type TailStream = Answers<TailResponse>;

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let outlet = self.shared.outflow.outlet();
        let answers = tail::open(self.shared.clone(), outlet.clone(), request.into_inner()).await?;
        Ok(outgoing::stream(answers, outlet))
    }

    async fn get_message(&self, request: Request<GetMessageRequest>) -> Result<Response<Message>, Status> {
        let request = request.into_inner();
        let queue = check::queue_name("queue", &request.queue)?;
        let (uid, offset) = token::parse_message_id("message_id", &request.message_id)?;
        let (broker, outlet) = (&self.shared.broker, self.shared.outflow.outlet());
        let peeked = broker.peek(queue.clone(), Some(offset), 1, BODY_BYTES_MAX as u64, &outlet).await;
        let Held { value, memory } = match peeked {
            Err(BrokerError::Rejected(Reject::OffsetOutOfRange { .. })) => Held::free(Vec::new()),
            peeked => peeked?,
        };
        let found = value.into_iter().find(|stored| (stored.queue_uid, stored.offset) == (uid, offset));
        let missing = || BrokerError::from(Reject::MessageNotFound { queue: queue.clone(), offset });
        let value = message::to_show(&queue, found.ok_or_else(missing)?)?;
        Ok(outgoing::call(Held { value, memory }, outlet))
    }

    async fn cancel_message(
        &self,
        request: Request<CancelMessageRequest>,
    ) -> Result<Response<CancelMessageResponse>, Status> {
        let request = request.into_inner();
        not_built("", &[("request_id", !request.request_id.is_empty())])?;
        let queue = check::queue_name("queue", &request.queue)?;
        let (uid, offset) = token::parse_message_id("message_id", &request.message_id)?;
        self.shared.broker.cancel(queue, uid, offset).await?;
        Ok(Response::new(CancelMessageResponse {}))
    }
}
