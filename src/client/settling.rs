//! How deliveries have ended, until the server has said that it knows.
//!
//! 1. An ending is sent until it is answered: again on the next stream, and later if the server could not do it now.
//!    A repeated one does no harm.
//! 2. An id that the server does not take any more is done: the message is finished, or with another consumer.
//! 3. A rejection that the server refuses (there is no dead-letter queue to go to) becomes a retry.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::consumer::Ending;
use crate::limits::{ACK_IDS_MAX, OTHER_REQUEST_BYTES_MAX};
use crate::proto::v1::ack_result::Status as Outcome;
use crate::proto::v1::nack_entry::{Ending as Wire, Reject, Release, Retry};
use crate::proto::v1::subscribe_request::Acks;
use crate::proto::v1::subscribe_response::AckResults;
use crate::proto::v1::{AckResult, NackEntry};

/// What an ending takes in a request besides its id and error: tags, lengths, a delay.
const ENVELOPE_BYTES: usize = 48;

/// A delivery that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ended {
    ack_id: String,
    ending: Ending,
}

impl Ended {
    /// What it may take in a request.
    fn bytes_max(&self) -> usize {
        let error = match &self.ending {
            Ending::Reject { error } => error.len(),
            _ => 0,
        };
        ENVELOPE_BYTES + self.ack_id.len() + error
    }
}

/// What waits for the results of one Acks.
#[derive(Debug)]
enum Sent {
    /// Acks first, then the rest.
    Endings(Vec<Ended>),
    Extensions {
        ack_ids: Vec<String>,
        at: Instant,
    },
}

/// What became of leases that were to be extended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// Extended, counted from the time of the request.
    pub kept: Vec<(String, Instant)>,
    pub lost: Vec<String>,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Settling {
    ready: Vec<Ended>,
    later: Vec<Ended>,
    sent: HashMap<u64, Sent>,
    correlation_id: u64,
}

impl Settling {
    /// Adds an ending to send.
    pub fn add(&mut self, ack_id: String, ending: Ending) {
        self.ready.push(Ended { ack_id, ending });
    }

    /// Whether every ending is answered.
    pub fn is_done(&self) -> bool {
        let endings = self.sent.values().any(|sent| matches!(sent, Sent::Endings(_)));
        self.ready.is_empty() && self.later.is_empty() && !endings
    }

    /// Whether endings wait for [`Settling::retry`].
    pub fn has_later(&self) -> bool {
        !self.later.is_empty()
    }

    /// Sends again what the server could not do.
    pub fn retry(&mut self) {
        self.ready.append(&mut self.later);
    }

    /// The stream is a new one: what was not answered is sent again.
    pub fn reconnected(&mut self) {
        for sent in std::mem::take(&mut self.sent).into_values() {
            if let Sent::Endings(endings) = sent {
                self.ready.extend(endings);
            }
        }
        self.retry();
    }

    /// Endings to send now, if there are any.
    pub fn next(&mut self) -> Option<Acks> {
        if self.ready.is_empty() {
            return None;
        }
        let mut endings: Vec<Ended> = self.ready.drain(..self.count_together()).collect();
        endings.sort_by_key(|ended| ended.ending != Ending::Ack);
        let (mut ack_ids, mut nacks) = (Vec::new(), Vec::new());
        for Ended { ack_id, ending } in endings.iter().cloned() {
            match wire(ending) {
                None => ack_ids.push(ack_id),
                ending => nacks.push(NackEntry { ack_id, ending }),
            }
        }
        let correlation_id = self.keep(Sent::Endings(endings));
        Some(Acks { correlation_id, ack_ids, nacks, ..Acks::default() })
    }

    /// How many of those that are ready fit one request, at least one.
    fn count_together(&self) -> usize {
        let mut left = OTHER_REQUEST_BYTES_MAX;
        let fits = |ended: &&Ended| {
            let rest = left.checked_sub(ended.bytes_max());
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        self.ready.iter().take(ACK_IDS_MAX).take_while(fits).count().max(1)
    }

    /// A request to let leases last this long from now.
    pub fn extend(&mut self, ack_ids: Vec<String>, lease: Duration, now: Instant) -> Acks {
        let correlation_id = self.keep(Sent::Extensions { ack_ids: ack_ids.clone(), at: now });
        let extend_lease = Some(duration(lease));
        Acks { correlation_id, extend_ack_ids: ack_ids, extend_lease, ..Acks::default() }
    }

    fn keep(&mut self, sent: Sent) -> u64 {
        self.correlation_id += 1;
        self.sent.insert(self.correlation_id, sent);
        self.correlation_id
    }

    /// Takes results.
    pub fn results(&mut self, results: AckResults) -> Extended {
        let mut extended = Extended::default();
        match self.sent.remove(&results.correlation_id) {
            None => {}
            Some(Sent::Endings(endings)) => {
                let results = results.acks.iter().chain(&results.nacks);
                endings.into_iter().zip(results).for_each(|(ended, result)| self.ended(ended, result));
            }
            Some(Sent::Extensions { ack_ids, at }) => {
                for (ack_id, result) in ack_ids.into_iter().zip(&results.extensions) {
                    match result.status() {
                        Outcome::Ok => extended.kept.push((ack_id, at)),
                        // The next extension comes well before the end.
                        Outcome::Transient => {}
                        _ => extended.lost.push(ack_id),
                    }
                }
            }
        }
        extended
    }

    fn ended(&mut self, ended: Ended, result: &AckResult) {
        match (result.status(), &ended.ending) {
            (Outcome::Transient, _) => self.later.push(ended),
            (Outcome::Refused, Ending::Reject { .. }) => {
                self.later.push(Ended { ending: Ending::Retry { delay: None }, ..ended });
            }
            _ => {}
        }
    }
}

/// The ending of a nack; none is an ack.
pub fn wire(ending: Ending) -> Option<Wire> {
    match ending {
        Ending::Ack => None,
        Ending::Retry { delay } => {
            Some(Wire::Retry(Retry { delay: delay.map(duration), error: String::new() }))
        }
        Ending::Release => Some(Wire::Release(Release {})),
        Ending::Reject { error } => Some(Wire::Reject(Reject { error })),
    }
}

pub fn duration(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: duration.subsec_nanos() as i32 }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::v1::SubscribeRequest;
    use crate::proto::v1::subscribe_request::Request;

    fn results(correlation_id: u64, acks: &[Outcome], nacks: &[Outcome]) -> AckResults {
        let list = |outcomes: &[Outcome]| {
            outcomes
                .iter()
                .map(|&status| AckResult { status: status.into(), ..AckResult::default() })
                .collect()
        };
        AckResults { correlation_id, acks: list(acks), nacks: list(nacks), extensions: list(acks) }
    }

    #[test]
    fn endings_travel_together_acks_first() {
        let mut settling = Settling::default();
        settling.add("a".into(), Ending::Release);
        settling.add("b".into(), Ending::Ack);
        settling.add("c".into(), Ending::Reject { error: "bad".into() });
        let acks = settling.next().unwrap();
        assert_eq!((acks.ack_ids, acks.nacks.len()), (vec!["b".to_owned()], 2));
        assert!(settling.next().is_none() && !settling.is_done());
        settling.results(results(acks.correlation_id, &[Outcome::Transient], &[Outcome::Stale, Outcome::Ok]));
        settling.retry();
        let acks = settling.next().unwrap();
        assert_eq!((acks.ack_ids, acks.nacks.len()), (vec!["b".to_owned()], 0));
        settling.results(results(acks.correlation_id, &[Outcome::Ok], &[]));
        assert!(settling.is_done());
    }

    #[test]
    fn what_could_not_be_done_is_sent_later_and_what_was_lost_is_sent_again() {
        let mut settling = Settling::default();
        settling.add("a".into(), Ending::Ack);
        settling.add("b".into(), Ending::Reject { error: String::new() });
        let first = settling.next().unwrap();
        settling.results(results(first.correlation_id, &[Outcome::Transient], &[Outcome::Refused]));
        assert!(settling.has_later() && settling.next().is_none());
        settling.retry();
        let second = settling.next().unwrap();
        assert_eq!(second.ack_ids, ["a"]);
        let retry = Some(Wire::Retry(Retry::default()));
        assert_eq!(second.nacks, [NackEntry { ack_id: "b".into(), ending: retry }]);
        settling.reconnected();
        let third = settling.next().unwrap();
        assert_eq!((third.ack_ids, third.nacks), (second.ack_ids, second.nacks));
        // An answer of the old stream is nobody's.
        settling.results(results(second.correlation_id, &[Outcome::Ok], &[Outcome::Ok]));
        assert!(!settling.is_done());
        settling.results(results(third.correlation_id, &[Outcome::Ok], &[Outcome::Ok]));
        assert!(settling.is_done());
    }

    #[test]
    fn long_errors_are_spread_over_requests() {
        let mut settling = Settling::default();
        for at in 0..2_500 {
            settling.add(format!("{at:050}"), Ending::Reject { error: "e".repeat(1_024) });
        }
        let mut counts = Vec::new();
        while let Some(acks) = settling.next() {
            assert!(SubscribeRequest { request: Some(Request::Acks(acks.clone())) }.encoded_len() <= 1 << 20);
            counts.push(acks.nacks.len());
        }
        assert_eq!((counts.len(), counts.iter().sum::<usize>()), (3, 2_500), "{counts:?}");
        for at in 0..ACK_IDS_MAX {
            settling.add(format!("{at:050}"), Ending::Ack);
        }
        assert_eq!(settling.next().unwrap().ack_ids.len(), ACK_IDS_MAX);
    }

    #[test]
    fn extensions_say_which_leases_are_kept() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        let ids = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let acks = settling.extend(ids, Duration::from_millis(1_500), now);
        assert_eq!(acks.extend_lease, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));
        assert!(settling.is_done(), "an extension holds nobody up");
        let outcomes = [Outcome::Ok, Outcome::Stale, Outcome::Transient, Outcome::Invalid];
        let extended = settling.results(results(acks.correlation_id, &outcomes, &[]));
        let lost = vec!["b".to_owned(), "d".to_owned()];
        assert_eq!(extended, Extended { kept: vec![("a".into(), now)], lost });
    }
}
