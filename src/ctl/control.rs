//! An operator's hand on a service: `control/<service>`, read, changed and written
//! again in one step, or not at all.
//!
//! A value whose time is over counts as none: what it said does not come back with a
//! later change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{CtlError, RACES};
use crate::config::Strategy;
use crate::etcd::{Connection, Entry};
use crate::wire::Key;
use crate::wire::control::{Control, ControlMode, decode_control, encode_control};

/// What is to become of a service's control.
#[derive(Debug, Clone)]
pub enum Change {
    /// Manual mode, with these weights alone.
    Weights(BTreeMap<String, f64>),
    /// These of the manual weights, and the others as they are.
    SomeWeights(BTreeMap<String, f64>),
    /// The ranking's weights.
    Auto,
    /// No new requests for these instances.
    Drain(BTreeSet<String>),
    /// An end to that.
    Undrain(BTreeSet<String>),
    /// As if these instances were not registered.
    Disable(BTreeSet<String>),
    /// An end to that.
    Enable(BTreeSet<String>),
    /// In place of the configured strategy; `None`: that one again.
    Strategy(Option<Strategy>),
    /// This value, whatever there was.
    Whole(Vec<u8>),
    /// The same, said by somebody else, for another reason or another time.
    Same,
    /// None at all.
    Clear,
}

/// How long a control lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// Until somebody changes it.
    Ever,
    /// From when it is written.
    For(Duration),
}

/// A change, and what is said of it.
#[derive(Debug, Clone)]
pub struct Edit {
    /// What is to change.
    pub change: Change,
    /// Who wants it, if that was said.
    pub by: Option<String>,
    /// Who it is, if it was not.
    pub by_default: String,
    /// Why. If it is not said, the reason stays as long as the name beside it does.
    pub why: Option<String>,
    /// How long all of the control lasts from now on; `None`: as before.
    pub lasts: Option<Lasts>,
    /// Whether it may take the place of a value that cannot be read.
    pub overwrites_bad: bool,
}

/// A control as it stands in etcd.
#[derive(Debug, Clone, Serialize)]
pub struct Standing {
    /// The service's name.
    pub service: String,
    /// The value, keys that are left out included; `None`: there is none.
    pub control: Option<Map<String, Value>>,
    /// Whether its time is over.
    pub lapsed: bool,
}

/// What came of a change.
#[derive(Debug, Clone)]
pub struct Edited {
    /// What was in force; nothing, if its time was over.
    pub before: Control,
    /// What is in force now.
    pub after: Control,
    /// The value to be written; `None`: no key is left.
    pub value: Option<Map<String, Value>>,
    /// Whether `value` says something else than what stands there.
    pub is_changed: bool,
    /// Whether anything stands there, bad or lapsed as it may be.
    pub is_there: bool,
}

/// What is in force of a value at a time, beside the value itself.
#[derive(Default)]
struct Found {
    control: Control,
    value: Map<String, Value>,
    is_there: bool,
    /// Not a bad one, nor one whose time is over.
    counts: bool,
}

/// Reads a service's control.
///
/// # Errors
/// [`CtlError::BadControl`], [`CtlError::Etcd`].
pub async fn standing(
    etcd: &Connection,
    prefix: &str,
    service: &str,
) -> Result<Standing, CtlError> {
    let Some(entry) = etcd.get(&path(prefix, service)).await? else {
        return Ok(Standing { service: service.to_owned(), control: None, lapsed: false });
    };
    let control = read(service, &entry.value)?;
    let value = encode_control(&control, json(&entry.value));
    let lapsed = control.has_lapsed(SystemTime::now());
    Ok(Standing { service: service.to_owned(), control: Some(value), lapsed })
}

/// What `edit` would make of a service's control.
///
/// # Errors
/// [`CtlError::BadControl`], [`CtlError::NotManual`], [`CtlError::Refused`],
/// [`CtlError::Etcd`].
pub async fn plan(
    etcd: &Connection,
    prefix: &str,
    service: &str,
    edit: &Edit,
) -> Result<Edited, CtlError> {
    let entry = etcd.get(&path(prefix, service)).await?;
    edited(service, entry.as_ref(), edit, SystemTime::now())
}

/// Changes a service's control, whoever else changes it meanwhile; a key in which
/// nothing is left goes.
///
/// # Errors
/// [`CtlError::BadControl`], [`CtlError::NotManual`], [`CtlError::Refused`],
/// [`CtlError::Contended`], [`CtlError::Etcd`].
pub async fn write(
    etcd: &Connection,
    prefix: &str,
    service: &str,
    edit: &Edit,
) -> Result<Edited, CtlError> {
    let key = path(prefix, service);
    for _ in 0..RACES {
        let entry = etcd.get(&key).await?;
        let done = edited(service, entry.as_ref(), edit, SystemTime::now())?;
        let revision = entry.as_ref().map_or(0, |entry| entry.mod_revision);
        let is_written = match &done.value {
            _ if !done.is_changed => true,
            None => etcd.remove(&key, revision).await?,
            Some(value) => {
                let lease = entry.and_then(|entry| entry.lease);
                etcd.replace(&key, bytes(value), revision, lease).await?
            }
        };
        if is_written {
            return Ok(done);
        }
    }
    Err(CtlError::Contended(key))
}

fn path(prefix: &str, service: &str) -> String {
    Key::Control { service: service.to_owned() }.to_path(prefix)
}

fn read(service: &str, value: &[u8]) -> Result<Control, CtlError> {
    let bad = |source| CtlError::BadControl { service: service.to_owned(), source };
    decode_control(value).map_err(bad)
}

/// A value that was read already.
fn json(value: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(value).unwrap_or_default()
}

fn bytes(value: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(value).expect("what was read as JSON is JSON")
}

/// What counts of what stands there.
fn found(
    service: &str,
    entry: Option<&Entry>,
    edit: &Edit,
    now: SystemTime,
) -> Result<Found, CtlError> {
    let Some(entry) = entry else { return Ok(Found::default()) };
    let over = Found { is_there: true, ..Found::default() };
    // To remove it is how a bad one is mended.
    let may_be_bad = edit.overwrites_bad || matches!(edit.change, Change::Clear);
    match read(service, &entry.value) {
        Err(_) if may_be_bad => Ok(over),
        Err(error) => Err(error),
        Ok(control) if control.has_lapsed(now) => Ok(over),
        Ok(control) => {
            Ok(Found { control, value: json(&entry.value), is_there: true, counts: true })
        }
    }
}

fn edited(
    service: &str,
    entry: Option<&Entry>,
    edit: &Edit,
    now: SystemTime,
) -> Result<Edited, CtlError> {
    let found = found(service, entry, edit, now)?;
    let before = found.control.clone();
    let refused = |source| CtlError::Refused { service: service.to_owned(), source };
    let (mut after, onto) = match &edit.change {
        Change::Whole(text) => (decode_control(text).map_err(refused)?, json(text)),
        Change::Clear => (Control::default(), Map::new()),
        change => (changed(service, before.clone(), change)?, found.value.clone()),
    };
    let is_same = found.counts && encode_control(&after, onto.clone()) == written(&found);
    if !is_same || edit.why.is_some() || edit.lasts.is_some() {
        sign(&mut after, &before, edit, now);
    }
    let value = encode_control(&after, onto);
    if says_nothing(&value) {
        let after = Control::default();
        let is_there = found.is_there;
        return Ok(Edited { before, after, value: None, is_changed: is_there, is_there });
    }
    // It may have grown too large, or a weight above 0 is missing.
    let after = decode_control(&bytes(&value)).map_err(refused)?;
    let is_changed = !found.counts || value != written(&found);
    Ok(Edited { before, after, value: Some(value), is_changed, is_there: found.is_there })
}

/// A found value as it would be written.
fn written(found: &Found) -> Map<String, Value> {
    encode_control(&found.control, found.value.clone())
}

fn changed(service: &str, mut control: Control, change: &Change) -> Result<Control, CtlError> {
    let without = |ids: &BTreeSet<String>, these| ids.difference(these).cloned().collect();
    match change {
        Change::Weights(weights) => {
            (control.mode, control.weights) = (ControlMode::Manual, weights.clone());
        }
        Change::SomeWeights(_) if control.mode != ControlMode::Manual => {
            return Err(CtlError::NotManual(service.to_owned()));
        }
        Change::SomeWeights(weights) => control.weights.extend(weights.clone()),
        Change::Auto => (control.mode, control.weights) = (ControlMode::Auto, BTreeMap::new()),
        Change::Drain(ids) => control.drain.extend(ids.iter().cloned()),
        Change::Undrain(ids) => control.drain = without(&control.drain, ids),
        Change::Disable(ids) => control.disable.extend(ids.iter().cloned()),
        Change::Enable(ids) => control.disable = without(&control.disable, ids),
        Change::Strategy(strategy) => control.strategy = *strategy,
        Change::Whole(_) | Change::Same | Change::Clear => {}
    }
    Ok(control)
}

/// Says who changed it, why, and how long it lasts.
fn sign(control: &mut Control, before: &Control, edit: &Edit, now: SystemTime) {
    let of_file = Some(&control.by)
        .filter(|by| matches!(edit.change, Change::Whole(_)) && !by.is_empty())
        .cloned();
    control.by = edit.by.clone().or(of_file).unwrap_or_else(|| edit.by_default.clone());
    // Nobody is to give the reason of somebody else.
    if let Some(why) = &edit.why {
        control.why = why.clone();
    } else if !matches!(edit.change, Change::Whole(_)) && control.by != before.by {
        control.why = String::new();
    }
    match edit.lasts {
        None => {}
        Some(Lasts::Ever) => control.expires = None,
        Some(Lasts::For(time)) => control.expires = now.checked_add(time).map(up_to_the_second),
    }
}

fn up_to_the_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() + u64::from(since.subsec_nanos() > 0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Whether all is as it would be without; who wrote it and why changes nothing.
fn says_nothing(value: &Map<String, Value>) -> bool {
    let is_empty = |value: &Value| {
        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
    };
    value
        .iter()
        .all(|(key, value)| matches!(key.as_str(), "by" | "why" | "expires") || is_empty(value))
}

impl Change {
    /// The instances that it names and that ought to be there. Of a whole value, all.
    pub fn ids(&self) -> BTreeSet<String> {
        match self {
            Self::Weights(weights) | Self::SomeWeights(weights) => {
                weights.keys().cloned().collect()
            }
            Self::Drain(ids) | Self::Undrain(ids) | Self::Disable(ids) | Self::Enable(ids) => {
                ids.clone()
            }
            Self::Whole(text) => decode_control(text).map(|it| named(&it)).unwrap_or_default(),
            Self::Auto | Self::Strategy(_) | Self::Same | Self::Clear => BTreeSet::new(),
        }
    }
}

/// The instances of which a control says something.
pub fn named(control: &Control) -> BTreeSet<String> {
    let ids = control.weights.keys().chain(&control.drain).chain(&control.disable);
    ids.cloned().collect()
}

impl Edited {
    /// What whoever wrote it may not have thought of.
    pub fn warnings(&self, edit: &Edit) -> Vec<String> {
        let Some(expires) = self.after.expires.filter(|_| self.is_changed) else { return vec![] };
        let expires = humantime::format_rfc3339_seconds(expires);
        let unsigned = |control: &Control| {
            let control =
                Control { expires: None, by: String::new(), why: String::new(), ..control.clone() };
            encode_control(&control, Map::new())
        };
        let adds = unsigned(&self.before) != unsigned(&self.after);
        let had_more = !unsigned(&self.before).is_empty() && self.before.expires.is_none();
        match edit.lasts {
            Some(_) if adds && had_more => {
                vec![format!("all of the control lapses at {expires}, with what was there before")]
            }
            None if adds && !matches!(edit.change, Change::Whole(_)) => vec![format!(
                "this lapses at {expires}, with all of the control; --for sets another time"
            )],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn edit(change: Change) -> Edit {
        Edit {
            change,
            by: None,
            by_default: "ann".into(),
            why: None,
            lasts: None,
            overwrites_bad: false,
        }
    }

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    fn weights(weights: &[(&str, f64)]) -> BTreeMap<String, f64> {
        weights.iter().map(|&(id, weight)| (id.to_owned(), weight)).collect()
    }

    /// At the hundredth second; `Null` is no value.
    fn try_edit(value: &Value, edit: &Edit) -> Result<Edited, String> {
        let entry = Entry {
            key: "control/chat".into(),
            value: value.to_string().into_bytes(),
            mod_revision: 1,
            lease: None,
        };
        let entry = Some(&entry).filter(|_| !value.is_null());
        edited("chat", entry, edit, at(100)).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn changes(value: &Value, edit: &Edit) -> Value {
        let edited = try_edit(value, edit).unwrap();
        let after = edited.value.map_or(Value::Null, Value::Object);
        assert_eq!(edited.is_changed, after != *value, "{after}");
        after
    }

    #[test]
    fn a_change_keeps_all_that_it_is_not_about() {
        let value = json!({"mode": "manual", "weights": {"a": 3.0}, "strategy": "chash",
            "drain": ["b"], "disable": ["c"], "by": "ann", "why": "a bad day"});
        let with = |key: &str, json: Value| {
            let mut value = value.clone();
            value[key] = json;
            value
        };
        for (change, after) in [
            (Change::Drain(ids(&["d"])), with("drain", json!(["b", "d"]))),
            (Change::Disable(ids(&["d"])), with("disable", json!(["c", "d"]))),
            (Change::Weights(weights(&[("b", 1.0)])), with("weights", json!({"b": 1.0}))),
            (
                Change::SomeWeights(weights(&[("b", 1.0)])),
                with("weights", json!({"a": 3.0, "b": 1.0})),
            ),
            (Change::Strategy(Some(Strategy::Best)), with("strategy", json!("best"))),
            (Change::Same, value.clone()),
        ] {
            assert_eq!(changes(&value, &edit(change.clone())), after, "{change:?}");
        }
        let without = |keys: &[&str]| {
            let mut value = value.clone();
            value.as_object_mut().unwrap().retain(|key, _| !keys.contains(&key.as_str()));
            value
        };
        for (change, gone) in [
            (Change::Undrain(ids(&["b"])), &["drain"][..]),
            (Change::Enable(ids(&["c"])), &["disable"]),
            (Change::Auto, &["mode", "weights"]),
            (Change::Strategy(None), &["strategy"]),
        ] {
            assert_eq!(changes(&value, &edit(change.clone())), without(gone), "{change:?}");
        }
    }

    #[test]
    fn a_key_in_which_nothing_is_left_goes() {
        let value = json!({"drain": ["a"], "by": "ann", "why": "x"});
        assert_eq!(changes(&value, &edit(Change::Undrain(ids(&["a"])))), Value::Null);
        let clear = edit(Change::Clear);
        assert_eq!(changes(&value, &clear), Value::Null);
        assert_eq!(changes(&json!({"of_tomorrow": 1}), &clear), Value::Null);
        assert_eq!(changes(&Value::Null, &clear), Value::Null);
        assert_eq!(changes(&Value::Null, &edit(Change::Undrain(ids(&["a"])))), Value::Null);
    }

    #[test]
    fn what_is_so_already_is_not_written_unless_something_is_said_of_it() {
        let value = json!({"drain": ["a"], "by": "bob", "why": "x"});
        let drain = edit(Change::Drain(ids(&["a"])));
        assert_eq!(changes(&value, &drain), value);
        let said = Edit { why: Some("y".into()), ..drain.clone() };
        assert_eq!(changes(&value, &said), json!({"drain": ["a"], "by": "ann", "why": "y"}));
        let longer = Edit { lasts: Some(Lasts::For(Duration::from_millis(19_001))), ..drain };
        let until = json!({"drain": ["a"], "by": "ann", "expires": "1970-01-01T00:02:00Z"});
        assert_eq!(changes(&value, &longer), until);
        let ever = Edit { lasts: Some(Lasts::Ever), ..edit(Change::Same) };
        assert_eq!(changes(&until, &ever), json!({"drain": ["a"], "by": "ann"}));
    }

    #[test]
    fn nobody_gives_the_reason_of_somebody_else() {
        let value = json!({"drain": ["a"], "by": "bob", "why": "x"});
        let drain = edit(Change::Drain(ids(&["b"])));
        assert_eq!(changes(&value, &drain), json!({"drain": ["a", "b"], "by": "ann"}));
        let as_bob = Edit { by: Some("bob".into()), ..drain };
        let after = json!({"drain": ["a", "b"], "by": "bob", "why": "x"});
        assert_eq!(changes(&value, &as_bob), after);
    }

    #[test]
    fn what_has_lapsed_does_not_come_back_with_a_later_change() {
        let value = json!({"drain": ["a"], "by": "ann", "expires": "1970-01-01T00:01:39Z"});
        let drain = edit(Change::Drain(ids(&["b"])));
        assert_eq!(changes(&value, &drain), json!({"drain": ["b"], "by": "ann"}));
        assert_eq!(changes(&value, &edit(Change::Auto)), Value::Null);
        let longer = Edit { lasts: Some(Lasts::For(Duration::from_secs(9))), ..edit(Change::Same) };
        assert_eq!(changes(&value, &longer), Value::Null);
    }

    #[test]
    fn a_value_that_cannot_be_read_stays_unless_it_is_said_otherwise() {
        let bad = json!({"drain": ["a"], "of_tomorrow": 1});
        let drain = edit(Change::Drain(ids(&["b"])));
        let error = try_edit(&bad, &drain).unwrap_err();
        assert!(error.contains("of_tomorrow"), "{error}");
        let over = Edit { overwrites_bad: true, ..drain };
        assert_eq!(changes(&bad, &over), json!({"drain": ["b"], "by": "ann"}));
    }

    #[test]
    fn nothing_is_written_that_gateways_would_refuse() {
        let zero = edit(Change::Weights(weights(&[("a", 0.0)])));
        let error = try_edit(&Value::Null, &zero).unwrap_err();
        assert!(error.contains("no weight is above 0"), "{error}");
        let last = edit(Change::SomeWeights(weights(&[("a", 0.0)])));
        let value = json!({"mode": "manual", "weights": {"a": 1.0}});
        assert!(try_edit(&value, &last).is_err());
        let error = try_edit(&Value::Null, &last).unwrap_err();
        assert!(error.contains("not manual"), "{error}");
        let long = Edit { why: Some("x".repeat(600_000)), ..edit(Change::Drain(ids(&["a"]))) };
        assert!(try_edit(&Value::Null, &long).unwrap_err().contains("600"));
        let whole = edit(Change::Whole(br#"{"mode": "manual"}"#.to_vec()));
        assert!(try_edit(&Value::Null, &whole).is_err());
    }

    #[test]
    fn a_whole_value_is_signed_where_it_says_nothing_itself() {
        let whole = |text: &str| edit(Change::Whole(text.into()));
        let before = json!({"disable": ["z"], "by": "eve", "why": "x"});
        let after = changes(&before, &whole(r#"{"drain": ["a"], "why": "y"}"#));
        assert_eq!(after, json!({"drain": ["a"], "by": "ann", "why": "y"}));
        let signed = r#"{"drain": ["a"], "by": "bob"}"#;
        assert_eq!(changes(&before, &whole(signed)), json!({"drain": ["a"], "by": "bob"}));
        let by_eve = Edit { by: Some("eve".into()), ..whole(signed) };
        assert_eq!(changes(&before, &by_eve), json!({"drain": ["a"], "by": "eve"}));
    }

    #[test]
    fn one_time_for_all_of_it_is_told_where_that_may_surprise() {
        let warned = |value: Value, change: Change, lasts: Option<Lasts>| {
            let edit = Edit { lasts, ..edit(change) };
            !try_edit(&value, &edit).unwrap().warnings(&edit).is_empty()
        };
        let (drain, hour) = (|| Change::Drain(ids(&["a"])), Lasts::For(Duration::from_secs(3600)));
        let ever = json!({"disable": ["b"]});
        let soon = json!({"disable": ["b"], "expires": "1970-01-01T01:00:00Z"});
        assert!(warned(ever.clone(), drain(), Some(hour)), "the other lapses, too");
        assert!(warned(soon.clone(), drain(), None), "this one lapses, too");
        assert!(!warned(soon.clone(), drain(), Some(hour)));
        assert!(!warned(soon, drain(), Some(Lasts::Ever)));
        assert!(!warned(ever.clone(), drain(), None));
        assert!(!warned(ever, Change::Same, Some(hour)), "that is what was asked for");
        assert!(!warned(Value::Null, drain(), Some(hour)));
    }
}
