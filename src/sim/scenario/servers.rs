//! Groups of servers.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::HOUR;
use crate::config::values::{Choice, choice, duration_ms, integer, number, object};
use crate::model::is_name;
use crate::sim::distribution::Distribution;

/// `servers[]`: some servers that are alike.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Another one for each group.
    pub name: String,
    /// How many there are, 1 to 10000. Default: 1.
    #[serde(default = "one", deserialize_with = "integer::<1, 10_000, _, _>")]
    pub count: u32,
    /// How many requests each serves at once, 1 to 1000. Default: 1.
    #[serde(default = "one", deserialize_with = "integer::<1, 1000, _, _>")]
    pub slots: u32,
    /// How many may wait, 0 to 1000000; what comes on top is failed at once.
    /// Default: any number.
    #[serde(default, deserialize_with = "some_integer")]
    pub queue: Option<u32>,
    /// How long one takes.
    #[serde(deserialize_with = "object")]
    pub service: ServiceTime,
    /// Divides service times; above 0. Default: 1.
    #[serde(default = "one_f64", deserialize_with = "number::<0, 1000, _>")]
    pub speed: f64,
    /// The weight that an operator gave it, 0 to 1000. Default: 1.
    #[serde(default = "one_f64", deserialize_with = "number::<0, 1000, _>")]
    pub weight: f64,
    /// Where it is; empty, the default, for nowhere.
    #[serde(default)]
    pub zone: String,
    /// Whether what waits is served though its client has gone: who reads a request
    /// only when its turn comes sees no more of the client. Default: no.
    #[serde(default)]
    pub serves_abandoned: bool,
    /// What each tells of its utilization. Default: the truth.
    #[serde(default)]
    pub told_utilization: Option<Told>,
    /// Requests a second that come to each past the gateways, 0 to 1000000. Default: 0.
    #[serde(default, deserialize_with = "number::<0, 1_000_000, _>")]
    pub other_rate: f64,
}

/// `servers[].told_utilization`: what a server tells, by what is true.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// The true one times this, 0 to 1000: of a service that waits, CPU is so small a
    /// part.
    Factor(#[serde(deserialize_with = "number::<0, 1000, _>")] f64),
    /// This, whatever is true; 0 to 1000.
    Fixed(#[serde(deserialize_with = "number::<0, 1000, _>")] f64),
}

/// `servers[].service`: how long a request takes at speed 1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceTime {
    /// Default: exponential.
    #[serde(default, deserialize_with = "choice")]
    pub distribution: Form,
    /// Above 0, up to 1 h.
    #[serde(deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub mean: Duration,
    /// Of `lognormal` alone: deviation over mean, 0 to 100. Default: 1.
    #[serde(default, deserialize_with = "some_number::<0, 100, _>")]
    pub cv: Option<f64>,
    /// Of `bounded_pareto` alone: the tail's exponent, 1 to 10. Default: 1.5.
    #[serde(default, deserialize_with = "some_number::<1, 10, _>")]
    pub alpha: Option<f64>,
}

/// A distribution's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    #[default]
    Exponential,
    Lognormal,
    TruncatedNormal,
    BoundedPareto,
    Deterministic,
}

impl Choice for Form {
    const ALL: &'static [(&'static str, Self)] = &[
        ("exponential", Self::Exponential),
        ("lognormal", Self::Lognormal),
        ("truncated_normal", Self::TruncatedNormal),
        ("bounded_pareto", Self::BoundedPareto),
        ("deterministic", Self::Deterministic),
    ];
}

impl Group {
    /// The rules that a key's type does not say.
    pub(super) fn check(&self, mut refuse: impl FnMut(&str, String)) {
        if self.speed == 0.0 {
            refuse("speed", "0, expected more than 0".into());
        }
        if !self.zone.is_empty() && !is_name(&self.zone) {
            let allowed = "1 to 128 characters out of A-Z a-z 0-9 . _ : -";
            refuse("zone", format!("{:?} is not a name: {allowed}", self.zone));
        }
        let ServiceTime { distribution, mean, cv, alpha } = self.service;
        if mean.is_zero() {
            refuse("service.mean", "0s, expected more than 0s".into());
        }
        if cv.is_some() && distribution != Form::Lognormal {
            refuse("service.cv", "expected with the distribution lognormal alone".into());
        }
        if alpha.is_some() && distribution != Form::BoundedPareto {
            refuse("service.alpha", "expected with the distribution bounded_pareto alone".into());
        }
    }
}

impl Told {
    /// What is told where this is true.
    pub fn of(self, utilization: f64) -> f64 {
        match self {
            Self::Factor(factor) => factor * utilization,
            Self::Fixed(told) => told,
        }
    }
}

impl ServiceTime {
    /// The distribution.
    pub fn distribution(&self) -> Distribution {
        let mean_s = self.mean.as_secs_f64();
        match self.distribution {
            Form::Exponential => Distribution::exponential(mean_s),
            Form::Deterministic => Distribution::deterministic(mean_s),
            Form::TruncatedNormal => Distribution::truncated_normal(mean_s),
            Form::Lognormal => Distribution::lognormal(mean_s, self.cv.unwrap_or(1.0)),
            Form::BoundedPareto => Distribution::bounded_pareto(mean_s, self.alpha.unwrap_or(1.5)),
        }
    }
}

fn one() -> u32 {
    1
}

fn one_f64() -> f64 {
    1.0
}

pub(super) fn some_integer<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    integer::<0, 1_000_000, _, _>(from).map(Some)
}

fn some_number<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<f64>, D::Error> {
    number::<MIN, MAX, _>(from).map(Some)
}
