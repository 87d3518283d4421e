//! `adaptive`: slow facts make the draw, fast facts decide.
//!
//! The ranking's weights are the optimal shares (see [`crate::ranking`]): how much
//! each instance should get of what all gateways send. They are seconds old. A
//! pick draws a few candidates by them and takes the one whose cost, in
//! milliseconds, is least by what this host sees right now.
//!
//! Two views of a candidate with `n` requests of this host open on it:
//!
//! ```text
//! q = n * v / (part * v + 1 - part)    requests that it has from everywhere,
//!     v = 1 + planned / 2              for this host's part of the traffic
//! w = s * max(0, q + 1 - k) / k        the wait behind them, with k served at once
//! d = s + w                            expected delay
//! l = n / (rate of this host * share)  Little's law: how long requests stay, if
//!                                      it gets its share
//! ```
//!
//! The expected delay is the better guide while `n` tells what the instance has
//! in all, which is when this host sends much of the traffic. Where many gateways
//! send a little each, `n` is mostly 0 and says nothing, and whoever follows the
//! expected delay sends all gateways to the same instances. There, the draw
//! stands unless the candidate drawn would make a request wait. With `t`, the
//! trust in one's own counts, from 0 below a twelfth of the traffic to 1 above a
//! quarter, and `b = min(0.9, 1.4 * sqrt(part))`:
//!
//! ```text
//! cost = t * ((1 - b) * l + b * d) + (1 - t) * (l / 10, and d if w > 0)
//! ```
//!
//! Among equal costs the first draw stands: the draws are by share already. When
//! none of those drawn has room, or is as fast as it should be, two more are drawn
//! by capacity: a surge is there before a ranking knows of it.
//!
//! Where no report tells what the instances can do, candidates are two, and the
//! cost is open requests by weight: the power of two choices.
//!
//! In either case an instance is *slow* by as many times as its answers take
//! longer, or are overdue, than they should (without reports: than those of the
//! others), once that is more than twice; by the part of its answers that are
//! failures; and by failures in a row. What makes it slow makes it cost more. So
//! that its recovery is seen, an instance that comes up in a draw, and was not
//! picked for some seconds, is picked.
//!
//! Sources: M. Mitzenmacher, How Useful Is Old Information?, IEEE Transactions on
//! Parallel and Distributed Systems 11(1), 2000, for why a draw; S. Shenker and
//! A. Weinrib, The Optimal Control of Heterogeneous Queueing Systems, 1989, for
//! shortest expected delay. The blend was found by simulation, from 1 to 64
//! gateways; `doc/adaptive.md` has the figures.

use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, one_untried};
use super::{Live, Moment, Picker, Ranked};
use crate::ranking::{FAILURE_FACTOR, wait};

/// Candidates of a pick.
const CANDIDATES: usize = 3;

/// From so many instances on there are fewer: each costs a wait for memory then,
/// and the third gains little.
const MANY: usize = 2000;

/// Candidates among many, and where no report tells: there, more are a herd.
const FEW_CANDIDATES: usize = 2;

/// Draws for a further candidate.
const DRAWS: usize = 8;

/// Further ones by capacity, when none of the candidates has room.
const BY_ROOM: usize = 2;

/// Between these parts of the traffic, trust in one's own counts grows.
const NO_TRUST: f64 = 1.0 / 12.0;
const FULL_TRUST: f64 = 1.0 / 4.0;

/// The weight of the expected delay, by the root of this host's part of the
/// traffic, and the most that it is.
const BY_DELAY: f64 = 1.4;
const MOST_BY_DELAY: f64 = 0.9;

/// The weight of Little's view where own counts are not trusted: it decides
/// among those that would not make a request wait.
const BY_LITTLE: f32 = 0.1;

/// How many times longer than expected is noise.
const NOT_SLOW: f32 = 2.0;

/// So many times the expected latency may go by without any answer: with a
/// few requests open, gaps of that length come by chance.
const OVERDUE: f32 = 4.0;

/// What is no difference between two latencies, in milliseconds: the way there
/// and back, and the steps of the clock.
const LATENCY_FLOOR_MS: f32 = 2.0;

/// Each failure in a row doubles the cost, up to so many.
const DOUBLINGS: u32 = 10;

/// The part of a further instance in the usual latency.
const USUAL_PART: f32 = 1.0 / 64.0;

/// How long an instance is left alone, in milliseconds; twice as long after each
/// further failure, four times at most.
const LEFT_ALONE_MS: u32 = 3000;

/// See the [module](self).
pub struct Adaptive {
    /// By share.
    table: AliasTable,
    /// By capacity.
    room: AliasTable,
    instances: Vec<Instance>,
    /// Trust in this host's own counts, 0 to 1.
    trust: f32,
    /// The weight of the expected delay.
    by_delay: f32,
    /// How many are drawn.
    candidates: usize,
    /// The latency of instances as they come up in draws, in milliseconds: what is
    /// expected where no report tells.
    usual_ms: f32,
}

/// What a request would cost.
struct Cost {
    index: usize,
    /// In milliseconds; without reports, in requests.
    ms: f32,
    /// How many times slower than it should be the instance is, 1 or more.
    slow: f32,
    /// Whether the request would not have to wait; as far as is known.
    is_calm: bool,
}

/// An instance in figures that are the same until the next ranking.
#[derive(Clone, Copy)]
struct Instance {
    /// Its service time; 0 where nothing is known.
    service_ms: f32,
    /// Requests served at once.
    concurrency: f32,
    /// `q / n`.
    in_all: f32,
    /// `l / n`, or where no ability is known the reciprocal of the weight, of which
    /// the mean is 1.
    little_ms: f32,
    /// The latency that its answers should have.
    expected_ms: f32,
}

impl Adaptive {
    pub fn new(ranked: Ranked<'_>) -> Self {
        let table = AliasTable::new(&ranked.weights());
        let capacity = |record: &crate::value::Record| {
            let is_offered = record.weight > 0.0 && record.service_ms > 0.0;
            if is_offered { f64::from(record.concurrency / record.service_ms) } else { 0.0 }
        };
        let room = AliasTable::new(&ranked.records.iter().map(capacity).collect::<Vec<_>>());
        let sum: f64 = table.weights().iter().sum();
        let count = table.weights().len() as f64;
        let (part, rate) = (ranked.own_part, ranked.rate_per_s);
        let instance = |(record, weight): (&crate::value::Record, &f64)| {
            let (s, k) = (f64::from(record.service_ms), f64::from(record.concurrency).max(1.0));
            let share = (weight / sum).max(1e-9);
            let planned_per_ms = rate * share / 1e3;
            let utilization = planned_per_ms * s / k;
            let expected_ms = s + wait(s, k, utilization);
            let planned = planned_per_ms * expected_ms;
            let v = 1.0 + planned / 2.0;
            let is_known = s > 0.0 && rate > 0.0;
            Instance {
                service_ms: if is_known { s as f32 } else { 0.0 },
                concurrency: k as f32,
                in_all: (v / (part * v + 1.0 - part)) as f32,
                little_ms: if is_known {
                    (1.0 / (part.max(1e-3) * planned_per_ms)).min(1e9) as f32
                } else {
                    (1.0 / (share * count)) as f32
                },
                expected_ms: if is_known { expected_ms as f32 } else { 0.0 },
            }
        };
        let instances: Vec<Instance> =
            ranked.records.iter().zip(table.weights()).map(instance).collect();
        let trust = ((part - NO_TRUST) / (FULL_TRUST - NO_TRUST)).clamp(0.0, 1.0);
        Adaptive {
            trust: trust as f32,
            by_delay: (BY_DELAY * part.sqrt()).min(MOST_BY_DELAY) as f32,
            usual_ms: 0.0,
            candidates: match instances.first() {
                Some(first) if first.service_ms > 0.0 && instances.len() < MANY => CANDIDATES,
                _ => FEW_CANDIDATES,
            },
            instances,
            room,
            table,
        }
    }

    fn cost(&self, index: usize, live: Live) -> Cost {
        let it = &self.instances[index];
        let open = live.in_flight as f32;
        if it.service_ms == 0.0 {
            let slow = slowness(live, self.usual_ms);
            let ms = (open * it.little_ms + 1.0) * slow;
            return Cost { index, ms, slow, is_calm: true };
        }
        let slow = slowness(live, it.expected_ms);
        let s = it.service_ms * slow;
        let wait = s * (open * it.in_all + 1.0 - it.concurrency).max(0.0) / it.concurrency;
        let little = open * it.little_ms;
        let delay = s + wait;
        let trusted = (1.0 - self.by_delay) * little * slow + self.by_delay * delay;
        let is_calm = wait == 0.0 && slow == 1.0;
        let drawn = BY_LITTLE * little + if is_calm { 0.0 } else { delay };
        let ms = self.trust * trusted + (1.0 - self.trust) * drawn;
        Cost { index, ms, slow, is_calm }
    }

    /// Draws one that is not the first, which few instances or a large weight may make
    /// rare: the first then stands.
    fn another(&self, first: usize, rng: &mut SmallRng) -> Option<usize> {
        for _ in 1..DRAWS {
            let index = self.table.draw(rng)?;
            if index != first {
                return Some(index);
            }
        }
        Some(first)
    }

    /// Takes a further candidate, if it costs less. One that was tried is not made
    /// up for: another one will do.
    fn consider(&self, index: usize, now: &dyn Moment, best: &mut Cost) {
        let cost = self.cost(index, now.live(index));
        if cost.ms < best.ms && !now.is_barred(index) {
            *best = cost;
        }
    }

    /// Takes a latency into the usual one.
    fn note(&mut self, live: Live) {
        if let Some(ms) = live.latency_ms {
            let part = if self.usual_ms == 0.0 { 1.0 } else { USUAL_PART };
            self.usual_ms += part * (ms - self.usual_ms);
        }
    }
}

/// How many times slower than expected an instance is, 1 or more.
fn slowness(live: Live, expected_ms: f32) -> f32 {
    let seen_ms = live.latency_ms.unwrap_or(0.0).max(live.stalled_ms as f32 / OVERDUE);
    let times = (seen_ms + LATENCY_FLOOR_MS) / (expected_ms + LATENCY_FLOOR_MS);
    let late = if times > NOT_SLOW { times } else { 1.0 };
    let failing = 1.0 + (FAILURE_FACTOR as f32 - 1.0) * live.failed;
    late * failing * (1_u32 << live.consecutive_failures.min(DOUBLINGS)) as f32
}

impl Picker for Adaptive {
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize> {
        let first = one_untried(&self.table, now, rng)?;
        // All are drawn before one is looked at, so that the waits for memory, of
        // which picks among thousands are made, go on side by side.
        now.prepare(first);
        let mut drawn = [first; CANDIDATES];
        for candidate in &mut drawn[1..self.candidates] {
            *candidate = self.another(first, rng)?;
            now.prepare(*candidate);
        }

        let live = now.live(first);
        self.note(live);
        let mut best = self.cost(first, live);
        if is_due(live, best.slow) {
            return Some(first);
        }
        for &index in &drawn[1..self.candidates] {
            self.consider(index, now, &mut best);
        }
        if !best.is_calm {
            // Those that get most have no room: perhaps one that could bear more has,
            // as in a surge that no ranking knows of yet.
            for _ in 0..BY_ROOM {
                let index = self.room.draw(rng)?;
                self.consider(index, now, &mut best);
            }
        }
        Some(best.index)
    }
}

/// Whether an instance that is not the best choice has been left alone for long
/// enough.
fn is_due(live: Live, slow: f32) -> bool {
    let doublings = live.consecutive_failures.saturating_sub(1).min(2);
    let is_alone = live.unpicked_ms >= LEFT_ALONE_MS << doublings;
    is_alone && (slow > 1.0 || live.in_flight == 0)
}
