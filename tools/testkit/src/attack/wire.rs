//! HTTP/2 by hand: what no client library would send.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::Stop;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// A frame; its length is that of the payload, true or not.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header in HPACK: a literal that is not remembered, without Huffman codes.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.extend(integer(7, text.len()));
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// A number in HPACK with a prefix of so many bits, the bits before it 0.
pub fn integer(prefix: u32, value: usize) -> Vec<u8> {
    let most = (1 << prefix) - 1;
    if value < most {
        return vec![value as u8];
    }
    let (mut bytes, mut rest) = (vec![most as u8], value - most);
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// The header block of a call.
pub fn call_headers(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "attack"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers.map(|(name, value)| literal(name, value)).concat()
}

/// The frame that begins a call.
pub fn call(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call_headers(path))
}

/// A gRPC message that says it has `length` bytes.
pub fn message(flag: u8, length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[flag][..], &length.to_be_bytes(), bytes].concat()
}

/// A connection whose every byte is ours.
pub struct Raw {
    io: TcpStream,
}

impl Raw {
    /// A connection from an address of loopback, without a word.
    pub async fn connect(target: SocketAddr, own: Ipv4Addr) -> Result<Self, Stop> {
        let connect = async || {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(own.into(), 0))?;
            socket.connect(target).await
        };
        let io = connect().await.map_err(Stop::Unreached)?;
        // Fails if the server has ended it already, which the next write tells.
        let _ = io.set_nodelay(true);
        Ok(Self { io })
    }

    /// The same, with its preface and these settings (identifier and value).
    pub async fn open(target: SocketAddr, own: Ipv4Addr, settings: &[(u16, u32)]) -> Result<Self, Stop> {
        let mut raw = Self::connect(target, own).await?;
        raw.send(&[PREFACE, &settings_frame(settings)].concat()).await?;
        Ok(raw)
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.io.write_all(bytes).await.map_err(|_| Stop::Cut)
    }

    /// Ends this side; the other goes on.
    pub async fn half_close(&mut self) -> Result<(), Stop> {
        self.io.shutdown().await.map_err(|_| Stop::Cut)
    }

    /// Sends parts, at most so many, and reads what comes, until the server ends the connection. True if it does so before
    /// all parts have gone, or while it has nothing left to say.
    pub async fn flood(self, most: usize, mut part: impl FnMut(usize) -> Vec<u8>) -> bool {
        let (mut read, mut write) = self.io.into_split();
        let reading = tokio::spawn(async move {
            let mut bytes = vec![0; 16 << 10];
            while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        });
        for at in 0..most {
            if reading.is_finished() || write.write_all(&part(at)).await.is_err() {
                reading.abort();
                return true;
            }
        }
        let is_ended = tokio::time::timeout(super::ANSWER_WAIT, reading).await.is_ok();
        drop(write);
        is_ended
    }

    /// Reads what comes next; nothing at the end.
    pub async fn read(&mut self) -> Vec<u8> {
        let mut next = vec![0; 4 << 10];
        let count = self.io.read(&mut next).await.unwrap_or(0);
        next.truncate(count);
        next
    }

    /// Reads until the server ends the connection.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // A reset ends it too.
        let _ = self.io.read_to_end(&mut all).await;
        all
    }
}

pub fn settings_frame(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = settings
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}
