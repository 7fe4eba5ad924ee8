//! The window against a model of a server whose network reorders and loses requests and answers.

use std::collections::HashMap;

use forebay::proto::v1::PublishResult;
use tonic_types::{ErrorDetails, StatusExt};

use super::*;

const PATIENCE: Duration = Duration::from_secs(3600);

/// Small numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % sides as u64).unwrap()
    }
}

/// What the API says of a producer's requests.
#[derive(Default)]
struct Server {
    stored: Vec<Bytes>,
    answers: Vec<PublishResponse>,
}

impl Server {
    fn publish(&mut self, sequence: u64, bodies: &[Bytes]) -> Result<PublishResponse, Status> {
        let next = self.answers.len() as u64 + 1;
        if sequence > next {
            return Err(with_reason(Code::Aborted, "SEQUENCE_GAP", None));
        }
        if sequence == next {
            let results = (0..bodies.len()).map(|index| PublishResult {
                offset: (self.stored.len() + index) as u64,
                ..PublishResult::default()
            });
            self.answers.push(PublishResponse { results: results.collect(), ..PublishResponse::default() });
            self.stored.extend_from_slice(bodies);
        }
        Ok(self.answers[usize::try_from(sequence).unwrap() - 1].clone())
    }
}

fn with_reason(code: Code, reason: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "forebay", HashMap::new());
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, "refused", details)
}

fn response(count: usize) -> PublishResponse {
    PublishResponse { results: vec![PublishResult::default(); count], ..PublishResponse::default() }
}

#[test]
fn whatever_the_network_does_each_message_is_stored_once_and_in_order() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let in_flight_max = 1 + dice.roll(8);
        let batches: Vec<Vec<Bytes>> =
            (0..40).map(|i| (0..=i % 3).map(|j| Bytes::from(format!("{i}.{j}"))).collect()).collect();
        let (mut server, mut window) = (Server::default(), Window::new(PATIENCE));
        let (mut on_the_way, mut published) = (Vec::new(), Vec::new());
        let mut input = batches.iter();
        let mut retry = false;
        loop {
            while window.len() < in_flight_max && window.takes_more() {
                let Some(batch) = input.next() else { break };
                on_the_way.push(window.push(batch.clone()));
            }
            if std::mem::take(&mut retry) {
                on_the_way.extend(window.retry());
            }
            if on_the_way.is_empty() {
                break;
            }
            let sequence = on_the_way.swap_remove(dice.roll(on_the_way.len()));
            let bodies = window.bodies(sequence).to_vec();
            let result = match dice.roll(10) {
                0 => Err(Status::unknown("lost on the way there")),
                1 => server.publish(sequence, &bodies).and(Err(Status::unavailable("lost on the way back"))),
                2 => {
                    Err(with_reason(Code::ResourceExhausted, "RATE_LIMITED", Some(Duration::from_millis(1))))
                }
                _ => server.publish(sequence, &bodies),
            };
            let outcome = window.answered(sequence, result);
            assert!(outcome.failed.is_none(), "seed {seed}: {outcome:?}");
            on_the_way.extend(outcome.resend);
            retry |= outcome.wait.is_some();
            published.extend(outcome.published.into_iter().flat_map(|(bodies, _)| bodies));
        }
        assert_eq!(window.len(), 0, "seed {seed}");
        assert_eq!(server.stored, batches.concat(), "seed {seed}");
        assert_eq!(published, server.stored, "seed {seed}");
    }
}

#[test]
fn a_final_failure_is_reported_after_what_was_before_it() {
    let mut window = Window::new(PATIENCE);
    let sequences: Vec<u64> = (0..4).map(|i| window.push(vec![Bytes::from(vec![i])])).collect();
    let refused = || with_reason(Code::InvalidArgument, "LIMIT_EXCEEDED", None);
    let outcome = window.answered(sequences[1], Err(refused()));
    assert!(outcome.failed.is_none() && !window.takes_more());
    let gap = with_reason(Code::Aborted, "SEQUENCE_GAP", None);
    assert!(window.answered(sequences[2], Err(gap)).resend.is_empty());
    let outcome = window.answered(sequences[0], Ok(response(1)));
    assert_eq!(outcome.published.len(), 1);
    assert_eq!(outcome.failed.unwrap().exit_code(), 5);
    assert!(outcome.resend.is_empty());
}

#[test]
fn a_gap_at_the_front_is_final() {
    let mut window = Window::new(PATIENCE);
    let gap = || with_reason(Code::Aborted, "SEQUENCE_GAP", None);
    let (first, second) = (window.push(vec![Bytes::new()]), window.push(vec![Bytes::new()]));
    assert!(window.answered(second, Err(gap())).resend.is_empty());
    assert_eq!(window.answered(first, Ok(response(1))).resend, [second]);
    assert_eq!(window.answered(second, Err(gap())).failed.unwrap().exit_code(), 4);
}

#[test]
fn patience_ends_and_an_answer_renews_it() {
    let mut window = Window::new(Duration::ZERO);
    let first = window.push(vec![Bytes::new()]);
    assert_eq!(window.answered(first, Err(Status::unavailable("down"))).failed.unwrap().exit_code(), 6);

    let mut window = Window::new(PATIENCE);
    let first = window.push(vec![Bytes::new()]);
    assert!(window.answered(first, Err(Status::unavailable("down"))).wait.is_some());
    assert!(!window.takes_more());
    assert_eq!(window.retry(), Some(first));
    assert_eq!(window.answered(first, Ok(response(1))).published.len(), 1);
    assert!(window.takes_more());
}

#[test]
fn an_answer_with_another_count_is_no_success() {
    let mut window = Window::new(PATIENCE);
    let first = window.push(vec![Bytes::new(), Bytes::new()]);
    let outcome = window.answered(first, Ok(response(1)));
    assert!(outcome.published.is_empty() && outcome.failed.is_some());
}
