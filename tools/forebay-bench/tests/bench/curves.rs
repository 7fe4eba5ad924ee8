//! Points along an axis.

use serde_json::Value;

use crate::support::{bench, json};

const COMMON: [&str; 6] = [
    "published_per_second",
    "published_mib_per_second",
    "publish_p99_ms",
    "memory_mib",
    "disk_mib",
    "ready_ms",
];

/// A figure at a point; all are there in each run and its summary.
fn median(point: &Value, name: &str) -> f64 {
    let median = point["summary"][name]["median"].as_f64();
    median.unwrap_or_else(|| panic!("{name} is missing in {point:#}"))
}

#[test]
fn each_axis_has_its_points_and_its_figures() {
    for (axis, key, points, more) in [
        ("backlog", "backlog", [500, 2_000], &["consumed_per_second"][..]),
        ("queues", "queues", [1, 30], &[]),
        ("subscriptions", "subscriptions", [1, 3], &["delivered_per_second", "end_to_end_p99_ms"]),
        ("connections", "connections", [1, 20], &[]),
        ("sizes", "size", [16, 100_000], &[]),
    ] {
        let numbers = points.map(|point| point.to_string()).join(",");
        let report = json(&["curves", axis, "--points", &numbers, "--seconds", "1"]);
        assert_eq!(report["axis"], key);
        let found = report["points"].as_array().unwrap();
        assert_eq!(found.iter().map(|point| point[key].as_u64().unwrap()).collect::<Vec<_>>(), points);
        for point in found {
            for name in COMMON.iter().chain(more) {
                assert!(median(point, name) > 0.0 || *name == "memory_mib", "{axis}: {name}");
            }
        }
    }
}

#[test]
fn a_plot_has_a_panel_for_each_figure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plot.svg");
    json(&["curves", "sizes", "--points", "16,4096", "--seconds", "1", "--plot", path.to_str().unwrap()]);
    let text = std::fs::read_to_string(&path).unwrap();
    let svg = roxmltree::Document::parse(&text).unwrap();
    let texts: Vec<&str> = svg
        .descendants()
        .filter(|node| node.is_text())
        .filter_map(|node| node.text())
        .map(str::trim)
        .collect();
    for name in COMMON {
        let title = name.replace('_', " ");
        assert_eq!(texts.iter().filter(|text| **text == title).count(), 1, "{title}: {texts:?}");
    }
    let points = svg.descendants().filter(|node| node.tag_name().name() == "circle").count();
    assert_eq!(points, 2 * COMMON.len());
}

#[test]
fn points_that_cannot_be_are_refused() {
    for (arguments, why) in [
        (["curves", "sizes", "--points", "16,9000000"], "at most 8388608 bytes"),
        (["curves", "queues", "--points", "10,10"], "the points of an axis rise"),
        (["curves", "connections", "--points", "1000000000000"], "ulimit -Hn"),
    ] {
        let output = bench(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(errors.contains(why), "{arguments:?}: {errors}");
    }
}
