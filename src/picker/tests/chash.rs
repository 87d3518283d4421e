use proptest::sample::Index;

use super::*;

/// Identity and weight.
type Instance = (u64, f64);

fn chash(hash_balance_factor: u32) -> BalanceConfig {
    let strategy = Strategy::Chash;
    BalanceConfig { strategy, hash_balance_factor, ..BalanceConfig::default() }
}

fn over(instances: &[Instance]) -> Picker {
    over_after(Memory::Nothing, instances)
}

fn over_after(memory: Memory, instances: &[Instance]) -> Picker {
    after(memory, &chash(0), instances, &mut SmallRng::seed_from_u64(1))
}

fn index_of(picker: &mut Picker, now: &Now) -> usize {
    picker.pick(now, &mut SmallRng::seed_from_u64(1)).unwrap()
}

fn key(key: u32) -> Now {
    Now { key: Some(hash_of_key(&key.to_le_bytes())), ..Now::default() }
}

/// The identities that these many keys go to.
fn homes(picker: &mut Picker, instances: &[Instance], keys: u32) -> Vec<u64> {
    (0..keys).map(|k| instances[index_of(picker, &key(k))].0).collect()
}

fn homes_over(instances: &[Instance], keys: u32) -> Vec<u64> {
    homes(&mut over(instances), instances, keys)
}

/// Identities as the board makes them.
fn instances(weights: &[f64]) -> Vec<Instance> {
    let identity = |index: u16| {
        let addr = std::net::SocketAddr::from(([10, 0, 0, index as u8], 8000 + index));
        crate::board::identity("chat", &format!("chat-{index}"), &addr)
    };
    (0..).map(identity).zip(weights.iter().copied()).collect()
}

#[test]
fn keys_are_shared_in_proportion_to_the_weights() {
    for weights in [vec![1.0; 10], vec![1.0, 2.0, 3.0, 4.0], vec![0.1, 100.0, 30.0]] {
        let instances = instances(&weights);
        let homes = homes_over(&instances, 300_000);
        let sum: f64 = weights.iter().sum();
        for (identity, weight) in instances {
            let share = homes.iter().filter(|&&home| home == identity).count() as f64 / 300_000.0;
            let off = (share / (weight / sum) - 1.0).abs();
            // Four times what 65,536 buckets make probable.
            let allowed = 4.0 * (sum / weight / 65_536.0).sqrt();
            assert!(off < allowed, "{share} for {weight} of {sum}, {off} off");
        }
    }
}

#[test]
fn the_order_of_the_instances_does_not_matter_nor_do_the_rankings_weights() {
    let mut instances = instances(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    let before = homes_over(&instances, 2000);
    instances.rotate_left(2);
    assert_eq!(homes_over(&instances, 2000), before);

    let (identities, priors): (Vec<u64>, Vec<f64>) = instances.iter().copied().unzip();
    let records: Vec<Record> =
        (0..5).map(|index| record([9.0, 0.1, 3.0, 2.0, 1.0][index], 0)).collect();
    let ranked = Ranked {
        identities: &identities,
        priors: &priors,
        records: &records,
        own_part: 1.0,
        rate_per_s: 0.0,
    };
    let mut picker = rebuild(&chash(0), ranked, Memory::Nothing, &mut SmallRng::seed_from_u64(1));
    assert_eq!(homes(&mut picker, &instances, 2000), before);
}

#[test]
fn what_the_ranking_gives_weight_0_owns_no_key() {
    let ranked = Ranked {
        identities: &[1, 2, 3],
        priors: &[1.0, 1.0, 1.0],
        records: &[record(1.0, 0), record(0.0, 1), record(1.0, 2)],
        own_part: 1.0,
        rate_per_s: 0.0,
    };
    let mut picker = rebuild(&chash(0), ranked, Memory::Nothing, &mut SmallRng::seed_from_u64(1));
    assert!((0..500).all(|k| index_of(&mut picker, &key(k)) != 1));
}

#[test]
fn requests_without_a_key_are_shared_by_weight() {
    let weights = [1.0, 2.0, 3.0, 4.0];
    let counts = shares(Strategy::Chash, &weights, 40_000, &Now::default());
    assert!(chi_square(&counts, &weights) < CHI_SQUARE_3, "{counts:?}");
}

#[test]
fn a_retry_goes_where_the_key_goes_once_the_tried_one_has_left() {
    let instances = instances(&[1.0, 2.0, 3.0, 4.0]);
    let mut picker = over(&instances);
    for k in 0..500 {
        let home = index_of(&mut picker, &key(k));
        let retry = index_of(&mut picker, &Now { tried: vec![home], ..key(k) });
        let mut left = instances.clone();
        left.remove(home);
        let next = index_of(&mut over(&left), &key(k));
        assert_eq!(instances[retry], left[next]);
    }
}

#[test]
fn without_a_bound_a_key_stays_however_loaded_its_instance_is() {
    let instances = instances(&[1.0; 3]);
    let mut picker = over(&instances);
    let home = index_of(&mut picker, &key(1));
    let busy = Now { in_flight: vec![1000; 3].into(), ..key(1) };
    busy.in_flight.borrow_mut()[home] = 1_000_000;
    assert_eq!(index_of(&mut picker, &busy), home);
}

/// Sends requests that never end; each of a key's must find its instance within
/// the bound.
fn fill(weights: &[f64], percent: u32, keys: &[u32]) -> Vec<u32> {
    let instances = instances(weights);
    let sum: f64 = weights.iter().sum();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut picker = after(Memory::Nothing, &chash(percent), &instances, &mut rng);
    let loads = RefCell::new(vec![0; weights.len()]);
    for (&k, m) in keys.iter().zip(0u32..) {
        let now = Now { in_flight: loads.clone(), ..key(k) };
        let pick = picker.pick(&now, &mut rng).unwrap();
        let load = loads.borrow()[pick] + 1;
        loads.borrow_mut()[pick] = load;
        let most = f64::from(percent) / 100.0 * f64::from(m + 1) * weights[pick] / sum;
        assert!(load <= (most - 1e-9).ceil() as u32, "{load} of {m}, at most {most}");
    }
    loads.into_inner()
}

#[test]
fn one_hot_key_fills_one_instance_after_another_to_the_bound() {
    let mut loads = fill(&[1.0; 5], 125, &[7; 400]);
    loads.sort_unstable();
    assert_eq!(loads, [0, 100, 100, 100, 100], "125 % of a fifth of 400");
}

#[test]
fn the_overflow_of_two_keys_of_one_instance_goes_different_ways() {
    let instances = instances(&[1.0; 10]);
    let mut picker = over(&instances);
    let home = index_of(&mut picker, &key(0));
    let mut rng = SmallRng::seed_from_u64(1);
    let mut bounded = after(Memory::Nothing, &chash(125), &instances, &mut rng);
    let full = RefCell::new(vec![0; 10]);
    full.borrow_mut()[home] = 100;
    let ways: std::collections::HashSet<usize> = (0..1000)
        .filter(|&k| index_of(&mut picker, &key(k)) == home)
        .map(|k| index_of(&mut bounded, &Now { in_flight: full.clone(), ..key(k) }))
        .collect();
    assert_eq!(ways.len(), 9, "all the others, and not the full one");
}

proptest! {
    #[test]
    fn one_that_leaves_or_joins_moves_its_own_keys_and_no_other(
        weights in proptest::collection::vec(0.01..100.0f64, 2..20),
        one in any::<Index>(),
    ) {
        let with = instances(&weights);
        let mut without = with.clone();
        let (gone, weight) = without.remove(one.index(with.len()));
        let keys = 4000;
        let moved: Vec<(u64, u64)> = homes_over(&with, keys)
            .into_iter()
            .zip(homes_over(&without, keys))
            .filter(|(before, after)| before != after)
            .collect();
        prop_assert!(moved.iter().all(|&(before, _)| before == gone));
        let share = weight / weights.iter().sum::<f64>();
        let expected = share * f64::from(keys);
        prop_assert!(moved.len() as f64 <= expected + 6.0 * expected.sqrt() + 6.0);
    }

    #[test]
    fn more_weight_for_one_takes_keys_to_it_and_moves_no_other(
        weights in proptest::collection::vec(0.01..100.0f64, 2..20),
        one in any::<Index>(),
        factor in 1.0..10.0f64,
    ) {
        let lighter = instances(&weights);
        let mut heavier = lighter.clone();
        let one = one.index(lighter.len());
        heavier[one].1 *= factor;
        let (before, after) = (homes_over(&lighter, 2000), homes_over(&heavier, 2000));
        prop_assert!(
            before.iter().zip(&after).all(|(was, is)| was == is || *is == heavier[one].0)
        );
    }

    #[test]
    fn no_instance_is_filled_past_the_bound(
        weights in proptest::collection::vec(0.01..100.0f64, 1..12),
        percent in 101..1000u32,
        keys in proptest::collection::vec(0..4u32, 1..150),
    ) {
        fill(&weights, percent, &keys);
    }
}

/// So many that all owners are found when the picker is built.
fn many(weights: impl Fn(u64) -> f64) -> Vec<Instance> {
    (0..600).map(|i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15), weights(i))).collect()
}

fn owners_of(picker: Picker) -> super::super::chash::Owners {
    match picker.into_memory() {
        Memory::Owners(owners) => owners,
        _ => panic!("chash remembers its owners"),
    }
}

#[test]
fn the_owners_of_many_are_those_with_the_least_wait_of_all() {
    let apart =
        |index: u64| if index.is_multiple_of(7) { 1000.0 } else { 0.01 + (index % 5) as f64 };
    let mostly_none = |index: u64| f64::from(index % 100 == 3);
    for instances in [many(|_| 1.0), many(apart), many(mostly_none)] {
        let owners = owners_of(over(&instances));
        assert_eq!(owners.known(), 65_536);
        assert_eq!(owners.wrong(), 0);
    }
}

#[test]
fn no_request_among_many_is_what_finds_an_owner() {
    let all = many(|index| (index % 3 + 1) as f64);
    let mut memory = Memory::Nothing;
    for instances in [&all[..200], &all[..], &all[1..], &all[..599], &all[..300], &all[300..]] {
        let owners = owners_of(over_after(memory, instances));
        assert_eq!(owners.known() == 65_536, instances.len() > 256);
        memory = Memory::Owners(owners);
    }
}

#[test]
fn one_of_many_that_leaves_moves_its_own_keys_and_no_other() {
    let all = many(|index| (index % 4 + 1) as f64);
    let before = homes_over(&all, 60_000);
    for gone in [0, 7, 599] {
        let mut left = all.clone();
        let (gone, _) = left.remove(gone);
        let after = homes_over(&left, 60_000);
        let mut moved = before.iter().zip(&after).filter(|(was, is)| was != is).peekable();
        assert!(moved.peek().is_some());
        assert!(moved.all(|(&was, _)| was == gone));
    }
}

#[test]
fn keys_are_shared_among_many_in_proportion_to_the_weights() {
    let instances = many(|index| (index % 4 + 1) as f64);
    let owners = owners_of(over(&instances));
    let buckets = owners.by_instance();
    let sum: f64 = instances.iter().map(|(_, weight)| weight).sum();
    let off = instances.iter().zip(buckets).map(|((_, weight), owned)| {
        let expected = weight / sum * 65_536.0;
        (f64::from(owned) - expected).powi(2) / expected
    });
    // No further off than chance, of 599 degrees of freedom and five deviations.
    let chi_square: f64 = off.sum();
    assert!(chi_square < 599.0 + 5.0 * (2.0 * 599.0_f64).sqrt(), "{chi_square}");
}

#[test]
fn owners_that_are_remembered_are_those_that_would_be_found_anew() {
    let all = many(|index| (index % 3 + 1) as f64);
    let heavier: Vec<Instance> =
        all.iter().map(|&(id, w)| (id, if id == all[9].0 { w + 1.0 } else { w })).collect();
    let lighter: Vec<Instance> =
        all.iter().map(|&(id, w)| (id, if id == all[8].0 { w / 3.0 } else { w })).collect();
    let mut memory = Memory::Nothing;
    for (step, instances) in [
        &all[2..],
        &all[1..],
        &all[..590],
        &all[1..],
        &all[..],
        &heavier,
        &lighter,
        &all[300..],
        &all[345..],
        &all[350..],
        &all[340..],
        &all[400..],
        &all[395..],
    ]
    .into_iter()
    .enumerate()
    {
        let with_some_known = |mut picker: Picker| {
            homes(&mut picker, instances, 3000);
            owners_of(picker)
        };
        let owners = with_some_known(over_after(memory, instances));
        let (both, others) = owners.held_against(&with_some_known(over(instances)));
        assert!(both > 2500, "step {step}");
        assert_eq!(others, 0, "step {step}");
        memory = Memory::Owners(owners);
    }
}

#[test]
fn a_ranking_of_the_same_instances_keeps_the_owners() {
    let instances = instances(&[1.0; 4]);
    let mut picker = over(&instances);
    homes(&mut picker, &instances, 500);
    let owners = owners_of(picker);
    let count = owners.known();
    assert!(count > 400);
    assert_eq!(owners_of(over_after(Memory::Owners(owners), &instances)).known(), count);
}
