//! `cargo xtask sanitize`: the server under valgrind's memcheck, through two lives: publishing over several segments,
//! consuming, recovery, index files that are mapped, a clean end. One access to memory that is not the server's, or that
//! was never written, fails the run.

use std::collections::BTreeSet;
use std::path::Path;

use forebay::proto::v1::{
    AcknowledgeRequest, CreateQueueRequest, Message, PublishRequest, PullRequest, Queue,
};
use forebay_testkit::{Server, ServerOptions, queue, subscription};
use tonic::Status;

const MESSAGES: u64 = 60;
const BODY_BYTES: usize = 20_000;
const QUEUE: &str = "sanitized";
/// What valgrind ends with where it has found something.
const FOUND: &str = "--error-exitcode=99";

pub fn run() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let runtime = crate::runtime()?;
    life(
        dir.path(),
        async |server| {
            publish(server).await?;
            consume(server, MESSAGES / 3).await
        },
        &runtime,
    )?;
    let rest = life(dir.path(), async |server| consume(server, MESSAGES).await, &runtime)?;
    let expected = (MESSAGES / 3..MESSAGES).collect();
    if rest != expected {
        return Err(format!("{rest:?} came after the restart, not {expected:?}"));
    }
    println!("memcheck found nothing in two lives of the server");
    Ok(())
}

/// Runs the server under memcheck, and ends it.
fn life<T>(
    data_dir: &Path,
    work: impl AsyncFnOnce(&Server) -> Result<T, Status>,
    runtime: &tokio::runtime::Runtime,
) -> Result<T, String> {
    let wrapper = ["valgrind", "--quiet", FOUND, "--fair-sched=yes"].map(str::to_owned).to_vec();
    let config = "segment_bytes = 262144\n".to_owned();
    let server = Server::try_start(data_dir, &ServerOptions { wrapper, config, ..ServerOptions::default() })?;
    let done = runtime.block_on(work(&server)).map_err(|status| status.to_string());
    let (status, stderr) = server.terminate();
    if !status.success() {
        return Err(format!("the server under valgrind ended with {status}:\n{stderr}"));
    }
    done
}

async fn publish(server: &Server) -> Result<(), Status> {
    let mut clients = server.clients();
    let request = CreateQueueRequest {
        queue: Some(Queue { name: queue(QUEUE), ..Queue::default() }),
        ..CreateQueueRequest::default()
    };
    clients.queues.create_queue(request).await?;
    for number in 0..MESSAGES {
        let message = Message { body: vec![number as u8; BODY_BYTES].into(), ..Message::default() };
        let request =
            PublishRequest { queue: queue(QUEUE), messages: vec![message], ..PublishRequest::default() };
        clients.messages.publish(request).await?;
    }
    Ok(())
}

/// Takes and acknowledges up to so many messages; their offsets.
async fn consume(server: &Server, count: u64) -> Result<BTreeSet<u64>, Status> {
    let (mut messages, mut offsets) = (server.clients().messages, BTreeSet::new());
    while (offsets.len() as u64) < count {
        let max_messages = (count - offsets.len() as u64).min(10) as u32;
        let request =
            PullRequest { subscription: subscription(QUEUE), max_messages, ..PullRequest::default() };
        let received = messages.pull(request).await?.into_inner().messages;
        if received.is_empty() {
            break;
        }
        let ack_ids = received.iter().map(|received| received.ack_id.clone()).collect();
        for message in received.into_iter().filter_map(|received| received.message) {
            if message.body.iter().any(|byte| *byte != message.offset as u8) {
                return Err(Status::internal(format!(
                    "message {} is not what was published",
                    message.offset
                )));
            }
            offsets.insert(message.offset);
        }
        messages.acknowledge(AcknowledgeRequest { subscription: subscription(QUEUE), ack_ids }).await?;
    }
    Ok(offsets)
}
