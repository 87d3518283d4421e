//! Those who average latencies.

use super::queues::{Run, simulate};
use super::*;

const E: f64 = std::f64::consts::E;

#[test]
fn an_average_moves_by_the_time_since_its_last_change() {
    let mut averages = ewma::Averages::default();
    assert_eq!(averages.score(3, 50.0), 0.0);
    averages.observe(3, 0.1, 50.0);
    assert_eq!(averages.score(3, 50.0), 0.1);
    averages.observe(3, 0.2, 60.0);
    assert_close(averages.score(3, 60.0), 0.1 / E + 0.2 * (1.0 - 1.0 / E), 1e-12);
    // Read as if 0 had come in; reading changes nothing.
    assert_close(averages.score(3, 70.0), 0.163_212_055_882_856 / E, 1e-12);
    assert_close(averages.score(3, 80.0), 0.163_212_055_882_856 / E / E, 1e-12);
    // A clock that goes back is a clock that stands.
    assert_close(averages.score(3, 1.0), 0.163_212_055_882_856, 1e-12);
}

#[test]
fn the_lower_average_wins_and_weights_do_not_count() {
    for name in ["ewma_ingress", "ewma_apisix", "peak_ewma"] {
        let mut fleet = Fleet::with_weights(&[1000.0, 1.0]);
        let mut policy = policy(name);
        picks(&mut *policy, &fleet, 1);
        policy.ended(&fleet, 0, Outcome::Answered(0.2));
        policy.ended(&fleet, 1, Outcome::Answered(0.1));
        assert_eq!(picks(&mut *policy, &fleet, 20), [1; 20], "{name}");
        fleet.now_s = 1.0;
        policy.ended(&fleet, 1, Outcome::Answered(2.0));
        assert_eq!(picks(&mut *policy, &fleet, 20), [0; 20], "{name}");
    }
}

/// No more than two are looked at: the best of n is in 2 of n pairs.
#[test]
fn the_best_of_all_gets_two_nths() {
    for name in ["ewma_ingress", "ewma_apisix", "peak_ewma", "oracle_p2c"] {
        let (mut policy, mut fleet) = (policy(name), Fleet::of(8));
        picks(&mut *policy, &fleet, 1);
        for server in 0..8 {
            policy.ended(&fleet, server, Outcome::Answered(1.0 + server as f64));
        }
        fleet.set_in_flight(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let shares = shares(&mut *policy, &fleet, 20_000);
        assert_close(shares[0], 2.0 / 8.0, 0.04);
        assert_eq!(shares[7], 0.0, "{name}");
    }
}

#[test]
fn workers_of_one_gateway_share_averages_and_gateways_do_not() {
    for (name, shares) in [("ewma_ingress", true), ("ewma_apisix", true), ("peak_ewma", false)] {
        let (shared, fleet) = (gateway_shared(), Fleet::of(2));
        let mut one = by_name(name, &shared, 1).unwrap();
        picks(&mut *one, &fleet, 1);
        one.ended(&fleet, 0, Outcome::Answered(0.2));
        let mut other = by_name(name, &shared, 2).unwrap();
        let mut far = by_name(name, &gateway_shared(), 3).unwrap();
        assert_eq!(picks(&mut *other, &fleet, 40) == [1; 40], shares, "{name}");
        assert!(picks(&mut *far, &fleet, 40).contains(&0), "{name}");
    }
}

#[test]
fn ingress_seeds_a_server_that_joins_with_the_mean() {
    let (mut policy, mut fleet) = (policy("ewma_ingress"), Fleet::of(3));
    fleet.servers[2].is_member = false;
    picks(&mut *policy, &fleet, 1);
    policy.ended(&fleet, 0, Outcome::Answered(0.1));
    policy.ended(&fleet, 1, Outcome::Answered(0.3));
    fleet.servers[2].is_member = true;
    let mut pair = |not: usize| {
        let mut fleet = fleet.clone();
        fleet.servers[not].is_tried = true;
        picks(&mut *policy, &fleet, 10)
    };
    // 0.2 is between the two: worse than 0, better than 1.
    assert_eq!(pair(1), [0; 10]);
    assert_eq!(pair(0), [2; 10]);
}

#[test]
fn ingress_forgets_a_server_that_leaves() {
    let (mut policy, mut fleet) = (policy("ewma_ingress"), Fleet::of(3));
    picks(&mut *policy, &fleet, 1);
    for (server, latency_s) in [(0, 9.0), (1, 0.3), (2, 0.1)] {
        policy.ended(&fleet, server, Outcome::Answered(latency_s));
    }
    fleet.servers[0].is_member = false;
    picks(&mut *policy, &fleet, 1);
    fleet.servers[0].is_member = true;
    fleet.servers[2].is_tried = true;
    // The mean of 0.3 and 0.1, no longer 9.
    assert_eq!(picks(&mut *policy, &fleet, 10), [0; 10]);
}

#[test]
fn apisix_takes_an_unknown_server_for_the_best() {
    let (mut policy, mut fleet) = (policy("ewma_apisix"), Fleet::of(2));
    fleet.servers[1].is_member = false;
    picks(&mut *policy, &fleet, 1);
    policy.ended(&fleet, 0, Outcome::Answered(0.001));
    fleet.servers[1].is_member = true;
    fleet.set_in_flight(&[0, 99]); // in flight does not count
    assert_eq!(picks(&mut *policy, &fleet, 20), [1; 20]);
}

#[test]
fn apisix_keeps_an_average_for_sixty_seconds_after_its_last_change() {
    let (mut policy, mut fleet) = (policy("ewma_apisix"), Fleet::of(2));
    policy.ended(&fleet, 0, Outcome::Answered(5.0));
    fleet.now_s = 59.9;
    // 5 s after a minute is 12 ms, still more than a microsecond.
    policy.ended(&fleet, 1, Outcome::Answered(1e-6));
    assert_eq!(picks(&mut *policy, &fleet, 10), [1; 10]);
    fleet.now_s = 60.1;
    assert_eq!(picks(&mut *policy, &fleet, 10), [0; 10]);

    // The next answer is the first: 0.1 as it is, where 5 s would make it 0.112.
    let mut anew = by_name("ewma_apisix", &gateway_shared(), 1).unwrap();
    fleet.now_s = 0.0;
    anew.ended(&fleet, 0, Outcome::Answered(5.0));
    fleet.now_s = 60.1;
    anew.ended(&fleet, 0, Outcome::Answered(0.1));
    anew.ended(&fleet, 1, Outcome::Answered(0.105));
    assert_eq!(picks(&mut *anew, &fleet, 10), [0; 10]);
}

#[test]
fn an_idle_server_looks_ever_better() {
    for name in ["ewma_ingress", "ewma_apisix", "peak_ewma"] {
        let (mut policy, mut fleet) = (policy(name), Fleet::of(2));
        picks(&mut *policy, &fleet, 1);
        policy.ended(&fleet, 0, Outcome::TimedOut(1.0));
        // Ten times as slow, and back in favour after a good 23 s of 10 s decay.
        for (now_s, favourite) in [(0.0, 1), (22.0, 1), (24.0, 0)] {
            fleet.now_s = now_s;
            policy.ended(&fleet, 1, Outcome::Answered(0.1));
            assert_eq!(picks(&mut *policy, &fleet, 10), [favourite; 10], "{name} at {now_s}");
        }
    }
}

#[test]
fn a_peak_replaces_the_cost_and_what_is_lower_moves_it() {
    let mut metric = peak_ewma::Metric::default();
    metric.observe(0.1, 5.0);
    metric.observe(0.3, 5.1); // a peak
    metric.observe(0.1, 15.1);
    let cost_s = 0.3 / E + 0.1 * (1.0 - 1.0 / E);
    assert_close(metric.load(0, 15.1), cost_s, 1e-12);
    assert_close(metric.load(2, 15.1), 3.0 * cost_s, 1e-12);
    assert_close(metric.load(0, 25.1), cost_s / E, 1e-12);
    // Reading has observed 0: the next answer moves it from now on.
    metric.observe(0.0, 25.1);
    assert_close(metric.load(0, 25.1), cost_s / E, 1e-12);
}

#[test]
fn a_server_without_history_gets_one_probe_at_a_time() {
    let mut metric = peak_ewma::Metric::default();
    assert_eq!(metric.load(0, 1.0), 0.0);
    let penalty_s = metric.load(1, 1.0);
    assert_close(penalty_s, 140_737.488, 1e-6);
    assert!(metric.load(2, 1.0) > penalty_s);

    let (mut policy, mut fleet) = (policy("peak_ewma"), Fleet::of(2));
    picks(&mut *policy, &fleet, 1);
    policy.ended(&fleet, 0, Outcome::Answered(10.0));
    assert_eq!(picks(&mut *policy, &fleet, 10), [1; 10]);
    fleet.add_in_flight(1);
    assert_eq!(picks(&mut *policy, &fleet, 10), [0; 10]);
}

#[test]
fn peak_ewma_begins_anew_with_a_server_that_comes_back() {
    let (mut policy, mut fleet) = (policy("peak_ewma"), Fleet::of(2));
    picks(&mut *policy, &fleet, 1);
    policy.ended(&fleet, 0, Outcome::Answered(9.0));
    policy.ended(&fleet, 1, Outcome::Answered(1.0));
    fleet.servers[0].is_member = false;
    picks(&mut *policy, &fleet, 1);
    fleet.servers[0].is_member = true;
    assert_eq!(picks(&mut *policy, &fleet, 10), [0; 10]);
}

/// The flaw that those who average latencies share: failing at once looks fast, and
/// a pair with the sinkhole in it goes to the sinkhole.
#[test]
fn a_sinkhole_attracts_those_who_average_latencies() {
    let fleet = Fleet::of(10);
    let run = Run { load: 0.5, requests: 30_000, sinkhole: Some(3) };
    let share = |name| simulate(name, &fleet, &run).shares[3];
    for name in ["ewma_ingress", "ewma_apisix", "peak_ewma"] {
        let share = share(name);
        assert!((0.18..0.22).contains(&share), "{name}: {share}");
    }
    for name in ["round_robin", "random", "wrr_a58"] {
        let share = share(name);
        assert!((0.095..0.105).contains(&share), "{name}: {share}");
    }
}
