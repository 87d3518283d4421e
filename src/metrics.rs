//! What Prometheus sees: names, units and text, in one place for both sides.
//!
//! Names begin with `ipconfig_` (the gateway) or `ipconfig_exporter_` (the
//! exporter) and end in their unit. Figures are kept where they arise, cost an
//! atomic addition there, and become text when somebody asks for the page.

mod gateway;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::model::Status;

pub use gateway::{Fallback, gateway_page};

/// The content type of a page of metrics: OpenMetrics, whatever is asked for.
/// Prometheus prefers it since 2.5, and to those who read only the older text
/// format it differs in metadata alone, which they take for comments.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What both pages show as `build_info`.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The figures of an exporter.
#[derive(Debug)]
pub struct ExporterMetrics {
    /// Times that an instance was asked for its status, retries included.
    pub collect_tries: Family<ServiceLabel, Counter>,
    /// Tries that brought no status.
    pub collect_failures: Family<ServiceLabel, Counter>,
    /// Rounds in which an instance could not be read, by the last try's failure.
    pub collect_errors: Family<ReasonLabel, Counter>,
    /// Puts that etcd confirmed.
    pub etcd_puts: Counter,
    /// Values in them, in bytes.
    pub etcd_put_bytes: Counter,
    /// How long they took.
    pub etcd_put_seconds: Histogram,
    /// Puts that failed.
    pub etcd_put_failures: Counter,
    /// Shards that were due and not put, since etcd was too slow or away.
    pub ticks_skipped: Counter,
    /// Statuses that were not put, since their instances are as they were.
    pub unchanged: Counter,
    /// Leases that etcd granted: more than one says that one was lost.
    pub lease_grants: Counter,
    /// Announcements of another process under this exporter's id.
    pub rivals: Counter,
    fleet: FleetGauges,
    instances: Arc<Instances>,
    registry: Registry,
}

/// What there is to ask, and how well that is known.
#[derive(Debug)]
pub struct FleetFigures<'a> {
    /// Live exporters, this one included.
    pub exporters: usize,
    /// Instances that declare a status.
    pub targets: usize,
    /// Those of them that this exporter asks.
    pub asked: usize,
    /// Whether registrations are followed now.
    pub is_watching: bool,
    /// Registrations that were dropped, by reason.
    pub bad_records: &'a BTreeMap<&'static str, u64>,
}

/// [`FleetFigures`] as they were last shown.
#[derive(Debug, Default)]
struct FleetGauges {
    exporters: Gauge,
    targets: Gauge,
    asked: Gauge,
    watching: Gauge,
    bad_records: Arc<BadRecords>,
}

/// Registrations that were dropped, by reason.
#[derive(Debug, Default)]
struct BadRecords(Mutex<BTreeMap<&'static str, u64>>);

/// The service that a figure is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceLabel {
    /// Its name.
    pub service: String,
}

/// What is running.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

/// Why something was counted as failed: one of a few words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// For instance `timeout`.
    pub reason: &'static str,
}

/// The instance that a figure is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct InstanceLabels {
    /// The service's name.
    pub service: String,
    /// The instance's id.
    pub instance: String,
}

impl ExporterMetrics {
    /// All counters at zero, and no instance known.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("ipconfig_exporter");
        let [collect_tries, collect_failures] = std::array::from_fn(|_| Family::default());
        let collect_errors = Family::default();
        let [etcd_puts, etcd_put_bytes, etcd_put_failures, ticks_skipped, unchanged] =
            std::array::from_fn(|_| Counter::default());
        let [lease_grants, rivals] = std::array::from_fn(|_| Counter::default());
        let etcd_put_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 13));
        let fleet = FleetGauges::default();
        let instances = Arc::new(Instances::default());
        let build = Family::<VersionLabel, Gauge>::default();
        build.get_or_create(&VersionLabel { version: VERSION }).set(1);

        registry.register("build_info", "1, with the version of the exporter", build);
        for (name, help, family) in [
            ("collect_tries", "Times that an instance was asked for its status", &collect_tries),
            ("collect_failures", "Tries that brought no status", &collect_failures),
        ] {
            registry.register(name, help, Family::clone(family));
        }
        registry.register(
            "collect_errors",
            "Rounds in which an instance could not be read, by reason",
            Family::clone(&collect_errors),
        );
        for (name, help, counter) in [
            ("etcd_puts", "Puts that etcd confirmed", &etcd_puts),
            ("etcd_put_failures", "Puts that failed", &etcd_put_failures),
            ("ticks_skipped", "Shards not put as etcd was too slow or away", &ticks_skipped),
            ("unchanged", "Statuses not put as their instances are as they were", &unchanged),
            ("lease_grants", "Leases that etcd granted", &lease_grants),
            ("rivals", "Announcements of another process under this exporter's id", &rivals),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register_with_unit(
            "etcd_put",
            "Bytes of the values that etcd confirmed",
            Unit::Bytes,
            etcd_put_bytes.clone(),
        );
        registry.register_with_unit(
            "etcd_put",
            "Time of the puts that etcd confirmed",
            Unit::Seconds,
            etcd_put_seconds.clone(),
        );
        for (name, help, gauge) in [
            ("exporters", "Live exporters, this one included", &fleet.exporters),
            ("targets", "Instances that declare a status", &fleet.targets),
            ("targets_asked", "Those of them that this exporter asks", &fleet.asked),
            ("watching", "Whether registrations are followed: 1 or 0", &fleet.watching),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register_collector(Box::new(Arc::clone(&fleet.bad_records)));
        registry.register_collector(Box::new(Arc::clone(&instances)));

        Self {
            collect_tries,
            collect_failures,
            collect_errors,
            etcd_puts,
            etcd_put_bytes,
            etcd_put_seconds,
            etcd_put_failures,
            ticks_skipped,
            unchanged,
            lease_grants,
            rivals,
            fleet,
            instances,
            registry,
        }
    }

    /// Counts the tries of one round at one instance of a service; `reason` is why
    /// it could not be read.
    pub fn count_asks(
        &self,
        service: &str,
        tries: u32,
        failures: u32,
        reason: Option<&'static str>,
    ) {
        let label = ServiceLabel { service: service.to_owned() };
        self.collect_tries.get_or_create(&label).inc_by(tries.into());
        self.collect_failures.get_or_create(&label).inc_by(failures.into());
        if let Some(reason) = reason {
            self.collect_errors.get_or_create(&ReasonLabel { reason }).inc();
        }
    }

    /// Shows what there is to ask.
    pub fn show_fleet(&self, fleet: FleetFigures<'_>) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.fleet.exporters.set(count(fleet.exporters));
        self.fleet.targets.set(count(fleet.targets));
        self.fleet.asked.set(count(fleet.asked));
        self.fleet.watching.set(fleet.is_watching.into());
        self.fleet.bad_records.0.lock().clone_from(fleet.bad_records);
    }

    /// The instance has answered: it is up, and this is its last status, if it
    /// told one.
    pub fn set_up(&self, instance: InstanceLabels, status: Option<Status>) {
        self.instances.0.lock().insert(instance, LastStatus { up: true, status });
    }

    /// The instance has not answered: it is down, and its last status stays.
    pub fn set_down(&self, instance: InstanceLabels) {
        self.instances.0.lock().entry(instance).or_default().up = false;
    }

    /// The instance is not asked any more.
    pub fn forget(&self, instance: &InstanceLabels) {
        self.instances.0.lock().remove(instance);
    }

    /// No instance of the service is asked any more.
    pub fn forget_service(&self, service: &ServiceLabel) {
        self.collect_tries.remove(service);
        self.collect_failures.remove(service);
    }

    /// The page, of type [`CONTENT_TYPE`].
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes any text");
        text
    }
}

impl Default for ExporterMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for BadRecords {
    fn encode(&self, mut page: DescriptorEncoder) -> fmt::Result {
        let help = "Registrations in etcd that were dropped, by reason.";
        let counter = MetricType::Counter;
        let mut family = page.encode_descriptor("bad_records", help, None, counter)?;
        for (reason, count) in self.0.lock().iter() {
            let labels = ReasonLabel { reason };
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The last status of each instance. Turned into gauges when the page is asked
/// for, so that a tick costs one insertion an instance.
#[derive(Debug, Default)]
struct Instances(Mutex<BTreeMap<InstanceLabels, LastStatus>>);

#[derive(Debug, Default)]
struct LastStatus {
    up: bool,
    status: Option<Status>,
}

/// Name, unit, help, and how the gauge is read; one that an instance does not
/// tell is left out of the page.
type InstanceGauge = (&'static str, Option<Unit>, &'static str, fn(&Status) -> Option<f64>);

const NS_PER_SECOND: f64 = 1e9;

const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);

/// What an instance counts is a gauge here: the figure is the instance's, and
/// this page repeats what it said last.
const INSTANCE_GAUGES: [InstanceGauge; 12] = [
    ("requests", None, "Requests answered since its start", |s| Some(s.requests as f64)),
    ("errors", None, "Requests answered with a failure since its start", |s| Some(s.errors as f64)),
    ("busy", SECONDS, "Time with a request in flight since its start", |s| {
        Some(s.busy_ns as f64 / NS_PER_SECOND)
    }),
    ("latency_sum", SECONDS, "Sum of the latencies of its answered requests", |s| {
        Some(s.latency_sum_ns as f64 / NS_PER_SECOND)
    }),
    ("cpu_used_cores", None, "CPU in use", |s| s.cpu_used_cores),
    ("cpu_limit_cores", None, "CPU that it may use", |s| s.cpu_limit_cores),
    ("memory_used", BYTES, "Memory in use", |s| s.memory_used_bytes.map(|bytes| bytes as f64)),
    ("memory_limit", BYTES, "Memory that it may use", |s| {
        s.memory_limit_bytes.map(|bytes| bytes as f64)
    }),
    ("in_flight", None, "Requests being served", |s| s.in_flight.map(|requests| requests as f64)),
    ("queue", None, "Requests waiting", |s| s.queue.map(|requests| requests as f64)),
    ("application_utilization_ratio", None, "Its own measure of how busy it is", |s| {
        s.application_utilization
    }),
    ("age", SECONDS, "How old the figures were", |s| Some(s.age.as_secs_f64())),
];

impl Collector for Instances {
    fn encode(&self, mut page: DescriptorEncoder) -> fmt::Result {
        let instances = self.0.lock();
        let up = instances.iter().map(|(labels, last)| (labels, f64::from(last.up)));
        encode_gauge(&mut page, "up", None, "Whether it answered when last asked", up)?;
        for (name, unit, help, read) in &INSTANCE_GAUGES {
            let told = instances
                .iter()
                .filter_map(|(labels, last)| Some((labels, read(last.status.as_ref()?)?)));
            encode_gauge(&mut page, name, unit.as_ref(), help, told)?;
        }
        Ok(())
    }
}

fn encode_gauge<'a>(
    page: &mut DescriptorEncoder,
    name: &str,
    unit: Option<&Unit>,
    help: &str,
    values: impl Iterator<Item = (&'a InstanceLabels, f64)>,
) -> fmt::Result {
    let name = format!("instance_{name}");
    let help = format!("{help}.");
    let mut gauge = page.encode_descriptor(&name, &help, unit, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(gauge.encode_family(labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat_1() -> InstanceLabels {
        InstanceLabels { service: "chat".into(), instance: "chat-1".into() }
    }

    #[test]
    fn a_gauge_that_an_instance_does_not_tell_is_left_out() {
        let metrics = ExporterMetrics::new();
        let status = Status { latency_sum_ns: 1_500_000_000, queue: Some(0), ..Status::default() };
        metrics.set_up(chat_1(), Some(status));
        let page = metrics.to_text();
        let labels = r#"{service="chat",instance="chat-1"}"#;
        for line in [
            format!("ipconfig_exporter_instance_up{labels} 1.0\n"),
            format!("ipconfig_exporter_instance_latency_sum_seconds{labels} 1.5\n"),
            format!("ipconfig_exporter_instance_queue{labels} 0.0\n"),
        ] {
            assert!(page.contains(&line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("instance_in_flight{"), "{page}");
    }

    #[test]
    fn an_instance_that_is_down_keeps_its_last_status() {
        let metrics = ExporterMetrics::new();
        metrics.set_up(chat_1(), Some(Status { requests: 7, ..Status::default() }));
        metrics.set_down(chat_1());
        let page = metrics.to_text();
        assert!(page.contains(r#"instance_up{service="chat",instance="chat-1"} 0.0"#), "{page}");
        assert!(page.contains(r#"instance_requests{service="chat",instance="chat-1"} 7.0"#));
    }

    #[test]
    fn an_instance_that_is_not_asked_any_more_leaves_no_series() {
        let metrics = ExporterMetrics::new();
        let status = Status { queue: Some(1), ..Status::default() };
        metrics.set_up(chat_1(), Some(status));
        let chat_2 = InstanceLabels { instance: "chat-2".into(), ..chat_1() };
        metrics.set_down(chat_2.clone());
        metrics.count_asks("chat", 3, 1, Some("timeout"));
        metrics.forget(&chat_1());
        let page = metrics.to_text();
        assert!(!page.contains("chat-1"), "{page}");
        assert!(page.contains(r#"instance_up{service="chat",instance="chat-2"} 0.0"#), "{page}");

        metrics.forget(&chat_2);
        metrics.forget_service(&ServiceLabel { service: "chat".into() });
        let page = metrics.to_text();
        assert!(!page.contains("chat"), "{page}");
    }

    #[test]
    fn bad_records_are_a_counter_by_reason() {
        let metrics = ExporterMetrics::new();
        let bad_records = BTreeMap::from([("addr", 1), ("json", 7)]);
        metrics.show_fleet(FleetFigures {
            exporters: 2,
            targets: 5,
            asked: 3,
            is_watching: true,
            bad_records: &bad_records,
        });
        let page = metrics.to_text();
        for line in [
            "# TYPE ipconfig_exporter_bad_records counter\n",
            "ipconfig_exporter_bad_records_total{reason=\"addr\"} 1\n",
            "ipconfig_exporter_bad_records_total{reason=\"json\"} 7\n",
            "ipconfig_exporter_exporters 2\n",
            "ipconfig_exporter_targets 5\n",
            "ipconfig_exporter_targets_asked 3\n",
            "ipconfig_exporter_watching 1\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn no_name_is_taken_twice_and_each_unit_ends_its_name() {
        let page = ExporterMetrics::new().to_text();
        let mut names = std::collections::BTreeSet::new();
        let mut units = 0;
        for line in page.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["#", "TYPE", name, _] => assert!(names.insert(name), "{name} twice in\n{page}"),
                ["#", "UNIT", name, unit] => {
                    assert!(name.ends_with(&format!("_{unit}")), "{line}");
                    units += 1;
                }
                _ => {}
            }
        }
        assert!(names.contains("ipconfig_exporter_etcd_put_seconds"), "{page}");
        assert!(units >= 7, "{page}");
    }

    #[test]
    fn the_version_is_a_label_of_a_one() {
        let line = format!("ipconfig_exporter_build_info{{version=\"{VERSION}\"}} 1\n");
        let page = ExporterMetrics::new().to_text();
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }

    #[test]
    fn counters_end_in_total_and_the_page_in_eof() {
        let metrics = ExporterMetrics::new();
        metrics.etcd_puts.inc();
        metrics.collect_tries.get_or_create(&ServiceLabel { service: "chat".into() }).inc();
        let page = metrics.to_text();
        assert!(page.contains("ipconfig_exporter_etcd_puts_total 1\n"), "{page}");
        assert!(page.contains("ipconfig_exporter_collect_tries_total{service=\"chat\"} 1\n"));
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
}
