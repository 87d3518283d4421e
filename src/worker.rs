//! One worker's side: its views of the rankings, its pickers, and the requests
//! that it has under way. All on nginx's event loop, so nothing here blocks.

pub(crate) mod reach;
mod routes;
mod show;
mod tries;
mod view;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;

pub use show::{Counters, Proof, ServiceFreshness, ServiceHealth};
pub use tries::Tries;
use tries::outcome_of;
pub(crate) use view::governed_priors;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use routes::Rules;
use smallvec::SmallVec;

use self::reach::{Bars, Try};
use self::view::{Read, View};
use crate::board::{self, Board, Budget, Open, Outcome, Refusal, RowId, ServiceId};
use crate::config::{
    BalanceConfig, Config, Discover, FailureConfig, FailureMode, HealthConfig, ServiceConfig,
};
use crate::health;
use crate::ranking::State;
use crate::value::ValueError;
use crate::wire::orca::{self, HeaderError};

/// Tries that one request can have: the first, and `balance.tries` of 16.
const MAX_TRIES: usize = 17;

/// Picks of one request whose last place another worker takes first.
const OVERTAKEN: usize = 8;

/// A worker's state; there is one a process.
pub struct Worker {
    board: Board,
    row: Option<RowId>,
    services: Vec<Service>,
    discover: Discover,
    /// How long the source may be lost before the ranking is called stale, and
    /// the plugin's thread silent before Lua falls back.
    patience_ms: u32,
    flights: Flights,
    /// What was chosen last.
    last: Last,
    /// The slot and the address of the instance whose response is to be looked at
    /// for a load report.
    looks_at: Option<(u32, SocketAddr)>,
    rng: SmallRng,
}

/// By the request's address.
type Flights = HashMap<usize, Flight, BuildHasherDefault<AddressHasher>>;

/// A service as this worker knows it.
struct Service {
    name: String,
    id: ServiceId,
    balance: BalanceConfig,
    health: HealthConfig,
    failure: Failure,
    view: Option<View>,
    /// The newest version that was loaded, or tried in vain.
    attempted: u64,
    /// The ranking that was read last is of other instances than those at hand.
    lacks_instances: bool,
    /// The last failure that was reported, so that it is reported once.
    failed: Option<ValueError>,
}

/// What becomes of tries that fail.
#[derive(Clone, Copy)]
pub struct Failure {
    pub mode: FailureMode,
    /// How long an instance rests after one; 0 unless the mode is `failcache`.
    pub rest_ms: u64,
    pub budget: Budget,
}

/// A request that was sent somewhere and has not been logged yet.
#[derive(Default)]
struct Flight {
    /// The try that is under way.
    open: Open,
    /// Where it went.
    addr: Option<SocketAddr>,
    /// The rules that took it, those of this version of the instances.
    rules: Rules,
    rules_version: u64,
    /// How long the instance rests if the try fails.
    rest_ms: u64,
    /// Why no instance gets it any more.
    refused: Option<Refusal>,
    /// The handle of the service that it is a request of.
    service: u32,
    /// Identities of the instances that it went to, by try: [`MAX_TRIES`] at the most.
    tried: SmallVec<[u64; 2]>,
}

/// The modes that a service can be served in; `fallback` is Lua's, `manual` the
/// operator's.
pub const MODES: [&str; 6] = ["live", "manual", "stale", "fallback", "static", "snapshot"];

/// A request that is to be sent somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// In memory: the same from its first try to its log phase.
    pub address: usize,
    /// It is another try.
    pub is_retry: bool,
    /// The status that the try before was answered with, where nginx moves on from it
    /// and does not call it a failure; else 0.
    pub moved_on_from: u16,
    /// How the try before failed, for who is told.
    pub failed_by: Refusal,
    /// The try before was a request to its instance, not a connection in vain, which
    /// costs no instance anything and is not paid for.
    pub has_reached: bool,
    /// `None` for one that will have a log phase; nginx gives subrequests none. One
    /// that will not is counted and is never in flight. As its end is not seen,
    /// nothing of it is kept: this is where it was sent so far, `$upstream_addr`.
    pub tried: Option<&'a [u8]>,
    /// A hash of what it is to be kept together by; `None` if it is not.
    pub key: Option<u64>,
    /// The rules whose conditions hold for it: bit 0 for the first.
    pub rules: u16,
}

/// Why a request went where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// Its instance's id; empty where there was none.
    pub instance: &'a str,
    /// The tries that it has had, this one included.
    pub tries: u32,
    /// One of [`MODES`].
    pub mode: &'static str,
    /// The rule that it went by, from 0.
    pub rule: Option<u32>,
    /// What decided.
    pub reason: Reason,
}

/// What decided on an instance, beside that another one failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The strategy, among all or those that no rule selects.
    Strategy,
    /// The strategy, among those of a rule.
    Rule,
    /// Too few are healthy for this one to be left out.
    Panic,
    /// There was none to send it to.
    Nothing,
}

/// What was chosen last.
#[derive(Debug, Clone, Copy)]
struct Last {
    service: u32,
    index: Option<usize>,
    /// Before it.
    tries: usize,
    rule: Option<usize>,
}

impl Default for Last {
    fn default() -> Self {
        Last { service: u32::MAX, index: None, tries: 0, rule: None }
    }
}

/// What a worker is to load before it can pick by the newest ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// The ranking alone, of instances that are at hand.
    Ranking,
    /// The instances and their ranking.
    Both,
}

/// A header of a response that holds a load report.
#[derive(Debug, Clone, Copy)]
pub enum ReportHeader<'a> {
    /// `endpoint-load-metrics`.
    Any(&'a [u8]),
    /// `endpoint-load-metrics-bin`.
    Binary(&'a [u8]),
}

/// What is left to do at a request's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    /// The response is to be looked at for a load report.
    Look,
    /// It is open still: how its last try ended is to be told in [`Tries`].
    Unclear,
}

/// Where a request goes.
#[derive(Debug, PartialEq)]
pub enum Choice<'a> {
    /// To this instance; `more_tries` is how often it may move on after it.
    Peer { host: &'a str, port: u16, more_tries: u32 },
    /// Load the service's values first, then ask again.
    Load,
    /// The request is open already, by an earlier choice: [`Worker::finish`] it as
    /// far as is known, then ask again.
    Open,
    /// There is no ranking of the service yet.
    Unranked,
    /// To nobody: it ends with this reason. The log is to have a line that tells of so
    /// many requests, unless that is 0.
    Refused { reason: Refusal, to_log: u64 },
}

impl Worker {
    /// A worker's state, with a row of its own on the board.
    pub fn new(board: Board, config: &Config, seed: u64) -> Self {
        let row = board.claim_row(std::process::id());
        Self::with(board, config, seed, row, HashMap::default(), Vec::new())
    }

    /// The same worker with another configuration: a process without a master
    /// reloads in place, with requests under way.
    /// Handles stay valid: its services keep their places.
    pub fn reconfigured(self, config: &Config, seed: u64) -> Self {
        let names = self.services.into_iter().map(|service| service.name).collect();
        Self::with(self.board, config, seed, self.row, self.flights, names)
    }

    fn with(
        board: Board,
        config: &Config,
        seed: u64,
        row: Option<RowId>,
        flights: Flights,
        mut names: Vec<String>,
    ) -> Self {
        let mut worker = Worker {
            board,
            row,
            services: Vec::new(),
            discover: config.discover.clone(),
            patience_ms: config.fallback.after_ms(),
            flights,
            last: Last::default(),
            looks_at: None,
            rng: SmallRng::seed_from_u64(seed),
        };
        let new = config.services.keys().filter(|name| !names.contains(name));
        names.extend(new.cloned().collect::<Vec<_>>());
        for name in &names {
            if let Some(id) = board.service(name) {
                let service = config.services.get(name).cloned().unwrap_or_default();
                worker.add(name, id, service);
            }
        }
        worker
    }

    fn add(&mut self, name: &str, id: ServiceId, config: ServiceConfig) -> u32 {
        self.services.push(Service {
            name: name.to_owned(),
            id,
            balance: config.balance,
            health: config.health,
            failure: Failure::new(&config.failure),
            view: None,
            attempted: 0,
            lacks_instances: false,
            failed: None,
        });
        self.services.len() as u32 - 1
    }

    /// The handle of a service, for the calls below: a configured one, or one
    /// that was discovered and published. Handles stay valid.
    pub fn service(&mut self, name: &str) -> Option<u32> {
        if let Some(known) = self.services.iter().position(|service| service.name == name) {
            return Some(known as u32);
        }
        let id = self.board.find_service(name).filter(|_| self.discover.allows(name))?;
        (self.board.version(id) > 0).then(|| self.add(name, id, ServiceConfig::default()))
    }

    /// The names of all services that this worker can serve.
    pub fn service_names(&mut self) -> Vec<String> {
        let published: Vec<String> = self.board.service_names().collect();
        for name in published {
            self.service(&name);
        }
        let mut names: Vec<_> = self.services.iter().map(|service| service.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// What of the service's values in the shared dict this worker is to load.
    pub fn due(&self, service: u32) -> Due {
        let Some(service) = self.services.get(service as usize) else { return Due::Nothing };
        let at_hand = service.view.as_ref().map(|view| view.peers.version);
        if self.board.version(service.id) <= service.attempted {
            Due::Nothing
        } else if !service.lacks_instances
            && at_hand == Some(self.board.instances_version(service.id))
        {
            Due::Ranking
        } else {
            Due::Both
        }
    }

    /// Takes in a service's values from the shared dict; `instances` is `None`
    /// where [`due`](Self::due) did not ask for them. On any error the worker
    /// keeps the view that it has, and the writer is told to store the values
    /// again; the same error is returned once, not for each attempt.
    ///
    /// # Errors
    /// What is wrong with the values.
    pub fn load(
        &mut self,
        service: u32,
        instances: Option<&[u8]>,
        ranking: &[u8],
    ) -> Result<(), ValueError> {
        let Some(service) = self.services.get_mut(service as usize) else { return Ok(()) };
        let announced = self.board.version(service.id);
        match service.view(self.board, instances, ranking, &mut self.rng) {
            Ok(Read::View(view)) => {
                // What is read may be newer than what was announced before.
                service.attempted = announced.max(view.version);
                service.view = Some(*view);
                service.lacks_instances = false;
                service.failed = None;
                Ok(())
            }
            // Until the next version is announced, there is no more to be had.
            Ok(Read::Overtaken { version }) => {
                service.attempted = service.attempted.max(version);
                Ok(())
            }
            Ok(Read::Lacking) => {
                service.lacks_instances = true;
                Ok(())
            }
            Err(error) => {
                service.attempted = announced;
                self.board.report_damaged(service.id, announced);
                if service.failed.as_ref() == Some(&error) {
                    return Ok(());
                }
                service.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Where a request goes next.
    pub fn balance(&mut self, service: u32, request: Request<'_>) -> Choice<'_> {
        if self.due(service) != Due::Nothing {
            return Choice::Load;
        }
        let now_ms = board::coarse_ms();
        self.end_try(&request, now_ms);
        let Some(known) = self.services.get_mut(service as usize) else { return Choice::Unranked };
        let Some(view) = &mut known.view else { return Choice::Unranked };

        let mut unlogged;
        // Without a try that failed, an open request was sent elsewhere by an internal
        // redirect, or its address was an earlier one's whose log phase never came (a
        // location without the hook). A retry that is not open was begun by Lua, which
        // knows what it tried.
        let flight = match (request.tried, self.flights.entry(request.address)) {
            (_, Entry::Occupied(_)) if !request.is_retry => return Choice::Open,
            (None, Entry::Vacant(_)) if request.is_retry => return Choice::Unranked,
            (None, flight) => flight.or_default(),
            (Some(addrs), _) => {
                unlogged = view.peers.flight_to(addrs);
                &mut unlogged
            }
        };
        self.last = Last { service, index: None, tries: flight.tried.len(), rule: None };
        let refuse = |flight: &mut Flight, reason| {
            flight.refused = Some(reason);
            let to_log = self.board.count_refusal(known.id, reason, now_ms);
            Choice::Refused { reason, to_log }
        };
        // nginx may move on from a refusal, too; that is no news.
        if let Some(reason) = flight.refused.filter(|_| request.is_retry) {
            return Choice::Refused { reason, to_log: 0 };
        }
        if request.is_retry && known.failure.mode == FailureMode::Failback {
            return refuse(flight, request.failed_by);
        }
        if flight.tried.len() >= MAX_TRIES {
            return refuse(flight, Refusal::AllTried);
        }

        let rules = match view.routes {
            None => 0,
            Some(_) => flight.rules_of(request, view.peers.version),
        };
        let mut now = Try {
            board: self.board,
            service: known.id,
            peers: &view.peers,
            records: &view.ranking.records,
            counted_weight: view.counted_weight,
            rounding: if view.counted_weight > 0.0 { self.rng.random() } else { 0.0 },
            tried: &flight.tried,
            key: request.key,
            now_ms,
            bars: Bars::new(self.board, known.id, view.known, now_ms),
        };
        let mut is_paid_for = !request.is_retry || !request.has_reached;
        let mut others = 0..OVERTAKEN;
        let (index, rule, open) = loop {
            let picked = reach::pick(&mut now, |now| {
                let routed = view.routes.as_mut().and_then(|it| it.pick(rules, now, &mut self.rng));
                routed.or_else(|| Some((view.picker.pick(now, &mut self.rng)?, None)))
            });
            let Some((index, rule)) = picked else {
                let reason = now.why_none();
                return refuse(flight, reason);
            };
            if !is_paid_for && !self.board.withdraw_retry(known.id, known.failure.budget) {
                return refuse(flight, Refusal::RetryBudget);
            }
            is_paid_for = true;
            // Not after the board's atomics, which no load overtakes.
            board::prefetch(&view.peers.targets[index]);
            let (slot, identity) = (view.peers.slots[index], view.peers.identities[index]);
            if request.tried.is_some() {
                self.board.count_request(slot, identity, now_ms);
                break (index, rule, Open::default());
            }
            let max =
                if view.known.is_limited { view.ranking.records[index].max_in_flight } else { 0 };
            if let Some(open) = self.board.begin_within(self.row, slot, identity, max, now_ms) {
                break (index, rule, open);
            }
            // Another worker was quicker: the next pick sees it full.
            if others.next().is_none() {
                return refuse(flight, Refusal::MaxInFlight);
            }
        };
        self.last = Last { service, index: Some(index), tries: flight.tried.len(), rule };
        if let (Some(rule), false) = (rule, request.is_retry)
            && let Some(counter) = view.peers.plan.counters[rule]
        {
            self.board.count_rule(known.id, counter);
        }

        let target = &view.peers.targets[index];
        flight.tried.push(view.peers.identities[index]);
        flight.open = open;
        flight.addr = Some(target.addr);
        flight.service = service;
        flight.rest_ms = known.failure.rest_ms;
        match request.is_retry {
            true => self.board.count_retry(known.id),
            false => self.board.deposit_retry(known.id, known.failure.budget),
        }
        let others = u32::try_from(view.peers.instances.len() - 1).unwrap_or(u32::MAX);
        Choice::Peer {
            host: target.host(),
            port: target.addr.port(),
            more_tries: match known.failure.mode {
                FailureMode::Failover | FailureMode::Failcache => known.balance.tries.min(others),
                FailureMode::Failfast => 0,
                FailureMode::Failback => 1, // in which the failure is told
            },
        }
    }

    /// Ends the try before this one, if there was one.
    fn end_try(&mut self, request: &Request<'_>, now_ms: u64) {
        if !request.is_retry || request.tried.is_some() {
            return;
        }
        let Some(flight) = self.flights.get_mut(&request.address) else { return };
        let (service, rest_ms) = (flight.service, flight.rest_ms);
        let open = std::mem::take(&mut flight.open);
        let outcome = match request.moved_on_from {
            0 => Outcome::Failed,
            status => outcome_for(&self.services, service, status),
        };
        self.end_open(service, open, rest_ms, outcome, now_ms);
    }

    /// Ends a request: counts how its last try ended, by nginx's final status of the
    /// whole request, 0 where it has none. A request that was not balanced here is none
    /// of ours.
    pub fn finish(&mut self, request: usize, status: u16) -> End {
        let Entry::Occupied(flight) = self.flights.entry(request) else { return End::Done };
        let outcome = outcome_for(&self.services, flight.get().service, status);
        if self.board.is_unclear(&flight.get().open, outcome) {
            return End::Unclear;
        }
        let flight = flight.remove();
        self.end(flight, outcome)
    }

    /// The same by what it says of each of its tries: the last one of ours counts as
    /// that ended, or as the request did where its own end is not told. It counts for
    /// nothing if it went elsewhere, such as to where requests are refused.
    pub fn finish_by_tries(&mut self, request: usize, status: u16, tries: &Tries<'_>) -> End {
        let Some(mut flight) = self.flights.remove(&request) else { return End::Done };
        let outcome = outcome_for(&self.services, flight.service, status);
        let service = self.services.get(flight.service as usize);
        let told = service
            .zip(flight.addr)
            .and_then(|(service, addr)| tries.last_to(addr, &service.health.failures));
        if let Some(at_most_ms) = told.and_then(|told| told.at_most_ms) {
            flight.open.took_at_most(at_most_ms);
        }
        let outcome = told.map_or(Outcome::Unseen, |told| told.outcome.unwrap_or(outcome));
        self.end(flight, outcome)
    }

    fn end(&mut self, flight: Flight, outcome: Outcome) -> End {
        let now_ms = board::coarse_ms();
        let slot = flight.open.slot();
        self.end_open(flight.service, flight.open, flight.rest_ms, outcome, now_ms);
        let is_due = outcome == Outcome::Answered && self.board.is_look_due(slot, now_ms);
        self.looks_at = flight.addr.filter(|_| is_due).map(|addr| (slot, addr));
        if is_due { End::Look } else { End::Done }
    }

    fn end_open(&mut self, service: u32, open: Open, rest_ms: u64, outcome: Outcome, now_ms: u64) {
        let who = (open.slot(), open.identity());
        rest(self.board, &open, rest_ms, outcome, now_ms);
        self.board.end_request(self.row, open, outcome, now_ms);
        if outcome == Outcome::Failed {
            self.suspect(service, who, now_ms);
        }
    }

    /// Ejects an instance that has failed, if it did so too often in a row.
    #[cold]
    fn suspect(&mut self, service: u32, who: (u32, u64), now_ms: u64) {
        let Some(service) = self.services.get(service as usize) else { return };
        let Some(view) = &service.view else { return };
        let count = view.peers.instances.len();
        health::suspect(self.board, &service.health, who, count, now_ms, &mut self.rng);
    }

    /// Takes in the load report in the response of the request that was finished
    /// last, if that came from the last of `addrs`, nginx's `$upstream_addr`
    /// (`10.0.0.5:8080, 10.0.0.6:8080 : 10.0.0.7:8080`): it is another one where a
    /// redirection or the fallback chose it.
    ///
    /// # Errors
    /// Why it was refused, where that is to be logged; else it is counted alone.
    pub fn report(&mut self, addrs: &[u8], header: ReportHeader<'_>) -> Result<(), HeaderError> {
        let Some((slot, from)) = self.looks_at.take() else { return Ok(()) };
        let last = addrs.rsplit(|byte| b", ".contains(byte)).next();
        if last.and_then(|addr| str::from_utf8(addr).ok()?.parse().ok()) != Some(from) {
            return Ok(());
        }
        let now_ms = board::coarse_ms();
        let figures = match header {
            ReportHeader::Any(value) => orca::parse_header(value),
            ReportHeader::Binary(value) => orca::parse_binary_header(value),
        };
        match figures {
            Ok(figures) => self.board.put_report(slot, figures, now_ms),
            Err(error) if self.board.count_malformed_report(now_ms) => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    /// The rules of a service, as JSON; `None` where it has none.
    pub fn rules(&self, service: u32) -> Option<String> {
        let view = self.services.get(service as usize)?.view.as_ref()?;
        let rules = &view.peers.plan.rules;
        if rules.is_empty() { None } else { serde_json::to_string(rules).ok() }
    }

    /// Why the last request went where it did; `None` before the first one.
    pub fn explain(&self, now_ms: u64) -> Option<Explanation<'_>> {
        let Last { service, index, tries, rule } = self.last;
        let tries = tries as u32;
        let view = self.services.get(service as usize)?.view.as_ref()?;
        let mode = self.mode_of(view, now_ms);
        let Some(index) = index else {
            let reason = Reason::Nothing;
            return Some(Explanation { instance: "", tries, mode, rule: None, reason });
        };
        let record = view.ranking.records.get(index)?;
        let reason = match record.state {
            State::Ejected | State::Failing if record.factor > 0.0 => Reason::Panic,
            _ if rule.is_some() => Reason::Rule,
            _ => Reason::Strategy,
        };
        Some(Explanation {
            instance: &view.peers.instances.get(index)?.id,
            tries: tries + 1,
            mode,
            rule: rule.map(|rule| rule as u32),
            reason,
        })
    }

    /// Asks the plugin's thread to explain `n` of a service's instances; whether there
    /// is such a service.
    pub fn ask(&self, service: u32, n: u32) -> bool {
        let service = self.services.get(service as usize);
        if let Some(service) = service {
            self.board.ask(service.id, n);
        }
        service.is_some()
    }

    fn mode_of(&self, view: &View, now_ms: u64) -> &'static str {
        match self.mode(now_ms) {
            "live" if view.peers.is_manual() => "manual",
            mode => mode,
        }
    }

    /// How fresh the rankings are, see [`SourceState::mode`](board::SourceState::mode).
    pub fn mode(&self, now_ms: u64) -> &'static str {
        self.board.source().mode(now_ms, self.patience_ms)
    }

    /// `fallback.after` of the configuration.
    pub fn patience_ms(&self) -> u32 {
        self.patience_ms
    }

    /// The board that this worker counts on.
    pub fn board(&self) -> Board {
        self.board
    }
}

/// How a try with this status ended, by what the service of this handle calls a
/// failure.
fn outcome_for(services: &[Service], service: u32, status: u16) -> Outcome {
    let service = services.get(service as usize);
    service.map_or(Outcome::Unseen, |it| outcome_of(status, &it.health.failures))
}

/// An instance whose try failed rests, if it is to.
pub(crate) fn rest(board: Board, last: &Open, rest_ms: u64, outcome: Outcome, now_ms: u64) {
    if rest_ms > 0 && outcome == Outcome::Failed {
        board.rest(last, now_ms + rest_ms);
    }
}

impl Failure {
    pub fn new(config: &FailureConfig) -> Self {
        let rest_ms = match config.mode {
            FailureMode::Failcache => u64::try_from(config.rest.as_millis()).unwrap_or(u64::MAX),
            _ => 0,
        };
        Failure { mode: config.mode, rest_ms, budget: Budget::new(&config.budget) }
    }
}

impl Flight {
    /// The rules that take the request: those of its first try, unless the rules are
    /// others since, for a percentage may go by chance.
    #[cold]
    fn rules_of(&mut self, request: Request<'_>, version: u64) -> Rules {
        if !request.is_retry || self.rules_version != version {
            (self.rules, self.rules_version) = (request.rules, version);
        }
        self.rules
    }
}

/// Spreads the addresses of requests, which are aligned and close together.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_usize(byte.into());
        }
    }

    fn write_usize(&mut self, address: usize) {
        // Fibonacci hashing: 2^64 over the golden ratio.
        let spread = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
