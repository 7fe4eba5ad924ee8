//! Whether the server takes work: starting, ready, draining. Overload never changes it.

use std::sync::Arc;

use tokio::sync::watch;

/// Where the server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Recovering; not ready.
    Starting,
    Ready,
    /// On its way down: what is under way is answered, new work is refused.
    Draining,
}

/// The server's phase, shared by its clones.
#[derive(Clone, Debug)]
pub struct Readiness {
    phase: Arc<watch::Sender<Phase>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Starting)) }
    }
}

impl Readiness {
    /// Moves on. Phases only go forward: a draining server never gets ready again.
    pub fn set(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let forward = (*current as u8) < (phase as u8);
            if forward {
                *current = phase;
            }
            forward
        });
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the server drains.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until the server is in this phase or past it.
    pub async fn reached(&self, phase: Phase) {
        let mut changes = self.phase.subscribe();
        // Fails only without a sender, and this is one.
        let _ = changes.wait_for(|current| *current as u8 >= phase as u8).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_go_forward_only() {
        let readiness = Readiness::default();
        assert_eq!(readiness.phase(), Phase::Starting);
        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.draining().await }
        });
        readiness.set(Phase::Ready);
        assert_eq!(readiness.phase(), Phase::Ready);
        readiness.reached(Phase::Ready).await;
        readiness.set(Phase::Draining);
        readiness.set(Phase::Ready);
        assert_eq!(readiness.phase(), Phase::Draining);
        waiter.await.unwrap();
    }
}
