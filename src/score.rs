//! How good a choice each instance of a service is: one number, higher is
//! better, 0 in the middle.
//!
//! The score is linear in each metric's deviation from the service's mean:
//!
//! ```text
//! d     = clamp((x - mean) / max(mean, floor), -1, 4)
//! score = - cpu * d(cpu) + memory * d(free memory)
//!         - rate * d(rate) - latency * d(latency) - errors * d(errors)
//! ```
//!
//! Deviations are relative, so that a coefficient means the same for a service
//! of 2 ms as for one of 2 s, and needs no fitting to past traffic: a regression
//! learns the machines and the traffic of the day it was made on, while these
//! coefficients are an operator's statement of what matters. Each deviation is
//! bounded, so that one metric that ran away cannot silence the others.
//!
//! A linear sum is a poor guide to *how much* traffic an instance can bear
//! (Prequal, NSDI 2024, found each of its linear combinations of latency and load
//! beaten by a plain count of requests in flight). It therefore only tilts the
//! prior weights, within the bounds of [`crate::ranking`], and the pickers judge
//! the moment by their own counts in flight.

use crate::config::ScoreConfig;
use crate::window::Load;

/// The range of a deviation: nothing can be further below the mean than all of
/// it, and whether an instance is 5 or 50 times as slow as the rest makes no
/// difference to what should be done about it.
const DEVIATION: std::ops::RangeInclusive<f64> = -1.0..=4.0;

// A mean below its floor counts as the floor, so that noise on an idle service
// is not blown up into large deviations.

/// A twentieth of the CPU limit: what a runtime's own housekeeping takes.
const CPU_FLOOR: f64 = 0.05;
/// One unit of memory: free memory is counted in whole units, of which less than
/// one cannot be told from none.
const MEMORY_FLOOR_UNITS: f64 = 1.0;
/// One request a second: below it, which instance got the last one is chance.
const RATE_FLOOR_PER_SECOND: f64 = 1.0;
/// One millisecond: below it, scheduling and the network make the difference.
const LATENCY_FLOOR_MS: f64 = 1.0;
/// One failure in twenty: with a handful of requests in the window, less than
/// that is a single failure.
const ERRORS_FLOOR: f64 = 0.05;

/// Beyond this, and below 0, a figure is no measurement and counts as unknown.
/// No counter of 64 bits over any interval comes near it, and sums of any number
/// of such figures stay finite.
const LARGEST_FIGURE: f64 = 1e30;

/// One metric's part in the score.
struct Term {
    /// Negative where less is better.
    coefficient: f64,
    floor: f64,
    figure: fn(&Load, &ScoreConfig) -> Option<f64>,
}

/// The score of each instance, in the order of `loads`; always finite.
///
/// Unknown is neither best nor worst. A metric that an instance does not know
/// takes the median of those that do, and one that nobody knows adds nothing. An
/// instance without a load (`None`) takes the median of the scores.
pub fn scores(config: &ScoreConfig, loads: &[Option<Load>]) -> Vec<f64> {
    let known: Vec<&Load> = loads.iter().flatten().collect();
    let mut of_known = vec![0.0; known.len()];
    for term in terms(config) {
        term.add_to(&mut of_known, config, &known);
    }

    let unknown = median(&mut of_known.clone()).unwrap_or(0.0);
    let mut of_known = of_known.into_iter();
    let of_load = |load: &Option<Load>| match load {
        Some(_) => of_known.next().unwrap_or(unknown),
        None => unknown,
    };
    loads.iter().map(of_load).collect()
}

fn terms(config: &ScoreConfig) -> [Term; 5] {
    [
        Term { coefficient: -config.cpu, floor: CPU_FLOOR, figure: |load, _| load.cpu },
        Term { coefficient: config.memory, floor: MEMORY_FLOOR_UNITS, figure: free_memory_units },
        Term {
            coefficient: -config.rate,
            floor: RATE_FLOOR_PER_SECOND,
            figure: |load, _| load.rate,
        },
        Term {
            coefficient: -config.latency,
            floor: LATENCY_FLOOR_MS,
            figure: |load, _| load.latency_ms,
        },
        Term { coefficient: -config.errors, floor: ERRORS_FLOOR, figure: |load, _| load.errors },
    ]
}

/// Whole units only: the last part of a unit is what an allocator and a page
/// cache move about.
fn free_memory_units(load: &Load, config: &ScoreConfig) -> Option<f64> {
    let unit_bytes = config.memory_unit_mib as f64 * 1024.0 * 1024.0;
    load.memory_free_bytes.map(|bytes| (bytes / unit_bytes).floor())
}

impl Term {
    fn add_to(&self, scores: &mut [f64], config: &ScoreConfig, loads: &[&Load]) {
        if self.coefficient == 0.0 {
            return;
        }
        let figures: Vec<Option<f64>> = loads
            .iter()
            .map(|load| (self.figure)(load, config))
            .map(|figure| figure.filter(|x| (0.0..=LARGEST_FIGURE).contains(x)))
            .collect();
        let mut known: Vec<f64> = figures.iter().copied().flatten().collect();
        let Some(median) = median(&mut known) else { return };
        let mean = known.iter().sum::<f64>() / known.len() as f64;

        for (score, figure) in scores.iter_mut().zip(figures) {
            let deviation = (figure.unwrap_or(median) - mean) / mean.max(self.floor);
            *score += self.coefficient * deviation.clamp(*DEVIATION.start(), *DEVIATION.end());
        }
    }
}

/// The middle value, or the mean of the two in the middle; reorders `values`.
fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let odd = values.len() % 2 == 1;
    let (lower, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    if odd {
        return Some(*upper);
    }
    let lower = lower.iter().copied().max_by(f64::total_cmp)?;
    Some((lower + *upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

    fn load() -> Load {
        Load {
            cpu: Some(0.5),
            memory_free_bytes: Some(4.0 * GIB),
            rate: Some(100.0),
            latency_ms: Some(20.0),
            errors: Some(0.1),
            ..Load::default()
        }
    }

    fn scores_of(loads: &[Load]) -> Vec<f64> {
        let loads: Vec<_> = loads.iter().copied().map(Some).collect();
        scores(&ScoreConfig::default(), &loads)
    }

    fn are_near(some: &[f64], others: &[f64]) -> bool {
        some.len() == others.len()
            && some.iter().zip(others).all(|(one, other)| (one - other).abs() < 1e-9)
    }

    #[test]
    fn a_worked_example_comes_out_as_the_formula_says() {
        let slow = Load { latency_ms: Some(60.0), ..load() };
        // The mean is 40 ms, the deviations are -0.5 and 0.5, the coefficient 0.4.
        assert_eq!(scores_of(&[load(), slow]), [0.2, -0.2]);
    }

    #[test]
    fn each_metric_moves_the_score_in_its_own_direction() {
        let worse = [
            Load { cpu: Some(0.9), ..load() },
            Load { memory_free_bytes: Some(GIB), ..load() },
            Load { rate: Some(200.0), ..load() },
            Load { latency_ms: Some(40.0), ..load() },
            Load { errors: Some(0.2), ..load() },
        ];
        for worse in worse {
            let scores = scores_of(&[load(), worse]);
            assert!(scores[0] > scores[1], "{worse:?}: {scores:?}");
        }
    }

    #[test]
    fn a_coefficient_of_zero_leaves_its_metric_out() {
        let config = ScoreConfig { latency: 0.0, ..ScoreConfig::default() };
        let slow = Load { latency_ms: Some(60.0), ..load() };
        assert_eq!(scores(&config, &[Some(load()), Some(slow)]), [0.0, 0.0]);
    }

    #[test]
    fn equal_instances_score_zero() {
        assert!(are_near(&scores_of(&[load(); 3]), &[0.0; 3]));
    }

    #[test]
    fn free_memory_counts_in_whole_units_only() {
        let free = |gib: f64| Load { memory_free_bytes: Some(gib * GIB), ..load() };
        assert_eq!(scores_of(&[free(2.0), free(2.999)]), [0.0, 0.0]);
        let scores = scores_of(&[free(2.999), free(3.0)]);
        assert!(scores[1] > scores[0], "{scores:?}");
    }

    #[test]
    fn noise_on_an_idle_service_stays_small() {
        let idle = |cpu, rate, latency_ms| Load {
            cpu: Some(cpu),
            rate: Some(rate),
            latency_ms: Some(latency_ms),
            ..load()
        };
        let scores = scores_of(&[idle(0.0, 0.0, 0.01), idle(0.005, 0.1, 0.05)]);
        assert!(scores[0] - scores[1] < 0.1, "{scores:?}");
    }

    #[test]
    fn one_metric_that_ran_away_is_bounded() {
        let mut loads = vec![load(); 9];
        loads.push(Load { latency_ms: Some(1e12), ..load() });
        assert!(are_near(&scores_of(&loads)[9..], &[-0.4 * 4.0]));
    }

    #[test]
    fn an_unknown_metric_takes_the_median_and_is_neither_best_nor_worst() {
        let latency = |ms| Load { latency_ms: ms, ..load() };
        let loads = [10.0, 20.0, 90.0].map(|ms| latency(Some(ms)));
        let scores = scores_of(&[loads[0], latency(None), loads[1], loads[2]]);
        assert_eq!(scores[1], scores[2]);
        assert!(scores[0] > scores[1] && scores[1] > scores[3], "{scores:?}");
    }

    #[test]
    fn a_metric_that_nobody_knows_adds_nothing() {
        let unknown = Load { memory_free_bytes: None, ..load() };
        assert_eq!(scores_of(&[unknown, unknown]), [0.0, 0.0]);
    }

    #[test]
    fn an_instance_without_a_load_takes_the_median_score() {
        let slow = |ms| Some(Load { latency_ms: Some(ms), ..load() });
        let config = ScoreConfig::default();
        let scores = scores(&config, &[slow(10.0), None, slow(20.0), slow(90.0)]);
        assert_eq!(scores[1], scores[2]);
        assert!(scores[2] < scores[0] && scores[2] > scores[3], "{scores:?}");
    }

    #[test]
    fn a_service_without_any_load_scores_zero_throughout() {
        assert_eq!(scores(&ScoreConfig::default(), &[None, None]), [0.0, 0.0]);
        assert_eq!(scores(&ScoreConfig::default(), &[]), [0.0; 0]);
    }

    #[test]
    fn a_figure_that_is_no_measurement_counts_as_unknown() {
        for absurd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, f64::MAX] {
            let strange = Load { cpu: Some(absurd), ..load() };
            let scores = scores_of(&[load(), strange, load()]);
            assert!(are_near(&scores, &[0.0; 3]), "{absurd}: {scores:?}");
        }
    }

    fn any_load() -> impl Strategy<Value = Option<Load>> {
        let figure = || {
            let absurd = proptest::num::f64::ANY;
            proptest::option::of(prop_oneof![3 => 0.0..1e4f64, 1 => absurd, 1 => Just(f64::MAX)])
        };
        let load = (figure(), figure(), figure(), figure(), figure()).prop_map(
            |(cpu, memory_free_bytes, rate, latency_ms, errors)| Load {
                cpu,
                memory_free_bytes,
                rate,
                latency_ms,
                errors,
                ..Load::default()
            },
        );
        proptest::option::of(load)
    }

    proptest! {
        #[test]
        fn every_score_is_finite_whatever_the_loads(
            loads in proptest::collection::vec(any_load(), 0..20),
            coefficient in 0.0..=100.0f64,
        ) {
            let config = ScoreConfig {
                cpu: coefficient, memory: coefficient, rate: coefficient, latency: coefficient,
                errors: coefficient, memory_unit_mib: 1,
            };
            let scores = scores(&config, &loads);
            prop_assert_eq!(scores.len(), loads.len());
            prop_assert!(scores.iter().all(|score| score.is_finite()), "{:?}", scores);
        }

        #[test]
        fn scores_do_not_depend_on_the_unit_of_time_above_the_floors(
            latencies in proptest::collection::vec(2.0..1e3f64, 1..10),
        ) {
            let scaled = |factor: f64| -> Vec<f64> {
                let loads = latencies.iter().map(|ms| Load {
                    latency_ms: Some(ms * factor), ..load()
                });
                scores_of(&loads.collect::<Vec<_>>())
            };
            prop_assert!(are_near(&scaled(1.0), &scaled(1000.0)));
        }

        #[test]
        fn the_median_lies_in_the_middle_of_the_sorted_values(
            mut values in proptest::collection::vec(-1e6..1e6f64, 1..30),
        ) {
            let found = median(&mut values).unwrap();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            let expected = match values.len() % 2 {
                1 => values[middle],
                _ => (values[middle - 1] + values[middle]) / 2.0,
            };
            prop_assert_eq!(found, expected);
        }
    }
}
