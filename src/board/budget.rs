//! The retry budget of each service, for all workers of this host: a bucket of
//! tokens. So that a service on a bad day gets no more than a part of its requests
//! once again.
//!
//! What is kept is how much the bucket lacks, so that it begins full, and a service
//! without retries only ever reads a zero.
//!
//! Source: Finagle's `RetryBudget` (20 % of the requests, and 10 a second).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{Board, ServiceId};
use crate::config::BudgetConfig;

/// Thousandths of a token in one.
const TOKEN: u64 = 1000;

/// A service's budget in the board's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    deposit: u64,
    capacity: u64,
    per_second: u64,
}

impl Budget {
    /// The configured one.
    pub fn new(config: &BudgetConfig) -> Self {
        Budget {
            deposit: u64::from(config.percent) * TOKEN / 100,
            capacity: u64::from(config.reserve) * TOKEN,
            per_second: u64::from(config.per_second) * TOKEN,
        }
    }
}

impl Board {
    /// A request's first try puts its part into the bucket.
    pub fn deposit_retry(&self, id: ServiceId, budget: Budget) {
        self.give_retries(id, budget.deposit);
    }

    /// Takes a token; false if there is none.
    pub fn withdraw_retry(&self, id: ServiceId, budget: Budget) -> bool {
        let owed = &self.layout.services[id.0].hot.0.retries_owed;
        let taken = |owed: u64| Some(owed + TOKEN).filter(|&owed| owed <= budget.capacity);
        owed.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }

    /// What time puts into each bucket that is not full; `budget` is a service's.
    pub fn refill_retries(&self, passed: Duration, budget: impl Fn(&str) -> Budget) {
        let ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        for (index, service) in self.layout.services.iter().enumerate() {
            if service.name_len.load(Relaxed) == 0 {
                return; // nor is any behind it taken
            }
            if service.hot.0.retries_owed.load(Relaxed) != 0
                && let Some(name) = service.name()
            {
                let given = budget(&name).per_second.saturating_mul(ms) / 1000;
                self.give_retries(ServiceId(index), given);
            }
        }
    }

    fn give_retries(&self, id: ServiceId, given: u64) {
        let owed = &self.layout.services[id.0].hot.0.retries_owed;
        if owed.load(Relaxed) != 0 {
            let less = |owed: u64| Some(owed.saturating_sub(given));
            let _ = owed.fetch_update(Relaxed, Relaxed, less);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(percent: u32, reserve: u32, per_second: u32) -> (Board, ServiceId, Budget) {
        let board = Board::map_for_tests();
        let id = board.service("chat").unwrap();
        (board, id, Budget::new(&BudgetConfig { percent, reserve, per_second }))
    }

    #[test]
    fn a_bucket_begins_full_and_gives_its_reserve_and_no_more() {
        let (board, id, budget) = bucket(20, 3, 10);
        let given = (0..10).filter(|_| board.withdraw_retry(id, budget)).count();
        assert_eq!(given, 3);
        let (board, id, none) = bucket(20, 0, 10);
        assert!(!board.withdraw_retry(id, none));
    }

    #[test]
    fn five_requests_are_worth_one_retry() {
        let (board, id, budget) = bucket(20, 1, 0);
        assert!(board.withdraw_retry(id, budget));
        for _ in 0..4 {
            board.deposit_retry(id, budget);
            assert!(!board.withdraw_retry(id, budget));
        }
        board.deposit_retry(id, budget);
        assert!(board.withdraw_retry(id, budget));
    }

    #[test]
    fn time_fills_the_bucket_at_its_rate_and_never_past_its_rim() {
        let (board, id, budget) = bucket(0, 5, 10);
        while board.withdraw_retry(id, budget) {}
        board.refill_retries(Duration::from_millis(250), |_| budget);
        let given = (0..10).filter(|_| board.withdraw_retry(id, budget)).count();
        assert_eq!(given, 2, "of 2.5");
        board.refill_retries(Duration::from_secs(3600), |_| budget);
        let given = (0..10).filter(|_| board.withdraw_retry(id, budget)).count();
        assert_eq!(given, 5);
    }

    #[test]
    fn services_and_boards_have_buckets_of_their_own() {
        let (board, chat, budget) = bucket(0, 1, 0);
        let mail = board.service("mail").unwrap();
        assert!(board.withdraw_retry(chat, budget) && !board.withdraw_retry(chat, budget));
        assert!(board.withdraw_retry(mail, budget));
    }

    #[test]
    fn workers_together_take_no_more_than_there_is() {
        let (board, id, budget) = bucket(20, 500, 0);
        let retries: usize = std::thread::scope(|scope| {
            let worker = || (0..10_000).filter(|_| board.withdraw_retry(id, budget)).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(retries, 500);
    }

    proptest! {
        /// Whatever the order of requests and of failed tries: after `n` requests,
        /// there were `percent` of them and the reserve at the most.
        #[test]
        fn retries_are_a_part_of_the_requests_and_the_reserve_at_the_most(
            percent in 0..=1000_u32,
            reserve in 0..20_u32,
            tries in proptest::collection::vec(any::<bool>(), 0..2000),
        ) {
            let (board, id, budget) = bucket(percent, reserve, 0);
            let (mut requests, mut retries) = (0_u64, 0_u64);
            for is_retry in tries {
                if is_retry {
                    retries += u64::from(board.withdraw_retry(id, budget));
                } else {
                    board.deposit_retry(id, budget);
                    requests += 1;
                }
                prop_assert!(100 * retries <= u64::from(percent) * requests + 100 * u64::from(reserve));
            }
        }
    }
}
