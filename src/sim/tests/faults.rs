//! Laws of servers that get warm, fail in part, are restarted, or work in vain.

use super::*;

#[test]
fn who_is_cold_gets_warm_evenly() {
    let of = scenario(json!({
        "servers": [{"name": "a", "slots": 100, "service": {"distribution": "deterministic", "mean": "100ms"}}],
        "traffic": {"rate": 100},
        "faults": [{"cold": {"from": "10s", "for": "20s", "speed": 0.2}}],
        "duration": "40s", "warmup": "0s",
    }));
    let bins = run(&of, named("random"), 1).timeline;
    let mean_s = |second: usize| bins[3 * second].latency.mean_s();
    for (second, speed) in [(5, 1.0), (15, 0.4), (20, 0.6), (25, 0.8), (35, 1.0)] {
        assert_near(mean_s(second), 0.1 / speed, 0.08);
    }
}

#[test]
fn a_part_fails_once_it_is_served() {
    let measures = run(&one_of_four("errors", json!({"part": 0.4})), named("random"), 1);
    let errors = errors(&measures);
    assert_eq!((errors[0], errors[2], errors[3]), (0.0, 0.0, 0.0));
    assert_near(errors[1], 0.4 / 4.0, 0.2);
    assert_eq!((measures.governance, measures.timed_out), (None, 0));
}

#[test]
fn a_rolling_restart_takes_one_server_after_the_other() {
    let of = scenario(json!({
        "servers": [{"name": "a", "count": 4, "slots": 4, "service": {"mean": "10ms"}}],
        "traffic": {"rate": 400},
        "faults": [{"rolling_restart": {"count": 3, "from": "10s", "every": "5s", "down": "1s"}}],
        "duration": "40s", "warmup": "0s",
    }));
    let mut simulation = Simulation::new(&of, named("peer_round_robin"), 1);
    simulation.start();
    let mut down = Vec::new();
    while simulation.step() {
        let is_down = |server: &crate::sim::server::Server| server.trouble.down > 0;
        let now: Vec<_> = simulation.fleet.servers.iter().map(is_down).collect();
        if down.last().is_none_or(|(_, last)| *last != now) {
            down.push((simulation.fleet.now / SECOND, now));
        }
    }
    let who = |down: &[bool]| down.iter().position(|is| *is);
    let found: Vec<_> = down.iter().map(|(at, down)| (*at, who(down))).collect();
    let expected =
        [(10, Some(0)), (11, None), (15, Some(1)), (16, None), (20, Some(2)), (21, None)];
    assert_eq!(found[1..], expected);
    let boots: Vec<_> = simulation.fleet.servers.iter().map(|server| server.boot).collect();
    assert_eq!(boots, [2, 2, 2, 1]);
}

#[test]
fn who_serves_the_abandoned_works_in_vain() {
    let answered = |serves: bool| {
        let of = scenario(json!({
            "servers": [{"name": "a", "service": {"distribution": "deterministic", "mean": "10ms"},
                         "serves_abandoned": serves}],
            "traffic": {"rate": 300, "changes": [{"at": "2s", "rate": 0}]},
            "gateways": {"timeout": "50ms"},
            "duration": "20s", "warmup": "0s",
        }));
        let mut simulation = Simulation::new(&of, named("random"), 1);
        simulation.start();
        while simulation.step() {}
        let server = &simulation.fleet.servers[0];
        assert_eq!(server.waiting(), 0);
        (server.counters.answered, simulation.into_measures())
    };
    let (served, of) = answered(true);
    assert_eq!(served, of.arrived);
    assert!(of.answered < 40, "after 50 ms nobody waits any more: {}", of.answered);
    let (served, of) = answered(false);
    assert!((195..=210).contains(&served), "for 2 s: {served} of {}", of.arrived);
}
