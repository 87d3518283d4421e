//! `services.<service>.health`: who is left out for a while as its requests fail.

use std::time::Duration;

use serde::Deserialize;

use super::statuses::{Statuses, statuses};
use super::values::{duration_ms, integer, number, object};

/// `services.<service>.health`: an instance whose requests fail, as this host sees
/// it, gets none for a while.
///
/// Sources of the rules and defaults: Envoy's `outlier_detection.proto`, gRPC's A50.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthConfig {
    /// Failures in a row that eject, 0 to 1000; 0 for none. Default: 5.
    #[serde(deserialize_with = "integer::<0, 1000, _, _>")]
    pub consecutive_failures: u32,
    /// How often instances are compared, 100 ms to 10 min. Default: 10 s.
    #[serde(deserialize_with = "duration_ms::<100, 600_000, _>")]
    pub interval: Duration,
    /// How long the first ejection lasts, and how much longer each further one, 100 ms
    /// to 1 h. Default: 30 s.
    #[serde(deserialize_with = "duration_ms::<100, 3_600_000, _>")]
    pub base_ejection: Duration,
    /// The longest that one lasts, if that is not shorter than the first, 100 ms to
    /// 24 h. Default: 5 min.
    #[serde(deserialize_with = "duration_ms::<100, 86_400_000, _>")]
    pub max_ejection: Duration,
    /// The most of a service's instances that may be ejected at once, in percent, and
    /// one in any case; 0 for none. Default: 10.
    #[serde(deserialize_with = "integer::<0, 100, _, _>")]
    pub max_ejected: u32,
    /// Whose requests succeed less often than the others'.
    #[serde(deserialize_with = "object")]
    pub success_rate: SuccessRateConfig,
    /// Whose requests mostly fail.
    #[serde(deserialize_with = "object")]
    pub failure_percentage: FailurePercentageConfig,
    /// Which statuses are failures. Default: `5xx`.
    #[serde(deserialize_with = "statuses::<4, _>")]
    pub failures: Statuses,
    /// With fewer than so many percent of the instances healthy, all get requests, 0 to
    /// 100. Default: 50.
    #[serde(deserialize_with = "integer::<0, 100, _, _>")]
    pub panic: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected: 10,
            success_rate: SuccessRateConfig::default(),
            failure_percentage: FailurePercentageConfig::default(),
            failures: Statuses::of_classes(5..=5),
            panic: 50,
        }
    }
}

/// `services.<service>.health.success_rate`: ejected is whose part of successes is
/// less than `mean - stdev * standard deviation` of all.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuccessRateConfig {
    /// So many standard deviations, 0 to 10; 0: nobody is ejected. Default: 1.9.
    #[serde(deserialize_with = "number::<0, 10, _>")]
    pub stdev: f64,
    /// So many instances are to be compared at least, 1 to 10000. Default: 5.
    #[serde(deserialize_with = "integer::<1, 10_000, _, _>")]
    pub min_instances: u32,
    /// Those with fewer requests in an interval are not, 1 to 1000000. Default: 100.
    #[serde(deserialize_with = "integer::<1, 1_000_000, _, _>")]
    pub min_requests: u64,
}

impl Default for SuccessRateConfig {
    fn default() -> Self {
        Self { stdev: 1.9, min_instances: 5, min_requests: 100 }
    }
}

/// `services.<service>.health.failure_percentage`: ejected is of whose requests so
/// many fail.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailurePercentageConfig {
    /// In percent, 0 to 100; 0: nobody is ejected. Default: 85.
    #[serde(deserialize_with = "number::<0, 100, _>")]
    pub threshold: f64,
    /// So many instances are to have enough requests, 1 to 10000. Default: 5.
    #[serde(deserialize_with = "integer::<1, 10_000, _, _>")]
    pub min_instances: u32,
    /// How many in an interval that is, 1 to 1000000. Default: 50.
    #[serde(deserialize_with = "integer::<1, 1_000_000, _, _>")]
    pub min_requests: u64,
}

impl Default for FailurePercentageConfig {
    fn default() -> Self {
        Self { threshold: 85.0, min_instances: 5, min_requests: 50 }
    }
}
