//! What the tests share: short forms of calls, looks at errors, streams that never wait for ever.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay::proto::v1::nack_entry::{Ending, Reject, Release, Retry};
use forebay::proto::v1::subscribe_request::{Acks, Credit, Open, Request as Up};
use forebay::proto::v1::subscribe_response::{AckResults, Response as Down};
use forebay::proto::v1::*;
use forebay_testkit::server::binary;
pub use forebay_testkit::server::http_get;
use forebay_testkit::{Clients, Server, ServerOptions, queue, subscription};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// How long anything may take before the test is given up; nothing is measured against it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A place for a server: a data directory of its own, and how to start on it.
pub struct Site {
    pub folder: TempDir,
    pub options: ServerOptions,
}

impl Site {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), options: ServerOptions::small_segments() }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn start(&self) -> Server {
        Server::start(&self.data(), &self.options)
    }
}

/// A server on a site of its own, with one queue `q`.
pub async fn with_queue() -> (Site, Server, Clients) {
    let site = Site::new();
    let server = site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    (site, server, clients)
}

/// Ends a server by SIGTERM while this task's clients go on.
pub async fn end(server: Server) -> (ExitStatus, String) {
    tokio::task::spawn_blocking(move || server.terminate()).await.unwrap()
}

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub fn message(body: impl AsRef<[u8]>) -> Message {
    Message { body: body.as_ref().to_vec().into(), ..Message::default() }
}

/// `count` numbered bodies.
pub fn bodies(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("message {n}").into_bytes()).collect()
}

pub async fn create(clients: &mut Clients, name: &str) -> Queue {
    let request = CreateQueueRequest {
        queue: Some(Queue { name: queue(name), ..Queue::default() }),
        ..CreateQueueRequest::default()
    };
    clients.queues.create_queue(request).await.unwrap().into_inner()
}

pub async fn get_queue(clients: &mut Clients, name: &str) -> Queue {
    clients.queues.get_queue(GetQueueRequest { name: queue(name) }).await.unwrap().into_inner()
}

pub async fn delete(clients: &mut Clients, name: &str) {
    let request = DeleteQueueRequest { name: queue(name), ..DeleteQueueRequest::default() };
    clients.queues.delete_queue(request).await.unwrap();
}

/// Makes a subscription of a queue; gives its full name.
pub async fn subscribe_to(
    clients: &mut Clients,
    queue_name: &str,
    name: &str,
    start: Option<position::Position>,
    max_in_flight: u64,
) -> String {
    let name = format!("{}/subscriptions/{name}", queue(queue_name));
    let request = CreateSubscriptionRequest {
        subscription: Some(Subscription { name: name.clone(), max_in_flight, ..Subscription::default() }),
        start: start.map(|position| Position { position: Some(position) }),
        ..CreateSubscriptionRequest::default()
    };
    clients.queues.create_subscription(request).await.unwrap();
    name
}

/// Publishes bodies in one request; gives the first one's offset.
pub async fn publish<B: AsRef<[u8]>>(clients: &mut Clients, name: &str, bodies: &[B]) -> u64 {
    let messages = bodies.iter().map(message).collect();
    let request = PublishRequest { queue: queue(name), messages, ..PublishRequest::default() };
    clients.messages.publish(request).await.unwrap().into_inner().results[0].offset
}

/// Publishes numbered messages, in requests of 100.
pub async fn publish_numbered(clients: &mut Clients, name: &str, count: usize) {
    for chunk in bodies(count).chunks(100) {
        publish(clients, name, chunk).await;
    }
}

/// Pulls what is there at once, or waits up to `wait_s` for something, from a subscription by its full name.
pub async fn pull_from(
    clients: &mut Clients,
    subscription: &str,
    max_messages: u32,
    wait_s: i64,
    lease_s: Option<i64>,
) -> Vec<ReceivedMessage> {
    let request = PullRequest {
        subscription: subscription.to_owned(),
        max_messages,
        max_bytes: 0,
        wait: Some(seconds(wait_s)),
        lease: lease_s.map(seconds),
    };
    clients.messages.pull(request).await.unwrap().into_inner().messages
}

/// Pulls what is there at once from a queue's default subscription.
pub async fn pull(clients: &mut Clients, name: &str, max_messages: u32) -> Vec<ReceivedMessage> {
    pull_from(clients, &subscription(name), max_messages, 0, None).await
}

/// Pulls exactly one message, waiting for it: longer than a lease lasts, for one that somebody else may have.
pub async fn pull_one(clients: &mut Clients, name: &str) -> ReceivedMessage {
    let mut received = pull_from(clients, &subscription(name), 1, 45, None).await;
    assert_eq!(received.len(), 1, "a message comes within the wait");
    received.remove(0)
}

pub fn body(received: &ReceivedMessage) -> &[u8] {
    &received.message.as_ref().unwrap().body
}

pub fn offsets(received: &[ReceivedMessage]) -> Vec<u64> {
    received.iter().map(|received| received.message.as_ref().unwrap().offset).collect()
}

pub fn attempts(received: &[ReceivedMessage]) -> Vec<u32> {
    received.iter().map(|received| received.attempt).collect()
}

pub fn ack_ids(received: &[ReceivedMessage]) -> Vec<String> {
    received.iter().map(|received| received.ack_id.clone()).collect()
}

/// What became of each id; the indexes must count up.
pub fn outcomes(results: &[AckResult]) -> Vec<Outcome> {
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result.index as usize, index);
    }
    results.iter().map(|result| result.status()).collect()
}

pub async fn ack(clients: &mut Clients, subscription: &str, ack_ids: Vec<String>) -> Vec<Outcome> {
    let request = AcknowledgeRequest { subscription: subscription.to_owned(), ack_ids };
    outcomes(&clients.messages.acknowledge(request).await.unwrap().into_inner().results)
}

pub async fn nack(
    clients: &mut Clients,
    subscription: &str,
    ack_ids: Vec<String>,
    ending: Ending,
) -> Vec<AckResult> {
    let entry = |ack_id| NackEntry { ack_id, ending: Some(ending.clone()) };
    let entries = ack_ids.into_iter().map(entry).collect();
    let request = NackRequest { subscription: subscription.to_owned(), entries };
    clients.messages.nack(request).await.unwrap().into_inner().results
}

pub async fn extend(
    clients: &mut Clients,
    subscription: &str,
    ack_ids: Vec<String>,
    lease_s: i64,
) -> Vec<Outcome> {
    let lease = Some(seconds(lease_s));
    let request = ExtendLeaseRequest { subscription: subscription.to_owned(), ack_ids, lease };
    outcomes(&clients.messages.extend_lease(request).await.unwrap().into_inner().results)
}

pub fn retry(delay_s: i64) -> Ending {
    Ending::Retry(Retry { delay: Some(seconds(delay_s)), error: String::new() })
}

pub fn release() -> Ending {
    Ending::Release(Release {})
}

pub fn reject(error: &str) -> Ending {
    Ending::Reject(Reject { error: error.to_owned() })
}

/// Pulls and acknowledges until nothing comes; gives the bodies in order.
pub async fn drain(clients: &mut Clients, name: &str) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    loop {
        let received = pull(clients, name, 100).await;
        if received.is_empty() {
            return bodies;
        }
        bodies.extend(received.iter().map(|received| body(received).to_vec()));
        let outcomes = ack(clients, &subscription(name), ack_ids(&received)).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Ok), "{outcomes:?}");
    }
}

pub async fn server_stats(clients: &mut Clients) -> ServerStats {
    let request = GetStatsRequest::default();
    clients.admin.get_stats(request).await.unwrap().into_inner().server.unwrap()
}

pub async fn stats_of(clients: &mut Clients, subscription: &str) -> SubscriptionStats {
    let request = GetSubscriptionRequest { name: subscription.to_owned() };
    clients.queues.get_subscription(request).await.unwrap().into_inner().stats.unwrap()
}

/// Checks an error's code, reason and domain; gives its details.
#[track_caller]
pub fn check_error(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(
        (status.code(), info.reason.as_str(), info.domain.as_str()),
        (code, reason, "forebay"),
        "{status:?}"
    );
    assert!(!status.message().is_empty());
    details
}

/// Checks an error about one field: INVALID_ARGUMENT whose BadRequest names it, or UNIMPLEMENTED with it as metadata.
#[track_caller]
pub fn check_field(status: &Status, reason: &str, field: &str) {
    if reason == "FIELD_NOT_BUILT" {
        let details = check_error(status, Code::Unimplemented, reason);
        assert_eq!(details.error_info().unwrap().metadata["field"], field, "{status:?}");
        return;
    }
    let details = check_error(status, Code::InvalidArgument, reason);
    let violations =
        &details.bad_request().unwrap_or_else(|| panic!("no BadRequest in {status:?}")).field_violations;
    assert_eq!(violations.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(), [field], "{status:?}");
    assert!(!violations[0].description.is_empty());
}

/// One Subscribe stream. Dropping it ends it.
pub struct Stream {
    up: mpsc::UnboundedSender<SubscribeRequest>,
    down: Streaming<SubscribeResponse>,
}

impl Stream {
    /// Opens a stream with this much credit, and takes its first answer.
    pub async fn open(clients: &mut Clients, subscription: &str, messages: u64, bytes: u64) -> Self {
        let (up, requests) = mpsc::unbounded_channel();
        let credit = Some(Credit { messages, bytes });
        let open = Open { subscription: subscription.to_owned(), lease: None, credit };
        up.send(SubscribeRequest { request: Some(Up::Open(open)) }).unwrap();
        let answers = clients.messages.subscribe(UnboundedReceiverStream::new(requests)).await.unwrap();
        let mut stream = Self { up, down: answers.into_inner() };
        assert!(matches!(stream.next().await, Ok(Some(Down::Opened(_)))));
        stream
    }

    pub fn credit(&self, messages: u64, bytes: u64) {
        self.send(Up::Credit(Credit { messages, bytes }));
    }

    pub fn send(&self, request: Up) {
        self.up.send(SubscribeRequest { request: Some(request) }).unwrap();
    }

    /// Ends the client's side; answers still come.
    pub fn end_requests(self) -> Self {
        Self { up: mpsc::unbounded_channel().0, ..self }
    }

    /// Sends acks and waits for their results; whatever else comes first must be heartbeats.
    pub async fn settle(&mut self, acks: Acks) -> AckResults {
        self.send(Up::Acks(acks));
        match self.next().await {
            Ok(Some(Down::AckResults(results))) => results,
            other => panic!("ack results expected, not {other:?}"),
        }
    }

    /// The next answer other than a heartbeat; none at the stream's end.
    pub async fn next(&mut self) -> Result<Option<Down>, Status> {
        loop {
            let answer =
                tokio::time::timeout(PATIENCE, self.down.message()).await.expect("the stream goes on");
            match answer?.map(|answer| answer.response.expect("an answer is not empty")) {
                Some(Down::Heartbeat(_)) => {}
                other => return Ok(other),
            }
        }
    }

    /// Takes exactly this many messages.
    pub async fn take(&mut self, count: usize) -> Vec<ReceivedMessage> {
        let mut messages = Vec::new();
        while messages.len() < count {
            match self.next().await {
                Ok(Some(Down::Deliveries(deliveries))) => messages.extend(deliveries.messages),
                other => {
                    panic!("deliveries expected, {} of {count} have come, not {other:?}", messages.len())
                }
            }
        }
        assert_eq!(messages.len(), count);
        messages
    }
}

/// RssAnon + RssShmem of a server.
pub fn resident_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    field("RssAnon:") + field("RssShmem:")
}

/// One figure of a server's metrics.
pub async fn metric(server: &Server, name: &str) -> u64 {
    server.metric(name).await
}

/// Every file below a path with its bytes; directories with none. `LOCK` may change: it names its last taker.
pub fn contents(path: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut paths = vec![path.to_owned()];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            all.insert(path, None);
        } else if path.exists() && !path.ends_with("LOCK") {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, Some(bytes));
        }
    }
    all
}

/// Runs `forebay` to its end: exit code, standard output, standard error.
pub fn forebay(arguments: &[&str], data: &Path) -> (i32, String, String) {
    let (command, rest) = arguments.split_first().unwrap();
    let output = Command::new(binary()).arg(command).arg(data).args(rest).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A copy of a data directory, in a folder of its own.
pub fn copy_of(data: &Path) -> Site {
    let site = tiny_segments();
    for (path, bytes) in contents(data) {
        let to = site.data().join(path.strip_prefix(data).unwrap());
        match bytes {
            Some(bytes) => fs::write(to, bytes).unwrap(),
            None => fs::create_dir_all(to).unwrap(),
        }
    }
    site
}

/// A site with the smallest log files there are.
pub fn tiny_segments() -> Site {
    let mut site = Site::new();
    site.options.config = "segment_bytes = 262144\n".to_owned();
    site
}

/// The files in a directory of a data directory whose names end so, in order.
pub fn files(data: &Path, dir: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join(dir)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    files
}

/// Flips one bit of a file.
pub fn flip(file: &Path, position: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[position] ^= 1 << (position % 8);
    fs::write(file, bytes).unwrap();
}
