//! What tests, drills and fault runs share: real server processes on loopback, clients for them, seeded payloads.

pub mod fixtures;
pub mod payload;
pub mod server;
pub mod torture;

pub use server::{Server, ServerOptions};

use forebay::proto::v1::admin_service_client::AdminServiceClient;
use forebay::proto::v1::message_service_client::MessageServiceClient;
use forebay::proto::v1::queue_service_client::QueueServiceClient;
use tonic::transport::{Channel, Endpoint};

/// Largest response that a client takes, bytes.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// The three services over one connection.
#[derive(Clone, Debug)]
pub struct Clients {
    pub queues: QueueServiceClient<Channel>,
    pub messages: MessageServiceClient<Channel>,
    pub admin: AdminServiceClient<Channel>,
}

impl Clients {
    /// Clients of `HOST:PORT`; the connection is made when it is first needed, and made again when it breaks.
    pub fn of(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL");
        let channel = endpoint
            .max_frame_size(1 << 20)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .tcp_nodelay(true)
            .connect_lazy();
        Self {
            queues: QueueServiceClient::new(channel.clone()),
            messages: MessageServiceClient::new(channel.clone())
                .max_decoding_message_size(RESPONSE_BYTES_MAX),
            admin: AdminServiceClient::new(channel),
        }
    }
}

/// The full name of a queue of the namespace `default`.
pub fn queue(name: &str) -> String {
    format!("namespaces/default/queues/{name}")
}

/// The full name of a queue's subscription `default`.
pub fn subscription(queue_name: &str) -> String {
    format!("{}/subscriptions/default", queue(queue_name))
}
