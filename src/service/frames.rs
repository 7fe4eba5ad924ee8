//! The frames that a client sends, as far as their headers say what they are for.
//!
//! ```text
//! connection  preface (24 bytes), then frames
//! frame       payload length u24, type u8, flags u8, stream u32 (all big-endian), payload
//! ```
//! 1. What brings nothing is paid from an allowance, in bytes: PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE, GOAWAY,
//!    frames of unknown types, and DATA that is empty and ends nothing. Each costs [`FRAME_COST`] and its payload.
//! 2. The allowance grows by the bytes of DATA that come and by the bytes that the server writes, so that clients who work
//!    may ask for more windows, measure round trips and give up calls as often as that takes; and by [`REFILL_PER_S`].
//!    It is never more than [`ALLOWANCE_MAX`]: 4,096 such frames at once.
//! 3. Who has used it up is flooding: [`Flood`] ends the connection.
//! 4. It is told whether the client is in the middle of what must not take long: its preface and first frame, or the
//!    headers of a request.
//!
//! Not repeated is what h2 bounds: CONTINUATION frames and the size of a header list, requests that are reset before
//! they are served (32) or refused (512), small frames of DATA that nobody has read, more streams than are allowed.
//! Nothing is checked here that h2 checks too; where bytes make no sense h2 ends the connection.

use tokio::time::Instant;

/// What a frame that brings nothing costs besides its payload, bytes.
const FRAME_COST: i64 = 64;
/// The allowance of a new connection, and its most.
const ALLOWANCE_MAX: i64 = 256 << 10;
/// What it grows by in a second, bytes: 256 frames.
const REFILL_PER_S: i64 = 16 << 10;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// A client sends too many frames that bring nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many HTTP/2 frames that bring nothing, the last of type {kind}")]
pub struct Flood {
    kind: u8,
}

/// Where in the bytes of a connection its client is.
#[derive(Debug)]
enum At {
    /// Inside the preface, of which so many bytes are missing.
    Preface(usize),
    /// Inside the header of a frame.
    Head { seen: [u8; HEAD_BYTES], count: usize },
    /// Inside a payload, of which so many bytes are missing.
    Payload(usize),
}

const BETWEEN: At = At::Head { seen: [0; HEAD_BYTES], count: 0 };

/// Looks at the frames of one connection. See the module's header.
#[derive(Debug)]
pub struct Frames {
    at: At,
    /// Frames that have come whole, as far as it matters: none, or some.
    has_begun: bool,
    /// A header block has begun, and its last frame has not been whole.
    in_headers: bool,
    /// Header blocks that have begun.
    blocks: u64,
    /// The frame that is coming is the last one of its header block.
    ends_headers: bool,
    allowance: i64,
    refilled: Instant,
}

impl Frames {
    pub fn new() -> Self {
        Self {
            at: At::Preface(PREFACE_BYTES),
            has_begun: false,
            in_headers: false,
            blocks: 0,
            ends_headers: false,
            allowance: ALLOWANCE_MAX,
            refilled: Instant::now(),
        }
    }

    /// What the client is in the middle of: its preface and first frame (0), or the headers of a request, each with a number
    /// of its own.
    pub fn pressing(&self) -> Option<u64> {
        (!self.has_begun || self.in_headers).then_some(self.blocks)
    }

    /// Header blocks that have begun.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes went to the client.
    pub fn wrote(&mut self, bytes: usize) {
        self.earn(bytes);
    }

    /// Bytes came from the client.
    pub fn came(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Preface(missing) => {
                    let take = bytes.len().min(*missing);
                    (*missing, bytes) = (*missing - take, &bytes[take..]);
                    if *missing == 0 {
                        self.at = BETWEEN;
                    }
                }
                At::Head { seen, count } => {
                    let take = bytes.len().min(HEAD_BYTES - *count);
                    seen[*count..*count + take].copy_from_slice(&bytes[..take]);
                    (*count, bytes) = (*count + take, &bytes[take..]);
                    if *count == HEAD_BYTES {
                        let head = *seen;
                        self.begin(head)?;
                    }
                }
                At::Payload(missing) => {
                    let take = bytes.len().min(*missing);
                    (*missing, bytes) = (*missing - take, &bytes[take..]);
                    if *missing == 0 {
                        self.end();
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, [l0, l1, l2, kind, flags, ..]: [u8; HEAD_BYTES]) -> Result<(), Flood> {
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        self.ends_headers = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
        match kind {
            HEADERS => {
                self.in_headers = true;
                self.blocks += 1;
            }
            CONTINUATION => {}
            DATA if length > 0 => self.earn(length),
            DATA if flags & END_STREAM != 0 => {}
            _ => self.pay(kind, length)?,
        }
        self.at = At::Payload(length);
        if length == 0 {
            self.end();
        }
        Ok(())
    }

    /// A frame is whole.
    fn end(&mut self) {
        self.has_begun = true;
        if std::mem::take(&mut self.ends_headers) {
            self.in_headers = false;
        }
        self.at = BETWEEN;
    }

    fn earn(&mut self, bytes: usize) {
        // Frames and writes are far below 4 GiB.
        self.allowance = (self.allowance + bytes as i64).min(ALLOWANCE_MAX);
    }

    fn pay(&mut self, kind: u8, length: usize) -> Result<(), Flood> {
        self.allowance -= FRAME_COST + length as i64;
        if self.allowance < 0 {
            // The clock is read only here: it adds little to what work brings.
            let grown = self.refilled.elapsed().as_secs_f64() * REFILL_PER_S as f64;
            (self.allowance, self.refilled) =
                ((self.allowance + grown as i64).min(ALLOWANCE_MAX), Instant::now());
        }
        if self.allowance < 0 { Err(Flood { kind }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = (payload as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend(vec![0; payload]);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        frames.came(&[0; PREFACE_BYTES]).unwrap();
        frames
    }

    /// How many frames pass until one is too many, up to a bound.
    fn passing(frames: &mut Frames, bytes: &[u8], most: usize) -> usize {
        (0..most).position(|_| frames.came(bytes).is_err()).unwrap_or(most)
    }

    #[tokio::test(start_paused = true)]
    async fn however_it_is_cut_what_presses_is_known() {
        let block = [frame(HEADERS, 0, 10), frame(CONTINUATION, 0, 0), frame(CONTINUATION, END_HEADERS, 3)];
        let bytes = [vec![0; PREFACE_BYTES], frame(4, 0, 6), block.concat(), frame(DATA, 0, 100)].concat();
        let (first, last) = (PREFACE_BYTES + 15, PREFACE_BYTES + 15 + 19 + 9 + 12);
        for chunk in [1, 2, 7, 100, bytes.len()] {
            let mut frames = Frames::new();
            let mut came = 0;
            for part in bytes.chunks(chunk) {
                frames.came(part).unwrap();
                came += part.len();
                // The header of a frame says what it is.
                let in_headers = (first + HEAD_BYTES..last).contains(&came);
                assert_eq!(
                    frames.pressing().is_some(),
                    came < first || in_headers,
                    "at {came} in chunks of {chunk}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_brings_nothing_is_bounded() {
        for (kind, flags, payload) in
            [(PING, 0, 8), (4, 0, 0), (2, 0, 5), (3, 0, 4), (8, 0, 4), (DATA, 0, 0), (99, 0, 0)]
        {
            let (mut frames, bytes) = (begun(), frame(kind, flags, payload));
            let passed = passing(&mut frames, &bytes, 10_000);
            assert_eq!(passed as i64, ALLOWANCE_MAX / (FRAME_COST + payload as i64), "type {kind}");
            assert_eq!(frames.came(&bytes), Err(Flood { kind }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_works_may_send_more() {
        let ping = frame(PING, 0, 8);
        let mut frames = begun();
        let both = [frame(DATA, 0, 72), ping.clone()].concat();
        assert_eq!(passing(&mut frames, &both, 100_000), 100_000, "as much as its requests bring");
        let mut frames = begun();
        for _ in 0..100_000 {
            frames.wrote(72);
            frames.came(&ping).unwrap();
        }
        let mut frames = begun();
        for kind in [HEADERS, CONTINUATION] {
            assert_eq!(passing(&mut frames, &frame(kind, END_HEADERS, 50), 10_000), 10_000, "not counted");
        }
        assert_eq!(passing(&mut frames, &frame(DATA, END_STREAM, 0), 10_000), 10_000, "the end of a request");
        // Answers to pings alone do not pay for pings.
        let mut frames = begun();
        let flood = (0..100_000).position(|_| {
            frames.wrote(17);
            frames.came(&ping).is_err()
        });
        assert!(flood.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_ones_pass_for_ever() {
        let (mut frames, ping) = (begun(), frame(PING, 0, 8));
        assert!(passing(&mut frames, &ping, 10_000) < 10_000);
        for _ in 0..10_000 {
            tokio::time::advance(Duration::from_millis(5)).await;
            frames.came(&ping).unwrap();
        }
    }
}
