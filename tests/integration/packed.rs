//! Packed segments looked at offline: a rebuild takes them in, each message counts once, and damage is told.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use forebay_testkit::{Clients, queue, subscription};
use serde_json::Value;

use crate::support::*;

/// Message `n` of the slow queue, unlike any other.
fn kept(n: usize) -> Vec<u8> {
    format!("<{n:04}>").repeat(1_000).into_bytes()
}

fn packed(data: &Path) -> Vec<PathBuf> {
    files(data, "packed", ".seg")
}

/// A directory with packed segments that hold what the slow queue had in segments that are gone.
struct Filled {
    site: Site,
    /// Messages of the slow queue.
    count: usize,
    /// All segments that there were, by number.
    past: BTreeMap<u64, Vec<u8>>,
}

/// Publishes to a slow queue, and more to one that flows, until a packed segment stands for several that are gone.
async fn with_packed() -> Filled {
    let site = tiny_segments();
    let data = site.data();
    let server = site.start();
    let mut clients = server.clients();
    for name in ["slow", "flow"] {
        create(&mut clients, name).await;
    }
    let (mut count, mut past) = (0, BTreeMap::new());
    while merged(&data, &past).is_none() {
        publish(&mut clients, "slow", &[kept(count)]).await;
        count += 1;
        for _ in 0..10 {
            publish(&mut clients, "flow", &[vec![7; 12_000]]).await;
        }
        drain(&mut clients, "flow").await;
        // The last ones of the log are not whole yet.
        let log = files(&data, "log", ".seg").into_iter().rev().skip(3);
        for file in packed(&data).into_iter().chain(log) {
            let number = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            if let (Entry::Vacant(vacant), Ok(bytes)) = (past.entry(number), fs::read(file)) {
                vacant.insert(bytes);
            }
        }
        assert!(count < 1_000, "reclaim merges segments");
    }
    end(server).await;
    Filled { site, count, past }
}

/// The segments that a packed one replaced.
fn replaced(file: &Path) -> Vec<u64> {
    let Ok(bytes) = fs::read(file) else { return Vec::new() };
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (0..number(88) as usize).map(|n| number(96 + 8 * n)).collect()
}

/// What a packed segment replaced, if that were several that are known and gone.
fn merged(data: &Path, past: &BTreeMap<u64, Vec<u8>>) -> Option<Vec<u64>> {
    let gone = |old: &u64| past.contains_key(old) && !path(data, *old).exists();
    let mut all = packed(data).into_iter().map(|file| replaced(&file));
    all.find(|old| old.len() > 1 && old.iter().all(gone))
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap().to_str().unwrap().to_owned()
}

fn path(data: &Path, segment: u64) -> PathBuf {
    let dir = if segment > 1_000_000_000_000_000_000 { "packed" } else { "log" };
    data.join(format!("{dir}/{segment:020}.seg"))
}

fn lose_checkpoints(data: &Path) {
    for file in files(data, "checkpoint", ".ckpt") {
        flip(&file, 90);
    }
}

/// The offsets that a dump has of a queue, in order.
fn dumped(data: &Path, name: &str) -> Vec<u64> {
    let (code, stdout, stderr) = forebay(&["dump", "--queue", name], data);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines = stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut offsets: Vec<u64> = lines.map(|line| line["offset"].as_u64().unwrap()).collect();
    offsets.sort_unstable();
    offsets
}

/// Everything that a queue hands out is what the slow queue was given, each once.
async fn assert_served(site: &Site, name: &str, count: usize) {
    let server = site.start();
    let bodies = drain(&mut server.clients(), name).await;
    assert_eq!(bodies.len(), count);
    assert!(bodies == (0..count).map(kept).collect::<Vec<_>>());
    end(server).await;
}

/// Rebuilds a directory without checkpoints; every message of the slow queue must be there once, then and later.
async fn rebuilt(site: &Site, count: usize) {
    let data = site.data();
    lose_checkpoints(&data);
    let (code, stdout, stderr) = forebay(&["fsck", "--rebuild"], &data);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let told = format!("queue namespaces/default/queues/recovered-1: {count} messages wait again;");
    assert!(stdout.contains(&told) && !stdout.contains("offsets between them"), "{stdout}");
    let (code, stdout, _) = forebay(&["fsck"], &data);
    assert_eq!(code, 0, "{stdout}");
    assert_eq!(dumped(&data, "recovered-1"), (0..count as u64).collect::<Vec<_>>());
    assert_served(site, "recovered-1", count).await;
    assert!(files(&data, "quarantine", ".seg").is_empty(), "nothing was set aside");
    let (code, stdout, _) = forebay(&["fsck"], &data);
    assert_eq!(code, 0, "{stdout}");
}

#[tokio::test]
async fn a_rebuild_takes_one_side_of_what_was_replaced() {
    let Filled { site, count, past } = with_packed().await;
    let data = site.data();
    let old = merged(&data, &past).unwrap();
    let put = |site: &Site, old: &[u64]| {
        old.iter().for_each(|old| fs::write(path(&site.data(), *old), &past[old]).unwrap());
    };
    // One of them is still there, and what it was made of: what is needed of both is in the packed one.
    let some = copy_of(&data);
    put(&some, &old[1..2]);
    let first = replaced(&path(&some.data(), old[1]));
    put(&some, &first);
    rebuilt(&some, count).await;
    // All are there: the packed one may have been unfinished.
    put(&site, &old);
    rebuilt(&site, count).await;
    assert!(old.iter().all(|old| path(&data, *old).exists()));
    assert!(packed(&data).iter().all(|file| replaced(file) != old), "a start removes it");
}

#[tokio::test]
async fn a_rebuild_takes_in_packed_segments() {
    let Filled { site, count, .. } = with_packed().await;
    rebuilt(&site, count).await;
}

/// More messages than memory keeps the delays of.
const DELAYED: usize = 5_000;

/// Takes all messages of a queue and gives them back for later; how often each had been handed out.
async fn delay(clients: &mut Clients, name: &str, delay_s: i64) -> Vec<u32> {
    let mut seen = Vec::new();
    while seen.len() < DELAYED {
        let received = pull(clients, name, 1_000).await;
        assert!(!received.is_empty(), "{} of {DELAYED} have come", seen.len());
        nack(clients, &subscription(name), ack_ids(&received), retry(delay_s)).await;
        seen.extend(attempts(&received));
    }
    seen
}

#[tokio::test]
async fn spilled_delays_are_no_queues_and_their_messages_wait() {
    let site = tiny_segments();
    let data = site.data();
    let server = site.start();
    let mut clients = server.clients();
    create(&mut clients, "flow").await;
    while path(&data, 1).exists() {
        publish(&mut clients, "flow", &vec![[7; 12_000]; 20]).await;
        drain(&mut clients, "flow").await;
    }
    create(&mut clients, "late").await;
    publish_numbered(&mut clients, "late", DELAYED).await;
    delay(&mut clients, "late", 3_600).await;
    end(server).await;

    let (code, stdout, _) = forebay(&["fsck"], &data);
    assert!(code == 0 && !stdout.contains("queue="), "{stdout}");
    let (code, stdout, stderr) = forebay(&["dump"], &data);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let late = format!("{:?}", queue("late"));
    let waiting: Vec<&str> = stdout.lines().filter(|line| line.contains("\"waiting\":true")).collect();
    assert_eq!((waiting.len(), waiting.iter().all(|line| line.contains(&late))), (DELAYED, true));
    assert!(!stdout.contains("\"queue\":null"), "no store of refs is shown");

    lose_checkpoints(&data);
    let (code, stdout, _) = forebay(&["fsck", "--rebuild"], &data);
    let queues: Vec<&str> = stdout.lines().filter(|line| line.starts_with("queue ")).collect();
    assert_eq!((code, queues.len()), (0, 2), "{stdout}");
    assert!(queues[1].contains(&format!("late: {DELAYED} messages wait again")), "{stdout}");

    // They are delayed anew: what is left of the old delays is not taken for those.
    let server = site.start();
    let mut clients = server.clients();
    assert_eq!(delay(&mut clients, "late", 1).await, [1; DELAYED]);
    let mut seen = Vec::new();
    while seen.len() < DELAYED {
        let received = pull_from(&mut clients, &subscription("late"), 1_000, 30, None).await;
        assert!(!received.is_empty(), "{} of {DELAYED} have come back", seen.len());
        seen.extend(attempts(&received));
        ack(&mut clients, &subscription("late"), ack_ids(&received)).await;
    }
    assert_eq!(seen, [2; DELAYED]);
    create(&mut clients, "next").await;
    publish(&mut clients, "next", &["one"]).await;
    assert_eq!(drain(&mut clients, "next").await, [b"one"]);
    end(server).await;
    let (code, stdout, _) = forebay(&["fsck"], &data);
    assert_eq!(code, 0, "{stdout}");
    assert!(!dumped(&data, "next").is_empty());
}

#[tokio::test]
async fn damage_to_a_packed_segment_is_told() {
    let Filled { site, past, .. } = with_packed().await;
    let data = site.data();
    // The file of a segment that has left, to be used again.
    fs::write(path(&data, 1).with_extension("free"), &past[&1]).unwrap();
    let (code, stdout, _) = forebay(&["fsck"], &data);
    assert_eq!(code, 0, "{stdout}");
    // One that was replaced may have the message still; the log leads to another.
    let wanted = kept(5);
    let holds = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        bytes.windows(wanted.len()).position(|window| window == wanted)
    };
    let is_told = |file: &PathBuf| {
        let Some(at) = holds(file) else { return false };
        flip(file, at + 100);
        let (code, stdout, _) = forebay(&["fsck"], &data);
        flip(file, at + 100);
        let told = format!("message packed/{}:", name_of(file));
        let line = stdout.lines().find(|line| line.starts_with(&told));
        let message = format!("queue={} offsets=5..5:", queue("slow"));
        code == 1 && line.is_some_and(|line| line.contains(&message))
    };
    let file = packed(&data).into_iter().find(is_told).expect("the damage is told");
    let name = name_of(&file);

    // Without its header, its index leads to what it has.
    flip(&file, 60);
    let (code, stdout, _) = forebay(&["fsck"], &data);
    assert!(code == 1 && stdout.contains(&format!("segment packed/{name}:0: ")), "{stdout}");
    assert!(!stdout.contains("lost-messages"), "{stdout}");
    flip(&file, 60);

    flip(&file.with_extension("idx"), 4_100);
    let (code, stdout, _) = forebay(&["fsck"], &data);
    let index = name.replace(".seg", ".idx");
    assert!(code == 1 && stdout.contains(&format!("index packed/{index}:")), "{stdout}");
}
