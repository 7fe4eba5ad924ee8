//! Many runs of the simulation, optimised, by several processes at once.

use std::process::{Child, Command};

/// Runs `seeds` seeds from `from` on, split among `jobs` processes.
pub fn run(seeds: u64, from: u64, jobs: u64) -> Result<(), String> {
    let built = cargo().arg("--no-run").status().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !built.success() {
        return Err(format!("the simulation cannot be built: {built}"));
    }
    let jobs = jobs.min(seeds);
    let begin = |job: u64| {
        let (first, end) = (seeds * job / jobs, seeds * (job + 1) / jobs);
        start(from + first, end - first)
    };
    let children: Vec<Child> = (0..jobs).map(begin).collect::<Result<_, _>>()?;
    let mut failed = 0;
    for mut child in children {
        let ended = child.wait().map_err(|error| format!("a run cannot be waited for: {error}"))?;
        failed += u64::from(!ended.success());
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {jobs} processes have met a seed that fails")) }
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--quiet", "--release", "--package", "forebay", "--test", "sim"]);
    command
}

fn start(first: u64, seeds: u64) -> Result<Child, String> {
    let mut command = cargo();
    command.args(["seeds", "--", "--exact", "--nocapture"]);
    command.env("FOREBAY_SIM_FIRST", first.to_string()).env("FOREBAY_SIM_SEEDS", seeds.to_string());
    command.spawn().map_err(|error| format!("cargo cannot be run: {error}"))
}
