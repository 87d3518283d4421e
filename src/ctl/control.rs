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
mod tests;
