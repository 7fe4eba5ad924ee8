//! The test programs of a build in which bugs can be planted.
//!
//! They are copied apart, beside the server that belongs to them, and then the usual build takes its place again: no
//! later step meets a server that can be broken.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forebay::planted::VARIABLE;
use serde_json::Value;

use super::Layer;

/// Tests that are not over by then have failed: what is broken may wait for ever.
const RUN_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct Programs {
    dir: tempfile::TempDir,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// By this test or seed, or because it did not end.
    Failed(String),
    /// There is no such test.
    Empty,
}

impl Programs {
    /// Builds the programs. Of the whole workspace, or cargo would choose other features for what they depend on and build
    /// that anew; not incrementally, which takes longer the first time, and there is no second.
    pub fn build() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let output = crate::cargo()
            .args(["test", "--quiet", "--workspace", "--features", "forebay/planted-bugs", "--no-run"])
            .args(["--lib", "--test=sim", "--test=integration", "--message-format=json"])
            .env("CARGO_INCREMENTAL", "0")
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cargo cannot be run: {error}"))?;
        if !output.status.success() {
            return Err(format!("the broken server cannot be built: {}", output.status));
        }
        for (name, path) in String::from_utf8_lossy(&output.stdout).lines().filter_map(executable) {
            let to = dir.path().join(&name);
            std::fs::copy(&path, &to).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        crate::build()?;
        Ok(Self { dir })
    }

    /// Runs a test, with a bug or without.
    pub fn run(&self, layer: Layer, test: &str, bug: Option<&str>) -> Result<Outcome, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let output = dir.path().join("output");
        let file = std::fs::File::create(&output).map_err(|error| error.to_string())?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        let mut command = self.command(layer, test)?;
        command.env_remove(VARIABLE).env("TMPDIR", dir.path()).current_dir(crate::root());
        command.env("CARGO_MANIFEST_DIR", crate::root()).stdin(Stdio::null()).stdout(file).stderr(errors);
        // A failure on purpose leaves no seed in the repository.
        command.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        if let Some(bug) = bug {
            command.env(VARIABLE, bug);
        }
        let ended = wait(&mut command)?;
        let text = read(&output)?;
        Ok(match ended {
            _ if text.contains("running 0 tests") => Outcome::Empty,
            Some(true) => Outcome::Passed,
            Some(false) => Outcome::Failed(culprit(layer, &text)),
            None => Outcome::Failed(format!("no end within {} s", RUN_WITHIN.as_secs())),
        })
    }

    fn command(&self, layer: Layer, test: &str) -> Result<Command, String> {
        let name = match layer {
            Layer::Unit => "forebay-tests",
            Layer::Sim => "sim",
            Layer::Integration => "integration",
        };
        let mut command = Command::new(self.dir.path().join(name));
        if layer != Layer::Sim {
            command.arg(test);
            return Ok(command);
        }
        let numbers =
            test.split_once("..").and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)));
        let (first, end): (u64, u64) = numbers.ok_or_else(|| format!("{test:?} is no range of seeds"))?;
        command.args(["seeds", "--exact"]);
        command
            .env("FOREBAY_SIM_FIRST", first.to_string())
            .env("FOREBAY_SIM_SEEDS", (end - first).to_string());
        Ok(command)
    }
}

/// Name and path of a program that a message of cargo speaks of.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = PathBuf::from(message["executable"].as_str()?);
    let is_library = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "lib");
    let name = message["target"]["name"].as_str()?;
    Some((if is_library { format!("{name}-tests") } else { name.to_owned() }, path))
}

/// Whether it ended well; none if it did not end.
fn wait(command: &mut Command) -> Result<Option<bool>, String> {
    let mut child = command.spawn().map_err(|error| format!("a test program cannot be run: {error}"))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(Some(status.success()));
        }
        if start.elapsed() > RUN_WITHIN {
            child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first test or seed that failed.
fn culprit(layer: Layer, text: &str) -> String {
    let found = match layer {
        Layer::Sim => text.lines().find_map(|line| line.split_once(" fails with ").map(|(seed, _)| seed)),
        _ => text.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED")),
    };
    found.unwrap_or("the end of the process").to_owned()
}
