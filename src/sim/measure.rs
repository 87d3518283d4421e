//! What comes out of runs.

use serde::Serialize;

/// Latencies of any number in bounded memory: 128 buckets for each doubling from a
/// microsecond to an hour and a half, so that what is read back is within 0.4 % of
/// what was put in.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    counts: Vec<u32>,
    count: u64,
    sum_s: f64,
    largest_s: f64,
}

/// Bits of a bucket's number within its doubling.
const FINE_BITS: u32 = 7;
/// The smallest and the largest exponent of two seconds that are told apart.
const LEAST_EXPONENT: i64 = -20;
const LARGEST_EXPONENT: i64 = 12;
const BUCKETS: usize = ((LARGEST_EXPONENT - LEAST_EXPONENT + 1) as usize) << FINE_BITS;

impl Histogram {
    /// Takes in one latency, in seconds.
    pub fn add(&mut self, seconds: f64) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        self.counts[bucket_of(seconds)] += 1;
        self.count += 1;
        self.sum_s += seconds;
        self.largest_s = self.largest_s.max(seconds);
    }

    /// Takes in all of another one's.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
        } else {
            self.counts.iter_mut().zip(&other.counts).for_each(|(mine, its)| *mine += its);
        }
        self.count += other.count;
        self.sum_s += other.sum_s;
        self.largest_s = self.largest_s.max(other.largest_s);
    }

    /// How many were taken in.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean, in seconds; exact. 0 without any.
    pub fn mean_s(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum_s / self.count as f64 }
    }

    /// The least latency, in seconds, that at least `part` of all do not exceed; 0
    /// without any.
    pub fn quantile_s(&self, part: f64) -> f64 {
        let rank = ((part * self.count as f64).ceil() as u64).max(1);
        let mut passed = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            passed += u64::from(*count);
            if passed >= rank {
                return middle_of(bucket).min(self.largest_s);
            }
        }
        0.0
    }
}

/// The exponent and the first bits of the fraction are a logarithm that is linear
/// between powers of two.
fn bucket_of(seconds: f64) -> usize {
    let shift = f64::MANTISSA_DIGITS - 1 - FINE_BITS;
    let least = (1023 + LEAST_EXPONENT) << FINE_BITS;
    let bucket = (seconds.max(0.0).to_bits() >> shift) as i64 - least;
    bucket.clamp(0, BUCKETS as i64 - 1) as usize
}

fn middle_of(bucket: usize) -> f64 {
    let fine = 1usize << FINE_BITS;
    let exponent = LEAST_EXPONENT as i32 + (bucket / fine) as i32;
    (1.0 + ((bucket % fine) as f64 + 0.5) / fine as f64) * 2f64.powi(exponent)
}

/// How a request came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was answered.
    Answered,
    /// Its last try failed, or there was no server to try.
    Failed,
    /// Its last try was given up.
    TimedOut,
}

/// What one policy did in one scenario, in one run or in several of different
/// seeds. Requests count that came after the warm-up.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measures {
    /// Runs that these are of.
    pub runs: u32,
    /// Requests that came.
    pub arrived: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were given up.
    pub timed_out: u64,
    /// From a request's arrival to its end, all tries included; one that was not
    /// answered counts with the timeout, if it ended before that.
    pub latency: Histogram,
    /// The most requests that a server ever had at once, in any run.
    pub max_in_flight: u32,
    /// The mean number of requests that a server had; summed over runs.
    mean_in_flight: f64,
    /// [`oscillation`] of the picks; summed over runs.
    oscillation: f64,
    /// Of the first and of the second half alone; summed over runs.
    oscillation_halves: [f64; 2],
    /// Deviation over mean of the servers' busy parts; summed over runs.
    utilization_cv: f64,
    /// 99th percentile of each run, in seconds.
    p99_s: Vec<f64>,
    /// Tries that were begun after the warm-up.
    pub tries: u64,
    /// What governed it, where something did.
    pub governance: Option<Governance>,
    /// The whole run in bins of equal length, from its beginning on.
    pub timeline: Vec<Bin>,
}

/// What the gateways' health and retry budgets did; of all runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Governance {
    /// Requests that failed as a retry was not to be paid for.
    pub denied: u64,
    /// Each ejection, from the beginning on: when, in seconds, and by which gateway.
    pub ejected: Vec<(f64, u32)>,
    /// Looks at the gateways, evenly over the time after the warm-up.
    pub beats: u64,
    /// Those of them that met a panic.
    pub panics: u64,
}

/// One bin of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bin {
    /// Of the requests that came in it.
    pub latency: Histogram,
    /// Those of them that were not answered.
    pub errors: u64,
    /// Tries that went to each group's servers in it.
    pub picks: Vec<u64>,
    /// Those of the gateways of each of `gateways.zones`.
    pub zones: Vec<ZoneTries>,
}

/// Tries of the gateways of one zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZoneTries {
    /// All of them.
    pub sent: u64,
    /// Those that went to servers of the zone.
    pub stayed: u64,
}

impl Bin {
    /// Each group's part of the tries.
    pub fn shares(&self) -> Vec<f64> {
        let all = self.picks.iter().sum::<u64>().max(1) as f64;
        self.picks.iter().map(|picks| *picks as f64 / all).collect()
    }

    /// Of the tries of each zone's gateways the part that stayed in the zone.
    pub fn local(&self) -> Vec<f64> {
        self.zones.iter().map(|it| it.stayed as f64 / it.sent.max(1) as f64).collect()
    }
}

/// What a run has counted, for [`Measures::finish`].
#[derive(Default)]
pub struct Tally {
    /// The most requests that a server had.
    pub max_in_flight: u32,
    /// Mean requests at a server.
    pub mean_in_flight: f64,
    /// The busy part of each server's slots.
    pub utilizations: Vec<f64>,
    /// Picks of each server, one after the other, in each bin.
    pub picks: Vec<Vec<u32>>,
}

impl Measures {
    /// Of a run that is to begin, with a timeline of so many bins.
    pub fn new(bins: usize, groups: usize, zones: usize, is_governed: bool) -> Self {
        let empty = Bin {
            picks: vec![0; groups],
            zones: vec![ZoneTries::default(); zones],
            ..Bin::default()
        };
        let governance = is_governed.then(Governance::default);
        Self { timeline: vec![empty; bins], governance, ..Self::default() }
    }

    /// Counts a request's end.
    pub fn end(&mut self, end: End, latency_s: f64) {
        self.arrived += 1;
        match end {
            End::Answered => self.answered += 1,
            End::Failed => self.failed += 1,
            End::TimedOut => self.timed_out += 1,
        }
        self.latency.add(latency_s);
    }

    /// Completes the measures of one run, once all requests have ended.
    pub fn finish(&mut self, tally: &Tally) {
        self.runs = 1;
        self.max_in_flight = tally.max_in_flight;
        self.mean_in_flight = tally.mean_in_flight;
        self.utilization_cv = variation(&tally.utilizations);
        self.oscillation = oscillation(&tally.picks);
        let (first, second) = tally.picks.split_at(tally.picks.len() / 2);
        self.oscillation_halves = [oscillation(first), oscillation(second)];
        self.p99_s = vec![self.latency.quantile_s(0.99)];
    }

    /// Takes in another run of the same scenario and policy.
    pub fn merge(&mut self, other: &Self) {
        if self.runs == 0 {
            self.clone_from(other);
            return;
        }
        self.runs += other.runs;
        self.arrived += other.arrived;
        self.answered += other.answered;
        self.failed += other.failed;
        self.timed_out += other.timed_out;
        self.latency.merge(&other.latency);
        self.max_in_flight = self.max_in_flight.max(other.max_in_flight);
        self.mean_in_flight += other.mean_in_flight;
        self.oscillation += other.oscillation;
        for (mine, its) in self.oscillation_halves.iter_mut().zip(other.oscillation_halves) {
            *mine += its;
        }
        self.utilization_cv += other.utilization_cv;
        self.p99_s.extend(&other.p99_s);
        self.tries += other.tries;
        if let (Some(mine), Some(its)) = (&mut self.governance, &other.governance) {
            mine.denied += its.denied;
            mine.ejected.extend(&its.ejected);
            mine.beats += its.beats;
            mine.panics += its.panics;
        }
        for (mine, its) in self.timeline.iter_mut().zip(&other.timeline) {
            mine.latency.merge(&its.latency);
            mine.errors += its.errors;
            mine.picks.iter_mut().zip(&its.picks).for_each(|(mine, its)| *mine += its);
            for (mine, its) in mine.zones.iter_mut().zip(&its.zones) {
                mine.sent += its.sent;
                mine.stayed += its.stayed;
            }
        }
    }

    /// The figures for a table. Latencies, errors and the timeline are of all runs'
    /// requests together, the largest in-flight is that of all runs, and the rest
    /// are means over the runs.
    pub fn summary(&self) -> Summary {
        let runs = f64::from(self.runs.max(1));
        let to_ms = |part| self.latency.quantile_s(part) * 1e3;
        let part = |count: u64| count as f64 / (self.arrived.max(1)) as f64;
        Summary {
            requests: self.arrived,
            mean_ms: self.latency.mean_s() * 1e3,
            p50_ms: to_ms(0.5),
            p90_ms: to_ms(0.9),
            p99_ms: to_ms(0.99),
            p999_ms: to_ms(0.999),
            p99_ms_by_seed: self.p99_s.iter().map(|seconds| seconds * 1e3).collect(),
            failed: part(self.failed),
            timed_out: part(self.timed_out),
            max_in_flight: self.max_in_flight,
            mean_in_flight: self.mean_in_flight / runs,
            oscillation: self.oscillation / runs,
            oscillation_halves: self.oscillation_halves.map(|sum| sum / runs),
            utilization_cv: self.utilization_cv / runs,
            governed: self.governance.as_ref().map(|it| GovernedSummary {
                tries: self.tries as f64 / self.arrived.max(1) as f64,
                denied: part(it.denied),
                ejected_s: it.ejected.iter().map(|(at_s, _)| *at_s).collect(),
                panic: it.panics as f64 / it.beats.max(1) as f64,
            }),
        }
    }
}

/// One policy's figures in one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Requests that came after the warm-up, of all seeds.
    pub requests: u64,
    /// Mean latency; what was not answered counts with the timeout, here and below.
    pub mean_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 90th percentile.
    pub p90_ms: f64,
    /// The 99th.
    pub p99_ms: f64,
    /// The 99.9th.
    pub p999_ms: f64,
    /// The 99th of each seed by itself.
    pub p99_ms_by_seed: Vec<f64>,
    /// The part that failed, 0 to 1.
    pub failed: f64,
    /// The part that was given up, 0 to 1.
    pub timed_out: f64,
    /// The most requests that a server ever had.
    pub max_in_flight: u32,
    /// The mean number of requests that a server had.
    pub mean_in_flight: f64,
    /// [`oscillation`] of the servers' shares.
    pub oscillation: f64,
    /// Of the first and of the second half of the time: one that grows shows.
    pub oscillation_halves: [f64; 2],
    /// Deviation over mean of the parts of time that servers' slots were busy.
    pub utilization_cv: f64,
    /// What governed it; left out where nothing did.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub governed: Option<GovernedSummary>,
}

/// What health and retry budgets did, where the scenario has a `service`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GovernedSummary {
    /// Tries for each request: how many times the load is what came.
    pub tries: f64,
    /// The part of the requests that failed for want of a retry budget, 0 to 1.
    pub denied: f64,
    /// When some gateway ejected a server, in seconds; run by run, warm-up included.
    pub ejected_s: Vec<f64>,
    /// The part of the time that a gateway was in a panic, 0 to 1.
    pub panic: f64,
}

/// How far shares swing to and fro, as a part of themselves. 0: they do not, or no
/// more than by chance; 0.5: the typical server has a share that goes up and down by
/// half.
///
/// `picks` has a row for each bin of time, with each server's picks. A server's
/// share `x` of a bin's picks has a mean `m` and, `k` bins apart, an autocovariance
/// `C(k)`. A share that swings as a sine of amplitude `A` has `C = -A²/2` half a
/// period later, where one that only moves, or moves at random, does not go below 0.
/// So
///
/// ```text
/// C(k)        = mean over t of (x(t) - m) * (x(t + k) - m)
/// A           = sqrt(2 * max(0, -min over k of C(k) - noise))
/// oscillation = sum of A over servers, over the sum of m, which is 1
/// ```
///
/// with `k` from one bin to a quarter of all. Draws by chance alone have a variance
/// of `v = m(1 - m)/n` at `n` picks a bin, and a least `C` of about -2.5 `v/sqrt(bins)`;
/// `noise` is `3v/sqrt(bins)`.
pub fn oscillation(picks: &[Vec<u32>]) -> f64 {
    let totals: Vec<f64> =
        picks.iter().map(|bin| bin.iter().map(|count| f64::from(*count)).sum()).collect();
    let bins: Vec<_> = (0..picks.len()).filter(|bin| totals[*bin] > 0.0).collect();
    let (Some(first), count) = (picks.first(), bins.len() as f64) else { return 0.0 };
    if bins.len() < 8 {
        return 0.0;
    }
    let picks_a_bin = count / bins.iter().map(|bin| 1.0 / totals[*bin]).sum::<f64>();
    let amplitude = |server: usize| {
        let shares: Vec<f64> =
            bins.iter().map(|bin| f64::from(picks[*bin][server]) / totals[*bin]).collect();
        let mean = shares.iter().sum::<f64>() / count;
        let covariance = |lag: usize| {
            let pairs = shares.iter().zip(&shares[lag..]);
            let sum: f64 = pairs.map(|(x, y)| (x - mean) * (y - mean)).sum();
            sum / (shares.len() - lag) as f64
        };
        let least = (1..=shares.len() / 4).map(covariance).fold(0.0, f64::min);
        let noise = 3.0 * mean * (1.0 - mean) / picks_a_bin / count.sqrt();
        (2.0 * (-least - noise).max(0.0)).sqrt()
    };
    (0..first.len()).map(amplitude).sum()
}

/// Deviation over mean.
fn variation(of: &[f64]) -> f64 {
    let count = of.len().max(1) as f64;
    let mean = of.iter().sum::<f64>() / count;
    let variance = of.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    if mean > 0.0 { variance.sqrt() / mean } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut values: Vec<f64> =
            (0..10_001).map(|_| 1e-4 * 1e4f64.powf(rng.random::<f64>())).collect();
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.add(*value));
        values.sort_by(f64::total_cmp);
        for part in [0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = values[(part * 10_000.0) as usize];
            let found = histogram.quantile_s(part);
            assert!((found / exact - 1.0).abs() < 0.005, "{part}: {found} of {exact}");
        }
        let mean = values.iter().sum::<f64>() / 10_001.0;
        assert!((histogram.mean_s() / mean - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_latency_of_any_size_is_counted() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_s(0.99), 0.0);
        [0.0, 1e-9, 1e9, f64::INFINITY].into_iter().for_each(|value| histogram.add(value));
        assert_eq!(histogram.count(), 4);
        assert!(histogram.quantile_s(0.25) < 1e-5);
        assert!(histogram.quantile_s(1.0) > 4096.0);
    }

    #[test]
    fn two_histograms_make_the_histogram_of_both() {
        let (mut both, mut one, mut other) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for n in 0..1000 {
            let value = 0.001 * f64::from(n);
            both.add(value);
            if n % 3 == 0 { one.add(value) } else { other.add(value) }
        }
        one.merge(&other);
        assert_eq!((one.count(), one.counts), (both.count(), both.counts));
    }

    /// `shares` of the first of two servers, at 1,000 picks a bin.
    fn of_shares(shares: impl Iterator<Item = f64>) -> f64 {
        let mut rng = SmallRng::seed_from_u64(1);
        let bin = |share: f64| {
            let first = (0..1000).filter(|_| rng.random::<f64>() < share).count() as u32;
            vec![first, 1000 - first]
        };
        oscillation(&shares.map(bin).collect::<Vec<_>>())
    }

    #[test]
    fn a_share_that_swings_shows_by_how_much() {
        for amplitude in [0.1, 0.4] {
            let swing = |t| 0.5 + amplitude * (f64::from(t) / 10.0 * std::f64::consts::TAU).sin();
            let found = of_shares((0..200).map(swing));
            assert!((found / (2.0 * amplitude) - 1.0).abs() < 0.1, "{amplitude}: {found}");
        }
    }

    #[test]
    fn chance_and_a_lasting_change_are_no_oscillation() {
        let chance = of_shares((0..200).map(|_| 0.5));
        assert!(chance < 0.02, "{chance}");
        let change = of_shares((0..200).map(|t| if t < 100 { 0.3 } else { 0.7 }));
        assert!(change < 0.02, "{change}");
    }

    #[test]
    fn a_herd_that_moves_on_each_second_oscillates_fully() {
        let herd: Vec<Vec<u32>> =
            (0..100).map(|t| (0..4).map(|s| u32::from(t % 4 == s) * 500).collect()).collect();
        assert!(oscillation(&herd) > 1.0);
    }
}
