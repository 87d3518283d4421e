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
//! cost is open requests by weight, times latency: the power of two choices by what
//! peak EWMA goes by, without the peak.
//!
//! In either case an instance is *slow* by as many times as its answers take
//! longer, or are overdue, than they should (without reports: than those of the
//! others), once that is more than twice; by the part of its answers that are
//! failures; and by failures in a row. What makes it slow makes it cost more. Where
//! connections are long ones, that nothing ends is usual and makes none overdue. So
//! that its recovery is seen, an instance that comes up in a draw, and was not
//! picked for some seconds, is picked.
//!
//! Sources: M. Mitzenmacher, How Useful Is Old Information?, IEEE Transactions on
//! Parallel and Distributed Systems 11(1), 2000, for why a draw; S. Shenker and
//! A. Weinrib, The Optimal Control of Heterogeneous Queueing Systems, 1989, for
//! shortest expected delay. The blend was found by simulation, from 1 to 64
//! gateways; `doc/adaptive.md` has the figures.

use std::ops::RangeInclusive;

use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, another, one_untried};
use super::{Live, Memory, Moment, Pick, Ranked};
use crate::ranking::{FAILURE_FACTOR, wait};

/// Candidates of a pick.
const CANDIDATES: usize = 3;

/// From so many instances on there are fewer: each costs a wait for memory then,
/// and the third gains little.
const MANY: usize = 2000;

/// Candidates among many, and where no report tells: there, more are a herd.
const FEW_CANDIDATES: usize = 2;

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

/// The least that a latency below the usual one makes of a cost.
const FASTEST: f32 = 0.25;

/// So many times the expected latency may go by without any answer: with a
/// few requests open, gaps of that length come by chance.
const OVERDUE: f32 = 4.0;

/// What is no difference between two latencies, in milliseconds: the way there
/// and back, and the steps of the clock.
const LATENCY_FLOOR_MS: f32 = 2.0;

/// Each failure in a row doubles the cost, up to so many.
const DOUBLINGS: u32 = 10;

/// Latencies that differ by no more than this from what is usual are alike: among
/// idle instances the least difference would decide, and the weights nothing.
const ALIKE: RangeInclusive<f32> = 0.8..=1.25;

/// The part of a further instance in what is usual.
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
    usual: Usual,
}

/// What is usual of instances as they come up in draws, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usual {
    /// The mean latency: what is expected where no report tells. 0 before there is any.
    latency_ms: f32,
    /// How long nothing has ended on instances, the lower quartile. Where connections
    /// are long ones it is long, and says nothing against an instance.
    stalled_ms: f32,
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

/// Where an instance's requests come from.
struct Part {
    /// Its part of this host's requests.
    share: f64,
    /// Its part of the requests from everywhere.
    of_all: f64,
    /// This host's part of what it gets.
    own: f64,
}

/// Factors are this host's alone: what an instance gets from everywhere is by the
/// ranking without them.
fn parts(ranked: &Ranked<'_>, weights: &[f64]) -> Vec<Part> {
    let plain = |(record, weight): (&crate::value::Record, &f64)| {
        if record.factor > 0.0 { weight / f64::from(record.factor) } else { 0.0 }
    };
    let plain: Vec<f64> = ranked.records.iter().zip(weights).map(plain).collect();
    let (sum, plain_sum) = (weights.iter().sum::<f64>(), plain.iter().sum::<f64>());
    let own_part = ranked.own_part;
    let part = |(weight, plain): (&f64, &f64)| {
        let (share, of_all) = (weight / sum, plain / plain_sum.max(f64::MIN_POSITIVE));
        let own = if of_all > 0.0 && share != of_all {
            (own_part * share / of_all).min(1.0)
        } else {
            own_part
        };
        Part { share, of_all, own }
    };
    weights.iter().zip(&plain).map(part).collect()
}

impl Adaptive {
    /// `memory` is that of the picker before it.
    pub fn new(ranked: Ranked<'_>, memory: Memory) -> Self {
        let usual = match memory {
            Memory::Usual(usual) => usual,
            _ => Usual::default(),
        };
        let table = AliasTable::new(&ranked.weights());
        let capacity = |record: &crate::value::Record| {
            let is_offered = record.weight > 0.0 && record.service_ms > 0.0;
            let governed = record.factor * record.concurrency;
            if is_offered { f64::from(governed / record.service_ms) } else { 0.0 }
        };
        let room = AliasTable::new(&ranked.records.iter().map(capacity).collect::<Vec<_>>());
        let count = table.weights().len() as f64;
        let (own_part, rate) = (ranked.own_part, ranked.rate_per_s);
        let parts = parts(&ranked, table.weights());
        // Of where a request goes.
        let part = match parts.iter().all(|it| it.own == own_part) {
            true => own_part,
            false => parts.iter().map(|it| it.share * it.own).sum::<f64>().min(1.0),
        };
        let instance = |(record, of): (&crate::value::Record, &Part)| {
            let (s, k) = (f64::from(record.service_ms), f64::from(record.concurrency).max(1.0));
            let share = of.share.max(1e-9);
            let planned_per_ms = rate * of.of_all.max(1e-9) / 1e3;
            let utilization = planned_per_ms * s / k;
            let expected_ms = s + wait(s, k, utilization);
            let planned = planned_per_ms * expected_ms;
            let v = 1.0 + planned / 2.0;
            let is_known = s > 0.0 && rate > 0.0;
            Instance {
                service_ms: if is_known { s as f32 } else { 0.0 },
                concurrency: k as f32,
                in_all: (v / (of.own * v + 1.0 - of.own)) as f32,
                little_ms: if is_known {
                    (1e3 / (own_part.max(1e-3) * rate * share)).min(1e9) as f32
                } else {
                    (1.0 / (share * count)) as f32
                },
                expected_ms: if is_known { expected_ms as f32 } else { 0.0 },
            }
        };
        let instances: Vec<Instance> = ranked.records.iter().zip(&parts).map(instance).collect();
        let trust = ((part - NO_TRUST) / (FULL_TRUST - NO_TRUST)).clamp(0.0, 1.0);
        Adaptive {
            trust: trust as f32,
            by_delay: (BY_DELAY * part.sqrt()).min(MOST_BY_DELAY) as f32,
            usual,
            candidates: match instances.first() {
                Some(first) if first.service_ms > 0.0 && instances.len() < MANY => CANDIDATES,
                _ => FEW_CANDIDATES,
            },
            instances,
            room,
            table,
        }
    }

    #[inline(always)]
    fn cost(&self, index: usize, live: Live) -> Cost {
        let it = &self.instances[index];
        let open = live.in_flight as f32;
        if it.service_ms == 0.0 {
            let usual_ms = self.usual.latency_ms;
            let slow = self.usual.slowness(live, usual_ms);
            // Up to where it counts as slow, an instance costs by its latency.
            let pace = match live.latency_ms {
                Some(ms) if slow == 1.0 => times(ms, usual_ms).clamp(FASTEST, NOT_SLOW),
                _ => 1.0,
            };
            let pace = if ALIKE.contains(&pace) { 1.0 } else { pace };
            let ms = (open * it.little_ms + 1.0) * pace * slow;
            return Cost { index, ms, slow, is_calm: true };
        }
        let slow = self.usual.slowness(live, it.expected_ms);
        let s = it.service_ms * slow;
        let behind = open * it.in_all + 1.0 - it.concurrency;
        let wait = if behind > 0.0 { s * behind / it.concurrency } else { 0.0 };
        let little = open * it.little_ms;
        let delay = s + wait;
        let trusted = (1.0 - self.by_delay) * little * slow + self.by_delay * delay;
        let is_calm = wait == 0.0 && slow == 1.0;
        let drawn = BY_LITTLE * little + if is_calm { 0.0 } else { delay };
        let ms = self.trust * trusted + (1.0 - self.trust) * drawn;
        Cost { index, ms, slow, is_calm }
    }

    /// Takes a further candidate, if it costs less. One that was tried is not made
    /// up for: another one will do.
    fn consider(&self, index: usize, now: &impl Moment, best: &mut Cost) {
        let cost = self.cost(index, now.live(index));
        if cost.ms < best.ms && !now.is_barred(index) {
            *best = cost;
        }
    }
}

impl Usual {
    /// Takes in an instance that came up in a draw.
    fn note(&mut self, live: Live) {
        if let Some(ms) = live.latency_ms {
            let part = if self.latency_ms == 0.0 { 1.0 } else { USUAL_PART };
            self.latency_ms += part * (ms - self.latency_ms);
        }
        // Up by one step where down by three: it stays where a quarter is below.
        let is_above = live.stalled_ms as f32 > self.stalled_ms;
        let step = if is_above { USUAL_PART } else { -3.0 * USUAL_PART };
        self.stalled_ms += step * (self.stalled_ms + 1.0);
        self.stalled_ms = self.stalled_ms.max(0.0);
    }

    /// How many times slower than expected an instance is, 1 or more.
    fn slowness(&self, live: Live, expected_ms: f32) -> f32 {
        let seen_ms = live.latency_ms.unwrap_or(0.0);
        let overdue_ms = live.stalled_ms as f32 / OVERDUE;
        let patience_ms = expected_ms.max(self.stalled_ms);
        let is_late = is_late(seen_ms, expected_ms) || is_late(overdue_ms, patience_ms);
        let late = match is_late {
            true => times(seen_ms, expected_ms).max(times(overdue_ms, patience_ms)),
            false => 1.0,
        };
        if live.failed == 0.0 && live.consecutive_failures == 0 {
            return late; // nearly always
        }
        let failing = 1.0 + (FAILURE_FACTOR as f32 - 1.0) * live.failed;
        late * failing * (1_u32 << live.consecutive_failures.min(DOUBLINGS)) as f32
    }
}

impl Pick for Adaptive {
    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
        let first = one_untried(&self.table, now, rng)?;
        // All are drawn before one is looked at, so that the waits for memory, of
        // which picks among thousands are made, go on side by side.
        now.prepare(first);
        let mut drawn = [first; CANDIDATES];
        for candidate in &mut drawn[1..self.candidates] {
            *candidate = another(&self.table, first, |_| true, rng)?;
            now.prepare(*candidate);
        }

        let live = now.live(first);
        self.usual.note(live);
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

    fn into_memory(self) -> Memory {
        Memory::Usual(self.usual)
    }
}

/// Whether it is longer by more than noise; without a division, as most are not.
fn is_late(ms: f32, than_ms: f32) -> bool {
    ms + LATENCY_FLOOR_MS > NOT_SLOW * (than_ms + LATENCY_FLOOR_MS)
}

/// How many times longer one latency is than another.
fn times(ms: f32, than_ms: f32) -> f32 {
    (ms + LATENCY_FLOOR_MS) / (than_ms + LATENCY_FLOOR_MS)
}

/// Whether an instance that is not the best choice has been left alone for long
/// enough.
fn is_due(live: Live, slow: f32) -> bool {
    let doublings = live.consecutive_failures.saturating_sub(1).min(2);
    let is_alone = live.unpicked_ms >= LEFT_ALONE_MS << doublings;
    is_alone && (slow > 1.0 || live.in_flight == 0)
}
