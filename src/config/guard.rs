//! `services.<service>.guard`: how many instances a service may lose at once.

use std::time::Duration;

use serde::Deserialize;

use super::values::{duration_ms, integer};

/// `services.<service>.guard`: instances whose registrations vanish with most of the
/// others' are kept for a while, doubtful.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardConfig {
    /// The most of its instances that a service may lose within `window`, in percent, 0
    /// to 100; 100: the guard is off. Default: 50.
    #[serde(deserialize_with = "integer::<0, 100, _, _>")]
    pub max_loss: u32,
    /// Losses so near to each other are one, 1 s to 10 min. At least as long as the
    /// leases of the registrations. Default: 15 s.
    #[serde(deserialize_with = "duration_ms::<1_000, 600_000, _>")]
    pub window: Duration,
    /// How long one that is kept and answers stays, 1 s to 1 h. Default: 30 s.
    #[serde(deserialize_with = "duration_ms::<1_000, 3_600_000, _>")]
    pub hold: Duration,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { max_loss: 50, window: Duration::from_secs(15), hold: Duration::from_secs(30) }
    }
}
