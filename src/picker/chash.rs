//! `chash`: the requests of one key go to one instance.

use std::collections::HashMap;
use std::ops::Range;

use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, in_force, one_untried};
use super::{Memory, Moment, Pick, Ranked};

/// Weighted rendezvous hashing over 65,536 buckets, with bounded load.
///
/// A key falls into a bucket. For that bucket each instance draws `u` in (0, 1), a
/// hash of the bucket and of the instance alone, and the least `-ln(1 - u) / weight`
/// owns it. So an instance owns buckets in proportion to its weight; one that
/// leaves gives its own away and moves no other; one that joins takes its part
/// of each one's. Who owns what depends on nothing but the instances and their
/// weights: all workers, all gateways and the fallback in Lua agree. A share is
/// within `sqrt(n / 65536)` of what it should be, typically: 1 % of it for ten
/// instances. Weights are the fallback weights, which stand still while those of
/// the ranking move each second.
///
/// An instance's draws are a permutation of the buckets, which can be walked from
/// the least draw on: so all owners are found within some 12 steps a bucket, however
/// many instances there are; and when the instances change, not when a request
/// comes. Among few, a bucket's owner is found when it is asked for first. Owners
/// are remembered for as long as the instances stay, across rankings.
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
        let seats = seats.map(|(&identity, &weight)| Seat::new(identity, weight)).collect();
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

impl Pick for Chash {
    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
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

    fn into_memory(self) -> Memory {
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
    draws: Draws,
}

/// The owner of a bucket that was not asked for yet.
const UNKNOWN: u32 = u32::MAX;

/// Up to so many instances are compared when a bucket is asked for first, in less
/// than a microsecond; more of them cannot be while a request waits.
const FEW: usize = 256;

/// Comparisons a bucket that cost no more than to find all owners anew.
const STEPS: usize = 16;

/// Draws a bucket, of all instances in proportion to their weights, until the
/// least of each is found: of 65,536 buckets, most often all have it among the
/// first 12 or 16. Step by step, for then most of those that come later are seen
/// to be no match for what is known.
const HORIZONS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 32.0, 64.0];

impl Owners {
    /// Takes over from `old` what has not changed.
    fn new(seats: Vec<Seat>, old: Option<Owners>) -> Self {
        let mut owners = match old {
            Some(old) if old.seats == seats => return old,
            Some(old) => old.moved_to(seats),
            None => Owners { seats, by_bucket: vec![UNKNOWN; BUCKETS] },
        };
        if owners.seats.len() > FEW {
            owners.complete();
        }
        owners
    }

    /// The same owners as far as they are among `seats`, and those of them that are
    /// new held against these.
    fn moved_to(self, seats: Vec<Seat>) -> Self {
        let mut places: HashMap<u64, u32> =
            (0..).zip(&self.seats).map(|(index, seat)| (seat.identity, index)).collect();
        let mut moved = vec![UNKNOWN; self.seats.len()];
        let mut new = Vec::new();
        for (seat, index) in seats.iter().zip(0..) {
            match places.remove(&seat.identity).map(|place| place as usize) {
                Some(place) if self.seats[place] == *seat => moved[place] = index,
                _ => new.push(index as usize),
            }
        }
        let mut owners = Owners { seats, by_bucket: self.by_bucket };
        let mut waits = vec![f64::NEG_INFINITY; BUCKETS];
        let mut longest = 0.0_f64;
        for (bucket, owner) in owners.by_bucket.iter_mut().enumerate() {
            *owner = moved.get(*owner as usize).copied().unwrap_or(UNKNOWN);
            if let Some(seat) = owners.seats.get(*owner as usize) {
                waits[bucket] = seat.wait(bucket);
                longest = longest.max(waits[bucket]);
            }
        }
        for index in new {
            let shorter = owners.seats[index].weight * longest * BUCKETS as f64;
            owners.offer(index, 0..(shorter.ceil() as usize).min(BUCKETS), &mut waits);
        }
        owners
    }

    /// Finds the owners that are unknown.
    fn complete(&mut self) {
        let unknown = self.by_bucket.iter().filter(|&&owner| owner == UNKNOWN).count();
        if unknown * self.seats.len() > STEPS * BUCKETS {
            return self.find_all();
        }
        for bucket in 0..BUCKETS {
            self.of(bucket);
        }
    }

    /// Finds all owners by walking through each instance's least draws.
    fn find_all(&mut self) {
        // Divided first, so that no sum of finite weights overflows.
        let largest = self.seats.iter().map(|seat| seat.weight).fold(0.0, f64::max);
        let sum: f64 = self.seats.iter().map(|seat| seat.weight / largest).sum();
        let mut waits = vec![f64::INFINITY; BUCKETS];
        let mut walked = 0.0;
        for horizon in HORIZONS {
            for index in 0..self.seats.len() {
                let buckets = self.seats[index].weight / largest / sum * BUCKETS as f64;
                let rank = |horizon: f64| ((buckets * horizon).ceil() as usize).min(BUCKETS);
                self.offer(index, rank(walked)..rank(horizon), &mut waits);
            }
            walked = horizon;
            // What was not walked through comes later than this.
            let is_found = |&wait: &f64| wait * largest <= horizon / sum;
            if waits.iter().all(is_found) {
                break;
            }
        }
    }

    /// Gives an instance the buckets of these ranks for which it has waited less than
    /// their owners did.
    fn offer(&mut self, index: usize, ranks: Range<usize>, waits: &mut [f64]) {
        let seat = &self.seats[index];
        for rank in ranks {
            let bucket = seat.draws.bucket(rank as u16);
            if seat.can_wait_less(rank as u16, waits[bucket]) {
                let wait = seat.wait(bucket);
                if wait < waits[bucket] {
                    waits[bucket] = wait;
                    self.by_bucket[bucket] = index as u32;
                }
            }
        }
    }

    /// The owner of a bucket; `None` when there are no instances.
    fn of(&mut self, bucket: usize) -> Option<usize> {
        if self.by_bucket[bucket] == UNKNOWN {
            self.by_bucket[bucket] = self.choose(bucket, |_| true)? as u32;
        }
        Some(self.by_bucket[bucket] as usize)
    }

    /// How many buckets' owners are known.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.by_bucket.iter().filter(|&&owner| owner != UNKNOWN).count()
    }

    /// How many owners are known here and there, and how many of them differ.
    #[cfg(test)]
    pub(super) fn held_against(&self, other: &Owners) -> (usize, usize) {
        let both = self.by_bucket.iter().zip(&other.by_bucket);
        let both = both.filter(|&(&here, &there)| here != UNKNOWN && there != UNKNOWN);
        (both.clone().count(), both.filter(|(here, there)| here != there).count())
    }

    /// How many of the known owners are not those that all instances say.
    #[cfg(test)]
    pub(super) fn wrong(&self) -> usize {
        let is_wrong = |&(bucket, &owner): &(usize, &u32)| {
            owner != UNKNOWN && self.choose(bucket, |_| true) != Some(owner as usize)
        };
        self.by_bucket.iter().enumerate().filter(is_wrong).count()
    }

    /// How many buckets each instance is known to own.
    #[cfg(test)]
    pub(super) fn by_instance(&self) -> Vec<u32> {
        let mut buckets = vec![0; self.seats.len()];
        self.by_bucket.iter().for_each(|&owner| buckets[owner as usize] += 1);
        buckets
    }

    /// Who would own a bucket if there were no others than these. O(n).
    fn choose(&self, bucket: usize, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut least, mut owner) = (f64::INFINITY, None);
        for (index, seat) in self.seats.iter().enumerate().filter(|(index, _)| eligible(*index)) {
            let is_likely = seat.can_wait_less(seat.draws.rank(bucket), least);
            if seat.weight > 0.0 && (is_likely || owner.is_none()) {
                let wait = seat.wait(bucket);
                if wait < least || owner.is_none() {
                    (least, owner) = (wait, Some(index));
                }
            }
        }
        owner
    }
}

impl Seat {
    fn new(identity: u64, weight: f64) -> Self {
        Seat { identity, weight, draws: Draws::of(identity) }
    }

    /// `-ln(1 - u) / weight`
    fn wait(&self, bucket: usize) -> f64 {
        -(1.0 - self.draws.number(bucket)).ln() / self.weight
    }

    /// Whether the wait for the bucket of this rank may be less: it is never less
    /// than `u / weight`, so that few need the logarithm.
    fn can_wait_less(&self, rank: u16, than: f64) -> bool {
        f64::from(rank) / (BUCKETS as f64) < than * self.weight
    }
}

/// An instance's number in (0, 1) for each bucket: the bucket's rank in an order of
/// its own, and what chance adds to it. `lua/resty/ipconfig/fallback.lua` has the
/// same functions.
#[derive(Clone, Copy, PartialEq)]
struct Draws {
    keys: [u16; 3],
    chance: u32,
}

impl Draws {
    fn of(identity: u64) -> Self {
        let (high, low) = ((identity >> 32) as u32, identity as u32);
        let first = mixed(mixed(high) ^ low);
        let second = mixed(first ^ high);
        let keys = [(first >> 16) as u16, first as u16, (second >> 16) as u16];
        Draws { keys, chance: second }
    }

    fn number(&self, bucket: usize) -> f64 {
        let chance = mixed(self.chance ^ bucket as u32);
        let fraction = (f64::from(chance) + 0.5) / 4_294_967_296.0;
        (f64::from(self.rank(bucket)) + fraction) / BUCKETS as f64
    }

    fn rank(&self, bucket: usize) -> u16 {
        let [first, second, third] = self.keys;
        shuffled(shuffled(bucket as u16 ^ first) ^ second) ^ third
    }

    /// The one that has a rank.
    fn bucket(&self, rank: u16) -> usize {
        let [first, second, third] = self.keys;
        usize::from(unshuffled(unshuffled(rank ^ third) ^ second) ^ first)
    }
}

/// A permutation of 16-bit numbers in which each bit of the input changes each bit
/// of the output about half of the time.
///
/// Source: C. Wellons, Prospecting for Hash Functions, 2018, `hash16_xm2`.
fn shuffled(mut x: u16) -> u16 {
    x = (x ^ (x >> 8)).wrapping_mul(0x88b5);
    x = (x ^ (x >> 7)).wrapping_mul(0xdb2d);
    x ^ (x >> 9)
}

/// Its inverse.
fn unshuffled(mut x: u16) -> u16 {
    x = (x ^ (x >> 9)).wrapping_mul(0x2ca5);
    x = (x ^ (x >> 7) ^ (x >> 14)).wrapping_mul(0x259d);
    x ^ (x >> 8)
}

/// What a request is kept together by: CRC-32 of its key, which nginx has too.
pub fn hash_of_key(key: &[u8]) -> u64 {
    crc32fast::hash(key).into()
}

fn bucket_of(key: u64) -> usize {
    (mixed(key as u32 ^ (key >> 32) as u32) >> 16) as usize
}

/// Each bit of the input changes each bit of the output half of the time.
///
/// Source: A. Appleby, MurmurHash3, `fmix32`.
fn mixed(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}
