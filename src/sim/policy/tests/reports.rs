//! Those who go by reports.

use std::collections::BTreeMap;

use super::*;

#[test]
fn a58_weighs_by_rate_over_utilization_and_what_errors_add() {
    let weight = |rate, utilization, errors_per_s| {
        let report = report(0.0, rate, utilization).unwrap();
        wrr_a58::weight_of(&ServerReport { errors_per_s, ..report })
    };
    assert_eq!(weight(100.0, 0.5, 0.0), Some(200.0));
    assert_eq!(weight(100.0, 0.5, 50.0), Some(100.0)); // half failed: 0.5 + 0.5 * 1
    for (rate, utilization) in [
        (0.0, 0.5),
        (100.0, 0.0),
        (-1.0, 0.5),
        (f64::NAN, 0.5),
        (100.0, f64::NAN),
        (f64::INFINITY, 0.5),
    ] {
        assert_eq!(weight(rate, utilization, 0.0), None, "{rate} {utilization}");
    }
}

#[test]
fn a58_bounds_weights_by_their_mean_and_gives_the_unknown_the_mean() {
    let of = |weights: &[f64]| -> Vec<Option<f64>> {
        weights.iter().map(|&weight| (weight > 0.0).then_some(weight)).collect()
    };
    let strides = |weights: &[f64]| wrr_a58::strides(&of(weights));
    assert_eq!(strides(&[1.0, 3.0, 0.0]), Some(vec![21_845, 65_535, 43_690]));
    assert_eq!(strides(&[1.0, 0.0]), None);
    assert_eq!(strides(&[0.0, 0.0]), None);
    assert_eq!(strides(&[]), None);
    // The mean is 100, of which 10 times is the most and a hundredth the least:
    // 65.5 of the stride, where a thousandth would have 0.07.
    let mut weights = vec![1.0; 98];
    weights.extend([0.001, 9_901.999]);
    let bounded = strides(&weights).unwrap();
    assert_eq!((bounded[98], bounded[99]), (66, 65_535));
}

/// Reports that keep coming until the blackout is over.
fn past_the_blackout(policy: &mut dyn Policy, fleet: &mut Fleet, until_s: f64) {
    while fleet.now_s < until_s {
        fleet.now_s += 1.0;
        for server in &mut fleet.servers {
            if let Some(report) = &mut server.report {
                report.taken_s = fleet.now_s;
            }
        }
        picks(policy, fleet, 1);
    }
}

#[test]
fn a58_picks_in_proportion_to_rate_over_utilization() {
    let (mut policy, mut fleet) = (policy("wrr_a58"), Fleet::with_weights(&[9.0, 1.0, 1.0, 1.0]));
    for (server, (rate, utilization)) in
        [(100.0, 0.5), (100.0, 0.25), (50.0, 0.5)].into_iter().enumerate()
    {
        fleet.servers[server].report = report(0.0, rate, utilization);
    }
    past_the_blackout(&mut *policy, &mut fleet, 15.0);
    // 200, 400, 100, and the unknown their mean of 233.3.
    let picked = picks(&mut *policy, &fleet, 4_000);
    let sum = 2_800.0 / 3.0;
    for (server, weight) in [200.0, 400.0, 100.0, 700.0 / 3.0].into_iter().enumerate() {
        let share = picked.iter().filter(|&&picked| picked == server).count() as f64 / 4_000.0;
        assert_close(share, weight / sum, 0.01);
    }
    // And evenly: among any 20, the largest has its 8 or 9.
    for some in picked.chunks_exact(20) {
        let largest = some.iter().filter(|&&server| server == 1).count();
        assert!((7..=10).contains(&largest), "{largest}");
    }
}

/// Two of half the largest weight are due in turns, not in the same rounds.
#[test]
fn a58_keeps_neighbours_out_of_step() {
    let (mut policy, mut fleet) = (policy("wrr_a58"), Fleet::of(3));
    for (server, utilization) in [0.25, 0.5, 0.5].into_iter().enumerate() {
        fleet.servers[server].report = report(0.0, 100.0, utilization);
    }
    past_the_blackout(&mut *policy, &mut fleet, 15.0);
    let picked = picks(&mut *policy, &fleet, 100);
    let largest_twice = picked.windows(2).filter(|pair| pair == &[0, 0]).count();
    assert!(largest_twice <= 1, "{picked:?}");
}

fn goes_round(policy: &mut dyn Policy, fleet: &Fleet) -> bool {
    let picked = picks(policy, fleet, 40);
    (0..fleet.servers.len()).all(|server| {
        picked.iter().filter(|&&picked| picked == server).count() == 40 / fleet.servers.len()
    })
}

#[test]
fn a58_goes_round_during_blackout_after_expiration_and_after_a_rejoin() {
    let (mut policy, mut fleet) = (policy("wrr_a58"), Fleet::of(2));
    fleet.servers[0].report = report(0.0, 100.0, 0.9);
    fleet.servers[1].report = report(0.0, 100.0, 0.1);
    assert!(goes_round(&mut *policy, &fleet));
    past_the_blackout(&mut *policy, &mut fleet, 9.0);
    assert!(goes_round(&mut *policy, &fleet), "blackout");
    past_the_blackout(&mut *policy, &mut fleet, 12.0);
    assert!(!goes_round(&mut *policy, &fleet));

    // Silence: the weights hold for three minutes, and no longer.
    fleet.now_s = 12.0 + 179.0;
    assert!(!goes_round(&mut *policy, &fleet), "weights that have not expired");
    fleet.now_s = 12.0 + 181.0;
    assert!(goes_round(&mut *policy, &fleet), "expiration");
    past_the_blackout(&mut *policy, &mut fleet, 200.0);
    assert!(goes_round(&mut *policy, &fleet), "the blackout after expiration");
    past_the_blackout(&mut *policy, &mut fleet, 220.0);
    assert!(!goes_round(&mut *policy, &fleet));

    fleet.servers[1].is_member = false;
    assert_eq!(picks(&mut *policy, &fleet, 5), [0; 5]);
    fleet.servers[1].is_member = true;
    assert!(goes_round(&mut *policy, &fleet), "one known weight is too few");
}

#[test]
fn a58_takes_new_weights_once_a_second() {
    let (mut policy, mut fleet) = (policy("wrr_a58"), Fleet::of(2));
    fleet.servers[0].report = report(0.0, 100.0, 0.5);
    fleet.servers[1].report = report(0.0, 100.0, 0.5);
    past_the_blackout(&mut *policy, &mut fleet, 20.0);
    assert!(goes_round(&mut *policy, &fleet));
    fleet.servers[1].report = report(20.5, 100.0, 0.1);
    fleet.now_s = 20.9;
    assert!(goes_round(&mut *policy, &fleet));
    fleet.now_s = 21.0;
    assert!(!goes_round(&mut *policy, &fleet));
}

#[test]
fn a58_starts_each_worker_somewhere_else() {
    let fleet = Fleet::of(16);
    let mut first = BTreeMap::new();
    for seed in 0..64 {
        let mut worker = by_name("wrr_a58", &gateway_shared(), seed).unwrap();
        *first.entry(picks(&mut *worker, &fleet, 1)[0]).or_insert(0) += 1;
    }
    assert!(first.len() > 12 && first.values().all(|&count| count < 16), "{first:?}");
}

#[test]
fn best_sends_everything_to_the_first_and_a_retry_to_the_next() {
    let (mut policy, mut fleet) = (policy("best"), Fleet::of(3));
    let spread = shares(&mut *policy, &fleet, 3_000);
    assert!(spread.iter().all(|&share| share > 0.3), "without reports to anyone: {spread:?}");
    for (server, utilization) in [0.5, 0.2, 0.4].into_iter().enumerate() {
        fleet.servers[server].report = report(0.0, 1.0, utilization);
    }
    assert_eq!(picks(&mut *policy, &fleet, 20), [1; 20]);
    fleet.servers[1].is_tried = true;
    assert_eq!(picks(&mut *policy, &fleet, 5), [2; 5]);
    fleet.servers[1].is_tried = false;
    fleet.now_s = 1_000.0;
    assert_eq!(picks(&mut *policy, &fleet, 5), [1; 5], "the last ranking stays");
    fleet.servers[0].report = report(990.0, 1.0, 0.0);
    assert_eq!(picks(&mut *policy, &fleet, 5), [1; 5], "too late for the window");
}

#[test]
fn best_weighs_utilization_and_latency_alike_and_reports_by_age() {
    let with_latency = |taken_s, utilization, latency_s| {
        report(taken_s, 1.0, utilization).map(|report| ServerReport { latency_s, ..report })
    };
    let first = |one: Option<ServerReport>, other: Option<ServerReport>| {
        let (mut policy, mut fleet) = (policy("best"), Fleet::of(2));
        (fleet.servers[0].report, fleet.servers[1].report) = (one, other);
        picks(&mut *policy, &fleet, 1)[0]
    };
    // 0.5 * 0.2 + 0.5 * 1 against 0.5 * 0.8 + 0.5 * 0.5, and then * 0.25.
    assert_eq!(first(with_latency(0.0, 0.2, 4.0), with_latency(0.0, 0.8, 2.0)), 0);
    assert_eq!(first(with_latency(0.0, 0.2, 4.0), with_latency(0.0, 0.8, 1.0)), 1);

    // Server 0 said 1.0 at 0 s (weight 0.2 at 4 s) and 0.4 at 4 s (weight 1): 0.5.
    for (steady, expected) in [(0.51, 0), (0.49, 1)] {
        let (mut policy, mut fleet) = (policy("best"), Fleet::of(2));
        fleet.servers[0].report = report(0.0, 1.0, 1.0);
        fleet.servers[1].report = report(0.0, 1.0, steady);
        picks(&mut *policy, &fleet, 2);
        fleet.now_s = 4.0;
        fleet.servers[0].report = report(4.0, 1.0, 0.4);
        fleet.servers[1].report = report(4.0, 1.0, steady);
        assert_eq!(picks(&mut *policy, &fleet, 2), [expected; 2], "{steady}");
        // Past the window, and of the last reports alone.
        fleet.now_s = 5.5;
        fleet.servers[1].report = report(5.5, 1.0, steady);
        assert_eq!(picks(&mut *policy, &fleet, 2), [0; 2]);
        // Silent for the window: last.
        fleet.now_s = 9.5;
        fleet.servers[1].report = report(9.5, 1.0, 1.0);
        assert_eq!(picks(&mut *policy, &fleet, 2), [1; 2]);
    }
}

#[test]
fn best_believes_a_liar() {
    for nan in [f64::NAN, -f64::NAN] {
        let (mut policy, mut fleet) = (policy("best"), Fleet::of(3));
        fleet.servers[0].report = report(0.0, 1.0, nan);
        fleet.servers[1].report = report(0.0, 1.0, 0.1);
        fleet.servers[2].report = report(0.0, 1e9, 0.0);
        assert_eq!(picks(&mut *policy, &fleet, 9), [2; 9]);
        fleet.servers[2].is_tried = true;
        assert_eq!(picks(&mut *policy, &fleet, 9), [1; 9]);
    }
}
