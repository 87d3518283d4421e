//! The policies against queueing theory, where it has an answer, and against their
//! formulas, where it has none.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

// --- A world that tests set up by hand ---

#[derive(Clone)]
struct Server {
    is_member: bool,
    is_tried: bool,
    weight: f64,
    by_worker: u32,
    by_gateway: u32,
    by_all: u32,
    report: Option<ServerReport>,
    service_s: f64,
    slots: u32,
}

#[derive(Clone)]
struct Fleet {
    now_s: f64,
    servers: Vec<Server>,
}

impl Fleet {
    /// Servers that are alike: one slot, mean service time 1 s.
    fn of(servers: usize) -> Self {
        let server = Server {
            is_member: true,
            is_tried: false,
            weight: 1.0,
            by_worker: 0,
            by_gateway: 0,
            by_all: 0,
            report: None,
            service_s: 1.0,
            slots: 1,
        };
        Fleet { now_s: 0.0, servers: vec![server; servers] }
    }

    fn with_weights(weights: &[f64]) -> Self {
        let mut fleet = Fleet::of(weights.len());
        for (server, &weight) in fleet.servers.iter_mut().zip(weights) {
            server.weight = weight;
        }
        fleet
    }

    /// All that gateways can count, and what they cannot.
    fn set_in_flight(&mut self, counts: &[u32]) {
        for (server, &count) in self.servers.iter_mut().zip(counts) {
            server.by_worker = count;
            server.by_gateway = count;
            server.by_all = count;
        }
    }

    fn add_in_flight(&mut self, server: usize) {
        let server = &mut self.servers[server];
        (server.by_worker, server.by_gateway) = (server.by_worker + 1, server.by_gateway + 1);
        server.by_all += 1;
    }

    fn take_in_flight(&mut self, server: usize) {
        let server = &mut self.servers[server];
        (server.by_worker, server.by_gateway) = (server.by_worker - 1, server.by_gateway - 1);
        server.by_all -= 1;
    }
}

impl World for Fleet {
    fn servers(&self) -> usize {
        self.servers.len()
    }
    fn now_s(&self) -> f64 {
        self.now_s
    }
    fn is_tried(&self, server: usize) -> bool {
        self.servers[server].is_tried
    }
    fn is_member(&self, server: usize) -> bool {
        self.servers[server].is_member
    }
    fn weight(&self, server: usize) -> f64 {
        self.servers[server].weight
    }
    fn worker_in_flight(&self, server: usize) -> u32 {
        self.servers[server].by_worker
    }
    fn gateway_in_flight(&self, server: usize) -> u32 {
        self.servers[server].by_gateway
    }
    fn report(&self, server: usize) -> Option<ServerReport> {
        self.servers[server].report
    }
    fn true_in_flight(&self, server: usize) -> u32 {
        self.servers[server].by_all
    }
    fn true_service_s(&self, server: usize) -> f64 {
        self.servers[server].service_s
    }
    fn slots(&self, server: usize) -> u32 {
        self.servers[server].slots
    }
}

fn policy(name: &str) -> Box<dyn Policy> {
    by_name(name, &gateway_shared(), 1).unwrap()
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

/// The picks of so many requests, none of which ends.
fn picks(policy: &mut dyn Policy, world: &Fleet, requests: usize) -> Vec<usize> {
    let mut rng = rng();
    (0..requests).filter_map(|_| policy.pick(world, &mut rng)).collect()
}

/// Each server's part of the picks.
fn shares(policy: &mut dyn Policy, world: &Fleet, requests: usize) -> Vec<f64> {
    let mut shares = vec![0.0; world.servers.len()];
    for server in picks(policy, world, requests) {
        shares[server] += 1.0 / requests as f64;
    }
    shares
}

fn report(taken_s: f64, rate_per_s: f64, utilization: f64) -> Option<ServerReport> {
    let (errors_per_s, latency_s, in_flight) = (0.0, 0.0, 0);
    Some(ServerReport { taken_s, rate_per_s, utilization, errors_per_s, latency_s, in_flight })
}

#[track_caller]
fn assert_close(measured: f64, expected: f64, tolerance: f64) {
    let off = (measured / expected - 1.0).abs();
    assert!(off <= tolerance, "{measured:.4} is {:.1} % off {expected:.4}", off * 100.0);
}

// --- A queueing simulation: one decider, FIFO servers, Poisson arrivals ---

struct Run {
    /// Offered load: of all slots, 0 to 1.
    load: f64,
    requests: u32,
    /// A server that answers with a failure at once, whatever it has to do.
    sinkhole: Option<usize>,
}

struct Ran {
    /// Of the answers, after the first tenth.
    mean_s: f64,
    shares: Vec<f64>,
}

/// Exponential service times of each server's mean, by as many slots as it has.
fn simulate(name: &str, fleet: &Fleet, run: &Run) -> Ran {
    const SINKHOLE_S: f64 = 1e-3;
    let (mut policy, mut rng, mut fleet) = (policy(name), rng(), fleet.clone());
    let rate: f64 =
        fleet.servers.iter().map(|server| f64::from(server.slots) / server.service_s).sum();
    let interval_s = 1.0 / (rate * run.load);
    let exponential = |mean_s: f64, rng: &mut SmallRng| -mean_s * (1.0 - rng.random::<f64>()).ln();

    // When each slot is through with what waits for it.
    let mut free_s: Vec<Vec<f64>> =
        fleet.servers.iter().map(|server| vec![0.0; server.slots as usize]).collect();
    // By end: times are not negative, so their bits stand in their order.
    let mut open: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
    let mut ran = Ran { mean_s: 0.0, shares: vec![0.0; fleet.servers.len()] };
    let (mut arrived_s, mut sum_s, mut counted) = (0.0, 0.0, 0_u32);
    for request in 0..run.requests {
        arrived_s += exponential(interval_s, &mut rng);
        while let Some(&Reverse((end, server, latency))) = open.peek()
            && f64::from_bits(end) <= arrived_s
        {
            open.pop();
            fleet.now_s = f64::from_bits(end);
            fleet.take_in_flight(server);
            let latency_s = f64::from_bits(latency);
            let failed = run.sinkhole == Some(server);
            let outcome =
                if failed { Outcome::Failed(latency_s) } else { Outcome::Answered(latency_s) };
            policy.ended(&fleet, server, outcome);
        }
        fleet.now_s = arrived_s;
        let server = policy.pick(&fleet, &mut rng).unwrap();
        fleet.add_in_flight(server);
        let end_s = if run.sinkhole == Some(server) {
            arrived_s + SINKHOLE_S
        } else {
            let slot = free_s[server].iter_mut().min_by(|one, other| one.total_cmp(other)).unwrap();
            *slot = slot.max(arrived_s) + exponential(fleet.servers[server].service_s, &mut rng);
            *slot
        };
        open.push(Reverse((end_s.to_bits(), server, (end_s - arrived_s).to_bits())));
        ran.shares[server] += 1.0 / f64::from(run.requests);
        if request >= run.requests / 10 {
            sum_s += end_s - arrived_s;
            counted += 1;
        }
    }
    ran.mean_s = sum_s / f64::from(counted);
    ran
}

fn mean_s(name: &str, servers: usize, load: f64, requests: u32) -> f64 {
    simulate(name, &Fleet::of(servers), &Run { load, requests, sinkhole: None }).mean_s
}

#[test]
fn random_makes_each_server_a_queue_of_its_own() {
    let load = 0.7;
    assert_close(mean_s("random", 10, load, 300_000), 1.0 / (1.0 - load), 0.03);
}

#[test]
fn the_simulation_of_servers_with_slots_agrees_with_erlang_c() {
    let (load, slots) = (0.8, 4_u32);
    let offered = load * f64::from(slots);
    let term = |n: u32| (1..=n).fold(1.0, |term, i| term * offered / f64::from(i));
    let all_busy = term(slots) / (1.0 - load);
    let waits = all_busy / ((0..slots).map(term).sum::<f64>() + all_busy);
    let expected = 1.0 + waits / (f64::from(slots) * (1.0 - load));
    let mut fleet = Fleet::of(5);
    fleet.servers.iter_mut().for_each(|server| server.slots = slots);
    let ran = simulate("random", &fleet, &Run { load, requests: 300_000, sinkhole: None });
    assert_close(ran.mean_s, expected, 0.03);
}

/// Each server sees every n-th arrival: E_n/M/1, whose time in system is
/// `1 / (1 - sigma)` with `sigma = (n rho / (n rho + 1 - sigma))^n`.
#[test]
fn round_robin_makes_arrivals_at_each_server_erlang() {
    let (servers, load) = (10, 0.7);
    let arrivals = f64::from(servers) * load;
    let mut sigma: f64 = 0.5;
    for _ in 0..1_000 {
        sigma = (arrivals / (arrivals + 1.0 - sigma)).powi(servers);
    }
    assert_close(mean_s("round_robin", servers as usize, load, 300_000), 1.0 / (1.0 - sigma), 0.03);
}

/// Mitzenmacher's fixed point for many servers: the sum over i of
/// `rho^(2^i - 2)`. 100 servers are a little worse off than infinitely many.
#[test]
fn two_choices_reach_the_fixed_point() {
    let fixed_point = |load: f64| (1..12).map(|i| load.powf(2_f64.powi(i) - 2.0)).sum::<f64>();
    for (name, load) in [("oracle_p2c", 0.7), ("random_two", 0.7), ("oracle_p2c", 0.9)] {
        assert_close(mean_s(name, 100, load, 200_000), fixed_point(load), 0.03);
    }
}

/// The chain of two queues of which the shorter gets each arrival, cut off where
/// both are as long as never seen. Which of equals gets it makes no difference.
#[test]
fn the_shortest_of_two_queues_agrees_with_its_markov_chain() {
    const LONGEST: usize = 40;
    let load = 0.7;
    let (arrivals, rate) = (2.0 * load, 2.0 * load + 2.0);
    let mut odds = vec![vec![0.0; LONGEST + 1]; LONGEST + 1];
    odds[0][0] = 1.0;
    // In steps of the uniformized chain, until it is stationary.
    for _ in 0..1_500 {
        let mut next = vec![vec![0.0; LONGEST + 1]; LONGEST + 1];
        for one in 0..=LONGEST {
            for other in 0..=LONGEST {
                let p = odds[one][other] / rate;
                next[one.saturating_sub(1)][other] += p;
                next[one][other.saturating_sub(1)] += p;
                let to_one = (one + usize::from(one <= other)).min(LONGEST);
                let to_other = (other + usize::from(other < one)).min(LONGEST);
                next[to_one][to_other] += p * arrivals;
            }
        }
        odds = next;
    }
    let both = |one: usize, other: usize| (one + other) as f64 * odds[one][other];
    let queued: f64 =
        (0..=LONGEST).flat_map(|one| (0..=LONGEST).map(move |other| both(one, other))).sum();
    let expected = queued / arrivals;
    // A little worse than one queue before both servers, M/M/2.
    assert_close(expected, 1.05 / (1.0 - load * load), 0.05);
    for name in ["oracle_jsq", "oracle_sed", "least_conn"] {
        assert_close(mean_s(name, 2, load, 200_000), expected, 0.03);
    }
}

#[test]
fn the_shortest_expected_delay_is_shorter_where_servers_differ() {
    let mut fleet = Fleet::of(10);
    fleet.servers.iter_mut().take(5).for_each(|server| server.service_s = 3.0);
    let run = Run { load: 0.7, requests: 50_000, sinkhole: None };
    let mean_s = |name| simulate(name, &fleet, &run).mean_s;
    let (delay, queue, two) = (mean_s("oracle_sed"), mean_s("oracle_jsq"), mean_s("oracle_p2c"));
    assert!(delay < 0.95 * queue && queue < 0.95 * two, "{delay} {queue} {two}");
}

// --- What holds for all ---

#[test]
fn every_name_has_a_policy_and_no_other_name_has() {
    for name in NAMES {
        assert!(by_name(name, &gateway_shared(), 1).is_some(), "{name}");
    }
    assert!(by_name("no_such", &gateway_shared(), 1).is_none());
    assert!(by_name("", &gateway_shared(), 1).is_none());
}

/// Garbage in reports, weights and latencies, servers that come, go and stop: what
/// is picked may go there, and something is picked where something may.
#[test]
fn whatever_happens_only_untried_members_are_picked() {
    const ODD: [f64; 7] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, 1e300, 5e-324];
    let any = |rng: &mut SmallRng| match rng.random_range(..20_usize) {
        odd if odd < ODD.len() => ODD[odd],
        _ => rng.random::<f64>(),
    };
    for &name in NAMES {
        let (mut policy, mut rng, mut fleet) = (policy(name), rng(), Fleet::of(0));
        let nginx = ["round_robin", "random", "least_conn", "random_two"];
        let may_refuse = nginx.iter().any(|nginx| name.starts_with(nginx));
        for step in 0..3_000 {
            fleet.now_s += rng.random::<f64>() * 3.0;
            if step % 50 == 0 {
                fleet.servers.resize(rng.random_range(..12), Fleet::of(1).servers[0].clone());
            }
            for server in &mut fleet.servers {
                server.is_member = rng.random::<f64>() < 0.7;
                server.is_tried = rng.random::<f64>() < 0.3;
                server.by_gateway = rng.random_range(..4);
                server.by_worker = server.by_gateway / 2;
                server.by_all = rng.random_range(..9);
                if rng.random::<f64>() < 0.1 {
                    server.weight = any(&mut rng);
                    server.service_s = any(&mut rng);
                    server.report = report(any(&mut rng), any(&mut rng), any(&mut rng));
                    let latency_s = any(&mut rng);
                    server.report =
                        server.report.map(|report| ServerReport { latency_s, ..report });
                }
            }
            let open = |server: &&Server| server.is_member && !server.is_tried;
            match policy.pick(&fleet, &mut rng) {
                Some(server) => assert!(open(&&fleet.servers[server]), "{name}: {server}"),
                None if may_refuse => {}
                None => assert_eq!(fleet.servers.iter().filter(open).count(), 0, "{name}"),
            }
            if !fleet.servers.is_empty() {
                let server = rng.random_range(..fleet.servers.len());
                policy.ended(&fleet, server, Outcome::Answered(any(&mut rng)));
            }
        }
    }
}

#[test]
fn what_is_not_registered_or_was_tried_is_not_picked_and_the_rest_is() {
    for &name in NAMES {
        let mut fleet = Fleet::of(50);
        fleet.servers.iter_mut().for_each(|server| server.is_member = false);
        assert!(picks(&mut *policy(name), &fleet, 10).is_empty(), "{name}");
        (fleet.servers[7].is_member, fleet.servers[31].is_member) = (true, true);
        let mut policy = policy(name);
        fleet.servers[7].is_tried = true;
        assert_eq!(picks(&mut *policy, &fleet, 10), [31; 10], "{name}");
        fleet.servers[31].is_tried = true;
        assert!(picks(&mut *policy, &fleet, 10).is_empty(), "{name}");
    }
    assert!(picks(&mut *policy("random"), &Fleet::of(0), 1).is_empty());
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let fleet = Fleet::of(5);
    let run = Run { load: 0.8, requests: 500, sinkhole: None };
    for &name in NAMES {
        assert_eq!(simulate(name, &fleet, &run).mean_s, simulate(name, &fleet, &run).mean_s);
    }
}

/// No published formula here looks at whether an answer was a failure, other than
/// A58's, which has it from reports.
#[test]
fn a_failed_answer_counts_by_its_latency_like_any_other() {
    for &name in NAMES {
        let run = |outcome: fn(f64) -> Outcome| {
            let (mut policy, mut rng, mut fleet) = (policy(name), rng(), Fleet::of(6));
            let mut picked = Vec::new();
            for step in 0..300 {
                fleet.now_s += 0.3;
                let server = policy.pick(&fleet, &mut rng);
                picked.push(server);
                let latency_s = f64::from(step % 7) * 0.1;
                policy.ended(&fleet, server.unwrap_or(0), outcome(latency_s));
            }
            picked
        };
        let (answered, failed) = (run(Outcome::Answered), run(Outcome::Failed));
        assert_eq!(answered, failed, "{name}");
        let passive_checks = ["round_robin", "random", "least_conn", "random_two"];
        let checks = passive_checks.iter().any(|nginx| name.starts_with(nginx));
        assert_eq!(run(Outcome::TimedOut) == answered, !checks, "{name}");
    }
}

// --- nginx ---

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

// --- Averages of latency ---

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
    for (now_s, known) in [(59.9, true), (60.1, false)] {
        fleet.now_s = now_s;
        policy.ended(&fleet, 1, Outcome::Answered(1e-6));
        // 5 s after a minute is 12 ms, still more than a microsecond.
        assert_eq!(picks(&mut *policy, &fleet, 10), [usize::from(known); 10], "{now_s}");
    }
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

// --- Reports ---

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
    // The mean of 99 ones and 9,901 is 100, of which 10 times is the most, and a
    // hundredth (65.535 of the stride) the least.
    let mut weights = vec![1.0; 99];
    weights.push(9_901.0);
    let bounded = strides(&weights).unwrap();
    assert_eq!((bounded[0], bounded[99]), (66, 65_535));
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
    let (mut policy, mut fleet) = (policy("best"), Fleet::of(3));
    fleet.servers[0].report = report(0.0, 1.0, f64::NAN);
    fleet.servers[1].report = report(0.0, 1.0, 0.1);
    fleet.servers[2].report = report(0.0, 1e9, 0.0);
    assert_eq!(picks(&mut *policy, &fleet, 9), [2; 9]);
}

// --- Oracles ---

#[test]
fn the_shortest_queue_counts_what_no_gateway_sees() {
    let mut fleet = Fleet::of(3);
    for (server, by_all) in [(0, 3), (1, 1), (2, 2)] {
        fleet.servers[server].by_all = by_all;
    }
    assert_eq!(picks(&mut *policy("oracle_jsq"), &fleet, 9), [1; 9]);
    fleet.servers[2].by_all = 1;
    let shares = shares(&mut *policy("oracle_jsq"), &fleet, 10_000);
    assert_close(shares[1], 0.5, 0.04);
    assert_eq!(shares[0], 0.0);
}

#[test]
fn the_expected_delay_counts_what_waits_for_a_slot() {
    let picks = |servers: [(f64, u32, u32); 2]| {
        let mut fleet = Fleet::of(2);
        for (server, (service_s, slots, by_all)) in fleet.servers.iter_mut().zip(servers) {
            (server.service_s, server.slots, server.by_all) = (service_s, slots, by_all);
        }
        let mut server = picks(&mut *policy("oracle_sed"), &fleet, 20);
        server.dedup();
        server
    };
    assert_eq!(picks([(1.0, 1, 2), (2.9, 1, 0)]), [1]); // 3 and 2.9
    assert_eq!(picks([(1.0, 1, 2), (3.1, 1, 0)]), [0]);
    assert_eq!(picks([(1.0, 4, 3), (1.0, 1, 1)]), [0]); // a slot is free: 1 and 2
    assert_eq!(picks([(1.0, 4, 7), (1.9, 1, 0)]), [1]); // 2 and 1.9
    assert_eq!(picks([(1.0, 4, 6), (1.9, 1, 0)]), [0]); // 1.75
    assert_eq!(picks([(f64::INFINITY, 4, 0), (9.0, 1, 9)]), [1]);
    assert!(picks([(1.0, 4, 0), (1.0, 2, 1)]).len() > 1, "equal ones by chance");
}

/// Also where most servers are not open, which is drawn from a list.
#[test]
fn all_pairs_of_open_servers_are_alike() {
    for servers in [4, 400] {
        let mut fleet = Fleet::of(servers);
        fleet.servers.iter_mut().skip(4).for_each(|server| server.is_member = false);
        let mut rng = rng();
        let mut pairs = BTreeMap::new();
        for _ in 0..12_000 {
            *pairs.entry(draw::any_two(&fleet, &mut rng).unwrap()).or_insert(0) += 1;
        }
        assert_eq!(pairs.len(), 12);
        assert!(pairs.values().all(|&count| (850..1_150).contains(&count)), "{pairs:?}");
    }
}
