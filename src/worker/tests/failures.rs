//! What becomes of requests whose try failed, and of those that limits keep out.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::config::Strategy as Picking;

const HEADS: [&str; 4] = ["failover", "failfast", "failback", "failcache"];

/// One that has loaded a ranking of these instances, of these weights and limits.
fn limited(strategy: &str, failure: &Value, ranked: &[(char, f64, u32)]) -> Gateway {
    let mut gateway = Gateway::with(&json!({"strategy": strategy, "tries": 16}), failure);
    publish_limited(&mut gateway, ranked);
    gateway
}

fn publish_limited(gateway: &mut Gateway, ranked: &[(char, f64, u32)]) {
    let weights: Vec<_> = ranked.iter().map(|&(id, weight, _)| (id, weight)).collect();
    gateway.store(&weights);
    let (version, body) = value::open(gateway.ranking.as_ref().unwrap()).unwrap();
    let mut ranking = RankingValue::decode(body).unwrap();
    let mut by_id = ranked.to_vec();
    by_id.sort_unstable_by_key(|&(id, ..)| id);
    for (record, (_, _, max)) in ranking.records.iter_mut().zip(by_id) {
        record.max_in_flight = max;
    }
    gateway.ranking = Some(seal(version, &ranking.encode()));
    gateway.announce();
    gateway.load().unwrap();
}

fn ranked_with(failure: &Value, ids: &str) -> Gateway {
    let ranked: Vec<_> = ids.chars().map(|id| (id, 1.0, 0)).collect();
    limited("best", failure, &ranked)
}

fn retry(address: usize) -> Request<'static> {
    Request { is_retry: true, ..first_try(address) }
}

fn more_tries(gateway: &mut Gateway, request: usize) -> u32 {
    match gateway.worker.balance(gateway.chat, first_try(request)) {
        Choice::Peer { more_tries, .. } => more_tries,
        other => panic!("{other:?}"),
    }
}

fn refused(gateway: &Gateway, reason: Refusal) -> u64 {
    gateway.board.refusals(gateway.id()).find(|(it, _)| *it == reason).unwrap().1
}

// === modes ===

#[test]
fn each_mode_has_nginx_come_again_as_often_as_it_needs() {
    let allowed = HEADS.map(|mode| {
        let mut gateway = ranked_with(&json!({ "mode": mode }), "abc");
        (more_tries(&mut gateway, 1), more_tries(&mut gateway, 2))
    });
    assert_eq!(allowed, [(2, 2), (0, 0), (1, 1), (2, 2)]);
    let mut alone = ranked_with(&json!({"mode": "failback"}), "a");
    assert_eq!(more_tries(&mut alone, 1), 1, "who is alone is told of, too");
}

#[test]
fn failback_tells_how_the_try_failed_and_asks_nobody_else() {
    let mut gateway = ranked_with(&json!({"mode": "failback"}), "ab");
    for (address, reason) in (1..).zip([Refusal::Error, Refusal::Timeout, Refusal::Status]) {
        gateway.send(address);
        let request = Request { failed_by: reason, ..retry(address) };
        assert_eq!(refusal(&mut gateway, request), reason);
        assert_eq!(refused(&gateway, reason), 1);
        gateway.worker.finish(address, 502);
    }
    assert_eq!((gateway.counted('a'), gateway.counted('b')), ((3, 3), (0, 0)));
    assert_eq!((gateway.in_flight(), gateway.board.retries(gateway.id())), (0, 0));
}

#[test]
fn a_refusal_that_nginx_moves_on_from_stays_the_same_and_counts_once() {
    let mut gateway = ranked_with(&json!({"mode": "failback"}), "ab");
    gateway.send(1);
    for failed_by in [Refusal::Timeout, Refusal::Status, Refusal::Error] {
        let request = Request { failed_by, ..retry(1) };
        assert_eq!(refusal(&mut gateway, request), Refusal::Timeout);
    }
    assert_eq!((refused(&gateway, Refusal::Timeout), refused(&gateway, Refusal::Status)), (1, 0));
}

#[test]
fn an_address_that_was_refused_serves_its_next_request() {
    let mut gateway = ranked_with(&json!({"mode": "failback"}), "ab");
    gateway.send(1);
    refusal(&mut gateway, retry(1));
    gateway.worker.finish(1, 502);
    assert_eq!(gateway.send(1), Some('a'));
}

// === failcache ===

fn failcache(ids: &str) -> Gateway {
    ranked_with(&json!({"mode": "failcache", "rest": "10m", "budget": {"percent": 1000}}), ids)
}

#[test]
fn who_failed_once_rests_and_the_others_serve() {
    let mut gateway = failcache("abc");
    assert_eq!((gateway.send(1), gateway.resend(1)), (Some('a'), Some('b')));
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.send(2), Some('b'), "a, the best, rests");
    gateway.end(2, Outcome::Failed);
    assert_eq!(gateway.send(3), Some('c'), "a last try counts as well");
    gateway.end(3, Outcome::Aborted);
    assert_eq!(gateway.send(4), Some('c'), "a client that goes away is no failure");
}

#[test]
fn when_all_rest_none_does() {
    let mut gateway = failcache("ab");
    assert_eq!((gateway.send(1), gateway.resend(1)), (Some('a'), Some('b')));
    gateway.end(1, Outcome::Failed);
    assert_eq!(gateway.send(2), Some('a'));
    assert_eq!(gateway.resend(2), Some('b'), "nor for a retry");
    assert_eq!(gateway.resend(2), None);
}

#[test]
fn in_no_other_mode_does_anybody_rest() {
    for mode in ["failover", "failfast", "failback"] {
        let mut gateway = ranked_with(&json!({"mode": mode, "rest": "10m"}), "ab");
        gateway.send(1);
        gateway.end(1, Outcome::Failed);
        assert_eq!(gateway.send(2), Some('a'), "{mode}");
    }
}

#[test]
fn a_rest_sends_nobody_to_an_instance_of_weight_0() {
    let failure = json!({"mode": "failcache", "budget": {"percent": 1000}});
    let mut gateway = limited("best", &failure, &[('a', 1.0, 0), ('b', 0.0, 0)]);
    gateway.send(1);
    gateway.end(1, Outcome::Failed);
    assert_eq!(gateway.send(2), Some('a'));
    assert_eq!(gateway.resend(2), Some('b'), "as ever when nothing else is left");
}

// === the retry budget ===

#[test]
fn without_a_token_a_request_is_not_tried_again_and_is_told_so() {
    let failure = json!({"budget": {"percent": 50, "reserve": 1, "per_second": 0}});
    let mut gateway = ranked_with(&failure, "ab");
    let mut outcomes = Vec::new();
    for address in 1..=6 {
        gateway.send(address);
        outcomes.push(gateway.resend(address).is_some());
        gateway.worker.finish_by_tries(address, 502, &Tries::default());
    }
    // The first request cannot fill a bucket that is full.
    assert_eq!(outcomes, [true, false, true, false, true, false]);
    let (id, board) = (gateway.id(), gateway.board);
    assert_eq!((board.retries(id), refused(&gateway, Refusal::RetryBudget)), (3, 3));
    assert_eq!(gateway.in_flight(), 0);
}

#[test]
fn a_retry_that_has_nowhere_to_go_takes_no_token() {
    let failure = json!({"budget": {"percent": 0, "reserve": 1, "per_second": 0}});
    let mut gateway = ranked_with(&failure, "a");
    for address in 1..=3 {
        gateway.send(address);
        assert_eq!(refusal(&mut gateway, retry(address)), Refusal::AllTried);
    }
    gateway.publish("ab");
    gateway.load().unwrap();
    gateway.send(4);
    assert!(gateway.resend(4).is_some());
}

#[test]
fn a_subrequest_lives_by_the_same_budget() {
    let failure = json!({"budget": {"percent": 0, "reserve": 1, "per_second": 0}});
    let mut gateway = ranked_with(&failure, "ab");
    let again = |address| Request { tried: Some(b"127.0.0.1:9001, "), ..retry(address) };
    assert!(matches!(gateway.worker.balance(gateway.chat, again(1)), Choice::Peer { .. }));
    assert_eq!(refusal(&mut gateway, again(2)), Refusal::RetryBudget);
}

#[test]
fn a_connection_in_vain_is_not_paid_for() {
    let failure = json!({"budget": {"percent": 0, "reserve": 0, "per_second": 0}});
    let mut gateway = ranked_with(&failure, "ab");
    gateway.send(1);
    let again = Request { has_reached: false, ..retry(1) };
    assert!(matches!(gateway.worker.balance(gateway.chat, again), Choice::Peer { .. }));
    gateway.send(2);
    assert_eq!(refusal(&mut gateway, retry(2)), Refusal::RetryBudget);
}

// === limits ===

#[test]
fn an_instance_at_its_limit_is_passed_over_by_every_strategy_and_every_key() {
    for strategy in Picking::all() {
        let ranked = [('a', 1.0, 2), ('b', 1.0, 0), ('c', 9.0, 1)];
        let mut gateway = limited(strategy.as_str(), &json!({}), &ranked);
        for address in 1..=200 {
            let key =
                (address % 2 == 0).then_some((address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let request = Request { key, ..first_try(address) };
            let choice = gateway.worker.balance(gateway.chat, request);
            assert!(matches!(choice, Choice::Peer { .. }), "{choice:?}");
        }
        let open = ['a', 'b', 'c'].map(|id| gateway.board.in_flight(gateway.instance(id).slot));
        // `best` goes on to the next best: a, then b, which has no limit.
        let all = if strategy == Picking::Best { [2, 198, 0] } else { [2, 197, 1] };
        assert_eq!(open, all, "{strategy:?}");
    }
}

#[test]
fn when_all_are_full_a_request_is_told_so_and_a_place_that_is_free_again_is_used() {
    let mut gateway = limited("adaptive", &json!({}), &[('a', 1.0, 1), ('b', 1.0, 1)]);
    let first = gateway.send(1);
    assert_ne!(gateway.send(2), first);
    assert_eq!(refusal(&mut gateway, first_try(3)), Refusal::MaxInFlight);
    assert_eq!(gateway.in_flight(), 2, "who is refused is not in flight");
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.send(4), first);
    assert_eq!(refused(&gateway, Refusal::MaxInFlight), 1);
}

#[test]
fn a_retry_is_told_that_those_left_are_full_and_not_that_all_were_tried() {
    let mut gateway = limited("best", &json!({}), &[('a', 1.0, 0), ('b', 1.0, 1)]);
    gateway.send(1);
    assert_eq!(gateway.resend(1), Some('b'));
    gateway.send(2);
    assert_eq!(refusal(&mut gateway, retry(2)), Refusal::MaxInFlight);
    assert_eq!(refusal(&mut gateway, retry(1)), Refusal::AllTried);
}

#[test]
fn who_is_kept_out_does_not_go_to_an_instance_of_weight_0_unless_all_have_it() {
    let mut gateway = limited("adaptive", &json!({}), &[('a', 1.0, 1), ('b', 0.0, 0)]);
    assert_eq!(gateway.send(1), Some('a'));
    assert_eq!(refusal(&mut gateway, first_try(2)), Refusal::MaxInFlight);
    publish_limited(&mut gateway, &[('a', 0.0, 1), ('b', 0.0, 0)]);
    assert_eq!(gateway.send(3), Some('b'));
}

#[test]
fn a_limit_that_falls_below_what_is_open_lets_nothing_in_until_that_has_ended() {
    let mut gateway = limited("best", &json!({}), &[('a', 1.0, 0)]);
    (1..=3).for_each(|address| assert_eq!(gateway.send(address), Some('a')));
    publish_limited(&mut gateway, &[('a', 1.0, 2)]);
    assert_eq!(gateway.send(4), None);
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.send(5), None);
    gateway.end(2, Outcome::Answered);
    assert_eq!(gateway.send(6), Some('a'));
}

#[test]
fn the_limit_of_an_instance_is_on_its_page_where_it_has_one() {
    let gateway = limited("best", &json!({}), &[('a', 1.0, 7), ('b', 1.0, 0)]);
    let page = gateway.best(9, 0).unwrap();
    assert_eq!(page["instances"][0]["max_in_flight"], 7);
    assert_eq!(page["instances"][1].get("max_in_flight"), None);
}

proptest! {
    /// Whatever comes and goes: no limit is exceeded, no request is refused while
    /// there is a place for it, and nothing is left behind.
    #[test]
    fn places_are_never_too_many_and_never_left_empty(
        strategy in prop::sample::select(Picking::all().collect::<Vec<_>>()),
        limits in prop::collection::vec(0..4_u32, 1..5),
        steps in prop::collection::vec((0..12_usize, 0..3_u8), 0..200),
    ) {
        let ranked: Vec<_> = ('a'..).zip(&limits).map(|(id, &max)| (id, 1.0, max)).collect();
        let failure = json!({"budget": {"percent": 1000, "reserve": 10_000}});
        let mut gateway = limited(strategy.as_str(), &failure, &ranked);
        let places = |id: char| match limits[id as usize - 'a' as usize] {
            0 => u32::MAX,
            max => max,
        };
        let mut open: HashMap<usize, (char, Vec<char>)> = HashMap::new();
        for (address, step) in steps {
            match (step, open.remove(&address)) {
                (0 | 1, None) => {
                    let taken = |id| open.values().filter(|(at, _)| *at == id).count() as u32;
                    let has_room = ranked.iter().any(|&(id, ..)| taken(id) < places(id));
                    let sent = gateway.send(address);
                    prop_assert_eq!(sent.is_some(), has_room);
                    match sent {
                        Some(id) => {
                            prop_assert!(taken(id) < places(id));
                            open.insert(address, (id, vec![id]));
                        }
                        None => drop(gateway.worker.finish(address, 0)),
                    }
                }
                (0, Some((_, mut tried))) => {
                    let taken = |id| open.values().filter(|(at, _)| *at == id).count() as u32;
                    let is_free = |id| taken(id) < places(id) && !tried.contains(&id);
                    let has_room = ranked.iter().any(|&(id, ..)| is_free(id));
                    let sent = gateway.resend(address);
                    prop_assert_eq!(sent.is_some(), has_room);
                    match sent {
                        Some(id) => {
                            prop_assert!(is_free(id));
                            tried.push(id);
                            open.insert(address, (id, tried));
                        }
                        None => drop(gateway.worker.finish(address, 0)),
                    }
                }
                (_, Some(_)) => drop(gateway.end(address, Outcome::Answered)),
                (_, None) => {}
            }
            prop_assert_eq!(gateway.in_flight(), open.len() as i64);
        }
        for address in open.into_keys() {
            gateway.end(address, Outcome::Answered);
        }
        prop_assert_eq!(gateway.in_flight(), 0);
    }
}
