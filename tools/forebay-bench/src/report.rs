//! Figures of several runs: each run's, and their median, least and greatest.

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use crate::Failure;
use crate::limit::Limit;
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

/// Takes the figures of this many runs, one after the other.
pub async fn repeat(
    runs: u64,
    one: impl AsyncFn() -> Result<Figures, Failure>,
) -> Result<Vec<Figures>, Failure> {
    let mut all = Vec::new();
    for _ in 0..runs {
        all.push(one().await?);
    }
    Ok(all)
}

/// What a command leaves: a text for standard output, and what was not as it should be.
#[derive(Debug)]
pub struct Outcome {
    pub text: String,
    pub missed: Vec<String>,
}

/// The figures of a command that measures one thing.
#[derive(Debug)]
pub struct Report {
    pub command: &'static str,
    /// What was asked for.
    pub settings: Value,
    /// At least one; all have the same figures.
    pub runs: Vec<Figures>,
    pub limits: Vec<Limit>,
}

impl Report {
    pub fn outcome(&self, format: Format) -> Outcome {
        let text = match format {
            Format::Table => self.table(),
            Format::Json => format!("{:#}", self.json()),
        };
        Outcome {
            text,
            missed: self.limits.iter().filter_map(|limit| limit.miss(self.median(limit))).collect(),
        }
    }

    fn median(&self, limit: &Limit) -> f64 {
        spread(&self.runs, limit.figure()).median
    }

    fn json(&self) -> Value {
        let mut all = Map::from_iter([
            ("command".to_owned(), self.command.into()),
            ("settings".to_owned(), self.settings.clone()),
        ]);
        all.extend(runs_json(&self.runs));
        if !self.limits.is_empty() {
            let limits = self.limits.iter().map(|limit| limit.json(self.median(limit)));
            all.insert("limits".to_owned(), limits.collect());
        }
        all.into()
    }

    fn table(&self) -> String {
        let mut header = vec![self.command, "MEDIAN", "MIN", "MAX"];
        if !self.limits.is_empty() {
            header.extend(["WANTED", ""]);
        }
        let rows = names(&self.runs).map(|name| {
            let Spread { median, min, max } = spread(&self.runs, name);
            let mut row = vec![name.replace('_', " ")];
            row.extend([median, min, max].map(|value| number(value).to_string()));
            if let Some(limit) = self.limits.iter().find(|limit| limit.figure() == name) {
                row.extend([limit.to_string(), limit.word(median).to_owned()]);
            }
            row
        });
        let runs = self.runs.len();
        format!("{}\n\n{runs} run(s) of {}", aligned(&header, rows), settings(&self.settings))
    }
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
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

/// The names of the figures that all runs have.
pub fn names(runs: &[Figures]) -> impl Iterator<Item = &'static str> {
    runs[0].iter().map(|(name, _)| *name)
}

/// Of the values that a figure had in the runs.
pub fn spread(runs: &[Figures], name: &str) -> Spread {
    let value = |run: &Figures| run.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    Spread::of(runs.iter().filter_map(value).collect())
}

/// `runs` and their `summary`.
pub fn runs_json(runs: &[Figures]) -> [(String, Value); 2] {
    let run = |run: &Figures| -> Value {
        run.iter().map(|(name, value)| ((*name).to_owned(), number(*value))).collect::<Map<_, _>>().into()
    };
    let summary = |name| {
        let Spread { median, min, max } = spread(runs, name);
        json!({ "median": number(median), "min": number(min), "max": number(max) })
    };
    let summary: Map<_, _> = names(runs).map(|name| (name.to_owned(), summary(name))).collect();
    [("runs".to_owned(), runs.iter().map(run).collect()), ("summary".to_owned(), summary.into())]
}

/// A table with numbers to the right of their names.
pub fn aligned(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// What was asked for, in one line.
pub fn settings(settings: &Value) -> String {
    let settings = settings.as_object().into_iter().flatten();
    settings.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// A figure with at most three decimals; whole ones without.
pub fn number(value: f64) -> Value {
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

    fn text(report: &Report, format: Format) -> String {
        report.outcome(format).text
    }

    #[test]
    fn the_median_is_judged() {
        assert!(report(&[100.0, 900.0, 200.0], 200.0).outcome(Format::Json).missed.is_empty());
        let missed = report(&[100.0, 900.0, 200.5], 200.0).outcome(Format::Json).missed;
        assert_eq!(missed, ["time_ms: wanted at most 200, found a median of 200.5"]);
    }

    #[test]
    fn json_has_all_runs_and_their_summary() {
        let text = text(&report(&[100.0, 900.25, 200.0], 150.0), Format::Json);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["runs"][1], json!({ "time_ms": 900.25, "messages": 5 }));
        assert_eq!(json["summary"]["time_ms"], json!({ "median": 200, "min": 100, "max": 900.25 }));
        let time = json!({ "figure": "time_ms", "most": 150, "median": 200, "passed": false });
        let messages = json!({ "figure": "messages", "least": 5, "median": 5, "passed": true });
        assert_eq!(json["limits"], json!([time, messages]));
    }

    #[test]
    fn a_table_has_what_is_wanted_beside_what_was_found() {
        let table = text(&report(&[100.0], 1.0), Format::Table);
        let has =
            |words: &[&str]| table.lines().any(|line| line.split_whitespace().eq(words.iter().copied()));
        assert!(has(&["time", "ms", "100", "100", "100", "<=", "1", "missed"]), "{table}");
        assert!(has(&["messages", "5", "5", "5", ">=", "5", "kept"]), "{table}");
        let mut unjudged = report(&[100.0], 1.0);
        unjudged.limits.clear();
        assert!(!text(&unjudged, Format::Table).contains("WANTED"));
    }
}
