//! Metrics in the Prometheus text format. Names begin with `forebay_` and end in their unit.
//!
//! Figures of the broker are asked for when they are scraped. Those of calls are counted as they happen, through
//! handles made beforehand, so that counting costs no look-up by name. What other parts of the server record by the
//! macros of the crate `metrics` is shown too, once [`Metrics::install`] was called.

use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::space::SpaceFigures;
use crate::admission::{Budgets, Outflow};
use crate::broker::api::ServerStats;

/// Upper bounds of call durations, seconds.
const DURATION_BUCKETS_S: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0, 60.0];
/// How often samples are moved from where they were recorded into the histograms.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// All metrics of a server, shared by its clones.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    server: Arc<ServerFigures>,
}

/// Handles for [`ServerStats`] and admission.
struct ServerFigures {
    admitted_bytes: Gauge,
    budget_bytes: Gauge,
    outflow_bytes: Gauge,
    outflow_budget_bytes: Gauge,
    readers_waiting: Gauge,
    readers_cut: Counter,
    up: Gauge,
    queues: Gauge,
    subscriptions: Gauge,
    producers: Gauge,
    consumers: Gauge,
    log_bytes: Gauge,
    segments: Gauge,
    space: SpaceFigures,
    segments_dropped: Counter,
    segments_created: Counter,
    segments_recycled: Counter,
    checkpoints: Counter,
    checkpoint_bases: Counter,
    checkpoint_bytes: Counter,
    disk_full: Gauge,
    commits: Counter,
    syncs: Counter,
    records: Counter,
    index_rebuilds: Counter,
    damage: Counter,
    delays_lost: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let builder = PrometheusBuilder::new()
            .set_buckets(&DURATION_BUCKETS_S)
            .expect("there are buckets, which is all it asks for");
        let recorder = Arc::new(builder.build_recorder());
        let handle = recorder.handle();
        let server = metrics::with_local_recorder(&*recorder, || {
            describe_calls();
            ServerFigures::describe()
        });
        Self { recorder, handle, server: Arc::new(server) }
    }
}

impl Metrics {
    /// Makes these the process's metrics. False if it has others already.
    pub fn install(&self) -> bool {
        metrics::set_global_recorder(self.recorder.clone()).is_ok()
    }

    /// All metrics as text; `stats` are the broker's figures, none if it did not answer.
    pub fn render(&self, stats: Option<ServerStats>, budgets: &Budgets, outflow: &Outflow) -> String {
        self.server.set(stats);
        self.server.admitted_bytes.set(budgets.used_bytes() as f64);
        self.server.budget_bytes.set(budgets.budget_bytes() as f64);
        self.server.outflow_bytes.set(outflow.used_bytes() as f64);
        self.server.outflow_budget_bytes.set(outflow.budget_bytes() as f64);
        self.server.readers_waiting.set(outflow.waiting_readers() as f64);
        self.server.readers_cut.absolute(outflow.cuts());
        self.handle.render()
    }

    /// Moves samples into histograms now and then, for ever. Without it they pile up until the next scrape.
    pub async fn keep_up(&self) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            ticks.tick().await;
            self.handle.run_upkeep();
        }
    }

    /// A counter of calls of one method that ended with one code.
    pub(super) fn calls(&self, method: &'static str, code: &'static str) -> Counter {
        metrics::with_local_recorder(
            &*self.recorder,
            || counter!("forebay_rpc_calls_total", "method" => method, "code" => code),
        )
    }

    /// Connections that are open.
    pub(super) fn connections_open(&self) -> Gauge {
        metrics::with_local_recorder(&*self.recorder, || {
            described_gauge("forebay_connections", "Open connections of gRPC")
        })
    }

    /// A counter of connections that were cut for one reason.
    pub(super) fn connections_cut(&self, reason: &'static str) -> Counter {
        metrics::with_local_recorder(&*self.recorder, || {
            describe_counter!(
                "forebay_connections_cut_total",
                "Connections of gRPC that were not let in or ended by the server since the start, by why: their \
                 address had its share, they were slow to begin, flooded, or had no work"
            );
            counter!("forebay_connections_cut_total", "reason" => reason)
        })
    }

    /// The durations of one method's calls.
    pub(super) fn call_durations(&self, method: &'static str) -> Histogram {
        metrics::with_local_recorder(
            &*self.recorder,
            || histogram!("forebay_rpc_duration_seconds", "method" => method),
        )
    }
}

fn describe_calls() {
    describe_counter!("forebay_rpc_calls_total", "Calls answered, by method and gRPC code");
    describe_histogram!(
        "forebay_rpc_duration_seconds",
        "Time from a call's headers to its answer's, by method; waits of long polls are in it"
    );
}

pub(super) fn described_gauge(name: &'static str, help: &'static str) -> Gauge {
    describe_gauge!(name, help);
    gauge!(name)
}

pub(super) fn described_counter(name: &'static str, help: &'static str) -> Counter {
    describe_counter!(name, help);
    counter!(name)
}

impl ServerFigures {
    fn describe() -> Self {
        Self {
            admitted_bytes: described_gauge(
                "forebay_admission_used_bytes",
                "Memory that requests under way have taken from the budget, bytes",
            ),
            budget_bytes: described_gauge("forebay_admission_budget_bytes", "The budget for requests, bytes"),
            outflow_bytes: described_gauge(
                "forebay_outflow_used_bytes",
                "Memory of messages that were read for somebody and have not gone out, bytes",
            ),
            outflow_budget_bytes: described_gauge(
                "forebay_outflow_budget_bytes",
                "The budget for messages that go out, bytes",
            ),
            readers_waiting: described_gauge(
                "forebay_outflow_readers_waiting",
                "Consumers and other readers that wait for memory, because others have not taken what was read for them",
            ),
            readers_cut: described_counter(
                "forebay_outflow_readers_cut_total",
                "Answers that were cut off since the start, because they were not read while others waited for memory",
            ),
            up: described_gauge("forebay_broker_up", "1 if the broker answered this scrape, else 0"),
            queues: described_gauge("forebay_queues", "Queues"),
            subscriptions: described_gauge("forebay_subscriptions", "Subscriptions over all queues"),
            producers: described_gauge("forebay_producers", "Producers remembered for de-duplication"),
            consumers: described_gauge("forebay_consumers", "Open Subscribe streams and pulls that wait"),
            log_bytes: described_gauge(
                "forebay_log_bytes",
                "Disk space of the log's segments, the packed ones too, bytes",
            ),
            segments: described_gauge("forebay_log_segments", "Segments of the log, the packed ones too"),
            space: SpaceFigures::describe(),
            segments_dropped: described_counter(
                "forebay_log_segments_dropped_total",
                "Segments that have left the log since the start, because nothing in them was needed",
            ),
            segments_created: described_counter(
                "forebay_log_segments_created_total",
                "Files of new segments that were made since the start",
            ),
            segments_recycled: described_counter(
                "forebay_log_segments_recycled_total",
                "Files of new segments that were those of segments that had left, since the start",
            ),
            checkpoints: described_counter(
                "forebay_checkpoints_total",
                "Checkpoints written since the start",
            ),
            checkpoint_bases: described_counter(
                "forebay_checkpoint_bases_total",
                "Bases of checkpoints that were made of those before since the start",
            ),
            checkpoint_bytes: described_counter(
                "forebay_checkpoint_bytes_total",
                "Bytes of the files of checkpoints that were written since the start",
            ),
            disk_full: described_gauge(
                "forebay_disk_full",
                "1 while publishing is refused for want of space",
            ),
            commits: described_counter("forebay_log_commits_total", "Group commits since the start"),
            syncs: described_counter("forebay_log_syncs_total", "Syncs of the log since the start"),
            records: described_counter("forebay_log_records_total", "Records written since the start"),
            index_rebuilds: described_counter(
                "forebay_log_index_rebuilds_total",
                "Index files that were missing or damaged and made again since the start",
            ),
            damage: described_counter(
                "forebay_damage_total",
                "Damaged parts that the start found in the log and passed; what they held is lost",
            ),
            delays_lost: described_counter(
                "forebay_delays_lost_total",
                "Messages delivered early, their attempts not known, since damage took their delays, since the start",
            ),
        }
    }

    fn set(&self, stats: Option<ServerStats>) {
        self.up.set(if stats.is_some() { 1.0 } else { 0.0 });
        let Some(stats) = stats else { return };
        for (gauge, value) in [
            (&self.queues, stats.queues),
            (&self.subscriptions, stats.subscriptions),
            (&self.producers, stats.producers),
            (&self.consumers, stats.consumers),
            (&self.log_bytes, stats.log_bytes),
            (&self.segments, stats.segments),
            (&self.disk_full, u64::from(stats.disk_full)),
        ] {
            gauge.set(value as f64);
        }
        self.space.set(&stats);
        self.segments_dropped.absolute(stats.segments_dropped);
        self.segments_created.absolute(stats.segments_created);
        self.segments_recycled.absolute(stats.segments_recycled);
        self.checkpoints.absolute(stats.checkpoints);
        self.checkpoint_bases.absolute(stats.checkpoint_bases);
        self.checkpoint_bytes.absolute(stats.checkpoint_bytes);
        self.commits.absolute(stats.commits);
        self.syncs.absolute(stats.syncs);
        self.records.absolute(stats.records);
        self.index_rebuilds.absolute(stats.index_rebuilds);
        self.damage.absolute(stats.damage);
        self.delays_lost.absolute(stats.delays_lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rendered_with_help() {
        let metrics = Metrics::default();
        let stats = ServerStats { queues: 3, log_bytes: 67_108_864, commits: 9, ..ServerStats::default() };
        let text = metrics.render(Some(stats), &Budgets::default(), &Outflow::new(2 << 20));
        for line in [
            "# HELP forebay_queues Queues",
            "forebay_broker_up 1",
            "forebay_admission_used_bytes 0",
            "forebay_admission_budget_bytes 40894464",
            "forebay_outflow_used_bytes 0",
            "forebay_outflow_budget_bytes 2097152",
            "forebay_outflow_readers_waiting 0",
            "forebay_outflow_readers_cut_total 0",
            "forebay_queues 3",
            "forebay_log_bytes 67108864",
            "# TYPE forebay_log_commits_total counter",
            "forebay_log_commits_total 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(
            metrics
                .render(None, &Budgets::default(), &Outflow::default())
                .lines()
                .any(|line| line == "forebay_broker_up 0")
        );
    }
}
