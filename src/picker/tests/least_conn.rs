use std::cell::Cell;

use super::*;

fn in_flight(counts: &[u32]) -> Now {
    Now { in_flight: counts.to_vec().into(), ..Now::default() }
}

#[test]
fn the_least_in_flight_for_its_weight_gets_each_request() {
    let pick = |weights: &[f64], counts: &[u32]| {
        shares(Strategy::LeastConn, weights, 100, &in_flight(counts))
    };
    assert_eq!(pick(&[1.0, 1.0, 1.0], &[2, 1, 3]), [0, 100, 0]);
    assert_eq!(pick(&[4.0, 1.0], &[3, 1]), [100, 0]);
    assert_eq!(pick(&[4.0, 1.0], &[5, 1]), [0, 100]);
    assert_eq!(pick(&[0.0, 1.0], &[0, 9]), [0, 100]);
}

#[test]
fn equally_loaded_ones_have_their_chances_by_weight() {
    let weights = [1.0, 2.0, 3.0, 4.0];
    for counts in [[0; 4], [5, 10, 15, 20]] {
        let counts = shares(Strategy::LeastConn, &weights, 40_000, &in_flight(&counts));
        assert!(chi_square(&counts, &weights) < CHI_SQUARE_3, "{counts:?}");
    }
}

#[test]
fn a_retry_takes_the_least_of_those_that_were_not_tried() {
    let now = Now { tried: vec![1], ..in_flight(&[2, 0, 1]) };
    assert_eq!(shares(Strategy::LeastConn, &[1.0; 3], 50, &now), [0, 0, 50]);
}

#[test]
fn many_idle_ones_have_their_chances_by_weight() {
    // Four weights, 25 instances of each.
    let weights: Vec<f64> = (0..100).map(|index| f64::from(index % 4 + 1)).collect();
    let counts = shares(Strategy::LeastConn, &weights, 40_000, &Now::default());
    let by_weight: Vec<usize> =
        (0..4).map(|weight| counts.iter().skip(weight).step_by(4).sum()).collect();
    assert!(chi_square(&by_weight, &[1.0, 2.0, 3.0, 4.0]) < CHI_SQUARE_3, "{by_weight:?}");
}

#[test]
fn of_many_the_pick_is_among_the_best_few_percent() {
    let loads: Vec<u32> = (0..1000).collect();
    let counts = shares(Strategy::LeastConn, &[1.0; 1000], 2000, &in_flight(&loads));
    let ranks: usize = counts.iter().enumerate().map(|(rank, count)| rank * count).sum();
    let mean = ranks as f64 / 2000.0;
    assert!((25.0..36.0).contains(&mean), "the mean of the least of 32 is 1000/33: {mean}");
}

/// Counts how often it is asked.
#[derive(Default)]
struct Asked(Cell<usize>);

impl Moment for Asked {
    fn is_retry(&self) -> bool {
        false
    }

    fn is_barred(&self, _: usize) -> bool {
        false
    }

    fn key(&self) -> Option<u64> {
        None
    }

    fn in_flight(&self, _: usize) -> u32 {
        self.0.set(self.0.get() + 1);
        0
    }

    fn total_in_flight(&self) -> u64 {
        0
    }

    fn live(&self, _: usize) -> Live {
        Live::default()
    }
}

#[test]
fn a_pick_looks_at_no_more_than_64_however_many_there_are() {
    for (n, most) in [(1, 1), (64, 64), (65, 32), (10_000, 32)] {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut picker = picker(Strategy::LeastConn, &vec![1.0; n], &mut rng);
        let asked = Asked::default();
        picker.pick(&asked, &mut rng);
        assert_eq!(asked.0.get(), most, "of {n}");
    }
}
