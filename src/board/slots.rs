//! Slots: what all workers of this host have seen of each instance.
//!
//! A slot is an instance's from [`Board::claim_slot`] to [`Board::release_slot`],
//! over rankings, reloads and the writers that come and go. An instance is known
//! by its [`identity`]: a request begins on a slot only if that is still the one
//! that the worker has in mind, whose view may be an old one, and its end counts
//! only for the one that it began on.
//!
//! # Time
//! `now_ms` is [`coarse_ms`](super::coarse_ms) throughout. Of the requests to an
//! instance, the first that begins in a tick of that clock is timed with the
//! precise one, 250 a second with ticks of 4 ms. Reading that one for each request
//! would double what balancing costs, and more samples would not make a better
//! mean. It is fair, as nothing of how long a request takes decides whether it is
//! the first.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::average::{Latency, Part};
use super::clock::precise_ns;
use super::memory::{AtomicI32, AtomicU8, AtomicU32, AtomicU64};
use super::{Board, MAX_SLOTS, RowId, ServiceId};

/// The slot of an instance that found no room; its counters count nowhere.
pub const NO_SLOT: u32 = u32::MAX;

/// How a request, or one try of it, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The instance answered.
    Answered,
    /// It did not, or said that it could not: the try moved on, or ended in a
    /// status of 500 or more, or in a gRPC status that is as bad.
    Failed,
    /// The client went away before there was an answer.
    Aborted,
    /// The instance took the connection over (status 101). That was an answer;
    /// how long the connection lasted is not how long it took.
    Upgraded,
    /// Nobody saw how: it is over, and that is all.
    Unseen,
}

/// A request that is open on an instance: what [`Board::end_request`] ends.
#[derive(Debug)]
pub struct Open {
    pub(super) slot: u32,
    pub(super) service: u32,
    pub(super) identity: u64,
    /// When it began, by the precise clock; 0 for one that is not timed.
    began_ns: u64,
}

impl Open {
    /// The slot of the instance that it is open on.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Of the instance that it is open on.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// Whether it is timed.
    fn is_timed(&self) -> bool {
        self.began_ns != 0
    }

    /// Has it count as one that took so many milliseconds at most, and ended now.
    pub fn took_at_most(&mut self, ms: f64) {
        if self.is_timed() {
            self.began_ns = self.began_ns.max(precise_ns().saturating_sub((ms * 1e6) as u64));
        }
    }
}

/// What this host has seen of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Requests that are open on it.
    pub in_flight: u32,
    /// Mean latency of its answers over the last second, in milliseconds.
    pub latency_ms: Option<f32>,
    /// The largest of its latencies, forgotten within some ten seconds.
    pub peak_ms: Option<f32>,
    /// The part of its answers that were failures, over the last second: 0 to 1.
    pub failed: f32,
    /// Failures since the last answer that was none.
    pub consecutive_failures: u32,
    /// How long requests have been open with none of them ending, in
    /// milliseconds; 0 when none is open.
    pub stalled_ms: u32,
    /// Time since it was last picked, or else since it came, in milliseconds.
    pub unpicked_ms: u32,
}

/// Two cache lines: what each request touches, and the rest.
#[repr(C, align(128))]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Slot {
    /// [`identity`] of the instance; 0 while the slot is free.
    identity: AtomicU64,
    requests: AtomicU64,
    in_flight: AtomicI32,
    /// Index of the instance's service.
    pub(super) service: AtomicU32,
    last_pick_ms: AtomicU64,
    /// When a request last ended, other than by an abort.
    last_answer_ms: AtomicU64,
    /// Since when requests are open.
    busy_since_ms: AtomicU64,
    latency: Latency,
    peak: Latency,
    failed: Part,
    pub(super) consecutive_failures: AtomicU32,

    failures: AtomicU64,
    /// When the newest sample came into `latency`.
    timed_ms: AtomicU64,
    /// See [`Ejection`](super::Ejection); 0 while it is not ejected.
    pub(super) ejection: AtomicU64,
    /// When it was last taken back.
    pub(super) freed_ms: AtomicU64,
    /// Less what it was forgiven.
    pub(super) times_ejected: AtomicU32,
    /// Whether the ejection was told of.
    pub(super) is_told: AtomicU8,
    /// See [`Board::rest`].
    pub(super) resting_until_ms: AtomicU64,
    /// When its last report was true, by the precise clock; 0 if it never reported.
    pub(super) reported_ms: AtomicU64,
}

/// A request that counts nowhere.
impl Default for Open {
    fn default() -> Self {
        Open { slot: NO_SLOT, service: u32::MAX, identity: 0, began_ns: 0 }
    }
}

impl Board {
    // ------------------------------------------------------------- the writer

    /// The slots in use, with their identities.
    pub fn used_slots(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..self.slots_used()).filter_map(|slot| {
            let identity = self.slot(slot)?.identity.load(Relaxed);
            (identity != 0).then_some((slot, identity))
        })
    }

    /// Takes a free slot for an instance of a service, at or after `from`. All of
    /// its figures begin anew.
    pub fn claim_slot(
        &self,
        identity: u64,
        service: ServiceId,
        from: u32,
        now_ms: u64,
    ) -> Option<u32> {
        let slots = self.layout.slots.iter().enumerate().skip(from as usize);
        let free = slots.map(|(index, slot)| (index as u32, slot)).find(|(_, slot)| {
            slot.identity.load(Relaxed) == 0
                && slot.identity.compare_exchange(0, identity, AcqRel, Relaxed).is_ok()
        });
        let (index, slot) = free?;
        slot.begin_anew(service.0 as u32, now_ms);
        self.layout.header.slots_used.fetch_max(index + 1, AcqRel);
        Some(index)
    }

    /// Gives a slot back, unless requests are in flight on it.
    pub fn release_slot(&self, slot: u32) -> bool {
        let Some(counters) = self.slot(slot) else { return false };
        let idle = counters.in_flight.load(Relaxed) <= 0;
        if idle {
            self.take_back(slot, 0);
            counters.identity.store(0, Release);
        }
        idle
    }

    /// Slots at and past this one were never used.
    pub(super) fn slots_used(&self) -> u32 {
        self.layout.header.slots_used.load(Acquire).min(MAX_SLOTS as u32)
    }

    /// Shows how many instances are published without a slot.
    pub fn set_uncounted(&self, instances: u64) {
        self.layout.header.uncounted.store(instances, Relaxed);
    }

    /// Instances that are published without a slot, as the board is full.
    pub fn uncounted(&self) -> u64 {
        self.layout.header.uncounted.load(Relaxed)
    }

    // ------------------------------------------------------------ the workers

    /// Counts a request that goes to an instance. One whose slot is another's by
    /// now counts nowhere.
    pub fn begin_request(&self, row: Option<RowId>, slot: u32, identity: u64, now_ms: u64) -> Open {
        self.begin_within(row, slot, identity, 0, now_ms).unwrap_or_default()
    }

    /// The same of an instance that may have no more than `max` requests in flight, 0
    /// for no limit; `None` if it has. Workers that come at the same moment never
    /// exceed it together.
    pub fn begin_within(
        &self,
        row: Option<RowId>,
        slot: u32,
        identity: u64,
        max: u32,
        now_ms: u64,
    ) -> Option<Open> {
        let Some(counters) = self.slot_of(slot, identity) else { return Some(Open::default()) };
        if counters.open() == 0 {
            counters.busy_since_ms.store(now_ms, Relaxed);
        }
        // Whoever sees that it is busy sees since when.
        if max == 0 {
            counters.in_flight.fetch_add(1, Release);
        } else {
            let max = i32::try_from(max).unwrap_or(i32::MAX);
            let one_more = |open: i32| (open < max).then_some(open + 1);
            counters.in_flight.fetch_update(Release, Relaxed, one_more).ok()?;
        }
        let is_first_in_tick = counters.count(now_ms);
        let service = counters.service.load(Relaxed);
        self.add_to_row(row, slot, service, 1);
        let began_ns = if is_first_in_tick { precise_ns() } else { 0 };
        Some(Open { slot, service, identity, began_ns })
    }

    /// Counts a request whose end will not be seen.
    pub fn count_request(&self, slot: u32, identity: u64, now_ms: u64) {
        if let Some(counters) = self.slot_of(slot, identity) {
            counters.count(now_ms);
        }
    }

    /// Whether more is to be found out before a request of this outcome is ended: the
    /// outcome of a whole request may hide that of its last try.
    ///
    /// A failure may be another one's. An answer may cover a failure up: one that is
    /// timed is looked into, which it is for its time too, and where a failure was
    /// found lately, each one is. Finding out costs more than all else, so that
    /// most answers are taken at their word; what is found in one of a tick of the
    /// clock is in the rest, too.
    pub fn is_unclear(&self, open: &Open, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Answered => open.is_timed() || self.has_failed_lately(open.slot),
            Outcome::Failed => open.slot != NO_SLOT,
            Outcome::Aborted | Outcome::Upgraded | Outcome::Unseen => false,
        }
    }

    fn has_failed_lately(&self, slot: u32) -> bool {
        self.slot(slot).is_some_and(|slot| slot.failed.get() > 0.0)
    }

    /// Counts the end of a request.
    pub fn end_request(&self, row: Option<RowId>, open: Open, outcome: Outcome, now_ms: u64) {
        let Some(counters) = self.slot(open.slot) else { return };
        counters.in_flight.fetch_sub(1, Relaxed);
        self.add_to_row(row, open.slot, open.service, -1);
        if counters.identity.load(Relaxed) == open.identity {
            counters.learn(outcome, open.began_ns, now_ms);
        }
    }

    /// Requests that all workers of this host have open on the slot's instance.
    pub fn in_flight(&self, slot: u32) -> u32 {
        self.slot(slot).map_or(0, Slot::open)
    }

    /// Has the processor fetch what [`seen`](Self::seen) reads.
    pub fn prefetch(&self, slot: u32) {
        if let Some(slot) = self.slot(slot) {
            prefetch(slot);
        }
    }

    /// Mean latency of the slot's instance over the last second, in milliseconds.
    pub fn latency_ms(&self, slot: u32) -> Option<f32> {
        self.slot(slot)?.latency.get()
    }

    /// What this host has seen of the slot's instance lately.
    #[inline(always)]
    pub fn seen(&self, slot: u32, now_ms: u64) -> Seen {
        self.slot(slot).map_or_else(Seen::default, |slot| slot.seen(now_ms))
    }

    /// Requests sent to the slot's instance and failed tries among them.
    pub fn counters(&self, slot: u32) -> (u64, u64) {
        self.slot(slot)
            .map_or((0, 0), |slot| (slot.requests.load(Relaxed), slot.failures.load(Relaxed)))
    }

    /// Takes back from a slot what a worker that is gone had open on it.
    pub(super) fn give_back(&self, slot: u32, open: u32) {
        let (Some(slot), Ok(open)) = (self.slot(slot), i32::try_from(open)) else { return };
        slot.in_flight.fetch_sub(open, Relaxed);
    }

    pub(super) fn slot(&self, slot: u32) -> Option<&Slot> {
        self.layout.slots.get(slot as usize)
    }

    pub(super) fn slot_of(&self, slot: u32, identity: u64) -> Option<&Slot> {
        self.slot(slot).filter(|slot| slot.identity.load(Relaxed) == identity)
    }
}

impl Slot {
    fn begin_anew(&self, service: u32, now_ms: u64) {
        self.service.store(service, Relaxed);
        // Those that began when the slot was another's still end on it.
        self.in_flight.fetch_max(0, Relaxed);
        for counter in [&self.requests, &self.failures] {
            counter.store(0, Relaxed);
        }
        for time in [&self.last_answer_ms, &self.busy_since_ms, &self.timed_ms, &self.freed_ms] {
            time.store(0, Relaxed);
        }
        self.ejection.store(0, Relaxed);
        self.times_ejected.store(0, Relaxed);
        self.is_told.store(0, Relaxed);
        self.resting_until_ms.store(0, Relaxed);
        self.reported_ms.store(0, Relaxed);
        self.last_pick_ms.store(now_ms, Relaxed);
        self.latency.forget();
        self.peak.forget();
        self.failed.forget();
        self.consecutive_failures.store(0, Relaxed);
    }

    /// Counts a pick; whether it is the first in its tick of the clock.
    fn count(&self, now_ms: u64) -> bool {
        self.requests.fetch_add(1, Relaxed);
        let is_first = self.last_pick_ms.load(Relaxed) != now_ms;
        if is_first {
            self.last_pick_ms.store(now_ms, Relaxed);
        }
        is_first
    }

    fn open(&self) -> u32 {
        u32::try_from(self.in_flight.load(Acquire)).unwrap_or(0)
    }

    fn learn(&self, outcome: Outcome, began_ns: u64, now_ms: u64) {
        match outcome {
            Outcome::Answered => {
                self.time(began_ns, now_ms, |_, _| true);
                self.answer(false, now_ms);
            }
            Outcome::Upgraded => self.answer(false, now_ms),
            Outcome::Failed => {
                self.time(began_ns, now_ms, is_longer);
                self.answer(true, now_ms);
            }
            // One that never answered is known by this alone.
            Outcome::Aborted => self
                .time(began_ns, now_ms, |sample, mean| mean.is_none() || is_longer(sample, mean)),
            Outcome::Unseen => {}
        }
    }

    fn answer(&self, has_failed: bool, now_ms: u64) {
        let last_ms = self.last_answer_ms.load(Relaxed);
        let dt_ms = (last_ms != 0).then(|| now_ms.saturating_sub(last_ms));
        self.failed.add(has_failed, dt_ms);
        if last_ms != now_ms {
            self.last_answer_ms.store(now_ms, Relaxed);
        }
        if has_failed {
            self.failures.fetch_add(1, Relaxed);
            self.consecutive_failures.fetch_add(1, Relaxed);
        } else if self.consecutive_failures.load(Relaxed) != 0 {
            self.consecutive_failures.store(0, Relaxed);
        }
    }

    /// Takes the time since `began_ns` for a sample of the latency, if it `counts`
    /// beside the mean so far.
    fn time(&self, began_ns: u64, now_ms: u64, counts: impl FnOnce(f32, Option<f32>) -> bool) {
        if began_ns == 0 {
            return;
        }
        let sample_ms = precise_ns().saturating_sub(began_ns) as f32 / 1e6;
        if !counts(sample_ms, self.latency.get()) {
            return;
        }
        let dt_ms = now_ms.saturating_sub(self.timed_ms.swap(now_ms, Relaxed));
        self.latency.add_to_mean(sample_ms, dt_ms);
        self.peak.add_to_peak(sample_ms, dt_ms);
    }

    #[inline(always)]
    fn seen(&self, now_ms: u64) -> Seen {
        let in_flight = self.open();
        let since = |ms: u64| u32::try_from(now_ms.saturating_sub(ms)).unwrap_or(u32::MAX);
        let open_since = || self.busy_since_ms.load(Relaxed).max(self.last_answer_ms.load(Relaxed));
        Seen {
            in_flight,
            latency_ms: self.latency.get(),
            peak_ms: self.peak.get(),
            failed: self.failed.get(),
            consecutive_failures: self.consecutive_failures.load(Relaxed),
            stalled_ms: if in_flight > 0 { since(open_since()) } else { 0 },
            unpicked_ms: since(self.last_pick_ms.load(Relaxed)),
        }
    }
}

/// Has the processor fetch the first cache line of a thing that is wanted soon.
#[allow(unsafe_code, reason = "an instruction of the processor")]
pub(crate) fn prefetch<T>(thing: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, of an address that is mapped; it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(thing).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = thing;
}

/// What ended without an answer would have taken longer: of that the mean learns
/// where it is news. A quick failure would make the instance look quick.
fn is_longer(sample_ms: f32, mean_ms: Option<f32>) -> bool {
    mean_ms.is_some_and(|mean_ms| sample_ms > mean_ms)
}

/// What an instance's counters are kept by: the same service, id and address
/// are the same instance. Never 0.
///
/// CRC-32 of `service NUL id` above that of the address, which nginx's Lua can
/// compute too: consistent hashing goes by it on both sides.
pub fn identity(service: &str, id: &str, addr: &SocketAddr) -> u64 {
    let mut name = crc32fast::Hasher::new();
    name.update(service.as_bytes());
    name.update(&[0]);
    name.update(id.as_bytes());
    let addr = crc32fast::hash(addr.to_string().as_bytes());
    (u64::from(name.finalize()) << 32 | u64::from(addr)).max(1)
}

#[cfg(all(test, not(loom)))]
mod tests;
