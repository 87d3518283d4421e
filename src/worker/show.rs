//! What a worker shows of itself: the service view of the HTTP API, and the figures of
//! the metrics page. Nothing here is on a request's way.

use std::net::SocketAddr;

use serde::Serialize;

use super::view::View;
use super::{Service, Worker};
use crate::board::{self, Freshness, Refusal, Vouched};
use crate::clock::unix_ms;
use crate::config::Rule;
use crate::freshness::Step;
use crate::ranking::Basis;
use crate::value::ControlValue;

/// What the board counts for one instance, of all workers of this host.
pub struct Counters<'a> {
    pub service: &'a str,
    pub instance: &'a str,
    pub requests: u64,
    /// Tries that failed.
    pub failed: u64,
    pub in_flight: u32,
    /// Mean time of its answers over the last second, in milliseconds.
    pub latency_ms: Option<f32>,
}

/// What the board and a view tell of a service's health.
pub struct ServiceHealth<'a> {
    pub service: &'a str,
    /// So far, by reason.
    pub ejections:
        std::iter::Zip<std::array::IntoIter<board::Reason, 3>, std::array::IntoIter<u64, 3>>,
    pub ejected: u32,
    pub is_panic: bool,
}

/// How fresh what this worker serves of a service is.
pub struct ServiceFreshness<'a> {
    pub service: &'a str,
    /// One of [`STEPS`](crate::freshness::STEPS).
    pub step: &'static str,
    /// Instances that should report, and those of them that have a fresh report.
    pub expected: u32,
    pub fresh: u32,
    /// How often the service went to each of [`Step::ALL`], since nginx was started.
    pub steps: [u64; Step::ALL.len()],
    /// How old the oldest of the instances' last reports is; `None` if none of them
    /// ever reported.
    pub oldest_ms: Option<u64>,
    /// Of the ranking that this worker picks by; `None` while it has none.
    pub proof: Option<Proof>,
}

/// What is known of the ranking that this worker picks by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// The source's revision up to which all that it said is in it.
    pub revision: i64,
    /// How long ago the plugin's thread last said so, in milliseconds.
    pub age_ms: u64,
}

impl Worker {
    /// How fresh a service is, by one word. In fallback it is Lua that serves.
    fn step_of(&self, known: Option<Freshness>, now_ms: u64) -> &'static str {
        match (self.mode(now_ms), known) {
            ("static", _) => "static",
            (_, known) => known.map_or(Step::Board, |it| it.step).as_str(),
        }
    }

    /// What is known of a view: as of now where it is still the newest ranking, else as
    /// of when that was made.
    fn proof(&self, service: &Service, view: &View, now_ms: u64) -> Proof {
        // Before the version: whoever vouches has announced all that it vouches for.
        let Vouched { revision, at_ms } = self.board.vouched();
        let is_newest = view.version >= self.board.version(service.id);
        let made_ms = view.ranking.published_ms;
        match is_newest && at_ms >= made_ms {
            true => Proof { revision, age_ms: now_ms.saturating_sub(at_ms) },
            false => {
                Proof { revision: view.ranking.revision, age_ms: now_ms.saturating_sub(made_ms) }
            }
        }
    }

    /// How fresh each service is.
    pub fn freshness(&self, now_ms: u64) -> impl Iterator<Item = ServiceFreshness<'_>> {
        self.services.iter().map(move |service| {
            let known = self.board.freshness(service.id);
            let instances = service.view.iter().flat_map(|view| &view.peers.instances);
            let ages = instances.filter_map(|it| self.board.status_age_ms(it.slot, now_ms));
            let (expected, fresh) = known.map_or((0, 0), |it| (it.expected, it.fresh));
            ServiceFreshness {
                service: &service.name,
                step: self.step_of(known, now_ms),
                expected,
                fresh,
                steps: self.board.steps(service.id),
                oldest_ms: ages.max(),
                proof: service.view.as_ref().map(|view| self.proof(service, view, now_ms)),
            }
        })
    }

    /// The best `n` of a service as the HTTP API shows them, as JSON. `None`
    /// while this worker has no ranking of it.
    pub fn best(&self, service: u32, n: usize, now_ms: u64) -> Option<String> {
        let service = self.services.get(service as usize)?;
        let view = service.view.as_ref()?;
        let source = self.board.source();
        let total: f64 = view.ranking.records.iter().map(|record| record.weight).sum();
        let mut order: Vec<usize> = Vec::new();
        if n > 0 {
            order.extend(0..view.ranking.records.len());
            order.sort_unstable_by_key(|&index| view.ranking.records[index].rank);
        }
        let instances = order.into_iter().take(n).map(|index| {
            let (instance, record) = (&view.peers.instances[index], &view.ranking.records[index]);
            InstanceView {
                id: &instance.id,
                addr: instance.addr,
                zone: &instance.zone,
                rank: record.rank + 1,
                score: record.score,
                weight: record.weight,
                share: if total > 0.0 { record.weight / total } else { 0.0 },
                in_flight: self.board.in_flight(instance.slot),
                max_in_flight: record.max_in_flight,
                state: record.state.as_str(),
                status_age_ms: self.board.status_age_ms(instance.slot, now_ms),
            }
        });
        let known = self.board.freshness(service.id);
        let Proof { revision: applied_revision, age_ms: confirmed_age_ms } =
            self.proof(service, view, now_ms);
        let view = ServiceView {
            service: &service.name,
            mode: self.mode_of(view, now_ms),
            freshness: self.step_of(known, now_ms),
            reports: known.map_or(ReportsView { expected: 0, fresh: 0 }, |it| ReportsView {
                expected: it.expected,
                fresh: it.fresh,
            }),
            strategy: view.peers.strategy.unwrap_or(service.balance.strategy).as_str(),
            control: view.peers.control.as_ref(),
            rules: self.rule_counts(service, view),
            basis: view.ranking.basis.as_str(),
            panic: view.ranking.is_panic(),
            version: view.version,
            revision: source.revision,
            age_ms: match source.restored_as_of_ms {
                as_of_ms if as_of_ms != 0 && !source.synced => unix_ms().saturating_sub(as_of_ms),
                _ => now_ms.saturating_sub(view.ranking.published_ms.max(source.confirmed_ms)),
            },
            ranking_age_ms: now_ms.saturating_sub(view.ranking.published_ms),
            confirmed_age_ms,
            applied_revision,
            count: view.ranking.records.len(),
            zones: view.zones().into_iter().map(|(zone, share)| ZoneView { zone, share }).collect(),
            instances: instances.collect(),
        };
        serde_json::to_string(&view).ok()
    }

    fn rule_counts<'a>(&self, service: &Service, view: &'a View) -> Vec<RuleView<'a>> {
        let plan = &view.peers.plan;
        let of = |(index, rule)| RuleView {
            rule,
            selected: plan.selected(index),
            requests: plan.counters[index].map_or(0, |id| self.board.rule_requests(service.id, id)),
        };
        plan.rules.iter().enumerate().map(of).collect()
    }

    /// Service, rule and requests of each rule in force that is counted.
    pub fn rule_requests(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let with_view = self.services.iter().filter_map(|it| Some((it, it.view.as_ref()?)));
        with_view.flat_map(|(service, view)| {
            let plan = &view.peers.plan;
            plan.rules.iter().zip(&plan.counters).filter_map(|(rule, counter)| {
                let requests = self.board.rule_requests(service.id, (*counter)?);
                Some((service.name.as_str(), rule.name.as_str(), requests))
            })
        })
    }

    /// The counters of each instance in this worker's views.
    pub fn counters(&self) -> impl Iterator<Item = Counters<'_>> {
        self.services.iter().flat_map(|service| {
            let instances = service.view.iter().flat_map(|view| &view.peers.instances);
            instances.map(|instance| {
                let (requests, failed) = self.board.counters(instance.slot);
                Counters {
                    service: &service.name,
                    instance: &instance.id,
                    requests,
                    failed,
                    in_flight: self.board.in_flight(instance.slot),
                    latency_ms: self.board.latency_ms(instance.slot),
                }
            })
        })
    }

    /// Version and time of publishing of each service's view.
    pub fn versions(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.services.iter().filter_map(|service| {
            let view = service.view.as_ref()?;
            Some((service.name.as_str(), view.version, view.ranking.published_ms))
        })
    }

    /// Each service's tries that were not their request's first, and the requests that
    /// were refused, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (&str, u64, Vec<(Refusal, u64)>)> {
        self.services.iter().map(|service| {
            let refusals = self.board.refusals(service.id).collect();
            (service.name.as_str(), self.board.retries(service.id), refusals)
        })
    }

    /// What each service's view rests on.
    pub fn bases(&self) -> impl Iterator<Item = (&str, Basis)> {
        self.services.iter().filter_map(|service| {
            Some((service.name.as_str(), service.view.as_ref()?.ranking.basis))
        })
    }

    /// What became of each service's instances by their health, and whether its view is
    /// one of a panic.
    pub fn health(&self) -> impl Iterator<Item = ServiceHealth<'_>> {
        self.services.iter().map(|service| ServiceHealth {
            service: &service.name,
            ejections: board::Reason::ALL.into_iter().zip(self.board.ejections(service.id)),
            ejected: self.board.ejected(service.id),
            is_panic: service.view.as_ref().is_some_and(|view| view.ranking.is_panic()),
        })
    }

    /// Each zone's share of the traffic of each service: service, zone, 0 to 1. None of
    /// services whose instances say no zone.
    pub fn zones(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.services.iter().flat_map(|service| {
            let zones = service.view.iter().flat_map(View::zones);
            zones.map(|(zone, share)| (service.name.as_str(), zone, share))
        })
    }
}

/// The object of `GET /ipconfig/v1/services/<service>`.
#[derive(Serialize)]
struct ServiceView<'a> {
    service: &'a str,
    mode: &'static str,
    freshness: &'static str,
    reports: ReportsView,
    strategy: &'static str,
    /// The operator's hand; left out where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<&'a ControlValue>,
    /// Left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<RuleView<'a>>,
    basis: &'static str,
    /// Left out where there is none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    panic: bool,
    version: u64,
    revision: i64,
    age_ms: u64,
    /// Since the ranking that this worker picks by was made.
    ranking_age_ms: u64,
    /// See [`Proof`].
    confirmed_age_ms: u64,
    applied_revision: i64,
    count: usize,
    /// Left out where no instance says its zone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zones: Vec<ZoneView<'a>>,
    instances: Vec<InstanceView<'a>>,
}

/// As in [`ServiceFreshness`].
#[derive(Serialize)]
struct ReportsView {
    expected: u32,
    fresh: u32,
}

/// A rule, beside the instances that it selects and the requests that it took.
#[derive(Serialize)]
struct RuleView<'a> {
    #[serde(flatten)]
    rule: &'a Rule,
    selected: usize,
    requests: u64,
}

#[derive(Serialize)]
struct ZoneView<'a> {
    zone: &'a str,
    share: f64,
}

#[derive(Serialize)]
struct InstanceView<'a> {
    id: &'a str,
    addr: SocketAddr,
    zone: &'a str,
    rank: u32,
    score: f64,
    weight: f64,
    share: f64,
    in_flight: u32,
    /// Left out where there is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    max_in_flight: u32,
    state: &'static str,
    /// `None` if it never reported.
    status_age_ms: Option<u64>,
}

fn is_zero(limit: &u32) -> bool {
    *limit == 0
}
