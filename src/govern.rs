//! From a ranking to what is published: the operator's hand, health, zones and age,
//! as factors of each instance's weight. One order, in this one place:
//!
//! ```text
//! weight = base * health
//! base   = the operator's weight in manual mode, else the ranking's
//! health = 0 for an instance that is ejected or fails its checks; 1 in a panic
//! ```
//!
//! Who is not offered at all (drained, disabled, out) is not in the ranking: the
//! registry sees to that.

use crate::ranking::{Entry, Ranking, State};
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
    /// One for each of the ranking's entries, in rank order.
    pub shares: Vec<Share<'a>>,
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
    /// What the weight is multiplied by; finite, not negative.
    pub factor: f64,
}

impl Share<'_> {
    /// Its share of the traffic is this over the sum of all.
    pub fn weight(&self) -> f64 {
        self.base * self.factor
    }
}

/// What becomes of a ranking by all that governs it. `facts` are those of the
/// ranking's entries, in rank order. With fewer than `panic_percent` of the instances
/// healthy, all count as if they were.
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
    let healthy = facts.iter().filter(|facts| facts.health == Health::Up).count();
    let is_panic = healthy * 100 < facts.len() * panic_percent as usize;
    let share = |(entry, facts): (&'a Entry, &Facts)| {
        let (base, prior) = match manual.and_then(|control| control.manual_weight(&entry.id)) {
            Some(weight) => (weight, weight),
            None => (entry.weight, entry.fallback_weight),
        };
        let health = if facts.health == Health::Up || is_panic { 1.0 } else { 0.0 };
        let state = match facts.health {
            Health::Up => entry.state,
            Health::Ejected => State::Ejected,
            Health::Failing => State::Failing,
        };
        Share { entry, state, base, prior, factor: health }
    };
    let shares = entries.iter().zip(facts).map(share).collect();
    Governed { ranking, control, is_manual: manual.is_some(), is_panic, shares }
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

    #[test]
    fn the_state_says_what_an_instance_is_left_out_for_in_a_panic_too() {
        let ranking = ranking(&[1.0, 1.0, 1.0]);
        let health = [Health::Up, Health::Ejected, Health::Failing];
        let governed = govern(&ranking, None, &health.map(|health| Facts { health }), 50);
        let states: Vec<_> = governed.shares.iter().map(|share| share.state).collect();
        assert_eq!(states, [State::Reporting, State::Ejected, State::Failing]);
    }
}
