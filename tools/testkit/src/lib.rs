//! What tests, drills and fault runs share: real server processes on loopback, clients for them, seeded payloads.

pub mod attack;
pub mod fixtures;
pub mod flips;
pub mod fuzz;
pub mod hostile;
pub mod memory_disk;
pub mod payload;
pub mod server;
pub mod torture;

pub use server::{Server, ServerOptions};

use std::time::Duration;

use forebay::proto::v1::admin_service_client::AdminServiceClient;
use forebay::proto::v1::message_service_client::MessageServiceClient;
use forebay::proto::v1::queue_service_client::QueueServiceClient;
use tonic::transport::{Channel, Endpoint};

/// Largest response that a client takes, bytes.
const RESPONSE_BYTES_MAX: usize = 64 << 20;
/// How long a connection may be silent on a question, and half of that without one.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The three services over one connection.
#[derive(Clone, Debug)]
pub struct Clients {
    pub queues: QueueServiceClient<Channel>,
    pub messages: MessageServiceClient<Channel>,
    pub admin: AdminServiceClient<Channel>,
    /// For other clients over the same connection.
    pub channel: Channel,
}

impl Clients {
    /// Clients of `HOST:PORT`; the connection is made when it is first needed, and made again when it breaks.
    pub fn of(address: &str) -> Self {
        Self::over(endpoint(address))
    }

    /// The same, but a connection that nothing comes from is soon given up: its server may be gone without a word.
    pub fn watchful(address: &str) -> Self {
        let endpoint = endpoint(address).connect_timeout(SILENCE_MAX);
        Self::over(endpoint.http2_keep_alive_interval(SILENCE_MAX / 2).keep_alive_timeout(SILENCE_MAX))
    }

    fn over(endpoint: Endpoint) -> Self {
        let channel = endpoint.connect_lazy();
        Self {
            queues: QueueServiceClient::new(channel.clone()),
            messages: MessageServiceClient::new(channel.clone())
                .max_decoding_message_size(RESPONSE_BYTES_MAX),
            admin: AdminServiceClient::new(channel.clone()),
            channel,
        }
    }
}

fn endpoint(address: &str) -> Endpoint {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL");
    endpoint
        .max_frame_size(1 << 20)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true)
}

/// The full name of a queue of the namespace `default`.
pub fn queue(name: &str) -> String {
    format!("namespaces/default/queues/{name}")
}

/// The full name of a queue's subscription `default`.
pub fn subscription(queue_name: &str) -> String {
    format!("{}/subscriptions/default", queue(queue_name))
}
