//! Which instances a request may go to, at the moment when it is to go somewhere.

use rand::rngs::SmallRng;

use super::Peers;
use crate::board::{Board, Refusal, ServiceId};
use crate::picker::{Live, Moment, Picker};
use crate::value::Record;

/// What keeps a request from instances that it has not tried: nothing, mostly, and
/// then nobody asks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bars {
    /// Some instance may have so many requests in flight and no more.
    pub limits: bool,
    /// Some instance rests after a failure.
    pub rests: bool,
    /// Where there are others, those of weight 0 are not where their requests go:
    /// nobody wants any there.
    pub weightless: bool,
}

impl Bars {
    fn any(self) -> bool {
        self.limits || self.rests || self.weightless
    }
}

/// One try of one request.
pub(super) struct Try<'a> {
    pub board: Board,
    pub service: ServiceId,
    pub peers: &'a Peers,
    pub records: &'a [Record],
    pub tried: &'a [u64],
    pub key: Option<u64>,
    pub now_ms: u64,
    pub bars: Bars,
}

impl Try<'_> {
    /// The picker's choice. Rests are never of all of a service: they count for nothing
    /// when there is nobody else.
    pub fn pick(&mut self, picker: &mut dyn Picker, rng: &mut SmallRng) -> Option<usize> {
        let picked = picker.pick(self, rng);
        if picked.is_some() || !self.bars.any() {
            return picked;
        }
        self.pick_again(picker, rng)
    }

    #[cold]
    fn pick_again(&mut self, picker: &mut dyn Picker, rng: &mut SmallRng) -> Option<usize> {
        if std::mem::take(&mut self.bars.rests) {
            let picked = picker.pick(self, rng);
            if picked.is_some() {
                return picked;
            }
        }
        // A request that has failed goes where it still can.
        if self.is_retry() && std::mem::take(&mut self.bars.weightless) {
            return picker.pick(self, rng);
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
        self.board.in_flight(self.peers.slots[index])
    }

    fn total_in_flight(&self) -> u64 {
        self.board.service_in_flight(self.service)
    }

    fn prepare(&self, index: usize) {
        self.board.prefetch(self.peers.slots[index]);
    }

    fn live(&self, index: usize) -> Live {
        let seen = self.board.seen(self.peers.slots[index], self.now_ms);
        Live {
            in_flight: seen.in_flight,
            latency_ms: seen.latency_ms,
            failed: seen.failed,
            consecutive_failures: seen.consecutive_failures,
            stalled_ms: seen.stalled_ms,
            unpicked_ms: seen.unpicked_ms,
        }
    }
}
