//! Which processor a simulated machine has. Of its threads one runs at a time, and to wake one on another processor
//! takes several times as long as on the same: so they share one, and machines that run beside each other take others.

/// Keeps the calling thread, and those that it starts from now on, on one processor until it ends.
#[cfg(target_os = "linux")]
pub fn take_one() {
    thread_local!(static SEAT: Option<linux::Seat> = linux::Seat::take());
    SEAT.with(|_| ());
}

#[cfg(not(target_os = "linux"))]
pub fn take_one() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::{Mutex, MutexGuard};

    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    /// Machines on each processor.
    static TAKEN: Mutex<[usize; CpuSet::MAX_CPU]> = Mutex::new([0; CpuSet::MAX_CPU]);

    fn taken() -> MutexGuard<'static, [usize; CpuSet::MAX_CPU]> {
        TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A place on a processor, free again when dropped.
    pub struct Seat(usize);

    impl Seat {
        /// The processor with the fewest machines, or this one; none if the kernel does not allow that.
        pub fn take() -> Option<Self> {
            let allowed = sched_getaffinity(None).ok()?;
            let mut taken = taken();
            let free = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
            let here = sched_getcpu();
            let cpu = free.min_by_key(|cpu| (taken[*cpu], *cpu != here))?;
            let mut one = CpuSet::new();
            one.set(cpu);
            sched_setaffinity(None, &one).ok()?;
            taken[cpu] += 1;
            Some(Self(cpu))
        }
    }

    impl Drop for Seat {
        fn drop(&mut self) {
            taken()[self.0] -= 1;
        }
    }
}
