//! Publishing, consuming, memory, restarts, reclaim.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use forebay_testkit::{Server, ServerOptions};
use serde_json::Value;

use crate::support::{bench, figure, json, judged};

#[test]
fn publishing_is_measured_in_every_mode() {
    for (mode, batch) in [("unary", "1"), ("stream", "3"), ("batch", "50")] {
        let more = ["--runs", "2", "--queues", "3", "--connections", "2", "--in-flight", "8"];
        let report =
            json(&[&["publish", "--mode", mode, "--batch", batch, "--messages", "500"], &more[..]].concat());
        assert_eq!(report["settings"]["mode"], mode);
        assert_eq!(report["runs"].as_array().unwrap().len(), 2);
        for run in 0..2 {
            assert_eq!(figure(&report, run, "messages"), 500.0);
            assert!(figure(&report, run, "messages_per_second") > 0.0);
            assert!(
                figure(&report, run, "latency_p50_ms") <= figure(&report, run, "latency_max_ms")
                    && figure(&report, run, "latency_max_ms") > 0.0
            );
        }
        assert_eq!(report["summary"]["messages"]["median"], 500);
    }
}

#[test]
fn a_running_server_is_measured_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &ServerOptions::small_segments());
    let url = format!("http://{}", server.grpc);
    for command in ["publish", "consume"] {
        let run = [command, "--server", &url, "--messages", "100", "--runs", "1", "-o", "json"];
        let report: Value = serde_json::from_slice(&bench(&run).stdout).unwrap();
        assert_eq!(figure(&report, 0, "messages"), 100.0);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stats = runtime.block_on(async {
        let request = forebay::proto::v1::GetStatsRequest::default();
        server.clients().admin.get_stats(request).await.unwrap().into_inner().server.unwrap()
    });
    assert_eq!((stats.queues, stats.subscriptions), (0, 0));
    assert!(stats.records > 0);
}

#[test]
fn consuming_is_measured_both_ways() {
    for mode in ["pull", "subscribe"] {
        let more = ["--messages", "2500", "--batch", "100", "--runs", "1"];
        let report = json(&[&["consume", "--mode", mode], &more[..]].concat());
        assert_eq!(figure(&report, 0, "messages"), 2_500.0);
        assert!(figure(&report, 0, "messages_per_second") > 0.0);
    }
}

#[test]
fn every_memory_scenario_reaches_its_state() {
    for (scenario, messages, of) in [
        ("waiting-1k", "3000", "message"),
        ("waiting-128", "3000", "message"),
        ("huge-128", "3000", "message"),
        ("large", "4", "message"),
        ("huge-large", "2", "message"),
        ("delayed", "2500", "message"),
        ("random-acks", "12000", "message"),
        ("in-flight", "11000", "message"),
        ("queues", "550", "message"),
        ("stuck", "3000", "message"),
        ("idle-queues", "200", "queue"),
    ] {
        let report = json(&["memory", scenario, "--messages", messages, "--no-verdict"]);
        assert_eq!(report["settings"]["scenario"], scenario);
        assert_eq!(report["settings"]["count"].to_string(), messages);
        assert!(figure(&report, 0, "empty_mib") > 0.5, "a process has memory");
        assert!(figure(&report, 0, "peak_growth_mib") >= figure(&report, 0, "growth_mib"));
        assert!(figure(&report, 0, &format!("bytes_per_{of}")) >= 0.0);
        assert!(report.get("limits").is_none());
    }
}

#[test]
fn scale_multiplies_a_scenario() {
    let report = json(&["memory", "waiting-1k", "--scale", "0.002"]);
    assert_eq!(report["settings"]["count"], 2_000);
    assert_eq!(report["limits"][0]["figure"], "growth_mib");
    assert_eq!(report["limits"][0]["most"], 64);
    let report = json(&["memory", "huge-128", "--scale", "0.00001"]);
    assert_eq!(report["settings"]["count"], 1_000);
    assert_eq!(report["limits"][0]["most"], 128);
}

/// A program that starts the server of this build after half a second.
fn slow_server(dir: &Path) -> String {
    let path = dir.join("slow-forebay");
    let server = forebay_testkit::server::binary();
    std::fs::write(&path, format!("#!/bin/sh\nsleep 0.5\nexec {} \"$@\"\n", server.display())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_restart_is_measured_and_judged() {
    let small = ["restart", "--messages", "3000", "--size", "100", "--runs", "3"];
    let report = json(&[&small[..], &["--no-verdict"]].concat());
    for run in 0..3 {
        assert!(figure(&report, run, "ready_ms") > figure(&report, run, "recovery_ms"));
    }
    let delayed = json(&[&small[..], &["--no-verdict", "--delayed"]].concat());
    assert_eq!(delayed["settings"]["delayed"], true);
    let programs = tempfile::tempdir().unwrap();
    let slow = slow_server(programs.path());
    let (output, report) = judged(&[&small[..], &["--server-bin", &slow]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report["limits"][0]["passed"], false);
    assert!(figure(&report, 0, "ready_ms") > 500.0);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.starts_with("ready_ms: wanted at most 200, found a median of "), "{errors}");
}

#[test]
fn what_cannot_be_run_is_said() {
    let missing = bench(&["publish", "--server-bin", "/nonexistent/forebay"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/forebay"));
    let broken = bench(&["restart", "--server-bin", "/bin/false", "--messages", "1"]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&broken.stderr).contains("did not start"));
    assert_eq!(bench(&["memory", "everything"]).status.code(), Some(2));
    assert_eq!(bench(&["publish", "--mode", "unary", "--batch", "2"]).status.code(), Some(1));
    let help = bench(&["memory", "--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("Disk at scale 1"));
}

#[test]
fn what_a_slow_consumer_costs_is_measured() {
    let report = json(&["reclaim", "slow-consumer", "--scale", "0.002", "--no-verdict"]);
    assert_eq!(report["settings"]["segment_bytes"], 1 << 20);
    let (published, needed) = (figure(&report, 0, "published_bytes"), figure(&report, 0, "needed_bytes"));
    assert!(published >= 42_000_000.0 && needed == published / 20.0, "{published} {needed}");
    assert!(figure(&report, 0, "segments_rewritten") > 0.0);
    assert!(figure(&report, 0, "write_amplification") > 1.0);
}
