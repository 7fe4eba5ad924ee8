//! How long the oldest message of a backlog has waited. Its publish time lies in the index, which may have to be read
//! from disk: so it is filled in off the broker's task, when the rest of an answer is ready to be given.

use tokio::sync::oneshot;

use super::api::{BrokerError, Reply};
use super::shell::Shell;
use crate::clock::Now;
use crate::core::types::SubscriptionStats;
use crate::host::Host;
use crate::ids::QueueId;
use crate::log::Index;

/// The figures in an answer.
type Figures<T> = fn(&mut T) -> Vec<&mut SubscriptionStats>;

/// An answer that lacks the ages, and the queue that all its figures are of.
pub type Ageless<T> = (QueueId, T);

impl Shell {
    /// Takes an answer without ages in place of `reply`, which gets it with them.
    pub(super) fn aged<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        now: Now,
        figures: Figures<T>,
    ) -> Reply<Ageless<T>> {
        let (ageless, ready) = oneshot::channel();
        let (host, index) = (self.host.clone(), self.log.index());
        // Should the broker end first, `reply` is dropped, and its caller learns of the end.
        tokio::spawn(async move {
            let Ok(result) = ready.await else { return };
            let result = match result {
                Ok(answer) => fill(&*host, index, answer, now, figures).await,
                Err(error) => Err(error),
            };
            // A caller that has gone away wants no answer.
            let _ = reply.send(result);
        });
        ageless
    }
}

async fn fill<T: Send + 'static>(
    host: &dyn Host,
    index: Index,
    (queue, mut answer): Ageless<T>,
    now: Now,
    figures: Figures<T>,
) -> Result<T, BrokerError> {
    if figures(&mut answer).iter().all(|stats| stats.backlog_messages == 0) {
        return Ok(answer);
    }
    let (done, filling) = oneshot::channel();
    host.spawn_blocking(Box::new(move || {
        for stats in figures(&mut answer).into_iter().filter(|stats| stats.backlog_messages > 0) {
            // The oldest may not be on disk yet, or be damaged: then it has no age.
            let plan = index.plan(queue, &[stats.ack_floor], 0).ok();
            let published_us = plan.and_then(|plan| Some(plan.pieces.first()?.publish_time_us));
            stats.oldest_age_us = published_us.map_or(0, |at| now.wall_us.saturating_sub(at));
        }
        // Who asked may have gone.
        let _ = done.send(answer);
    }));
    Ok(filling.await.expect("looking into the index does not panic"))
}
