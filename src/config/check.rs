//! `services.<service>.check`: how the gateway itself checks the instances.

use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::Conflict;
use super::statuses::{Statuses, statuses};
use super::values::{Choice, choice, duration_ms, integer, string_that_is};

/// `services.<service>.check`: how the gateway itself checks the instances; by
/// default it does not.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckConfig {
    /// The path of a GET request; empty, the default: none is sent.
    #[serde(deserialize_with = "path")]
    pub http: String,
    /// Whether a connection that is accepted is enough. Default: no.
    pub tcp: bool,
    /// How often each instance is checked, 100 ms to 1 min. Default: 2 s.
    #[serde(deserialize_with = "duration_ms::<100, 60_000, _>")]
    pub interval: Duration,
    /// How long one check may take, 10 ms to 1 min and at most `interval`.
    /// Default: 1 s, or `interval` if that is shorter.
    #[serde(deserialize_with = "duration_ms::<10, 60_000, _>")]
    pub timeout: Duration,
    /// So many good checks in a row bring an instance back, 1 to 100. Default: 2.
    #[serde(deserialize_with = "integer::<1, 100, _, _>")]
    pub rise: u32,
    /// So many failed checks in a row put an instance out, 1 to 100. Default: 3.
    #[serde(deserialize_with = "integer::<1, 100, _, _>")]
    pub fall: u32,
    /// The port that is checked; 0, the default: the instance's.
    #[serde(deserialize_with = "integer::<0, 65_535, _, _>")]
    pub port: u16,
    /// The request's `Host`; empty, the default: the address.
    #[serde(deserialize_with = "host")]
    pub host: String,
    /// The statuses that are good. Default: 2xx and 3xx.
    #[serde(deserialize_with = "good")]
    pub status: Statuses,
    /// Which of the gateways check an instance. Default: all.
    #[serde(deserialize_with = "choice")]
    pub by: CheckBy,
}

/// Which gateways check an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CheckBy {
    /// Each by itself.
    #[default]
    All,
    /// One of those that share the work, which tells the others.
    One,
}

impl Choice for CheckBy {
    const ALL: &'static [(&'static str, Self)] = &[("all", Self::All), ("one", Self::One)];
}

pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

impl Default for CheckConfig {
    fn default() -> Self {
        Self {
            http: String::new(),
            tcp: false,
            interval: Duration::from_secs(2),
            timeout: DEFAULT_TIMEOUT,
            rise: 2,
            fall: 3,
            port: 0,
            host: String::new(),
            status: Statuses::of_classes(2..=3),
            by: CheckBy::All,
        }
    }
}

impl CheckConfig {
    /// Whether anything is checked at all.
    pub fn is_on(&self) -> bool {
        self.tcp || !self.http.is_empty()
    }

    /// Whether a check that is answered with this status is good.
    pub fn is_good(&self, status: u16) -> bool {
        self.status.has(status)
    }

    /// The default timeout is never longer than the interval.
    pub(super) fn fit(&mut self) {
        if self.timeout == DEFAULT_TIMEOUT {
            self.timeout = DEFAULT_TIMEOUT.min(self.interval);
        }
    }

    /// The rules that hold between the keys, which are at `path`.
    pub(super) fn conflicts(&self, path: &str) -> Vec<Conflict> {
        let mut found = Vec::new();
        let mut conflict = |key: &str, why: &str| {
            found.push(Conflict { path: format!("{path}{key}"), why: why.to_owned() });
        };
        let default = Self::default();
        if self.tcp && !self.http.is_empty() {
            conflict("", "found http and tcp, expected one of them");
        }
        if !self.is_on() && *self != default {
            conflict("", "neither http nor tcp is set, expected one of them beside other keys");
        }
        if self.tcp && self.host != default.host {
            conflict(".host", "a tcp check sends no request, expected no host");
        }
        if self.tcp && self.status != default.status {
            conflict(".status", "a tcp check has no status, expected no list of them");
        }
        if self.timeout > self.interval {
            let [timeout, interval] = [self.timeout, self.interval].map(humantime::format_duration);
            let why = format!("{timeout} is longer than interval, expected at most {interval}");
            conflict(".timeout", &why);
        }
        found
    }
}

fn path<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let expected = "a path that begins with /, or empty for no request";
    string_that_is(expected, from, |text| {
        let is_path =
            || text.starts_with('/') && text.parse::<PathAndQuery>().is_ok_and(|it| it == text);
        (text.is_empty() || is_path()).then(|| text.to_owned())
    })
}

fn host<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("a host name, with or without a port, or empty", from, |text| {
        let is_host = || !text.contains('@') && text.parse::<Authority>().is_ok();
        (text.is_empty() || is_host()).then(|| text.to_owned())
    })
}

fn good<'de, D: Deserializer<'de>>(from: D) -> Result<Statuses, D::Error> {
    let statuses = statuses::<2, D>(from)?;
    match statuses.is_empty() {
        true => Err(D::Error::custom("the list is empty, expected at least one status")),
        false => Ok(statuses),
    }
}
