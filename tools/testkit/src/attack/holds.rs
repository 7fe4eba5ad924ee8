//! Attacks that hold on to what others need: windows, memory, places. Each tells whether the server has ended the
//! connection.

use std::net::SocketAddr;
use std::time::Duration;

use super::wire::*;
use super::{OWN, PUBLISH, REFLECTION, SERVER_INFO, Stop};

/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u16 = 4;
/// Calls of one connection: the least that a server allows at one time.
const CALLS: u32 = 100;

/// Asks for every file, and for symbols of all lengths, without waiting.
pub async fn reflection(target: SocketAddr) -> Result<bool, Stop> {
    let raw = Raw::open(target, OWN, &[]).await?;
    // ServerReflectionRequest: file_by_filename = 3, file_containing_symbol = 4, list_services = 7.
    let ask = |field: u8, text: &[u8]| {
        let bytes = [&[field << 3 | 2][..], &integer_of_protobuf(text.len()), text].concat();
        message(0, bytes.len() as u32, &bytes)
    };
    let requests = [
        ask(4, b"forebay.v1.MessageService"),
        ask(3, b"forebay/v1/message_service.proto"),
        ask(7, b"*"),
        ask(4, &[b'x'; 1_000]),
        ask(4, &vec![b'x'; 12 << 10]),
    ];
    let part = |at: usize| {
        let stream = 2 * at as u32 + 1;
        let (asked, more) = (&requests[at % requests.len()], &requests[0]);
        [call(stream, REFLECTION), frame(DATA, 0, stream, asked), frame(DATA, END_STREAM, stream, more)]
            .concat()
    };
    Ok(raw.flood(CALLS as usize, part).await)
}

fn integer_of_protobuf(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 128 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
    bytes
}

/// Asks for answers, gives no window for them, and never reads.
pub async fn zero_window(target: SocketAddr) -> Result<bool, Stop> {
    let mut raw = Raw::open(target, OWN, &[(INITIAL_WINDOW, 0)]).await?;
    for at in 0..CALLS {
        let path = if at % 2 == 0 { SERVER_INFO } else { REFLECTION };
        let body = if at % 2 == 0 { message(0, 0, b"") } else { message(0, 3, b"\x3a\x01*") };
        let stream = 2 * at + 1;
        raw.send(&[call(stream, path), frame(DATA, END_STREAM, stream, &body)].concat()).await?;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(false)
}

/// Opens and shuts the windows of many open streams, a byte at a time.
pub async fn window_games(target: SocketAddr) -> Result<bool, Stop> {
    let mut raw = Raw::open(target, OWN, &[(INITIAL_WINDOW, 0)]).await?;
    for at in 0..CALLS {
        let stream = 2 * at + 1;
        let ask = frame(DATA, END_STREAM, stream, &message(0, 0, b""));
        raw.send(&[call(stream, SERVER_INFO), ask].concat()).await?;
    }
    let part = |at: usize| match at % 3 {
        0 => settings_frame(&[(INITIAL_WINDOW, 1), (INITIAL_WINDOW, 0x7fff_ffff)]),
        1 => settings_frame(&[(INITIAL_WINDOW, 0)]),
        _ => frame(WINDOW_UPDATE, 0, 2 * (at as u32 % CALLS) + 1, &[0, 0, 0, 1]),
    };
    Ok(raw.flood(3_000, part).await)
}

/// Begins the largest requests there are, as many as use up the server's memory for requests, and brings a byte of each
/// now and then, for a minute.
pub async fn slow_bodies(target: SocketAddr) -> Result<bool, Stop> {
    let mut raw = Raw::open(target, OWN, &[]).await?;
    let streams: Vec<u32> = (0..16).map(|at| 2 * at + 1).collect();
    for stream in &streams {
        raw.send(&[call(*stream, PUBLISH), frame(DATA, 0, *stream, &message(0, 9 << 20, b""))].concat())
            .await?;
    }
    for _ in 0..240 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        for stream in &streams {
            raw.send(&frame(DATA, 0, *stream, b"x")).await?;
        }
    }
    Ok(false)
}

/// A hundred connections, some silent, some that say hello, at one time.
pub async fn connections(target: SocketAddr) -> Result<bool, Stop> {
    let mut held = Vec::new();
    for at in 0..100 {
        held.push(match at % 2 {
            0 => Raw::connect(target, OWN).await?,
            _ => Raw::open(target, OWN, &[]).await?,
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(false)
}
