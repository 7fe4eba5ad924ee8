//! A curve as a table and as JSON.

use serde_json::{Map, Value, json};

use crate::report::{Figures, Format, Outcome, aligned, names, number, runs_json, settings, spread};

/// Figures at the points of an axis.
#[derive(Debug)]
pub struct Curve {
    pub axis: &'static str,
    pub settings: Value,
    /// At least one; each with at least one run, all with the same figures.
    pub points: Vec<(u64, Vec<Figures>)>,
}

impl Curve {
    pub fn outcome(&self, format: Format) -> Outcome {
        let text = match format {
            Format::Table => self.table(),
            Format::Json => format!("{:#}", self.json()),
        };
        Outcome { text, missed: Vec::new() }
    }

    /// The names of the figures.
    pub fn names(&self) -> Vec<&'static str> {
        names(&self.points[0].1).collect()
    }

    /// The medians of a figure, and where.
    pub fn medians(&self, name: &str) -> Vec<(f64, f64)> {
        self.points.iter().map(|(point, runs)| (*point as f64, spread(runs, name).median)).collect()
    }

    fn json(&self) -> Value {
        let point = |(point, runs): &(u64, Vec<Figures>)| {
            let mut all = Map::from_iter([(self.axis.to_owned(), (*point).into())]);
            all.extend(runs_json(runs));
            Value::from(all)
        };
        json!({
            "command": "curves",
            "axis": self.axis,
            "settings": self.settings,
            "points": self.points.iter().map(point).collect::<Vec<_>>(),
        })
    }

    fn table(&self) -> String {
        let names = self.names();
        let titles: Vec<String> = names.iter().map(|name| name.replace('_', " ")).collect();
        let header: Vec<&str> = std::iter::once(self.axis).chain(titles.iter().map(String::as_str)).collect();
        let rows = self.points.iter().map(|(point, runs)| {
            let medians = names.iter().map(|name| number(spread(runs, name).median).to_string());
            std::iter::once(point.to_string()).chain(medians).collect()
        });
        format!("{}\n\nmedians of {}", aligned(&header, rows), settings(&self.settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Curve {
        let runs = |values: [f64; 3]| values.iter().map(|value| vec![("ready_ms", *value)]).collect();
        let points = vec![(1, runs([1.0, 3.0, 2.0])), (10, runs([4.0, 4.5, 9.0]))];
        Curve { axis: "queues", settings: json!({ "runs": 3 }), points }
    }

    #[test]
    fn points_are_rows_and_figures_are_columns() {
        let table = curve().outcome(Format::Table).text;
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[..3], [vec!["queues", "ready", "ms"], vec!["1", "2"], vec!["10", "4.5"]]);
        assert_eq!(curve().medians("ready_ms"), [(1.0, 2.0), (10.0, 4.5)]);
    }

    #[test]
    fn json_has_each_run_of_each_point() {
        let json: Value = serde_json::from_str(&curve().outcome(Format::Json).text).unwrap();
        assert_eq!(json["points"][1]["queues"], 10);
        assert_eq!(json["points"][1]["runs"][2]["ready_ms"], 9);
        assert_eq!(json["points"][1]["summary"]["ready_ms"]["median"], 4.5);
    }
}
