//! Who gets how much of a service's requests before and after a change of its
//! control, by the weights that are known: those that a gateway balances by, or
//! those of the registrations. What follows from them is the gateways' own reckoning
//! ([`rank`], [`govern`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::gateway::View;
use crate::config::ScoreConfig;
use crate::govern::{Facts, Health, govern};
use crate::model::Instance;
use crate::ranking::{Observed, State, rank};
use crate::registry::Member;
use crate::wire::control::Control;

/// As in the gateway: with fewer healthy ones, in percent, all get requests.
const PANIC_PERCENT: u32 = 50;

/// The shares of a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shares {
    /// What the weights were taken from.
    pub by: Source,
    /// The mode of the gateway that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_mode: Option<String>,
    /// By id.
    pub instances: Vec<ShareLine>,
}

/// What weights are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// What a gateway balances by.
    Gateway,
    /// The weights of the registrations: nobody was asked what counts now.
    Registrations,
    /// The gateway's before, and the registrations' after: a gateway does not tell its
    /// ranking's weights while manual ones are in force.
    GatewayAndRegistrations,
}

/// The shares of one instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShareLine {
    /// The instance's id.
    pub id: String,
    /// Its part of the requests, 0 to 1.
    pub before: f64,
    /// The same after the change.
    pub after: f64,
    /// What keeps it from requests after the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<Out>,
}

/// What keeps an instance from requests, whatever its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Out {
    /// The control's `disable`.
    Disabled,
    /// The control's `drain`.
    Drained,
    /// The registration's own `drain`.
    DrainsItself,
    /// The gateway does not offer it.
    LeftOut,
    /// The gateway found it to fail too often.
    Ejected,
    /// It fails the gateway's checks.
    Failing,
}

impl Out {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Drained => "drained",
            Self::DrainsItself => "drains by its registration",
            Self::LeftOut => "left out by the gateway",
            Self::Ejected => "ejected by the gateway",
            Self::Failing => "fails the gateway's checks",
        }
    }
}

/// A change of a control, as far as shares depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What was in force.
    pub before: &'a Control,
    /// What is to be.
    pub after: &'a Control,
    /// The instances whose own `drain` ends with it.
    pub undrained: &'a BTreeSet<String>,
}

/// The shares before and after `step` of the instances that are `registered`, and of
/// those that a gateway's `view` names beside them.
pub fn shares(registered: &[Instance], step: Step<'_>, view: Option<&View>) -> Shares {
    let instances = all(registered, view);
    let states: BTreeMap<&str, Option<Health>> = view
        .into_iter()
        .flat_map(|view| &view.instances)
        .map(|it| (it.id.as_str(), health(&it.state)))
        .collect();
    let out_before = |it: &Instance| out(step.before, it, it.drain);
    // A gateway has the last word on those that the operator does not keep from it.
    let is_left_out = |it: &Instance| {
        view.is_some() && out_before(it).is_none() && !states.contains_key(it.id.as_str())
    };
    let out_after = |it: &Instance| {
        let drains = it.drain && !step.undrained.contains(&it.id);
        out(step.after, it, drains).or_else(|| is_left_out(it).then_some(Out::LeftOut))
    };
    let facts = |it: &Instance| {
        let health = states.get(it.id.as_str()).copied().flatten().unwrap_or_default();
        Facts { health }
    };

    let told: BTreeMap<&str, f64> = view
        .into_iter()
        .flat_map(|view| &view.instances)
        .map(|it| (it.id.as_str(), it.weight))
        .collect();
    let was_manual =
        view.is_some_and(|view| view.control.as_ref().is_some_and(|control| control.is_manual));
    let base = if was_manual { BTreeMap::new() } else { told.clone() };
    let before = match view {
        Some(_) => parts(told.iter().map(|(&id, &weight)| (id.to_owned(), weight)).collect()),
        None => governed(&offered(&instances, out_before), step.before, &base, facts).0,
    };
    let (after, is_manual) = governed(&offered(&instances, out_after), step.after, &base, facts);

    let part = |of: &BTreeMap<String, f64>, id: &str| of.get(id).copied().unwrap_or(0.0);
    let line = |it: &Instance| {
        let (before, after) = (part(&before, &it.id), part(&after, &it.id));
        let unwell = || match facts(it).health {
            Health::Ejected => Some(Out::Ejected),
            Health::Failing => Some(Out::Failing),
            _ => None,
        };
        let out = out_after(it).or_else(|| unwell().filter(|_| after == 0.0));
        ShareLine { id: it.id.clone(), before, after, out }
    };
    let by = match view {
        None => Source::Registrations,
        Some(_) if was_manual && !is_manual => Source::GatewayAndRegistrations,
        Some(_) => Source::Gateway,
    };
    let gateway_mode = view.map(|view| view.mode.clone());
    Shares { by, gateway_mode, instances: instances.iter().map(line).collect() }
}

/// In order of their ids. An instance that a gateway alone knows, from its own file,
/// counts with the weight that a registration has by default.
fn all(registered: &[Instance], view: Option<&View>) -> Vec<Instance> {
    let mut all: BTreeMap<&str, Instance> =
        registered.iter().map(|it| (it.id.as_str(), it.clone())).collect();
    for it in view.into_iter().flat_map(|view| &view.instances) {
        all.entry(&it.id).or_insert_with(|| Instance {
            id: it.id.clone(),
            addr: it.addr,
            weight: 1.0,
            zone: String::new(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: 0,
        });
    }
    all.into_values().collect()
}

fn out(control: &Control, instance: &Instance, drains: bool) -> Option<Out> {
    if control.disable.contains(&instance.id) {
        Some(Out::Disabled)
    } else if control.drain.contains(&instance.id) {
        Some(Out::Drained)
    } else {
        drains.then_some(Out::DrainsItself)
    }
}

/// `None`: as well as can be.
fn health(state: &str) -> Option<Health> {
    match state {
        it if it == State::Ejected.as_str() => Some(Health::Ejected),
        it if it == State::Failing.as_str() => Some(Health::Failing),
        _ => None,
    }
}

fn offered(all: &[Instance], out: impl Fn(&Instance) -> Option<Out>) -> Vec<&Instance> {
    all.iter().filter(|it| out(it).is_none()).collect()
}

/// The parts of `offered` by what a gateway makes of them: `base` stands in place of
/// the weights of the registrations. Says, too, whether the operator's weights count.
fn governed(
    offered: &[&Instance],
    control: &Control,
    base: &BTreeMap<&str, f64>,
    facts: impl Fn(&Instance) -> Facts,
) -> (BTreeMap<String, f64>, bool) {
    let member = |instance| Member {
        instance,
        state: State::Unreported,
        load: None,
        boot_id: None,
        report_age_ms: None,
    };
    let members: Vec<_> = offered.iter().copied().map(member).collect();
    let observed = vec![Observed::default(); members.len()];
    let mut ranking = rank(&members, &ScoreConfig::default(), &observed, None, 0);
    for entry in &mut ranking.entries {
        entry.weight = base.get(entry.id.as_str()).copied().unwrap_or(entry.weight);
    }
    let by_id: BTreeMap<&str, &Instance> = offered.iter().map(|it| (it.id.as_str(), *it)).collect();
    let facts: Vec<_> = ranking.entries.iter().map(|it| facts(by_id[it.id.as_str()])).collect();
    let governed = govern(&ranking, Some(control), &facts, PANIC_PERCENT);
    let weights = governed.shares.iter().map(|it| (it.entry.id.clone(), it.weight()));
    (parts(weights.collect()), governed.is_manual)
}

/// Each weight over the sum of all. Where that is 0, all are equal: so pickers do.
fn parts(mut weights: BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let sum: f64 = weights.values().sum();
    let count = weights.len() as f64;
    for weight in weights.values_mut() {
        *weight = if sum > 0.0 { *weight / sum } else { 1.0 / count };
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::decode_control;
    use crate::wire::decode_instance;

    fn control(text: &str) -> Control {
        decode_control(text.as_bytes()).unwrap()
    }

    /// Instances a, b, … of these weights; those of a negative one drain.
    fn registered(weights: &[f64]) -> Vec<Instance> {
        let instance = |(index, weight): (u8, &f64)| {
            let (port, weight, drain) = (9000 + u16::from(index), weight.abs(), *weight < 0.0);
            let text =
                format!(r#"{{"addr": "127.0.0.1:{port}", "weight": {weight}, "drain": {drain}}}"#);
            let id = char::from(b'a' + index).to_string();
            decode_instance(&id, text.as_bytes()).unwrap()
        };
        (0..).zip(weights).map(instance).collect()
    }

    fn view(text: &str) -> View {
        serde_json::from_str(text).unwrap()
    }

    /// In percent, before and after, each with what keeps it out.
    fn percents(
        registered: &[Instance],
        [before, after]: [&str; 2],
        view: Option<&View>,
    ) -> (Source, String) {
        let (before, after) = (control(before), control(after));
        let step = Step { before: &before, after: &after, undrained: &BTreeSet::new() };
        let shares = shares(registered, step, view);
        let line = |line: &ShareLine| {
            let out = line.out.map_or(String::new(), |out| format!(" {}", out.as_str()));
            let percent = |part: f64| (part * 100.0).round();
            format!("{} {} {}{out}", line.id, percent(line.before), percent(line.after))
        };
        let lines: Vec<_> = shares.instances.iter().map(line).collect();
        (shares.by, lines.join(", "))
    }

    fn by_registrations(weights: &[f64], controls: [&str; 2]) -> String {
        let (by, lines) = percents(&registered(weights), controls, None);
        assert_eq!(by, Source::Registrations);
        lines
    }

    const MANUAL: &str = r#"{"mode": "manual", "weights": {"a": 3, "b": 1}}"#;

    #[test]
    fn manual_weights_stand_in_place_of_the_registrations() {
        assert_eq!(by_registrations(&[1.0, 1.0, 2.0], ["{}", MANUAL]), "a 25 75, b 25 25, c 50 0");
        assert_eq!(by_registrations(&[1.0, 1.0, 2.0], [MANUAL, "{}"]), "a 75 25, b 25 25, c 0 50");
    }

    #[test]
    fn who_is_kept_out_gets_nothing_and_the_others_all() {
        let after = r#"{"drain": ["a"], "disable": ["b"]}"#;
        assert_eq!(
            by_registrations(&[1.0, 1.0, 1.0, -1.0, 1.0], ["{}", after]),
            "a 25 0 drained, b 25 0 disabled, c 25 50, d 0 0 drains by its registration, e 25 50"
        );
        let all = r#"{"drain": ["a", "b"]}"#;
        assert_eq!(by_registrations(&[1.0, 1.0], ["{}", all]), "a 50 0 drained, b 50 0 drained");
    }

    #[test]
    fn where_nobody_is_left_whom_the_operator_named_the_registrations_count() {
        let drained = r#"{"mode": "manual", "weights": {"a": 3}, "drain": ["a"]}"#;
        assert_eq!(
            by_registrations(&[1.0, 1.0, 3.0], [MANUAL, drained]),
            "a 75 0 drained, b 25 25, c 0 75"
        );
    }

    #[test]
    fn a_drain_of_its_own_ends_where_that_is_asked_for() {
        let (nothing, undrained) = (Control::default(), BTreeSet::from(["b".to_owned()]));
        let step = Step { before: &nothing, after: &nothing, undrained: &undrained };
        let shares = shares(&registered(&[1.0, -1.0]), step, None);
        let after: Vec<_> = shares.instances.iter().map(|it| (it.before, it.after)).collect();
        assert_eq!(after, [(1.0, 0.5), (0.0, 0.5)]);
    }

    #[test]
    fn a_gateways_weights_count_before_those_of_the_registrations() {
        let view = view(
            r#"{"mode": "live", "instances": [
                {"id": "a", "addr": "127.0.0.1:1", "weight": 6, "state": "reporting"},
                {"id": "b", "addr": "127.0.0.1:2", "weight": 2, "state": "reporting"},
                {"id": "own", "addr": "127.0.0.1:3", "weight": 0, "state": "ejected"}]}"#,
        );
        let registered = registered(&[1.0, 1.0, 1.0, 2.0]);
        let controls = [r#"{"drain": ["d"]}"#, r#"{"drain": ["a"]}"#];
        let expected = "a 75 0 drained, b 25 50, c 0 0 left out by the gateway, d 0 50, \
                        own 0 0 ejected by the gateway";
        let expected = (Source::Gateway, expected.to_owned());
        assert_eq!(percents(&registered, controls, Some(&view)), expected);
    }

    #[test]
    fn who_fails_gets_nothing_of_manual_weights_either() {
        let view = view(
            r#"{"mode": "live", "instances": [
                {"id": "a", "addr": "127.0.0.1:1", "weight": 0, "state": "failing"},
                {"id": "b", "addr": "127.0.0.1:2", "weight": 2, "state": "reporting"}]}"#,
        );
        let (_, lines) = percents(&registered(&[1.0, 1.0]), ["{}", MANUAL], Some(&view));
        assert_eq!(lines, "a 0 0 fails the gateway's checks, b 100 100");
    }

    #[test]
    fn a_gateway_with_manual_weights_does_not_tell_the_rankings() {
        let view = view(
            r#"{"mode": "manual", "control": {"is_manual": true, "by": "ann"}, "instances": [
                {"id": "a", "addr": "127.0.0.1:1", "weight": 3, "state": "reporting"},
                {"id": "b", "addr": "127.0.0.1:2", "weight": 1, "state": "reporting"}]}"#,
        );
        let registered = registered(&[1.0, 4.0]);
        let expected = (Source::GatewayAndRegistrations, "a 75 20, b 25 80".to_owned());
        assert_eq!(percents(&registered, [MANUAL, "{}"], Some(&view)), expected);
        let drained = r#"{"mode": "manual", "weights": {"a": 3, "b": 1}, "drain": ["a"]}"#;
        let expected = (Source::Gateway, "a 75 0 drained, b 25 100".to_owned());
        assert_eq!(percents(&registered, [MANUAL, drained], Some(&view)), expected);
    }
}
