//! The single steps, for hands and scripts: each connects to nothing, tries
//! nothing twice, and says what it did.

use serde::Serialize;

use super::{CtlError, other_holder, with_drain};
use crate::etcd::Connection;
use crate::model::Instance;
use crate::wire::{self, Key};

/// Times that a record is read and written again when others write it meanwhile.
const RACES: usize = 10;

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
    /// It is registered, and gets no new requests.
    Draining,
    /// It is registered, and gets requests.
    Undrained,
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

/// Takes an instance out of the rankings, or lets it in again; its record is
/// otherwise as it was, and lives as long.
///
/// # Errors
/// [`CtlError::NoInstance`], [`CtlError::Bad`], [`CtlError::Contended`],
/// [`CtlError::Etcd`].
pub async fn drain(
    etcd: &Connection,
    prefix: &str,
    service: &str,
    id: &str,
    drain: bool,
) -> Result<Outcome, CtlError> {
    let key = path(prefix, service, id);
    let now = if drain { Now::Draining } else { Now::Undrained };
    for _ in 0..RACES {
        let entry = etcd.get(&key).await?.ok_or_else(|| no_instance(service, id))?;
        let bad = |source| CtlError::Bad { service: service.into(), id: id.into(), source };
        let Some(value) = with_drain(&entry.value, drain).map_err(bad)? else {
            return Ok(outcome(service, id, now, false));
        };
        if etcd.replace(&key, value, entry.mod_revision, entry.lease).await? {
            return Ok(outcome(service, id, now, true));
        }
    }
    Err(CtlError::Contended(key))
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
