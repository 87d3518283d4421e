//! A lease of one's own, over connections that come and go: how often it is renewed,
//! how long to wait before the next try, and what to begin anew when it is lost.

use std::time::Duration;

use super::{Connection, Connector, EtcdError, LeaseId};
use crate::config::EtcdConfig;

/// Renewals in a lease's time to live: two may be lost.
const RENEWALS_PER_TTL: u32 = 3;

/// Tries to reach an etcd that is away, in a lease's time to live.
const RECONNECTS_PER_TTL: u32 = 10;

/// Between tries of a user that etcd refuses: each costs it a password hash.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// A lease that is to live as long as its holder.
#[derive(Debug)]
pub struct Tenure {
    connector: Connector,
    ttl: Duration,
    lease: Option<LeaseId>,
}

impl Tenure {
    /// Reaches nothing yet. The lease ends `ttl` after it was last renewed.
    pub fn new(config: &EtcdConfig, ttl: Duration) -> Self {
        Self { connector: Connector::new(config), ttl, lease: None }
    }

    /// How long the lease outlives its last renewal.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// How often to renew it.
    pub fn renewal(&self) -> Duration {
        self.ttl / RENEWALS_PER_TTL
    }

    /// The lease, unless there is none, or it was lost.
    pub fn lease(&self) -> Option<LeaseId> {
        self.lease
    }

    /// Connects to the next endpoint.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn connect(&mut self) -> Result<Connection, EtcdError> {
        self.connector.connect().await
    }

    /// The lease, or else a new one, once `establish` has put under it what it is
    /// for: without that it is of no use, and the next call begins anew.
    ///
    /// # Errors
    /// [`EtcdError`] of the grant, or of `establish`.
    pub async fn hold(
        &mut self,
        etcd: &Connection,
        establish: impl AsyncFnOnce(LeaseId) -> Result<(), EtcdError>,
    ) -> Result<LeaseId, EtcdError> {
        if let Some(lease) = self.lease {
            return Ok(lease);
        }
        let lease = etcd.grant_lease(self.ttl).await?;
        establish(lease).await?;
        self.lease = Some(lease);
        Ok(lease)
    }

    /// How long to wait after an error before the next connection; `None`: not at
    /// all, the lease was lost, and what hung on it is to be written anew.
    pub fn pause_after(&mut self, error: &EtcdError) -> Option<Duration> {
        if error.is_lease_gone() {
            self.lease = None;
            return None;
        }
        Some(match error.is_auth_failure() {
            true => REFUSED_PAUSE,
            false => self.ttl / RECONNECTS_PER_TTL,
        })
    }
}
