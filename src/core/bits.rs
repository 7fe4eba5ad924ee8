//! What is finished: a floor below which everything is, and a bit for each offset above it.
//!
//! Near the end the bits lie in a deque of words. What falls more than [`NEAR_WORDS`] behind the highest goes into
//! blocks of 64 words, and a block whose bits are all alike takes 16 bytes: one message that stays at the floor while
//! others pass it costs 16 bytes for each 4,096 of them.

use std::collections::VecDeque;
use std::iter;

use super::runs::OffsetRun;
use crate::ids::Offset;

/// Words of a block.
const BLOCK_WORDS: usize = 64;
/// Words that stay out of blocks.
const NEAR_WORDS: usize = 1024;

/// Finished offsets. Words are counted from the one that holds the floor; first those in blocks, then the near ones.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// First offset of the first word; a multiple of 64. All below it is finished.
    base: u64,
    blocks: VecDeque<Block>,
    /// Words of the first block that the floor has passed.
    passed: usize,
    near: VecDeque<u64>,
    /// Bits set in all words.
    set: u64,
}

/// Words that come one after the other.
#[derive(Clone, Debug)]
enum Block {
    /// Each of them.
    Alike(u64),
    Mixed(Box<[u64; BLOCK_WORDS]>),
}

impl Block {
    fn new(words: [u64; BLOCK_WORDS]) -> Self {
        match words[0] {
            word @ (0 | u64::MAX) if words == [word; BLOCK_WORDS] => Block::Alike(word),
            _ => Block::Mixed(Box::new(words)),
        }
    }

    fn word(&self, index: usize) -> u64 {
        match self {
            Block::Alike(word) => *word,
            Block::Mixed(words) => words[index],
        }
    }

    fn set(&mut self, index: usize, word: u64) {
        match self {
            Block::Alike(all) => {
                let mut words = [*all; BLOCK_WORDS];
                words[index] = word;
                *self = Block::new(words);
            }
            Block::Mixed(words) => {
                words[index] = word;
                if **words == [word; BLOCK_WORDS] {
                    *self = Block::Alike(word);
                }
            }
        }
    }
}

impl Finished {
    /// Everything below `floor` is finished, nothing else.
    pub fn below(floor: Offset) -> Self {
        let base = floor.0 & !63;
        let low = (1u64 << (floor.0 - base)) - 1;
        let near = if low == 0 { VecDeque::new() } else { VecDeque::from([low]) };
        Self { base, near, set: floor.0 - base, ..Self::default() }
    }

    /// What [`words`](Self::words) gave; the first word begins at the word's boundary at or below `floor`. None if
    /// the words do not say that `floor` is the floor, or the last one is empty.
    pub fn of_words(floor: Offset, words: VecDeque<u64>) -> Option<Self> {
        let set = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let is_long = words.back() != Some(&0);
        let mut finished = Self { base: floor.0 & !63, near: words, set, ..Self::default() };
        finished.put_away();
        finished.near.shrink_to(2 * NEAR_WORDS);
        (finished.floor() == floor && is_long).then_some(finished)
    }

    /// The bits from the word that holds the floor on; the last word is not empty.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> {
        (0..self.len()).map(|index| self.word(index))
    }

    fn len(&self) -> usize {
        self.in_blocks() + self.near.len()
    }

    /// Words that lie in blocks.
    fn in_blocks(&self) -> usize {
        self.blocks.len() * BLOCK_WORDS - self.passed
    }

    /// A word; 0 behind the last.
    fn word(&self, index: usize) -> u64 {
        match index.checked_sub(self.in_blocks()) {
            Some(near) => self.near.get(near).copied().unwrap_or(0),
            None => self.block_of(index).word((index + self.passed) % BLOCK_WORDS),
        }
    }

    fn block_of(&self, index: usize) -> &Block {
        &self.blocks[(index + self.passed) / BLOCK_WORDS]
    }

    fn set_word(&mut self, index: usize, word: u64) {
        match index.checked_sub(self.in_blocks()) {
            Some(near) => self.near[near] = word,
            None => {
                let index = index + self.passed;
                self.blocks[index / BLOCK_WORDS].set(index % BLOCK_WORDS, word);
            }
        }
    }

    /// Where the words of the block that holds this one end, if they are all `word`.
    fn end_of_alike(&self, index: usize, word: u64) -> Option<usize> {
        let is_alike =
            index < self.in_blocks() && matches!(self.block_of(index), Block::Alike(all) if *all == word);
        is_alike.then(|| ((index + self.passed) / BLOCK_WORDS + 1) * BLOCK_WORDS - self.passed)
    }

    /// Puts into blocks what is no longer near.
    fn put_away(&mut self) {
        while self.near.len() >= NEAR_WORDS + BLOCK_WORDS {
            let mut words = [0; BLOCK_WORDS];
            words.iter_mut().zip(self.near.drain(..BLOCK_WORDS)).for_each(|(to, word)| *to = word);
            self.blocks.push_back(Block::new(words));
        }
    }

    /// Makes room for a word.
    fn grow_to(&mut self, index: usize) {
        while index >= self.len() {
            let more = (index + 1 - self.len()).min(BLOCK_WORDS);
            self.near.resize(self.near.len() + more, 0);
            self.put_away();
        }
    }

    /// Everything below it is finished; it is not.
    pub fn floor(&self) -> Offset {
        Offset(self.base + u64::from(self.word(0).trailing_ones()))
    }

    /// How many offsets are finished.
    pub fn count(&self) -> u64 {
        self.base + self.set
    }

    /// How many offsets below `end` are finished. As quick as few are finished from `end` on.
    pub fn count_below(&self, end: Offset) -> u64 {
        let Some(at) = end.0.checked_sub(self.base) else { return end.0 };
        let first = usize::try_from(at / 64).unwrap_or(usize::MAX);
        let high =
            |index: usize| if index == first { self.word(index) >> (at % 64) } else { self.word(index) };
        let above: u64 = (first..self.len()).map(|index| u64::from(high(index).count_ones())).sum();
        self.count() - above
    }

    pub fn contains(&self, offset: Offset) -> bool {
        match offset.0.checked_sub(self.base) {
            None => true,
            Some(at) => self.word((at / 64) as usize) >> (at % 64) & 1 == 1,
        }
    }

    /// Marks one offset; false if it was already.
    pub fn insert(&mut self, offset: Offset) -> bool {
        if self.contains(offset) {
            return false;
        }
        let at = offset.0 - self.base;
        let index = (at / 64) as usize;
        self.grow_to(index);
        self.set_word(index, self.word(index) | 1 << (at % 64));
        self.set += 1;
        self.drop_full_words();
        true
    }

    /// Marks a run, by words.
    pub fn insert_run(&mut self, run: OffsetRun) {
        let end = run.first.plus(run.count);
        if run.count < 64 {
            for offset in run.offsets() {
                self.insert(offset);
            }
        } else if run.first <= self.floor() {
            self.raise(end);
        } else {
            let (first, last) = (run.first.0 - self.base, end.0 - 1 - self.base);
            self.grow_to((last / 64) as usize);
            for index in first / 64..=last / 64 {
                let from = if index == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
                let to = if index == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
                let (index, word) = (index as usize, self.word(index as usize));
                self.set += u64::from((from & to & !word).count_ones());
                self.set_word(index, word | from & to);
            }
        }
    }

    /// The finished offsets above the floor, in order.
    pub fn runs(&self) -> impl Iterator<Item = OffsetRun> {
        let run_from = |from: Offset| {
            let first = self.next_finished(from)?;
            Some(OffsetRun { first, count: self.next_unfinished(first).0 - first.0 })
        };
        iter::successors(run_from(self.floor()), move |run| run_from(run.first.plus(run.count)))
    }

    /// The first finished offset from `from` on, which is not below the floor.
    fn next_finished(&self, from: Offset) -> Option<Offset> {
        let at = from.0 - self.base;
        let (mut index, mut low) = ((at / 64) as usize, at % 64);
        while index < self.len() {
            let rest = self.word(index) >> low;
            if rest != 0 {
                return Some(Offset(self.base + 64 * index as u64 + low + u64::from(rest.trailing_zeros())));
            }
            index = self.end_of_alike(index, 0).unwrap_or(index + 1);
            low = 0;
        }
        None
    }

    /// Marks everything below `floor`.
    pub fn raise(&mut self, floor: Offset) {
        if floor <= self.floor() {
            return;
        }
        let base = floor.0 & !63;
        while self.base < base && self.len() > 0 {
            self.drop_word();
        }
        self.base = base;
        let low = (1u64 << (floor.0 - base)) - 1;
        if low != 0 {
            self.grow_to(0);
            let word = self.word(0);
            self.set += u64::from((low & !word).count_ones());
            self.set_word(0, word | low);
        }
        self.drop_full_words();
    }

    fn drop_full_words(&mut self) {
        while self.word(0) == u64::MAX {
            self.drop_word();
        }
    }

    /// The floor passes the first word.
    fn drop_word(&mut self) {
        self.set -= u64::from(self.word(0).count_ones());
        self.base += 64;
        if self.blocks.is_empty() {
            self.near.pop_front();
            return;
        }
        self.passed += 1;
        if self.passed == BLOCK_WORDS {
            self.blocks.pop_front();
            self.passed = 0;
        }
    }

    /// The first offset from `from` on that is not finished.
    pub fn next_unfinished(&self, from: Offset) -> Offset {
        let mut offset = from.0.max(self.floor().0);
        loop {
            let at = offset - self.base;
            let index = (at / 64) as usize;
            if let Some(end) = self.end_of_alike(index, u64::MAX) {
                offset = self.base + 64 * end as u64;
                continue;
            }
            let ones = u64::from((self.word(index) >> (at % 64)).trailing_ones());
            offset += ones;
            if ones == 0 || !offset.is_multiple_of(64) {
                return Offset(offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::core::runs::runs_of;

    proptest! {
        /// Against a plain set, over any order of insertion.
        #[test]
        fn agrees_with_a_set(
            floor in 0u64..200,
            inserts in proptest::collection::vec(0u64..400, 0..400),
            raised in 0u64..500,
        ) {
            let mut finished = Finished::below(Offset(floor));
            let mut model: BTreeSet<u64> = (0..floor).collect();
            for offset in inserts {
                prop_assert_eq!(finished.insert(Offset(offset)), model.insert(offset));
                let lowest = (0..).find(|at| !model.contains(at)).unwrap();
                prop_assert_eq!(finished.floor(), Offset(lowest));
                prop_assert_eq!(finished.count(), model.len() as u64);
            }
            let before = finished.clone();
            finished.raise(Offset(raised));
            model.extend(0..raised);
            prop_assert_eq!(finished.count(), model.len() as u64);
            prop_assert!(raised > before.floor().0 || finished.words().eq(before.words()));
            for from in 0..550 {
                let next = (from..).find(|at| !model.contains(at)).unwrap();
                prop_assert_eq!(finished.next_unfinished(Offset(from)), Offset(next));
                prop_assert_eq!(finished.contains(Offset(from)), model.contains(&from));
                prop_assert_eq!(finished.count_below(Offset(from)), model.range(..from).count() as u64);
            }
            let above: Vec<u64> = model.range(finished.floor().0..).copied().collect();
            prop_assert_eq!(runs_of(above.iter().copied().map(Offset)), finished.runs().collect::<Vec<_>>());
            let again = Finished::of_words(finished.floor(), finished.words().collect()).unwrap();
            prop_assert_eq!(again.runs().collect::<Vec<_>>(), finished.runs().collect::<Vec<_>>());
            prop_assert_eq!(again.count(), finished.count());
        }
    }
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        /// The same where most lies in blocks: runs in any order, some long, over each other or far ahead.
        #[test]
        fn agrees_with_flags_far_behind_the_end(
            runs in proptest::collection::vec((0u64..300_000, prop_oneof![1u64..5, 1_000u64..60_000]), 1..12),
            raised in 0u64..250_000,
        ) {
            let mut finished = Finished::default();
            let mut model = vec![false; 400_000];
            for (first, count) in runs {
                let mut by_offset = finished.clone();
                for offset in first..first + count {
                    prop_assert_eq!(by_offset.insert(Offset(offset)), !model[offset as usize]);
                    model[offset as usize] = true;
                }
                finished.insert_run(OffsetRun { first: Offset(first), count });
                prop_assert_eq!((finished.floor(), finished.count()), (by_offset.floor(), by_offset.count()));
                prop_assert_eq!(finished.runs().collect::<Vec<_>>(), by_offset.runs().collect::<Vec<_>>());
            }
            for raised in [0, raised] {
                finished.raise(Offset(raised));
                model[..raised as usize].fill(true);
                let unfinished = |from: usize| (from..).find(|at| !model[*at]).unwrap() as u64;
                let count = |end: usize| model[..end].iter().filter(|flag| **flag).count() as u64;
                prop_assert_eq!(finished.floor(), Offset(unfinished(0)));
                prop_assert_eq!(finished.count(), count(model.len()));
                for from in (0..390_000).step_by(9_973) {
                    prop_assert_eq!(finished.contains(Offset(from as u64)), model[from]);
                    prop_assert_eq!(finished.next_unfinished(Offset(from as u64)), Offset(unfinished(from)));
                    prop_assert_eq!(finished.count_below(Offset(from as u64)), count(from));
                }
                let above = (finished.floor().0..model.len() as u64).filter(|at| model[*at as usize]);
                prop_assert_eq!(runs_of(above.map(Offset)), finished.runs().collect::<Vec<_>>());
                let again = Finished::of_words(finished.floor(), finished.words().collect()).unwrap();
                prop_assert!(again.words().eq(finished.words()) && again.count() == finished.count());
            }
        }
    }

    #[test]
    fn one_that_stays_costs_little_however_many_pass_it() {
        let mut finished = Finished::default();
        (1..10_000_000).for_each(|offset| assert!(finished.insert(Offset(offset))));
        let mixed = finished.blocks.iter().filter(|block| matches!(block, Block::Mixed(_))).count();
        let near = finished.near.capacity();
        assert!(mixed == 1 && finished.blocks.len() <= 2_442 && near <= 4 * NEAR_WORDS, "{mixed} {near}");
        assert_eq!(finished.next_unfinished(Offset(1)), Offset(10_000_000));
        assert!(finished.insert(Offset(0)));
        assert_eq!((finished.floor(), finished.blocks.len()), (Offset(10_000_000), 0));
        // One far ahead of all others leaves nothing of size behind.
        assert!(finished.insert(Offset(1 << 30)));
        assert!(finished.blocks.iter().all(|block| matches!(block, Block::Alike(0))));
        assert!(finished.near.capacity() <= 4 * NEAR_WORDS);
    }
}
