//! Counts connections: those that are open, and those that were not let in or cut off, by why.

use std::sync::Arc;

use metrics::{Counter, Gauge};

use super::metrics::Metrics;

/// Why a connection was not let in, or was ended by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its address has its share of connections.
    Address,
    /// Its preface, or the headers of a request, took too long.
    TooSlow,
    /// It sent too many frames that bring nothing.
    Flood,
    /// It had no work for long, or for a while when others wanted its place.
    Idle,
}

impl Cut {
    const ALL: [Self; 4] = [Self::Address, Self::TooSlow, Self::Flood, Self::Idle];

    /// The label of the metric.
    fn reason(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::TooSlow => "slow",
            Self::Flood => "flood",
            Self::Idle => "idle",
        }
    }
}

/// The figures of connections, shared by their clones.
#[derive(Clone)]
pub struct Connections {
    open: Gauge,
    cut: Arc<[Counter; Cut::ALL.len()]>,
}

impl Connections {
    pub fn new(metrics: &Metrics) -> Self {
        let cut = Cut::ALL.map(|cut| metrics.connections_cut(cut.reason()));
        Self { open: metrics.connections_open(), cut: Arc::new(cut) }
    }

    /// So many are open now.
    pub fn open(&self, count: usize) {
        self.open.set(count as f64);
    }

    /// One was not let in, or is ended.
    pub fn cut(&self, cut: Cut) {
        self.cut[cut as usize].increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_by_why_they_were_cut() {
        let metrics = Metrics::default();
        let connections = Connections::new(&metrics);
        connections.open(3);
        Cut::ALL.iter().for_each(|cut| connections.cut(*cut));
        connections.cut(Cut::Flood);
        let text = metrics.render(None, &Default::default(), &Default::default());
        for line in [
            "forebay_connections 3",
            r#"forebay_connections_cut_total{reason="address"} 1"#,
            r#"forebay_connections_cut_total{reason="slow"} 1"#,
            r#"forebay_connections_cut_total{reason="flood"} 2"#,
            r#"forebay_connections_cut_total{reason="idle"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
