//! Scenario files: which servers, which traffic, what happens to them.
//!
//! JSON, read as the configuration file is: an error names the key by its path,
//! what was found and what is allowed. Durations carry a unit. Where keys contradict
//! each other, all contradictions are told at once.
//!
//! ```json
//! {
//!   "about": "one of five falls to a fifth of its speed",
//!   "servers": [
//!     { "name": "a", "count": 4, "slots": 4,
//!       "service": { "distribution": "lognormal", "mean": "10ms", "cv": 1 } },
//!     { "name": "b", "slots": 4, "service": { "mean": "10ms" } }
//!   ],
//!   "traffic": { "rate": 1200 },
//!   "faults": [ { "slowdown": { "servers": "b", "from": "20s", "for": "10s", "speed": 0.2 } } ],
//!   "policies": ["adaptive", "p2c"],
//!   "duration": "60s"
//! }
//! ```

mod faults;
mod servers;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub use self::faults::{
    Antagonist, ClockJump, Cold, Direction, Disorder, Errors, Fault, Late, Lie, Membership, Outage,
    RollingRestart, Slowdown, Span, Tale,
};
pub use self::servers::{Form, Group, ServiceTime, Told};
use crate::config::values::{Object, duration_ms, integer, number, object};
use crate::config::{
    ConfigError, Conflict, FailureConfig, HealthConfig, LoadError, ServiceConfig, SlowStartConfig,
    WindowConfig, ZoneConfig,
};
use crate::model::is_name;

/// Servers are told apart by 16 bits.
pub const MAX_SERVERS: u32 = 10_000;
/// Gateways times their workers.
const MAX_WORKERS: u32 = 1024;
/// An hour, in milliseconds.
pub(super) const HOUR: u64 = 3_600_000;

/// One scenario, valid by construction if it comes from [`parse`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about, for people.
    #[serde(default)]
    pub about: String,
    /// The servers, in groups of equal ones; at least one.
    #[serde(deserialize_with = "objects")]
    pub servers: Vec<Group>,
    /// The requests.
    #[serde(deserialize_with = "object")]
    pub traffic: Traffic,
    /// Who shares them out.
    #[serde(default, deserialize_with = "object")]
    pub gateways: Gateways,
    /// How our strategies' service is governed. Default: no health, no retry budget.
    #[serde(default, deserialize_with = "some_object")]
    pub service: Option<Governed>,
    /// What gateways hear of servers.
    #[serde(default, deserialize_with = "object")]
    pub reports: Reports,
    /// What goes wrong. Default: nothing.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// The policies to compare, by name. Default: [all](super::names).
    #[serde(default = "super::names")]
    pub policies: Vec<String>,
    /// A run for each. Default: `[1]`.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// How long requests come, 1 s to 1 h.
    #[serde(deserialize_with = "duration_ms::<1_000, HOUR, _>")]
    pub duration: Duration,
    /// What comes in this time does not count. Default: 10 s.
    #[serde(default = "default_warmup", deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub warmup: Duration,
    /// The same with other values, each a scenario of its own; without any, there is
    /// the file's alone.
    #[serde(default, deserialize_with = "objects")]
    pub variants: Vec<Variant>,
}

/// `variants[]`: what differs, as a JSON merge patch (RFC 7396).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// A name: 1 to 128 characters out of `A-Z a-z 0-9 . _ : -`.
    pub name: String,
    /// Keys of the file with other values.
    #[serde(rename = "with")]
    pub patch: serde_json::Map<String, Value>,
}

/// `traffic`: requests that come by chance, whatever becomes of those before them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Requests a second, from all clients; 0 to 10000000.
    #[serde(deserialize_with = "number::<0, 10_000_000, _>")]
    pub rate: f64,
    /// How that changes; in order of time.
    #[serde(default, deserialize_with = "objects")]
    pub changes: Vec<Change>,
}

/// `traffic.changes[]`: another rate.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// When it begins.
    #[serde(deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub at: Duration,
    /// Requests a second from then on.
    #[serde(deserialize_with = "number::<0, 10_000_000, _>")]
    pub rate: f64,
    /// How long it takes to get there, evenly. Default: 0 s.
    #[serde(default, deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub over: Duration,
}

/// `gateways`: who shares requests out. Each request comes to any worker alike.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateways {
    /// How many hosts, 1 to 1024. Default: 4.
    #[serde(deserialize_with = "integer::<1, 1024, _, _>")]
    pub count: u32,
    /// Workers of each; all hosts' together are at most 1024. Default: 1.
    #[serde(deserialize_with = "integer::<1, 1024, _, _>")]
    pub workers: u32,
    /// How long one try may take, 1 ms to 1 h. A request that is not answered counts
    /// in latencies with at least so much. Default: 5 s.
    #[serde(deserialize_with = "duration_ms::<1, HOUR, _>")]
    pub timeout: Duration,
    /// How many more servers a request may go to after its first try failed or was
    /// given up, 0 to 16. Default: 0.
    #[serde(deserialize_with = "integer::<0, 16, _, _>")]
    pub retries: u32,
    /// The hosts' zones, which they have in turn: the first host has the first one.
    /// Default: none.
    pub zones: Vec<String>,
}

impl Default for Gateways {
    fn default() -> Self {
        let timeout = Duration::from_secs(5);
        Self { count: 4, workers: 1, timeout, retries: 0, zones: Vec::new() }
    }
}

impl Gateways {
    /// A host's zone: its place among `zones`; `None` if there are none.
    pub fn zone_of(&self, gateway: u32) -> Option<usize> {
        (gateway as usize).checked_rem(self.zones.len())
    }
}

/// `service`: what the configuration says in `services.<service>`, of what governs a
/// ranking and of what becomes of failures.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Governed {
    /// Who is left out for a while as its requests fail.
    #[serde(deserialize_with = "object")]
    pub health: HealthConfig,
    /// What becomes of requests whose try failed.
    #[serde(deserialize_with = "object")]
    pub failure: FailureConfig,
    /// How fast a new instance gets its share.
    #[serde(deserialize_with = "object")]
    pub slow_start: SlowStartConfig,
    /// How a gateway in a zone keeps to it.
    #[serde(deserialize_with = "object")]
    pub zone: ZoneConfig,
}

impl Governed {
    /// The same as the configuration has it, beside all else by default.
    pub fn config(&self) -> ServiceConfig {
        let Self { health, failure, slow_start, zone } = self.clone();
        ServiceConfig { health, failure, slow_start, zone, ..ServiceConfig::default() }
    }
}

/// `reports`: what servers tell, and how long it takes to reach gateways.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reports {
    /// Between two reports of a server, 1 ms to 10 min. Default: 1 s.
    #[serde(deserialize_with = "duration_ms::<1, 600_000, _>")]
    pub interval: Duration,
    /// From a server's word to the first gateway, 0 s to 10 min. Default: 20 ms.
    #[serde(deserialize_with = "duration_ms::<0, 600_000, _>")]
    pub delay: Duration,
    /// How much longer to the last gateway, 0 s to 10 min. Default: 0 s.
    #[serde(deserialize_with = "duration_ms::<0, 600_000, _>")]
    pub spread: Duration,
    /// How many exporters there are, each with its part of the servers and its own
    /// time in the interval; 1 to 1000. Default: 1.
    #[serde(deserialize_with = "integer::<1, 1000, _, _>")]
    pub exporters: u32,
    /// What gateways look back on. Default: the configuration's; with a long
    /// interval, five buckets that hold two reports.
    #[serde(deserialize_with = "some_object")]
    pub window: Option<WindowConfig>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            delay: Duration::from_millis(20),
            spread: Duration::ZERO,
            exporters: 1,
            window: None,
        }
    }
}

// === values ===

fn default_seeds() -> Vec<u64> {
    vec![1]
}

fn default_warmup() -> Duration {
    Duration::from_secs(10)
}

fn some_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    object(from).map(Some)
}

fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Object<T>>::deserialize(from)?.into_iter().map(|Object(it)| it).collect())
}

impl Traffic {
    /// The rate at a time, in requests a second.
    pub fn rate_at(&self, seconds: f64) -> f64 {
        self.changes.iter().fold(self.rate, |before, change| {
            let since = seconds - change.at.as_secs_f64();
            match change.over.as_secs_f64() {
                _ if since < 0.0 => before,
                over if since < over => before + (change.rate - before) * since / over,
                _ => change.rate,
            }
        })
    }

    /// No rate is above this.
    pub fn largest_rate(&self) -> f64 {
        self.changes.iter().map(|change| change.rate).fold(self.rate, f64::max)
    }
}

// === files ===

/// A scenario with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The file's, and the variant's if it has any.
    pub name: String,
    pub scenario: Scenario,
}

/// Reads a file's scenarios, named after it.
///
/// # Errors
/// [`LoadError`], which names the file.
pub fn load(path: &Path) -> Result<Vec<Named>, LoadError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    parse(&name, &text).map_err(|source| LoadError::Refused { path: path.to_owned(), source })
}

/// Reads the scenarios in a file's text.
///
/// # Errors
/// [`ConfigError`]: the first key that is wrong by itself, or else everything in
/// which keys contradict each other.
pub fn parse(name: &str, text: &str) -> Result<Vec<Named>, ConfigError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let Object(scenario) = serde_path_to_error::deserialize::<_, Object<Scenario>>(&mut json)?;
    json.end().map_err(ConfigError::Syntax)?;
    scenario.check()?;
    if scenario.variants.is_empty() {
        return Ok(vec![Named { name: name.to_owned(), scenario }]);
    }

    let mut base: Value = serde_json::from_str(text).map_err(ConfigError::Syntax)?;
    base.as_object_mut().map(|keys| keys.remove("variants"));
    let variants = scenario.variants.iter().enumerate().map(|(index, variant)| {
        let mut patched = base.clone();
        merge(&mut patched, Value::Object(variant.patch.clone()));
        let within = |error| match error {
            ConfigError::Key { path, source } => {
                ConfigError::Key { path: format!("variants[{index}].with.{path}"), source }
            }
            ConfigError::Conflicts(conflicts) => ConfigError::Conflicts(
                conflicts
                    .into_iter()
                    .map(|Conflict { path, why }| Conflict {
                        path: format!("variants[{index}].with.{path}"),
                        why,
                    })
                    .collect(),
            ),
            syntax => syntax,
        };
        let Object(scenario) = serde_path_to_error::deserialize::<_, Object<Scenario>>(patched)
            .map_err(ConfigError::from)
            .map_err(within)?;
        scenario.check().map_err(within)?;
        Ok(Named { name: format!("{name}: {}", variant.name), scenario })
    });
    variants.collect()
}

/// RFC 7396.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(serde_json::Map::new());
    }
    let Some(keys) = into.as_object_mut() else { return };
    for (key, value) in patch {
        match value {
            Value::Null => _ = keys.remove(&key),
            value => merge(keys.entry(key).or_insert(Value::Null), value),
        }
    }
}

impl Scenario {
    fn check(&self) -> Result<(), ConfigError> {
        match self.conflicts() {
            none if none.is_empty() => Ok(()),
            conflicts => Err(ConfigError::Conflicts(conflicts)),
        }
    }

    /// The rules that hold between keys, and those that a key's type does not say.
    fn conflicts(&self) -> Vec<Conflict> {
        let mut found = Vec::new();
        let mut refuse = |path: String, why: String| found.push(Conflict { path, why });

        if self.servers.is_empty() {
            refuse("servers".into(), "the list is empty, expected at least one group".into());
        }
        let total: u32 = self.servers.iter().map(|group| group.count).sum();
        if total > MAX_SERVERS {
            refuse("servers".into(), format!("{total} servers, expected at most {MAX_SERVERS}"));
        }
        for (index, group) in self.servers.iter().enumerate() {
            let at = |key: &str| format!("servers[{index}].{key}");
            if !is_name(&group.name) {
                let allowed = "1 to 128 characters out of A-Z a-z 0-9 . _ : -";
                refuse(at("name"), format!("{:?} is not a name: {allowed}", group.name));
            }
            if self.servers[..index].iter().any(|other| other.name == group.name) {
                let why = "is another group's too, expected another one for each group";
                refuse(at("name"), format!("{:?} {why}", group.name));
            }
            group.check(|key, why| refuse(at(key), why));
        }
        for (index, zone) in self.gateways.zones.iter().enumerate() {
            if !is_name(zone) {
                let allowed = "1 to 128 characters out of A-Z a-z 0-9 . _ : -";
                let why = format!("{zone:?} is not a name: {allowed}");
                refuse(format!("gateways.zones[{index}]"), why);
            }
        }

        for (index, pair) in self.traffic.changes.windows(2).enumerate() {
            if pair[1].at < pair[0].at {
                let why = "earlier than the change before it, expected in order of time";
                refuse(format!("traffic.changes[{}].at", index + 1), why.into());
            }
        }
        let workers = self.gateways.count * self.gateways.workers;
        if workers > MAX_WORKERS {
            let why = format!("{workers} with gateways.count, expected at most {MAX_WORKERS}");
            refuse("gateways.workers".into(), why);
        }
        if self.warmup >= self.duration {
            refuse("warmup".into(), "not shorter than duration, expected less than that".into());
        }
        if self.seeds.is_empty() {
            refuse("seeds".into(), "the list is empty, expected at least one number".into());
        }
        if self.policies.is_empty() {
            refuse("policies".into(), "the list is empty, expected at least one name".into());
        }
        for (index, name) in self.policies.iter().enumerate() {
            if super::Chooser::named(name).is_none() {
                let why = format!("{name:?} is not one of {}", super::names().join(", "));
                refuse(format!("policies[{index}]"), why);
            }
        }
        for (index, variant) in self.variants.iter().enumerate() {
            if !is_name(&variant.name) {
                let allowed = "1 to 128 characters out of A-Z a-z 0-9 . _ : -";
                let why = format!("{:?} is not a name: {allowed}", variant.name);
                refuse(format!("variants[{index}].name"), why);
            }
        }
        for (index, fault) in self.faults.iter().enumerate() {
            self.check_fault(fault, |key, why| {
                refuse(format!("faults[{index}].{}.{key}", fault.name()), why);
            });
        }
        found
    }

    fn check_fault(&self, fault: &Fault, mut refuse: impl FnMut(&str, String)) {
        if let Some(name) = fault.servers()
            && !self.servers.iter().any(|group| group.name == name)
        {
            let names: Vec<_> = self.servers.iter().map(|group| group.name.as_str()).collect();
            refuse("servers", format!("{name:?} is not one of {}", names.join(", ")));
        }
        match fault {
            Fault::Slowdown(Slowdown { speed: 0.0, .. })
            | Fault::Cold(Cold { speed: 0.0, .. })
            | Fault::Antagonist(Antagonist { speed: 0.0, .. }) => {
                refuse("speed", "0, expected more than 0; pause stops servers".into());
            }
            _ => {}
        }
    }

    /// The numbers of the servers that a fault names.
    pub fn hit(&self, servers: Option<&str>, count: Option<u32>) -> std::ops::Range<u32> {
        let mut first = 0;
        for group in &self.servers {
            if servers == Some(&group.name) {
                return first..first + count.unwrap_or(group.count).min(group.count);
            }
            first += group.count;
        }
        0..count.unwrap_or(first).min(first)
    }
}

#[cfg(test)]
mod tests;
