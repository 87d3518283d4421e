use super::*;

#[test]
fn round_robin_is_exact_over_each_cycle_and_spread_within() {
    let mut rng = SmallRng::seed_from_u64(3);
    let mut picker = picker(Strategy::RoundRobin, &[5.0, 1.0, 1.0], &mut rng);
    let now = Now::default();
    let picks: Vec<_> = (0..70).map(|_| picker.pick(&now, &mut rng).unwrap()).collect();
    for cycle in picks.chunks(7) {
        let of = |index| cycle.iter().filter(|&&pick| pick == index).count();
        assert_eq!((of(0), of(1), of(2)), (5, 1, 1), "{picks:?}");
    }
    let bursts = picks.windows(6).filter(|picks| picks.iter().all(|&pick| pick == 0)).count();
    assert_eq!(bursts, 0, "turns are spread: {picks:?}");
}

#[test]
fn round_robins_of_many_gateways_do_not_begin_with_the_same_instance() {
    let firsts: std::collections::HashSet<_> = (0..40)
        .map(|seed| {
            let mut rng = SmallRng::seed_from_u64(seed);
            picker(Strategy::RoundRobin, &[1.0; 4], &mut rng).pick(&Now::default(), &mut rng)
        })
        .collect();
    assert_eq!(firsts.len(), 4);
}

#[test]
fn a_retry_takes_nobodys_turn() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut picker = picker(Strategy::RoundRobin, &[1.0, 1.0], &mut rng);
    let first = picker.pick(&Now::default(), &mut rng).unwrap();
    let retry = Now { tried: vec![first], ..Now::default() };
    assert_eq!(picker.pick(&retry, &mut rng), Some(1 - first));
    assert_eq!(picker.pick(&Now::default(), &mut rng), Some(1 - first));
    assert_eq!(picker.pick(&Now::default(), &mut rng), Some(first));
}

/// 99.9th percentile of chi-square with 9 degrees of freedom.
const CHI_SQUARE_9: f64 = 27.88;

#[test]
fn the_first_turns_of_many_round_robins_are_shared_by_weight() {
    let weights: Vec<f64> = (1..=10).map(f64::from).collect();
    let mut counts = vec![0; 10];
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..20_000 {
        let mut picker = picker(Strategy::RoundRobin, &weights, &mut rng);
        for _ in 0..3 {
            counts[picker.pick(&Now::default(), &mut rng).unwrap()] += 1;
        }
    }
    assert!(chi_square(&counts, &weights) < CHI_SQUARE_9, "{counts:?}");
}

fn round_robin() -> BalanceConfig {
    BalanceConfig { strategy: Strategy::RoundRobin, ..BalanceConfig::default() }
}

/// Three picks of each ranking.
fn picks_over(rankings: &[Vec<(u64, f64)>]) -> Vec<u64> {
    let mut rng = SmallRng::seed_from_u64(9);
    let (mut memory, mut picks) = (Memory::Nothing, Vec::new());
    for instances in rankings {
        let mut picker = after(memory, &round_robin(), instances, &mut rng);
        for _ in 0..3 {
            picks.push(instances[picker.pick(&Now::default(), &mut rng).unwrap()].0);
        }
        memory = picker.into_memory();
    }
    picks
}

#[test]
fn turns_go_on_over_new_rankings() {
    let picks = picks_over(&vec![vec![(1, 5.0), (2, 1.0), (3, 1.0)]; 70]);
    for cycle in picks.chunks(7) {
        let of = |id| cycle.iter().filter(|&&pick| pick == id).count();
        assert_eq!((of(1), of(2), of(3)), (5, 1, 1), "{picks:?}");
    }
}

#[test]
fn turns_follow_an_instance_to_its_new_place() {
    let rankings: Vec<_> = (0..70)
        .map(|round| {
            let mut instances = vec![(1, 5.0), (2, 1.0), (3, 1.0)];
            instances.rotate_left(round % 3);
            instances
        })
        .collect();
    for cycle in picks_over(&rankings).chunks(7) {
        let of = |id| cycle.iter().filter(|&&pick| pick == id).count();
        assert_eq!((of(1), of(2), of(3)), (5, 1, 1), "{cycle:?}");
    }
}

#[test]
fn shares_follow_weights_that_change_with_each_ranking() {
    // Half of the time 6 : 1, half of the time 1 : 6.
    let rankings: Vec<_> = (0..700)
        .map(|round| vec![(1, [6.0, 1.0][round % 2]), (2, [1.0, 6.0][round % 2])])
        .collect();
    let picks = picks_over(&rankings);
    let first = picks.iter().filter(|&&pick| pick == 1).count();
    assert!(first.abs_diff(1050) <= 20, "{first} of 2100");
}

#[test]
fn one_that_joins_and_one_that_leaves_take_nobodys_turn() {
    let rankings: Vec<_> = (0..140)
        .map(|round| {
            let passing = 10 + round / 2;
            vec![(1, 1.0), (passing, 1.0), (2, 1.0)]
        })
        .collect();
    let picks = picks_over(&rankings);
    let of = |id| picks.iter().filter(|&&pick| pick == id).count();
    assert!(of(1).abs_diff(of(2)) <= 1, "{picks:?}");
}
