//! `wrr_a58`: gRPC's weighted round robin by what servers report.
//!
//! Source: gRFC A58, and `static_stride_scheduler.cc` of gRPC C++ for the scheduler
//! and its bounds.
//!
//! ```text
//! weight = rate / (utilization + errors / rate * error_utilization_penalty)
//! ```
//!
//! | parameter | default |
//! |---|---|
//! | `blackout_period` | 10 s: a weight counts once reports have come for so long |
//! | `weight_expiration_period` | 180 s: without a report for so long, the weight is unknown and the blackout begins anew |
//! | `weight_update_period` | 1 s |
//! | `error_utilization_penalty` | 1.0 |
//!
//! A report without rate or utilization is ignored. An unknown weight counts as the
//! mean of the known ones; with fewer than two known, plain round robin. Known ones
//! are bounded to 0.01 and 10 times their mean. The scheduler walks the servers in
//! turn and skips each in proportion to what its weight lacks to the largest; it
//! begins at random, each worker by itself. What a client sees itself, failures
//! and requests in flight, does not count.
//!
//! Kept from ORCA's parsers: a weight that is not finite is ignored as well. Reports
//! are looked at once in an update period, so a blackout may begin that much late.

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{Policy, ServerReport, World, draw};

const BLACKOUT_S: f64 = 10.0;
const EXPIRATION_S: f64 = 180.0;
const UPDATE_S: f64 = 1.0;
const ERROR_UTILIZATION_PENALTY: f64 = 1.0;

/// Of the mean of the known weights.
const MOST: f64 = 10.0;
const LEAST: f64 = 0.01;

pub struct WrrA58 {
    endpoints: Vec<Endpoint>,
    members: Vec<usize>,
    /// By place in `members`; `None` is round robin.
    strides: Option<Vec<u16>>,
    sequence: u32,
    update_s: f64,
}

#[derive(Default, Clone)]
struct Endpoint {
    weight: f64,
    non_empty_since_s: Option<f64>,
    updated_s: Option<f64>,
    /// Of the last report that was looked at.
    taken_s: Option<f64>,
}

impl WrrA58 {
    pub fn new(seed: u64) -> Self {
        WrrA58 {
            endpoints: Vec::new(),
            members: Vec::new(),
            strides: None,
            sequence: SmallRng::seed_from_u64(seed).random(),
            update_s: f64::NEG_INFINITY,
        }
    }

    /// A new scheduler every update period, and whenever servers come or go.
    fn sync(&mut self, world: &dyn World) {
        let members: Vec<usize> =
            (0..world.servers()).filter(|&server| world.is_member(server)).collect();
        let now_s = world.now_s();
        if members == self.members && now_s < self.update_s {
            return;
        }
        self.endpoints.resize(world.servers(), Endpoint::default());
        for &server in &members {
            if self.members.binary_search(&server).is_err() {
                self.endpoints[server].connected();
            }
        }
        self.members = members;
        for &server in &self.members {
            if let Some(report) = world.report(server) {
                self.endpoints[server].reported(&report, now_s);
            }
        }
        let weights: Vec<Option<f64>> =
            self.members.iter().map(|&server| self.endpoints[server].weight(now_s)).collect();
        self.strides = strides(&weights);
        self.update_s = now_s + UPDATE_S;
    }

    /// The scheduler's next, tried or not.
    fn next(&mut self) -> usize {
        let members = self.members.len() as u64;
        loop {
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = u64::from(self.sequence);
            let (place, generation) = (sequence % members, sequence / members);
            let taken = match &self.strides {
                None => true,
                Some(strides) => is_due(strides[place as usize], place, generation),
            };
            if taken {
                return self.members[place as usize];
            }
        }
    }
}

impl Policy for WrrA58 {
    fn pick(&mut self, world: &dyn World, _: &mut SmallRng) -> Option<usize> {
        self.sync(world);
        // A retry goes on with the turns of others, but not for ever: the largest
        // weights, which come most often, may be tried already.
        let turns = 2 * self.members.len();
        (0..turns)
            .map(|_| self.next())
            .find(|&server| !world.is_tried(server))
            .or_else(|| draw::open(world).next())
    }
}

impl Endpoint {
    /// It is connected anew: what it said before does not count.
    fn connected(&mut self) {
        self.non_empty_since_s = None;
    }

    fn reported(&mut self, report: &ServerReport, now_s: f64) {
        // By its bits, so that a time that is not a number is new only once.
        if self.taken_s.map(f64::to_bits) == Some(report.taken_s.to_bits()) {
            return;
        }
        self.taken_s = Some(report.taken_s);
        let Some(weight) = weight_of(report) else { return };
        self.weight = weight;
        self.updated_s = Some(now_s);
        self.non_empty_since_s.get_or_insert(now_s);
    }

    fn weight(&mut self, now_s: f64) -> Option<f64> {
        if now_s - self.updated_s? >= EXPIRATION_S {
            self.non_empty_since_s = None;
            return None;
        }
        (now_s - self.non_empty_since_s? >= BLACKOUT_S).then_some(self.weight)
    }
}

/// `None` if the report says nothing of use.
pub(super) fn weight_of(report: &ServerReport) -> Option<f64> {
    let says_something = report.rate_per_s > 0.0 && report.utilization > 0.0;
    let errors = report.errors_per_s / report.rate_per_s;
    let weight = report.rate_per_s / (report.utilization + errors * ERROR_UTILIZATION_PENALTY);
    (says_something && weight.is_finite() && weight > 0.0).then_some(weight)
}

/// Weights as parts of 65,535, which is the largest; `None` if too few are known.
pub(super) fn strides(weights: &[Option<f64>]) -> Option<Vec<u16>> {
    let known: Vec<f64> = weights.iter().copied().flatten().collect();
    if known.len() < 2 {
        return None;
    }
    // Divided first, so that no sum of finite weights overflows.
    let mean = known.iter().map(|weight| weight / known.len() as f64).sum::<f64>();
    let largest = known.iter().copied().fold(0.0, f64::max).min(MOST * mean);
    let scale = f64::from(u16::MAX) / largest;
    // Finite and at most 65,535 each, so `as` only rounds.
    let scaled = |weight: f64| (weight.min(largest) * scale).round() as u16;
    let least = ((f64::from(scaled(mean)) * LEAST).round() as u16).max(1);
    let stride = |weight: &Option<f64>| weight.map_or(scaled(mean), |w| scaled(w).max(least));
    Some(weights.iter().map(stride).collect())
}

/// Whether the server is picked in this generation rather than skipped: so many
/// times in 65,535 as its stride says, evenly spread, neighbours out of step.
fn is_due(stride: u16, place: u64, generation: u64) -> bool {
    const MAX: u64 = u16::MAX as u64;
    let stride = u64::from(stride);
    (stride * generation + place * (MAX / 2)) % MAX >= MAX - stride
}
