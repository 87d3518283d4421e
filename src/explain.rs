//! Why each instance gets what it gets: every factor of its weight, for an operator who
//! asks. Made when it is asked for, and at no other time.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use serde::Serialize;

use crate::board::Board;
use crate::govern::{Factors, Governed};
use crate::ranking::Ability;
use crate::registry::Known;
use crate::window::Load;

/// The most instances that are explained at once: what fits into the shared dict beside
/// the rankings.
pub const MAX_EXPLAINED: u32 = 1000;

/// A service, explained.
#[derive(Debug, Serialize)]
pub struct Explanation {
    service: String,
    /// Whether the weights are the operator's.
    manual: bool,
    /// What the ranking's weights rest on.
    basis: &'static str,
    /// Whether too few are healthy to leave the others out.
    panic: bool,
    /// Requests that the service gets from everywhere, a second; 0 is unknown.
    rate_per_s: f64,
    /// This host's part of them, 0 to 1; 0 is unknown.
    own_part: f64,
    /// Of those that are offered; there may be more of them than are explained.
    count: usize,
    /// The best of those that are offered, in rank order.
    instances: Vec<Line>,
    /// Those that are registered and not offered.
    absent: Vec<AbsentLine>,
}

/// An instance that is offered.
#[derive(Debug, Serialize)]
struct Line {
    id: String,
    addr: SocketAddr,
    zone: String,
    labels: BTreeMap<String, String>,
    /// From 1.
    rank: usize,
    state: &'static str,
    /// Statuses in its window.
    samples: u64,
    /// How old the figures of its last good report are.
    report_age_ms: Option<u64>,
    report: Option<Report>,
    score: f64,
    /// What one request takes while none waits.
    service_ms: Option<f64>,
    /// Requests that it can answer, a second.
    capacity_per_s: Option<f64>,
    /// As registered.
    registered_weight: f64,
    /// Before the factors: the operator's weight, or the ranking's.
    base: f64,
    factors: Factors,
    /// `base` times the factors.
    weight: f64,
    /// Of the sum of all weights.
    share: f64,
    /// The rules that select it.
    rules: Vec<String>,
    /// 0 for no limit.
    max_in_flight: u32,
    seen: Seen,
}

/// What its window says.
#[derive(Debug, Serialize)]
struct Report {
    utilization: Option<f64>,
    cpu: Option<f64>,
    memory_free_bytes: Option<f64>,
    rate_per_s: Option<f64>,
    latency_ms: Option<f64>,
    errors: Option<f64>,
    in_flight: Option<f64>,
}

/// What this host has seen of it.
#[derive(Debug, Serialize)]
struct Seen {
    requests: u64,
    failed: u64,
    in_flight: u32,
    latency_ms: Option<f32>,
    consecutive_failures: u32,
    /// How much longer it is ejected; `None` if it is not.
    ejected_for_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct AbsentLine {
    id: String,
    addr: SocketAddr,
    zone: String,
    /// Why.
    state: &'static str,
}

impl Explanation {
    /// The best `n` of a service; `slot` is where the board counts an instance. What is
    /// known of the registrations is yet to be added.
    pub fn new(
        service: &str,
        governed: &Governed<'_>,
        n: u32,
        board: Board,
        slot: impl Fn(&str, &SocketAddr) -> u32,
        now_ms: u64,
    ) -> Self {
        let sum: f64 = governed.shares.iter().map(|share| share.weight()).sum();
        let explained = governed.shares.iter().zip(1..).take(n.min(MAX_EXPLAINED) as usize);
        let instances = explained.map(|(share, rank)| {
            let entry = share.entry;
            let ability = entry.ability;
            let selected = governed.rules.iter().enumerate();
            let selected = selected.filter(|(bit, _)| share.groups >> bit & 1 == 1);
            Line {
                id: entry.id.clone(),
                addr: entry.addr,
                zone: entry.zone.clone(),
                labels: BTreeMap::new(),
                rank,
                state: share.state.as_str(),
                samples: 0,
                report_age_ms: None,
                report: None,
                score: entry.score,
                service_ms: ability.map(|it| it.service_ms),
                capacity_per_s: ability.map(|it: Ability| it.capacity_per_s),
                registered_weight: entry.fallback_weight,
                base: share.base,
                factors: share.factors,
                weight: share.weight(),
                share: if sum > 0.0 { share.weight() / sum } else { 0.0 },
                rules: selected.map(|(_, rule)| rule.name.clone()).collect(),
                max_in_flight: entry.max_in_flight,
                seen: Seen::of(board, slot(&entry.id, &entry.addr), now_ms),
            }
        });
        Explanation {
            service: service.to_owned(),
            manual: governed.is_manual,
            basis: governed.ranking.basis.as_str(),
            panic: governed.is_panic,
            rate_per_s: governed.ranking.rate_per_s,
            own_part: governed.ranking.own_part,
            count: governed.shares.len(),
            instances: instances.collect(),
            absent: Vec::new(),
        }
    }

    /// Adds what is known of the registrations; `offered` says who is ranked.
    pub fn with(mut self, known: Vec<Known<'_>>, offered: impl Fn(&str) -> bool) -> Self {
        let mut lines: HashMap<&str, usize> = HashMap::new();
        let ids: Vec<String> = self.instances.iter().map(|line| line.id.clone()).collect();
        lines.extend(ids.iter().enumerate().map(|(index, id)| (id.as_str(), index)));
        for known in known {
            let instance = known.instance;
            if let Some(line) = lines.get(&*instance.id).map(|&index| &mut self.instances[index]) {
                line.labels = instance.labels.clone();
                line.registered_weight = instance.weight;
                line.samples = known.samples;
                line.report_age_ms = known.report_age_ms;
                line.report = known.load.map(Report::of);
            } else if !offered(&instance.id) && self.absent.len() < MAX_EXPLAINED as usize {
                self.absent.push(AbsentLine {
                    id: instance.id.clone(),
                    addr: instance.addr,
                    zone: instance.zone.clone(),
                    // Whom nothing keeps out is not among those that this gateway uses.
                    state: known.absence.map_or("not_in_subset", |absence| absence.as_str()),
                });
            }
        }
        self
    }
}

impl Seen {
    fn of(board: Board, slot: u32, now_ms: u64) -> Self {
        let seen = board.seen(slot, now_ms);
        let (requests, failed) = board.counters(slot);
        Seen {
            requests,
            failed,
            in_flight: seen.in_flight,
            latency_ms: seen.latency_ms,
            consecutive_failures: seen.consecutive_failures,
            ejected_for_ms: board.ejection(slot).map(|it| it.until_ms.saturating_sub(now_ms)),
        }
    }
}

impl Report {
    fn of(load: Load) -> Self {
        Report {
            utilization: load.utilization,
            cpu: load.cpu,
            memory_free_bytes: load.memory_free_bytes,
            rate_per_s: load.rate,
            latency_ms: load.latency_ms,
            errors: load.errors,
            in_flight: load.in_flight,
        }
    }
}
