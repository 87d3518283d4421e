//! The board: one page table of atomics that every worker of a host maps.
//!
//! It is mapped by the master in `init_by_lua`, shared by fork, survives a
//! reload (a second call finds the first one's mapping) and ends with the
//! master. It holds what changes too often for the shared dict:
//!
//! ```text
//! header    epoch, store gate, heartbeat, source state, what is vouched for
//! services  name -> version of the ranking in the shared dict, ejected, freshness
//! slots     instance -> counters, in-flight and live averages (of the whole host),
//!           ejection
//! rows      worker   -> owner's pid, its part of each slot's and service's in-flight
//! reports   instance -> the load report that its last responses brought
//! rules     service  -> requests by routing rule
//! ```
//!
//! Each worker adds its in-flight to the slot and to a row of its own, so that the
//! share of a worker that was killed can be given back.
//!
//! Everything here is atomics, relaxed unless a comment says otherwise: the
//! figures steer and show, and are never locks. Indexes from outside are
//! checked, and one out of range counts nowhere.

pub(crate) mod average;
mod budget;
mod clock;
mod ejections;
mod freshness;
mod memory;
mod refusals;
mod report;
mod rests;
mod rows;
mod rules;
mod slots;

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use once_cell::sync::OnceCell;

pub use budget::Budget;
pub use clock::{coarse_ms, monotonic_ms};
pub use ejections::{Ejection, Reason};
pub use freshness::{Freshness, Vouched};
use memory::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};
pub use refusals::Refusal;
use refusals::Refusals;
pub use report::LOOK_EVERY_MS;
use rows::Row;
pub use rows::RowId;
pub use rules::RuleId;
use slots::Slot;
pub(crate) use slots::prefetch;
pub use slots::{NO_SLOT, Open, Outcome, Seen, identity};

/// Services that the board has room for.
pub const MAX_SERVICES: usize = memory::room(1024);
/// Instances that the board has room for.
pub const MAX_SLOTS: usize = memory::room(65_536);
/// Workers that may live at once, those that a reload lets finish included.
const MAX_ROWS: usize = memory::room(256);
/// Longest service name, as in [`crate::wire`].
const MAX_NAME: usize = memory::room(128);

/// What the plugin's thread tells of its source, see [`Board::source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceState {
    /// A complete list was applied since the thread's first start.
    pub synced: bool,
    /// Unix time at which what a snapshot said was the source's state; 0 if none was
    /// read. Counts until there is a list.
    pub restored_as_of_ms: u64,
    /// The last revision applied.
    pub revision: i64,
    /// [`monotonic_ms`] when the source last proved that it is alive; 0 never.
    pub confirmed_ms: u64,
    /// [`monotonic_ms`] since when the source is lost; 0 while it is watched.
    pub lost_since_ms: u64,
}

impl SourceState {
    /// How fresh the rankings are: `live` while the source is watched, `stale`
    /// once it has been lost for longer than `patience_ms`, `snapshot` while what it
    /// held before the start is all that is known of it, `static` while only the
    /// configuration file has ever been read.
    pub fn mode(&self, now_ms: u64, patience_ms: u32) -> &'static str {
        match self.synced {
            false if self.restored_as_of_ms != 0 => "snapshot",
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
#[cfg_attr(loom, derive(Default))]
struct Header {
    /// See [`Writers`].
    writers: AtomicU64,
    heartbeat: AtomicU64,
    synced: AtomicU8,
    restored_as_of_ms: AtomicU64,
    revision: AtomicI64,
    confirmed_ms: AtomicU64,
    lost_since_ms: AtomicU64,
    /// See [`Vouched`].
    vouched_revision: AtomicI64,
    vouched_ms: AtomicU64,
    publish_errors: AtomicU64,
    view_errors: AtomicU64,
    /// Times that the plugin's thread began anew.
    restarts: AtomicU64,
    /// Slots at and past this one were never used.
    slots_used: AtomicU32,
    /// And rows.
    rows_used: AtomicU32,
    /// Instances that are published without a slot.
    uncounted: AtomicU64,
    /// Ports of the loopback responder, by reason; 0 is none.
    refusal_ports: [AtomicU32; Refusal::COUNT],
}

/// Who may store, in one word of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Writers {
    /// Epoch of the newest writer; an older one begins no store any more. 0 is none yet.
    newest: u32,
    /// Epoch of the writer that is inside a store; 0 is none.
    inside: u32,
}

impl Writers {
    fn load(word: &AtomicU64) -> Self {
        Self::unpack(word.load(Acquire))
    }

    /// What it was before; `None` if `change` is not to be made.
    fn update(word: &AtomicU64, change: impl Fn(Self) -> Option<Self>) -> Option<Self> {
        let change = |word| change(Self::unpack(word)).map(Self::pack);
        word.fetch_update(AcqRel, Acquire, change).ok().map(Self::unpack)
    }

    fn pack(self) -> u64 {
        u64::from(self.newest) << 32 | u64::from(self.inside)
    }

    fn unpack(word: u64) -> Self {
        Writers { newest: (word >> 32) as u32, inside: word as u32 }
    }
}

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
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
    /// So many of its instances somebody wants explained; 0 while nobody does.
    asked: AtomicU32,
    /// Instances that are ejected, in the line of `version`, which each request reads.
    ejected: AtomicU32,
    /// By reason, since the beginning.
    ejections: [AtomicU64; Reason::ALL.len()],
    hot: OwnLine<Hot>,
    refusals: Refusals,
    freshness: freshness::Cell,
}

/// What requests that fail write, and each one reads.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Hot {
    /// Thousandths of tokens that the retry budget lacks: 0 is a full bucket.
    retries_owed: AtomicU64,
    /// Some instance rests until then.
    resting_until_ms: AtomicU64,
}

/// Kept on a cache line of its own: where what it holds is written, what stands around
/// it would have to be fetched anew as often.
#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct OwnLine<T>(T);

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Layout {
    header: Header,
    services: [Service; MAX_SERVICES],
    slots: [Slot; MAX_SLOTS],
    rows: [Row; MAX_ROWS],
    reports: report::Reports,
    rules: [rules::Counts; MAX_SERVICES],
}

// SAFETY: atomics, and arrays and structs of them.
#[allow(unsafe_code, reason = "what is shared is a promise")]
unsafe impl memory::Shared for Layout {}

/// The mapped board. Cheap to copy; there is one a process.
#[derive(Clone, Copy)]
pub struct Board {
    layout: &'static Layout,
}

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

    /// A board of its own, of a host that is simulated. It stays mapped until the
    /// process ends: [`clear`](Self::clear) it, and give it to the next one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn apart() -> io::Result<Board> {
        Board::map()
    }

    /// Forgets everything, and gives the memory back to the system. For a board that
    /// nobody uses.
    ///
    /// # Errors
    /// The system's error; the board is as it was then.
    pub(crate) fn clear(&self) -> io::Result<()> {
        memory::clear(self.layout)
    }

    #[cfg(test)]
    pub(crate) fn map_for_tests() -> Board {
        Board::map().expect("memory for a board")
    }

    /// A mapping of its own, shared with later forks of this process alone.
    fn map() -> io::Result<Board> {
        memory::map().map(|layout| Board { layout })
    }

    // ------------------------------------------------------------- the writer

    /// Makes the caller the newest writer and returns its epoch. Waits until an
    /// older writer has left its store, for a tenth of a second at most: one
    /// that was killed inside a store never leaves it.
    pub fn begin_epoch(&self) -> u64 {
        let writers = &self.layout.header.writers;
        let begin = |it: Writers| Some(Writers { newest: it.newest.wrapping_add(1), ..it });
        let epoch = Writers::update(writers, begin).map_or(0, |before| before.newest) + 1;
        let older_inside = |it: Writers| it.inside != 0 && it.inside < epoch;
        for _ in 0..100 {
            if !older_inside(Writers::load(writers)) {
                return epoch.into();
            }
            memory::pause();
        }
        let _ =
            Writers::update(writers, |it| older_inside(it).then_some(Writers { inside: 0, ..it }));
        epoch.into()
    }

    /// Runs `store` unless a newer writer has begun; `None` says that one has.
    ///
    /// An older writer that is slow to leave can neither enter nor say for a newer one
    /// that it has left: who is inside, and who is the newest, are one word.
    pub fn fenced<T>(&self, epoch: u64, store: impl FnOnce() -> T) -> Option<T> {
        let writers = &self.layout.header.writers;
        let epoch = u32::try_from(epoch).ok()?;
        // One that unwound out of its store before is still inside, and may go on.
        let enter = |it: Writers| (it.newest == epoch).then_some(Writers { inside: epoch, ..it });
        Writers::update(writers, enter)?;
        let result = store();
        let leave = |it: Writers| (it.inside == epoch).then_some(Writers { inside: 0, ..it });
        let _ = Writers::update(writers, leave);
        Some(result)
    }

    /// Whether a newer writer than `epoch` has begun.
    pub fn is_superseded(&self, epoch: u64) -> bool {
        u64::from(Writers::load(&self.layout.header.writers).newest) != epoch
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
        header.restored_as_of_ms.store(state.restored_as_of_ms, Relaxed);
        header.revision.store(state.revision, Relaxed);
        header.confirmed_ms.store(state.confirmed_ms, Relaxed);
        header.lost_since_ms.store(state.lost_since_ms, Relaxed);
    }

    /// What is known of the source. The fields are read one by one.
    pub fn source(&self) -> SourceState {
        let header = &self.layout.header;
        SourceState {
            synced: header.synced.load(Relaxed) != 0,
            restored_as_of_ms: header.restored_as_of_ms.load(Relaxed),
            revision: header.revision.load(Relaxed),
            confirmed_ms: header.confirmed_ms.load(Relaxed),
            lost_since_ms: header.lost_since_ms.load(Relaxed),
        }
    }

    /// Values that could not be stored.
    pub fn publish_errors(&self) -> u64 {
        self.layout.header.publish_errors.load(Relaxed)
    }

    /// Counts a value that could not be stored.
    pub fn count_publish_error(&self) {
        self.layout.header.publish_errors.fetch_add(1, Relaxed);
    }

    /// Times that the plugin's thread began anew because it could not go on.
    pub fn restarts(&self) -> u64 {
        self.layout.header.restarts.load(Relaxed)
    }

    /// Counts one.
    pub fn count_restart(&self) {
        self.layout.header.restarts.fetch_add(1, Relaxed);
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

    /// Asks the writer to explain so many of a service's instances.
    pub fn ask(&self, id: ServiceId, instances: u32) {
        self.layout.services[id.0].asked.fetch_max(instances, Relaxed);
    }

    /// How many of a service's instances are to be explained, once.
    pub fn take_asked(&self, id: ServiceId) -> u32 {
        let asked = &self.layout.services[id.0].asked;
        if asked.load(Relaxed) == 0 { 0 } else { asked.swap(0, Relaxed) }
    }

    /// Whether a worker could not read the current version.
    pub fn is_damaged(&self, id: ServiceId) -> bool {
        let service = &self.layout.services[id.0];
        let damaged = service.damaged.load(Relaxed);
        damaged != 0 && damaged == service.version.load(Relaxed)
    }
}

/// A service's entry on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
            memory::yield_now();
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

#[cfg(all(test, not(loom)))]
mod tests;
