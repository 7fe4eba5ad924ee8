//! What is no HTTP/2, no gRPC, no protobuf, or not what it seems. Each tells whether the server has ended the connection.

use std::net::SocketAddr;

use super::wire::*;
use super::{OWN, PUBLISH, PUBLISH_STREAM, REFLECTION, SERVER_INFO, SUBSCRIBE, Stop};

/// Every kind of call: one request, a stream of them, and of answers, and somebody else's services.
const PATHS: [&str; 7] = [
    PUBLISH,
    PUBLISH_STREAM,
    SUBSCRIBE,
    SERVER_INFO,
    REFLECTION,
    "/forebay.v1.MessageService/Tail",
    "/grpc.health.v1.Health/Watch",
];
/// What connections begin with that are no HTTP/2.
const BAD_BEGINNINGS: [&[u8]; 5] = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    // A TLS client's greeting.
    &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
    &[0; 64],
    &[0xff; 64],
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
];

/// Connections that the server must end, each for another reason. True if it has ended all of them.
pub async fn bad_http2(target: SocketAddr) -> Result<bool, Stop> {
    let mut all = true;
    for beginning in BAD_BEGINNINGS {
        let raw = Raw::connect(target, OWN).await?;
        all &= raw.flood(1, |_| beginning.to_vec()).await;
    }
    for frames in bad_frames() {
        let raw = Raw::open(target, OWN, &[]).await?;
        all &= raw.flood(1, |_| frames.clone()).await;
    }
    Ok(all)
}

/// Frames that break the rules of a connection.
fn bad_frames() -> Vec<Vec<u8>> {
    let mut too_large = frame(DATA, 0, 1, &[]);
    too_large[..3].copy_from_slice(&[0xff, 0xff, 0xff]);
    vec![
        frame(DATA, 0, 0, b"of no stream"),
        frame(DATA, 0, 1, b"of a stream that was never begun"),
        frame(HEADERS, END_HEADERS, 0, &call_headers(PUBLISH)),
        call(2, PUBLISH),
        [call(5, PUBLISH), call(3, PUBLISH)].concat(),
        [too_large, vec![0; 1 << 20]].concat(),
        frame(SETTINGS, 0, 0, &[0; 5]),
        frame(SETTINGS, 0, 1, &[]),
        settings_frame(&[(4, 0x8000_0000)]),
        settings_frame(&[(5, 1)]),
        frame(PING, 0, 0, &[0; 7]),
        frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
        frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        frame(CONTINUATION, END_HEADERS, 1, &[]),
        [frame(HEADERS, 0, 1, &call_headers(PUBLISH)), frame(PING, 0, 0, &[0; 8])].concat(),
        // An index far beyond the table.
        frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0x7f]),
        frame(HEADERS, END_HEADERS | 0x8, 1, &[200, 1, 2]),
    ]
}

/// A large header is remembered once; then a small block names it a thousand times.
pub async fn header_bomb(target: SocketAddr) -> Result<bool, Stop> {
    let raw = Raw::open(target, OWN, &[]).await?;
    let value = "x".repeat(3_900);
    let mut remembered = vec![0x40];
    for text in ["bomb", &value] {
        remembered.extend(integer(7, text.len()));
        remembered.extend(text.as_bytes());
    }
    let first = [call_headers(SERVER_INFO), remembered].concat();
    // The first entry of the table that was filled is number 62.
    let bomb = [call_headers(SERVER_INFO), vec![0x80 | 62; 4_000]].concat();
    let part = |at: usize| match at {
        0 => frame(HEADERS, END_HEADERS | END_STREAM, 1, &first),
        _ => frame(HEADERS, END_HEADERS | END_STREAM, 2 * at as u32 + 1, &bomb),
    };
    Ok(raw.flood(100, part).await)
}

/// Header lists beyond the bound, of calls that would be honest otherwise.
pub async fn large_headers(target: SocketAddr) -> Result<bool, Stop> {
    let raw = Raw::open(target, OWN, &[]).await?;
    let large = literal("x", &"y".repeat(8_000));
    let part = |at: usize| {
        let stream = 2 * at as u32 + 1;
        let mut bytes = frame(HEADERS, END_STREAM, stream, &call_headers(SERVER_INFO));
        for _ in 0..5 {
            bytes.extend(frame(CONTINUATION, 0, stream, &large));
        }
        bytes.extend(frame(CONTINUATION, END_HEADERS, stream, &[]));
        bytes
    };
    Ok(raw.flood(20, part).await)
}

/// Calls, each with its own bytes as body, on one connection.
async fn calls(target: SocketAddr, bodies: &[Vec<u8>], paths: &[&str]) -> Result<bool, Stop> {
    let raw = Raw::open(target, OWN, &[]).await?;
    let pairs: Vec<(&str, &Vec<u8>)> =
        paths.iter().flat_map(|path| bodies.iter().map(move |body| (*path, body))).collect();
    let part = |at: usize| {
        let (stream, (path, body)) = (2 * at as u32 + 1, pairs[at]);
        [call(stream, path), frame(DATA, END_STREAM, stream, body)].concat()
    };
    Ok(raw.flood(pairs.len(), part).await)
}

pub async fn length_prefix(target: SocketAddr) -> Result<bool, Stop> {
    let bodies = vec![message(0, u32::MAX, b"little"); 8];
    calls(target, &bodies, &[PUBLISH, PUBLISH_STREAM, SUBSCRIBE]).await
}

pub async fn malformed(target: SocketAddr) -> Result<bool, Stop> {
    let nonsense: [&[u8]; 6] = [
        &[0xff; 100],
        // A field of 2 GiB, a group that does not end, a number without an end, field 0, text that is no UTF-8.
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x07],
        &[0x0b; 1_000],
        &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x02, 0x00],
        &[0x0a, 0x02, 0xc3, 0x28],
    ];
    let bodies: Vec<Vec<u8>> = nonsense.iter().map(|bytes| message(0, bytes.len() as u32, bytes)).collect();
    calls(target, &bodies, &PATHS).await
}

pub async fn truncated(target: SocketAddr) -> Result<bool, Stop> {
    let bodies = [vec![], vec![0], vec![0, 0, 0, 0], message(0, 100, b"half"), message(0, 0, b"\0\0")];
    calls(target, &bodies, &PATHS).await?;
    // Trailers in the place of a message's rest, then half of the connection, then all of it.
    let mut raw = Raw::open(target, OWN, &[]).await?;
    for (at, path) in PATHS.into_iter().enumerate() {
        let stream = 2 * at as u32 + 1;
        raw.send(&call(stream, path)).await?;
        raw.send(&frame(DATA, 0, stream, &message(0, 100, b"half"))).await?;
        if at % 2 == 0 {
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &literal("x", "y"))).await?;
        }
    }
    raw.half_close().await?;
    Ok(tokio::time::timeout(super::ANSWER_WAIT, raw.read_to_end()).await.is_ok())
}

/// Kilobytes that are as many megabytes, to several calls. None of it may be unpacked.
pub async fn compression_bomb(target: SocketAddr) -> Result<bool, Stop> {
    let raw = Raw::open(target, OWN, &[]).await?;
    let encoded = [call_headers(PUBLISH), literal("grpc-encoding", "gzip")].concat();
    let bomb = gzipped_zeroes();
    let body = message(1, bomb.len() as u32, &bomb);
    let part = |at: usize| {
        let (stream, path) = (2 * at as u32 + 1, PATHS[at % 3]);
        let begin = match at % 2 {
            0 => frame(HEADERS, END_HEADERS, stream, &encoded),
            _ => call(stream, path),
        };
        [begin, frame(DATA, END_STREAM, stream, &body)].concat()
    };
    // Every pair of them; more would not fit the window of a connection that nobody reads.
    Ok(raw.flood(6, part).await)
}

/// A gzip file (RFC 1952) of zeroes, within one frame. One block with codes of its own: the literal 0 once, then copies of
/// 258 bytes at distance 1, which take two bits each, both 0.
fn gzipped_zeroes() -> Vec<u8> {
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];
    const CODES: [u8; 15] = [0xed, 0xc1, 1, 1, 0, 0, 0, 0x82, 0x20, 0xff, 0xaf, 0x6e, 0x48, 0x40, 1];
    const COPIES: usize = 8_000;
    const END: [u8; 2] = [0xf7, 0x06];
    // The codes and the end hold four copies more.
    let zeroes = vec![0; 1 + 258 * 4 * (COPIES + 1)];
    let sum = crc32fast::hash(&zeroes).to_le_bytes();
    let length = (zeroes.len() as u32).to_le_bytes();
    [&HEADER[..], &CODES, &[0; COPIES], &END, &sum, &length].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_bomb_is_a_bomb() {
        let bomb = gzipped_zeroes();
        assert!(bomb.len() < 9_000, "it lies within one frame, and some of them within a window");
        let gzip = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut gzip = gzip.expect("gzip is a part of every system");
        gzip.stdin.take().unwrap().write_all(&bomb).unwrap();
        let unpacked = gzip.wait_with_output().unwrap();
        assert!(unpacked.status.success());
        assert!(unpacked.stdout.len() > 8_000_000 && unpacked.stdout.iter().all(|byte| *byte == 0));
    }
}
