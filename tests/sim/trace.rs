//! What happened in a run, as one number and, if wished, as lines.

use std::fmt;

/// Set to print what happens in a run.
pub const TRACE: &str = "FOREBAY_SIM_TRACE";

/// The events of a run, hashed in order (FNV-1a).
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    pub events: u64,
    print: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, events: 0, print: std::env::var_os(TRACE).is_some() }
    }
}

impl Trace {
    pub fn note(&mut self, event: fmt::Arguments<'_>) {
        if self.print {
            println!("{:>8} {event}", self.events);
        }
        self.events += 1;
        // Formatting to a hash never fails.
        let _ = fmt::write(self, event);
        self.mix(b'\n');
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, byte: u8) {
        self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.mix(byte));
        Ok(())
    }
}
