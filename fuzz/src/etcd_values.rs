//! Keys and values of etcd in JSON: whoever may write below the prefix writes them.

use std::collections::BTreeMap;

use ipconfig::config::{Config, MAX_RULES, Rule, Strategy};
use ipconfig::model::{Instance, MAX_IN_FLIGHT, MAX_WEIGHT, is_name, parse_addr};
use ipconfig::wire::checks::{MAX_CHECKS_BYTES, MAX_FAILING, decode_checks, encode_checks};
use ipconfig::wire::control::{
    Control, ControlMode, MAX_CONTROL_BYTES, decode_control, encode_control,
};
use ipconfig::wire::{
    MAX_INSTANCE_BYTES, decode_exporter, decode_instance, encode_exporter, encode_instance,
    keep_drain, parse_key,
};
use serde::de::IgnoredAny;
use serde_json::Map;

use super::{Seen, is_same, refused, size, taken};

/// `instances/<service>/<id>`.
pub fn instance(bytes: &[u8]) -> Seen {
    let found = match decode_instance("a", bytes) {
        Ok(found) => found,
        Err(error) => {
            assert_eq!(keep_drain(bytes, DRAINING), bytes, "what is no registration stays");
            return refused(bytes, &error);
        }
    };
    assert!(bytes.len() <= MAX_INSTANCE_BYTES);
    assert!((0.0..=MAX_WEIGHT).contains(&found.weight), "weight {}", found.weight);
    assert!(found.max_in_flight <= MAX_IN_FLIGHT);
    assert!(parse_addr(&found.addr.to_string()).is_ok(), "addr {}", found.addr);
    let written = encode_instance(&found);
    if written.len() <= MAX_INSTANCE_BYTES {
        let read = decode_instance("a", &written).expect("what was written is read");
        assert!(is_same(read.weight, found.weight));
        assert_eq!(Instance { weight: found.weight, ..read }, found);
        let kept = decode_instance("a", &keep_drain(bytes, DRAINING)).expect("it is one still");
        assert!(kept.drain && kept.addr == found.addr, "it drains, and is the same otherwise");
    }
    assert_eq!(keep_drain(bytes, b"{}"), bytes, "nobody wished that it drains");
    let Instance { zone, labels, status, drain, max_in_flight, addr, .. } = &found;
    let scheme = status.as_ref().map(|url| url.scheme());
    let parts = (zone.is_empty(), size(labels.len()), *drain, *max_in_flight > 0, addr.is_ipv6());
    taken((scheme, parts))
}

const DRAINING: &[u8] = br#"{"addr": "10.0.0.5:80", "drain": true}"#;

/// `control/<service>`.
pub fn control(bytes: &[u8]) -> Seen {
    let found = match decode_control(bytes) {
        Ok(found) => found,
        Err(error) => return refused(bytes, &error),
    };
    assert!(bytes.len() <= MAX_CONTROL_BYTES);
    let is_manual = found.mode == ControlMode::Manual;
    assert_eq!(is_manual, found.weights.values().any(|weight| *weight > 0.0));
    assert!(found.weights.values().all(|weight| (0.0..=1000.0).contains(weight)));
    let ids = found.weights.keys().chain(&found.drain).chain(&found.disable);
    ids.for_each(|id| assert!(is_name(id), "id {id:?}"));
    if let Some(rules) = &found.rules {
        assert_are_sound(rules);
    }
    let written = serde_json::to_vec(&encode_control(&found, Map::new())).expect("JSON");
    if written.len() <= MAX_CONTROL_BYTES {
        let mut read = decode_control(&written).expect("what was written is read");
        assert!(read.weights.keys().eq(found.weights.keys()));
        assert!(read.weights.values().zip(found.weights.values()).all(|(a, b)| is_same(*a, *b)));
        read.weights.clone_from(&found.weights);
        assert_are_same(read.rules.take().as_deref(), found.rules.as_deref());
        assert_eq!(Control { rules: found.rules.clone(), ..read }, found);
    }
    let Control { weights, strategy, rules, drain, disable, expires, .. } = &found;
    let rules = rules.as_ref().map(Vec::len);
    let sizes = [weights.len(), drain.len(), disable.len()].map(size);
    taken((is_manual, sizes, strategy.map(Strategy::as_str), rules, expires.is_some()))
}

/// A list of rules, in the control value and in the configuration: both take it, or
/// neither.
pub fn rules(bytes: &[u8]) -> Seen {
    // What is one value by itself is one where it stands in another.
    let Ok(text) = str::from_utf8(bytes) else { return 0 };
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        return refused(bytes, &error);
    }
    let control = decode_control(format!(r#"{{"rules": {text}}}"#).as_bytes());
    let config = Config::parse(&format!(r#"{{"services": {{"s": {{"rules": {text}}}}}}}"#));
    match (control, config) {
        (Ok(control), Ok(config)) => {
            let rules = control.rules.expect("there are some");
            assert_are_sound(&rules);
            assert_eq!(config.services["s"].rules, rules);
            let every = rules.iter().flat_map(|rule| &rule.to);
            let every: BTreeMap<_, _> = every.map(|(k, v)| (k.clone(), v.clone())).collect();
            let mut conditions = [0; 3];
            for rule in &rules {
                assert!(rule.selects(&rule.to) && !rule.selects(&BTreeMap::new()));
                for (sum, of_one) in conditions.iter_mut().zip([
                    rule.header.len(),
                    rule.cookie.len(),
                    rule.query.len(),
                ]) {
                    *sum += of_one;
                }
            }
            let written = serde_json::to_string(&rules).expect("JSON");
            let read = decode_control(format!(r#"{{"rules": {written}}}"#).as_bytes());
            assert_are_same(read.expect("what was written is read").rules.as_deref(), Some(&rules));
            taken((rules.len(), size(every.len()), conditions.map(size)))
        }
        (Err(error), Err(_)) => refused(bytes, &error),
        (control, config) => panic!("control: {control:?}, configuration: {:?}", config.is_ok()),
    }
}

fn assert_are_sound(rules: &[Rule]) {
    assert!(rules.len() <= MAX_RULES);
    for (index, rule) in rules.iter().enumerate() {
        assert!(is_name(&rule.name) && !rule.to.is_empty());
        assert!((0.0..=100.0).contains(&rule.percent), "percent {}", rule.percent);
        assert!(rules[..index].iter().all(|other| other.name != rule.name));
    }
}

fn assert_are_same(read: Option<&[Rule]>, found: Option<&[Rule]>) {
    assert_eq!(read.map(<[Rule]>::len), found.map(<[Rule]>::len));
    for (read, found) in read.into_iter().flatten().zip(found.into_iter().flatten()) {
        assert!(is_same(read.percent, found.percent));
        assert_eq!(Rule { percent: found.percent, ..read.clone() }, *found);
    }
}

/// `checks/<gateway>/<service>`.
pub fn checks(bytes: &[u8]) -> Seen {
    let found = match decode_checks(bytes) {
        Ok(found) => found,
        Err(error) => return refused(bytes, &error),
    };
    assert!(bytes.len() <= MAX_CHECKS_BYTES);
    assert!(found.revision >= 0 && found.failing.len() <= MAX_FAILING);
    for (id, failing) in &found.failing {
        assert!(is_name(id) && parse_addr(&failing.addr.to_string()).is_ok());
        assert!(failing.reason.bytes().all(|it| it.is_ascii_lowercase() || it == b'_'));
    }
    let written = encode_checks(&found);
    assert!(written.len() <= MAX_CHECKS_BYTES, "what was read can be written");
    assert_eq!(decode_checks(&written).expect("what was written is read"), found);
    taken((found.follows.is_some(), size(found.failing.len())))
}

/// `exporters/<id>`.
pub fn exporter(bytes: &[u8]) -> Seen {
    let found = match decode_exporter(bytes) {
        Ok(found) => found,
        Err(error) => return refused(bytes, &error),
    };
    let written = encode_exporter(&found);
    if written.len() <= MAX_INSTANCE_BYTES {
        assert_eq!(decode_exporter(&written).expect("what was written is read"), found);
    }
    taken((found.registrations.is_empty(), found.listen.is_ipv6()))
}

/// A key: what is understood is written in one way alone.
pub fn key(bytes: &[u8]) -> Seen {
    const PREFIX: &str = "/ipconfig/v1";
    match parse_key(PREFIX, bytes) {
        Ok(key) => {
            assert_eq!(key.to_path(PREFIX).as_bytes(), bytes);
            taken(std::mem::discriminant(&key))
        }
        Err(error) => refused(bytes, &error),
    }
}
