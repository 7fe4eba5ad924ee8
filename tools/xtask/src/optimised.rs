//! Tests that are worth an optimised build: many runs of the simulation, and whole sweeps.

/// Runs `seeds` seeds of the simulation from `from` on, as many as `jobs` at a time.
pub fn sim(seeds: u64, from: u64, jobs: u64) -> Result<(), String> {
    let [from, seeds, jobs] = [from, seeds, jobs].map(|number| number.to_string());
    let how = [("FOREBAY_SIM_FIRST", &*from), ("FOREBAY_SIM_SEEDS", &seeds), ("FOREBAY_SIM_JOBS", &jobs)];
    test(&["sim"], &["seeds", "--exact"], &how)
}

/// Every fault at every operation of the sweep's traces, and every bit of the files that are flipped.
pub fn sweeps() -> Result<(), String> {
    test(&["sim", "integration"], &["sweep::", "flips::"], &[("FOREBAY_SWEEP", ""), ("FOREBAY_FLIPS", "")])
}

/// Runs those of the tests' `programs` that `filters` name.
fn test(programs: &[&str], filters: &[&str], environment: &[(&str, &str)]) -> Result<(), String> {
    let mut command = crate::cargo();
    command.args(["test", "--quiet", "--release", "--workspace"]);
    command.args(programs.iter().flat_map(|program| ["--test", program]));
    command.arg("--").arg("--nocapture").args(filters).envs(environment.iter().copied());
    let status = command.status().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("a test has failed: {status}")) }
}
