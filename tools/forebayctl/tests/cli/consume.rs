//! What is acknowledged was printed; what was not printed is released.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::support::{Server, eventually, interrupt};

fn numbered(server: &Server, queue: &str, count: usize, padding: usize) {
    server.create(queue);
    let pad = "x".repeat(padding);
    let input: String = (0..count).map(|i| format!("{i} {pad}\n")).collect();
    server.run(&["publish", queue], input.as_bytes()).ok();
}

fn follow(server: &Server, args: &[&str]) -> Child {
    let mut command = server.command(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn figures(server: &Server, queue: &str) -> (u64, u64) {
    let stats = server.default_stats(queue);
    (stats["backlog_messages"].as_u64().unwrap(), stats["leased_messages"].as_u64().unwrap())
}

#[test]
fn a_message_has_all_its_parts_in_ndjson() {
    let server = Server::start();
    server.create("q");
    server.run(&["publish", "q", "--attr", "k=v", "--attr", "l="], b"text\n\xff\xfe\n").ok();
    let messages = server.run(&["consume", "q", "--max", "2", "-o", "ndjson"], b"").ok().lines();
    let attributes = json!({"k": "v", "l": ""});
    for (offset, message) in messages.iter().enumerate() {
        assert_eq!((&message["offset"], &message["attempt"]), (&json!(offset), &json!(1)));
        assert_eq!(message["attributes"], attributes);
        assert!(message["publish_time"].as_str().is_some_and(|time| time.ends_with('Z')), "{message}");
    }
    assert_eq!((&messages[0]["body"], messages[0].get("body_base64")), (&json!("text"), None));
    assert_eq!((messages[1].get("body"), &messages[1]["body_base64"]), (None, &json!("//4=")));
}

#[test]
fn max_leaves_the_rest_alone() {
    let server = Server::start();
    numbered(&server, "q", 700, 0);
    assert_eq!(server.consume_raw("q", 300).iter().filter(|b| **b == b'\n').count(), 300);
    assert_eq!(figures(&server, "q"), (400, 0));
}

#[test]
fn idle_exit_ends_when_all_is_printed() {
    let server = Server::start();
    numbered(&server, "q", 1_000, 0);
    let ran = server.run(&["consume", "q", "--idle-exit", "300ms"], b"").ok();
    assert_eq!(ran.text().lines().count(), 1_000);
    assert_eq!(figures(&server, "q"), (0, 0));
    assert_eq!(server.run(&["consume", "q", "--idle-exit", "100ms"], b"").ok().stdout, b"");
}

#[test]
fn nack_delivers_again_and_leave_keeps_the_lease() {
    let server = Server::start();
    numbered(&server, "q", 1, 0);
    let nack = ["consume", "q", "--nack", "--max", "2", "-o", "ndjson"];
    let attempts: Vec<Value> =
        server.run(&nack, b"").ok().lines().iter().map(|message| message["attempt"].clone()).collect();
    assert_eq!(attempts, [1, 2]);
    let left = server.run(&["consume", "q", "--leave", "--max", "1", "-o", "ndjson"], b"").ok().lines();
    assert_eq!(left[0]["attempt"], 3);
    assert_eq!(figures(&server, "q"), (1, 1));
}

#[test]
fn a_reader_that_goes_away_loses_no_message() {
    let server = Server::start();
    numbered(&server, "q", 3_000, 1_000);
    let mut child = follow(&server, &["consume", "q", "-o", "ndjson"]);
    let mut seen = BTreeSet::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..100 {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let message: Value = serde_json::from_str(&line).unwrap();
        seen.insert(message["offset"].as_u64().unwrap());
    }
    assert_eq!(seen, (0..100).collect());
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let (backlog, leased) = figures(&server, "q");
    assert_eq!(leased, 0);
    // Some writes were read whole; the pipe took no more than a part of all.
    assert!((1..3_000).contains(&backlog), "{backlog}");
    let max = backlog.to_string();
    let rest = server.run(&["consume", "q", "--max", &max, "-o", "ndjson"], b"").ok().lines();
    let offsets: Vec<u64> = rest.iter().map(|message| message["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, (3_000 - backlog..3_000).collect::<Vec<_>>());
    assert!(rest.iter().all(|message| message["attempt"] == 1), "a release burnt an attempt");
}

#[test]
fn a_reader_that_goes_away_is_noticed_without_messages() {
    let server = Server::start();
    server.create("q");
    let mut child = follow(&server, &["consume", "q"]);
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_interrupt_releases_what_was_not_printed() {
    let server = Server::start();
    numbered(&server, "q", 3_000, 1_000);
    // Nobody reads, so printing stops when the pipe is full.
    let mut child = follow(&server, &["consume", "q"]);
    eventually("leases are held", || figures(&server, "q").1 > 0);
    let mut last = figures(&server, "q");
    eventually("printing has stopped", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let before = std::mem::replace(&mut last, figures(&server, "q"));
        before == last
    });
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut printed = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut printed).unwrap();
    let (backlog, leased) = figures(&server, "q");
    assert_eq!(leased, 0);
    let lines = printed.iter().filter(|b| **b == b'\n').count() as u64;
    assert!(3_000 - backlog <= lines, "{backlog} wait, but only {lines} were printed");
    assert!(backlog < 3_000, "what was printed was not acknowledged");
}

#[test]
fn an_interrupt_ends_one_that_waits() {
    let server = Server::start();
    server.create("q");
    let mut child = follow(&server, &["consume", "q"]);
    server.run(&["publish", "q"], b"a\n").ok();
    eventually("it is consuming", || figures(&server, "q") == (0, 0));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    server.run(&["publish", "q"], b"b\n").ok();
    assert_eq!(figures(&server, "q"), (1, 0));
}

#[test]
fn following_outlasts_a_restart() {
    let mut server = Server::start();
    server.create("q");
    server.run(&["publish", "q"], b"before\n").ok();
    let mut child = follow(&server, &["consume", "q"]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    eventually("it is acknowledged", || figures(&server, "q") == (0, 0));
    server.kill();
    server.start_again();
    server.run(&["publish", "q"], b"after\n").ok();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "before\nafter\n");
    eventually("it is acknowledged", || figures(&server, "q") == (0, 0));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut notes = String::new();
    child.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
    assert!(notes.contains("trying again"), "{notes}");
}
