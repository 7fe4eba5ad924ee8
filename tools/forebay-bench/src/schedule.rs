//! When messages are due at a fixed rate, and a thread that keeps to it.
//!
//! 1. Message `n` is due `n / rate` seconds after the start, computed from `n`: lateness is never passed on to the next.
//! 2. What is late is sent at once, and what follows keeps its time; nothing is left out.
//! 3. The thread sleeps in the kernel: the timers of the runtime are too coarse for parts of a millisecond.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// Messages spread evenly over a time.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Messages a second.
    pub rate: u64,
    pub length: Duration,
}

impl Schedule {
    /// Messages in all.
    pub fn messages(&self) -> u64 {
        (u128::from(self.rate) * self.length.as_nanos() / 1_000_000_000) as u64
    }

    /// When a message is due, from the start.
    pub fn due(&self, number: u64) -> Duration {
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Gives each message's number to the lines in turn when it is due. Blocks; ends early when a line is gone.
    pub fn keep(&self, start: Instant, lines: &[mpsc::Sender<u64>]) {
        for number in 0..self.messages() {
            let due = start + self.due(number);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let line = &lines[(number % lines.len() as u64) as usize];
            if line.blocking_send(number).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_evenly_and_without_drift() {
        let schedule = Schedule { rate: 3_000, length: Duration::from_secs(3_600) };
        assert_eq!(schedule.messages(), 10_800_000);
        assert_eq!(schedule.due(0), Duration::ZERO);
        assert_eq!(schedule.due(3_000 * 3_599), Duration::from_secs(3_599));
        for number in 0..10_000 {
            let gap = (schedule.due(number + 1) - schedule.due(number)).as_nanos();
            assert!((333_333..=333_334).contains(&gap), "{number}: {gap}");
        }
        assert!(schedule.due(schedule.messages() - 1) < schedule.length);
    }

    #[test]
    fn lines_take_turns_and_nothing_is_left_out() {
        let schedule = Schedule { rate: 1_000_000, length: Duration::from_micros(100) };
        let (lines, mut ends): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(100)).unzip();
        // All of it is late.
        let start = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        schedule.keep(start, &lines);
        drop(lines);
        for (line, end) in ends.iter_mut().enumerate() {
            let numbers: Vec<u64> = std::iter::from_fn(|| end.blocking_recv()).collect();
            assert_eq!(numbers, (line as u64..100).step_by(3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nothing_goes_before_it_is_due() {
        let schedule = Schedule { rate: 1_000, length: Duration::from_millis(20) };
        let (line, mut end) = mpsc::channel(1);
        let start = Instant::now();
        let thread = std::thread::spawn(move || schedule.keep(start, &[line]));
        while let Some(number) = end.blocking_recv() {
            assert!(start.elapsed() >= schedule.due(number), "{number}");
        }
        thread.join().unwrap();
    }
}
