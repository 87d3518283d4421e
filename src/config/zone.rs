//! `services.<service>.zone` and `services.<service>.subset`: which of a service's
//! instances are this gateway's.

use serde::Deserialize;

use super::values::{integer, subset_size};

/// `services.<service>.zone`: how a gateway in a zone keeps to it.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZoneConfig {
    /// Whether requests stay in the gateway's zone where they can. Default: true;
    /// without `gateway.zone` it has no effect.
    pub prefer: bool,
    /// How full its instances may become by that, in percent of what they can
    /// answer, 10 to 100. Default: 80.
    #[serde(deserialize_with = "integer::<10, 100, _, _>")]
    pub utilization: u32,
    /// What each other zone gets all the same, in percent of the requests, 0 to 10.
    /// Default: 1.
    #[serde(deserialize_with = "integer::<0, 10, _, _>")]
    pub floor: u32,
}

impl Default for ZoneConfig {
    fn default() -> Self {
        Self { prefer: true, utilization: 80, floor: 1 }
    }
}

/// `services.<service>.subset`: how many of the instances one gateway uses.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubsetConfig {
    /// So many, 2 to 10,000. Default: 0, all of them.
    #[serde(deserialize_with = "subset_size")]
    pub size: usize,
}
