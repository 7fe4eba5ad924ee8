//! The bytes of an answer, in parts: what was written for it, and bodies where they were read.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Below this a body is copied rather than kept as a part of its own.
const PART_BYTES_MIN: usize = 256;

/// Bytes in parts, written at one end and taken off the other.
#[derive(Debug, Default)]
pub struct Rope {
    parts: VecDeque<Bytes>,
    /// What was written behind the parts.
    written: BytesMut,
    /// Of the parts.
    parts_len: usize,
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Self {
        let mut rope = Self::default();
        rope.push(bytes);
        rope
    }
}

impl Rope {
    pub fn len(&self) -> usize {
        self.parts_len + self.written.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where more is written.
    pub fn end(&mut self) -> &mut BytesMut {
        &mut self.written
    }

    /// Appends what lies elsewhere.
    pub fn append(&mut self, bytes: &Bytes) {
        if bytes.len() < PART_BYTES_MIN {
            self.written.extend_from_slice(bytes);
            return;
        }
        self.close();
        self.push(bytes.clone());
    }

    /// Makes a part of what was written.
    fn close(&mut self) {
        if !self.written.is_empty() {
            let written = self.written.split().freeze();
            self.push(written);
        }
    }

    fn push(&mut self, part: Bytes) {
        self.parts_len += part.len();
        self.parts.push_back(part);
    }

    /// Takes all, without a copy if it is one part.
    pub fn take_all(&mut self) -> Bytes {
        self.close();
        match self.parts.len() {
            0 => Bytes::new(),
            1 => {
                self.parts_len = 0;
                self.parts.pop_front().expect("counted above")
            }
            _ => self.copy_off(self.parts_len),
        }
    }

    /// Takes the first bytes, at most so many, in memory of their own.
    pub fn copy_off(&mut self, bytes_max: usize) -> Bytes {
        self.close();
        let length = bytes_max.min(self.parts_len);
        let mut taken = BytesMut::with_capacity(length);
        while taken.len() < length {
            let first = self.parts.front_mut().expect("there are more bytes");
            let part = first.split_to(first.len().min(length - taken.len()));
            if first.is_empty() {
                self.parts.pop_front();
            }
            taken.extend_from_slice(&part);
        }
        self.parts_len -= length;
        taken.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope() -> (Rope, Bytes, Vec<u8>) {
        let mut rope = Rope::default();
        let body: Bytes = (0..1_000).map(|at| (at / 3) as u8).collect::<Vec<u8>>().into();
        rope.end().extend_from_slice(b"head");
        rope.append(&body);
        rope.append(&Bytes::from_static(b"small"));
        rope.end().extend_from_slice(b"end");
        (rope, body.clone(), [b"head", &body[..], b"small", b"end"].concat())
    }

    #[test]
    fn what_was_written_is_taken_in_order_however_it_is_cut() {
        let (mut whole, _, expected) = rope();
        assert_eq!(whole.take_all(), expected);
        for bytes in [1, 3, 4, 5, 999, 1_004, 1_012, 5_000] {
            let (mut rope, _, _) = rope();
            let mut taken = Vec::new();
            while !rope.is_empty() {
                let part = rope.copy_off(bytes);
                assert_eq!(part.len(), bytes.min(expected.len() - taken.len()));
                taken.extend_from_slice(&part);
            }
            assert_eq!(taken, expected, "{bytes} at a time");
        }
    }

    #[test]
    fn only_what_is_one_part_is_taken_without_a_copy() {
        let mut alone = Rope::default();
        let (_, body, _) = rope();
        alone.append(&body);
        assert_eq!(alone.take_all().as_ptr(), body.as_ptr());
        alone.append(&body);
        assert_ne!(alone.copy_off(10).as_ptr(), body.as_ptr());
        assert_eq!((alone.len(), alone.take_all().len()), (990, 990));
        assert!(alone.is_empty() && alone.take_all().is_empty());
    }
}
