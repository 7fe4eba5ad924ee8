//! What the clients of a run have sent, were told and got back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use forebay_testkit::payload::Random;

/// Bytes of each message.
pub const BODY_BYTES: usize = 3 << 20;
const SEED: u64 = 5;

/// Numbered messages, each with bytes of its own.
pub struct Ledger {
    /// Bodies are pieces of it.
    pool: Bytes,
    next: AtomicU64,
    acknowledged: Vec<AtomicBool>,
    received: Vec<AtomicBool>,
    /// Publishes that were refused for want of memory, and those whose outcome the kill left open.
    pub refused: AtomicU64,
    pub unknown: AtomicU64,
    /// Streams of slow consumers that the server ended.
    pub cut: AtomicU64,
}

impl Ledger {
    pub fn new(messages: u64) -> Self {
        let flags = || (0..messages).map(|_| AtomicBool::new(false)).collect();
        Self {
            pool: Random::new(SEED).bytes(2 * BODY_BYTES),
            next: AtomicU64::new(0),
            acknowledged: flags(),
            received: flags(),
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }
    }

    /// The next message to publish; none behind the last.
    pub fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.acknowledged.len() as u64).then_some(number)
    }

    /// Its number, then bytes that no other message has there.
    pub fn body(&self, number: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(BODY_BYTES);
        body.extend(number.to_le_bytes());
        body.extend(self.rest(number));
        body
    }

    fn rest(&self, number: u64) -> &[u8] {
        let from = Random::new(number).below(BODY_BYTES as u64) as usize;
        &self.pool[from..from + BODY_BYTES - 8]
    }

    pub fn acknowledge(&self, number: u64) {
        self.acknowledged[number as usize].store(true, Ordering::Relaxed);
    }

    /// Takes a message that came; an error if none like it was sent.
    pub fn receive(&self, body: &[u8]) -> Result<(), String> {
        let number = body.first_chunk().map_or(u64::MAX, |number| u64::from_le_bytes(*number));
        let Some(received) = self.received.get(number as usize) else {
            return Err(format!("a message of {} bytes came that nobody sent", body.len()));
        };
        if body[8..] != *self.rest(number) {
            return Err(format!("message {number} is not what was sent"));
        }
        received.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub fn acknowledged(&self) -> u64 {
        count(&self.acknowledged)
    }

    pub fn received(&self) -> u64 {
        count(&self.received)
    }

    /// Acknowledged messages that have not come.
    pub fn missing(&self) -> u64 {
        let is_missing = |(acknowledged, received): &(&AtomicBool, &AtomicBool)| {
            acknowledged.load(Ordering::Relaxed) && !received.load(Ordering::Relaxed)
        };
        self.acknowledged.iter().zip(&self.received).filter(is_missing).count() as u64
    }
}

fn count(flags: &[AtomicBool]) -> u64 {
    flags.iter().filter(|flag| flag.load(Ordering::Relaxed)).count() as u64
}
