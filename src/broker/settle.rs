//! Calls that end deliveries or lengthen them.
//!
//! Acks, retries and releases are decided at once. What gives a message up (a rejection, a retry after the last attempt)
//! copies it to the dead-letter queue, so it needs the message's bytes first ([`super::give_up`]); the call is answered
//! when all of its parts are on disk.

use super::api::{AckId, BrokerError, Reply, Settlement};
use super::commits::Answer;
use super::shell::Shell;
use crate::clock::Now;
use crate::core::settle::{self, AckToken};
use crate::core::state::Subscription;
use crate::core::types::Settled;
use crate::ids::Offset;
use crate::names::SubscriptionName;

impl Shell {
    pub(super) fn settle(
        &mut self,
        name: &SubscriptionName,
        settlements: Vec<Settlement>,
        now: Now,
        reply: Reply<Vec<Settled>>,
    ) {
        let subscription = match self.settleable(name) {
            Ok(subscription) => subscription,
            Err(error) => return self.commits.answer(Answer::Settle(reply, Err(error))),
        };
        let id = subscription.id;
        let mut outcomes = vec![Settled::Invalid; settlements.len()];
        let mut endings = Vec::with_capacity(settlements.len());
        let mut places = Vec::with_capacity(settlements.len());
        for (place, settlement) in settlements.into_iter().enumerate() {
            if let Some(token) = self.ack_ids.decode(id, &settlement.ack_id) {
                endings.push((token, settlement.ending));
                places.push(place);
            }
        }
        let decision = settle::settle(&self.state, subscription, self.end_of(subscription), &endings, now);
        let settle::Settlement { outcomes: decided, given_up } = decision.answer;
        for (place, settled) in places.iter().zip(decided) {
            outcomes[*place] = settled;
        }
        self.enact(&decision.events, now);
        self.schedule(id);
        self.mark(id);
        let given_up = given_up.into_iter().map(|(index, given_up)| (places[index], given_up)).collect();
        self.give_up(id, outcomes, given_up, reply);
    }

    pub(super) fn extend(
        &mut self,
        name: &SubscriptionName,
        ack_ids: &[AckId],
        lease_us: u64,
        now: Now,
        reply: Reply<Vec<Settled>>,
    ) {
        let subscription = match self.settleable(name) {
            Ok(subscription) => subscription,
            Err(error) => return self.commits.answer(Answer::Settle(reply, Err(error))),
        };
        let id = subscription.id;
        let tokens: Vec<Option<AckToken>> =
            ack_ids.iter().map(|ack_id| self.ack_ids.decode(id, ack_id)).collect();
        let known: Vec<AckToken> = tokens.iter().flatten().copied().collect();
        let end = self.end_of(subscription);
        let decision = settle::extend(&self.state, subscription, end, &known, lease_us, now);
        let mut decided = decision.answer.into_iter();
        let outcome = |token: Option<AckToken>| {
            token.map_or(Settled::Invalid, |_| decided.next().expect("one outcome a token"))
        };
        let outcomes = tokens.into_iter().map(outcome).collect();
        self.enact_lazily(&decision.events, now);
        self.schedule(id);
        self.commits.answer(Answer::Settle(reply, Ok(outcomes)));
    }

    fn settleable(&self, name: &SubscriptionName) -> Result<&Subscription, BrokerError> {
        self.check_room()?;
        Ok(self.state.subscription_named(name)?)
    }

    pub(super) fn end_of(&self, subscription: &Subscription) -> Offset {
        self.state.queue(subscription.queue).map_or(Offset(0), |queue| queue.next_offset)
    }
}
