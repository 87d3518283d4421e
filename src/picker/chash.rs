//! `chash`: the requests of one key go to one instance.

use std::collections::HashMap;

use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, in_force, one_untried};
use super::{Memory, Moment, Picker, Ranked};

/// Weighted rendezvous hashing over 65,536 buckets, with bounded load.
///
/// A key falls into a bucket. For that bucket each instance draws `u` in (0, 1),
/// a hash of the bucket and of the instance alone, and the least `-ln(u) / weight`
/// owns it. So an instance owns buckets in proportion to its weight; one that
/// leaves gives its own away and moves no other; one that joins takes its part
/// of each one's. Who owns what depends on nothing but the instances and their
/// weights: all workers, all gateways and the fallback in Lua agree. A share is
/// within `sqrt(n / 65536)` of what it should be, typically: 1 % of it for ten
/// instances. Weights are the fallback weights, which stand still while those of
/// the ranking move each second.
///
/// Finding a bucket's owner costs O(n), once: it is remembered for as long as
/// the instances stay, across rankings.
///
/// No instance takes more than `ceil(c * (m + 1) * share)` requests at once,
/// where `m` are those that this host has open on the service and `c` is
/// `balance.hash_balance_factor`. A request over it goes to the owner of the
/// next bucket that has room, so that one key's overflow has its places too. At
/// least `1 - 1/c` of all shares have room: with `c` of 1.25 a walk is 5 steps
/// long on average at the most.
///
/// A request without a key goes anywhere, by weight. A retry goes where its key
/// would go if the instances that it tried were gone.
///
/// Sources: D. G. Thaler and C. V. Ravishankar, Using Name-Based Mappings to
/// Increase Hit Rates, IEEE/ACM Transactions on Networking 6(1), 1998; J.
/// Schindelhauer and G. Schomaker, Weighted Distributed Hash Tables, SPAA 2005
/// (the logarithmic method); V. Mirrokni, M. Thorup, M. Zadimoghaddam,
/// Consistent Hashing with Bounded Loads, arXiv:1608.01350, 2016.
pub struct Chash {
    owners: Owners,
    /// By the same weights.
    table: AliasTable,
    /// Of the sum of all weights.
    shares: Vec<f64>,
    /// `c`; `None` without a bound.
    factor: Option<f64>,
}

/// Buckets that keys fall into: a power of two.
const BUCKETS: usize = 1 << 16;

/// Buckets that a request is shown from before all instances are compared: with
/// `c` of 1.25, fewer than one in a million walks come to that.
const WALK: usize = 64;

impl Chash {
    /// `factor` is `balance.hash_balance_factor`, in percent.
    pub fn new(ranked: Ranked<'_>, factor: u32, memory: Memory) -> Self {
        let priors = || ranked.priors.iter().zip(ranked.records);
        let mut weights: Vec<f64> = priors()
            .map(|(&prior, record)| if record.weight > 0.0 { prior } else { 0.0 })
            .collect();
        if !weights.iter().any(|&weight| weight > 0.0) {
            weights = ranked.priors.to_vec();
        }
        let weights = in_force(&weights);
        let seats = ranked.identities.iter().zip(&weights);
        let seats = seats.map(|(&identity, &weight)| Seat { identity, weight }).collect();
        let old = if let Memory::Owners(old) = memory { Some(old) } else { None };
        // Divided first, so that no sum of finite weights overflows.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
        Chash {
            owners: Owners::new(seats, old),
            table: AliasTable::new(&weights),
            shares: weights.iter().map(|weight| weight / largest / sum).collect(),
            factor: (factor > 0).then(|| f64::from(factor) / 100.0),
        }
    }
}

impl Picker for Chash {
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize> {
        let Some(key) = now.key() else { return one_untried(&self.table, now, rng) };
        let bucket = bucket_of(key);
        let home = self.owners.of(bucket).filter(|&home| !now.is_barred(home));
        let home = home.or_else(|| self.owners.choose(bucket, |index| !now.is_barred(index)));
        // Without one, what is left has weight 0, or nothing is.
        let Some(home) = home else { return one_untried(&self.table, now, rng) };
        let Some(factor) = self.factor else { return Some(home) };

        let capacity = factor * (now.total_in_flight() as f64 + 1.0);
        let has_room = |index: usize| {
            let most = (capacity * self.shares[index] - ROUNDING).ceil();
            f64::from(now.in_flight(index)) < most
        };
        if has_room(home) {
            return Some(home);
        }
        for step in 1..=WALK {
            let next = self.owners.of((bucket + step) % BUCKETS);
            let next = next.filter(|&index| !now.is_barred(index) && has_room(index));
            if next.is_some() {
                return next;
            }
        }
        let weights = self.table.weights();
        let load = |&index: &usize| f64::from(now.in_flight(index)) / weights[index];
        (0..weights.len())
            .filter(|&index| weights[index] > 0.0 && !now.is_barred(index))
            .min_by(|one, two| load(one).total_cmp(&load(two)))
    }

    fn into_memory(self: Box<Self>) -> Memory {
        Memory::Owners(self.owners)
    }
}

/// What a share that is a whole number may be off by, and stay one.
const ROUNDING: f64 = 1e-9;

/// Who owns each bucket.
pub struct Owners {
    seats: Vec<Seat>,
    /// An index of `seats`, or [`UNKNOWN`].
    by_bucket: Vec<u32>,
}

/// An instance, for as long as it keeps its weight.
#[derive(PartialEq)]
struct Seat {
    identity: u64,
    weight: f64,
}

/// The owner of a bucket that was not asked for yet.
const UNKNOWN: u32 = u32::MAX;

/// Where no more than one in so many instances is new, it is held against the
/// owners that are known; more of them cost more than to find all owners anew.
const KNOWN_PER_NEW: usize = 256;

impl Owners {
    /// Takes over from `old` what has not changed.
    fn new(seats: Vec<Seat>, old: Option<Owners>) -> Self {
        let Some(old) = old else { return Owners::unknown(seats) };
        if old.seats == seats {
            return old;
        }
        let mut places: HashMap<u64, u32> =
            (0..).zip(&old.seats).map(|(index, seat)| (seat.identity, index)).collect();
        let mut moved = vec![UNKNOWN; old.seats.len()];
        let mut new = Vec::new();
        for (index, seat) in seats.iter().enumerate() {
            match places.remove(&seat.identity).map(|place| place as usize) {
                Some(place) if old.seats[place] == *seat => moved[place] = index as u32,
                _ => new.push(index),
            }
        }
        if new.len() * KNOWN_PER_NEW > seats.len() {
            return Owners::unknown(seats);
        }
        let mut owners = Owners { seats, by_bucket: old.by_bucket };
        for bucket in 0..BUCKETS {
            let before = owners.by_bucket[bucket];
            let kept = moved.get(before as usize).copied().unwrap_or(UNKNOWN);
            owners.by_bucket[bucket] = match kept {
                UNKNOWN => UNKNOWN,
                kept => {
                    let rivals = new.iter().copied().chain([kept as usize]);
                    owners.least(bucket, rivals).map_or(UNKNOWN, |index| index as u32)
                }
            };
        }
        owners
    }

    fn unknown(seats: Vec<Seat>) -> Self {
        Owners { seats, by_bucket: vec![UNKNOWN; BUCKETS] }
    }

    /// The owner of a bucket; `None` when there are no instances.
    fn of(&mut self, bucket: usize) -> Option<usize> {
        if self.by_bucket[bucket] == UNKNOWN {
            self.by_bucket[bucket] = self.choose(bucket, |_| true)? as u32;
        }
        Some(self.by_bucket[bucket] as usize)
    }

    /// How many buckets have been asked for.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.by_bucket.iter().filter(|&&owner| owner != UNKNOWN).count()
    }

    /// Who would own a bucket if there were no others than these.
    fn choose(&self, bucket: usize, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        self.least(bucket, (0..self.seats.len()).filter(|&index| eligible(index)))
    }

    /// The one of these with the least `-ln(u) / weight`.
    fn least(&self, bucket: usize, among: impl Iterator<Item = usize>) -> Option<usize> {
        let (mut least, mut owner) = (f64::INFINITY, None);
        let bucket = bucket as u32;
        for index in among {
            let Seat { identity, weight } = self.seats[index];
            let u = hash(bucket, identity);
            // -ln(u) is never less than 1 - u: few need the logarithm.
            if weight > 0.0 && (1.0 - u < least * weight || owner.is_none()) {
                let wait = -u.ln() / weight;
                if wait < least || owner.is_none() {
                    (least, owner) = (wait, Some(index));
                }
            }
        }
        owner
    }
}

/// What a request is kept together by: CRC-32 of its key, which nginx has too.
pub fn hash_of_key(key: &[u8]) -> u64 {
    crc32fast::hash(key).into()
}

fn bucket_of(key: u64) -> usize {
    (mixed(key as u32 ^ (key >> 32) as u32) >> 16) as usize
}

/// A number in (0, 1) for an instance in a bucket. `lua/resty/ipconfig/fallback.lua`
/// has the same function, in the 32-bit arithmetic that LuaJIT has.
fn hash(bucket: u32, identity: u64) -> f64 {
    let hash = mixed(mixed(bucket ^ (identity >> 32) as u32) ^ identity as u32);
    (f64::from(hash) + 0.5) / 4_294_967_296.0
}

/// Each bit of the input changes each bit of the output half of the time.
///
/// Source: A. Appleby, MurmurHash3, `fmix32`.
fn mixed(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}
