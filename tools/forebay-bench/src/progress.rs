//! Progress on standard error, if that is a terminal.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts work that several tasks do, and shows it.
#[derive(Debug)]
pub struct Progress {
    done: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins a piece of work of `total` steps; 0: not known.
    pub fn start(what: impl Into<String>, total: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let template = if total == 0 {
                "{spinner} {msg}: {human_pos} in {elapsed}, {per_sec}"
            } else {
                "{spinner} {msg}: {human_pos} of {human_len} in {elapsed}, {per_sec}, {eta} left"
            };
            let style = ProgressStyle::with_template(template).expect("the template is correct");
            let length = (total > 0).then_some(total);
            ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr())
                .with_style(style)
                .with_message(what.into())
        });
        Self { done: AtomicU64::new(0), bar }
    }

    pub fn add(&self, count: u64) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// What is done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
