//! `curves`: what grows with the backlog, with queues, subscriptions, connections and sizes, and what does not.
//!
//! | Axis | At a point there are | Besides rate, latency, memory, disk and restart |
//! |---|---|---|
//! | `backlog` | so many messages that wait in a queue of their own | the rate at which its oldest are consumed |
//! | `queues` | so many queues, published to in turn | |
//! | `subscriptions` | so many of one queue, each with a consumer | the rate of deliveries, and their latency |
//! | `connections` | so many, publishing in turn | |
//! | `sizes` | bodies of so many bytes | bytes a second |

mod draw;
mod open_files;
mod point;
mod table;

use clap::ValueEnum;
use serde_json::json;

use crate::Failure;
use crate::args::CurvesArgs;
use crate::plot;
use crate::report::repeat;
use point::Case;
pub use table::Curve;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Axis {
    Backlog,
    Queues,
    Subscriptions,
    Connections,
    Sizes,
}

const BODY_BYTES: u64 = 1 << 10;
const BODY_BYTES_MAX: u64 = 8 << 20;

impl Axis {
    fn points(self) -> &'static [u64] {
        match self {
            Self::Backlog => &[10_000, 100_000, 1_000_000, 10_000_000],
            Self::Queues => &[1, 10, 100, 1_000, 10_000, 100_000],
            Self::Subscriptions => &[1, 10, 100, 1_000],
            Self::Connections => &[1, 10, 100, 1_000, 10_000],
            Self::Sizes => &[16, 128, 1 << 10, 16 << 10, 128 << 10, 1 << 20, BODY_BYTES_MAX],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::Queues => "queues",
            Self::Subscriptions => "subscriptions",
            Self::Connections => "connections",
            Self::Sizes => "size",
        }
    }

    fn case(self, point: u64) -> Case {
        let base = Case { backlog: 0, queues: 1, subscriptions: 0, connections: 1, size: BODY_BYTES };
        match self {
            Self::Backlog => Case { backlog: point, ..base },
            Self::Queues => Case { queues: point, ..base },
            Self::Subscriptions => Case { subscriptions: point, ..base },
            Self::Connections => Case { connections: point, ..base },
            Self::Sizes => Case { size: point, ..base },
        }
    }
}

pub async fn run(args: &CurvesArgs) -> Result<Curve, Failure> {
    let axis = args.axis;
    let points = if args.points.is_empty() { axis.points() } else { &args.points };
    check(axis, points)?;
    let file = args.plot.as_deref().map(plot::create).transpose()?;
    let mut curve = Curve {
        axis: axis.name(),
        settings: json!({ "seconds": args.seconds, "backlog_size": args.backlog_size, "runs": args.runs }),
        points: Vec::new(),
    };
    for point in points {
        let case = axis.case(*point);
        let runs = repeat(args.runs, async || Box::pin(case.measure(args)).await);
        curve.points.push((*point, runs.await?));
    }
    if let Some(file) = file {
        draw::draw(file, &curve)?;
    }
    Ok(curve)
}

/// Says what cannot be measured before anything is.
fn check(axis: Axis, points: &[u64]) -> Result<(), Failure> {
    if !points.is_sorted_by(|a, b| a < b) {
        return Err("the points of an axis rise".into());
    }
    let last = points.last().copied().unwrap_or_default();
    match axis {
        Axis::Sizes if last > BODY_BYTES_MAX => {
            Err(format!("a body has at most {BODY_BYTES_MAX} bytes, not {last}").into())
        }
        Axis::Connections => {
            open_files::allow(last)?;
            match last > point::CONNECTIONS_MAX {
                true => {
                    Err(format!("a server takes {} of these connections, not {last}", point::CONNECTIONS_MAX)
                        .into())
                }
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_rise_and_can_be() {
        // How many connections there can be, the machine says.
        for axis in Axis::value_variants().iter().filter(|axis| **axis != Axis::Connections) {
            assert!(check(*axis, axis.points()).is_ok(), "{axis:?}");
        }
        assert!(check(Axis::Queues, &[1, 1]).is_err());
        assert!(check(Axis::Sizes, &[16, BODY_BYTES_MAX + 1]).is_err());
        let why = check(Axis::Connections, &[u64::MAX / 2]).unwrap_err().to_string();
        assert!(why.contains("ulimit -Hn"), "{why}");
    }
}
