//! Holds a registration under a lease of its own, whatever etcd does meanwhile.
//!
//! The lease is also what tells our registration from a successor's: when another
//! process registers the same instance, etcd binds the key to that process's
//! lease, and the end of ours no longer touches it. So nothing here deletes a
//! key; it goes with its lease.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use xxhash_rust::xxh64::xxh64;

use super::{Settings, other_holder, with_drain};
use crate::error::with_causes;
use crate::etcd::{Connection, Connector, EtcdError, LeaseId};
use crate::model::Instance;
use crate::wire::{self, Key};

/// Renewals in a lease's time to live: two may be lost. With each, the
/// registration is looked at.
const RENEWALS_PER_TTL: u32 = 3;

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause: an etcd that comes back finds the lease alive.
const PAUSES_PER_TTL: u32 = 5;

/// Between tries of a user that etcd refuses: each costs it a password hash.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// The time for a last word to etcd. One that is away is not waited for.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);

/// One instance's registration.
pub struct Keeper {
    connector: Connector,
    /// How many the connector knows.
    endpoints: usize,
    /// The connection in use; `None`: the next step opens one.
    etcd: Option<Connection>,
    service: String,
    instance: Instance,
    key: String,
    ttl: Duration,
    state: State,
    /// Whether the registration was ever confirmed.
    was_registered: bool,
    /// What was last logged of an outage.
    failure: Option<String>,
}

/// What etcd has of us.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing. The next step is a lease.
    Absent,
    /// A lease, and perhaps the registration. The next step writes it.
    Leased(LeaseId),
    /// The registration, confirmed. What is left to do is to renew the lease.
    Registered(LeaseId),
    /// The registration, which is to say that it drains. The next step writes
    /// that; it is all that is written any more.
    Draining(LeaseId),
    /// The registration, which says that it drains. The lease is renewed until the
    /// command has ended.
    Drained(LeaseId),
    /// Nothing, and that is how it stays.
    Left,
}

impl Keeper {
    /// Reaches nothing yet.
    pub fn new(settings: &Settings, service: &str, instance: Instance, ttl: Duration) -> Self {
        let key = Key::Instance { service: service.to_owned(), id: instance.id.clone() };
        Self {
            connector: Connector::new(&settings.etcd),
            endpoints: settings.etcd.endpoints.len(),
            etcd: None,
            key: key.to_path(&settings.etcd.prefix),
            service: service.to_owned(),
            instance,
            ttl,
            state: State::Absent,
            was_registered: false,
            failure: None,
        }
    }

    /// Registers, and keeps the registration for as long as this is polled. What
    /// fails is tried again; a failure is logged when it is new.
    ///
    /// Cancel safe: what was begun is taken up by the next call.
    pub async fn keep(&mut self) -> Infallible {
        let mut failures: u32 = 0;
        loop {
            let Err(error) = self.session().await;
            self.etcd = None;
            if error.is_lease_gone() {
                match std::mem::replace(&mut self.state, State::Absent) {
                    State::Registered(_) => {
                        tracing::warn!("the lease of {} was lost: registers anew", self.name());
                        continue;
                    }
                    State::Draining(_) | State::Drained(_) | State::Left => {
                        self.state = State::Left;
                    }
                    State::Absent | State::Leased(_) => {}
                }
            }
            // Only an outage makes pauses longer, not the end of a long session.
            failures = if self.failure.is_none() { 0 } else { failures.saturating_add(1) };
            let pause = match error.is_auth_failure() {
                true => REFUSED_PAUSE,
                false => self.pause(failures),
            };
            self.failed(with_causes(&error));
            sleep(pause).await;
        }
    }

    /// Asks gateways for no more requests; says whether there was anybody to
    /// ask it of, which is when it makes sense to wait for them. Takes 2 s at most.
    pub async fn drain(&mut self) -> bool {
        let lease = match self.state {
            State::Leased(lease) | State::Registered(lease) => lease,
            State::Absent | State::Draining(_) | State::Drained(_) | State::Left => return false,
        };
        self.state = State::Draining(lease);
        let key = self.key.clone();
        match self.last_word(async |etcd| write_drain(&etcd, &key, lease).await).await {
            Ok(is_ours) => self.drained(lease, is_ours),
            Err(why) => {
                tracing::warn!("failed to drain {}: {why}", self.name());
                // It may have been done all the same, or may be yet.
                true
            }
        }
    }

    /// Returns `is_ours`: whether there was a registration of ours to drain.
    fn drained(&mut self, lease: LeaseId, is_ours: bool) -> bool {
        match is_ours {
            true => tracing::info!("{} drains", self.name()),
            false => tracing::info!("{} is not ours any more", self.name()),
        }
        self.state = State::Drained(lease);
        is_ours
    }

    /// From now on nothing is registered that is not yet; what is, is kept.
    pub fn register_no_more(&mut self) {
        if let State::Absent = self.state {
            self.state = State::Left;
        }
    }

    /// Deregisters, which takes 2 s at most; if etcd cannot be reached, the
    /// registration goes when its lease ends.
    pub async fn leave(&mut self) {
        let lease = match std::mem::replace(&mut self.state, State::Left) {
            State::Absent | State::Left => return,
            State::Leased(lease)
            | State::Registered(lease)
            | State::Draining(lease)
            | State::Drained(lease) => lease,
        };
        let revoke = async |etcd: Connection| match etcd.revoke_lease(lease).await {
            Err(error) if error.is_lease_gone() => Ok(()),
            revoked => revoked,
        };
        match self.last_word(revoke).await {
            Ok(()) => tracing::info!("deregistered {}", self.name()),
            Err(why) => {
                let ttl = humantime::format_duration(self.ttl);
                tracing::warn!("{why}: {} goes when its lease ends, in {ttl}", self.name());
            }
        }
    }

    /// One connection's time.
    async fn session(&mut self) -> Result<Infallible, EtcdError> {
        let etcd = self.connection().await?;
        let lease = self.register(&etcd).await?;
        let mut keep_alive = etcd.keep_lease(lease).await?;
        if self.failure.take().is_some() {
            tracing::info!("{} is kept in etcd at {} again", self.name(), etcd.endpoint());
        }
        loop {
            sleep(self.ttl / RENEWALS_PER_TTL).await;
            keep_alive.renew().await?;
            self.restore(&etcd).await?;
        }
    }

    /// Registers again what has gone though its lease has not: a successor took
    /// the registration over and went, or somebody deleted it.
    async fn restore(&self, etcd: &Connection) -> Result<(), EtcdError> {
        let State::Registered(lease) = self.state else { return Ok(()) };
        if etcd.get(&self.key).await?.is_some() {
            return Ok(()); // ours, or a successor's
        }
        let value = wire::encode_instance(&self.instance);
        if etcd.replace(&self.key, value, 0, Some(lease)).await? {
            tracing::warn!("the registration of {} was gone: registered again", self.name());
        }
        Ok(())
    }

    /// Makes sure of a lease, and of what is to stand under it.
    async fn register(&mut self, etcd: &Connection) -> Result<LeaseId, EtcdError> {
        let mut told = false;
        loop {
            let lease = match self.state {
                State::Registered(lease) | State::Drained(lease) => return Ok(lease),
                State::Draining(lease) => {
                    let is_ours = write_drain(etcd, &self.key, lease).await?;
                    self.drained(lease, is_ours);
                    continue;
                }
                State::Left => std::future::pending().await,
                State::Leased(lease) => Some(lease),
                State::Absent => None,
            };
            let entry = etcd.get(&self.key).await?;
            let is_ours = entry.as_ref().is_some_and(|e| lease.is_some() && e.lease == lease);
            let holder = other_holder(entry.as_ref(), &self.instance).filter(|_| !is_ours);
            if let Some(holder) = holder {
                if !std::mem::replace(&mut told, true) {
                    self.announce(&holder);
                }
                // Somebody came while our lease was lost. At the first
                // registration it is us who come.
                if self.was_registered {
                    sleep(self.ttl / RENEWALS_PER_TTL).await;
                    continue;
                }
            }
            let lease = match lease {
                Some(lease) => lease,
                None => etcd.grant_lease(self.ttl).await?,
            };
            self.state = State::Leased(lease);
            let value = wire::encode_instance(&self.instance);
            let found = entry.map_or(0, |entry| entry.mod_revision);
            if etcd.replace(&self.key, value, found, Some(lease)).await? {
                self.state = State::Registered(lease);
                self.was_registered = true;
                tracing::info!("registered {} at {}", self.name(), self.instance.addr);
            }
        }
    }

    fn announce(&self, holder: &str) {
        match self.was_registered {
            true => tracing::warn!("{} is {holder} now: waits until it has gone", self.name()),
            false => tracing::warn!("{} takes the place of {holder}", self.name()),
        }
    }

    /// Says something to etcd: over the connection that there is, or over one to
    /// each endpoint in turn. The error is fit for the log.
    async fn last_word<T>(
        &mut self,
        word: impl AsyncFn(Connection) -> Result<T, EtcdError>,
    ) -> Result<T, String> {
        let say = async {
            let mut tries = self.endpoints + usize::from(self.etcd.is_some());
            loop {
                let said = match self.connection().await {
                    Ok(etcd) => word(etcd).await,
                    Err(error) => Err(error),
                };
                tries -= 1;
                match said {
                    Err(error) if error.is_retryable() && tries > 0 => self.etcd = None,
                    said => return said,
                }
            }
        };
        match timeout(LAST_WORD_LIMIT, say).await {
            Ok(said) => said.map_err(|error| with_causes(&error)),
            Err(_) => Err("etcd does not answer".to_owned()),
        }
    }

    async fn connection(&mut self) -> Result<Connection, EtcdError> {
        if let Some(etcd) = &self.etcd {
            return Ok(etcd.clone());
        }
        Ok(self.etcd.insert(self.connector.connect().await?).clone())
    }

    /// After so many failures in a row. Between half and all of what is due, each
    /// instance by its own name: those that lost etcd together do not come back
    /// together.
    fn pause(&self, failures: u32) -> Duration {
        let longest = self.ttl / PAUSES_PER_TTL;
        let due = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures)).min(longest);
        let share = xxh64(self.key.as_bytes(), failures.into()) % 1024;
        due / 2 + due.mul_f64(share as f64 / 2048.0)
    }

    /// Logs what is not known yet, so that a long outage is a few lines.
    fn failed(&mut self, failure: String) {
        if self.failure.as_ref() != Some(&failure) {
            tracing::warn!("{failure}");
            self.failure = Some(failure);
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.service, self.instance.id)
    }
}

/// Writes `drain` into a registration that lives by `lease`; says whether there is
/// one.
async fn write_drain(etcd: &Connection, key: &str, lease: LeaseId) -> Result<bool, EtcdError> {
    loop {
        let entry = etcd.get(key).await?.filter(|entry| entry.lease == Some(lease));
        let Some(entry) = entry else { return Ok(false) };
        let Ok(Some(drained)) = with_drain(&entry.value, true) else {
            return Ok(true); // an operator was faster, or wrote what nobody can read
        };
        if etcd.replace(key, drained, entry.mod_revision, entry.lease).await? {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ctl::Overrides;

    fn keeper(id: &str) -> Keeper {
        let instance = Instance {
            id: id.to_owned(),
            addr: "127.0.0.1:9001".parse().unwrap(),
            weight: 1.0,
            zone: String::new(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: 0,
        };
        let settings = Settings::load(None, &Overrides::default()).unwrap();
        Keeper::new(&settings, "chat", instance, Duration::from_secs(10))
    }

    #[test]
    fn pauses_double_up_to_a_fifth_of_the_lease() {
        let keeper = keeper("a");
        for (failures, due_ms) in [(0, 100), (1, 200), (4, 1600), (5, 2000), (u32::MAX, 2000)] {
            let pause_ms = keeper.pause(failures).as_millis();
            assert!((due_ms / 2..=due_ms).contains(&pause_ms), "{failures}: {pause_ms} ms");
        }
    }

    #[test]
    fn two_instances_that_lost_etcd_together_do_not_come_back_together() {
        assert_ne!(keeper("a").pause(9), keeper("b").pause(9));
    }
}
