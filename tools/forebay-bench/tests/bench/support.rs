//! Running the tool.

use std::process::{Command, Output};

use serde_json::Value;

pub fn bench(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_forebay-bench")).args(arguments).output();
    output.expect("the tool starts")
}

/// Runs the tool, which must succeed and leave nothing in its folder, and gives its JSON.
pub fn json(arguments: &[&str]) -> Value {
    let (output, report) = judged(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    assert!(errors.is_empty(), "nothing on standard error without a terminal: {errors}");
    report
}

/// The same, whatever the verdict is.
pub fn judged(arguments: &[&str]) -> (Output, Value) {
    let dir = tempfile::tempdir().unwrap();
    let output = bench(&[arguments, &["-o", "json", "--dir", dir.path().to_str().unwrap()]].concat());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "the data is deleted: {left:?}");
    let report = serde_json::from_slice(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, report.unwrap_or_else(|_| panic!("{arguments:?} gave no report: {errors}")))
}

pub fn figure(json: &Value, run: usize, name: &str) -> f64 {
    json["runs"][run][name].as_f64().unwrap_or_else(|| panic!("{name} is missing in {json:#}"))
}

/// The limits of a run: each figure, and whether it was kept. The exit code and standard error must say the same.
pub fn verdicts(arguments: &[&str]) -> Vec<(String, bool)> {
    let (output, report) = judged(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let limits = report["limits"].as_array().cloned().unwrap_or_default();
    let verdict = |limit: &Value| {
        let (figure, passed) = (limit["figure"].as_str().unwrap(), limit["passed"].as_bool().unwrap());
        let missed = errors.contains(&format!("{figure}: wanted at "));
        assert_eq!(missed, !passed, "{figure}: {errors}");
        (figure.to_owned(), passed)
    };
    let verdicts: Vec<_> = limits.iter().map(verdict).collect();
    let code = if verdicts.iter().all(|(_, passed)| *passed) { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{errors}");
    verdicts
}
