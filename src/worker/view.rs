//! One version of a service's ranking, made ready to pick from: read from the shared
//! dict's two values, which are not trusted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::rngs::SmallRng;

use super::reach::Known;
use super::routes::{Plan, Routes};
use super::{Flight, MAX_TRIES, Service, tries};
use crate::board::{self, Board, NO_SLOT};
use crate::config::{BalanceConfig, Strategy};
use crate::picker::{self, Memory, Picker, Ranked};
use crate::value::{
    self, ControlValue, InstanceValue, RankingValue, Record, ServiceValue, ValueError,
};

/// One version of a service's ranking, made ready to pick from.
pub(super) struct View {
    pub(super) version: u64,
    pub(super) peers: Peers,
    pub(super) ranking: RankingValue,
    pub(super) picker: Picker,
    /// The weight of all instances whose requests in flight are counted; 0 where
    /// none is without a slot.
    pub(super) counted_weight: f64,
    /// Where there are rules.
    pub(super) routes: Option<Box<Routes>>,
    pub(super) known: Known,
}

/// The instances of one version, kept from ranking to ranking.
pub(super) struct Peers {
    pub(super) version: u64,
    /// The operator's, in place of the configured one.
    pub(super) strategy: Option<Strategy>,
    pub(super) control: Option<ControlValue>,
    pub(super) plan: Plan,
    pub(super) instances: Vec<InstanceValue>,
    pub(super) targets: Vec<Target>,
    /// Close together: a pick looks at two that are far apart otherwise.
    pub(super) slots: Vec<u32>,
    pub(super) identities: Vec<u64>,
    pub(super) priors: Vec<f64>,
}

/// What a worker found in the shared dict.
pub(super) enum Read {
    View(Box<View>),
    /// The instances have changed since they were not asked for: both are due.
    Lacking,
    /// The writer is about to store the ranking that goes with the instances; the
    /// one that was read is of this version.
    Overtaken {
        version: u64,
    },
}

impl Service {
    /// What two values make. Instances of a version that is at hand already are
    /// not decoded again.
    pub(super) fn view(
        &mut self,
        board: Board,
        instances: Option<&[u8]>,
        ranking: &[u8],
        rng: &mut SmallRng,
    ) -> Result<Read, ValueError> {
        let (version, body) = value::open(ranking)?;
        let ranking = RankingValue::decode(body)?;
        let wanted = ranking.instances_version;
        let at_hand = self.view.as_ref().is_some_and(|view| view.peers.version == wanted);
        let decoded = match instances {
            _ if at_hand => None,
            None => return Ok(Read::Lacking),
            Some(instances) => match value::open(instances)? {
                (found, body) if found == wanted => {
                    Some(Peers::new(self, board, found, ServiceValue::decode(body)?))
                }
                (found, _) if found > wanted => return Ok(Read::Overtaken { version }),
                (found, _) => return Err(ValueError::Mismatch { wanted, found }),
            },
        };
        let known = decoded.as_ref().or(self.view.as_ref().map(|view| &view.peers));
        let count = known.map_or(0, |peers| peers.instances.len());
        if count != ranking.records.len() {
            let what = format!("{} records for {count} instances", ranking.records.len());
            return Err(ValueError::Body(what));
        }
        let (known, memory, routes) = match self.view.take() {
            Some(view) => (Some(view.peers), view.picker.into_memory(), view.routes),
            None => (None, Memory::Nothing, None),
        };
        let is_same_plan = decoded
            .as_ref()
            .zip(known.as_ref())
            .is_none_or(|(new, old)| new.plan.rules == old.plan.rules);
        let memories = routes.filter(|_| is_same_plan).map(|routes| routes.into_memories());
        let peers = decoded.or(known).ok_or(ValueError::Missing)?;
        let ranked = Ranked {
            identities: &peers.identities,
            priors: &governed_priors(&peers.priors, &ranking.records),
            records: &ranking.records,
            own_part: ranking.own_part,
            rate_per_s: ranking.rate_per_s,
        };
        let configured = &self.balance;
        let strategy = peers.strategy.unwrap_or(configured.strategy);
        let balance = BalanceConfig { strategy, ..configured.clone() };
        let picker = picker::rebuild(&balance, ranked, memory, rng);
        let memories = memories.unwrap_or_default();
        let routes = Routes::new(&peers.plan, &balance, ranked, memories, rng).map(Box::new);
        let counted_weight = if peers.slots.contains(&NO_SLOT) {
            let records = ranking.records.iter().zip(&peers.slots);
            records.filter(|(_, slot)| **slot != NO_SLOT).map(|(record, _)| record.weight).sum()
        } else {
            0.0
        };
        let known = Known::new(&ranking, &peers.priors, &self.failure, self.health.panic);
        Ok(Read::View(Box::new(View {
            version,
            peers,
            ranking,
            picker,
            counted_weight,
            routes,
            known,
        })))
    }
}

impl View {
    /// Each zone's share of the weights; none if no instance says its zone.
    pub(super) fn zones(&self) -> BTreeMap<&str, f64> {
        let instances = || self.peers.instances.iter().zip(&self.ranking.records);
        let mut zones = BTreeMap::new();
        if instances().all(|(instance, _)| instance.zone.is_empty()) {
            return zones;
        }
        // Divided first, so that no sum of finite weights overflows.
        let most = instances().map(|(_, record)| record.weight).fold(f64::MIN_POSITIVE, f64::max);
        let sum: f64 = instances().map(|(_, record)| record.weight / most).sum();
        for (instance, record) in instances() {
            let share = if sum > 0.0 { record.weight / most / sum } else { 0.0 };
            *zones.entry(instance.zone.as_str()).or_default() += share;
        }
        zones
    }
}

/// The fallback weights, with all that governs them: by steps, so that the keys of a
/// consistent hash do not wander with each change of a factor.
pub(crate) fn governed_priors<'a>(priors: &'a [f64], records: &[Record]) -> Cow<'a, [f64]> {
    if records.iter().all(|record| record.factor == 1.0) {
        return Cow::Borrowed(priors);
    }
    let governed = priors.iter().zip(records);
    governed.map(|(prior, record)| prior * stepped(f64::from(record.factor))).collect()
}

/// The nearest power of the square root of 2, by which a factor is off by 19 % at the
/// most; 0 stays 0.
fn stepped(factor: f64) -> f64 {
    (2.0 * factor.log2()).round().mul_add(0.5, 0.0).exp2()
}

impl Peers {
    pub(super) fn new(service: &Service, board: Board, version: u64, value: ServiceValue) -> Self {
        let ServiceValue { strategy, control, rules, groups, instances, .. } = value;
        let identity = |i: &InstanceValue| board::identity(&service.name, &i.id, &i.addr);
        let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let counters = board.rules(service.id, &names);
        Peers {
            version,
            strategy,
            control,
            plan: Plan { rules, counters, groups },
            targets: instances.iter().map(|instance| Target::new(&instance.addr)).collect(),
            slots: instances.iter().map(|instance| instance.slot).collect(),
            identities: instances.iter().map(identity).collect(),
            priors: instances.iter().map(|instance| instance.weight).collect(),
            instances,
        }
    }

    pub(super) fn is_manual(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.is_manual)
    }

    /// What a request was sent to of these instances, by `$upstream_addr`.
    pub(super) fn flight_to(&self, addrs: &[u8]) -> Flight {
        let mut flight = Flight::default();
        for addr in tries::addrs(addrs).take(MAX_TRIES) {
            if let Some(index) = self.targets.iter().position(|target| target.addr == addr) {
                flight.tried.push(self.identities[index]);
            }
        }
        flight
    }
}

/// Where an instance is, in one piece, and that of IPv4 in one cache line: a pick among
/// thousands waits for memory.
#[repr(C, align(64))]
pub(super) struct Target {
    pub(super) addr: SocketAddr,
    /// The host as `set_current_peer` wants it, and its length.
    pub(super) host_len: u8,
    pub(super) host: [u8; Self::MAX_HOST],
}

impl Target {
    /// `[`, eight groups of four, and `]`.
    const MAX_HOST: usize = 41;

    pub(super) fn new(addr: &SocketAddr) -> Self {
        let text = match addr {
            SocketAddr::V4(addr) => addr.ip().to_string(),
            SocketAddr::V6(addr) => format!("[{}]", addr.ip()),
        };
        let mut host = [0; Self::MAX_HOST];
        let host_len = text.len().min(Self::MAX_HOST);
        host[..host_len].copy_from_slice(&text.as_bytes()[..host_len]);
        Target { addr: *addr, host, host_len: host_len as u8 }
    }

    pub(super) fn host(&self) -> &str {
        str::from_utf8(&self.host[..usize::from(self.host_len)]).unwrap_or_default()
    }
}
