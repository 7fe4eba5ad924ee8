//! What a torture did: progress on the terminal, a table, a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Tally;

/// Most violations that are shown in full.
const SHOWN_MAX: usize = 10;

/// All turns, by case.
#[derive(Debug, Serialize)]
pub struct Report {
    seed: u64,
    cases: BTreeMap<String, Row>,
    /// Cases that cannot run here, and why.
    skipped: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize)]
struct Row {
    seconds: f64,
    #[serde(flatten)]
    tally: Tally,
}

/// A line that shows how far a case is.
pub fn progress(case: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:14} {elapsed_precise} {pos} {msg}");
    let bar = ProgressBar::new_spinner().with_style(style.expect("the template is right"));
    bar.set_prefix(case.to_owned());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

impl Report {
    pub fn new(seed: u64) -> Self {
        Self { seed, cases: BTreeMap::new(), skipped: BTreeMap::new() }
    }

    pub fn skipped(&mut self, case: &str, why: &str) {
        if self.skipped.insert(case.to_owned(), why.to_owned()).is_none() {
            println!("{case} skipped: {why}");
        }
    }

    /// Adds a turn; whether something was wrong.
    pub fn add(&mut self, case: &str, seed: u64, took: Duration, tally: Result<Tally, String>) -> bool {
        let tally = tally.unwrap_or_else(|why| Tally { violations: vec![why], ..Tally::default() });
        let wrong = tally.violations.len();
        eprintln!("{case} seed={seed} cycles={} violations={wrong} in {took:.1?}", tally.cycles);
        for violation in tally.violations.iter().take(SHOWN_MAX) {
            eprintln!("  {violation}");
        }
        let row = self.cases.entry(case.to_owned()).or_default();
        row.seconds += took.as_secs_f64();
        row.tally.cycles += tally.cycles;
        row.tally.acknowledged += tally.acknowledged;
        row.tally.delivered += tally.delivered;
        row.tally.hits += tally.hits;
        row.tally.violations.extend(tally.violations.into_iter().map(|what| format!("seed {seed}: {what}")));
        wrong > 0
    }

    /// Shows the table and writes the file; an error if something was wrong, or nothing was done.
    pub fn finish(&self, file: Option<&Path>) -> Result<(), String> {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header([
            "case",
            "cycles",
            "acknowledged",
            "delivered",
            "faults hit",
            "violations",
            "seconds",
        ]);
        for (case, Row { seconds, tally }) in &self.cases {
            let Tally { cycles, acknowledged, delivered, hits, violations } = tally;
            let counts = [*cycles, *acknowledged, *delivered, *hits, violations.len() as u64];
            let counts = counts.iter().map(u64::to_string);
            table.add_row([case.clone()].into_iter().chain(counts).chain([format!("{seconds:.0}")]));
        }
        println!("{table}");
        if let Some(file) = file {
            let text = serde_json::to_string_pretty(self).expect("a report has no odd keys");
            std::fs::write(file, text).map_err(|error| super::told(file, &error))?;
        }
        let violations: usize = self.cases.values().map(|row| row.tally.violations.len()).sum();
        if violations > 0 {
            return Err(format!("{violations} violations; seed {}", self.seed));
        }
        if !self.skipped.is_empty() && std::env::var_os("CI").is_some() {
            return Err("skipped in CI".to_owned());
        }
        let is_idle = |row: &Row| row.tally.hits == 0 || row.tally.acknowledged == 0;
        let idle: Vec<_> = self.cases.iter().filter(|(_, row)| is_idle(row)).map(|(case, _)| case).collect();
        if !idle.is_empty() {
            return Err(format!("no fault was met, or nothing acknowledged, in {idle:?}; try more cycles"));
        }
        Ok(())
    }
}
