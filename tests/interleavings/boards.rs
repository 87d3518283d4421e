//! The board's own laws.

use std::sync::Arc;

use ipconfig::config::BudgetConfig;
use ipconfig::reckon::Figures;
use loom::sync::Mutex;

use crate::board::{Board, Budget, Outcome, Reason, Refusal};
use crate::{act, always, always_within, together};

/// A process that is gone: above the most that Linux gives out.
const GONE: u32 = (1 << 22) + 1;

#[test]
fn of_three_writers_no_two_are_in_a_store() {
    always_within(Some(1), |board| {
        let dict = Arc::new(Mutex::new(0_u64));
        let store = |dict: &Mutex<u64>, epoch| {
            let mut newest = dict.try_lock().expect("nobody else is inside");
            assert!(*newest <= epoch, "an older one after a newer one");
            *newest = epoch;
        };
        let writer = || {
            let dict = Arc::clone(&dict);
            act(move || {
                let epoch = board.begin_epoch();
                board.fenced(epoch, || store(&dict, epoch));
            })
        };
        together(vec![writer(), writer(), writer()]);
    });
}

#[test]
fn a_service_that_two_ask_for_has_one_entry() {
    always(|board| {
        let ask = |name: &'static str| act(move || board.service(name).expect("room"));
        let ids = together(vec![ask("a"), ask("a")]);
        assert_eq!(ids[0], ids[1]);
        assert_eq!(board.service_names().collect::<Vec<_>>(), ["a"]);
    });
}

#[test]
fn two_services_have_two_entries_and_a_name_is_seen_whole_or_not_at_all() {
    always_within(Some(3), |board| {
        let ask = |name: &'static str| {
            act(move || {
                board.service(name).expect("room");
            })
        };
        let look = act(move || {
            for name in board.service_names() {
                assert!(name == "ab" || name == "cd", "{name:?}");
            }
        });
        together(vec![ask("ab"), ask("cd"), look]);
        assert_ne!(board.find_service("ab"), board.find_service("cd"));
        assert_eq!(board.service_names().count(), 2);
    });
}

#[test]
fn two_that_claim_a_slot_get_two() {
    always(|board| {
        let service = board.service("a").expect("room");
        let claim = |identity| act(move || board.claim_slot(identity, service, 0, 0));
        let slots = together(vec![claim(7), claim(8)]);
        let mut used: Vec<_> = board.used_slots().collect();
        used.sort_by_key(|(_, identity)| *identity);
        let claimed: Vec<_> = slots.iter().flatten().copied().zip([7, 8]).collect();
        assert_eq!(used, claimed);
    });
}

#[test]
fn a_slot_that_is_given_to_another_while_a_request_begins_and_ends_has_none_in_flight_at_rest() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 0).expect("room");
        let request = act(move || {
            let open = board.begin_request(None, slot, 7, 0);
            board.end_request(None, open, Outcome::Failed, 0);
        });
        let writer = act(move || {
            if board.release_slot(slot) {
                board.claim_slot(8, service, slot, 0).expect("it is free");
            }
        });
        together(vec![request, writer]);
        assert_eq!(board.in_flight(slot), 0);
    });
}

#[test]
fn workers_together_never_exceed_an_instances_most_and_one_gets_through() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 0).expect("room");
        let begin = || act(move || board.begin_within(None, slot, 7, 1, 0));
        let opens: Vec<_> = together(vec![begin(), begin()]).into_iter().flatten().collect();
        assert_eq!((opens.len(), board.in_flight(slot)), (1, 1));
    });
}

#[test]
fn whoever_sees_that_an_instance_is_busy_sees_since_when() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 5000).expect("room");
        let begin = act(move || drop(board.begin_request(None, slot, 7, 5000)));
        let look = act(move || {
            let seen = board.seen(slot, 5000);
            assert!(seen.in_flight == 0 || seen.stalled_ms == 0, "{seen:?}");
        });
        together(vec![begin, look]);
    });
}

#[test]
fn what_a_worker_that_is_gone_had_open_is_given_back_once() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 0).expect("room");
        let theirs = board.claim_row(GONE);
        let _open = board.begin_request(theirs, slot, 7, 0);
        let reclaim = || act(move || board.reclaim_rows());
        together(vec![reclaim(), reclaim()]);
        assert_eq!((board.in_flight(slot), board.service_in_flight(service)), (0, 0));
    });
}

#[test]
fn a_row_that_was_given_back_begins_empty_for_its_next_owner() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 0).expect("room");
        let theirs = board.claim_row(GONE);
        let _open = board.begin_request(theirs, slot, 7, 0);
        let reclaim = act(move || board.reclaim_rows());
        let next = act(move || {
            let row = board.claim_row(std::process::id());
            let open = board.begin_request(row, slot, 7, 0);
            assert!(board.service_in_flight(service) >= 1, "its own");
            board.end_request(row, open, Outcome::Unseen, 0);
        });
        together(vec![reclaim, next]);
        assert_eq!((board.in_flight(slot), board.service_in_flight(service)), (0, 0));
    });
}

#[test]
fn workers_that_eject_together_eject_the_most_and_the_count_is_that_of_those_in_force() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slots = [7, 8]
            .map(|identity| (board.claim_slot(identity, service, 0, 0).expect("room"), identity));
        let eject = |who| act(move || board.eject(who, 1, Reason::SuccessRate, 0, |_| 1000));
        let ejected = together(vec![eject(slots[0]), eject(slots[1])]);
        let in_force = slots.iter().filter(|(slot, _)| board.ejection(*slot).is_some()).count();
        assert_eq!(ejected.into_iter().filter(|is| *is).count(), 1);
        assert_eq!((in_force, board.ejected(service)), (1, 1));
    });
}

#[test]
fn the_count_of_ejected_is_right_at_rest_when_one_is_taken_back_as_two_eject_it() {
    always_within(Some(3), |board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 0).expect("room");
        let eject = || act(move || board.eject((slot, 7), 2, Reason::SuccessRate, 0, |_| 1000));
        let take_back = act(move || board.take_back(slot, 0));
        let done = together(vec![eject(), eject(), take_back]);
        let in_force = u32::from(board.ejection(slot).is_some());
        assert_eq!(board.ejected(service), in_force, "{done:?}");
        let [ejections, taken_back] = [u32::from(done[0]) + u32::from(done[1]), u32::from(done[2])];
        assert_eq!(ejections - taken_back, in_force, "{done:?}");
    });
}

#[test]
fn an_ejection_is_told_by_one() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 0).expect("room");
        board.eject((slot, 7), 1, Reason::SuccessRate, 0, |_| 1000);
        let tell = || act(move || board.tell_ejection(slot));
        let told = together(vec![tell(), tell()]);
        assert_eq!(told.into_iter().filter(|is| *is).count(), 1);
    });
}

#[test]
fn the_last_token_is_taken_once_while_another_is_put_in() {
    always(|board| {
        let id = board.service("a").expect("room");
        let budget = Budget::new(&BudgetConfig { percent: 100, reserve: 1, per_second: 0 });
        assert!(board.withdraw_retry(id, budget), "the bucket is empty now");
        let take = || act(move || u32::from(board.withdraw_retry(id, budget)));
        let put = act(move || {
            board.deposit_retry(id, budget);
            0
        });
        let taken: u32 = together(vec![take(), take(), put]).into_iter().sum();
        let left = u32::from(board.withdraw_retry(id, budget));
        assert_eq!(taken + left, 1);
    });
}

#[test]
fn lines_of_the_log_tell_of_each_refusal_once() {
    always(|board| {
        let id = board.service("a").expect("room");
        let refuse = || act(move || board.count_refusal(id, Refusal::NoInstance, 5000));
        let told: u64 = together(vec![refuse(), refuse()]).into_iter().sum();
        let rest = board.count_refusal(id, Refusal::NoInstance, 6000);
        assert_eq!(told + rest, 3);
    });
}

#[test]
fn a_report_is_read_as_it_was_told_and_none_is_lost() {
    always(|board| {
        let figures = Figures {
            cpu: Some(0.5),
            latency_ms: Some(12.5),
            requests_per_second: 100.0,
            ..Figures::default()
        };
        let put = act(move || {
            board.put_report(1, figures, 1000);
            None
        });
        let take = act(move || board.take_reports(1000).remove(&1));
        let read = together(vec![put, take]).into_iter().flatten().next();
        let rest = board.take_reports(1000).remove(&1);
        assert_eq!(read.or(rest), Some(figures));
        assert!(read.is_none() || rest.is_none(), "once");
    });
}

#[test]
fn one_of_two_workers_looks_for_a_report() {
    always(|board| {
        let look = || act(move || board.is_look_due(1, 1000));
        let due = together(vec![look(), look()]);
        assert_eq!(due.into_iter().filter(|is| *is).count(), 1);
    });
}

#[test]
fn rules_that_two_workers_load_together_have_the_same_counters() {
    always_within(Some(3), |board| {
        let id = board.service("a").expect("room");
        let load = |names: &'static [&'static str]| act(move || board.rules(id, names));
        let ids = together(vec![load(&["x", "y"]), load(&["x", "y"])]);
        assert_eq!(ids[0], ids[1]);
        assert!(ids[0].iter().all(Option::is_some));
        assert_ne!(ids[0][0], ids[0][1]);
    });
}

#[test]
fn rules_of_two_lists_that_are_loaded_together_find_room_while_there_is_some() {
    always(|board| {
        let id = board.service("a").expect("room");
        let load = |names: &'static [&'static str]| act(move || board.rules(id, names)[0]);
        let ids = together(vec![load(&["x"]), load(&["y"])]);
        assert!(ids.iter().all(Option::is_some));
        assert_ne!(ids[0], ids[1]);
    });
}

#[test]
fn an_average_that_two_move_is_one_that_their_samples_make() {
    always(|board| {
        let service = board.service("a").expect("room");
        let slot = board.claim_slot(7, service, 0, 0).expect("room");
        let fail = || {
            act(move || {
                let open = board.begin_request(None, slot, 7, 0);
                board.end_request(None, open, Outcome::Failed, 0);
            })
        };
        together(vec![fail(), fail()]);
        let seen = board.seen(slot, 0);
        assert_eq!((seen.failed, seen.consecutive_failures), (1.0, 2));
        assert_eq!((seen.in_flight, board.counters(slot)), (0, (2, 2)));
    });
}

#[test]
fn a_beat_is_never_lost() {
    always(|board: Board| {
        let beat = || act(move || board.beat());
        together(vec![beat(), beat()]);
        assert_eq!(board.heartbeat(), 2);
    });
}
