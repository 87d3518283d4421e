use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::config::Strategy;
use crate::picker::tests::{Now, record};

fn plan(groups: &[Rules]) -> Plan {
    let count = groups.iter().map(|groups| Rules::BITS - groups.leading_zeros()).max();
    let rule = |index: u32| Rule {
        name: format!("r{index}"),
        to: BTreeMap::new(),
        header: BTreeMap::new(),
        cookie: BTreeMap::new(),
        query: BTreeMap::new(),
        percent: 100.0,
        key: String::new(),
    };
    let rules: Vec<Rule> = (0..count.unwrap_or(0).max(1)).map(rule).collect();
    Plan { counters: vec![None; rules.len()], rules, groups: groups.to_vec() }
}

/// The groups over instances of these weights, each selected by these rules.
fn routes(strategy: Strategy, weights: &[f64], groups: &[Rules]) -> (Routes, SmallRng) {
    routes_after(Memories::default(), strategy, weights, groups)
}

fn routes_after(
    memories: Memories,
    strategy: Strategy,
    weights: &[f64],
    groups: &[Rules],
) -> (Routes, SmallRng) {
    let mut rng = SmallRng::seed_from_u64(7);
    let records: Vec<Record> = weights.iter().map(|&weight| record(weight, 0)).collect();
    let identities: Vec<u64> = (1..=weights.len() as u64).collect();
    let ranked = Ranked {
        identities: &identities,
        priors: weights,
        records: &records,
        own_part: 1.0,
        rate_per_s: 100.0,
    };
    let balance = BalanceConfig { strategy, ..BalanceConfig::default() };
    let routes = Routes::new(&plan(groups), &balance, ranked, memories, &mut rng).unwrap();
    (routes, rng)
}

#[test]
fn without_rules_there_are_no_groups() {
    let ranked =
        Ranked { identities: &[], priors: &[], records: &[], own_part: 1.0, rate_per_s: 0.0 };
    let (balance, mut rng) = (BalanceConfig::default(), SmallRng::seed_from_u64(1));
    let routes = Routes::new(&Plan::default(), &balance, ranked, Memories::default(), &mut rng);
    assert!(routes.is_none());
}

#[test]
fn a_request_goes_to_its_first_rule_with_somebody_left_then_to_the_rest() {
    for strategy in Strategy::all() {
        let (mut routes, mut rng) =
            routes(strategy, &[1.0, 1.0, 1.0, 1.0, 0.0], &[0b01, 0b01, 0b10, 0, 0]);
        let mut now = Now::default();
        let mut seen = Vec::new();
        while let Some((index, rule)) = routes.pick(0b11, &now, &mut rng) {
            seen.push((index, rule));
            now.tried.push(index);
        }
        seen[..2].sort_unstable();
        let expected = [(0, Some(0)), (1, Some(0)), (2, Some(1)), (3, None)];
        assert_eq!(seen, expected, "{strategy:?}: nobody of weight 0 is of a group");
    }
}

#[test]
fn a_rule_of_nobody_with_a_weight_is_passed_over() {
    let (mut routes, mut rng) = routes(Strategy::Best, &[0.0, 1.0], &[0b1, 0]);
    assert_eq!(routes.pick(0b1, &Now::default(), &mut rng), Some((1, None)));
    let (mut routes, mut rng) = self::routes(Strategy::Best, &[0.0, 0.0], &[0b1, 0]);
    assert_eq!(routes.pick(0b1, &Now::default(), &mut rng), None, "any is for the caller");
}

#[test]
fn one_that_several_rules_select_gets_the_requests_of_each() {
    let (mut routes, mut rng) = routes(Strategy::Best, &[1.0, 1.0], &[0b11, 0]);
    for rules in [0b01, 0b10, 0b11] {
        let (index, _) = routes.pick(rules, &Now::default(), &mut rng).unwrap();
        assert_eq!(index, 0);
    }
}

#[test]
fn the_bound_of_a_consistent_hash_is_by_what_the_group_has_in_flight() {
    // 125 % of half of (2 + 1), rounded up, is 2: the group's owner is full with 2. By
    // the 102 of the service it would not be.
    let (mut routes, mut rng) = routes(Strategy::Chash, &[1.0, 1.0, 1.0], &[0b1, 0b1, 0]);
    let now = Now { key: Some(3), ..Now::default() };
    let (owner, _) = routes.pick(0b1, &now, &mut rng).unwrap();
    *now.in_flight.borrow_mut() = vec![0, 0, 100];
    now.in_flight.borrow_mut()[owner] = 2;
    let (other, _) = routes.pick(0b1, &now, &mut rng).unwrap();
    assert_eq!(other, 1 - owner);
}

#[test]
fn turns_go_on_from_ranking_to_ranking_in_each_group() {
    let (weights, groups) = ([1.0; 4], [0b1, 0b1, 0b1, 0]);
    let (mut all, mut rng) = routes(Strategy::RoundRobin, &weights, &groups);
    let mut counts = [0; 4];
    for _ in 0..300 {
        let (index, _) = all.pick(0b1, &Now::default(), &mut rng).unwrap();
        counts[index] += 1;
        // A new ranking after each request: without a memory, turns would be by chance.
        all = routes_after(all.into_memories(), Strategy::RoundRobin, &weights, &groups).0;
    }
    assert_eq!(counts, [100, 100, 100, 0]);
}

proptest! {
    #[test]
    fn every_request_gets_each_of_its_groups_once_in_their_order_by_any_strategy(
        instances in proptest::collection::vec(
            (prop_oneof![Just(0.0), 0.1..10.0], 0..8_u16), 1..12,
        ),
        rules in 0..8_u16,
        key in any::<Option<u64>>(),
    ) {
        let (weights, groups): (Vec<f64>, Vec<Rules>) = instances.into_iter().unzip();
        for strategy in Strategy::all() {
            let (mut routes, mut rng) = routes(strategy, &weights, &groups);
            let mut now = Now { key, ..Now::default() };
            let mut last = Some(0);
            while let Some((index, rule)) = routes.pick(rules, &now, &mut rng) {
                prop_assert!(!now.tried.contains(&index) && weights[index] > 0.0);
                match rule {
                    Some(rule) => {
                        prop_assert!(rules & groups[index] & (1 << rule) != 0);
                        prop_assert!(last.is_some_and(|last| last <= rule), "in their order");
                    }
                    None => prop_assert_eq!(groups[index], 0),
                }
                last = rule;
                now.tried.push(index);
            }
            let left = (0..weights.len()).filter(|index| !now.tried.contains(index));
            for index in left.filter(|&index| weights[index] > 0.0) {
                prop_assert!(groups[index] != 0 && groups[index] & rules == 0, "{index} is left");
            }
        }
    }
}
