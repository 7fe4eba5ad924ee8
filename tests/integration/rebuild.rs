//! `forebay fsck --rebuild`: a log without its beginning and without checkpoints serves again what it has.

use std::fs;

use forebay_testkit::{Clients, Server, queue, subscription};

use crate::support::*;

fn kept(n: usize) -> Vec<u8> {
    let mut body = format!("kept {n} ").into_bytes();
    body.extend((0..3_000).map(|at| (at * 7 + n) as u8));
    body
}

/// Message at `offset` of the queue that flows.
fn flowing(offset: u64) -> Vec<u8> {
    format!("flow {offset} ").repeat(800).into_bytes()
}

/// Publishes and acknowledges until the first segment has left the log.
async fn flow(clients: &mut Clients, site: &Site) -> u64 {
    let mut next = 0;
    while site.data().join("log/00000000000000000001.seg").exists() {
        let bodies: Vec<Vec<u8>> = (next..next + 20).map(flowing).collect();
        publish(clients, "flow", &bodies).await;
        assert_eq!(drain(clients, "flow").await, bodies);
        next += 20;
        assert!(next < 20_000, "segments leave");
    }
    next
}

/// Fills queues whose creation is in the first segment, which is gone, and one whose creation is still there.
async fn with_lost_beginning(site: &Site) -> u64 {
    let server = site.start();
    let mut clients = server.clients();
    for name in ["flow", "old"] {
        create(&mut clients, name).await;
    }
    let flowed = flow(&mut clients, site).await;
    create(&mut clients, "new").await;
    subscribe_to(&mut clients, "new", "second", None, 0).await;
    for name in ["old", "new"] {
        publish(&mut clients, name, &(0..50).map(kept).collect::<Vec<_>>()).await;
        let received = pull(&mut clients, name, 10).await;
        ack(&mut clients, &subscription(name), ack_ids(&received)).await;
    }
    end(server).await;
    flowed
}

async fn drain_from(clients: &mut Clients, subscription: &str) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let received = pull_from(clients, subscription, 100, 0, None).await;
        if received.is_empty() {
            return all;
        }
        all.extend(offsets(&received).into_iter().zip(received.iter().map(|one| body(one).to_vec())));
        ack(clients, subscription, ack_ids(&received)).await;
    }
}

#[tokio::test]
async fn every_message_that_is_left_waits_again() {
    let site = tiny_segments();
    let flowed = with_lost_beginning(&site).await;
    let checkpoints = files(&site.data(), "checkpoint", ".ckpt");
    assert_eq!(checkpoints.len(), 4, "two bases, two deltas");
    for file in &checkpoints {
        flip(file, 90);
    }
    let refusal = Server::try_start(&site.data(), &site.options).err().expect("the server refuses");
    let remedy = format!("forebay fsck --rebuild {}", site.data().display());
    assert!(
        refusal.contains("data loss: the log begins at record") && refusal.contains(&remedy),
        "{refusal}"
    );

    let before = contents(&site.data());
    let (code, stdout, _) = forebay(&["fsck"], &site.data());
    assert_eq!(code, 1);
    for file in &checkpoints {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(stdout.contains(&format!("checkpoint checkpoint/{name}:88: ")), "{stdout}");
    }
    assert!(stdout.contains("log log: ") && stdout.contains(&remedy), "{stdout}");
    assert!(contents(&site.data()) == before, "without --rebuild nothing is changed");

    let (code, stdout, stderr) = forebay(&["fsck", "--rebuild"], &site.data());
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("messages that were acknowledged may come again"), "{stdout}");
    assert!(stdout.contains("recovered-2: 50 messages wait again; its name"), "{stdout}");
    let set_aside = files(&site.data(), "quarantine", ".ckpt");
    assert_eq!(set_aside.len(), 4);
    assert!(
        set_aside.iter().all(|file| before.values().flatten().any(|old| *old == fs::read(file).unwrap()))
    );

    let server = site.start();
    let mut clients = server.clients();
    let expected: Vec<(u64, Vec<u8>)> = (0..50).map(|n| (n as u64, kept(n))).collect();
    let second = format!("{}/subscriptions/second", queue("new"));
    for name in [subscription("recovered-2"), subscription("new"), second] {
        assert_eq!(drain_from(&mut clients, &name).await, expected, "{name}");
    }
    let flow = drain_from(&mut clients, &subscription("recovered-1")).await;
    assert!(!flow.is_empty() && (flow.len() as u64) < flowed);
    assert!(flow.iter().all(|(offset, body)| *body == flowing(*offset)));
    assert_eq!(flow.last().unwrap().0, flowed - 1);
    assert_eq!(publish(&mut clients, "recovered-1", &[b"on"]).await, flowed);
    assert_eq!(publish(&mut clients, "recovered-2", &[b"on"]).await, 50);
    assert_eq!(create(&mut clients, "later").await.name, queue("later"));
    end(server).await;

    let (code, stdout, _) = forebay(&["fsck"], &site.data());
    assert_eq!(code, 0, "{stdout}");
    let (code, stdout, _) = forebay(&["fsck", "--rebuild"], &site.data());
    assert!(code == 0 && stdout.contains("not rebuilt: a server can start from the checkpoint"), "{stdout}");
}

#[tokio::test]
async fn a_log_that_has_its_beginning_needs_no_rebuild() {
    let site = tiny_segments();
    let server = site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    for chunk in (0..200).map(kept).collect::<Vec<_>>().chunks(50) {
        publish(&mut clients, "q", chunk).await;
    }
    while files(&site.data(), "checkpoint", ".ckpt").is_empty() {
        tokio::task::yield_now().await;
    }
    end(server).await;
    let checkpoints = files(&site.data(), "checkpoint", ".ckpt");
    for file in &checkpoints {
        flip(file, 3);
    }
    let before = contents(&site.data());
    let (code, stdout, _) = forebay(&["fsck", "--rebuild"], &site.data());
    assert!(
        code == 1 && stdout.contains("not rebuilt: the log is there from its first record on"),
        "{stdout}"
    );
    assert!(contents(&site.data()) == before);
    let server = site.start();
    assert_eq!(drain(&mut server.clients(), "q").await, (0..200).map(kept).collect::<Vec<_>>());
    end(server).await;
}
