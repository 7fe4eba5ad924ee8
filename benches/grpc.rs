//! The whole server over loopback, with the Rust client: publishing and pulling, durable as ever.

use std::net::SocketAddr;

use criterion::{BatchSize, Criterion, Throughput};
use forebay::client::Client;
use forebay::config::{Config, LogFormat};
use forebay::limits::CONNECTIONS_DEFAULT;
use forebay::log::SEGMENT_BYTES_DEFAULT;
use forebay::proto::v1::{
    AcknowledgeRequest, CreateQueueRequest, Message, PublishRequest, PublishResponse, PullRequest, Queue,
};
use forebay::server;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{QUEUE, SUBSCRIPTION, group, runtime};

const BODY_BYTES: usize = 1 << 10;
/// Requests under way at one time, and messages of one pull.
const TOGETHER: usize = 64;

/// Starts a server on a thread of its own; it ends with the process.
fn start(data_dir: std::path::PathBuf) -> SocketAddr {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let (segment_bytes, log_format) = (SEGMENT_BYTES_DEFAULT, LogFormat::Text);
    let (connections, connections_per_address) = (CONNECTIONS_DEFAULT, CONNECTIONS_DEFAULT);
    let config = Config {
        data_dir,
        listen: local,
        http: local,
        log_format,
        segment_bytes,
        connections,
        connections_per_address,
    };
    let (ready, started) = oneshot::channel();
    std::thread::spawn(move || {
        let serving = server::serve(config, |is| ready.send(is.grpc).expect("it is waited for"));
        runtime().block_on(serving).expect("it serves")
    });
    started.blocking_recv().expect("the server starts")
}

async fn connect(address: SocketAddr) -> Client {
    let client = Client::connect(&format!("http://{address}")).await.expect("it answers");
    let queue = Some(Queue { name: QUEUE.to_owned(), ..Queue::default() });
    client
        .queues()
        .create_queue(CreateQueueRequest { queue, ..Default::default() })
        .await
        .expect("it is new");
    client
}

fn messages(count: usize) -> Vec<Message> {
    vec![Message { body: vec![7; BODY_BYTES].into(), ..Message::default() }; count]
}

async fn publish(client: &Client, count: usize) -> PublishResponse {
    let request = PublishRequest { queue: QUEUE.to_owned(), messages: messages(count), ..Default::default() };
    client.messages().publish(request).await.expect("it is stored").into_inner()
}

async fn publish_at_once(client: &Client) {
    let mut calls = JoinSet::new();
    for _ in 0..TOGETHER {
        let client = client.clone();
        calls.spawn(async move { publish(&client, 1).await });
    }
    assert_eq!(calls.join_all().await.len(), TOGETHER);
}

async fn pull_and_acknowledge(client: &Client) {
    let subscription = SUBSCRIPTION.to_owned();
    let request = PullRequest {
        subscription: subscription.clone(),
        max_messages: TOGETHER as u32,
        ..Default::default()
    };
    let pulled = client.messages().pull(request).await.expect("messages wait").into_inner().messages;
    assert_eq!(pulled.len(), TOGETHER);
    let ack_ids = pulled.into_iter().map(|received| received.ack_id).collect();
    client.messages().acknowledge(AcknowledgeRequest { subscription, ack_ids }).await.expect("they are held");
}

pub fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("there is space for a directory");
    let runtime: Runtime = runtime();
    let client = runtime.block_on(connect(start(dir.path().join("data"))));
    let mut group = group(criterion, "grpc");
    group.throughput(Throughput::Elements(TOGETHER as u64));
    // First, while there is no backlog but its own.
    group.bench_function("pull_ack", |bencher| {
        bencher.iter_batched(
            || runtime.block_on(publish(&client, TOGETHER)),
            |_| runtime.block_on(pull_and_acknowledge(&client)),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("publish_batch", |bencher| {
        bencher.iter(|| runtime.block_on(publish(&client, TOGETHER)));
    });
    group.bench_function("publish_unary_at_once", |bencher| {
        bencher.iter(|| runtime.block_on(publish_at_once(&client)));
    });
    let publisher = runtime.block_on(async { client.publisher() });
    group.bench_function("publish_stream", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut receipts = Vec::with_capacity(TOGETHER);
                for _ in 0..TOGETHER {
                    receipts.push(publisher.send(QUEUE, messages(1)).await.expect("it is sent"));
                }
                for receipt in receipts {
                    receipt.await.expect("it is stored");
                }
            });
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("publish_unary", |bencher| {
        bencher.iter(|| runtime.block_on(publish(&client, 1)));
    });
    group.finish();
}
