//! The instances that one gateway of many uses: rendezvous hashing by who the
//! gateway and the instance are. Each gateway decides for itself; one instance that
//! comes or leaves changes one place of those subsets that it is in.
//!
//! A gateway in a zone takes those of its zone first, and leaves a fifth of the
//! places to the others, so that there is somewhere to spill to.
//!
//! Source: gRPC proposal A68, random subsetting, which sorts by a hash with a seed
//! for each client.

use crate::registry::Member;

/// Of so many places, one is for other zones than the gateway's.
const OTHERS: usize = 5;

/// Who asks: a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    seed: u64,
    /// Empty if no zone is nearer than another.
    pub zone: String,
}

impl Gateway {
    /// The gateway of this name, unique among all.
    pub fn new(id: &str, zone: String) -> Self {
        Gateway { seed: mixed(u64::from(crc32fast::hash(id.as_bytes()))), zone }
    }

    /// Leaves no more than `size` of a service's members, in their order. 0 leaves
    /// all. `prefers_zone`: those in the gateway's zone come first.
    pub fn choose(&self, members: &mut Vec<Member<'_>>, size: usize, prefers_zone: bool) {
        if size == 0 || members.len() <= size {
            return;
        }
        let place = |member: &Member<'_>| mixed(self.seed ^ hash(&member.instance.id));
        let is_local = |member: &Member<'_>| {
            prefers_zone && !self.zone.is_empty() && member.instance.zone == self.zone
        };
        let mut places: [Vec<(u64, usize)>; 2] = Default::default();
        for (index, member) in members.iter().enumerate() {
            places[usize::from(!is_local(member))].push((place(member), index));
        }
        let [local, others] = &mut places;
        let kept = others.len().min(if local.is_empty() { size } else { size.div_ceil(OTHERS) });
        let of_local = local.len().min(size - kept);
        let mut is_kept = vec![false; members.len()];
        for (places, count) in [(local, of_local), (others, size - of_local)] {
            if count < places.len() {
                places.select_nth_unstable(count);
                places.truncate(count);
            }
            places.iter().for_each(|&(_, index)| is_kept[index] = true);
        }
        let mut kept = is_kept.into_iter();
        members.retain(|_| kept.next().unwrap_or(true));
    }
}

/// Of an instance's id.
fn hash(id: &str) -> u64 {
    // FNV-1a, 64 bits: G. Fowler, L. C. Noll, K.-P. Vo.
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Each bit of the input changes each bit of the output half of the time.
///
/// Source: G. L. Steele, D. Lea, C. H. Flood, Fast Splittable Pseudorandom Number
/// Generators, OOPSLA 2014 (the variant `mix13` of D. Stafford).
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::model::Instance;
    use crate::ranking::State;

    fn instance(id: usize, zone: &str) -> Instance {
        Instance {
            id: format!("chat-{id}"),
            addr: ([10, 0, 0, 1], 80).into(),
            weight: 1.0,
            zone: zone.into(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: 0,
        }
    }

    fn chosen(of: &[Instance], gateway: &Gateway, size: usize) -> BTreeSet<String> {
        let member = |instance| Member {
            instance,
            state: State::Unreported,
            load: None,
            boot_id: None,
            report_age_ms: None,
        };
        let mut members: Vec<_> = of.iter().map(member).collect();
        gateway.choose(&mut members, size, true);
        assert!(members.is_sorted_by_key(|member| {
            of.iter().position(|it| it.id == member.instance.id).unwrap()
        }));
        members.iter().map(|member| member.instance.id.clone()).collect()
    }

    fn gateway(number: usize, zone: &str) -> Gateway {
        Gateway::new(&format!("gateway-{number}"), zone.into())
    }

    fn instances(count: usize) -> Vec<Instance> {
        (0..count).map(|id| instance(id, "")).collect()
    }

    #[test]
    fn the_subset_of_a_gateway_is_the_same_on_every_machine() {
        let chosen = chosen(&instances(20), &gateway(1, ""), 4);
        assert_eq!(
            chosen.into_iter().collect::<Vec<_>>(),
            ["chat-10", "chat-14", "chat-15", "chat-2"]
        );
    }

    #[test]
    fn a_size_of_0_or_of_all_leaves_all() {
        for size in [0, 20, 21] {
            assert_eq!(chosen(&instances(20), &gateway(1, ""), size).len(), 20);
        }
    }

    /// As `algorithms.md` measures: gateways, instances and the size of a subset,
    /// with the least and the most gateways that an instance may have.
    #[test]
    fn instances_get_about_as_many_gateways() {
        for (gateways, count, size, least, most) in
            [(100, 100, 20, 8, 36), (32, 100, 20, 1, 16), (400, 100, 20, 55, 110)]
        {
            let all = instances(count);
            let mut of: BTreeMap<String, usize> = BTreeMap::new();
            for number in 0..gateways {
                for id in chosen(&all, &gateway(number, ""), size) {
                    *of.entry(id).or_default() += 1;
                }
            }
            let (fewest, many) = (of.values().min().unwrap(), of.values().max().unwrap());
            assert!(of.len() == count && *fewest >= least && *many <= most, "{fewest}..{many}");
        }
    }

    #[test]
    fn the_instances_of_the_gateways_zone_come_first_and_the_others_keep_a_fifth() {
        let zone = |id| if id % 2 == 0 { "near" } else { "far" };
        let all: Vec<_> = (0..40).map(|id| instance(id, zone(id))).collect();
        let near = |of: &BTreeSet<String>| {
            let is_near = |it: &&Instance| it.zone == "near" && of.contains(&it.id);
            all.iter().filter(is_near).count()
        };
        let of_gateway = |zone, size| chosen(&all, &gateway(1, zone), size);
        assert_eq!(near(&of_gateway("near", 10)), 8);
        assert_eq!(near(&of_gateway("near", 30)), 20, "what is left goes to the others");
        assert_eq!(of_gateway("near", 30).len(), 30);
        assert_eq!(of_gateway("nowhere", 10), of_gateway("", 10));
    }

    proptest! {
        #[test]
        fn a_subset_has_its_size_and_one_that_leaves_costs_one_connection_at_most(
            count in 3..60usize, size in 2..30usize, number in 0..1000usize,
            gone in 0..60usize, zones in 1..4usize,
        ) {
            let zone = |id: usize| ["a", "b", "c"][id % zones];
            let all: Vec<_> = (0..count).map(|id| instance(id, zone(id))).collect();
            let gateway = gateway(number, "a");
            let before = chosen(&all, &gateway, size);
            prop_assert_eq!(before.len(), size.min(count));
            let mut fewer = all.clone();
            let gone = fewer.remove(gone % count);
            let after = chosen(&fewer, &gateway, size);
            let opened = after.difference(&before).count();
            prop_assert!(opened <= usize::from(before.contains(&gone.id)), "{opened}");
        }
    }
}
