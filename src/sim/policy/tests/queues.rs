//! Against queueing theory, by a simulation of one decider before FIFO servers, with
//! Poisson arrivals and exponential service times.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt;

use super::*;

pub struct Run {
    /// Offered load: of all slots, 0 to 1.
    pub load: f64,
    pub requests: u32,
    /// A server that answers with a failure at once, whatever it has to do.
    pub sinkhole: Option<usize>,
}

pub struct Ran {
    /// Of the answers, after the first tenth.
    pub mean_s: f64,
    pub shares: Vec<f64>,
}

/// Exponential service times of each server's mean, by as many slots as it has.
pub fn simulate(name: &str, fleet: &Fleet, run: &Run) -> Ran {
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
