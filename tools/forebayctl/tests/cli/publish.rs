//! What is published is what was given, once and in order.

use std::io::{Read, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Ran, Server, ctl, eventually, run};

/// The sum on the last line of standard output.
fn sum(ran: &Ran) -> Value {
    let text = ran.text();
    let sum: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let keys: Vec<_> = sum.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["queue", "published", "first_offset", "last_offset", "bytes", "seconds"]);
    sum
}

fn numbers(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|i| format!("{i}\n")).collect::<String>().into_bytes()
}

#[test]
fn awkward_bytes_come_back_as_they_were() {
    let server = Server::start();
    server.create("q");
    let mut input =
        b"\nplain\n\n\0 with NUL \0\ncarriage return\r\n\xff\xfe not UTF-8 \xc3\x28\n\r\n".to_vec();
    input.extend(vec![b'x'; 600_000]);
    input.extend(b"\nno line feed at the end");
    let ran = server.run(&["publish", "q"], &input).ok();
    let count = 9;
    let sum = sum(&ran);
    assert_eq!(sum["queue"], "namespaces/default/queues/q");
    assert_eq!(sum["published"], count);
    assert_eq!((&sum["first_offset"], &sum["last_offset"]), (&json!(0), &json!(count - 1)));
    assert_eq!(sum["bytes"], input.len() - (count - 1));
    input.push(b'\n');
    assert!(server.consume_raw("q", count) == input, "the bytes differ");
    assert_eq!(server.default_stats("q")["ack_floor"], count);
}

#[test]
fn a_raw_input_is_one_message() {
    let server = Server::start();
    server.create("q");
    let file = tempfile::NamedTempFile::new().unwrap();
    let input = [&[0; 70_000][..], b"\n\n\xff"].concat();
    std::fs::write(file.path(), &input).unwrap();
    let path = file.path().to_str().unwrap();
    let ran = server.run(&["publish", "q", "--format", "raw", "--file", path], b"").ok();
    assert_eq!((&sum(&ran)["published"], &sum(&ran)["bytes"]), (&json!(1), &json!(input.len())));
    assert!(server.consume_raw("q", 1) == [&input[..], b"\n"].concat(), "the bytes differ");
}

#[test]
fn no_input_is_no_message() {
    let server = Server::start();
    server.create("q");
    let sum = sum(&server.run(&["publish", "q"], b"").ok());
    assert_eq!(
        (&sum["published"], &sum["first_offset"], &sum["bytes"]),
        (&json!(0), &json!(null), &json!(0))
    );
}

#[test]
fn order_holds_with_many_small_requests_in_flight() {
    let server = Server::start();
    server.create("q");
    let input = numbers(0..3_000);
    let ran = server.run(&["publish", "q", "--in-flight", "32", "--batch", "1"], &input).ok();
    assert_eq!(sum(&ran)["last_offset"], 2_999);
    assert!(server.consume_raw("q", 3_000) == input, "the order differs");
}

#[test]
fn the_sum_is_printed_after_an_error_too_and_the_rest_can_follow() {
    let server = Server::start();
    server.create("q");
    let mut input = numbers(0..1_234);
    input.extend(vec![b'x'; (8 << 20) + 1]);
    input.extend(b"\nlast\n");
    let ran = server.run(&["publish", "q"], &input);
    assert_eq!(ran.code, Some(5), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("message 1234 ") && ran.stderr.contains("--resume-from 1234"),
        "{}",
        ran.stderr
    );
    let told = sum(&ran);
    assert_eq!((&told["published"], &told["last_offset"]), (&json!(1_234), &json!(1_233)));

    let ran = server.run(&["publish", "q", "--resume-from", "1235"], &input).ok();
    let told = sum(&ran);
    assert_eq!((&told["published"], &told["first_offset"]), (&json!(1), &json!(1_234)));
    let expected = [&numbers(0..1_234)[..], b"last\n"].concat();
    assert_eq!(server.consume_raw("q", 1_235), expected);
}

#[test]
fn the_sum_of_nothing_is_printed_as_well() {
    let server = Server::start();
    let ran = server.run(&["publish", "none"], b"a\n");
    assert_eq!(ran.code, Some(3));
    assert!(ran.stderr.contains("QUEUE_NOT_FOUND"), "{}", ran.stderr);
    assert_eq!((&sum(&ran)["published"], &sum(&ran)["first_offset"]), (&json!(0), &json!(null)));
    let missing = server.run(&["publish", "q", "--file", "/none/such"], b"");
    assert_eq!((missing.code, &sum(&missing)["published"]), (Some(1), &json!(0)));
    let ran = run(ctl(&["--server", "127.0.0.1:1", "publish", "q"]), b"a\n");
    assert_eq!((ran.code, &sum(&ran)["published"]), (Some(6), &json!(0)));
}

#[test]
fn a_slow_input_is_published_as_it_comes() {
    let server = Server::start();
    server.create("q");
    let mut command = server.command(&["publish", "q"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for count in 1..=3 {
        stdin.write_all(b"line\n").unwrap();
        eventually("a line is published", || server.default_stats("q")["backlog_messages"] == count);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_that_dies_and_comes_back_costs_nothing() {
    let mut server = Server::start();
    server.create("q");
    let mut command = server.command(&["publish", "q", "--in-flight", "8", "--batch", "7"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for i in 0..60_000 {
            writeln!(stdin, "{i}").unwrap();
        }
    });
    for _ in 0..3 {
        let before = server.default_stats("q")["backlog_messages"].as_u64();
        eventually("it is publishing", || server.default_stats("q")["backlog_messages"].as_u64() > before);
        server.kill();
        server.start_again();
    }
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&told["published"], &told["last_offset"]), (&json!(60_000), &json!(59_999)));
    assert!(server.consume_raw("q", 60_000) == numbers(0..60_000), "the messages differ");
}
