//! Passive health: who fails where requests are sent to it gets none for a while.
//!
//! Three rules, of Envoy's outlier detection and gRPC's A50. A worker applies the first
//! one as it happens, the plugin's thread the others to what came in each interval:
//!
//! ```text
//! consecutive_failures   so many failures without an answer between them
//! success_rate           rate < mean - stdev * standard deviation, and by more than chance
//! failure_percentage     failures / requests >= threshold
//! ```
//!
//! An ejection lasts `min(base * times, max)`, and up to a tenth longer by chance, so
//! that gateways that ejected together do not try again together. `times` counts the
//! ejections, less one for each clean interval.
//!
//! Two things are not as in Envoy. The bound on how many are ejected is never exceeded
//! but by the first one; Envoy compares before it ejects, and ends above. And with few
//! that fail, Envoy's standard deviation is so small that one failure in a thousand
//! makes an outlier: here a rate is also to be lower than chance explains.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::board::{self, Board, Ejection, Reason, ServiceId};
use crate::config::{Config, FailurePercentageConfig, HealthConfig, SuccessRateConfig};
use crate::value::InstanceValue;

/// The most that an ejection lasts longer by chance, as a part of its time.
const JITTER: f64 = 0.1;

/// A rate is lower than chance explains by so many standard errors of a binomial: once
/// in a thousand comparisons of equal instances.
const CERTAIN: f64 = 3.0;

/// How many of so many instances may be ejected at once.
pub fn most_ejected(config: &HealthConfig, instances: usize) -> u32 {
    let bound = instances * config.max_ejected as usize / 100;
    match config.max_ejected {
        0 => 0,
        _ => u32::try_from(bound).unwrap_or(u32::MAX).max(1),
    }
}

/// How many of so many instances may be ejected until there is a panic; `failing` are
/// out for another reason. `None` if there is one already.
pub fn most_without_panic(offered: usize, failing: usize, panic_percent: u32) -> Option<u32> {
    let needed = (offered * panic_percent as usize).div_ceil(100);
    let spare = offered.checked_sub(failing)?.checked_sub(needed)?;
    Some(u32::try_from(spare).unwrap_or(u32::MAX))
}

/// How long an instance is ejected the `times`th time, in milliseconds; `chance` is 0 to
/// 1.
fn ejection_ms(config: &HealthConfig, times: u32, chance: f64) -> u64 {
    let longest = config.max_ejection.max(config.base_ejection);
    let time = config.base_ejection.checked_mul(times.max(1)).unwrap_or(longest).min(longest);
    time.mul_f64(1.0 + JITTER * chance).as_millis() as u64
}

/// Ejects one of so many instances, if it may be; `who` is its slot and its identity.
pub fn eject(
    board: Board,
    config: &HealthConfig,
    who: (u32, u64),
    instances: usize,
    reason: Reason,
    now_ms: u64,
    rng: &mut SmallRng,
) -> bool {
    let most = most_ejected(config, instances);
    board.eject(who, most, reason, now_ms, |times| ejection_ms(config, times, rng.random()))
}

/// Ejects one of so many instances that has just failed, if it did so too often in a row.
pub fn suspect(
    board: Board,
    config: &HealthConfig,
    who: (u32, u64),
    instances: usize,
    now_ms: u64,
    rng: &mut SmallRng,
) -> bool {
    let limit = config.consecutive_failures;
    let has_reached_it = limit > 0 && board.consecutive_failures(who.0, who.1) >= limit;
    has_reached_it && eject(board, config, who, instances, Reason::ConsecutiveFailures, now_ms, rng)
}

/// What an instance was sent in an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sent {
    /// Its place among the service's.
    index: usize,
    requests: u64,
    /// No more than that.
    failures: u64,
}

impl Sent {
    fn failed(&self) -> f64 {
        self.failures as f64 / self.requests as f64
    }
}

/// Who succeeds less often than the others.
///
/// Source: Envoy's `outlier_detection.proto`, `success_rate_stdev_factor`.
fn rare_successes(rule: &SuccessRateConfig, sent: &[Sent]) -> Vec<usize> {
    let counted: Vec<_> = sent.iter().filter(|it| it.requests >= rule.min_requests).collect();
    if rule.stdev == 0.0 || counted.len() < rule.min_instances as usize {
        return Vec::new();
    }
    let count = counted.len() as f64;
    let mean = counted.iter().map(|it| it.failed()).sum::<f64>() / count;
    let variance = counted.iter().map(|it| (it.failed() - mean).powi(2)).sum::<f64>() / count;
    let limit = mean + rule.stdev * variance.sqrt();
    let is_outlier = |it: &Sent| {
        let error = (mean * (1.0 - mean) / it.requests as f64).sqrt();
        it.failed() > limit && it.failed() > mean + CERTAIN * error
    };
    counted.into_iter().filter(|it| is_outlier(it)).map(|it| it.index).collect()
}

/// Whose requests mostly fail.
///
/// Source: Envoy's `outlier_detection.proto`, `failure_percentage_threshold`.
fn frequent_failures(rule: &FailurePercentageConfig, sent: &[Sent]) -> Vec<usize> {
    let counted: Vec<_> = sent.iter().filter(|it| it.requests >= rule.min_requests).collect();
    if rule.threshold == 0.0 || counted.len() < rule.min_instances as usize {
        return Vec::new();
    }
    let is_over = |it: &&Sent| it.failed() * 100.0 >= rule.threshold;
    counted.into_iter().filter(is_over).map(|it| it.index).collect()
}

/// The thread's part: it compares, takes back, and tells.
pub struct Health {
    board: Board,
    configured: BTreeMap<String, HealthConfig>,
    /// For services that the configuration does not name.
    default: HealthConfig,
    services: HashMap<String, Watched>,
    rng: SmallRng,
}

/// A service that is looked at.
#[derive(Default)]
struct Watched {
    /// When the interval ends.
    due_ms: u64,
    /// By slot, the counters at its beginning: requests and failures.
    before: HashMap<u32, (u64, u64)>,
    /// What its count of ejected instances was, and should have been, last time.
    miscounted: Option<(u32, u32)>,
    /// Whether a panic was told of.
    in_panic: bool,
}

impl Health {
    /// Knows no counters yet.
    pub fn new(config: &Config, board: Board, rng: SmallRng) -> Self {
        let services = config.services.iter();
        Self {
            board,
            configured: services.map(|(name, it)| (name.clone(), it.health.clone())).collect(),
            default: HealthConfig::default(),
            services: HashMap::new(),
            rng,
        }
    }

    /// How a service is configured.
    pub fn config(&self, service: &str) -> &HealthConfig {
        self.configured.get(service).unwrap_or(&self.default)
    }

    /// Looks at a service's instances, several times a second; whether other ones than
    /// before are ejected.
    pub fn look(
        &mut self,
        service: &str,
        id: ServiceId,
        instances: &[InstanceValue],
        now_ms: u64,
    ) -> bool {
        let config = self.configured.get(service).unwrap_or(&self.default);
        let watched = match self.services.get_mut(service) {
            Some(watched) => watched,
            None => self.services.entry(service.to_owned()).or_default(),
        };
        if now_ms >= watched.due_ms {
            watched.due_ms = now_ms + config.interval.as_millis() as u64;
            watched.compare(self.board, config, service, instances, now_ms, &mut self.rng);
        }
        if self.board.ejected(id) == 0 {
            return false;
        }
        let mut has_changed = false;
        for instance in instances {
            let Some(ejection) = self.board.ejection(instance.slot) else { continue };
            let is_new = self.board.tell_ejection(instance.slot);
            if is_new {
                // Though it may be over by now, where this thread did not run.
                tell(self.board, service, instance, ejection, now_ms);
            }
            let is_over = ejection.until_ms <= now_ms;
            if is_over {
                self.board.take_back(instance.slot, now_ms);
                tracing::info!("{service}: instance {} gets requests again", instance.id);
            }
            has_changed |= is_new || is_over;
        }
        has_changed
    }

    /// Ends ejections of instances that are gone, and sets counts right. `published` are
    /// all of each service; to be called once that is known.
    pub fn tidy<'a>(
        &mut self,
        published: impl Iterator<Item = (&'a str, ServiceId, &'a [InstanceValue])> + Clone,
        now_ms: u64,
    ) {
        if published.clone().all(|(_, id, _)| self.board.ejected(id) == 0) {
            return;
        }
        let all = published.clone().flat_map(|(_, _, instances)| instances);
        let slots: HashSet<u32> = all.map(|instance| instance.slot).collect();
        let mut counts: HashMap<ServiceId, u32> = HashMap::new();
        for (slot, _) in
            self.board.used_slots().filter(|(slot, _)| self.board.ejection(*slot).is_some())
        {
            if !slots.contains(&slot) {
                self.board.take_back(slot, now_ms);
            } else if let Some(id) = self.board.service_of(slot) {
                *counts.entry(id).or_default() += 1;
            }
        }
        for (service, id, _) in published {
            let found = (self.board.ejected(id), counts.get(&id).copied().unwrap_or(0));
            let Some(watched) = self.services.get_mut(service) else { continue };
            let is_wrong = found.0 != found.1;
            // Once, somebody may be in the midst of it.
            if is_wrong && watched.miscounted == Some(found) {
                self.board.mend_ejected(id, found.0, found.1);
            }
            watched.miscounted = is_wrong.then_some(found);
        }
    }

    /// Says once that a panic begins or ends.
    pub fn tell_panic(&mut self, service: &str, is_panic: bool) {
        let percent = self.config(service).panic;
        let watched = self.services.entry(service.to_owned()).or_default();
        if watched.in_panic == is_panic {
            return;
        }
        watched.in_panic = is_panic;
        match is_panic {
            true => tracing::warn!(
                "{service}: panic: fewer than {percent} % of the instances are healthy; all get \
                 requests"
            ),
            false => tracing::info!("{service}: enough instances are healthy; the panic is over"),
        }
    }
}

impl Watched {
    fn compare(
        &mut self,
        board: Board,
        config: &HealthConfig,
        service: &str,
        instances: &[InstanceValue],
        now_ms: u64,
        rng: &mut SmallRng,
    ) {
        let mut sent = Vec::new();
        let mut counters = HashMap::with_capacity(instances.len());
        for (index, instance) in instances.iter().enumerate() {
            let now = board.counters(instance.slot);
            counters.insert(instance.slot, now);
            board.forgive(instance.slot, config.interval.as_millis() as u64, now_ms);
            let Some(before) = self.before.get(&instance.slot) else { continue };
            if board.ejection(instance.slot).is_none() {
                let requests = now.0.saturating_sub(before.0);
                // Of requests that began before, failures may come now.
                let failures = now.1.saturating_sub(before.1).min(requests);
                sent.push(Sent { index, requests, failures });
            }
        }
        self.before = counters;
        let mut eject_all = |outliers: Vec<usize>, reason| {
            for index in outliers {
                let InstanceValue { id, addr, slot, .. } = &instances[index];
                let who = (*slot, board::identity(service, id, addr));
                eject(board, config, who, instances.len(), reason, now_ms, rng);
            }
        };
        eject_all(rare_successes(&config.success_rate, &sent), Reason::SuccessRate);
        eject_all(frequent_failures(&config.failure_percentage, &sent), Reason::FailurePercentage);
    }
}

fn tell(board: Board, service: &str, instance: &InstanceValue, ejection: Ejection, now_ms: u64) {
    let why = match ejection.reason {
        Reason::ConsecutiveFailures => "it failed too often in a row",
        Reason::SuccessRate => "it fails more often than the others",
        Reason::FailurePercentage => "most of its requests fail",
    };
    let left = Duration::from_millis(ejection.until_ms.saturating_sub(now_ms));
    tracing::warn!(
        "{service}: instance {} is ejected for {:.1} s (time {}): {why}",
        instance.id,
        left.as_secs_f64(),
        board.times_ejected(instance.slot),
    );
}

#[cfg(all(test, not(loom)))]
mod tests;
