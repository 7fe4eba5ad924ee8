//! What counts as a history.

use forebay_checker::{Unreadable, check};

use crate::story::{Q, Story};

const HEAD: &str = r#"{"i":0,"t":5,"event":{"history":{"version":1}}}"#;

fn why(lines: &[&str]) -> String {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    check(text.as_bytes()).expect_err("it is no history").to_string()
}

#[test]
fn the_example_of_the_documentation_is_a_clean_history() {
    let source = include_str!("../../src/format.rs");
    let example = source.lines().filter_map(|line| line.strip_prefix("//! {"));
    let text: String = example.map(|line| format!("{{{line}\n")).collect();
    let report = check(text.as_bytes()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.events, report.deliveries), (8, 1));
}

#[test]
fn what_is_no_history_is_named_with_its_line() {
    assert_eq!(why(&[]), "line 0: the history is empty");
    let version = r#"{"i":0,"t":0,"event":{"history":{"version":2}}}"#;
    let head = "line 1: the first event, and no other, is {\"history\":{\"version\":1}}";
    assert_eq!(why(&[version]), head);
    assert_eq!(why(&[r#"{"i":0,"t":0,"event":{"killed":{"life":0}}}"#]), head);
    assert!(why(&[HEAD, "{"]).starts_with("line 2: not a line of a history of version 1: EOF"));
    assert!(why(&[HEAD, r#"{"i":1,"t":5,"event":{"new":{}}}"#]).contains("unknown variant `new`"));
    assert!(why(&[HEAD, r#"{"i":1,"t":5,"event":{"killed":{"life":0,"x":1}}}"#]).contains("unknown field"));
    assert_eq!(
        why(&[HEAD, r#"{"i":2,"t":5,"event":{"killed":{"life":0}}}"#]),
        "line 1: index 2 where 1 is due"
    );
    assert_eq!(why(&[HEAD, r#"{"i":1,"t":4,"event":{"killed":{"life":0}}}"#]), "line 2: the time goes back");
    let fail = r#"{"i":1,"t":5,"event":{"fail":{"call":3}}}"#;
    assert_eq!(why(&[HEAD, fail]), "line 2: call 3 ends, but does not run");
}

#[test]
fn contradictions_are_no_history() {
    let refused = |story: Story| match check(story.text().as_bytes()) {
        Err(Unreadable::Nonsense { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(Story::new().send(1, &[1], false).send(1, &[2], false)), "call 1 is invoked twice");
    let other = "id 1 is used for two messages";
    assert_eq!(refused(Story::new().send(1, &[1], false).send(2, &[1, 2], false)), other);
    assert_eq!(refused(Story::new().send(1, &[2, 1], false).send(2, &[3, 1], false)), other);
    assert_eq!(refused(Story::new().send(1, &[1], false).send(2, &[1], true)), other);
    let wrong = Story::new().send(1, &[1], false).ok(1, forebay_checker::format::Answer::Purged);
    assert_eq!(refused(wrong), "call 1 has the answer of another kind of call");
    let future = Story::new().stored(1, &[1], &[0]).deliver(0, 1, |delivery| delivery.after.i += 1);
    assert_eq!(refused(future), "a delivery that was sent after it came");
    let ending = Story::new().stored(1, &[1], &[0]);
    let endings = vec![forebay_checker::format::Ending {
        offset: 0,
        delivery: 4,
        how: forebay_checker::format::How::Ack,
    }];
    let settle = forebay_checker::format::Op::Settle { queue: Q.into(), life: 0, endings };
    assert_eq!(refused(ending.invoke(2, settle)), "an ending of the delivery 4, which comes later");
}
