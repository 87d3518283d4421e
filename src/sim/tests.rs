//! Laws of the whole: queueing theory, and what faults do.

use serde_json::{Value, json};

use super::agenda::SECOND;
use super::engine::Simulation;
use super::exporter::News;
use super::measure::Measures;
use super::policy::{Outcome, Policy, ServerReport, World};
use super::scenario::{self, Scenario};
use super::{Chooser, names, run};
use crate::model::{Report, Status};
use crate::watcher::Event;
use crate::wire;

mod faults;
mod governed;

fn scenario(of: Value) -> Scenario {
    let mut found = scenario::parse("test", &of.to_string()).unwrap_or_else(|e| panic!("{e}"));
    found.remove(0).scenario
}

fn named(name: &str) -> Chooser {
    Chooser::named(name).unwrap()
}

/// `random` over servers with this service time and load.
fn queue(servers: Value, rate: f64, gateways: Value) -> Measures {
    let of = scenario(json!({
        "servers": [servers], "traffic": {"rate": rate}, "gateways": gateways,
        "duration": "600s", "warmup": "20s",
    }));
    run(&of, named("random"), 1)
}

fn assert_near(found: f64, expected: f64, tolerance: f64) {
    assert!((found / expected - 1.0).abs() < tolerance, "{found}, expected {expected}");
}

const PATIENT: &str = "1h";

#[test]
fn ten_mm1_queues_wait_as_theory_says() {
    let servers = json!({"name": "a", "count": 10, "service": {"mean": "10ms"}});
    let measures = queue(servers, 700.0, json!({"timeout": PATIENT}));
    // Exponential with mean 1 / (mu - lambda).
    let mean_s = 1.0 / (100.0 - 70.0);
    assert_near(measures.latency.mean_s(), mean_s, 0.03);
    for part in [0.5, 0.99] {
        assert_near(measures.latency.quantile_s(part), -(1.0f64 - part).ln() * mean_s, 0.05);
    }
    let summary = measures.summary();
    assert_near(summary.mean_in_flight, 0.7 / 0.3, 0.03);
    assert_eq!(summary.failed + summary.timed_out, 0.0);
}

#[test]
fn an_mmk_queue_waits_as_erlang_c_says() {
    let servers = json!({"name": "a", "slots": 4, "service": {"mean": "10ms"}});
    let (rate, slots, offered): (f64, f64, f64) = (320.0, 4.0, 3.2);
    let measures = queue(servers, rate, json!({"timeout": PATIENT}));
    let term = |k: u32| offered.powi(k as i32) / (1..=k).map(f64::from).product::<f64>();
    let all_busy = term(4) / (1.0 - offered / slots);
    let must_wait = all_busy / ((0..4).map(term).sum::<f64>() + all_busy);
    let mean_s = 0.01 + must_wait / (slots / 0.01 - rate);
    assert_near(measures.latency.mean_s(), mean_s, 0.03);
}

#[test]
fn an_mg1_queue_waits_as_pollaczek_and_khinchine_say() {
    for (service, cv) in [
        (json!({"distribution": "deterministic", "mean": "10ms"}), 0.0f64),
        (json!({"distribution": "lognormal", "mean": "10ms", "cv": 1.5}), 1.5),
    ] {
        let servers = json!({"name": "a", "count": 4, "service": service});
        let measures = queue(servers, 240.0, json!({"timeout": PATIENT}));
        let mean_s = 0.01 + 0.6 * 0.01 * (1.0 + cv * cv) / 2.0 / (1.0 - 0.6);
        assert_near(measures.latency.mean_s(), mean_s, 0.05);
    }
}

#[test]
fn a_finite_queue_refuses_as_theory_says() {
    let servers = json!({"name": "a", "queue": 2, "service": {"mean": "10ms"}});
    let measures = queue(servers, 80.0, json!({"timeout": PATIENT}));
    // M/M/1/K with room for K = 3.
    let (load, room): (f64, i32) = (0.8, 3);
    let refused = (1.0 - load) * load.powi(room) / (1.0 - load.powi(room + 1));
    assert_near(measures.summary().failed, refused, 0.03);
    assert_near(measures.latency.quantile_s(0.999), 3600.0, 0.01);
}

#[test]
fn speed_divides_service_times() {
    let servers = json!({"name": "a", "speed": 0.5, "service": {"mean": "5ms"}});
    let measures = queue(servers, 70.0, json!({"timeout": PATIENT}));
    assert_near(measures.latency.mean_s(), 1.0 / 30.0, 0.05);
}

/// Everything goes wrong at once.
fn troubled() -> Scenario {
    let hit = |what: &str, first: u32| json!({what: {"servers": "a", "count": first, "from": "3s", "for": "2s"}});
    scenario(json!({
        "servers": [
            {"name": "a", "count": 3, "slots": 2, "queue": 3, "service": {"mean": "10ms"}},
            {"name": "b", "count": 3, "slots": 2, "service": {"distribution": "lognormal", "mean": "10ms"}},
        ],
        "traffic": {"rate": 500, "changes": [{"at": "4s", "rate": 1500, "over": "2s"}, {"at": "8s", "rate": 300}]},
        "gateways": {"count": 3, "workers": 2, "timeout": "300ms", "retries": 2},
        "reports": {"interval": "200ms", "delay": "50ms", "spread": "100ms", "exporters": 2},
        "faults": [
            {"slowdown": {"servers": "b", "from": "2s", "for": "6s", "speed": 0.3}},
            {"antagonist": {"part": 0.5, "speed": 0.4, "every": "700ms"}},
            hit("pause", 2), hit("black_hole", 1), hit("sinkhole", 1), hit("crash", 3),
            {"crash": {"servers": "b", "count": 1, "from": "4s", "for": "1s"}},
            {"pause": {"servers": "b", "from": "6s", "for": "500ms"}},
            {"leave": {"servers": "b", "count": 1, "at": "5s"}},
            {"join": {"servers": "b", "count": 1, "at": "7s"}},
            {"lie": {"servers": "b", "count": 1, "tells": "idle"}},
            {"lie": {"servers": "a", "count": 1, "tells": "nan"}},
            {"lie": {"servers": "a", "count": 2, "tells": "rate", "from": "6s"}},
            {"silent_exporter": {"from": "1s", "for": "1s"}},
            {"silent_etcd": {"from": "2500ms", "for": "2s"}},
            {"late_watch": {"from": "6s", "for": "1s", "by": "500ms"}},
            {"clock_jump": {"at": "5s", "by": "1h", "gateways": 1}},
            {"clock_jump": {"at": "6s", "by": "1h", "direction": "back", "gateways": 2}},
            {"disorder": {"reordered": 0.2, "duplicated": 0.2}},
        ],
        "duration": "10s", "warmup": "0s",
    }))
}

#[test]
fn every_request_ends_once_whatever_goes_wrong() {
    ends_once(&troubled());
    ends_once(&governed::troubled());
}

fn ends_once(scenario: &Scenario) {
    for name in names() {
        let mut simulation = Simulation::new(scenario, named(&name), 1);
        simulation.start();
        while simulation.step() {}
        let fleet = &simulation.fleet;
        assert_eq!(fleet.open, 0);
        for gateway in &fleet.gateways {
            assert_eq!(gateway.open, 0, "{name}");
            assert!(gateway.seen.iter().all(|seen| seen.in_flight() == 0), "{name}");
        }
        let of_workers = fleet.workers.iter().flat_map(|worker| &worker.in_flight);
        assert_eq!(of_workers.sum::<u32>(), 0, "{name}");
        for server in &fleet.servers {
            assert_eq!(server.waiting(), 0, "{name}");
            assert!(server.in_flight() <= server.slots, "{name}");
        }

        let Measures { arrived, answered, failed, timed_out, latency, timeline, .. } =
            simulation.into_measures();
        assert_eq!(answered + failed + timed_out, arrived, "{name}");
        assert_eq!(latency.count(), arrived);
        assert_eq!(timeline.iter().map(|bin| bin.latency.count()).sum::<u64>(), arrived);
        assert!(answered > 500 && failed > 0 && timed_out > 0, "{name}");
    }
}

#[test]
fn a_run_is_the_same_for_the_same_seed_and_arrivals_are_for_each_policy() {
    is_the_same(&troubled());
    is_the_same(&governed::troubled());
}

fn is_the_same(scenario: &Scenario) {
    let arrivals = |measures: &Measures| -> Vec<u64> {
        measures.timeline.iter().map(|bin| bin.latency.count()).collect()
    };
    let of_random = run(scenario, named("random"), 1);
    for name in names() {
        let one = run(scenario, named(&name), 1);
        assert!(one == run(scenario, named(&name), 1), "{name}");
        assert_eq!(arrivals(&one), arrivals(&of_random), "{name}");
    }
    assert_ne!(arrivals(&run(scenario, named("random"), 2)), arrivals(&of_random));
}

#[test]
fn traffic_follows_its_changes() {
    let scenario = scenario(json!({
        "servers": [{"name": "a", "count": 10, "slots": 10, "service": {"mean": "1ms"}}],
        "traffic": {"rate": 200, "changes": [
            {"at": "20s", "rate": 1000, "over": "40s"}, {"at": "80s", "rate": 100}
        ]},
        "duration": "120s", "warmup": "0s",
    }));
    let bins = run(&scenario, named("random"), 1).timeline;
    let rate = |from: usize, to: usize| {
        let count: u64 = bins[from..to].iter().map(|bin| bin.latency.count()).sum();
        count as f64 / (to - from) as f64
    };
    for (from, to, expected) in
        [(0, 20, 200.0), (20, 60, 600.0), (60, 80, 1000.0), (80, 120, 100.0)]
    {
        assert_near(rate(from, to), expected, 0.05);
    }
    assert_near(rate(30, 50), 600.0, 0.05);
}

/// One of four servers has a fault from 10 s on, for 10 s of 40 s.
fn one_of_four(fault: &str, more: Value) -> Scenario {
    let mut what = json!({"servers": "b", "from": "10s", "for": "10s"});
    what.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    scenario(json!({
        "servers": [
            {"name": "a", "count": 3, "slots": 4, "service": {"mean": "10ms"}},
            {"name": "b", "slots": 4, "service": {"mean": "10ms"}},
        ],
        "traffic": {"rate": 400},
        "gateways": {"timeout": "2s"},
        "faults": [{fault: what}],
        "duration": "40s", "warmup": "0s",
    }))
}

/// The part of the tries that went to the faulty server, by thirds of a second.
fn shares(measures: &Measures) -> Vec<f64> {
    measures.timeline.iter().map(|bin| bin.shares()[1]).collect()
}

/// The part of requests that was not answered, in each of the four quarters.
fn errors(measures: &Measures) -> Vec<f64> {
    let quarters = measures.timeline.chunks(30);
    let part = |bins: &[super::measure::Bin]| {
        let all: u64 = bins.iter().map(|bin| bin.latency.count()).sum();
        bins.iter().map(|bin| bin.errors).sum::<u64>() as f64 / all as f64
    };
    quarters.map(part).collect()
}

#[test]
fn a_sinkhole_a_crash_and_a_black_hole_cost_random_a_quarter_while_they_last() {
    for fault in ["sinkhole", "crash", "black_hole"] {
        let measures = run(&one_of_four(fault, json!({})), named("random"), 1);
        let errors = errors(&measures);
        assert_eq!((errors[0], errors[3]), (0.0, 0.0), "{fault}: {errors:?}");
        // Until it is out of the ranking, which a crashed one is after three seconds.
        let expected = if fault == "crash" { 0.03..0.15 } else { 0.2..0.3 };
        assert!(expected.contains(&errors[1]), "{fault}: {errors:?}");
        let timed_out = measures.timed_out > 0;
        assert_eq!(timed_out, fault == "black_hole", "{fault}");
        assert_near(measures.latency.quantile_s(0.9999), 2.0, 0.01);
    }
}

#[test]
fn who_stands_still_goes_on_with_what_it_has() {
    let scenario = scenario(json!({
        "servers": [{"name": "a", "service": {"distribution": "deterministic", "mean": "10ms"}}],
        "traffic": {"rate": 20},
        "faults": [{"pause": {"from": "10s", "for": "2s"}}],
        "duration": "40s", "warmup": "0s",
    }));
    let measures = run(&scenario, named("random"), 1);
    assert_eq!(measures.answered, measures.arrived);
    let longest = measures.latency.quantile_s(1.0);
    assert!((1.5..2.2).contains(&longest), "{longest}");
    assert!(measures.max_in_flight > 20, "{}", measures.max_in_flight);
}

#[test]
fn a_slowdown_takes_what_is_under_way_along() {
    let of = |from: &str| {
        scenario(json!({
            "servers": [{"name": "a", "slots": 100, "service": {"distribution": "deterministic", "mean": "4s"}}],
            "traffic": {"rate": 10, "changes": [{"at": "1s", "rate": 0}]},
            "gateways": {"timeout": "1h"},
            "faults": [{"slowdown": {"from": from, "for": "2s", "speed": 0.5}}],
            "duration": "10s", "warmup": "0s",
        }))
    };
    let times = |from| {
        let measures = run(&of(from), named("random"), 1);
        [0.0, 1.0].map(|part| measures.latency.quantile_s(part))
    };
    for (from, expected) in [("2s", 5.0), ("8s", 4.0)] {
        for time in times(from) {
            assert_near(time, expected, 0.01);
        }
    }
}

#[test]
fn a_retry_goes_to_a_server_that_was_not_tried() {
    let mut scenario = one_of_four("sinkhole", json!({}));
    scenario.gateways.retries = 1;
    let measures = run(&scenario, named("random"), 1);
    assert_eq!(measures.answered, measures.arrived);
    // Its quarter of the first tries are tried again elsewhere.
    assert_near(shares(&measures)[35..55].iter().sum::<f64>() / 20.0, 0.25 / 1.25, 0.1);
}

#[test]
fn who_has_left_gets_nothing_and_who_joins_gets_its_share() {
    let mut scenario = one_of_four("pause", json!({"for": "0s"}));
    scenario.faults = serde_json::from_value(json!([
        {"leave": {"servers": "b", "at": "10s"}}, {"join": {"servers": "b", "at": "20s"}}
    ]))
    .unwrap();
    for chooser in [named("random"), Chooser::Made(|| Box::new(Last))] {
        let measures = run(&scenario, chooser, 1);
        let found = shares(&measures);
        assert!(found[32..59].iter().all(|share| *share == 0.0), "{found:?}");
        assert!(found[..29].iter().chain(&found[62..]).all(|share| *share > 0.1), "{found:?}");
        assert_eq!(measures.answered, measures.arrived);
    }
    scenario.faults.remove(0);
    let found = shares(&run(&scenario, named("random"), 1));
    assert!(found[..60].iter().all(|share| *share == 0.0), "it joins at 20 s: {found:?}");

    // A gateway without etcd hears of it when it is back.
    scenario.faults = serde_json::from_value(json!([
        {"join": {"servers": "b", "at": "12s"}}, {"silent_etcd": {"from": "10s", "for": "10s"}}
    ]))
    .unwrap();
    for chooser in [named("random"), Chooser::Made(|| Box::new(Last))] {
        let found = shares(&run(&scenario, chooser, 1));
        assert!(found[..60].iter().all(|share| *share == 0.0), "{found:?}");
        assert!(found[62..].iter().all(|share| *share > 0.1), "{found:?}");
    }
}

/// Takes the last server that is registered.
struct Last;

impl Policy for Last {
    fn pick(&mut self, world: &dyn World, _: &mut rand::rngs::SmallRng) -> Option<usize> {
        (0..world.servers()).rev().find(|it| world.is_member(*it) && !world.is_tried(*it))
    }
}

#[test]
fn reports_say_what_servers_did_and_come_when_they_come() {
    struct Reader;
    impl Policy for Reader {
        fn pick(&mut self, world: &dyn World, rng: &mut rand::rngs::SmallRng) -> Option<usize> {
            let now_s = world.now_s();
            let report = world.report(1);
            let age_s = report.map(|report| now_s - report.taken_s);
            // The first tells of no time, the second is taken at 2 s.
            if now_s > 2.3 {
                assert!((0.3..1.31).contains(&age_s.unwrap()), "{now_s}: {age_s:?}");
            } else {
                assert!(now_s > 2.2 || report.is_none(), "{now_s}: {report:?}");
            }
            if let Some(report) = report.filter(|_| now_s > 9.0) {
                let lies = (20.4..30.0).contains(&now_s);
                assert!(lies || (60.0..140.0).contains(&report.rate_per_s), "{report:?}");
                let lied = report.utilization == 0.0 && (20.3..31.4).contains(&now_s);
                assert!(lied || (0.1..0.4).contains(&report.utilization), "{report:?}");
                assert!((0.006..0.016).contains(&report.latency_s), "{report:?}");
            }
            use rand::RngExt;
            Some(rng.random_range(..world.servers()))
        }

        fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
            assert!(matches!(outcome, Outcome::Answered(_)));
            assert!(world.gateway_in_flight(server) >= world.worker_in_flight(server));
        }
    }
    let mut scenario = one_of_four("lie", json!({"from": "20s", "tells": "idle"}));
    scenario.reports.delay = std::time::Duration::from_millis(300);
    scenario.gateways.workers = 2;
    run(&scenario, Chooser::Made(|| Box::new(Reader)), 1);
}

#[test]
fn rankings_follow_reports() {
    let of = |more: Value| {
        let mut of = json!({
            "servers": [
                {"name": "fast", "count": 3, "slots": 4, "service": {"mean": "10ms"}},
                {"name": "slow", "count": 3, "slots": 4, "service": {"mean": "40ms"}},
            ],
            "traffic": {"rate": 400},
            "duration": "40s", "warmup": "0s",
        });
        of.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        shares(&run(&scenario(of), named("weighted_random"), 1))
    };
    let mean = |shares: &[f64]| shares.iter().sum::<f64>() / shares.len() as f64;
    let slow = of(json!({}));
    assert_near(mean(&slow[..2]), 0.5, 0.1);
    assert!(mean(&slow[60..]) < 0.4, "{slow:?}");

    let silent = of(json!({"faults": [{"silent_exporter": {}}]}));
    assert_near(mean(&silent[60..]), 0.5, 0.05);
    // What was once known is kept for a minute, and then nothing is known.
    let later = of(json!({
        "duration": "120s",
        "faults": [{"silent_etcd": {"from": "10s", "for": "80s"}}],
    }));
    let share =
        |from: usize, to: usize| mean(&later[later.len() * from / 120..later.len() * to / 120]);
    assert!(share(12, 65) < 0.4, "{later:?}");
    assert!(share(80, 90) > 0.4, "{later:?}");
    assert!(share(110, 120) < 0.4, "{later:?}");
}

#[test]
fn a_gateway_knows_its_part_of_the_requests() {
    let of = scenario(json!({
        "servers": [{"name": "a", "count": 4, "slots": 8, "service": {"mean": "10ms"}}],
        "traffic": {"rate": 1000},
        "gateways": {"count": 5, "workers": 2},
        "duration": "20s", "warmup": "0s",
    }));
    let mut simulation = Simulation::new(&of, named("adaptive"), 1);
    simulation.start();
    while simulation.step() {}
    for plane in &simulation.planes {
        assert_near(plane.own_part(), 0.2, 0.25);
    }
}

/// What the faulty server of [`one_of_four`] says at 15.5 s: its status, or `None` if
/// that is refused; and what others hear of it.
fn told(tale: &str) -> (Option<Status>, ServerReport) {
    told_by_last_of_four(&one_of_four("lie", json!({"tells": tale})))
}

fn told_by_last_of_four(scenario: &Scenario) -> (Option<Status>, ServerReport) {
    let mut simulation = Simulation::new(scenario, named("random"), 1);
    simulation.start();
    // Between two rounds of the exporter.
    while simulation.fleet.now < 31 * SECOND / 2 {
        simulation.step();
    }
    let now = simulation.fleet.now;
    let message = simulation.etcd.ask(0, &mut simulation.fleet.servers, now);
    let (Event::Put { value, .. }, News::Reports(reports)) = (message.event, message.news) else {
        panic!("no batch")
    };
    let batch = wire::decode_batch(&value).unwrap();
    assert_eq!(batch.reports.len() + batch.bad.len(), 4);
    let status = batch.reports.into_iter().nth(3).map(|entry| match entry.report {
        Report::Status(status) => status,
        other => panic!("{other:?}"),
    });
    (status, reports[3].1)
}

#[test]
fn who_lies_tells_what_it_is_to_tell() {
    let (status, report) = told("idle");
    let status = status.unwrap();
    assert_eq!((status.application_utilization, report.utilization), (Some(0.0), 0.0));
    assert_eq!(status.cpu_utilization(), Some(0.0));
    // A hundred a second of 10 ms each, until it began to lie.
    assert!((2e9..9e9).contains(&(status.busy_ns as f64)), "{status:?}");
    assert!((1200..1800).contains(&status.requests), "{status:?}");

    let (status, report) = told("rate");
    assert!(status.unwrap().requests > 3_000_000_000);
    assert_eq!(report.rate_per_s, 1e9);

    let (status, report) = told("instant");
    // Those of the time before it began to lie.
    assert!((5e9..15e9).contains(&(status.unwrap().latency_sum_ns as f64)));
    assert_eq!(report.latency_s, 0.0);

    let (status, report) = told("nan");
    assert!(status.is_none() && report.utilization.is_nan(), "{status:?}");
}

#[test]
fn a_server_tells_of_its_utilization_what_its_group_says() {
    let of = |told: Value| {
        scenario(json!({
            "servers": [
                {"name": "a", "count": 3, "service": {"mean": "10ms"}},
                {"name": "b", "service": {"mean": "10ms"}, "told_utilization": told},
            ],
            "traffic": {"rate": 240}, "duration": "20s",
        }))
    };
    let (status, report) = told_by_last_of_four(&of(json!({"fixed": 0.02})));
    assert_eq!((status.unwrap().application_utilization, report.utilization), (Some(0.02), 0.02));
    let [truth, tenth] = [1.0, 0.1].map(|factor| {
        let (status, report) = told_by_last_of_four(&of(json!({"factor": factor})));
        assert_eq!(status.unwrap().cpu_utilization(), Some(report.utilization));
        report.utilization
    });
    assert!((0.2..0.95).contains(&truth), "of half a second at 0.6: {truth}");
    assert_near(tenth, 0.1 * truth, 1e-9);
}

#[test]
fn who_comes_past_the_gateways_is_served_and_reported_and_not_measured() {
    let of = scenario(json!({
        "servers": [
            {"name": "a", "count": 5, "service": {"mean": "10ms"}, "other_rate": 40},
            {"name": "b", "service": {"mean": "10ms"}},
        ],
        "traffic": {"rate": 180}, "gateways": {"timeout": PATIENT},
        "duration": "600s", "warmup": "20s",
    }));
    let mut simulation = Simulation::new(&of, named("random"), 1);
    simulation.start();
    while simulation.step() {}
    let server = |number: usize| simulation.fleet.servers[number].counters.answered as f64;
    assert_near(server(0), 70.0 * 600.0, 0.03);
    assert_near(server(5), 30.0 * 600.0, 0.05);
    let measures = simulation.into_measures();
    assert_near(measures.arrived as f64, 180.0 * 580.0, 0.02);
    // M/M/1: five sixths of ours meet queues at 70 %, the others at 30 %.
    assert_near(measures.latency.mean_s(), (5.0 / 30.0 + 1.0 / 70.0) / 6.0, 0.05);
}

#[test]
fn who_comes_past_the_gateways_ends_no_request_of_theirs_whatever_goes_wrong() {
    let mut of = troubled();
    of.servers[0].other_rate = 100.0;
    for name in ["random", "adaptive"] {
        let measures = run(&of, named(name), 1);
        assert_eq!(measures.arrived, measures.answered + measures.failed + measures.timed_out);
        assert_eq!(measures.arrived, run(&troubled(), named(name), 1).arrived);
    }
}

#[test]
fn every_example_is_a_scenario_and_runs_with_every_policy() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/simulate");
    let mut files: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12);
    for file in files {
        for named_scenario in scenario::load(&file).unwrap_or_else(|e| panic!("{e}")) {
            let mut scenario = named_scenario.scenario;
            scenario.duration = std::time::Duration::from_millis(200);
            scenario.warmup = std::time::Duration::ZERO;
            for name in names() {
                let measures = run(&scenario, named(&name), 1);
                assert!(measures.arrived > 0, "{}", named_scenario.name);
            }
        }
    }
}
