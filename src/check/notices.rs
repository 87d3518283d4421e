//! What a gateway has to say to the others, kept in etcd under a lease of its own:
//! keys that are gone soon after the gateway is.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::error::with_causes;
use crate::etcd::{Connection, EtcdError, LeaseId, LeaseKeepAlive, Tenure};

/// Between two rounds of writes: what changes in quick succession is written
/// together.
const APART: Duration = Duration::from_millis(100);

/// What is to be in etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notices {
    /// Whole keys, and what they hold.
    pub keys: BTreeMap<String, Vec<u8>>,
    /// Another number has everything written anew: somebody else wrote or deleted
    /// some of it.
    pub round: u64,
    /// Another one with each change.
    pub version: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenancy {
    /// Whether it is there.
    pub standing: Standing,
    /// The last [`Notices::version`] of which everything was written.
    pub written: u64,
    /// Writes that failed, and connections, since the start.
    pub failures: u64,
}

/// Whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not yet. The next step is a lease.
    Sought,
    /// Everything was written, under a lease that lives until then at least. It is
    /// renewed before that, if etcd can be reached.
    Held {
        /// By this host's clock, from before the renewal was asked for.
        until: Instant,
    },
    /// etcd does not let this user write it. Tried again now and then.
    Refused,
}

/// Keeps notices in etcd.
pub struct Announcer {
    tenure: Tenure,
    wanted: watch::Receiver<Notices>,
    tenancy: watch::Sender<Tenancy>,
    rng: SmallRng,
    /// What was written under the lease, in the round before.
    written: Notices,
    is_refused: bool,
}

/// A connection, and the lease that is kept alive over it.
struct Kept {
    etcd: Connection,
    lease: LeaseId,
    /// Once it was renewed.
    stream: Option<LeaseKeepAlive>,
    /// When the lease was asked for, or for the last time to be renewed.
    begun: Instant,
    /// Whether everything was written once.
    is_whole: bool,
}

impl Announcer {
    /// Reaches nothing yet.
    pub fn new(
        tenure: Tenure,
        wanted: watch::Receiver<Notices>,
        tenancy: watch::Sender<Tenancy>,
        rng: SmallRng,
    ) -> Self {
        Self { tenure, wanted, tenancy, rng, written: Notices::default(), is_refused: false }
    }

    /// Keeps etcd as it is wanted, for as long as this is polled. What fails is tried
    /// again. What is left of it goes with the lease: after a reload the next thread
    /// takes it over under a lease of its own, and nothing is gone in between.
    pub async fn keep(mut self) -> Infallible {
        loop {
            let Err(error) = self.session().await;
            let is_outdated = self.tenure.is_outdated_by(&error).await;
            self.failed(&error, error.is_auth_failure() && !is_outdated);
            if is_outdated {
                continue;
            }
            // A lease that is lost before everything is written under it must not be
            // followed by the next one at once, for ever.
            let least = self.tenure.shortest_pause();
            let pause = self.tenure.pause_after(&error).unwrap_or(least);
            // Who lost etcd together does not come back together.
            sleep(pause.mul_f64(self.rng.random_range(1.0..2.0))).await;
        }
    }

    /// One connection's time.
    async fn session(&mut self) -> Result<Infallible, EtcdError> {
        // Nothing to say is no reason to ask for a lease.
        let is_something = |notices: &Notices| !notices.keys.is_empty();
        if self.wanted.wait_for(is_something).await.is_err() {
            return std::future::pending().await;
        }
        let etcd = self.tenure.connect().await?;
        let begun = Instant::now();
        let written = &mut self.written;
        let begin_anew = async |_| {
            written.keys.clear();
            Ok(())
        };
        let lease = self.tenure.hold(&etcd, begin_anew).await?;
        let mut kept = Kept { etcd, lease, stream: None, begun, is_whole: false };
        // Before the lease is renewed, if that takes no longer: whoever finds a key finds
        // what is true.
        self.write(&mut kept).await?;
        kept.is_whole = true;
        self.renew(&mut kept).await?;
        let renewal = self.tenure.renewal();
        let mut renewals = interval_at(Instant::now() + renewal, renewal);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = renewals.tick() => self.renew(&mut kept).await?,
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    self.write(&mut kept).await?;
                    sleep(APART).await;
                }
            }
        }
    }

    async fn renew(&mut self, kept: &mut Kept) -> Result<(), EtcdError> {
        let begun = Instant::now();
        match &mut kept.stream {
            Some(stream) => {
                stream.renew().await?;
            }
            // This renews it, too.
            None => kept.stream = Some(kept.etcd.keep_lease(kept.lease).await?),
        }
        kept.begun = begun;
        if kept.is_whole {
            self.is_refused = false;
            let standing = Standing::Held { until: begun + self.tenure.ttl() };
            self.tenancy.send_modify(|tenancy| tenancy.standing = standing);
        }
        Ok(())
    }

    /// Writes what is not there as it is wanted. Many keys take longer than a lease
    /// lives, so it is kept alive meanwhile.
    async fn write(&mut self, kept: &mut Kept) -> Result<(), EtcdError> {
        let wanted = self.wanted.borrow_and_update().clone();
        if wanted.round != self.written.round {
            self.written.keys.clear();
            self.written.round = wanted.round;
        }
        for (key, value) in &wanted.keys {
            if self.written.keys.get(key) == Some(value) {
                continue;
            }
            if kept.begun.elapsed() > self.tenure.renewal() {
                self.renew(kept).await?;
            }
            kept.etcd.put(key, value.clone(), Some(kept.lease)).await?;
            self.written.keys.insert(key.clone(), value.clone());
        }
        self.tenancy.send_modify(|tenancy| tenancy.written = wanted.version);
        Ok(())
    }

    fn failed(&mut self, error: &EtcdError, is_refused: bool) {
        self.tenancy.send_modify(|tenancy| {
            tenancy.failures += 1;
            if is_refused {
                tenancy.standing = Standing::Refused;
            }
        });
        let text = with_causes(error);
        // That etcd is away is the watcher's to tell.
        match is_refused && !std::mem::replace(&mut self.is_refused, is_refused) {
            true => tracing::error!(
                "this gateway checks every instance itself, for it cannot tell the others what it \
                 finds: {text}; with check.by \"one\" its etcd user has to write below checks/"
            ),
            false => tracing::debug!("{text}"),
        }
    }
}
