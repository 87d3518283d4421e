//! The methods of nginx.

use super::*;

#[test]
fn round_robin_is_smooth_by_weight() {
    let fleet = Fleet::with_weights(&[5.0, 1.0, 1.0]);
    let turn = [0, 0, 1, 0, 2, 0, 0];
    assert_eq!(picks(&mut *policy("round_robin"), &fleet, 14), [turn, turn].concat());
}

#[test]
fn each_worker_goes_round_by_itself_from_the_first_server_on() {
    let shared = gateway_shared();
    for seed in 1..3 {
        let mut worker = by_name("round_robin", &shared, seed).unwrap();
        assert_eq!(picks(&mut *worker, &Fleet::of(3), 4), [0, 1, 2, 0]);
    }
}

#[test]
fn round_robin_begins_anew_with_a_server_that_comes_back() {
    let mut fleet = Fleet::of(3);
    let mut policy = policy("round_robin");
    assert_eq!(picks(&mut *policy, &fleet, 1), [0]);
    fleet.servers[0].is_member = false;
    assert_eq!(picks(&mut *policy, &fleet, 1), [1]);
    fleet.servers[0].is_member = true;
    // 0 does not owe the turn that it had: currents are 0, 0 and 2.
    assert_eq!(picks(&mut *policy, &fleet, 3), [2, 0, 1]);
}

#[test]
fn random_draws_by_weight() {
    let fleet = Fleet::with_weights(&[1.0, 2.0, 5.0]);
    let shares = shares(&mut *policy("random"), &fleet, 20_000);
    for (share, expected) in shares.into_iter().zip([0.125, 0.25, 0.625]) {
        assert_close(share, expected, 0.05);
    }
}

#[test]
fn least_conn_takes_the_least_for_its_weight() {
    let mut fleet = Fleet::with_weights(&[4.0, 1.0, 2.0]);
    fleet.set_in_flight(&[7, 2, 3]); // 1.75, 2, 1.5 for their weights
    assert_eq!(picks(&mut *policy("least_conn"), &fleet, 3), [2; 3]);
    fleet.set_in_flight(&[7, 1, 3]);
    assert_eq!(picks(&mut *policy("least_conn"), &fleet, 3), [1; 3]);
}

#[test]
fn least_conn_goes_round_among_equals_by_weight() {
    let mut fleet = Fleet::with_weights(&[5.0, 1.0, 1.0, 1.0]);
    fleet.set_in_flight(&[0, 0, 0, 1]);
    assert_eq!(picks(&mut *policy("least_conn"), &fleet, 7), [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn with_a_zone_the_gateway_s_connections_count_and_without_the_worker_s() {
    let mut fleet = Fleet::of(2);
    (fleet.servers[0].by_worker, fleet.servers[0].by_gateway) = (0, 5);
    (fleet.servers[1].by_worker, fleet.servers[1].by_gateway) = (1, 1);
    for (name, server) in
        [("least_conn", 1), ("random_two", 1), ("least_conn_worker", 0), ("random_two_worker", 0)]
    {
        assert_eq!(picks(&mut *policy(name), &fleet, 20), [server; 20], "{name}");
    }
}

#[test]
fn workers_that_share_a_zone_take_turns_with_each_other() {
    let (shared, fleet) = (gateway_shared(), Fleet::of(4));
    let worker = || picks(&mut *by_name("least_conn", &shared, 1).unwrap(), &fleet, 1);
    assert_eq!([worker(), worker(), worker(), worker()].concat(), [0, 1, 2, 3]);
}

/// Of two servers the heavier is likely to be drawn first, and of equals the second
/// is taken.
#[test]
fn random_two_gives_a_tie_to_the_second() {
    let fleet = Fleet::with_weights(&[3.0, 1.0]);
    assert_close(shares(&mut *policy("random_two"), &fleet, 20_000)[0], 0.25, 0.04);
}

#[test]
fn random_two_compares_connections_for_their_weights() {
    let mut fleet = Fleet::with_weights(&[3.0, 1.0]);
    fleet.set_in_flight(&[5, 2]);
    assert_eq!(picks(&mut *policy("random_two"), &fleet, 20), [0; 20]);
    fleet.set_in_flight(&[7, 2]);
    assert_eq!(picks(&mut *policy("random_two"), &fleet, 20), [1; 20]);
}

/// What the weights make all but impossible to draw, smooth round robin finds.
#[test]
fn after_twenty_draws_nginx_goes_round() {
    for name in ["random", "random_two"] {
        let mut fleet = Fleet::with_weights(&[1e9, 1.0, 1.0]);
        fleet.servers[0].is_tried = true;
        assert_eq!(picks(&mut *policy(name), &fleet, 4), [1, 2, 1, 2], "{name}");
    }
}

#[test]
fn one_timeout_takes_a_server_out_for_ten_seconds() {
    for name in ["round_robin", "random", "least_conn", "random_two", "least_conn_worker"] {
        let (mut policy, mut fleet) = (policy(name), Fleet::of(2));
        fleet.now_s = 100.5;
        picks(&mut *policy, &fleet, 1);
        policy.ended(&fleet, 0, Outcome::TimedOut(1.0));
        // In whole seconds: from 100 on, to 110 and all of it.
        for now_s in [100.5, 105.0, 110.9] {
            fleet.now_s = now_s;
            assert_eq!(picks(&mut *policy, &fleet, 50), [1; 50], "{name} at {now_s}");
        }
        // One request may try, and the rest wait for it.
        fleet.now_s = 111.0;
        let tries = picks(&mut *policy, &fleet, 50);
        assert_eq!(tries.iter().filter(|&&server| server == 0).count(), 1, "{name}");
        // An answer of a request from before does not bring it back, that one's does.
        policy.ended(&fleet, 0, Outcome::Answered(1.0));
        assert!(picks(&mut *policy, &fleet, 50).contains(&0), "{name}");
    }
}

#[test]
fn answers_of_requests_from_before_a_timeout_do_not_bring_a_server_back() {
    let (mut policy, mut fleet) = (policy("round_robin"), Fleet::of(2));
    fleet.now_s = 100.0;
    picks(&mut *policy, &fleet, 4);
    policy.ended(&fleet, 0, Outcome::TimedOut(1.0));
    policy.ended(&fleet, 0, Outcome::Answered(1.0));
    assert_eq!(picks(&mut *policy, &fleet, 9), [1; 9]);
}

#[test]
fn with_all_servers_out_nginx_asks_none_and_one_alone_never_is() {
    let (mut policy, mut fleet) = (policy("least_conn"), Fleet::of(2));
    picks(&mut *policy, &fleet, 1);
    for server in 0..2 {
        policy.ended(&fleet, server, Outcome::TimedOut(1.0));
    }
    assert!(picks(&mut *policy, &fleet, 5).is_empty());
    fleet.servers[1].is_member = false;
    assert_eq!(picks(&mut *policy, &fleet, 5), [0; 5]);
}

#[test]
fn nginx_gives_nothing_to_weight_0() {
    let fleet = Fleet::with_weights(&[0.0, 1.0, f64::NAN]);
    for name in ["round_robin", "random", "least_conn", "random_two"] {
        assert_eq!(picks(&mut *policy(name), &fleet, 9), [1; 9], "{name}");
    }
}
