//! Laws of a service that is governed.

use super::*;
use crate::sim::measure::Governance;

/// Everything goes wrong at once, with all that governs, in two zones.
pub fn troubled() -> Scenario {
    let mut of = super::troubled();
    of.servers[0].zone = "a".to_owned();
    of.servers[0].serves_abandoned = true;
    of.gateways.zones = vec!["a".to_owned(), "b".to_owned()];
    let service = json!({
        "health": {"base_ejection": "200ms", "max_ejected": 50, "interval": "1s"},
        "failure": {"mode": "failcache", "rest": "100ms", "budget": {"reserve": 10}},
        "slow_start": {"window": "2s"},
    });
    of.service = Some(serde_json::from_value(service).unwrap());
    let faults = json!([
        {"cold": {"from": "3s", "for": "1s", "speed": 0.5}},
        {"errors": {"servers": "b", "part": 0.3, "from": "2s", "for": "3s"}},
        {"rolling_restart": {"from": "5s", "every": "300ms", "down": "500ms"}},
    ]);
    of.faults.extend(serde_json::from_value::<Vec<scenario::Fault>>(faults).unwrap());
    of
}

/// The last of four fails at once from 10 s to 20 s, and nobody reports that; with a
/// `service`, and so many retries.
fn one_fails(fault: &str, service: Value, retries: u32) -> Measures {
    let mut of = one_of_four(fault, json!({}));
    of.faults.extend(serde_json::from_value::<Vec<_>>(json!([{"silent_exporter": {}}])).unwrap());
    of.service = Some(serde_json::from_value(service).unwrap());
    of.gateways.retries = retries;
    run(&of, named("random"), 1)
}

fn governance(of: &Measures) -> &Governance {
    of.governance.as_ref().unwrap()
}

#[test]
fn without_a_service_and_for_its_peers_nobody_is_governed() {
    let mut of = one_of_four("sinkhole", json!({}));
    assert_eq!(run(&of, named("random"), 1).governance, None);
    let ungoverned = run(&of, named("peer_random"), 1);
    of.service = Some(serde_json::from_value(json!({})).unwrap());
    assert_eq!(run(&of, named("peer_random"), 1), ungoverned);
    assert_eq!(governance(&run(&of, named("random"), 1)).ejected.len(), 4, "one by each gateway");
}

#[test]
fn who_failed_rests_where_that_is_configured() {
    let service =
        |mode: &str| json!({"health": {"max_ejected": 0}, "failure": {"mode": mode, "rest": "4s"}});
    let rested = one_fails("sinkhole", service("failcache"), 1);
    assert_eq!(rested.answered, rested.arrived);
    // Three times in 10 s by each of the four gateways, and those under way.
    assert!((12..=16).contains(&(rested.tries - rested.arrived)), "{}", rested.tries);
    let tried = one_fails("sinkhole", service("failover"), 1);
    assert!(tried.tries - tried.arrived > 700, "{}", tried.tries);
}

#[test]
fn in_failfast_and_failback_no_request_moves_on() {
    for mode in ["failfast", "failback"] {
        let service = json!({"health": {"max_ejected": 0}, "failure": {"mode": mode}});
        let of = one_fails("sinkhole", service, 2);
        assert_eq!(of.tries, of.arrived, "{mode}");
        assert_near(errors(&of)[1], 0.25, 0.15);
    }
}

#[test]
fn a_retry_is_paid_for_unless_the_try_before_was_a_connection_in_vain() {
    let poor = json!({
        "health": {"max_ejected": 0},
        "failure": {"budget": {"percent": 0, "reserve": 0, "per_second": 0}},
    });
    let in_vain = one_fails("crash", poor.clone(), 1);
    // Those that were under way when it crashed had reached it.
    let denied = governance(&in_vain).denied;
    assert!(denied < 10 && in_vain.failed == denied, "{denied} of {}", in_vain.failed);
    let failed = one_fails("sinkhole", poor, 1);
    assert!(failed.failed > 700 && governance(&failed).denied == failed.failed);
    assert_eq!(failed.tries, failed.arrived);
}

#[test]
fn a_budget_is_a_part_of_the_requests_and_what_time_gives() {
    let retries = |budget: Value| {
        let service = json!({"health": {"max_ejected": 0}, "failure": {"budget": budget}});
        let of = one_fails("sinkhole", service, 1);
        of.tries - of.arrived
    };
    // In the 10 s there come a thousand requests to each of the four gateways.
    let by_percent = retries(json!({"percent": 10, "reserve": 5, "per_second": 0}));
    assert!((380..=430).contains(&by_percent), "{by_percent}");
    let by_time = retries(json!({"percent": 0, "reserve": 5, "per_second": 4}));
    assert!((150..=185).contains(&by_time), "{by_time}");
}

#[test]
fn what_stays_in_the_zone_is_counted_by_the_gateways_zone() {
    let mut of = one_of_four("pause", json!({"for": "0s"}));
    (of.servers[0].zone, of.servers[1].zone) = ("a".to_owned(), "b".to_owned());
    of.gateways.zones = vec!["a".to_owned(), "b".to_owned()];
    let local = |of: &Scenario, policy| {
        let bins = run(of, named(policy), 1).timeline;
        let sum = |zone: usize| {
            let tries = bins[60..].iter().map(|bin| bin.zones[zone]);
            let (stayed, sent) = tries.fold((0, 0), |sum, it| (sum.0 + it.stayed, sum.1 + it.sent));
            stayed as f64 / sent as f64
        };
        [sum(0), sum(1)]
    };
    let [a, b] = local(&of, "peer_random");
    assert_near(a, 0.75, 0.05);
    assert_near(b, 0.25, 0.05);
    assert!(local(&of, "random")[0] > 0.95);
    of.service = Some(serde_json::from_value(json!({"zone": {"prefer": false}})).unwrap());
    assert_near(local(&of, "random")[0], 0.75, 0.05);
}
