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
    let pair = move |at: usize| {
        let stream = 2 * at as u32 + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, &call_headers(SERVER_INFO)), reset(stream)].concat()
    };
    // One by one they take long, and a few show it.
    let parts = if together == 1 { 2_000 } else { 20_000 / together };
    Ok(raw.flood(parts, |at| (0..together).flat_map(|n| pair(at * together + n)).collect()).await)
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
    let begin =
        |at: usize| (0..TOGETHER).flat_map(move |n| call(2 * (at * TOGETHER + n) as u32 + 1, PUBLISH));
    Ok(raw.flood(20_000 / TOGETHER, |at| begin(at).collect()).await)
}

/// One request of frames without a byte.
pub async fn empty_data(target: SocketAddr) -> Result<bool, Stop> {
    let mut raw = Raw::open(target, OWN, &[]).await?;
    raw.send(&call(1, PUBLISH)).await?;
    let part = frame(DATA, 0, 1, &[]).repeat(TOGETHER);
    Ok(raw.flood(FRAMES / TOGETHER, |_| part.clone()).await)
}
