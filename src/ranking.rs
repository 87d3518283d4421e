//! Members to an ordered ranking with a weight for each: what is published, and
//! what the pickers draw from.
//!
//! The order is that of the scores. The weights are shares of the traffic: the
//! optimal ones by what each instance can do (`ranking::estimate`, `ranking::shares`), as soon as
//! any report tells that. Until then a weight is the instance's prior, tilted by
//! its score:
//!
//! ```text
//! weight = prior * clamp(exp(score), 0.1, 10)
//! ```
//!
//! Weights move by half of the way in a second, and by no more than a factor of
//! four. That damps a loop: more weight brings more load, which a window later
//! changes the reports. None falls below half a percent of an equal share, the
//! trickle by which a recovery is seen.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::SocketAddr;

use crate::config::ScoreConfig;
use crate::model::Instance;
use crate::registry::Member;
pub use crate::registry::State;
use crate::score;

mod estimate;
mod shares;

pub(crate) use estimate::KEPT_MS;
use estimate::{Abilities, Subject};
pub use estimate::{Estimate, FAILURE_FACTOR, Left, Observed};
pub use shares::{Ability, wait};

/// The bounds of a score's effect on a weight. Ten times the middle is the most
/// that gRPC's weighted round robin lets a weight be (`static_stride_scheduler.cc`).
/// A tenth is more than the hundredth that it lets it fall to: the worst keeps
/// enough traffic that its recovery is seen within a window.
const TILT: std::ops::RangeInclusive<f64> = 0.1..=10.0;

/// The least share, as a part of an equal one: with half of the instances on it,
/// a quarter of a percent of the requests.
const TRICKLE: f64 = 0.005;

/// The most that a weight changes in a second, up or down: fast enough for a surge,
/// in which instances on a trickle are to take part.
const STEP: f64 = 4.0;

/// A weight that is so near to where it goes, as a part of that, is there.
const ARRIVED: f64 = 0.01;

/// The time between two rankings counts as no more than this, in seconds.
const LONGEST_STEP_S: f64 = 5.0;

/// What a ranking's weights rest on, from the most that is known to the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Basis {
    /// Reports of now, of most instances.
    Reports,
    /// Reports of the last minute.
    OldReports,
    /// Scores and priors: nobody reports what could be divided by.
    #[default]
    Priors,
}

impl Basis {
    /// Every one, by its code in the shared dict.
    pub const ALL: [Self; 3] = [Self::Reports, Self::OldReports, Self::Priors];

    /// The name in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reports => "reports",
            Self::OldReports => "old_reports",
            Self::Priors => "priors",
        }
    }
}

/// The instances of one service, best first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ranking {
    /// In rank order.
    pub entries: Vec<Entry>,
    /// What the weights rest on.
    pub basis: Basis,
    /// Requests that the service gets from everywhere, a second; 0 is unknown.
    pub rate_per_s: f64,
    /// This host's part of them, 0 to 1; 0 is unknown.
    pub own_part: f64,
    /// When it was made, in milliseconds of a monotonic clock.
    pub made_ms: u64,
    /// Whether time alone changes it: weights are on their way, or rest on reports
    /// that are forgotten one day.
    pub is_moving: bool,
}

/// One instance's place.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Unique within the service.
    pub id: String,
    /// Where requests go.
    pub addr: SocketAddr,
    /// Empty if the instance does not say.
    pub zone: String,
    /// Higher is better; finite.
    pub score: f64,
    /// Its share of the traffic is its weight over the sum of all; finite, not
    /// negative, and not 0 throughout a ranking. The sum of all is that of the
    /// fallback weights.
    pub weight: f64,
    /// The weight for when nothing is known of what the instance can do: the prior.
    pub fallback_weight: f64,
    /// What the score rests on.
    pub state: State,
    /// Requests that this host may have in flight on it; 0 for no limit.
    pub max_in_flight: u32,
    /// What it can do, or what a typical one of its service can; `None` if nothing
    /// is known of any.
    pub ability: Option<Ability>,
    /// When its last good report was true, on the clock of [`Ranking::made_ms`]; 0 if
    /// this thread heard of none.
    pub reported_ms: u64,
    /// What the next ranking goes on from.
    pub(crate) estimate: Estimate,
}

impl Entry {
    /// As much of its registration as a ranking says: no labels, and no status.
    pub fn into_instance(self) -> Instance {
        Instance {
            id: self.id,
            addr: self.addr,
            weight: self.fallback_weight,
            zone: self.zone,
            labels: std::collections::BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: self.max_in_flight,
        }
    }
}

/// An instance to be ranked.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    member: &'a Member<'a>,
    observed: Observed,
    /// Higher is better; not a number counts as 0, the middle.
    score: f64,
}

/// Ranks a service's members by score, best first; equal ones by prior and then by
/// id, so that every gateway ranks alike. Ids are unique. `observed` is what this
/// host has seen of each member, in their order.
///
/// An instance with prior 0 comes last and has weight 0: its operator wants no
/// traffic on it. Where that is every instance of the service, all have prior 1
/// instead: they were registered to be used, and an answer from any is better
/// than none.
///
/// `previous` is the service's ranking before this one. A changed prior is an
/// operator's wish, and takes effect at once where weights rest on priors.
pub fn rank(
    members: &[Member<'_>],
    scorer: &ScoreConfig,
    observed: &[Observed],
    previous: Option<&Ranking>,
    now_ms: u64,
) -> Ranking {
    let loads: Vec<_> = members.iter().map(|member| member.load).collect();
    let scores = score::scores(scorer, &loads);
    let candidates: Vec<_> = members
        .iter()
        .zip(observed)
        .zip(scores)
        .map(|((member, &observed), score)| Candidate { member, observed, score })
        .collect();
    rank_scored(&candidates, previous, now_ms)
}

fn rank_scored(candidates: &[Candidate<'_>], previous: Option<&Ranking>, now_ms: u64) -> Ranking {
    let before: HashMap<&str, &Entry> = previous
        .iter()
        .flat_map(|ranking| &ranking.entries)
        .map(|entry| (entry.id.as_str(), entry))
        .collect();
    let before: Vec<Option<&Entry>> =
        candidates.iter().map(|it| before.get(it.member.instance.id.as_str()).copied()).collect();
    let seconds = previous.map_or(LONGEST_STEP_S, |previous| {
        (now_ms.saturating_sub(previous.made_ms) as f64 / 1e3).min(LONGEST_STEP_S)
    });

    let subject = |(candidate, before): (&Candidate<'_>, &Option<&Entry>)| Subject {
        load: candidate.member.load,
        observed: candidate.observed,
        before: before.map(|entry| entry.estimate),
    };
    let subjects: Vec<_> = candidates.iter().zip(&before).map(subject).collect();
    let (estimates, abilities) = estimate::estimate(&subjects, seconds, now_ms);

    let priors = priors(candidates);
    let aims = match abilities.of.is_empty() {
        true => tilted(candidates, &priors),
        false => optimal(&abilities, &priors),
    };
    let basis = basis(&abilities);
    let weight = |index: usize| match before[index] {
        _ if priors[index] == 0.0 => 0.0,
        // A prior counts, and its change at once, where nothing better is known.
        Some(last) if basis == Basis::Priors && last.fallback_weight != priors[index] => {
            aims[index]
        }
        Some(last) if last.weight > 0.0 => step(last.weight, aims[index], seconds),
        _ => aims[index],
    };

    let weights: Vec<f64> = (0..candidates.len()).map(weight).collect();
    let to_entry = |index: usize| {
        let Candidate { member, score, .. } = candidates[index];
        let Instance { id, addr, zone, .. } = member.instance;
        // Adding 0 turns -0 into 0, which sorts apart from it otherwise.
        let score = if score.is_nan() { 0.0 } else { score + 0.0 };
        Entry {
            id: id.clone(),
            addr: *addr,
            zone: zone.clone(),
            score: score.clamp(f64::MIN, f64::MAX),
            weight: weights[index],
            fallback_weight: priors[index],
            state: member.state,
            max_in_flight: max_in_flight(member),
            ability: abilities.of.get(index).copied(),
            // 0 is never.
            reported_ms: member.report_age_ms.map_or(0, |age| now_ms.saturating_sub(age).max(1)),
            estimate: estimates[index],
        }
    };
    let is_on_its_way = |index: usize| (weights[index] - aims[index]).abs() > ARRIVED * aims[index];
    let is_moving = basis != Basis::Priors || (0..candidates.len()).any(is_on_its_way);
    let mut entries: Vec<Entry> = (0..candidates.len()).map(to_entry).collect();
    entries.sort_unstable_by(by_rank);
    let Abilities { rate_per_s, own_part, .. } = abilities;
    Ranking { entries, basis, rate_per_s, own_part, made_ms: now_ms, is_moving }
}

/// The limit of the registration, or a lower one that the instance reports: what a
/// report says of itself can lower it and not raise it.
fn max_in_flight(member: &Member<'_>) -> u32 {
    let reported = member.load.map_or(0, |load| load.max_in_flight);
    match (member.instance.max_in_flight, reported) {
        (0, reported) => reported,
        (registered, 0) => registered,
        (registered, reported) => registered.min(reported),
    }
}

fn priors(candidates: &[Candidate<'_>]) -> Vec<f64> {
    let all_zero = candidates.iter().all(|candidate| candidate.member.instance.weight == 0.0);
    let prior = |candidate: &Candidate<'_>| candidate.member.instance.weight;
    candidates.iter().map(|it| if all_zero { 1.0 } else { prior(it) }).collect()
}

fn tilted(candidates: &[Candidate<'_>], priors: &[f64]) -> Vec<f64> {
    let tilt = |candidate: &Candidate<'_>| {
        let score = if candidate.score.is_nan() { 0.0 } else { candidate.score };
        score.exp().clamp(*TILT.start(), *TILT.end())
    };
    candidates.iter().zip(priors).map(|(candidate, prior)| prior * tilt(candidate)).collect()
}

/// Weights in proportion to the optimal rates, of the sum of the priors.
fn optimal(abilities: &Abilities, priors: &[f64]) -> Vec<f64> {
    // Who is to get nothing is not there.
    let offered: Vec<usize> = (0..priors.len()).filter(|&index| priors[index] > 0.0).collect();
    let of: Vec<Ability> = offered.iter().map(|&index| abilities.of[index]).collect();
    let rates = shares::optimal_rates(&of, abilities.rate_per_s);
    let (all, total) = (rates.iter().sum::<f64>(), priors.iter().sum::<f64>());
    let least = TRICKLE / offered.len() as f64;
    let mut weights = vec![0.0; priors.len()];
    for (&index, rate) in offered.iter().zip(&rates) {
        weights[index] = (rate / all).max(least) * total;
    }
    weights
}

fn basis(abilities: &Abilities) -> Basis {
    match abilities.fresh {
        _ if abilities.of.is_empty() => Basis::Priors,
        fresh if 2 * fresh >= abilities.of.len() => Basis::Reports,
        _ => Basis::OldReports,
    }
}

/// Where a weight goes from `last` towards `aim`.
fn step(last: f64, aim: f64, seconds: f64) -> f64 {
    let moved = last + seconds / (seconds + 1.0) * (aim - last);
    let most = STEP.powf(seconds);
    moved.clamp(last / most, last * most)
}

/// A weight that another thread left, or the nearest that an instance of this prior
/// can have been on its way to, one of `count` whose priors sum to `total`.
pub(crate) fn possible_weight(weight: f64, prior: f64, total: f64, count: usize) -> f64 {
    let least = (TILT.start() * prior).min(TRICKLE / count as f64 * total);
    let most = (TILT.end() * prior).max(total);
    weight.max(least).min(most)
}

fn by_rank(a: &Entry, b: &Entry) -> Ordering {
    let is_last = |entry: &Entry| entry.fallback_weight == 0.0;
    is_last(a)
        .cmp(&is_last(b))
        .then_with(|| b.score.total_cmp(&a.score))
        .then_with(|| b.fallback_weight.total_cmp(&a.fallback_weight))
        .then_with(|| a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::window::Load;

    fn instance(id: &str, weight: f64) -> Instance {
        Instance {
            id: id.into(),
            addr: SocketAddr::from(([10, 0, 0, 1], 80)),
            weight,
            zone: "a".into(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: 0,
        }
    }

    #[test]
    fn a_report_lowers_a_limit_and_never_raises_it() {
        let limit = |registered, reported: Option<u32>| {
            let instance = Instance { max_in_flight: registered, ..instance("a", 1.0) };
            let load = reported.map(|max_in_flight| Load { max_in_flight, ..Load::default() });
            let member = Member {
                instance: &instance,
                state: State::Reporting,
                load,
                boot_id: None,
                report_age_ms: None,
            };
            let ranking = rank(&[member], &ScoreConfig::default(), &[Observed::default()], None, 0);
            ranking.entries[0].max_in_flight
        };
        assert_eq!([limit(0, None), limit(5, None), limit(5, Some(0))], [0, 5, 5]);
        assert_eq!([limit(0, Some(7)), limit(5, Some(7)), limit(5, Some(3))], [7, 5, 3]);
    }

    /// A ranking of instances of which nothing but priors and scores is known, a
    /// second after the previous one.
    fn rank_of(instances: &[(&str, f64, f64)], previous: Option<&Ranking>) -> Ranking {
        let owned: Vec<_> =
            instances.iter().map(|(id, prior, score)| (instance(id, *prior), *score)).collect();
        rank_owned(&owned, previous)
    }

    fn rank_owned(instances: &[(Instance, f64)], previous: Option<&Ranking>) -> Ranking {
        let member = |(instance, _)| Member {
            instance,
            state: State::Reporting,
            load: None,
            boot_id: None,
            report_age_ms: None,
        };
        let members: Vec<_> = instances.iter().map(|(it, score)| member((it, score))).collect();
        let candidate = |(member, &(_, score)): (_, &(Instance, f64))| Candidate {
            member,
            observed: Observed::default(),
            score,
        };
        let candidates: Vec<_> = members.iter().zip(instances).map(candidate).collect();
        let now_ms = previous.map_or(0, |previous| previous.made_ms + 1000);
        rank_scored(&candidates, previous, now_ms)
    }

    fn ids(ranking: &Ranking) -> Vec<&str> {
        ranking.entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    fn weights(ranking: &Ranking) -> Vec<f64> {
        ranking.entries.iter().map(|entry| entry.weight).collect()
    }

    #[test]
    fn the_highest_score_ranks_first_and_ties_go_by_prior_and_then_by_id() {
        let instances = [("d", 1.0, 0.5), ("b", 1.0, 0.0), ("a", 1.0, -0.0), ("c", 2.0, 0.0)];
        assert_eq!(ids(&rank_of(&instances, None)), ["d", "c", "a", "b"]);
    }

    #[test]
    fn a_weight_is_the_prior_tilted_by_the_score_within_bounds() {
        let ranking =
            rank_of(&[("a", 2.0, 9.0), ("b", 2.0, 1.0), ("c", 3.0, 0.0), ("d", 2.0, -9.0)], None);
        assert_eq!(weights(&ranking), [20.0, 2.0 * 1f64.exp(), 3.0, 0.2]);
        assert_eq!(ranking.entries[0].fallback_weight, 2.0);
    }

    #[test]
    fn an_instance_with_prior_zero_is_last_and_gets_nothing() {
        let ranking = rank_of(&[("a", 0.0, 5.0), ("b", 1.0, -5.0)], None);
        assert_eq!(ids(&ranking), ["b", "a"]);
        assert_eq!(weights(&ranking), [0.1, 0.0]);
    }

    #[test]
    fn when_all_priors_are_zero_all_count_as_one() {
        let ranking = rank_of(&[("a", 0.0, 0.0), ("b", 0.0, 0.0)], None);
        assert_eq!(weights(&ranking), [1.0, 1.0]);
        assert!(ranking.entries.iter().all(|entry| entry.fallback_weight == 1.0));
    }

    #[test]
    fn a_weight_moves_half_way_from_the_previous_one() {
        let before = rank_of(&[("a", 1.0, 0.0)], None);
        let after = rank_of(&[("a", 1.0, -9.0), ("new", 1.0, 9.0)], Some(&before));
        assert_eq!(weights(&after), [10.0, 0.55]);
    }

    #[test]
    fn a_weight_moves_by_no_more_than_a_factor_of_four_in_a_second() {
        let before = rank_of(&[("a", 1.0, 0.0)], None);
        let after = rank_of(&[("a", 1.0, 9.0)], Some(&before));
        assert_eq!(weights(&after), [4.0]);
    }

    #[test]
    fn a_changed_prior_takes_effect_at_once() {
        let before = rank_of(&[("a", 1.0, 0.0), ("b", 1.0, 0.0)], None);
        let after = rank_of(&[("a", 100.0, 0.0), ("b", 0.0, 0.0)], Some(&before));
        assert_eq!(weights(&after), [100.0, 0.0]);
    }

    fn any_instances() -> impl Strategy<Value = Vec<(Instance, f64)>> {
        let score = prop_oneof![2 => -5.0..5.0f64, 1 => Just(0.0), 1 => proptest::num::f64::ANY];
        let prior = prop_oneof![1 => Just(0.0), 2 => 0.0..=1000.0f64, 1 => Just(1.0)];
        proptest::collection::vec((prior, score), 0..12).prop_map(|list| {
            let number = |(n, (prior, score)): (usize, (f64, f64))| {
                (instance(&format!("i{n:02}"), prior), score)
            };
            list.into_iter().enumerate().map(number).collect()
        })
    }

    proptest! {
        #[test]
        fn the_order_of_the_input_does_not_matter(
            (instances, shuffled) in any_instances()
                .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        ) {
            let before = rank_owned(&instances, None);
            prop_assert_eq!(&before, &rank_owned(&shuffled, None));
            prop_assert_eq!(
                rank_owned(&instances, Some(&before)),
                rank_owned(&shuffled, Some(&before))
            );
        }

        #[test]
        fn every_weight_is_finite_and_within_its_bounds_however_often_ranked(
            rounds in proptest::collection::vec(any_instances(), 1..5),
        ) {
            let mut previous: Option<Ranking> = None;
            for instances in &rounds {
                let ranking = rank_owned(instances, previous.as_ref());
                for entry in &ranking.entries {
                    prop_assert!(entry.score.is_finite());
                    let prior = entry.fallback_weight;
                    let bounds = prior * 0.1 * 0.999..=prior * 10.0 * 1.001;
                    prop_assert!(bounds.contains(&entry.weight), "{entry:?}");
                }
                let some_weight = ranking.entries.iter().any(|entry| entry.weight > 0.0);
                prop_assert!(some_weight || ranking.entries.is_empty());
                previous = Some(ranking);
            }
        }

        #[test]
        fn among_equal_priors_a_better_score_never_weighs_less(
            scores in proptest::collection::vec(proptest::num::f64::ANY, 1..12),
        ) {
            let instances: Vec<_> = scores
                .iter()
                .enumerate()
                .map(|(n, score)| (instance(&format!("i{n}"), 3.0), *score))
                .collect();
            let ranking = rank_owned(&instances, None);
            prop_assert!(weights(&ranking).is_sorted_by(|better, worse| better >= worse));
        }
    }
}
