//! Files: the operator's configuration, and what was left on disk.

use std::time::Duration;

use ipconfig::config::{Config, ConfigError};
use ipconfig::registry::Registry;
use ipconfig::snapshot::{Miss, Snapshot};
use tokio::time::Instant;

use super::{Seen, refused, size, taken, with_one_other_bit};

/// The configuration file.
pub fn config(bytes: &[u8]) -> Seen {
    let Ok(text) = str::from_utf8(bytes) else { return 0 };
    let found = match Config::parse(text) {
        Ok(found) => found,
        Err(error) => {
            match &error {
                ConfigError::Key { path, .. } => assert!(!path.is_empty()),
                ConfigError::Conflicts(all) => {
                    assert!(!all.is_empty() && all.iter().all(|it| !it.path.is_empty()));
                }
                ConfigError::Syntax(_) => {}
            }
            return refused(bytes, &error);
        }
    };
    let Config { etcd, window, fallback, exporter, services, .. } = &found;
    assert!(!etcd.endpoints.is_empty() && etcd.prefix.starts_with('/'));
    assert!((1..=60).contains(&window.buckets));
    assert!(exporter.timeout <= exporter.interval);
    assert!(window.bucket * window.buckets >= 2 * exporter.interval);
    assert!((Duration::from_secs(1)..=Duration::from_mins(10)).contains(&fallback.after));
    let now = Instant::now();
    let mut registry = Registry::new(&found, now);
    let mut instances = 0;
    for (name, service) in services {
        assert_eq!(registry.known(name, now).len(), service.instances.len());
        instances += service.instances.len();
        registry.service(name, now).expect("a configured service");
    }
    let rules: usize = services.values().map(|service| service.rules.len()).sum();
    let checks = services.values().filter(|service| service.check.is_on()).count();
    taken((size(services.len()), size(instances), size(rules), size(checks), etcd.prefixes.len()))
}

/// The file of `snapshot.path`: as it is, or, where it does not begin as one does, as
/// the body of one.
pub fn snapshot(bytes: &[u8]) -> Seen {
    let found = match Snapshot::decode(bytes) {
        Ok(found) => {
            assert!(Snapshot::decode(&with_one_other_bit(bytes)).is_err(), "a damaged file");
            found
        }
        Err(Miss::Foreign) if !bytes.is_empty() => match Snapshot::decode(&with_header(bytes)) {
            Ok(found) => found,
            Err(error) => return refused(bytes, &error),
        },
        Err(error) => return refused(bytes, &error),
    };
    let written = found.encode();
    let read = Snapshot::decode(&written).expect("what was written is read");
    assert_eq!(read, found);
    assert_eq!(read.encode(), written);

    // Of a service that is gone at once, everything is kept for now.
    let mut next = Snapshot { as_of_ms: found.as_of_ms, ..Snapshot::default() };
    next.hold_losses(&found, Duration::from_mins(10), |_| true);
    for (service, records) in &found.services {
        if found.doubted.contains_key(service) {
            continue; // it may have been lost for long enough
        }
        let held = next.services.get(service).map_or(0, |it| it.instances.len());
        assert!(held == records.instances.len(), "{held} of {service:?}");
    }

    let mut config = Config::default();
    config.snapshot.path = "/nowhere".into();
    config.discover = ipconfig::config::Discover::All;
    let now = Instant::now();
    let mut registry = Registry::new(&config, now);
    let restored = registry.restore(&found, now);
    let records = found.services.values().map(|it| it.instances.len() + it.controls.len());
    assert!(restored <= records.sum());
    assert!(!registry.is_whole(), "a snapshot is no list");
    let kept = registry.snapshot(found.as_of_ms);
    let mut second = Registry::new(&config, now);
    assert_eq!(second.restore(&kept, now), restored);
    assert_eq!(second.snapshot(found.as_of_ms), kept, "what is in force stays in force");
    taken((size(found.size().0), size(restored), size(found.had.len() + found.doubted.len())))
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let covered = [format!("{:016x}\n", body.len()).as_bytes(), body].concat();
    let head = format!("ipconfig-snapshot 1 {:08x} ", crc32fast::hash(&covered));
    [head.as_bytes(), &covered].concat()
}
