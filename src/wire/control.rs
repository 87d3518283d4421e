//! The value of `control/<service>`: an operator's hand on one service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{RecordError, refuse_larger_than};
use crate::config::rules::rules;
use crate::config::values::{Choice, Object, choice, name, number, string_that_is, unique_keys};
use crate::config::{ConfigError, Conflict, Rule, Strategy};

/// The largest value that is read, in bytes: room for the weights of 10,000
/// instances.
pub const MAX_CONTROL_BYTES: usize = 512 * 1024;

/// What an operator wants of a service. All that is left out stays as it would be
/// without.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    /// Where the weights come from. Default: auto.
    #[serde(deserialize_with = "choice")]
    pub mode: ControlMode,
    /// By instance, 0 to 1000; in [`ControlMode::Manual`] alone, and then one at least
    /// is above 0. An instance that is not named has 0.
    #[serde(deserialize_with = "weights")]
    pub weights: BTreeMap<String, f64>,
    /// In place of the configured one.
    #[serde(deserialize_with = "strategy")]
    pub strategy: Option<Strategy>,
    /// In place of the configured ones, all of them; an empty list is none.
    #[serde(deserialize_with = "some_rules")]
    pub rules: Option<Vec<Rule>>,
    /// Instances that get no new requests, and are otherwise as they were.
    #[serde(deserialize_with = "ids")]
    pub drain: BTreeSet<String>,
    /// Instances that count as if they were not registered.
    #[serde(deserialize_with = "ids")]
    pub disable: BTreeSet<String>,
    /// When all of this lapses, as in RFC 3339: `2026-11-20T18:00:00Z`. Default: never.
    #[serde(deserialize_with = "time")]
    pub expires: Option<SystemTime>,
    /// Who wrote it.
    pub by: String,
    /// Why.
    pub why: String,
}

/// Where a service's weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlMode {
    /// The ranking.
    #[default]
    Auto,
    /// The operator.
    Manual,
}

impl Choice for ControlMode {
    const ALL: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("manual", Self::Manual)];
}

impl Control {
    /// The operator's weight of an instance, in manual mode.
    pub fn manual_weight(&self, id: &str) -> Option<f64> {
        let is_manual = self.mode == ControlMode::Manual;
        is_manual.then(|| self.weights.get(id).copied().unwrap_or(0.0))
    }

    /// Whether its time is over.
    pub fn has_lapsed(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    /// Whether an instance is offered, as far as the operator is concerned.
    pub fn offers(&self, id: &str) -> bool {
        !self.drain.contains(id) && !self.disable.contains(id)
    }

    fn conflict(&self) -> Option<Conflict> {
        let conflict =
            |path: &str, why: &str| Some(Conflict { path: path.into(), why: why.into() });
        let is_manual = self.mode == ControlMode::Manual;
        if is_manual && !self.weights.values().any(|&weight| weight > 0.0) {
            return conflict(
                "weights",
                "no weight is above 0, expected one at least in mode manual",
            );
        }
        if !is_manual && !self.weights.is_empty() {
            return conflict(
                "weights",
                "found in mode auto, expected \"mode\": \"manual\" beside them",
            );
        }
        None
    }
}

/// Reads an operator's value, whole or not at all.
///
/// # Errors
/// [`RecordError`] if it is larger than [`MAX_CONTROL_BYTES`], is no JSON object, or
/// has a key that is unknown, wrong or contradicts another.
pub fn decode_control(value: &[u8]) -> Result<Control, RecordError> {
    refuse_larger_than(MAX_CONTROL_BYTES, value)?;
    let mut json = serde_json::Deserializer::from_slice(value);
    let Object(control) = serde_path_to_error::deserialize::<_, Object<Control>>(&mut json)
        .map_err(|error| RecordError::Control(error.into()))?;
    json.end().map_err(|error| RecordError::Control(ConfigError::Syntax(error)))?;
    match control.conflict() {
        Some(conflict) => Err(RecordError::Control(ConfigError::Conflicts(vec![conflict]))),
        None => Ok(control),
    }
}

/// Writes what `control` says onto `value`: an earlier value, or an empty one. What is
/// as it would be without is left out; keys that are not written here stay as they are,
/// so that a change of one thing loses no other.
pub fn encode_control(control: &Control, mut value: Map<String, Value>) -> Map<String, Value> {
    let mut put = |key: &str, json: Option<Value>| match json {
        Some(json) => _ = value.insert(key.to_owned(), json),
        None => _ = value.remove(key),
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    let ids = |ids: &BTreeSet<String>| (!ids.is_empty()).then(|| ids.iter().cloned().collect());
    let weights = control.weights.iter().map(|(id, &weight)| (id.clone(), weight.into()));
    put("mode", (control.mode == ControlMode::Manual).then(|| "manual".into()));
    put("weights", (!control.weights.is_empty()).then(|| weights.collect::<Map<_, _>>().into()));
    put("strategy", control.strategy.map(|strategy| strategy.as_str().into()));
    put("drain", ids(&control.drain));
    put("disable", ids(&control.disable));
    let expires = control.expires.map(|time| humantime::format_rfc3339(time).to_string());
    put("expires", expires.map(Value::from));
    let rules =
        |rules: &Vec<Rule>| serde_json::to_value(rules).expect("plain data has a JSON form");
    put("rules", control.rules.as_ref().map(rules));
    put("by", text(&control.by));
    put("why", text(&control.why));
    value
}

/// An instance's id, as a key or as an entry of a list.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
struct Id(#[serde(deserialize_with = "name")] String);

impl From<Id> for String {
    fn from(Id(id): Id) -> Self {
        id
    }
}

fn weights<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Weight(#[serde(deserialize_with = "number::<0, 1000, _>")] f64);

    let weights = unique_keys::<D, Id, Weight>(from)?;
    Ok(weights.into_iter().map(|(id, Weight(weight))| (id, weight)).collect())
}

fn ids<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
    let ids = Vec::<Id>::deserialize(from)?;
    Ok(ids.into_iter().map(String::from).collect())
}

fn strategy<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Strategy>, D::Error> {
    choice(from).map(Some)
}

fn some_rules<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Rule>>, D::Error> {
    rules(from).map(Some)
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
    string_that_is("a time as in RFC 3339, such as 2026-11-20T18:00:00Z", from, |text| {
        humantime::parse_rfc3339(text).ok().map(Some)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::{btree_map, btree_set};
    use proptest::option;
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use proptest::sample::select;
    use proptest::strategy::Strategy as Generator;

    use super::*;

    /// The last second that RFC 3339 can say: the end of the year 9999.
    const LAST_S: u64 = 253_402_300_799;

    /// Any that can be read.
    fn any_control() -> impl Generator<Value = Control> {
        let id = "[A-Za-z0-9._:-]{1,12}";
        let time = (0..=LAST_S, 0..1_000_000_000_u32);
        let time = time.prop_map(|(s, ns)| SystemTime::UNIX_EPOCH + Duration::new(s, ns));
        let strategies: Vec<_> = Strategy::ALL.iter().map(|(_, it)| *it).collect();
        // Of so few digits that reading them loses none.
        let weight = (1..=1_000_000_u32).prop_map(|it| f64::from(it) / 1e3);
        (
            option::of(btree_map(id, weight, 1..5)),
            option::of(select(strategies)),
            btree_set(id, 0..4),
            btree_set(id, 0..4),
            option::of(time),
            any::<String>(),
            any::<String>(),
        )
            .prop_map(|(weights, strategy, drain, disable, expires, by, why)| Control {
                mode: if weights.is_some() { ControlMode::Manual } else { ControlMode::Auto },
                weights: weights.unwrap_or_default(),
                strategy,
                drain,
                disable,
                expires,
                rules: None,
                by,
                why,
            })
    }

    fn written(control: &Control, onto: Map<String, Value>) -> Vec<u8> {
        serde_json::to_vec(&encode_control(control, onto)).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_it_was(control in any_control()) {
            prop_assert_eq!(decode_control(&written(&control, Map::new())).unwrap(), control);
        }

        #[test]
        fn nothing_is_left_of_the_value_that_is_written_over(
            (earlier, control) in (any_control(), any_control()),
        ) {
            let onto = encode_control(&earlier, Map::new());
            prop_assert_eq!(decode_control(&written(&control, onto)).unwrap(), control);
        }
    }

    #[test]
    fn keys_of_tomorrow_stay_and_what_says_nothing_is_left_out() {
        let onto = serde_json::json!({"of_tomorrow": [1], "mode": "auto", "drain": []});
        let onto = onto.as_object().unwrap().clone();
        let value = encode_control(&Control::default(), onto);
        assert_eq!(Value::from(value), serde_json::json!({"of_tomorrow": [1]}));
    }

    fn decode(text: &str) -> Result<Control, String> {
        decode_control(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_operators_value_says_what_it_wants_and_nothing_else_changes() {
        let control = decode(
            r#"{"mode": "manual", "weights": {"a": 3, "b": 0.5}, "strategy": "chash",
                "drain": ["c"], "disable": ["d"], "expires": "1970-01-01T00:01:00Z",
                "by": "ann", "why": "a bad day"}"#,
        )
        .unwrap();
        assert_eq!(
            ["a", "b", "x"].map(|id| control.manual_weight(id)),
            [Some(3.0), Some(0.5), Some(0.0)]
        );
        assert_eq!(control.strategy, Some(Strategy::Chash));
        assert_eq!(["a", "c", "d"].map(|id| control.offers(id)), [true, false, false]);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!control.has_lapsed(at(59)) && control.has_lapsed(at(60)));

        let control = decode(r#"{"rules": [{"name": "new", "to": {"version": "2"}}]}"#).unwrap();
        assert_eq!(control.rules.map(|rules| rules[0].name.clone()), Some("new".into()));
        assert_eq!(decode(r#"{"rules": []}"#).unwrap().rules, Some(vec![]));

        let nothing = decode("{}").unwrap();
        assert_eq!(nothing, Control::default());
        assert_eq!(nothing.manual_weight("a"), None);
        assert!(nothing.offers("a") && !nothing.has_lapsed(at(u64::from(u32::MAX))));
    }

    #[test]
    fn a_bad_value_is_refused_with_what_was_found_and_what_is_allowed() {
        for (text, says) in [
            ("[]", "expected an object"),
            ("{", "EOF while parsing"),
            (r#"{"mode": "maual"}"#, r#"mode: "maual" is not one of auto, manual"#),
            (r#"{"mode": "manual"}"#, "weights: no weight is above 0"),
            (r#"{"weights": {"a": 1}}"#, "weights: found in mode auto"),
            (r#"{"mode": "manual", "weights": {"a": 1001}}"#, "expected a number from 0 to 1000"),
            (r#"{"mode": "manual", "weights": {"a": 1, "a": 2}}"#, "duplicate key"),
            (r#"{"rules": [{"name": "a"}]}"#, "rules[0]: missing field `to`"),
            (r#"{"rules": null}"#, "rules: invalid type"),
            (r#"{"drain": "a"}"#, "drain: invalid type"),
            (r#"{"drain": ["a b"]}"#, "drain[0]: "),
            (r#"{"strategy": "fastest"}"#, "strategy: "),
            (r#"{"expires": "tomorrow"}"#, "expires: \"tomorrow\" is not a time"),
            (r#"{"draining": []}"#, "unknown field `draining`"),
        ] {
            let error = decode(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_value_that_is_too_large_is_not_parsed() {
        let error = decode_control(&vec![b' '; MAX_CONTROL_BYTES + 1]).unwrap_err();
        assert_eq!(error.reason(), "too_large");
    }
}
