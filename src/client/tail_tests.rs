//! The numbers of a publisher, against answers that the test makes up.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::ErrorDetails;

use super::*;
use crate::proto::v1::CallError;

type Receipts = Vec<oneshot::Receiver<Result<PublishResponse, ClientError>>>;

fn place() -> [OwnedSemaphorePermit; 2] {
    let places = Arc::new(Semaphore::new(2));
    [0; 2].map(|_| places.clone().try_acquire_owned().unwrap())
}

/// (queue, epoch, sequence) of what is sent.
fn numbers(request: &PublishStreamRequest) -> (String, u64, u64) {
    let publish = request.publish.as_ref().unwrap();
    let producer = publish.producer.as_ref().unwrap();
    (publish.queue.clone(), producer.epoch, producer.sequence)
}

fn push(tail: &mut Tail, queue: &str, receipts: &mut Receipts) -> PublishStreamRequest {
    let (reply, receipt) = oneshot::channel();
    receipts.push(receipt);
    let publish = PublishRequest { queue: queue.to_owned(), ..PublishRequest::default() };
    tail.push(New { publish, reply, _place: place() })
}

fn stored(request: &PublishStreamRequest) -> PublishStreamResponse {
    let result = Some(Answer::Response(PublishResponse::default()));
    PublishStreamResponse { correlation_id: request.correlation_id, result }
}

fn refused(request: &PublishStreamRequest, code: Code, reason: &str) -> PublishStreamResponse {
    let details = ErrorDetails::with_error_info(reason, "forebay", []);
    let status = Status::with_error_details(code, "no", details);
    let (code, message) = (code.into(), status.message().to_owned());
    let result = Some(Answer::Error(CallError { code, message, status: status.details().to_vec().into() }));
    PublishStreamResponse { correlation_id: request.correlation_id, result }
}

fn resent(next: Next) -> Vec<PublishStreamRequest> {
    match next {
        Next::Resend(requests) => requests,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_queue_counts_for_itself_without_gaps() {
    let (mut tail, mut receipts) = (Tail::new("p".into()), Receipts::new());
    let sent: Vec<_> = ["a", "b", "a", "a", "b"].map(|queue| push(&mut tail, queue, &mut receipts)).into();
    let numbers: Vec<_> = sent.iter().map(numbers).collect();
    let expected = [("a", 1, 1), ("b", 2, 1), ("a", 1, 2), ("a", 1, 3), ("b", 2, 2)];
    assert_eq!(numbers, expected.map(|(queue, epoch, sequence)| (queue.to_owned(), epoch, sequence)));
    assert!(matches!(tail.answer(stored(&sent[0])), Next::GoOn));
    assert!(receipts[0].try_recv().unwrap().is_ok());
    // On a new stream the rest is sent under the same numbers, in the same order.
    let again: Vec<_> = tail.all().iter().map(self::numbers).collect();
    assert_eq!(again, numbers[1..]);
    // Answers that were on their way on the old stream are not for these.
    assert!(matches!(tail.answer(stored(&sent[1])), Next::GoOn));
    assert!(receipts[1].try_recv().is_err());
}

#[test]
fn what_follows_a_refused_request_is_renumbered() {
    let (mut tail, mut receipts) = (Tail::new("p".into()), Receipts::new());
    let sent: Vec<_> = ["a", "a", "b", "a"].map(|queue| push(&mut tail, queue, &mut receipts)).into();
    let again = resent(tail.answer(refused(&sent[0], Code::InvalidArgument, "INVALID_FIELD")));
    let error = receipts[0].try_recv().unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Refused(why) if why.reason == "INVALID_FIELD"));
    assert_eq!(again.iter().map(numbers).collect::<Vec<_>>(), [("a".into(), 3, 1), ("a".into(), 3, 2)]);
    // The gaps that the old numbers ran into are old news.
    for old in [&sent[1], &sent[3]] {
        assert!(matches!(tail.answer(refused(old, Code::Aborted, "SEQUENCE_GAP")), Next::GoOn));
    }
    for request in [&sent[2], &again[0], &again[1]] {
        tail.answer(stored(request));
    }
    assert!(tail.is_empty());
    assert_eq!(numbers(&push(&mut tail, "a", &mut receipts)), ("a".into(), 3, 3));
}

#[test]
fn a_forgotten_producer_begins_anew_unless_something_may_be_stored() {
    let (mut tail, mut receipts) = (Tail::new("p".into()), Receipts::new());
    let first = push(&mut tail, "a", &mut receipts);
    tail.answer(stored(&first));
    let second = push(&mut tail, "a", &mut receipts);
    let again = resent(tail.answer(refused(&second, Code::Aborted, "SEQUENCE_GAP")));
    assert_eq!(again.iter().map(numbers).collect::<Vec<_>>(), [("a".into(), 2, 1)]);
    tail.answer(stored(&again[0]));
    assert!(receipts[1].try_recv().unwrap().is_ok());
    push(&mut tail, "a", &mut receipts);
    let third = tail.all().remove(0);
    assert_eq!(resent(tail.answer(refused(&third, Code::Aborted, "SEQUENCE_GAP"))), []);
    assert!(receipts[2].try_recv().unwrap().is_err());
}

#[test]
fn what_can_be_tried_again_keeps_its_numbers() {
    let (mut tail, mut receipts) = (Tail::new("p".into()), Receipts::new());
    let sent = push(&mut tail, "a", &mut receipts);
    let next = tail.answer(refused(&sent, Code::Unavailable, "DRAINING"));
    assert!(matches!(next, Next::BackOff(status) if status.code() == Code::Unavailable));
    assert_eq!(tail.all().iter().map(numbers).collect::<Vec<_>>(), [("a".into(), 1, 1)]);
    assert!(!tail.is_forgotten());
    receipts.clear();
    assert!(tail.is_forgotten());
}

#[test]
fn an_error_of_the_stream_is_the_first_requests() {
    let (mut tail, mut receipts) = (Tail::new("p".into()), Receipts::new());
    assert!(!tail.refuse_first(Status::invalid_argument("no")));
    push(&mut tail, "a", &mut receipts);
    push(&mut tail, "a", &mut receipts);
    assert!(tail.refuse_first(Status::invalid_argument("no")));
    assert!(receipts[0].try_recv().unwrap().is_err());
    assert_eq!(tail.all().iter().map(numbers).collect::<Vec<_>>(), [("a".into(), 2, 1)]);
}

#[test]
fn lines_are_bounded_and_a_dropped_one_has_a_higher_epoch() {
    let (mut tail, mut receipts) = (Tail::new("p".into()), Receipts::new());
    for queue in 0..2 * LINES_MAX {
        let sent = push(&mut tail, &format!("q{queue}"), &mut receipts);
        if queue > 0 {
            tail.answer(stored(&sent));
        }
        assert!(tail.lines.len() <= LINES_MAX);
    }
    let epoch = numbers(&push(&mut tail, "q1", &mut receipts)).1;
    assert_eq!(epoch, 2 * LINES_MAX as u64 + 1);
    assert_eq!(numbers(&push(&mut tail, "q0", &mut receipts)), ("q0".into(), 1, 2));
}
