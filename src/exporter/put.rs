//! Writes into etcd: the registrations, and a batch of statuses a tick, all
//! under one lease, so that they go when the exporter goes.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep_until};

use super::gather::{Report, Shard};
use crate::config::{Config, ExporterConfig};
use crate::etcd::{Connection, Connector, EtcdError, LeaseId};
use crate::metrics::ExporterMetrics;
use crate::model::InstanceReport;
use crate::wire::{self, Key};

/// Renewals in a lease's time to live: two may be lost.
const RENEWALS_PER_TTL: u32 = 3;

/// Tries to reach an etcd that is away, in a lease's time to live.
const RECONNECTS_PER_TTL: u32 = 10;

/// Between tries of a user that etcd refuses: each costs it a password hash.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// When etcd was written last, and what went wrong since.
#[derive(Debug, Default)]
pub struct WriteHealth(Mutex<LastWrite>);

/// As of now; see [`WriteHealth`].
#[derive(Debug, Clone, Default)]
pub struct LastWrite {
    /// The last write that etcd confirmed.
    pub at: Option<Instant>,
    /// What failed since then, with its causes.
    pub failure: Option<String>,
}

impl WriteHealth {
    /// What is known now.
    pub fn last(&self) -> LastWrite {
        self.0.lock().clone()
    }

    fn wrote(&self) {
        *self.0.lock() = LastWrite { at: Some(Instant::now()), failure: None };
    }

    /// Logs what is not known yet, so that a long outage is a few lines.
    fn failed(&self, failure: String) {
        let mut last = self.0.lock();
        if last.failure.as_ref() != Some(&failure) {
            tracing::warn!("{failure}");
            last.failure = Some(failure);
        }
    }
}

/// Owns the lease and all keys under it.
pub struct Writer {
    connector: Connector,
    prefix: String,
    exporter: ExporterConfig,
    /// What is written once a lease, by key.
    registrations: Vec<(String, Vec<u8>)>,
    lease: Option<Lease>,
    metrics: Arc<ExporterMetrics>,
    health: Arc<WriteHealth>,
}

/// A lease that etcd granted.
#[derive(Clone, Copy)]
struct Lease {
    id: LeaseId,
    /// Whether every registration was written under it.
    registered: bool,
}

/// How a session with etcd ended, other than by an error.
struct Closed;

impl Writer {
    /// Reaches nothing yet.
    pub fn new(
        config: &Config,
        registrations: Vec<(Key, Vec<u8>)>,
        metrics: Arc<ExporterMetrics>,
        health: Arc<WriteHealth>,
    ) -> Self {
        let prefix = config.etcd.prefix.clone();
        let path = |(key, value): (Key, Vec<u8>)| (key.to_path(&prefix), value);
        Self {
            connector: Connector::new(&config.etcd),
            registrations: registrations.into_iter().map(path).collect(),
            prefix,
            exporter: config.exporter.clone(),
            lease: None,
            metrics,
            health,
        }
    }

    /// Writes every report, or skips it if etcd is away or slow; ends when
    /// `reports` is closed, after the lease was revoked and with it every key.
    pub async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        loop {
            let err = match self.session(&mut reports).await {
                Ok(Closed) => return,
                Err(err) => err,
            };
            self.health.failed(with_causes(&err));
            if err.is_lease_gone() {
                // Everything under it is gone too, and is written anew at once.
                self.lease = None;
                continue;
            }
            let pause = match err.is_auth_failure() {
                true => REFUSED_PAUSE,
                false => self.exporter.lease_ttl / RECONNECTS_PER_TTL,
            };
            if let Some(Closed) = self.skip(&mut reports, pause).await {
                return self.leave().await;
            }
        }
    }

    /// One connection's time: registers if need be, then keeps the lease and
    /// writes reports until something fails.
    async fn session(&mut self, reports: &mut mpsc::Receiver<Report>) -> Result<Closed, EtcdError> {
        let etcd = self.connector.connect().await?;
        let lease = self.register(&etcd).await?;
        let mut keep_alive = etcd.keep_lease(lease).await?;
        self.health.wrote();
        tracing::info!("writing into etcd at {}", etcd.endpoint());

        let renewal = self.exporter.lease_ttl / RENEWALS_PER_TTL;
        let mut renewals = interval_at(Instant::now() + renewal, renewal);
        loop {
            tokio::select! {
                _ = renewals.tick() => {
                    keep_alive.renew().await?;
                    self.health.wrote();
                }
                report = reports.recv() => match report {
                    Some(report) => self.report(&etcd, lease, report).await?,
                    None => {
                        etcd.revoke_lease(lease).await?;
                        tracing::info!("revoked the lease: every key of this exporter is gone");
                        return Ok(Closed);
                    }
                },
            }
        }
    }

    /// Makes sure of a lease, and that every registration is written under it.
    async fn register(&mut self, etcd: &Connection) -> Result<LeaseId, EtcdError> {
        let id = match self.lease {
            Some(Lease { id, registered: true }) => return Ok(id),
            Some(Lease { id, .. }) => id,
            None => {
                let id = etcd.grant_lease(self.exporter.lease_ttl).await?;
                self.metrics.lease_grants.inc();
                id
            }
        };
        self.lease = Some(Lease { id, registered: false });
        self.put_all(etcd, id, self.registrations.clone()).await?;
        self.lease = Some(Lease { id, registered: true });
        tracing::info!("registered {} keys under a new lease", self.registrations.len());
        Ok(id)
    }

    async fn report(
        &self,
        etcd: &Connection,
        lease: LeaseId,
        report: Report,
    ) -> Result<(), EtcdError> {
        // It waited while another was written: the next one has newer figures.
        if report.begun.elapsed() > self.exporter.interval + self.exporter.timeout {
            self.metrics.ticks_skipped.inc();
            return Ok(());
        }
        let batch = |Shard { service, number, statuses }: Shard| {
            let exporter = self.exporter.id.clone();
            let key = Key::Status { exporter, service, shard: number };
            let reports: Vec<_> = statuses
                .into_iter()
                .map(|(id, status)| InstanceReport::new(id, status.into()))
                .collect();
            (key.to_path(&self.prefix), wire::encode_batch(&reports))
        };
        self.put_all(etcd, lease, report.shards.into_iter().map(batch).collect()).await
    }

    /// Puts all at once, since etcd commits what arrives together in one go.
    /// The first failure is the result; the others are counted.
    async fn put_all(
        &self,
        etcd: &Connection,
        lease: LeaseId,
        records: Vec<(String, Vec<u8>)>,
    ) -> Result<(), EtcdError> {
        let mut puts = JoinSet::new();
        for (key, value) in records {
            let etcd = etcd.clone();
            puts.spawn(async move {
                let bytes = value.len() as u64;
                etcd.put(&key, value, Some(lease)).await.map(|_| bytes)
            });
        }
        let mut result = Ok(());
        for put in puts.join_all().await {
            match put {
                Ok(bytes) => {
                    self.metrics.etcd_puts.inc();
                    self.metrics.etcd_put_bytes.inc_by(bytes);
                    self.health.wrote();
                }
                Err(err) => {
                    self.metrics.etcd_put_failures.inc();
                    result = result.and(Err(err));
                }
            }
        }
        result
    }

    /// Tries once more to revoke a lease that outlived its connection.
    async fn leave(&mut self) {
        let Some(Lease { id, .. }) = self.lease else { return };
        let revoked = match self.connector.connect().await {
            Ok(etcd) => etcd.revoke_lease(id).await,
            Err(err) => Err(err),
        };
        if let Err(err) = revoked {
            tracing::warn!("{}: the keys go when the lease ends", with_causes(&err));
        }
    }

    /// Lets reports pass unwritten for a while.
    async fn skip(&self, reports: &mut mpsc::Receiver<Report>, pause: Duration) -> Option<Closed> {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return None,
                report = reports.recv() => match report {
                    Some(_) => _ = self.metrics.ticks_skipped.inc(),
                    None => return Some(Closed),
                },
            }
        }
    }
}

/// The error and what caused it, in one line.
fn with_causes(err: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(err), |&err| err.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
