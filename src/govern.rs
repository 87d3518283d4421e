//! From a ranking to what is published: the operator's hand, health, zones and age,
//! as factors of each instance's weight. One order, in this one place:
//!
//! ```text
//! weight = base * factors
//! base   = the operator's weight in manual mode, else the ranking's
//! ```
//!
//! Who is not offered at all (drained, disabled, out) is not in the ranking: the
//! registry sees to that.

use crate::ranking::{Entry, Ranking};
use crate::wire::control::Control;

/// A ranking, governed.
#[derive(Debug, Clone)]
pub struct Governed<'a> {
    /// What it is made from.
    pub ranking: &'a Ranking,
    /// What the operator wants.
    pub control: Option<&'a Control>,
    /// Whether the weights are the operator's.
    pub is_manual: bool,
    /// One for each of the ranking's entries, in rank order.
    pub shares: Vec<Share<'a>>,
}

/// What one instance is to get.
#[derive(Debug, Clone, Copy)]
pub struct Share<'a> {
    /// Its place in the ranking.
    pub entry: &'a Entry,
    /// Its share of the traffic before the factors; finite, not negative.
    pub base: f64,
    /// What serves where nothing is known of load: the operator's weight in manual
    /// mode, else the fallback weight.
    pub prior: f64,
    /// What the weight is multiplied by; finite, not negative.
    pub factor: f64,
}

impl Share<'_> {
    /// Its share of the traffic is this over the sum of all.
    pub fn weight(&self) -> f64 {
        self.base * self.factor
    }
}

/// What becomes of a ranking by all that governs it.
pub fn govern<'a>(ranking: &'a Ranking, control: Option<&'a Control>) -> Governed<'a> {
    // Where nobody is left whom the operator named, there is no wish to follow.
    let manual = control.filter(|control| {
        let weighs = |entry: &Entry| control.manual_weight(&entry.id).is_some_and(|it| it > 0.0);
        ranking.entries.iter().any(weighs)
    });
    let share = |entry: &'a Entry| {
        let (base, prior) = match manual.and_then(|control| control.manual_weight(&entry.id)) {
            Some(weight) => (weight, weight),
            None => (entry.weight, entry.fallback_weight),
        };
        Share { entry, base, prior, factor: 1.0 }
    };
    let shares = ranking.entries.iter().map(share).collect();
    Governed { ranking, control, is_manual: manual.is_some(), shares }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            estimate: Estimate::default(),
            state: State::Reporting,
        };
        Ranking { entries: (0..).zip(weights).map(entry).collect(), ..Ranking::default() }
    }

    fn shares(control: &str) -> (bool, Vec<(f64, f64)>) {
        let control = decode_control(control.as_bytes()).unwrap();
        let ranking = ranking(&[1.0, 2.0]);
        let governed = govern(&ranking, Some(&control));
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
}
