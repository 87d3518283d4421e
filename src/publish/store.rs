//! A service's values into the shared dict, in the order in which workers rely on.

use thiserror::Error;

use crate::board::{self, Board, ServiceId};
use crate::value;

/// Where values go: `lua_shared_dict` in nginx.
pub trait Store {
    /// Stores a value under a key, over what was there.
    ///
    /// # Errors
    /// What the store said.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;

    /// The value under a key, whoever stored it; `None` if there is none, or none
    /// that is bytes.
    fn get(&self, key: &str) -> Option<Vec<u8>>;
}

impl<S: Store> Store for &S {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        (**self).set(key, value)
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        (**self).get(key)
    }
}

/// A value that could not be stored, in the store's own words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Why a ranking was not published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The values do not fit, or the dict is broken.
    #[error("failed to store {key} ({len} bytes) in the shared dict: {cause}")]
    Store { key: String, len: usize, cause: StoreError },
    /// The board knows too many services.
    #[error("no room for service {0:?}: the board holds {max} services", max = board::MAX_SERVICES)]
    TooManyServices(String),
    /// Another process publishes from now on.
    #[error("a newer writer has taken over")]
    Superseded,
}

/// One version of a service, as the shared dict is to hold it.
pub(crate) struct Values<'a> {
    pub service: &'a str,
    pub version: u64,
    pub instances_version: u64,
    /// `None` for those that are stored already.
    pub instances: Option<&'a [u8]>,
    pub ranking: &'a [u8],
}

impl Values<'_> {
    /// Stores the instances first, the ranking next, and the version on the board last:
    /// a worker that sees a version finds the values of at least that version, and one
    /// that reads the ranking before the instances never finds them older than it.
    /// `None` if a newer writer than that of `epoch` has begun; then nothing is stored.
    pub fn store(
        &self,
        store: &impl Store,
        board: Board,
        epoch: u64,
        id: ServiceId,
    ) -> Option<Result<(), PublishError>> {
        let &Values { service, version, instances_version, instances, ranking } = self;
        board.fenced(epoch, || {
            if let Some(instances) = instances {
                set(store, format!("instances:{service}"), version, instances)?;
            }
            set(store, format!("ranking:{service}"), version, ranking)?;
            board.set_version(id, version, instances_version);
            Ok(())
        })
    }
}

/// Stores a body in its envelope.
pub(super) fn set(
    store: &impl Store,
    key: String,
    version: u64,
    body: &[u8],
) -> Result<(), PublishError> {
    let value = value::seal(version, body);
    let len = value.len();
    store.set(&key, &value).map_err(|cause| PublishError::Store { key, len, cause })
}
