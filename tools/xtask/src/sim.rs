//! Many runs of the simulation, optimised.

/// Runs `seeds` seeds from `from` on, as many as `jobs` at a time.
pub fn run(seeds: u64, from: u64, jobs: u64) -> Result<(), String> {
    let mut command = crate::cargo();
    command.args(["test", "--quiet", "--release", "--workspace", "--test", "sim"]);
    command.args(["seeds", "--", "--exact", "--nocapture"]);
    for (name, value) in [("FIRST", from), ("SEEDS", seeds), ("JOBS", jobs)] {
        command.env(format!("FOREBAY_SIM_{name}"), value.to_string());
    }
    let status = command.status().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("a seed has failed: {status}")) }
}
