//! A lease of one's own, over connections that come and go: how often it is renewed,
//! how long to wait before the next try, and what to begin anew when it is lost.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Connection, Connector, EtcdError, LeaseId};
use crate::config::EtcdConfig;

/// Renewals in a lease's time to live: two may be lost.
const RENEWALS_PER_TTL: u32 = 3;

/// Tries to reach an etcd that is away, in a lease's time to live.
const RECONNECTS_PER_TTL: u32 = 10;

/// Between tries of a user that etcd refuses: each costs it a password hash.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// Between looks at the files of a connection that was refused.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A lease that is to live as long as its holder.
#[derive(Debug)]
pub struct Tenure {
    connector: Connector,
    ttl: Duration,
    lease: Option<LeaseId>,
    /// Whether the last try to connect succeeded, and its files were not found to be
    /// old since then.
    is_connected: bool,
}

impl Tenure {
    /// Reaches nothing yet. The lease ends `ttl` after it was last renewed.
    pub fn new(config: &EtcdConfig, ttl: Duration) -> Self {
        Self { connector: Connector::new(config), ttl, lease: None, is_connected: false }
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
        let connected = self.connector.connect().await;
        self.is_connected = connected.is_ok();
        connected
    }

    /// Whether etcd refused a user whose connection was made with a password, or a
    /// certificate, that was replaced since then: the next connection may well be
    /// taken, and can be made at once. True once for each connection.
    pub async fn is_outdated_by(&mut self, error: &EtcdError) -> bool {
        error.is_auth_failure()
            && self.connector.is_outdated().await
            && std::mem::take(&mut self.is_connected)
    }

    /// A connection that is made with a password, or a certificate, that was replaced
    /// since the last attempt; `None` if there is none. What the one before it was made
    /// with may be good or bad: that one lives on. Takes no longer than a renewal may
    /// wait.
    ///
    /// # Errors
    /// As [`Connector::connect`]; then there is none until a file is replaced again.
    pub async fn reconnect(&mut self) -> Result<Option<Connection>, EtcdError> {
        if !self.connector.has_untried_files().await {
            return Ok(None);
        }
        match timeout(self.renewal(), self.connector.connect()).await {
            Ok(connected) => connected.map(Some),
            // Who is slow is asked again. One that does not answer at all is told by the
            // renewals.
            Err(_) => {
                self.connector.forget_attempt();
                Ok(None)
            }
        }
    }

    /// Waits until a password, or a certificate, was replaced since the last attempt to
    /// connect: the next one may well succeed.
    pub async fn new_files(&mut self) {
        while !self.connector.has_untried_files().await {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Between tries, so that a lease's time has room for some of them.
    pub fn shortest_pause(&self) -> Duration {
        self.ttl / RECONNECTS_PER_TTL
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
            false => self.shortest_pause(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::etcd::error::Cause;

    fn refused(status: Status) -> EtcdError {
        EtcdError::new("put a", "http://h:1", Cause::from(etcd_client::Error::GRpcStatus(status)))
    }

    #[tokio::test]
    async fn who_is_refused_with_an_old_password_tries_the_new_one_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "old").unwrap();
        let password_file = file.to_str().unwrap().to_owned();
        let username = "writer".to_owned();
        let config = EtcdConfig { username, password_file, ..EtcdConfig::default() };
        let mut tenure = Tenure::new(&config, Duration::from_secs(3));
        let (auth, away) = (
            refused(Status::unauthenticated("invalid auth token")),
            refused(Status::unavailable("no leader")),
        );
        assert!(!tenure.is_outdated_by(&auth).await, "it was never connected");

        tenure.connector.used = tenure.connector.stamps().await.unwrap();
        tenure.is_connected = true;
        assert!(!tenure.is_outdated_by(&auth).await, "nothing has changed");
        std::fs::write(&file, "another").unwrap();
        assert!(!tenure.is_outdated_by(&away).await);
        assert!(tenure.is_outdated_by(&auth).await);
        assert!(!tenure.is_outdated_by(&auth).await, "it was no better");
    }

    #[test]
    fn a_lease_that_is_lost_is_sought_at_once_and_a_refusal_waits() {
        let mut tenure = Tenure::new(&EtcdConfig::default(), Duration::from_secs(3));
        let lost = refused(Status::not_found("etcdserver: requested lease not found"));
        tenure.lease = Some(LeaseId(1));
        assert_eq!((tenure.pause_after(&lost), tenure.lease), (None, None));
        let away = refused(Status::unavailable("no leader"));
        assert_eq!(tenure.pause_after(&away), Some(Duration::from_millis(300)));
        let auth = refused(Status::permission_denied(""));
        assert_eq!(tenure.pause_after(&auth), Some(REFUSED_PAUSE));
    }
}
