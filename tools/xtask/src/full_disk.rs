//! `cargo xtask full-disk`: a server on a file system of a few megabytes is filled until it refuses, killed while it
//! is full, emptied, and filled again; without a restart in between publishing must go on by itself. The history of all
//! that is written elsewhere, and judged at the end.

use std::path::PathBuf;
use std::time::Duration;

use forebay::proto::v1::{
    AckResult, AcknowledgeRequest, CreateQueueRequest, Message, PublishRequest, PullRequest, Queue,
    ReceivedMessage, ack_result,
};
use forebay_checker::format::{self, Answer, Delivery, Ending, Event, How, Op, Settled};
use forebay_testkit::torture::history::{History, hash};
use forebay_testkit::{Clients, Server, ServerOptions, queue, subscription};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::shell::command;

const QUEUE: &str = "filling";
const DISK_BYTES: u64 = 48 << 20;
const BODY_BYTES: usize = 40_000;
/// What a pull gets that asks for no other.
const LEASE: Duration = Duration::from_secs(30);
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
        return crate::shell::skip("mounting a small file system needs root");
    }
    let disk = SmallDisk::make()?;
    let beside = tempfile::tempdir().map_err(|error| error.to_string())?;
    let history = History::create(&beside.path().join("history")).map_err(|error| error.to_string())?;
    let told = crate::runtime()?.block_on(Rounds { data: disk.at.join("data"), history }.run(rounds));
    if told.is_err() {
        eprintln!("kept for a look: {}", beside.keep().display());
    }
    told
}

/// Servers on the small disk, and what their only client was told.
struct Rounds {
    data: PathBuf,
    history: History,
}

impl SmallDisk {
    fn make() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        let file = std::fs::File::create(&image).and_then(|file| file.set_len(DISK_BYTES));
        file.and_then(|()| std::fs::create_dir(&at)).map_err(|error| error.to_string())?;
        let (image, mounted) = (image.display().to_string(), at.display().to_string());
        let ext4 = command("mkfs.ext4", &["-q", "-F", &image])
            .and_then(|()| command("mount", &["-o", "loop", &image, &mounted]));
        if let Err(why) = ext4 {
            eprintln!("{why}: a tmpfs serves instead of an ext4");
            command("mount", &["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "none", &mounted])?;
        }
        Ok(Self { at, _dir: dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(why) = command("umount", &[&self.at.display().to_string()]) {
            eprintln!("{why}");
        }
    }
}

impl Rounds {
    async fn run(self, rounds: u64) -> Result<(), String> {
        let mut server = self.start()?;
        let create = CreateQueueRequest {
            queue: Some(Queue { name: queue(QUEUE), ..Queue::default() }),
            ..CreateQueueRequest::default()
        };
        server.clients().queues.create_queue(create).await.map_err(told)?;
        self.history.record(Event::Queue {
            queue: QUEUE.to_owned(),
            one_consumer: true,
            exactly_once: false,
        });
        let (mut next, mut killed_full) = (0, 0);
        for round in 0..rounds {
            let mut clients = server.clients();
            let first = next;
            next = self.fill(&mut clients, next).await?;
            if round % 2 == 0 {
                self.history.record(Event::Killed { life: killed_full });
                tokio::task::block_in_place(|| server.kill());
                server = self.start()?;
                killed_full += 1;
                if server.recovered_messages != next - first {
                    let found = server.recovered_messages;
                    return Err(format!("{found} messages recovered, {} acknowledged", next - first));
                }
                clients = server.clients();
                next = self.fill(&mut clients, next).await?;
            }
            self.empty(&mut clients, killed_full, first, next).await?;
            self.resume(&mut clients, next).await?;
            self.empty(&mut clients, killed_full, next, next + 1).await?;
            next += 1;
            eprintln!("round {}: {} messages filled the disk and left it", round + 1, next - first);
        }
        let (status, stderr) = tokio::task::block_in_place(|| server.terminate());
        if !status.success() || stderr.contains("panicked") {
            return Err(format!("the server ended with {status}:\n{stderr}"));
        }
        self.history.record(Event::Waiting { queue: QUEUE.to_owned(), ranges: Vec::new() });
        let report = self.history.judge().map_err(|error| error.to_string())?;
        if let Some(first) = report.violations.first() {
            return Err(format!("{} violations, first {first:?}", report.broken()));
        }
        println!("full-disk: {rounds} rounds, {next} messages, {killed_full} kills while full, nothing lost");
        Ok(())
    }

    fn start(&self) -> Result<Server, String> {
        let config = "segment_bytes = 1048576\n".to_owned();
        let options = ServerOptions { config, ..ServerOptions::default() };
        Server::start_or_tell(&self.data, &options)
    }

    /// Publishes a message; whether the disk had room for it.
    async fn publish(&self, clients: &mut Clients, number: u64) -> Result<bool, String> {
        let body = body(number);
        let mark = format::Message { id: number, length: body.len() as u32, hash: hash(&body), key: None };
        let call = self.history.invoke(Op::Publish {
            queue: QUEUE.to_owned(),
            stamped: false,
            messages: vec![mark],
        });
        let messages = vec![Message { body: body.into(), ..Message::default() }];
        let request = PublishRequest { queue: queue(QUEUE), messages, ..PublishRequest::default() };
        match clients.messages.publish(request).await {
            Ok(response) => {
                let results = response.into_inner().results;
                let offsets = results.iter().map(|result| result.offset).collect();
                self.history.record(Event::Ok { call, answer: Answer::Stored { offsets } });
                Ok(true)
            }
            Err(status) => {
                self.history.record(Event::Fail { call });
                full(&status).map(|()| false)
            }
        }
    }

    /// Publishes until the disk is full; the number behind the last.
    async fn fill(&self, clients: &mut Clients, mut next: u64) -> Result<u64, String> {
        let most = next + DISK_BYTES / BODY_BYTES as u64;
        while self.publish(clients, next).await? {
            next += 1;
            if next > most {
                return Err("more was taken than the disk can hold".to_owned());
            }
        }
        Ok(next)
    }

    /// Pulls and acknowledges everything: the numbers `first..end`, each once.
    async fn empty(&self, clients: &mut Clients, life: u64, first: u64, end: u64) -> Result<(), String> {
        let session = self.history.number();
        let mut expected = first;
        while expected < end {
            let after = self.history.now();
            let subscription = subscription(QUEUE);
            let request = PullRequest {
                subscription: subscription.clone(),
                max_messages: 20,
                ..PullRequest::default()
            };
            let received = clients.messages.pull(request).await.map_err(told)?.into_inner().messages;
            let (mut endings, mut ack_ids) = (Vec::new(), Vec::new());
            for ReceivedMessage { message, ack_id, attempt, .. } in received {
                let message = message.unwrap_or_default();
                let delivery = self.history.record(Event::Delivered(Delivery {
                    queue: QUEUE.to_owned(),
                    offset: message.offset,
                    id: number_of(&message.body),
                    length: message.body.len() as u32,
                    hash: hash(&message.body),
                    attempt,
                    after,
                    lease_ns: LEASE.as_nanos() as u64,
                    session,
                    life,
                    origin: None,
                }));
                endings.push(Ending { offset: message.offset, delivery, how: How::Ack });
                ack_ids.push(ack_id);
                expected += 1;
            }
            let call = self.history.invoke(Op::Settle { queue: QUEUE.to_owned(), life, endings });
            let request = AcknowledgeRequest { subscription, ack_ids };
            let answer = clients.messages.acknowledge(request).await.map_err(told)?.into_inner();
            let settled = |result: &AckResult| match result.status() {
                ack_result::Status::Ok => Settled::Ok,
                _ => Settled::Invalid,
            };
            let results = answer.results.iter().map(settled).collect();
            self.history.record(Event::Ok { call, answer: Answer::Settled { results } });
        }
        if expected == end { Ok(()) } else { Err(format!("{} messages too many", expected - end)) }
    }

    /// Publishes one message, once the server takes it again.
    async fn resume(&self, clients: &mut Clients, number: u64) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + RESUME_WITHIN;
        while !self.publish(clients, number).await? {
            if tokio::time::Instant::now() > deadline {
                return Err("publishing did not go on although all is finished".to_owned());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

fn told(status: Status) -> String {
    format!("{status}")
}

/// A body that says which it is.
fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_le_bytes().to_vec();
    body.resize(BODY_BYTES, number as u8);
    body
}

/// The message that a body says it is; one that nobody sent if it says nothing.
fn number_of(body: &[u8]) -> u64 {
    body.first_chunk().map_or(u64::MAX, |number| u64::from_le_bytes(*number))
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
