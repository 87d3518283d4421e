//! `gateway`: who this gateway is, and where.

use serde::{Deserialize, Deserializer};

use super::values::name;

/// `gateway`: who this gateway is.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Another one for each gateway; it decides which instances of a service are
    /// this gateway's [`subset`](super::SubsetConfig). Empty, the default: the
    /// host's name.
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// The zone that it is in, as instances say theirs; empty, the default: no zone
    /// is nearer than another.
    pub zone: String,
}

impl GatewayConfig {
    /// [`id`](Self::id), or the host's name; the same for all gateways where
    /// neither is known.
    pub fn identity(&self) -> String {
        if !self.id.is_empty() {
            return self.id.clone();
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    }
}

/// Reads `gateway.id`: a name, or nothing.
fn id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    match text.is_empty() {
        true => Ok(text),
        false => name(serde::de::value::StrDeserializer::<D::Error>::new(&text)),
    }
}
