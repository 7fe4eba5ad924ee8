//! The gRPC messages of a request's stream, taken out of HTTP/2's frames as they lie.
//!
//! ```text
//! message  compressed flag u8 (0), length u32 big-endian, protobuf
//! ```
//! 1. Memory for a message is taken from the budget when its length is known, before room is made for it. While memory
//!    is short nothing is read, and HTTP/2's window holds the sender back. Of the frame that was read last the rest is
//!    kept meanwhile; where that would be too much with those of others, the stream ends.
//! 2. A message that has memory and of which little comes for a while ends the stream if others wait for memory.
//! 3. A message that lies within one frame is a part of that frame: nothing is copied. Only what is cut by a frame's end
//!    is put together, in room of its own.
//! 4. A frame stays in memory as long as one of its messages does. Clients send what they have in frames of up to 1 MiB,
//!    and messages of one stream are let go of in order, so that is about as long as all of them do.
//! 5. Small frames are read ahead of what is asked for, up to [`AHEAD_BYTES`], and lie side by side: HTTP/2 charges 256
//!    bytes for each that it keeps, and ends a connection with a small window after 170. A stream whose sender goes on
//!    with small ones beyond that ends with a status, which leaves the connection to its other streams. Frames that are
//!    not small are left to the window.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tonic::Status;

use super::admit::{PREFIX_BYTES, broken_off, length_of};
use super::status::Refusal;
use crate::admission::{Admission, Early, Permit, Stall};

/// Most bytes of small frames that are read ahead.
const AHEAD_BYTES: usize = 64 << 10;
/// A frame with fewer bytes is small.
const SMALL_BYTES: usize = 1 << 10;

/// A message as it came, and its memory.
#[derive(Debug)]
pub struct Incoming {
    pub bytes: Bytes,
    pub memory: Permit,
}

enum State {
    /// Between messages, or inside a prefix of which `count` bytes have come.
    Prefix { seen: [u8; PREFIX_BYTES], count: usize },
    /// A message of `length` bytes waits for memory.
    Waiting { memory: Pin<Box<dyn Future<Output = Permit> + Send>>, length: usize, _early: Early },
    /// Inside a message of `length` bytes; those of earlier frames are in `begun`.
    Message { memory: Permit, length: usize, begun: BytesMut },
}

const BETWEEN: State = State::Prefix { seen: [0; PREFIX_BYTES], count: 0 };

/// See the module's header.
pub struct IncomingStream<B> {
    body: B,
    admission: Admission,
    state: State,
    /// Of the last frame, what has not been looked at.
    rest: Bytes,
    ahead: Ahead,
    stall: Stall,
}

/// What was read before it was asked for.
struct Ahead {
    bytes: BytesMut,
    memory: Early,
    /// How the body has ended behind it.
    end: Option<Result<(), Status>>,
    /// The last frame was small.
    is_small: bool,
}

impl<B> IncomingStream<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    pub fn new(body: B, admission: Admission) -> Self {
        let ahead = Ahead { bytes: BytesMut::new(), memory: admission.early(), end: None, is_small: false };
        Self { body, admission, state: BETWEEN, rest: Bytes::new(), ahead, stall: Stall::default() }
    }

    /// The next message; none at the stream's end. After an error there is nothing more to come.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, Status>>> {
        loop {
            match &mut self.state {
                State::Waiting { memory, length, .. } => {
                    let Poll::Ready(memory) = memory.as_mut().poll(cx) else {
                        return self.poll_ahead(cx).map(|status| Some(Err(status)));
                    };
                    self.state = State::Message { memory, length: *length, begun: BytesMut::new() };
                }
                State::Message { .. } => {
                    if let Some(message) = self.take() {
                        self.stall.restart();
                        return Poll::Ready(Some(Ok(message)));
                    }
                    let Poll::Ready(more) = self.poll_frame(cx) else {
                        ready!(self.stall.poll(&self.admission, cx));
                        return Poll::Ready(Some(Err(Refusal::SlowSender.into())));
                    };
                    self.stall.brought(self.rest.len() as u64);
                    if !more? {
                        return Poll::Ready(Some(Err(cut_short())));
                    }
                }
                State::Prefix { .. } if !self.rest.is_empty() => self.look()?,
                State::Prefix { count, .. } => {
                    let between = *count == 0;
                    if !ready!(self.poll_frame(cx))? {
                        return Poll::Ready(if between { None } else { Some(Err(cut_short())) });
                    }
                }
            }
        }
    }

    /// Whether the next message waits for memory, and is not read meanwhile.
    pub fn awaits_memory(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// To be polled while no message is asked for: reads ahead. Ready when the stream is to end.
    pub fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        while self.ahead.is_small && self.ahead.end.is_none() && self.admission.has_early_room() {
            if self.ahead.bytes.len() >= AHEAD_BYTES {
                return Poll::Ready(Refusal::TooFarAhead.into());
            }
            match ready!(self.poll_body(cx)) {
                Ok(Some(bytes)) => {
                    self.ahead.memory.add(bytes.len() as u64);
                    self.ahead.bytes.extend_from_slice(&bytes);
                }
                end => self.ahead.end = Some(end.map(drop)),
            }
        }
        Poll::Pending
    }

    /// Waits for more bytes; false at the body's end.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Status>> {
        if !self.ahead.bytes.is_empty() {
            self.rest = std::mem::take(&mut self.ahead.bytes).freeze();
            self.ahead.memory = self.admission.early();
            return Poll::Ready(Ok(true));
        }
        if let Some(end) = self.ahead.end.take() {
            return Poll::Ready(end.map(|()| false));
        }
        let bytes = ready!(self.poll_body(cx))?;
        let has_more = bytes.is_some();
        self.rest = bytes.unwrap_or_default();
        Poll::Ready(Ok(has_more))
    }

    /// Waits for the next frame of the body; none at its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            // Trailers say nothing here, and the end follows.
            Some(Ok(frame)) => {
                let bytes = frame.into_data().unwrap_or_default();
                self.ahead.is_small = bytes.len() < SMALL_BYTES;
                Ok(Some(bytes))
            }
            Some(Err(_)) => Err(broken_off()),
            None => Ok(None),
        })
    }

    /// Looks at the bytes of a prefix. When it is whole, memory is taken for its message.
    fn look(&mut self) -> Result<(), Refusal> {
        let State::Prefix { seen, count } = &mut self.state else { return Ok(()) };
        let take = (PREFIX_BYTES - *count).min(self.rest.len());
        self.rest.copy_to_slice(&mut seen[*count..*count + take]);
        *count += take;
        if self.rest.is_empty() {
            // Though none of it is left, it would hold on to its frame.
            self.rest = Bytes::new();
        }
        if *count < PREFIX_BYTES {
            return Ok(());
        }
        let bytes = length_of(seen, self.admission.request_bytes_max())?;
        let length = usize::try_from(bytes).expect("the largest request fits memory");
        self.state = match self.admission.try_admit(bytes) {
            Some(memory) => State::Message { memory, length, begun: BytesMut::new() },
            None => {
                let _early = self.admission.keep_early(self.rest.len() as u64, bytes)?;
                // What counts is what is held: not the whole frame.
                self.rest = Bytes::copy_from_slice(&self.rest);
                let admission = self.admission.clone();
                let memory = Box::pin(async move { admission.wait(bytes).await });
                State::Waiting { memory, length, _early }
            }
        };
        Ok(())
    }

    /// The message, if all of it is there; otherwise what is there is kept.
    fn take(&mut self) -> Option<Incoming> {
        let State::Message { length, begun, .. } = &mut self.state else { return None };
        let missing = *length - begun.len();
        let bytes = if begun.is_empty() && self.rest.len() >= missing {
            self.rest.split_to(missing)
        } else {
            // Does nothing from the second time on.
            begun.reserve(missing);
            let part = self.rest.split_to(missing.min(self.rest.len()));
            begun.extend_from_slice(&part);
            if begun.len() < *length {
                return None;
            }
            std::mem::take(begun).freeze()
        };
        match std::mem::replace(&mut self.state, BETWEEN) {
            State::Message { memory, .. } => Some(Incoming { bytes, memory }),
            _ => unreachable!("matched above"),
        }
    }
}

fn cut_short() -> Status {
    let why = "ends within a message".to_owned();
    Refusal::Invalid { field: "request".to_owned(), why }.into()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http_body::Frame;

    use super::*;

    /// Chunks as DATA frames; then the body ends, unless nothing ever comes.
    struct Chunks(VecDeque<Bytes>, bool);

    impl http_body::Body for Chunks {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.pop_front() {
                None if self.1 => Poll::Pending,
                chunk => Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk)))),
            }
        }
    }

    fn framed(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend((0..length).map(|at| at as u8));
        bytes
    }

    fn stream(bytes: &[u8], chunk: usize, admission: &Admission) -> IncomingStream<Chunks> {
        let chunks = bytes.chunks(chunk).map(Bytes::copy_from_slice).collect();
        IncomingStream::new(Chunks(chunks, false), admission.clone())
    }

    async fn next(stream: &mut IncomingStream<Chunks>) -> Option<Result<Incoming, Status>> {
        std::future::poll_fn(|cx| stream.poll_next(cx)).await
    }

    #[tokio::test]
    async fn however_they_are_cut_messages_come_whole_and_with_their_memory() {
        let lengths = [3, 0, 2_000, 1, 0, 5_000];
        let bytes: Vec<u8> = lengths.into_iter().flat_map(framed).collect();
        for chunk in [1, 2, 3, 7, 100, 4_096, bytes.len()] {
            let admission = Admission::new(1 << 20, 1 << 20);
            let mut stream = stream(&bytes, chunk, &admission);
            let mut messages = Vec::new();
            while let Some(message) = next(&mut stream).await {
                messages.push(message.unwrap());
            }
            let came: Vec<&[u8]> = messages.iter().map(|message| &message.bytes[..]).collect();
            assert_eq!(
                came,
                lengths.map(|length| framed(length).split_off(PREFIX_BYTES)),
                "in chunks of {chunk}"
            );
            // Counted in whole KiB: 1, 0, 2, 1, 0 and 5.
            let mut used = vec![admission.used_bytes() >> 10];
            for message in messages {
                drop(message);
                used.push(admission.used_bytes() >> 10);
            }
            assert_eq!(used, [9, 8, 8, 6, 5, 5, 0], "in chunks of {chunk}");
        }
    }

    #[tokio::test]
    async fn what_lies_in_one_frame_is_not_copied() {
        let chunk: Bytes = [1_000, 2_000].into_iter().flat_map(framed).collect::<Vec<u8>>().into();
        let admission = Admission::new(1 << 20, 1 << 20);
        let mut stream = IncomingStream::new(Chunks([chunk.clone()].into(), false), admission);
        for at in [PREFIX_BYTES, 2 * PREFIX_BYTES + 1_000] {
            let message = next(&mut stream).await.unwrap().unwrap();
            assert_eq!(message.bytes.as_ptr(), chunk[at..].as_ptr());
        }
    }

    #[tokio::test]
    async fn a_message_without_memory_waits() {
        let bytes: Vec<u8> = [1_000, 2_000].into_iter().flat_map(framed).collect();
        let admission = Admission::new(2 << 10, 2 << 10);
        let mut stream = stream(&bytes, bytes.len(), &admission);
        let first = next(&mut stream).await.unwrap().unwrap();
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), next(&mut stream)).await;
        assert!(waiting.is_err(), "a message passed without memory");
        drop(first);
        assert_eq!(next(&mut stream).await.unwrap().unwrap().bytes.len(), 2_000);
        assert!(next(&mut stream).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_brings_nothing_keeps_its_memory_only_from_nobody() {
        let admission = Admission::new(2 << 10, 2 << 10);
        let half = Bytes::from(framed(1_500)).split_to(700);
        let mut begun = IncomingStream::new(Chunks([half].into(), true), admission.clone());
        let minute = std::time::Duration::from_secs(60);
        assert!(tokio::time::timeout(minute, next(&mut begun)).await.is_err(), "nobody else wanted it");
        assert!(admission.admit(1_500).await.is_err());
        let start = tokio::time::Instant::now();
        let cut = tokio::time::timeout(minute, next(&mut begun)).await.expect("others wanted it");
        assert_eq!(cut.unwrap().unwrap_err().code(), tonic::Code::ResourceExhausted);
        assert!(start.elapsed() <= std::time::Duration::from_secs(2));
        drop(begun);
        assert_eq!(admission.used_bytes(), 0);
    }

    #[tokio::test]
    async fn what_waits_for_memory_holds_on_to_no_more_than_counts() {
        let admission = Admission::new(2 << 10, 2 << 10);
        let all = admission.try_admit(2 << 10);
        let chunk = Bytes::from([framed(10), framed(1_000)].concat());
        let part = chunk.slice(PREFIX_BYTES + 10..);
        let mut stream = IncomingStream::new(Chunks([part].into(), true), admission.clone());
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), next(&mut stream)).await;
        assert!(waiting.is_err());
        assert!(chunk.try_into_mut().is_ok(), "the frame is held");
        drop(all);
    }

    #[tokio::test]
    async fn small_frames_are_read_ahead_and_nothing_of_them_is_lost() {
        let bytes: Vec<u8> = (0..500).flat_map(|_| framed(30)).collect();
        let admission = Admission::new(1 << 20, 1 << 20);
        let mut stream = stream(&bytes, 35, &admission);
        assert_eq!(next(&mut stream).await.unwrap().unwrap().bytes.len(), 30);
        let ahead = |cx: &mut Context<'_>| Poll::Ready(stream.poll_ahead(cx).is_pending());
        assert!(std::future::poll_fn(ahead).await);
        assert!(stream.body.0.is_empty(), "all of it was read");
        assert_eq!(stream.ahead.bytes.len(), 499 * 35);
        for at in 1..500 {
            assert_eq!(next(&mut stream).await.unwrap().unwrap().bytes.len(), 30, "message {at}");
        }
        assert!(next(&mut stream).await.is_none());
        assert!(admission.has_early_room());
    }

    #[tokio::test]
    async fn a_stream_of_small_frames_that_nobody_asks_for_ends_and_one_of_large_frames_is_held_back() {
        let admission = Admission::new(1 << 20, 1 << 20);
        let bytes: Vec<u8> = (0..3_000).flat_map(|_| framed(30)).collect();
        let mut small = stream(&bytes, 35, &admission);
        next(&mut small).await.unwrap().unwrap();
        let status = std::future::poll_fn(|cx| small.poll_ahead(cx)).await;
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(small.ahead.bytes.len() < AHEAD_BYTES + 35);
        let mut large = stream(&bytes, SMALL_BYTES, &admission);
        next(&mut large).await.unwrap().unwrap();
        let ahead = |cx: &mut Context<'_>| Poll::Ready(large.poll_ahead(cx).is_pending());
        assert!(std::future::poll_fn(ahead).await);
        assert!(large.ahead.bytes.is_empty());
    }

    #[tokio::test]
    async fn what_is_no_message_of_ours_is_refused() {
        let admission = Admission::new(1 << 20, 1 << 20);
        for (bytes, why) in [
            (&[0, 0xff, 0, 0, 0, 1][..], "request has 4278190080 bytes"),
            (&[1, 0, 0, 0, 1, 7], "the request is compressed"),
            (&[0, 0, 0], "request: ends within a message"),
            (&[0, 0, 0, 0, 3, 7], "request: ends within a message"),
        ] {
            let status = next(&mut stream(bytes, 2, &admission)).await.unwrap().unwrap_err();
            assert!(status.message().starts_with(why), "{status:?}");
            assert_eq!(admission.used_bytes(), 0);
        }
    }
}
