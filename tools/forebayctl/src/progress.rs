//! Progress on standard error, if that is a terminal.

use std::io::{IsTerminal, stderr};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line that is drawn anew, or nothing.
#[derive(Debug)]
pub struct Progress(Option<ProgressBar>);

impl Progress {
    pub fn start() -> Self {
        Self(stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} in {elapsed}, {per_sec}")
                .expect("the template is correct");
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
            bar.with_message("waiting for the first answer")
        }))
    }

    /// Shows what was acknowledged so far.
    pub fn show(&self, messages: u64, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(messages);
            bar.set_message(format!("{} messages, {}", HumanCount(messages), HumanBytes(bytes)));
        }
    }

    /// Clears the line.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
