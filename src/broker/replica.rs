//! The core's state on its way to the end of the log.

use rustc_hash::FxHashMap;

use crate::core::snapshot::{self, Decoding};
use crate::core::{Event, LostMessages, State, event_codec};
use crate::ids::{Lsn, QueueId};
use crate::log::{self, Image, LogError, Parts, ReplayError, Replayed, StateMachine};
use crate::planted;
use crate::record::Kind;

/// Takes the records of a log, as they were taken when they were written.
#[derive(Debug, Default)]
pub struct Replica {
    pub state: State,
    /// Messages that are known to be lost.
    pub lost: Vec<LostMessages>,
    /// Since the checkpoint that it began from.
    pub changes: u64,
    /// The last publish to each queue that has one behind damage.
    pub published: FxHashMap<QueueId, Lsn>,
    /// The log is read from its middle: every event may speak of what is not there.
    pub without_beginning: bool,
}

impl Replica {
    /// Applies an event. One that does not fit is an error in a whole log; behind damage the state is mended, or the
    /// event is left out.
    fn take(&mut self, event: &Event, replayed: &Replayed<'_>) -> Result<(), ReplayError> {
        if let Err(misfit) = self.state.admits(event) {
            if !(replayed.after_damage || self.without_beginning) {
                return Err(ReplayError(misfit.to_string()));
            }
            let lsn = replayed.head.lsn;
            if !self.without_beginning {
                tracing::error!(%lsn, %misfit, "a record behind damage speaks of what is lost");
            }
            match self.state.mend(event) {
                Ok(lost) => self.lost.extend(lost),
                Err(misfit) => {
                    if !self.without_beginning {
                        tracing::error!(%lsn, %misfit, "a record behind damage is left out");
                    }
                    return Ok(());
                }
            }
        }
        if planted::bug("purge-lost-at-restart") && matches!(event, Event::Purged { .. }) {
            return Ok(());
        }
        self.state.apply(event);
        self.changes += event.changes();
        if let (Event::Published(run), true) = (event, replayed.after_damage) {
            self.published.insert(run.queue, replayed.head.lsn);
        }
        Ok(())
    }
}

/// The state for a checkpoint: its head, and the parts of these queues, which are in order.
pub fn image_of(state: &State, queues: impl IntoIterator<Item = QueueId>) -> (Vec<u8>, Parts) {
    let (mut head, mut parts) = (Vec::new(), Parts::default());
    snapshot::put_head(&mut head, state);
    for id in queues {
        parts.put(id.0, |out| put_part(out, state, id));
    }
    (head, parts)
}

/// The part of a queue; nothing if it is gone.
pub fn put_part(out: &mut Vec<u8>, state: &State, id: QueueId) {
    if let Some(queue) = state.queue(id) {
        snapshot::put_part(out, state, queue);
    }
}

impl StateMachine for Replica {
    fn restore(&mut self, image: Image) -> Result<(), LogError> {
        let mut decoding = Decoding::begin(image.head()).map_err(|error| image.refusal(error))?;
        let why = |error: snapshot::SnapshotError| ReplayError(error.to_string());
        image.each_part(|key, part| decoding.part(QueueId(key), part).map_err(why))?;
        self.state = decoding.end();
        Ok(())
    }

    fn apply(&mut self, replayed: Replayed<'_>) -> Result<(), ReplayError> {
        let head = &replayed.head;
        let why = |error: &dyn std::fmt::Display| ReplayError(error.to_string());
        if head.kind == Kind::ServerStarted {
            let started = log::ServerStarted::decode(head.body).map_err(|error| why(&error))?;
            let log_us = replayed.log_time_us;
            self.state.apply(&Event::Started { incarnation: started.incarnation, log_us });
        } else if let Some(event) = event_codec::decode(head).map_err(|error| why(&error))? {
            self.take(&event, &replayed)?;
        }
        Ok(())
    }
}
