//! What the plugin's thread does: follow the source, keep the registry, publish
//! rankings. One current-thread runtime; nothing here knows nginx.

mod ladders;
pub mod log;
mod pace;
mod refusal;
mod relist;
mod revival;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::{SmallRng, SysRng};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use self::ladders::Ladders;
use self::pace::Pace;
use self::relist::Relist;
use self::revival::Rests;
use crate::board::{self, Board, Budget, SourceState};
use crate::check::doubts::{Probed, Prober};
use crate::check::notices::{Announcer, Notices, Standing, Tenancy};
use crate::check::sharing::Sharing;
use crate::check::{self, Checker};
use crate::clock::unix_ms;
use crate::config::{BudgetConfig, Config, Discover};
use crate::etcd::{EtcdSource, Tenure};
use crate::explain::Explanation;
use crate::freshness::Reports;
use crate::govern::{self, Course, Facts, Gateway, Terms};
use crate::health::Health;
use crate::model::Instance;
use crate::publish::{PublishError, Publisher, Store};
use crate::ranking::{self, Entry, Ranking, State};
use crate::registry::guard::{self, Outcome};
use crate::registry::{Registry, audits};
use crate::snapshot::{self, Keeper, Snapshot};
use crate::value::{self, ValueError};
use crate::watcher::{self, Timing, WatchState};

/// How often the heartbeat beats. A worker looks as often, and falls back after
/// a second at the earliest.
pub(crate) const BEAT: Duration = Duration::from_millis(250);

/// Beats between two looks at what changes by time alone: windows, slots to give
/// back, values that were lost.
const BEATS_A_ROUND: u32 = 4;

/// Events that may wait: enough for a page of a list, and little memory.
const EVENTS: usize = 1024;

/// For so long the first beat waits for what is read from the disk, and the first
/// requests after nginx's start for the first beat: half of the time after which workers
/// fall back at the earliest.
const DISK_PATIENCE: Duration = Duration::from_millis(500);

/// Runs until `stop` turns true or its sender is gone. After a panic, or where the
/// system has no descriptor or thread left, everything starts anew, with what the shared
/// dict holds still in force: that is logged, counted on the board, and comes after a
/// rest that is ever longer while it comes back.
pub fn run(config: &Config, store: impl Store, board: Board, mut stop: watch::Receiver<bool>) {
    let _logging = log::collect();
    let mut rests = Rests::new();
    loop {
        let begun = Instant::now();
        let why = match run_once(config, &store, board, &mut stop) {
            Ok(Ok(End::Stopped)) => return,
            Ok(Ok(End::Ended)) => "ended, which it never should".to_owned(),
            Ok(Err(panic)) => format!("panicked: {}", revival::text_of(&*panic)),
            Err(error) => format!("cannot run: {error}"),
        };
        board.count_restart();
        let rest = rests.after(begun.elapsed());
        tracing::error!("the plugin's thread {why}; it starts anew in {rest:?}");
        if revival::rest(&stop, rest) {
            return;
        }
    }
}

/// How the thread's work came to an end.
enum End {
    /// As it was told.
    Stopped,
    /// By itself.
    Ended,
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, and with it whoever started us.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn run_once(
    config: &Config,
    store: &impl Store,
    board: Board,
    stop: &mut watch::Receiver<bool>,
) -> std::io::Result<std::thread::Result<End>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = async {
        let (sender, events) = mpsc::channel(EVENTS);
        let source = EtcdSource::new(&config.etcd);
        let chance = SmallRng::try_from_rng(&mut SysRng);
        let mut rng = chance.unwrap_or_else(|_| SmallRng::seed_from_u64(board::monotonic_ms()));
        let health = Health::new(config, board, SmallRng::from_rng(&mut rng));
        let checker = Checker::new(SmallRng::from_rng(&mut rng));
        let (wanted, notices) = watch::channel(Notices::default());
        let sought = Tenancy { standing: Standing::Sought, written: 0, failures: 0 };
        let (sender_of_tenancy, tenancy) = watch::channel(sought);
        let sharing = Sharing::new(config, wanted, tenancy);
        let ttl = sharing.as_ref().map_or(Duration::ZERO, Sharing::ttl);
        let tenure = Tenure::new(&config.etcd, ttl);
        let chance = SmallRng::from_rng(&mut rng);
        let asks = Notify::new();
        let relists = (&asks, SmallRng::from_rng(&mut rng));
        let announcer = Announcer::new(tenure, notices, sender_of_tenancy, chance);
        let mut conductor =
            Conductor::new(config, store, board, health, (checker, sharing), relists);
        tokio::select! {
            () = stopped(stop) => End::Stopped,
            () = watcher::run_asked(source, Timing::default(), rng, sender, &asks) => End::Ended,
            () = conductor.conduct(events) => End::Ended,
            () = refusal::serve(board) => End::Ended,
            never = announcer.keep() => match never {},
        }
    };
    let end = catch_unwind(AssertUnwindSafe(|| runtime.block_on(work)));
    // A name look-up, or a disk, may still be waited for on a thread of its own, which a
    // runtime that a panic drops would wait for too.
    runtime.shutdown_background();
    Ok(end)
}

/// The plugin's own state, published for `status()` and the metrics page.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// [`WatchState::as_str`].
    pub watch: String,
    /// The last revision applied.
    pub revision: i64,
    /// Services in the registry.
    pub services: usize,
    /// What the audits of the registry found.
    #[serde(default)]
    pub audits: audits::Figures,
    /// Records that were dropped, by reason.
    pub bad_records: BTreeMap<String, u64>,
    /// Times that the thread began anew, after a panic for instance, since nginx's start.
    pub restarts: u64,
    /// Of the file that a start without etcd begins with, if there is to be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<snapshot::Report>,
    /// Of each service whose instances are checked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, check::Figures>,
    /// What the guards against mass loss did.
    #[serde(default)]
    pub guard: guard::Figures,
    /// Whether checks are shared with other gateways; `None` if no service's are to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<SharingStatus>,
}

/// How the checks of instances are shared.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SharingStatus {
    /// [`State::as_str`](check::sharing::State::as_str).
    pub state: String,
    /// Writes into etcd that failed, since the thread began.
    pub failures: u64,
}

impl Status {
    /// The status in the shared dict's value.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let (_, body) = value::open(value)?;
        serde_json::from_slice(body).map_err(|cause| ValueError::Body(cause.to_string()))
    }
}

/// Holds the stages together: registry, score, ranking, publisher.
struct Conductor<'a, S> {
    board: Board,
    registry: Registry,
    publisher: Publisher<S>,
    health: Health,
    /// The rankings in force: weights move from the last ones.
    rankings: HashMap<String, Ranking>,
    /// What governs each service, and where that is on its way to.
    courses: HashMap<String, (Terms, Course)>,
    gateway: Gateway,
    /// Services that somebody wants explained, with how many of their instances.
    asked: HashMap<String, u32>,
    checker: Checker,
    /// `None` if no service's checks are shared.
    sharing: Option<Sharing>,
    keeper: Keeper,
    /// Of those that are doubtful.
    prober: Prober,
    relist: Relist,
    /// Where lists are asked for, and chance.
    relists: (&'a Notify, SmallRng),
    /// The services that are to be published.
    pace: Pace,
    lost_since_ms: u64,
    /// As published last.
    watch_state: WatchState,
    patience_ms: u32,
    discover: Discover,
    /// Whether the first complete list has been acted on.
    synced: bool,
    /// The mode that was logged last.
    mode: &'static str,
    ladders: Ladders,
    /// The last publishing error of each service, so that it is logged once.
    failing: HashMap<String, PublishError>,
    /// The retry budgets of the configured services.
    budgets: HashMap<String, Budget>,
    last_beat: Instant,
}

impl<'a, S: Store> Conductor<'a, S> {
    fn new(
        config: &Config,
        store: S,
        board: Board,
        health: Health,
        (checker, sharing): (Checker, Option<Sharing>),
        relists: (&'a Notify, SmallRng),
    ) -> Self {
        let now = Instant::now();
        let serves =
            |name: &str| config.services.contains_key(name) || config.discover.allows(name);
        Conductor {
            board,
            registry: Registry::new(config, now),
            publisher: Publisher::new(store, board),
            health,
            rankings: HashMap::new(),
            courses: HashMap::new(),
            gateway: Gateway::new(&config.gateway.identity(), config.gateway.zone.clone()),
            checker,
            sharing,
            keeper: Keeper::new(config, snapshot::Timing::default()),
            prober: Prober::default(),
            relist: Relist::default(),
            relists,
            asked: HashMap::new(),
            pace: Pace::new(now),
            // An outage does not begin anew with the thread that meets it.
            lost_since_ms: match board.source().lost_since_ms {
                0 => board::monotonic_ms(),
                since => since,
            },
            watch_state: WatchState::Connecting,
            patience_ms: config.fallback.after_ms(),
            discover: config.discover.clone(),
            synced: false,
            mode: "",
            ladders: Ladders::new(board, serves, board::monotonic_ms()),
            failing: HashMap::new(),
            budgets: config
                .services
                .iter()
                .map(|(name, service)| (name.clone(), Budget::new(&service.failure.budget)))
                .collect(),
            last_beat: now,
        }
    }

    async fn conduct(&mut self, mut events: mpsc::Receiver<watcher::Event>) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat: u32 = 0;
        if self.keeper.is_on()
            && let Ok(read) = timeout(DISK_PATIENCE, self.keeper.loaded()).await
        {
            self.restore(read);
            // Before the first beat, which is what workers wait for.
            self.show_source();
            self.publish();
        }
        loop {
            let due = self.pace.due();
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    self.registry.apply(&event, Instant::now());
                    // What came together is published together.
                    while let Ok(event) = events.try_recv() {
                        self.registry.apply(&event, Instant::now());
                    }
                }
                _ = beats.tick() => {
                    self.board.beat();
                    self.refill_retries();
                    self.hear_responses();
                    self.look_at_health();
                    self.look_at_doubts();
                    self.look_for_questions();
                    if beat.is_multiple_of(BEATS_A_ROUND) {
                        self.round();
                    }
                    beat = beat.wrapping_add(1);
                }
                service = self.checker.change() => {
                    self.tell_checks(&service);
                    self.pace.add_urgent([service]);
                }
                dead = self.prober.dead() => {
                    for Probed { service, id, addr } in dead {
                        self.registry.refute(&service, &id, addr, Outcome::Dead);
                    }
                }
                read = self.keeper.loaded() => self.restore(read),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            self.show_source();
            self.look_at_sharing();
            self.publish();
            self.vouch();
            if self.watch_state != self.registry.watch_state() {
                self.watch_state = self.registry.watch_state();
                self.publish_status();
            }
            if self.publisher.is_superseded() {
                tracing::info!("another worker publishes from now on");
                std::future::pending::<()>().await;
            }
        }
    }

    /// Begins with what etcd held before the start. What an earlier thread read of etcd
    /// itself and published is newer, and stays.
    fn restore(&mut self, read: Option<Snapshot>) {
        let Some(snapshot) = read else { return };
        let restored = self.registry.restore(&snapshot, Instant::now());
        let path = self.keeper.path().display();
        let age = age_of(snapshot.as_of_ms);
        let (instances, services) = snapshot.size();
        if self.registry.has_synced() || self.board.source().synced {
            tracing::debug!("the snapshot {path} of {age} ago is not needed");
        } else if restored == 0 {
            tracing::warn!("the snapshot {path} of {age} ago has nothing for this gateway");
        } else {
            tracing::info!(
                "etcd as of {age} ago serves, from the snapshot {path}: instances: {instances}, \
                 services: {services}"
            );
        }
    }

    /// Keeps what etcd holds for the next start.
    fn keep(&mut self) {
        if !self.registry.is_whole() {
            return;
        }
        let is_watched = self.registry.watch_state() == WatchState::Watching;
        let lost_for_ms = match self.lost_since_ms {
            0 => 0,
            since => board::monotonic_ms().saturating_sub(since),
        };
        let (registry, changes) = (&self.registry, self.registry.changes());
        let view = || registry.snapshot(unix_ms().saturating_sub(lost_for_ms));
        self.keeper.look(changes, is_watched, Instant::now(), view);
    }

    fn refill_retries(&mut self) {
        let now = Instant::now();
        let passed = now.duration_since(std::mem::replace(&mut self.last_beat, now));
        let default = Budget::new(&BudgetConfig::default());
        let budget = |service: &str| self.budgets.get(service).copied().unwrap_or(default);
        self.board.refill_retries(passed, budget);
    }

    /// Takes in the load reports that responses brought.
    fn hear_responses(&mut self) {
        let mut reports = self.board.take_reports(board::coarse_ms());
        if reports.is_empty() {
            return;
        }
        let now = Instant::now();
        for (service, id, slot) in self.publisher.slots() {
            if let Some(figures) = reports.remove(&slot) {
                self.registry.in_band(service, id, figures, now);
            }
        }
    }

    /// Takes in who wants what explained.
    fn look_for_questions(&mut self) {
        for (service, id, _) in self.publisher.published() {
            let instances = self.board.take_asked(id);
            if instances > 0 {
                self.asked.insert(service.to_owned(), instances);
                self.pace.add_urgent([service.to_owned()]);
            }
        }
    }

    /// Publishes at once who is ejected, and who no longer is.
    fn look_at_health(&mut self) {
        let now_ms = board::monotonic_ms();
        for (service, id, instances) in self.publisher.published() {
            if self.health.look(service, id, instances, now_ms) {
                self.pace.add_urgent([service.to_owned()]);
            }
        }
    }

    /// Lets doubtful instances go whose requests fail, and asks for a list where that
    /// tells more.
    fn look_at_doubts(&mut self) {
        let names: Vec<_> = self.registry.guards().doubtful.keys().cloned().collect();
        for service in names {
            let limit = self.health.config(&service).consecutive_failures;
            let Some((_, doubtful)) = self.registry.doubtful(&service).filter(|_| limit > 0) else {
                continue;
            };
            let has_failed = |it: &&Instance| {
                let slot = self.publisher.slot(&service, &it.id, &it.addr);
                let identity = board::identity(&service, &it.id, &it.addr);
                self.board.consecutive_failures(slot, identity) >= limit
            };
            let failed = doubtful.filter(has_failed).map(|it| (it.id.clone(), it.addr));
            for (id, addr) in failed.collect::<Vec<_>>() {
                self.registry.refute(&service, &id, addr, Outcome::Failed);
            }
        }
        let (asks, rng) = &mut self.relists;
        if self.relist.is_due(self.registry.wants_list(), Instant::now(), rng) {
            asks.notify_one();
        }
    }

    /// What time alone changes.
    fn round(&mut self) {
        self.registry.tick(Instant::now());
        if self.synced && self.pace.is_idle() {
            // Only now is it known which instances are there.
            self.publisher.tidy(board::monotonic_ms());
            self.health.tidy(self.publisher.published(), board::monotonic_ms());
        }
        self.board.reclaim_rows();
        let shared = self.sharing.as_ref().map(Sharing::services).unwrap_or_default();
        shared.iter().for_each(|service| self.tell_checks(service));
        self.pace.add(self.publisher.unsound());
        let moving = self.rankings.iter().filter(|(_, ranking)| ranking.is_moving);
        self.pace.add(moving.map(|(service, _)| service.clone()).collect::<Vec<_>>());
        let moving = self.courses.iter().filter(|(_, (_, course))| course.is_moving());
        self.pace.add(moving.map(|(service, _)| service.clone()).collect::<Vec<_>>());
        if !self.publisher.is_superseded() {
            self.ladders.look(board::monotonic_ms());
        }
        self.keep();
        self.publish_status();
    }

    fn show_source(&mut self) {
        let now_ms = board::monotonic_ms();
        let watching = self.registry.watch_state() == WatchState::Watching;
        if watching {
            self.lost_since_ms = 0;
        } else if self.lost_since_ms == 0 {
            self.lost_since_ms = now_ms;
        }
        let known = self.board.source();
        let restored_as_of_ms = self.registry.restored_as_of_ms();
        let knows_more = restored_as_of_ms.is_some() && !known.synced;
        let source = SourceState {
            synced: self.registry.has_synced() || known.synced,
            restored_as_of_ms: restored_as_of_ms.unwrap_or(known.restored_as_of_ms),
            revision: if self.registry.has_synced() || knows_more {
                self.registry.revision()
            } else {
                known.revision
            },
            confirmed_ms: if watching { now_ms } else { known.confirmed_ms },
            lost_since_ms: self.lost_since_ms,
        };
        self.board.set_source(source);
        self.log_mode(source, now_ms);
    }

    /// One line for each change of mode; while etcd is sought and has had no time
    /// to be found, there is nothing to say.
    fn log_mode(&mut self, source: SourceState, now_ms: u64) {
        let mode = source.mode(now_ms, self.patience_ms);
        let certain = source.lost_since_ms == 0 || source.is_lost(now_ms, self.patience_ms);
        if mode == self.mode || !certain {
            return;
        }
        self.mode = mode;
        match mode {
            "live" => tracing::info!("mode live: etcd is watched"),
            "stale" => tracing::warn!("mode stale: etcd is lost; the last ranking serves"),
            "snapshot" => tracing::warn!(
                "mode snapshot: etcd was not read since the start; what it held {} ago serves",
                age_of(source.restored_as_of_ms)
            ),
            _ => tracing::warn!("mode static: etcd was never read; the configured instances serve"),
        }
    }

    fn publish(&mut self) {
        let started = Instant::now();
        self.pace.add(self.registry.take_dirty());
        let urgent = self.registry.take_urgent();
        self.follow_checked(&urgent);
        self.probe_doubtful(&urgent);
        urgent.iter().for_each(|service| self.share_checks(service, false));
        self.pace.add_urgent(urgent);
        if !self.synced && self.registry.has_synced() {
            self.synced = true;
            self.take_over();
        }
        let Some(round) = self.pace.take_due(started) else { return };
        for service in &round.services {
            self.publish_service(service);
        }
        self.pace.finish(&round, started, Instant::now());
    }

    /// Says up to where the rankings are those of what the source said, where none of
    /// them waits or failed.
    fn vouch(&self) {
        if self.registry.is_whole() && self.pace.is_idle() && self.failing.is_empty() {
            self.publisher.vouch(self.registry.revision(), board::monotonic_ms());
        }
    }

    /// Checks the instances that these services have now.
    fn follow_checked(&mut self, services: &[String]) {
        for service in services {
            let Some((config, instances)) = self.registry.checked(service) else {
                self.checker.forget(service);
                continue;
            };
            // Who is new to this thread may have been checked by the one before it,
            // until there is a complete list.
            let has_left = !self.synced && self.publisher.has_ranking(service);
            let left = has_left.then(|| self.publisher.left(service, board::monotonic_ms()).ok());
            let left = left.flatten().unwrap_or_default();
            let left: HashMap<_, _> =
                left.entries.iter().map(|entry| ((&*entry.id, entry.addr), entry.state)).collect();
            let sharers = self.registry.sharers(service);
            let failed = |instance: &Instance| {
                let Instance { id, addr, .. } = instance;
                let fails = |sharing: &Sharing| sharing.is_failing(service, sharers, id, *addr);
                if self.sharing.as_ref().is_some_and(fails) {
                    return Some(true);
                }
                left.get(&(id.as_str(), *addr)).map(|state| *state == State::Failing)
            };
            self.checker.follow(service, config, instances, failed);
        }
    }

    /// Probes the instances of these services that etcd lost and that are kept.
    fn probe_doubtful(&mut self, services: &[String]) {
        for service in services {
            match self.registry.doubtful(service) {
                Some((check, doubtful)) => self.prober.follow(service, check, doubtful),
                None => self.prober.forget(service),
            }
        }
    }

    /// Takes in whether the checks are shared now, and words that waited for their time.
    fn look_at_sharing(&mut self) {
        let Some(sharing) = &mut self.sharing else { return };
        let is_watching = self.registry.watch_state() == WatchState::Watching;
        if sharing.look(is_watching, self.registry.revision(), Instant::now()) {
            let services = sharing.services();
            services.iter().for_each(|service| self.share_checks(service, true));
            self.pace.add_urgent(services);
        }
    }

    /// Leaves to other gateways what of a service is theirs to check, and says to them
    /// what they are to know of the rest.
    fn share_checks(&mut self, service: &str, is_time: bool) {
        let Some(sharing) = self.sharing.as_mut().filter(|it| it.shares(service)) else { return };
        let (sharers, instances) =
            (self.registry.sharers(service), self.checker.instances(service));
        if let Some(duties) = sharing.divide(service, sharers, instances, Instant::now()) {
            self.checker.assign(service, duties, is_time);
            self.tell_checks(service);
        }
    }

    /// Nothing is said before it is known which instances there are: what an earlier
    /// thread of this gateway said stands until then.
    fn tell_checks(&mut self, service: &str) {
        let is_told = |sharing: &&mut Sharing| sharing.shares(service);
        let Some(sharing) = self.sharing.as_mut().filter(is_told) else { return };
        if !self.registry.has_synced() {
            return;
        }
        let (sharers, failing) =
            (self.registry.sharers(service), self.checker.failing_here(service));
        sharing.tell(service, sharers, failing, self.registry.revision(), Instant::now());
    }

    /// After the first complete list: what an earlier writer published is checked
    /// against it, services that etcd does not have any more included.
    fn take_over(&mut self) {
        let now = Instant::now();
        for service in self.board.service_names().filter(|name| self.publisher.has_ranking(name)) {
            let Ok(left) = self.publisher.left(&service, board::monotonic_ms()) else { continue };
            let doubtful = left.entries.into_iter().filter(|it| it.state == State::Doubtful);
            let doubtful: Vec<_> = doubtful.map(Entry::into_instance).collect();
            if !doubtful.is_empty() {
                self.registry.recall(&service, doubtful, now);
            }
        }
        self.pace.add_urgent(self.registry.service_names().map(str::to_owned));
        let discovered = self.board.service_names().filter(|name| self.discover.allows(name));
        self.pace.add_urgent(discovered.filter(|name| self.publisher.has_ranking(name)));
    }

    fn publish_service(&mut self, service: &str) {
        let Some(ranking) = self.rank(service) else { return };
        let (revision, now_ms) = (self.registry.revision(), board::monotonic_ms());
        let facts = self.facts(service, &ranking);
        let panic_percent = self.health.config(service).panic;
        let control = self.registry.control(service);
        let mut governed = govern::govern(&ranking, control, &facts, panic_percent)
            .route(self.registry.rules(service), |id| self.registry.labels(service, id));
        if let Some((terms, course)) = self.courses.get_mut(service) {
            course.steer(&mut governed, terms, now_ms);
        }
        self.health.tell_panic(service, governed.is_panic);
        let explanation = self.asked.remove(service).map(|n| {
            let slot = |id: &str, addr: &_| self.publisher.slot(service, id, addr);
            Explanation::new(service, &governed, n, self.board, slot, now_ms)
        });
        match self.publisher.publish(service, &governed, revision, now_ms) {
            Ok(()) => {
                self.failing.remove(service);
            }
            Err(PublishError::Superseded) => return,
            Err(error) => {
                if self.failing.get(service) != Some(&error) {
                    tracing::error!("the ranking of {service} stays as it was: {error}");
                }
                self.failing.insert(service.to_owned(), error);
            }
        }
        if let Some(explanation) = explanation {
            let offered: HashSet<&str> = ranking.entries.iter().map(|it| &*it.id).collect();
            let known = self.registry.known(service, Instant::now());
            let explanation = explanation.with(known, |id| offered.contains(id));
            let text = serde_json::to_vec(&explanation).expect("plain data has a JSON form");
            // A failure is counted; whoever asked hears of nothing, and asks again.
            let _ = self.publisher.publish_explanation(service, &text, now_ms);
        }
        self.rankings.insert(service.to_owned(), ranking);
    }

    /// What is known of a ranking's instances beside how they rank.
    fn facts(&self, service: &str, ranking: &Ranking) -> Vec<Facts> {
        let has_ejected = self.publisher.has_ejected(service);
        let fact = |entry: &Entry| {
            let is_ejected =
                || has_ejected && self.publisher.is_ejected(service, &entry.id, &entry.addr);
            // Who fails and is ejected shows as failing: a reload goes on from that.
            let health = if self.checker.is_failing(service, &entry.id, entry.addr) {
                govern::Health::Failing
            } else if is_ejected() {
                govern::Health::Ejected
            } else {
                govern::Health::Up
            };
            Facts { health }
        };
        ranking.entries.iter().map(fact).collect()
    }

    /// The service's ranking as of now, or `None` if what is published says more
    /// than what is known here: before the first list is complete, a service gets a
    /// ranking of the configured and restored instances if none was ever made from a
    /// list.
    fn rank(&mut self, service: &str) -> Option<Ranking> {
        let synced = self.registry.has_synced();
        let source = self.board.source();
        let restored_by_others =
            source.restored_as_of_ms != 0 && self.registry.restored_as_of_ms().is_none();
        let may_have_more =
            (source.synced || restored_by_others) && self.publisher.has_ranking(service);
        if !synced && may_have_more {
            return None;
        }
        self.go_on(service);
        let Some(mut reading) = self.registry.service(service, Instant::now()) else {
            self.courses.remove(service);
            self.ladders.forget(service);
            return Some(Ranking::default()); // a discovered service that is gone
        };
        if !synced && reading.members.is_empty() {
            return None;
        }
        let now_ms = board::monotonic_ms();
        let (terms, course) = self.courses.entry(service.to_owned()).or_insert_with(|| {
            let terms = Terms::new(reading.config, &self.gateway);
            let has_ranking = self.publisher.has_ranking(service);
            let left = has_ranking.then(|| self.publisher.course_left(service).ok()).flatten();
            let course = Course::resumed(left.unwrap_or_default(), &terms, now_ms);
            (terms, course)
        });
        course.see(&reading.members, terms, synced, now_ms);
        if synced {
            self.ladders.hear(service, Reports::of(&reading.members), now_ms);
        }
        let (size, prefers_zone) = (reading.config.subset.size, reading.config.zone.prefer);
        self.gateway.choose(&mut reading.members, size, prefers_zone);
        let observed: Vec<_> = reading
            .members
            .iter()
            .map(|member| self.publisher.observed(service, member.instance, now_ms))
            .collect();
        let previous = self.rankings.get(service);
        Some(ranking::rank(&reading.members, &reading.config.score, &observed, previous, now_ms))
    }

    /// Has the service's first ranking follow the one that an earlier thread left.
    fn go_on(&mut self, service: &str) {
        if self.rankings.contains_key(service) || !self.publisher.has_ranking(service) {
            return;
        }
        match self.publisher.left(service, board::monotonic_ms()) {
            Ok(left) => {
                self.rankings.insert(service.to_owned(), left);
            }
            Err(error) => tracing::warn!("the weights of {service} begin anew: {error}"),
        }
    }

    fn publish_status(&mut self) {
        let status = Status {
            watch: self.registry.watch_state().as_str().to_owned(),
            revision: self.registry.revision(),
            services: self.registry.service_names().count(),
            audits: self.registry.audits(),
            bad_records: self
                .registry
                .bad_records()
                .iter()
                .map(|(reason, count)| ((*reason).to_owned(), *count))
                .collect(),
            restarts: self.board.restarts(),
            snapshot: self.keeper.report(),
            checks: self.checker.figures(),
            guard: self.registry.guards().clone(),
            sharing: self.sharing.as_ref().map(|sharing| SharingStatus {
                state: sharing.state().as_str().to_owned(),
                failures: sharing.failures(),
            }),
        };
        let text = serde_json::to_vec(&status).expect("plain data always has a JSON form");
        // Stored whether it changed or not: nobody reports that it was lost. A
        // failure is counted, and made up for by the next round.
        let _ = self.publisher.publish_status(&text);
    }
}

/// How long ago an instant of Unix time was, in words; of one to come, nothing.
fn age_of(unix: u64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(unix_ms().saturating_sub(unix) / 1000))
}
