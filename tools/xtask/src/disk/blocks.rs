//! The content of a disk: blocks that copies share until one of them is written to, so that a copy costs little.

use std::sync::Arc;

/// Shared and copied as a whole.
const BLOCK_BYTES: usize = 4096;

/// All bytes of a disk; zeroes where nothing was written.
#[derive(Clone, Debug)]
pub struct Blocks(Vec<Option<Arc<[u8; BLOCK_BYTES]>>>);

impl Blocks {
    /// A disk of zeroes; its size is a multiple of 4,096.
    pub fn blank(bytes: u64) -> Self {
        assert_eq!(bytes % BLOCK_BYTES as u64, 0, "a disk has whole blocks");
        Self(vec![None; (bytes / BLOCK_BYTES as u64) as usize])
    }

    pub fn len(&self) -> u64 {
        (self.0.len() * BLOCK_BYTES) as u64
    }

    /// What stands there; less than asked for at the end of the disk.
    pub fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let end = at.saturating_add(bytes as u64).min(self.len());
        let mut read = Vec::with_capacity(bytes);
        for (block, range) in pieces(at, end.saturating_sub(at) as usize) {
            match &self.0[block] {
                Some(block) => read.extend_from_slice(&block[range]),
                None => read.resize(read.len() + range.len(), 0),
            }
        }
        read
    }

    /// Writes within the disk.
    pub fn write(&mut self, at: u64, mut bytes: &[u8]) {
        for (block, range) in pieces(at, bytes.len()) {
            let (piece, rest) = bytes.split_at(range.len());
            let block = self.0[block].get_or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            Arc::make_mut(block)[range].copy_from_slice(piece);
            bytes = rest;
        }
    }
}

/// Which part of which block, for each block of a range.
fn pieces(at: u64, bytes: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let (mut at, end) = (at as usize, at as usize + bytes);
    std::iter::from_fn(move || {
        let (block, from) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
        let to = BLOCK_BYTES.min(from + end - at);
        at += to - from;
        (to > from).then_some((block, from..to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_their_own_ways() {
        let mut disk = Blocks::blank(3 * 4096);
        disk.write(4000, &[1; 5000]);
        let copy = disk.clone();
        disk.write(8990, &[2; 20]);
        assert_eq!(copy.read(3990, 5020), [vec![0; 10], vec![1; 5000], vec![0; 10]].concat());
        assert_eq!(disk.read(8980, 40), [vec![1; 10], vec![2; 20], vec![0; 10]].concat());
        assert_eq!(disk.read(3 * 4096 - 1, 9), [0]);
        assert!(disk.read(9 * 4096, 9).is_empty());
    }
}
