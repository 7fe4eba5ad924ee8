use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use prost::Message as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::admission::{Outflow, memory_of};
use crate::proto::v1::Message;

type Sender = tokio::sync::mpsc::UnboundedSender<Result<Held<Message>, Status>>;

/// Counts how often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Reading {
    outflow: Outflow,
    outlet: Outlet,
    answers: Sender,
    body: Body,
    wakes: Arc<Wakes>,
    /// Its watch ends with it.
    _bodies: Bodies,
}

impl Reading {
    fn start() -> Self {
        let outflow = Outflow::new(16 << 20);
        let outlet = outflow.outlet();
        let (answers, receiver) = tokio::sync::mpsc::unbounded_channel();
        let response = stream(UnboundedReceiverStream::new(receiver), outlet.clone());
        let leaving = response.extensions().get::<Leaving>().unwrap();
        let bodies = Bodies::new();
        let body = bodies.body(Body::empty(), leaving, None);
        Self { outflow, outlet, answers, body, wakes: Arc::default(), _bodies: bodies }
    }

    /// Sends an answer with a body of this many bytes; gives its gRPC frame.
    fn send(&self, bytes: usize) -> Vec<u8> {
        let body = (0..bytes).map(|at| (at / 7) as u8).collect();
        let value = Message { body, ..Message::default() };
        let mut frame = vec![0];
        frame.extend((value.encoded_len() as u32).to_be_bytes());
        value.encode(&mut frame).unwrap();
        let memory = self.outlet.try_take(memory_of(1, bytes as u64));
        assert!(memory.is_some());
        assert!(self.answers.send(Ok(Held { value, memory })).is_ok());
        frame
    }

    fn next(&mut self) -> Poll<Option<Frame<Bytes>>> {
        let waker = self.wakes.clone().into();
        let frame = Pin::new(&mut self.body).poll_frame(&mut Context::from_waker(&waker));
        frame.map(|frame| frame.map(Result::unwrap))
    }

    fn piece(&mut self) -> Option<Bytes> {
        match self.next() {
            Poll::Ready(Some(frame)) => frame.into_data().ok(),
            _ => None,
        }
    }
}

fn status(frame: Poll<Option<Frame<Bytes>>>) -> Status {
    let Poll::Ready(Some(frame)) = frame else { panic!("no frame") };
    Status::from_header_map(&frame.into_trailers().unwrap()).unwrap()
}

#[tokio::test]
async fn answers_pass_whole_and_their_memory_is_free_when_they_are_dropped() {
    let mut reading = Reading::start();
    for bytes in [10, PIECE_BYTES, 3 * PIECE_BYTES + 1, 1 << 20] {
        let frame = reading.send(bytes);
        let mut passed = Vec::new();
        while let Some(piece) = reading.piece() {
            assert!(piece.len() <= PIECE_BYTES);
            assert!(reading.outflow.used_bytes() >= piece.len() as u64);
            passed.extend_from_slice(&piece);
        }
        assert!(passed == frame, "{bytes}");
        assert_eq!(reading.outflow.used_bytes(), 0);
    }
    let Reading { answers, .. } = &mut reading;
    answers.send(Err(Status::aborted("why"))).unwrap();
    assert_eq!(status(reading.next()).message(), "why");
    assert!(matches!(reading.next(), Poll::Ready(None)));
}

#[tokio::test]
async fn only_so_much_is_in_the_hands_of_the_network() {
    let mut reading = Reading::start();
    reading.send(1 << 20);
    let mut out = Vec::new();
    while let Some(piece) = reading.piece() {
        out.push(piece);
    }
    assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), SEND_BYTES);
    assert_eq!(reading.wakes.0.load(Ordering::Relaxed), 0);
    out.remove(0);
    assert_eq!(reading.wakes.0.load(Ordering::Relaxed), 1);
    assert!(reading.piece().is_some());
    assert!(reading.outflow.used_bytes() > 1 << 20);
    // The client has gone; pieces outlive the body.
    drop((reading.body, reading.answers));
    assert_eq!(reading.outflow.used_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_while_others_wait_is_cut_off() {
    let mut reading = Reading::start();
    for _ in 0..7 {
        reading.send(1 << 20);
    }
    let out = [reading.piece().unwrap(), reading.piece().unwrap()];
    tokio::time::sleep(2 * STALLED_AFTER).await;
    assert!(!reading.answers.is_closed(), "nobody waits");
    let other = reading.outflow.outlet();
    let waiting = tokio::spawn(async move { other.wait(4 << 20).await });
    tokio::time::sleep(2 * LOOK_EVERY).await;
    assert!(reading.answers.is_closed(), "its task learns that it is over");
    drop(waiting.await.unwrap());
    assert_eq!((reading.outflow.used_bytes(), reading.outflow.cuts()), (SEND_BYTES as u64, 1));
    drop(out);
    assert_eq!(reading.outflow.used_bytes(), 0);
    assert_eq!(status(reading.next()).code(), tonic::Code::ResourceExhausted);
    assert!(matches!(reading.next(), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn who_gives_no_window_while_others_wait_is_cut_off_and_who_waits_for_answers_is_not() {
    // HTTP/2 does not ask for the answers of the first, not even for one, and waits for one of the second.
    let mut reading = [Reading::start(), Reading::start()];
    assert!(reading[1].next().is_pending());
    let (outflow, others) = (reading[0].outflow.clone(), reading[1].outflow.clone());
    reading[0].send(1 << 20);
    let waiting = [outflow.outlet(), others.outlet()].map(|outlet| {
        tokio::spawn(async move { drop((outlet.wait(8 << 20).await, outlet.wait(8 << 20).await)) })
    });
    let _all = others.outlet().try_take(8 << 20);
    tokio::time::sleep(2 * STALLED_AFTER).await;
    assert!(reading[0].answers.is_closed() && !reading[1].answers.is_closed());
    assert_eq!((outflow.cuts(), others.cuts()), (1, 0));
    assert_eq!(status(reading[0].next()).code(), tonic::Code::ResourceExhausted);
    waiting.iter().for_each(|task| task.abort());
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_is_not_cut_off() {
    let mut reading = Reading::start();
    let frame = reading.send(7 << 20);
    let other = reading.outflow.outlet();
    let waiting = tokio::spawn(async move { other.wait(4 << 20).await });
    let mut passed = 0;
    while passed < frame.len() {
        let piece = reading.piece().unwrap();
        tokio::time::sleep(STALLED_AFTER / 2).await;
        passed += piece.len();
    }
    assert_eq!(reading.outflow.cuts(), 0);
    waiting.await.unwrap();
}
