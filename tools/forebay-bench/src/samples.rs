//! Latencies and rates of the measured part of a run.
//!
//! 1. What is under way when the measured part begins does not count: a latency belongs to the time at which it began.
//! 2. What began in the measured part counts, however long it took: a stall at the end is not cut off.
//! 3. Messages count in the slot of 100 ms in which they were done, so a rate shows stalls where they were.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// One point of a rate over time.
const SLOT: Duration = Duration::from_millis(100);

/// Longer latencies count as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// From one point of the tail to the next.
const TAIL_STEP: f64 = 1.2;
/// Decimal digits of a latency that are kept.
const DIGITS: u8 = 3;

/// A run's time: from its start over its warm-up to its end, if it is known.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub start: Instant,
    pub warm_up: Duration,
    pub length: Option<Duration>,
}

impl Window {
    /// How far into the measured part this is; none outside.
    fn place(&self, at: Instant) -> Option<Duration> {
        let place = at.checked_duration_since(self.start)?.checked_sub(self.warm_up)?;
        self.length.is_none_or(|length| place < length).then_some(place)
    }

    /// Where it ends, if that is known: warm-up and measured part.
    pub fn end(&self) -> Option<Instant> {
        self.length.map(|length| self.start + self.warm_up + length)
    }
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Samples {
    window: Window,
    latencies_us: Histogram<u64>,
    slots: Vec<u64>,
}

impl Samples {
    pub fn new(window: Window) -> Self {
        let latencies_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).expect("the bounds are sound");
        Self { window, latencies_us, slots: Vec::new() }
    }

    /// Something took from `began` until `ended`.
    pub fn took(&mut self, began: Instant, ended: Instant) {
        if self.window.place(began).is_some() {
            let micros = ended.saturating_duration_since(began).as_micros();
            self.latencies_us.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
        }
    }

    /// This many messages were done at `at`.
    pub fn done(&mut self, messages: u64, at: Instant) {
        let Some(place) = self.window.place(at) else { return };
        let slot = (place.as_nanos() / SLOT.as_nanos()) as usize;
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, 0);
        }
        self.slots[slot] += messages;
    }

    /// The latency that this share of them kept, milliseconds; 0 without any.
    pub fn latency_ms(&self, share: f64) -> f64 {
        self.latencies_us.value_at_quantile(share) as f64 / 1e3
    }

    /// Latencies that count.
    pub fn latencies(&self) -> u64 {
        self.latencies_us.len()
    }

    /// Messages done in the measured part.
    pub fn messages(&self) -> u64 {
        self.slots.iter().sum()
    }
}

/// What several workers add to.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("nothing panics while it has the lock")
}

impl Samples {
    /// Latencies up the tail: `(1 / (1 - p), milliseconds)`, the longest one last.
    pub fn tail(&self) -> Vec<(f64, f64)> {
        let count = self.latencies() as f64;
        let steps = std::iter::successors(Some(1.0), |x| Some(x * TAIL_STEP)).take_while(|x| *x < count);
        let longest = (count > 0.0).then(|| (count, self.latency_ms(1.0)));
        steps.map(|x| (x, self.latency_ms(1.0 - 1.0 / x))).chain(longest).collect()
    }

    /// Rates over time: `(seconds, messages a second)`, a point in the middle of each whole slot.
    pub fn rates(&self) -> Vec<(f64, f64)> {
        let slots = match self.window.length {
            Some(length) => (length.as_nanos() / SLOT.as_nanos()) as usize,
            // Nobody knows when the last one ended.
            None => self.slots.len().saturating_sub(1),
        };
        let count = |slot| self.slots.get(slot).copied().unwrap_or(0) as f64;
        let seconds = SLOT.as_secs_f64();
        (0..slots).map(|slot| ((slot as f64 + 0.5) * seconds, count(slot) / seconds)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn window(start: Instant) -> Window {
        Window { start, warm_up: ms(1_000), length: Some(ms(500)) }
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let start = Instant::now();
        let mut samples = Samples::new(Window { start, warm_up: ms(0), length: None });
        assert_eq!(samples.latency_ms(0.5), 0.0);
        (1..=1_000).for_each(|count| samples.took(start, start + ms(count)));
        for (share, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1_000.0)] {
            let actual = samples.latency_ms(share);
            assert!((actual / expected - 1.0).abs() < 2e-3, "{share}: {actual}");
        }
    }

    #[test]
    fn a_latency_counts_if_it_began_in_the_measured_part() {
        let start = Instant::now();
        let mut samples = Samples::new(window(start));
        samples.took(start + ms(999), start + ms(1_400));
        assert_eq!(samples.latencies(), 0, "it began in the warm-up");
        samples.took(start + ms(1_499), start + ms(9_499));
        assert_eq!(samples.latencies(), 1, "a stall is not cut off");
        assert!((samples.latency_ms(1.0) / 8_000.0 - 1.0).abs() < 2e-3);
        samples.took(start + ms(1_500), start + ms(1_501));
        assert_eq!(samples.latencies(), 1, "it began after the end");
    }

    #[test]
    fn messages_count_in_the_slot_in_which_they_were_done() {
        let start = Instant::now();
        let mut samples = Samples::new(window(start));
        for (at, messages) in [(999, 1), (1_000, 2), (1_099, 4), (1_100, 8), (1_499, 16), (1_500, 32)] {
            samples.done(messages, start + ms(at));
        }
        assert_eq!(samples.slots, [6, 8, 0, 0, 16]);
        assert_eq!(samples.messages(), 30);
    }

    #[test]
    fn a_plot_has_the_whole_tail_and_each_whole_slot() {
        let start = Instant::now();
        let mut samples = Samples::new(window(start));
        assert_eq!((samples.tail(), samples.rates().len()), (Vec::new(), 5));
        (1..=100).for_each(|count| samples.took(start + ms(1_000), start + ms(1_000 + count)));
        samples.done(7, start + ms(1_250));
        let tail = samples.tail();
        assert!(tail.iter().map(|point| point.0).is_sorted() && tail.iter().map(|point| point.1).is_sorted());
        assert_eq!(tail[0].0, 1.0);
        assert_eq!(*tail.last().unwrap(), (100.0, samples.latency_ms(1.0)));
        let rates = samples.rates();
        assert_eq!(rates.iter().map(|point| point.1).collect::<Vec<_>>(), [0.0, 0.0, 70.0, 0.0, 0.0]);
        assert!((rates[2].0 - 0.25).abs() < 1e-9);
        let mut open = Samples::new(Window { start, warm_up: ms(0), length: None });
        open.done(1, start + ms(10));
        open.done(1, start + ms(110));
        assert_eq!(open.rates().len(), 1, "the last slot is not whole");
    }
}
