//! Routing rules: which requests go to which instances, by labels. The same in the
//! configuration file and in `control/<service>`.
//!
//! Lua evaluates the conditions (`lua/resty/ipconfig/rules.lua`), so that they are
//! equality, presence and one of a list, and no regular expression: an event loop is
//! no place for one that takes long.

use std::collections::BTreeMap;
use std::collections::HashSet;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::values::{List, Object, name, string_that_is, unique_keys};

/// The most rules of a service: workers tell them by the bits of 16.
pub const MAX_RULES: usize = 16;

/// The most labels that a rule asks for, conditions of each kind that it has, and
/// values of a list.
const MAX_ENTRIES: usize = 16;

/// The longest value that a condition or a label is compared with, in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// The longest name of a header, a cookie or an argument.
const MAX_FIELD_BYTES: usize = 64;

/// `services.<service>.rules[]`: one rule. A request is taken by the first rule of
/// which all conditions hold, and which has an instance left for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Another one for each rule of a service.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Its instances: those that have all of these labels; one at least.
    #[serde(deserialize_with = "labels")]
    pub to: BTreeMap<String, String>,
    /// What the request's headers must have. Default: anything.
    #[serde(default, deserialize_with = "conditions", skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, Wanted>,
    /// The same of its cookies.
    #[serde(default, deserialize_with = "conditions", skip_serializing_if = "BTreeMap::is_empty")]
    pub cookie: BTreeMap<String, Wanted>,
    /// The same of the arguments in its query.
    #[serde(default, deserialize_with = "conditions", skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, Wanted>,
    /// How many of the requests that meet the conditions it takes, 0 to 100 in steps
    /// of 0.01. Default: all, 100.
    #[serde(default = "all", deserialize_with = "percent")]
    pub percent: f64,
    /// What those are told by, `header:NAME`, `cookie:NAME` or `query:NAME`: all
    /// requests of one key are taken, or none. Default: the key of `balance()`.
    #[serde(default, deserialize_with = "key", skip_serializing_if = "String::is_empty")]
    pub key: String,
}

/// What a condition wants of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// That it is there, or that it is not.
    Present(bool),
    /// That it is one of these; one at least.
    OneOf(Vec<String>),
}

impl Rule {
    /// Whether an instance of these labels is one of its.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.to.iter().all(|(label, value)| labels.get(label) == Some(value))
    }
}

/// The rules that select an instance of these labels: bit 0 for the first.
pub fn groups_of(rules: &[Rule], labels: &BTreeMap<String, String>) -> u16 {
    let bit = |(index, rule): (usize, &Rule)| u16::from(rule.selects(labels)) << index;
    rules.iter().take(MAX_RULES).enumerate().map(bit).sum()
}

/// Reads a list of rules.
pub fn rules<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Rule>, D::Error> {
    let List(rules) = List::<Object<Rule>>::deserialize(from)?;
    if rules.len() > MAX_RULES {
        let found = rules.len();
        return Err(D::Error::custom(format_args!(
            "found {found} rules, expected at most {MAX_RULES}"
        )));
    }
    let mut names = HashSet::new();
    for Object(rule) in &rules {
        if !names.insert(rule.name.as_str()) {
            return Err(D::Error::custom(format_args!(
                "two rules have the name {:?}, expected another one for each",
                rule.name
            )));
        }
    }
    Ok(rules.into_iter().map(|Object(rule)| rule).collect())
}

fn all() -> f64 {
    100.0
}

fn percent<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let percent = super::values::number::<0, 100, D>(from)?;
    let steps = percent * 100.0;
    match (steps - steps.round()).abs() < 1e-6 {
        true => Ok(percent),
        false => Err(D::Error::custom(format_args!(
            "found {percent}, expected a number from 0 to 100 in steps of 0.01"
        ))),
    }
}

fn key<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("a key: header:NAME, cookie:NAME or query:NAME", from, |text| {
        let (kind, field) = text.split_once(':')?;
        let is_kind = matches!(kind, "header" | "cookie" | "query");
        (is_kind && is_field(field)).then(|| text.to_owned())
    })
}

/// Whether this may name a header, a cookie or an argument: what nginx has a
/// variable for.
fn is_field(text: &str) -> bool {
    (1..=MAX_FIELD_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The name of a header, a cookie or an argument.
#[derive(Deserialize)]
#[serde(transparent)]
struct Field(#[serde(deserialize_with = "field")] String);

impl From<Field> for String {
    fn from(Field(field): Field) -> Self {
        field
    }
}

fn field<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("a name: 1 to 64 characters out of A-Z a-z 0-9 . _ -", from, |text| {
        is_field(text).then(|| text.to_owned())
    })
}

/// What is compared.
#[derive(Deserialize)]
#[serde(transparent)]
struct Value(#[serde(deserialize_with = "value")] String);

fn value<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    string_that_is("a string of at most 256 bytes", from, |text| {
        (text.len() <= MAX_VALUE_BYTES).then(|| text.to_owned())
    })
}

fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = unique_keys::<D, String, Value>(from)?;
    match labels.len() {
        1..=MAX_ENTRIES => Ok(labels.into_iter().map(|(key, Value(value))| (key, value)).collect()),
        found => {
            Err(D::Error::custom(format_args!("found {found} labels, expected 1 to {MAX_ENTRIES}")))
        }
    }
}

fn conditions<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Wanted>, D::Error> {
    let conditions = unique_keys::<D, Field, Wanted>(from)?;
    match conditions.len() {
        0..=MAX_ENTRIES => Ok(conditions),
        found => Err(D::Error::custom(format_args!(
            "found {found} conditions, expected at most {MAX_ENTRIES}"
        ))),
    }
}

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a string, a list of 1 to 16 strings of at most 256 bytes, \
                                true for present or false for absent";
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Present(bool),
            One(Value),
            Some(Vec<Value>),
        }

        let found = serde_json::Value::deserialize(from)?;
        match Written::deserialize(&found) {
            Ok(Written::Present(is_present)) => Ok(Wanted::Present(is_present)),
            Ok(Written::One(Value(value))) => Ok(Wanted::OneOf(vec![value])),
            Ok(Written::Some(values)) if (1..=MAX_ENTRIES).contains(&values.len()) => {
                Ok(Wanted::OneOf(values.into_iter().map(|Value(value)| value).collect()))
            }
            _ => Err(D::Error::custom(format_args!("found {found}, expected {EXPECTED}"))),
        }
    }
}

impl Serialize for Wanted {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Wanted::Present(is_present) => to.serialize_bool(*is_present),
            Wanted::OneOf(values) if values.len() == 1 => to.serialize_str(&values[0]),
            Wanted::OneOf(values) => values.serialize(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Vec<Rule>, String> {
        let mut json = serde_json::Deserializer::from_str(text);
        rules(&mut json).map_err(|error| error.to_string())
    }

    fn of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn a_rule_is_read_as_it_is_written_and_written_as_it_is_read() {
        let text = r#"[{"name": "beta", "to": {"version": "2.0", "tier": "b"},
            "header": {"X-Beta": "1", "X-Region": ["eu", "us"]}, "cookie": {"beta": true},
            "query": {"old": false}, "percent": 0.25, "key": "cookie:uid"},
            {"name": "rest", "to": {"version": "1.0"}}]"#;
        let rules = read(text).unwrap();
        assert_eq!(rules[0].to, of(&[("version", "2.0"), ("tier", "b")]));
        let regions = Wanted::OneOf(vec!["eu".into(), "us".into()]);
        assert_eq!(rules[0].header["X-Region"], regions);
        assert_eq!(rules[0].header["X-Beta"], Wanted::OneOf(vec!["1".into()]));
        assert_eq!(rules[0].cookie["beta"], Wanted::Present(true));
        assert_eq!(rules[0].query["old"], Wanted::Present(false));
        assert_eq!((rules[0].percent, rules[0].key.as_str()), (0.25, "cookie:uid"));
        assert_eq!((rules[1].percent, rules[1].key.as_str()), (100.0, ""));
        let mut written: serde_json::Value = serde_json::from_str(text).unwrap();
        written[1]["percent"] = json!(100.0);
        assert_eq!(serde_json::to_value(&rules).unwrap(), written);
        assert_eq!(read(&serde_json::to_string(&rules).unwrap()), Ok(rules));
        assert_eq!(read("{}"), Ok(vec![]), "Lua's empty list");
    }

    #[test]
    fn a_rule_that_cannot_be_is_refused_with_what_was_found_and_what_is_allowed() {
        let list = |count: usize| {
            let rule = |n| json!({"name": format!("r{n}"), "to": {"a": "b"}});
            json!((0..count).map(rule).collect::<Vec<_>>()).to_string()
        };
        assert!(read(&list(16)).is_ok());
        assert!(read(&list(17)).unwrap_err().contains("found 17 rules, expected at most 16"));
        for (rule, says) in [
            (r#"{}"#, "missing field `name`"),
            (r#"{"name": "a"}"#, "missing field `to`"),
            (r#"{"name": "a b", "to": {"v": "2"}}"#, "is not a name"),
            (r#"{"name": "a", "to": {}}"#, "found 0 labels, expected 1 to 16"),
            (r#"{"name": "a", "to": {"v": 2}}"#, "expected a string"),
            (r#"{"name": "a", "to": {"v": "2", "v": "3"}}"#, "duplicate key"),
            (r#"{"name": "a", "to": {"v": "2"}, "percent": 101}"#, "a number from 0 to 100"),
            (r#"{"name": "a", "to": {"v": "2"}, "percent": 0.001}"#, "in steps of 0.01"),
            (r#"{"name": "a", "to": {"v": "2"}, "percent": "5"}"#, "a number from 0 to 100"),
            (r#"{"name": "a", "to": {"v": "2"}, "key": "uid"}"#, "header:NAME, cookie:NAME"),
            (r#"{"name": "a", "to": {"v": "2"}, "key": "cookie:"}"#, "header:NAME, cookie:NAME"),
            (r#"{"name": "a", "to": {"v": "2"}, "header": {"": "1"}}"#, "is not a name"),
            (r#"{"name": "a", "to": {"v": "2"}, "header": {"x y": "1"}}"#, "is not a name"),
            (
                r#"{"name": "a", "to": {"v": "2"}, "cookie": {"x": 1}}"#,
                "found 1, expected a string, a list",
            ),
            (r#"{"name": "a", "to": {"v": "2"}, "cookie": {"x": []}}"#, "a list of 1 to 16"),
            (r#"{"name": "a", "to": {"v": "2"}, "match": {}}"#, "unknown field `match`"),
            (r#"["a", {"v": "2"}]"#, "expected an object"),
        ] {
            let error = read(&format!("[{rule}]")).expect_err(rule);
            assert!(error.contains(says), "{rule}: {error}");
        }
        let twice = r#"[{"name": "a", "to": {"v": "1"}}, {"name": "a", "to": {"v": "2"}}]"#;
        assert!(read(twice).unwrap_err().contains("two rules have the name \"a\""));
    }

    #[test]
    fn a_rule_selects_those_that_have_all_of_its_labels() {
        let rules = read(
            r#"[{"name": "a", "to": {"v": "2"}}, {"name": "b", "to": {"v": "2", "z": "x"}},
                {"name": "c", "to": {"v": "3"}}]"#,
        )
        .unwrap();
        let groups = |labels| groups_of(&rules, &of(labels));
        assert_eq!(groups(&[]), 0);
        assert_eq!(groups(&[("v", "2")]), 0b001);
        assert_eq!(groups(&[("v", "2"), ("z", "x"), ("more", "")]), 0b011);
        assert_eq!(groups(&[("v", "3"), ("z", "x")]), 0b100);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_read_again_from_what_is_written(
            steps in 0..=10_000_u32,
            values in proptest::collection::vec(".{0,20}", 1..4),
            field in "[A-Za-z0-9._-]{1,64}",
        ) {
            let written = json!([{
                "name": "r", "to": {"any": values[0]}, "header": {(&field): values},
                "percent": f64::from(steps) / 100.0, "key": format!("query:{field}"),
            }]);
            let rules = read(&written.to_string()).unwrap();
            prop_assert_eq!(read(&serde_json::to_string(&rules).unwrap()).unwrap(), rules);
        }
    }
}
