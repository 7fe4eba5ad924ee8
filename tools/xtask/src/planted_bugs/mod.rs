//! `cargo xtask planted-bugs`: breaks the server on purpose, one bug at a time, and sees which tests find it.
//!
//! A bug is a place in `src/` that asks `planted::bug("its-name")`, and a row of [`BUGS`]: the layer that finds it and
//! the test there. If that test misses it, the run fails; all layers are tried then, cheapest first, only to tell who
//! finds it. Tests that fail without a bug are a defect too: each runs once without.

mod bugs;
mod programs;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use bugs::BUGS;
use programs::{Outcome, Programs};

/// Bugs that are tried at one time.
const JOBS: usize = 2;
/// What is tried when a bug's own test misses it.
const ALL: [(Layer, &str); 3] = [(Layer::Unit, ""), (Layer::Sim, "0..50"), (Layer::Integration, "")];

/// Where tests are, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    /// Of the library; a test is a part of names.
    Unit,
    /// The simulation; a test is a range of seeds.
    Sim,
    /// Of real servers; a test is a part of names.
    Integration,
}

/// A row of the table.
#[derive(Debug)]
struct Bug {
    name: &'static str,
    layer: Layer,
    test: &'static str,
}

pub fn run(only: &str) -> Result<(), String> {
    let bugs: Vec<&Bug> = BUGS.iter().filter(|bug| bug.name.contains(only)).collect();
    if bugs.is_empty() {
        return Err(format!("no bug has a name with {only:?}"));
    }
    let listed: BTreeSet<String> = BUGS.iter().map(|bug| bug.name.to_owned()).collect();
    let planted = planted(&crate::root().join("src"))?;
    let apart: Vec<_> = planted.symmetric_difference(&listed).collect();
    if !apart.is_empty() {
        return Err(format!("planted in src/ or listed in BUGS, but not both: {apart:?}"));
    }
    let programs = Programs::build()?;
    control(&programs, &bugs)?;
    println!("{:32} {:12} FOUND BY", "BUG", "LAYER");
    let found = each(&bugs, |bug| find(&programs, bug))?;
    let missed = found.iter().filter(|found| !**found).count();
    println!("planted-bugs: {} bugs, {missed} missed by the test of their row", bugs.len());
    match missed {
        0 => Ok(()),
        _ => Err(format!("{missed} of {} bugs were missed by the test of their row", bugs.len())),
    }
}

/// Sees that the tests pass without a bug.
fn control(programs: &Programs, bugs: &[&Bug]) -> Result<(), String> {
    let runs: BTreeSet<(Layer, &str)> = bugs.iter().map(|bug| (bug.layer, bug.test)).collect();
    let runs: Vec<_> = runs.into_iter().collect();
    let outcomes = each(&runs, |(layer, test)| programs.run(*layer, test, None))?;
    for ((layer, test), outcome) in runs.iter().zip(outcomes) {
        if outcome != Outcome::Passed {
            return Err(format!("without a bug: {outcome:?}: {layer:?} {test:?}"));
        }
    }
    Ok(())
}

/// Whether a bug's own test finds it.
fn find(programs: &Programs, bug: &Bug) -> Result<bool, String> {
    match programs.run(bug.layer, bug.test, Some(bug.name))? {
        Outcome::Failed(by) => {
            println!("{:32} {:12} {by}", bug.name, format!("{:?}", bug.layer));
            Ok(true)
        }
        Outcome::Passed => {
            let by = others(programs, bug)?;
            println!("{:32} {:12} MISSED by {}; {by}", bug.name, format!("{:?}", bug.layer), bug.test);
            Ok(false)
        }
        Outcome::Empty => Err(format!("{}: no test is called {:?}", bug.name, bug.test)),
    }
}

/// Who else finds a bug.
fn others(programs: &Programs, bug: &Bug) -> Result<String, String> {
    for (layer, test) in ALL {
        if let Outcome::Failed(by) = programs.run(layer, test, Some(bug.name))? {
            return Ok(format!("found by {layer:?}, {by}"));
        }
    }
    Ok("found by nobody".to_owned())
}

/// Does something for each, some at a time; the results in order, or the first error.
fn each<T: Sync, R: Send>(
    all: &[T],
    work: impl Fn(&T) -> Result<R, String> + Sync,
) -> Result<Vec<R>, String> {
    let next = Mutex::new(0..all.len());
    let done = Mutex::new(Vec::new());
    let take = || next.lock().expect("nobody panics with it").next();
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(at) = take() {
                    let result = work(&all[at]);
                    done.lock().expect("nobody panics with it").push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nobody panics with it");
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The names of bugs in the source.
fn planted(folder: &Path) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    let told = |error| format!("{}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(told)? {
        let path = entry.map_err(told)?.path();
        if path.is_dir() {
            names.extend(planted(&path)?);
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let places = text.split("planted::bug(\"").skip(1);
        names.extend(places.filter_map(|place| place.split('"').next()).map(str::to_owned));
    }
    Ok(names)
}
