//! Requests that end without an answer of an instance: why, how many, and where to
//! they are sent so that their client is told.

use std::sync::atomic::Ordering::Relaxed;

use super::memory::AtomicU64;
use super::{Board, ServiceId};

/// Why a request is answered by the gateway in place of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The service has no instances.
    NoInstance,
    /// The request was tried wherever it could be.
    AllTried,
    /// Every instance that is left has as many requests in flight as it may have.
    MaxInFlight,
    /// The try failed, and there were too many of those lately.
    RetryBudget,
    /// With `failback`: the instance could not be reached, or broke off.
    Error,
    /// With `failback`: it did not answer in time.
    Timeout,
    /// With `failback`: it answered with a status that nginx moves on from.
    Status,
}

impl Refusal {
    /// How many there are.
    pub(super) const COUNT: usize = Self::ALL.len();

    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::NoInstance,
        Self::AllTried,
        Self::MaxInFlight,
        Self::RetryBudget,
        Self::Error,
        Self::Timeout,
        Self::Status,
    ];

    /// The name in headers, metrics and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoInstance => "no_instance",
            Self::AllTried => "all_tried",
            Self::MaxInFlight => "max_in_flight",
            Self::RetryBudget => "retry_budget",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Status => "status",
        }
    }

    /// The status that the client gets: 503 where the request went nowhere or might
    /// go again, else what nginx has for such a failure.
    pub fn status(self) -> u16 {
        match self {
            Self::NoInstance | Self::MaxInFlight | Self::RetryBudget => 503,
            Self::AllTried | Self::Error | Self::Status => 502,
            Self::Timeout => 504,
        }
    }

    /// Whether nginx has said in the log what happened.
    fn is_logged_by_nginx(self) -> bool {
        matches!(self, Self::Error | Self::Timeout | Self::Status)
    }
}

/// The least time between two lines of the log about one service.
const LINE_EVERY_MS: u64 = 1000;

/// What became of a service's tries that failed.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Refusals {
    by_reason: [AtomicU64; Refusal::COUNT],
    retries: AtomicU64,
    /// Since the last line of the log.
    unlogged: AtomicU64,
    logged_ms: AtomicU64,
}

impl Board {
    /// Counts a request that is refused. How many a line of the log is to tell of, this
    /// one included: one line a second and service, by whichever worker comes first;
    /// 0 is no line.
    pub fn count_refusal(&self, id: ServiceId, reason: Refusal, now_ms: u64) -> u64 {
        let refusals = &self.layout.services[id.0].refusals;
        refusals.by_reason[reason as usize].fetch_add(1, Relaxed);
        if reason.is_logged_by_nginx() {
            return 0;
        }
        refusals.unlogged.fetch_add(1, Relaxed);
        let last_ms = refusals.logged_ms.load(Relaxed);
        let is_due = last_ms == 0 || now_ms.saturating_sub(last_ms) >= LINE_EVERY_MS;
        let mine = is_due
            && refusals
                .logged_ms
                .compare_exchange(last_ms, now_ms.max(1), Relaxed, Relaxed)
                .is_ok();
        if mine { refusals.unlogged.swap(0, Relaxed) } else { 0 }
    }

    /// Requests that were refused, by reason.
    pub fn refusals(&self, id: ServiceId) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        let refusals = &self.layout.services[id.0].refusals;
        Refusal::ALL
            .into_iter()
            .map(|reason| (reason, refusals.by_reason[reason as usize].load(Relaxed)))
    }

    /// Counts a try that is not its request's first.
    pub fn count_retry(&self, id: ServiceId) {
        self.layout.services[id.0].refusals.retries.fetch_add(1, Relaxed);
    }

    /// Tries that were not their request's first.
    pub fn retries(&self, id: ServiceId) -> u64 {
        self.layout.services[id.0].refusals.retries.load(Relaxed)
    }

    /// The loopback port that answers with this reason to whatever is sent; `None`
    /// for none.
    pub fn refusal_port(&self, reason: Refusal) -> Option<u16> {
        let announced = &self.layout.header.refusal_ports[reason as usize];
        u16::try_from(announced.load(Relaxed)).ok().filter(|&port| port != 0)
    }

    /// Announces the port that answers with this reason.
    pub fn announce_refusal_port(&self, reason: Refusal, port: u16) {
        self.layout.header.refusal_ports[reason as usize].store(port.into(), Relaxed);
    }

    /// Takes a port back, unless another one was announced since: on reload the
    /// old writer ends after the new one has begun.
    pub fn retract_refusal_port(&self, reason: Refusal, port: u16) {
        let announced = &self.layout.header.refusal_ports[reason as usize];
        let _ = announced.compare_exchange(port.into(), 0, Relaxed, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_taken_back_by_its_owner_alone() {
        let board = Board::map_for_tests();
        board.announce_refusal_port(Refusal::Timeout, 1);
        board.announce_refusal_port(Refusal::Timeout, 2);
        board.retract_refusal_port(Refusal::Timeout, 1);
        assert_eq!(board.refusal_port(Refusal::Timeout), Some(2));
        assert_eq!(board.refusal_port(Refusal::Error), None);
        board.retract_refusal_port(Refusal::Timeout, 2);
        assert_eq!(board.refusal_port(Refusal::Timeout), None);
    }

    #[test]
    fn one_line_a_second_and_service_tells_of_all_since_the_last_one() {
        let board = Board::map_for_tests();
        let (chat, mail) = (board.service("chat").unwrap(), board.service("mail").unwrap());
        let count = |id, now_ms| board.count_refusal(id, Refusal::NoInstance, now_ms);
        assert_eq!(count(chat, 5000), 1);
        assert_eq!(count(mail, 5000), 1);
        assert_eq!((0..500).map(|ms| count(chat, 5001 + ms)).sum::<u64>(), 0);
        assert_eq!(count(chat, 6000), 501);
        assert_eq!(count(chat, 6999), 0);
        assert_eq!(count(chat, 7000), 2);
    }

    #[test]
    fn each_reason_is_counted_and_what_nginx_logs_is_not_logged_again() {
        let board = Board::map_for_tests();
        let id = board.service("chat").unwrap();
        for (times, reason) in (1..).zip(Refusal::ALL) {
            for _ in 0..times {
                let lines = board.count_refusal(id, reason, 1);
                assert!(lines == 0 || !reason.is_logged_by_nginx());
            }
        }
        let counted: Vec<_> = board.refusals(id).map(|(_, count)| count).collect();
        assert_eq!(counted, [1, 2, 3, 4, 5, 6, 7]);
    }
}
