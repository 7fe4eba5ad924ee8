//! Acks of one stream: checked, on their way to the broker, and answered in the order in which they came.

use std::collections::VecDeque;

use tokio::task::{JoinError, JoinHandle};
use tonic::Status;

use super::check::{self, at_most, invalid};
use super::status::Refusal;
use super::subscribe::Answer;
use super::{Shared, ending};
use crate::broker::api::{AckId, Settlement};
use crate::core::types::Settled;
use crate::limits::{ACK_IDS_MAX, UNANSWERED_ACKS_MAX};
use crate::names::SubscriptionName;
use crate::proto::v1::subscribe_request::Acks;
use crate::proto::v1::subscribe_response::AckResults;

/// Batches of acks under way, oldest first. They go on should the stream end before they are done.
#[derive(Default)]
pub struct Settling(VecDeque<JoinHandle<Answer>>);

impl Settling {
    pub fn has_room(&self) -> bool {
        self.0.len() < UNANSWERED_ACKS_MAX
    }

    pub fn push(&mut self, work: impl Future<Output = Answer> + Send + 'static) {
        self.0.push_back(tokio::spawn(work));
    }

    /// Waits for the oldest; none if there is none. Waiting may be given up and begun again.
    pub async fn next(&mut self) -> Option<Answer> {
        let results = self.0.front_mut()?.await;
        self.0.pop_front();
        let failed = |_: JoinError| Err(Refusal::Panicked { what: "acknowledging" }.into());
        Some(results.unwrap_or_else(failed))
    }
}

/// One checked Acks request.
pub struct Batch {
    correlation_id: u64,
    acks: usize,
    /// Acks first, then nacks.
    settlements: Vec<Settlement>,
    extend: Vec<AckId>,
    extend_us: u64,
}

impl Batch {
    pub fn check(request: Acks) -> Result<Self, Refusal> {
        let ids = request.ack_ids.len() + request.nacks.len() + request.extend_ack_ids.len();
        Self::check_count(ids)?;
        let extend_us = match (&request.extend_lease, request.extend_ack_ids.is_empty()) {
            (Some(lease), _) => check::lease("acks.extend_lease", lease)?,
            (None, true) => 0,
            (None, false) => {
                return Err(invalid("acks.extend_lease", "is required with extend_ack_ids"));
            }
        };
        let acks = request.ack_ids.len();
        let mut settlements: Vec<_> = ending::acks(request.ack_ids).collect();
        settlements.extend(ending::nacks("acks.nacks", request.nacks)?);
        let correlation_id = request.correlation_id;
        let extend = request.extend_ack_ids.into_iter().map(AckId::from).collect();
        Ok(Self { correlation_id, acks, settlements, extend, extend_us })
    }

    pub fn of_acks(correlation_id: u64, ack_ids: Vec<AckId>) -> Result<Self, Refusal> {
        Self::check_count(ack_ids.len())?;
        let acks = ack_ids.len();
        let settlements = ending::acks(ack_ids).collect();
        Ok(Self { correlation_id, acks, settlements, extend: Vec::new(), extend_us: 0 })
    }

    fn check_count(ids: usize) -> Result<(), Refusal> {
        if ids == 0 {
            return Err(invalid("acks", format!("has no ack ids; give 1 to {ACK_IDS_MAX}")));
        }
        at_most("acks", "ack ids", ids, ACK_IDS_MAX)
    }

    pub async fn settle(self, shared: Shared, name: SubscriptionName) -> Result<AckResults, Status> {
        let settle = async {
            match self.settlements.is_empty() {
                true => Ok(Vec::new()),
                false => shared.broker.settle(name.clone(), self.settlements).await,
            }
        };
        let extend = async {
            match self.extend.is_empty() {
                true => Ok(Vec::new()),
                false => shared.broker.extend(name.clone(), self.extend, self.extend_us).await,
            }
        };
        let (settled, extended) = tokio::join!(settle, extend);
        Ok(results(self.correlation_id, self.acks, settled?, extended?))
    }
}

fn results(
    correlation_id: u64,
    acks: usize,
    mut settled: Vec<Settled>,
    extended: Vec<Settled>,
) -> AckResults {
    let nacked = settled.split_off(acks.min(settled.len()));
    AckResults {
        correlation_id,
        acks: ending::results(settled),
        nacks: ending::results(nacked),
        extensions: ending::results(extended),
    }
}
