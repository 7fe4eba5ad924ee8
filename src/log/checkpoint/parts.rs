//! The parts of a state, in order of key: on their way to the log, out of a file, and out of several at once.
//!
//! In a file a part is `key u64 | stamp u64 | length u32 | bytes`, little-endian. The stamp is the LSN of the checkpoint
//! that brought it. A part of no bytes is gone.

use crc32fast::Hasher;

use super::{Broken, CheckpointFault, Name};
use crate::ids::Lsn;
use crate::log::window::Window;
use crate::record::wire::{Put, Reader, WireError};

pub const PART_HEAD_BYTES: usize = 20;

/// Parts of a state that have changed. A part is whatever bytes its owner gives it.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    bytes: Vec<u8>,
    /// Of each its key, and where its bytes end.
    ends: Vec<(u64, usize)>,
}

impl Parts {
    /// Adds a part, whose bytes `fill` appends; one that it leaves empty is gone. Keys go up.
    pub fn put(&mut self, key: u64, fill: impl FnOnce(&mut Vec<u8>)) {
        assert!(self.ends.last().is_none_or(|(before, _)| *before < key), "parts come in order of key");
        fill(&mut self.bytes);
        self.ends.push((key, self.bytes.len()));
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Of all parts together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// What is known of a part before its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartHead {
    pub key: u64,
    pub stamp: Lsn,
    pub bytes: usize,
}

impl PartHead {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PART_HEAD_BYTES);
        out.put_u64(self.key);
        out.put_u64(self.stamp.0);
        out.put_u32(u32::try_from(self.bytes).expect("a part is shorter than 4 GiB"));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let (key, stamp) = (reader.u64()?, Lsn(reader.u64()?));
        Ok(Self { key, stamp, bytes: reader.u32()? as usize })
    }
}

/// Parts that come in order of key.
pub trait Source {
    /// The next part, if there is one.
    fn peek(&mut self) -> Result<Option<PartHead>, Broken>;
    /// The bytes of the part that [`Self::peek`] told of; the one behind it is next.
    fn take(&mut self) -> Result<&[u8], Broken>;
}

/// Parts that no file has yet.
pub struct Fresh<'a> {
    parts: &'a Parts,
    stamp: Lsn,
    next: usize,
}

impl<'a> Fresh<'a> {
    pub fn new(parts: &'a Parts, stamp: Lsn) -> Self {
        Self { parts, stamp, next: 0 }
    }

    fn start(&self) -> usize {
        self.next.checked_sub(1).map_or(0, |before| self.parts.ends[before].1)
    }
}

impl Source for Fresh<'_> {
    fn peek(&mut self) -> Result<Option<PartHead>, Broken> {
        let next = self.parts.ends.get(self.next);
        Ok(next.map(|(key, end)| PartHead { key: *key, stamp: self.stamp, bytes: end - self.start() }))
    }

    fn take(&mut self) -> Result<&[u8], Broken> {
        let (start, end) = (self.start(), self.parts.ends[self.next].1);
        self.next += 1;
        Ok(&self.parts.bytes[start..end])
    }
}

/// The parts of a file, read one after the other. That they are what was written is certain only behind the last.
pub struct PartReader {
    name: Name,
    window: Window,
    /// Of the first part.
    start: u64,
    at: u64,
    end: u64,
    crc: Hasher,
    expected_crc: u32,
    next: Option<PartHead>,
    before: Option<u64>,
}

impl PartReader {
    /// The parts that fill the file from `start` on.
    pub fn new(name: Name, window: Window, start: u64, expected_crc: u32) -> Self {
        let end = window.file_len();
        let crc = Hasher::new();
        Self { name, window, start, at: start, end, crc, expected_crc, next: None, before: None }
    }

    fn damaged(&self) -> Broken {
        Broken::Damaged(self.name, CheckpointFault::Parts { position: self.start })
    }

    fn read_head(&mut self) -> Result<PartHead, Broken> {
        let damaged = self.damaged();
        let Some(bytes) = self.window.get(self.at, PART_HEAD_BYTES)? else { return Err(damaged) };
        self.crc.update(bytes);
        let head = PartHead::decode(bytes).expect("its length is fixed");
        self.at += PART_HEAD_BYTES as u64;
        let fits = head.bytes as u64 <= self.end - self.at;
        if !fits || self.before.is_some_and(|before| before >= head.key) {
            return Err(damaged);
        }
        self.before = Some(head.key);
        Ok(head)
    }

    /// Reads what is left.
    pub fn verify(mut self) -> Result<(), Broken> {
        while self.peek()?.is_some() {
            self.take()?;
        }
        Ok(())
    }
}

impl Source for PartReader {
    fn peek(&mut self) -> Result<Option<PartHead>, Broken> {
        if self.next.is_none() && self.at < self.end {
            self.next = Some(self.read_head()?);
        } else if self.next.is_none() && self.crc.clone().finalize() != self.expected_crc {
            return Err(self.damaged());
        }
        Ok(self.next)
    }

    fn take(&mut self) -> Result<&[u8], Broken> {
        let head = self.next.take().expect("the part was told of");
        let from = self.at;
        self.at += head.bytes as u64;
        let bytes = self.window.get(from, head.bytes)?.expect("the part is within the file");
        self.crc.update(bytes);
        Ok(bytes)
    }
}

/// Several sources as one. Of a key that more than one has, the last one's part counts.
pub struct Merged<'a>(Vec<Box<dyn Source + 'a>>);

impl<'a> Merged<'a> {
    pub fn new(sources: Vec<Box<dyn Source + 'a>>) -> Self {
        Self(sources)
    }

    /// The next part with its bytes, if there is one.
    pub fn next(&mut self) -> Result<Option<(PartHead, &[u8])>, Broken> {
        let mut least: Option<(usize, PartHead)> = None;
        for at in 0..self.0.len() {
            let Some(head) = self.0[at].peek()? else { continue };
            match least {
                Some((_, before)) if before.key < head.key => continue,
                Some((before, same)) if same.key == head.key => drop(self.0[before].take()?),
                _ => {}
            }
            least = Some((at, head));
        }
        let Some((at, head)) = least else { return Ok(None) };
        Ok(Some((head, self.0[at].take()?)))
    }
}
