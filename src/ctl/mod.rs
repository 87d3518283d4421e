//! What `ipconfigctl` does: registrations for services that do not talk to etcd
//! themselves, and for hands and scripts.
//!
//! ```text
//! run -> keeper -+
//! hand ----------+-> etcd -> view -> print
//! ```
//!
//! [`run()`] starts a command, registers it and takes it out before it ends;
//! [`Keeper`] holds a registration as long as its process lives; [`hand`] has
//! the single steps, those on a service's [`control`] among them, of which [`shares`]
//! tells what they come to; [`view`] reads what is there, and [`print`](mod@print)
//! lays it out for people. [`simulate`](mod@simulate) needs no etcd: it tries strategies
//! out.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

use crate::config::{ConfigError, EtcdConfig, LoadError};
use crate::error::with_causes;
use crate::etcd::{Connection, Connector, Entry, EtcdError};
use crate::model::{Instance, Outside};
use crate::sim::plot::PlotError;
use crate::wire::{self, RecordError};

pub mod control;
pub mod gateway;
pub mod hand;
mod keeper;
pub mod print;
mod run;
mod settings;
pub mod shares;
pub mod simulate;
pub mod view;

pub use gateway::GatewayError;
pub use keeper::Keeper;
pub use run::{Run, Wish, run};
pub use settings::{Overrides, Settings};

/// Times that a record is read and written again when others write it meanwhile.
const RACES: usize = 10;

/// The most names that an error gives.
const NAMES: usize = 20;

/// Why a command did not do what it was told.
#[derive(Debug, Error)]
pub enum CtlError {
    /// The configuration file was not taken.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What was said in place of the file's keys was not taken.
    #[error("the arguments are refused: {0}")]
    Overrides(#[source] ConfigError),
    /// The address, or that of the status, is not one that instances may have.
    #[error(transparent)]
    NotAllowed(#[from] Outside),
    /// None of the endpoints could be used; each was tried once.
    #[error("{}", .0.iter().map(|error| with_causes(error)).collect::<Vec<_>>().join("; "))]
    Unreachable(Vec<EtcdError>),
    /// A call failed.
    #[error("{}", with_causes(.0))]
    Etcd(#[from] EtcdError),
    /// Nothing is registered for the service.
    #[error("there is no service {0}")]
    NoService(String),
    /// The service has no instance of this id.
    #[error("service {service} has no instance {id}")]
    NoInstance {
        /// The service's name.
        service: String,
        /// The id that was asked for.
        id: String,
    },
    /// Nothing is known of the service, and of others.
    #[error("there is no service {service}; there is {} (--force is for one yet to come)", listed(.known))]
    NotAmong {
        /// The name that was asked for.
        service: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The service has no instances of these ids.
    #[error(
        "service {service} has no instance {}; it has {} (--force is for those yet to come)",
        listed(.missing), listed(.known)
    )]
    NoneOf {
        /// The service's name.
        service: String,
        /// The ids that were asked for.
        missing: Vec<String>,
        /// Those that it has.
        known: Vec<String>,
    },
    /// What stands under `control/<service>` cannot be read.
    #[error(
        "the control of {service} is bad: {source} (--overwrite takes its place, \
         `control {service} --clear` removes it)"
    )]
    BadControl {
        /// The service's name.
        service: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Gateways would refuse what is to be written.
    #[error("the control of {service} is not written: {source}")]
    Refused {
        /// The service's name.
        service: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Some weights are to change where all are the ranking's.
    #[error("the weights of {0} are not manual: name them all, without --add")]
    NotManual(String),
    /// A file with a control cannot be read.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A gateway did not tell its ranking.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// What is registered cannot be read.
    #[error("the registration of {service}/{id} is bad: {source}")]
    Bad {
        /// The service's name.
        service: String,
        /// The instance's id.
        id: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Others wrote the registration each time that it was to be written.
    #[error("{0} is written by others all the time: gave up")]
    Contended(String),
    /// The command cannot be started.
    #[error("failed to start {program}: {source}")]
    Start {
        /// Its first word.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The command did not open its port in time, and was stopped.
    #[error("nothing accepts connections at {addr} {} after the start", humantime::format_duration(*.limit))]
    NotListening {
        /// Where it was to.
        addr: SocketAddr,
        /// The time that it had.
        limit: Duration,
    },
    /// Signals would go past this program.
    #[error("failed to listen to signals: {0}")]
    Signals(#[source] io::Error),
    /// A plot was not written.
    #[error("failed to write plots into {}: {cause}", dir.display())]
    Plot {
        /// Where to.
        dir: std::path::PathBuf,
        /// What came of it.
        cause: PlotError,
    },
    /// The system does not tell how the command ended.
    #[error("failed to wait for the command: {0}")]
    Wait(#[source] io::Error),
}

/// Names in a row; of very many, the first.
fn listed(names: &[String]) -> String {
    match names.len() {
        0 => "none".to_owned(),
        count if count <= NAMES => names.join(", "),
        count => format!("{} and {} more", names[..NAMES].join(", "), count - NAMES),
    }
}

/// Connects to the first endpoint that can be used.
///
/// # Errors
/// [`CtlError::Unreachable`] after each was tried once.
pub async fn connect(etcd: &EtcdConfig) -> Result<Connection, CtlError> {
    let mut connector = Connector::new(etcd);
    let mut errors = Vec::new();
    for _ in &etcd.endpoints {
        match connector.connect().await {
            Ok(connection) => return Ok(connection),
            Err(error) => errors.push(error),
        }
    }
    Err(CtlError::Unreachable(errors))
}

/// Whom a registration would put out of its place: what stands under the key, if
/// that is not for the address of `instance`.
fn other_holder(entry: Option<&Entry>, instance: &Instance) -> Option<String> {
    match wire::decode_instance(&instance.id, &entry?.value) {
        Ok(holder) if holder.addr == instance.addr => None,
        Ok(holder) if holder.drain => Some(format!("{}, which drains", holder.addr)),
        Ok(holder) => Some(holder.addr.to_string()),
        Err(error) => Some(format!("a bad record: {error}")),
    }
}

/// The record with `drain` as given and everything else as it was, fields that
/// this version does not know included. `None`: it says so already.
fn with_drain(value: &[u8], drain: bool) -> Result<Option<Vec<u8>>, RecordError> {
    let mut object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(value).map_err(RecordError::Json)?;
    let before = object.insert("drain".to_owned(), drain.into());
    if before.unwrap_or(false.into()) == drain {
        return Ok(None);
    }
    Ok(Some(serde_json::to_vec(&object).expect("what was read as JSON is JSON")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_changes_nothing_else_of_a_record() {
        let record = br#"{"addr":"10.0.0.5:8080","weight":2.5,"of_tomorrow":{"a":[1,null]}}"#;
        let drained = with_drain(record, true).unwrap().expect("it did not drain");
        let drained: serde_json::Value = serde_json::from_slice(&drained).unwrap();
        let expected = serde_json::json!({
            "addr": "10.0.0.5:8080", "weight": 2.5, "of_tomorrow": {"a": [1, null]}, "drain": true
        });
        assert_eq!(drained, expected);
    }

    #[test]
    fn a_record_that_says_so_already_is_not_written() {
        assert!(with_drain(br#"{"addr":"10.0.0.5:8080"}"#, false).unwrap().is_none());
        assert!(with_drain(br#"{"drain":true}"#, true).unwrap().is_none());
        assert!(with_drain(br#"{"drain":true}"#, false).unwrap().is_some());
        assert!(with_drain(b"[]", true).is_err());
    }
}
