//! Other queues, as far as their programs are on PATH.

use crate::support::{bench, figure, json};

fn is_there(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

#[test]
fn forebay_is_compared_with_what_is_there() {
    let small = ["--runs", "1", "--seconds", "1", "--scale", "0.01", "--no-verdict"];
    let report = json(&[&["compare"], &small[..]].concat());
    let mut systems = vec![("forebay", true)];
    let (redis, nats) = (is_there("redis-server"), is_there("nats-server"));
    if redis {
        systems.extend([("redis_always", false), ("redis_everysec", true)]);
        assert!(figure(&report, 0, "forebay_over_redis_always") > 0.0);
    }
    if nats {
        systems.extend([("nats_always", false), ("nats_default", true)]);
    }
    if redis || nats {
        let (same, best) = ("forebay_over_fastest_later", "forebay_over_best_later");
        assert!(figure(&report, 0, same) >= figure(&report, 0, best));
    }
    for (system, consumes) in systems {
        for in_flight in [1, 16, 64, 256] {
            assert!(figure(&report, 0, &format!("{system}_{in_flight}_per_s")) > 0.0);
        }
        let consumed = report["runs"][0].get(format!("{system}_consume_per_s"));
        assert_eq!(consumed.is_some(), consumes, "{system}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let output = bench(&["compare", "--redis-server", "/bin/false", "--nats-server", "/nonexistent/nats"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("\"/nonexistent/nats\" is no program"), "{errors}");
    assert_eq!(bench(&["publish", "--peer", "http://127.0.0.1:1"]).status.code(), Some(2));
    assert_eq!(bench(&["publish", "--peer", "redis://127.0.0.1:1", "--batch", "2"]).status.code(), Some(2));
    let nobody = bench(&["publish", "--peer", "redis://127.0.0.1:1", "--runs", "1", "--seconds", "1"]);
    assert_eq!(nobody.status.code(), Some(1));
}
