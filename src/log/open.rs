//! Opening a log: the first start, and every later one.

use std::sync::Arc;

use super::assemble::Assembler;
use super::checkpoint::{self, Checkpoints, Found, ReplayStart};
use super::counters::LogCounters;
use super::directory::{self, Directory};
use super::ending;
use super::error::LogError;
use super::keeper::{House, Job, Keeper};
use super::packed;
use super::reader::Reader;
use super::reclaim::{Reclaim, Reclaimer};
use super::recovery::Recovery;
use super::reserve::Reserve;
use super::segment::{Blank, Salts};
use super::set::SegmentSet;
use super::spare::SpareMaker;
use super::supply::{self, Step, Supply};
use super::system::{SegmentAdded, ServerStarted};
use super::tail::{self, Blanks, Chain, Current, Room, Tail};
use super::writer::{Inbox, Writer};
use super::{Index, Log, LogEvent, LogOptions, OnEvent, OpenReport, StateMachine};
use crate::disk::{CountedDisk, Disk, DiskError, Operation};
use crate::host::{Host, RealHost};
use crate::ids::{SegmentNumber, Uid};
use crate::planted;
use crate::record::Record;
use crate::record::envelope::encoded_len;

/// Opens the log of a data directory, making it if it is new: brings `machine` to where the log ends, from the newest
/// good checkpoint, then starts the threads, which report to `on_event`.
pub fn open(
    disk: Arc<dyn Disk>,
    options: LogOptions,
    machine: &mut dyn StateMachine,
    on_event: OnEvent,
) -> Result<Log, LogError> {
    open_on(Arc::new(RealHost), disk, options, machine, on_event)
}

/// The same with the threads, clocks and randomness of this machine.
pub fn open_on(
    host: Arc<dyn Host>,
    disk: Arc<dyn Disk>,
    options: LogOptions,
    machine: &mut dyn StateMachine,
    on_event: OnEvent,
) -> Result<Log, LogError> {
    options.check()?;
    let counters = Arc::<LogCounters>::default();
    let disk: Arc<dyn Disk> = Arc::new(CountedDisk::new(disk, counters.traffic.clone()));
    let directory = directory::take(&*disk, &*host)?;
    let index = Index::new(disk.clone(), counters.clone());
    let supply = Arc::new(Supply::new(disk.clone(), options.segment_bytes, counters.clone()));
    let mut direct = Direct { host: &*host, disk: &*disk, supply: &supply, wanted: None };
    let (mut tail, report, files) = if directory.fresh {
        let (tail, report) = begin(&directory, options, &mut direct, &index, &counters)?;
        (tail, report, Vec::new())
    } else {
        let found = checkpoint::find(&*disk, directory.identity.cluster)?;
        let (tail, report) = resume(&directory, options, &mut direct, &found, machine, &index, &counters)?;
        (tail, report, found.files)
    };
    tail.begun = false;
    let batch_bytes_max = tail::batch_bytes_max(options.segment_bytes);
    let (data_dir, free_bytes_wanted) =
        (disk.full_path(""), supply::free_bytes_wanted(options.segment_bytes));
    let inbox = Arc::new(Inbox::new(host.clone()));
    let waker = inbox.clone();
    let no_thread = |error| DiskError::io(Operation::Open, disk.full_path("log"), error);
    let reader = Reader::new(disk.clone());
    let reclaim = Reclaim {
        host: host.clone(),
        disk: disk.clone(),
        cluster: directory.identity.cluster,
        index: index.clone(),
        reader: reader.clone(),
        inbox: inbox.clone(),
        counters: counters.clone(),
        supply: supply.clone(),
        segment_bytes: options.segment_bytes,
        next: tail.set.next_packed(),
    };
    let cluster = directory.identity.cluster;
    let checkpoints = Checkpoints::new(disk.clone(), cluster, counters.clone(), supply.clone(), files);
    // Making the end firm has drawn on the one, and the last run may have on the other.
    supply.claim(Reserve::Checkpoint);
    checkpoints.restore_reserve()?;
    if tail.set.members().any(|member| packed::is_packed(member.segment)) {
        supply.claim(Reserve::Reclaim);
    }
    // Before anything is taken: more than what is left would wait, and all behind it.
    let full = supply.lacks_space(tail::AHEAD.saturating_sub(tail.listed.len()))?;
    let room = tail.room(Room::Ample, full && !planted::bug("full-disk-unknown-at-start"));
    if room != Room::Ample {
        on_event(LogEvent::Room(room));
    }
    let house = House {
        disk: disk.clone(),
        index: index.clone(),
        reader: reader.clone(),
        inbox: inbox.clone(),
        on_event: on_event.clone(),
        counters: counters.clone(),
        supply: supply.clone(),
        reclaimer: Reclaimer::start(reclaim).map_err(no_thread)?,
        checkpoints,
    };
    let keeper = Keeper::start(house, &*host).map_err(no_thread)?;
    // Segments that were sealed before this start may lack their index files.
    keeper.give(Job::Sealed);
    let wake = Box::new(move || waker.spare_ready());
    let told = on_event.clone();
    let tell = Box::new(move || told(LogEvent::Room(Room::Exhausted)));
    let spares = SpareMaker::start(supply, wake, tell, &*host).map_err(no_thread)?;
    let closer = spares.closer();
    let writer = Writer {
        inbox: inbox.clone(),
        tail,
        spares,
        keeper: keeper.sender(),
        on_event,
        gather_bytes: Writer::gather_bytes(batch_bytes_max),
        room,
    };
    let thread = host.spawn("log-writer", Box::new(move || writer.run())).map_err(no_thread)?;
    Ok(Log {
        inbox,
        thread: Some(thread),
        closer,
        keeper,
        index,
        reader,
        report,
        counters,
        batch_bytes_max,
        data_dir,
        free_bytes_wanted,
        directory,
    })
}

/// Makes files where they are needed, while there is no helper yet.
struct Direct<'a> {
    host: &'a dyn Host,
    disk: &'a dyn Disk,
    supply: &'a Supply,
    wanted: Option<SegmentNumber>,
}

impl Blanks for Direct<'_> {
    fn ready(&mut self) -> Result<Option<Blank>, LogError> {
        Ok(None)
    }

    fn wait_unless_full(&mut self) -> Result<Option<Blank>, LogError> {
        Ok(None)
    }

    fn wait(&mut self) -> Result<Blank, LogError> {
        let segment = self.wanted.expect("a file was asked for");
        let prepared = self.supply.prepare(segment, &|_| Step::Fill)?;
        Ok(prepared.expect("nobody stops it"))
    }

    fn starved(&self) -> bool {
        false
    }

    fn retry(&mut self) {}

    fn want(&mut self, segment: SegmentNumber) {
        self.wanted = Some(segment);
    }
}

/// A first start: makes the first segment and says that there is a log.
fn begin(
    directory: &Directory,
    options: LogOptions,
    direct: &mut Direct<'_>,
    index: &Index,
    counters: &Arc<LogCounters>,
) -> Result<(Tail, OpenReport), LogError> {
    let first = SegmentNumber(1);
    direct.want(first);
    let blank = direct.wait()?;
    let listing = SegmentAdded { segment: first, bytes: blank.bytes };
    let report = OpenReport {
        incarnation: 1,
        node: Uid(direct.host.random()),
        fresh: true,
        segments: 1,
        ..OpenReport::default()
    };
    let mut set = SegmentSet::default();
    set.add(listing);
    let salts = Salts::new(&directory.identity.mac_key);
    let mut tail = Tail {
        cluster: directory.identity.cluster,
        node: report.node,
        current: Current::blank(blank, &salts),
        salts,
        listed: Default::default(),
        unlisted: None,
        wanted: false,
        highest: first,
        set,
        incarnation: report.incarnation,
        start: ReplayStart::default(),
        begun: false,
        chain: Chain { epoch: 1, ..Chain::default() },
        counters: counters.clone(),
        index: index.clone(),
        assembler: Assembler::default(),
    };
    tail.counters.note_set(&tail.set);
    append_start(&mut tail, &[listing.record()], &report, options, direct)?;
    directory::finish_first_start(direct.disk)?;
    Ok((tail, report))
}

/// A later start: reads the log from the newest good checkpoint on, and makes its end firm.
fn resume(
    directory: &Directory,
    options: LogOptions,
    direct: &mut Direct<'_>,
    found: &Found,
    machine: &mut dyn StateMachine,
    index: &Index,
    counters: &Arc<LogCounters>,
) -> Result<(Tail, OpenReport), LogError> {
    let cluster = directory.identity.cluster;
    let newest = checkpoint::points(&found.files).next();
    let mark = newest.map(|newest| {
        let (mark, image) = checkpoint::image(direct.disk, cluster, &newest)?;
        let stale = checkpoint::points(&found.files).last().filter(|_| planted::bug("stale-checkpoint"));
        let image = match stale {
            Some(stale) => checkpoint::image(direct.disk, cluster, &stale)?.1,
            None => image,
        };
        machine.restore(image)?;
        Ok::<_, LogError>(mark)
    });
    let mark = mark.transpose()?;
    let checkpoint = mark.as_ref().map(|mark| mark.lsn);
    let salts = Salts::new(&directory.identity.mac_key);
    let (mut recovery, fault) = Recovery::run(direct.disk, cluster, salts, mark, machine, index)?;
    let mut ending = ending::settle(&mut recovery, fault)?;
    let packed = packed::settle(direct.disk, cluster, &recovery.set)?;
    ending.missing.extend(packed.missing);
    ending.set_aside.extend(packed.set_aside);
    for (name, _) in &found.damaged {
        ending.set_aside.push(checkpoint::set_aside(direct.disk, *name)?);
    }
    checkpoint::remove_temps(direct.disk)?;
    direct.supply.take_up()?;
    let report = OpenReport {
        incarnation: next_incarnation(&recovery),
        node: Uid(direct.host.random()),
        fresh: false,
        last_log_time_us: recovery.chain.log_time_us,
        next_lsn: recovery.chain.lsn,
        records: recovery.records,
        frames: recovery.frames,
        bytes_read: recovery.window.bytes_read(),
        segments_read: recovery.segments_read,
        segments: recovery.set.len(),
        checkpoint,
        torn: ending.torn,
        damage: ending.damage,
        set_aside: ending.set_aside,
        missing: ending.missing,
    };
    let mut tail = Tail {
        cluster,
        node: report.node,
        current: recovery.current,
        salts: recovery.salts,
        listed: ending.blanks.into(),
        unlisted: None,
        wanted: false,
        highest: ending.highest,
        incarnation: report.incarnation,
        start: recovery.start,
        begun: false,
        chain: recovery.chain,
        counters: counters.clone(),
        index: index.clone(),
        assembler: Assembler::default(),
        set: recovery.set,
    };
    tail.counters.note_set(&tail.set);
    tail.counters.damage.add(report.damage.len() as u64);
    append_start(&mut tail, &[], &report, options, direct)?;
    Ok((tail, report))
}

/// Higher than that of any start before, even if the records of some are lost.
fn next_incarnation(recovery: &Recovery<'_>) -> u32 {
    let lost = u32::try_from(recovery.starts_lost).unwrap_or(u32::MAX);
    recovery.incarnation.saturating_add(lost).saturating_add(1)
}

fn append_start(
    tail: &mut Tail,
    before: &[Record],
    report: &OpenReport,
    options: LogOptions,
    direct: &mut Direct<'_>,
) -> Result<(), LogError> {
    let started = ServerStarted {
        incarnation: report.incarnation,
        node: report.node,
        wall_time_us: options.wall_time_us,
    };
    let records: Vec<Record> = before.iter().cloned().chain([started.record()]).collect();
    let bytes = records.iter().map(|record| encoded_len(record) as u64).sum();
    tail.append(records.iter(), bytes, report.last_log_time_us, direct, &mut Vec::new())
}
