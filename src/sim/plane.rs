//! What is ours in a gateway: from what etcd holds to pickers, as the plugin's
//! thread and the workers do it.
//!
//! All that the simulation knows of the way from a report to a choice is here.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::agenda::Ns;
use super::fleet::View;
use super::host::Host;
use super::live::Seen;
use super::policy::{Outcome, World};
use super::scenario::{Governed, Scenario};
use super::server::Server;
use crate::config::{BalanceConfig, Config, ExporterConfig, Strategy, WindowConfig};
use crate::govern::{self, Course, Facts, Gateway, Terms};
use crate::model::{Instance, StatusProtocol, StatusUrl};
use crate::picker::{self, Live, Moment, Picker, Ranked};
use crate::ranking::{self, Ranking};
use crate::registry::Registry;
use crate::value::Record;
use crate::watcher::{Event, WatchState};
use crate::worker::governed_priors;
use crate::worker::reach::{self, Barred, Bars};
use crate::{board, publish, wire};

/// The service that all servers serve.
pub const SERVICE: &str = "simulated";

/// The simulation begins when clocks have run for so long, so that one may jump
/// back.
const CLOCK_START: Duration = Duration::from_secs(7200);

/// A gateway's registry and its ranking in force.
pub struct Plane {
    registry: Registry,
    started: Instant,
    ranking: Option<Ranking>,
    ranked: RankedServers,
    terms: Terms,
    course: Course,
    /// Where the scenario governs the service.
    pub host: Option<Host>,
    /// Others than before are ejected.
    is_due: bool,
}

/// What pickers are built from, and what they answer with.
#[derive(Default)]
struct RankedServers {
    /// The server by the picker's index.
    servers: Vec<u32>,
    identities: Vec<u64>,
    priors: Vec<f64>,
    records: Vec<Record>,
}

impl Plane {
    /// That of a gateway, which knows nothing but the time. `rng` is drawn from only
    /// where the service is governed.
    pub fn new(scenario: &Scenario, gateway: u32, strategy: Strategy, rng: &mut SmallRng) -> Self {
        let governed = scenario.service.as_ref();
        let mut service = governed.map(Governed::config).unwrap_or_default();
        service.balance = BalanceConfig { strategy, ..BalanceConfig::default() };
        let zones = &scenario.gateways.zones;
        let zone = scenario.gateways.zone_of(gateway).map(|zone| zones[zone].clone());
        let me = Gateway::new(&format!("gateway-{gateway}"), zone.unwrap_or_default());
        let terms = Terms::new(&service, &me);
        let host = governed.map(|_| Host::new(&service, SmallRng::from_rng(rng)));
        let reports = &scenario.reports;
        let interval = reports.interval;
        let config = Config {
            window: reports.window.clone().unwrap_or_else(|| window_for(interval)),
            services: BTreeMap::from([(SERVICE.to_owned(), service)]),
            exporter: ExporterConfig { interval, ..ExporterConfig::default() },
            ..Config::default()
        };
        let started = Instant::now();
        let registry = Registry::new(&config, started);
        Self {
            registry,
            started,
            ranking: None,
            ranked: RankedServers::default(),
            terms,
            course: Course::default(),
            host,
            is_due: false,
        }
    }

    /// Takes in what the watch tells. `clock` is the gateway's own.
    pub fn apply(&mut self, event: &Event, clock: i64) {
        self.registry.apply(event, self.instant(clock));
    }

    /// The watch is lost.
    pub fn lose(&mut self, clock: i64) {
        self.apply(&Event::State(WatchState::Backoff), clock);
    }

    /// A list of all there is, and a watch from then on.
    pub fn list(&mut self, all: &[Event], revision: i64, clock: i64) {
        let begin = [Event::State(WatchState::Listing), Event::Init];
        let end = [Event::InitDone { revision }, Event::State(WatchState::Watching)];
        for event in begin.iter().chain(all).chain(&end) {
            self.apply(event, clock);
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, clock: i64, now: Ns) {
        self.registry.tick(self.instant(clock));
        if let Some(host) = &mut self.host {
            host.round(host_ms(now));
        }
    }

    /// A beat of the plugin's thread.
    pub fn beat(&mut self, now: Ns) {
        if let Some(host) = &mut self.host {
            self.is_due |= host.beat(host_ms(now));
        }
    }

    /// Ranks anew if something has changed; whether it did. `seen` is what the
    /// gateway has seen of each server.
    pub fn rank(&mut self, clock: i64, now: Ns, seen: &[Seen]) -> bool {
        let is_moving = self.course.is_moving()
            || self.ranking.as_ref().is_some_and(|ranking| ranking.is_moving);
        let is_due = std::mem::take(&mut self.is_due);
        if self.registry.take_dirty().is_empty() && !is_moving && !is_due {
            return false;
        }
        self.registry.take_urgent();
        let host_ms = host_ms(now);
        let now = self.instant(clock);
        let now_ms = u64::try_from((now - self.started).as_millis()).unwrap_or(u64::MAX);
        let has_synced = self.registry.has_synced();
        let Some(reading) = self.registry.service(SERVICE, now) else { return false };
        self.course.see(&reading.members, &self.terms, has_synced, now_ms);
        let observed: Vec<_> = reading
            .members
            .iter()
            .map(|member| seen[number_of(&member.instance.id) as usize].observed())
            .collect();
        let scorer = &reading.config.score;
        let ranking =
            ranking::rank(&reading.members, scorer, &observed, self.ranking.as_ref(), now_ms);
        let mut ranked = RankedServers::default();
        let (facts, panic_percent) = match &self.host {
            Some(host) => (host.facts(&ranking), host.panic_percent()),
            None => (vec![Facts::default(); ranking.entries.len()], 0),
        };
        let mut governed = govern::govern(&ranking, reading.control, &facts, panic_percent);
        self.course.steer(&mut governed, &self.terms, now_ms);
        if let Some(host) = &mut self.host {
            host.publish(&governed, host_ms);
        }
        for (share, record) in publish::by_id(&governed) {
            let entry = share.entry;
            ranked.servers.push(number_of(&entry.id));
            ranked.identities.push(board::identity(SERVICE, &entry.id, &entry.addr));
            ranked.priors.push(share.prior);
            ranked.records.push(record);
        }
        self.ranked = ranked;
        self.ranking = Some(ranking);
        true
    }

    /// A worker's picker over the ranking in force, in place of its last one.
    pub fn picker(
        &self,
        balance: &BalanceConfig,
        last: Option<Picker>,
        rng: &mut SmallRng,
    ) -> Picker {
        let RankedServers { identities, priors, records, .. } = &self.ranked;
        let (own_part, rate_per_s) =
            self.ranking.as_ref().map_or((0.0, 0.0), |it| (it.own_part, it.rate_per_s));
        let priors = &governed_priors(priors, records);
        let ranked = Ranked { identities, priors, records, own_part, rate_per_s };
        let memory = last.map_or_else(Default::default, |last| last.into_memory());
        picker::rebuild(balance, ranked, memory, rng)
    }

    /// The server that a worker's picker chooses.
    pub fn pick(&self, by: &mut Picker, view: &View<'_>, rng: &mut SmallRng) -> Option<usize> {
        let now_ms = host_ms(view.fleet.now);
        let bars = self.host.as_ref().map(|host| host.bars(now_ms)).unwrap_or_default();
        let mut now = Now { view, plane: self, bars, now_ms };
        let index = reach::pick(&mut now, |now| by.pick(now, rng))?;
        self.ranked.servers.get(index).map(|server| *server as usize)
    }

    /// A try of a request begins on a server that was picked.
    pub fn begin(&mut self, request: u32, server: u32, now: Ns) {
        let RankedServers { servers, identities, .. } = &self.ranked;
        if let Some(host) = &mut self.host
            // By id, they are by number.
            && let Ok(index) = servers.binary_search(&server)
        {
            host.begin(request, index, identities[index], host_ms(now));
        }
    }

    /// A try of a request ends.
    pub fn end(&mut self, request: u32, outcome: Outcome, now: Ns) {
        if let Some(host) = &mut self.host {
            host.end(request, outcome, host_ms(now));
        }
    }

    /// The gateway's part of the fleet's requests, as of the ranking in force.
    #[cfg(test)]
    pub fn own_part(&self) -> f64 {
        self.ranking.as_ref().map_or(0.0, |ranking| ranking.own_part)
    }

    fn instant(&self, clock: i64) -> Instant {
        let start_ns = CLOCK_START.as_nanos() as i64;
        self.started + Duration::from_nanos(u64::try_from(start_ns + clock).unwrap_or(0))
    }
}

/// The default window, or one of five buckets in which two reports have room, which
/// the configuration demands.
fn window_for(interval: Duration) -> WindowConfig {
    let default = WindowConfig::default();
    WindowConfig { bucket: default.bucket.max(2 * interval / default.buckets), ..default }
}

/// The host's clock, which nobody sets.
fn host_ms(now: Ns) -> u64 {
    CLOCK_START.as_millis() as u64 + now / 1_000_000
}

/// A server's id.
pub fn id_of(server: u32) -> String {
    format!("s{server:05}") // ordered as the numbers are
}

/// A server as it registers.
fn instance(server: u32, it: &Server) -> Instance {
    let [_, a, b, c] = server.to_be_bytes();
    Instance {
        id: id_of(server),
        addr: SocketAddr::from((Ipv4Addr::new(10, a, b, c), 80)),
        weight: it.weight,
        zone: it.zone.clone(),
        labels: BTreeMap::new(),
        status: Some(StatusUrl {
            protocol: StatusProtocol::Grpc,
            tls: false,
            authority: format!("10.{a}.{b}.{c}:90"),
        }),
        drain: false,
        max_in_flight: 0,
    }
}

fn number_of(id: &str) -> u32 {
    id.trim_start_matches('s').parse().unwrap_or_default()
}

/// What etcd says of a server that registered.
pub fn registered(server: u32, it: &Server, revision: i64) -> Event {
    let instance = instance(server, it);
    Event::Put {
        key: key_of(&instance.id),
        value: wire::encode_instance(&instance),
        mod_revision: revision,
    }
}

/// What etcd says of a server that deregistered.
pub fn deregistered(server: u32, revision: i64) -> Event {
    Event::Delete { key: key_of(&id_of(server)), mod_revision: revision }
}

fn key_of(id: &str) -> Vec<u8> {
    let key = wire::Key::Instance { service: SERVICE.to_owned(), id: id.to_owned() };
    key.to_path(&Config::default().etcd.prefix).into_bytes()
}

/// The key under which an exporter writes.
pub fn status_key(exporter: u32) -> Vec<u8> {
    let key = wire::Key::Status {
        exporter: format!("exporter-{exporter}"),
        service: SERVICE.to_owned(),
        shard: 0,
    };
    key.to_path(&Config::default().etcd.prefix).into_bytes()
}

/// What a picker asks of the moment.
struct Now<'a> {
    view: &'a View<'a>,
    plane: &'a Plane,
    bars: Bars,
    now_ms: u64,
}

impl Now<'_> {
    fn server(&self, index: usize) -> usize {
        self.plane.ranked.servers[index] as usize
    }

    fn is_kept_from(&self, index: usize) -> bool {
        let record = &self.plane.ranked.records[index];
        let host = self.plane.host.as_ref();
        host.is_some_and(|host| host.keeps_from(self.bars, index, record, self.now_ms))
    }
}

impl Barred for Now<'_> {
    fn bars(&mut self) -> &mut Bars {
        &mut self.bars
    }
}

impl Moment for Now<'_> {
    fn is_retry(&self) -> bool {
        self.view.request.tries() > 0
    }

    fn is_barred(&self, index: usize) -> bool {
        self.view.is_tried(self.server(index)) || self.is_kept_from(index)
    }

    fn key(&self) -> Option<u64> {
        Some(self.view.request.key)
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.view.gateway.seen[self.server(index)].in_flight()
    }

    fn total_in_flight(&self) -> u64 {
        self.view.gateway.open
    }

    fn live(&self, index: usize) -> Live {
        self.view.gateway.seen[self.server(index)].live(self.view.fleet.now)
    }
}
