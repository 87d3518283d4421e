//! Which instances a request may go to, at the moment when it is to go somewhere.

use super::Peers;
use crate::board::{Board, NO_SLOT, Refusal, ServiceId};
use crate::picker::{Live, Moment};
use crate::value::Record;

/// What keeps a request from instances that it has not tried: nothing, mostly, and
/// then nobody asks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bars {
    /// Some instance may have so many requests in flight and no more.
    pub limits: bool,
    /// Some instance rests after a failure.
    pub rests: bool,
    /// Some instance is ejected, and there is no panic.
    pub ejected: bool,
    /// Where there are others, those of weight 0 are not where their requests go:
    /// nobody wants any there.
    pub weightless: bool,
}

impl Bars {
    fn any(self) -> bool {
        self.limits || self.rests || self.ejected || self.weightless
    }
}

/// One try of one request.
pub(super) struct Try<'a> {
    pub board: Board,
    pub service: ServiceId,
    pub peers: &'a Peers,
    pub records: &'a [Record],
    /// The weight of all instances whose requests in flight are counted.
    pub counted_weight: f64,
    /// By chance: from which fraction on a part of a request is a whole one.
    pub rounding: f64,
    pub tried: &'a [u64],
    pub key: Option<u64>,
    pub now_ms: u64,
    pub bars: Bars,
}

impl Try<'_> {
    /// What `choose` chooses. Whoever rests or is ejected is better than nobody.
    pub fn pick<T>(&mut self, mut choose: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let chosen = choose(self);
        if chosen.is_some() || !self.bars.any() {
            return chosen;
        }
        self.pick_again(choose)
    }

    #[cold]
    fn pick_again<T>(&mut self, mut choose: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let lifts: [fn(&mut Bars) -> bool; 2] =
            [|bars| std::mem::take(&mut bars.rests), |bars| std::mem::take(&mut bars.ejected)];
        for lift in lifts {
            if lift(&mut self.bars)
                && let Some(chosen) = choose(self)
            {
                return Some(chosen);
            }
        }
        // A request that has failed goes where it still can.
        if self.is_retry() && std::mem::take(&mut self.bars.weightless) {
            return choose(self);
        }
        None
    }

    /// Why there was none.
    pub fn why_none(&self) -> Refusal {
        let mut left = (0..self.records.len()).filter(|&index| !self.has_tried(index));
        match left.any(|index| self.is_full(index)) {
            true => Refusal::MaxInFlight,
            false if self.is_retry() => Refusal::AllTried,
            false => Refusal::NoInstance,
        }
    }

    /// What an instance whose requests are counted nowhere has in flight if it has
    /// as much for its weight as the others: taken for idle, it would get what they
    /// all should. Rounded by chance, as the least of even loads is below the mean.
    fn presumed_in_flight(&self, index: usize) -> u32 {
        let for_a_weight_of_1 = self.total_in_flight() as f64 / self.counted_weight;
        let presumed = for_a_weight_of_1 * self.records[index].weight;
        // Without any that is counted, all are alike.
        if presumed.is_finite() { (presumed + self.rounding) as u32 } else { 0 }
    }

    fn has_tried(&self, index: usize) -> bool {
        self.tried.contains(&self.peers.identities[index])
    }

    /// Whether the instance has all the requests that it may have.
    fn is_full(&self, index: usize) -> bool {
        let max = self.records[index].max_in_flight;
        max > 0 && self.board.in_flight(self.peers.slots[index]) >= max
    }

    #[cold]
    fn is_barred_now(&self, index: usize) -> bool {
        (self.bars.limits && self.is_full(index))
            || (self.bars.rests && self.board.is_resting(self.peers.slots[index], self.now_ms))
            || (self.bars.ejected && self.board.is_ejected(self.peers.slots[index], self.now_ms))
            || (self.bars.weightless && self.records[index].weight == 0.0)
    }
}

impl Moment for Try<'_> {
    fn is_retry(&self) -> bool {
        !self.tried.is_empty()
    }

    fn is_barred(&self, index: usize) -> bool {
        self.has_tried(index) || (self.bars.any() && self.is_barred_now(index))
    }

    fn key(&self) -> Option<u64> {
        self.key
    }

    fn in_flight(&self, index: usize) -> u32 {
        match self.peers.slots[index] {
            NO_SLOT => self.presumed_in_flight(index),
            slot => self.board.in_flight(slot),
        }
    }

    fn total_in_flight(&self) -> u64 {
        self.board.service_in_flight(self.service)
    }

    fn prepare(&self, index: usize) {
        self.board.prefetch(self.peers.slots[index]);
    }

    #[inline(always)] // and what it calls: a quarter of a pick
    fn live(&self, index: usize) -> Live {
        let slot = self.peers.slots[index];
        let seen = self.board.seen(slot, self.now_ms);
        Live {
            in_flight: match slot {
                NO_SLOT => self.presumed_in_flight(index),
                _ => seen.in_flight,
            },
            latency_ms: seen.latency_ms,
            failed: seen.failed,
            consecutive_failures: seen.consecutive_failures,
            stalled_ms: seen.stalled_ms,
            unpicked_ms: seen.unpicked_ms,
        }
    }
}
