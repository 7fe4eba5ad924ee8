//! Bodies of mixed sizes, each stamped with the time from which its latency counts.
//!
//! The first 8 bytes are that time: nanoseconds since the start of the run, little-endian. So a delivery says by itself
//! how late it is, whatever became of its publish's answer.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use forebay_testkit::payload::Random;

/// Bytes of the stamp: the least size of a body.
const STAMP_BYTES: u64 = 8;
const SIZE_MAX: u64 = 8 << 20;
const WEIGHT_MAX: u64 = 1_000_000;

/// Sizes of bodies with their weights, written `SIZE` or `SIZE:WEIGHT,SIZE:WEIGHT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(u64, u64)>);

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entry = |entry: &str| {
            let (size, weight) = entry.split_once(':').unwrap_or((entry, "1"));
            let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is not a number"));
            let (size, weight) = (number(size)?, number(weight)?);
            if !(STAMP_BYTES..=SIZE_MAX).contains(&size) {
                return Err(format!("a size is {STAMP_BYTES} to {SIZE_MAX}, not {size}"));
            }
            if !(1..=WEIGHT_MAX).contains(&weight) {
                return Err(format!("a weight is 1 to {WEIGHT_MAX}, not {weight}"));
            }
            Ok((size, weight))
        };
        text.split(',').map(entry).collect::<Result<_, _>>().map(Self)
    }
}

/// One size, at least 8.
impl From<u64> for Mix {
    fn from(size: u64) -> Self {
        Self(vec![(size.max(STAMP_BYTES), 1)])
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (size, weight)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{size}:{weight}")?;
        }
        Ok(())
    }
}

impl Mix {
    fn weights(&self) -> u64 {
        self.0.iter().map(|(_, weight)| weight).sum()
    }

    /// The size of a message, by its number: the same in every run.
    fn size(&self, number: u64) -> u64 {
        let mut place = Random::new(number).below(self.weights());
        for (size, weight) in &self.0 {
            if place < *weight {
                return *size;
            }
            place -= weight;
        }
        unreachable!("a place is below the sum of the weights")
    }

    /// The mean of the sizes, at least 1 byte.
    pub fn mean_bytes(&self) -> u64 {
        self.0.iter().map(|(size, weight)| size * weight).sum::<u64>() / self.weights()
    }

    /// The only size; none if there are several.
    pub fn only(&self) -> Option<u64> {
        self.0.iter().all(|(size, _)| *size == self.0[0].0).then_some(self.0[0].0)
    }
}

/// Makes bodies of a mix.
#[derive(Clone, Debug)]
pub struct Bodies {
    mix: Mix,
    /// As long as the longest.
    filler: Bytes,
}

impl Bodies {
    pub fn new(mix: &Mix) -> Self {
        let longest = mix.0.iter().map(|(size, _)| *size).max().unwrap_or(STAMP_BYTES);
        Self { mix: mix.clone(), filler: Random::new(1).bytes(longest as usize) }
    }

    /// The body of the message with this number.
    pub fn stamped(&self, number: u64, since_start: Duration) -> Bytes {
        let mut body = self.filler[..self.mix.size(number) as usize].to_vec();
        let nanos = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX);
        body[..STAMP_BYTES as usize].copy_from_slice(&nanos.to_le_bytes());
        body.into()
    }
}

/// The stamp of a body; none if it is too short to have one.
pub fn stamp(body: &[u8]) -> Option<Duration> {
    Some(Duration::from_nanos(u64::from_le_bytes(*body.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_mix_is_read_or_refused() {
        let mix: Mix = "128:70,1024:25,65536:5".parse().unwrap();
        assert_eq!(mix.to_string(), "128:70,1024:25,65536:5");
        assert_eq!((mix.mean_bytes(), mix.only()), ((128 * 70 + 1024 * 25 + 65_536 * 5) / 100, None));
        assert_eq!("1024".parse::<Mix>().unwrap().only(), Some(1024));
        for wrong in ["", "7", "8388609", "1024:0", "1024:", "a", "1024,", "10:1:1"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn weights_are_met_and_numbers_decide() {
        const MESSAGES: u64 = 100_000;
        let mix: Mix = "128:70,1024:25,65536:5".parse().unwrap();
        let mut counts = BTreeMap::new();
        (0..MESSAGES).for_each(|number| *counts.entry(mix.size(number)).or_insert(0u64) += 1);
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [128, 1024, 65_536]);
        for (size, percent) in [(128, 70), (1024, 25), (65_536, 5)] {
            let share = counts[&size] * 1_000 / MESSAGES;
            assert!(share.abs_diff(percent * 10) <= 5, "{size}: {share} of 1,000");
        }
        let again: Vec<u64> = (0..100).map(|number| mix.size(number)).collect();
        assert_eq!(again, (0..100).map(|number| mix.clone().size(number)).collect::<Vec<_>>());
    }

    #[test]
    fn a_body_has_its_size_and_its_stamp() {
        let bodies = Bodies::new(&"8:1,100:1".parse().unwrap());
        let sizes: Vec<usize> = (0..64)
            .map(|number| {
                let body = bodies.stamped(number, Duration::from_nanos(number));
                assert_eq!(stamp(&body), Some(Duration::from_nanos(number)));
                body.len()
            })
            .collect();
        assert!(
            sizes.iter().all(|size| [8, 100].contains(size)) && sizes.contains(&8) && sizes.contains(&100)
        );
        assert_eq!(stamp(&[0; 7]), None);
    }
}
