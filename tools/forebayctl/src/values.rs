//! Values of arguments: durations, pairs, where a subscription or a tail begins.

use std::time::{Duration, SystemTime};

use forebay::proto::v1::Position;
use forebay::proto::v1::position::Position as Place;

/// Where a subscription or a tail begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    Offset(u64),
    Time(SystemTime),
}

impl Start {
    /// As the server is asked for it.
    pub fn position(self) -> Position {
        let place = match self {
            Start::Earliest => Place::Earliest(()),
            Start::Latest => Place::Latest(()),
            Start::Offset(offset) => Place::Offset(offset),
            Start::Time(time) => Place::Time(time.into()),
        };
        Position { position: Some(place) }
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => text.parse().map(Self::Offset).or_else(|_| {
                let time = humantime::parse_rfc3339_weak(text).map(Self::Time);
                time.map_err(|_| "give earliest, latest, an offset or a time in UTC".to_owned())
            }),
        }
    }
}

pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "give a number with a unit, such as 500ms, 10s or 5m".to_owned())
}

pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_parsed_or_refused() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert!(parse_duration("5").is_err());
        assert_eq!(parse_pair("k=v=w"), Ok(("k".into(), "v=w".into())));
        assert!(parse_pair("=v").is_err() && parse_pair("k").is_err());
        assert_eq!(Start::parse("12"), Ok(Start::Offset(12)));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_401);
        assert_eq!(Start::parse("1970-01-02T00:00:01Z"), Ok(Start::Time(time)));
        assert!(Start::parse("-1").is_err());
    }
}
