//! The decision to store messages.

use super::Decision;
use super::event::{Event, PublishedRun, StampedRequest};
use super::state::{Queue, State};
use super::types::*;
use crate::clock::Now;
use crate::limits::PRODUCERS_MAX;
use crate::record::Lane;

/// Consecutive messages of a request that share a lane; `bytes` are stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneRun {
    pub lane: Lane,
    pub count: u32,
    pub bytes: u64,
}

/// Stores a request whole, one event a run, or answers again what a producer's request was answered before.
///
/// # Panics
/// If `runs` is empty: a request has at least one message.
pub fn publish(
    state: &State,
    queue: &Queue,
    runs: &[LaneRun],
    producer: Option<ProducerStamp>,
    now: Now,
) -> Result<Decision<PublishAnswer>, Reject> {
    if let Some(stamp) = &producer {
        if let Some(answer) = queue.producers.check(&queue.name, stamp)? {
            return Ok(Decision { answer, events: Vec::new() });
        }
        if !queue.producers.knows(&stamp.id) && state.producer_count() >= PRODUCERS_MAX {
            return Err(Reject::TooManyProducers { max: PRODUCERS_MAX });
        }
    }
    if let Some(pause) = queue.pause.as_ref().filter(|pause| pause.refuses) {
        return Err(Reject::Paused { queue: queue.name.clone(), reason: pause.reason.clone() });
    }
    let count: u32 = runs.iter().map(|run| run.count).sum();
    assert!(count > 0, "a publish has at least one message");
    let answer = PublishAnswer {
        first_offset: queue.next_offset,
        count,
        publish_time_us: now.wall_us.max(queue.last_publish_us),
        duplicate: false,
    };
    let mut request = producer.map(|stamp| StampedRequest { stamp, count, log_us: now.log_us });
    let mut first = answer.first_offset;
    let stored = |run: &LaneRun| {
        let event = PublishedRun {
            queue: queue.id,
            first,
            count: run.count,
            bytes: run.bytes,
            lane: run.lane,
            publish_time_us: answer.publish_time_us,
            request: request.take(),
        };
        first = first.plus(run.count.into());
        Event::Published(event)
    };
    Ok(Decision { answer, events: runs.iter().map(stored).collect() })
}
