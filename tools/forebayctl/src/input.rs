//! The input of a publish, cut into messages as it streams by.
//!
//! A thread reads, because reading a file or a pipe blocks. It hands over what messages each read completed, so
//! that a slow input is published as it comes; the channel holds a few such groups, so memory is bounded by the
//! largest message, not by the input.
//!
//! A line ends with a line feed, which is not part of the message; a carriage return is. Bytes after the last line
//! feed are a message, nothing after it is none.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::errors::CtlError;

const READ_BYTES: usize = 64 << 10;
const GROUPS_WAITING_MAX: usize = 4;
/// What a message costs in a request besides its body and attributes, about.
const MESSAGE_OVERHEAD_BYTES: usize = 16;

/// Where the input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Stdin,
    File(PathBuf),
}

/// How the input is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Each line is a message; otherwise the whole input is one.
    pub lines: bool,
    /// Messages to leave out at the beginning.
    pub skip: u64,
    /// Longest message, in bytes.
    pub message_bytes_max: usize,
}

/// How messages are grouped into requests.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub messages: usize,
    /// Reached by what is added to a first message; a single larger one is a batch of its own.
    pub bytes: usize,
    /// Bytes of the attributes of each message.
    pub attribute_bytes: usize,
}

/// The messages of an input, in batches.
#[derive(Debug)]
pub struct Batches {
    groups: mpsc::Receiver<Result<Vec<Bytes>, CtlError>>,
    waiting: VecDeque<Bytes>,
    failed: Option<CtlError>,
    limits: BatchLimits,
}

impl Batches {
    /// Opens the input and begins to read it.
    pub fn open(source: &Source, cut: Cut, limits: BatchLimits) -> Result<Self, CtlError> {
        let (path, reader): (String, Box<dyn Read + Send>) = match source {
            Source::Stdin => ("standard input".to_owned(), Box::new(io::stdin())),
            Source::File(path) => {
                let name = path.display().to_string();
                match File::open(path) {
                    Ok(file) => (name, Box::new(file)),
                    Err(source) => return Err(CtlError::Input { path: name, source }),
                }
            }
        };
        let (sender, groups) = mpsc::channel(GROUPS_WAITING_MAX);
        std::thread::spawn(move || {
            if let Err(error) = read_all(reader, &path, cut, &sender) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Ok(Self { groups, waiting: VecDeque::new(), failed: None, limits })
    }

    /// The next messages, as many as are at hand and fit one request; `None` at the end. An error comes after all
    /// messages before it. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Vec<Bytes>, CtlError>> {
        if self.waiting.is_empty() && self.failed.is_none() {
            let group = self.groups.recv().await?;
            self.take(group);
        }
        while self.waiting.len() < self.limits.messages && self.failed.is_none() {
            match self.groups.try_recv() {
                Ok(group) => self.take(group),
                Err(_) => break,
            }
        }
        match self.cut_batch() {
            batch if !batch.is_empty() => Some(Ok(batch)),
            _ => self.failed.take().map(Err),
        }
    }

    fn take(&mut self, group: Result<Vec<Bytes>, CtlError>) {
        match group {
            Ok(messages) => self.waiting.extend(messages),
            Err(error) => self.failed = Some(error),
        }
    }

    fn cut_batch(&mut self) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.waiting.front() {
            bytes += next.len() + self.limits.attribute_bytes + MESSAGE_OVERHEAD_BYTES;
            let full = batch.len() == self.limits.messages || bytes > self.limits.bytes;
            if full && !batch.is_empty() {
                break;
            }
            batch.extend(self.waiting.pop_front());
        }
        batch
    }
}

fn read_all(
    mut reader: impl Read,
    path: &str,
    cut: Cut,
    groups: &mpsc::Sender<Result<Vec<Bytes>, CtlError>>,
) -> Result<(), CtlError> {
    let mut splitter = Splitter { cut, index: 0, partial: Vec::new() };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(CtlError::Input { path: path.to_owned(), source }),
        };
        let mut group = Vec::new();
        let result = match count {
            0 => splitter.finish(&mut group),
            _ => splitter.push(&buffer[..count], &mut group),
        };
        // Nobody receives any more: the command has ended for another reason.
        if !group.is_empty() && groups.blocking_send(Ok(group)).is_err() {
            return Ok(());
        }
        result?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Cuts bytes into messages, however they are split over reads.
#[derive(Debug)]
struct Splitter {
    cut: Cut,
    /// Of the message that begins or goes on next.
    index: u64,
    partial: Vec<u8>,
}

impl Splitter {
    fn push(&mut self, mut bytes: &[u8], out: &mut Vec<Bytes>) -> Result<(), CtlError> {
        if self.cut.lines {
            while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                self.keep(&bytes[..end])?;
                self.emit(out);
                bytes = &bytes[end + 1..];
            }
        }
        self.keep(bytes)
    }

    fn finish(&mut self, out: &mut Vec<Bytes>) -> Result<(), CtlError> {
        if !self.partial.is_empty() || !self.cut.lines {
            self.emit(out);
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), CtlError> {
        if self.index < self.cut.skip {
            return Ok(());
        }
        if self.partial.len() + bytes.len() > self.cut.message_bytes_max {
            return Err(CtlError::MessageTooLong { index: self.index, max: self.cut.message_bytes_max });
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn emit(&mut self, out: &mut Vec<Bytes>) {
        if self.index >= self.cut.skip {
            out.push(Bytes::from(std::mem::take(&mut self.partial)));
        }
        self.index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(input: &[u8], piece: usize, lines: bool, skip: u64) -> Vec<Vec<u8>> {
        let cut = Cut { lines, skip, message_bytes_max: 100 };
        let mut splitter = Splitter { cut, index: 0, partial: Vec::new() };
        let mut out = Vec::new();
        for bytes in input.chunks(piece) {
            splitter.push(bytes, &mut out).unwrap();
        }
        splitter.finish(&mut out).unwrap();
        out.iter().map(|b| b.to_vec()).collect()
    }

    #[test]
    fn lines_are_cut_alike_however_they_arrive() {
        let input = b"one\n\n\0two\r\n\xff\xfe\nlast";
        let expected: Vec<&[u8]> = vec![b"one", b"", b"\0two\r", b"\xff\xfe", b"last"];
        for piece in 1..=input.len() {
            assert_eq!(split(input, piece, true, 0), expected, "pieces of {piece}");
            assert_eq!(split(input, piece, true, 3), expected[3..], "pieces of {piece}");
        }
        assert_eq!(split(b"", 1, true, 0), Vec::<Vec<u8>>::new());
        assert_eq!(split(b"\n", 1, true, 0), vec![b""]);
        assert_eq!(split(b"a\n", 1, true, 5), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_raw_input_is_one_message() {
        assert_eq!(split(b"a\nb\n", 3, false, 0), vec![b"a\nb\n"]);
        assert_eq!(split(b"", 3, false, 0), vec![b""]);
        assert_eq!(split(b"a", 3, false, 1), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_with_its_place() {
        let cut = Cut { lines: true, skip: 1, message_bytes_max: 3 };
        let mut splitter = Splitter { cut, index: 0, partial: Vec::new() };
        let mut out = Vec::new();
        let error = splitter.push(b"skipped\nabc\nabcd\n", &mut out).unwrap_err();
        assert!(matches!(error, CtlError::MessageTooLong { index: 2, max: 3 }), "{error}");
        assert_eq!(out, vec![Bytes::from("abc")]);
    }

    #[tokio::test]
    async fn batches_keep_to_their_limits_and_an_error_comes_last() {
        let (sender, groups) = mpsc::channel(4);
        let limits = BatchLimits { messages: 2, bytes: 100, attribute_bytes: 0 };
        let mut batches = Batches { groups, waiting: VecDeque::new(), failed: None, limits };
        let large = Bytes::from(vec![b'x'; 500]);
        let group =
            vec![Bytes::from("a"), Bytes::from("b"), Bytes::from("c"), large.clone(), Bytes::from("d")];
        sender.send(Ok(group)).await.unwrap();
        sender.send(Err(CtlError::MessageTooLong { index: 9, max: 1 })).await.unwrap();
        drop(sender);
        let mut seen = Vec::new();
        while let Some(batch) = batches.next().await {
            seen.push(batch.map_err(|e| e.exit_code()));
        }
        let expected = vec![
            Ok(vec![Bytes::from("a"), Bytes::from("b")]),
            Ok(vec![Bytes::from("c")]),
            Ok(vec![large]),
            Ok(vec![Bytes::from("d")]),
            Err(5),
        ];
        assert_eq!(seen, expected);
    }
}
