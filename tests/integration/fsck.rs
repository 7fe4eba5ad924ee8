//! `forebay fsck`: whole directories are clean, a flipped bit is told with its place, and costs what it hit.

use std::fs;
use std::path::{Path, PathBuf};

use forebay::proto::v1::PullRequest;
use forebay_testkit::queue;

use crate::support::*;

const MESSAGES: usize = 60;

/// Message `n` of the queue, of about 12 KiB, unlike any other.
fn long(n: usize) -> Vec<u8> {
    format!("<{n:04}>").repeat(2_000).into_bytes()
}

/// A data directory of several segments with three files of checkpoints or more, written message by message; five are finished.
async fn filled() -> Site {
    let site = tiny_segments();
    let server = site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    for n in 0..MESSAGES {
        publish(&mut clients, "q", &[long(n)]).await;
    }
    let received = pull(&mut clients, "q", 5).await;
    ack(&mut clients, &forebay_testkit::subscription("q"), ack_ids(&received)).await;
    while files(&site.data(), "checkpoint", ".ckpt").len() < 3 {
        tokio::task::yield_now().await;
    }
    end(server).await;
    site
}

fn fsck(data: &Path) -> (i32, String) {
    let (code, stdout, stderr) = forebay(&["fsck"], data);
    assert_eq!(stderr, "", "{stdout}");
    (code, stdout)
}

/// The path of a file as fsck tells it.
fn told(data: &Path, file: &Path) -> String {
    file.strip_prefix(data).unwrap().to_str().unwrap().to_owned()
}

/// The sealed segment that holds message `n`, and where its body begins.
fn place_of(data: &Path, n: usize) -> (PathBuf, usize) {
    let wanted = long(n);
    let found = files(data, "log", ".seg").into_iter().find_map(|file| {
        let bytes = fs::read(&file).unwrap();
        let at = bytes.windows(wanted.len()).position(|window| window == wanted)?;
        Some((file, at))
    });
    found.expect("the message is in a segment")
}

/// The numbers of the messages that a server hands out on a directory, each of which is what it was.
async fn served(site: &Site) -> Vec<usize> {
    let server = site.start();
    let mut clients = server.clients();
    let (mut bodies, mut lost) = (Vec::new(), false);
    let name = forebay_testkit::subscription("q");
    for _ in 0..10 * MESSAGES {
        let request = PullRequest { subscription: name.clone(), max_messages: 100, ..PullRequest::default() };
        match clients.messages.pull(request).await {
            Ok(answer) => {
                let received = answer.into_inner().messages;
                if received.is_empty() {
                    break;
                }
                bodies.extend(received.iter().map(|received| body(received).to_vec()));
                ack(&mut clients, &name, ack_ids(&received)).await;
            }
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::DataLoss, "{status:?}");
                lost = true;
            }
        }
    }
    let (status, stderr) = end(server).await;
    assert!(status.success(), "{stderr}");
    let advice = "data loss: messages of a queue cannot be read; stop the server and run forebay fsck";
    let told = stderr
        .lines()
        .any(|line| line.contains(advice) && line.contains("queue=namespaces/default/queues/q "));
    assert!(told || !lost, "{stderr}");
    let number = |body: &Vec<u8>| std::str::from_utf8(&body[1..5]).unwrap().parse().unwrap();
    let numbers: Vec<usize> = bodies.iter().map(number).collect();
    assert!(numbers.iter().zip(&bodies).all(|(n, body)| *body == long(*n)));
    numbers
}

fn all_but(missing: &[usize]) -> Vec<usize> {
    (5..MESSAGES).filter(|n| !missing.contains(n)).collect()
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_kind_cannot_be_looked_through() {
    let site = Site::new();
    let (code, stdout, stderr) = forebay(&["fsck"], &site.data());
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains(site.data().to_str().unwrap()), "{stderr}");
    fs::create_dir(site.data()).unwrap();
    let (code, _, stderr) = forebay(&["fsck"], &site.data());
    assert!(code == 2 && stderr.contains("not a data directory"), "{stderr}");
    assert_eq!(fs::read_dir(site.data()).unwrap().count(), 0, "nothing is written");
    let server = site.start();
    for command in ["fsck", "dump"] {
        let (code, stdout, stderr) = forebay(&[command], &site.data());
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.contains("stop that server first"), "{stderr}");
    }
    drop(server);
}

#[tokio::test]
async fn a_whole_directory_is_clean_and_stays_as_it_is() {
    let site = filled().await;
    let before = contents(&site.data());
    let (code, stdout) = fsck(&site.data());
    assert_eq!(code, 0, "{stdout}");
    let last = stdout.lines().last().unwrap();
    assert!(
        last.starts_with("clean: 0 damages") && last.ends_with(&format!("{MESSAGES} messages")),
        "{stdout}"
    );
    let (code, json, _) = forebay(&["fsck", "--output", "ndjson"], &site.data());
    let summary: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!((code, &summary["kind"], &summary["damages"]), (0, &"summary".into(), &0.into()));
    let (code, stdout, _) = forebay(&["fsck", "--rebuild"], &site.data());
    assert!(code == 0 && stdout.contains("not rebuilt: a server can start from the checkpoint"), "{stdout}");
    assert!(contents(&site.data()) == before, "nothing is changed");
    // Index files are made again.
    for file in files(&site.data(), "log", ".idx") {
        fs::remove_file(file).unwrap();
    }
    let (code, stdout) = fsck(&site.data());
    assert!(code == 0 && stdout.contains(".idx: missing"), "{stdout}");
    assert_eq!(served(&site).await, all_but(&[]));
}

#[tokio::test]
async fn a_flipped_bit_is_told_wherever_it_means_something() {
    let site = filled().await;
    let data = site.data();
    let mut all = vec![data.join("IDENTITY")];
    all.extend(files(&data, "checkpoint", ".ckpt"));
    all.extend(files(&data, "log", ".idx").into_iter().take(2));
    let segments = files(&data, "log", ".seg");
    all.extend(segments.iter().take(2).cloned());
    for file in all {
        let good = fs::read(&file).unwrap();
        let is_segment = segments.contains(&file);
        // Zeroes of a segment may be padding, which says nothing.
        let places: Vec<usize> = (0..good.len()).filter(|at| !is_segment || good[*at] != 0).collect();
        for place in places.iter().step_by(places.len() / 9) {
            flip(&file, *place);
            let (code, stdout) = fsck(&data);
            let name = told(&data, &file);
            assert!(code == 1 && stdout.contains(&name), "byte {place} of {name}: {stdout}");
            fs::write(&file, &good).unwrap();
        }
    }
    assert_eq!(fsck(&data).0, 0);
}

#[tokio::test]
async fn damage_to_a_segment_names_the_messages_and_costs_no_others() {
    let whole = filled().await;
    let (name, hit) = (queue("q"), 9);
    let (file, body) = place_of(&whole.data(), hit);
    let name_of_file = told(&whole.data(), &file);
    let frame = body / 4096 * 4096;
    assert!(body - frame < 200, "the frame begins right before the message");
    // Its body, its record's head, its frame's header.
    let cases = [(body + 77, "message"), (body - 20, "record"), (frame + 30, "frame")];
    for (place, kind) in cases {
        let site = copy_of(&whole.data());
        flip(&site.data().join(&name_of_file), place);
        let (code, stdout) = fsck(&site.data());
        assert_eq!(code, 1, "{stdout}");
        let lines: Vec<&str> = stdout.lines().filter(|line| line.starts_with(kind)).collect();
        assert!(lines.len() == 1 && lines[0].contains(&name_of_file), "{kind}: {stdout}");
        let message = format!("queue={name} offsets={hit}..{hit}:");
        let damaged = stdout.lines().find(|line| line.contains(&message));
        assert!(damaged.is_some_and(|line| line.contains(&name_of_file)), "{kind}: {stdout}");
        // A segment that was just sealed may be without its index yet.
        let told = stdout.lines().filter(|line| !line.contains(".idx: missing")).count();
        assert_eq!(told, if kind == "message" { 2 } else { 3 }, "{stdout}");
        // The index file leads into a frame whose header is lost; the message is whole.
        let lost = if kind == "frame" { &[][..] } else { &[hit] };
        assert_eq!(stdout.contains("lost-messages"), kind == "record", "{stdout}");
        let (code, dumped, _) = forebay(&["dump"], &site.data());
        assert_eq!((code, dumped.lines().count()), (1, MESSAGES - lost.len()));
        if kind == "frame" {
            let index = site.data().join(name_of_file.replace(".seg", ".idx"));
            let bytes = fs::read(&index).unwrap();
            fs::remove_file(&index).unwrap();
            let (_, stdout) = fsck(&site.data());
            assert!(stdout.contains(&format!("lost-messages {name_of_file}:{frame} {message}")), "{stdout}");
            fs::write(&index, bytes).unwrap();
        }
        assert_eq!(served(&site).await, all_but(lost), "{kind}");
    }
}

/// The last frame may lack its end after a power cut; one with a frame behind it may not.
#[tokio::test]
async fn the_end_of_the_last_frame_may_be_torn_and_a_start_mends_it() {
    let (site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &["a message"]).await;
    server.kill();
    let segment = files(&site.data(), "log", ".seg").remove(0);
    let whole = fs::read(&segment).unwrap();
    // Small frames of a block each; a segment's header is one block too.
    let frames = (1..).take_while(|block| whole[block * 4096..].get(4..8) == Some(b"FBfr")).count();
    for frame in 1..=frames {
        fs::write(&segment, &whole).unwrap();
        flip(&segment, (frame + 1) * 4096 - 1);
        let (code, stdout) = fsck(&site.data());
        let expected = if frame == frames { "torn-end" } else { "frame" };
        assert_eq!(code, 1);
        assert!(
            stdout.starts_with(&format!("{expected} {}", told(&site.data(), &segment))),
            "{frame}: {stdout}"
        );
    }
    end(site.start()).await;
    assert_eq!(fsck(&site.data()).0, 0);
}

#[tokio::test]
async fn a_segment_without_its_header_costs_its_own_messages() {
    let site = filled().await;
    let name = queue("q");
    let (file, _) = place_of(&site.data(), 9);
    let inside: Vec<usize> = (0..MESSAGES).filter(|n| place_of(&site.data(), *n).0 == file).collect();
    let segment = told(&site.data(), &file);
    let index = file.with_extension("idx");
    fs::remove_file(&index).unwrap();
    flip(&file, 100);
    let (code, stdout) = fsck(&site.data());
    let first = inside.iter().find(|n| **n >= 5).unwrap();
    let last = inside.last().unwrap();
    assert!(code == 1 && stdout.contains(&format!("segment {segment}:0: ")), "{stdout}");
    let lost = format!("lost-messages {segment}:0 queue={name} offsets={first}..{last}:");
    assert!(stdout.contains(&lost), "{stdout}");
    assert_eq!(served(&site).await, all_but(&inside));
}

#[tokio::test]
async fn a_missing_segment_and_a_strange_file_are_told() {
    let site = filled().await;
    let log = files(&site.data(), "log", ".seg");
    fs::remove_file(&log[1]).unwrap();
    fs::write(site.data().join("log/00000000000000009999.seg"), b"strange").unwrap();
    fs::write(site.data().join("quarantine/kept"), b"12345").unwrap();
    let (code, stdout) = fsck(&site.data());
    assert_eq!(code, 1);
    for line in [
        format!("segment {}:0: the log lists it, and it is missing", told(&site.data(), &log[1])),
        "unlisted log/00000000000000009999.seg:0: ".to_owned(),
        "note quarantine/kept: 5 bytes".to_owned(),
    ] {
        assert!(stdout.lines().any(|found| found.starts_with(&line)), "{line}: {stdout}");
    }
    assert!(stdout.contains("lost-messages"), "{stdout}");
}
