//! The memory of a process as the kernel counts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::Failure;

/// How often memory is read on the way.
const SAMPLE: Duration = Duration::from_millis(50);
/// Memory is at rest when so many readings in a row, `SAMPLE` apart, differ by less than `NOISE_KIB`.
const CALM_READINGS: usize = 20;
const NOISE_KIB: u64 = 256;
/// Readings after which memory counts as at rest anyway.
const READINGS_MAX: usize = 400;

/// RssAnon + RssShmem of a process, KiB.
pub fn resident_kib(pid: i32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    sum_of(&status).ok_or_else(|| format!("{path} has no RssAnon and RssShmem").into())
}

fn sum_of(status: &str) -> Option<u64> {
    let field = |name: &str| -> Option<u64> {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(field("RssAnon:")? + field("RssShmem:")?)
}

/// The memory of a process once it has come to rest, KiB.
pub async fn settled_kib(pid: i32) -> Result<u64, Failure> {
    let mut calm = 0;
    let mut before = resident_kib(pid)?;
    for _ in 0..READINGS_MAX {
        tokio::time::sleep(SAMPLE).await;
        let now = resident_kib(pid)?;
        if now.abs_diff(before) < NOISE_KIB {
            calm += 1;
            if calm == CALM_READINGS {
                return Ok(now);
            }
        } else {
            (calm, before) = (0, now);
        }
    }
    Ok(before)
}

/// Watches for the highest reading until it is dropped.
pub struct Watch {
    peak_kib: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Watch {
    pub fn start(pid: i32) -> Self {
        let peak_kib = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&peak_kib);
        let task = tokio::spawn(async move {
            while let Ok(now) = resident_kib(pid) {
                seen.fetch_max(now, Ordering::Relaxed);
                tokio::time::sleep(SAMPLE).await;
            }
        });
        Self { peak_kib, task }
    }

    pub fn peak_kib(&self) -> u64 {
        self.peak_kib.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_count_and_file_pages_do_not() {
        let status =
            "Name:\tforebay\nVmRSS:\t  900 kB\nRssAnon:\t  300 kB\nRssFile:\t 500 kB\nRssShmem:\t 100 kB\n";
        assert_eq!(sum_of(status), Some(400));
        assert_eq!(sum_of("RssAnon:\t300 kB\n"), None);
    }

    #[test]
    fn memory_that_is_touched_is_seen() {
        let own = std::process::id() as i32;
        let before = resident_kib(own).unwrap();
        let taken = vec![1_u8; 32 << 20];
        assert!(resident_kib(own).unwrap() >= before + (30 << 10));
        assert_eq!(taken[taken.len() / 2], 1);
    }
}
