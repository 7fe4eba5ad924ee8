//! Acks, nacks and extensions between their protobuf form and the broker's.

use super::check::{at_most, invalid, required};
use super::status::Refusal;
use super::time;
use crate::broker::api::{AckId, Settlement};
use crate::core::types::{Ending, Settled};
use crate::limits::*;
use crate::proto::v1::ack_result::Status as Outcome;
use crate::proto::v1::nack_entry::Ending as WireEnding;
use crate::proto::v1::{AckResult, NackEntry};

/// Acks of these ids.
pub fn acks(ack_ids: Vec<impl Into<AckId>>) -> impl Iterator<Item = Settlement> {
    ack_ids.into_iter().map(|ack_id| Settlement { ack_id: ack_id.into(), ending: Ending::Ack })
}

/// The nacks of one request; `field` is their path.
pub fn nacks(field: &str, entries: Vec<NackEntry>) -> Result<Vec<Settlement>, Refusal> {
    entries.into_iter().enumerate().map(|(index, entry)| nack(&format!("{field}[{index}]"), entry)).collect()
}

fn nack(path: &str, entry: NackEntry) -> Result<Settlement, Refusal> {
    let missing = || invalid(format!("{path}.ending"), "is missing; set retry, release or reject");
    let ending = match required(path, entry.ending).map_err(|_| missing())? {
        WireEnding::Retry(retry) => {
            let field = format!("{path}.retry.");
            at_most(format!("{field}error"), "bytes", retry.error.len(), ERROR_TEXT_BYTES_MAX)?;
            let delay_us =
                |delay| time::duration_us(&format!("{field}delay"), &delay, 0..=RETRY_DELAY_US_MAX);
            Ending::Retry { delay_us: retry.delay.map(delay_us).transpose()?, error: retry.error }
        }
        WireEnding::Release(_) => Ending::Release,
        WireEnding::Reject(reject) => {
            at_most(format!("{path}.reject.error"), "bytes", reject.error.len(), ERROR_TEXT_BYTES_MAX)?;
            Ending::Reject { error: reject.error }
        }
    };
    Ok(Settlement { ack_id: entry.ack_id.into(), ending })
}

/// What became of each id, in order.
pub fn results(settled: Vec<Settled>) -> Vec<AckResult> {
    let result = |(index, settled): (usize, Settled)| {
        let (status, detail) = match settled {
            Settled::Ok => (Outcome::Ok, String::new()),
            Settled::Stale => (Outcome::Stale, String::new()),
            Settled::Invalid => (Outcome::Invalid, String::new()),
            Settled::Transient { why } => (Outcome::Transient, why),
            Settled::Refused { why } => (Outcome::Refused, why),
        };
        AckResult { index: index as u32, status: status.into(), detail }
    };
    settled.into_iter().enumerate().map(result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::nack_entry::{Reject, Release, Retry};

    fn entry(ending: Option<WireEnding>) -> NackEntry {
        NackEntry { ack_id: "id".into(), ending }
    }

    fn one(ending: WireEnding) -> Result<Ending, String> {
        let settlements = nacks("entries", vec![entry(Some(ending))]);
        settlements.map(|mut list| list.remove(0).ending).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn endings_are_read() {
        let delay = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        let retry = |delay, error: &str| one(WireEnding::Retry(Retry { delay, error: error.into() }));
        let read = |delay_us, error: &str| Ok(Ending::Retry { delay_us, error: error.to_owned() });
        assert_eq!(retry(delay, "oops"), read(Some(2_000_000), "oops"));
        assert_eq!(retry(Some(Default::default()), ""), read(Some(0), ""));
        assert_eq!(retry(None, ""), read(None, ""));
        assert_eq!(one(WireEnding::Release(Release {})), Ok(Ending::Release));
        let reject = one(WireEnding::Reject(Reject { error: "bad".into() }));
        assert_eq!(reject, Ok(Ending::Reject { error: "bad".into() }));
    }

    #[test]
    fn endings_are_checked() {
        let week = prost_types::Duration { seconds: 604_800, nanos: 1 };
        let late = one(WireEnding::Retry(Retry { delay: Some(week), error: String::new() }));
        let text = "entries[0].retry.delay: is 604800.000001 s; give 0 s to 604800 s";
        assert_eq!(late, Err(text.into()));
        let long = one(WireEnding::Reject(Reject { error: "e".repeat(1025) }));
        assert_eq!(long, Err("entries[0].reject.error has 1025 bytes; at most 1024 are allowed".into()));
        let long = one(WireEnding::Retry(Retry { delay: None, error: "e".repeat(1025) }));
        assert_eq!(long, Err("entries[0].retry.error has 1025 bytes; at most 1024 are allowed".into()));
        let none = nacks("nacks", vec![entry(Some(WireEnding::Release(Release {}))), entry(None)]);
        assert!(none.unwrap_err().to_string().starts_with("nacks[1].ending: is missing"));
    }

    #[test]
    fn results_keep_their_order() {
        let why = || "busy".to_owned();
        let settled = vec![
            Settled::Ok,
            Settled::Stale,
            Settled::Invalid,
            Settled::Transient { why: why() },
            Settled::Refused { why: why() },
        ];
        let results = results(settled);
        let statuses: Vec<i32> = results.iter().map(|result| result.status).collect();
        assert_eq!(statuses, [1, 2, 3, 4, 5]);
        assert_eq!(results[4], AckResult { index: 4, status: 5, detail: why() });
    }
}
