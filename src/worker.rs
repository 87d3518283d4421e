//! One worker's side: its views of the rankings, its pickers, and the requests
//! that it has under way. All on nginx's event loop, so nothing here blocks.

pub(crate) mod reach;
mod routes;
mod tries;

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;

pub use tries::Tries;
use tries::outcome_of;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use routes::{Plan, Routes, Rules};
use serde::Serialize;
use smallvec::SmallVec;

use self::reach::{Bars, Known, Try};
use crate::board::{self, Board, Budget, NO_SLOT, Open, Outcome, Refusal, RowId, ServiceId};
use crate::config::{
    BalanceConfig, Config, Discover, FailureConfig, FailureMode, HealthConfig, Rule, ServiceConfig,
    Strategy,
};
use crate::health;
use crate::picker::{self, Memory, Picker, Ranked};
use crate::ranking::{Basis, State};
use crate::snapshot::unix_ms;
use crate::value::{
    self, ControlValue, InstanceValue, RankingValue, Record, ServiceValue, ValueError,
};
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

/// One version of a service's ranking, made ready to pick from.
struct View {
    version: u64,
    peers: Peers,
    ranking: RankingValue,
    picker: Picker,
    /// The weight of all instances whose requests in flight are counted; 0 where
    /// none is without a slot.
    counted_weight: f64,
    /// So many may be ejected until there is a panic; `None` if there is one.
    most_ejected: Option<u32>,
    /// Where there are rules.
    routes: Option<Box<Routes>>,
    /// Whether any of its instances has a limit of requests in flight.
    is_limited: bool,
    /// Whether no instance has a weight, so that all are alike.
    is_weightless: bool,
}

/// The instances of one version, kept from ranking to ranking.
struct Peers {
    version: u64,
    /// The operator's, in place of the configured one.
    strategy: Option<Strategy>,
    control: Option<ControlValue>,
    plan: Plan,
    instances: Vec<InstanceValue>,
    targets: Vec<Target>,
    /// Close together: a pick looks at two that are far apart otherwise.
    slots: Vec<u32>,
    identities: Vec<u64>,
    priors: Vec<f64>,
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

/// What the board counts for one instance, of all workers of this host.
pub struct Counters<'a> {
    pub service: &'a str,
    pub instance: &'a str,
    pub requests: u64,
    /// Tries that failed.
    pub failed: u64,
    pub in_flight: u32,
    /// Mean time of its answers over the last second, in milliseconds.
    pub latency_ms: Option<f32>,
}

/// What the board and a view tell of a service's health.
pub struct ServiceHealth<'a> {
    pub service: &'a str,
    /// So far, by reason.
    pub ejections:
        std::iter::Zip<std::array::IntoIter<board::Reason, 3>, std::array::IntoIter<u64, 3>>,
    pub ejected: u32,
    pub is_panic: bool,
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
        let beforehand = Known {
            is_limited: view.is_limited,
            has_rests: known.failure.rest_ms > 0,
            is_weightless: view.is_weightless,
            most_ejected: view.most_ejected,
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
            bars: Bars::new(self.board, known.id, beforehand, now_ms),
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
            let max = if view.is_limited { view.ranking.records[index].max_in_flight } else { 0 };
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

    /// The best `n` of a service as the HTTP API shows them, as JSON. `None`
    /// while this worker has no ranking of it.
    pub fn best(&self, service: u32, n: usize, now_ms: u64) -> Option<String> {
        let service = self.services.get(service as usize)?;
        let view = service.view.as_ref()?;
        let source = self.board.source();
        let total: f64 = view.ranking.records.iter().map(|record| record.weight).sum();
        let mut order: Vec<usize> = Vec::new();
        if n > 0 {
            order.extend(0..view.ranking.records.len());
            order.sort_unstable_by_key(|&index| view.ranking.records[index].rank);
        }
        let instances = order.into_iter().take(n).map(|index| {
            let (instance, record) = (&view.peers.instances[index], &view.ranking.records[index]);
            InstanceView {
                id: &instance.id,
                addr: instance.addr,
                zone: &instance.zone,
                rank: record.rank + 1,
                score: record.score,
                weight: record.weight,
                share: if total > 0.0 { record.weight / total } else { 0.0 },
                in_flight: self.board.in_flight(instance.slot),
                max_in_flight: record.max_in_flight,
                state: record.state.as_str(),
            }
        });
        let view = ServiceView {
            service: &service.name,
            mode: self.mode_of(view, now_ms),
            strategy: view.peers.strategy.unwrap_or(service.balance.strategy).as_str(),
            control: view.peers.control.as_ref(),
            rules: self.rule_counts(service, view),
            basis: view.ranking.basis.as_str(),
            panic: view.ranking.is_panic(),
            version: view.version,
            revision: source.revision,
            age_ms: match source.restored_as_of_ms {
                as_of_ms if as_of_ms != 0 && !source.synced => unix_ms().saturating_sub(as_of_ms),
                _ => now_ms.saturating_sub(view.ranking.published_ms.max(source.confirmed_ms)),
            },
            count: view.ranking.records.len(),
            zones: view.zones().into_iter().map(|(zone, share)| ZoneView { zone, share }).collect(),
            instances: instances.collect(),
        };
        serde_json::to_string(&view).ok()
    }

    fn mode_of(&self, view: &View, now_ms: u64) -> &'static str {
        match self.mode(now_ms) {
            "live" if view.peers.is_manual() => "manual",
            mode => mode,
        }
    }

    fn rule_counts<'a>(&self, service: &Service, view: &'a View) -> Vec<RuleView<'a>> {
        let plan = &view.peers.plan;
        let of = |(index, rule)| RuleView {
            rule,
            selected: plan.selected(index),
            requests: plan.counters[index].map_or(0, |id| self.board.rule_requests(service.id, id)),
        };
        plan.rules.iter().enumerate().map(of).collect()
    }

    /// Service, rule and requests of each rule in force that is counted.
    pub fn rule_requests(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let with_view = self.services.iter().filter_map(|it| Some((it, it.view.as_ref()?)));
        with_view.flat_map(|(service, view)| {
            let plan = &view.peers.plan;
            plan.rules.iter().zip(&plan.counters).filter_map(|(rule, counter)| {
                let requests = self.board.rule_requests(service.id, (*counter)?);
                Some((service.name.as_str(), rule.name.as_str(), requests))
            })
        })
    }

    /// How fresh the rankings are, see [`SourceState::mode`](board::SourceState::mode).
    pub fn mode(&self, now_ms: u64) -> &'static str {
        self.board.source().mode(now_ms, self.patience_ms)
    }

    /// `fallback.after` of the configuration.
    pub fn patience_ms(&self) -> u32 {
        self.patience_ms
    }

    /// The counters of each instance in this worker's views.
    pub fn counters(&self) -> impl Iterator<Item = Counters<'_>> {
        self.services.iter().flat_map(|service| {
            let instances = service.view.iter().flat_map(|view| &view.peers.instances);
            instances.map(|instance| {
                let (requests, failed) = self.board.counters(instance.slot);
                Counters {
                    service: &service.name,
                    instance: &instance.id,
                    requests,
                    failed,
                    in_flight: self.board.in_flight(instance.slot),
                    latency_ms: self.board.latency_ms(instance.slot),
                }
            })
        })
    }

    /// Version and time of publishing of each service's view.
    pub fn versions(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.services.iter().filter_map(|service| {
            let view = service.view.as_ref()?;
            Some((service.name.as_str(), view.version, view.ranking.published_ms))
        })
    }

    /// Each service's tries that were not their request's first, and the requests that
    /// were refused, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (&str, u64, Vec<(Refusal, u64)>)> {
        self.services.iter().map(|service| {
            let refusals = self.board.refusals(service.id).collect();
            (service.name.as_str(), self.board.retries(service.id), refusals)
        })
    }

    /// What each service's view rests on.
    pub fn bases(&self) -> impl Iterator<Item = (&str, Basis)> {
        self.services.iter().filter_map(|service| {
            Some((service.name.as_str(), service.view.as_ref()?.ranking.basis))
        })
    }

    /// What became of each service's instances by their health, and whether its view is
    /// one of a panic.
    pub fn health(&self) -> impl Iterator<Item = ServiceHealth<'_>> {
        self.services.iter().map(|service| ServiceHealth {
            service: &service.name,
            ejections: board::Reason::ALL.into_iter().zip(self.board.ejections(service.id)),
            ejected: self.board.ejected(service.id),
            is_panic: service.view.as_ref().is_some_and(|view| view.ranking.is_panic()),
        })
    }

    /// Each zone's share of the traffic of each service: service, zone, 0 to 1. None of
    /// services whose instances say no zone.
    pub fn zones(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.services.iter().flat_map(|service| {
            let zones = service.view.iter().flat_map(View::zones);
            zones.map(|(zone, share)| (service.name.as_str(), zone, share))
        })
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

/// What a worker found in the shared dict.
enum Read {
    View(Box<View>),
    /// The instances have changed since they were not asked for: both are due.
    Lacking,
    /// The writer is about to store the ranking that goes with the instances; the
    /// one that was read is of this version.
    Overtaken {
        version: u64,
    },
}

impl Service {
    /// What two values make. Instances of a version that is at hand already are
    /// not decoded again.
    fn view(
        &mut self,
        board: Board,
        instances: Option<&[u8]>,
        ranking: &[u8],
        rng: &mut SmallRng,
    ) -> Result<Read, ValueError> {
        let (version, body) = value::open(ranking)?;
        let ranking = RankingValue::decode(body)?;
        let wanted = ranking.instances_version;
        let at_hand = self.view.as_ref().is_some_and(|view| view.peers.version == wanted);
        let decoded = match instances {
            _ if at_hand => None,
            None => return Ok(Read::Lacking),
            Some(instances) => match value::open(instances)? {
                (found, body) if found == wanted => {
                    Some(Peers::new(self, board, found, ServiceValue::decode(body)?))
                }
                (found, _) if found > wanted => return Ok(Read::Overtaken { version }),
                (found, _) => return Err(ValueError::Mismatch { wanted, found }),
            },
        };
        let known = decoded.as_ref().or(self.view.as_ref().map(|view| &view.peers));
        let count = known.map_or(0, |peers| peers.instances.len());
        if count != ranking.records.len() {
            let what = format!("{} records for {count} instances", ranking.records.len());
            return Err(ValueError::Body(what));
        }
        let (known, memory, routes) = match self.view.take() {
            Some(view) => (Some(view.peers), view.picker.into_memory(), view.routes),
            None => (None, Memory::Nothing, None),
        };
        let is_same_plan = decoded
            .as_ref()
            .zip(known.as_ref())
            .is_none_or(|(new, old)| new.plan.rules == old.plan.rules);
        let memories = routes.filter(|_| is_same_plan).map(|routes| routes.into_memories());
        let peers = decoded.or(known).ok_or(ValueError::Missing)?;
        let ranked = Ranked {
            identities: &peers.identities,
            priors: &governed_priors(&peers.priors, &ranking.records),
            records: &ranking.records,
            own_part: ranking.own_part,
            rate_per_s: ranking.rate_per_s,
        };
        let configured = &self.balance;
        let strategy = peers.strategy.unwrap_or(configured.strategy);
        let balance = BalanceConfig { strategy, ..configured.clone() };
        let picker = picker::rebuild(&balance, ranked, memory, rng);
        let memories = memories.unwrap_or_default();
        let routes = Routes::new(&peers.plan, &balance, ranked, memories, rng).map(Box::new);
        let counted_weight = if peers.slots.contains(&NO_SLOT) {
            let records = ranking.records.iter().zip(&peers.slots);
            records.filter(|(_, slot)| **slot != NO_SLOT).map(|(record, _)| record.weight).sum()
        } else {
            0.0
        };
        let most_ejected = most_ejected(&peers.priors, &ranking, self.health.panic);
        let is_limited = ranking.records.iter().any(|record| record.max_in_flight > 0);
        let is_weightless = ranking.records.iter().all(|record| record.weight == 0.0);
        Ok(Read::View(Box::new(View {
            version,
            peers,
            ranking,
            picker,
            counted_weight,
            most_ejected,
            routes,
            is_limited,
            is_weightless,
        })))
    }
}

/// How many may be ejected until there is a panic; `None` if there is one.
pub(crate) fn most_ejected(
    priors: &[f64],
    ranking: &RankingValue,
    panic_percent: u32,
) -> Option<u32> {
    if ranking.is_panic() {
        return None;
    }
    let offered = priors.iter().zip(&ranking.records).filter(|(prior, _)| **prior > 0.0);
    let failing = offered.clone().filter(|(_, record)| record.state == State::Failing).count();
    health::most_without_panic(offered.count(), failing, panic_percent)
}

impl View {
    /// Each zone's share of the weights; none if no instance says its zone.
    fn zones(&self) -> BTreeMap<&str, f64> {
        let instances = || self.peers.instances.iter().zip(&self.ranking.records);
        let mut zones = BTreeMap::new();
        if instances().all(|(instance, _)| instance.zone.is_empty()) {
            return zones;
        }
        // Divided first, so that no sum of finite weights overflows.
        let most = instances().map(|(_, record)| record.weight).fold(f64::MIN_POSITIVE, f64::max);
        let sum: f64 = instances().map(|(_, record)| record.weight / most).sum();
        for (instance, record) in instances() {
            let share = if sum > 0.0 { record.weight / most / sum } else { 0.0 };
            *zones.entry(instance.zone.as_str()).or_default() += share;
        }
        zones
    }
}

/// The fallback weights, with all that governs them: by steps, so that the keys of a
/// consistent hash do not wander with each change of a factor.
pub(crate) fn governed_priors<'a>(priors: &'a [f64], records: &[Record]) -> Cow<'a, [f64]> {
    if records.iter().all(|record| record.factor == 1.0) {
        return Cow::Borrowed(priors);
    }
    let governed = priors.iter().zip(records);
    governed.map(|(prior, record)| prior * stepped(f64::from(record.factor))).collect()
}

/// The nearest power of the square root of 2, by which a factor is off by 19 % at the
/// most; 0 stays 0.
fn stepped(factor: f64) -> f64 {
    (2.0 * factor.log2()).round().mul_add(0.5, 0.0).exp2()
}

impl Peers {
    fn new(service: &Service, board: Board, version: u64, value: ServiceValue) -> Self {
        let ServiceValue { strategy, control, rules, groups, instances, .. } = value;
        let identity = |i: &InstanceValue| board::identity(&service.name, &i.id, &i.addr);
        let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let counters = board.rules(service.id, &names);
        Peers {
            version,
            strategy,
            control,
            plan: Plan { rules, counters, groups },
            targets: instances.iter().map(|instance| Target::new(&instance.addr)).collect(),
            slots: instances.iter().map(|instance| instance.slot).collect(),
            identities: instances.iter().map(identity).collect(),
            priors: instances.iter().map(|instance| instance.weight).collect(),
            instances,
        }
    }

    fn is_manual(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.is_manual)
    }

    /// What a request was sent to of these instances, by `$upstream_addr`.
    fn flight_to(&self, addrs: &[u8]) -> Flight {
        let mut flight = Flight::default();
        for addr in tries::addrs(addrs).take(MAX_TRIES) {
            if let Some(index) = self.targets.iter().position(|target| target.addr == addr) {
                flight.tried.push(self.identities[index]);
            }
        }
        flight
    }
}

/// Where an instance is, in one piece, and that of IPv4 in one cache line: a pick among
/// thousands waits for memory.
#[repr(C, align(64))]
struct Target {
    addr: SocketAddr,
    /// The host as `set_current_peer` wants it, and its length.
    host_len: u8,
    host: [u8; Self::MAX_HOST],
}

impl Target {
    /// `[`, eight groups of four, and `]`.
    const MAX_HOST: usize = 41;

    fn new(addr: &SocketAddr) -> Self {
        let text = match addr {
            SocketAddr::V4(addr) => addr.ip().to_string(),
            SocketAddr::V6(addr) => format!("[{}]", addr.ip()),
        };
        let mut host = [0; Self::MAX_HOST];
        let host_len = text.len().min(Self::MAX_HOST);
        host[..host_len].copy_from_slice(&text.as_bytes()[..host_len]);
        Target { addr: *addr, host, host_len: host_len as u8 }
    }

    fn host(&self) -> &str {
        str::from_utf8(&self.host[..usize::from(self.host_len)]).unwrap_or_default()
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

/// The object of `GET /ipconfig/v1/services/<service>`.
#[derive(Serialize)]
struct ServiceView<'a> {
    service: &'a str,
    mode: &'static str,
    strategy: &'static str,
    /// The operator's hand; left out where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<&'a ControlValue>,
    /// Left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleView<'a>>,
    basis: &'static str,
    /// Left out where there is none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    panic: bool,
    version: u64,
    revision: i64,
    age_ms: u64,
    count: usize,
    /// Left out where no instance says its zone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zones: Vec<ZoneView<'a>>,
    instances: Vec<InstanceView<'a>>,
}

/// A rule, beside the instances that it selects and the requests that it took.
#[derive(Serialize)]
struct RuleView<'a> {
    #[serde(flatten)]
    rule: &'a Rule,
    selected: usize,
    requests: u64,
}

#[derive(Serialize)]
struct ZoneView<'a> {
    zone: &'a str,
    share: f64,
}

#[derive(Serialize)]
struct InstanceView<'a> {
    id: &'a str,
    addr: SocketAddr,
    zone: &'a str,
    rank: u32,
    score: f64,
    weight: f64,
    share: f64,
    in_flight: u32,
    /// Left out where there is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    max_in_flight: u32,
    state: &'static str,
}

fn is_zero(limit: &u32) -> bool {
    *limit == 0
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

#[cfg(test)]
mod tests;
