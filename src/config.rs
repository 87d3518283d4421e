//! The configuration file: every key with its unit, default and range. One JSON
//! file serves the gateway and the exporter.
//!
//! A file is taken whole or not at all. First serde reads each key by itself:
//! the attribute beside a field says what its key allows, the section's
//! [`Default`] what it is when the file leaves it out. Then [`Config::parse`]
//! compares the keys with each other. An error names the key by its full path,
//! what was found and what is allowed.
//!
//! `doc/configuration.md` is the reference for users; a test compares its keys,
//! defaults and ranges with this file.

mod check;
mod failure;
mod gateway;
mod guard;
mod health;
pub(crate) mod rules;
mod slow_start;
mod statuses;
pub(crate) mod values;
mod zone;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

pub use self::check::{CheckBy, CheckConfig};
pub use self::failure::{BudgetConfig, FailureConfig, FailureMode};
pub use self::gateway::GatewayConfig;
pub use self::guard::GuardConfig;
pub use self::health::{FailurePercentageConfig, HealthConfig, SuccessRateConfig};
pub use self::rules::{MAX_RULES, Rule, Wanted};
pub use self::slow_start::SlowStartConfig;
pub use self::statuses::Statuses;
use self::values::{
    Choice, Object, addr, allow, choice, discover, duration_ms, endpoints, etcd_prefix,
    hash_balance_factor, instances, integer, name, number, object, prefixes, services,
    snapshot_path, status_url, unique_keys,
};
pub use self::zone::{SubsetConfig, ZoneConfig};
use crate::model::{Allow, Instance, MAX_IN_FLIGHT, MAX_WEIGHT, StatusUrl};

/// A whole configuration file, valid by construction if it comes from
/// [`Config::parse`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where instances and their statuses are found.
    #[serde(default, deserialize_with = "object")]
    pub etcd: EtcdConfig,
    /// How long a status counts.
    #[serde(default, deserialize_with = "object")]
    pub window: WindowConfig,
    /// What a restart without etcd begins with.
    #[serde(default, deserialize_with = "object")]
    pub snapshot: SnapshotConfig,
    /// The networks, in CIDR notation, in which instances and their status
    /// services may be. Default: any.
    #[serde(deserialize_with = "allow", default)]
    pub allow: Allow,
    /// Which services beside the configured ones are taken from etcd.
    #[serde(default, deserialize_with = "discover")]
    pub discover: Discover,
    /// When the ranking is too old to be followed.
    #[serde(default, deserialize_with = "object")]
    pub fallback: FallbackConfig,
    /// Who this gateway is.
    #[serde(default, deserialize_with = "object")]
    pub gateway: GatewayConfig,
    /// The services by name. The only key without a default; it may be empty.
    #[serde(deserialize_with = "services")]
    pub services: BTreeMap<String, ServiceConfig>,
    /// How instances are asked for their status.
    #[serde(default, deserialize_with = "object")]
    pub exporter: ExporterConfig,
}

/// `etcd`: the cluster, and how to be let in.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EtcdConfig {
    /// The members, each `http://HOST:PORT` or `https://HOST:PORT`; at least
    /// one. Default: `http://127.0.0.1:2379`.
    #[serde(deserialize_with = "endpoints")]
    pub endpoints: Vec<String>,
    /// What all keys begin with. Itself begins with `/` and does not end with
    /// it. Default: `/ipconfig/v1`.
    #[serde(deserialize_with = "etcd_prefix")]
    pub prefix: String,
    /// Other clusters, whose instances are served with this one's: by name, without
    /// a colon, what their keys begin with, in the same etcd. None is below another.
    /// Default: none.
    #[serde(deserialize_with = "prefixes")]
    pub prefixes: BTreeMap<String, String>,
    /// The user to authenticate as; empty, the default, for none.
    pub username: String,
    /// A file that holds the user's password; empty exactly if `username` is.
    pub password_file: String,
    /// What `https` endpoints are checked by, and what they ask for.
    #[serde(deserialize_with = "object")]
    pub tls: TlsConfig,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            prefix: "/ipconfig/v1".into(),
            prefixes: BTreeMap::new(),
            username: String::new(),
            password_file: String::new(),
            tls: TlsConfig::default(),
        }
    }
}

/// `etcd.tls` and `exporter.tls`: paths of PEM files. Empty, the default: not
/// used.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The authority that signed the server's certificate; without it, the
    /// system's authorities count.
    pub ca: String,
    /// The certificate to show to the server; goes together with `key`.
    pub cert: String,
    /// The private key of `cert`.
    pub key: String,
}

/// `window`: an instance's load is what it reported in the last
/// `buckets` × `bucket`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowConfig {
    /// How many buckets, 1 to 60. Default: 5.
    #[serde(deserialize_with = "integer::<1, 60, _, _>")]
    pub buckets: u32,
    /// How much time one bucket covers, 100 ms to 1 min. Default: 1 s.
    #[serde(deserialize_with = "duration_ms::<100, 60_000, _>")]
    pub bucket: Duration,
    /// How much less an older bucket weighs. Default: linear.
    #[serde(deserialize_with = "choice")]
    pub decay: Decay,
}

impl Default for WindowConfig {
    fn default() -> Self {
        Self { buckets: 5, bucket: Duration::from_secs(1), decay: Decay::default() }
    }
}

/// How the weight of a bucket falls with its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decay {
    /// By equal steps: the newest of N buckets weighs N, the oldest 1.
    #[default]
    Linear,
    /// By equal factors.
    Exponential,
}

impl Choice for Decay {
    const ALL: &'static [(&'static str, Self)] =
        &[("linear", Self::Linear), ("exponential", Self::Exponential)];
}

/// `snapshot`: the last good view of etcd, kept on disk.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotConfig {
    /// The absolute path of the file; empty, the default: none is kept.
    #[serde(deserialize_with = "snapshot_path")]
    pub path: String,
}

/// `discover`: which services are taken from etcd though the file does not
/// name them.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Discover {
    /// None of them.
    #[default]
    None,
    /// Every one.
    All,
    /// Those of these names. A `*` at a name's end stands for any rest.
    Names(Vec<String>),
}

impl Discover {
    /// Whether a service that the file does not name is taken from etcd.
    pub fn allows(&self, service: &str) -> bool {
        match self {
            Discover::None => false,
            Discover::All => true,
            Discover::Names(names) => names.iter().any(|name| match name.strip_suffix('*') {
                Some(prefix) => service.starts_with(prefix),
                None => service == name,
            }),
        }
    }
}

/// `fallback`: balancing without a ranking.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FallbackConfig {
    /// The age of the ranking's heartbeat from which on the fallback weights
    /// decide, 1 s to 10 min. Default: 5 s.
    #[serde(deserialize_with = "duration_ms::<1_000, 600_000, _>")]
    pub after: Duration,
}

impl FallbackConfig {
    /// `after` in milliseconds; its range fits.
    pub fn after_ms(&self) -> u32 {
        u32::try_from(self.after.as_millis()).unwrap_or(u32::MAX)
    }
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self { after: Duration::from_secs(5) }
    }
}

/// `services.<service>`: one service.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// How requests are shared out.
    #[serde(deserialize_with = "object")]
    pub balance: BalanceConfig,
    /// What becomes of requests whose try failed.
    #[serde(deserialize_with = "object")]
    pub failure: FailureConfig,
    /// How instances are compared.
    #[serde(deserialize_with = "object")]
    pub score: ScoreConfig,
    /// What becomes of instances that do not say how they are.
    #[serde(deserialize_with = "object")]
    pub status: StatusConfig,
    /// Who is left out for a while as its requests fail.
    #[serde(deserialize_with = "object")]
    pub health: HealthConfig,
    /// How many instances it may lose at once.
    #[serde(deserialize_with = "object")]
    pub guard: GuardConfig,
    /// How fast a new instance gets its share.
    #[serde(deserialize_with = "object")]
    pub slow_start: SlowStartConfig,
    /// How a gateway in a zone keeps to it.
    #[serde(deserialize_with = "object")]
    pub zone: ZoneConfig,
    /// How many of the instances one gateway uses.
    #[serde(deserialize_with = "object")]
    pub subset: SubsetConfig,
    /// How the gateway itself checks the instances.
    #[serde(deserialize_with = "object")]
    pub check: CheckConfig,
    /// Which requests go to which instances, the first rule that takes one first; at
    /// most 16. Default: none.
    #[serde(deserialize_with = "rules::rules")]
    pub rules: Vec<Rule>,
    /// The instances known without etcd: no two of one id, no two of one
    /// address. Default: none.
    #[serde(deserialize_with = "instances")]
    pub instances: Vec<Instance>,
}

/// `services.<service>.balance`: how requests are shared out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalanceConfig {
    /// Who gets the next request. Default: adaptive.
    #[serde(deserialize_with = "choice")]
    pub strategy: Strategy,
    /// How many more instances a request may go to after its first one failed,
    /// 0 to 16. Default: 2.
    #[serde(deserialize_with = "integer::<0, 16, _, _>")]
    pub tries: u32,
    /// The most that `chash` lets an instance have in flight, in percent of its
    /// share of all, 101 to 1000; 0 for no bound. Default: 125.
    #[serde(deserialize_with = "hash_balance_factor")]
    pub hash_balance_factor: u32,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self { strategy: Strategy::default(), tries: 2, hash_balance_factor: 125 }
    }
}

/// Who gets the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The top of the ranking.
    Best,
    /// Chance, by the ranking's weights.
    WeightedRandom,
    /// In turn, smoothly, by the ranking's weights.
    RoundRobin,
    /// Chance, all alike.
    Random,
    /// The least in flight for its weight.
    LeastConn,
    /// The better of two taken by chance.
    P2c,
    /// What the reports and the live facts together recommend.
    #[default]
    Adaptive,
    /// The one that the request's key belongs to.
    Chash,
}

impl Strategy {
    /// Every strategy.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.iter().map(|(_, strategy)| *strategy)
    }

    /// The name in the configuration file.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, it)| *it == self).map_or("adaptive", |(name, _)| name)
    }
}

impl Serialize for Strategy {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Strategy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        choice(from)
    }
}

impl Choice for Strategy {
    const ALL: &'static [(&'static str, Self)] = &[
        ("best", Self::Best),
        ("weighted_random", Self::WeightedRandom),
        ("round_robin", Self::RoundRobin),
        ("random", Self::Random),
        ("least_conn", Self::LeastConn),
        ("p2c", Self::P2c),
        ("adaptive", Self::Adaptive),
        ("chash", Self::Chash),
    ];
}

/// `services.<service>.score`: the coefficients of the linear score, each 0 to
/// 100; 0 leaves the figure out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreConfig {
    /// Of CPU in use. Default: 0.4.
    #[serde(deserialize_with = "number::<0, 100, _>")]
    pub cpu: f64,
    /// Of free memory. Default: 0.1.
    #[serde(deserialize_with = "number::<0, 100, _>")]
    pub memory: f64,
    /// Of the request rate. Default: 0.1.
    #[serde(deserialize_with = "number::<0, 100, _>")]
    pub rate: f64,
    /// Of the mean latency. Default: 0.4.
    #[serde(deserialize_with = "number::<0, 100, _>")]
    pub latency: f64,
    /// Of the failed part of the requests. Default: 1.
    #[serde(deserialize_with = "number::<0, 100, _>")]
    pub errors: f64,
    /// Free memory counts in whole units of so many MiB, 1 to 1048576 (1 TiB).
    /// Default: 1024.
    #[serde(deserialize_with = "integer::<1, 1_048_576, _, _>")]
    pub memory_unit_mib: u64,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self { cpu: 0.4, memory: 0.1, rate: 0.1, latency: 0.4, errors: 1.0, memory_unit_mib: 1024 }
    }
}

/// `services.<service>.status`: what becomes of an instance whose status the
/// exporter cannot read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatusConfig {
    /// After how many of the exporter's intervals without a status something
    /// becomes of it, 1 to 100. Default: 3.
    #[serde(deserialize_with = "integer::<1, 100, _, _>")]
    pub missed: u32,
    /// What that is. Default: out.
    #[serde(deserialize_with = "choice")]
    pub unreachable: Unreachable,
}

impl Default for StatusConfig {
    fn default() -> Self {
        Self { missed: 3, unreachable: Unreachable::default() }
    }
}

/// What becomes of an instance whose status the exporter cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unreachable {
    /// It leaves the ranking, until its first good status.
    #[default]
    Out,
    /// It stays in the ranking, as one of which nothing is known.
    Keep,
}

impl Choice for Unreachable {
    const ALL: &'static [(&'static str, Self)] = &[("out", Self::Out), ("keep", Self::Keep)];
}

/// `services.<service>.instances[]`: the keys of an [`Instance`], which
/// says what they mean.
#[derive(Deserialize)]
#[serde(remote = "Instance", deny_unknown_fields)]
struct InstanceKeys {
    #[serde(deserialize_with = "name")]
    id: String,
    #[serde(deserialize_with = "addr")]
    addr: SocketAddr,
    #[serde(
        default = "default_weight",
        deserialize_with = "number::<0, { MAX_WEIGHT as u64 }, _>"
    )]
    weight: f64,
    #[serde(default)]
    zone: String,
    #[serde(default, deserialize_with = "unique_keys::<_, String, _>")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "status_url")]
    status: Option<StatusUrl>,
    #[serde(default)]
    drain: bool,
    #[serde(default, deserialize_with = "integer::<0, { MAX_IN_FLIGHT as u64 }, _, _>")]
    max_in_flight: u32,
}

fn default_weight() -> f64 {
    1.0
}

/// `exporter`: who asks the instances for their status and puts it into etcd.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExporterConfig {
    /// The exporter's name, another one for each exporter of a cluster.
    /// Default: `exporter-1`.
    #[serde(deserialize_with = "name")]
    pub id: String,
    /// How often each instance is asked, 100 ms to 1 min. Default: 1 s.
    #[serde(deserialize_with = "duration_ms::<100, 60_000, _>")]
    pub interval: Duration,
    /// How long one question may take, 10 ms to 1 min and at most `interval`.
    /// Default: 500 ms, or `interval` if that is shorter.
    #[serde(deserialize_with = "duration_ms::<10, 60_000, _>")]
    pub timeout: Duration,
    /// How often a failed question is asked again, 0 to 10. Default: 3.
    #[serde(deserialize_with = "integer::<0, 10, _, _>")]
    pub retries: u32,
    /// Where `/metrics` and `/healthz` are served. Default: `127.0.0.1:9180`.
    #[serde(deserialize_with = "addr")]
    pub listen: SocketAddr,
    /// How long etcd keeps what a vanished exporter wrote, 2 s to 10 min.
    /// Default: 10 s.
    #[serde(deserialize_with = "duration_ms::<2_000, 600_000, _>")]
    pub lease_ttl: Duration,
    /// How much a figure must have changed for an instance to be written again,
    /// as a part of what it was, 0 to 1; 0: each status is written. Default: 0.05.
    #[serde(deserialize_with = "number::<0, 1, _>")]
    pub deadband: f64,
    /// The longest time for which an instance is left out that is as it was,
    /// 100 ms to 5 s. Default: 3 s, or what fits into the window if that is
    /// shorter.
    #[serde(deserialize_with = "duration_ms::<100, 5_000, _>")]
    pub refresh: Duration,
    /// What `grpcs`, `orcas` and `healths` instances are checked by, and what
    /// they ask for.
    #[serde(deserialize_with = "object")]
    pub tls: TlsConfig,
}

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(500);
const DEFAULT_REFRESH: Duration = Duration::from_secs(3);

impl Default for ExporterConfig {
    fn default() -> Self {
        Self {
            id: "exporter-1".into(),
            interval: Duration::from_secs(1),
            timeout: DEFAULT_TIMEOUT,
            retries: 3,
            listen: SocketAddr::from(([127, 0, 0, 1], 9180)),
            lease_ttl: Duration::from_secs(10),
            deadband: 0.05,
            refresh: DEFAULT_REFRESH,
            tls: TlsConfig::default(),
        }
    }
}

// === parsing ===

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The text is not JSON; the cause has the line and the column.
    #[error("not JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    /// One key is unknown, missing, given twice, of a wrong type or out of its
    /// range.
    #[error("{path}: {source}")]
    Key {
        /// The key's full path, for instance `services.chat.balance.strategy`.
        path: String,
        /// What was found, what is allowed, and the line and the column.
        source: serde_json::Error,
    },
    /// Each key is right by itself, but not beside the others. All such
    /// conflicts of the file, at least one.
    #[error("{}", .0.iter().map(Conflict::to_string).collect::<Vec<_>>().join("; "))]
    Conflicts(Vec<Conflict>),
}

/// A key whose value does not fit those of other keys.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path}: {why}")]
pub struct Conflict {
    /// The key's full path.
    pub path: String,
    /// What it does not fit, and what is allowed.
    pub why: String,
}

/// Why a configuration file was not taken.
#[derive(Debug, Error)]
pub enum LoadError {
    /// It could not be read.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// What it says was refused.
    #[error("{}: {source}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
}

impl Config {
    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    /// [`LoadError`], which names the file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|source| LoadError::Refused { path: path.to_owned(), source })
    }

    /// Reads and validates the text of a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`]: the first key that is wrong by itself, or else
    /// everything in which keys contradict each other.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let Object(mut config) = serde_path_to_error::deserialize::<_, Object<Self>>(&mut json)?;
        json.end().map_err(ConfigError::Syntax)?;
        let window = config.window.bucket * config.window.buckets;
        let ExporterConfig { interval, timeout, refresh, .. } = &mut config.exporter;
        if *timeout == DEFAULT_TIMEOUT {
            *timeout = DEFAULT_TIMEOUT.min(*interval);
        }
        if *refresh == DEFAULT_REFRESH {
            *refresh = DEFAULT_REFRESH.min(window.saturating_sub(*interval));
        }
        config.services.values_mut().for_each(|service| service.check.fit());

        match config.conflicts() {
            none if none.is_empty() => Ok(config),
            conflicts => Err(ConfigError::Conflicts(conflicts)),
        }
    }

    /// The rules that hold between keys.
    fn conflicts(&self) -> Vec<Conflict> {
        let mut found = Vec::new();

        let EtcdConfig { prefix, prefixes, .. } = &self.etcd;
        let all = || {
            std::iter::once(("etcd.prefix".to_owned(), prefix)).chain(
                prefixes.iter().map(|(name, prefix)| (format!("etcd.prefixes.{name}"), prefix)),
            )
        };
        for (path, prefix) in all().skip(1) {
            let is_other = |other: &&(String, &String)| other.0 != path;
            let overlaps = |other: &&(String, &String)| {
                let (one, other) = (format!("{prefix}/"), format!("{}/", other.1));
                one.starts_with(&other) || other.starts_with(&one)
            };
            let all: Vec<_> = all().collect();
            if let Some((other, _)) = all.iter().filter(is_other).find(overlaps) {
                let why = format!("{prefix:?} and {other} overlap, expected one beside the other");
                found.push(Conflict { path, why });
            }
        }

        let EtcdConfig { username, password_file, tls, .. } = &self.etcd;
        found.extend(missing_half(
            ("etcd.username", username),
            ("etcd.password_file", password_file),
        ));
        found.extend(missing_half(("etcd.tls.cert", &tls.cert), ("etcd.tls.key", &tls.key)));
        let tls = &self.exporter.tls;
        found
            .extend(missing_half(("exporter.tls.cert", &tls.cert), ("exporter.tls.key", &tls.key)));

        for (service, ServiceConfig { instances, check, .. }) in &self.services {
            found.extend(check.conflicts(&format!("services.{service}.check")));
            let list = format!("services.{service}.instances");
            found.extend(repeated(&list, "id", instances.iter().map(|it| &it.id)));
            found.extend(repeated(&list, "addr", instances.iter().map(|it| it.addr)));
            for (index, instance) in instances.iter().enumerate() {
                found.extend(self.allow.check(instance).err().map(|outside| Conflict {
                    path: format!("{list}[{index}].{}", outside.what),
                    why: outside.to_string(),
                }));
            }
        }

        let ExporterConfig { interval, timeout, refresh, .. } = self.exporter;
        if timeout > interval {
            found.push(Conflict {
                path: "exporter.timeout".into(),
                why: format!(
                    "{} is longer than exporter.interval, expected at most {}",
                    humantime::format_duration(timeout),
                    humantime::format_duration(interval)
                ),
            });
        }

        // Two reports at the least, or figures come and go between them.
        let window = self.window.bucket * self.window.buckets;
        if window < 2 * interval {
            found.push(Conflict {
                path: "window".into(),
                why: format!(
                    "buckets x bucket is {}, expected at least {}: twice exporter.interval",
                    humantime::format_duration(window),
                    humantime::format_duration(2 * interval)
                ),
            });
        } else if window < interval + refresh {
            found.push(Conflict {
                path: "exporter.refresh".into(),
                why: format!(
                    "{} and exporter.interval are longer than the window, expected at most {}",
                    humantime::format_duration(refresh),
                    humantime::format_duration(window - interval)
                ),
            });
        }
        found
    }
}

/// The conflict of two keys of which one alone is set.
fn missing_half(one: (&str, &str), other: (&str, &str)) -> Option<Conflict> {
    let (missing, set) = match (one.1.is_empty(), other.1.is_empty()) {
        (true, false) => (one.0, other.0),
        (false, true) => (other.0, one.0),
        _ => return None,
    };
    Some(Conflict {
        path: missing.into(),
        why: format!("empty while {set} is set, expected both or neither"),
    })
}

/// The conflicts of a list whose entries may not share their values of `key`.
fn repeated<T: Eq + Hash + Display>(
    list: &str,
    key: &str,
    values: impl Iterator<Item = T>,
) -> Vec<Conflict> {
    let mut firsts = HashMap::new();
    let mut found = Vec::new();
    for (index, value) in values.enumerate() {
        match firsts.entry(value) {
            Entry::Vacant(unseen) => _ = unseen.insert(index),
            Entry::Occupied(first) => found.push(Conflict {
                path: format!("{list}[{index}].{key}"),
                why: format!(
                    "{} is that of {list}[{}] too, expected another one for each instance",
                    first.key(),
                    first.get()
                ),
            }),
        }
    }
    found
}

impl From<serde_path_to_error::Error<serde_json::Error>> for ConfigError {
    fn from(err: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = match err.path().to_string() {
            // A key without a name there is no path either.
            root if root == "." || root.is_empty() => "top level".into(),
            path => path,
        };
        match err.into_inner() {
            source if source.is_data() => Self::Key { path, source },
            source => Self::Syntax(source),
        }
    }
}

#[cfg(test)]
mod tests;
