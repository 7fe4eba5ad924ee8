//! Other queues under the loads of `publish` and `consume`, through their own client crates. Feature `peers`.
//!
//! | | Redis Streams ([`redis`]) | NATS JetStream ([`nats`]) |
//! |---|---|---|
//! | queue | a stream with a consumer group | a work-queue stream in files, with a durable pull consumer |
//! | publish | XADD, in pipelines on one connection | with the reply to one inbox, on one connection |
//! | consume | XREADGROUP, and XACK of all that came | pulls, and an ack for each message |
//!
//! Messages go out as close together as each protocol lets them: a slow client must not make a peer look slow. As for
//! Forebay, every answer is awaited and counted, what was published must be there, and what was consumed must be gone.

mod load;
mod nats;
mod redis;
pub mod servers;

use std::str::FromStr;
use std::sync::Arc;

use serde_json::Value;

use crate::Failure;
use crate::fill::Load;
use crate::progress::Progress;

pub use load::{consume, drain, publish, publish_for};

/// The address of another queue's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Redis(String),
    Nats(String),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        match url.split_once("://") {
            Some(("redis", _)) => Ok(Self::Redis(url.to_owned())),
            Some(("nats", _)) => Ok(Self::Nats(url.to_owned())),
            _ => Err("a peer is redis://HOST:PORT or nats://HOST:PORT".to_owned()),
        }
    }
}

/// Settings of a report, with the peer if there is one.
pub fn named(mut settings: Value, peer: Option<&Peer>) -> Value {
    if let Some(Peer::Redis(url) | Peer::Nats(url)) = peer {
        settings["peer"] = url.as_str().into();
    }
    settings
}

/// A queue on a peer.
pub enum Queue {
    Redis(redis::Queue),
    Nats(nats::Queue),
}

impl Queue {
    /// Makes a queue that nobody else has.
    pub async fn create(peer: &Peer, name: String) -> Result<Self, Failure> {
        Ok(match peer {
            Peer::Redis(url) => Self::Redis(redis::Queue::create(url, name).await?),
            Peer::Nats(url) => Self::Nats(nats::Queue::create(url, name).await?),
        })
    }

    /// Publishes over a connection of its own, with this many messages under way.
    async fn publish(&self, load: Arc<Load>, in_flight: usize) -> Result<(), Failure> {
        match self {
            Self::Redis(queue) => queue.publish(load, in_flight).await,
            Self::Nats(queue) => queue.publish(&load, in_flight).await,
        }
    }

    /// Takes and acknowledges over a connection of its own, until `progress` has counted `total`.
    async fn consume(&self, batch: u64, total: u64, progress: Arc<Progress>) -> Result<(), Failure> {
        match self {
            Self::Redis(queue) => queue.consume(batch, total, progress).await,
            Self::Nats(queue) => queue.consume(batch, total, &progress).await,
        }
    }

    /// Messages that were stored and not deleted.
    async fn stored(&self) -> Result<u64, Failure> {
        match self {
            Self::Redis(queue) => queue.stored().await,
            Self::Nats(queue) => queue.stored().await,
        }
    }

    /// Messages that are not acknowledged.
    async fn unfinished(&self) -> Result<u64, Failure> {
        match self {
            Self::Redis(queue) => queue.unfinished().await,
            Self::Nats(queue) => queue.unfinished().await,
        }
    }

    async fn delete(&self) -> Result<(), Failure> {
        match self {
            Self::Redis(queue) => queue.delete().await,
            Self::Nats(queue) => queue.delete().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_says_which_peer_it_is() {
        assert_eq!("redis://a:1".parse(), Ok(Peer::Redis("redis://a:1".to_owned())));
        assert_eq!("nats://a:1".parse(), Ok(Peer::Nats("nats://a:1".to_owned())));
        for wrong in ["a:1", "http://a:1", "redis:a"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }
}
