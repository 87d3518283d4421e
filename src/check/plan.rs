//! Who is checked when, and what the results make of it. No I/O, no clock: time
//! and chance are arguments.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::config::CheckConfig;
use crate::model::Instance;
use crate::wire::checks::Failing;

/// Checks at once of instances that do not fail. Each takes one of the file
/// descriptors of nginx's worker, which are 1,024 by default; and at 1 ms a check
/// that is 96,000 a second.
const AT_ONCE: usize = 96;

/// Checks at once of instances that fail. Those may each last until they time out,
/// and have a lane of their own so that they hold up nobody else.
const FAILING_AT_ONCE: usize = 32;

/// The first checks of instances that came together are so far apart on average, so
/// that a start with thousands is no burst; but all are made in the first interval.
const FIRST_APART: Duration = Duration::from_millis(1);

/// The first check of one instance alone comes within this time, for many gateways
/// hear of it at the same moment.
const FIRST_WITHIN: Duration = Duration::from_millis(200);

/// The part of an interval by which it is longer or shorter than configured.
const JITTER: f64 = 0.1;

/// How an instance fares, by its last checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was not checked yet; the next result decides.
    Unknown,
    /// It passes; so many checks in a row failed since the last good one.
    Up { failed: u32 },
    /// It fails; so many checks in a row were good since the last failed one.
    Down { passed: u32 },
}

impl Standing {
    fn after(self, has_passed: bool, rise: u32, fall: u32) -> Self {
        match (self, has_passed) {
            (Self::Unknown | Self::Up { .. }, true) => Self::Up { failed: 0 },
            (Self::Unknown | Self::Down { .. }, false) => Self::Down { passed: 0 },
            (Self::Up { failed }, false) if failed + 1 >= fall => Self::Down { passed: 0 },
            (Self::Up { failed }, false) => Self::Up { failed: failed + 1 },
            (Self::Down { passed }, true) if passed + 1 >= rise => Self::Up { failed: 0 },
            (Self::Down { passed }, true) => Self::Down { passed: passed + 1 },
        }
    }

    fn is_down(self) -> bool {
        matches!(self, Self::Down { .. })
    }
}

/// Who checks an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty<'a> {
    /// This gateway.
    Ours,
    /// The gateway of this name, which says this of it.
    Theirs(&'a str, Word<'a>),
}

/// What another gateway says of an instance that it checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    /// Nothing yet: what was known before stands.
    None,
    /// It does not fail.
    Passes,
    /// It fails.
    Fails(&'a Failing),
}

/// Who is checked when.
pub struct Plan {
    services: HashMap<String, Service>,
    targets: HashMap<u64, Target>,
    /// Of the next target.
    next: u64,
    /// Of instances that do not fail, and of those that do.
    lanes: [Lane; 2],
    rng: SmallRng,
}

struct Service {
    config: Arc<CheckConfig>,
    targets: HashMap<String, u64>,
}

/// One instance at one address.
struct Target {
    service: String,
    id: Arc<str>,
    /// Where requests go; checks may go to another port.
    addr: SocketAddr,
    standing: Standing,
    /// Whether this gateway checks it.
    is_ours: bool,
    /// Whether a check has ended.
    is_begun: bool,
    is_under_way: bool,
    /// When it is checked next; `None` while it is, or another gateway does that.
    due: Option<Instant>,
    /// Of one that fails, what is known of that.
    failing: Option<Failing>,
}

struct Lane {
    waiting: BTreeSet<(Instant, u64)>,
    under_way: usize,
    at_once: usize,
}

/// An instance that went out or came back by another gateway's word.
#[derive(Debug, PartialEq, Eq)]
pub struct Turned<'a> {
    pub id: Arc<str>,
    pub addr: SocketAddr,
    /// Whose word that was.
    pub gateway: &'a str,
    /// Why it fails, if it does.
    pub fails: Option<&'a Failing>,
}

/// A check to be made now.
#[derive(Debug)]
pub struct Job {
    /// Of which instance.
    pub id: Arc<str>,
    /// Where.
    pub addr: SocketAddr,
    /// How.
    pub config: Arc<CheckConfig>,
    target: u64,
    lane: usize,
    started: Instant,
}

/// What became of a check.
#[derive(Debug, PartialEq)]
pub struct Finished {
    pub service: String,
    /// Whether the instance went out or came back by it.
    pub has_turned: bool,
}

impl Plan {
    pub fn new(rng: SmallRng) -> Self {
        let lane = |at_once| Lane { waiting: BTreeSet::new(), under_way: 0, at_once };
        Self {
            services: HashMap::new(),
            targets: HashMap::new(),
            next: 0,
            lanes: [lane(AT_ONCE), lane(FAILING_AT_ONCE)],
            rng,
        }
    }

    /// As [`Checker::follow`](super::Checker::follow).
    pub fn follow<'a>(
        &mut self,
        name: &str,
        config: &CheckConfig,
        instances: impl Iterator<Item = &'a Instance>,
        failed: impl Fn(&Instance) -> Option<bool>,
        now: Instant,
    ) {
        let config = Arc::new(config.clone());
        let mut service = self
            .services
            .remove(name)
            .unwrap_or_else(|| Service { config: Arc::clone(&config), targets: HashMap::new() });
        let mut kept = HashSet::new();
        let mut new = Vec::new();
        for instance in instances {
            match service.targets.get(&instance.id) {
                Some(target) if self.targets[target].addr == instance.addr => {
                    kept.insert(*target);
                    // Of one that was not checked yet, more may be known by now.
                    let is_unknown = self.targets[target].standing == Standing::Unknown;
                    if is_unknown && failed(instance) == Some(true) {
                        self.put_out(*target);
                    }
                }
                _ => new.push(instance),
            }
        }
        service.targets.retain(|_, target| {
            let stays = kept.contains(target);
            if !stays {
                self.remove(*target);
            }
            stays
        });
        let within = first_within(new.len(), &config);
        for instance in new {
            let standing = match failed(instance) {
                None => Standing::Unknown,
                Some(false) => Standing::Up { failed: 0 },
                Some(true) => Standing::Down { passed: 0 },
            };
            let target = Target {
                service: name.to_owned(),
                id: instance.id.as_str().into(),
                addr: instance.addr,
                standing,
                is_ours: true,
                is_begun: false,
                is_under_way: false,
                due: None,
                failing: None,
            };
            self.next += 1;
            service.targets.insert(instance.id.clone(), self.next);
            self.targets.insert(self.next, target);
            let wait = within.mul_f64(self.rng.random());
            self.wait(self.next, now + wait);
        }
        service.config = config;
        self.services.insert(name.to_owned(), service);
    }

    pub fn forget(&mut self, service: &str) {
        for target in self.services.remove(service).into_iter().flat_map(|it| it.targets) {
            self.remove(target.1);
        }
    }

    /// The instances that are followed, with their addresses.
    pub fn instances(&self, service: &str) -> Vec<(Arc<str>, SocketAddr)> {
        let all = self.services.get(service).into_iter().flat_map(|it| it.targets.values());
        all.map(|target| &self.targets[target])
            .map(|target| (Arc::clone(&target.id), target.addr))
            .collect()
    }

    /// Has these instances of a service checked by whose duty that is; others stay as
    /// they are. Those that become this gateway's are checked soon, or within an
    /// interval if there `is_time`, and what was known of them stands until then.
    /// Returns those that went out or came back by another gateway's word.
    pub fn assign<'a>(
        &mut self,
        service: &str,
        duties: Vec<(Arc<str>, Duty<'a>)>,
        is_time: bool,
        now: Instant,
    ) -> Vec<Turned<'a>> {
        let Some(Service { config, targets }) = self.services.get(service) else {
            return Vec::new();
        };
        let config = Arc::clone(config);
        let duties: Vec<_> =
            duties.into_iter().filter_map(|(id, duty)| Some((*targets.get(&*id)?, duty))).collect();
        let (mut turned, mut taken) = (Vec::new(), Vec::new());
        for (number, duty) in duties {
            let Some(target) = self.targets.get_mut(&number) else { continue };
            match duty {
                Duty::Ours if target.is_ours => {}
                Duty::Ours => {
                    (target.is_ours, target.is_begun) = (true, false);
                    if !target.is_under_way {
                        taken.push(number);
                    }
                }
                Duty::Theirs(gateway, word) => {
                    target.is_ours = false;
                    let was_down = target.standing.is_down();
                    if let Some(due) = target.due.take() {
                        self.lanes[usize::from(was_down)].waiting.remove(&(due, number));
                    }
                    let fails = match word {
                        Word::None => continue,
                        Word::Passes => None,
                        Word::Fails(failing) => Some(failing),
                    };
                    target.failing = fails.cloned();
                    target.standing = match fails {
                        None => Standing::Up { failed: 0 },
                        Some(_) => Standing::Down { passed: 0 },
                    };
                    if fails.is_some() != was_down {
                        let (id, addr) = (Arc::clone(&target.id), target.addr);
                        turned.push(Turned { id, addr, gateway, fails });
                    }
                }
            }
        }
        let within = if is_time { config.interval } else { first_within(taken.len(), &config) };
        for number in taken {
            let wait = within.mul_f64(self.rng.random());
            self.wait(number, now + wait);
        }
        turned
    }

    /// Remembers since when an instance fails, and why.
    pub fn explain(&mut self, service: &str, id: &str, reason: &str, since_unix_ms: u64) {
        let target = self.services.get(service).and_then(|service| service.targets.get(id));
        if let Some(target) = target.and_then(|target| self.targets.get_mut(target)) {
            let addr = target.addr;
            target.failing = Some(Failing { addr, since_unix_ms, reason: reason.to_owned() });
        }
    }

    /// Those that this gateway checks and that fail, with what is known of that.
    pub fn failing_here(&self, service: &str) -> BTreeMap<String, Failing> {
        let all = self.services.get(service).into_iter().flat_map(|it| it.targets.values());
        all.map(|target| &self.targets[target])
            .filter(|target| target.is_ours && target.standing.is_down())
            .map(|target| {
                let unexplained =
                    || Failing { addr: target.addr, since_unix_ms: 0, reason: String::new() };
                let known = target.failing.clone().filter(|known| known.addr == target.addr);
                (target.id.to_string(), known.unwrap_or_else(unexplained))
            })
            .collect()
    }

    /// How many of a service's instances this gateway checks.
    pub fn count_ours(&self, service: &str) -> u64 {
        let all = self.services.get(service).into_iter().flat_map(|it| it.targets.values());
        all.filter(|target| self.targets[*target].is_ours).count() as u64
    }

    pub fn is_failing(&self, service: &str, id: &str, addr: SocketAddr) -> bool {
        let target = self.services.get(service).and_then(|service| service.targets.get(id));
        let target = target.and_then(|target| self.targets.get(target));
        target.is_some_and(|target| target.addr == addr && target.standing.is_down())
    }

    /// How many of a service's instances pass, fail and are unknown.
    pub fn count(&self, service: &str) -> [u64; 3] {
        let mut counts = [0; 3];
        for target in self.services.get(service).into_iter().flat_map(|it| it.targets.values()) {
            let place = match self.targets[target].standing {
                Standing::Up { .. } => 0,
                Standing::Down { .. } => 1,
                Standing::Unknown => 2,
            };
            counts[place] += 1;
        }
        counts
    }

    /// When the next check is to be made, as far as there is room for it.
    pub fn due(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::due).min()
    }

    /// The next check that is to be made by now.
    pub fn take_due(&mut self, now: Instant) -> Option<Job> {
        let is_due = |lane: &Lane| lane.due().is_some_and(|due| due <= now);
        let lane = self.lanes.iter().position(is_due)?;
        let (_, target) = self.lanes[lane].waiting.pop_first()?;
        let entry = self.targets.get_mut(&target)?;
        let config = Arc::clone(&self.services.get(&entry.service)?.config);
        self.lanes[lane].under_way += 1;
        entry.due = None;
        entry.is_under_way = true;
        let mut addr = entry.addr;
        if config.port != 0 {
            addr.set_port(config.port);
        }
        Some(Job { id: Arc::clone(&entry.id), addr, config, target, lane, started: now })
    }

    /// Takes in what came of a check, `None` if it could not be made; `None` if the
    /// instance is gone.
    pub fn finish(&mut self, job: Job, passed: Option<bool>, now: Instant) -> Option<Finished> {
        self.lanes[job.lane].under_way -= 1;
        let target = self.targets.get_mut(&job.target)?;
        target.is_under_way = false;
        if !target.is_ours {
            // It has become another gateway's meanwhile.
            return Some(Finished { service: target.service.clone(), has_turned: false });
        }
        let CheckConfig { interval, rise, fall, .. } = *job.config;
        let was_down = target.standing.is_down();
        if let Some(has_passed) = passed {
            target.standing = target.standing.after(has_passed, rise, fall);
        }
        // The second check finds the instance's place in the interval.
        let part: f64 = match std::mem::replace(&mut target.is_begun, true) {
            false => self.rng.random(),
            true => self.rng.random_range(1.0 - JITTER..=1.0 + JITTER),
        };
        let has_turned = target.standing.is_down() != was_down;
        let service = target.service.clone();
        self.wait(job.target, (job.started + interval.mul_f64(part)).max(now));
        Some(Finished { service, has_turned })
    }

    fn wait(&mut self, target: u64, due: Instant) {
        let Some(entry) = self.targets.get_mut(&target) else { return };
        entry.due = Some(due);
        self.lanes[usize::from(entry.standing.is_down())].waiting.insert((due, target));
    }

    fn put_out(&mut self, target: u64) {
        let Some(entry) = self.targets.get_mut(&target) else { return };
        let (due, was_down) = (entry.due.take(), entry.standing.is_down());
        entry.standing = Standing::Down { passed: 0 };
        if let Some(due) = due {
            self.lanes[usize::from(was_down)].waiting.remove(&(due, target));
            self.wait(target, due);
        }
    }

    fn remove(&mut self, target: u64) {
        let Some(Target { due: Some(due), standing, .. }) = self.targets.remove(&target) else {
            return;
        };
        self.lanes[usize::from(standing.is_down())].waiting.remove(&(due, target));
    }
}

/// Within what time so many instances are checked for the first time.
fn first_within(count: usize, config: &CheckConfig) -> Duration {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    FIRST_APART.saturating_mul(count).max(FIRST_WITHIN).min(config.interval)
}

impl Lane {
    fn due(&self) -> Option<Instant> {
        let has_room = self.under_way < self.at_once;
        self.waiting.first().map(|(due, _)| *due).filter(|_| has_room)
    }
}

#[cfg(test)]
mod tests;
