//! What is ours in a gateway: from what etcd holds to pickers, as the plugin's
//! thread and the workers do it.
//!
//! All that the simulation knows of the way from a report to a choice is here.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::fleet::View;
use super::live::Seen;
use super::policy::World;
use super::scenario::Reports;
use crate::config::{BalanceConfig, Config, ExporterConfig, ServiceConfig, Strategy, WindowConfig};
use crate::govern::{self, Course, Facts, Gateway, Terms};
use crate::model::{Instance, StatusProtocol, StatusUrl};
use crate::picker::{self, Live, Moment, Picker, Ranked};
use crate::ranking::{self, Ranking};
use crate::registry::Registry;
use crate::value::Record;
use crate::watcher::{Event, WatchState};
use crate::worker::governed_priors;
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
    /// Knows nothing but the time.
    pub fn new(reports: &Reports, strategy: Strategy) -> Self {
        let balance = BalanceConfig { strategy, ..BalanceConfig::default() };
        let service = ServiceConfig { balance, ..ServiceConfig::default() };
        let terms = Terms::new(&service, &Gateway::new("", String::new()));
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
    pub fn tick(&mut self, clock: i64) {
        self.registry.tick(self.instant(clock));
    }

    /// Ranks anew if something has changed; whether it did. `seen` is what the
    /// gateway has seen of each server.
    pub fn rank(&mut self, clock: i64, seen: &[Seen]) -> bool {
        let is_moving = self.course.is_moving()
            || self.ranking.as_ref().is_some_and(|ranking| ranking.is_moving);
        if self.registry.take_dirty().is_empty() && !is_moving {
            return false;
        }
        self.registry.take_urgent();
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
        let facts = vec![Facts::default(); ranking.entries.len()];
        let mut governed = govern::govern(&ranking, reading.control, &facts, 50);
        self.course.steer(&mut governed, &self.terms, now_ms);
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
        let servers = &self.ranked.servers;
        let index = by.pick(&Now { view, servers }, rng)?;
        servers.get(index).map(|server| *server as usize)
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

/// A server as it registers.
pub fn instance(server: u32, weight: f64) -> Instance {
    let [_, a, b, c] = server.to_be_bytes();
    Instance {
        id: format!("s{server:05}"), // ordered as the numbers are
        addr: SocketAddr::from((Ipv4Addr::new(10, a, b, c), 80)),
        weight,
        zone: String::new(),
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
pub fn registered(server: u32, weight: f64, revision: i64) -> Event {
    let instance = instance(server, weight);
    Event::Put {
        key: key_of(&instance.id),
        value: wire::encode_instance(&instance),
        mod_revision: revision,
    }
}

/// What etcd says of a server that deregistered.
pub fn deregistered(server: u32, revision: i64) -> Event {
    Event::Delete { key: key_of(&instance(server, 1.0).id), mod_revision: revision }
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
    servers: &'a [u32],
}

impl Now<'_> {
    fn server(&self, index: usize) -> usize {
        self.servers[index] as usize
    }
}

impl Moment for Now<'_> {
    fn is_retry(&self) -> bool {
        self.view.request.tries() > 0
    }

    fn is_barred(&self, index: usize) -> bool {
        self.view.is_tried(self.server(index))
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
