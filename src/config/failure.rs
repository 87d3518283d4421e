//! `services.<service>.failure`: what becomes of a request whose try failed.

use std::time::Duration;

use serde::Deserialize;

use super::values::{Choice, choice, duration_ms, integer, object};

/// `services.<service>.failure`: what becomes of a request whose try failed, and of
/// the instance that failed it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailureConfig {
    /// What becomes of the request. Default: failover.
    #[serde(deserialize_with = "choice")]
    pub mode: FailureMode,
    /// With `failcache`: how long an instance that failed rests on this host, 100 ms
    /// to 10 min. Default: 10 s.
    #[serde(deserialize_with = "duration_ms::<100, 600_000, _>")]
    pub rest: Duration,
    /// How many requests may be tried again.
    #[serde(deserialize_with = "object")]
    pub budget: BudgetConfig,
}

impl Default for FailureConfig {
    fn default() -> Self {
        Self {
            mode: FailureMode::default(),
            rest: Duration::from_secs(10),
            budget: BudgetConfig::default(),
        }
    }
}

/// What becomes of a request whose try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailureMode {
    /// It goes to another instance, `balance.tries` times.
    #[default]
    Failover,
    /// It has failed: nginx answers as it does.
    Failfast,
    /// It has failed, and the answer's headers say how.
    Failback,
    /// As `failover`, and the instance rests.
    Failcache,
}

impl Choice for FailureMode {
    const ALL: &'static [(&'static str, Self)] = &[
        ("failover", Self::Failover),
        ("failfast", Self::Failfast),
        ("failback", Self::Failback),
        ("failcache", Self::Failcache),
    ];
}

/// `services.<service>.failure.budget`: a bucket of tokens for all workers of this
/// host, which begins full. A second or later try takes a token out of it.
///
/// Source: Finagle's `RetryBudget`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// What each request puts into the bucket, in hundredths of a token: the second
    /// tries that there may be, in percent of the requests. 0 to 1000. Default: 20.
    #[serde(deserialize_with = "integer::<0, 1000, _, _>")]
    pub percent: u32,
    /// What the bucket holds, in tokens, 0 to 10000. Default: 100.
    #[serde(deserialize_with = "integer::<0, 10_000, _, _>")]
    pub reserve: u32,
    /// What time puts into it, in tokens a second, 0 to 10000: for services of few
    /// requests. Default: 10.
    #[serde(deserialize_with = "integer::<0, 10_000, _, _>")]
    pub per_second: u32,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { percent: 20, reserve: 100, per_second: 10 }
    }
}
