//! Checkpoints against a model: what they must hold is kept beside them, place by place.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::disk::{Operation, RealDisk};
use crate::log::LogCounters;
use crate::log::reserve::Reserve;
use crate::log::supply::Supply;
use crate::log::system::SegmentAdded;
use crate::log::tests::crash::{CrashDisk, Unsynced};
use crate::log::tests::hook::{HookDisk, Verdict};

const CLUSTER: Uid = Uid([7; 16]);

type State = BTreeMap<u64, Vec<u8>>;

fn mark(lsn: u64) -> Mark {
    let mut set = SegmentSet::default();
    set.add(SegmentAdded { segment: SegmentNumber(3), bytes: 4096 });
    let chain = Chain { lsn: Lsn(lsn - 1), sequence: 5, previous_crc: 6, epoch: 1, log_time_us: 77 };
    let start = ReplayStart { segment: SegmentNumber(lsn / 10), chain };
    Mark { lsn: Lsn(lsn), start, incarnation: 4, highest: SegmentNumber(8), set }
}

/// What a start finds: the place, the head, the parts.
fn restored(disk: &dyn Disk) -> Option<(u64, Vec<u8>, State)> {
    let found = find(disk, CLUSTER).unwrap();
    let (mark, image) = image(disk, CLUSTER, &points(&found.files).next()?).unwrap();
    assert_eq!(mark, self::mark(mark.lsn.0));
    let (head, mut state) = (image.head().to_vec(), State::new());
    let each = |key, part: &[u8]| {
        assert_eq!(state.insert(key, part.to_vec()), None);
        Ok(())
    };
    image.each_part(each).unwrap();
    Some((mark.lsn.0, head, state))
}

fn checkpoints(disk: &Arc<dyn Disk>, counters: &Arc<LogCounters>, files: Vec<Kept>) -> Checkpoints {
    let supply = Arc::new(Supply::new(disk.clone(), 1 << 20, counters.clone()));
    Checkpoints::new(disk.clone(), CLUSTER, counters.clone(), supply, files)
}

/// What changes, and its checkpoints.
struct Run {
    disk: Arc<dyn Disk>,
    checkpoints: Checkpoints,
    counters: Arc<LogCounters>,
    state: State,
    /// By place.
    states: BTreeMap<u64, State>,
    lsn: u64,
}

impl Run {
    fn on(disk: Arc<dyn Disk>) -> Self {
        disk.create_dir(DIR).unwrap();
        disk.create_dir("quarantine").unwrap();
        let counters = Arc::<LogCounters>::default();
        let checkpoints = checkpoints(&disk, &counters, Vec::new());
        Self { disk, checkpoints, counters, state: State::new(), states: BTreeMap::new(), lsn: 0 }
    }

    fn in_dir() -> (tempfile::TempDir, Self) {
        let dir = tempfile::tempdir().unwrap();
        let run = Self::on(Arc::new(RealDisk::new(dir.path())));
        (dir, run)
    }

    /// Goes on with what a start finds.
    fn restart(&mut self) {
        let found = find(&*self.disk, CLUSTER).unwrap();
        found.damaged.iter().for_each(|(name, _)| drop(set_aside(&*self.disk, *name).unwrap()));
        self.state = restored(&*self.disk).map_or_else(State::new, |(_, _, state)| state);
        self.checkpoints = checkpoints(&self.disk, &self.counters, found.files);
    }

    /// Takes a checkpoint in which these parts are new; without bytes they are gone.
    fn take(&mut self, changes: &[(u64, Vec<u8>)]) -> Result<Taken, LogError> {
        let mut parts = Parts::default();
        for (key, part) in changes {
            self.state.remove(key);
            if !part.is_empty() {
                self.state.insert(*key, part.clone());
            }
            parts.put(*key, |out| out.extend_from_slice(part));
        }
        self.lsn += 10;
        self.states.insert(self.lsn, self.state.clone());
        let (mark, head) = (mark(self.lsn), self.lsn.to_string());
        self.checkpoints.take(&New { mark: &mark, head: head.as_bytes(), parts: &parts })
    }

    /// Changes about one in four of `keys` parts, and takes a checkpoint.
    fn step(&mut self, keys: u64, bytes: usize) {
        let changes = self.changes(keys, bytes, 4);
        assert_eq!(self.take(&changes).unwrap(), Taken::Written);
    }

    /// Changes by chance: all of `keys` parts at first, then about one in so many.
    fn changes(&self, keys: u64, bytes: usize, one_in: u64) -> Vec<(u64, Vec<u8>)> {
        let hash = |key: u64| (key * 77 + self.lsn).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let changed = (1..=keys).filter(|key| self.lsn == 0 || hash(*key).is_multiple_of(one_in));
        let part = |key| match hash(key) / one_in % 4 {
            0 if self.lsn > 0 => Vec::new(),
            _ => vec![hash(key) as u8; bytes + key as usize],
        };
        changed.map(|key| (key, part(key))).collect()
    }

    /// What a start finds is what was, at `from` or later.
    fn check(&self, disk: &dyn Disk, from: u64) -> u64 {
        let (lsn, head, state) = restored(disk).expect("there is a checkpoint");
        assert!(lsn >= from, "{lsn} is before {from}");
        assert_eq!(head, lsn.to_string().as_bytes());
        assert!(state == self.states[&lsn], "the state of {lsn}");
        lsn
    }

    fn names(&self) -> Vec<String> {
        list(&*self.disk).unwrap().iter().map(|name| format!("{:?} {}", name.kind, name.lsn)).collect()
    }

    fn fallback(&self) -> Option<u64> {
        self.checkpoints.fallback().map(|kept| kept.lsn().0)
    }
}

fn file(dir: &Path, name: Name) -> std::path::PathBuf {
    dir.join(name.path())
}

#[test]
fn the_newest_two_of_each_kind_are_kept_and_the_last_comes_back() {
    let (_dir, mut run) = Run::in_dir();
    assert_eq!(run.fallback(), None);
    run.take(&[(1, vec![1; 3 << 20]), (2, vec![2; 100]), (9, vec![9])]).unwrap();
    assert_eq!((run.names(), run.fallback()), (vec!["Base 10".to_owned()], None), "one alone is no fallback");
    run.take(&[(2, vec![3; 100])]).unwrap();
    assert_eq!(run.names(), ["Base 10", "Base 20", "Delta 20"]);
    assert_eq!(run.fallback(), Some(10));
    run.take(&[(2, vec![]), (5, vec![5; 2 << 20])]).unwrap();
    assert_eq!(run.names(), ["Base 10", "Base 20", "Delta 20", "Delta 30"]);
    assert_eq!(run.fallback(), Some(20));
    run.take(&[(7, vec![7])]).unwrap();
    assert_eq!(run.names(), ["Base 20", "Delta 30", "Base 40", "Delta 40"], "4 MiB of deltas, 3 of the base");
    assert_eq!(run.fallback(), Some(30));
    run.take(&[(8, vec![8])]).unwrap();
    assert_eq!(run.names(), ["Base 20", "Base 40", "Delta 40", "Delta 50"]);
    assert_eq!(run.fallback(), Some(40));
    run.take(&[]).unwrap();
    assert_eq!(run.checkpoints.files.last().unwrap().since, Lsn(20));
    assert!(run.checkpoints.files.last().unwrap().bytes > 2 << 20, "of what came after 20");
    assert_eq!(run.check(&*run.disk, 0), 60);
    let other = Uid([8; 16]);
    assert!(find(&*run.disk, other).unwrap().files.is_empty(), "another cluster's are not taken");
}

/// Any one file may be lost, whenever, and what is left leads to the last place or the one before, which is never
/// before the fallback.
#[test]
fn whichever_file_is_damaged_the_others_serve() {
    let (dir, mut run) = Run::in_dir();
    let mut before = None;
    for round in 0..60 {
        // Bases come often, then seldom.
        let (bytes, one_in) = if round < 20 { ([10, 1_000, 40_000][round % 3], 4) } else { (1_000, 40) };
        let changes = run.changes(60, bytes, one_in);
        assert_eq!(run.take(&changes).unwrap(), Taken::Written);
        let fallback = run.fallback();
        assert!(fallback >= before, "it never falls");
        assert_eq!(fallback.is_some(), round > 0);
        before = fallback;
        let names = list(&*run.disk).unwrap();
        assert!(names.len() <= 4, "{names:?}");
        for name in &names {
            let good = std::fs::read(file(dir.path(), *name)).unwrap();
            let mut bad = good.clone();
            bad[good.len() * (round % 10) / 10] ^= 1;
            std::fs::write(file(dir.path(), *name), &bad).unwrap();
            if round > 0 {
                let lsn = run.check(&*run.disk, fallback.unwrap());
                assert!(lsn + 10 >= run.lsn, "{lsn} of {}", run.lsn);
            }
            let damaged = find(&*run.disk, CLUSTER).unwrap().damaged;
            assert_eq!(damaged[0].0, *name);
            std::fs::write(file(dir.path(), *name), &good).unwrap();
        }
    }
    let bases = run.counters.checkpoint_bases.get();
    assert!(bases > 10 && bases < 30, "{bases}");
}

#[test]
fn it_goes_on_after_a_start_with_what_a_damaged_file_has_left() {
    for victim in 0..4 {
        for rounds in 2..9 {
            let (dir, mut run) = Run::in_dir();
            (0..rounds).for_each(|_| run.step(30, 500));
            let names = list(&*run.disk).unwrap();
            let Some(name) = names.get(victim) else { continue };
            let path = file(dir.path(), *name);
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let mut fallback = run.fallback();
            run.restart();
            run.check(&*run.disk, fallback.unwrap());
            let aside: Vec<_> = std::fs::read_dir(dir.path().join("quarantine")).unwrap().collect();
            assert!(!aside.is_empty() && aside.len() < 3, "{aside:?}");
            for _ in 0..6 {
                run.step(30, 500);
                assert_eq!(run.check(&*run.disk, 0), run.lsn);
                assert!(find(&*run.disk, CLUSTER).unwrap().damaged.is_empty(), "no file is left alone");
                fallback = fallback.max(run.fallback());
                assert!(run.fallback() >= fallback || run.fallback().is_none());
                run.restart();
            }
            assert_eq!(run.fallback(), Some(run.lsn - 10), "two bases again");
        }
    }
}

#[test]
fn every_flipped_byte_and_every_cut_is_seen() {
    let (dir, mut run) = Run::in_dir();
    (0..3).for_each(|_| run.step(5, 8));
    let mut names = list(&*run.disk).unwrap();
    assert!(names.iter().any(|name| name.kind == Kind::Base) && names.len() > 3, "{names:?}");
    names.sort_by_key(|name| std::cmp::Reverse(*name));
    for name in names {
        let path = file(dir.path(), name);
        let good = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8], what: String| {
            std::fs::write(&path, bytes).unwrap();
            let damaged = find(&*run.disk, CLUSTER).unwrap().damaged;
            assert_eq!(damaged.first().map(|(name, _)| *name), Some(name), "{what} of {name}");
            run.check(&*run.disk, run.fallback().unwrap());
        };
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            damaged(&bytes, format!("byte {at}"));
        }
        (0..good.len()).for_each(|cut| damaged(&good[..cut], format!("cut at {cut}")));
        damaged(&[&good[..], &[0]].concat(), "a byte more".to_owned());
        std::fs::write(&path, &good).unwrap();
    }
}

/// The power goes at each operation in turn, and what was not synced is lost, or kept, or some of it.
#[test]
fn the_power_may_go_at_any_moment() {
    let steps = 7;
    let run_on = |disk: &CrashDisk| {
        let mut run = Run::on(Arc::new(disk.clone()));
        let mut written = (0, None);
        for _ in 0..steps {
            let changes = run.changes(12, 700, 4);
            if run.take(&changes).is_err() {
                break;
            }
            written = (run.lsn, run.fallback());
        }
        (run, written)
    };
    let whole = CrashDisk::default();
    assert_eq!(run_on(&whole).1.0, 10 * steps);
    assert!(whole.operations() > 50, "{}", whole.operations());
    for left in 0..whole.operations() {
        let disk = CrashDisk::default();
        disk.fail_after(left);
        let (run, (written, _)) = run_on(&disk);
        for unsynced in [Unsynced::Lost, Unsynced::Kept, Unsynced::Either(left), Unsynced::Either(left + 999)]
        {
            let after = disk.after_crash(unsynced);
            let found = find(&after, CLUSTER).unwrap();
            assert!(found.damaged.is_empty(), "{unsynced:?} after {left}: {:?}", found.damaged);
            if written > 0 {
                run.check(&after, written);
            }
            let mut next = Run::on(Arc::new(after));
            (next.lsn, next.states) = (run.lsn, run.states.clone());
            remove_temps(&*next.disk).unwrap();
            next.restart();
            (0..3).for_each(|_| next.step(12, 700));
            assert_eq!(next.check(&*next.disk, 0), next.lsn);
            assert!(list(&*next.disk).unwrap().len() <= 4);
        }
    }
}

#[test]
fn damage_that_a_merge_meets_costs_one_file_or_asks_for_all() {
    let flip = |dir: &Path, name: Name| {
        let mut bytes = std::fs::read(file(dir, name)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file(dir, name), &bytes).unwrap();
    };
    let ready = || {
        let (dir, mut run) = Run::in_dir();
        run.take(&[(1, vec![1; 500]), (2, vec![2; 500])]).unwrap();
        (3..6).for_each(|key| assert_eq!(run.take(&[(key, vec![key as u8; 100])]).unwrap(), Taken::Written));
        (dir, run)
    };
    // A base: the other one serves.
    let (dir, mut run) = ready();
    let newer = *run.checkpoints.bases().last().unwrap();
    flip(dir.path(), newer.name);
    run.take(&[(9, vec![9; 3_000])]).unwrap();
    assert_eq!(run.check(&*run.disk, 0), run.lsn);
    assert_eq!(std::fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1);
    assert!(run.checkpoints.bases().len() == 2 && run.checkpoints.bases()[1].lsn().0 == run.lsn);
    // The last delta: nobody knows what it held.
    let (dir, mut run) = ready();
    let fallback = run.fallback().unwrap();
    flip(dir.path(), run.checkpoints.last.unwrap().name);
    assert_eq!(run.take(&[(9, vec![9; 3_000])]).unwrap(), Taken::AllNeeded);
    run.check(&*run.disk, fallback);
    let all: Vec<_> = run.state.clone().into_iter().collect();
    assert_eq!(run.take(&all).unwrap(), Taken::Written);
    assert_eq!(run.check(&*run.disk, 0), run.lsn);
    run.take(&[(9, vec![8])]).unwrap();
    assert_eq!((run.check(&*run.disk, 0), run.fallback()), (run.lsn, Some(run.lsn - 10)));
}

#[test]
fn a_base_waits_for_space_and_nothing_leaves_that_it_would_need() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let switch = full.clone();
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        let new_base = operation == Operation::Write && path.to_string_lossy().contains("20.base.ckpt");
        let refused = new_base && switch.load(Ordering::Relaxed);
        if refused { Verdict::Fail(io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    let mut run = Run::on(disk);
    run.take(&[(1, vec![1; 100])]).unwrap();
    run.take(&[(2, vec![2; 100])]).unwrap();
    assert_eq!((run.names(), run.fallback()), (vec!["Base 10".to_owned(), "Delta 20".to_owned()], None));
    assert!(dir.path().join(Reserve::Checkpoint.path()).exists());
    run.take(&[(3, vec![3; 100])]).unwrap();
    assert_eq!(run.names(), ["Base 10", "Delta 20", "Base 30", "Delta 30"]);
    assert_eq!(run.fallback(), Some(20));
    assert_eq!(run.check(&*run.disk, 0), 30);
}

/// Of many parts, of which few change, few are given and few bytes are written; bases come in proportion.
#[test]
fn the_cost_follows_what_changes() {
    let (_dir, mut run) = Run::in_dir();
    let all: Vec<(u64, Vec<u8>)> = (1..=10_000).map(|key| (key, vec![1; 200])).collect();
    run.take(&all).unwrap();
    let base = run.counters.checkpoint_bytes.get();
    assert!(base > 2_000_000);
    run.take(&[]).unwrap();
    let mut always_same = 0;
    for _ in 0..100 {
        let before = run.counters.checkpoint_bytes.get();
        let some: Vec<(u64, Vec<u8>)> = (1..=10).map(|key| (key, vec![run.lsn as u8; 200])).collect();
        run.take(&some).unwrap();
        let bytes = run.counters.checkpoint_bytes.get() - before;
        assert!(bytes < 3_000, "{bytes}");
        always_same += bytes;
    }
    assert_eq!(run.counters.checkpoint_bases.get(), 1);
    assert!(always_same < 300_000);
    let before = run.counters.checkpoint_bytes.get();
    for round in 0..400 {
        let some: Vec<(u64, Vec<u8>)> = (1..=10).map(|key| (round * 10 + key, vec![2; 200])).collect();
        run.take(&some).unwrap();
    }
    let (each, changed) = ((run.counters.checkpoint_bytes.get() - before) / 400, 10 * 220);
    let bound = 2.5 * ((base * changed) as f64).sqrt();
    assert!((each as f64) < bound, "{each} bytes a checkpoint, of {bound}");
    assert_eq!(run.check(&*run.disk, 0), run.lsn);
}
