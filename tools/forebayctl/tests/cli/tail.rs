//! Following a queue, without consumers noticing.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Server, interrupt};

fn offsets(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|message| message["offset"].as_u64().unwrap()).collect()
}

#[test]
fn a_tail_begins_where_it_is_told_and_ends_after_its_count() {
    let server = Server::start();
    server.create("q");
    let input: String = (0..1_000).map(|i| format!("{i}\n")).collect();
    server.run(&["publish", "q"], input.as_bytes()).ok();
    let tail = |from: &str, count: &str| {
        let args = ["tail", "q", "--from", from, "--count", count, "-o", "ndjson"];
        offsets(&server.run(&args, b"").ok().lines())
    };
    assert_eq!(tail("earliest", "700"), (0..700).collect::<Vec<_>>());
    assert_eq!(tail("990", "10"), (990..1_000).collect::<Vec<_>>());
    assert_eq!(tail("2020-01-01T00:00:00Z", "3"), [0, 1, 2]);
    let json = server.json(&["tail", "q", "--from", "5", "--count", "2", "-o", "json"]);
    assert_eq!(offsets(json.as_array().unwrap()), [5, 6]);
    let table = server.run(&["tail", "q", "--from", "5", "--count", "2"], b"").ok().text();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert_eq!(server.default_stats("q")["backlog_messages"], 1_000);
    assert_eq!(server.run(&["tail", "none"], b"").code, Some(3));
}

#[test]
fn a_gap_is_told_on_standard_error() {
    let server = Server::start();
    server.create("q");
    server.run(&["publish", "q"], b"a\nb\nc\n").ok();
    server.run(&["queue", "purge", "q", "--below", "2"], b"").ok();
    let ran = server.run(&["tail", "q", "--from", "0", "--count", "1", "-o", "ndjson"], b"").ok();
    assert_eq!(offsets(&ran.lines()), [2]);
    assert!(ran.stderr.contains("from offset 0 to before 2 were purged"), "{}", ran.stderr);
}

#[test]
fn a_tail_outlasts_a_restart_and_ends_by_ctrl_c() {
    let mut server = Server::start();
    server.create("q");
    server.run(&["publish", "q"], b"before\n").ok();
    let mut command = server.command(&["tail", "q", "--from", "earliest", "-o", "ndjson"]);
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["body"].as_str().unwrap().to_owned()
    };
    assert_eq!(line(), "before");
    server.kill();
    server.start_again();
    server.run(&["publish", "q"], b"after\n").ok();
    assert_eq!(line(), "after");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut notes = String::new();
    child.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
    assert!(notes.contains("trying again") && notes.contains("connected again"), "{notes}");
}
