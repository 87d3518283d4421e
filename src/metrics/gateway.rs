//! The gateway's page: read off the board and one worker's views when somebody
//! asks for it.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::VERSION;
use crate::board::{Board, Refusal};
use crate::check::RESULTS;
use crate::check::sharing::State;
use crate::clock::unix_ms;
use crate::freshness::{STEPS, Step};
use crate::plugin::Status;
use crate::ranking::Basis;
use crate::registry::guard::Outcome;
use crate::snapshot::{LOADED, RESULTS_OF_A_WRITE};
use crate::watcher::WatchState;
use crate::worker::{MODES, Worker};

/// One figure: its labels, and its value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

/// The page, of type [`CONTENT_TYPE`](super::CONTENT_TYPE). Counters are those of
/// the whole host since nginx was started; they survive reloads.
///
/// # Errors
/// None that a string can cause; the encoder's signature has one.
pub fn gateway_page(
    worker: &Worker,
    status: Option<&Status>,
    fallback: Fallback,
    now_ms: u64,
) -> Result<String, fmt::Error> {
    let mut page = Page(Vec::new());
    page.library();
    page.instances(worker);
    page.failures(worker);
    page.rankings(worker, now_ms);
    page.freshness(worker, fallback, now_ms);
    page.health(worker);
    page.state(worker, status, fallback, now_ms);
    page.snapshot(status);
    page.guard(status);
    page.checks(status);
    page.sharing(status);
    page.errors(worker.board(), status);

    let mut registry = Registry::with_prefix("ipconfig");
    registry.register_collector(Box::new(page));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// What Lua knows of the fallback.
#[derive(Debug, Clone, Copy)]
pub struct Fallback {
    /// Whether this worker serves by it.
    pub active: bool,
    /// Requests that all workers served by it.
    pub requests: f64,
}

/// A metric with its samples, as text is made from it.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Vec<(&'static str, String)>, f64)>,
}

#[derive(Debug)]
struct Page(Vec<Metric>);

impl Page {
    fn add<'a>(
        &mut self,
        kind: MetricType,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        let owned = |(labels, value): Sample<'a>| {
            let labels = labels.into_iter().map(|(name, value)| (name, value.to_owned()));
            (labels.collect(), value)
        };
        let samples = samples.into_iter().map(owned).collect();
        self.0.push(Metric { name, unit: None, help, kind, samples });
    }

    /// A gauge in seconds, which its name then ends in.
    fn add_seconds<'a>(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        self.add(MetricType::Gauge, name, help, samples);
        if let Some(metric) = self.0.last_mut() {
            metric.unit = Some(Unit::Seconds);
        }
    }

    /// Without the library Lua serves a page of its own, which says 0.
    fn library(&mut self) {
        self.add(
            MetricType::Gauge,
            "library_loaded",
            "1 while the library is in use",
            [(vec![], 1.0)],
        );
        let version = vec![("version", VERSION)];
        self.add(
            MetricType::Gauge,
            "build_info",
            "1, with the version of the library",
            [(version, 1.0)],
        );
    }

    fn instances(&mut self, worker: &Worker) {
        let all: Vec<_> = worker.counters().collect();
        let figure = |read: fn(&crate::worker::Counters<'_>) -> f64| {
            all.iter()
                .map(|c| (vec![("service", c.service), ("instance", c.instance)], read(c)))
                .collect::<Vec<_>>()
        };
        let (requests, failed, open) = (
            figure(|c| c.requests as f64),
            figure(|c| c.failed as f64),
            figure(|c| f64::from(c.in_flight)),
        );
        self.add(MetricType::Counter, "requests", "Requests sent to the instance", requests);
        self.add(
            MetricType::Counter,
            "failed_tries",
            "Requests to the instance that failed and moved on, or ended with a status that is a failure",
            failed,
        );
        self.add(MetricType::Gauge, "in_flight", "Requests open on the instance", open);
        let by_rule = worker.rule_requests().map(|(service, rule, requests)| {
            (vec![("service", service), ("rule", rule)], requests as f64)
        });
        self.add(
            MetricType::Counter,
            "rule_requests",
            "Requests that a routing rule sent to its instances",
            by_rule,
        );
        let latencies = all.iter().filter_map(|c| {
            let labels = vec![("service", c.service), ("instance", c.instance)];
            Some((labels, f64::from(c.latency_ms?) / 1e3))
        });
        self.add_seconds(
            "latency",
            "Mean time that the instance took for an answer, over the last second that had any",
            latencies,
        );
        self.add(
            MetricType::Gauge,
            "uncounted_instances",
            "Instances that are served without counters, as there is no more room for them",
            [(vec![], worker.board().uncounted() as f64)],
        );
        self.add(
            MetricType::Gauge,
            "counted_instances",
            "Instances that have counters, those that left lately included",
            [(vec![], worker.board().used_slots().count() as f64)],
        );
    }

    fn failures(&mut self, worker: &Worker) {
        let all: Vec<_> = worker.failures().collect();
        let label = |service| vec![("service", service)];
        let retries = all.iter().map(|(service, retries, _)| (label(*service), *retries as f64));
        self.add(
            MetricType::Counter,
            "retries",
            "Tries that were not their request's first",
            retries,
        );
        let refused = all.iter().flat_map(|(service, _, refusals)| {
            refusals.iter().map(|(reason, count)| (*service, *reason, *count as f64))
        });
        let denied = refused.clone().filter(|(_, reason, _)| *reason == Refusal::RetryBudget);
        self.add(
            MetricType::Counter,
            "retries_denied",
            "Requests that failed and were not tried again, as the retry budget was used up",
            denied.map(|(service, _, count)| (label(service), count)),
        );
        let refused = refused.map(|(service, reason, count)| {
            (vec![("service", service), ("reason", reason.as_str())], count)
        });
        self.add(
            MetricType::Counter,
            "refused",
            "Requests that the gateway answered in place of an instance",
            refused,
        );
    }

    fn rankings(&mut self, worker: &Worker, now_ms: u64) {
        let all: Vec<_> = worker.versions().collect();
        let label = |service| vec![("service", service)];
        let versions = all.iter().map(|(service, version, _)| (label(*service), *version as f64));
        self.add(
            MetricType::Gauge,
            "ranking_version",
            "Version of the ranking that this worker picks by",
            versions,
        );
        let ages = all.iter().map(|(service, _, published_ms)| {
            (label(*service), now_ms.saturating_sub(*published_ms) as f64 / 1e3)
        });
        self.add_seconds("ranking_age", "Time since the ranking last changed", ages);
        let bases = worker.bases().flat_map(|(service, basis)| {
            Basis::ALL.map(|known| {
                let labels = vec![("service", service), ("basis", known.as_str())];
                (labels, one_if(known == basis))
            })
        });
        self.add(
            MetricType::Gauge,
            "ranking_basis",
            "1 for what the ranking's weights rest on",
            bases,
        );
        let zones = worker
            .zones()
            .map(|(service, zone, share)| (vec![("service", service), ("zone", zone)], share));
        self.add(
            MetricType::Gauge,
            "zone_share",
            "The zone's part of this gateway's traffic, by the ranking's weights",
            zones,
        );
    }

    fn freshness(&mut self, worker: &Worker, fallback: Fallback, now_ms: u64) {
        let all: Vec<_> = worker.freshness(now_ms).collect();
        let label = |service| vec![("service", service)];
        let steps = all.iter().flat_map(|it| {
            let step = if fallback.active { "fallback" } else { it.step };
            STEPS.map(|known| {
                (vec![("service", it.service), ("step", known)], one_if(known == step))
            })
        });
        self.add(
            MetricType::Gauge,
            "freshness",
            "1 for the step of the ladder that the service is on",
            steps,
        );
        let transitions = all.iter().flat_map(|it| {
            Step::ALL.into_iter().zip(it.steps).map(|(step, count)| {
                (vec![("service", it.service), ("step", step.as_str())], count as f64)
            })
        });
        self.add(
            MetricType::Counter,
            "freshness_transitions",
            "Times that the service went to this step",
            transitions,
        );
        let expected = all.iter().map(|it| (label(it.service), f64::from(it.expected)));
        self.add(
            MetricType::Gauge,
            "reports_expected",
            "Instances that declare a status, or reported of late",
            expected,
        );
        let fresh = all.iter().map(|it| (label(it.service), f64::from(it.fresh)));
        self.add(MetricType::Gauge, "reports_fresh", "Those that have a fresh report", fresh);
        let oldest =
            all.iter().filter_map(|it| Some((label(it.service), it.oldest_ms? as f64 / 1e3)));
        self.add_seconds(
            "status_age_max",
            "Age of the oldest of the instances' last reports",
            oldest,
        );
        let proofs = || all.iter().filter_map(|it| Some((label(it.service), it.proof?)));
        self.add_seconds(
            "ranking_confirmed_age",
            "Time since the ranking that this worker picks by was last said to be the newest",
            proofs().map(|(labels, proof)| (labels, proof.age_ms as f64 / 1e3)),
        );
        self.add(
            MetricType::Gauge,
            "applied_revision",
            "The etcd revision up to which all is in the ranking that this worker picks by",
            proofs().map(|(labels, proof)| (labels, proof.revision as f64)),
        );
    }

    fn health(&mut self, worker: &Worker) {
        let ejections = worker.health().flat_map(|it| {
            it.ejections.map(move |(reason, count)| {
                (vec![("service", it.service), ("reason", reason.as_str())], count as f64)
            })
        });
        self.add(
            MetricType::Counter,
            "ejections",
            "Instances that were left out for a while as their requests failed",
            ejections,
        );
        let ejected =
            worker.health().map(|it| (vec![("service", it.service)], f64::from(it.ejected)));
        self.add(MetricType::Gauge, "ejected", "Instances that are left out so now", ejected);
        let panics = worker.health().map(|it| (vec![("service", it.service)], one_if(it.is_panic)));
        self.add(
            MetricType::Gauge,
            "panic",
            "1 while too few instances are healthy to leave the others out",
            panics,
        );
    }

    fn state(&mut self, worker: &Worker, status: Option<&Status>, fallback: Fallback, now_ms: u64) {
        let mode = if fallback.active { "fallback" } else { worker.mode(now_ms) };
        let modes = MODES.iter().map(|known| (vec![("mode", *known)], one_if(*known == mode)));
        self.add(MetricType::Gauge, "mode", "1 for the mode that this worker serves in", modes);
        self.add(
            MetricType::Counter,
            "fallback_requests",
            "Requests served by fallback weights, without the library",
            [(vec![], fallback.requests)],
        );

        let watch = status.map_or("", |status| status.watch.as_str());
        let states = WatchState::ALL.iter().map(|state| state.as_str());
        let states = states.map(|known| (vec![("state", known)], one_if(known == watch)));
        self.add(MetricType::Gauge, "watch_state", "1 for the state of the etcd watch", states);
        let source = worker.board().source();
        self.add(
            MetricType::Gauge,
            "revision",
            "The etcd revision that was last applied",
            [(vec![], source.revision as f64)],
        );
        let confirmed = source.confirmed_ms;
        let age = (confirmed != 0).then(|| now_ms.saturating_sub(confirmed) as f64 / 1e3);
        self.add_seconds(
            "source_age",
            "Time since etcd was last known to be watched",
            age.map(|age| (vec![], age)),
        );
    }

    /// Of the file that keeps what etcd holds, if there is to be one.
    fn snapshot(&mut self, status: Option<&Status>) {
        let report = || status.and_then(|status| status.snapshot.as_ref());
        let as_of_ms = report().map_or(0, |report| report.as_of_ms);
        let age = (as_of_ms != 0).then(|| unix_ms().saturating_sub(as_of_ms) as f64 / 1e3);
        self.add_seconds(
            "snapshot_age",
            "Time since what the file on disk holds was etcd's state",
            age.map(|age| (vec![], age)),
        );
        let loaded = report().into_iter().flat_map(|report| {
            LOADED.map(|known| (vec![("generation", known)], one_if(known == report.loaded)))
        });
        self.add(
            MetricType::Gauge,
            "snapshot_loaded",
            "1 for the generation of the file that the plugin's thread found at its start",
            loaded,
        );
        let misses = report().into_iter().flat_map(|report| &report.misses).map(|miss| {
            (vec![("file", miss.path.as_str()), ("reason", miss.reason.as_str())], 1.0)
        });
        self.add(
            MetricType::Gauge,
            "snapshot_missed",
            "1 for a file that it could not use",
            misses,
        );
        let writes = report().into_iter().flat_map(|report| {
            let count = |result: &str| report.writes.get(result).copied().unwrap_or(0) as f64;
            RESULTS_OF_A_WRITE.map(|result| (vec![("result", result)], count(result)))
        });
        self.add(MetricType::Counter, "snapshot_writes", "Writes of the file that ended", writes);
    }

    /// Of the guards against mass loss.
    fn guard(&mut self, status: Option<&Status>) {
        let Some(guard) = status.map(|status| &status.guard) else { return };
        let doubtful = guard.doubtful.iter();
        let doubtful = doubtful.map(|(name, it)| (vec![("service", name.as_str())], *it as f64));
        self.add(
            MetricType::Gauge,
            "doubtful_instances",
            "Instances that etcd lost with most of their service, and that are kept for now",
            doubtful,
        );
        self.add(
            MetricType::Counter,
            "guard_trips",
            "Times that a service lost most of its instances at once, and kept them",
            [(vec![], guard.trips as f64)],
        );
        let outcomes = Outcome::ALL.map(Outcome::as_str).map(|outcome| {
            let count = guard.outcomes.get(outcome).copied().unwrap_or(0);
            (vec![("outcome", outcome)], count as f64)
        });
        self.add(
            MetricType::Counter,
            "doubts",
            "Instances that are no longer doubtful, by what ended the doubt",
            outcomes,
        );
    }

    /// Of the services whose instances this gateway checks.
    fn checks(&mut self, status: Option<&Status>) {
        let all = || status.into_iter().flat_map(|status| &status.checks);
        let instances = all().flat_map(|(service, figures)| {
            let counts = [("up", figures.up), ("down", figures.down), ("unknown", figures.unknown)];
            counts.map(|(state, count)| {
                (vec![("service", service.as_str()), ("state", state)], count as f64)
            })
        });
        self.add(
            MetricType::Gauge,
            "checked_instances",
            "Instances that are checked, by how they fare",
            instances,
        );
        let here = all().map(|(service, it)| (vec![("service", service.as_str())], it.here as f64));
        self.add(
            MetricType::Gauge,
            "checked_here",
            "Those of the checked instances that this gateway checks itself",
            here,
        );
        let results = all().flat_map(|(service, figures)| {
            RESULTS.map(|result| {
                let count = figures.results.get(result).copied().unwrap_or(0);
                (vec![("service", service.as_str()), ("result", result)], count as f64)
            })
        });
        self.add(MetricType::Counter, "checks", "Checks of instances that ended", results);
        let seconds =
            all().map(|(service, figures)| (vec![("service", service.as_str())], figures.seconds));
        self.add(
            MetricType::Counter,
            "check_seconds",
            "Time that checks of instances took, together",
            seconds,
        );
    }

    /// Of the services whose checks gateways share.
    fn sharing(&mut self, status: Option<&Status>) {
        let Some(sharing) = status.and_then(|status| status.sharing.as_ref()) else { return };
        let states = State::ALL.map(State::as_str);
        self.add(
            MetricType::Gauge,
            "check_sharing",
            "1 for whether checks are shared with other gateways",
            states.map(|known| (vec![("state", known)], one_if(known == sharing.state))),
        );
        self.add(
            MetricType::Counter,
            "check_sharing_failures",
            "Failed tries to write for other gateways who fails checks",
            [(vec![], sharing.failures as f64)],
        );
    }

    fn errors(&mut self, board: Board, status: Option<&Status>) {
        let reasons = status.into_iter().flat_map(|status| &status.bad_records);
        let reasons = reasons.map(|(why, count)| (vec![("reason", why.as_str())], *count as f64));
        self.add(
            MetricType::Counter,
            "bad_records",
            "Records from etcd that were dropped",
            reasons,
        );
        let (reports, malformed_reports) = board.report_counts();
        let audits = status.map(|status| status.audits).unwrap_or_default();
        let counters = [
            ("audits", "Lists of all keys that were compared with what was known", audits.complete),
            (
                "audit_differences",
                "Keys that an audit found to differ, and put right",
                audits.differences,
            ),
            ("in_band_reports", "Load reports in responses that were taken", reports),
            (
                "in_band_reports_malformed",
                "Load reports in responses that were refused",
                malformed_reports,
            ),
            ("publish_errors", "Values that the shared dict did not take", board.publish_errors()),
            (
                "view_errors",
                "Values in the shared dict that a worker could not use",
                board.view_errors(),
            ),
            (
                "thread_restarts",
                "Times that the plugin's thread began anew, after a panic for instance",
                board.restarts(),
            ),
        ];
        for (name, help, count) in counters {
            self.add(MetricType::Counter, name, help, [(vec![], count as f64)]);
        }
    }
}

fn one_if(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

impl Collector for Page {
    fn encode(&self, mut page: DescriptorEncoder) -> fmt::Result {
        for metric in &self.0 {
            let mut encoder = page.encode_descriptor(
                metric.name,
                metric.help,
                metric.unit.as_ref(),
                metric.kind,
            )?;
            for (labels, value) in &metric.samples {
                if labels.is_empty() {
                    encode_value(metric.kind, *value, encoder)?;
                    break; // without labels there is one sample
                }
                encode_value(metric.kind, *value, encoder.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode_value(kind: MetricType, value: f64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(value).encode(encoder),
    }
}
