//! How fresh each service and each instance is: what the plugin's thread tells every
//! worker, and the thread after it. And up to where it vouches for all rankings.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::memory::AtomicU64;
use super::{Board, ServiceId};
use crate::freshness::Step;

/// Where a service is on the ladder of [`freshness`](crate::freshness).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// The step that it is on.
    pub step: Step,
    /// Its instances that should report; and those of them that have a fresh report.
    pub expected: u32,
    pub fresh: u32,
    /// [`monotonic_ms`](super::monotonic_ms) when some report was last fresh; 0 if none
    /// ever was.
    pub fresh_ms: u64,
}

/// What a worker may say of rankings that it has not seen replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vouched {
    /// The source's revision up to which all that it says is in the rankings.
    pub revision: i64,
    /// [`monotonic_ms`](super::monotonic_ms) when that was so last; 0 never.
    pub at_ms: u64,
}

/// A service's, on the board.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Cell {
    /// In one word, so that they go together: the step's code and 1 in the upper two
    /// bits, 0 while nothing is told; expected and fresh instances in 31 bits each.
    word: AtomicU64,
    fresh_ms: AtomicU64,
    /// How often each step was entered.
    entered: [AtomicU64; Step::ALL.len()],
}

const COUNT_BITS: u32 = 31;
const MOST: u64 = (1 << COUNT_BITS) - 1;

impl Board {
    /// Tells how fresh a service is; of `None`, that there is nothing to tell.
    pub fn set_freshness(&self, id: ServiceId, known: Option<Freshness>) {
        let cell = &self.layout.services[id.0].freshness;
        let word = known.map_or(0, |it| {
            let [expected, fresh] = [it.expected, it.fresh].map(|count| u64::from(count).min(MOST));
            (it.step as u64 + 1) << (2 * COUNT_BITS) | expected << COUNT_BITS | fresh
        });
        cell.fresh_ms.store(known.map_or(0, |it| it.fresh_ms), Relaxed);
        cell.word.store(word, Relaxed);
    }

    /// How fresh a service is; `None` while nothing was told of it.
    pub fn freshness(&self, id: ServiceId) -> Option<Freshness> {
        let cell = &self.layout.services[id.0].freshness;
        let word = cell.word.load(Relaxed);
        let code = (word >> (2 * COUNT_BITS)).checked_sub(1)?;
        Some(Freshness {
            step: *Step::ALL.get(code as usize)?,
            expected: (word >> COUNT_BITS & MOST) as u32,
            fresh: (word & MOST) as u32,
            fresh_ms: cell.fresh_ms.load(Relaxed),
        })
    }

    /// Counts that a service went to a step.
    pub fn count_step(&self, id: ServiceId, to: Step) {
        self.layout.services[id.0].freshness.entered[to as usize].fetch_add(1, Relaxed);
    }

    /// How often a service went to each step, in the order of [`Step::ALL`].
    pub fn steps(&self, id: ServiceId) -> [u64; Step::ALL.len()] {
        let entered = &self.layout.services[id.0].freshness.entered;
        std::array::from_fn(|step| entered[step].load(Relaxed))
    }

    /// Shows when an instance's last report was true, by
    /// [`monotonic_ms`](super::monotonic_ms).
    pub fn set_reported(&self, slot: u32, reported_ms: u64) {
        if let Some(slot) = self.slot(slot) {
            slot.reported_ms.store(reported_ms, Relaxed);
        }
    }

    /// How old an instance's last report is, in milliseconds; `None` if it never
    /// reported, or has no slot.
    pub fn status_age_ms(&self, slot: u32, now_ms: u64) -> Option<u64> {
        let reported_ms = self.slot(slot)?.reported_ms.load(Relaxed);
        (reported_ms != 0).then(|| now_ms.saturating_sub(reported_ms))
    }

    /// Says that every service's newest ranking is that of what the source said up to
    /// now. Release: who reads it sees the versions of these rankings, too.
    pub fn vouch(&self, vouched: Vouched) {
        let header = &self.layout.header;
        header.vouched_revision.store(vouched.revision, Release);
        header.vouched_ms.store(vouched.at_ms, Release);
    }

    /// What was last vouched for; to be read before the versions that it is about.
    pub fn vouched(&self) -> Vouched {
        let header = &self.layout.header;
        let at_ms = header.vouched_ms.load(Acquire);
        Vouched { revision: header.vouched_revision.load(Acquire), at_ms }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::board::NO_SLOT;

    #[test]
    fn what_was_told_of_a_service_is_read_by_all_until_it_is_taken_back() {
        let board = Board::map_for_tests();
        let (id, other) = (board.service("chat").unwrap(), board.service("mail").unwrap());
        assert_eq!(board.freshness(id), None);
        for step in Step::ALL {
            for (expected, fresh) in [(0, 0), (3, 1), (MOST as u32, MOST as u32)] {
                let told = Freshness { step, expected, fresh, fresh_ms: 7 };
                board.set_freshness(id, Some(told));
                assert_eq!((board.freshness(id), board.freshness(other)), (Some(told), None));
            }
        }
        let many = Freshness { step: Step::Fresh, expected: u32::MAX, fresh: 1, fresh_ms: 0 };
        board.set_freshness(id, Some(many));
        assert_eq!(board.freshness(id).unwrap().expected, MOST as u32);
        board.set_freshness(id, None);
        assert_eq!(board.freshness(id), None);
    }

    #[test]
    fn steps_are_counted_by_service() {
        let board = Board::map_for_tests();
        let (id, other) = (board.service("chat").unwrap(), board.service("mail").unwrap());
        for step in [Step::Aging, Step::Board, Step::Fresh, Step::Aging] {
            board.count_step(id, step);
        }
        assert_eq!((board.steps(id), board.steps(other)), ([1, 2, 1], [0, 0, 0]));
    }

    #[test]
    fn an_instance_that_takes_over_a_slot_has_not_reported() {
        let board = Board::map_for_tests();
        let id = board.service("chat").unwrap();
        let slot = board.claim_slot(1, id, 0, 0).unwrap();
        assert_eq!(board.status_age_ms(slot, 5000), None);
        board.set_reported(slot, 4000);
        let ages = [4000, 5000, 3000].map(|now_ms| board.status_age_ms(slot, now_ms));
        assert_eq!(ages, [Some(0), Some(1000), Some(0)]);
        assert!(board.release_slot(slot));
        assert_eq!(board.claim_slot(2, id, 0, 0), Some(slot));
        assert_eq!(board.status_age_ms(slot, 5000), None);
        board.set_reported(NO_SLOT, 1);
        assert_eq!(board.status_age_ms(NO_SLOT, 1), None);
    }

    proptest! {
        #[test]
        fn whatever_others_wrote_is_read_as_something_or_nothing(word: u64) {
            let board = Board::map_for_tests();
            let id = board.service("chat").unwrap();
            board.layout.services[0].freshness.word.store(word, Relaxed);
            prop_assert!(board.freshness(id).is_none_or(|it| Step::ALL.contains(&it.step)));
        }
    }
}
