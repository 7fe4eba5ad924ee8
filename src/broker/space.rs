//! A full disk is a state, not a failure: publishing is refused, finishing messages goes on into what the log keeps
//! in reserve, checkpoints are forced so that segments can leave, and all ends by itself when they have.

use super::api::BrokerError;
use super::shell::Shell;
use super::timers::Key;
use crate::clock::Now;
use crate::ids::SubscriptionId;
use crate::log::Room;

/// How often a checkpoint is taken while the disk is full, microseconds.
const CHECKPOINT_EVERY_US: u64 = 250_000;

impl Shell {
    pub(super) fn room_changed(&mut self, room: Room, now: Now) {
        let (data_dir, free_bytes_wanted) = (self.log.data_dir().display(), self.log.free_bytes_wanted());
        match room {
            Room::Ample => tracing::info!(%data_dir, "there is space on the disk again: publishing goes on"),
            Room::Reserve => {
                tracing::error!(
                    %data_dir,
                    free_bytes_wanted,
                    "the disk is full: publishing is refused until messages are finished or about so much is free"
                );
            }
            Room::Exhausted => {
                tracing::error!(
                    %data_dir,
                    free_bytes_wanted,
                    "the disk is full and the reserve is used up: nothing is taken until what is finished has left or about so much is free"
                );
            }
        }
        let blocked = self.room == Room::Exhausted;
        self.room = room;
        self.force_checkpoint(now);
        if blocked {
            let ids: Vec<SubscriptionId> = self.state.subscription_ids().collect();
            ids.into_iter().for_each(|id| self.mark(id));
        }
    }

    /// Sees to it that a checkpoint follows soon while the disk is full.
    pub(super) fn force_checkpoint(&mut self, now: Now) {
        if self.room != Room::Ample {
            self.timers.set(Key::Checkpoint, now.log_us + CHECKPOINT_EVERY_US);
        }
    }

    /// Refuses what makes the backlog grow.
    pub(super) fn check_room_to_grow(&self) -> Result<(), BrokerError> {
        if self.room == Room::Ample { Ok(()) } else { Err(BrokerError::DiskFull) }
    }

    /// Refuses what writes at all.
    pub(super) fn check_room(&self) -> Result<(), BrokerError> {
        if self.room == Room::Exhausted { Err(BrokerError::DiskFull) } else { Ok(()) }
    }
}
