//! `check.by` `one`: gateways share the checks of a service's instances.
//!
//! Each gateway that takes part holds a key `checks/<gateway>/<service>` under a lease
//! of its own, and that is how the others know of it. An instance is checked by the
//! gateway that hashes highest with it (rendezvous hashing); that one's key names it
//! while it fails, and all go by that.
//!
//! - A gateway that dies loses its lease, and with it the key. What it said stands
//!   until the next owner of an instance has spoken; that one goes on from there, and
//!   checks it soon.
//! - A word counts if it was written by who owned the instance then: the value says
//!   as of which revision of etcd it was written, and whoever becomes an owner with
//!   instances that fail writes again. For one lease's time older words wait. By then
//!   their writer has reached etcd, or its key is gone.
//! - A gateway that cannot hold its key, or has not heard of etcd for a lease's time,
//!   checks every instance itself, and its checks begin within an interval; as long as
//!   its key is not seen in etcd, it owns none for the others either.
//! - A gateway that checks other instances, or in another way, is believed for those
//!   that it says fail, and for no other: its part is checked here, too.
//!
//! No clock and no I/O here: time is an argument, and what is to be written goes to
//! [`notices`](super::notices).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use self::peers::{Peers, Silence};
use super::notices::{Notices, Standing, Tenancy};
use super::{Duty, Word};
use crate::config::{CheckBy, Config};
use crate::model::is_name;
use crate::registry::Sharers;
use crate::rendezvous;
use crate::wire::Key;
use crate::wire::checks::{Checks, Failing, MAX_FAILING, encode_checks};

mod peers;

/// So often has what this gateway wrote to be overwritten, each time within a lease's
/// time of the last one, before somebody else is taken to have its name.
const LOSSES: u32 = 3;

/// A lease lives for so many of the shortest interval...
const INTERVALS_PER_TTL: u32 = 3;

/// ...and at least so long: etcd makes none shorter than 2 s by default, and one
/// renewal may be lost...
const SHORTEST_TTL: Duration = Duration::from_secs(3);

/// ...and so long at most, for who is checked by a gateway that dies is checked by
/// nobody meanwhile.
const LONGEST_TTL: Duration = Duration::from_secs(30);

/// Whether the work is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// With the gateways whose keys are there.
    Shared,
    /// Not now: every instance is checked here.
    Alone,
    /// Nor will it be, before etcd lets this gateway write.
    Refused,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Shared, Self::Alone, Self::Refused];

    /// The name in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Alone => "alone",
            Self::Refused => "refused",
        }
    }
}

/// Who checks what, of the services whose checks are shared.
pub struct Sharing {
    /// This gateway's name.
    me: String,
    prefix: String,
    ttl: Duration,
    services: BTreeMap<String, Division>,
    wanted: watch::Sender<Notices>,
    tenancy: watch::Receiver<Tenancy>,
    state: State,
    /// Since when etcd is not heard of.
    deaf_since: Option<Instant>,
    looked: Option<Instant>,
    /// Whether somebody else writes this gateway's keys, which is said once.
    is_contested: bool,
}

/// The instances of one service.
struct Division {
    peers: Peers,
    owners: HashMap<Arc<str>, Owner>,
    /// Words from before this revision were not written for this division.
    base: i64,
    /// When the last word that waits counts.
    settles: Option<Instant>,
    told: Option<Told>,
    /// How often in a row that was overwritten, and when it last was.
    losses: (u32, Option<Instant>),
}

/// Who checks an instance.
struct Owner {
    gateway: String,
    /// What it wrote at this revision or later counts...
    since: i64,
    /// ...and from this time on whatever it wrote.
    settles: Instant,
}

/// What this gateway says.
struct Told {
    checks: Checks,
    /// To which gateways.
    since: i64,
    /// As which of the [`Notices::version`]s.
    version: u64,
    /// When, or when it was last known not to be written yet.
    at: Instant,
}

impl Sharing {
    /// Shares nothing yet. `None` if there is nothing to share, or this gateway has no
    /// name to share it by, which is logged.
    pub fn new(
        config: &Config,
        wanted: watch::Sender<Notices>,
        tenancy: watch::Receiver<Tenancy>,
    ) -> Option<Self> {
        let checks = config.services.iter().map(|(name, service)| (name, &service.check));
        let shared: Vec<_> =
            checks.filter(|(_, check)| check.is_on() && check.by == CheckBy::One).collect();
        let shortest = shared.iter().map(|(_, check)| check.interval).min()?;
        let me = config.gateway.identity();
        if !is_name(&me) {
            tracing::error!(
                "this gateway checks every instance itself: {me:?} is no name to share checks by; \
                 set gateway.id"
            );
            return None;
        }
        Some(Self {
            me,
            prefix: config.etcd.prefix.clone(),
            ttl: (shortest * INTERVALS_PER_TTL).clamp(SHORTEST_TTL, LONGEST_TTL),
            services: shared
                .into_iter()
                .map(|(name, check)| (name.clone(), Division::new(Peers::new(check))))
                .collect(),
            wanted,
            tenancy,
            state: State::Alone,
            deaf_since: None,
            looked: None,
            is_contested: false,
        })
    }

    /// How long this gateway's keys outlive it.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether the work is shared, as of the last look.
    pub fn state(&self) -> State {
        self.state
    }

    /// Writes that failed.
    pub fn failures(&self) -> u64 {
        self.tenancy.borrow().failures
    }

    /// Whether the checks of this service are.
    pub fn shares(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }

    /// The services whose checks are shared.
    pub fn services(&self) -> Vec<String> {
        self.services.keys().cloned().collect()
    }

    /// Looks at whether the work is shared: `is_heard` is whether etcd is watched now,
    /// `revision` what was heard of it. Returns whether the instances are to be divided
    /// anew.
    pub fn look(&mut self, is_heard: bool, revision: i64, now: Instant) -> bool {
        // Revisions go back where etcd was restored: words are of the new ones.
        for division in self.services.values_mut() {
            division.base = division.base.min(revision);
        }
        self.deaf_since = if is_heard { None } else { self.deaf_since.or(Some(now)) };
        // Who was never heard has no last word that could stand.
        let is_in_time = |since: Instant| self.looked.is_some() && now < since + self.ttl;
        let is_heard = self.deaf_since.is_none_or(is_in_time);
        if is_heard {
            self.looked = Some(now);
        }
        let state = match self.tenancy.borrow().standing {
            Standing::Refused => State::Refused,
            Standing::Held { until } if now < until && is_heard => State::Shared,
            Standing::Held { .. } | Standing::Sought => State::Alone,
        };
        let before = std::mem::replace(&mut self.state, state);
        if state != before {
            match (before, state) {
                (_, State::Shared) => tracing::info!("checks are shared with the other gateways"),
                (State::Shared, State::Alone) => tracing::warn!(
                    "checks are not shared, for etcd is lost or takes no writes: every instance \
                     is checked here"
                ),
                _ => {}
            }
            for division in self.services.values_mut() {
                division.owners.clear();
                division.peers.forget();
                division.base = revision;
            }
            return true;
        }
        let has_settled =
            |division: &mut Division| division.settles.take_if(|it| *it <= now).is_some();
        self.services.values_mut().filter_map(|it| has_settled(it).then_some(())).count() > 0
    }

    /// Whether an instance that is new here fails by the word of who checks it.
    pub fn is_failing(&self, service: &str, sharers: &Sharers, id: &str, addr: SocketAddr) -> bool {
        let owner = rendezvous::owner(sharers.checks.keys(), service, id);
        owner.is_some_and(|owner| fails(sharers, owner, id, addr).is_some())
    }

    /// Who checks these instances of a service; `None` if its checks are not shared
    /// at all.
    pub fn divide<'a>(
        &mut self,
        service: &str,
        sharers: &'a Sharers,
        instances: Vec<(Arc<str>, SocketAddr)>,
        now: Instant,
    ) -> Option<Vec<(Arc<str>, Duty<'a>)>> {
        let division = self.services.get_mut(service)?;
        division.peers.follow(&instances, now, self.ttl);
        let is_shared = self.state == State::Shared && sharers.checks.contains_key(&self.me);
        if !is_shared {
            division.owners.clear();
            return Some(instances.into_iter().map(|(id, _)| (id, Duty::Ours)).collect());
        }
        let (agree, again) = division.peers.compare(service, &self.me, sharers, now, self.ttl);
        division.settles = division.settles.max(again);
        for owner in division.owners.values_mut().filter(|it| agree.contains(&it.gateway)) {
            // It may not have checked yet whom it did not know, and who was checked here.
            owner.since = sharers.checks[&owner.gateway].revision + 1;
            owner.settles = now + self.ttl;
        }
        let mut before = std::mem::take(&mut division.owners);
        let mut duties = Vec::with_capacity(instances.len());
        for (id, addr) in instances {
            let Some(gateway) = rendezvous::owner(sharers.checks.keys(), service, &id) else {
                continue;
            };
            let known = before.remove(&id).filter(|owner| owner.gateway == *gateway);
            let owner = known.unwrap_or_else(|| Owner {
                gateway: gateway.clone(),
                since: sharers.since.max(division.base),
                settles: now + self.ttl,
            });
            let duty = if owner.gateway == self.me {
                Duty::Ours
            } else if sharers.checks[gateway].revision < owner.since && now < owner.settles {
                division.settles = division.settles.max(Some(owner.settles));
                Duty::Theirs(gateway, Word::None)
            } else {
                match (fails(sharers, gateway, &id, addr), division.peers.silence(gateway)) {
                    (Some(fails), _) => Duty::Theirs(gateway, Word::Fails(fails)),
                    (None, Silence::Passes) => Duty::Theirs(gateway, Word::Passes),
                    (None, Silence::Nothing) => Duty::Theirs(gateway, Word::None),
                    (None, Silence::Ignorance) => Duty::Ours,
                }
            };
            duties.push((Arc::clone(&id), duty));
            division.owners.insert(id, owner);
        }
        Some(duties)
    }

    /// Tells the other gateways who fails here, as of `revision`, if that is news.
    pub fn tell(
        &mut self,
        service: &str,
        sharers: &Sharers,
        mut failing: BTreeMap<String, Failing>,
        revision: i64,
        now: Instant,
    ) {
        let Some(division) = self.services.get_mut(service) else { return };
        while failing.len() > MAX_FAILING {
            failing.pop_last();
        }
        let follows = Some(division.peers.here());
        // What was said to other gateways may not have been for these to hear.
        let is_known = |told: &Told| {
            told.checks.failing == failing && (failing.is_empty() || told.since == sharers.since)
        };
        let mut is_lost = false;
        if let Some(told) = division.told.as_mut().filter(|told| is_known(told)) {
            if self.tenancy.borrow().written < told.version {
                told.at = now;
                return;
            }
            // It was to be seen by now; it is not if somebody else wrote it, too. What is
            // followed changes with each registration, and can wait as long.
            let seen = sharers.checks.get(&self.me);
            is_lost = seen != Some(&told.checks);
            let is_old = told.checks.follows != follows;
            if !(is_lost || is_old) || now < told.at + self.ttl / INTERVALS_PER_TTL {
                return;
            }
            // What is not heard now may be there.
            let is_heard = self.state == State::Shared && self.deaf_since.is_none();
            if is_lost && seen.is_some() && is_heard {
                let (count, last) = division.losses;
                let is_soon = last.is_some_and(|last| now < last + self.ttl);
                let count = if is_soon { count + 1 } else { 1 };
                division.losses = (count, Some(now));
                if count >= LOSSES && !std::mem::replace(&mut self.is_contested, true) {
                    tracing::warn!(
                        "somebody else writes this gateway's key checks/{}/{service}: set \
                         gateway.id to another name for each gateway",
                        self.me
                    );
                }
            }
        }
        let checks = Checks { revision, follows, failing };
        let key = Key::Checks { gateway: self.me.clone(), service: service.to_owned() };
        let (key, value) = (key.to_path(&self.prefix), encode_checks(&checks));
        let mut version = 0;
        self.wanted.send_modify(|wanted| {
            wanted.keys.insert(key, value);
            wanted.round += u64::from(is_lost);
            wanted.version += 1;
            version = wanted.version;
        });
        division.told = Some(Told { checks, since: sharers.since, version, at: now });
    }
}

impl Division {
    fn new(peers: Peers) -> Self {
        Self {
            peers,
            owners: HashMap::new(),
            base: 0,
            settles: None,
            told: None,
            losses: (0, None),
        }
    }
}

/// That an instance fails, if this gateway says so.
fn fails<'a>(
    sharers: &'a Sharers,
    gateway: &str,
    id: &str,
    addr: SocketAddr,
) -> Option<&'a Failing> {
    sharers.checks.get(gateway)?.failing.get(id).filter(|failing| failing.addr == addr)
}

#[cfg(test)]
mod tests;
