//! The single steps, for hands and scripts: each connects to nothing, tries
//! nothing twice, and says what it did.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};

use super::control::{self, Change, Edit, Edited, Standing};
use super::gateway::{self, GatewayUrl};
use super::shares::{Shares, Step, shares};
use super::{CtlError, RACES, Settings, other_holder, with_drain};
use crate::etcd::Connection;
use crate::model::Instance;
use crate::registry::Prefixes;
use crate::wire::{self, Key};

/// What became of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The service's name.
    pub service: String,
    /// The instance's id.
    pub id: String,
    /// What it is now.
    pub now: Now,
    /// Whether it was something else before.
    pub changed: bool,
}

/// What an instance can become by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Now {
    /// It is registered, and stays so.
    Registered,
    /// It is not registered.
    Deregistered,
}

/// How a control is changed.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Nothing is written.
    pub is_dry: bool,
    /// Services and instances that are not there are taken, too.
    pub is_forced: bool,
    /// Whom to ask for the weights of a dry run.
    pub gateway: Option<GatewayUrl>,
}

/// What came of a change of a service's control.
#[derive(Debug, Clone, Serialize)]
pub struct Steered {
    /// The service's name.
    pub service: String,
    /// Whether the control says something else than before, or would.
    pub changed: bool,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// What it says now, or would; `None`: nothing is left, and there is no key.
    pub control: Option<Map<String, Value>>,
    /// The instances whose registration's own `drain` was taken away, or would be.
    pub undrained: BTreeSet<String>,
    /// Who gets how much, of a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
}

/// Registers an instance until somebody deregisters it, in place of what may
/// stand under its id.
///
/// # Errors
/// [`CtlError::Etcd`].
pub async fn register(
    etcd: &Connection,
    prefix: &str,
    service: &str,
    instance: &Instance,
) -> Result<Outcome, CtlError> {
    let key = path(prefix, service, &instance.id);
    let before = etcd.get(&key).await?;
    if let Some(holder) = other_holder(before.as_ref(), instance) {
        tracing::warn!("takes the place of {holder}");
    }
    let value = wire::encode_instance(instance);
    let changed = before.is_none_or(|entry| entry.value != value || entry.lease.is_some());
    etcd.put(&key, value, None).await?;
    Ok(outcome(service, &instance.id, Now::Registered, changed))
}

/// Removes an instance's registration, whosever it is. One that a running
/// [`Keeper`](super::Keeper) keeps comes back at its next renewal, which is told.
///
/// # Errors
/// [`CtlError::NoInstance`], [`CtlError::Etcd`].
pub async fn deregister(
    etcd: &Connection,
    prefix: &str,
    service: &str,
    id: &str,
) -> Result<Outcome, CtlError> {
    let key = path(prefix, service, id);
    let entry = etcd.get(&key).await?.ok_or_else(|| no_instance(service, id))?;
    if !etcd.delete(&key).await? {
        return Err(no_instance(service, id)); // somebody was faster
    }
    if entry.lease.is_some() {
        tracing::warn!(
            "{service}/{id} had a lease: what keeps it registers it again unless that is \
             stopped; to take it out of the rankings, drain it"
        );
    }
    Ok(outcome(service, id, Now::Deregistered, true))
}

/// Takes away the `drain` of an instance's own registration, which is otherwise as it
/// was, and lives as long. Says whether there was one.
async fn undrain(
    etcd: &Connection,
    prefixes: &Prefixes,
    service: &str,
    id: &str,
) -> Result<bool, CtlError> {
    let key = prefixes.path(service, id);
    for _ in 0..RACES {
        // It went meanwhile, or never was.
        let Some(entry) = etcd.get(&key).await? else { return Ok(false) };
        let bad = |source| CtlError::Bad { service: service.into(), id: id.into(), source };
        let Some(value) = with_drain(&entry.value, false).map_err(bad)? else { return Ok(false) };
        if etcd.replace(&key, value, entry.mod_revision, entry.lease).await? {
            return Ok(true);
        }
    }
    Err(CtlError::Contended(key))
}

/// Changes a service's control, or shows what a change would come to. An end to a
/// drain ends that of the registrations, too.
///
/// # Errors
/// [`CtlError::NotAmong`], [`CtlError::NoneOf`], [`CtlError::Bad`],
/// [`CtlError::Gateway`], and those of [`control::write`].
pub async fn steer(
    etcd: &Connection,
    settings: &Settings,
    service: &str,
    edit: &Edit,
    manner: &Manner,
) -> Result<Steered, CtlError> {
    let prefix = &settings.etcd.prefix;
    let registered = registered(etcd, settings, service).await?;
    let plan = control::plan(etcd, prefix, service, edit).await?;
    if !manner.is_forced {
        let named = control::named(&plan.before);
        let is_there = plan.is_there || !registered.is_empty();
        check_service(etcd, settings, service, is_there).await?;
        check_ids(service, edit.change.ids(), &registered, &named)?;
    }
    let undrained = match &edit.change {
        Change::Undrain(ids) => ids.clone(),
        _ => BTreeSet::new(),
    };
    let steered = |edited: Edited, undrained: BTreeSet<String>, shares| Steered {
        service: service.to_owned(),
        changed: edited.is_changed,
        dry_run: manner.is_dry,
        control: edited.value,
        undrained,
        shares,
    };
    if manner.is_dry {
        let drains = |id: &String| matches!(registered.get(id), Some(Some(it)) if it.drain);
        let undrained: BTreeSet<_> = undrained.into_iter().filter(drains).collect();
        let view = match &manner.gateway {
            Some(url) => Some(gateway::view(url, service).await?),
            None => None,
        };
        let instances: Vec<_> = registered.into_values().flatten().collect();
        let step = Step { before: &plan.before, after: &plan.after, undrained: &undrained };
        let shares = shares(&instances, step, view.as_ref());
        warn(&plan, edit);
        return Ok(steered(plan, undrained, Some(shares)));
    }
    let done = control::write(etcd, prefix, service, edit).await?;
    warn(&done, edit);
    let mut ended = BTreeSet::new();
    let prefixes = Prefixes::new(&settings.etcd);
    for id in undrained {
        if undrain(etcd, &prefixes, service, &id).await? {
            ended.insert(id);
        }
    }
    Ok(steered(done, ended, None))
}

fn warn(edited: &Edited, edit: &Edit) {
    for warning in edited.warnings(edit) {
        tracing::warn!("{warning}");
    }
}

/// The instances of a service by their ids, those of etcd before those of the file,
/// and those of other clusters as gateways name them; `None` for one that cannot be
/// read.
async fn registered(
    etcd: &Connection,
    settings: &Settings,
    service: &str,
) -> Result<BTreeMap<String, Option<Instance>>, CtlError> {
    let of_file = settings.services.get(service).into_iter().flatten();
    let mut found: BTreeMap<_, _> = of_file.map(|it| (it.id.clone(), Some(it.clone()))).collect();
    let prefixes = Prefixes::new(&settings.etcd);
    for (_, prefix) in prefixes.all() {
        for entry in etcd.list(&format!("{prefix}/instances/{service}/")).await? {
            if let Some(Ok(Key::Instance { id, .. })) = prefixes.parse(entry.key.as_bytes()) {
                let instance = wire::decode_instance(&id, &entry.value).ok();
                found.insert(id, instance);
            }
        }
    }
    Ok(found)
}

/// Reads a service's control.
///
/// # Errors
/// [`CtlError::NotAmong`], [`CtlError::BadControl`], [`CtlError::Etcd`].
pub async fn standing(
    etcd: &Connection,
    settings: &Settings,
    service: &str,
) -> Result<Standing, CtlError> {
    let found = control::standing(etcd, &settings.etcd.prefix, service).await?;
    if found.control.is_none() {
        let is_there = !registered(etcd, settings, service).await?.is_empty();
        check_service(etcd, settings, service, is_there).await?;
    }
    Ok(found)
}

/// Whether there is such a service: a slip of the pen is an error, not a control that
/// nobody follows.
async fn check_service(
    etcd: &Connection,
    settings: &Settings,
    service: &str,
    is_there: bool,
) -> Result<(), CtlError> {
    if is_there || settings.services.contains_key(service) {
        return Ok(());
    }
    let prefixes = Prefixes::new(&settings.etcd);
    let mut known: BTreeSet<_> = settings.services.keys().cloned().collect();
    for (_, prefix) in prefixes.all() {
        for entry in etcd.list(&format!("{prefix}/instances/")).await? {
            if let Some(Ok(Key::Instance { service, .. })) = prefixes.parse(entry.key.as_bytes()) {
                known.insert(service);
            }
        }
    }
    let known = known.into_iter().collect();
    Err(CtlError::NotAmong { service: service.to_owned(), known })
}

/// Whether `ids` are registered, or `named` by the control already.
fn check_ids(
    service: &str,
    ids: BTreeSet<String>,
    registered: &BTreeMap<String, Option<Instance>>,
    named: &BTreeSet<String>,
) -> Result<(), CtlError> {
    let is_known = |id: &String| registered.contains_key(id) || named.contains(id);
    let missing: Vec<_> = ids.into_iter().filter(|id| !is_known(id)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(CtlError::NoneOf {
            service: service.to_owned(),
            missing,
            known: registered.keys().cloned().collect(),
        }),
    }
}

fn path(prefix: &str, service: &str, id: &str) -> String {
    Key::Instance { service: service.to_owned(), id: id.to_owned() }.to_path(prefix)
}

fn outcome(service: &str, id: &str, now: Now, changed: bool) -> Outcome {
    Outcome { service: service.to_owned(), id: id.to_owned(), now, changed }
}

fn no_instance(service: &str, id: &str) -> CtlError {
    CtlError::NoInstance { service: service.to_owned(), id: id.to_owned() }
}
