//! Figures of several runs: each run's, and their median, least and greatest.

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One JSON object
    Json,
}

/// The figures of one run: names with their units last, in the order in which they are shown.
pub type Figures = Vec<(&'static str, f64)>;

/// What a figure's median may not exceed.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub figure: &'static str,
    pub most: f64,
}

/// The result of a subcommand.
#[derive(Debug)]
pub struct Report {
    pub command: &'static str,
    /// What was asked for.
    pub settings: Value,
    /// At least one; all have the same figures.
    pub runs: Vec<Figures>,
    pub limit: Option<Limit>,
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

    /// Says by how much the limit was exceeded, if it was.
    pub fn over_limit(&self) -> Option<String> {
        let Limit { figure, most } = self.limit?;
        let median = self.spread(figure).median;
        (median > most)
            .then(|| format!("{figure} has a median of {}; the limit is {}", number(median), number(most)))
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
        if let Some(Limit { figure, most }) = self.limit {
            let passed = self.over_limit().is_none();
            all["limit"] = json!({ "figure": figure, "most": number(most), "passed": passed });
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

/// The value below which this share of the sorted values lies.
pub fn percentile(sorted: &[u32], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().map_or(0.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(values: &[f64], most: f64) -> Report {
        let runs = values.iter().map(|value| vec![("time_ms", *value), ("messages", 5.0)]).collect();
        let limit = Some(Limit { figure: "time_ms", most });
        Report { command: "restart", settings: json!({ "size": 1 }), runs, limit }
    }

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 9.0]), Spread { median: 3.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    #[test]
    fn the_median_is_judged() {
        assert_eq!(report(&[100.0, 900.0, 200.0], 200.0).over_limit(), None);
        let why = report(&[100.0, 900.0, 200.5], 200.0).over_limit().unwrap();
        assert_eq!(why, "time_ms has a median of 200.5; the limit is 200");
    }

    #[test]
    fn json_has_all_runs_and_their_summary() {
        let json = report(&[100.0, 900.25, 200.0], 150.0).json();
        assert_eq!(json["runs"][1], json!({ "time_ms": 900.25, "messages": 5 }));
        assert_eq!(json["summary"]["time_ms"], json!({ "median": 200, "min": 100, "max": 900.25 }));
        assert_eq!(json["limit"], json!({ "figure": "time_ms", "most": 150, "passed": false }));
        let table = report(&[100.0], 1.0).text(Format::Table);
        assert!(table.lines().any(|line| line.split_whitespace().eq(["time", "ms", "100", "100", "100"])));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted: Vec<u32> = (1..=101).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| percentile(&sorted, share)), [1.0, 51.0, 100.0, 101.0]);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
