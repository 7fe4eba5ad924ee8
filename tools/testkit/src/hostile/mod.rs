//! Hostile requests to every call of a real server, and what must come of them.
//!
//! 1. Each is answered: well, or by a status with an `ErrorInfo` of the domain `forebay`, never UNKNOWN or INTERNAL, of a
//!    size that every client takes.
//! 2. None is applied by half: the offsets of the queue [`generate::COUNTED`] are those that its publishers were told.
//! 3. None concerns what it does not name: that is for the caller to look at, in a namespace other than `hostile`.
//! 4. They get far enough to matter: the server has counted them all, and enough of them had each of the answers [`OFTEN`].

mod generate;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use forebay::proto::v1::*;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{Clients, Server};
use generate::{COUNTED, Generator, Method};

/// Callers at one time.
const CALLERS: u64 = 8;
/// What callers say that they wait, so that long polls end.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the next answer of a stream is waited for: some never end, and say nothing while nothing comes.
const STREAM_WAIT: Duration = Duration::from_millis(50);
/// How long an answer may take before the run says that there is none.
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers that are read of a stream that does not end.
const ANSWERS_MAX: usize = 3;
/// What the server counts them in.
const CALLS: &str = "forebay_rpc_calls_total";
/// Longest message of a status, bytes.
const MESSAGE_BYTES_MAX: usize = 1_100;
/// Answers that at least one request in [`OFTEN_OF`] must have had.
const OFTEN: [&str; 4] = ["Ok", "InvalidArgument", "Unimplemented", "NotFound"];
const OFTEN_OF: u64 = 200;
/// One message in the counted queue for at most so many requests.
const COUNTED_OF: u64 = 500;
/// A stream that was opened and on which nothing came.
const SILENT: &str = "Silent";
/// Violations that are kept.
const KEPT_MAX: usize = 20;

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Hostile {
    pub requests: u64,
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Figures {
    /// Answers by code.
    pub answers: BTreeMap<String, u64>,
    /// Messages that publishers of the counted queue were told of.
    pub counted: u64,
    /// What must not be, the first of them.
    pub violations: Vec<String>,
}

impl Figures {
    pub fn total(&self) -> u64 {
        self.answers.values().sum()
    }

    fn violate(&mut self, what: String) {
        if self.violations.len() < KEPT_MAX {
            self.violations.push(what);
        }
    }
}

struct Shared {
    generator: Generator,
    left: u64,
    figures: Figures,
}

impl Hostile {
    /// Sends them all to a server.
    pub async fn run(&self, server: &Server) -> Figures {
        let address = &server.grpc;
        let counted_before = server.metric(CALLS).await;
        let (generator, figures) = (Generator::new(self.seed), Figures::default());
        let shared = Arc::new(Mutex::new(Shared { generator, left: self.requests, figures }));
        let mut clients = Clients::of(address);
        create(&mut clients, COUNTED).await;
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
                tokio::spawn(call_all(endpoint.connect_lazy(), shared.clone()))
            })
            .collect();
        for caller in callers {
            caller.await.expect("a caller does not panic");
        }
        let mut figures = std::mem::take(&mut lock(&shared).figures);
        let request = GetQueueRequest { name: COUNTED.to_owned() };
        match clients.queues.get_queue(request).await {
            Ok(queue) if queue.get_ref().next_offset == figures.counted => {}
            other => {
                let counted = figures.counted;
                figures.violate(format!("publishers were told of {counted} messages, but: {other:?}"));
            }
        }
        self.judge_counts(&mut figures, server.metric(CALLS).await - counted_before);
        figures
    }

    /// Whether the server has had all of them, and they got far enough to matter.
    fn judge_counts(&self, figures: &mut Figures, counted_by_server: u64) {
        if counted_by_server < self.requests || figures.total() != self.requests {
            let answers = figures.total();
            figures.violate(format!("{answers} answers, but the server has counted {counted_by_server}"));
        }
        for code in OFTEN {
            let count = figures.answers.get(code).copied().unwrap_or_default();
            if count < self.requests / OFTEN_OF {
                figures.violate(format!("only {count} answers are {code}"));
            }
        }
        if figures.counted < self.requests / COUNTED_OF {
            let counted = figures.counted;
            figures.violate(format!("only {counted} messages were stored"));
        }
    }
}

async fn create(clients: &mut Clients, name: &str) {
    let queue = Some(Queue { name: name.to_owned(), ..Queue::default() });
    let request = CreateQueueRequest { queue, ..CreateQueueRequest::default() };
    clients.queues.create_queue(request).await.expect("a queue is made");
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("no caller panics")
}

async fn call_all(channel: Channel, shared: Arc<Mutex<Shared>>) {
    let mut grpc = Grpc::new(channel);
    loop {
        let (method, requests) = {
            let mut shared = lock(&shared);
            if shared.left == 0 {
                return;
            }
            shared.left -= 1;
            shared.generator.next()
        };
        let answered = tokio::time::timeout(PATIENCE, call(&mut grpc, &method, requests.clone())).await;
        let mut shared = lock(&shared);
        let answered = answered.unwrap_or_else(|_| Err(Status::unknown("no answer")));
        let code = match &answered {
            Ok(answers) if answers.is_empty() => SILENT.to_owned(),
            Ok(_) => format!("{:?}", Code::Ok),
            Err(status) => format!("{:?}", status.code()),
        };
        *shared.figures.answers.entry(code).or_default() += 1;
        match answered {
            Ok(answers) => shared.learn(&method, &requests, &answers),
            Err(status) => {
                if let Some(why) = is_wrong(&status) {
                    let request: Vec<String> = requests.iter().map(|bytes| hex(bytes)).collect();
                    shared.figures.violate(format!("{}: {why}: {status:?} to {request:?}", method.path));
                }
            }
        }
    }
}

/// Calls a method; of a stream of answers the first ones.
async fn call(
    grpc: &mut Grpc<Channel>,
    method: &Method,
    requests: Vec<Vec<u8>>,
) -> Result<Vec<Bytes>, Status> {
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = method.path.parse().expect("a path");
    let mut requests = requests.into_iter().map(Bytes::from);
    let timed = |mut request: Request<_>| {
        request.set_timeout(TIMEOUT);
        request
    };
    if !method.gives_stream && !method.takes_stream {
        let request = timed(Request::new(requests.next().expect("there is one")));
        return Ok(vec![grpc.unary(request, path, BytesCodec).await?.into_inner()]);
    }
    let mut request = Request::new(tokio_stream::iter(requests));
    request.set_timeout(TIMEOUT);
    let mut answers = grpc.streaming(request, path, BytesCodec).await?.into_inner();
    let mut all = Vec::new();
    while all.len() < ANSWERS_MAX
        && let Ok(Some(answer)) = tokio::time::timeout(STREAM_WAIT, answers.next()).await
    {
        all.push(answer?);
    }
    Ok(all)
}

/// Why a status must not be.
fn is_wrong(status: &Status) -> Option<&'static str> {
    let details = status.get_error_details();
    match details.error_info() {
        _ if matches!(status.code(), Code::Unknown | Code::Internal) => Some("no code of ours"),
        None => Some("no ErrorInfo"),
        Some(info) if info.domain != "forebay" || info.reason.is_empty() => Some("no reason of ours"),
        _ if status.message().is_empty() || status.message().len() > MESSAGE_BYTES_MAX => Some("its message"),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(200).map(|byte| format!("{byte:02x}")).collect()
}

impl Shared {
    /// Keeps strings that come back in later requests, and counts what was stored.
    fn learn(&mut self, method: &Method, requests: &[Vec<u8>], answers: &[Bytes]) {
        let Some(answer) = answers.first().cloned() else { return };
        match method.path.rsplit('/').next().unwrap_or_default() {
            "Publish" => {
                let (Ok(request), Ok(answer)) =
                    (PublishRequest::decode(&requests[0][..]), PublishResponse::decode(answer))
                else {
                    return self.figures.violate("an answer to a publish that cannot be read".to_owned());
                };
                if request.queue == COUNTED {
                    self.figures.counted += answer.results.iter().filter(|one| !one.duplicate).count() as u64;
                }
                for result in answer.results.into_iter().take(1) {
                    self.generator.learn("message_id", result.message_id);
                }
            }
            "Pull" => {
                for received in PullResponse::decode(answer).into_iter().flat_map(|pulled| pulled.messages) {
                    self.generator.learn("ack_ids", received.ack_id.clone());
                    self.generator.learn("ack_id", received.ack_id);
                }
            }
            "GetQueue" => {
                if let Ok(queue) = Queue::decode(answer) {
                    self.generator.learn("etag", queue.etag);
                }
            }
            "ListQueues" => {
                if let Ok(page) = ListQueuesResponse::decode(answer) {
                    self.generator.learn("page_token", page.next_page_token);
                }
            }
            _ => {}
        }
    }
}

/// Messages as bytes, so that any bytes can be sent.
#[derive(Clone, Copy, Debug, Default)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}
