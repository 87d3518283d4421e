//! The instances of one service, from the configuration file and from etcd.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use super::silence::{self, Rule, Silence};
use super::{Member, Reading, State};
use crate::config::{ServiceConfig, WindowConfig};
use crate::model::{Instance, Status, StatusUrl};
use crate::window::Window;

/// What is known of one service.
#[derive(Debug)]
pub struct Service {
    config: ServiceConfig,
    /// A configured service stays when it has no instances.
    is_configured: bool,
    /// By id, which is also the order of scoring.
    instances: BTreeMap<String, Record>,
    claims: Claims,
    /// When a status last brought news, until the effect of that has passed.
    moved_ms: Option<u64>,
}

/// Where an instance is registered.
pub enum Layer {
    /// In the configuration file.
    File,
    /// In etcd, at this revision.
    Etcd(i64),
}

#[derive(Debug)]
struct Record {
    file: Option<Instance>,
    /// With the revision at which it was registered.
    etcd: Option<(Instance, i64)>,
    window: Window,
    silence: Silence,
}

/// An instance's claim to be offered at its address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    addr: SocketAddr,
    revision: i64,
    id: String,
}

/// Who is offered where several instances claim one address: the newest
/// registration, for it describes the process that has the address now; the
/// smaller id among equals.
#[derive(Debug, Default)]
struct Claims {
    by_addr: HashMap<SocketAddr, BTreeSet<(Reverse<i64>, String)>>,
}

/// Registrations in the file are older than any in etcd, which begin at 1.
const FILE_REVISION: i64 = 0;

impl Service {
    /// A service that the configuration names; its instances are yet to be
    /// registered.
    pub fn configured(config: ServiceConfig) -> Self {
        Self::new(config, true)
    }

    /// A service that etcd alone knows, and that exists as long as it has
    /// instances.
    pub fn discovered() -> Self {
        Self::new(ServiceConfig::default(), false)
    }

    fn new(config: ServiceConfig, is_configured: bool) -> Self {
        Self {
            config,
            is_configured,
            instances: BTreeMap::new(),
            claims: Claims::default(),
            moved_ms: None,
        }
    }

    /// Whether nothing is left of the service.
    pub fn is_gone(&self) -> bool {
        !self.is_configured && self.instances.is_empty()
    }

    /// Takes in a registration; the one in etcd wins while there is one. Returns
    /// the instance that is no longer offered because of it, this one or
    /// another, if two have one address.
    pub fn register(
        &mut self,
        instance: Instance,
        layer: Layer,
        window: &WindowConfig,
        now_ms: u64,
    ) -> Option<String> {
        let id = instance.id.clone();
        self.instances.entry(id.clone()).or_insert_with(|| Record {
            file: None,
            etcd: None,
            window: Window::new(window),
            silence: Silence::new(now_ms),
        });
        self.change(&id, now_ms, |record| match layer {
            Layer::File => record.file = Some(instance),
            Layer::Etcd(revision) => record.etcd = Some((instance, revision)),
        })
    }

    /// Takes away the registration in etcd; the file's comes back, if there is
    /// one. Returns what [`register`](Self::register) does.
    pub fn deregister(&mut self, id: &str, now_ms: u64) -> Option<String> {
        self.change(id, now_ms, |record| record.etcd = None)
    }

    fn change(
        &mut self,
        id: &str,
        now_ms: u64,
        change: impl FnOnce(&mut Record),
    ) -> Option<String> {
        let record = self.instances.get_mut(id)?;
        let (old_claim, old_status) = (record.claim(), record.status_url().cloned());
        change(record);
        let new_claim = record.claim();
        if record.status_url() != old_status.as_ref() {
            // It is asked elsewhere from now on, and has yet to answer there.
            record.silence = Silence::new(now_ms);
        }
        if record.current().is_none() {
            self.instances.remove(id);
        }
        self.claims.replace(old_claim, new_claim)
    }

    /// Hands a status to its instance's window; whether it was news, or `None`
    /// without such an instance.
    pub fn record(&mut self, id: &str, status: &Status, now_ms: u64) -> Option<bool> {
        let record = self.instances.get_mut(id)?;
        let is_news = record.window.record(status, now_ms);
        if is_news {
            let age_ms = u64::try_from(status.age.as_millis()).unwrap_or(u64::MAX);
            record.silence.report(now_ms.saturating_sub(age_ms));
            self.moved_ms = Some(now_ms);
        }
        Some(is_news)
    }

    /// Applies the rule of silence to those that could be offered; returns
    /// whether it put out or brought back any.
    pub fn judge(&mut self, rule: Rule, is_watching: bool, now_ms: u64) -> bool {
        let claims = &self.claims;
        let mut judged: Vec<&mut Silence> = self
            .instances
            .values_mut()
            .filter(|record| record.status_url().is_some() && record.is_granted(claims))
            .map(|record| &mut record.silence)
            .collect();
        silence::judge(rule, is_watching, now_ms, &mut judged)
    }

    /// Whether time alone may have changed the reading since this was last asked:
    /// a window moves on until `settled_after_ms` after the last status.
    pub fn has_moved(&mut self, settled_after_ms: u64, now_ms: u64) -> bool {
        // Once more after it has settled, for the time between the two.
        let moved_ms = self.moved_ms;
        self.moved_ms = moved_ms.filter(|at_ms| now_ms.saturating_sub(*at_ms) <= settled_after_ms);
        moved_ms.is_some()
    }

    /// What the service has to offer.
    pub fn reading(&mut self, rule: Rule, now_ms: u64) -> Reading<'_> {
        let claims = &self.claims;
        let members: Vec<Member<'_>> = self
            .instances
            .values_mut()
            .filter(|record| record.is_granted(claims))
            .filter_map(|record| record.member(rule, now_ms))
            .collect();
        Reading { config: &self.config, members }
    }
}

impl Record {
    /// The registration that counts.
    fn current(&self) -> Option<&Instance> {
        self.etcd.as_ref().map(|(instance, _)| instance).or(self.file.as_ref())
    }

    fn status_url(&self) -> Option<&StatusUrl> {
        self.current()?.status.as_ref()
    }

    /// A draining instance claims nothing, so that one that leaves does not take
    /// its address with it from one that came in its place.
    fn claim(&self) -> Option<Claim> {
        let revision = self.etcd.as_ref().map_or(FILE_REVISION, |(_, revision)| *revision);
        let Instance { addr, id, drain, .. } = self.current()?;
        (!drain).then(|| Claim { addr: *addr, revision, id: id.clone() })
    }

    fn is_granted(&self, claims: &Claims) -> bool {
        self.current().is_some_and(|instance| {
            !instance.drain && claims.owner(&instance.addr) == Some(&instance.id)
        })
    }

    fn member(&mut self, rule: Rule, now_ms: u64) -> Option<Member<'_>> {
        let state = self.state(rule, now_ms)?;
        let load = (state == State::Reporting).then(|| self.window.load(now_ms));
        Some(Member { instance: self.current()?, state, load })
    }

    /// `None` if the instance was put out for its silence.
    fn state(&self, rule: Rule, now_ms: u64) -> Option<State> {
        match self.status_url() {
            _ if self.silence.is_fresh(rule, now_ms) => Some(State::Reporting),
            None => Some(State::Unreported),
            Some(_) => (!self.silence.is_out()).then_some(State::Unknown),
        }
    }
}

impl Claims {
    /// Puts one instance's claim in place of its earlier one. Returns the
    /// instance that had its address to itself, or had none, and now has to stand
    /// back.
    fn replace(&mut self, old: Option<Claim>, new: Option<Claim>) -> Option<String> {
        let had = new.as_ref().and_then(|new| self.owner(&new.addr)).map(str::to_owned);
        if let Some(Claim { addr, revision, id }) = old.clone()
            && let Some(claims) = self.by_addr.get_mut(&addr)
        {
            claims.remove(&(Reverse(revision), id));
            if claims.is_empty() {
                self.by_addr.remove(&addr);
            }
        }
        let Claim { addr, revision, id } = new?;
        self.by_addr.entry(addr).or_default().insert((Reverse(revision), id.clone()));

        let stood_back = old.is_some_and(|old| old.addr == addr) && had.as_ref() != Some(&id);
        if self.owner(&addr) == Some(&id) {
            had.filter(|owner| *owner != id)
        } else {
            (!stood_back).then_some(id)
        }
    }

    fn owner(&self, addr: &SocketAddr) -> Option<&str> {
        self.by_addr.get(addr)?.first().map(|(_, id)| id.as_str())
    }
}
