//! The connection to the server. It opens with the first call and opens again after it broke.

use std::future::Future;
use std::time::Duration;

use forebay::proto::v1::admin_service_client::AdminServiceClient;
use forebay::proto::v1::message_service_client::MessageServiceClient;
use forebay::proto::v1::queue_service_client::QueueServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::errors::CtlError;

/// How long an answer may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// An answer has up to 8 MiB of bodies, more if one message is larger, and what describes them.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A server, by address.
#[derive(Clone, Debug)]
pub struct Server {
    channel: Channel,
}

impl Server {
    /// Takes `http://HOST:PORT`, or `HOST:PORT` for short. Does not connect yet.
    pub fn new(url: &str) -> Result<Self, CtlError> {
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        if !full.starts_with("http://") {
            return Err(CtlError::Usage(format!(
                "the server {url:?} must begin with http://; TLS is not built"
            )));
        }
        let endpoint = Endpoint::from_shared(full)
            .map_err(|e| {
                CtlError::Usage(format!("{url:?} is no server address ({e}); give http://HOST:PORT"))
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { channel: endpoint.connect_lazy() })
    }

    pub fn queues(&self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.channel.clone())
    }

    pub fn messages(&self) -> MessageServiceClient<Channel> {
        MessageServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }
}

/// Waits for an answer, at most `CALL_TIMEOUT`.
pub async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(result) => result.map(Response::into_inner),
        Err(_) => {
            let seconds = CALL_TIMEOUT.as_secs();
            Err(Status::deadline_exceeded(format!("the server did not answer within {seconds} s")))
        }
    }
}
