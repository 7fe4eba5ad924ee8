//! What the server is measured beside.

use crate::support::{bench, figure, json, verdicts};

const SMALL: [&str; 6] = ["--runs", "1", "--seconds", "1", "--scale", "0.002"];

#[test]
fn each_row_is_measured_beside_its_own() {
    let report = json(&[&["limits", "--no-verdict"], &SMALL[..]].concat());
    let value = |name| figure(&report, 0, name);
    for (ratio, own, limit) in [
        ("unary_64_ratio", "unary_64_per_s", "empty_unary_64_per_s"),
        ("group_commit_64_ratio", "group_commit_64_per_s", "raw_commit_64_per_s"),
        ("hot_queues_ratio", "hot_queues_per_s", "one_queue_per_s"),
        ("large_ratio", "large_mib_per_s", "raw_large_mib_per_s"),
        ("large_growing_ratio", "large_growing_mib_per_s", "raw_large_mib_per_s"),
    ] {
        assert!(value(own) > 0.0 && value(limit) > 0.0);
        assert!((value(ratio) - value(own) / value(limit)).abs() < 0.01, "{ratio}");
    }
    for rate in ["stream_256_per_s", "batch_100_per_s", "batch_100_growing_per_s", "consume_100_per_s"] {
        assert!(value(rate) > 0.0, "{rate}");
    }
    assert!(value("batch_100_new_file_share") < 0.5, "files go around");
    assert!(report.get("limits").is_none());
    assert_eq!(report["summary"]["unary_64_ratio"]["median"], report["runs"][0]["unary_64_ratio"]);
}

#[test]
fn attacks_are_chosen_and_judged_by_what_they_cost_an_honest_client() {
    let arguments = ["attack", "ping-flood", "zero-window", "--runs", "1", "--seconds", "1"];
    let report = json(&[&arguments[..], &["--no-verdict"]].concat());
    for name in ["ping_flood", "zero_window"] {
        let value = |what| figure(&report, 0, &format!("{name}_{what}"));
        assert!(value("alone_p99_ms") > 0.0);
        assert!((value("p99_ratio") - value("p99_ms") / value("alone_p99_ms")).abs() < 0.01);
    }
    let judged: Vec<String> = verdicts(&arguments).into_iter().map(|(figure, _)| figure).collect();
    assert_eq!(judged, ["ping_flood_p99_ratio", "zero_window_p99_ratio"]);
    assert_eq!(bench(&["attack", "unheard-of"]).status.code(), Some(2));
}

#[test]
fn the_tail_is_measured_beside_the_servers_own_work_and_beside_the_disk() {
    let arguments = ["tail", "--rate", "4000", "--runs", "1", "--seconds", "1", "--scale", "0.01"];
    let report = json(&[&arguments[..], &["--no-verdict"]].concat());
    let value = |name: &str| figure(&report, 0, name);
    assert!(value("upkeep_segments_rewritten") > 0.0);
    assert!(value("cold_read_beside_mib_per_second") > 0.0);
    for (phase, beside) in [("upkeep", "alone"), ("cold", "alone"), ("cold", "disk_cold")] {
        let ratio = value(&format!("{phase}_p999_ms")) / value(&format!("{beside}_p999_ms"));
        let name = format!("{phase}_over_{}_p999", beside.trim_end_matches("_cold"));
        assert!((value(&name) - ratio).abs() < 0.01, "{name}");
    }
}

#[test]
fn rows_are_chosen_and_judged() {
    let figures = |rows: &[&str]| -> Vec<String> {
        let verdicts = verdicts(&[&["limits"], rows, &SMALL[..]].concat());
        verdicts.into_iter().map(|(figure, _)| figure).collect()
    };
    assert_eq!(figures(&["stream"]), ["stream_256_per_s"]);
    assert_eq!(figures(&["large", "group"]), ["group_commit_64_ratio", "large_ratio"]);
}
