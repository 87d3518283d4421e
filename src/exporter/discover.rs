//! Which instances there are to ask and to register: those that the
//! configuration names.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::config::ServiceConfig;
use crate::model::{StatusProtocol, StatusUrl};
use crate::wire::{self, Key};

/// The most instances whose statuses share one key of etcd: about 6 kB a put.
const INSTANCES_PER_SHARD: usize = 100;

/// An instance to ask for its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its service's name.
    pub service: String,
    /// Unique within the service.
    pub id: String,
    /// Which part of the service's instances it belongs to.
    pub shard: u32,
    /// Whom to ask over gRPC, `host:port`.
    pub authority: String,
}

/// An instance's status is declared under a protocol that the exporter does not
/// speak.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "services.{service}.instances: {id} declares the status {status}, but this version asks grpc:// only"
)]
pub struct UnsupportedProtocol {
    service: String,
    id: String,
    status: StatusUrl,
}

/// The instances that declare a status, in the configuration's order.
///
/// # Errors
/// [`UnsupportedProtocol`] for the first that cannot be asked.
pub fn targets(
    services: &BTreeMap<String, ServiceConfig>,
) -> Result<Vec<Target>, UnsupportedProtocol> {
    let mut targets = Vec::new();
    for (service, config) in services {
        let declared = config.instances.iter().filter_map(|i| Some((&i.id, i.status.as_ref()?)));
        for (index, (id, status)) in declared.enumerate() {
            let (service, id) = (service.clone(), id.clone());
            if status.protocol != StatusProtocol::Grpc {
                return Err(UnsupportedProtocol { service, id, status: status.clone() });
            }
            let shard = u32::try_from(index / INSTANCES_PER_SHARD).unwrap_or(u32::MAX);
            targets.push(Target { service, id, shard, authority: status.authority.clone() });
        }
    }
    Ok(targets)
}

/// The record of each configured instance, whether it declares a status or not.
pub fn registrations(services: &BTreeMap<String, ServiceConfig>) -> Vec<(Key, Vec<u8>)> {
    let of_service = |(service, config): (&String, &ServiceConfig)| {
        let service = service.clone();
        config.instances.clone().into_iter().map(move |instance| {
            let value = wire::encode_instance(&instance);
            (Key::Instance { service: service.clone(), id: instance.id }, value)
        })
    };
    services.iter().flat_map(of_service).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Instance;

    fn services(name: &str, statuses: &[Option<&str>]) -> BTreeMap<String, ServiceConfig> {
        let instance = |(index, status): (usize, &Option<&str>)| Instance {
            id: format!("{name}-{index}"),
            addr: "127.0.0.1:9001".parse().unwrap(),
            weight: 1.0,
            zone: String::new(),
            labels: BTreeMap::new(),
            status: status.map(|url| url.parse().unwrap()),
            drain: false,
        };
        let instances = statuses.iter().enumerate().map(instance).collect();
        BTreeMap::from([(name.to_owned(), ServiceConfig { instances, ..Default::default() })])
    }

    #[test]
    fn an_instance_without_a_status_is_registered_and_not_asked() {
        let services = services("chat", &[None, Some("grpc://10.0.0.5:9090")]);
        let targets = targets(&services).unwrap();
        let expected = Target {
            service: "chat".into(),
            id: "chat-1".into(),
            shard: 0,
            authority: "10.0.0.5:9090".into(),
        };
        assert_eq!(targets, [expected]);
        let ids: Vec<Key> = registrations(&services).into_iter().map(|(key, _)| key).collect();
        let key = |id: &str| Key::Instance { service: "chat".into(), id: id.into() };
        assert_eq!(ids, [key("chat-0"), key("chat-1")]);
    }

    #[test]
    fn a_shard_holds_at_most_100_instances() {
        let services = services("chat", &[Some("grpc://10.0.0.5:9090"); 250]);
        let shards: Vec<u32> = targets(&services).unwrap().iter().map(|t| t.shard).collect();
        let count = |shard| shards.iter().filter(|s| **s == shard).count();
        assert_eq!([count(0), count(1), count(2), count(3)], [100, 100, 50, 0]);
    }

    #[test]
    fn a_protocol_that_is_not_spoken_is_refused_by_name() {
        for url in ["orca://10.0.0.5:9090", "health://10.0.0.5:9090"] {
            let services = services("chat", &[Some("grpc://10.0.0.5:9090"), Some(url)]);
            let message = targets(&services).unwrap_err().to_string();
            for part in ["services.chat.instances", "chat-1", url, "grpc:// only"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }
}
