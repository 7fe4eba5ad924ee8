//! The core's state on its way to the end of the log.

use crate::core::{Event, LostMessages, State, event_codec, snapshot};
use crate::log::{self, ReplayError, Replayed, StateMachine};
use crate::record::Kind;

/// Takes the records of a log, as they were taken when they were written.
#[derive(Debug, Default)]
pub struct Replica {
    pub state: State,
    /// Messages that are known to be lost.
    pub lost: Vec<LostMessages>,
    /// Since the checkpoint that it began from.
    pub changes: u64,
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
        self.state.apply(event);
        self.changes += event.changes();
        Ok(())
    }
}

impl StateMachine for Replica {
    fn restore(&mut self, state: &[u8]) -> Result<(), ReplayError> {
        self.state = snapshot::decode(state).map_err(|error| ReplayError(error.to_string()))?;
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
