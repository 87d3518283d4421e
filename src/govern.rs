//! From a ranking to what is published: the operator's hand, health, zones and age,
//! as factors of each instance's weight. One order, in this one place:
//!
//! ```text
//! weight     = base * health * zone * slow start
//! base       = the operator's weight in manual mode, else the ranking's
//! health     = 0 for an instance that is ejected or fails its checks; 1 in a panic
//! zone       = its zone's share of this gateway's traffic over the part of
//!              base * health that is its zone's, by the largest of all zones;
//!              1 without `gateway.zone`
//! slow start = its ramp, see [`ramp`]; 1 where more than half of base * health is in
//!              its ramp
//! ```
//!
//! Where the weights are the operator's, they are the truth: neither zone nor slow
//! start counts, and health does.
//!
//! Who is not offered at all (drained, disabled, out) is not in the ranking: the
//! registry sees to that. Nor is who is not in this gateway's [`subset`].

mod ramp;
pub mod subset;
mod zone;

use std::collections::BTreeMap;

use self::ramp::Ages;
pub use self::subset::Gateway;
use self::zone::{Flow, Known, Zone};
use serde::Serialize;

use crate::config::rules::groups_of;
use crate::config::{Rule, ServiceConfig, SlowStartConfig, ZoneConfig};
use crate::ranking::{Basis, Entry, Ranking, State};
use crate::registry::Member;
use crate::wire::control::Control;

/// What is known of one instance, beside how it ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Whether it may get requests.
    pub health: Health,
}

/// Whether an instance may get requests, by those who watch it from this host. What
/// it says of itself is in its [`State`] and can only be worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Nothing speaks against it.
    #[default]
    Up,
    /// It failed too often where requests were sent to it.
    Ejected,
    /// It fails the checks.
    Failing,
}

/// A ranking, governed.
#[derive(Debug, Clone)]
pub struct Governed<'a> {
    /// What it is made from.
    pub ranking: &'a Ranking,
    /// What the operator wants.
    pub control: Option<&'a Control>,
    /// Whether the weights are the operator's.
    pub is_manual: bool,
    /// Whether too few are healthy to leave the others out.
    pub is_panic: bool,
    /// Which requests go to which instances.
    pub rules: &'a [Rule],
    /// One for each of the ranking's entries, in rank order.
    pub shares: Vec<Share<'a>>,
    /// Those in their slow start, with when it began on a monotonic clock, in
    /// milliseconds: for a thread that goes on from here.
    pub starts: BTreeMap<String, u64>,
}

/// What one instance is to get.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// Its place in the ranking.
    pub entry: &'a Entry,
    /// What it is left out for, if it is, or would be without a panic; else what its
    /// place rests on.
    pub state: State,
    /// Its share of the traffic before the factors; finite, not negative.
    pub base: f64,
    /// What serves where nothing is known of load: the operator's weight in manual
    /// mode, else the fallback weight.
    pub prior: f64,
    /// What the weight is multiplied by.
    pub factors: Factors,
    /// The rules that select it: bit 0 for the first.
    pub groups: u16,
}

/// The factors of one weight, each finite and not negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Factors {
    /// 0 for one that is not healthy, unless there is a panic.
    pub health: f64,
    /// Of its zone.
    pub zone: f64,
    /// 1 for one that is not new.
    pub slow_start: f64,
}

impl Share<'_> {
    /// What the weight is multiplied by: the product of the factors.
    pub fn factor(&self) -> f64 {
        let Factors { health, zone, slow_start } = self.factors;
        health * zone * slow_start
    }

    /// Its share of the traffic is this over the sum of all.
    pub fn weight(&self) -> f64 {
        self.base * self.factor()
    }
}

impl<'a> Governed<'a> {
    /// Puts rules in force, by the labels of each instance, which `labels` knows by id.
    pub fn route<'l>(
        mut self,
        rules: &'a [Rule],
        labels: impl Fn(&str) -> Option<&'l BTreeMap<String, String>>,
    ) -> Self {
        self.rules = rules;
        if !rules.is_empty() {
            for share in &mut self.shares {
                share.groups = labels(&share.entry.id).map_or(0, |it| groups_of(rules, it));
            }
        }
        self
    }
}

/// What becomes of a ranking by all that governs it. `facts` are those of the
/// ranking's entries, in rank order. With fewer than `panic_percent` of the instances
/// healthy, all count as if they were; those whose base is 0 are in neither number.
pub fn govern<'a>(
    ranking: &'a Ranking,
    control: Option<&'a Control>,
    facts: &[Facts],
    panic_percent: u32,
) -> Governed<'a> {
    let entries = &ranking.entries;
    // Where nobody is left whom the operator named, there is no wish to follow.
    let manual = control.filter(|control| {
        let weighs = |entry: &Entry| control.manual_weight(&entry.id).is_some_and(|it| it > 0.0);
        entries.iter().any(weighs)
    });
    let weights = |entry: &Entry| match manual.and_then(|it| it.manual_weight(&entry.id)) {
        Some(weight) => (weight, weight),
        None => (entry.weight, entry.fallback_weight),
    };
    let all = entries.iter().zip(facts);
    let offered = all.clone().filter(|(entry, _)| weights(entry).0 > 0.0);
    let healthy = offered.clone().filter(|(_, facts)| facts.health == Health::Up).count();
    let is_panic = healthy * 100 < offered.count() * panic_percent as usize;
    let share = |(entry, facts): (&'a Entry, &Facts)| {
        let (base, prior) = weights(entry);
        let health = if facts.health == Health::Up || is_panic { 1.0 } else { 0.0 };
        let state = match facts.health {
            Health::Up => entry.state,
            Health::Ejected => State::Ejected,
            Health::Failing => State::Failing,
        };
        let factors = Factors { health, zone: 1.0, slow_start: 1.0 };
        Share { entry, state, base, prior, factors, groups: 0 }
    };
    let shares = all.map(share).collect();
    let starts = BTreeMap::new();
    Governed { ranking, control, is_manual: manual.is_some(), is_panic, rules: &[], shares, starts }
}

/// What the configuration says of a service's zones and slow start.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    slow_start: SlowStartConfig,
    zone: ZoneConfig,
    /// The gateway's; empty where zones do not count.
    gateway_zone: String,
}

impl Terms {
    /// For a service of this configuration, on this gateway.
    pub fn new(service: &ServiceConfig, gateway: &Gateway) -> Self {
        let ServiceConfig { slow_start, zone, .. } = *service;
        let gateway_zone = if zone.prefer { gateway.zone.clone() } else { String::new() };
        Terms { slow_start, zone, gateway_zone }
    }

    fn has_slow_start(&self) -> bool {
        !self.slow_start.window.is_zero()
    }
}

/// What of governing one service goes on from ranking to ranking: its instances'
/// ages, and where its traffic is on its way to.
#[derive(Debug, Default)]
pub struct Course {
    ages: Ages,
    flow: Flow,
    is_moving: bool,
}

/// What a thread that ended left of a [`Course`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CourseLeft {
    /// [`Governed::starts`].
    pub starts: BTreeMap<String, u64>,
    /// Each zone's share of the weights.
    pub zones: BTreeMap<String, f64>,
}

impl Course {
    /// Goes on from where an earlier thread was.
    pub fn resumed(left: CourseLeft, terms: &Terms, now_ms: u64) -> Self {
        let CourseLeft { starts, zones } = left;
        let ages = Ages::resumed(&starts, now_ms);
        Course { ages, flow: Flow::resumed(zones, &terms.gateway_zone, now_ms), is_moving: false }
    }

    /// These are offered, to this gateway or others: before a subset of them is
    /// chosen. `is_complete`: no first list of them is awaited.
    pub fn see(&mut self, members: &[Member<'_>], terms: &Terms, is_complete: bool, now_ms: u64) {
        if terms.has_slow_start() {
            let offered =
                members.iter().map(|it| (it.instance.id.as_str(), it.instance.addr, it.boot_id));
            self.ages.see(offered, is_complete, now_ms);
        }
    }

    /// Multiplies what is governed by zone and slow start.
    pub fn steer(&mut self, governed: &mut Governed<'_>, terms: &Terms, now_ms: u64) {
        for share in governed.shares.iter().filter(|_| terms.has_slow_start()) {
            let is_up = !matches!(share.state, State::Ejected | State::Failing);
            self.ages.hear(&share.entry.id, is_up, now_ms);
        }
        governed.starts = self.ages.starts(&terms.slow_start, now_ms);
        self.is_moving = !governed.starts.is_empty();
        if governed.is_manual {
            return;
        }
        let ramps = self.ramps(governed, terms, now_ms);
        if !terms.gateway_zone.is_empty() {
            self.steer_zones(governed, terms, now_ms);
            self.is_moving |= self.flow.is_moving();
        }
        for (share, ramp) in governed.shares.iter_mut().zip(ramps) {
            share.factors.slow_start = ramp;
        }
    }

    /// Whether time alone changes what is published.
    pub fn is_moving(&self) -> bool {
        self.is_moving
    }

    /// Each one's ramp; all 1 if most of the service is new.
    fn ramps(&self, governed: &Governed<'_>, terms: &Terms, now_ms: u64) -> Vec<f64> {
        let ramp = |share: &Share<'_>| self.ages.ramp(&share.entry.id, &terms.slow_start, now_ms);
        let ramps: Vec<f64> = governed.shares.iter().map(ramp).collect();
        let shares = || governed.shares.iter().zip(&ramps);
        let all: f64 = shares().map(|(share, _)| share.weight()).sum();
        let new: f64 = shares().filter(|(_, ramp)| **ramp < 1.0).map(|(it, _)| it.weight()).sum();
        if 2.0 * new > all * (1.0 + 1e-9) { vec![1.0; ramps.len()] } else { ramps }
    }

    fn steer_zones(&mut self, governed: &mut Governed<'_>, terms: &Terms, now_ms: u64) {
        let zones = zones_of(&governed.shares);
        let known = match governed.ranking.basis {
            Basis::Reports => Known::Reported,
            Basis::OldReports => Known::Once,
            Basis::Priors => Known::Nothing,
        };
        let shares = self.flow.next(&zones, &terms.gateway_zone, &terms.zone, known, now_ms);
        let of = |(zone, share): (&Zone<'_>, f64)| {
            if zone.natural > 0.0 { share / zone.natural } else { 1.0 }
        };
        let factors: Vec<f64> = zones.iter().zip(shares).map(of).collect();
        let most = factors.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let factors: BTreeMap<String, f64> =
            zones.iter().zip(factors).map(|(zone, it)| (zone.name.to_owned(), it / most)).collect();
        for share in &mut governed.shares {
            share.factors.zone = factors.get(&share.entry.zone).copied().unwrap_or(1.0);
        }
    }
}

/// The zones of instances with base and health, in order of their names.
fn zones_of<'a>(shares: &[Share<'a>]) -> Vec<Zone<'a>> {
    let mut zones: BTreeMap<&str, Zone<'_>> = BTreeMap::new();
    // Divided first, so that no sum of finite weights overflows.
    let largest = shares.iter().map(Share::weight).fold(f64::MIN_POSITIVE, f64::max);
    for share in shares {
        let entry = share.entry;
        let zone = zones.entry(&entry.zone).or_default();
        zone.name = &entry.zone;
        zone.all += entry.fallback_weight;
        zone.rate_per_s += entry.estimate.rate_per_s();
        if share.factor() > 0.0 {
            zone.natural += share.weight() / largest;
            zone.healthy += entry.fallback_weight;
            zone.capacity_per_s += entry.ability.map_or(0.0, |it| it.capacity_per_s);
        }
    }
    let all: f64 = zones.values().map(|zone| zone.natural).sum();
    let mut zones: Vec<Zone<'_>> = zones.into_values().collect();
    if all > 0.0 {
        zones.iter_mut().for_each(|zone| zone.natural /= all);
    }
    zones
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Instance;
    use crate::ranking::{Estimate, State};
    use crate::wire::control::decode_control;

    /// Instances a, b, … of these weights and of the fallback weights 10, 11, ….
    pub(crate) fn ranking(weights: &[f64]) -> Ranking {
        let entry = |(index, &weight): (u8, &f64)| Entry {
            id: char::from(b'a' + index).to_string(),
            addr: ([127, 0, 0, 1], 9000 + u16::from(index)).into(),
            zone: String::new(),
            score: 0.0,
            weight,
            fallback_weight: 10.0 + f64::from(index),
            ability: None,
            reported_ms: 0,
            estimate: Estimate::default(),
            state: State::Reporting,
            max_in_flight: 0,
        };
        Ranking { entries: (0..).zip(weights).map(entry).collect(), ..Ranking::default() }
    }

    fn shares(control: &str) -> (bool, Vec<(f64, f64)>) {
        let control = decode_control(control.as_bytes()).unwrap();
        let ranking = ranking(&[1.0, 2.0]);
        let governed = govern(&ranking, Some(&control), &[Facts::default(); 2], 50);
        let of = |share: &Share<'_>| (share.weight(), share.prior);
        (governed.is_manual, governed.shares.iter().map(of).collect())
    }

    #[test]
    fn the_base_is_the_rankings_weight_or_the_operators() {
        assert_eq!(shares("{}"), (false, vec![(1.0, 10.0), (2.0, 11.0)]));
        let manual = r#"{"mode": "manual", "weights": {"b": 5}}"#;
        assert_eq!(shares(manual), (true, vec![(0.0, 0.0), (5.0, 5.0)]));
    }

    #[test]
    fn where_nobody_is_left_whom_the_operator_named_the_ranking_counts() {
        let manual = r#"{"mode": "manual", "weights": {"gone": 5, "a": 0}}"#;
        assert_eq!(shares(manual), (false, vec![(1.0, 10.0), (2.0, 11.0)]));
    }

    fn weights(health: &[Health], panic_percent: u32) -> (bool, Vec<f64>) {
        let ranking = ranking(&vec![1.0; health.len()]);
        let facts: Vec<_> = health.iter().map(|&health| Facts { health }).collect();
        let governed = govern(&ranking, None, &facts, panic_percent);
        (governed.is_panic, governed.shares.iter().map(Share::weight).collect())
    }

    #[test]
    fn who_is_not_healthy_gets_nothing_unless_too_few_are() {
        use Health::{Ejected, Failing, Up};
        assert_eq!(weights(&[Up, Ejected], 50), (false, vec![1.0, 0.0]));
        assert_eq!(weights(&[Up, Ejected, Failing], 50), (true, vec![1.0; 3]));
        assert_eq!(weights(&[Up, Ejected, Failing], 33), (false, vec![1.0, 0.0, 0.0]));
        assert_eq!(weights(&[Failing], 1), (true, vec![1.0]));
        assert_eq!(weights(&[Failing], 0), (false, vec![0.0]), "0 is never");
        assert_eq!(weights(&[], 50), (false, vec![]));
    }

    /// Six instances: the first three in this gateway's zone, the last two new. With the
    /// share of each of the weight.
    fn steered(control: &str, health: [Health; 6], terms: &Terms) -> Vec<f64> {
        let control = decode_control(control.as_bytes()).unwrap();
        let mut ranking = ranking(&[1.0; 6]);
        for (entry, zone) in ranking.entries.iter_mut().zip(["n", "n", "n", "f", "f", "f"]) {
            entry.zone = zone.into();
        }
        let mut course = Course::default();
        for (count, now_ms) in [(4, 0), (6, 10_000)] {
            let instances: Vec<Instance> = ranking.entries[..count].iter().map(instance).collect();
            let member = |instance| Member {
                instance,
                state: State::Unreported,
                load: None,
                boot_id: None,
                report_age_ms: None,
            };
            let members: Vec<_> = instances.iter().map(member).collect();
            course.see(&members, terms, true, now_ms);
        }
        let facts = health.map(|health| Facts { health });
        let mut governed = govern(&ranking, Some(&control), &facts, 50);
        course.steer(&mut governed, terms, 15_000);
        assert_eq!(course.is_moving(), terms.has_slow_start());
        let of_new: Vec<_> = governed.starts.into_iter().collect();
        let new = [("e".to_owned(), 10_000), ("f".to_owned(), 10_000)];
        assert_eq!(of_new, if terms.has_slow_start() { new.to_vec() } else { Vec::new() });
        let all: f64 = governed.shares.iter().map(Share::weight).sum();
        let share = |it: &Share<'_>| (it.weight() / all * 1e6).round() / 1e6;
        governed.shares.iter().map(share).collect()
    }

    fn instance(entry: &Entry) -> Instance {
        Instance {
            id: entry.id.clone(),
            addr: entry.addr,
            weight: 1.0,
            zone: entry.zone.clone(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: 0,
        }
    }

    fn terms(zone: &str, window_s: u64) -> Terms {
        let slow_start =
            SlowStartConfig { window: Duration::from_secs(window_s), ..Default::default() };
        let config = ServiceConfig { slow_start, ..ServiceConfig::default() };
        Terms::new(&config, &Gateway::new("g", zone.into()))
    }

    /// The shares of these weights.
    fn of_all(weights: [f64; 6]) -> Vec<f64> {
        let all: f64 = weights.iter().sum();
        weights.iter().map(|weight| (weight / all * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn a_weight_is_base_times_health_times_zone_times_slow_start() {
        use Health::{Ejected, Up};
        let auto = "{}";
        let manual = r#"{"mode": "manual", "weights": {"a": 6, "b": 3, "d": 2, "f": 1}}"#;
        let (well, one_lost) = ([Up; 6], [Ejected, Up, Up, Up, Up, Up]);
        let (near, far) = (0.99 / 3.0, 0.01 / 3.0);
        // Of the priors 10, 11 and 12 the first is lost.
        let part = 1.4 * 23.0 / 33.0;
        let (left, rest) = (part / 2.0, (1.0 - part) / 3.0);
        for (control, health, zone, window_s, expected) in [
            (auto, well, "", 0, [1.0; 6]),
            (auto, well, "", 10, [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]),
            (auto, well, "n", 0, [near, near, near, far, far, far]),
            (auto, well, "n", 10, [near, near, near, far, far / 2.0, far / 2.0]),
            (auto, one_lost, "", 0, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
            (auto, one_lost, "", 10, [0.0, 1.0, 1.0, 1.0, 0.5, 0.5]),
            (auto, one_lost, "n", 0, [0.0, left, left, rest, rest, rest]),
            (auto, one_lost, "n", 10, [0.0, left, left, rest, rest / 2.0, rest / 2.0]),
            (auto, well, "elsewhere", 0, [1.0; 6]),
            // The operator's weights are the truth; who is not well gets none.
            (manual, well, "n", 10, [6.0, 3.0, 0.0, 2.0, 0.0, 1.0]),
            (manual, one_lost, "n", 10, [0.0, 3.0, 0.0, 2.0, 0.0, 1.0]),
        ] {
            let found = steered(control, health, &terms(zone, window_s));
            let name = format!("{control} {health:?} {zone} {window_s}");
            assert_eq!(found, of_all(expected), "{name}");
        }
    }

    #[test]
    fn where_most_of_a_service_is_new_nobody_starts_slowly() {
        use Health::{Ejected, Up};
        let half = [Ejected, Ejected, Up, Up, Up, Up];
        assert_eq!(
            steered("{}", half, &terms("", 10)),
            of_all([0.0, 0.0, 1.0, 1.0, 0.5, 0.5]),
            "just half of it is new"
        );
        let most = [Ejected, Ejected, Ejected, Up, Up, Up];
        assert_eq!(steered("{}", most, &terms("", 10)), of_all([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
    }

    #[test]
    fn who_gets_nothing_anyway_is_no_healthy_one_to_rely_on() {
        let control = r#"{"mode": "manual", "weights": {"a": 2}}"#;
        let control = decode_control(control.as_bytes()).unwrap();
        let ranking = ranking(&[1.0, 1.0, 1.0]);
        let facts = [Health::Ejected, Health::Up, Health::Up].map(|health| Facts { health });
        let governed = govern(&ranking, Some(&control), &facts, 50);
        let weights: Vec<_> = governed.shares.iter().map(Share::weight).collect();
        assert_eq!((governed.is_panic, weights), (true, vec![2.0, 0.0, 0.0]));
    }

    #[test]
    fn the_state_says_what_an_instance_is_left_out_for_in_a_panic_too() {
        let ranking = ranking(&[1.0, 1.0, 1.0]);
        let health = [Health::Up, Health::Ejected, Health::Failing];
        let governed = govern(&ranking, None, &health.map(|health| Facts { health }), 50);
        let states: Vec<_> = governed.shares.iter().map(|share| share.state).collect();
        assert_eq!(states, [State::Reporting, State::Ejected, State::Failing]);
    }

    #[test]
    fn rules_select_by_labels_and_an_instance_without_any_is_of_the_rest() {
        let text =
            r#"{"rules": [{"name": "new", "to": {"v": "2"}}, {"name": "x", "to": {"z": "x"}}]}"#;
        let rules = decode_control(text.as_bytes()).unwrap().rules.unwrap();
        let ranking = ranking(&[1.0, 1.0, 1.0]);
        let labels = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
        let governed = govern(&ranking, None, &[Facts::default(); 3], 50)
            .route(&rules, |id| (id == "b").then_some(&labels));
        assert_eq!(governed.rules, rules);
        assert_eq!(governed.shares.iter().map(|it| it.groups).collect::<Vec<_>>(), [0, 1, 0]);
    }
}
