//! Tail streams.

use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::*;
use crate::broker::follow::{Followed, Gap, GapReason, Page, Position as From};
use crate::ids::QueueId;
use crate::observe::readiness::Phase;
use crate::proto::v1::tail_response::gap::Reason;
use crate::service::{tail, token};

const UID: Uid = Uid([1; 16]);

/// What the test tells the played broker: pages, by where they are asked for.
type Pages = Arc<Mutex<std::collections::BTreeMap<u64, Page>>>;

struct Played {
    end: watch::Sender<Offset>,
    pages: Pages,
    /// Where pages were asked for.
    asked: Arc<Mutex<Vec<u64>>>,
    begun: Arc<Mutex<Vec<From>>>,
    shared: Shared,
}

impl Played {
    /// A broker whose queue is durable up to an offset, and whose followers begin at 5.
    fn durable_to(end: u64) -> Self {
        let (end, pages) = (watch::Sender::new(Offset(end)), Pages::default());
        let asked = Arc::<Mutex<Vec<u64>>>::default();
        let begun = Arc::<Mutex<Vec<From>>>::default();
        let (ends, told, reads, begins) = (end.subscribe(), pages.clone(), asked.clone(), begun.clone());
        let broker = broker(move |call| match call {
            Call::Follow { from, reply, .. } => {
                begins.lock().unwrap().push(from);
                let followed = Followed { queue: QueueId(9), uid: UID, next: Offset(5), end: ends.clone() };
                reply.send(Ok(followed)).unwrap();
            }
            Call::ReadOn { queue, from, reply, .. } => {
                assert_eq!(queue, QueueId(9));
                reads.lock().unwrap().push(from.0);
                let page = told.lock().unwrap().get(&from.0).cloned();
                let page = page.map(|page| Fetched::Whole(Held::free(page)));
                let _ = reply.send(page.ok_or(BrokerError::QueueDeleted));
            }
            Call::Locate { time_us, reply, .. } => reply.send(Ok(Offset(time_us))).unwrap(),
            call => panic!("{call:?}"),
        });
        Self { end, pages, asked, begun, shared: shared(broker) }
    }

    fn page(&self, gap: Option<Gap>, messages: Vec<StoredMessage>) {
        let first = gap.map_or_else(|| messages[0].offset, |gap| gap.first);
        let next = messages.last().map_or_else(|| gap.unwrap().end, |last| last.offset.plus(1));
        self.pages.lock().unwrap().insert(first.0, Page { gap, messages, next });
    }

    async fn open(&self, request: v1::TailRequest) -> Result<Stream, Status> {
        let request = v1::TailRequest { queue: QUEUE.into(), ..request };
        let outlet = self.shared.outflow.outlet();
        Ok(Stream(tail::open(self.shared.clone(), outlet, request).await?))
    }
}

struct Stream(ReceiverStream<Result<Held<v1::TailResponse>, Status>>);

impl Stream {
    /// The offsets, the gap and the place behind the next answer.
    async fn next(&mut self) -> Result<(Vec<u64>, Option<(u64, u64, Reason)>, u64), Status> {
        let answer = self.0.next().await.expect("the stream has ended")?.value;
        let offsets = answer.messages.iter().map(|message| message.offset).collect();
        let gap = answer.gap.map(|gap| (gap.first_offset, gap.end_offset, gap.reason()));
        let (uid, next) = token::parse_resume_token(&answer.resume_token).unwrap();
        assert_eq!(uid, UID);
        Ok((offsets, gap, next.0))
    }
}

#[tokio::test]
async fn answers_tell_every_offset_once_and_where_to_go_on() {
    let played = Played::durable_to(5);
    let mut stream = played.open(v1::TailRequest::default()).await.unwrap();
    assert_eq!(*played.begun.lock().unwrap(), [From::Latest]);
    assert_eq!(stream.next().await.unwrap(), (vec![], None, 5));

    played.page(None, vec![stored(5, 1), stored(6, 1)]);
    played
        .page(Some(Gap { first: Offset(7), end: Offset(9), reason: GapReason::Purged }), vec![stored(9, 1)]);
    let unreadable = |offset| StoredMessage { meta: Bytes::from_static(b"\xff\xff"), ..stored(offset, 1) };
    played.page(None, vec![stored(10, 1), unreadable(11), stored(12, 1)]);
    played.page(None, vec![unreadable(11), stored(12, 1)]);
    played.page(None, vec![stored(12, 1)]);
    played.end.send_replace(Offset(13));
    let mut told = Vec::new();
    for _ in 0..5 {
        told.push(stream.next().await.unwrap());
    }
    let expected = [
        (vec![5, 6], None, 7),
        (vec![9], Some((7, 9, Reason::Purged)), 10),
        (vec![10], None, 11),
        (vec![], Some((11, 12, Reason::Lost)), 12),
        (vec![12], None, 13),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_tail_begins_where_it_was_asked_to() {
    use v1::position::Position;
    let played = Played::durable_to(5);
    let time = prost_types::Timestamp { seconds: 1, nanos: 0 };
    let places = [Position::Earliest(()), Position::Latest(()), Position::Offset(3), Position::Time(time)];
    for place in places {
        let start = Some(v1::Position { position: Some(place) });
        played.open(v1::TailRequest { start, ..Default::default() }).await.unwrap();
    }
    let resume_token = token::resume_token(UID, Offset(8));
    played.open(v1::TailRequest { resume_token, ..Default::default() }).await.unwrap();
    let offset = |offset| From::Offset(Offset(offset));
    let expected =
        [From::Earliest, From::Latest, offset(3), offset(1_000_000), From::OffsetOf(UID, Offset(8))];
    assert_eq!(*played.begun.lock().unwrap(), expected);

    let earliest = Some(v1::Position { position: Some(Position::Earliest(())) });
    let both = v1::TailRequest {
        start: earliest,
        resume_token: token::resume_token(UID, Offset(8)),
        ..Default::default()
    };
    let refused = [
        (v1::TailRequest { resume_token: "x".into(), ..Default::default() }, "INVALID_RESUME_TOKEN"),
        (both, "INVALID_FIELD"),
        (v1::TailRequest { filter: "f".into(), ..Default::default() }, "FIELD_NOT_BUILT"),
        (v1::TailRequest { start: Some(v1::Position::default()), ..Default::default() }, "INVALID_FIELD"),
    ];
    for (request, expected) in refused {
        let status = played.open(request).await.map(drop).unwrap_err();
        assert_eq!(reason(&status), expected, "{status:?}");
    }
}

#[tokio::test]
async fn pages_are_read_as_they_are_taken() {
    let played = Played::durable_to(1_000);
    (5..1_000).for_each(|offset| played.page(None, vec![stored(offset, 1)]));
    let mut stream = played.open(v1::TailRequest::default()).await.unwrap();
    for taken in 0..4 {
        // The task does all that it can before anything else is taken.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*played.asked.lock().unwrap(), (5..5 + taken).collect::<Vec<_>>());
        assert_eq!(stream.next().await.unwrap().2, 5 + taken);
    }
}

#[tokio::test]
async fn a_tail_ends_with_its_queue_and_with_the_server() {
    let played = Played::durable_to(5);
    let mut stream = played.open(v1::TailRequest::default()).await.unwrap();
    stream.next().await.unwrap();
    played.shared.readiness.set(Phase::Draining);
    let status = stream.next().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".to_owned()));
    assert!(stream.0.next().await.is_none());

    let Played { end, shared, .. } = Played::durable_to(5);
    let request = v1::TailRequest { queue: QUEUE.into(), ..Default::default() };
    let outlet = shared.outflow.outlet();
    let mut stream = Stream(tail::open(shared, outlet, request).await.unwrap());
    stream.next().await.unwrap();
    drop(end);
    let status = stream.next().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "QUEUE_NOT_FOUND".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_idle_tail_has_heartbeats_with_its_place() {
    let played = Played::durable_to(5);
    let mut stream = played.open(v1::TailRequest::default()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(stream.next().await.unwrap(), (vec![], None, 5));
    }
    assert!(played.asked.lock().unwrap().is_empty());
}
