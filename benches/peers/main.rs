//! The balancer beside its peers on a fleet of real services, in one run:
//! `make bench`, or `cargo bench --bench peers` after `cargo build --release`.
//!
//! ```text
//! generator -> 4 gateways of one worker -> fleet: instances with slots, a queue,
//!    |                  ^                    |    and a mean service time each
//!    |                  +---- etcd <- exporter (ours: a status a second)
//!    +-- Poisson arrivals, sent when they are due; latency counts from then
//! ```
//!
//! Every side gets the same requests at the same moments, each with the same
//! work, and takes the whole fleet in turn. It prints tables and judges nothing by
//! its exit status: on a machine that does other work at the same time only the
//! ratios within a run mean something.
//!
//! What can be chosen, for looking at a part, or trying another balancer:
//!
//! ```text
//! cargo bench --bench peers -- WORD...   scenarios and sides whose names hold a
//!                                        word; of a kind that no word names, all
//! BENCH_ONLY=WORD,...                    the same words
//! BENCH_LONG=1                           all sides in every scenario; else some of
//!                                        them have to do where none was named
//! BENCH_SECONDS=n                        a third of the time that counts of each
//!                                        side in each round (default 3)
//! PEERS_ROUNDS=n                         rounds (default 2)
//! PEERS_SEED=n                           other arrivals and other work (default 1)
//! PEERS_STRATEGIES=adaptive,p2c@dir      our sides: balance.strategy, and where
//!                                        its libipconfig.so is
//! PEERS_LIB_DIR=dir  PEERS_LUA_DIR=dir   where it is if no directory is named, and
//!                                        where resty/ is; by default this build's
//!                                        and this checkout's
//! ```

use std::time::Duration;

use crate::clock::Clock;
use crate::load::Arrival;
use crate::result::{Cpu, Parts, Round};
use crate::scenario::{SCENARIOS, Scenario};
use crate::servers::Servers;
use crate::shared::{choice, http, machine, nginx, table, usage};
use crate::sides::{ControlPlane, GATEWAYS, Side};

mod clock;
mod load;
mod result;
mod scenario;
mod servers;
#[path = "../shared/mod.rs"]
mod shared;
mod sides;
#[path = "../../tests/support/mod.rs"]
mod support;

const DEFAULT_ROUNDS: u32 = 2;

/// How long each side gets requests that take no time.
const FLOOR: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Some(fleet) = servers::role() {
        return servers::serve(fleet).await;
    }
    let choice = Choice::read();
    usage::raise_open_files();
    machine::print();
    println!("         {}", machine::first_line("haproxy", &["-v"]).unwrap_or_default());
    println!(
        "{GATEWAYS} gateways of one worker each; open loop, latency from when a request was due;"
    );
    println!("{} rounds in changed order, the same requests for every side.", choice.rounds);
    let clock = Clock::start();
    let scenarios = SCENARIOS.iter().filter(|it| choice.scenario(it));
    let run_all = async {
        for (number, scenario) in (1..).zip(scenarios) {
            run(&clock, number, scenario, &choice).await;
        }
    };
    tokio::select! {
        () = run_all => {}
        // Returned from, so that everything that was started is stopped.
        _ = tokio::signal::ctrl_c() => eprintln!("stopped"),
    }
}

async fn run(clock: &Clock, number: usize, scenario: &Scenario, choice: &Choice) {
    let mut servers = Servers::start(&scenario.shapes());
    let control = ControlPlane::start(&servers.addresses).await;
    let sides =
        sides::start(&servers.addresses, &control, |name| choice.side(scenario, name)).await;
    let length = scenario.at_least.max(Duration::from_secs(3 * u64::from(choice.seconds)));
    let floor = floor(clock, scenario, choice, &sides).await;
    let mut rounds: Vec<Vec<Round>> = sides.iter().map(|_| Vec::new()).collect();
    for round in 0..choice.rounds {
        let seed = u64::from(choice.seed) * 1_000 + u64::from(round);
        let counted = load::arrivals(seed, |time| scenario.rate_at(time), length, GATEWAYS);
        for place in 0..sides.len() {
            // Each side comes first once in a while, and last.
            let index = (round as usize * sides.len().div_ceil(2) + place) % sides.len();
            eprintln!("{}, round {}: {}…", scenario.name, round + 1, sides[index].name);
            let stage = Stage { clock, control: &control, scenario };
            let plan = plan(&sides[index], scenario, seed, &counted);
            rounds[index].push(stage.measure(&sides[index], &mut servers, &plan).await);
        }
    }
    result::print(number, scenario, length, &sides, &rounds, &floor);
}

/// The requests of a side's warm-up, then those that count.
fn plan(side: &Side, scenario: &Scenario, seed: u64, counted: &[Arrival]) -> Vec<Arrival> {
    let mut plan = load::arrivals(!seed, |_| scenario.rate, side.warm_up, GATEWAYS);
    let later = |it: &Arrival| Arrival { due: it.due + side.warm_up, ..*it };
    plan.extend(counted.iter().map(later));
    plan
}

/// What requests take that need no work at all: of gateways, network and
/// generator.
async fn floor(
    clock: &Clock,
    scenario: &Scenario,
    choice: &Choice,
    sides: &[Side],
) -> Vec<Vec<f64>> {
    let mut arrivals = load::arrivals(choice.seed.into(), |_| scenario.rate, FLOOR, GATEWAYS);
    arrivals.iter_mut().for_each(|it| it.work = 0.0);
    let mut floor = Vec::new();
    for side in sides {
        let outcome = load::run(clock, &arrivals, &side.ports, |_| {}).await;
        // The first half opens connections.
        let is_warm = |it: &&load::Sample| it.due > FLOOR / 2;
        floor.push(outcome.samples.iter().filter(is_warm).map(|it| it.latency_ms).collect());
    }
    floor
}

struct Stage<'a> {
    clock: &'a Clock,
    control: &'a ControlPlane,
    scenario: &'a Scenario,
}

impl Stage<'_> {
    async fn measure(&self, side: &Side, servers: &mut Servers, plan: &[Arrival]) -> Round {
        let parts = Parts {
            gateways: side.pids.clone(),
            fleet: servers.id(),
            generator: std::process::id(),
            status: [self.control.etcd.id(), self.control.exporter.id()],
        };
        servers.facts();
        let before = Cpu::read(&parts);
        let mut changes = self.scenario.changes.iter().peekable();
        let turn = |time: Duration| {
            let is_due = |at: Duration| time >= side.warm_up + at;
            while let Some(change) = changes.next_if(|it| is_due(it.at)) {
                change.instances.clone().for_each(|index| servers.set_speed(index, change.speed));
            }
        };
        let outcome = load::run(self.clock, plan, &side.ports, turn).await;
        let cpu = Cpu::read(&parts).since(&before);
        let counted = outcome.samples.iter().filter(|it| it.due >= side.warm_up);
        Round {
            latencies_ms: counted.clone().map(|it| it.latency_ms).collect(),
            failed: counted.filter(|it| !it.is_ok).count(),
            late_us: outcome.late_us,
            connections: outcome.connections,
            facts: servers.facts(),
            cpu,
        }
    }
}

/// What is to be run.
struct Choice {
    words: Vec<String>,
    names: Vec<String>,
    is_long: bool,
    seconds: u32,
    rounds: u32,
    seed: u32,
}

impl Choice {
    fn read() -> Self {
        let only = std::env::var("BENCH_ONLY").unwrap_or_default();
        let words: Vec<_> = choice::words()
            .chain(only.split(',').map(|word| word.trim().to_owned()))
            .filter(|word| !word.is_empty())
            .collect();
        let names = sides::names();
        let scenarios = SCENARIOS.map(|it| it.name);
        let is_unknown = |word: &&String| {
            let mut all = names.iter().map(String::as_str).chain(scenarios);
            !all.any(|name| name.contains(word.as_str()))
        };
        if let Some(word) = words.iter().find(is_unknown) {
            choice::refuse(format!(
                "{word:?} is in no name of a scenario ({}) or a side ({})",
                scenarios.join(", "),
                names.join(", ")
            ));
        }
        Choice {
            is_long: std::env::var_os("BENCH_LONG").is_some(),
            seconds: choice::seconds(),
            rounds: choice::number("PEERS_ROUNDS", DEFAULT_ROUNDS),
            seed: choice::number("PEERS_SEED", 1),
            words,
            names,
        }
    }

    fn scenario(&self, scenario: &Scenario) -> bool {
        let names_any = |word: &String| SCENARIOS.iter().any(|it| it.name.contains(word.as_str()));
        self.is_named(scenario) || !self.words.iter().any(names_any)
    }

    fn is_named(&self, scenario: &Scenario) -> bool {
        self.words.iter().any(|word| scenario.name.contains(word.as_str()))
    }

    fn side(&self, scenario: &Scenario, name: &str) -> bool {
        let names_it = |word: &String| name.contains(word.as_str());
        let names_any = |word: &String| self.names.iter().any(|it| it.contains(word.as_str()));
        if self.words.iter().any(names_any) {
            return self.words.iter().any(names_it);
        }
        let are_all_wanted = self.is_long || scenario.has_all_sides || self.is_named(scenario);
        are_all_wanted || sides::is_of_the_few(name)
    }
}
