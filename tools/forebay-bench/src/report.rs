//! Figures of several runs: each run's, and their median, least and greatest.

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use crate::samples::Samples;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One JSON object
    Json,
}

/// Percentiles of latencies: to a publish's answer, and to its delivery.
pub const PUBLISH: [&str; 5] =
    ["publish_p50_ms", "publish_p90_ms", "publish_p99_ms", "publish_p999_ms", "publish_max_ms"];
pub const END_TO_END: [&str; 5] = [
    "end_to_end_p50_ms",
    "end_to_end_p90_ms",
    "end_to_end_p99_ms",
    "end_to_end_p999_ms",
    "end_to_end_max_ms",
];

/// The figures of these names.
pub fn percentiles(names: [&'static str; 5], samples: &Samples) -> Figures {
    let latencies = [0.5, 0.9, 0.99, 0.999, 1.0].map(|share| samples.latency_ms(share));
    names.into_iter().zip(latencies).collect()
}

/// The figures of one run: names with their units last, in the order in which they are shown.
pub type Figures = Vec<(&'static str, f64)>;

/// What a figure's median must keep.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    Most(&'static str, f64),
    Least(&'static str, f64),
}

impl Limit {
    fn figure(self) -> &'static str {
        let (Self::Most(figure, _) | Self::Least(figure, _)) = self;
        figure
    }

    fn is_kept_by(self, value: f64) -> bool {
        match self {
            Self::Most(_, most) => value <= most,
            Self::Least(_, least) => value >= least,
        }
    }

    fn json(self, value: f64) -> Value {
        let (name, bound) = match self {
            Self::Most(_, most) => ("most", most),
            Self::Least(_, least) => ("least", least),
        };
        json!({ "figure": self.figure(), name: number(bound), "passed": self.is_kept_by(value) })
    }
}

/// The result of a subcommand.
#[derive(Debug)]
pub struct Report {
    pub command: &'static str,
    /// What was asked for.
    pub settings: Value,
    /// At least one; all have the same figures.
    pub runs: Vec<Figures>,
    pub limits: Vec<Limit>,
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "there is at least one run");
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Self { median, min: values[0], max: values[values.len() - 1] }
    }
}

impl Report {
    pub fn text(&self, format: Format) -> String {
        match format {
            Format::Table => self.table(),
            Format::Json => format!("{:#}", self.json()),
        }
    }

    /// Says of each limit that was missed by how much.
    pub fn missed(&self) -> Vec<String> {
        let missed = |limit: &&Limit| !limit.is_kept_by(self.spread(limit.figure()).median);
        let say = |limit: &Limit| {
            let (figure, median) = (limit.figure(), number(self.spread(limit.figure()).median));
            match limit {
                Limit::Most(_, most) => {
                    format!("{figure} has a median of {median}; the limit is {}", number(*most))
                }
                Limit::Least(_, least) => {
                    format!("{figure} has a median of {median}; it should have {}", number(*least))
                }
            }
        };
        self.limits.iter().filter(missed).map(say).collect()
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.runs[0].iter().map(|(name, _)| *name)
    }

    fn spread(&self, name: &str) -> Spread {
        let value = |run: &Figures| run.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        Spread::of(self.runs.iter().filter_map(value).collect())
    }

    fn json(&self) -> Value {
        let run = |run: &Figures| -> Value {
            run.iter().map(|(name, value)| ((*name).to_owned(), number(*value))).collect::<Map<_, _>>().into()
        };
        let spread = |name| {
            let Spread { median, min, max } = self.spread(name);
            json!({ "median": number(median), "min": number(min), "max": number(max) })
        };
        let mut all = json!({
            "command": self.command,
            "settings": self.settings,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
            "summary": self.names().map(|name| (name.to_owned(), spread(name))).collect::<Map<_, _>>(),
        });
        if !self.limits.is_empty() {
            let judged = self.limits.iter().map(|limit| limit.json(self.spread(limit.figure()).median));
            all["limits"] = judged.collect();
        }
        all
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([self.command, "MEDIAN", "MIN", "MAX"]);
        for name in self.names() {
            let Spread { median, min, max } = self.spread(name);
            let numbers = [median, min, max].map(|value| number(value).to_string());
            table.add_row([name.replace('_', " ")].into_iter().chain(numbers));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let settings = self.settings.as_object().into_iter().flatten();
        let settings: Vec<String> = settings.map(|(name, value)| format!("{name}={value}")).collect();
        let runs = self.runs.len();
        let trimmed: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        format!("{}\n\n{runs} run(s) of {}", trimmed.join("\n"), settings.join(" "))
    }
}

/// A figure with at most three decimals; whole ones without.
fn number(value: f64) -> Value {
    let rounded = (value * 1e3).round() / 1e3;
    if rounded.fract() == 0.0 && rounded.abs() < 1e15 { json!(rounded as i64) } else { json!(rounded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(values: &[f64], most: f64) -> Report {
        let runs = values.iter().map(|value| vec![("time_ms", *value), ("messages", 5.0)]).collect();
        let limits = vec![Limit::Most("time_ms", most), Limit::Least("messages", 5.0)];
        Report { command: "restart", settings: json!({ "size": 1 }), runs, limits }
    }

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 9.0]), Spread { median: 3.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    #[test]
    fn the_median_is_judged() {
        assert!(report(&[100.0, 900.0, 200.0], 200.0).missed().is_empty());
        let mut slow = report(&[100.0, 900.0, 200.5], 200.0);
        assert_eq!(slow.missed(), ["time_ms has a median of 200.5; the limit is 200"]);
        slow.limits = vec![Limit::Least("messages", 5.5)];
        assert_eq!(slow.missed(), ["messages has a median of 5; it should have 5.5"]);
    }

    #[test]
    fn json_has_all_runs_and_their_summary() {
        let json = report(&[100.0, 900.25, 200.0], 150.0).json();
        assert_eq!(json["runs"][1], json!({ "time_ms": 900.25, "messages": 5 }));
        assert_eq!(json["summary"]["time_ms"], json!({ "median": 200, "min": 100, "max": 900.25 }));
        let time = json!({ "figure": "time_ms", "most": 150, "passed": false });
        let messages = json!({ "figure": "messages", "least": 5, "passed": true });
        assert_eq!(json["limits"], json!([time, messages]));
        let table = report(&[100.0], 1.0).text(Format::Table);
        assert!(table.lines().any(|line| line.split_whitespace().eq(["time", "ms", "100", "100", "100"])));
    }
}
