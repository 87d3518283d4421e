//! Which instances a request may go to, at the moment when it is to go somewhere.

use super::Failure;
use super::view::Peers;
use crate::board::{Board, NO_SLOT, Refusal, ServiceId};
use crate::health;
use crate::picker::{Live, Moment};
use crate::ranking::State;
use crate::value::{RankingValue, Record};

/// What keeps a request from instances that it has not tried: nothing, mostly, and
/// then nobody asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bars {
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

/// What is known beforehand of a service and its ranking: what there is to ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// Some instance has a limit of requests in flight.
    pub is_limited: bool,
    /// Whoever fails rests.
    pub has_rests: bool,
    /// No instance has a weight.
    pub is_weightless: bool,
    /// So many may be ejected until there is a panic; `None` if there is one.
    pub most_ejected: Option<u32>,
}

impl Known {
    /// Of a ranking over instances with these fallback weights.
    pub fn new(
        ranking: &RankingValue,
        priors: &[f64],
        failure: &Failure,
        panic_percent: u32,
    ) -> Self {
        Known {
            is_limited: ranking.records.iter().any(|record| record.max_in_flight > 0),
            has_rests: failure.rest_ms > 0,
            is_weightless: ranking.records.iter().all(|record| record.weight == 0.0),
            most_ejected: most_ejected(priors, ranking, panic_percent),
        }
    }
}

/// How many may be ejected until there is a panic; `None` if there is one.
fn most_ejected(priors: &[f64], ranking: &RankingValue, panic_percent: u32) -> Option<u32> {
    if ranking.is_panic() {
        return None;
    }
    let offered = priors.iter().zip(&ranking.records).filter(|(prior, _)| **prior > 0.0);
    let failing = offered.clone().filter(|(_, record)| record.state == State::Failing).count();
    health::most_without_panic(offered.count(), failing, panic_percent)
}

impl Bars {
    /// Those of a service as of now.
    pub fn new(board: Board, service: ServiceId, known: Known, now_ms: u64) -> Self {
        let ejected = board.ejected(service);
        let limits = known.is_limited;
        let rests = known.has_rests && board.has_resting(service, now_ms);
        Bars {
            limits,
            rests,
            ejected: ejected != 0 && known.most_ejected.is_some_and(|most| ejected <= most),
            weightless: (limits || rests) && !known.is_weightless,
        }
    }

    pub fn any(self) -> bool {
        self.limits || self.rests || self.ejected || self.weightless
    }

    /// Whether they keep requests from the instance of this slot and record.
    #[cold]
    pub fn keep_from(self, board: Board, slot: u32, record: &Record, now_ms: u64) -> bool {
        (self.limits && is_full(board, slot, record))
            || (self.rests && board.is_resting(slot, now_ms))
            || (self.ejected && board.is_ejected(slot, now_ms))
            || (self.weightless && record.weight == 0.0)
    }
}

/// Whether an instance has all the requests that it may have.
fn is_full(board: Board, slot: u32, record: &Record) -> bool {
    record.max_in_flight > 0 && board.in_flight(slot) >= record.max_in_flight
}

/// A moment with bars that can be lifted.
pub trait Barred: Moment {
    fn bars(&mut self) -> &mut Bars;
}

/// What `choose` chooses. Whoever rests or is ejected is better than nobody.
pub fn pick<M: Barred, T>(now: &mut M, mut choose: impl FnMut(&M) -> Option<T>) -> Option<T> {
    let chosen = choose(now);
    if chosen.is_some() || !now.bars().any() {
        return chosen;
    }
    pick_again(now, choose)
}

#[cold]
fn pick_again<M: Barred, T>(now: &mut M, mut choose: impl FnMut(&M) -> Option<T>) -> Option<T> {
    let lifts: [fn(&mut Bars) -> bool; 2] =
        [|bars| std::mem::take(&mut bars.rests), |bars| std::mem::take(&mut bars.ejected)];
    for lift in lifts {
        if lift(now.bars())
            && let Some(chosen) = choose(now)
        {
            return Some(chosen);
        }
    }
    // A request that has failed goes where it still can.
    if now.is_retry() && std::mem::take(&mut now.bars().weightless) {
        return choose(now);
    }
    None
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

    fn is_full(&self, index: usize) -> bool {
        is_full(self.board, self.peers.slots[index], &self.records[index])
    }

    fn is_kept_from(&self, index: usize) -> bool {
        let (slot, record) = (self.peers.slots[index], &self.records[index]);
        self.bars.any() && self.bars.keep_from(self.board, slot, record, self.now_ms)
    }
}

impl Barred for Try<'_> {
    fn bars(&mut self) -> &mut Bars {
        &mut self.bars
    }
}

impl Moment for Try<'_> {
    fn is_retry(&self) -> bool {
        !self.tried.is_empty()
    }

    fn is_barred(&self, index: usize) -> bool {
        self.has_tried(index) || self.is_kept_from(index)
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
