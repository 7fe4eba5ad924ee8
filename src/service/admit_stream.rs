//! Admission of the messages of a publish stream, one by one, before they are buffered.
//!
//! 1. A gRPC message passes on only when memory for all of it was taken from the budget. Its prefix is held back too:
//!    the decoder makes room for the message as soon as it knows the length.
//! 2. No frame that passes on holds more than one message's bytes, and the decoder asks for more only when it holds
//!    no whole message; so beyond what the handler has taken, one message at the most has a permit.
//! 3. Permits lie in the order of the messages; the handler takes one with each message.
//! 4. While memory is short nothing is read, and HTTP/2's window holds the sender back. Of the frame that was read last
//!    the rest is kept meanwhile; where that would be too much with those of others, the stream ends.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;

use super::admit::{BodyError, PREFIX_BYTES, length_of};
use super::status::Refusal;
use crate::admission::{Admission, Early, Permit};

/// Permits of messages that were admitted and not yet taken by the handler. Locked for a move only.
#[derive(Clone, Debug, Default)]
pub struct Permits(Arc<Mutex<VecDeque<Permit>>>);

impl Permits {
    fn push(&self, permit: Permit) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push_back(permit);
    }

    /// The permit of the next message; none if its stream was not admitted here.
    pub fn pop(&self) -> Option<Permit> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front()
    }
}

enum State {
    /// Between messages, or inside a prefix of which `count` bytes have passed.
    Prefix { seen: [u8; PREFIX_BYTES], count: usize },
    /// The rest of a prefix and its message wait for memory: `left` bytes.
    Waiting { permit: Pin<Box<dyn Future<Output = Permit> + Send>>, left: u64, _early: Early },
    /// Inside an admitted message of which `left` bytes have not passed.
    Message { left: u64 },
}

const BETWEEN: State = State::Prefix { seen: [0; PREFIX_BYTES], count: 0 };

/// A body that is a stream of gRPC messages.
pub struct AdmittedStream<B> {
    inner: B,
    admission: Admission,
    permits: Permits,
    state: State,
    /// Of the last frame, what has not passed.
    rest: Bytes,
}

impl<B> AdmittedStream<B> {
    pub fn new(inner: B, admission: Admission, permits: Permits) -> Self {
        Self { inner, admission, permits, state: BETWEEN, rest: Bytes::new() }
    }

    /// Looks at the prefix at the head of `rest`. What may pass on at once is given.
    fn look(&mut self) -> Result<Option<Bytes>, Refusal> {
        let State::Prefix { seen, count } = &mut self.state else { return Ok(None) };
        let missing = PREFIX_BYTES - *count;
        let take = missing.min(self.rest.len());
        seen[*count..*count + take].copy_from_slice(&self.rest[..take]);
        if take < missing {
            *count += take;
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        let length = length_of(seen)?;
        let left = missing as u64 + length;
        self.state = match self.admission.try_admit(length) {
            Some(permit) => {
                self.permits.push(permit);
                State::Message { left }
            }
            None => {
                let _early = self.admission.keep_early(self.rest.len() as u64, length)?;
                let admission = self.admission.clone();
                State::Waiting { permit: Box::pin(async move { admission.wait(length).await }), left, _early }
            }
        };
        Ok(None)
    }

    /// What has come of the message that is passing.
    fn pass(&mut self, left: u64) -> Bytes {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(self.rest.len());
        let left = left - count as u64;
        self.state = if left == 0 { BETWEEN } else { State::Message { left } };
        self.rest.split_to(count)
    }
}

impl<B> http_body::Body for AdmittedStream<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if this.rest.is_empty() {
                match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => this.rest = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                    Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
                    None => return Poll::Ready(None),
                }
                continue;
            }
            match &mut this.state {
                State::Prefix { .. } => match this.look() {
                    Ok(Some(part)) => return Poll::Ready(Some(Ok(Frame::data(part)))),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Some(Err(refusal.into()))),
                },
                State::Waiting { permit, left, .. } => {
                    let (permit, left) = (ready!(permit.as_mut().poll(cx)), *left);
                    this.permits.push(permit);
                    this.state = State::Message { left };
                }
                State::Message { left } => {
                    let left = *left;
                    return Poll::Ready(Some(Ok(Frame::data(this.pass(left)))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of the whole, what is held back is not known to `inner` any more.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    /// Chunks as DATA frames; the last poll ends the body.
    struct Chunks(VecDeque<Bytes>);

    impl http_body::Body for Chunks {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    fn framed(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend((0..length).map(|at| at as u8));
        bytes
    }

    fn stream(bytes: &[u8], chunk: usize, admission: &Admission) -> (AdmittedStream<Chunks>, Permits) {
        let chunks = bytes.chunks(chunk).map(Bytes::copy_from_slice).collect();
        let permits = Permits::default();
        (AdmittedStream::new(Chunks(chunks), admission.clone(), permits.clone()), permits)
    }

    async fn next(stream: &mut AdmittedStream<Chunks>) -> Option<Result<Bytes, Status>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    #[tokio::test]
    async fn however_it_is_cut_all_bytes_pass_and_each_message_has_its_permit() {
        let lengths = [3, 0, 2_000, 1, 0, 5_000];
        let bytes: Vec<u8> = lengths.into_iter().flat_map(framed).collect();
        for chunk in [1, 2, 3, 7, 100, 4_096, bytes.len()] {
            let admission = Admission::new(1 << 20, 0);
            let (mut stream, permits) = stream(&bytes, chunk, &admission);
            let mut passed = Vec::new();
            while let Some(part) = next(&mut stream).await {
                passed.extend(part.unwrap());
            }
            assert_eq!(passed, bytes, "in chunks of {chunk}");
            // Counted in whole KiB: 1, 0, 2, 1, 0 and 5.
            let mut used = vec![admission.used_bytes() >> 10];
            while let Some(permit) = permits.pop() {
                drop(permit);
                used.push(admission.used_bytes() >> 10);
            }
            assert_eq!(used, [9, 8, 8, 6, 5, 5, 0], "in chunks of {chunk}");
        }
    }

    #[tokio::test]
    async fn a_message_without_memory_is_held_back_with_its_prefix() {
        let bytes: Vec<u8> = [1_000, 2_000].into_iter().flat_map(framed).collect();
        let admission = Admission::new(2 << 10, 0);
        let (mut stream, permits) = stream(&bytes, bytes.len(), &admission);
        assert_eq!(next(&mut stream).await.unwrap().unwrap().len(), 1_005);
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), next(&mut stream)).await;
        assert!(waiting.is_err(), "a message passed without memory");
        drop(permits.pop());
        assert_eq!(next(&mut stream).await.unwrap().unwrap().len(), 2_005);
        assert!(next(&mut stream).await.is_none());
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused() {
        let (mut stream, permits) = stream(&[0, 0xff, 0, 0, 0, 1], 6, &Admission::new(1 << 20, 0));
        let status = next(&mut stream).await.unwrap().unwrap_err();
        assert!(status.message().starts_with("request has 4278190080 bytes"), "{status:?}");
        assert!(permits.pop().is_none());
    }
}
