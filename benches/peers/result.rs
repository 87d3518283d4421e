//! What was measured, and its tables.

use std::fs;
use std::time::Duration;

use tokio::time::Instant;

use crate::machine;
use crate::scenario::Scenario;
use crate::servers::Facts;
use crate::sides::Side;
use crate::table::{Table, percentile, print_goal};

/// What one side gave in one round.
pub struct Round {
    /// Of the requests that count, failed ones included.
    pub latencies_ms: Vec<f64>,
    pub failed: usize,
    /// How long after it was due each request was sent.
    pub late_us: Vec<f64>,
    /// From the generator to the gateways.
    pub connections: usize,
    pub facts: Facts,
    pub cpu: Cpu,
}

/// Processes, by what they are here for.
pub struct Parts {
    pub gateways: Vec<u32>,
    pub fleet: u32,
    pub generator: u32,
    pub status: [u32; 2],
}

/// CPU in use: in seconds up to a moment, or in cores between two.
pub struct Cpu {
    at: Instant,
    gateways: f64,
    fleet: f64,
    generator: f64,
    status: f64,
    /// All of the machine, whoever uses it.
    machine: f64,
}

impl Cpu {
    pub fn read(parts: &Parts) -> Self {
        let seconds = |pids: &[u32]| -> f64 {
            pids.iter().map(|&pid| machine::cpu_time(pid).as_secs_f64()).sum()
        };
        Cpu {
            at: Instant::now(),
            gateways: seconds(&parts.gateways),
            fleet: seconds(&[parts.fleet]),
            generator: seconds(&[parts.generator]),
            status: seconds(&parts.status),
            machine: machine_seconds(),
        }
    }

    pub fn since(&self, before: &Cpu) -> Cpu {
        let elapsed = (self.at - before.at).as_secs_f64();
        let cores = |of: fn(&Cpu) -> f64| (of(self) - of(before)) / elapsed;
        Cpu {
            at: self.at,
            gateways: cores(|it| it.gateways),
            fleet: cores(|it| it.fleet),
            generator: cores(|it| it.generator),
            status: cores(|it| it.status),
            machine: cores(|it| it.machine),
        }
    }
}

/// CPU time that all cores were not idle.
fn machine_seconds() -> f64 {
    /// What `/proc/stat` counts in, on every Linux of today.
    const TICKS_PER_S: f64 = 100.0;
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
    let busy = ticks.take(8).enumerate().filter(|(column, _)| !matches!(column, 3 | 4));
    busy.filter_map(|(_, ticks)| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_S
}

/// One side over all rounds.
struct Figures {
    mean: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    /// Of each round by itself.
    p99s: Vec<f64>,
    failed: usize,
}

impl Figures {
    fn of(rounds: &[Round]) -> Self {
        let all: Vec<f64> = rounds.iter().flat_map(|it| it.latencies_ms.iter().copied()).collect();
        Figures {
            mean: all.iter().sum::<f64>() / all.len() as f64,
            p50: percentile(&all, 50.0),
            p99: percentile(&all, 99.0),
            p999: percentile(&all, 99.9),
            p99s: rounds.iter().map(|it| percentile(&it.latencies_ms, 99.0)).collect(),
            failed: rounds.iter().map(|it| it.failed).sum(),
        }
    }
}

/// The least of each figure that a peer has.
struct Best {
    mean: f64,
    p99: f64,
    p99s: Vec<f64>,
}

impl Best {
    /// `None` without peers.
    fn of(peers: &[&Figures]) -> Option<Self> {
        let rounds = peers.first()?.p99s.len();
        let least = |of: &dyn Fn(&Figures) -> f64| {
            peers.iter().map(|it| of(it)).fold(f64::INFINITY, f64::min)
        };
        Some(Best {
            mean: least(&|it| it.mean),
            p99: least(&|it| it.p99),
            p99s: (0..rounds).map(|round| least(&|it| it.p99s[round])).collect(),
        })
    }
}

/// The tables of a scenario. `floor` has the latencies of requests without work,
/// in milliseconds, of each side.
pub fn print(
    number: usize,
    scenario: &Scenario,
    length: Duration,
    sides: &[Side],
    rounds: &[Vec<Round>],
    floor: &[Vec<f64>],
) {
    println!("\n{number}. {}: {} requests/s, {length:?} each round.", scenario.name, scenario.rate);
    println!("   {}.", scenario.about);
    let figures: Vec<_> = rounds.iter().map(|rounds| Figures::of(rounds)).collect();
    let peers: Vec<_> =
        sides.iter().zip(&figures).filter(|(side, _)| !side.is_ours).map(|(_, it)| it).collect();
    let best = Best::of(&peers);
    print_latencies(scenario, sides, rounds, &figures, best.as_ref());
    print_checks(sides, rounds, floor);
    let (Some(best), Some(goal)) = (best, &scenario.goal) else { return };
    for (side, it) in sides.iter().zip(&figures).filter(|(side, _)| side.is_ours) {
        let p99 = it.p99 / best.p99;
        print_goal(
            p99 <= goal.p99,
            &format!("{}: p99 at most {} of the best peer's", side.name, goal.p99),
            &format!("{p99:.3}"),
        );
        if let Some(limit) = goal.mean {
            let mean = it.mean / best.mean;
            print_goal(
                mean <= limit,
                &format!("{}: mean at most {limit} of the best peer's", side.name),
                &format!("{mean:.3}"),
            );
        }
    }
}

fn print_latencies(
    scenario: &Scenario,
    sides: &[Side],
    rounds: &[Vec<Round>],
    figures: &[Figures],
    best: Option<&Best>,
) {
    let mut table = Table::new(&[
        "latency in ms",
        "mean",
        "p50",
        "p99",
        "p99.9",
        "failed",
        "p99/best peer",
        "of each round",
        "mean/best peer",
        "share of each group",
    ]);
    for ((side, rounds), it) in sides.iter().zip(rounds).zip(figures) {
        let ratio = |one: f64, other: Option<f64>| {
            other.map_or("-".to_owned(), |other| format!("{:.2}", one / other))
        };
        let each = it.p99s.iter().enumerate();
        let each = each.map(|(round, p99)| ratio(*p99, best.map(|best| best.p99s[round])));
        table.row(vec![
            side.name.clone(),
            format!("{:.1}", it.mean),
            format!("{:.1}", it.p50),
            format!("{:.1}", it.p99),
            format!("{:.1}", it.p999),
            it.failed.to_string(),
            ratio(it.p99, best.map(|best| best.p99)),
            each.collect::<Vec<_>>().join(" "),
            ratio(it.mean, best.map(|best| best.mean)),
            shares(scenario, rounds),
        ]);
    }
    table.print();
    println!(
        "  A share is the part of the requests, in percent, that went to the instances of one"
    );
    println!("  shape, in the order of above.");
}

/// What part of the requests each group of instances got, in percent.
fn shares(scenario: &Scenario, rounds: &[Round]) -> String {
    let requests = |range: std::ops::Range<usize>| -> u64 {
        rounds.iter().map(|round| round.facts.requests[range.clone()].iter().sum::<u64>()).sum()
    };
    let groups = scenario.groups();
    let all = requests(0..groups.last().map_or(0, |group| group.end)) as f64;
    let percent = |group| format!("{:.1}", requests(group) as f64 / all * 100.0);
    groups.into_iter().map(percent).collect::<Vec<_>>().join(" ")
}

fn print_checks(sides: &[Side], rounds: &[Vec<Round>], floor: &[Vec<f64>]) {
    println!(
        "  What that rests on. In ms: requests without work, through the same gateways. In us:"
    );
    println!(
        "  how late requests were sent, which is in their latency, and services ended. CPU in"
    );
    println!("  cores; status is etcd and exporter, machine is all that it did, for others too.");
    let mut table = Table::new(&[
        "",
        "no work p50",
        "p99",
        "sent late p50",
        "p99",
        "max",
        "served late mean",
        "max",
        "conns",
        "gateways",
        "fleet",
        "generator",
        "status",
        "machine",
    ]);
    for ((side, rounds), floor) in sides.iter().zip(rounds).zip(floor) {
        let late: Vec<f64> = rounds.iter().flat_map(|it| it.late_us.iter().copied()).collect();
        let services: u64 = rounds.iter().map(|it| it.facts.services).sum();
        let late_sum: f64 = rounds.iter().map(|it| it.facts.late_sum_us).sum();
        let cores = |of: fn(&Cpu) -> f64| {
            let sum: f64 = rounds.iter().map(|round| of(&round.cpu)).sum();
            format!("{:.2}", sum / rounds.len() as f64)
        };
        table.row(vec![
            side.name.clone(),
            format!("{:.2}", percentile(floor, 50.0)),
            format!("{:.2}", percentile(floor, 99.0)),
            format!("{:.0}", percentile(&late, 50.0)),
            format!("{:.0}", percentile(&late, 99.0)),
            format!("{:.0}", percentile(&late, 100.0)),
            format!("{:.0}", late_sum / services as f64),
            format!("{:.0}", rounds.iter().map(|it| it.facts.late_max_us).fold(0.0, f64::max)),
            rounds.iter().map(|it| it.connections).max().unwrap_or(0).to_string(),
            cores(|it| it.gateways),
            cores(|it| it.fleet),
            cores(|it| it.generator),
            cores(|it| it.status),
            cores(|it| it.machine),
        ]);
    }
    table.print();
}
