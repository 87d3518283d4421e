//! The strategies: which instance gets this request. One file each, one trait;
//! neither nginx nor a clock is known here, and chance is an argument, so that
//! a simulation can drive the same code.

mod adaptive;
mod best;
mod chash;
mod draw;
mod least_conn;
mod p2c;
mod random;
mod round_robin;
mod weighted_random;

use rand::rngs::SmallRng;

use self::adaptive::Adaptive;
use self::best::Best;
use self::chash::Chash;
pub use self::chash::hash_of_key;
use self::least_conn::LeastConn;
use self::p2c::P2c;
use self::random::Random;
use self::round_robin::RoundRobin;
use self::weighted_random::WeightedRandom;
use crate::config::{BalanceConfig, Strategy};
use crate::value::Record;

/// A service's instances as a strategy sees them: what is known of each by
/// index, the same index that [`Picker::pick`] answers with. All slices have one
/// length.
#[derive(Debug, Clone, Copy)]
pub struct Ranked<'a> {
    /// [`board::identity`](crate::board::identity) of each: stays the same from
    /// ranking to ranking.
    pub identities: &'a [u64],
    /// The fallback weights: what an operator set, whatever is reported. Finite
    /// and not negative.
    pub priors: &'a [f64],
    /// What the ranking says. An instance of weight 0 is picked only when all
    /// weights are 0, or when nothing else is left to try.
    pub records: &'a [Record],
    /// This host's part of the requests that the service gets from everywhere, 0
    /// to 1.
    pub own_part: f64,
    /// The requests that the service gets from everywhere, a second; 0 is unknown.
    pub rate_per_s: f64,
}

impl Ranked<'_> {
    /// The ranking's weights.
    pub fn weights(&self) -> Vec<f64> {
        self.records.iter().map(|record| record.weight).collect()
    }
}

/// What this host has seen of an instance in the last seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Live {
    /// Requests that this host has open on it.
    pub in_flight: u32,
    /// Mean latency of its answers, in milliseconds; `None` without any.
    pub latency_ms: Option<f32>,
    /// The part of its answers that were failures, 0 to 1.
    pub failed: f32,
    /// Failures since the last answer that was none.
    pub consecutive_failures: u32,
    /// How long requests have been open with none of them ending, in
    /// milliseconds; 0 when none is open.
    pub stalled_ms: u32,
    /// How long this host has not picked it, in milliseconds.
    pub unpicked_ms: u32,
}

/// What is known at the moment of the request.
pub trait Moment {
    /// Whether this request has tried an instance before.
    fn is_retry(&self) -> bool;
    /// Whether this request is not to go to the instance now: it has tried it, or the
    /// instance is ejected.
    fn is_barred(&self, index: usize) -> bool;
    /// A hash of what the request is to be kept together by; `None` if it is not.
    fn key(&self) -> Option<u64>;
    /// Requests that this host has open on the instance.
    fn in_flight(&self, index: usize) -> u32;
    /// Requests that this host has open on all instances of the service.
    fn total_in_flight(&self) -> u64;
    /// Says that the instance is going to be asked for.
    fn prepare(&self, index: usize) {
        let _ = index;
    }
    /// All that this host has seen of the instance.
    fn live(&self, index: usize) -> Live;
}

/// A strategy over one ranking; a new ranking makes a new one. An enum and no `dyn`,
/// as a pick asks of its moment a dozen times: the compiler then sees through both.
pub enum Picker {
    Best(Best),
    WeightedRandom(WeightedRandom),
    RoundRobin(RoundRobin),
    Random(Random),
    LeastConn(LeastConn),
    P2c(P2c),
    Adaptive(Adaptive),
    Chash(Chash),
}

/// What each strategy can do.
trait Pick: Sized {
    /// See [`Picker::pick`].
    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize>;

    /// See [`Picker::into_memory`].
    fn into_memory(self) -> Memory {
        Memory::Nothing
    }
}

/// The same of whichever strategy it is.
macro_rules! each {
    ($picker:expr, $it:ident => $call:expr) => {
        match $picker {
            Picker::Best($it) => $call,
            Picker::WeightedRandom($it) => $call,
            Picker::RoundRobin($it) => $call,
            Picker::Random($it) => $call,
            Picker::LeastConn($it) => $call,
            Picker::P2c($it) => $call,
            Picker::Adaptive($it) => $call,
            Picker::Chash($it) => $call,
        }
    };
}

impl Picker {
    /// The instance for this request, among those that are not barred; `None`
    /// only when all are. Costs the same for 3 instances and 10,000, a
    /// retry's aside.
    pub fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
        each!(self, it => it.pick(now, rng))
    }

    /// What the strategy over the next ranking goes on from.
    pub fn into_memory(self) -> Memory {
        each!(self, it => it.into_memory())
    }
}

/// What a strategy keeps from one ranking to the next.
#[derive(Default)]
pub enum Memory {
    #[default]
    Nothing,
    Turns(round_robin::Turns),
    Owners(chash::Owners),
    Usual(adaptive::Usual),
}

/// The strategy over a first ranking, all else as by default.
pub fn build(strategy: Strategy, ranked: Ranked<'_>, rng: &mut SmallRng) -> Picker {
    let balance = BalanceConfig { strategy, ..BalanceConfig::default() };
    rebuild(&balance, ranked, Memory::Nothing, rng)
}

/// The strategy over a ranking, with the memory of the one before it: of the same
/// service, its instances and weights may be others.
pub fn rebuild(
    balance: &BalanceConfig,
    ranked: Ranked<'_>,
    memory: Memory,
    rng: &mut SmallRng,
) -> Picker {
    match balance.strategy {
        Strategy::Best => Picker::Best(Best::new(ranked)),
        Strategy::WeightedRandom => Picker::WeightedRandom(WeightedRandom::new(ranked)),
        Strategy::RoundRobin => Picker::RoundRobin(RoundRobin::new(ranked, memory, rng)),
        Strategy::Random => Picker::Random(Random::new(ranked)),
        Strategy::LeastConn => Picker::LeastConn(LeastConn::new(ranked)),
        Strategy::P2c => Picker::P2c(P2c::new(ranked)),
        Strategy::Adaptive => Picker::Adaptive(Adaptive::new(ranked, memory)),
        Strategy::Chash => Picker::Chash(Chash::new(ranked, balance.hash_balance_factor, memory)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
