//! Ejections: instances that failed too often and get no requests for a while.
//!
//! A worker ejects at the moment of the failure, the plugin's thread at the end of an
//! interval; all workers look here. The thread alone takes back, so that what is
//! published and what is here end together. It also says both in the log.
//!
//! A service counts its ejected instances, so that a request learns from one word that
//! there is none. The count is raised before an instance is ejected and lowered after
//! it was taken back: two workers that eject at the same moment never exceed the most.
//! A worker that is killed between the two leaves the count too high; see
//! [`Board::mend_ejected`].

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::memory::AtomicU64;
use super::slots::Slot;
use super::{Board, ServiceId};

/// Why an instance is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It failed so many times in a row.
    ConsecutiveFailures,
    /// It failed more often than the others.
    SuccessRate,
    /// It mostly failed.
    FailurePercentage,
}

impl Reason {
    /// Every one, by its code on the board.
    pub const ALL: [Self; 3] =
        [Self::ConsecutiveFailures, Self::SuccessRate, Self::FailurePercentage];

    /// The label in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
        }
    }
}

/// An ejection that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Until when, by [`monotonic_ms`](super::monotonic_ms).
    pub until_ms: u64,
    /// Why.
    pub reason: Reason,
}

/// In one word, so that nobody reads the halves of two: `until_ms * 4 + code`, 0 for
/// none.
impl Ejection {
    fn pack(self) -> u64 {
        let code = Reason::ALL.iter().position(|known| *known == self.reason).unwrap_or(0);
        (self.until_ms.max(1) << 2) | code as u64
    }

    fn unpack(word: u64) -> Option<Self> {
        let reason = Reason::ALL.get((word & 3) as usize).copied();
        let reason = reason.unwrap_or(Reason::ConsecutiveFailures);
        (word != 0).then_some(Ejection { until_ms: word >> 2, reason })
    }
}

impl Board {
    // ------------------------------------------------------------ the workers

    /// Instances of the service that are ejected.
    pub fn ejected(&self, id: ServiceId) -> u32 {
        self.layout.services[id.0].ejected.load(Relaxed)
    }

    /// Whether the slot's instance is to get no requests now.
    pub fn is_ejected(&self, slot: u32, now_ms: u64) -> bool {
        self.ejection(slot).is_some_and(|ejection| ejection.until_ms > now_ms)
    }

    /// The ejection of the slot's instance, until it is taken back.
    pub fn ejection(&self, slot: u32) -> Option<Ejection> {
        Ejection::unpack(self.slot(slot)?.ejection.load(Acquire))
    }

    /// Failures of an instance since its last answer that was none.
    pub fn consecutive_failures(&self, slot: u32, identity: u64) -> u32 {
        self.slot_of(slot, identity).map_or(0, |slot| slot.consecutive_failures.load(Relaxed))
    }

    /// Ejects an instance, unless it is already or `most` of its service are. `for_ms`
    /// says for how long, by how often it was ejected lately, this time included.
    pub fn eject(
        &self,
        (slot, identity): (u32, u64),
        most: u32,
        reason: Reason,
        now_ms: u64,
        for_ms: impl FnOnce(u32) -> u64,
    ) -> bool {
        let Some(slot) = self.slot_of(slot, identity) else { return false };
        let Some(service) = self.layout.services.get(slot.service.load(Relaxed) as usize) else {
            return false;
        };
        if slot.ejection.load(Relaxed) != 0 {
            return false;
        }
        let one_more = |ejected: u32| (ejected < most).then_some(ejected + 1);
        if service.ejected.fetch_update(AcqRel, Relaxed, one_more).is_err() {
            return false;
        }
        let times = slot.times_ejected.load(Relaxed).saturating_add(1);
        let until_ms = now_ms.saturating_add(for_ms(times));
        let ejection = Ejection { until_ms, reason }.pack();
        if slot.ejection.compare_exchange(0, ejection, AcqRel, Relaxed).is_err() {
            self.count_one_less(slot);
            return false;
        }
        slot.times_ejected.store(times, Relaxed);
        if let Some(count) = service.ejections.get((ejection & 3) as usize) {
            count.fetch_add(1, Relaxed);
        }
        true
    }

    /// Ejections of a service's instances so far, in the order of [`Reason::ALL`].
    pub fn ejections(&self, id: ServiceId) -> [u64; 3] {
        self.layout.services[id.0].ejections.each_ref().map(|count: &AtomicU64| count.load(Relaxed))
    }

    // ------------------------------------------------------------- the writer

    /// Lets the slot's instance have requests again; whether it was ejected.
    pub fn take_back(&self, slot: u32, now_ms: u64) -> bool {
        let Some(slot) = self.slot(slot) else { return false };
        slot.freed_ms.store(now_ms, Relaxed);
        slot.is_told.store(0, Relaxed);
        let was = slot.ejection.swap(0, AcqRel) != 0;
        if was {
            self.count_one_less(slot);
        }
        was
    }

    /// Whether nobody has told of the slot's ejection yet; the caller does.
    pub fn tell_ejection(&self, slot: u32) -> bool {
        self.slot(slot).is_some_and(|slot| slot.is_told.swap(1, AcqRel) == 0)
    }

    /// How often the slot's instance was ejected, less what it was forgiven.
    pub fn times_ejected(&self, slot: u32) -> u32 {
        self.slot(slot).map_or(0, |slot| slot.times_ejected.load(Relaxed))
    }

    /// Forgives the slot's instance one ejection, if it was free for the whole of the
    /// last `interval_ms`.
    pub fn forgive(&self, slot: u32, interval_ms: u64, now_ms: u64) {
        let Some(slot) = self.slot(slot) else { return };
        let times = slot.times_ejected.load(Relaxed);
        let freed_ms = slot.freed_ms.load(Relaxed);
        let is_clean =
            slot.ejection.load(Relaxed) == 0 && now_ms.saturating_sub(freed_ms) >= interval_ms;
        if times > 0 && is_clean {
            // Lost against an ejection at this moment, it is not forgiven.
            let _ = slot.times_ejected.compare_exchange(times, times - 1, Relaxed, Relaxed);
        }
    }

    /// Sets the count of a service's ejected instances right, if it is still `wrong`.
    pub fn mend_ejected(&self, id: ServiceId, wrong: u32, right: u32) {
        let ejected = &self.layout.services[id.0].ejected;
        let _ = ejected.compare_exchange(wrong, right, AcqRel, Relaxed);
    }

    /// The service of a slot; `None` for one that is free, or out of range.
    pub fn service_of(&self, slot: u32) -> Option<ServiceId> {
        let service = self.slot(slot)?.service.load(Relaxed) as usize;
        (service < self.layout.services.len()).then_some(ServiceId(service))
    }

    fn count_one_less(&self, slot: &Slot) {
        if let Some(service) = self.layout.services.get(slot.service.load(Relaxed) as usize) {
            let one_less = |ejected: u32| ejected.checked_sub(1);
            let _ = service.ejected.fetch_update(AcqRel, Relaxed, one_less);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::board::Outcome;

    struct Fleet {
        board: Board,
        service: ServiceId,
        slots: Vec<u32>,
    }

    impl Fleet {
        /// Instances of the identities 1, 2, ….
        fn new(count: u64) -> Self {
            let board = Board::map().unwrap();
            board.service("other").unwrap();
            let service = board.service("chat").unwrap();
            let claim = |identity| board.claim_slot(identity, service, 0, 0).unwrap();
            Fleet { board, service, slots: (1..=count).map(claim).collect() }
        }

        fn eject(&self, index: usize, most: u32, now_ms: u64) -> bool {
            let who = (self.slots[index], index as u64 + 1);
            let for_ms = |times| 1000 * u64::from(times);
            self.board.eject(who, most, Reason::SuccessRate, now_ms, for_ms)
        }

        fn ejected(&self) -> u32 {
            self.board.ejected(self.service)
        }
    }

    #[test]
    fn an_ejection_is_in_force_until_its_time_and_is_counted_until_it_is_taken_back() {
        let fleet = Fleet::new(2);
        assert!(fleet.eject(0, 1, 500));
        let slot = fleet.slots[0];
        let ejection = Ejection { until_ms: 1500, reason: Reason::SuccessRate };
        assert_eq!(fleet.board.ejection(slot), Some(ejection));
        assert!(fleet.board.is_ejected(slot, 1499) && !fleet.board.is_ejected(slot, 1500));
        assert!(!fleet.board.is_ejected(fleet.slots[1], 500));
        assert_eq!((fleet.ejected(), fleet.board.ejections(fleet.service)), (1, [0, 1, 0]));
        assert!(fleet.board.take_back(slot, 2000) && !fleet.board.take_back(slot, 2000));
        assert_eq!((fleet.ejected(), fleet.board.ejection(slot)), (0, None));
        assert_eq!(fleet.board.ejected(fleet.board.find_service("other").unwrap()), 0);
    }

    #[test]
    fn an_instance_is_ejected_once_and_no_more_than_the_most_are() {
        let fleet = Fleet::new(3);
        assert!(fleet.eject(0, 2, 500) && !fleet.eject(0, 2, 600));
        assert_eq!(fleet.board.ejection(fleet.slots[0]).unwrap().until_ms, 1500);
        assert!(fleet.eject(1, 2, 500) && !fleet.eject(2, 2, 500) && !fleet.eject(2, 0, 500));
        assert_eq!((fleet.ejected(), fleet.board.ejections(fleet.service)), (2, [0, 2, 0]));
    }

    #[test]
    fn workers_that_eject_at_the_same_moment_do_not_exceed_the_most() {
        for _ in 0..50 {
            let fleet = Fleet::new(8);
            let together = std::sync::Barrier::new(4);
            let won: usize = std::thread::scope(|scope| {
                let act = || {
                    together.wait();
                    (0..8).filter(|&index| fleet.eject(index, 3, 500)).count()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(act)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            let in_force = fleet.slots.iter().filter(|slot| fleet.board.is_ejected(**slot, 500));
            assert_eq!((won, in_force.count(), fleet.ejected()), (3, 3, 3));
        }
    }

    #[test]
    fn each_ejection_is_the_next_one_until_a_clean_interval_forgives_one() {
        let fleet = Fleet::new(1);
        let slot = fleet.slots[0];
        for (times, now_ms) in [(1, 0), (2, 10_000)] {
            assert!(fleet.eject(0, 1, now_ms));
            assert_eq!(fleet.board.ejection(slot).unwrap().until_ms, now_ms + 1000 * times);
            fleet.board.forgive(slot, 10, now_ms + 500);
            fleet.board.take_back(slot, now_ms + 1000 * times);
            assert_eq!(fleet.board.times_ejected(slot), times as u32, "not while it is ejected");
        }
        fleet.board.forgive(slot, 10_000, 21_999);
        assert_eq!(fleet.board.times_ejected(slot), 2, "no interval has passed");
        fleet.board.forgive(slot, 10_000, 22_000);
        assert_eq!(fleet.board.times_ejected(slot), 1);
        fleet.board.forgive(slot, 10_000, 32_000);
        fleet.board.forgive(slot, 10_000, 42_000);
        assert_eq!(fleet.board.times_ejected(slot), 0);
    }

    #[test]
    fn an_ejection_is_told_once() {
        let fleet = Fleet::new(1);
        let slot = fleet.slots[0];
        for now_ms in [0, 5000] {
            fleet.eject(0, 1, now_ms);
            assert!(fleet.board.tell_ejection(slot) && !fleet.board.tell_ejection(slot));
            fleet.board.take_back(slot, now_ms + 1000);
        }
    }

    #[test]
    fn an_ejection_ends_with_its_slot_and_with_it_all_that_was_remembered() {
        let fleet = Fleet::new(1);
        fleet.eject(0, 1, 0);
        assert!(fleet.board.release_slot(fleet.slots[0]));
        assert_eq!(fleet.ejected(), 0);
        assert_eq!(fleet.board.claim_slot(9, fleet.service, 0, 0), Some(fleet.slots[0]));
        assert_eq!(fleet.board.ejection(fleet.slots[0]), None);
        assert_eq!(fleet.board.times_ejected(fleet.slots[0]), 0);
        assert!(!fleet.eject(0, 1, 0), "the slot is another's");
    }

    #[test]
    fn a_count_that_a_killed_worker_left_is_mended_unless_it_has_moved_on() {
        let fleet = Fleet::new(1);
        fleet.board.layout.services[fleet.service.0].ejected.store(3, Relaxed);
        fleet.board.mend_ejected(fleet.service, 2, 0);
        assert_eq!(fleet.ejected(), 3);
        fleet.board.mend_ejected(fleet.service, 3, 0);
        assert_eq!(fleet.ejected(), 0);
    }

    #[test]
    fn failures_in_a_row_are_those_of_the_instance_in_mind() {
        let fleet = Fleet::new(1);
        for _ in 0..3 {
            let open = fleet.board.begin_request(None, fleet.slots[0], 1, 0);
            fleet.board.end_request(None, open, Outcome::Failed, 0);
        }
        assert_eq!(fleet.board.consecutive_failures(fleet.slots[0], 1), 3);
        assert_eq!(fleet.board.consecutive_failures(fleet.slots[0], 2), 0);
    }

    #[test]
    fn what_somebody_scribbled_is_an_ejection_that_ends() {
        let fleet = Fleet::new(1);
        let slot = fleet.board.slot(fleet.slots[0]).unwrap();
        for word in [1, 3, u64::MAX] {
            slot.ejection.store(word, Relaxed);
            assert!(fleet.board.ejection(fleet.slots[0]).is_some());
            assert!(fleet.board.take_back(fleet.slots[0], 0));
            assert_eq!(fleet.ejected(), 0);
        }
    }
}
