//! Loads that publish and consume at once: at a rate, and as fast as they go.

use serde_json::Value;

use crate::support::{bench, figure, json, verdicts};

const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p999", "max"];

/// The percentiles of this name are there, and none is below the one before.
fn rising(json: &Value, what: &str) {
    let values = PERCENTILES.map(|share| figure(json, 0, &format!("{what}_{share}_ms")));
    assert!(values[0] > 0.0 && values.is_sorted(), "{what}: {values:?}");
}

#[test]
fn an_open_loop_sends_what_is_due_and_counts_after_the_warm_up() {
    let report = json(
        &[
            &["latency", "--rate", "300", "--seconds", "1", "--warm-up", "1", "--runs", "2", "--no-verdict"]
                [..],
            &["--sizes", "8:50,1024:45,65536:5", "--queues", "3", "--connections", "2"],
        ]
        .concat(),
    );
    for run in 0..2 {
        assert_eq!(figure(&report, run, "messages"), 300.0);
        assert!(figure(&report, run, "achieved_per_second") <= 600.0, "there are no more");
        assert!(
            figure(&report, run, "generator_late_max_ms") >= figure(&report, run, "generator_late_p99_ms")
        );
    }
    rising(&report, "publish");
    rising(&report, "end_to_end");
    assert_eq!(report["settings"]["sizes"], "8:50,1024:45,65536:5");
    assert!(report.get("limits").is_none());
}

#[test]
fn a_rate_that_no_server_takes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["latency", "--rate", "10000000", "--seconds", "1", "--runs", "1", "--sizes", "65536"];
    let output = bench(&[&arguments[..], &["--dir", dir.path().to_str().unwrap()]].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("the server did not keep up"), "{errors}");
    assert!(output.stdout.is_empty(), "no figures");
}

#[test]
fn publishing_and_consuming_are_measured_together() {
    let report =
        json(
            &[
                &[
                    "mixed",
                    "--seconds",
                    "1",
                    "--warm-up",
                    "1",
                    "--runs",
                    "1",
                    "--batch",
                    "10",
                    "--no-verdict",
                ][..],
                &["--sizes", "100:1,1000:1", "--queues", "2", "--connections", "3"],
            ]
            .concat(),
        );
    let messages = figure(&report, 0, "messages");
    for rate in ["published_per_second", "consumed_per_second"] {
        let rate = figure(&report, 0, rate);
        assert!(rate > 0.0 && rate < messages, "the warm-up does not count: {rate} of {messages}");
    }
    assert!(figure(&report, 0, "backlog_messages") < messages);
    rising(&report, "publish");
    rising(&report, "end_to_end");
    assert!(report.get("limits").is_none());
}

#[test]
fn limits_are_judged_where_they_hold() {
    let limits = |arguments: &[&str]| verdicts(&[arguments, &["--seconds", "1", "--runs", "1"]].concat());
    let figures: Vec<String> = limits(&["mixed"]).into_iter().map(|(figure, _)| figure).collect();
    assert_eq!(figures, ["published_per_second", "consumed_per_second"]);
    assert_eq!(limits(&["mixed", "--sizes", "100"]), []);
    assert_eq!(limits(&["latency", "--rate", "100", "--no-verdict"]), []);
}

#[test]
fn a_warm_up_does_not_count() {
    let publish = ["publish", "--messages", "200", "--warm-up", "1", "--runs", "1"];
    let report = json(&[&publish[..], &["--batch", "7", "--mode", "stream"]].concat());
    assert_eq!(figure(&report, 0, "messages"), 200.0);
    assert_eq!(report["settings"]["warm_up"], 1);
    let output = bench(&["consume", "--messages", "100", "--warm-up", "2", "--runs", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("take more messages"), "{errors}");
}

#[test]
fn a_plot_has_both_panels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plot.svg");
    let plot = ["--seconds", "1", "--runs", "1", "--plot", path.to_str().unwrap()];
    for (command, lines) in [
        (&["publish"][..], &["published"][..]),
        (&["latency", "--rate", "100", "--warm-up", "0", "--no-verdict"], &["published", "delivered"]),
        (&["mixed", "--warm-up", "0", "--no-verdict"], &["published", "delivered"]),
    ] {
        json(&[command, &plot[..]].concat());
        let text = std::fs::read_to_string(&path).unwrap();
        let svg = roxmltree::Document::parse(&text).unwrap();
        assert!(svg.root_element().has_tag_name(("http://www.w3.org/2000/svg", "svg")));
        let texts: Vec<&str> = svg
            .descendants()
            .filter(|node| node.is_text())
            .filter_map(|node| node.text())
            .map(str::trim)
            .collect();
        for panel in ["Latency by percentile", "Throughput over time"] {
            assert_eq!(texts.iter().filter(|text| **text == panel).count(), 1, "{command:?}: {panel}");
        }
        for line in lines {
            let named = texts.iter().filter(|text| *text == line).count();
            assert_eq!(named, 2, "{command:?}: {line} in each panel");
        }
        assert!(texts.contains(&"90 %") && texts.contains(&"seconds"), "{texts:?}");
    }
    let nowhere = bench(&["publish", "--plot", "/nonexistent/plot.svg"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nonexistent/plot.svg"));
}

#[test]
fn sizes_are_refused_if_they_cannot_be() {
    for sizes in ["7", "1024:0", "1024,x"] {
        let output = bench(&["latency", "--sizes", sizes]);
        assert_eq!(output.status.code(), Some(2), "{sizes}");
    }
}
