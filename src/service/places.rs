//! Places for connections: so many in all, so many for one address, and none for long without work.
//!
//! 1. A connection holds its place until it has ended. One address has at most its share of them; a network of 64 bits
//!    counts as one address of IPv6, for that is what one machine has.
//! 2. A connection is at work while a call of it is under way or a stream of it is open. One that has been without work
//!    for [`IDLE_MAX`] is asked to leave: GOAWAY, after which clients connect anew when they have work again.
//! 3. Calls are bounded over all connections, and an address has the same share of them as of connections: what is beyond
//!    is refused at once, and says that others wait, so that calls whose requests do not come end.
//! 4. While no place is free and somebody waits for one, the connection that has been without work for the longest
//!    time, at least [`IDLE_MIN`], is asked to leave, then the next one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::observe::connections::Connections;

/// Most calls and streams under way at one time, over all connections. Each takes up to 10 KiB, whether or not its client
/// sends anything.
const CALLS_MAX: usize = 4_096;
/// How long a connection may be without work.
pub const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long it may be so at least, even when others want its place.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// How often somebody is asked to leave while somebody waits.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Most connections at one time, in all and of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub all: usize,
    pub per_address: usize,
}

impl Bounds {
    /// Calls of one address at one time: it has the same share of them.
    fn calls_per_address(self) -> usize {
        (CALLS_MAX * self.per_address / self.all).max(1)
    }
}

/// All places; clones share them.
#[derive(Clone)]
pub struct Places {
    inner: Arc<Inner>,
}

struct Inner {
    bounds: Bounds,
    figures: Connections,
    /// Locked for a look or a move only.
    taken: Mutex<Taken>,
    freed: Notify,
    calls: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    all: HashMap<u64, Arc<Work>>,
    by_address: HashMap<IpAddr, Arc<Address>>,
}

/// What one address has.
#[derive(Default)]
struct Address {
    connections: AtomicUsize,
    calls: AtomicUsize,
}

/// The place of one connection; free again when dropped.
pub struct Place {
    inner: Arc<Inner>,
    number: u64,
    address: IpAddr,
    work: Arc<Work>,
}

/// What a connection has to do.
pub struct Work {
    address: Arc<Address>,
    /// Calls of all connections.
    calls: Arc<AtomicUsize>,
    bounds: Bounds,
    begun: Instant,
    /// Calls and streams under way.
    under_way: AtomicUsize,
    /// When the last one of them ended, milliseconds after it had begun.
    ended_ms: AtomicU64,
    is_asked: AtomicBool,
    asked: Notify,
}

/// A call or a stream of a connection, until dropped.
pub struct UnderWay(Arc<Work>);

impl Places {
    pub fn new(bounds: Bounds, figures: Connections) -> Self {
        let (taken, freed, calls) = (Mutex::default(), Notify::new(), Arc::default());
        Self { inner: Arc::new(Inner { bounds, figures, taken, freed, calls }) }
    }

    pub fn figures(&self) -> &Connections {
        &self.inner.figures
    }

    /// Whether an address has its share.
    pub fn is_over(&self, address: IpAddr) -> bool {
        let taken = self.inner.lock();
        let most = self.inner.bounds.per_address;
        taken
            .by_address
            .get(&network(address))
            .is_some_and(|address| address.connections.load(Ordering::Relaxed) >= most)
    }

    /// A place, as soon as there is one.
    pub async fn take(&self, address: IpAddr) -> Place {
        loop {
            let freed = self.inner.freed.notified();
            if let Some(place) = self.try_take(network(address)) {
                return place;
            }
            self.make_room();
            // Who was asked may not leave.
            let _ = tokio::time::timeout(ASK_EVERY, freed).await;
        }
    }

    /// Asks the one to leave that has been without work the longest, if there is one.
    pub fn make_room(&self) {
        let taken = self.inner.lock();
        let idle = taken.all.values().filter(|work| !work.is_asked.load(Ordering::Relaxed));
        let idle = idle.filter_map(|work| Some((work.idle()?, work)));
        if let Some((_, work)) = idle.filter(|(idle, _)| *idle >= IDLE_MIN).max_by_key(|(idle, _)| *idle) {
            work.is_asked.store(true, Ordering::Relaxed);
            work.asked.notify_one();
        }
    }

    fn try_take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.inner.lock();
        if taken.all.len() >= self.inner.bounds.all {
            return None;
        }
        let of_address = taken.by_address.entry(address).or_default().clone();
        of_address.connections.fetch_add(1, Ordering::Relaxed);
        let work = Arc::new(Work::new(of_address, &self.inner));
        let number = taken.next;
        taken.next += 1;
        taken.all.insert(number, work.clone());
        self.inner.figures.open(taken.all.len());
        Some(Place { inner: self.inner.clone(), number, address, work })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Place {
    pub fn work(&self) -> &Arc<Work> {
        &self.work
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.inner.lock();
        taken.all.remove(&self.number);
        // Others are counted under the lock too.
        if self.work.address.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            taken.by_address.remove(&self.address);
        }
        self.inner.figures.open(taken.all.len());
        drop(taken);
        self.inner.freed.notify_one();
    }
}

impl Work {
    fn new(address: Arc<Address>, places: &Inner) -> Self {
        Self {
            address,
            calls: places.calls.clone(),
            bounds: places.bounds,
            begun: Instant::now(),
            under_way: AtomicUsize::new(0),
            ended_ms: AtomicU64::new(0),
            is_asked: AtomicBool::new(false),
            asked: Notify::new(),
        }
    }

    /// A call or a stream begins.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.address.calls.fetch_add(1, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Whether more calls are under way than may be, of its address or in all.
    pub fn has_too_many_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > CALLS_MAX
            || self.address.calls.load(Ordering::Relaxed) > self.bounds.calls_per_address()
    }

    /// How long it has been without work; none if it is at work.
    pub fn idle(&self) -> Option<Duration> {
        let ended = Duration::from_millis(self.ended_ms.load(Ordering::Relaxed));
        let is_idle = self.under_way.load(Ordering::Relaxed) == 0;
        is_idle.then(|| self.begun.elapsed().saturating_sub(ended))
    }

    /// Waits until it is to leave.
    pub async fn leaving(&self) {
        loop {
            let left = match self.idle() {
                Some(idle) if idle >= IDLE_MAX => return,
                Some(idle) => IDLE_MAX - idle,
                None => IDLE_MAX,
            };
            if tokio::time::timeout(left, self.asked.notified()).await.is_ok() {
                return;
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended_ms.store(self.0.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.0.address.calls.fetch_sub(1, Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    fn places(all: usize, per_address: usize) -> Places {
        Places::new(Bounds { all, per_address }, Connections::new(&Metrics::default()))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_no_more() {
        let places = places(4, 2);
        let mut taken = Vec::new();
        for (address, is_over) in
            [("10.0.0.1", false), ("10.0.0.1", false), ("::ffff:10.0.0.1", true), ("10.0.0.2", false)]
        {
            assert_eq!(places.is_over(ip(address)), is_over, "{address}");
            if !is_over {
                taken.push(places.take(ip(address)).await);
            }
        }
        taken.remove(0);
        assert!(!places.is_over(ip("10.0.0.1")));
        drop(taken);
        let _both = (places.take(ip("2001:db8::1")).await, places.take(ip("2001:db8::2")).await);
        assert!(places.is_over(ip("2001:db8::ffff:3")), "they are of one network");
        assert!(!places.is_over(ip("2001:db8:0:1::1")));
        assert_eq!(places.inner.lock().by_address.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_place_of_the_longest_without_work() {
        let places = places(3, 3);
        let busy = places.take(ip("10.0.0.1")).await;
        let _call = busy.work().begin();
        let (first, second) = (places.take(ip("10.0.0.1")).await, places.take(ip("10.0.0.1")).await);
        tokio::time::advance(Duration::from_secs(3)).await;
        drop(first.work().begin());
        tokio::time::advance(Duration::from_secs(3)).await;
        let waiting = tokio::spawn(async move { places.take(ip("10.0.0.2")).await.number });
        second.work().leaving().await;
        assert!(!first.work().is_asked.load(Ordering::Relaxed));
        // It does not leave, so the other is asked too.
        first.work().leaving().await;
        drop(first);
        assert_eq!(waiting.await.unwrap(), 3);
        assert!(!busy.work().is_asked.load(Ordering::Relaxed), "one at work is not asked");
    }

    #[tokio::test]
    async fn calls_are_bounded_for_each_address_and_in_all() {
        let places = places(4, 2);
        let (greedy, other) = (places.take(ip("10.0.0.1")).await, places.take(ip("10.0.0.2")).await);
        let again = places.take(ip("10.0.0.1")).await;
        let mut calls: Vec<UnderWay> = (0..CALLS_MAX / 2).map(|_| greedy.work().begin()).collect();
        assert!(!again.work().has_too_many_calls());
        calls.push(again.work().begin());
        assert!(greedy.work().has_too_many_calls() && !other.work().has_too_many_calls());
        calls.extend((0..CALLS_MAX / 2).map(|_| other.work().begin()));
        assert!(other.work().has_too_many_calls());
        calls.clear();
        assert!(!other.work().has_too_many_calls() && !greedy.work().has_too_many_calls());
    }

    #[tokio::test(start_paused = true)]
    async fn one_without_work_for_long_leaves() {
        let places = places(1, 1);
        let place = places.take(ip("10.0.0.1")).await;
        let call = place.work().begin();
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, place.work().leaving()).await.is_err(), "it is at work");
        drop(call);
        assert_eq!(place.work().idle(), Some(Duration::ZERO));
        assert!(tokio::time::timeout(IDLE_MAX - IDLE_MIN, place.work().leaving()).await.is_err());
        assert!(tokio::time::timeout(2 * IDLE_MAX, place.work().leaving()).await.is_ok());
    }
}
