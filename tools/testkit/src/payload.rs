//! Payloads that tests make themselves, the same for the same seed; and real ones where they are at hand.

use std::path::PathBuf;

use bytes::Bytes;

/// A small generator (SplitMix64, Steele, Lea and Flood 2014); good enough to vary inputs, not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits that look random.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end - 1`; `end` is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// That many bytes.
    pub fn bytes(&mut self, count: usize) -> Bytes {
        let words = (0..count.div_ceil(8)).flat_map(|_| self.bits().to_le_bytes());
        words.take(count).collect::<Vec<u8>>().into()
    }
}

/// The lines of the real webhook payloads, if `FOREBAY_TEST_DATA` names their folder.
///
/// # Panics
/// If the variable is set and the file is not there: a run that asked for real input must not pass without it.
pub fn real_lines() -> Option<Vec<Vec<u8>>> {
    let folder = std::env::var_os("FOREBAY_TEST_DATA")?;
    let path = PathBuf::from(folder).join("github-webhooks.jsonl");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Lines like webhook payloads, 1 to 27 KiB each, from a seed.
pub fn seeded_lines(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    let line = |_| {
        let bytes = 1024 + random.below(26 << 10) as usize;
        let filler: String = random.bytes(bytes / 2).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{{\"event\":\"seeded\",\"payload\":\"{filler}\"}}").into_bytes()
    };
    (0..count).map(line).collect()
}
