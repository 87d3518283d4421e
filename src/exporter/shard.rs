//! Which key of etcd an instance's status is written under: each service's
//! instances are packed into as few shards as hold them.

use std::collections::{BTreeMap, HashMap};

/// The most instances whose statuses share one key: with every figure told and
/// the longest of ids they stay below the 64 KiB that a value may have.
pub const INSTANCES_PER_SHARD: usize = 100;

/// A part of one service's instances.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardName {
    /// The service's name.
    pub service: String,
    /// Its number within the service, from 0 without gaps.
    pub number: u32,
}

/// A member that changes its shard, so that none is kept half empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Which member.
    pub member: u64,
    /// Its shard from now on.
    pub to: ShardName,
}

/// Who is in which shard. Members are numbers of the caller's.
#[derive(Debug, Default)]
pub struct Packing {
    /// Each service's members in the order of their places: the first 100 places
    /// are shard 0.
    services: BTreeMap<String, Vec<u64>>,
    places: HashMap<u64, usize>,
}

impl Packing {
    /// Gives a new member of a service its shard.
    pub fn add(&mut self, service: &str, member: u64) -> ShardName {
        let members = self.services.entry(service.to_owned()).or_default();
        self.places.insert(member, members.len());
        members.push(member);
        shard(service, members.len() - 1)
    }

    /// Whether a service has no members.
    pub fn is_empty(&self, service: &str) -> bool {
        !self.services.contains_key(service)
    }

    /// Takes a member out. The service's last one takes over its place, which is
    /// a move if the two are in different shards.
    pub fn remove(&mut self, service: &str, member: u64) -> Option<Move> {
        let members = self.services.get_mut(service)?;
        let place = self.places.remove(&member)?;
        members.swap_remove(place);
        let moved = members.get(place).copied();
        let last_place = members.len();
        if members.is_empty() {
            self.services.remove(service);
        }
        let moved = moved?;
        self.places.insert(moved, place);
        let to = shard(service, place);
        (to != shard(service, last_place)).then_some(Move { member: moved, to })
    }
}

fn shard(service: &str, place: usize) -> ShardName {
    let number = u32::try_from(place / INSTANCES_PER_SHARD).unwrap_or(u32::MAX);
    ShardName { service: service.to_owned(), number }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shard_holds_100_and_the_next_one_begins_then() {
        let mut packing = Packing::default();
        let numbers: Vec<u32> = (0..250).map(|id| packing.add("chat", id).number).collect();
        let count = |shard| numbers.iter().filter(|number| **number == shard).count();
        assert_eq!([count(0), count(1), count(2), count(3)], [100, 100, 50, 0]);
    }

    #[test]
    fn the_last_one_fills_the_hole() {
        let mut packing = Packing::default();
        for id in 0..150 {
            packing.add("chat", id);
        }
        let to = ShardName { service: "chat".into(), number: 0 };
        assert_eq!(packing.remove("chat", 7), Some(Move { member: 149, to }));
        assert_eq!(packing.remove("chat", 120), None, "within a shard nothing moves");
        assert_eq!(packing.remove("chat", 120), None, "it is gone");
    }

    proptest! {
        #[test]
        fn there_are_never_more_shards_than_the_members_need(
            steps in proptest::collection::vec((any::<bool>(), 0..400u64), 0..800),
        ) {
            let mut packing = Packing::default();
            let mut shards: BTreeMap<u64, ShardName> = BTreeMap::new();
            for (adds, member) in steps {
                match (adds, shards.contains_key(&member)) {
                    (true, false) => _ = shards.insert(member, packing.add("chat", member)),
                    (false, true) => {
                        shards.remove(&member);
                        if let Some(Move { member, to }) = packing.remove("chat", member) {
                            prop_assert_ne!(shards.insert(member, to.clone()), Some(to));
                        }
                    }
                    _ => {}
                }
                let names: BTreeSet<_> = shards.values().collect();
                prop_assert_eq!(names.len(), shards.len().div_ceil(INSTANCES_PER_SHARD));
                for name in names {
                    let count = shards.values().filter(|shard| *shard == name).count();
                    prop_assert!(count <= INSTANCES_PER_SHARD);
                }
            }
        }
    }
}
