//! Data directories of earlier builds, kept in `tests/fixtures/`, and those of this one: each is opened by a real
//! server, which must find in it what was put there. `cargo xtask fixtures tests/fixtures/vN` makes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use forebay::proto::v1::PullRequest;
use forebay_testkit::fixtures::{Contents, Fixture, KINDS, make, options};
use forebay_testkit::{Clients, Server};
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn directories_of_this_build_hold_what_was_put_there() {
    for kind in KINDS {
        let fixture = make(kind).await;
        let packed = serde_json::to_string(&fixture).unwrap();
        assert!(packed.len() < 100 << 10, "{kind} has {} bytes", packed.len());
        check(kind, &serde_json::from_str(&packed).unwrap()).await;
    }
}

#[tokio::test]
async fn kept_directories_hold_what_was_put_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let versions: Vec<_> = fs::read_dir(root).unwrap().map(|version| version.unwrap().path()).collect();
    assert!(!versions.is_empty(), "there is a folder of directories for each version");
    for version in versions {
        for kind in KINDS {
            let path = version.join(format!("{kind}.json"));
            let fixture = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            check(path.to_str().unwrap(), &fixture).await;
        }
    }
}

async fn check(name: &str, fixture: &Fixture) {
    let site = Site { options: options(), ..Site::new() };
    fixture.unpack(&site.data()).unwrap();
    let (code, stdout, _) = forebay(&["fsck"], &site.data());
    assert_eq!(code, i32::from(fixture.expected.damaged), "{name}: {stdout}");
    let (_, dumped, _) = forebay(&["dump"], &site.data());
    assert_eq!(waiting_in(&dumped), waiting(&fixture.expected.queues), "{name}");
    let server = Server::start(&site.data(), &site.options);
    let mut clients = server.clients();
    for (queue, contents) in &fixture.expected.queues {
        assert_eq!(received(&mut clients, queue, contents).await, contents.waiting, "{name}: {queue}");
        let short = queue.rsplit('/').next().unwrap();
        assert_eq!(publish(&mut clients, short, &["next"]).await, contents.next_offset, "{name}: {queue}");
    }
    end(server).await;
}

type Waiting = BTreeMap<(String, u64), String>;

fn waiting(queues: &BTreeMap<String, Contents>) -> Waiting {
    let all = queues.iter().flat_map(|(queue, contents)| {
        contents.waiting.iter().map(move |(offset, body)| ((queue.clone(), *offset), body.clone()))
    });
    all.collect()
}

fn waiting_in(dumped: &str) -> Waiting {
    let lines = dumped.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let waiting = lines.filter(|line| line["waiting"] == true);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    waiting
        .map(|line| ((text(&line["queue"]), line["offset"].as_u64().unwrap()), text(&line["body"])))
        .collect()
}

/// Takes everything; leases of the server's last run must end first.
async fn received(clients: &mut Clients, queue: &str, contents: &Contents) -> BTreeMap<u64, String> {
    let subscription = format!("{queue}/subscriptions/default");
    let mut all = BTreeMap::new();
    loop {
        let missing = all.len() < contents.waiting.len();
        let wait = Some(seconds(if missing { 30 } else { 0 }));
        let subscription = subscription.clone();
        let request = PullRequest { subscription, max_messages: 100, wait, ..PullRequest::default() };
        let received = match clients.messages.pull(request).await {
            Ok(answer) => answer.into_inner().messages,
            Err(status) => {
                assert_eq!(status.code(), Code::DataLoss, "{status:?}");
                continue;
            }
        };
        if received.is_empty() {
            return all;
        }
        for one in &received {
            let message = one.message.as_ref().unwrap();
            let text = String::from_utf8(message.body.to_vec()).unwrap();
            assert_eq!(all.insert(message.offset, text), None, "a message comes once");
        }
    }
}
