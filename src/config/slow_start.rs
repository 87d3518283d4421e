//! `services.<service>.slow_start`: how fast a new instance gets its share.

use std::time::Duration;

use serde::Deserialize;

use super::values::{duration_ms, integer, number};

/// `services.<service>.slow_start`: an instance that is new, was started anew or is
/// back gets `max(min %, (age / window)^(1 / aggression))` of its weight.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlowStartConfig {
    /// How long that takes, up to 1 h. Default: 0 s, not at all.
    #[serde(deserialize_with = "duration_ms::<0, 3_600_000, _>")]
    pub window: Duration,
    /// What it begins with, in percent of its weight, 1 to 100. Default: 10.
    #[serde(deserialize_with = "integer::<1, 100, _, _>")]
    pub min: u32,
    /// 1, the default, is a straight line; more gives more at the beginning, up to
    /// 10.
    #[serde(deserialize_with = "number::<1, 10, _>")]
    pub aggression: f64,
}

impl Default for SlowStartConfig {
    fn default() -> Self {
        Self { window: Duration::ZERO, min: 10, aggression: 1.0 }
    }
}
