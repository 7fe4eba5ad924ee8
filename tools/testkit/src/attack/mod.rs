//! Clients that mean harm: each [`Attack`] is a round against a server's gRPC address, repeated for as long as wanted.
//!
//! They come from an address of their own ([`OWN`]), so that a server can tell them from others. Frames are made by hand
//! ([`wire`]); nothing here reads an answer but to see whether the server has ended the connection.

mod floods;
mod holds;
mod nonsense;
pub mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Where attacks come from.
pub const OWN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
/// How long a server has to end a connection that it must end at once, before the round counts as one that it endured.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

const PUBLISH: &str = "/forebay.v1.MessageService/Publish";
const PUBLISH_STREAM: &str = "/forebay.v1.MessageService/PublishStream";
const SUBSCRIBE: &str = "/forebay.v1.MessageService/Subscribe";
const SERVER_INFO: &str = "/forebay.v1.AdminService/GetServerInfo";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// What becomes of the connection of an attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server has ended it.
    Cut,
    /// The attacker has.
    Left,
}

/// Why a round stops in the middle.
#[derive(Debug)]
pub enum Stop {
    /// No connection could be made, so nothing was attacked.
    Unreached(io::Error),
    /// The server takes no more bytes: it has ended the connection.
    Cut,
}

/// A way to do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Calls that are given up at once.
    RapidReset,
    /// The same, one by one, so that each is served before it is given up.
    PatientReset,
    /// A request whose headers never end.
    ContinuationFlood,
    /// 20,000 requests at one time.
    ManyStreams,
    PingFlood,
    SettingsFlood,
    PriorityFlood,
    WindowUpdateFlood,
    EmptyDataFlood,
    /// Small headers that stand for very large ones.
    HeaderBomb,
    /// A header list of a megabyte.
    LargeHeaders,
    /// Connections that are no HTTP/2, or break its rules.
    BadHttp2,
    /// Messages that say they have 4 GiB.
    LengthPrefix,
    /// Messages that are no protobuf, of every kind of call.
    Malformed,
    /// Requests that end within a message, a prefix, or before it; trailers; halves of connections.
    Truncated,
    /// A few bytes that would be many megabytes.
    CompressionBomb,
    /// Reflection asked for everything, all the time, by names of all lengths.
    Reflection,
    /// A client that gives no window and never reads.
    ZeroWindow,
    /// Windows that come and go.
    WindowGames,
    /// Memory taken for large requests of which a byte comes now and then.
    SlowBodies,
    /// Connections, and nothing else.
    Connections,
}

impl Attack {
    pub const ALL: [Self; 21] = [
        Self::RapidReset,
        Self::PatientReset,
        Self::ContinuationFlood,
        Self::ManyStreams,
        Self::PingFlood,
        Self::SettingsFlood,
        Self::PriorityFlood,
        Self::WindowUpdateFlood,
        Self::EmptyDataFlood,
        Self::HeaderBomb,
        Self::LargeHeaders,
        Self::BadHttp2,
        Self::LengthPrefix,
        Self::Malformed,
        Self::Truncated,
        Self::CompressionBomb,
        Self::Reflection,
        Self::ZeroWindow,
        Self::WindowGames,
        Self::SlowBodies,
        Self::Connections,
    ];

    /// Its name in kebab case.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// What a server must make of its connections; none if it may do either.
    pub fn must_end(self) -> Option<End> {
        match self {
            Self::RapidReset
            | Self::ContinuationFlood
            | Self::PingFlood
            | Self::SettingsFlood
            | Self::PriorityFlood
            | Self::WindowUpdateFlood
            | Self::EmptyDataFlood
            | Self::HeaderBomb
            | Self::BadHttp2 => Some(End::Cut),
            Self::LengthPrefix | Self::CompressionBomb => Some(End::Left),
            _ => None,
        }
    }

    /// Attacks once.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn round(self, target: SocketAddr) -> io::Result<End> {
        let ended = match self {
            Self::RapidReset => floods::rapid_reset(target, 64).await,
            Self::PatientReset => floods::rapid_reset(target, 1).await,
            Self::ContinuationFlood => floods::continuations(target).await,
            Self::ManyStreams => floods::many_streams(target).await,
            Self::PingFlood => floods::same(target, &wire::frame(wire::PING, 0, 0, &[7; 8])).await,
            Self::SettingsFlood => floods::same(target, &wire::frame(wire::SETTINGS, 0, 0, &[])).await,
            Self::PriorityFlood => floods::same(target, &wire::frame(wire::PRIORITY, 0, 1, &[0; 5])).await,
            Self::WindowUpdateFlood => {
                floods::same(target, &wire::frame(wire::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await
            }
            Self::EmptyDataFlood => floods::empty_data(target).await,
            Self::HeaderBomb => nonsense::header_bomb(target).await,
            Self::LargeHeaders => nonsense::large_headers(target).await,
            Self::BadHttp2 => nonsense::bad_http2(target).await,
            Self::LengthPrefix => nonsense::length_prefix(target).await,
            Self::Malformed => nonsense::malformed(target).await,
            Self::Truncated => nonsense::truncated(target).await,
            Self::CompressionBomb => nonsense::compression_bomb(target).await,
            Self::Reflection => holds::reflection(target).await,
            Self::ZeroWindow => holds::zero_window(target).await,
            Self::WindowGames => holds::window_games(target).await,
            Self::SlowBodies => holds::slow_bodies(target).await,
            Self::Connections => holds::connections(target).await,
        };
        match ended {
            Ok(false) => Ok(End::Left),
            Ok(true) | Err(Stop::Cut) => Ok(End::Cut),
            Err(Stop::Unreached(error)) => Err(error),
        }
    }
}
