//! What a handler knows of its lease.

use tokio::sync::watch;
use tokio::time::Instant;

/// How a lease stands.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// When it ends unless it is extended.
    deadline: Instant,
    /// The server has said that it is gone.
    lost: bool,
}

/// A delivery's lease. It is extended while the handler runs; it can be lost all the same: to a seek or purge, a
/// deleted subscription, or a server that could not be reached for as long as it lasted. Its message may then be with
/// another consumer.
#[derive(Clone, Debug)]
pub struct Lease(watch::Receiver<Standing>);

/// The side that knows.
#[derive(Debug)]
pub(super) struct Keeper(watch::Sender<Standing>);

impl Lease {
    /// A lease until `deadline`.
    pub(super) fn until(deadline: Instant) -> (Keeper, Self) {
        let (keeper, lease) = watch::channel(Standing { deadline, lost: false });
        (Keeper(keeper), Self(lease))
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        let standing = *self.0.borrow();
        standing.lost || standing.deadline <= Instant::now()
    }

    /// Waits until it is lost. Does not return while the lease is kept. May be dropped and begun again.
    pub async fn lost(&self) {
        let mut changes = self.0.clone();
        loop {
            let standing = *changes.borrow_and_update();
            if standing.lost {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(standing.deadline) => return,
                changed = changes.changed() => if changed.is_err() {
                    // Nobody extends it any more.
                    return tokio::time::sleep_until(standing.deadline).await;
                },
            }
        }
    }
}

impl Keeper {
    pub fn extend(&self, deadline: Instant) {
        self.0.send_modify(|standing| standing.deadline = deadline);
    }

    pub fn lose(&self) {
        self.0.send_modify(|standing| standing.lost = true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_lasts_as_long_as_it_is_extended() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let (keeper, lease) = Lease::until(start + 10 * second);
        let waiter = tokio::spawn({
            let lease = lease.clone();
            async move { lease.lost().await }
        });
        tokio::time::sleep(5 * second).await;
        keeper.extend(start + 15 * second);
        tokio::time::sleep(6 * second).await;
        assert!(!lease.is_lost() && !waiter.is_finished());
        waiter.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 15);
        assert!(lease.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn the_servers_word_ends_it_at_once() {
        let start = Instant::now();
        let (keeper, lease) = Lease::until(start + Duration::from_secs(10));
        keeper.lose();
        lease.lost().await;
        assert!(lease.is_lost());
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
