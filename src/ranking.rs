//! Scores to an ordered ranking with a weight for each instance: what is
//! published, and what the pickers draw from.
//!
//! A weight is the instance's prior, tilted by its score:
//!
//! ```text
//! weight = prior * clamp(exp(score), 0.1, 10)
//! ```
//!
//! averaged half and half with the weight that it had before. The average damps
//! a loop: more weight brings more load, which a window later brings a lower
//! score.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::SocketAddr;

use crate::model::Instance;
pub use crate::registry::State;

/// The bounds of a score's effect on a weight. Ten times the middle is the most
/// that gRPC's weighted round robin lets a weight be (`static_stride_scheduler.cc`).
/// A tenth is more than the hundredth that it lets it fall to: the worst keeps
/// enough traffic that its recovery is seen within a window.
const TILT: std::ops::RangeInclusive<f64> = 0.1..=10.0;

/// The instances of one service, best first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ranking {
    /// In rank order.
    pub entries: Vec<Entry>,
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
    /// negative, and not 0 throughout a ranking.
    pub weight: f64,
    /// The weight for when scores are not to be trusted: the prior.
    pub fallback_weight: f64,
    /// What the score rests on.
    pub state: State,
}

/// An instance to be ranked.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its prior is `weight`, 0 to [`crate::model::MAX_WEIGHT`].
    pub instance: &'a Instance,
    /// What the score rests on.
    pub state: State,
    /// Higher is better; not a number counts as 0, the middle.
    pub score: f64,
}

/// Ranks instances by score, best first; equal ones by prior and then by id, so
/// that every gateway ranks alike. Ids are unique.
///
/// An instance with prior 0 comes last and has weight 0: its operator wants no
/// traffic on it. Where that is every instance of the service, all have prior 1
/// instead: they were registered to be used, and an answer from any is better
/// than none.
///
/// `previous` is the service's ranking before this one; an instance's weight is
/// averaged with its weight there unless its prior has changed since, which is an
/// operator's wish and takes effect at once.
pub fn rank(candidates: &[Candidate<'_>], previous: Option<&Ranking>) -> Ranking {
    let all_zero = candidates.iter().all(|candidate| candidate.instance.weight == 0.0);
    let previous: HashMap<&str, &Entry> = previous
        .iter()
        .flat_map(|ranking| &ranking.entries)
        .map(|entry| (entry.id.as_str(), entry))
        .collect();
    let to_entry = |candidate: &Candidate<'_>| {
        let Instance { id, addr, zone, weight, .. } = candidate.instance;
        let prior = if all_zero { 1.0 } else { *weight };
        // Adding 0 turns -0 into 0, which sorts apart from it otherwise.
        let score = if candidate.score.is_nan() { 0.0 } else { candidate.score + 0.0 };
        let tilted = prior * score.exp().clamp(*TILT.start(), *TILT.end());
        let weight = match previous.get(id.as_str()) {
            Some(last) if last.fallback_weight == prior => (last.weight + tilted) / 2.0,
            _ => tilted,
        };
        Entry {
            id: id.clone(),
            addr: *addr,
            zone: zone.clone(),
            score: score.clamp(f64::MIN, f64::MAX),
            weight,
            fallback_weight: prior,
            state: candidate.state,
        }
    };
    let mut entries: Vec<Entry> = candidates.iter().map(to_entry).collect();
    entries.sort_unstable_by(by_rank);
    Ranking { entries }
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

    fn instance(id: &str, weight: f64) -> Instance {
        Instance {
            id: id.into(),
            addr: SocketAddr::from(([10, 0, 0, 1], 80)),
            weight,
            zone: "a".into(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
        }
    }

    fn rank_of(instances: &[(&str, f64, f64)], previous: Option<&Ranking>) -> Ranking {
        let owned: Vec<_> =
            instances.iter().map(|(id, prior, score)| (instance(id, *prior), *score)).collect();
        rank(&candidates(&owned), previous)
    }

    fn candidates(instances: &[(Instance, f64)]) -> Vec<Candidate<'_>> {
        instances
            .iter()
            .map(|(instance, score)| Candidate { instance, state: State::Reporting, score: *score })
            .collect()
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
        let after = rank_of(&[("a", 1.0, 9.0), ("new", 1.0, 9.0)], Some(&before));
        assert_eq!(weights(&after), [5.5, 10.0]);
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
            let before = rank(&candidates(&instances), None);
            prop_assert_eq!(&before, &rank(&candidates(&shuffled), None));
            prop_assert_eq!(
                rank(&candidates(&instances), Some(&before)),
                rank(&candidates(&shuffled), Some(&before))
            );
        }

        #[test]
        fn every_weight_is_finite_and_within_its_bounds_however_often_ranked(
            rounds in proptest::collection::vec(any_instances(), 1..5),
        ) {
            let mut previous: Option<Ranking> = None;
            for instances in &rounds {
                let ranking = rank(&candidates(instances), previous.as_ref());
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
            let ranking = rank(&candidates(&instances), None);
            prop_assert!(weights(&ranking).is_sorted_by(|better, worse| better >= worse));
        }
    }
}
