//! `forebay demo`: shows on a real server process that SIGKILL under load loses nothing.
//!
//! Publishers number their requests, so that what was not answered before the kill is sent again after it and still
//! stored once. At the end every message must come back once, byte for byte, in its publisher's order, and a second
//! SIGKILL must not bring back what was acknowledged.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay::client::is_retryable;
use forebay::proto::v1::message_service_client::MessageServiceClient;
use forebay::proto::v1::queue_service_client::QueueServiceClient;
use forebay::proto::v1::{
    AcknowledgeRequest, CreateQueueRequest, Message, Producer, PublishRequest, PullRequest, Queue,
};
use tonic::transport::{Channel, Endpoint};

const QUEUE: &str = "namespaces/default/queues/demo";
const SUBSCRIPTION: &str = "namespaces/default/queues/demo/subscriptions/default";
const PUBLISHERS: u64 = 64;
const BODY_BYTES: usize = 1024;
/// How long publishers run before the kill, and after it.
const BEFORE_KILL: Duration = Duration::from_millis(2500);
const AFTER_KILL: Duration = Duration::from_millis(1500);
/// The whole demo is given up after this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest response taken, bytes.
const RESPONSE_BYTES_MAX: usize = 16 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the demo; fails if anything was lost, invented, changed or out of order.
pub fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let demo = async { tokio::time::timeout(PATIENCE, demo()).await.map_err(|_| "the demo took too long")? };
    runtime.block_on(demo)
}

async fn demo() -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("forebay-demo-").tempdir()?;
    let mut server = Server::start(dir.path(), "127.0.0.1:0")?;
    println!("A server runs on {}, with its data in {}.", server.address, dir.path().display());
    let channel = Endpoint::from_shared(format!("http://{}", server.address))?.connect_lazy();
    let queue = Queue { name: QUEUE.to_owned(), ..Queue::default() };
    let request = CreateQueueRequest { queue: Some(queue), ..Default::default() };
    QueueServiceClient::new(channel.clone()).create_queue(request).await?;

    let run = Arc::new(Run::default());
    let publishers: Vec<_> =
        (0..PUBLISHERS).map(|id| tokio::spawn(publish(channel.clone(), id, Arc::clone(&run)))).collect();
    tokio::time::sleep(BEFORE_KILL).await;
    let answered = run.answered.load(Ordering::Relaxed);
    server.kill()?;
    println!(
        "{PUBLISHERS} publishers sent messages of 1 KiB; {answered} were acknowledged when SIGKILL hit, {:.0}/s.",
        answered as f64 / BEFORE_KILL.as_secs_f64()
    );
    let restart = Instant::now();
    let address = server.address.clone();
    server = Server::start(dir.path(), &address)?;
    println!(
        "Restarted and ready after {} ms, with {} messages recovered; the publishers go on by themselves.",
        restart.elapsed().as_millis(),
        server.recovered
    );
    tokio::time::sleep(AFTER_KILL).await;
    run.stop.store(true, Ordering::Relaxed);
    let mut sent = Vec::new();
    for publisher in publishers {
        sent.push(publisher.await??);
    }
    let total: u64 = sent.iter().sum();
    let resent = run.duplicates.load(Ordering::Relaxed);
    println!(
        "{total} messages acknowledged in all; {resent} sent again after the kill had been stored before it."
    );

    let drain = Instant::now();
    let received = consume(channel.clone()).await?;
    let per_second = total as f64 / drain.elapsed().as_secs_f64();
    check(&sent, &received)?;
    println!("Drained at {per_second:.0}/s: each came back once, byte for byte, in its publisher's order.");
    server.kill()?;
    server = Server::start(dir.path(), &address)?;
    if server.recovered != 0 || !consume(channel).await?.is_empty() {
        return Err("messages came back although their acks had been acknowledged".into());
    }
    println!("SIGKILL and restart again: still empty. Nothing was lost, nothing came twice.");
    server.kill()
}

/// What the publishers share.
#[derive(Default)]
struct Run {
    stop: AtomicBool,
    answered: AtomicU64,
    duplicates: AtomicU64,
}

/// Publishes until told to stop; gives how many messages were acknowledged. Sends again what was not answered.
async fn publish(channel: Channel, publisher: u64, run: Arc<Run>) -> Result<u64, Failure> {
    let mut client = MessageServiceClient::new(channel);
    let mut sequence = 0;
    while !run.stop.load(Ordering::Relaxed) {
        sequence += 1;
        let message = Message { body: body(publisher, sequence).into(), ..Message::default() };
        let producer = Producer { producer_id: format!("demo-{publisher}"), epoch: 1, sequence };
        let request = PublishRequest {
            queue: QUEUE.to_owned(),
            messages: vec![message],
            producer: Some(producer),
            ..Default::default()
        };
        loop {
            match client.publish(request.clone()).await {
                Ok(response) => {
                    let duplicate = response.get_ref().results.first().is_some_and(|result| result.duplicate);
                    run.duplicates.fetch_add(duplicate.into(), Ordering::Relaxed);
                    run.answered.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(status) if is_retryable(&status) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(status) => return Err(status.into()),
            }
        }
    }
    Ok(sequence)
}

/// Takes and acknowledges everything; gives the bodies in order of delivery.
async fn consume(channel: Channel) -> Result<Vec<bytes::Bytes>, Failure> {
    let mut client = MessageServiceClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    let mut bodies = Vec::new();
    loop {
        let request =
            PullRequest { subscription: SUBSCRIPTION.to_owned(), max_messages: 1000, ..Default::default() };
        let messages = match client.pull(request).await {
            Ok(response) => response.into_inner().messages,
            Err(status) if is_retryable(&status) => continue,
            Err(status) => return Err(status.into()),
        };
        if messages.is_empty() {
            return Ok(bodies);
        }
        let ack_ids = messages.iter().map(|received| received.ack_id.clone()).collect();
        bodies
            .extend(messages.into_iter().filter_map(|received| received.message).map(|message| message.body));
        let request = AcknowledgeRequest { subscription: SUBSCRIPTION.to_owned(), ack_ids };
        client.acknowledge(request).await?;
    }
}

/// Every publisher's messages from 1 to its last, once, in order, as they were sent.
fn check(sent: &[u64], received: &[bytes::Bytes]) -> Result<(), Failure> {
    let mut next = vec![1; sent.len()];
    for body in received {
        let word = |at: usize| {
            body.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
        };
        let (Some(publisher), Some(sequence)) = (word(0), word(8)) else {
            return Err("a body is too short".into());
        };
        let expected = next.get_mut(publisher as usize).ok_or("a body was invented")?;
        if sequence != *expected || body[..] != self::body(publisher, sequence)[..] {
            return Err(
                format!("publisher {publisher}: message {sequence} came where {expected} was due").into()
            );
        }
        *expected += 1;
    }
    match next.iter().zip(sent).position(|(next, sent)| next - 1 != *sent) {
        None => Ok(()),
        Some(publisher) => {
            let (got, sent) = (next[publisher] - 1, sent[publisher]);
            Err(format!("publisher {publisher}: {sent} messages were acknowledged and {got} came back")
                .into())
        }
    }
}

/// The message that a publisher sends with a sequence: both numbers, then bytes that follow from them.
fn body(publisher: u64, sequence: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(BODY_BYTES);
    body.extend(publisher.to_le_bytes());
    body.extend(sequence.to_le_bytes());
    let mut word = publisher << 40 | sequence;
    while body.len() < BODY_BYTES {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        body.extend(word.to_le_bytes());
    }
    body
}

/// A server process; killed when dropped.
struct Server {
    child: Child,
    address: String,
    recovered: u64,
}

impl Server {
    fn start(data_dir: &Path, listen: &str) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--listen", listen, "--http", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir.join("data"))
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("the server's output is piped")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let field =
            |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let (Some(address), Some(recovered)) = (field("grpc"), field("recovered_messages")) else {
            let _ = child.wait();
            return Err("the server did not start; see above".into());
        };
        Ok(Self { address: address.to_owned(), recovered: recovered.parse()?, child })
    }

    /// SIGKILL: no chance to write or say anything.
    fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
