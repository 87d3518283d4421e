//! Bytes in etcd and on the wire, to and from the [model](crate::model): the
//! only module that knows the protobuf messages and the JSON of etcd's values.
//!
//! Whatever is decoded here was written by somebody else, so that sizes are
//! checked before anything is parsed, numbers before they are believed, and a
//! record that does not fit is refused with a [`RecordError`] and nothing more:
//! the records beside it stay.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::config::ConfigError;
use crate::config::values::integer;
use crate::model::{
    AddrError, Instance, InstanceReport, MAX_IN_FLIGHT, MAX_WEIGHT, Report, Status, StatusUrl,
    StatusUrlError, is_name, parse_addr,
};

pub mod checks;
pub mod control;
pub mod orca;

/// The messages and the service of `proto/ipconfig/v1/status.proto`, generated.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("ipconfig.v1");
}

/// ORCA's messages and its service, of `proto/xds`, generated.
#[allow(missing_docs)]
pub mod xds {
    /// `xds.data`: the load report.
    pub mod data {
        /// Its package.
        pub mod orca {
            /// Version 3.
            pub mod v3 {
                tonic::include_proto!("xds.data.orca.v3");
            }
        }
    }
    /// `xds.service`: who streams it.
    pub mod service {
        /// Its package.
        pub mod orca {
            /// Version 3.
            pub mod v3 {
                tonic::include_proto!("xds.service.orca.v3");
            }
        }
    }
}

/// The largest instance record that is read, in bytes.
pub const MAX_INSTANCE_BYTES: usize = 16 * 1024;

/// The largest batch of statuses that is read, in bytes: room for 100 instances
/// twenty times over, and small enough that a hostile one costs no memory.
pub const MAX_BATCH_BYTES: usize = 256 * 1024;

/// The largest answer of a status service that is read, in bytes: more than ten
/// times what a status with every field takes.
pub const MAX_STATUS_BYTES: usize = 4 * 1024;

/// The oldest figures that a status may carry, and the longest of all times on
/// the wire.
pub const MAX_STATUS_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a record was refused.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The key is none of [`Key`]'s.
    #[error("failed to read key {key:?}: {why}")]
    Key {
        /// The key as found, shortened.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The value is too large to be parsed at all.
    #[error("refused a value of {found_bytes} bytes: at most {allowed_bytes} are read")]
    TooLarge {
        /// Its size.
        found_bytes: usize,
        /// The limit.
        allowed_bytes: usize,
    },
    /// The value is not a JSON object.
    #[error("failed to parse the instance as a JSON object: {0}")]
    Json(#[source] serde_json::Error),
    /// The value is not an exporter's announcement.
    #[error("failed to read the exporter's announcement: {0}")]
    Announcement(#[source] serde_json::Error),
    /// A field has the wrong type.
    #[error("failed to read a field of the instance: {0}")]
    Field(#[source] serde_path_to_error::Error<serde_json::Error>),
    /// There is no `addr`.
    #[error("the instance has no addr")]
    NoAddr,
    /// `addr` is not an IP address with a port.
    #[error("failed to read addr: {0}")]
    Addr(#[source] AddrError),
    /// `weight` is out of range.
    #[error("weight {found} is refused: allowed is 0 to {MAX_WEIGHT}")]
    Weight {
        /// The weight as found.
        found: f64,
    },
    /// `status` is not a URL to ask for a status.
    #[error("failed to read status: {0}")]
    StatusUrl(#[source] StatusUrlError),
    /// The value is not the protobuf message that belongs under its key.
    #[error("failed to decode the batch of statuses: {0}")]
    Protobuf(#[source] prost::DecodeError),
    /// An entry of a batch does not say whose status it is.
    #[error("refused a status of instance {id:?}: {why}")]
    StatusOwner {
        /// The id as found, shortened.
        id: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What a gateway says of its checks is nothing that one could say.
    #[error("refused a gateway's checks: {0}")]
    Checks(#[source] checks::ChecksError),
    /// An operator's value is none.
    #[error("refused the control value: {0}")]
    Control(#[source] ConfigError),
    /// A figure of a status is out of range.
    #[error("refused a status: {field} is {found}, allowed is {allowed}")]
    Status {
        /// The figure's name in the protobuf message.
        field: &'static str,
        /// Its value as found.
        found: String,
        /// What it may be.
        allowed: &'static str,
    },
}

impl RecordError {
    /// The reason in one word out of a small fixed set, fit for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Key { .. } => "key",
            Self::TooLarge { .. } => "too_large",
            Self::Json(_) | Self::Field(_) | Self::Announcement(_) => "json",
            Self::NoAddr | Self::Addr(_) => "addr",
            Self::Weight { .. } => "weight",
            Self::StatusUrl(_) => "status_url",
            Self::Protobuf(_) => "protobuf",
            Self::Checks(_) => "checks",
            Self::Control(_) => "control",
            Self::StatusOwner { .. } | Self::Status { .. } => "status",
        }
    }
}

/// A key under the configured prefix. Names are those that [`is_name`]
/// allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// `instances/<service>/<id>`: a registration, JSON.
    Instance {
        /// The service's name.
        service: String,
        /// Unique within the service.
        id: String,
    },
    /// `status/<exporter>/<service>/<shard>`: a [`Batch`], protobuf.
    Status {
        /// The id of the exporter that wrote it.
        exporter: String,
        /// The service's name.
        service: String,
        /// Which part of the service's instances.
        shard: u32,
    },
    /// `control/<service>`: an operator's wish, JSON.
    Control {
        /// The service's name.
        service: String,
    },
    /// `policies/<service>`: a scoring policy, Lua source.
    Policy {
        /// The service's name.
        service: String,
    },
    /// `exporters/<id>`: an exporter that runs, JSON.
    Exporter {
        /// The exporter's id.
        id: String,
    },
    /// `checks/<gateway>/<service>`: a gateway that checks some of the service's
    /// instances for all, and who fails there, JSON.
    Checks {
        /// The gateway's id.
        gateway: String,
        /// The service's name.
        service: String,
    },
}

impl Key {
    /// The whole key under `prefix`, for instance
    /// `/ipconfig/v1/status/exporter-1/chat/0`.
    pub fn to_path(&self, prefix: &str) -> String {
        match self {
            Self::Instance { service, id } => format!("{prefix}/instances/{service}/{id}"),
            Self::Status { exporter, service, shard } => {
                format!("{prefix}/status/{exporter}/{service}/{shard}")
            }
            Self::Control { service } => format!("{prefix}/control/{service}"),
            Self::Policy { service } => format!("{prefix}/policies/{service}"),
            Self::Exporter { id } => format!("{prefix}/exporters/{id}"),
            Self::Checks { gateway, service } => format!("{prefix}/checks/{gateway}/{service}"),
        }
    }
}

/// Reads a whole key of etcd.
///
/// # Errors
/// [`RecordError::Key`] if it is not under `prefix`, has parts too many or too
/// few, is of a kind that [`Key`] does not know, or holds something else than
/// names.
pub fn parse_key(prefix: &str, key: &[u8]) -> Result<Key, RecordError> {
    let text = String::from_utf8_lossy(key);
    let refused = |why| RecordError::Key { key: shorten(&text).into_owned(), why };

    let path = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| refused("it is not under the configured prefix"))?;
    let name = |part: &str| match is_name(part) {
        true => Ok(part.to_owned()),
        false => Err(refused("a name in it is not 1 to 128 bytes of [A-Za-z0-9._:-]")),
    };

    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        ["instances", service, id] => Ok(Key::Instance { service: name(service)?, id: name(id)? }),
        ["status", exporter, service, shard] => Ok(Key::Status {
            exporter: name(exporter)?,
            service: name(service)?,
            shard: parse_shard(shard).ok_or_else(|| refused("its shard is not a number"))?,
        }),
        ["control", service] => Ok(Key::Control { service: name(service)? }),
        ["policies", service] => Ok(Key::Policy { service: name(service)? }),
        ["exporters", id] => Ok(Key::Exporter { id: name(id)? }),
        ["checks", gateway, service] => {
            Ok(Key::Checks { gateway: name(gateway)?, service: name(service)? })
        }
        ["instances" | "status" | "control" | "policies" | "exporters" | "checks", ..] => {
            Err(refused("it has slashes too many or too few"))
        }
        _ => Err(refused("it is of no known kind")),
    }
}

/// The number in its only spelling, so that two keys never mean one shard.
fn parse_shard(text: &str) -> Option<u32> {
    text.parse().ok().filter(|shard: &u32| shard.to_string() == text)
}

/// The value of `instances/<service>/<id>`, as written and as read.
#[derive(Serialize, Deserialize)]
struct InstanceJson {
    addr: Option<String>,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(default)]
    drain: bool,
    #[serde(default, deserialize_with = "max_in_flight", skip_serializing_if = "is_zero")]
    max_in_flight: u32,
}

fn max_in_flight<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    integer::<0, { MAX_IN_FLIGHT as u64 }, u32, D>(from)
}

fn is_zero(limit: &u32) -> bool {
    *limit == 0
}

fn one() -> f64 {
    1.0
}

/// Reads a registration; `id` is its key's. Unknown fields are ignored: a
/// registration may come from a newer version.
///
/// # Errors
/// [`RecordError`] if the value is larger than [`MAX_INSTANCE_BYTES`], is not a
/// JSON object, has a field of the wrong type, or one of its fields is refused.
pub fn decode_instance(id: &str, value: &[u8]) -> Result<Instance, RecordError> {
    refuse_larger_than(MAX_INSTANCE_BYTES, value)?;
    // By way of a map, since serde would read a struct's fields from an array too.
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(value).map_err(RecordError::Json)?;
    let json: InstanceJson = serde_path_to_error::deserialize(serde_json::Value::Object(object))
        .map_err(RecordError::Field)?;
    let addr = json.addr.ok_or(RecordError::NoAddr)?;
    let status = json.status.map(|url| shorten(&url).parse::<StatusUrl>());
    if !(0.0..=MAX_WEIGHT).contains(&json.weight) {
        return Err(RecordError::Weight { found: json.weight });
    }
    Ok(Instance {
        id: id.to_owned(),
        addr: parse_addr(&shorten(&addr)).map_err(RecordError::Addr)?,
        weight: json.weight,
        zone: json.zone,
        labels: json.labels,
        status: status.transpose().map_err(RecordError::StatusUrl)?,
        drain: json.drain,
        max_in_flight: json.max_in_flight,
    })
}

/// Writes a registration.
pub fn encode_instance(instance: &Instance) -> Vec<u8> {
    let json = InstanceJson {
        addr: Some(instance.addr.to_string()),
        weight: instance.weight,
        zone: instance.zone.clone(),
        labels: instance.labels.clone(),
        status: instance.status.as_ref().map(StatusUrl::to_string),
        drain: instance.drain,
        max_in_flight: instance.max_in_flight,
    };
    serde_json::to_vec(&json).expect("strings, numbers and a map of strings are JSON")
}

/// A registration as `value` has it, but draining if `held`, the one that it
/// takes the place of, does: that was an operator's wish.
pub fn keep_drain(value: &[u8], held: &[u8]) -> Vec<u8> {
    let is_draining = |value| decode_instance("", value).is_ok_and(|instance| instance.drain);
    match decode_instance("", value) {
        Ok(instance) if is_draining(held) => encode_instance(&Instance { drain: true, ..instance }),
        _ => value.to_owned(),
    }
}

/// The value of `exporters/<id>`: what an exporter says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExporterRecord {
    /// The program's version.
    pub version: String,
    /// Where its metrics page is served.
    pub listen: SocketAddr,
    /// How often it asks and writes, in milliseconds.
    pub interval_ms: u64,
    /// When it started, in milliseconds of Unix time, by its own clock.
    pub started_unix_ms: u64,
    /// Which instances its configuration file registers: 16 hexadecimal digits
    /// that are the same for the same instances.
    #[serde(default)]
    pub registrations: String,
}

/// Writes an exporter's announcement.
pub fn encode_exporter(record: &ExporterRecord) -> Vec<u8> {
    serde_json::to_vec(record).expect("strings and integers are JSON")
}

/// Reads an exporter's announcement.
///
/// # Errors
/// [`RecordError`] if the value is too large or is none.
pub fn decode_exporter(value: &[u8]) -> Result<ExporterRecord, RecordError> {
    refuse_larger_than(MAX_INSTANCE_BYTES, value)?;
    serde_json::from_slice(value).map_err(RecordError::Announcement)
}

/// The news that one exporter has of one shard of a service's instances.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order written.
    pub reports: Vec<InstanceReport>,
    /// Why the others were dropped.
    pub bad: Vec<RecordError>,
}

/// Reads a batch of reports. One that is refused is dropped alone.
///
/// # Errors
/// [`RecordError`] if the value is larger than [`MAX_BATCH_BYTES`] or is not a
/// `StatusBatch`.
pub fn decode_batch(value: &[u8]) -> Result<Batch, RecordError> {
    refuse_larger_than(MAX_BATCH_BYTES, value)?;
    let message = proto::StatusBatch::decode(value).map_err(RecordError::Protobuf)?;
    let mut batch = Batch::default();
    for entry in message.instances {
        match decode_entry(entry) {
            Ok(report) => batch.reports.push(report),
            Err(err) => batch.bad.push(err),
        }
    }
    Ok(batch)
}

fn decode_entry(entry: proto::InstanceStatus) -> Result<InstanceReport, RecordError> {
    use proto::instance_status::Report::*;

    let refused = |why| RecordError::StatusOwner { id: shorten(&entry.id).into_owned(), why };
    if !is_name(&entry.id) {
        return Err(refused("the id is not 1 to 128 bytes of [A-Za-z0-9._:-]"));
    }
    let report = match entry.report.ok_or_else(|| refused("the entry holds none"))? {
        Status(status) => Report::Status(status.try_into()?),
        Serving(proto::Serving {}) => Report::Serving,
        NotServing(proto::NotServing {}) => Report::NotServing,
        Unreachable(proto::Unreachable { silent_for }) => {
            // However long it was: that it may be out is not to be lost with the figure.
            let silent_for = any_duration("silent_for", silent_for, "0 or more")?;
            Report::Unreachable { silent_for: silent_for.min(MAX_STATUS_AGE) }
        }
    };
    Ok(InstanceReport { id: entry.id, report, interval: duration("interval", entry.interval)? })
}

/// Writes a batch of reports.
pub fn encode_batch(reports: &[InstanceReport]) -> Vec<u8> {
    proto::StatusBatch { instances: reports.iter().map(encode_entry).collect() }.encode_to_vec()
}

fn encode_entry(InstanceReport { id, report, interval }: &InstanceReport) -> proto::InstanceStatus {
    use proto::instance_status::Report::*;

    let report = match report {
        Report::Status(status) => Status(status.into()),
        Report::Serving => Serving(proto::Serving {}),
        Report::NotServing => NotServing(proto::NotServing {}),
        Report::Unreachable { silent_for } => {
            Unreachable(proto::Unreachable { silent_for: Some(believed(*silent_for)) })
        }
    };
    let interval = (!interval.is_zero()).then(|| believed(*interval));
    proto::InstanceStatus { id: id.clone(), report: Some(report), interval }
}

impl TryFrom<proto::Status> for Status {
    type Error = RecordError;

    fn try_from(message: proto::Status) -> Result<Self, RecordError> {
        if message.boot_id == 0 {
            return Err(status_refused("boot_id", 0, "a random number other than 0"));
        }
        if let Some(limit) = message.max_in_flight.filter(|limit| *limit > MAX_IN_FLIGHT) {
            return Err(status_refused("max_in_flight", limit, "0 to 1000000"));
        }
        if message.memory_limit_bytes == Some(0) {
            return Err(status_refused("memory_limit_bytes", 0, "more than 0"));
        }
        Ok(Self {
            boot_id: message.boot_id,
            seq: message.seq,
            age: duration("age", message.age)?,
            requests: message.requests,
            errors: message.errors,
            busy_ns: message.busy_ns,
            latency_sum_ns: message.latency_sum_ns,
            cpu_used_cores: gauge("cpu_used_cores", message.cpu_used_cores)?,
            cpu_limit_cores: limit("cpu_limit_cores", message.cpu_limit_cores)?,
            memory_used_bytes: message.memory_used_bytes,
            memory_limit_bytes: message.memory_limit_bytes,
            in_flight: message.in_flight,
            queue: message.queue,
            application_utilization: gauge(
                "application_utilization",
                message.application_utilization,
            )?,
            max_in_flight: message.max_in_flight,
        })
    }
}

impl From<&Status> for proto::Status {
    fn from(status: &Status) -> Self {
        Self {
            boot_id: status.boot_id,
            seq: status.seq,
            age: Some(believed(status.age)),
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
            max_in_flight: status.max_in_flight,
        }
    }
}

/// A length of time on the wire.
pub fn proto_duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: time.as_secs().try_into().unwrap_or(i64::MAX),
        nanos: time.subsec_nanos() as i32, // below 10^9
    }
}

/// The same, cut to what its reader believes.
fn believed(time: Duration) -> prost_types::Duration {
    proto_duration(time.min(MAX_STATUS_AGE))
}

/// A length of time from the wire, up to [`MAX_STATUS_AGE`]; 0 if absent.
fn duration(
    field: &'static str,
    found: Option<prost_types::Duration>,
) -> Result<Duration, RecordError> {
    const ALLOWED: &str = "0 to one day";
    match any_duration(field, found, ALLOWED)? {
        time if time > MAX_STATUS_AGE => Err(status_refused(field, format!("{time:?}"), ALLOWED)),
        time => Ok(time),
    }
}

/// A length of time from the wire, however long; 0 if absent.
fn any_duration(
    field: &'static str,
    found: Option<prost_types::Duration>,
    allowed: &'static str,
) -> Result<Duration, RecordError> {
    let found = found.unwrap_or_default();
    match (u64::try_from(found.seconds), u32::try_from(found.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => {
            let found = format!("{} s and {} ns", found.seconds, found.nanos);
            Err(status_refused(field, found, allowed))
        }
    }
}

fn gauge(field: &'static str, found: Option<f64>) -> Result<Option<f64>, RecordError> {
    match found {
        Some(value) if !value.is_finite() || value < 0.0 => {
            Err(status_refused(field, value, "a finite number, 0 or more"))
        }
        _ => Ok(found),
    }
}

/// What may be used: a divisor, so never 0.
fn limit(field: &'static str, found: Option<f64>) -> Result<Option<f64>, RecordError> {
    match found {
        Some(value) if !value.is_finite() || value <= 0.0 => {
            Err(status_refused(field, value, "a finite number above 0"))
        }
        _ => Ok(found),
    }
}

fn status_refused(field: &'static str, found: impl ToString, allowed: &'static str) -> RecordError {
    RecordError::Status { field, found: found.to_string(), allowed }
}

fn refuse_larger_than(allowed_bytes: usize, value: &[u8]) -> Result<(), RecordError> {
    match value.len() {
        found_bytes if found_bytes > allowed_bytes => {
            Err(RecordError::TooLarge { found_bytes, allowed_bytes })
        }
        _ => Ok(()),
    }
}

/// As much of a stranger's text as an error message should repeat: more than
/// any valid address or URL has, so that what is cut is refused as it was whole.
fn shorten(text: &str) -> Cow<'_, str> {
    const MAX_CHARS: usize = 300;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests;
