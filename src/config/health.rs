//! `services.<service>.health`: who is left out for a while as its requests fail.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::values::{List, duration_ms, integer, number, object, string_that_is};

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
    #[serde(deserialize_with = "statuses")]
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
            failures: Statuses::default(),
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

/// A set of statuses from 400 to 599.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Statuses([u64; 4]);

impl Statuses {
    const FIRST: u16 = 400;
    const LAST: u16 = 599;

    /// Whether a status is one of them.
    pub fn has(&self, status: u16) -> bool {
        let Some(bit) = status.checked_sub(Self::FIRST) else { return false };
        let word = self.0.get(usize::from(bit / 64)).copied().unwrap_or(0);
        word >> (bit % 64) & 1 == 1
    }

    fn add(&mut self, statuses: std::ops::RangeInclusive<u16>) {
        for bit in statuses.map(|status| status - Self::FIRST) {
            self.0[usize::from(bit / 64)] |= 1 << (bit % 64);
        }
    }
}

impl Default for Statuses {
    fn default() -> Self {
        let mut statuses = Statuses([0; 4]);
        statuses.add(500..=Self::LAST);
        statuses
    }
}

impl fmt::Debug for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((Self::FIRST..=Self::LAST).filter(|it| self.has(*it))).finish()
    }
}

fn statuses<'de, D: Deserializer<'de>>(from: D) -> Result<Statuses, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Entry(#[serde(deserialize_with = "entry")] std::ops::RangeInclusive<u16>);

    let List(entries) = List::<Entry>::deserialize(from)?;
    let mut statuses = Statuses([0; 4]);
    for Entry(range) in entries {
        statuses.add(range);
    }
    Ok(statuses)
}

fn entry<'de, D: Deserializer<'de>>(from: D) -> Result<std::ops::RangeInclusive<u16>, D::Error> {
    let expected = r#""4xx", "5xx" or a status from "400" to "599""#;
    string_that_is(expected, from, |text| match text {
        "4xx" => Some(400..=499),
        "5xx" => Some(500..=599),
        _ if text.len() == 3 => {
            let status = text.parse().ok()?;
            (Statuses::FIRST..=Statuses::LAST).contains(&status).then_some(status..=status)
        }
        _ => None,
    })
}
