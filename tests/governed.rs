//! What governs a service, in the simulator: each gate is a scenario of
//! `examples/simulate`, with and without what it is about, and fails where the code
//! that nginx runs does not do it. `doc/failures.md` and `doc/zones.md` have the figures.

use std::path::Path;

use ipconfig::sim::measure::{Governance, Measures};
use ipconfig::sim::scenario::{self, Scenario};
use ipconfig::sim::{Chooser, run};

/// A variant of an example.
fn example(file: &str, variant: &str) -> Scenario {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/simulate");
    let found = scenario::load(&dir.join(format!("{file}.json"))).unwrap_or_else(|e| panic!("{e}"));
    let name = format!("{file}: {variant}");
    found.into_iter().find(|it| it.name == name).unwrap_or_else(|| panic!("no {name}")).scenario
}

fn measured(file: &str, variant: &str, policy: &str) -> Measures {
    run(&example(file, variant), Chooser::named(policy).unwrap(), 1)
}

fn governance(of: &Measures) -> &Governance {
    of.governance.as_ref().expect("the scenario has a service")
}

fn errors(of: &Measures) -> f64 {
    1.0 - of.answered as f64 / of.arrived as f64
}

fn p99_ms(of: &Measures) -> f64 {
    of.summary().p99_ms
}

/// The part of the requests of this time that was answered; the run lasts `seconds`.
fn goodput(of: &Measures, seconds: f64, from_s: f64, to_s: f64) -> f64 {
    let place = |at_s: f64| (at_s / seconds * of.timeline.len() as f64).round() as usize;
    let bins = &of.timeline[place(from_s)..place(to_s)];
    let all: u64 = bins.iter().map(|bin| bin.latency.count()).sum();
    1.0 - bins.iter().map(|bin| bin.errors).sum::<u64>() as f64 / all as f64
}

/// The part of the tries of the first zone's gateways that stayed in the zone.
fn local(of: &Measures, seconds: f64, from_s: f64, to_s: f64) -> f64 {
    let place = |at_s: f64| (at_s / seconds * of.timeline.len() as f64).round() as usize;
    let zones = of.timeline[place(from_s)..place(to_s)].iter().map(|bin| bin.zones[0]);
    let (stayed, sent) = zones.fold((0, 0), |sum, it| (sum.0 + it.stayed, sum.1 + it.sent));
    stayed as f64 / sent as f64
}

// === ejection ===

#[test]
fn who_answers_500_at_once_is_out_within_5_failures_of_each_gateway_and_comes_back() {
    for policy in ["round_robin", "least_conn", "p2c"] {
        let without = measured("19-ejection", "unreported", policy);
        let with = measured("19-ejection", "unreported-health", policy);
        assert!(errors(&without) > 0.03, "{policy}: {}", errors(&without));
        assert!(governance(&without).ejected.is_empty(), "{policy}");

        // Five of each of the four, and those under way when the fifth came.
        assert!((20..=24).contains(&with.failed), "{policy}: {}", with.failed);
        let ejected = &governance(&with).ejected;
        let mut by: Vec<u32> = ejected.iter().map(|(_, gateway)| *gateway).collect();
        by.sort_unstable();
        assert_eq!(by, [0, 1, 2, 3], "{policy}: each once");
        let last_s = ejected.iter().map(|(at_s, _)| *at_s).fold(0.0, f64::max);
        assert!((20.0..20.5).contains(&last_s), "{policy}: {last_s}");

        // From 50 s to 53 s on it has requests again, and answers them.
        let share = |bins: std::ops::Range<usize>| {
            let of_bad: u64 = with.timeline[bins.clone()].iter().map(|bin| bin.picks[1]).sum();
            let of_all: u64 = with.timeline[bins].iter().flat_map(|bin| &bin.picks).sum();
            of_bad as f64 / of_all as f64
        };
        assert_eq!(share(44..98), 0.0, "{policy}");
        assert!((0.08..0.12).contains(&share(108..120)), "{policy}: {}", share(108..120));
    }
}

#[test]
fn no_more_are_ejected_at_once_than_a_tenth() {
    let of = measured("22-zone-spill", "no-zones", "round_robin");
    // Until reports tell that both that crashed are gone.
    let ejected = governance(&of).ejected.iter().filter(|(at_s, _)| *at_s < 22.5);
    let mut by: Vec<u32> = ejected.map(|(_, gateway)| *gateway).collect();
    by.sort_unstable();
    assert_eq!(by, [0, 1, 2, 3, 4, 5], "one of twelve by each");
}

#[test]
fn who_fails_three_tenths_is_out_once_it_is_compared_with_the_others() {
    let [without, with] =
        ["three-tenths", "three-tenths-health"].map(|it| measured("19-ejection", it, "least_conn"));
    // Fails from 25 s to 45 s; the interval of 10 s ends at 30 s.
    assert!(errors(&with) < 0.4 * errors(&without), "{} of {}", with.failed, without.failed);
    let ejected = &governance(&with).ejected;
    assert_eq!(ejected.len(), 4);
    assert!(ejected.iter().all(|(at_s, _)| (25.0..31.5).contains(at_s)), "{ejected:?}");
}

// === panic ===

#[test]
fn with_too_few_healthy_all_serve_and_those_left_are_not_overrun() {
    for policy in ["round_robin", "p2c"] {
        let without = measured("20-panic", "half", policy);
        let with = measured("20-panic", "half-panic", policy);
        assert!(errors(&with) < 0.6 * errors(&without), "{policy}: {}", errors(&with));
        let in_panic = |of: &Measures| of.summary().governed.map(|it| it.panic);
        assert!(in_panic(&with) > Some(0.85) && in_panic(&without) == Some(0.0), "{policy}");
        let most = [&with, &without].map(|of| of.max_in_flight);
        assert!(4 * most[0] < most[1], "{policy}: {most:?} on one server");
    }
}

// === slow start ===

#[test]
fn a_cold_server_is_not_overrun_in_its_slow_start() {
    for (policy, part) in [("round_robin", 0.5), ("weighted_random", 0.7), ("p2c", 1.0)] {
        let [off, on] = ["off", "20s"].map(|it| measured("21-slow-start", it, policy));
        let found = p99_ms(&on) / p99_ms(&off);
        assert!(found < part, "{policy}: {found}");
        assert!(on.max_in_flight <= off.max_in_flight, "{policy}");
    }
}

// === zones ===

#[test]
fn a_zone_that_loses_half_of_its_servers_spills_within_a_second_and_fails_no_request() {
    for policy in ["round_robin", "p2c", "adaptive"] {
        let of = measured("22-zone-spill", "zones-eject-20", policy);
        assert!(local(&of, 40.0, 10.0, 20.0) > 0.93, "{policy}");
        // Of 60 %, two of four servers can bear two thirds at 80 %.
        let spilled = local(&of, 40.0, 21.0, 22.0);
        assert!((0.3..0.75).contains(&spilled), "{policy}: {spilled}");
        assert_eq!((of.failed, of.timed_out), (0, 0), "{policy}");
    }
}

// === retry storms ===

#[test]
fn a_brown_out_makes_no_storm_with_the_retry_budget() {
    for policy in ["weighted_random", "p2c"] {
        let without = measured("23-retry-storm", "slow", policy);
        let with = measured("23-retry-storm", "slow-budget", policy);
        let tries = |of: &Measures| of.tries as f64 / of.arrived as f64;
        assert!(tries(&without) > 2.0, "{policy}: {}", tries(&without));
        // 20 %, 10 a second, and the reserve of each of the four gateways.
        let most = 1.2 + (4.0 * (10.0 * 40.0 + 100.0)) / with.arrived as f64;
        assert!(tries(&with) <= most, "{policy}: {}", tries(&with));

        // What began it has ended at 25 s.
        let after = [&without, &with].map(|of| goodput(of, 60.0, 35.0, 55.0));
        assert!(after[0] < 0.6 && after[1] > 0.99, "{policy}: {after:?}");
    }
}

#[test]
fn where_all_fail_a_half_the_load_is_a_fifth_more_and_no_more() {
    for policy in ["weighted_random", "least_conn"] {
        let of = measured("23-retry-storm", "half-fails-budget", policy);
        let during = goodput(&of, 60.0, 22.0, 40.0);
        // Half, and half of a fifth more.
        assert!((0.58..0.63).contains(&during), "{policy}: {during}");
        assert!(of.tries as f64 / of.arrived as f64 <= 1.2, "{policy}");
    }
}
