//! A service of any size whose instances report, taken through the stages of the
//! plugin's thread without etcd and without nginx.
#![allow(dead_code, reason = "each bench that includes this file uses a part of it")]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use ipconfig::board::{self, Board};
use ipconfig::config::{Config, ServiceConfig};
use ipconfig::govern::{Facts, govern};
use ipconfig::model::{Instance, InstanceReport, Status};
use ipconfig::publish::{Publisher, Store, StoreError};
use ipconfig::ranking::{self, Observed, Ranking};
use ipconfig::registry::{Reading, Registry};
use ipconfig::watcher::{Event, WatchState};
use ipconfig::wire::{self, Key};
use tokio::time::Instant;

/// Statuses in one value in etcd, as the exporter batches them.
const BATCH: usize = 100;

/// More reports than a window has buckets, so that every bucket holds one.
const REPORTS_THAT_FILL_THE_WINDOW: u64 = 6;

/// A service with its registry, its publisher and a dict of its own.
pub struct Fleet {
    name: String,
    size: usize,
    registry: Registry,
    publisher: Publisher<Dict>,
    pub dict: Dict,
    ranking: Option<Ranking>,
    /// Virtual: a report is a second.
    now: Instant,
    reports: u64,
    revision: i64,
}

impl Fleet {
    /// `size` instances that have reported long enough to fill their windows.
    pub fn new(size: usize) -> Self {
        let board = Board::open().expect("memory for a board");
        let name = format!("fleet-{size}");
        let now = Instant::now();
        let dict = Dict::default();
        let mut fleet = Fleet {
            registry: Registry::new(&config_of(&name), now),
            publisher: Publisher::new(dict.clone(), board),
            dict,
            ranking: None,
            now,
            reports: 0,
            revision: 0,
            name,
            size,
        };
        fleet.apply(&[Event::Init]);
        let registrations: Vec<_> =
            (0..size).map(|index| fleet.registration(&instance(index))).collect();
        fleet.apply(&registrations);
        fleet.apply(&[
            Event::InitDone { revision: fleet.revision },
            Event::State(WatchState::Watching),
        ]);
        for _ in 0..REPORTS_THAT_FILL_THE_WINDOW {
            let report = fleet.next_report();
            fleet.apply(&report);
            let ranking = fleet.rank();
            fleet.publish(ranking);
        }
        fleet
    }

    /// A configuration that names this service and leaves the rest as it is.
    pub fn config(&self) -> Config {
        config_of(&self.name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// One status of each instance, a second after the ones before, in batches.
    pub fn next_report(&mut self) -> Vec<Event> {
        self.reports += 1;
        self.now += Duration::from_secs(1);
        let statuses: Vec<_> = (0..self.size).map(|index| self.report(index)).collect();
        let batches = statuses.chunks(BATCH).map(wire::encode_batch).collect::<Vec<_>>();
        let put = |(value, shard)| {
            let (exporter, service) = ("exporter-1".to_owned(), self.name.clone());
            self.event(Key::Status { exporter, service, shard }, value)
        };
        batches.into_iter().zip(0..).map(put).collect()
    }

    fn report(&self, index: usize) -> InstanceReport {
        InstanceReport::new(instance_id(index), status(index, self.reports).into())
    }

    /// Another weight for one instance, so that the value of the instances is to
    /// be stored again.
    pub fn next_registration(&mut self) -> Event {
        self.reports += 1;
        self.registration(&Instance { weight: 1.0 + self.reports as f64 % 2.0, ..instance(0) })
    }

    pub fn apply(&mut self, events: &[Event]) {
        for event in events {
            self.registry.apply(event, self.now);
        }
    }

    /// What the scores are made of, now.
    pub fn reading(&mut self) -> Reading<'_> {
        self.registry.service(&self.name, self.now).expect("the configuration names it")
    }

    pub fn rank(&mut self) -> Ranking {
        let reading = self.registry.service(&self.name, self.now);
        rank(&reading.expect("the configuration names it"), self.ranking.as_ref())
    }

    pub fn publish(&mut self, ranking: Ranking) {
        let facts = vec![Facts::default(); ranking.entries.len()];
        let governed = govern(&ranking, None, &facts, 50);
        self.publisher
            .publish(&self.name, &governed, self.revision, board::monotonic_ms())
            .expect("a dict without bounds takes every value");
        self.ranking = Some(ranking);
    }

    /// Takes a next report through all stages.
    pub fn update(&mut self) {
        let report = self.next_report();
        self.apply(&report);
        let ranking = self.rank();
        self.publish(ranking);
    }

    /// The values of the instances and of the ranking.
    pub fn values(&self) -> (Vec<u8>, Vec<u8>) {
        let get = |kind: &str| self.dict.get(&format!("{kind}:{}", self.name));
        (get("instances"), get("ranking"))
    }

    fn registration(&mut self, instance: &Instance) -> Event {
        let key = Key::Instance { service: self.name.clone(), id: instance.id.clone() };
        self.event(key, wire::encode_instance(instance))
    }

    fn event(&mut self, key: Key, value: Vec<u8>) -> Event {
        self.revision += 1;
        let key = key.to_path(&Config::default().etcd.prefix).into_bytes();
        Event::Put { key, value, mod_revision: self.revision }
    }
}

/// Scores and ranking of a reading, as the plugin's thread makes them.
pub fn rank(reading: &Reading<'_>, previous: Option<&Ranking>) -> Ranking {
    let observed = vec![Observed::default(); reading.members.len()];
    // A second after the one before, as its reports are.
    let now_ms = previous.map_or(0, |previous| previous.made_ms + 1000);
    ranking::rank(&reading.members, &reading.config.score, &observed, previous, now_ms)
}

fn config_of(service: &str) -> Config {
    let services = BTreeMap::from([(service.to_owned(), ServiceConfig::default())]);
    Config { services, ..Config::default() }
}

fn instance_id(index: usize) -> String {
    format!("instance-{index:05}")
}

fn instance(index: usize) -> Instance {
    let [_, high, mid, low] = (index as u32).to_be_bytes();
    let authority = format!("10.{high}.{mid}.{low}:9090");
    Instance {
        id: instance_id(index),
        addr: SocketAddr::from((Ipv4Addr::new(10, high, mid, low), 8080)),
        weight: 1.0,
        zone: "zone-a".into(),
        labels: BTreeMap::new(),
        status: Some(format!("grpc://{authority}").parse().expect("a status URL")),
        drain: false,
        max_in_flight: 0,
    }
}

/// The status of an instance at its `report`th second: instances differ, and each
/// varies, so that every report makes another ranking.
pub fn status(index: usize, report: u64) -> Status {
    // Fibonacci hashing, for figures that follow no order.
    let noise = |salt: u64| {
        let seed = (index as u64 + 1) * 1_000_003 + report * 7919 + salt;
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54
    };
    Status {
        boot_id: 1,
        seq: report,
        age: Duration::from_millis(20),
        requests: report * 2048 + noise(1),
        errors: report,
        busy_ns: report * 500_000_000 + noise(2),
        latency_sum_ns: report * 10_000_000_000 + noise(3) * 1_000_000,
        cpu_used_cores: Some(0.5 + noise(4) as f64 / 1024.0),
        cpu_limit_cores: Some(2.0),
        memory_used_bytes: Some((1 + noise(5)) << 20),
        memory_limit_bytes: Some(4 << 30),
        in_flight: Some(noise(6) / 64),
        queue: Some(0),
        application_utilization: None,
        max_in_flight: None,
    }
}

/// A shared dict in plain memory; a clone is the same dict.
#[derive(Clone, Default)]
pub struct Dict(Rc<RefCell<HashMap<String, Vec<u8>>>>);

impl Dict {
    fn get(&self, key: &str) -> Vec<u8> {
        self.0.borrow()[key].clone()
    }
}

impl Store for Dict {
    /// Over the old value in place, as nginx does with one of the same size.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let mut values = self.0.borrow_mut();
        let stored = values.entry(key.to_owned()).or_default();
        stored.clear();
        stored.extend_from_slice(value);
        Ok(())
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }
}
