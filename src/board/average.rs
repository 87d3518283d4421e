//! Averages over time in single words of shared memory.
//!
//! An average moves towards a sample by a part of the distance, its gain; `dt` is
//! the time since the sample before:
//!
//! ```text
//! mean += gain * (sample - mean)       gain = max(dt / (tau + dt), 1/128)
//! ```
//!
//! That is the first-order low-pass filter, discretized backwards; it differs
//! from `1 - exp(-dt/tau)` by less than 0.21 anywhere, has the same ends (0 for a
//! sample at the same moment, 1 for one after a long rest) and takes no
//! exponential. The least gain keeps the newest 128 samples in the mean where
//! more than that come within tau, and lets a mean move in a tick of the coarse
//! clock, in which `dt` is 0.
//!
//! Two workers that move one word at the same moment lose one of the samples: an
//! average of many does not show it, and a lock would. What is read is checked,
//! as anybody in the process may have scribbled on the memory.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use super::memory::AtomicU32;

/// Time constant of a mean, in milliseconds.
const MEAN_TAU_MS: f32 = 1_000.0;
const LEAST_GAIN: f32 = 1.0 / 128.0;

/// Time constant of a peak, in milliseconds: finagle's default
/// (`PeakEwma.scala`, `decayTime`).
const PEAK_TAU_MS: f32 = 10_000.0;

/// Latencies are taken for one of these, in milliseconds: a nanosecond (0 stands
/// for none), and eleven days.
const LATENCIES: std::ops::RangeInclusive<f32> = 1e-6..=1e9;

/// A part below this is none: it would fade for hours without mattering.
const LEAST_PART: f32 = 1e-4;

/// Where an average is kept: in memory that others share, or in one's own.
pub(crate) trait Word {
    fn load(&self) -> u32;
    fn store(&self, bits: u32);
}

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        self.load(Relaxed)
    }

    fn store(&self, bits: u32) {
        self.store(bits, Relaxed);
    }
}

/// A simulation's.
impl Word for Cell<u32> {
    fn load(&self) -> u32 {
        self.get()
    }

    fn store(&self, bits: u32) {
        self.set(bits);
    }
}

/// A latency in milliseconds; zeroed memory is none.
#[derive(Debug, Clone, Default)]
#[repr(transparent)]
pub(crate) struct Latency<W = AtomicU32>(W);

impl<W: Word> Latency<W> {
    pub fn get(&self) -> Option<f32> {
        let ms = f32::from_bits(self.0.load());
        LATENCIES.contains(&ms).then_some(ms) // not a number is in no range
    }

    pub fn forget(&self) {
        self.0.store(0);
    }

    /// Takes a sample into a mean; the first one is the mean.
    pub fn add_to_mean(&self, sample_ms: f32, dt_ms: u64) {
        self.update(sample_ms, |mean, sample| mean + mean_gain(dt_ms) * (sample - mean));
    }

    /// Takes a sample into a peak: a larger one is the new peak, a smaller one
    /// pulls it down slowly.
    ///
    /// Source: finagle's `PeakEwma.scala` and `Ema.scala`, with the gain above and
    /// no least one.
    pub fn add_to_peak(&self, sample_ms: f32, dt_ms: u64) {
        let gain = gain(dt_ms, PEAK_TAU_MS);
        self.update(sample_ms, |peak, sample| sample.max(peak + gain * (sample - peak)));
    }

    fn update(&self, sample_ms: f32, average: impl FnOnce(f32, f32) -> f32) {
        let sample = sample_ms.clamp(*LATENCIES.start(), *LATENCIES.end());
        let new = self.get().map_or(sample, |old| average(old, sample));
        self.0.store(new.to_bits());
    }
}

/// How much of what happened was of one kind, 0 to 1; zeroed memory is nothing.
#[derive(Debug, Clone, Default)]
#[repr(transparent)]
pub(crate) struct Part<W = AtomicU32>(W);

impl<W: Word> Part<W> {
    pub fn get(&self) -> f32 {
        let part = f32::from_bits(self.0.load());
        if (0.0..=1.0).contains(&part) { part } else { 0.0 }
    }

    pub fn forget(&self) {
        self.0.store(0);
    }

    /// Takes in whether it was of the kind; `dt_ms` is `None` the first time, which
    /// sets it.
    pub fn add(&self, is_of_the_kind: bool, dt_ms: Option<u64>) {
        let old = self.get();
        if old == 0.0 && !is_of_the_kind {
            return; // what nearly all requests come to
        }
        let sample = f32::from(u8::from(is_of_the_kind));
        let new = dt_ms.map_or(sample, |dt_ms| old + mean_gain(dt_ms) * (sample - old));
        let new = if new < LEAST_PART { 0.0 } else { new };
        self.0.store(new.to_bits());
    }
}

fn mean_gain(dt_ms: u64) -> f32 {
    gain(dt_ms, MEAN_TAU_MS).max(LEAST_GAIN)
}

/// 0 to 1.
fn gain(dt_ms: u64, tau_ms: f32) -> f32 {
    let dt_ms = dt_ms as f32;
    dt_ms / (tau_ms + dt_ms)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn latency(bits: u32) -> Latency {
        Latency(AtomicU32::new(bits))
    }

    #[test]
    fn an_average_in_a_cell_is_that_in_an_atomic_word() {
        let (cell, atomic) = (Latency::<Cell<u32>>::default(), latency(0));
        let (of_cell, of_atomic) = (Part::<Cell<u32>>::default(), Part(AtomicU32::new(0)));
        for (sample, dt_ms) in [(10.0, 0), (90.0, 300), (f32::NAN, 2), (5.0, 5_000)] {
            cell.add_to_mean(sample, dt_ms);
            atomic.add_to_mean(sample, dt_ms);
            assert_eq!(cell.get(), atomic.get());
            of_cell.add(sample > 50.0, Some(dt_ms));
            of_atomic.add(sample > 50.0, Some(dt_ms));
            assert_eq!(of_cell.get(), of_atomic.get());
        }
        assert!(cell.get().is_some() && of_cell.get() > 0.0);
    }

    #[test]
    fn the_first_sample_is_the_mean_and_each_next_pulls_it_by_its_gain() {
        let mean = latency(0);
        assert_eq!(mean.get(), None);
        mean.add_to_mean(10.0, 999);
        assert_eq!(mean.get(), Some(10.0));
        mean.add_to_mean(20.0, 1_000); // tau: half way
        assert_eq!(mean.get(), Some(15.0));
        mean.add_to_mean(5.0, 3_000);
        assert_eq!(mean.get(), Some(7.5));
        mean.add_to_mean(7.5 + 128.0, 0); // the least gain
        assert_eq!(mean.get(), Some(8.5));
        mean.add_to_mean(100.0, u64::MAX); // a clock that jumped
        assert_eq!(mean.get(), Some(100.0));
    }

    #[test]
    fn a_peak_jumps_up_and_comes_down_slowly() {
        let peak = latency(0);
        peak.add_to_peak(10.0, 0);
        peak.add_to_peak(50.0, 0);
        assert_eq!(peak.get(), Some(50.0));
        peak.add_to_peak(10.0, 0);
        assert_eq!(peak.get(), Some(50.0), "not in no time");
        peak.add_to_peak(10.0, 10_000);
        assert_eq!(peak.get(), Some(30.0), "half way in tau");
    }

    #[test]
    fn a_part_is_that_of_the_last_second_or_of_the_last_samples() {
        let part = Part(AtomicU32::new(0));
        part.add(false, None);
        assert_eq!(part.get(), 0.0);
        part.add(true, Some(1_000));
        assert_eq!(part.get(), 0.5);
        part.add(true, Some(0));
        assert_eq!(part.get(), 0.5 + 0.5 / 128.0);
        part.forget();
        part.add(true, None);
        assert_eq!(part.get(), 1.0, "the first sets it");
        for _ in 0..3_000 {
            part.add(false, Some(0));
        }
        assert_eq!(part.get(), 0.0, "in the end it is nothing, not next to it");
    }

    #[test]
    fn what_somebody_scribbled_is_never_read_and_is_healed_by_a_sample() {
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -0.0, 1e-40, 2e9];
        for bits in bad.map(f32::to_bits).into_iter().chain([u32::MAX, 1]) {
            let mean = latency(bits);
            assert_eq!(mean.get(), None, "{bits:x}");
            mean.add_to_mean(3.0, 5);
            assert_eq!(mean.get(), Some(3.0), "{bits:x}");
        }
        for value in [f32::NAN, f32::INFINITY, -1.0, 1.5] {
            let part = Part(AtomicU32::new(value.to_bits()));
            assert_eq!(part.get(), 0.0, "{value}");
            part.add(true, Some(1_000));
            assert_eq!(part.get(), 0.5, "{value}");
        }
    }

    #[test]
    fn no_sample_takes_an_average_out_of_its_range() {
        for sample in [0.0, -5.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mean = latency(0);
            mean.add_to_mean(sample, 0);
            let first = mean.get().expect("a sample is one");
            assert!(LATENCIES.contains(&first), "{sample}");
            mean.add_to_peak(sample, 77);
            assert!(mean.get().is_some(), "{sample}");
        }
    }
}
