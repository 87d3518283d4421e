mod adaptive;
mod chash;
mod least_conn;
mod round_robin;

use std::cell::RefCell;

use proptest::prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use rand::SeedableRng;

use super::*;
use crate::ranking::State;

/// A scripted moment, for all who pick.
#[derive(Default)]
pub(crate) struct Now {
    pub tried: Vec<usize>,
    pub key: Option<u64>,
    pub in_flight: RefCell<Vec<u32>>,
}

impl Moment for Now {
    fn is_retry(&self) -> bool {
        !self.tried.is_empty()
    }

    fn is_barred(&self, index: usize) -> bool {
        self.tried.contains(&index)
    }

    fn key(&self) -> Option<u64> {
        self.key
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.in_flight.borrow().get(index).copied().unwrap_or(0)
    }

    fn total_in_flight(&self) -> u64 {
        self.in_flight.borrow().iter().copied().map(u64::from).sum()
    }

    fn live(&self, index: usize) -> Live {
        Live { in_flight: self.in_flight(index), ..Live::default() }
    }
}

fn picker(strategy: Strategy, weights: &[f64], rng: &mut SmallRng) -> Picker {
    let ranks: Vec<u32> = (0..weights.len() as u32).collect();
    build_ranked(strategy, weights, &ranks, rng)
}

/// A picker over instances of which nothing but this is known.
fn build_ranked(strategy: Strategy, weights: &[f64], ranks: &[u32], rng: &mut SmallRng) -> Picker {
    let records: Vec<Record> =
        weights.iter().zip(ranks).map(|(&weight, &rank)| record(weight, rank)).collect();
    let identities: Vec<u64> = (1..=weights.len() as u64).collect();
    let ranked = Ranked {
        identities: &identities,
        priors: weights,
        records: &records,
        own_part: 1.0,
        rate_per_s: 0.0,
    };
    build(strategy, ranked, rng)
}

/// An instance of which nothing but this is known.
pub(crate) fn record(weight: f64, rank: u32) -> Record {
    Record {
        score: 0.0,
        weight,
        rank,
        state: State::Unreported,
        service_ms: 0.0,
        concurrency: 0.0,
        factor: 1.0,
        capacity_per_s: 0.0,
        reported_s: 0,
        max_in_flight: 0,
    }
}

/// A picker over instances of these identities and weights that goes on from
/// another one.
fn after(
    memory: Memory,
    balance: &BalanceConfig,
    instances: &[(u64, f64)],
    rng: &mut SmallRng,
) -> Picker {
    let (identities, weights): (Vec<u64>, Vec<f64>) = instances.iter().copied().unzip();
    let records: Vec<Record> = weights.iter().map(|&weight| record(weight, 0)).collect();
    let ranked = Ranked {
        identities: &identities,
        priors: &weights,
        records: &records,
        own_part: 1.0,
        rate_per_s: 0.0,
    };
    rebuild(balance, ranked, memory, rng)
}

fn shares(strategy: Strategy, weights: &[f64], picks: usize, now: &Now) -> Vec<usize> {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut picker = picker(strategy, weights, &mut rng);
    let mut counts = vec![0; weights.len()];
    for _ in 0..picks {
        counts[picker.pick(now, &mut rng).unwrap()] += 1;
    }
    counts
}

/// Pearson's statistic against shares in proportion to `weights`.
fn chi_square(counts: &[usize], weights: &[f64]) -> f64 {
    let (picks, sum) = (counts.iter().sum::<usize>() as f64, weights.iter().sum::<f64>());
    let expected = weights.iter().map(|weight| picks * weight / sum);
    counts.iter().zip(expected).map(|(&n, e)| (n as f64 - e).powi(2) / e).sum()
}

/// 99.9th percentile of chi-square with 3 degrees of freedom.
const CHI_SQUARE_3: f64 = 16.27;

#[test]
fn weighted_random_keeps_to_the_weights() {
    let weights = [1.0, 2.0, 3.0, 4.0];
    let counts = shares(Strategy::WeightedRandom, &weights, 40_000, &Now::default());
    assert!(chi_square(&counts, &weights) < CHI_SQUARE_3, "{counts:?}");
}

#[test]
fn random_ignores_the_weights() {
    let counts = shares(Strategy::Random, &[1.0, 2.0, 3.0, 4.0], 40_000, &Now::default());
    assert!(chi_square(&counts, &[1.0; 4]) < CHI_SQUARE_3, "{counts:?}");
}

#[test]
fn adaptive_keeps_to_the_weights_while_nothing_is_in_flight() {
    let weights = [1.0, 2.0, 3.0, 4.0];
    let counts = shares(Strategy::Adaptive, &weights, 40_000, &Now::default());
    assert!(chi_square(&counts, &weights) < CHI_SQUARE_3, "{counts:?}");
}

#[test]
fn adaptive_and_p2c_turn_away_from_what_is_in_flight() {
    let now = Now { in_flight: vec![50, 0, 0, 0].into(), ..Now::default() };
    for strategy in [Strategy::Adaptive, Strategy::P2c] {
        let counts = shares(strategy, &[1.0; 4], 16_000, &now);
        // Only when three draws in a row are the busy one: 1/64.
        assert!(counts[0] < 350, "{strategy:?}: {counts:?}");
    }
}

#[test]
fn p2c_counts_in_flight_by_weight() {
    let now = Now { in_flight: vec![3, 1].into(), ..Now::default() };
    // 4/4 against 2/1: the larger one is the less loaded.
    let counts = shares(Strategy::P2c, &[4.0, 1.0], 4000, &now);
    assert!(counts[0] > 2 * counts[1], "{counts:?}");
}

#[test]
fn best_goes_down_the_ranking_as_tries_fail() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut picker = build_ranked(Strategy::Best, &[1.0, 1.0, 0.0], &[1, 2, 0], &mut rng);
    let mut now = Now::default();
    for expected in [Some(0), Some(1), Some(2), None] {
        let pick = picker.pick(&now, &mut rng);
        assert_eq!(pick, expected);
        now.tried.extend(pick);
    }
}

#[test]
fn no_strategy_picks_weight_0_while_others_are_left() {
    for strategy in Strategy::all() {
        let counts = shares(strategy, &[0.0, 1.0, 0.0], 200, &Now::default());
        assert_eq!(counts, [0, 200, 0], "{strategy:?}");
    }
}

#[test]
fn no_retry_goes_to_weight_0_while_others_are_left() {
    // The draws hit the tried one nearly always.
    let (weights, now) = ([0.0, 1000.0, 0.001], Now { tried: vec![1], ..Now::default() });
    for strategy in Strategy::all() {
        assert_eq!(shares(strategy, &weights, 200, &now), [0, 0, 200], "{strategy:?}");
    }
}

#[test]
fn retries_keep_to_the_weights_of_what_is_left() {
    let (weights, now) = ([1e6, 1.0, 3.0], Now { tried: vec![0], ..Now::default() });
    let counts = shares(Strategy::WeightedRandom, &weights, 8000, &now);
    assert!((1800..2200).contains(&counts[1]), "{counts:?}");
}

#[test]
fn weights_that_are_all_0_are_equal() {
    for strategy in Strategy::all() {
        let counts = shares(strategy, &[0.0; 3], 600, &Now::default());
        let shared = counts.iter().all(|&count| count > 100);
        assert!(shared || strategy == Strategy::Best, "{strategy:?}: {counts:?}");
    }
}

proptest! {
    #[test]
    fn a_request_gets_each_instance_once_and_then_none_whatever_the_weights(
        weights in proptest::collection::vec(
            prop_oneof![Just(0.0), 1e-300..1e300, Just(1.0), proptest::num::f64::ANY],
            0..12,
        ),
        key in any::<Option<u64>>(),
        seed in any::<u64>(),
    ) {
        for strategy in Strategy::all() {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut picker = picker(strategy, &weights, &mut rng);
            let mut now = Now { key, ..Now::default() };
            for _ in 0..weights.len() {
                let pick = picker.pick(&now, &mut rng);
                prop_assert!(pick.is_some_and(|index| index < weights.len() && !now.tried.contains(&index)));
                now.tried.extend(pick);
            }
            prop_assert_eq!(picker.pick(&now, &mut rng), None);
        }
    }
}

#[test]
fn weights_that_are_none_count_as_0() {
    let weights = [f64::NAN, f64::INFINITY, -1.0, f64::NEG_INFINITY, 2.0];
    for strategy in Strategy::all() {
        for key in [None, Some(7)] {
            let counts = shares(strategy, &weights, 100, &Now { key, ..Now::default() });
            assert_eq!(counts, [0, 0, 0, 0, 100], "{strategy:?}, key {key:?}");
        }
    }
}

/// Picks of each of four instances of one base weight and these factors; `reports`:
/// with abilities. The first two are this host's zone, the last two another one.
fn governed(strategy: Strategy, factors: [f32; 4], reports: bool, key: bool) -> Vec<usize> {
    let of = |(rank, factor): (u32, f32)| Record {
        factor,
        service_ms: if reports { 10.0 } else { 0.0 },
        concurrency: if reports { 4.0 } else { 0.0 },
        capacity_per_s: if reports { 400.0 } else { 0.0 },
        ..record(5.0 * f64::from(factor), rank)
    };
    // The last one ranks first.
    let records: Vec<Record> =
        factors.into_iter().enumerate().map(|(index, it)| of((3 - index as u32, it))).collect();
    let ranked = Ranked {
        identities: &[11, 22, 33, 44],
        priors: &crate::worker::governed_priors(&[1.0; 4], &records),
        records: &records,
        own_part: 0.5,
        rate_per_s: if reports { 500.0 } else { 0.0 },
    };
    let mut rng = SmallRng::seed_from_u64(3);
    let mut picker = build(strategy, ranked, &mut rng);
    let mut counts = vec![0; 4];
    for number in 0..8000_u64 {
        let key = key.then(|| hash_of_key(&number.to_le_bytes()));
        let now = Now { key, ..Now::default() };
        counts[picker.pick(&now, &mut rng).unwrap()] += 1;
    }
    counts
}

#[test]
fn every_strategy_goes_by_what_governs_an_instance() {
    for strategy in Strategy::all() {
        for (reports, key) in [(false, false), (true, false), (false, true)] {
            let picks = |factors| governed(strategy, factors, reports, key);
            let name = format!("{strategy:?}, reports {reports}, key {key}");

            let plain = picks([1.0; 4]);
            let far = |counts: &[usize]| (counts[2] + counts[3]) as f64 / 8000.0;
            let zone = picks([1.0, 1.0, 0.015625, 0.015625]);
            let ramp = picks([1.0, 0.25, 1.0, 1.0]);
            let lost = picks([0.0, 0.0, 1.0, 1.0]);
            assert_eq!(far(&lost), 1.0, "{name}: {lost:?}");
            if strategy == Strategy::Best {
                assert_eq!((plain[3], zone[1], ramp[3]), (8000, 8000, 8000), "{name}");
                continue;
            }
            assert!((far(&plain) - 0.5).abs() < 0.03, "{name}: {plain:?}");
            // 1.5 % of the weights; live facts may tip a few more.
            assert!((0.001..0.03).contains(&far(&zone)), "{name}: {zone:?}");
            let of_ramp = ramp[1] as f64 / 8000.0;
            assert!((0.02..0.1).contains(&of_ramp), "{name}: {ramp:?}");
        }
    }
}

#[test]
fn every_strategy_but_the_best_mixes_zones_when_the_local_one_is_full() {
    // What the zones' shares are where the gateway's is at its natural share.
    for strategy in Strategy::all().filter(|it| *it != Strategy::Best) {
        let counts = governed(strategy, [1.0, 1.0, 0.5, 0.5], true, false);
        let far = (counts[2] + counts[3]) as f64 / 8000.0;
        assert!((0.25..0.4).contains(&far), "{strategy:?}: {counts:?}");
    }
}

#[test]
fn every_strategy_picks_among_65_000() {
    let weights: Vec<f64> = (0..65_000).map(|index| f64::from(index % 5)).collect();
    for strategy in Strategy::all() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut picker = picker(strategy, &weights, &mut rng);
        for key in 0..20 {
            let mut now = Now { key: Some(key), ..Now::default() };
            for _ in 0..3 {
                let pick = picker.pick(&now, &mut rng).unwrap();
                assert!(weights[pick] > 0.0 && !now.tried.contains(&pick), "{strategy:?}");
                now.tried.push(pick);
            }
        }
    }
}
