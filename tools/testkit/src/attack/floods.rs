//! Floods of frames. Each tells whether the server has ended the connection.

use std::net::SocketAddr;

use super::wire::*;
use super::{OWN, PUBLISH, SERVER_INFO, Stop};

/// Frames of a flood, in parts of [`TOGETHER`]: far beyond what any honest client sends.
const FRAMES: usize = 50_000;
const TOGETHER: usize = 100;

/// The same frame again and again.
pub async fn same(target: SocketAddr, frame: &[u8]) -> Result<bool, Stop> {
    let part = frame.repeat(TOGETHER);
    Ok(Raw::open(target, OWN, &[]).await?.flood(FRAMES / TOGETHER, |_| part.clone()).await)
}

/// Calls that are given up, so many together.
pub async fn rapid_reset(target: SocketAddr, together: usize) -> Result<bool, Stop> {
    let raw = Raw::open(target, OWN, &[]).await?;
    let headers = call_headers(SERVER_INFO);
    let pair = |at: usize| {
        let stream = 2 * at as u32 + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, &headers), reset(stream)].concat()
    };
    // One by one they take long, and a few show it.
    let parts = if together == 1 { 2_000 } else { 20_000 / together };
    Ok(raw.flood(parts, |at| joined(together, |n| pair(at * together + n))).await)
}

/// So many pieces in a row, without much work: what counts is what they cost the server.
fn joined(count: usize, piece: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    (0..count).map(piece).collect::<Vec<_>>().concat()
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
}

/// Headers that go on without an end.
pub async fn continuations(target: SocketAddr) -> Result<bool, Stop> {
    let mut raw = Raw::open(target, OWN, &[]).await?;
    raw.send(&frame(HEADERS, 0, 1, &call_headers(PUBLISH))).await?;
    let part = frame(CONTINUATION, 0, 1, &literal("x", "y")).repeat(TOGETHER);
    Ok(raw.flood(FRAMES / TOGETHER, |_| part.clone()).await)
}

/// Requests that are begun and never go on.
pub async fn many_streams(target: SocketAddr) -> Result<bool, Stop> {
    let raw = Raw::open(target, OWN, &[]).await?;
    let headers = call_headers(PUBLISH);
    let begin = |number: usize| frame(HEADERS, END_HEADERS, 2 * number as u32 + 1, &headers);
    Ok(raw.flood(20_000 / TOGETHER, |at| joined(TOGETHER, |n| begin(at * TOGETHER + n))).await)
}

/// One request of frames without a byte.
pub async fn empty_data(target: SocketAddr) -> Result<bool, Stop> {
    let mut raw = Raw::open(target, OWN, &[]).await?;
    raw.send(&call(1, PUBLISH)).await?;
    let part = frame(DATA, 0, 1, &[]).repeat(TOGETHER);
    Ok(raw.flood(FRAMES / TOGETHER, |_| part.clone()).await)
}
