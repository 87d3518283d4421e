//! What `adaptive` must not fall short of, in the simulator: the laws that hold at
//! any age of reports, for any number of gateways, and whatever goes wrong. Runs
//! are short, so bounds leave room for chance; `examples/simulate` has the figures.

use ipconfig::sim::measure::{Bin, Measures, Summary};
use ipconfig::sim::scenario::{self, Scenario};
use ipconfig::sim::{Chooser, run};
use serde_json::{Value, json};

/// One run for each.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=2;

/// What was found against what is allowed; all of it is told where any fails.
#[derive(Default)]
struct Verdict(Vec<(String, f64, f64)>);

impl Verdict {
    /// `found` may be `bound` at most.
    fn at_most(&mut self, bound: f64, found: f64, what: String) {
        self.0.push((what, found, bound));
    }

    #[track_caller]
    fn holds(self) {
        let broken: Vec<String> = self
            .0
            .iter()
            .filter(|(_, found, bound)| found.is_nan() || found > bound)
            .map(|(what, found, bound)| format!("{what}: {found:.3}, at most {bound:.3}"))
            .collect();
        assert!(broken.is_empty(), "{} of {}:\n{}", broken.len(), self.0.len(), broken.join("\n"));
    }
}

/// A scenario of `base` with other and further keys.
fn with(mut base: Value, more: Value) -> Value {
    if let (Some(keys), Value::Object(more)) = (base.as_object_mut(), more) {
        keys.extend(more);
    }
    base
}

fn scenario(of: &Value) -> Scenario {
    let mut found = scenario::parse("gate", &of.to_string()).unwrap_or_else(|e| panic!("{e}"));
    found.remove(0).scenario
}

fn measured(of: &Value, policy: &str) -> Measures {
    let scenario = scenario(of);
    let chooser = Chooser::named(policy).unwrap();
    let mut all = Measures::default();
    for seed in SEEDS {
        all.merge(&run(&scenario, chooser, seed));
    }
    all
}

fn summary(of: &Value, policy: &str) -> Summary {
    measured(of, policy).summary()
}

/// Servers of 4 slots and 10 ms a request.
fn servers(name: &str, count: u32) -> Value {
    json!({
        "name": name, "count": count, "slots": 4,
        "service": {"distribution": "lognormal", "mean": "10ms", "cv": 1},
    })
}

fn slower(name: &str, count: u32) -> Value {
    with(servers(name, count), json!({"speed": 0.5}))
}

/// What such a server can do, a second.
const CAPACITY: f64 = 400.0;

/// Four equal servers at 70 % load, and two with two of half the speed at 60 %, of
/// which an even split makes 90 % for the slow ones.
fn fleets() -> [(&'static str, Value); 2] {
    let equal = json!({"servers": [servers("a", 4)], "traffic": {"rate": 0.7 * 4.0 * CAPACITY}});
    let mixed = json!({
        "servers": [servers("fast", 2), slower("slow", 2)],
        "traffic": {"rate": 0.6 * 3.0 * CAPACITY},
    });
    [("equal", equal), ("half slower", mixed)]
}

/// Nine tenths good servers, and one that is hit by something from 12 s to 22 s.
fn one_hit(count: u32, load: f64, gateways: u32, faults: Value) -> Value {
    json!({
        "servers": [servers("good", count - 1), servers("bad", 1)],
        "traffic": {"rate": load * f64::from(count) * CAPACITY},
        "gateways": {"count": gateways, "timeout": "2s"},
        "faults": faults,
        "duration": "24s", "warmup": "5s",
    })
}

/// The part of the tries from one time to another that went to the second group.
/// `of` is a run of `seconds`.
fn share_of_bad(of: &Measures, seconds: f64, from: f64, to: f64) -> f64 {
    let bins = bins_of(of, seconds, from, to);
    let bad: u64 = bins.iter().map(|bin| bin.picks[1]).sum();
    let all: u64 = bins.iter().flat_map(|bin| &bin.picks).sum();
    bad as f64 / all as f64
}

fn bins_of(of: &Measures, seconds: f64, from: f64, to: f64) -> &[Bin] {
    let place = |at: f64| (at / seconds * of.timeline.len() as f64).round() as usize;
    &of.timeline[place(from)..place(to)]
}

// === no worse than others ===

fn is_never_worse_than_random_or_a58(gateways: u32) {
    let mut verdict = Verdict::default();
    for (fleet, base) in fleets() {
        let of = |interval: &str, seconds: [&str; 2]| {
            let [warmup, duration] = seconds;
            with(
                base.clone(),
                json!({
                    "gateways": {"count": gateways},
                    "reports": {"interval": interval, "delay": "0s"},
                    "warmup": warmup, "duration": duration,
                }),
            )
        };
        // The blackout of A58 is 10 s.
        let random = summary(&of("1s", ["12s", "32s"]), "random");
        // 64 gateways take long to rank so often.
        let often = if gateways > 8 { ["2s", "4s"] } else { ["12s", "16s"] };
        for (interval, seconds) in [
            ("5ms", often),
            ("100ms", ["12s", "20s"]),
            ("1s", ["12s", "24s"]),
            ("5s", ["16s", "30s"]),
            ("10s", ["21s", "40s"]),
            ("30s", ["61s", "90s"]),
            ("60s", ["61s", "130s"]),
        ] {
            let of = of(interval, seconds);
            let ours = summary(&of, "adaptive");
            let a58 = summary(&of, "wrr_a58");
            for (name, other) in [("random", &random), ("wrr_a58", &a58)] {
                let what = |figure| {
                    format!("{figure} to {name}'s, {fleet}, {gateways} gateways, {interval}")
                };
                verdict.at_most(1.03, ours.mean_ms / other.mean_ms, what("mean"));
                verdict.at_most(1.05, ours.p99_ms / other.p99_ms, what("p99"));
            }
        }
    }
    verdict.holds();
}

#[test]
fn it_is_never_worse_than_random_or_a58_at_any_age_of_reports_before_one_gateway() {
    is_never_worse_than_random_or_a58(1);
}

#[test]
fn it_is_never_worse_than_random_or_a58_at_any_age_of_reports_before_8_gateways() {
    is_never_worse_than_random_or_a58(8);
}

#[test]
fn it_is_never_worse_than_random_or_a58_at_any_age_of_reports_before_64_gateways() {
    is_never_worse_than_random_or_a58(64);
}

#[test]
fn with_reports_up_to_5_service_times_old_its_mean_is_within_half_more_of_live_p2c() {
    let mut verdict = Verdict::default();
    for (fleet, base) in fleets() {
        for gateways in [1, 8, 64] {
            for interval in ["5ms", "50ms"] {
                if (gateways, interval) == (64, "5ms") {
                    continue; // takes long, and is no harder
                }
                let of = with(
                    base.clone(),
                    json!({
                        "gateways": {"count": gateways},
                        "reports": {"interval": interval, "delay": "0s"},
                        "warmup": "3s", "duration": "7s",
                    }),
                );
                let [ours, live] = ["adaptive", "oracle_p2c"].map(|name| summary(&of, name));
                let what = format!("{fleet}, {gateways} gateways, {interval}");
                // The law allows half more.
                verdict.at_most(1.25, ours.mean_ms / live.mean_ms, what);
            }
        }
    }
    verdict.holds();
}

#[test]
fn before_equal_servers_its_p99_is_that_of_least_conn() {
    let mut verdict = Verdict::default();
    for gateways in [1, 4, 16] {
        let of = json!({
            "servers": [servers("a", 10)], "traffic": {"rate": 0.7 * 10.0 * CAPACITY},
            "gateways": {"count": gateways},
            "warmup": "5s", "duration": "35s",
        });
        let [ours, other] = ["adaptive", "peer_least_conn"].map(|name| summary(&of, name));
        verdict.at_most(1.05, ours.p99_ms / other.p99_ms, format!("{gateways} gateways"));
    }
    verdict.holds();
}

/// As on servers that wait rather than compute, or that others ask too.
#[test]
fn whose_reports_tell_little_of_what_it_could_bear_gets_no_longer_tail_than_by_least_conn() {
    let mut verdict = Verdict::default();
    let waiting = json!({"told_utilization": {"factor": 0.05}});
    let equal = json!({
        "servers": [with(servers("a", 10), waiting.clone())],
        "traffic": {"rate": 0.75 * 10.0 * CAPACITY},
    });
    let mixed = json!({
        "servers": [with(servers("fast", 5), waiting.clone()), with(slower("slow", 5), waiting)],
        "traffic": {"rate": 0.6 * 7.5 * CAPACITY},
    });
    let shared = json!({
        "servers": [with(servers("shared", 3), json!({"other_rate": 200})), servers("own", 7)],
        "traffic": {"rate": 2200},
    });
    for (case, base) in [("waiting", equal), ("half slower", mixed), ("shared", shared)] {
        for gateways in [1, 4, 16] {
            let more = json!({
                "gateways": {"count": gateways}, "warmup": "10s", "duration": "40s",
            });
            let of = with(base.clone(), more);
            let [ours, other] = ["adaptive", "peer_least_conn"].map(|name| summary(&of, name));
            let what = format!("p99 to least_conn's, {case}, {gateways} gateways");
            verdict.at_most(1.05, ours.p99_ms / other.p99_ms, what);
        }
    }
    verdict.holds();
}

#[test]
fn in_silence_it_is_no_worse_than_p2c_by_counts_or_by_latency() {
    let mut verdict = Verdict::default();
    let cases = [
        ("no exporter ever", json!([{"silent_exporter": {}}]), ["5s", "25s"]),
        ("no exporter from 10 s on", json!([{"silent_exporter": {"from": "10s"}}]), ["12s", "40s"]),
        (
            "no etcd for 30 s",
            json!([{"silent_etcd": {"from": "10s", "for": "30s"}}]),
            ["10s", "40s"],
        ),
        (
            "no etcd for 90 s",
            json!([{"silent_etcd": {"from": "10s", "for": "90s"}}]),
            ["10s", "100s"],
        ),
    ];
    for (fleet, base) in fleets() {
        for gateways in [1, 16] {
            for (case, faults, [warmup, duration]) in &cases {
                let of = with(
                    base.clone(),
                    json!({
                        "gateways": {"count": gateways}, "faults": faults,
                        "warmup": warmup, "duration": duration,
                    }),
                );
                let ours = summary(&of, "adaptive");
                for name in ["p2c", "peak_ewma"] {
                    let other = summary(&of, name);
                    let what = |figure| {
                        format!("{figure} to {name}'s, {fleet}, {gateways} gateways, {case}")
                    };
                    verdict.at_most(1.05, ours.mean_ms / other.mean_ms, what("mean"));
                    verdict.at_most(1.05, ours.p99_ms / other.p99_ms, what("p99"));
                }
            }
        }
    }
    verdict.holds();
}

// === who is in trouble, or lies ===

#[test]
fn a_black_hole_gets_no_more_than_a_trickle_after_3_s() {
    let mut verdict = Verdict::default();
    let hole = json!({"black_hole": {"servers": "bad", "from": "12s"}});
    let cases = [
        ("tells that it is idle", 0.5, json!([hole])),
        ("says nothing", 0.5, json!([hole, {"pause": {"servers": "bad", "from": "12s"}}])),
        ("nobody says anything", 0.5, json!([hole, {"silent_exporter": {"from": "12s"}}])),
        ("nobody ever said anything", 0.5, json!([hole, {"silent_exporter": {}}])),
    ];
    for gateways in [1, 4, 8] {
        for (case, trickle, faults) in &cases {
            let of = one_hit(4, 0.5, gateways, faults.clone());
            let of = measured(&of, "adaptive");
            let bins = bins_of(&of, 24.0, 15.0, 24.0);
            let picks: u64 = bins.iter().map(|bin| bin.picks[1]).sum();
            let each = picks as f64 / 9.0 / f64::from(gateways) / f64::from(of.runs);
            verdict.at_most(
                *trickle,
                each,
                format!("requests a second and gateway of {gateways}, {case}"),
            );
        }
    }
    verdict.holds();
}

#[test]
fn who_fails_at_once_attracts_no_more_than_a_fifth_of_its_share() {
    let mut verdict = Verdict::default();
    let hole = json!({"sinkhole": {"servers": "bad", "from": "12s", "for": "10s"}});
    let cases = [
        ("reported", json!([hole])),
        ("not reported", json!([hole, {"silent_exporter": {"from": "12s"}}])),
        ("nothing ever reported", json!([hole, {"silent_exporter": {}}])),
    ];
    for gateways in [1, 4, 8] {
        for count in [4, 10] {
            for (case, faults) in &cases {
                let of = measured(&one_hit(count, 0.5, gateways, faults.clone()), "adaptive");
                for second in 0..9 {
                    let from = 12.6 + f64::from(second);
                    let found = share_of_bad(&of, 24.0, from, from + 1.0) * f64::from(count);
                    let what =
                        format!("fair shares of {count}, {gateways} gateways, {case}, s {second}");
                    verdict.at_most(0.2, found, what);
                }
            }
        }
    }
    verdict.holds();
}

#[test]
fn a_liar_gets_no_more_than_twice_its_share() {
    let mut verdict = Verdict::default();
    for tells in ["idle", "rate", "nan", "instant"] {
        for (count, load) in [(4, 0.45), (4, 0.75), (10, 0.45), (10, 0.75)] {
            for gateways in [1, 8] {
                let lie = json!([{"lie": {"servers": "bad", "from": "12s", "tells": tells}}]);
                let of = measured(&one_hit(count, load, gateways, lie), "adaptive");
                let found = |from, to| share_of_bad(&of, 24.0, from, to) * f64::from(count);
                let what = |when: &str| {
                    format!("{when}, 1 of {count} at {load}, {gateways} gateways, {tells}")
                };
                verdict.at_most(1.4, found(12.0, 24.0), what("all the time"));
                for from in [12.0, 14.0, 16.0, 18.0, 20.0, 22.0] {
                    verdict.at_most(2.0, found(from, from + 2.0), what(&format!("from {from} s")));
                }
            }
        }
    }
    verdict.holds();
}

#[test]
fn who_slows_to_a_fifth_is_left_within_half_a_second_and_before_the_next_report() {
    let mut verdict = Verdict::default();
    for gateways in [1, 4] {
        for count in [4, 10] {
            for load in [0.4, 0.6] {
                // Reports come at 10 s and at 15 s.
                let slow = json!([{"slowdown": {"servers": "bad", "from": "11s", "speed": 0.2}}]);
                let of = with(
                    one_hit(count, load, gateways, slow),
                    json!({"reports": {"interval": "5s"}, "duration": "15s"}),
                );
                let of = measured(&of, "adaptive");
                for from in [11.5, 12.0, 12.5, 13.0, 13.5, 14.0, 14.5] {
                    let found = share_of_bad(&of, 15.0, from, from + 0.5) * f64::from(count);
                    verdict.at_most(
                        0.3,
                        found,
                        format!("fair shares of {count} at {load}, {gateways} gateways, {from} s"),
                    );
                }
            }
        }
    }
    verdict.holds();
}

// === changes ===

/// How far shares swing in the middle and in the last third of the time.
fn swings(gateways: u32, interval: &str, faults: &Value) -> [f64; 2] {
    let of = json!({
        "servers": [servers("a", 5), servers("b", 1)],
        "traffic": {"rate": 0.7 * 6.0 * CAPACITY},
        "gateways": {"count": gateways},
        "reports": {"interval": interval},
        "faults": faults,
        "warmup": "15s", "duration": "45s",
    });
    summary(&of, "adaptive").oscillation_halves
}

#[test]
fn a_change_of_weights_makes_no_share_swing() {
    let mut verdict = Verdict::default();
    let cases = [
        ("nothing", json!([])),
        ("a join", json!([{"join": {"servers": "b", "at": "15s"}}])),
        ("a slowdown", json!([{"slowdown": {"servers": "b", "from": "15s", "speed": 0.3}}])),
        ("a speed-up", json!([{"slowdown": {"servers": "b", "for": "15s", "speed": 0.3}}])),
        (
            "an antagonist that has stopped",
            json!([{"antagonist": {"part": 0.34, "speed": 0.5, "every": "1s", "for": "15s"}}]),
        ),
    ];
    for gateways in [1, 8] {
        for interval in ["1s", "5s"] {
            for (case, faults) in &cases {
                let [middle, last] = swings(gateways, interval, faults);
                let what =
                    |third| format!("{third} third, {gateways} gateways, {interval}, {case}");
                verdict.at_most(0.05, middle, what("middle"));
                verdict.at_most(0.03, last, what("last"));
            }
        }
    }
    verdict.holds();
}

#[test]
fn servers_that_go_on_changing_make_shares_swing_no_farther_with_time() {
    let mut verdict = Verdict::default();
    // Five times in each third.
    let slow = |n: u32| {
        let from = format!("{}s", 3 * n);
        json!({"slowdown": {"servers": "b", "from": from, "for": "1500ms", "speed": 0.3}})
    };
    let faults: Value = (0..15).map(slow).collect();
    for gateways in [1, 8] {
        for interval in ["1s", "5s"] {
            let [middle, last] = swings(gateways, interval, &faults);
            let what = format!("to the middle third, {gateways} gateways, {interval}");
            verdict.at_most(middle + 0.03, last, what);
            verdict.at_most(0.1, middle, format!("middle third, {gateways} gateways, {interval}"));
        }
    }
    verdict.holds();
}
