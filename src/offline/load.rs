//! The state that a log leads to, as far as it can be told.

use crate::broker::replica::Replica;
use crate::core::rebuild::Seen;
use crate::core::{State, event_codec};
use crate::ids::{Lsn, QueueId};
use crate::log::inspect::{self, Inspection, Scan, Start};
use crate::log::{Image, LogError, Mark, ReplayError, Replayed, StateMachine};
use crate::record::Kind;

/// A log that was read to its end, and what it says.
pub struct Loaded<'a> {
    pub scan: Scan<'a>,
    pub state: State,
    /// Why a server would not start here. Then the log was read from where it can be, and the state is a guess.
    pub refusal: Option<LogError>,
    pub seen: Seen,
    /// The checkpoint that reading began from.
    pub checkpoint: Option<Lsn>,
}

impl Loaded<'_> {
    /// A queue's full name; of one that the state does not know, what is known.
    pub fn queue_name(&self, id: QueueId) -> String {
        match self.state.queue(id) {
            Some(queue) => queue.name.to_string(),
            None => format!("(deleted, id {id})"),
        }
    }
}

/// Reads the log from a checkpoint on, or whole, or, if no server could, from where it can be read.
///
/// # Errors
/// Nothing can be read.
pub fn load<'a>(
    inspection: &'a Inspection,
    checkpoint: Option<(Mark, Replica)>,
) -> Result<Loaded<'a>, LogError> {
    let (start, mut replica) = match checkpoint {
        Some((mark, replica)) => (Start::Checkpoint(mark), replica),
        None => (Start::Beginning, Replica::default()),
    };
    let checkpoint = match &start {
        Start::Checkpoint(mark) => Some(mark.lsn()),
        _ => None,
    };
    let refusal = match inspection.scan(start, &mut replica) {
        Ok(scan) => {
            let (state, seen) = (replica.state, Seen::default());
            return Ok(Loaded { scan, state, refusal: None, seen, checkpoint });
        }
        Err(error) if error.is_data_loss() => error,
        Err(error) => return Err(error),
    };
    let found = inspection.survivors()?;
    let replica = Replica { without_beginning: true, ..Replica::default() };
    let mut survivors = Survivors { found: &found, replica, seen: Seen::default() };
    let scan = inspection.scan(Start::Survivors(found.clone()), &mut survivors)?;
    let Survivors { replica, mut seen, .. } = survivors;
    for segment in scan.packed() {
        let (runs, _) = inspection.packed(segment)?;
        runs.iter().for_each(|run| seen.stored(run.queue, run.first_offset, run.count));
    }
    Ok(Loaded { scan, state: replica.state, refusal: Some(refusal), seen, checkpoint })
}

/// Replays a log whose beginning is lost, and keeps in mind what occurs in it.
struct Survivors<'a> {
    found: &'a inspect::Survivors,
    replica: Replica,
    seen: Seen,
}

impl StateMachine for Survivors<'_> {
    fn restore(&mut self, _image: Image) -> Result<(), LogError> {
        unreachable!("there is no checkpoint")
    }

    fn apply(&mut self, record: Replayed<'_>) -> Result<(), ReplayError> {
        let head = &record.head;
        if let Some(run) = record.placed().filter(|run| self.found.counts(run.location.segment)) {
            self.seen.stored(run.queue, run.first_offset, run.count);
        }
        if head.kind != Kind::ServerStarted
            && let Ok(Some(event)) = event_codec::decode(head)
        {
            self.seen.note(head.queue, &event);
        }
        self.replica.apply(record)
    }
}
