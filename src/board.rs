//! The board: one page table of atomics that every worker of a host maps.
//!
//! It is mapped by the master in `init_by_lua`, shared by fork, survives a
//! reload (a second call finds the first one's mapping) and ends with the
//! master. It holds what changes too often for the shared dict:
//!
//! ```text
//! header    epoch, store gate, heartbeat, source state
//! services  name -> version of the ranking in the shared dict
//! slots     instance -> requests, failures, in-flight (of the whole host)
//! rows      worker   -> owner's pid, its part of each slot's in-flight
//! reports   instance -> the load report that its last responses brought
//! ```
//!
//! Each worker adds its in-flight to the slot and to a row of its own, so that
//! the share of a worker that was killed can be given back.
//!
//! Everything here is atomics, relaxed unless a comment says otherwise: the
//! figures steer and show, and are never locks. Indexes from outside are
//! checked, and one out of range counts nowhere.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};

use once_cell::sync::OnceCell;

mod report;

pub use report::{LOOK_EVERY_MS, coarse_ms};

/// Services that the board has room for.
pub const MAX_SERVICES: usize = 1024;
/// Instances that the board has room for.
pub const MAX_SLOTS: usize = 65_536;
/// Workers that may live at once, those that a reload lets finish included.
const MAX_ROWS: usize = 256;
/// Longest service name, as in [`crate::wire`].
const MAX_NAME: usize = 128;
/// The slot of an instance that found no room; its counters count nowhere.
pub const NO_SLOT: u32 = u32::MAX;

/// What the plugin's thread tells of its source, see [`Board::source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceState {
    /// A complete list was applied since the thread's first start.
    pub synced: bool,
    /// The last revision applied.
    pub revision: i64,
    /// [`monotonic_ms`] when the source last proved that it is alive; 0 never.
    pub confirmed_ms: u64,
    /// [`monotonic_ms`] since when the source is lost; 0 while it is watched.
    pub lost_since_ms: u64,
}

impl SourceState {
    /// How fresh the rankings are: `live` while the source is watched, `stale`
    /// once it has been lost for longer than `patience_ms`, `static` while only
    /// the configuration file has ever been read.
    pub fn mode(&self, now_ms: u64, patience_ms: u32) -> &'static str {
        match self.synced {
            false => "static",
            true if self.is_lost(now_ms, patience_ms) => "stale",
            true => "live",
        }
    }

    /// Whether the source has been lost for longer than `patience_ms`.
    pub fn is_lost(&self, now_ms: u64, patience_ms: u32) -> bool {
        self.lost_since_ms != 0
            && now_ms.saturating_sub(self.lost_since_ms) > u64::from(patience_ms)
    }
}

#[repr(C)]
struct Header {
    /// Of the newest writer; an older one stores nothing any more.
    epoch: AtomicU64,
    /// The epoch of the writer that is inside a store; 0 is none.
    storing: AtomicU64,
    heartbeat: AtomicU64,
    synced: AtomicU8,
    revision: AtomicI64,
    confirmed_ms: AtomicU64,
    lost_since_ms: AtomicU64,
    publish_errors: AtomicU64,
    view_errors: AtomicU64,
    /// Slots at and past this one were never used.
    slots_used: AtomicU32,
    /// Port of the loopback responder that says 503; 0 is none.
    refusal_port: AtomicU32,
}

#[repr(C)]
struct Service {
    /// Length of the name, 0 while the entry is free. Written last.
    name_len: AtomicU8,
    name: [AtomicU8; MAX_NAME],
    /// Of the ranking in the shared dict. Written after `instances_version`.
    version: AtomicU64,
    /// Of the instances that it ranks.
    instances_version: AtomicU64,
    /// The newest version that some worker could not read.
    damaged: AtomicU64,
}

/// The counters of one instance.
#[repr(C)]
struct Slot {
    /// [`identity`] of the instance; 0 while the slot is free.
    identity: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
    in_flight: AtomicI64,
}

#[repr(C)]
struct Row {
    /// Pid of the worker; 0 while the row is free.
    owner: AtomicU32,
    in_flight: [AtomicU32; MAX_SLOTS],
}

#[repr(C)]
struct Layout {
    header: Header,
    services: [Service; MAX_SERVICES],
    slots: [Slot; MAX_SLOTS],
    rows: [Row; MAX_ROWS],
    reports: report::Reports,
}

/// The mapped board. Cheap to copy; there is one a process.
#[derive(Clone, Copy)]
pub struct Board {
    layout: &'static Layout,
}

/// One worker's row, claimed by [`Board::claim_row`].
#[derive(Clone, Copy)]
pub struct RowId(usize);

static BOARD: OnceCell<Board> = OnceCell::new();

impl Board {
    /// Maps the board, or finds the mapping that this process or its parent
    /// made before.
    ///
    /// # Errors
    /// The system's error when the memory cannot be mapped.
    pub fn open() -> io::Result<Board> {
        BOARD.get_or_try_init(Board::map).copied()
    }

    #[cfg(test)]
    pub(crate) fn map_for_tests() -> Board {
        Board::map().expect("memory for a board")
    }

    /// A mapping of its own, shared with later forks of this process alone.
    fn map() -> io::Result<Board> {
        // SAFETY: an anonymous mapping at an address of the kernel's choosing
        // touches no memory of ours. Its pages are reserved when they are first
        // written, so that room for 256 workers costs nothing unless used.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Layout>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let page = NonNull::new(page).filter(|page| page.as_ptr() != libc::MAP_FAILED);
        let page = page.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the mapping is page-aligned, of the layout's size, zeroed and
        // never unmapped. `Layout` is atomics alone, for which zero is valid and
        // which every process may write at any time.
        Ok(Board { layout: unsafe { page.cast::<Layout>().as_ref() } })
    }

    // ------------------------------------------------------------- the writer

    /// Makes the caller the newest writer and returns its epoch. Waits until an
    /// older writer has left its store, for a tenth of a second at most: one
    /// that was killed inside a store never leaves it.
    pub fn begin_epoch(&self) -> u64 {
        let header = &self.layout.header;
        let epoch = header.epoch.fetch_add(1, SeqCst) + 1;
        for _ in 0..100 {
            if header.storing.load(SeqCst) == 0 {
                return epoch;
            }
            // SAFETY: plain system call.
            unsafe { libc::usleep(1000) };
        }
        header.storing.store(0, SeqCst);
        epoch
    }

    /// Runs `store` unless a newer writer has begun; `None` says that one has.
    ///
    /// The two sequentially consistent accesses on each side (announce, then
    /// look; bump, then look) make sure that of an old writer that stores and a
    /// new one that begins at least one sees the other.
    pub fn fenced<T>(&self, epoch: u64, store: impl FnOnce() -> T) -> Option<T> {
        let header = &self.layout.header;
        if self.is_superseded(epoch) {
            return None; // and leaves the word to the newer writer
        }
        header.storing.store(epoch, SeqCst);
        let result = (header.epoch.load(SeqCst) == epoch).then(store);
        header.storing.store(0, SeqCst);
        result
    }

    /// Whether a newer writer than `epoch` has begun.
    pub fn is_superseded(&self, epoch: u64) -> bool {
        self.layout.header.epoch.load(SeqCst) != epoch
    }

    /// Shows that the writer is alive.
    pub fn beat(&self) {
        self.layout.header.heartbeat.fetch_add(1, Relaxed);
    }

    /// Grows while a writer is alive.
    pub fn heartbeat(&self) -> u64 {
        self.layout.header.heartbeat.load(Relaxed)
    }

    /// Shows what is known of the source.
    pub fn set_source(&self, state: SourceState) {
        let header = &self.layout.header;
        header.synced.store(state.synced.into(), Relaxed);
        header.revision.store(state.revision, Relaxed);
        header.confirmed_ms.store(state.confirmed_ms, Relaxed);
        header.lost_since_ms.store(state.lost_since_ms, Relaxed);
    }

    /// What is known of the source. The fields are read one by one.
    pub fn source(&self) -> SourceState {
        let header = &self.layout.header;
        SourceState {
            synced: header.synced.load(Relaxed) != 0,
            revision: header.revision.load(Relaxed),
            confirmed_ms: header.confirmed_ms.load(Relaxed),
            lost_since_ms: header.lost_since_ms.load(Relaxed),
        }
    }

    /// The loopback port that answers 503 to whatever is sent; `None` for none.
    pub fn refusal_port(&self) -> Option<u16> {
        u16::try_from(self.layout.header.refusal_port.load(Relaxed)).ok().filter(|&port| port != 0)
    }

    /// Announces the loopback port that answers 503.
    pub fn announce_refusal_port(&self, port: u16) {
        self.layout.header.refusal_port.store(port.into(), Relaxed);
    }

    /// Takes a port back, unless another one was announced since: on reload the
    /// old writer ends after the new one has begun.
    pub fn retract_refusal_port(&self, port: u16) {
        let announced = &self.layout.header.refusal_port;
        let _ = announced.compare_exchange(port.into(), 0, Relaxed, Relaxed);
    }

    /// Values that could not be stored.
    pub fn publish_errors(&self) -> u64 {
        self.layout.header.publish_errors.load(Relaxed)
    }

    /// Counts a value that could not be stored.
    pub fn count_publish_error(&self) {
        self.layout.header.publish_errors.fetch_add(1, Relaxed);
    }

    /// Values that a worker could not read.
    pub fn view_errors(&self) -> u64 {
        self.layout.header.view_errors.load(Relaxed)
    }

    // --------------------------------------------------------------- services

    /// The entry of a service, made if there is none. `None` when the name is
    /// too long or the board full.
    pub fn service(&self, name: &str) -> Option<ServiceId> {
        if name.is_empty() || name.len() > MAX_NAME {
            return None;
        }
        for (index, service) in self.layout.services.iter().enumerate() {
            let id = ServiceId(index);
            if service.is_named(name) {
                return Some(id);
            }
            if service.name_len.load(Acquire) == 0 && service.claim(name) {
                return Some(id);
            }
            // Somebody else may have claimed the entry for the same name, or be about
            // to write it there: workers start together.
            service.wait_for_name();
            if service.is_named(name) {
                return Some(id);
            }
        }
        None
    }

    /// The entry of a service that has one.
    pub fn find_service(&self, name: &str) -> Option<ServiceId> {
        self.layout.services.iter().position(|service| service.is_named(name)).map(ServiceId)
    }

    /// The names of all services that were ever published or configured.
    pub fn service_names(&self) -> impl Iterator<Item = String> + '_ {
        self.layout.services.iter().filter_map(Service::name)
    }

    /// The version of the service's ranking in the shared dict; 0 for none yet.
    pub fn version(&self, id: ServiceId) -> u64 {
        self.layout.services[id.0].version.load(Acquire)
    }

    /// The version of the instances that the ranking of [`version`](Self::version)
    /// is of, or of newer ones.
    pub fn instances_version(&self, id: ServiceId) -> u64 {
        self.layout.services[id.0].instances_version.load(Relaxed)
    }

    /// Announces a ranking that has been stored, and the instances that it is of.
    pub fn set_version(&self, id: ServiceId, version: u64, instances_version: u64) {
        let service = &self.layout.services[id.0];
        service.instances_version.store(instances_version, Relaxed);
        service.version.store(version, Release);
    }

    /// Says that a worker could not read a version, so that the writer stores
    /// it again.
    pub fn report_damaged(&self, id: ServiceId, version: u64) {
        self.layout.header.view_errors.fetch_add(1, Relaxed);
        self.layout.services[id.0].damaged.store(version, Relaxed);
    }

    /// Whether a worker could not read the current version.
    pub fn is_damaged(&self, id: ServiceId) -> bool {
        let service = &self.layout.services[id.0];
        let damaged = service.damaged.load(Relaxed);
        damaged != 0 && damaged == service.version.load(Relaxed)
    }

    // ------------------------------------------------------------------ slots

    /// The slots in use, with their identities.
    pub fn used_slots(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let used = self.layout.header.slots_used.load(Acquire).min(MAX_SLOTS as u32);
        (0..used).filter_map(|slot| {
            let identity = self.layout.slots[slot as usize].identity.load(Relaxed);
            (identity != 0).then_some((slot, identity))
        })
    }

    /// Takes a free slot for an identity, at or after `from`.
    pub fn claim_slot(&self, identity: u64, from: u32) -> Option<u32> {
        let slots = self.layout.slots.iter().enumerate().skip(from as usize);
        let free = slots.map(|(index, slot)| (index as u32, slot)).find(|(_, slot)| {
            slot.identity.load(Relaxed) == 0
                && slot.identity.compare_exchange(0, identity, AcqRel, Relaxed).is_ok()
        });
        let (index, slot) = free?;
        slot.requests.store(0, Relaxed);
        slot.failures.store(0, Relaxed);
        self.layout.header.slots_used.fetch_max(index + 1, AcqRel);
        Some(index)
    }

    /// Gives a slot back, unless requests are in flight on it.
    pub fn release_slot(&self, slot: u32) -> bool {
        let Some(slot) = self.slot(slot) else { return false };
        let idle = slot.in_flight.load(Relaxed) <= 0;
        if idle {
            slot.identity.store(0, Release);
        }
        idle
    }

    /// Counts a request that goes to the slot's instance.
    pub fn begin_request(&self, row: Option<RowId>, slot: u32) {
        if let Some(counters) = self.slot(slot) {
            counters.requests.fetch_add(1, Relaxed);
            counters.in_flight.fetch_add(1, Relaxed);
            self.add_to_row(row, slot, 1);
        }
    }

    /// Counts a request whose end will not be seen.
    pub fn count_request(&self, slot: u32) {
        if let Some(counters) = self.slot(slot) {
            counters.requests.fetch_add(1, Relaxed);
        }
    }

    /// Counts the end of a request that [`begin_request`](Self::begin_request)
    /// counted.
    pub fn end_request(&self, row: Option<RowId>, slot: u32, failed: bool) {
        if let Some(counters) = self.slot(slot) {
            counters.in_flight.fetch_sub(1, Relaxed);
            if failed {
                counters.failures.fetch_add(1, Relaxed);
            }
            self.add_to_row(row, slot, -1);
        }
    }

    /// A row is written by its owner alone, so that it takes no atomic addition.
    fn add_to_row(&self, row: Option<RowId>, slot: u32, change: i32) {
        if let Some(row) = row {
            let part = &self.layout.rows[row.0].in_flight[slot as usize];
            part.store(part.load(Relaxed).wrapping_add_signed(change), Relaxed);
        }
    }

    /// Requests that all workers of this host have open on the slot's instance.
    pub fn in_flight(&self, slot: u32) -> u32 {
        let open = self.slot(slot).map_or(0, |slot| slot.in_flight.load(Relaxed));
        u32::try_from(open.max(0)).unwrap_or(u32::MAX)
    }

    /// Requests that all workers of this host have open on a service.
    pub fn service_in_flight(&self, _: ServiceId) -> u64 {
        0
    }

    /// Requests sent to the slot's instance and failed tries among them.
    pub fn counters(&self, slot: u32) -> (u64, u64) {
        self.slot(slot)
            .map_or((0, 0), |slot| (slot.requests.load(Relaxed), slot.failures.load(Relaxed)))
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        self.layout.slots.get(slot as usize)
    }

    // ------------------------------------------------------------------- rows

    /// A row for a worker. `None` when 256 workers live already: the worker's
    /// in-flight then stays if it is killed.
    pub fn claim_row(&self, pid: u32) -> Option<RowId> {
        self.reclaim_rows();
        let rows = &self.layout.rows;
        (0..MAX_ROWS)
            .find(|&row| rows[row].owner.compare_exchange(0, pid, AcqRel, Relaxed).is_ok())
            .map(RowId)
    }

    /// Gives back the in-flight of workers that are gone.
    pub fn reclaim_rows(&self) {
        for row in &self.layout.rows {
            let owner = row.owner.load(Acquire);
            if owner != 0 && !is_alive(owner) {
                self.reclaim(row, owner);
            }
        }
    }

    fn reclaim(&self, row: &Row, owner: u32) {
        // The row's new owner is this process until it is empty, so that two
        // workers that start at once do not both give it back.
        if row.owner.compare_exchange(owner, std::process::id(), AcqRel, Relaxed).is_err() {
            return;
        }
        let used = self.layout.header.slots_used.load(Acquire) as usize;
        for (slot, part) in self.layout.slots.iter().zip(&row.in_flight).take(used) {
            let open = part.swap(0, Relaxed);
            slot.in_flight.fetch_sub(open.into(), Relaxed);
        }
        row.owner.store(0, Release);
    }
}

/// A service's entry on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceId(usize);

impl Service {
    /// `name_len` while its claimer writes the name.
    const CLAIMED: u8 = u8::MAX;

    /// Turns given to whoever writes a name: some milliseconds at least on a core
    /// that others want too.
    const NAME_YIELDS: u32 = 10_000;

    fn name(&self) -> Option<String> {
        let len = self.name_len.load(Acquire);
        let bytes = self.name.get(..usize::from(len)).filter(|bytes| !bytes.is_empty())?;
        String::from_utf8(bytes.iter().map(|byte| byte.load(Relaxed)).collect()).ok()
    }

    fn is_named(&self, name: &str) -> bool {
        usize::from(self.name_len.load(Acquire)) == name.len()
            && self.name.iter().zip(name.bytes()).all(|(a, b)| a.load(Relaxed) == b)
    }

    /// Waits while another process writes the name, which takes it less than a
    /// microsecond unless it is interrupted. One that died over it is given up.
    fn wait_for_name(&self) {
        for _ in 0..Self::NAME_YIELDS {
            if self.name_len.load(Acquire) != Self::CLAIMED {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn claim(&self, name: &str) -> bool {
        if self.name_len.compare_exchange(0, Self::CLAIMED, AcqRel, Relaxed).is_err() {
            return false;
        }
        for (cell, byte) in self.name.iter().zip(name.bytes()) {
            cell.store(byte, Relaxed);
        }
        self.name_len.store(name.len() as u8, Release);
        true
    }
}

/// What an instance's counters are kept by: the same service, id and address
/// are the same instance. Never 0.
pub fn identity(service: &str, id: &str, addr: &std::net::SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (service, id, addr).hash(&mut hasher);
    hasher.finish().max(1)
}

/// Milliseconds of the host's monotonic clock: the same in every process, and
/// never set back.
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the timespec that it is given and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: signal 0 asks whether the process exists and sends nothing.
    let exists = unsafe { libc::kill(pid, 0) } == 0;
    exists || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> std::net::SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn a_service_has_one_entry_however_often_it_is_asked_for() {
        let board = Board::map().unwrap();
        let chat = board.service("chat").unwrap();
        let chatter = board.service("chatter").unwrap();
        assert_ne!(chat, chatter);
        assert_eq!(board.service("chat"), Some(chat));
    }

    #[test]
    fn two_workers_that_ask_at_the_same_moment_get_the_same_entry() {
        let board = Board::map().unwrap();
        let together = std::sync::Barrier::new(2);
        let ask_for_all = || -> Vec<_> {
            let ask = |index| {
                together.wait();
                // Long, so that writing it takes a while.
                board.service(&format!("{index:0>100}"))
            };
            (0..MAX_SERVICES).map(ask).collect()
        };
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(ask_for_all);
            (ask_for_all(), other.join().unwrap())
        });
        assert_eq!(one, other);
    }

    #[test]
    fn names_that_do_not_fit_and_services_past_the_room_are_refused() {
        let board = Board::map().unwrap();
        assert_eq!(board.service(""), None);
        assert_eq!(board.service(&"x".repeat(MAX_NAME + 1)), None);
        for index in 0..MAX_SERVICES {
            assert!(board.service(&format!("s{index}")).is_some());
        }
        assert_eq!(board.service("one-too-many"), None);
        assert!(board.service("s17").is_some(), "a full board still finds what it has");
    }

    #[test]
    fn an_older_writer_stores_nothing_once_a_newer_one_has_begun() {
        let board = Board::map().unwrap();
        let old = board.begin_epoch();
        assert_eq!(board.fenced(old, || 1), Some(1));
        let new = board.begin_epoch();
        assert_eq!(board.fenced(old, || 1), None);
        assert_eq!(board.fenced(new, || 2), Some(2));
        assert!(board.is_superseded(old) && !board.is_superseded(new));
    }

    #[test]
    fn a_writer_that_was_killed_inside_a_store_does_not_stop_the_next() {
        let board = Board::map().unwrap();
        board.layout.header.storing.store(7, SeqCst);
        let epoch = board.begin_epoch();
        assert_eq!(board.fenced(epoch, || ()), Some(()));
    }

    #[test]
    fn in_flight_of_a_killed_worker_is_given_back() {
        let board = Board::map().unwrap();
        let slot = board.claim_slot(identity("chat", "a", &addr(1)), 0).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let theirs = board.claim_row(child.id()).unwrap();
        let ours = board.claim_row(std::process::id()).unwrap();
        board.begin_request(Some(theirs), slot);
        board.begin_request(Some(theirs), slot);
        board.begin_request(Some(ours), slot);
        child.wait().unwrap();
        board.reclaim_rows();
        assert_eq!(board.in_flight(slot), 1, "ours is still open");
        board.end_request(Some(ours), slot, false);
        assert_eq!(board.in_flight(slot), 0);
    }

    #[test]
    fn a_slot_is_reused_only_when_nothing_is_in_flight_on_it() {
        let board = Board::map().unwrap();
        let slot = board.claim_slot(1, 0).unwrap();
        board.begin_request(None, slot);
        assert!(!board.release_slot(slot));
        board.end_request(None, slot, true);
        assert_eq!(board.counters(slot), (1, 1));
        assert!(board.release_slot(slot));
        assert_eq!(board.claim_slot(2, 0), Some(slot));
        assert_eq!(board.counters(slot), (0, 0), "the next one starts from nothing");
    }

    #[test]
    fn a_slot_out_of_range_counts_nowhere() {
        let board = Board::map().unwrap();
        for slot in [NO_SLOT, MAX_SLOTS as u32] {
            board.begin_request(None, slot);
            board.end_request(None, slot, true);
            assert_eq!((board.in_flight(slot), board.counters(slot)), (0, (0, 0)));
            assert!(!board.release_slot(slot));
        }
    }

    #[test]
    fn a_refusal_port_is_taken_back_by_its_owner_alone() {
        let board = Board::map().unwrap();
        board.announce_refusal_port(1);
        board.announce_refusal_port(2);
        board.retract_refusal_port(1);
        assert_eq!(board.refusal_port(), Some(2));
        board.retract_refusal_port(2);
        assert_eq!(board.refusal_port(), None);
    }

    #[test]
    fn damage_is_that_of_the_current_version_alone() {
        let board = Board::map().unwrap();
        let id = board.service("chat").unwrap();
        board.set_version(id, 3, 3);
        board.report_damaged(id, 3);
        assert!(board.is_damaged(id));
        board.set_version(id, 4, 3);
        assert!(!board.is_damaged(id));
    }
}
