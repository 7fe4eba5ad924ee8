//! Puts the bytes of one frame together: small parts are copied into one reused buffer, large ones stay where they
//! are and are handed to the disk as they lie.

use std::io::IoSlice;

use bytes::Bytes;

use super::frame::{FRAME_HEADER_BYTES, FRAME_TRAILER_BYTES, FrameHeader, salted_hasher};
use crate::ids::Lsn;
use crate::record::envelope::encode_head;
use crate::record::{Body, Record};

/// From this size on, a part of a message is not copied.
const COPY_BYTES_MAX: usize = 16 << 10;
/// A buffer that has grown beyond this is given back.
const BUFFER_BYTES_KEPT: usize = 2 << 20;

/// One frame in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    /// What comes before the frame (a segment's header), the frame's header, and all that was copied.
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
    /// Where in `buffer` the piece that is growing begins.
    open_from: usize,
    /// Bytes before the frame.
    lead: usize,
    payload_len: usize,
    count: u32,
}

#[derive(Debug)]
enum Piece {
    Copied { from: usize, to: usize },
    Shared(Bytes),
}

impl Assembler {
    /// Begins a frame that is written together with `lead`, which comes right before it.
    pub fn begin(&mut self, lead: impl FnOnce(&mut Vec<u8>)) {
        self.pieces.clear();
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        lead(&mut self.buffer);
        self.lead = self.buffer.len();
        self.buffer.resize(self.lead + FRAME_HEADER_BYTES, 0);
        self.open_from = self.buffer.len();
        self.payload_len = 0;
        self.count = 0;
    }

    /// Adds a record; its position from the frame's first byte, and its length.
    pub fn push(&mut self, record: &Record, lsn: Lsn) -> (u64, u32) {
        let start = self.payload_len;
        let before = self.buffer.len();
        encode_head(record, lsn, &mut self.buffer);
        self.payload_len += self.buffer.len() - before;
        if let Body::Run(run) = &record.body {
            for message in &run.messages {
                self.part(&message.meta);
                self.part(&message.body);
            }
        }
        self.count += 1;
        let length = u32::try_from(self.payload_len - start).expect("a record is shorter than 4 GiB");
        ((FRAME_HEADER_BYTES + start) as u64, length)
    }

    fn part(&mut self, part: &Bytes) {
        self.payload_len += part.len();
        if part.len() < COPY_BYTES_MAX {
            self.buffer.extend_from_slice(part);
        } else {
            self.close_piece();
            self.pieces.push(Piece::Shared(part.clone()));
        }
    }

    fn close_piece(&mut self) {
        if self.open_from < self.buffer.len() {
            self.pieces.push(Piece::Copied { from: self.open_from, to: self.buffer.len() });
            self.open_from = self.buffer.len();
        }
    }

    /// Records so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Completes the frame; `header` still lacks what describes the records. Its header checksum, and its length.
    pub fn finish(&mut self, mut header: FrameHeader, salt: u64) -> (u32, u64) {
        self.close_piece();
        let mut hasher = salted_hasher(salt);
        for piece in &self.pieces {
            match piece {
                Piece::Copied { from, to } => hasher.update(&self.buffer[*from..*to]),
                Piece::Shared(bytes) => hasher.update(bytes),
            }
        }
        header.payload_crc = hasher.finalize();
        header.payload_len = u32::try_from(self.payload_len).expect("a frame is shorter than 4 GiB");
        header.count = self.count;
        let (bytes, crc) = header.encode(salt);
        self.buffer[self.lead..self.lead + FRAME_HEADER_BYTES].copy_from_slice(&bytes);
        let length = header.frame_len();
        let padding = length as usize - FRAME_HEADER_BYTES - self.payload_len - FRAME_TRAILER_BYTES;
        self.buffer.resize(self.buffer.len() + padding, 0);
        self.buffer.extend_from_slice(&bytes);
        self.close_piece();
        (crc, length)
    }

    /// The finished frame with what comes before it, in order, and their length together.
    pub fn parts(&self) -> (Vec<IoSlice<'_>>, u64) {
        let mut parts = Vec::with_capacity(self.pieces.len() + 1);
        parts.push(IoSlice::new(&self.buffer[..self.lead + FRAME_HEADER_BYTES]));
        parts.extend(self.pieces.iter().map(|piece| match piece {
            Piece::Copied { from, to } => IoSlice::new(&self.buffer[*from..*to]),
            Piece::Shared(bytes) => IoSlice::new(bytes),
        }));
        let length = parts.iter().map(|part| part.len() as u64).sum();
        (parts, length)
    }

    /// Lets go of messages that were not copied.
    pub fn release(&mut self) {
        self.pieces.clear();
    }
}
