//! `cargo xtask kill-loop`: one line of figures on standard output, progress and violations on standard error.

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};

use forebay_testkit::torture::kill_loop::KillLoop;
use forebay_testkit::torture::run::Outcome;

/// Most violations that are shown in full.
const SHOWN_MAX: usize = 20;

pub fn run(cycles: u64, seed: Option<u64>, data_dir: Option<PathBuf>) -> Result<(), String> {
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 1);
    let temporary = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let kept = data_dir.is_some();
    let data_dir = data_dir.unwrap_or_else(|| temporary.path().join("data"));
    let parent = data_dir.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    let history = history_path(&data_dir);
    eprintln!("seed {seed}, data in {}, history in {}", data_dir.display(), history.display());
    let kill_loop = KillLoop { cycles, seed, data_dir, history };
    let ran = crate::runtime()?.block_on(kill_loop.run(|line| eprintln!("{line}")));
    let wrong = match ran {
        Ok(Outcome { figures, violations }) => {
            println!("{figures}");
            for violation in violations.iter().take(SHOWN_MAX) {
                eprintln!("{violation:?}");
            }
            (!violations.is_empty()).then(|| format!("{} violations", violations.len()))
        }
        Err(why) => Some(why),
    };
    let Some(wrong) = wrong else { return Ok(()) };
    if !kept {
        let path = temporary.keep();
        eprintln!("kept for a look: {}", path.display());
    }
    Err(format!("{wrong}; seed {seed}"))
}

fn history_path(data_dir: &Path) -> PathBuf {
    let mut name = data_dir.as_os_str().to_owned();
    name.push(".history");
    name.into()
}
