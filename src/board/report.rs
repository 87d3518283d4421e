//! Load reports that responses brought, on their way from the workers to the
//! plugin's thread.
//!
//! A cell a slot holds the last report of its instance. Two workers may write one
//! cell at once, or one while it is read: the figures are then a mix of two
//! reports of one instance, told within the same moments, each of them one that
//! the instance told. Whoever scribbles on the memory may leave others, so that
//! they are checked again as they are read.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::memory::{AtomicU32, AtomicU64};
use super::{Board, MAX_SLOTS};
use crate::reckon::Figures;

/// How often workers look for a report in what one instance answers, in
/// milliseconds.
pub const LOOK_EVERY_MS: u32 = 100;

/// Where there was none, the next look is twice as far off, up to this many
/// times: 6.4 s. Else, where instances are many and answer seldom, each response
/// would be looked at, though none of them ever has a report.
const MAX_DOUBLINGS: u32 = 6;

/// A report that nobody read for so long says nothing any more; the next
/// response brings another.
const STALE_MS: u32 = 1000;

/// How often at most a report that was refused is logged.
const WARN_EVERY_MS: u32 = 60_000;

/// Bits in a word of `news`.
const WORD: usize = u64::BITS as usize;

/// What the board has of load reports in responses.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Reports {
    taken: AtomicU64,
    malformed: AtomicU64,
    /// [`coarse_ms`](super::coarse_ms) when a refused one was last logged; 0 never.
    warned_ms: AtomicU32,
    /// A bit a slot: its cell holds a report that was not read yet.
    news: [AtomicU64; MAX_SLOTS.div_ceil(WORD)],
    /// Apart from the cells: read with each response, written seldom, and for
    /// most instances all that there is.
    looks: [Look; MAX_SLOTS],
    cells: [Cell; MAX_SLOTS],
}

/// When a slot's instance was last looked at.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Look {
    /// [`coarse_ms`](super::coarse_ms).
    at_ms: AtomicU32,
    /// Looks since a report was found.
    in_vain: AtomicU32,
}

/// A slot's last report, in a cache line of its own.
#[repr(C, align(64))]
#[cfg_attr(loom, derive(Default))]
struct Cell {
    /// [`coarse_ms`](super::coarse_ms) when it was told.
    told_ms: AtomicU32,
    /// Bits of `f64`; NaN is not told.
    figures: [AtomicU64; 7],
}

impl Board {
    /// Whether a response of the slot's instance is to be looked at for a report,
    /// at `now_ms` of [`coarse_ms`](super::coarse_ms). Says so once in [`LOOK_EVERY_MS`], or more
    /// seldom, to all workers together.
    pub fn is_look_due(&self, slot: u32, now_ms: u64) -> bool {
        let now_ms = stamp(now_ms);
        let Some(look) = self.layout.reports.looks.get(slot as usize) else { return false };
        let (at_ms, in_vain) = (look.at_ms.load(Relaxed), look.in_vain.load(Relaxed));
        let is_due = now_ms.wrapping_sub(at_ms) >= LOOK_EVERY_MS << in_vain.min(MAX_DOUBLINGS)
            && look.at_ms.compare_exchange(at_ms, now_ms, Relaxed, Relaxed).is_ok();
        if is_due {
            look.in_vain.store((in_vain + 1).min(MAX_DOUBLINGS), Relaxed);
        }
        is_due
    }

    /// Keeps a report of the slot's instance for the plugin's thread.
    pub fn put_report(&self, slot: u32, figures: Figures, now_ms: u64) {
        let now_ms = stamp(now_ms);
        let reports = &self.layout.reports;
        let Some(cell) = reports.cells.get(slot as usize) else { return };
        for (to, figure) in cell.figures.iter().zip(to_bits(figures)) {
            to.store(figure, Relaxed);
        }
        cell.told_ms.store(now_ms, Relaxed);
        reports.looks[slot as usize].in_vain.store(0, Relaxed);
        reports.taken.fetch_add(1, Relaxed);
        reports.news[slot as usize / WORD].fetch_or(1 << (slot as usize % WORD), Release);
    }

    /// Counts a report that was refused; whether it is to be logged, too.
    pub fn count_malformed_report(&self, now_ms: u64) -> bool {
        let now_ms = stamp(now_ms);
        let Reports { malformed, warned_ms: warned, .. } = &self.layout.reports;
        malformed.fetch_add(1, Relaxed);
        let warned_ms = warned.load(Relaxed);
        (warned_ms == 0 || now_ms.wrapping_sub(warned_ms) >= WARN_EVERY_MS)
            && warned.compare_exchange(warned_ms, now_ms.max(1), Relaxed, Relaxed).is_ok()
    }

    /// The reports that came since this was last called, by slot.
    pub fn take_reports(&self, now_ms: u64) -> HashMap<u32, Figures> {
        let now_ms = stamp(now_ms);
        let mut reports = HashMap::new();
        for (index, word) in self.layout.reports.news.iter().enumerate() {
            if word.load(Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Acquire);
            while bits != 0 {
                let slot = index * WORD + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let cell = &self.layout.reports.cells[slot];
                let age_ms = now_ms.wrapping_sub(cell.told_ms.load(Relaxed));
                let figures = from_bits(cell.figures.each_ref().map(|bits| bits.load(Relaxed)));
                // Half of all differences are of a clock that was a tick ahead.
                let is_stale = (STALE_MS..u32::MAX / 2).contains(&age_ms);
                if let (Ok(figures), false) = (figures.checked(), is_stale) {
                    reports.insert(slot as u32, figures);
                }
            }
        }
        reports
    }

    /// Reports in responses so far: taken, and refused.
    pub fn report_counts(&self) -> (u64, u64) {
        let Reports { taken, malformed, .. } = &self.layout.reports;
        (taken.load(Relaxed), malformed.load(Relaxed))
    }
}

fn to_bits(figures: Figures) -> [u64; 7] {
    let Figures { cpu, application, latency_ms, in_flight, queue, .. } = figures;
    let (rate, errors) = (figures.requests_per_second, figures.errors_per_second);
    [cpu, application, Some(rate), Some(errors), latency_ms, in_flight, queue]
        .map(|figure| figure.unwrap_or(f64::NAN).to_bits())
}

fn from_bits(bits: [u64; 7]) -> Figures {
    let figures = bits.map(f64::from_bits);
    let [cpu, application, _, _, latency_ms, in_flight, queue] =
        figures.map(|figure| (!figure.is_nan()).then_some(figure));
    let [_, _, requests_per_second, errors_per_second, ..] = figures;
    Figures {
        cpu,
        application,
        requests_per_second,
        errors_per_second,
        latency_ms,
        in_flight,
        queue,
    }
}

/// What stands in a cell for a time of [`coarse_ms`](super::coarse_ms). It wraps
/// after 49 days: differences alone count.
fn stamp(now_ms: u64) -> u32 {
    now_ms as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::board::NO_SLOT;
    use crate::reckon::MAX_REQUESTS;

    fn full() -> Figures {
        Figures {
            cpu: Some(0.5),
            application: Some(0.25),
            requests_per_second: 100.0,
            errors_per_second: 1.0,
            latency_ms: Some(12.5),
            in_flight: Some(3.0),
            queue: Some(0.0),
        }
    }

    #[test]
    fn a_report_is_read_once_as_it_was_told() {
        let board = Board::map_for_tests();
        let bare = Figures::default();
        board.put_report(3, full(), 1000);
        board.put_report(MAX_SLOTS as u32 - 1, bare, 1100);
        let last = MAX_SLOTS as u32 - 1;
        assert_eq!(board.take_reports(1200), HashMap::from([(3, full()), (last, bare)]));
        assert!(board.take_reports(1200).is_empty());
        board.put_report(3, bare, 1300);
        board.put_report(3, full(), 1310);
        assert_eq!(board.take_reports(1300), HashMap::from([(3, full())]), "the last one");
        assert_eq!(board.report_counts(), (4, 0));
    }

    #[test]
    fn an_instance_that_reports_is_looked_at_ten_times_a_second() {
        let board = Board::map_for_tests();
        let due = |now_ms| {
            let due = [1, 2].map(|slot| board.is_look_due(slot, now_ms));
            (1..=2).for_each(|slot| board.put_report(slot, full(), now_ms));
            due
        };
        assert_eq!(due(1000), [true, true]);
        assert_eq!(due(1099), [false, false]);
        assert!(board.is_look_due(1, 1100));
        assert_eq!(due(1150), [false, true]);
        assert_eq!(due(u64::from(u32::MAX) - 10), [true, true]);
        assert_eq!(due(88), [false, false], "across the clock's end");
        assert_eq!(due(89), [true, true]);
    }

    #[test]
    fn an_instance_that_never_reports_is_looked_at_ever_more_seldom() {
        let board = Board::map_for_tests();
        let looks: Vec<_> = (1000..50_000).filter(|&now| board.is_look_due(1, now)).collect();
        let apart: Vec<_> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(apart[..7], [200, 400, 800, 1600, 3200, 6400, 6400]);
        assert_eq!(looks.len(), 12);
        board.put_report(1, full(), 50_000);
        assert!(board.is_look_due(1, 50_000), "from the first report on it is as any other");
        assert!(board.is_look_due(1, 50_000 + 200));
    }

    #[test]
    fn a_report_that_nobody_read_in_time_is_dropped() {
        let board = Board::map_for_tests();
        board.put_report(1, full(), 1000);
        assert!(board.take_reports(2000).is_empty());
        board.put_report(1, full(), u32::MAX.into());
        assert_eq!(board.take_reports(99).len(), 1, "across the clock's end");
    }

    #[test]
    fn a_slot_out_of_range_has_no_report() {
        let board = Board::map_for_tests();
        for slot in [NO_SLOT, MAX_SLOTS as u32] {
            assert!(!board.is_look_due(slot, 1000));
            board.put_report(slot, full(), 1000);
        }
        assert!(board.take_reports(1000).is_empty());
        assert_eq!(board.report_counts(), (0, 0));
    }

    #[test]
    fn figures_that_somebody_scribbled_over_are_not_taken() {
        let board = Board::map_for_tests();
        for bits in [u64::MAX, f64::INFINITY.to_bits(), (-1.0f64).to_bits(), 1e300f64.to_bits()] {
            for index in 0..7 {
                board.put_report(1, full(), 1000);
                board.layout.reports.cells[1].figures[index].store(bits, Relaxed);
                // Not told is NaN, where a figure may be that.
                for figures in board.take_reports(1000).into_values() {
                    assert!(bits == u64::MAX && figures.checked().is_ok());
                    assert!((0.0..=MAX_REQUESTS).contains(&figures.requests_per_second));
                }
            }
        }
    }

    #[test]
    fn refused_reports_are_counted_and_one_a_minute_is_logged() {
        let board = Board::map_for_tests();
        assert!(board.count_malformed_report(7));
        assert!(!board.count_malformed_report(60_006));
        assert!(board.count_malformed_report(60_007));
        assert_eq!(board.report_counts(), (0, 3));
    }
}
