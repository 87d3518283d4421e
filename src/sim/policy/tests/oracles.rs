//! Those who know everything, and how two are drawn.

use std::collections::BTreeMap;

use super::*;

#[test]
fn the_shortest_queue_counts_what_no_gateway_sees() {
    let mut fleet = Fleet::of(3);
    for (server, by_all) in [(0, 3), (1, 1), (2, 2)] {
        fleet.servers[server].by_all = by_all;
    }
    assert_eq!(picks(&mut *policy("oracle_jsq"), &fleet, 9), [1; 9]);
    fleet.servers[2].by_all = 1;
    let shares = shares(&mut *policy("oracle_jsq"), &fleet, 10_000);
    assert_close(shares[1], 0.5, 0.04);
    assert_eq!(shares[0], 0.0);
}

#[test]
fn the_expected_delay_counts_what_waits_for_a_slot() {
    let picks = |servers: [(f64, u32, u32); 2]| {
        let mut fleet = Fleet::of(2);
        for (server, (service_s, slots, by_all)) in fleet.servers.iter_mut().zip(servers) {
            (server.service_s, server.slots, server.by_all) = (service_s, slots, by_all);
        }
        let mut server = picks(&mut *policy("oracle_sed"), &fleet, 20);
        server.dedup();
        server
    };
    assert_eq!(picks([(1.0, 1, 2), (2.9, 1, 0)]), [1]); // 3 and 2.9
    assert_eq!(picks([(1.0, 1, 2), (3.1, 1, 0)]), [0]);
    assert_eq!(picks([(1.0, 4, 3), (1.0, 1, 1)]), [0]); // a slot is free: 1 and 2
    assert_eq!(picks([(1.0, 4, 7), (1.9, 1, 0)]), [1]); // 2 and 1.9
    assert_eq!(picks([(1.0, 4, 6), (1.9, 1, 0)]), [0]); // 1.75
    assert_eq!(picks([(f64::INFINITY, 4, 0), (9.0, 1, 9)]), [1]);
    assert!(picks([(1.0, 4, 0), (1.0, 2, 1)]).len() > 1, "equal ones by chance");
}

/// Also where most servers are not open, which is drawn from a list.
#[test]
fn all_pairs_of_open_servers_are_alike() {
    for servers in [4, 400] {
        let mut fleet = Fleet::of(servers);
        fleet.servers.iter_mut().skip(4).for_each(|server| server.is_member = false);
        let mut rng = rng();
        let mut pairs = BTreeMap::new();
        for _ in 0..12_000 {
            *pairs.entry(draw::any_two(&fleet, &mut rng).unwrap()).or_insert(0) += 1;
        }
        assert_eq!(pairs.len(), 12);
        assert!(pairs.values().all(|&count| (850..1_150).contains(&count)), "{pairs:?}");
    }
}
