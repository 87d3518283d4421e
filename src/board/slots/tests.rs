#![allow(unsafe_code, reason = "a test calls what is not safe")]

use super::*;
use crate::board::Reason;

/// A board with one instance, of identity 7, that came at 1,000 ms.
struct One {
    board: Board,
    service: ServiceId,
    slot: u32,
    row: Option<RowId>,
}

impl One {
    fn new() -> Self {
        let board = Board::map().unwrap();
        board.service("other").unwrap();
        let service = board.service("chat").unwrap();
        let slot = board.claim_slot(7, service, 0, 1_000).unwrap();
        let row = board.claim_row(std::process::id());
        One { board, service, slot, row }
    }

    fn begin(&self, now_ms: u64) -> Open {
        self.board.begin_request(self.row, self.slot, 7, now_ms)
    }

    fn end(&self, open: Open, outcome: Outcome, now_ms: u64) {
        self.board.end_request(self.row, open, outcome, now_ms);
    }

    /// A request that is over within the millisecond.
    fn request(&self, outcome: Outcome, now_ms: u64) {
        self.end(self.begin(now_ms), outcome, now_ms);
    }

    /// A timed request that took at least so many milliseconds.
    fn timed(&self, ms: u64, outcome: Outcome, now_ms: u64) {
        let open = self.begin(now_ms);
        assert_ne!(open.began_ns, 0, "the first in its tick");
        let end_ns = precise_ns() + ms * 1_000_000;
        while precise_ns() < end_ns {
            std::hint::spin_loop();
        }
        self.end(open, outcome, now_ms);
    }

    fn seen(&self, now_ms: u64) -> Seen {
        self.board.seen(self.slot, now_ms)
    }

    fn latency(&self) -> Option<f32> {
        self.seen(0).latency_ms
    }
}

// === limits ===

#[test]
fn workers_that_come_together_never_exceed_a_limit_and_use_it_all() {
    let One { board, slot, .. } = One::new();
    let most = std::sync::atomic::AtomicU32::new(0);
    let places: usize = std::thread::scope(|scope| {
        let worker = || {
            let take = || board.begin_within(None, slot, 7, 1, 2_000);
            let mut taken = 0;
            for _ in 0..20_000 {
                let Some(open) = take() else { continue };
                most.fetch_max(board.in_flight(slot), Relaxed);
                taken += 1;
                board.end_request(None, open, Outcome::Unseen, 2_000);
            }
            taken
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(most.into_inner() <= 1);
    assert!(places > 0 && board.in_flight(slot) == 0);
    let all: Vec<_> = (0..9).filter_map(|_| board.begin_within(None, slot, 7, 3, 2_000)).collect();
    assert_eq!((all.len(), board.in_flight(slot)), (3, 3));
    assert_eq!(board.counters(slot).0, places as u64 + 3, "who had no place was no request");
}

// === slots ===

#[test]
fn a_slot_is_reused_only_when_nothing_is_in_flight_on_it() {
    let one = One::new();
    let open = one.begin(1_001);
    assert!(!one.board.release_slot(one.slot));
    one.end(open, Outcome::Failed, 1_002);
    assert!(one.board.release_slot(one.slot));
    assert_eq!(one.board.claim_slot(8, one.service, 0, 1_003), Some(one.slot));
}

#[test]
fn the_next_instance_of_a_slot_begins_from_nothing() {
    let one = One::new();
    one.timed(1, Outcome::Answered, 2_000);
    one.request(Outcome::Failed, 2_000);
    assert_ne!(one.seen(3_000), Seen { unpicked_ms: 1_000, ..Seen::default() });

    assert!(one.board.release_slot(one.slot));
    let other = one.board.find_service("other").unwrap();
    assert_eq!(one.board.claim_slot(8, other, 0, 2_500), Some(one.slot));
    assert_eq!(one.seen(3_000), Seen { unpicked_ms: 500, ..Seen::default() });
    assert_eq!(one.board.counters(one.slot), (0, 0));
    one.board.begin_request(one.row, one.slot, 8, 3_000);
    let of = |service| one.board.service_in_flight(service);
    assert_eq!((of(one.service), of(other)), (0, 1), "of its own service");
}

#[test]
fn a_worker_that_has_an_old_instance_in_mind_counts_nothing_for_the_new_one() {
    let one = One::new();
    assert!(one.board.release_slot(one.slot));
    one.board.claim_slot(8, one.service, 0, 2_000).unwrap();
    one.board.count_request(one.slot, 7, 2_500);
    let open = one.begin(2_500); // as 7
    assert_eq!(one.board.in_flight(one.slot), 0);
    assert_eq!(one.board.service_in_flight(one.service), 0);
    one.end(open, Outcome::Failed, 2_600);
    assert_eq!((one.board.in_flight(one.slot), one.board.counters(one.slot)), (0, (0, 0)));
    assert_eq!(one.seen(3_000), Seen { unpicked_ms: 1_000, ..Seen::default() });
}

#[test]
fn an_end_that_comes_after_the_slot_was_given_away_takes_its_in_flight_down_and_no_more() {
    let one = One::new();
    let open = one.begin(1_001);
    // What release_slot prevents, unless the request begins while it looks.
    one.board.slot(one.slot).unwrap().identity.store(0, Relaxed);
    let other = one.board.find_service("other").unwrap();
    one.board.claim_slot(8, other, 0, 1_002).unwrap();
    one.end(open, Outcome::Failed, 1_003);
    assert_eq!((one.board.in_flight(one.slot), one.board.counters(one.slot)), (0, (0, 0)));
    assert_eq!(one.seen(1_002), Seen::default());
    assert_eq!(one.board.service_in_flight(one.service), 0);
    assert_eq!(one.board.service_in_flight(other), 0);
}

#[test]
fn a_slot_out_of_range_counts_nowhere() {
    let board = Board::map().unwrap();
    for slot in [NO_SLOT, MAX_SLOTS as u32] {
        let open = board.begin_request(None, slot, 7, 5);
        board.count_request(slot, 7, 5);
        assert!(!board.eject((slot, 7), 1, Reason::SuccessRate, 5, |_| 5));
        board.end_request(None, open, Outcome::Failed, 5);
        assert_eq!((board.in_flight(slot), board.counters(slot)), (0, (0, 0)));
        assert_eq!((board.seen(slot, 5), board.ejection(slot)), (Seen::default(), None));
        assert!(!board.release_slot(slot));
    }
}

#[test]
fn a_board_without_a_free_slot_says_so() {
    let board = Board::map().unwrap();
    let chat = board.service("chat").unwrap();
    for identity in 1..=MAX_SLOTS as u64 {
        assert!(board.claim_slot(identity, chat, identity as u32 - 1, 0).is_some());
    }
    assert_eq!(board.claim_slot(u64::MAX, chat, 0, 0), None);
    assert_eq!(board.used_slots().count(), MAX_SLOTS);
}

// === outcomes ===

#[test]
fn each_outcome_ends_the_request_and_a_failure_alone_counts_as_one() {
    for (outcome, failures) in [
        (Outcome::Answered, 0),
        (Outcome::Upgraded, 0),
        (Outcome::Failed, 1),
        (Outcome::Aborted, 0),
        (Outcome::Unseen, 0),
    ] {
        let one = One::new();
        let (first, second) = (one.begin(2_000), one.begin(2_000));
        assert_eq!((one.seen(2_000).in_flight, one.board.service_in_flight(one.service)), (2, 2));
        one.end(first, outcome, 2_100);
        one.end(second, outcome, 2_100);
        assert_eq!((one.seen(2_100).in_flight, one.board.service_in_flight(one.service)), (0, 0));
        assert_eq!(one.board.counters(one.slot), (2, 2 * failures), "{outcome:?}");
    }
}

#[test]
fn consecutive_failures_end_with_the_first_answer_and_not_with_an_abort() {
    let one = One::new();
    for (outcome, consecutive) in [
        (Outcome::Failed, 1),
        (Outcome::Failed, 2),
        (Outcome::Aborted, 2),
        (Outcome::Unseen, 2),
        (Outcome::Answered, 0),
        (Outcome::Failed, 1),
        (Outcome::Upgraded, 0),
    ] {
        one.request(outcome, 2_000);
        assert_eq!(one.seen(2_000).consecutive_failures, consecutive, "{outcome:?}");
    }
}

#[test]
fn the_failed_part_is_of_answers_and_failures_alone() {
    let one = One::new();
    one.request(Outcome::Failed, 2_000);
    assert_eq!(one.seen(0).failed, 1.0, "the first sets it");
    one.request(Outcome::Aborted, 3_000);
    one.request(Outcome::Unseen, 3_000);
    assert_eq!(one.seen(0).failed, 1.0);
    one.request(Outcome::Answered, 3_000); // a second after the failure
    assert_eq!(one.seen(0).failed, 0.5);
    one.request(Outcome::Upgraded, 4_000);
    assert_eq!(one.seen(0).failed, 0.25);
}

// === latency ===

#[test]
fn the_first_request_in_a_tick_of_the_clock_is_timed_and_no_other() {
    let one = One::new();
    let timed = [2_000, 2_000, 2_000, 2_004, 2_004].map(|now_ms| one.begin(now_ms).began_ns != 0);
    assert_eq!(timed, [true, false, false, true, false]);
    one.end(one.begin(2_004), Outcome::Answered, 2_008);
    assert_eq!(one.latency(), None, "what is not timed is no sample");
}

#[test]
fn the_latency_is_that_of_timed_answers() {
    let one = One::new();
    one.timed(20, Outcome::Answered, 2_000);
    let first = one.latency().unwrap();
    assert!((20.0..500.0).contains(&first), "{first}");
    one.timed(0, Outcome::Answered, 3_000); // half way down, a second later
    let second = one.latency().unwrap();
    assert!(second < first * 0.6 && second > first * 0.4, "{second} after {first}");
    assert!(one.seen(0).peak_ms.unwrap() > first * 0.9, "the peak stays up");
}

#[test]
fn what_ended_without_an_answer_is_a_latency_only_where_it_took_longer_than_the_mean() {
    for outcome in [Outcome::Aborted, Outcome::Failed] {
        let one = One::new();
        one.timed(5, outcome, 2_000);
        let is_known = outcome == Outcome::Aborted;
        assert_eq!(one.latency().is_some(), is_known, "{outcome:?}: nothing to compare it with");
        one.timed(10, Outcome::Answered, 3_000);
        let mean = one.latency();
        one.timed(0, outcome, 4_000);
        assert_eq!(one.latency(), mean, "{outcome:?}: it would have taken longer");
        one.timed(100, outcome, 5_000);
        assert!(one.latency() > mean, "{outcome:?}: it took that long at least");
    }
}

#[test]
fn a_connection_that_was_taken_over_and_an_end_that_nobody_saw_are_no_latency() {
    let one = One::new();
    one.timed(1, Outcome::Upgraded, 2_000);
    one.timed(1, Outcome::Unseen, 3_000);
    assert_eq!((one.latency(), one.seen(0).peak_ms), (None, None));
}

// === since when ===

#[test]
fn an_instance_is_stalled_while_requests_are_open_and_none_ends() {
    let one = One::new();
    assert_eq!(one.seen(9_000).stalled_ms, 0, "nothing is open");
    let opens = [one.begin(2_000), one.begin(2_300), one.begin(2_300), one.begin(2_300)];
    assert_eq!(one.seen(2_500).stalled_ms, 500, "since the first began");
    let [first, second, third, fourth] = opens;
    one.end(first, Outcome::Answered, 2_600);
    assert_eq!(one.seen(2_700).stalled_ms, 100, "since one ended");
    one.end(second, Outcome::Aborted, 3_000);
    assert_eq!(one.seen(3_100).stalled_ms, 500, "an abort is no answer");
    one.end(third, Outcome::Failed, 3_200);
    assert_eq!(one.seen(3_300).stalled_ms, 100);
    one.end(fourth, Outcome::Answered, 3_300);
    assert_eq!(one.seen(9_000).stalled_ms, 0);
    one.begin(9_000);
    assert_eq!(one.seen(9_000).stalled_ms, 0, "it was idle until now");
}

#[test]
fn an_instance_is_unpicked_since_its_last_request_began_or_else_since_it_came() {
    let one = One::new();
    assert_eq!(one.seen(1_500).unpicked_ms, 500);
    let open = one.begin(2_000);
    one.end(open, Outcome::Answered, 2_900);
    assert_eq!(one.seen(3_000).unpicked_ms, 1_000);
    one.board.count_request(one.slot, 7, 3_000);
    assert_eq!(one.seen(3_000).unpicked_ms, 0, "one without a log phase is one too");
}

#[test]
fn a_clock_that_jumps_makes_no_time_negative_and_none_overflow() {
    let one = One::new();
    let open = one.begin(5_000);
    let back = one.seen(10);
    assert_eq!((back.stalled_ms, back.unpicked_ms), (0, 0));
    let ahead = one.seen(u64::MAX);
    assert_eq!((ahead.stalled_ms, ahead.unpicked_ms), (u32::MAX, u32::MAX));
    one.end(open, Outcome::Failed, 10);
    one.request(Outcome::Answered, u64::MAX);
    one.request(Outcome::Failed, 0);
    assert!((0.0..=1.0).contains(&one.seen(0).failed));
}

#[test]
fn what_somebody_scribbled_does_not_get_out_and_breaks_nothing() {
    for byte in [0x01, 0x7f, 0x80, 0xff] {
        let one = One::new();
        let address = std::ptr::from_ref(one.board.slot(one.slot).unwrap()).cast_mut();
        // SAFETY: the mapping is writable and holds atomics alone; no other thread
        // has this one.
        unsafe { std::ptr::write_bytes(address.cast::<u8>(), byte, size_of::<Slot>()) };
        one.board.slot(one.slot).unwrap().identity.store(7, Relaxed);
        for outcome in [Outcome::Answered, Outcome::Failed, Outcome::Aborted] {
            let seen = one.seen(5_000);
            assert!((0.0..=1.0).contains(&seen.failed), "{seen:?}");
            for latency in [seen.latency_ms, seen.peak_ms].into_iter().flatten() {
                assert!(latency.is_finite() && latency > 0.0, "{seen:?}");
            }
            one.request(outcome, 5_000);
        }
        assert_eq!(one.board.service_in_flight(one.service), 0, "its service is none");
    }
}
