//! Makes the data directories that later builds are tried on; they are written once for each format and then kept.

use std::path::Path;

use forebay_testkit::fixtures::{KINDS, make};

/// Writes one file for each kind.
pub fn run(out: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", out.display());
    std::fs::create_dir_all(out).map_err(failed)?;
    let runtime = crate::runtime()?;
    for kind in KINDS {
        let path = out.join(format!("{kind}.json"));
        if path.exists() {
            return Err(format!("{} is kept; give another folder", path.display()));
        }
        let fixture = runtime.block_on(make(kind));
        let text = serde_json::to_string(&fixture).map_err(|error| error.to_string())?;
        println!("{}: {} bytes", path.display(), text.len());
        std::fs::write(&path, text + "\n").map_err(failed)?;
    }
    Ok(())
}
