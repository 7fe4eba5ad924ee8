//! A panic in a handler is an error of its call: it takes neither its connection with it nor the server. What the handler
//! held is dropped; no lock of the service is held over an await, and those that a panic leaves behind are taken as they
//! are.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::status::Refusal;
use crate::drill;

/// Polls a future once; it is not to be polled again after an error.
pub fn poll<T>(
    future: Pin<&mut (impl Future<Output = T> + ?Sized)>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, Refusal>> {
    let polled = catch_unwind(AssertUnwindSafe(|| {
        drill::point("call");
        future.poll(cx)
    }));
    match polled {
        Ok(polled) => polled.map(Ok),
        // The panic's own words are on standard error already.
        Err(_) => Poll::Ready(Err(Refusal::Panicked { what: "the call" })),
    }
}

/// Runs a future to its end, or to its panic.
pub async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Refusal> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| poll(future.as_mut(), cx)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_nothing_else() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let panics = async {
            tokio::task::yield_now().await;
            assert!(std::hint::black_box(false), "on purpose");
        };
        assert!(matches!(caught(panics).await, Err(Refusal::Panicked { .. })));
    }
}
