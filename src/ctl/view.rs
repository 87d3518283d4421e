//! What is registered, and what exporters last said of it: read from etcd, in the
//! shape in which programs get it.
//!
//! A record that cannot be read is listed as bad beside the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Serialize;

use super::CtlError;
use crate::config::EtcdConfig;
use crate::etcd::{Connection, Entry};
use crate::model::{Instance, InstanceReport, Report, Status};
use crate::registry::Prefixes;
use crate::wire::control::{Control, ControlMode, decode_control};
use crate::wire::{self, Key};

/// How many earlier values of a batch are looked at. An exporter leaves an
/// instance out that is as it was, for 3 s by default, and ticks once a second.
const EARLIER_BATCHES: usize = 32;

/// Every service of which something is registered.
#[derive(Debug, Serialize)]
pub struct Services {
    /// By name.
    pub services: Vec<ServiceLine>,
    /// Keys that name no instance.
    pub bad: Vec<BadRecord>,
}

/// One service, counted.
#[derive(Debug, Serialize)]
pub struct ServiceLine {
    /// The service's name.
    pub service: String,
    /// Registered instances that can be read.
    pub instances: usize,
    /// Those of them that drain, by their registration or by the operator's hand.
    pub draining: usize,
    /// Registrations that cannot be read.
    pub bad: usize,
    /// What the operator's hand does, if it is on the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlLine>,
}

/// An operator's hand on a service that is in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ControlLine {
    /// Whether the weights are the operator's.
    pub manual: bool,
    /// In place of the configured strategy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<&'static str>,
    /// How many instances it drains.
    pub drained: usize,
    /// How many instances it disables.
    pub disabled: usize,
    /// How many rules stand in place of the configured ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<usize>,
    /// Who wrote it; may be empty.
    pub by: String,
}

/// What an operator's hand does to one instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HandLine {
    /// It gets no new requests.
    pub drained: bool,
    /// It counts as if it were not registered.
    pub disabled: bool,
    /// Its weight, in manual mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Who wrote it; may be empty.
    pub by: String,
    /// Why; may be empty.
    pub why: String,
}

/// The instances of one service.
#[derive(Debug, Serialize)]
pub struct Instances {
    /// The service's name.
    pub service: String,
    /// By id.
    pub instances: Vec<InstanceLine>,
    /// What cannot be read.
    pub bad: Vec<BadRecord>,
}

/// One instance.
#[derive(Debug, Serialize)]
pub struct InstanceLine {
    /// The service's name.
    pub service: String,
    /// Unique within its service.
    pub id: String,
    /// Where requests go.
    pub addr: String,
    /// The fallback weight.
    pub weight: f64,
    /// Where it runs; empty if it does not say.
    pub zone: String,
    /// Anything else that it says of itself.
    pub labels: BTreeMap<String, String>,
    /// Where its status is asked for.
    pub status: Option<String>,
    /// Taken out of the rankings by its own wish.
    pub drain: bool,
    /// Requests that each gateway host may have in flight on it; 0 for no limit.
    #[serde(skip_serializing_if = "is_none")]
    pub max_in_flight: u32,
    /// Whether it goes when its writer goes.
    pub leased: bool,
    /// What the operator's hand does to it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<HandLine>,
    /// What an exporter last said of it; `None`: nothing that etcd remembers.
    pub report: Option<ReportLine>,
}

/// What an exporter said of an instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportLine {
    /// The exporter's id.
    pub exporter: String,
    /// In which way the instance is.
    pub state: ReportState,
    /// How it is, if it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
    /// How long it has not been read, if it is unreachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
}

/// The kind of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportState {
    /// It says how it is.
    Reporting,
    /// It is well, and has no figures.
    Serving,
    /// It wants no requests.
    NotServing,
    /// It cannot be read.
    Unreachable,
}

/// The figures of a [`Status`], under the names of `status.proto`.
#[allow(missing_docs, reason = "model::Status says what each is")]
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub requests: u64,
    pub errors: u64,
    pub busy_ns: u64,
    pub latency_sum_ns: u64,
    pub cpu_used_cores: Option<f64>,
    pub cpu_limit_cores: Option<f64>,
    pub memory_used_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub in_flight: Option<u64>,
    pub queue: Option<u64>,
    pub application_utilization: Option<f64>,
}

/// A record that cannot be read.
#[derive(Debug, Serialize)]
pub struct BadRecord {
    /// Its key.
    pub key: String,
    /// Why not, in one word.
    pub reason: &'static str,
    /// Why not.
    pub error: String,
}

/// The exporters that run.
#[derive(Debug, Serialize)]
pub struct Exporters {
    /// By id.
    pub exporters: Vec<ExporterLine>,
}

/// One exporter.
#[derive(Debug, Serialize)]
pub struct ExporterLine {
    /// Its name.
    pub id: String,
    /// What it says of itself; null if that is not JSON.
    #[serde(flatten)]
    pub record: BTreeMap<String, serde_json::Value>,
}

/// Counts the instances of every service.
///
/// # Errors
/// [`CtlError::Etcd`].
pub async fn services(etcd: &Connection, config: &EtcdConfig) -> Result<Services, CtlError> {
    let mut services: BTreeMap<String, ServiceLine> = BTreeMap::new();
    let mut bad = Vec::new();
    let controls = controls(etcd, &config.prefix, &mut bad).await?;
    let prefixes = Prefixes::new(config);
    let mut entries = Vec::new();
    for (_, prefix) in prefixes.all() {
        entries.extend(etcd.list(&format!("{prefix}/instances/")).await?);
    }
    for entry in entries {
        let (service, id) = match prefixes.parse(entry.key.as_bytes()) {
            Some(Ok(Key::Instance { service, id })) => (service, id),
            Some(Ok(_)) | None => continue, // not under this prefix
            Some(Err(error)) => {
                bad.push(BadRecord::new(entry.key, &error));
                continue;
            }
        };
        let control = controls.get(&service);
        let line = services.entry(service.clone()).or_insert_with(|| ServiceLine {
            service,
            instances: 0,
            draining: 0,
            bad: 0,
            control: control.map(ControlLine::from),
        });
        match wire::decode_instance(&id, &entry.value) {
            Ok(instance) => {
                line.instances += 1;
                let is_drained = control.is_some_and(|it| it.drain.contains(&instance.id));
                line.draining += usize::from(instance.drain || is_drained);
            }
            Err(_) => line.bad += 1,
        }
    }
    Ok(Services { services: services.into_values().collect(), bad })
}

/// Reads the instances of one service, with their reports.
///
/// # Errors
/// [`CtlError::NoService`] if nothing is registered for it, [`CtlError::Etcd`].
pub async fn instances(
    etcd: &Connection,
    config: &EtcdConfig,
    service: &str,
) -> Result<Instances, CtlError> {
    let prefixes = Prefixes::new(config);
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    for (cluster, prefix) in prefixes.all() {
        let mut here = Vec::new();
        for Entry { key, value, lease, .. } in
            etcd.list(&format!("{prefix}/instances/{service}/")).await?
        {
            let parsed = prefixes.parse(key.as_bytes());
            let read = parsed.map(|parsed| match parsed? {
                Key::Instance { id, .. } => wire::decode_instance(&id, &value).map(Some),
                _ => Ok(None), // not under this prefix
            });
            match read {
                Some(Ok(Some(mut instance))) => {
                    prefixes.label(&mut instance);
                    here.push(InstanceLine::new(service, instance, lease.is_some()));
                }
                Some(Ok(None)) | None => {}
                Some(Err(error)) => bad.push(BadRecord::new(key, &error)),
            }
        }
        let asked = here.iter().filter(|line| line.status.is_some());
        let wanted = asked.map(|line| line.id[cluster.len()..].to_owned()).collect();
        let mut reports = reports(etcd, prefix, service, wanted).await?;
        for line in &mut here {
            line.report = reports.remove(&line.id[cluster.len()..]);
        }
        found.extend(here);
    }
    if found.is_empty() && bad.is_empty() {
        return Err(CtlError::NoService(service.to_owned()));
    }
    let control = control(etcd, &config.prefix, service, &mut bad).await?;
    for line in &mut found {
        line.control = control.as_ref().and_then(|control| HandLine::new(control, &line.id));
    }
    Ok(Instances { service: service.to_owned(), instances: found, bad })
}

/// Reads one instance, with its report.
///
/// # Errors
/// [`CtlError::NoInstance`], [`CtlError::Bad`], [`CtlError::Etcd`].
pub async fn instance(
    etcd: &Connection,
    config: &EtcdConfig,
    service: &str,
    id: &str,
) -> Result<InstanceLine, CtlError> {
    let prefixes = Prefixes::new(config);
    let key = prefixes.path(service, id);
    let missing = || CtlError::NoInstance { service: service.to_owned(), id: id.to_owned() };
    let entry = etcd.get(&key).await?.ok_or_else(missing)?;
    let bad = |source| CtlError::Bad { service: service.to_owned(), id: id.to_owned(), source };
    let mut instance = wire::decode_instance(id, &entry.value).map_err(bad)?;
    prefixes.label(&mut instance);
    let mut line = InstanceLine::new(service, instance, entry.lease.is_some());
    let (prefix, own_id) = prefixes.home(id);
    let wanted = BTreeSet::from([own_id.to_owned()]);
    line.report = reports(etcd, prefix, service, wanted).await?.remove(own_id);
    let control = control(etcd, &config.prefix, service, &mut Vec::new()).await?;
    line.control = control.and_then(|control| HandLine::new(&control, id));
    Ok(line)
}

/// Reads who runs as an exporter.
///
/// # Errors
/// [`CtlError::Etcd`].
pub async fn exporters(etcd: &Connection, prefix: &str) -> Result<Exporters, CtlError> {
    let line = |Entry { key, value, .. }: Entry| match wire::parse_key(prefix, key.as_bytes()) {
        Ok(Key::Exporter { id }) => {
            Some(ExporterLine { id, record: serde_json::from_slice(&value).unwrap_or_default() })
        }
        _ => None,
    };
    let entries = etcd.list(&format!("{prefix}/exporters/")).await?;
    Ok(Exporters { exporters: entries.into_iter().filter_map(line).collect() })
}

/// A service's control, if it is in force; a bad one is put beside the other bad records.
async fn control(
    etcd: &Connection,
    prefix: &str,
    service: &str,
    bad: &mut Vec<BadRecord>,
) -> Result<Option<Control>, CtlError> {
    let key = Key::Control { service: service.to_owned() }.to_path(prefix);
    Ok(etcd.get(&key).await?.and_then(|entry| in_force(entry, bad)))
}

/// The controls in force, by their services.
async fn controls(
    etcd: &Connection,
    prefix: &str,
    bad: &mut Vec<BadRecord>,
) -> Result<BTreeMap<String, Control>, CtlError> {
    let mut found = BTreeMap::new();
    for entry in etcd.list(&format!("{prefix}/control/")).await? {
        if let Ok(Key::Control { service }) = wire::parse_key(prefix, entry.key.as_bytes()) {
            found.extend(in_force(entry, bad).map(|control| (service, control)));
        }
    }
    Ok(found)
}

fn in_force(Entry { key, value, .. }: Entry, bad: &mut Vec<BadRecord>) -> Option<Control> {
    match decode_control(&value) {
        Ok(control) => (!control.has_lapsed(SystemTime::now())).then_some(control),
        Err(error) => {
            bad.push(BadRecord::new(key, &error));
            None
        }
    }
}

/// The last report of each of the `wanted` instances of which there is one.
///
/// A batch holds news only, and the next one overwrites it: what is not in a
/// batch is looked for in the values that its key had before, as far as etcd
/// remembers them. Of two exporters the one that wrote later is believed.
async fn reports(
    etcd: &Connection,
    prefix: &str,
    service: &str,
    mut wanted: BTreeSet<String>,
) -> Result<BTreeMap<String, ReportLine>, CtlError> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let of_service = |entry: Entry| match wire::parse_key(prefix, entry.key.as_bytes()) {
        Ok(Key::Status { exporter, service: of, .. }) if of == service => Some((exporter, entry)),
        _ => None,
    };
    let entries = etcd.list(&format!("{prefix}/status/")).await?;
    let mut batches: Vec<_> = entries.into_iter().filter_map(of_service).collect();
    for _ in 0..=EARLIER_BATCHES {
        batches.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.mod_revision));
        for (exporter, entry) in &batches {
            // One that cannot be read says nothing.
            for report in wire::decode_batch(&entry.value).unwrap_or_default().reports {
                if wanted.remove(&report.id) {
                    found.insert(report.id.clone(), ReportLine::new(exporter, report));
                }
            }
        }
        if wanted.is_empty() {
            break;
        }
        let mut earlier = Vec::new();
        for (exporter, entry) in batches {
            let before = etcd.get_at(&entry.key, entry.mod_revision - 1).await?;
            earlier.extend(before.map(|entry| (exporter, entry)));
        }
        batches = earlier;
    }
    Ok(found)
}

impl From<&Control> for ControlLine {
    fn from(control: &Control) -> Self {
        Self {
            manual: control.mode == ControlMode::Manual,
            strategy: control.strategy.map(|strategy| strategy.as_str()),
            drained: control.drain.len(),
            disabled: control.disable.len(),
            rules: control.rules.as_ref().map(Vec::len),
            by: control.by.clone(),
        }
    }
}

impl HandLine {
    /// `None` if a control does nothing to an instance.
    fn new(control: &Control, id: &str) -> Option<Self> {
        let line = Self {
            drained: control.drain.contains(id),
            disabled: control.disable.contains(id),
            weight: control.manual_weight(id),
            by: control.by.clone(),
            why: control.why.clone(),
        };
        (line.drained || line.disabled || line.weight.is_some()).then_some(line)
    }
}

fn is_none(limit: &u32) -> bool {
    *limit == 0
}

impl InstanceLine {
    fn new(service: &str, instance: Instance, leased: bool) -> Self {
        Self {
            service: service.to_owned(),
            id: instance.id,
            addr: instance.addr.to_string(),
            weight: instance.weight,
            zone: instance.zone,
            labels: instance.labels,
            status: instance.status.map(|url| url.to_string()),
            drain: instance.drain,
            max_in_flight: instance.max_in_flight,
            leased,
            control: None,
            report: None,
        }
    }
}

impl ReportLine {
    fn new(exporter: &str, report: InstanceReport) -> Self {
        let (state, figures, silent_ms) = match report.report {
            Report::Status(status) => (ReportState::Reporting, Some(status.into()), None),
            Report::Serving => (ReportState::Serving, None, None),
            Report::NotServing => (ReportState::NotServing, None, None),
            Report::Unreachable { silent_for } => {
                let silent_ms = u64::try_from(silent_for.as_millis()).unwrap_or(u64::MAX);
                (ReportState::Unreachable, None, Some(silent_ms))
            }
        };
        Self { exporter: exporter.to_owned(), state, figures, silent_ms }
    }
}

impl From<Status> for Figures {
    fn from(status: Status) -> Self {
        Self {
            requests: status.requests,
            errors: status.errors,
            busy_ns: status.busy_ns,
            latency_sum_ns: status.latency_sum_ns,
            cpu_used_cores: status.cpu_used_cores,
            cpu_limit_cores: status.cpu_limit_cores,
            memory_used_bytes: status.memory_used_bytes,
            memory_limit_bytes: status.memory_limit_bytes,
            in_flight: status.in_flight,
            queue: status.queue,
            application_utilization: status.application_utilization,
        }
    }
}

impl BadRecord {
    fn new(key: String, error: &wire::RecordError) -> Self {
        Self { key, reason: error.reason(), error: error.to_string() }
    }
}
