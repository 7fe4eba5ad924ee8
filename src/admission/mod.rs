//! Memory at the edge: budgets in bytes, two for requests that are being read or answered ([`Budgets`]), one
//! ([`Outflow`]) for all messages that are read for somebody. None can use up another's.
//!
//! 1. A request takes its size from the budget before its body is read, and gives it back with its reply, so
//!    bodies in memory are bounded by the budget however many connections there are.
//! 2. Who finds the budget used up waits a short bounded time (the network is back-pressured meanwhile), then is
//!    refused with a delay that differs from caller to caller, so that they do not come back all at once.
//!    A stream waits its turn instead, and the network holds its sender back; it is refused where what has come of it
//!    would be too much with that of others.
//! 3. Waiters are served in order, so a large request is not starved by small ones.
//! 4. Publishes have a budget of their own: what finishes work, and every other call, goes on while they are held back.

mod outflow;
mod stall;

pub use outflow::{
    Held, Line, OUTFLOW_BYTES, Outflow, Outlet, PIECE_BYTES, SEND_BYTES, answer_memory, bytes_within,
    memory_of,
};

pub use stall::Stall;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{OTHER_REQUEST_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::planted;

/// Memory for publishes under way, bytes. With other requests, what comes in before there is memory for it (windows of
/// 12 MiB, and 5 MiB beyond), what goes out (24 MiB), the cache of the newest messages and the broker's own reads (8 MiB
/// each) it makes 96 MiB.
const PUBLISHES_BYTES: u64 = 32 << 20;
/// Memory for other requests under way, bytes.
const OTHERS_BYTES: u64 = 7 << 20;
/// What one permit of the semaphore stands for, so that budgets over 4 GiB fit its 32 bits.
const UNIT_BYTES: u64 = 1024;
/// How long a request waits for memory before it is refused.
const WAIT_MAX: Duration = Duration::from_millis(200);

/// Bytes that may be kept although there is no memory for their requests yet: the first of each, by which its length
/// is known.
const EARLY_BYTES_MAX: u64 = 4 << 20;
/// The same for requests that publish nothing.
const OTHERS_EARLY_BYTES_MAX: u64 = 1 << 20;

/// A budget of bytes, shared by its clones.
#[derive(Clone, Debug)]
pub struct Admission {
    units: Arc<Semaphore>,
    units_max: u32,
    request_bytes_max: u64,
    wait_max: Duration,
    early_bytes_max: u64,
    /// Who waits for as long as it takes.
    waiting: Arc<AtomicUsize>,
    early: Arc<AtomicU64>,
    /// How often memory was asked for and not there.
    shortages: Arc<AtomicU64>,
}

/// The budgets of requests, shared by its clones.
#[derive(Clone, Debug)]
pub struct Budgets {
    pub publishes: Admission,
    /// For all that publishes nothing: acks among them.
    pub others: Admission,
}

impl Default for Budgets {
    fn default() -> Self {
        Self::new(
            Admission::new(PUBLISHES_BYTES, REQUEST_BYTES_MAX as u64),
            Admission::new(OTHERS_BYTES, OTHER_REQUEST_BYTES_MAX as u64),
        )
    }
}

impl Budgets {
    pub fn new(publishes: Admission, others: Admission) -> Self {
        Self { publishes, others: Admission { early_bytes_max: OTHERS_EARLY_BYTES_MAX, ..others } }
    }

    /// All of them.
    pub fn budget_bytes(&self) -> u64 {
        self.publishes.budget_bytes() + self.others.budget_bytes()
    }

    /// What is taken now.
    pub fn used_bytes(&self) -> u64 {
        self.publishes.used_bytes() + self.others.used_bytes()
    }

    /// Something was short that requests under way hold, of both kinds.
    pub fn miss(&self) {
        self.publishes.miss();
        self.others.miss();
    }
}

/// Bytes of a request that has no memory yet; they count until this is dropped.
#[derive(Debug)]
pub struct Early {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Early {
    /// More of them, whether or not they should be kept: see [`Admission::has_early_room`].
    pub fn add(&mut self, bytes: u64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes taken from the budget; dropping gives them back.
#[derive(Debug)]
pub struct Permit {
    units: OwnedSemaphorePermit,
    bytes: u64,
}

impl Permit {
    /// The bytes that were asked for, though a budget that is smaller has given all it had.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what is beyond these bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        let rest = self.split(self.bytes.saturating_sub(bytes));
        if planted::bug("permit-kept") {
            std::mem::forget(rest);
        }
    }

    /// Adds one of the same budget to this.
    pub fn merge(&mut self, other: Permit) {
        self.units.merge(other.units);
        self.bytes += other.bytes;
    }

    /// Takes these bytes off, as far as they are there, into a permit of their own.
    pub fn split(&mut self, bytes: u64) -> Option<Permit> {
        let bytes = bytes.min(self.bytes);
        let left = self.bytes - bytes;
        // What is left is covered first: units are whole.
        let units = self.units.num_permits().saturating_sub(units(left) as usize);
        let units = self.units.split(units)?;
        self.bytes = left;
        Some(Permit { units, bytes })
    }
}

/// The budget is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a request of {wanted_bytes} bytes found the memory budget of {budget_bytes} bytes in use; try again after the delay"
)]
pub struct BudgetUsedUp {
    pub wanted_bytes: u64,
    pub budget_bytes: u64,
}

impl Admission {
    /// A budget of this many bytes. It is raised to `request_bytes_max` if smaller, so that the largest request can
    /// be admitted at all.
    pub fn new(budget_bytes: u64, request_bytes_max: u64) -> Self {
        let units = budget_bytes.max(request_bytes_max).div_ceil(UNIT_BYTES);
        let units_max = u32::try_from(units).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS as u32);
        let units = Arc::new(Semaphore::new(units_max as usize));
        Self {
            units,
            units_max,
            request_bytes_max,
            wait_max: WAIT_MAX,
            early_bytes_max: EARLY_BYTES_MAX,
            waiting: Arc::default(),
            early: Arc::default(),
            shortages: Arc::default(),
        }
    }

    /// The whole budget.
    pub fn budget_bytes(&self) -> u64 {
        u64::from(self.units_max) * UNIT_BYTES
    }

    /// The largest request that is admitted.
    pub fn request_bytes_max(&self) -> u64 {
        self.request_bytes_max
    }

    /// What is taken now.
    pub fn used_bytes(&self) -> u64 {
        self.budget_bytes() - self.units.available_permits() as u64 * UNIT_BYTES
    }

    /// Takes bytes if they are free now. A request larger than the budget takes all of it.
    pub fn try_admit(&self, bytes: u64) -> Option<Permit> {
        match self.units.clone().try_acquire_many_owned(self.units_of(bytes)) {
            Ok(units) => Some(Permit { units, bytes }),
            Err(_) => {
                self.shortages.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// How often memory was asked for and not there at once.
    pub fn shortages(&self) -> u64 {
        self.shortages.load(Ordering::Relaxed)
    }

    /// Something else was short that requests under way hold.
    fn miss(&self) {
        self.shortages.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps the first bytes of a request that waits for memory of `wanted_bytes`, if not too many wait.
    pub fn keep_early(&self, bytes: u64, wanted_bytes: u64) -> Result<Early, BudgetUsedUp> {
        let all = self.early.clone();
        let kept = all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let early = Early { bytes, all };
        match kept <= self.early_bytes_max {
            true => Ok(early),
            false => Err(BudgetUsedUp { wanted_bytes, budget_bytes: self.budget_bytes() }),
        }
    }

    /// Counts bytes that are kept before they are asked for; none yet.
    pub fn early(&self) -> Early {
        Early { bytes: 0, all: self.early.clone() }
    }

    /// Whether some more may be kept before they are asked for: half of the room is for requests that wait.
    pub fn has_early_room(&self) -> bool {
        self.early.load(Ordering::Relaxed) < self.early_bytes_max / 2
    }

    /// Takes bytes, waiting a short bounded time for them.
    pub async fn admit(&self, bytes: u64) -> Result<Permit, BudgetUsedUp> {
        if let Some(permit) = self.try_admit(bytes) {
            return Ok(permit);
        }
        let acquire = self.units.clone().acquire_many_owned(self.units_of(bytes));
        match tokio::time::timeout(self.wait_max, acquire).await {
            Ok(units) => Ok(Permit { units: units.expect("the semaphore is never closed"), bytes }),
            Err(_) => Err(BudgetUsedUp { wanted_bytes: bytes, budget_bytes: self.budget_bytes() }),
        }
    }

    /// Takes bytes, waiting for them as long as it takes.
    pub async fn wait(&self, bytes: u64) -> Permit {
        if let Some(permit) = self.try_admit(bytes) {
            return permit;
        }
        let _waiter = Waiter::new(&self.waiting);
        let units = self.units.clone().acquire_many_owned(self.units_of(bytes)).await;
        Permit { units: units.expect("the semaphore is never closed"), bytes }
    }

    /// How many wait for as long as it takes.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn units_of(&self, bytes: u64) -> u32 {
        units(bytes).min(self.units_max)
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// Counts as long as it lives.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A delay of `base` to twice that. Successive calls differ: jitter is a hash of a counter.
pub fn retry_delay(base: Duration) -> Duration {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    base + base.mul_f64(fraction(call))
}

/// A number in 0..1 that looks random (the finisher of splitmix64).
fn fraction(seed: u64) -> f64 {
    let mut hash = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((hash ^ (hash >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(budget_bytes: u64) -> Admission {
        Admission { wait_max: Duration::from_millis(5), ..Admission::new(budget_bytes, 0) }
    }

    #[tokio::test]
    async fn the_budget_is_taken_and_given_back() {
        let admission = small(10 * 1024);
        let first = admission.admit(6 * 1024).await.unwrap();
        assert_eq!(admission.used_bytes(), 6 * 1024);
        let refused = admission.admit(5 * 1024).await.unwrap_err();
        assert_eq!(refused, BudgetUsedUp { wanted_bytes: 5 * 1024, budget_bytes: 10 * 1024 });
        assert!(admission.try_admit(5 * 1024).is_none());
        let second = admission.try_admit(1).unwrap();
        assert_eq!(admission.used_bytes(), 7 * 1024);
        drop((first, second));
        assert_eq!(admission.used_bytes(), 0);
    }

    #[test]
    fn what_comes_before_there_is_memory_for_it_is_kept_up_to_a_bound() {
        let admission = small(10 * 1024);
        let kept: Vec<_> = (0..4).map(|_| admission.keep_early(1 << 20, 9).unwrap()).collect();
        let refused = admission.keep_early(1, 9).unwrap_err();
        assert_eq!(refused, BudgetUsedUp { wanted_bytes: 9, budget_bytes: 10 * 1024 });
        drop(kept);
        assert!(admission.keep_early(EARLY_BYTES_MAX, 9).is_ok());
    }

    #[tokio::test]
    async fn the_largest_request_fits_any_budget() {
        let admission = Admission::new(1, 9 << 20);
        assert_eq!(admission.budget_bytes(), 9 << 20);
        let _all = admission.admit(u64::MAX).await.unwrap();
        assert_eq!(admission.used_bytes(), 9 << 20);
    }

    #[tokio::test]
    async fn a_waiter_gets_what_is_given_back() {
        let admission = Admission { wait_max: Duration::from_secs(60), ..Admission::new(1024, 0) };
        let taken = admission.admit(1024).await.unwrap();
        let waiter = tokio::spawn({
            let admission = admission.clone();
            async move { admission.admit(1024).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(taken);
        assert_eq!(waiter.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_permit_is_given_back_in_parts() {
        let admission = small(10 * 1024);
        let mut whole = admission.wait(9 * 1024 + 1).await;
        let part = whole.split(3 * 1024).unwrap();
        assert_eq!(
            (whole.bytes(), part.bytes(), admission.used_bytes()),
            (6 * 1024 + 1, 3 * 1024, 10 * 1024)
        );
        drop(part);
        assert_eq!(admission.used_bytes(), 7 * 1024);
        whole.shrink_to(1);
        assert_eq!((whole.bytes(), admission.used_bytes()), (1, 1024));
        whole.shrink_to(1024);
        assert_eq!((whole.bytes(), admission.used_bytes()), (1, 1024));
        drop(whole);
        assert_eq!(admission.used_bytes(), 0);
    }

    #[test]
    fn delays_differ_within_their_bounds() {
        let base = Duration::from_secs(1);
        let delays: std::collections::BTreeSet<Duration> = (0..100).map(|_| retry_delay(base)).collect();
        assert_eq!(delays.len(), 100);
        assert!(delays.iter().all(|delay| (base..2 * base).contains(delay)));
    }
}
