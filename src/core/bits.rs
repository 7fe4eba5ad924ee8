//! What is finished: a floor below which everything is, and a bit for each offset above it.

use std::collections::VecDeque;
use std::iter;

use super::runs::OffsetRun;
use crate::ids::Offset;

/// Finished offsets. The deque of words begins at the word that holds the floor.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// First offset of the first word; a multiple of 64. All below it is finished.
    base: u64,
    words: VecDeque<u64>,
    /// Bits set in `words`.
    set: u64,
}

impl Finished {
    /// Everything below `floor` is finished, nothing else.
    pub fn below(floor: Offset) -> Self {
        let base = floor.0 & !63;
        let low = (1u64 << (floor.0 - base)) - 1;
        let words = if low == 0 { VecDeque::new() } else { VecDeque::from([low]) };
        Self { base, words, set: floor.0 - base }
    }

    /// What [`words`](Self::words) gave; the first word begins at the word's boundary at or below `floor`. None if
    /// the words do not say that `floor` is the floor, or the last one is empty.
    pub fn of_words(floor: Offset, words: VecDeque<u64>) -> Option<Self> {
        let set = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let finished = Self { base: floor.0 & !63, words, set };
        (finished.floor() == floor && finished.words.back() != Some(&0)).then_some(finished)
    }

    /// The bits from the word that holds the floor on; the last word is not empty.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> {
        self.words.iter().copied()
    }

    /// Everything below it is finished; it is not.
    pub fn floor(&self) -> Offset {
        Offset(self.base + self.words.front().map_or(0, |word| u64::from(word.trailing_ones())))
    }

    /// How many offsets are finished.
    pub fn count(&self) -> u64 {
        self.base + self.set
    }

    /// How many offsets below `end` are finished. As quick as few are finished from `end` on.
    pub fn count_below(&self, end: Offset) -> u64 {
        let Some(at) = end.0.checked_sub(self.base) else { return end.0 };
        let word = usize::try_from(at / 64).unwrap_or(usize::MAX).min(self.words.len());
        let high = |(index, word): (usize, &u64)| if index == 0 { word >> (at % 64) } else { *word };
        let above = self.words.range(word..).enumerate().map(high);
        self.count() - above.map(|word| u64::from(word.count_ones())).sum::<u64>()
    }

    pub fn contains(&self, offset: Offset) -> bool {
        match offset.0.checked_sub(self.base) {
            None => true,
            Some(at) => self.words.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1),
        }
    }

    /// Marks one offset; false if it was already.
    pub fn insert(&mut self, offset: Offset) -> bool {
        if self.contains(offset) {
            return false;
        }
        let at = offset.0 - self.base;
        let word = (at / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (at % 64);
        self.set += 1;
        self.drop_full_words();
        true
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
        let mut low = at % 64;
        for index in (at / 64) as usize..self.words.len() {
            let rest = self.words[index] >> low;
            if rest != 0 {
                return Some(Offset(self.base + 64 * index as u64 + low + u64::from(rest.trailing_zeros())));
            }
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
        let passed = usize::try_from((base - self.base) / 64).unwrap_or(usize::MAX).min(self.words.len());
        self.set -= self.words.drain(..passed).map(|word| u64::from(word.count_ones())).sum::<u64>();
        self.base = base;
        let low = (1u64 << (floor.0 - base)) - 1;
        if low != 0 && self.words.is_empty() {
            self.words.push_back(0);
        }
        if let Some(word) = self.words.front_mut() {
            self.set += u64::from((low & !*word).count_ones());
            *word |= low;
        }
        self.drop_full_words();
    }

    fn drop_full_words(&mut self) {
        while self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            self.base += 64;
            self.set -= 64;
        }
    }

    /// The first offset from `from` on that is not finished.
    pub fn next_unfinished(&self, from: Offset) -> Offset {
        let mut offset = from.0.max(self.floor().0);
        loop {
            let at = offset - self.base;
            let Some(word) = self.words.get((at / 64) as usize) else { return Offset(offset) };
            let ones = u64::from((word >> (at % 64)).trailing_ones());
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
}
