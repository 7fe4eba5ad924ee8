//! Publishing: pipelined, in order, stored once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::error::ClientError;
use super::retry::{Backoff, is_retryable};
use super::tail::{New, Next, Tail, WINDOW};
use crate::limits::REQUEST_BYTES_MAX;
use crate::proto::v1::message_service_client::MessageServiceClient;
use crate::proto::v1::{Message, PublishRequest, PublishResponse, PublishStreamRequest};

/// Bytes of requests without an answer, in KiB.
const WINDOW_KIB: u32 = 32 << 10;
/// What a request's numbers and its place on the stream may take beside the request, bytes.
const ENVELOPE_BYTES: usize = 1 << 10;

/// Publishes over one stream under an id of its own; its clones share both.
///
/// Requests are stored in the order in which they were sent, queue by queue, each once. One that the server refuses
/// does not hold back those after it. At most 64 requests or 32 MiB are under way; more messages in a request, or
/// more publishers, make more of them.
///
/// When the last clone is dropped, what was sent is still brought to the server as long as its receipts are kept.
#[derive(Clone, Debug)]
pub struct Publisher {
    requests: mpsc::UnboundedSender<New>,
    places: Arc<Semaphore>,
    kib: Arc<Semaphore>,
}

/// The answer to a request that was sent: ready when the messages are on disk, or refused. Whether it is kept or
/// dropped, they are brought to the server while some clone of the publisher, or another receipt, is kept.
#[derive(Debug)]
#[must_use = "the messages are on disk only when the receipt is ready"]
pub struct Receipt(oneshot::Receiver<Result<PublishResponse, ClientError>>);

impl Future for Receipt {
    type Output = Result<PublishResponse, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or(Err(ClientError::Ended)))
    }
}

impl Publisher {
    pub(super) fn start(client: MessageServiceClient<Channel>) -> Self {
        let (requests, new) = mpsc::unbounded_channel();
        let id = [(); 2].map(|()| getrandom::u64().expect("the system has random numbers"));
        let tail = Tail::new(format!("client-{:016x}{:016x}", id[0], id[1]));
        tokio::spawn(Task { client, new, tail, backoff: Backoff::default() }.run());
        let (places, kib) = (Semaphore::new(WINDOW), Semaphore::new(WINDOW_KIB as usize));
        Self { requests, places: Arc::new(places), kib: Arc::new(kib) }
    }

    /// Sends messages to a queue, by its full name, and waits until they are on disk, all or none.
    ///
    /// Dropped before it is ready, they may be stored or not: all or none, once.
    ///
    /// # Errors
    /// As [`Publisher::send`] and [`Receipt`].
    pub async fn publish(&self, queue: &str, messages: Vec<Message>) -> Result<PublishResponse, ClientError> {
        self.send(queue, messages).await?.await
    }

    /// Sends messages to a queue, by its full name; waits only for a place among the requests under way.
    ///
    /// Dropped before it is ready, nothing is sent.
    ///
    /// # Errors
    /// [`ClientError::TooLarge`]; [`ClientError::Ended`] if the runtime that it was made in is gone. The receipt has
    /// the server's refusals.
    pub async fn send(&self, queue: &str, messages: Vec<Message>) -> Result<Receipt, ClientError> {
        let publish = PublishRequest { queue: queue.to_owned(), messages, ..PublishRequest::default() };
        let (bytes, max) = (publish.encoded_len(), REQUEST_BYTES_MAX - ENVELOPE_BYTES);
        if bytes > max {
            return Err(ClientError::TooLarge { bytes: bytes as u64, max: max as u64 });
        }
        let place = self.places.clone().acquire_owned().await.expect("it is never closed");
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(WINDOW_KIB);
        let kib = self.kib.clone().acquire_many_owned(kib).await.expect("it is never closed");
        let (reply, receipt) = oneshot::channel();
        let new = New { publish, reply, _place: [place, kib] };
        self.requests.send(new).map_err(|_| ClientError::Ended)?;
        Ok(Receipt(receipt))
    }
}

/// Brings requests to the server until all are answered and no more can come.
struct Task {
    client: MessageServiceClient<Channel>,
    new: mpsc::UnboundedReceiver<New>,
    tail: Tail,
    backoff: Backoff,
}

impl Task {
    async fn run(mut self) {
        loop {
            if self.tail.is_empty() {
                match self.new.recv().await {
                    // It is sent with the whole tail on the new stream.
                    Some(new) => drop(self.tail.push(new)),
                    None => return,
                }
            }
            let Err(status) = self.stream().await else { return };
            if !is_retryable(&status) {
                self.tail.refuse_first(status);
                continue;
            }
            if self.new.is_closed() && self.new.is_empty() && self.tail.is_forgotten() {
                return;
            }
            if !self.tail.is_empty() {
                tokio::time::sleep(self.backoff.wait(&status)).await;
            }
        }
    }

    /// Sends the tail and what comes on one stream. Returns when all is done, or fails as the stream did.
    async fn stream(&mut self) -> Result<(), Status> {
        let (up, requests) = mpsc::unbounded_channel();
        // Should the stream have ended, its answers say so.
        let send = |request: PublishStreamRequest| drop(up.send(request));
        self.tail.all().into_iter().for_each(send);
        let stream = UnboundedReceiverStream::new(requests);
        let mut answers = self.client.publish_stream(stream).await?.into_inner();
        let mut more = true;
        while more || !self.tail.is_empty() {
            tokio::select! {
                new = self.new.recv(), if more => match new {
                    Some(new) => send(self.tail.push(new)),
                    None => more = false,
                },
                answer = answers.message() => {
                    let ended = || Status::unavailable("the server ended the stream");
                    match self.tail.answer(answer?.ok_or_else(ended)?) {
                        Next::GoOn => self.backoff.reset(),
                        Next::Resend(requests) => requests.into_iter().for_each(send),
                        Next::BackOff(status) => return Err(status),
                    }
                }
            }
        }
        Ok(())
    }
}
