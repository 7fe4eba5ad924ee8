//! What an operator may choose: defaults, then a TOML file, then the command line.
//!
//! ```toml
//! data_dir = "./forebay-data"
//! listen = "127.0.0.1:7070"        # gRPC
//! http = "127.0.0.1:7071"          # metrics and health
//! insecure_listen = false          # allow addresses beyond loopback, without encryption
//! log_format = "text"              # or "json"
//! segment_bytes = 67108864         # size of a log file
//! connections = 1024               # at one time; each may take 64 KiB for what nobody has read yet
//! connections_per_address = 512    # half of them; all of them while listen is a loopback address
//! ```

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::limits::{CONNECTIONS_DEFAULT, CONNECTIONS_MAX};

/// How the server writes its own log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The choices as they were given; [`Config`] holds them checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub data_dir: PathBuf,
    pub listen: String,
    pub http: String,
    pub insecure_listen: bool,
    pub log_format: LogFormat,
    pub segment_bytes: u64,
    pub connections: usize,
    pub connections_per_address: Option<usize>,
}

/// Choices on the command line; what is absent is left to the file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_listen: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

/// Checked choices.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    pub log_format: LogFormat,
    pub segment_bytes: u64,
    /// Most connections at one time.
    pub connections: usize,
    /// Of one address.
    pub connections_per_address: usize,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the configuration: {0}")]
    Invalid(Box<figment::Error>),
    #[error("{option} is {text:?}, which is no address; give HOST:PORT, for example 127.0.0.1:7070")]
    Address { option: &'static str, text: String },
    #[error(
        "{option} is {address}, beyond this machine, and the connection would be neither encrypted nor authenticated; give a loopback address, or --insecure-listen if the network is trusted"
    )]
    BeyondLoopback { option: &'static str, address: SocketAddr },
    #[error("connections is {0}; give 1 to {CONNECTIONS_MAX}")]
    Connections(usize),
    #[error(
        "connections_per_address is {given}; give 1 to {all}, which is connections; {all} where all clients come through one proxy"
    )]
    ConnectionsPerAddress { given: usize, all: usize },
    #[error("listen and http are both {0}; give them different ports")]
    SameAddress(SocketAddr),
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./forebay-data"),
            listen: "127.0.0.1:7070".to_owned(),
            http: "127.0.0.1:7071".to_owned(),
            insecure_listen: false,
            log_format: LogFormat::Text,
            segment_bytes: crate::log::SEGMENT_BYTES_DEFAULT,
            connections: CONNECTIONS_DEFAULT,
            connections_per_address: None,
        }
    }
}

impl Config {
    /// Puts defaults, file and command line together, and checks the result.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(RawConfig::default()));
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            figment = figment.merge(Toml::string(&text));
        }
        let raw: RawConfig = figment
            .merge(Serialized::defaults(overrides))
            .extract()
            .map_err(|error| ConfigError::Invalid(Box::new(error)))?;
        Self::check(raw)
    }

    fn check(raw: RawConfig) -> Result<Self, ConfigError> {
        let listen = address("listen", &raw.listen)?;
        let http = address("http", &raw.http)?;
        for (option, address) in [("listen", listen), ("http", http)] {
            if !raw.insecure_listen && !address.ip().is_loopback() {
                return Err(ConfigError::BeyondLoopback { option, address });
            }
        }
        if listen == http && listen.port() != 0 {
            return Err(ConfigError::SameAddress(listen));
        }
        let all = raw.connections;
        if !(1..=CONNECTIONS_MAX).contains(&all) {
            return Err(ConfigError::Connections(all));
        }
        // On loopback everybody has one address, so a share of it would only leave places empty.
        let share = if listen.ip().is_loopback() { all } else { all.div_ceil(2) };
        let given = raw.connections_per_address.unwrap_or(share);
        if !(1..=all).contains(&given) {
            return Err(ConfigError::ConnectionsPerAddress { given, all });
        }
        Ok(Self {
            data_dir: raw.data_dir,
            listen,
            http,
            log_format: raw.log_format,
            segment_bytes: raw.segment_bytes,
            connections: all,
            connections_per_address: given,
        })
    }
}

fn address(option: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    let resolved = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    resolved.ok_or_else(|| ConfigError::Address { option, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("forebay.toml");
        std::fs::write(&path, file).unwrap();
        Config::load(Some(&path), overrides)
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_defaults() {
        let overrides = Overrides { listen: Some("127.0.0.1:9".to_owned()), ..Overrides::default() };
        let config = load("listen = '127.0.0.1:1'\nhttp = '127.0.0.1:2'", &overrides).unwrap();
        assert_eq!((config.listen.port(), config.http.port()), (9, 2));
        assert_eq!(config.data_dir, PathBuf::from("./forebay-data"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let none = Overrides::default();
        assert!(matches!(load("listne = 'x'", &none), Err(ConfigError::Invalid(_))));
        assert!(matches!(load("listen = 'here'", &none), Err(ConfigError::Address { option: "listen", .. })));
        assert!(matches!(load("http = '0.0.0.0:1'", &none), Err(ConfigError::BeyondLoopback { .. })));
        assert!(matches!(load("http = '127.0.0.1:7070'", &none), Err(ConfigError::SameAddress(_))));
        assert!(load("http = '0.0.0.0:1'\ninsecure_listen = true", &none).is_ok());
        let per_address = |file: &str| load(file, &none).map(|config| config.connections_per_address);
        assert_eq!(per_address("").unwrap(), 1_024);
        assert_eq!(per_address("listen = '0.0.0.0:1'\ninsecure_listen = true").unwrap(), 512);
        assert_eq!(per_address("connections_per_address = 7").unwrap(), 7);
        for wrong in [0, 1_025] {
            let error = per_address(&format!("connections_per_address = {wrong}")).unwrap_err();
            assert!(matches!(error, ConfigError::ConnectionsPerAddress { all: 1_024, .. }), "{error}");
        }
        assert_eq!(per_address("connections = 3\nlisten = '0.0.0.0:1'\ninsecure_listen = true").unwrap(), 2);
        assert_eq!(load("connections = 16384", &none).unwrap().connections_per_address, 16_384);
        for wrong in [0, 16_385] {
            let error = load(&format!("connections = {wrong}"), &none).unwrap_err();
            assert!(matches!(error, ConfigError::Connections(_)), "{error}");
        }
        let missing = Config::load(Some(Path::new("/nonexistent/forebay.toml")), &none);
        assert!(matches!(missing, Err(ConfigError::File { .. })));
    }
}
