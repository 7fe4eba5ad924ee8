//! The Rust client: publishing that never stores twice, consuming that keeps its leases.
//!
//! It speaks the API of `proto/` and nothing else. What it promises:
//!
//! 1. A publish that succeeds is on disk, once, however often the connection broke or the server was started again.
//! 2. What is tried again is a lost connection, UNAVAILABLE, and whatever the server gave a retry delay; nothing else.
//!    It is tried without end: who cannot wait for ever puts a timeout of their own around the call.
//! 3. A delivery's lease is extended while its handler runs; when it is lost all the same, its token says so.
//! 4. Memory is bounded: a publisher by its window, a consumer by its concurrency and bytes.
//!
//! ```
//! use forebay::client::{Client, ConsumerOptions, Delivery, Ending};
//! use forebay::proto::v1::{CreateQueueRequest, Message, Queue};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # // A server of this process, on a port of its own choice.
//! # let (ready, started) = tokio::sync::oneshot::channel();
//! # let file = folder.path().join("forebay.toml");
//! # std::fs::write(&file, "listen = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\nsegment_bytes = 1048576\n")?;
//! # let data_dir = Some(folder.path().join("data"));
//! # let overrides = forebay::config::Overrides { data_dir, ..Default::default() };
//! # let config = forebay::config::Config::load(Some(&file), &overrides)?;
//! # let server = tokio::spawn(forebay::server::serve(config, |is| drop(ready.send(is.grpc))));
//! # let url = format!("http://{}", started.await?);
//! // For example "http://127.0.0.1:7070".
//! let client = Client::connect(&url).await?;
//! let name = "namespaces/default/queues/jobs";
//! let queue = Some(Queue { name: name.to_owned(), ..Queue::default() });
//! client.queues().create_queue(CreateQueueRequest { queue, ..Default::default() }).await?;
//!
//! let publisher = client.publisher();
//! let message = |body: &'static str| Message { body: body.into(), ..Message::default() };
//! // Two requests under way at once; each answers when it is on disk.
//! let first = publisher.send(name, vec![message("one")]).await?;
//! let second = publisher.send(name, vec![message("two"), message("three")]).await?;
//! assert_eq!(first.await?.results[0].offset, 0);
//! assert_eq!(second.await?.results.len(), 2);
//!
//! let (seen, mut bodies) = tokio::sync::mpsc::unbounded_channel();
//! let handler = move |delivery: Delivery| {
//!     let seen = seen.clone();
//!     async move {
//!         let _ = seen.send(delivery.message.body);
//!         Ending::Ack
//!     }
//! };
//! let subscription = format!("{name}/subscriptions/default");
//! let consumer = client.consume(&subscription, ConsumerOptions::default(), handler);
//! for _ in 0..3 {
//!     bodies.recv().await.expect("three messages come");
//! }
//! consumer.stop().await?;
//! # server.abort();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok(())
//! # }
//! ```

mod consumer;
mod error;
mod lease;
mod publisher;
mod retry;
mod session;
mod settling;
mod tail;

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::proto::v1::GetServerInfoRequest;
use crate::proto::v1::admin_service_client::AdminServiceClient;
use crate::proto::v1::message_service_client::MessageServiceClient;
use crate::proto::v1::queue_service_client::QueueServiceClient;

pub use consumer::{Consumer, ConsumerOptions, Delivery, Ending};
pub use error::{ClientError, Refused};
pub use lease::Lease;
pub use publisher::{Publisher, Receipt};
pub use retry::{is_lost_connection, is_retryable};

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that says nothing for this long is asked, and given up when it does not answer for as long again.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// What a server may have under way unread, on a stream and on the connection, bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Large frames: fewer copies and wakeups.
const FRAME_BYTES_MAX: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest response taken, bytes: the largest delivery and its envelope.
const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// A connection to a server; its clones share it. It is made again whenever it breaks.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to a server, `http://HOST:PORT`, and asks who it is. May be dropped at any time.
    ///
    /// # Errors
    /// [`ClientError::Url`] if that is no address, [`ClientError::Connect`] if no server answers there.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        let wrong = |error: tonic::transport::Error| ClientError::Url {
            url: url.to_owned(),
            why: error::with_causes(&error),
        };
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(wrong)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .max_frame_size(FRAME_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .tcp_nodelay(true);
        let client = Self { channel: endpoint.connect_lazy() };
        let info = client.admin().get_server_info(GetServerInfoRequest {}).await;
        match info {
            Ok(_) => Ok(client),
            Err(status) => {
                let why = error::with_causes(&status);
                Err(ClientError::Connect { url: url.to_owned(), why })
            }
        }
    }

    /// A publisher with an id of its own. Must be called in a Tokio runtime.
    pub fn publisher(&self) -> Publisher {
        Publisher::start(self.messages())
    }

    /// Hands the messages of a subscription, by its full name, to a handler until it is stopped; its answer ends the
    /// delivery. A handler that panics is a [`Ending::Retry`]. Must be called in a Tokio runtime.
    pub fn consume<F, R>(&self, subscription: &str, options: ConsumerOptions, handler: F) -> Consumer
    where
        F: Fn(Delivery) -> R + Send + Sync + 'static,
        R: Future<Output = Ending> + Send + 'static,
    {
        Consumer::start(self.messages(), subscription.to_owned(), options, handler)
    }

    /// The calls about queues and subscriptions, as they are in the API.
    pub fn queues(&self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.channel.clone())
    }

    /// The calls about messages, as they are in the API.
    pub fn messages(&self) -> MessageServiceClient<Channel> {
        MessageServiceClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX)
    }

    /// The calls about the server, as they are in the API.
    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }
}
