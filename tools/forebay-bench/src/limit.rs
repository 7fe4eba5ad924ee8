//! What the median of a figure must keep.

use std::fmt;

use serde_json::{Value, json};

use crate::report::number;

/// A figure's name and its bound.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    Most(&'static str, f64),
    Least(&'static str, f64),
}

impl Limit {
    pub fn figure(self) -> &'static str {
        let (Self::Most(figure, _) | Self::Least(figure, _)) = self;
        figure
    }

    fn is_kept_by(self, median: f64) -> bool {
        match self {
            Self::Most(_, most) => median <= most,
            Self::Least(_, least) => median >= least,
        }
    }

    /// The verdict in a word.
    pub fn word(self, median: f64) -> &'static str {
        if self.is_kept_by(median) { "kept" } else { "missed" }
    }

    /// What was wanted and what was found; nothing if it is kept.
    pub fn miss(self, median: f64) -> Option<String> {
        let wanted = match self {
            Self::Most(_, most) => format!("at most {}", number(most)),
            Self::Least(_, least) => format!("at least {}", number(least)),
        };
        let miss = || format!("{}: wanted {wanted}, found a median of {}", self.figure(), number(median));
        (!self.is_kept_by(median)).then(miss)
    }

    pub fn json(self, median: f64) -> Value {
        let (name, bound) = match self {
            Self::Most(_, most) => ("most", most),
            Self::Least(_, least) => ("least", least),
        };
        json!({
            "figure": self.figure(),
            name: number(bound),
            "median": number(median),
            "passed": self.is_kept_by(median),
        })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Most(_, most) => write!(f, "<= {}", number(*most)),
            Self::Least(_, least) => write!(f, ">= {}", number(*least)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_itself_is_kept() {
        for (limit, kept, missed) in [(Limit::Most("a", 2.0), 2.0, 2.1), (Limit::Least("a", 2.0), 2.0, 1.9)] {
            assert_eq!((limit.word(kept), limit.miss(kept)), ("kept", None));
            assert_eq!(limit.word(missed), "missed");
            assert!(limit.miss(missed).unwrap().ends_with(&format!("2, found a median of {missed}")));
            assert_eq!(limit.json(missed)["passed"], false);
        }
    }
}
