//! The rounds: every interval each instance is asked, and what is news of it is
//! put into etcd with the rest of its shard.
//!
//! Each shard has its own phase in the interval, so that neither the instances
//! nor etcd meet everything at once. A shard's round begins with a question to
//! each of its members, and ends with a put as soon as all have answered, at the
//! latest when a first try's timeout is over. Nothing waits for etcd: a shard
//! whose last put is still under way skips the one that is due.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, interval, sleep_until};

use super::collect::{Answer, AskError, CollectError, Manner, Peer};
use super::discover::{Change, Fleet, Name};
use super::member::{Member, Word, labels};
use super::put::{self, Session, WriteHealth};
use super::shard::{Move, Packing, ShardName};
use crate::config::{Config, ExporterConfig};
use crate::etcd::EtcdError;
use crate::metrics::{ExporterMetrics, FleetFigures, ServiceLabel};
use crate::model::StatusUrl;
use crate::watcher::{Event, WatchState};
use crate::wire::{self, Key};

/// The golden ratio's fraction: multiples of it fill an interval evenly, however
/// many of them there are.
const PHASE: f64 = 0.618_033_988_749_895;

/// The most questions under way. An exporter that has more of them than it can
/// take the answers of in time would find all of them late, and ask again: rounds
/// that find no room wait for it, in the order in which they were due.
const ASKS_AT_ONCE: usize = 1000;

/// The most of them to instances that do not answer, or have not yet: those take
/// the longest, and a fleet that is gone must not slow down the asking of who is
/// well. Who finds no room is asked in a later round; those who waited longest
/// come first.
const DOUBTFUL_AT_ONCE: usize = 500;

/// How often the figures of the whole fleet are shown.
const SHOWN_EVERY: Duration = Duration::from_secs(1);

/// Asks, compares and writes.
pub struct Rounds {
    prefix: String,
    exporter: ExporterConfig,
    manner: Arc<Manner>,
    fleet: Fleet,
    packing: Packing,
    members: HashMap<u64, Member>,
    by_name: BTreeMap<Name, u64>,
    shards: BTreeMap<ShardName, Shard>,
    /// What comes next, and when.
    due: BinaryHeap<Reverse<(Instant, Step)>>,
    /// Shards whose round is due and has not begun, with their serial numbers.
    waiting: VecDeque<(u64, ShardName)>,
    asks: JoinSet<Told>,
    /// Shared by those of them that are to instances that did not answer last.
    doubtful: Arc<()>,
    puts: JoinSet<Put>,
    /// Members and shards that there ever were: none is mistaken for an earlier
    /// one of its name.
    count: u64,
    begun: Instant,
    sessions: watch::Receiver<Option<Session>>,
    failures: mpsc::Sender<EtcdError>,
    missing: Arc<Notify>,
    metrics: Arc<ExporterMetrics>,
    health: Arc<WriteHealth>,
}

/// Instances that share a key.
struct Shard {
    serial: u64,
    members: BTreeSet<u64>,
    round: u64,
    /// Questions of this round without an answer.
    awaited: usize,
    has_reported: bool,
    is_putting: bool,
    /// When every member was last written.
    full: Option<Instant>,
}

/// A step of a shard, by the shard's serial number, which an emptied shard takes
/// with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Begin(u64, ShardName),
    Report(u64, ShardName, u64),
}

/// An instance's answer, or that it has none.
struct Told {
    id: u64,
    serial: u64,
    round: u64,
    answer: Answer,
}

/// How a put ended. Its shard stands until then.
struct Put {
    shard: ShardName,
    result: Result<(), EtcdError>,
}

impl Rounds {
    /// Asks nobody yet.
    pub fn new(
        config: &Config,
        fleet: Fleet,
        sessions: watch::Receiver<Option<Session>>,
        failures: mpsc::Sender<EtcdError>,
        missing: Arc<Notify>,
        metrics: Arc<ExporterMetrics>,
        health: Arc<WriteHealth>,
    ) -> Result<Self, CollectError> {
        Ok(Self {
            prefix: config.etcd.prefix.clone(),
            exporter: config.exporter.clone(),
            manner: Arc::new(Manner::new(config)?),
            fleet,
            packing: Packing::default(),
            members: HashMap::new(),
            by_name: BTreeMap::new(),
            shards: BTreeMap::new(),
            due: BinaryHeap::new(),
            waiting: VecDeque::new(),
            asks: JoinSet::new(),
            doubtful: Arc::new(()),
            puts: JoinSet::new(),
            count: 0,
            begun: Instant::now(),
            sessions,
            failures,
            missing,
            metrics,
            health,
        })
    }

    /// Runs until the sender of `events` is gone.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let changes = self.fleet.begin();
        self.follow(changes);
        let mut shows = interval(SHOWN_EVERY);
        loop {
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    let mut changes = self.fleet.apply(event);
                    while let Ok(event) = events.try_recv() {
                        changes.extend(self.fleet.apply(event));
                    }
                    self.follow(changes);
                }
                Some(told) = self.asks.join_next() => {
                    self.take(told);
                    // All that there is: one a turn would fall behind.
                    while let Some(told) = self.asks.try_join_next() {
                        self.take(told);
                    }
                }
                Some(put) = self.puts.join_next() => match put {
                    Ok(put) => self.end_put(put),
                    Err(err) => tracing::error!("failed to put a shard: {err}"),
                },
                Ok(()) = self.sessions.changed() => self.begin_session(),
                _ = shows.tick() => self.show_fleet(),
                () = sleep_until(next.unwrap_or(self.begun)), if next.is_some() => self.step(),
            }
            self.begin_waiting();
        }
    }

    // ------------------------------------------------------- who is asked

    fn follow(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Ask(name, url) => self.ask(name, url),
                Change::Drop(name) => self.drop_member(&name),
                Change::Missing => self.missing.notify_one(),
                Change::Rival => {
                    self.metrics.rivals.inc();
                    tracing::error!(
                        "another process runs as exporter {:?}: give each an exporter.id of its own",
                        self.exporter.id
                    );
                }
            }
        }
    }

    /// Asks an instance from now on; one that moved keeps its place.
    fn ask(&mut self, name: Name, url: StatusUrl) {
        let peer = match Peer::new(&url, &self.manner) {
            Ok(peer) => peer,
            Err(err) => {
                tracing::error!("{}/{} cannot be asked at {url}: {err}", name.service, name.id);
                return self.drop_member(&name);
            }
        };
        let serial = self.next_number();
        let known = self.by_name.get(&name).and_then(|id| self.members.get_mut(id));
        if let Some(known) = known {
            self.metrics.forget(&labels(&name));
            *known = Member::new(serial, name, url, peer, known.shard.clone());
            return;
        }
        let id = serial;
        let shard = self.packing.add(&name.service, id);
        self.by_name.insert(name.clone(), id);
        self.members.insert(id, Member::new(serial, name, url, peer, shard.clone()));
        self.enter(shard, id);
    }

    fn drop_member(&mut self, name: &Name) {
        let Some(id) = self.by_name.remove(name) else { return };
        let Some(member) = self.members.remove(&id) else { return };
        self.metrics.forget(&labels(name));
        self.leave(&member.shard, id);
        if let Some(Move { member, to }) = self.packing.remove(&name.service, id) {
            self.move_member(member, to);
        }
        if self.packing.is_empty(&name.service) {
            self.metrics.forget_service(&ServiceLabel { service: name.service.clone() });
        }
    }

    fn move_member(&mut self, id: u64, to: ShardName) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let from = member.move_to(to.clone());
        self.leave(&from, id);
        self.enter(to, id);
    }

    fn enter(&mut self, name: ShardName, member: u64) {
        if let Some(shard) = self.shards.get_mut(&name) {
            shard.members.insert(member);
            return;
        }
        let serial = self.next_number();
        let now = Instant::now();
        let shard = Shard {
            serial,
            members: BTreeSet::from([member]),
            round: 0,
            awaited: 0,
            has_reported: true,
            is_putting: false,
            full: None,
        };
        self.shards.insert(name.clone(), shard);
        self.due.push(Reverse((self.next_round(serial, now), Step::Begin(serial, name))));
    }

    /// A shard that nobody is left in goes, and its key with it.
    fn leave(&mut self, name: &ShardName, member: u64) {
        let Some(shard) = self.shards.get_mut(name) else { return };
        shard.members.remove(&member);
        if shard.members.is_empty() && !shard.is_putting {
            self.delete_shard(name);
        }
    }

    /// With a new lease, or after an etcd that was away: everything is written
    /// anew, and what is left of shards that are no more is taken out.
    fn begin_session(&mut self) {
        let Some(Session { etcd, .. }) = self.sessions.borrow_and_update().clone() else { return };
        self.shards.values_mut().for_each(|shard| shard.full = None);
        let known: HashSet<String> = self.shards.keys().map(|name| self.path(name)).collect();
        let prefix = format!("{}/status/{}/", self.prefix, self.exporter.id);
        tokio::spawn(async move {
            let Ok(entries) = etcd.list(&prefix).await else { return };
            for entry in entries.into_iter().filter(|it| !known.contains(&it.key)) {
                _ = etcd.delete(&entry.key).await;
            }
        });
    }

    fn delete_shard(&mut self, name: &ShardName) {
        self.shards.remove(name);
        let Some(Session { etcd, .. }) = self.sessions.borrow().clone() else { return };
        let path = self.path(name);
        // Where it fails, the next session takes it out.
        tokio::spawn(async move { _ = etcd.delete(&path).await });
    }

    // ------------------------------------------------------- what is due

    /// The beginning of the shard's next round after `now`.
    fn next_round(&self, serial: u64, now: Instant) -> Instant {
        let interval = self.exporter.interval;
        let phase = interval.mul_f64((serial as f64 * PHASE).fract());
        let since = now.saturating_duration_since(self.begun + phase);
        let rounds = since.as_nanos() / interval.as_nanos() + 1;
        self.begun + phase + interval * u32::try_from(rounds).unwrap_or(u32::MAX)
    }

    fn step(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, _))) = self.due.peek()
            && *at <= now
        {
            let Some(Reverse((_, step))) = self.due.pop() else { return };
            match step {
                Step::Begin(serial, name) => self.waiting.push_back((serial, name)),
                Step::Report(serial, name, round) => {
                    let is_due = |it: &&Shard| it.serial == serial && it.round == round;
                    if self.shards.get(&name).is_some_and(|it| is_due(&it)) {
                        self.report(&name, now);
                    }
                }
            }
        }
    }

    /// Begins the rounds that are due, as far as there is room.
    fn begin_waiting(&mut self) {
        while self.asks.len() < ASKS_AT_ONCE
            && let Some((serial, name)) = self.waiting.pop_front()
        {
            self.begin(serial, name, Instant::now());
        }
    }

    fn begin(&mut self, serial: u64, name: ShardName, now: Instant) {
        let next = self.next_round(serial, now);
        let Some(shard) = self.shards.get_mut(&name).filter(|it| it.serial == serial) else {
            return;
        };
        shard.round += 1;
        shard.awaited = 0;
        shard.has_reported = false;
        let round = shard.round;
        let round_of = |id: &u64| self.members.get(id).map_or(0, |member| member.round);
        let mut ids: Vec<u64> = shard.members.iter().copied().collect();
        ids.sort_by_key(round_of);
        for id in ids {
            let Some(member) = self.members.get_mut(&id) else { continue };
            let doubt = (!member.is_up()).then(|| Arc::clone(&self.doubtful));
            if doubt.is_some() && Arc::strong_count(&self.doubtful) > DOUBTFUL_AT_ONCE {
                continue;
            }
            shard.awaited += 1;
            let (serial, asked) = (member.serial, member.ask(round, now));
            self.asks.spawn(async move {
                let answer = asked.await;
                drop(doubt);
                Told { id, serial, round, answer }
            });
        }
        let report = Step::Report(serial, name.clone(), round);
        self.due.push(Reverse((now + self.exporter.timeout, report)));
        self.due.push(Reverse((next, Step::Begin(serial, name))));
    }

    // ------------------------------------------------------- what is said

    fn take(&mut self, told: Result<Told, JoinError>) {
        let Told { id, serial, round, answer } = match told {
            Ok(told) => told,
            Err(err) => return tracing::error!("failed to ask an instance: {err}"),
        };
        let Some(member) = self.members.get_mut(&id).filter(|it| it.serial == serial) else {
            return;
        };
        let reason = answer.result.as_ref().err().map(AskError::reason);
        let Answer { tries, failures, .. } = answer;
        self.metrics.count_asks(&member.name.service, tries, failures, reason);
        member.take(answer, &self.metrics);
        if member.round != round {
            return;
        }
        let name = member.shard.clone();
        let Some(shard) = self.shards.get_mut(&name).filter(|it| it.round == round) else {
            return;
        };
        shard.awaited = shard.awaited.saturating_sub(1);
        if shard.awaited == 0 && !shard.has_reported {
            self.report(&name, Instant::now());
        }
    }

    /// Puts what is news of a shard's members.
    fn report(&mut self, name: &ShardName, now: Instant) {
        let path = self.path(name);
        let Some(shard) = self.shards.get_mut(name).filter(|it| !it.has_reported) else { return };
        shard.has_reported = true;
        let session = self.sessions.borrow().clone();
        let Some(Session { etcd, lease }) = session.filter(|_| !shard.is_putting) else {
            self.metrics.ticks_skipped.inc();
            return;
        };
        // Half an interval early rather than late.
        let limit = self.exporter.refresh.saturating_sub(self.exporter.interval / 2);
        let is_full = shard.full.is_none_or(|at| now.saturating_duration_since(at) >= limit);
        let (mut reports, mut has_news) = (Vec::new(), is_full);
        for id in &shard.members {
            let Some(member) = self.members.get_mut(id) else { continue };
            if let Some(Word { report, is_news }) = member.report(&self.exporter, is_full, now) {
                has_news |= is_news;
                reports.push(report);
            } else {
                self.metrics.unchanged.inc();
            }
        }
        if is_full {
            shard.full = Some(now);
        }
        if reports.is_empty() || !has_news {
            return;
        }
        shard.is_putting = true;
        let shard = name.clone();
        let metrics = Arc::clone(&self.metrics);
        let value = wire::encode_batch(&reports);
        self.puts.spawn(async move {
            let result = put::put(&etcd, &metrics, path, value, lease).await;
            Put { shard, result }
        });
    }

    fn end_put(&mut self, Put { shard: name, result }: Put) {
        let is_written = result.is_ok();
        match result {
            Ok(()) => self.health.wrote(),
            // One that finds no room says what the ones before it say.
            Err(err) => _ = self.failures.try_send(err),
        }
        let Some(shard) = self.shards.get_mut(&name) else { return };
        shard.is_putting = false;
        if !is_written {
            shard.full = None;
        }
        if shard.members.is_empty() {
            self.delete_shard(&name);
        }
    }

    // ------------------------------------------------------------- helpers

    fn show_fleet(&self) {
        self.metrics.show_fleet(FleetFigures {
            exporters: self.fleet.exporters(),
            targets: self.fleet.targets(),
            asked: self.members.len(),
            is_watching: self.fleet.watch_state() == WatchState::Watching,
            bad_records: self.fleet.bad_records(),
        });
    }

    fn next_number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn path(&self, ShardName { service, number }: &ShardName) -> String {
        let (exporter, service) = (self.exporter.id.clone(), service.clone());
        Key::Status { exporter, service, shard: *number }.to_path(&self.prefix)
    }
}
