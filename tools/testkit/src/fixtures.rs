//! Data directories that are kept, so that every later build can be tried on them: made by a real server, packed into
//! one JSON file each, with what a server must find in them.
//!
//! ```text
//! {"files": {PATH: {"bytes": LENGTH, "parts": [[POSITION, BASE64], …]}}, "expected": {…}}
//! ```
//! What no part covers is zero: log files are mostly that.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use forebay::proto::v1::nack_entry::{Ending, Reject};
use forebay::proto::v1::*;
use serde::{Deserialize, Serialize};

use crate::{Clients, Server, ServerOptions, queue, subscription};

/// Zeroes between two parts; fewer are kept in the part.
const ZEROES_MIN: usize = 64;
const CONFIG: &str = "segment_bytes = 262144\n";

/// A packed data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fixture {
    files: BTreeMap<String, Packed>,
    pub expected: Expected,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Packed {
    bytes: usize,
    parts: Vec<(usize, String)>,
}

/// What is in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Expected {
    /// Whether `forebay fsck` finds damage.
    pub damaged: bool,
    /// By full name.
    pub queues: BTreeMap<String, Contents>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Contents {
    /// Messages that its default subscription has not finished, by offset.
    pub waiting: BTreeMap<u64, String>,
    pub next_offset: u64,
}

/// The kinds that are kept.
pub const KINDS: [&str; 3] = ["idle", "mid-traffic", "damaged"];

/// How a server is started on one.
pub fn options() -> ServerOptions {
    ServerOptions { config: CONFIG.to_owned(), ..ServerOptions::default() }
}

impl Fixture {
    /// Packs a data directory. Its lock is left out.
    pub fn pack(data: &Path, expected: Expected) -> std::io::Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![data.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("LOCK") && !path.ends_with("RESERVE") {
                    let name = path.strip_prefix(data).expect("it is inside").to_string_lossy().into_owned();
                    files.insert(name, Packed::of(&fs::read(&path)?));
                }
            }
        }
        Ok(Self { files, expected })
    }

    /// Makes the data directory again.
    pub fn unpack(&self, data: &Path) -> std::io::Result<()> {
        for folder in ["log", "packed", "checkpoint", "quarantine"] {
            fs::create_dir_all(data.join(folder))?;
        }
        for (name, packed) in &self.files {
            fs::write(data.join(name), packed.unpacked())?;
        }
        Ok(())
    }
}

impl Packed {
    fn of(bytes: &[u8]) -> Self {
        let mut parts = Vec::new();
        let mut at = 0;
        while let Some(from) = bytes[at..].iter().position(|byte| *byte != 0).map(|skipped| at + skipped) {
            let zeroes =
                bytes[from..].windows(ZEROES_MIN).position(|some| some.iter().all(|byte| *byte == 0));
            let to = zeroes.map_or(bytes.len(), |length| from + length);
            parts.push((from, BASE64_STANDARD.encode(&bytes[from..to])));
            at = to;
        }
        Self { bytes: bytes.len(), parts }
    }

    fn unpacked(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        for (from, part) in &self.parts {
            let part = BASE64_STANDARD.decode(part).expect("a part is base64");
            bytes[*from..from + part.len()].copy_from_slice(&part);
        }
        bytes
    }
}

/// Makes a fixture of one of [`KINDS`] with the server of this build.
pub async fn make(kind: &str) -> Fixture {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let data = folder.path().join("data");
    let server = Server::start(&data, &options());
    let mut clients = server.clients();
    let mut expected = Expected::default();
    traffic(&mut clients, &mut expected).await;
    if kind == "mid-traffic" {
        under_way(&mut clients, &mut expected, &data).await;
        server.kill();
    } else {
        let ended = tokio::task::spawn_blocking(move || server.terminate());
        ended.await.expect("ending does not panic");
    }
    if kind == "damaged" {
        damage(&data, &mut expected);
    }
    Fixture::pack(&data, expected).expect("the data directory can be read")
}

async fn create(clients: &mut Clients, name: &str) {
    let queue = Queue { name: queue(name), ..Queue::default() };
    let request = CreateQueueRequest { queue: Some(queue), ..CreateQueueRequest::default() };
    clients.queues.create_queue(request).await.expect("a queue can be made");
}

/// Publishes one message and notes that it waits.
async fn publish(clients: &mut Clients, expected: &mut Expected, name: &str, text: String) {
    let attributes = [("kind".to_owned(), "fixture".to_owned())].into();
    let message = Message { body: text.clone().into_bytes().into(), attributes, ..Message::default() };
    let request = PublishRequest { queue: queue(name), messages: vec![message], ..PublishRequest::default() };
    let answer = clients.messages.publish(request).await.expect("a message can be published").into_inner();
    let contents = expected.queues.entry(queue(name)).or_default();
    contents.next_offset = answer.results[0].offset + 1;
    contents.waiting.insert(answer.results[0].offset, text);
}

async fn pull(clients: &mut Clients, name: &str, max_messages: u32, lease_s: i64) -> Vec<ReceivedMessage> {
    let lease = Some(prost_types::Duration { seconds: lease_s, nanos: 0 });
    let request =
        PullRequest { subscription: subscription(name), max_messages, lease, ..PullRequest::default() };
    clients.messages.pull(request).await.expect("messages can be pulled").into_inner().messages
}

/// Acknowledges and notes that they no longer wait.
async fn finish(clients: &mut Clients, expected: &mut Expected, name: &str, received: &[ReceivedMessage]) {
    let ack_ids = received.iter().map(|one| one.ack_id.clone()).collect();
    let request = AcknowledgeRequest { subscription: subscription(name), ack_ids };
    clients.messages.acknowledge(request).await.expect("messages can be acknowledged");
    let contents = expected.queues.entry(queue(name)).or_default();
    for one in received {
        let offset = one.message.as_ref().expect("a delivery has a message").offset;
        contents.waiting.remove(&offset);
    }
}

/// Two queues, one that was deleted, acknowledgements and a dead letter.
async fn traffic(clients: &mut Clients, expected: &mut Expected) {
    for name in ["orders", "letters", "gone"] {
        create(clients, name).await;
    }
    for n in 0..30 {
        publish(clients, expected, "orders", format!("order {n}")).await;
        publish(clients, expected, "letters", format!("letter {n}: é")).await;
    }
    publish(clients, expected, "gone", "gone".to_owned()).await;
    let request = DeleteQueueRequest { name: queue("gone"), ..DeleteQueueRequest::default() };
    clients.queues.delete_queue(request).await.expect("a queue can be deleted");
    expected.queues.remove(&queue("gone"));
    let received = pull(clients, "orders", 12, 30).await;
    finish(clients, expected, "orders", &received[..11]).await;
    let ending = Some(Ending::Reject(Reject { error: "refused".to_owned() }));
    let entries = vec![NackEntry { ack_id: received[11].ack_id.clone(), ending }];
    let request = NackRequest { subscription: subscription("orders"), entries };
    clients.messages.nack(request).await.expect("a message can be rejected");
    let rejected = expected.queues.get_mut(&queue("orders")).and_then(|orders| orders.waiting.remove(&11));
    let dead = Contents { waiting: [(0, rejected.expect("it waited"))].into(), next_offset: 1 };
    expected.queues.insert(queue("orders-dead"), dead);
}

/// Fills segments until the first has left, and leaves leases behind.
async fn under_way(clients: &mut Clients, expected: &mut Expected, data: &Path) {
    for name in ["orders", "letters", "orders-dead"] {
        let received = pull(clients, name, 100, 30).await;
        finish(clients, expected, name, &received).await;
    }
    let first = data.join("log/00000000000000000001.seg");
    for n in 0.. {
        publish(clients, expected, "orders", format!("long {n}{}", "\0".repeat(50_000))).await;
        let received = pull(clients, "orders", 1, 30).await;
        finish(clients, expected, "orders", &received).await;
        if !first.exists() {
            break;
        }
        assert!(n < 10_000, "segments leave the log");
    }
    for n in 0..10 {
        publish(clients, expected, "orders", format!("last {n}")).await;
        publish(clients, expected, "letters", format!("last letter {n}")).await;
    }
    let received = pull(clients, "orders", 4, 1).await;
    finish(clients, expected, "orders", &received[2..3]).await;
}

/// Flips a bit of a message.
fn damage(data: &Path, expected: &mut Expected) {
    let path = data.join("log/00000000000000000001.seg");
    let mut bytes = fs::read(&path).expect("the segment can be read");
    let at = bytes.windows(10).position(|some| some == b"letter 17:").expect("the message is there");
    bytes[at + 3] ^= 1;
    fs::write(&path, bytes).expect("the segment can be written");
    let letters = expected.queues.get_mut(&queue("letters")).expect("it was made");
    letters.waiting.remove(&17);
    expected.damaged = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        for bytes in
            [vec![], vec![0; 300], vec![7; 300], [vec![0; 100], vec![1; 5], vec![0; 63], vec![2]].concat()]
        {
            assert_eq!(Packed::of(&bytes).unpacked(), bytes);
        }
        assert_eq!(Packed::of(&[0; 300]).parts.len(), 0);
        assert_eq!(Packed::of(&[&[1][..], &[0; 64], &[1]].concat()).parts.len(), 2);
    }
}
