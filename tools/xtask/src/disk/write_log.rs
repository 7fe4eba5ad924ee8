//! Everything that was written to a disk, in order, and what of it a power cut leaves.
//!
//! A flush makes firm what was written before it. Of what was written since the last flush, each sector may be on the
//! disk or not, in any combination: a [`Fate`] says how one is picked. A position is a count of entries; position `n` is
//! the moment after the n-th.

use std::sync::Arc;

use forebay_testkit::payload::Random;

use super::blocks::Blocks;

/// One request to the disk that succeeded.
#[derive(Clone, Debug)]
pub enum Entry {
    Write { at: u64, bytes: Arc<[u8]> },
    Flush,
}

/// What becomes of the writes that no flush made firm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Kept,
    Lost,
    /// Each write as a whole is kept or lost.
    SomeWrites,
    /// Each sector is kept or lost.
    SomeSectors,
    /// Kept up to some sector, lost from there on.
    Until,
}

impl Fate {
    const ALL: [Self; 5] = [Self::Kept, Self::Lost, Self::SomeWrites, Self::SomeSectors, Self::Until];

    pub fn pick(random: &mut Random) -> Self {
        Self::ALL[random.below(Self::ALL.len() as u64) as usize]
    }
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct WriteLog {
    /// The disk before the first entry.
    base: Blocks,
    entries: Vec<Entry>,
}

impl WriteLog {
    pub fn new(base: Blocks) -> Self {
        Self { base, entries: Vec::new() }
    }

    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Positions right after flushes, from `from` on.
    pub fn flushes(&self, from: usize) -> Vec<usize> {
        let flush = |position: &usize| matches!(self.entries[position - 1], Entry::Flush);
        (from.max(1)..=self.entries.len()).filter(flush).collect()
    }

    /// The disk after a power cut at `position`, if it writes sectors of so many bytes as a whole, and how many writes
    /// were not firm then.
    pub fn cut(
        &self,
        position: usize,
        sector_bytes: usize,
        fate: Fate,
        random: &mut Random,
    ) -> (Blocks, usize) {
        let entries = &self.entries[..position];
        let firm = entries.iter().rposition(|entry| matches!(entry, Entry::Flush)).map_or(0, |last| last + 1);
        let mut disk = self.base.clone();
        for (at, bytes) in writes(&entries[..firm]) {
            disk.write(at, bytes);
        }
        let open = &entries[firm..];
        let sectors: usize = writes(open).map(|(_, bytes)| bytes.len().div_ceil(sector_bytes)).sum();
        let mut left = random.below(sectors as u64 + 1);
        for (at, bytes) in writes(open) {
            let whole = random.below(2) == 0;
            for (n, sector) in bytes.chunks(sector_bytes).enumerate() {
                let kept = match fate {
                    Fate::Kept => true,
                    Fate::Lost => false,
                    Fate::SomeWrites => whole,
                    Fate::SomeSectors => random.below(2) == 0,
                    Fate::Until => left > 0,
                };
                left = left.saturating_sub(1);
                if kept {
                    disk.write(at + (n * sector_bytes) as u64, sector);
                }
            }
        }
        (disk, open.len())
    }
}

fn writes(entries: &[Entry]) -> impl Iterator<Item = (u64, &[u8])> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Write { at, bytes } => Some((*at, &**bytes)),
        Entry::Flush => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> WriteLog {
        let mut log = WriteLog::new(Blocks::blank(1 << 16));
        let write = |at, byte, sectors: usize| Entry::Write { at, bytes: vec![byte; sectors * 512].into() };
        log.push(write(0, 1, 2));
        log.push(Entry::Flush);
        log.push(write(512, 2, 8));
        log.push(write(8192, 3, 8));
        log
    }

    fn sectors(disk: &Blocks) -> Vec<u8> {
        disk.read(0, 1 << 16).chunks(512).map(|sector| sector[0]).collect()
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_meets_its_fate() {
        let log = log();
        assert_eq!(log.flushes(0), [2]);
        assert!(log.flushes(3).is_empty());
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let fate = Fate::pick(&mut random);
            let (disk, open) = log.cut(4, 512, fate, &mut random);
            let sectors = sectors(&disk);
            assert_eq!((sectors[0], open), (1, 2));
            assert!(sectors[1] == 1 || sectors[1] == 2);
            let (first, second) = (&sectors[1..9], &sectors[16..24]);
            let kept = |part: &[u8]| part.iter().filter(|sector| **sector > 1).count();
            let (kept_first, kept_second) = (kept(first), kept(second));
            match fate {
                Fate::Kept => assert_eq!((kept_first, kept_second), (8, 8)),
                Fate::Lost => assert_eq!((kept_first, kept_second), (0, 0)),
                Fate::SomeWrites => assert!(kept_first % 8 == 0 && kept_second % 8 == 0),
                Fate::Until => assert!(kept_second == 0 || kept_first == 8),
                Fate::SomeSectors => {}
            }
        }
    }

    #[test]
    fn at_each_position_a_cut_knows_only_what_came_before() {
        let log = log();
        let mut random = Random::new(1);
        assert_eq!(sectors(&log.cut(0, 512, Fate::Kept, &mut random).0), [0; 128]);
        assert_eq!(sectors(&log.cut(1, 512, Fate::Lost, &mut random).0), [0; 128]);
        assert_eq!(log.cut(2, 512, Fate::Lost, &mut random).1, 0);
        assert_eq!(sectors(&log.cut(2, 512, Fate::Lost, &mut random).0)[..3], [1, 1, 0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_disk() {
        let disk = |seed| sectors(&log().cut(4, 512, Fate::SomeSectors, &mut Random::new(seed)).0);
        assert_eq!(disk(7), disk(7));
        assert!((0..20).any(|seed| disk(seed) != disk(7)));
    }
}
