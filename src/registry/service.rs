//! The instances of one service, from the configuration file and from etcd.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::guard::{Guard, Loss, Outcome, Tally};
use super::reach::{self, IN_BAND, Reach, Rule, Source};
use super::{Absence, Known, Member, Reading, State, to_ms};
use crate::config::{self, CheckConfig, ServiceConfig, WindowConfig};
use crate::model::{Instance, InstanceReport, Report, Status, StatusProtocol, StatusUrl};
use crate::reckon::{Figures, Reckoner};
use crate::window::Window;
use crate::wire::control::Control;

/// What is known of one service.
#[derive(Debug)]
pub struct Service {
    config: ServiceConfig,
    rule: Rule,
    /// A configured service stays when it has no instances.
    is_configured: bool,
    /// By id, which is also the order of scoring.
    instances: BTreeMap<String, Record>,
    claims: Claims,
    guard: Guard<Record>,
    /// Until when the reading changes by time alone: windows move on, and what
    /// was reported is no longer fresh. `None` once that was seen.
    moves_until_ms: Option<u64>,
}

/// Where an instance is registered.
pub enum Layer {
    /// In the configuration file.
    File,
    /// In etcd, at this revision.
    Etcd(i64),
}

/// What a registration changed.
#[derive(Debug)]
pub struct Change {
    /// The instance that is no longer offered because of it, this one or another,
    /// if two have one address.
    pub eclipsed: Option<String>,
    /// Whether nothing but the revision changed.
    pub is_repetition: bool,
}

/// What came of the losses of late.
#[derive(Debug, Default)]
pub struct Settled {
    /// So many instances are there again, and doubtful.
    pub back: usize,
    /// Of so many.
    pub of: usize,
    /// So many doubtful ones left since others have their addresses.
    pub moved: usize,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Nothing that shows.
    None,
    /// How the instance is.
    Figures,
    /// Who may be offered.
    Members,
}

#[derive(Debug)]
struct Record {
    file: Option<Instance>,
    /// With the revision at which it was registered.
    etcd: Option<(Instance, i64)>,
    window: Window,
    reach: Reach,
    /// The process's own, as an exporter reported it last.
    boot_id: Option<u64>,
    /// Until when the figures of an exporter are fresh, and no others are heard.
    exporters_until_ms: u64,
    /// What makes statuses of the reports that responses brought.
    in_band: Option<Box<InBand>>,
    /// etcd does not have it, and that is not believed.
    is_doubtful: bool,
}

#[derive(Debug)]
struct InBand {
    reckoner: Reckoner,
    /// Until when the last report counts.
    until_ms: u64,
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
    /// Addresses with more than one claim. Mostly there is none, and then nobody
    /// has to be looked up.
    contested: usize,
}

/// Registrations in the file are older than any in etcd, which begin at 1.
const FILE_REVISION: i64 = 0;

impl Service {
    /// A service that the configuration names; its instances are yet to be
    /// registered. `interval_ms` is the exporter's.
    pub fn configured(config: ServiceConfig, interval_ms: u64) -> Self {
        Self::new(config, interval_ms, true)
    }

    /// A service that etcd alone knows, and that exists as long as it has
    /// instances.
    pub fn discovered(interval_ms: u64) -> Self {
        Self::new(ServiceConfig::default(), interval_ms, false)
    }

    fn new(config: ServiceConfig, interval_ms: u64, is_configured: bool) -> Self {
        Self {
            rule: Rule::new(&config.status, interval_ms),
            guard: Guard::new(&config.guard),
            config,
            is_configured,
            instances: BTreeMap::new(),
            claims: Claims::default(),
            moves_until_ms: None,
        }
    }

    /// Whether nothing is left of the service.
    pub fn is_gone(&self) -> bool {
        !self.is_configured && self.instances.is_empty() && self.guard.is_idle()
    }

    /// Takes in a registration; the one in etcd wins while there is one.
    pub fn register(&mut self, instance: Instance, layer: Layer, window: &WindowConfig) -> Change {
        let id = instance.id.clone();
        let record = self.instances.entry(id.clone()).or_insert_with(|| Record {
            file: None,
            etcd: None,
            window: Window::new(window),
            reach: Reach::default(),
            boot_id: None,
            exporters_until_ms: 0,
            in_band: None,
            is_doubtful: false,
        });
        let was_doubtful = std::mem::take(&mut record.is_doubtful);
        let known = match layer {
            Layer::File => record.file.as_ref(),
            Layer::Etcd(_) => record.etcd.as_ref().map(|(known, _)| known),
        };
        let is_known = known == Some(&instance);
        let (eclipsed, _) = self.change(&id, |record| match layer {
            Layer::File => record.file = Some(instance),
            Layer::Etcd(revision) => record.etcd = Some((instance, revision)),
        });
        if self.guard.is_on() {
            self.guard.end(&id, Outcome::Returned);
        }
        // Who is doubtful stands back for who has its address now.
        let is_doubtful = |id: &String| self.instances.get(id).is_some_and(|it| it.is_doubtful);
        let eclipsed = eclipsed.filter(|id| !is_doubtful(id));
        Change { is_repetition: is_known && eclipsed.is_none() && !was_doubtful, eclipsed }
    }

    /// Takes away the registration in etcd; the file's comes back, if there is
    /// one. A `loss` is one that is to be weighed with others, unless the instance was
    /// to get no requests.
    pub fn deregister(
        &mut self,
        id: &str,
        loss: Option<Loss>,
        control: Option<&Control>,
    ) -> Change {
        let record = self.instances.get(id);
        let loss = loss.filter(|_| record.is_some_and(|it| it.is_wanted(&self.claims, control)));
        let registration = record.and_then(|record| record.etcd.clone());
        let (eclipsed, left) = self.change(id, |record| record.etcd = None);
        if let (Some(loss), Some(left)) = (loss, left) {
            self.guard.lose(id, loss, Record { etcd: registration, ..left });
        }
        Change { eclipsed, is_repetition: false }
    }

    /// Remembers how many there are, before some may be lost.
    pub fn note_there(&mut self, control: Option<&Control>, now_ms: u64) {
        self.guard.note(self.there(control), now_ms);
    }

    /// Decides whether what was lost is to be believed.
    pub fn settle(&mut self, control: Option<&Control>, now_ms: u64) -> Settled {
        let claims = &self.claims;
        let owner = |record: &Record| claims.owner(&record.current()?.addr);
        self.guard.forget(|_, record| owner(record).is_some());
        let moved = self.doubtful().filter(|it| claims.owner(&it.addr) != Some(&it.id));
        let moved: Vec<_> = moved.map(|it| it.id.clone()).collect();
        moved.iter().for_each(|id| _ = self.end_doubt(id, Outcome::Replaced));
        let there = self.there(control);
        let back = self.guard.weigh(there, now_ms);
        let count = back.len();
        for (id, record) in back {
            self.claims.replace(None, record.claim());
            self.instances.insert(id, Record { is_doubtful: true, ..record });
        }
        Settled { back: count, of: there + count, moved: moved.len() }
    }

    /// Takes in an instance that an earlier thread doubted, unless more is known of it.
    pub fn recall(&mut self, instance: Instance, loss: Loss, window: &WindowConfig) -> bool {
        let id = instance.id.clone();
        let is_taken = self.claims.owner(&instance.addr).is_some();
        if !self.guard.is_on() || is_taken || self.instances.contains_key(&id) {
            return false;
        }
        self.register(instance, Layer::Etcd(FILE_REVISION), window);
        self.instances.get_mut(&id).into_iter().for_each(|it| it.is_doubtful = true);
        self.guard.doubt(&id, loss);
        true
    }

    /// Those that etcd does not have, and that are kept for now.
    pub fn doubtful(&self) -> impl Iterator<Item = &Instance> {
        self.guard.doubtful().filter_map(|id| self.instances.get(id)?.current())
    }

    /// How many those are.
    pub fn doubts(&self) -> usize {
        self.guard.doubtful().len()
    }

    /// Lets a doubtful instance go; `false` if it is not that.
    pub fn end_doubt(&mut self, id: &str, outcome: Outcome) -> bool {
        let had_doubt = self.guard.end(id, outcome);
        if had_doubt {
            self.change(id, |record| record.etcd = None);
        }
        had_doubt
    }

    /// A list of this number has ended. Returns how many doubtful ones left by that.
    pub fn end_list(&mut self, list: u64, control: Option<&Control>) -> usize {
        let left = self.guard.end_list(list, self.there(control));
        self.drop_all(left)
    }

    /// Returns how many doubtful ones left since their time is over.
    pub fn expire(&mut self, now_ms: u64) -> usize {
        let left = self.guard.expire(now_ms);
        self.drop_all(left)
    }

    /// Whether another list would tell more of those that are doubtful.
    pub fn wants_list(&self, control: Option<&Control>) -> bool {
        self.guard.wants_list(|| self.there(control))
    }

    /// What became of all that were doubtful, once none are any more.
    pub fn take_tally(&mut self) -> Option<Tally> {
        self.guard.take_tally()
    }

    /// Losses so near to each other are one.
    pub fn loss_window(&self) -> Duration {
        self.config.guard.window
    }

    /// Forgets losses that weigh no more.
    pub fn forget_old_losses(&mut self, now_ms: u64) {
        self.guard.forget_old(now_ms);
    }

    fn drop_all(&mut self, ids: Vec<String>) -> usize {
        for id in &ids {
            self.change(id, |record| record.etcd = None);
        }
        ids.len()
    }

    /// How many instances are to get requests, without the doubtful ones.
    fn there(&self, control: Option<&Control>) -> usize {
        let is_there =
            |record: &&Record| !record.is_doubtful && record.is_wanted(&self.claims, control);
        self.instances.values().filter(is_there).count()
    }

    /// Returns who is eclipsed by the change, and the record if that is the end of it.
    fn change(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut Record),
    ) -> (Option<String>, Option<Record>) {
        let Some(record) = self.instances.get_mut(id) else { return (None, None) };
        let (old_claim, old_status) = (record.claim(), record.status_url().cloned());
        change(record);
        let new_claim = record.claim();
        let has_ended = record.current().is_none();
        if !has_ended && record.status_url() != old_status.as_ref() {
            // It is asked elsewhere from now on, and has yet to answer there.
            record.reach = Reach::default();
            record.exporters_until_ms = 0;
        }
        let left = if has_ended { self.instances.remove(id) } else { None };
        (self.claims.replace(old_claim, new_claim), left)
    }

    /// Takes in what an exporter reports of an instance; `None` without such an
    /// instance.
    pub fn record(&mut self, entry: &InstanceReport, exporter: &str, now_ms: u64) -> Option<News> {
        let rule = self.rule;
        let record = self.instances.get_mut(&entry.id)?;
        let source = Source { exporter, interval_ms: to_ms(entry.interval) };
        let news = record.report(&entry.report, source, rule, now_ms);
        let moves_for_ms = record.window.span_ms().max(rule.fresh_for_ms(source));
        self.moves_until_ms = self.moves_until_ms.max(Some(now_ms + moves_for_ms));
        Some(news)
    }

    /// Takes in what a response said of the instance that it came from. An
    /// exporter's figures come first while they are fresh, and a word that the
    /// instance wants no requests stands whatever its last responses say.
    pub fn in_band(&mut self, id: &str, figures: Figures, now: Instant, now_ms: u64) -> News {
        let rule = self.rule;
        let Some(record) = self.instances.get_mut(id) else { return News::None };
        if now_ms <= record.exporters_until_ms || record.reach.is_not_serving() {
            return News::None;
        }
        let source = Source { exporter: IN_BAND, interval_ms: 0 };
        let fresh_for_ms = rule.fresh_for_ms(source);
        let Some(status) = record.reckon(figures, fresh_for_ms, now, now_ms) else {
            return News::None;
        };
        record.window.record(&status, now_ms);
        record.reach.good(rule, source, now_ms, now_ms);
        let moves_for_ms = record.window.span_ms().max(fresh_for_ms);
        self.moves_until_ms = self.moves_until_ms.max(Some(now_ms + moves_for_ms));
        News::Figures
    }

    /// Applies the rule to those that could be offered; returns whether it put
    /// out or brought back any.
    pub fn judge(&mut self, hears_all: bool, now_ms: u64) -> bool {
        let claims = &self.claims;
        let mut judged: Vec<&mut Reach> = self
            .instances
            .values_mut()
            .filter(|record| record.status_url().is_some() && record.is_granted(claims))
            .map(|record| &mut record.reach)
            .collect();
        reach::judge(self.rule, hears_all, now_ms, &mut judged)
    }

    /// Whether time alone may have changed the reading since this was last asked.
    pub fn has_moved(&mut self, now_ms: u64) -> bool {
        // Once more after the last change, for the time between the two.
        let until_ms = self.moves_until_ms;
        self.moves_until_ms = until_ms.filter(|until_ms| now_ms <= *until_ms);
        until_ms.is_some()
    }

    /// All that are registered, by id.
    pub fn known<'a>(&'a mut self, control: Option<&Control>, now_ms: u64) -> Vec<Known<'a>> {
        let (rule, claims) = (self.rule, &self.claims);
        let known = |record: &'a mut Record| {
            let absence = record.absence(control, claims, rule, now_ms);
            let samples = record.window.samples(now_ms);
            let load = (samples > 0).then(|| record.window.load(now_ms));
            let report_age_ms = record.reach.age_ms(now_ms);
            Some(Known { instance: record.current()?, absence, samples, report_age_ms, load })
        };
        self.instances.values_mut().filter_map(known).collect()
    }

    /// How the gateway is to check the service's instances.
    pub fn check(&self) -> &CheckConfig {
        &self.config.check
    }

    /// The instances to check: all that may be offered now or some day, so that it is
    /// known how they are when they are. Not those that count as not registered.
    pub fn checked<'a>(
        &'a self,
        control: Option<&'a Control>,
    ) -> impl Iterator<Item = &'a Instance> {
        let is_disabled = move |id: &String| control.is_some_and(|it| it.disable.contains(id));
        let counts = |record: &Record| record.is_granted(&self.claims) || record.claim().is_none();
        self.instances
            .iter()
            .filter(move |(id, record)| counts(record) && !is_disabled(id))
            .filter_map(|(_, record)| record.current())
    }

    /// The configured rules.
    pub fn rules(&self) -> &[config::Rule] {
        &self.config.rules
    }

    /// The labels of an instance, as its registration in force says.
    pub fn labels(&self, id: &str) -> Option<&BTreeMap<String, String>> {
        Some(&self.instances.get(id)?.current()?.labels)
    }

    /// What the service has to offer.
    pub fn reading<'a>(&'a mut self, control: Option<&'a Control>, now_ms: u64) -> Reading<'a> {
        let (rule, claims) = (self.rule, &self.claims);
        let is_offered = |id: &str| control.is_none_or(|control| control.offers(id));
        let members: Vec<Member<'_>> = self
            .instances
            .iter_mut()
            .filter(|(id, record)| is_offered(id) && record.is_granted(claims))
            .filter_map(|(_, record)| record.member(rule, now_ms))
            .collect();
        Reading { config: &self.config, control, members }
    }
}

impl Record {
    /// Why it is not offered.
    fn absence(
        &self,
        control: Option<&Control>,
        claims: &Claims,
        rule: Rule,
        now_ms: u64,
    ) -> Option<Absence> {
        let instance = self.current()?;
        let id = &instance.id;
        if control.is_some_and(|control| control.disable.contains(id)) {
            return Some(Absence::Disabled);
        }
        if instance.drain || control.is_some_and(|control| control.drain.contains(id)) {
            return Some(Absence::Draining);
        }
        if !self.is_granted(claims) {
            return Some(Absence::Eclipsed);
        }
        match self.state(rule, now_ms) {
            Some(_) => None,
            None if self.reach.is_not_serving() => Some(Absence::NotServing),
            None => Some(Absence::Unreachable),
        }
    }

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
            let is_owner = || claims.owner(&instance.addr) == Some(&instance.id);
            !instance.drain && (claims.contested == 0 || is_owner())
        })
    }

    /// Whether it is there to get requests.
    fn is_wanted(&self, claims: &Claims, control: Option<&Control>) -> bool {
        let is_offered = |it: &Instance| control.is_none_or(|control| control.offers(&it.id));
        self.current().is_some_and(is_offered)
            && self.is_granted(claims)
            && !self.reach.is_not_serving()
    }

    fn member(&mut self, rule: Rule, now_ms: u64) -> Option<Member<'_>> {
        let state = self.state(rule, now_ms)?;
        let load = (state == State::Reporting).then(|| self.window.load(now_ms));
        let state = if self.is_doubtful { State::Doubtful } else { state };
        Some(Member {
            instance: self.current()?,
            state,
            load,
            boot_id: self.boot_id,
            report_age_ms: self.reach.age_ms(now_ms),
        })
    }

    /// `None` if the instance was put out.
    fn state(&self, rule: Rule, now_ms: u64) -> Option<State> {
        match self.status_url() {
            _ if self.reach.is_fresh(rule, now_ms) => Some(State::Reporting),
            None => Some(State::Unreported),
            Some(_) if self.reach.is_out() => None,
            Some(_) if self.reach.is_unreachable() => Some(State::Unreachable),
            Some(_) => Some(State::Unknown),
        }
    }

    /// What a response's report makes the instance's counters. They begin anew
    /// when the report before it is no longer fresh: how things went since then is
    /// not known.
    fn reckon(
        &mut self,
        figures: Figures,
        fresh_for_ms: u64,
        now: Instant,
        now_ms: u64,
    ) -> Option<Status> {
        let last = self.in_band.take().filter(|last| now_ms <= last.until_ms);
        let mut in_band = last.unwrap_or_else(|| {
            // Not that of the window's last status, nor what a process may have that
            // counts its starts: the next of Weyl's sequence.
            let last = self.window.boot_id().unwrap_or(0);
            let boot_id = last.wrapping_add(0x9e37_79b9_7f4a_7c15).max(1);
            Box::new(InBand { reckoner: Reckoner::new(boot_id), until_ms: 0 })
        });
        in_band.until_ms = now_ms + fresh_for_ms;
        in_band.reckoner.hear(figures, now);
        let status = in_band.reckoner.tell(now);
        self.in_band = Some(in_band);
        status
    }

    fn report(&mut self, report: &Report, source: Source<'_>, rule: Rule, now_ms: u64) -> News {
        let before = self.state(rule, now_ms);
        let mut has_news = false;
        match report {
            Report::Status(status) => {
                let is_new_boot = self.window.boot_id() != Some(status.boot_id);
                if is_new_boot && self.reach.is_held_from(source.exporter, now_ms) {
                    return News::None;
                }
                // A status that was seen before is no news, and still a sign of
                // life as of the time that its age says.
                has_news = self.window.record(status, now_ms);
                // Of the other protocols the exporter makes one up, and another one
                // after its own start.
                let is_own =
                    self.status_url().is_some_and(|it| it.protocol == StatusProtocol::Grpc);
                self.boot_id = is_own.then_some(status.boot_id);
                let sampled_ms = now_ms.saturating_sub(to_ms(status.age));
                self.reach.good(rule, source, sampled_ms, now_ms);
                let until_ms = sampled_ms + rule.fresh_for_ms(source);
                self.exporters_until_ms = self.exporters_until_ms.max(until_ms);
            }
            Report::Serving => self.reach.good(rule, source, now_ms, now_ms),
            Report::NotServing => {
                let is_known = self.reach.is_not_serving();
                self.reach.not_serving();
                return if is_known { News::None } else { News::Members };
            }
            Report::Unreachable { silent_for } => {
                self.reach.unreachable(rule, source, to_ms(*silent_for), now_ms);
                // Whether that puts it out is for the rule to say.
                has_news = !self.reach.is_out();
            }
        }
        let has_changed = has_news || self.state(rule, now_ms) != before;
        if has_changed { News::Figures } else { News::None }
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
            self.contested -= usize::from(claims.len() == 1);
            if claims.is_empty() {
                self.by_addr.remove(&addr);
            }
        }
        let Claim { addr, revision, id } = new?;
        let claims = self.by_addr.entry(addr).or_default();
        claims.insert((Reverse(revision), id.clone()));
        self.contested += usize::from(claims.len() == 2);

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
