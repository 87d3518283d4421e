//! The last few seconds of one instance: statuses in, a [`Load`] out.
//!
//! A window is a ring of buckets by time of receipt, in which older buckets
//! weigh less. Weighted sums are kept running, as integers, so that a sample and
//! a read cost the same however many samples there were, and nothing drifts.
//! Every figure is a ratio of two weighted sums, never a mean of ratios, so that
//! a second with few requests counts for few.
//!
//! No clock but the reader's own monotonic one is used: a status that waited on
//! its way is counted when it came, with the time that its figures cover.

use crate::config::{Decay, WindowConfig};
use crate::model::Status;

/// A rate is known once so large a part of the window is covered, one over this: half
/// a second by default.
///
/// A status has waited for up to an interval when it comes in a list, as after a reload,
/// and so has one that meets a thread that did not run. The next one may follow it at
/// once, and what came in an interval would be told as the rate of a moment.
const COVERED: u64 = 10;

/// What a window says of an instance. `None` is unknown, which is not 0: an
/// instance that completed no request has no latency, rather than the best one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// CPU in use as a part of what may be used; 1 is all of it.
    pub cpu: Option<f64>,
    /// How busy it is: what the application says of itself, else CPU; 1 is full.
    pub utilization: Option<f64>,
    /// Memory that is left, in bytes.
    pub memory_free_bytes: Option<f64>,
    /// Requests answered, a second.
    pub rate: Option<f64>,
    /// Mean latency of the answered requests, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Failed requests as a part of the answered ones, 0 to 1.
    pub errors: Option<f64>,
    /// Part of the time in which at least one request was served, 0 to 1.
    pub busy: Option<f64>,
    /// Requests being served.
    pub in_flight: Option<f64>,
    /// The most that it wants in flight, by its last status; 0 is no limit.
    pub max_in_flight: u32,
}

/// The sliding window of one instance.
#[derive(Debug, Clone)]
pub struct Window {
    decay: Decay,
    bucket_ms: u64,
    /// The weight of the newest bucket.
    newest_weight: u128,
    ring: Box<[Bucket]>,
    /// Where the newest bucket is in the ring; the next one is the oldest.
    newest: usize,
    now_ms: u64,
    /// Sum of all buckets.
    plain: Sums,
    /// Sum of all buckets, each times its weight.
    weighted: Sums,
    baseline: Option<Baseline>,
    max_in_flight: u32,
}

/// What buckets sum. Gauges are summed beside the number of their samples.
#[derive(Debug, Clone, Copy)]
enum Quantity {
    ElapsedMs,
    Requests,
    Errors,
    BusyNs,
    LatencyNs,
    CpuMicros,
    CpuSamples,
    UsedMicros,
    UsedSamples,
    FreeBytes,
    FreeSamples,
    InFlight,
    InFlightSamples,
}

const QUANTITIES: usize = Quantity::InFlightSamples as usize + 1;

/// A bucket saturates at `u64::MAX` in each quantity. With at most 60 buckets
/// the weights sum to less than 2^60, so that a weighted sum stays below 2^124.
type Bucket = [u64; QUANTITIES];
type Sums = [u128; QUANTITIES];

/// The status that the next one is differenced with.
#[derive(Debug, Clone, Copy)]
struct Baseline {
    received_ms: u64,
    boot_id: u64,
    seq: u64,
    counters: Counters,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    requests: u64,
    errors: u64,
    busy_ns: u64,
    latency_sum_ns: u64,
}

impl Window {
    /// An empty window. `config` is a validated one: 1 to 60 buckets of at least
    /// a millisecond.
    pub fn new(config: &WindowConfig) -> Self {
        let newest_weight = match config.decay {
            Decay::Linear => u128::from(config.buckets),
            Decay::Exponential => 1 << (config.buckets - 1),
        };
        Self {
            decay: config.decay,
            bucket_ms: u64::try_from(config.bucket.as_millis()).unwrap_or(u64::MAX),
            newest_weight,
            ring: vec![[0; QUANTITIES]; config.buckets as usize].into(),
            newest: 0,
            now_ms: 0,
            plain: [0; QUANTITIES],
            weighted: [0; QUANTITIES],
            baseline: None,
            max_in_flight: 0,
        }
    }

    /// How much time the window covers.
    pub fn span_ms(&self) -> u64 {
        self.bucket_ms * self.ring.len() as u64
    }

    /// The boot of the last status; `None` before the first one.
    pub fn boot_id(&self) -> Option<u64> {
        self.baseline.map(|last| last.boot_id)
    }

    /// Takes in a status received at `now_ms`, in milliseconds of a monotonic
    /// clock; a time before the last one counts as the last one. Returns whether
    /// the status was news: a duplicate, or one that was overtaken, is not.
    ///
    /// The first status of a boot is a baseline for the counters and no more,
    /// and so is one whose counters ran backwards.
    pub fn record(&mut self, status: &Status, now_ms: u64) -> bool {
        self.advance(now_ms);
        let counters = Counters::of(status);
        if let Some(last) = self.baseline {
            if status.boot_id != last.boot_id {
                self.clear();
            } else if status.seq <= last.seq {
                return false;
            } else if let Some(grown) = counters.since(&last.counters) {
                self.add(Quantity::ElapsedMs, self.now_ms - last.received_ms);
                self.add(Quantity::Requests, grown.requests);
                self.add(Quantity::Errors, grown.errors);
                self.add(Quantity::BusyNs, grown.busy_ns);
                self.add(Quantity::LatencyNs, grown.latency_sum_ns);
            }
        }
        let (boot_id, seq) = (status.boot_id, status.seq);
        self.baseline = Some(Baseline { received_ms: self.now_ms, boot_id, seq, counters });

        self.max_in_flight = status.max_in_flight.unwrap_or(0);
        let cpu_micros = status.cpu_utilization().and_then(to_micros);
        self.add_gauge(Quantity::CpuMicros, Quantity::CpuSamples, cpu_micros);
        let used = status.application_utilization.or_else(|| status.cpu_utilization());
        let used_micros = used.and_then(to_micros);
        self.add_gauge(Quantity::UsedMicros, Quantity::UsedSamples, used_micros);
        self.add_gauge(Quantity::FreeBytes, Quantity::FreeSamples, status.memory_free_bytes());
        self.add_gauge(Quantity::InFlight, Quantity::InFlightSamples, status.in_flight);
        true
    }

    /// What the window says at `now_ms`, on the same clock as [`record`].
    ///
    /// [`record`]: Window::record
    pub fn load(&mut self, now_ms: u64) -> Load {
        self.advance(now_ms);
        use Quantity::*;
        Load {
            cpu: self.ratio(CpuMicros, CpuSamples).map(|micros| micros / 1e6),
            utilization: self.ratio(UsedMicros, UsedSamples).map(|micros| micros / 1e6),
            memory_free_bytes: self.ratio(FreeBytes, FreeSamples),
            rate: self.over_time(Requests).map(|per_ms| per_ms * 1e3),
            latency_ms: self.ratio(LatencyNs, Requests).map(|ns| ns / 1e6),
            errors: self.ratio(Errors, Requests).map(|part| part.min(1.0)),
            busy: self.over_time(BusyNs).map(|ns_per_ms| (ns_per_ms / 1e6).min(1.0)),
            in_flight: self.ratio(InFlight, InFlightSamples),
            max_in_flight: self.max_in_flight,
        }
    }

    /// How many statuses the window holds of those that tell any gauge.
    pub fn samples(&mut self, now_ms: u64) -> u64 {
        self.advance(now_ms);
        use Quantity::*;
        let counts = [CpuSamples, UsedSamples, FreeSamples, InFlightSamples];
        let most = counts.map(|quantity| self.plain[quantity as usize]).into_iter().max();
        most.and_then(|samples| u64::try_from(samples).ok()).unwrap_or(0)
    }

    /// Moves on to `now_ms`, dropping the buckets that have become too old.
    fn advance(&mut self, now_ms: u64) {
        let now_ms = now_ms.max(self.now_ms);
        let steps = now_ms / self.bucket_ms - self.now_ms / self.bucket_ms;
        self.now_ms = now_ms;
        if steps >= self.ring.len() as u64 {
            self.clear();
        } else {
            (0..steps).for_each(|_| self.step());
        }
    }

    /// Each bucket becomes one older: the oldest leaves, an empty one comes in.
    fn step(&mut self) {
        self.newest = (self.newest + 1) % self.ring.len();
        let oldest = std::mem::take(&mut self.ring[self.newest]);
        let sums = self.weighted.iter_mut().zip(&mut self.plain).zip(oldest);
        for ((weighted, plain), oldest) in sums {
            match self.decay {
                // Every weight falls by one, the oldest bucket's from 1 to 0.
                Decay::Linear => *weighted -= *plain,
                // The oldest bucket's weight is 1 and all others are even, so
                // that halving loses nothing.
                Decay::Exponential => *weighted = (*weighted - u128::from(oldest)) / 2,
            }
            *plain -= u128::from(oldest);
        }
    }

    fn clear(&mut self) {
        self.ring.fill([0; QUANTITIES]);
        self.plain = [0; QUANTITIES];
        self.weighted = [0; QUANTITIES];
    }

    fn add(&mut self, quantity: Quantity, amount: u64) {
        let sum = &mut self.ring[self.newest][quantity as usize];
        let added = amount.min(u64::MAX - *sum);
        *sum += added;
        self.plain[quantity as usize] += u128::from(added);
        self.weighted[quantity as usize] += self.newest_weight * u128::from(added);
    }

    fn add_gauge(&mut self, sum: Quantity, samples: Quantity, value: Option<u64>) {
        if let Some(value) = value {
            self.add(sum, value);
            self.add(samples, 1);
        }
    }

    /// So much a millisecond, if it is enough of them to tell.
    fn over_time(&self, quantity: Quantity) -> Option<f64> {
        let elapsed_ms = self.plain[Quantity::ElapsedMs as usize];
        let is_covered = elapsed_ms >= u128::from(self.span_ms() / COVERED);
        self.ratio(quantity, Quantity::ElapsedMs).filter(|_| is_covered)
    }

    fn ratio(&self, over: Quantity, under: Quantity) -> Option<f64> {
        let (over, under) = (self.weighted[over as usize], self.weighted[under as usize]);
        (under > 0).then(|| over as f64 / under as f64)
    }
}

impl Counters {
    fn of(status: &Status) -> Self {
        Self {
            requests: status.requests,
            errors: status.errors,
            busy_ns: status.busy_ns,
            latency_sum_ns: status.latency_sum_ns,
        }
    }

    /// How much each counter grew; `None` if any ran backwards.
    fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            requests: self.requests.checked_sub(earlier.requests)?,
            errors: self.errors.checked_sub(earlier.errors)?,
            busy_ns: self.busy_ns.checked_sub(earlier.busy_ns)?,
            latency_sum_ns: self.latency_sum_ns.checked_sub(earlier.latency_sum_ns)?,
        })
    }
}

/// In millionths, saturating; `None` for what is not a measurement.
fn to_micros(value: f64) -> Option<u64> {
    (value.is_finite() && value >= 0.0).then(|| (value * 1e6).round() as u64)
}

#[cfg(test)]
mod tests;
