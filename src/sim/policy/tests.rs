//! What the tests share, and what holds for all policies.

mod averages;
mod nginx;
mod oracles;
mod queues;
mod reports;

use rand::{RngExt, SeedableRng};

use super::*;
use queues::{Run, simulate};

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
