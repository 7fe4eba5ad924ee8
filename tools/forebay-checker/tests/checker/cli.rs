//! The command.

use std::process::{Command, Output};

use crate::story::{Q, Story};

fn checker(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay-checker")).args(arguments).output().unwrap()
}

fn judged(story: &Story, arguments: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.jsonl");
    std::fs::write(&path, story.text()).unwrap();
    let output = checker(&[&[path.to_str().unwrap()], arguments].concat());
    assert!(output.stderr.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_exit_code_is_the_verdict() {
    let clean = Story::new().stored(1, &[1], &[0]).came(0, 1).acked(0).waiting(Q, &[]);
    let counts = "events=8 messages=1 acknowledged=1 deliveries=1 redeliveries=0 endings=1 \
                  purges=0 unknown=0 violations=0\n";
    assert_eq!(judged(&clean, &[]), (Some(0), counts.to_owned()));
    let lost = Story::new().stored(1, &[9], &[3]).waiting(Q, &[]);
    let (code, table) = judged(&lost, &[]);
    assert_eq!(code, Some(1));
    let row = table.lines().nth(1).unwrap();
    assert!(row.starts_with("lost") && row.contains(" q ") && row.contains(" 4 "), "{table}");
    let missing = checker(&["/nowhere/h.jsonl"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).starts_with("/nowhere/h.jsonl: "));
    assert_eq!(checker(&[]).status.code(), Some(2));
}

#[test]
fn json_has_all_there_is_to_know() {
    let lost = Story::new().stored(1, &[9], &[3]).waiting(Q, &[]);
    let (code, text) = judged(&lost, &["--output", "json"]);
    assert_eq!(code, Some(1));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["counts"]["lost"], 1);
    let violation = &report["violations"][0];
    assert_eq!((&violation["kind"], &violation["queue"]), (&"lost".into(), &Q.into()));
    assert_eq!((&violation["offset"], &violation["message"]), (&3.into(), &9.into()));
    assert_eq!(violation["lines"], serde_json::json!([4]));
}

#[test]
fn the_help_has_examples() {
    let help = checker(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("Examples:") && text.contains("Exit codes: 0"), "{text}");
}
