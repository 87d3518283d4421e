//! Who decides: a strategy of ours, or a policy that it is compared with.

use rand::rngs::SmallRng;

use super::fleet::View;
use super::plane::Plane;
use super::policy::{self, NAMES, Outcome, Policy};
use crate::config::Strategy;
use crate::picker::Picker;

/// What a peer's name begins with where a strategy of ours has the same one.
const PEER: &str = "peer_";

/// A policy that can be simulated.
#[derive(Debug, Clone, Copy)]
pub enum Chooser {
    /// One of ours, by reports and live facts.
    Strategy(Strategy),
    /// One of [`policy`](super::policy).
    Peer(&'static str),
    /// A test's own.
    #[cfg(test)]
    Made(fn() -> Box<dyn Policy>),
}

/// The names of all policies: our strategies, then those that they are compared
/// with.
pub fn names() -> Vec<String> {
    let ours = Strategy::all().map(|strategy| strategy.as_str().to_owned());
    let peers = NAMES.iter().map(|name| Chooser::Peer(name).name());
    ours.chain(peers).collect()
}

impl Chooser {
    /// The policy of a name.
    pub fn named(name: &str) -> Option<Self> {
        let peer = name.strip_prefix(PEER).unwrap_or(name);
        let ours = Strategy::all().find(|strategy| strategy.as_str() == name);
        ours.map(Self::Strategy)
            .or_else(|| NAMES.iter().find(|known| **known == peer).map(|known| Self::Peer(known)))
    }

    /// Its name.
    pub fn name(self) -> String {
        let is_taken = |name| Strategy::all().any(|strategy| strategy.as_str() == name);
        match self {
            Self::Strategy(strategy) => strategy.as_str().to_owned(),
            Self::Peer(name) if is_taken(name) => format!("{PEER}{name}"),
            Self::Peer(name) => name.to_owned(),
            #[cfg(test)]
            Self::Made(_) => "made".to_owned(),
        }
    }

    /// Whether it is one of ours.
    pub fn strategy(self) -> Option<Strategy> {
        match self {
            Self::Strategy(strategy) => Some(strategy),
            _ => None,
        }
    }

    /// The deciders of one gateway's workers, which `seeds` tell apart.
    pub fn deciders(self, seeds: &[u64]) -> Vec<Decider> {
        let shared = policy::gateway_shared();
        let decider = |seed: &u64| match self {
            Self::Strategy(_) => Some(Decider::Strategy(None)),
            Self::Peer(name) => policy::by_name(name, &shared, *seed).map(Decider::Peer),
            #[cfg(test)]
            Self::Made(make) => Some(Decider::Peer(make())),
        };
        seeds.iter().filter_map(decider).collect()
    }
}

/// One worker's way to decide.
pub enum Decider {
    /// A picker over the ranking in force; `None` before there is one.
    Strategy(Option<Picker>),
    /// It sees to itself.
    Peer(Box<dyn Policy>),
}

impl Decider {
    /// The server for the request at hand. `plane` is that of the worker's gateway.
    pub fn pick(
        &mut self,
        plane: Option<&Plane>,
        view: &View<'_>,
        rng: &mut SmallRng,
    ) -> Option<usize> {
        match self {
            Self::Strategy(picker) => plane?.pick(picker.as_mut()?, view, rng),
            Self::Peer(policy) => policy.pick(view, rng),
        }
    }

    /// The picker of the ranking before, for what it remembers.
    pub fn take_picker(&mut self) -> Option<Picker> {
        match self {
            Self::Strategy(picker) => picker.take(),
            Self::Peer(_) => None,
        }
    }

    /// A try has ended.
    pub fn ended(&mut self, view: &View<'_>, server: usize, outcome: Outcome) {
        if let Self::Peer(policy) = self {
            policy.ended(view, server, outcome);
        }
    }
}
