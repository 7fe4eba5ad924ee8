//! What a disk would have kept if the power had gone: followed from a trace of the server's writes and syncs.
//!
//! A write is certain once a sync of its file has succeeded after it. A write that was there when a sync failed is
//! certain only when it is written again and synced: the kernel may have dropped it and call it clean. The trace is
//! of `strace -ff -ttt -y -v -s 0`, one file a thread, put in order by time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes of a log file that are not certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    from: u64,
    to: u64,
    /// A sync has failed since.
    given_up: bool,
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    files: BTreeMap<PathBuf, Vec<Range>>,
    /// Faults that were put in.
    pub injected: usize,
    /// Successful and failed syncs of log files.
    pub syncs: usize,
    /// Syncs of log files that followed a failed one in the same run.
    pub syncs_after_failure: usize,
}

/// One finished or broken call.
struct Call<'a> {
    name: &'a str,
    path: &'a str,
    arguments: &'a str,
    /// What it gave; none if the process was killed in it, negative for an error.
    result: Option<i64>,
}

impl Shadow {
    /// Follows one run, whose trace files begin with `prefix`.
    pub fn follow(&mut self, prefix: &Path) -> std::io::Result<()> {
        let mut lines = Vec::new();
        let folder = prefix.parent().expect("a trace lies in a folder");
        let name = prefix.file_name().expect("it has a name").to_string_lossy().into_owned();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&format!("{name}.")) {
                let text = std::fs::read_to_string(entry.path())?;
                lines.extend(text.lines().filter_map(|line| {
                    let (time, call) = line.split_once(' ')?;
                    Some((time.to_owned(), call.to_owned()))
                }));
            }
        }
        lines.sort();
        let mut failed = false;
        for (_, line) in &lines {
            self.injected += usize::from(line.contains("(INJECTED)"));
            if let Some(call) = parse(line).filter(|call| call.path.ends_with(".seg")) {
                self.apply(&call, &mut failed);
            }
        }
        Ok(())
    }

    fn apply(&mut self, call: &Call<'_>, failed: &mut bool) {
        let ranges = self.files.entry(PathBuf::from(call.path)).or_default();
        if call.name.starts_with("pwrite") {
            // The last argument, before what strace may say of a call that never returned.
            let last = call.arguments.rsplit(", ").next().and_then(|text| text.split_whitespace().next());
            // Of a write that was cut short nothing is known: all from there on is uncertain.
            let from: u64 = last.and_then(|text| text.parse().ok()).unwrap_or(0);
            let to = match call.result {
                Some(written) if written >= 0 => from + written as u64,
                Some(_) => return,
                None => u64::MAX,
            };
            ranges.retain(|range| range.from < from || range.to > to);
            ranges.push(Range { from, to, given_up: false });
            return;
        }
        self.syncs += 1;
        self.syncs_after_failure += usize::from(*failed);
        if call.result == Some(0) {
            ranges.retain(|range| range.given_up);
        } else {
            *failed |= call.result.is_some();
            ranges.iter_mut().for_each(|range| range.given_up |= call.result.is_some());
        }
    }

    /// Cuts the power: in `to`, a copy of the data directory `from`, uncertain bytes become zero. How many there were.
    pub fn cut(&self, from: &Path, to: &Path) -> std::io::Result<u64> {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = 0;
        for (path, ranges) in &self.files {
            let Ok(path) = path.strip_prefix(from) else { continue };
            for range in ranges {
                let file = std::fs::OpenOptions::new().write(true).open(to.join(path))?;
                let end = range.to.min(file.metadata()?.len());
                let length = end.saturating_sub(range.from);
                file.write_all_at(&vec![0; length as usize], range.from)?;
                bytes += length;
            }
        }
        Ok(bytes)
    }
}

fn parse(line: &str) -> Option<Call<'_>> {
    let (name, rest) = line.split_once('(')?;
    if !matches!(name, "pwritev" | "pwrite64" | "fdatasync" | "fsync") {
        return None;
    }
    let (_, rest) = rest.split_once('<')?;
    let (path, rest) = rest.split_once('>')?;
    let (arguments, result) = rest.rsplit_once(" = ").unwrap_or((rest, "?"));
    let arguments = arguments.trim_end().strip_suffix(')').unwrap_or(arguments);
    let result = result.split_whitespace().next().and_then(|word| word.parse().ok());
    Some(Call { name, path, arguments, result })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_synced_survives() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let file = data.join("1.seg");
        std::fs::write(&file, [1; 40]).unwrap();
        let path = file.display();
        let trace = format!(
            "1.0 pwritev(9<{path}>, [{{iov_base=\"\"..., iov_len=10}}], 1, 0) = 10\n\
             2.0 fdatasync(9<{path}>) = 0\n\
             3.0 pwritev(9<{path}>, [{{iov_base=\"\"..., iov_len=10}}], 1, 10) = 10\n\
             4.0 fdatasync(9<{path}>) = -1 EIO (Input/output error) (INJECTED)\n\
             5.0 fdatasync(9<{path}>) = 0\n\
             6.0 pwritev(9<{path}>, [{{iov_base=\"\"..., iov_len=10}}], 1, 30 <unfinished ...>) = ?\n"
        );
        std::fs::write(dir.path().join("trace.7"), trace).unwrap();
        let mut shadow = Shadow::default();
        shadow.follow(&dir.path().join("trace")).unwrap();
        assert_eq!((shadow.injected, shadow.syncs, shadow.syncs_after_failure), (1, 3, 1));
        // What was unsynced when the sync failed, and all from the place of the write that never returned.
        assert_eq!(shadow.cut(&data, &data).unwrap(), 20);
        let kept = std::fs::read(&file).unwrap();
        assert_eq!(kept, [[1; 10], [0; 10], [1; 10], [0; 10]].concat());
    }
}
