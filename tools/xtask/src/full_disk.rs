//! `cargo xtask full-disk`: a server on a file system of a few megabytes is filled until it refuses, killed while it
//! is full, emptied, and filled again; without a restart in between publishing must go on by itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forebay::proto::v1::{
    AcknowledgeRequest, CreateQueueRequest, Message, PublishRequest, PullRequest, Queue, ReceivedMessage,
};
use forebay_testkit::{Clients, Server, ServerOptions, queue, subscription};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const QUEUE: &str = "filling";
const DISK_BYTES: u64 = 48 << 20;
const BODY_BYTES: usize = 40_000;
/// How long publishing may stay refused when all is finished.
const RESUME_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A small file system; unmounted when dropped.
struct SmallDisk {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

pub fn run(rounds: u64) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a small file system needs root");
        return if std::env::var_os("CI").is_some() { Err("skipped in CI".to_owned()) } else { Ok(()) };
    }
    let disk = SmallDisk::make()?;
    crate::runtime()?.block_on(rounds_on(&disk.at.join("data"), rounds))
}

impl SmallDisk {
    fn make() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        let file = std::fs::File::create(&image).and_then(|file| file.set_len(DISK_BYTES));
        file.and_then(|()| std::fs::create_dir(&at)).map_err(|error| error.to_string())?;
        let ext4 = command("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image])
            .and_then(|()| command("mount", &["-o".as_ref(), "loop".as_ref(), &image, &at]));
        if let Err(why) = ext4 {
            eprintln!("{why}: a tmpfs serves instead of an ext4");
            let size = format!("size={DISK_BYTES}");
            command(
                "mount",
                &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "none".as_ref(), &at],
            )?;
        }
        Ok(Self { at, _dir: dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(why) = command("umount", &[self.at.as_ref()]) {
            eprintln!("{why}");
        }
    }
}

fn command(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let status = Command::new(program).args(arguments).status();
    let status = status.map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}")) }
}

async fn rounds_on(data: &Path, rounds: u64) -> Result<(), String> {
    let mut server = start(data)?;
    let create = CreateQueueRequest {
        queue: Some(Queue { name: queue(QUEUE), ..Queue::default() }),
        ..CreateQueueRequest::default()
    };
    server.clients().queues.create_queue(create).await.map_err(told)?;
    let (mut next, mut killed_full) = (0, 0);
    for round in 0..rounds {
        let mut clients = server.clients();
        let first = next;
        next = fill(&mut clients, next).await?;
        if round % 2 == 0 {
            tokio::task::block_in_place(|| server.kill());
            server = start(data)?;
            killed_full += 1;
            if server.recovered_messages != next - first {
                let found = server.recovered_messages;
                return Err(format!("{found} messages recovered, {} acknowledged", next - first));
            }
            clients = server.clients();
            next = fill(&mut clients, next).await?;
        }
        empty(&mut clients, first, next).await?;
        resume(&mut clients, next).await?;
        empty(&mut clients, next, next + 1).await?;
        next += 1;
        eprintln!("round {}: {} messages filled the disk and left it", round + 1, next - first);
    }
    let (status, stderr) = tokio::task::block_in_place(|| server.terminate());
    if !status.success() || stderr.contains("panicked") {
        return Err(format!("the server ended with {status}:\n{stderr}"));
    }
    println!("full-disk: {rounds} rounds, {next} messages, {killed_full} kills while full, nothing lost");
    Ok(())
}

fn start(data: &Path) -> Result<Server, String> {
    let options =
        ServerOptions { config: "segment_bytes = 1048576\n".to_owned(), ..ServerOptions::default() };
    tokio::task::block_in_place(|| Server::try_start(data, &options))
        .map_err(|stderr| format!("the server did not start:\n{stderr}"))
}

fn told(status: Status) -> String {
    format!("{status}")
}

/// A message that says which it is.
fn message(number: u64) -> Message {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(BODY_BYTES, number as u8);
    Message { body: body.into(), ..Message::default() }
}

async fn publish(clients: &mut Clients, number: u64) -> Result<(), Status> {
    let messages = vec![message(number)];
    let request = PublishRequest { queue: queue(QUEUE), messages, ..PublishRequest::default() };
    clients.messages.publish(request).await.map(drop)
}

/// Publishes until the disk is full; the number behind the last.
async fn fill(clients: &mut Clients, mut next: u64) -> Result<u64, String> {
    let most = next + DISK_BYTES / BODY_BYTES as u64;
    loop {
        match publish(clients, next).await {
            Ok(()) => next += 1,
            Err(status) => return full(&status).map(|()| next),
        }
        if next > most {
            return Err("more was taken than the disk can hold".to_owned());
        }
    }
}

/// Whether an error says what it must of a full disk.
fn full(status: &Status) -> Result<(), String> {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let details = status.get_error_details();
    let complete = details.retry_info().is_some() && details.quota_failure().is_some();
    if status.code() == Code::ResourceExhausted && reason == "DISK_FULL" && complete {
        return Ok(());
    }
    Err(format!("a full disk was refused by {status} ({reason})"))
}

/// Pulls and acknowledges everything: the numbers `first..end`, each once.
async fn empty(clients: &mut Clients, first: u64, end: u64) -> Result<(), String> {
    let mut expected = first;
    while expected < end {
        let request =
            PullRequest { subscription: subscription(QUEUE), max_messages: 20, ..PullRequest::default() };
        let received = clients.messages.pull(request).await.map_err(told)?.into_inner().messages;
        for ReceivedMessage { message: found, .. } in &received {
            let found = found.clone().unwrap_or_default();
            if found.body != message(expected).body {
                return Err(format!("message {expected} is not what came"));
            }
            expected += 1;
        }
        let ack_ids = received.into_iter().map(|received| received.ack_id).collect();
        let request = AcknowledgeRequest { subscription: subscription(QUEUE), ack_ids };
        clients.messages.acknowledge(request).await.map_err(told)?;
    }
    if expected == end { Ok(()) } else { Err(format!("{} messages too many", expected - end)) }
}

/// Publishes one message, once the server takes it again.
async fn resume(clients: &mut Clients, number: u64) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + RESUME_WITHIN;
    loop {
        match publish(clients, number).await {
            Ok(()) => return Ok(()),
            Err(status) => full(&status)?,
        }
        if tokio::time::Instant::now() > deadline {
            return Err("publishing did not go on although all is finished".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
}
