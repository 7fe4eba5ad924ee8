//! Queues, subscriptions, figures, peeking, exit codes.

use serde_json::{Value, json};

use crate::support::{Server, ctl, run};

#[test]
fn queues_are_made_listed_described_and_deleted() {
    let server = Server::start();
    let made = server.json(&["queue", "create", "mail", "--label", "team=a", "-o", "json"]);
    assert_eq!(made["name"], "namespaces/default/queues/mail");
    assert_eq!(made["labels"], json!({"team": "a"}));
    server.create("namespaces/shop/queues/orders");

    let list = server.run(&["queue", "list"], b"").ok().text();
    let mut lines = list.lines();
    assert!(lines.next().unwrap().starts_with("NAME "), "{list}");
    assert!(lines.next().unwrap().starts_with("namespaces/default/queues/mail "), "{list}");
    assert_eq!(lines.next(), None);
    let shop = server.run(&["queue", "list", "--namespace", "shop", "-o", "ndjson"], b"").ok().lines();
    assert_eq!(shop.len(), 1);
    assert_eq!(shop[0]["name"], "namespaces/shop/queues/orders");
    assert_eq!(server.json(&["queue", "list", "--namespace", "none", "-o", "json"]), json!([]));

    let described = server.json(&["queue", "describe", "mail", "-o", "json"]);
    assert_eq!(described["uid"], made["uid"]);
    assert_eq!(
        server.run(&["queue", "delete", "mail", "-o", "json"], b"").ok().json()["deleted"],
        made["name"]
    );
    assert_eq!(server.run(&["queue", "describe", "mail"], b"").code, Some(3));
}

#[test]
fn a_listing_has_all_pages() {
    let server = Server::start();
    let names: Vec<String> = (0..120).map(|i| format!("q{i:03}")).collect();
    names.iter().for_each(|name| server.create(name));
    let list = server.json(&["queue", "list", "-o", "json"]);
    let listed: Vec<&str> = list.as_array().unwrap().iter().map(|q| q["name"].as_str().unwrap()).collect();
    let expected: Vec<String> =
        names.iter().map(|name| format!("namespaces/default/queues/{name}")).collect();
    assert_eq!(listed, expected);
}

#[test]
fn queues_are_paused_and_resumed() {
    let server = Server::start();
    server.create("q");
    let name = "namespaces/default/queues/q";
    let args = ["queue", "pause", "q", "--refuse", "--reason", "drill", "-o", "json"];
    let paused = server.json(&args);
    assert_eq!((&paused["paused"], &paused["publish"]), (&json!(name), &json!("refused")));
    assert_ne!(server.run(&["publish", "q"], b"zero\n").code, Some(0));
    server.run(&["queue", "pause", "q"], b"").ok();
    let described = server.json(&["queue", "describe", "q", "-o", "json"]);
    assert_eq!(described["pause"]["publish"], "held");
    server.run(&["publish", "q"], b"zero\none\n").ok();
    let resumed = server.json(&["queue", "resume", "q", "-o", "json"]);
    assert_eq!(resumed, json!({ "resumed": name, "held_messages": 2 }));
    assert_eq!(server.json(&["queue", "describe", "q", "-o", "json"])["pause"], Value::Null);
}

#[test]
fn messages_are_shown_cancelled_and_purged() {
    let server = Server::start();
    server.run(&["queue", "create", "q"], b"").ok();
    server.run(&["publish", "q"], b"zero\none\ntwo\n").ok();
    let lines = server.run(&["peek", "q", "-o", "ndjson"], b"").ok().stdout;
    let lines = String::from_utf8(lines).unwrap();
    let one: Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    let id = one["message_id"].as_str().unwrap();
    assert_eq!(server.run(&["message", "get", "q", id], b"").ok().stdout, b"one\n");
    let cancelled = server.json(&["message", "cancel", "q", id, "-o", "json"]);
    assert_eq!(cancelled, json!({ "cancelled": id }));
    assert_eq!(server.run(&["message", "cancel", "q", id], b"").code, Some(3));
    let purged = server.json(&["queue", "purge", "q", "--below", "1", "-o", "json"]);
    assert_eq!(purged, json!({ "purged": "namespaces/default/queues/q", "below": 1 }));
    assert_eq!(server.run(&["consume", "q", "--max", "1"], b"").ok().stdout, b"two\n");
    server.run(&["queue", "purge", "q"], b"").ok();
    assert_eq!(server.run(&["queue", "purge", "q", "--below", "9"], b"").code, Some(5));
}

#[test]
fn a_subscription_is_made_with_its_retry_policy() {
    let server = Server::start();
    server.run(&["queue", "create", "q"], b"").ok();
    let create = ["subscription", "create", "q", "sender", "-o", "json"];
    let options = ["--max-attempts", "5", "--min-backoff", "10s", "--dead-letter-queue", "lost"];
    server.run(&[&create[..], &options[..]].concat(), b"").ok();
    let shown = server.json(&["subscription", "describe", "q", "sender", "-o", "json"]);
    assert_eq!((&shown["max_attempts"], &shown["min_backoff"]), (&json!(5), &json!("10s")));
    assert_eq!(shown["max_backoff"], "10m");
    assert_eq!(shown["dead_letter_queue"], "namespaces/default/queues/lost");
    let plain = server.json(&["subscription", "describe", "q", "default", "-o", "json"]);
    assert_eq!((&plain["max_attempts"], &plain["min_backoff"]), (&json!(16), &json!(null)));
}

#[test]
fn subscriptions_begin_where_they_were_told() {
    let server = Server::start();
    server.run(&["queue", "create", "q", "--no-subscription"], b"").ok();
    assert_eq!(server.json(&["subscription", "list", "q", "-o", "json"]), json!([]));
    server.run(&["subscription", "create", "q", "keep"], b"").ok();
    server.run(&["publish", "q"], b"0\n1\n2\n3\n").ok();
    let create = ["subscription", "create", "q"];
    let options = ["three", "--from", "3", "--lease", "5m", "--max-in-flight", "20", "-o", "json"];
    let made = server.json(&[&create[..], &options].concat());
    assert_eq!((&made["lease_duration"], &made["max_in_flight"]), (&json!("5m"), &json!(20)));
    server.run(&[&create[..], &["late", "--from", "latest"]].concat(), b"").ok();

    let list = server.json(&["subscription", "list", "q", "-o", "json"]);
    let figures: Vec<_> =
        list.as_array().unwrap().iter().map(|s| (s["name"].clone(), s["backlog_messages"].clone())).collect();
    let name = |s: &str| json!(format!("namespaces/default/queues/q/subscriptions/{s}"));
    let expected = [(name("keep"), json!(4)), (name("late"), json!(0)), (name("three"), json!(1))];
    assert_eq!(figures, expected);

    let printed = server.run(&["consume", "q", "--subscription", "three", "--max", "1"], b"").ok().stdout;
    assert_eq!(printed, b"3\n");
    server.run(&["subscription", "delete", "q", "late"], b"").ok();
    assert_eq!(server.run(&["subscription", "describe", "q", "late"], b"").code, Some(3));
}

#[test]
fn peek_shows_without_leasing() {
    let server = Server::start();
    server.create("q");
    let input: String = (0..2500).map(|i| format!("m{i}\n")).collect();
    server.run(&["publish", "q", "--attr", "k=v"], input.as_bytes()).ok();
    assert_eq!(server.run(&["peek", "q"], b"").ok().text().lines().count(), 10);
    let all = server.run(&["peek", "q", "--max", "5000"], b"").ok();
    assert_eq!(all.text(), input);
    let some = server.run(&["peek", "q", "--from", "2498", "-o", "ndjson"], b"").ok().lines();
    assert_eq!(some.iter().map(|m| m["offset"].as_u64().unwrap()).collect::<Vec<_>>(), [2498, 2499]);
    assert_eq!((&some[0]["body"], &some[0]["attributes"]), (&json!("m2498"), &json!({"k": "v"})));
    let stats = server.default_stats("q");
    assert_eq!((&stats["backlog_messages"], &stats["leased_messages"]), (&json!(2500), &json!(0)));
}

#[test]
fn figures_are_the_same_in_every_format() {
    let server = Server::start();
    server.create("q");
    server.run(&["publish", "q"], b"abc\nde\n").ok();
    let stats = server.json(&["stats", "q", "-o", "json"]);
    assert_eq!(stats["next_offset"], 2);
    assert_eq!(stats["published_messages"], 2);
    assert_eq!(stats["subscriptions"][0]["backlog_messages"], 2);
    assert_eq!(server.run(&["stats", "q", "-o", "ndjson"], b"").ok().lines().len(), 1);
    let table = server.run(&["stats", "q"], b"").ok().text();
    assert!(table.contains("\npublished_messages  2\n"), "{table}");
    assert!(table.contains("NAME ") && table.contains("q/subscriptions/default  0 "), "{table}");

    let total = server.json(&["stats", "-o", "json"]);
    assert_eq!((&total["queues"], &total["subscriptions"]), (&json!(1), &json!(1)));
    let info = server.json(&["server", "info", "-o", "json"]);
    assert_eq!(info["limits"]["max_body_bytes"], 8 << 20);
    assert!(info["features"].as_array().is_some_and(|features| !features.is_empty()), "{info}");
    assert!(server.run(&["server", "info"], b"").ok().text().contains("limits.max_body_bytes "));
}

#[test]
fn each_class_of_error_has_its_exit_code_and_says_why() {
    let server = Server::start();
    server.create("q");
    let long = "n".repeat(256);
    let cases: [(&[&str], i32, &str); 9] = [
        (&["queue", "describe", "none"], 3, "QUEUE_NOT_FOUND"),
        (&["subscription", "describe", "q", "none"], 3, "SUBSCRIPTION_NOT_FOUND"),
        (&["consume", "none"], 3, "NOT_FOUND"),
        (&["peek", "none"], 3, "QUEUE_NOT_FOUND"),
        (&["queue", "create", "q"], 4, "QUEUE_EXISTS"),
        (&["subscription", "create", "q", "default"], 4, "SUBSCRIPTION_EXISTS"),
        (&["queue", "create", &long], 5, "INVALID_ARGUMENT"),
        (&["subscription", "create", "q", "s", "--from", "7"], 5, "OFFSET_OUT_OF_RANGE"),
        (&["subscription", "create", "q", "s", "--lease", "1ms"], 5, "INVALID_ARGUMENT"),
    ];
    for (args, code, why) in cases {
        let ran = server.run(args, b"");
        assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
        assert!((1..=2).contains(&ran.stderr.lines().count()), "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{args:?}: {}", ran.text());
    }
}

#[test]
fn wrong_usage_and_an_absent_server_are_told_apart() {
    let usage: [&[&str]; 6] = [
        &["nonsense"],
        &["queue", "create", "a/b"],
        &["consume", "q", "--idle-exit", "5"],
        &["consume", "q", "--ack", "--leave"],
        &["publish", "q", "--attr", "a=1", "--attr", "a=2"],
        &["--server", "https://127.0.0.1:1", "stats"],
    ];
    for args in usage {
        assert_eq!(run(ctl(args), b"").code, Some(2), "{args:?}");
    }
    for args in [&["stats"][..], &["queue", "list"], &["publish", "q"], &["consume", "q"], &["peek", "q"]] {
        let ran = run(ctl(&[&["--server", "http://127.0.0.1:1"], args].concat()), b"");
        assert_eq!(ran.code, Some(6), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("FOREBAY_SERVER"), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn help_and_completions_need_no_server() {
    let help = run(ctl(&["--help"]), b"").ok().text();
    assert!(help.contains("Exit codes:") && help.contains("FOREBAY_SERVER"), "{help}");
    for args in [&["publish", "--help"][..], &["consume", "--help"], &["queue", "create", "--help"]] {
        assert!(run(ctl(args), b"").ok().text().contains("Example"), "{args:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(ctl(&["completions", shell]), b"").ok().text().contains("forebayctl"), "{shell}");
    }
}
