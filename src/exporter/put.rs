//! The exporter's standing in etcd: its connection, its lease, its announcement,
//! and the registrations of the configuration file's instances.
//!
//! Two leases keep what is written. The exporter's own one holds its announcement
//! and its statuses, and ends with it. The instances of the configuration file
//! hang on a lease that all exporters with the same instances in their file
//! share, and keep alive together: its id is a hash of them. So these instances
//! stay registered while any of those exporters lives, and a changed file brings
//! a lease of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep_until};
use xxhash_rust::xxh64::xxh64;

use crate::config::{Config, ExporterConfig, ServiceConfig};
use crate::error::with_causes;
use crate::etcd::{Connection, EtcdError, LeaseId, LeaseKeepAlive, Tenure};
use crate::metrics::ExporterMetrics;
use crate::model::Instance;
use crate::wire::{self, Key};

/// Registrations that are put at once: etcd commits what arrives together in one
/// go.
const PUTS_AT_ONCE: usize = 256;

/// When etcd was written last, and what went wrong since.
#[derive(Debug, Default)]
pub struct WriteHealth(Mutex<LastWrite>);

/// As of now; see [`WriteHealth`].
#[derive(Debug, Clone, Default)]
pub struct LastWrite {
    /// The last write that etcd confirmed.
    pub at: Option<Instant>,
    /// What failed since then, with its causes, and when it last did.
    pub failure: Option<(String, Instant)>,
}

impl WriteHealth {
    /// What is known now.
    pub fn last(&self) -> LastWrite {
        self.0.lock().clone()
    }

    /// etcd confirmed a write.
    pub fn wrote(&self) {
        *self.0.lock() = LastWrite { at: Some(Instant::now()), failure: None };
    }

    /// etcd kept a lease alive, which it also does where it takes no puts: a put
    /// that failed within `memory` counts for more.
    fn renewed(&self, memory: Duration) {
        let mut last = self.0.lock();
        if last.failure.as_ref().is_none_or(|(_, at)| at.elapsed() > memory) {
            *last = LastWrite { at: Some(Instant::now()), failure: None };
        }
    }

    /// Logs what is not known yet, so that a long outage is a few lines.
    fn failed(&self, failure: String) {
        let mut last = self.0.lock();
        if last.failure.as_ref().is_none_or(|(known, _)| *known != failure) {
            tracing::warn!("{failure}");
        }
        last.failure = Some((failure, Instant::now()));
    }
}

/// A standing connection, and the lease that statuses are put under.
#[derive(Clone)]
pub struct Session {
    /// To the endpoint that answers.
    pub etcd: Connection,
    /// The exporter's own.
    pub lease: LeaseId,
}

/// What the [`Registrar`] is told.
pub struct Told {
    /// Puts of statuses that failed: the connection or the lease may be gone.
    pub failures: mpsc::Receiver<EtcdError>,
    /// That something of its own is missing in etcd.
    pub missing: Arc<Notify>,
}

/// What is announced and registered.
pub struct Registrar {
    /// The exporter's own lease.
    tenure: Tenure,
    exporter: ExporterConfig,
    instances_prefix: String,
    exporters_prefix: String,
    announcement: (String, Vec<u8>),
    /// What hangs on the shared lease.
    registrations: Registrations,
    /// None without registrations.
    shared: Option<LeaseId>,
    has_checked: bool,
    /// Whether this process has once put every registration that was not on its
    /// lease. From then on only those are put that are not there at all, so that
    /// exporters of different files do not write over each other for ever.
    has_registered: bool,
    metrics: Arc<ExporterMetrics>,
    health: Arc<WriteHealth>,
    sessions: watch::Sender<Option<Session>>,
}

/// How a session ended, other than by an error.
struct Closed;

/// The leases' streams; none for the shared one before it was joined.
struct Kept {
    own: LeaseKeepAlive,
    shared: Option<LeaseKeepAlive>,
}

/// Whether the shared lease, and with it the registrations, are there.
#[derive(PartialEq, Eq)]
enum Shared {
    Held,
    Missing,
}

/// The instances of the configuration file, as etcd is to hold them.
pub struct Registrations {
    /// By key.
    records: Vec<(String, Vec<u8>)>,
    /// The same number wherever these, and the time for which a lease holds them,
    /// are the same.
    fingerprint: u64,
}

impl Registrations {
    /// Those of a file.
    pub fn new(config: &Config) -> Self {
        let of_service = |(service, service_config): (&String, &ServiceConfig)| {
            let record = |instance: &Instance| {
                let key = Key::Instance { service: service.clone(), id: instance.id.clone() };
                (key.to_path(&config.etcd.prefix), wire::encode_instance(instance))
            };
            service_config.instances.iter().map(record).collect::<Vec<_>>()
        };
        // In the order of the names.
        let records: Vec<_> = config.services.iter().flat_map(of_service).collect();
        let ttl_seconds = config.exporter.lease_ttl.as_secs();
        let fingerprint = records
            .iter()
            .fold(ttl_seconds, |seed, (key, value)| xxh64(value, xxh64(key.as_bytes(), seed)));
        Self { records, fingerprint }
    }

    /// What an exporter announces of them: 16 hexadecimal digits.
    pub fn name(&self) -> String {
        format!("{:016x}", self.fingerprint)
    }
}

impl Registrar {
    /// Reaches nothing yet. `announcement` is the value of this exporter's key.
    pub fn new(
        config: &Config,
        announcement: Vec<u8>,
        registrations: Registrations,
        metrics: Arc<ExporterMetrics>,
        health: Arc<WriteHealth>,
        sessions: watch::Sender<Option<Session>>,
    ) -> Self {
        let prefix = &config.etcd.prefix;
        let key = Key::Exporter { id: config.exporter.id.clone() };
        let is_needed = !registrations.records.is_empty();
        let number = registrations.fingerprint;
        Self {
            tenure: Tenure::new(&config.etcd, config.exporter.lease_ttl),
            exporter: config.exporter.clone(),
            instances_prefix: format!("{prefix}/instances/"),
            exporters_prefix: format!("{prefix}/exporters/"),
            announcement: (key.to_path(prefix), announcement),
            registrations,
            shared: is_needed.then(|| LeaseId::shared(number)),
            has_checked: false,
            has_registered: false,
            metrics,
            health,
            sessions,
        }
    }

    /// Holds a session open, and opens the next one when it breaks; ends when the
    /// sender of failures is gone, after everything that is this exporter's alone
    /// was taken out.
    pub async fn run(mut self, mut told: Told) {
        loop {
            let ended = self.session(&mut told).await;
            self.sessions.send_replace(None);
            let err = match ended {
                Ok(Closed) => return,
                Err(err) => err,
            };
            self.health.failed(with_causes(&err));
            if self.tenure.is_outdated_by(&err).await {
                continue;
            }
            let Some(pause) = self.tenure.pause_after(&err) else { continue };
            let rested = tokio::select! {
                rested = rest(&mut told.failures, pause) => rested,
                () = self.tenure.new_files() => None,
            };
            if let Some(Closed) = rested {
                return self.leave_late().await;
            }
        }
    }

    /// One connection's time. An error that says that a lease is gone is about
    /// the exporter's own.
    async fn session(&mut self, told: &mut Told) -> Result<Closed, EtcdError> {
        let mut etcd = self.tenure.connect().await?;
        if !std::mem::replace(&mut self.has_checked, true) {
            warn_of_upkeep(&etcd, &self.exporters_prefix).await;
        }
        let lease = self.announce(&etcd).await?;
        let mut kept = Kept { own: etcd.keep_lease(lease).await?, shared: None };
        self.sessions.send_replace(Some(Session { etcd: etcd.clone(), lease }));
        self.health.renewed(self.exporter.lease_ttl);
        tracing::info!("writing into etcd at {}", etcd.endpoint());

        let renewal = self.tenure.renewal();
        let mut renewals = interval_at(Instant::now() + renewal, renewal);
        let mut shared = Shared::Missing;
        loop {
            if shared == Shared::Missing {
                shared = self.register(&etcd, &mut kept).await?;
            }
            tokio::select! {
                _ = renewals.tick() => {
                    if let Some(newer) = self.newer_connection().await {
                        etcd = newer;
                        kept = Kept { own: etcd.keep_lease(lease).await?, shared: None };
                        self.sessions.send_replace(Some(Session { etcd: etcd.clone(), lease }));
                        // This has it kept alive over the same connection.
                        shared = Shared::Missing;
                    } else {
                        shared = self.renew(&mut kept).await?;
                    }
                    self.health.renewed(self.exporter.lease_ttl);
                }
                () = told.missing.notified() => {
                    let (key, value) = self.announcement.clone();
                    put(&etcd, &self.metrics, key, value, lease).await?;
                    shared = Shared::Missing;
                }
                failure = told.failures.recv() => match failure {
                    Some(err) if err.is_lease_gone() => return Err(err),
                    // A single failure may be the value's own; the lease tells
                    // whether etcd can be written at all.
                    Some(err) => {
                        self.health.failed(with_causes(&err));
                        kept.own.renew().await?;
                    }
                    None => {
                        self.leave(&etcd, lease).await?;
                        return Ok(Closed);
                    }
                },
            }
        }
    }

    /// A connection that is made with files that were replaced; the one before it serves
    /// on where they are bad.
    async fn newer_connection(&mut self) -> Option<Connection> {
        match self.tenure.reconnect().await {
            Ok(None) => None,
            Ok(Some(etcd)) => {
                tracing::info!("etcd's password or certificates are others, and are used");
                Some(etcd)
            }
            Err(err) => {
                tracing::warn!("what etcd's files hold now is of no use: {}", with_causes(&err));
                None
            }
        }
    }

    /// Makes sure of the exporter's own lease, and of its announcement under it.
    async fn announce(&mut self, etcd: &Connection) -> Result<LeaseId, EtcdError> {
        let Self { tenure, metrics, announcement: (key, value), .. } = self;
        let announce = async |lease| {
            metrics.lease_grants.inc();
            put(etcd, metrics, key.clone(), value.clone(), lease).await
        };
        tenure.hold(etcd, announce).await
    }

    /// Makes sure of the shared lease, and that every registration is there. Many
    /// of them take longer than a lease lives, so both are kept alive meanwhile.
    async fn register(&mut self, etcd: &Connection, kept: &mut Kept) -> Result<Shared, EtcdError> {
        let Some(lease) = self.shared else { return Ok(Shared::Held) };
        etcd.join_lease(lease, self.exporter.lease_ttl).await?;
        kept.shared = match etcd.keep_lease(lease).await {
            // It ended just now.
            Err(err) if err.is_lease_gone() => return Ok(Shared::Missing),
            kept => Some(kept?),
        };
        let entries = etcd.list(&self.instances_prefix).await?;
        let held: HashMap<_, _> = entries.into_iter().map(|it| (it.key.clone(), it)).collect();
        let missing: Vec<_> = self
            .registrations
            .records
            .iter()
            .filter_map(|(key, value)| match held.get(key) {
                None => Some((key.clone(), value.clone())),
                Some(entry) if self.has_registered || entry.lease == Some(lease) => None,
                Some(entry) => Some((key.clone(), wire::keep_drain(value, &entry.value))),
            })
            .collect();
        let mut renewed = Instant::now();
        for some in missing.chunks(PUTS_AT_ONCE) {
            let mut puts = JoinSet::new();
            for (key, value) in some.iter().cloned() {
                let (etcd, metrics) = (etcd.clone(), Arc::clone(&self.metrics));
                puts.spawn(async move { put(&etcd, &metrics, key, value, lease).await });
            }
            for put in puts.join_all().await {
                match put {
                    Err(err) if err.is_lease_gone() => return Ok(Shared::Missing),
                    put => put?,
                }
            }
            if renewed.elapsed() > self.tenure.renewal() {
                if self.renew(kept).await? == Shared::Missing {
                    return Ok(Shared::Missing);
                }
                renewed = Instant::now();
            }
        }
        if !missing.is_empty() {
            tracing::info!("registered {} instances of the configuration file", missing.len());
        }
        self.has_registered = true;
        Ok(Shared::Held)
    }

    /// Keeps both leases alive. A shared one that is gone took the registrations
    /// with it, and nothing of this exporter's own.
    async fn renew(&self, kept: &mut Kept) -> Result<Shared, EtcdError> {
        kept.own.renew().await?;
        let Some(shared) = &mut kept.shared else { return Ok(Shared::Held) };
        match shared.renew().await {
            Err(err) if err.is_lease_gone() => Ok(Shared::Missing),
            renewed => renewed.map(|_| Shared::Held),
        }
    }

    /// Takes out what no other exporter needs.
    async fn leave(&self, etcd: &Connection, own: LeaseId) -> Result<(), EtcdError> {
        if let Some(shared) = self.shared
            && !self.is_shared_by_another(etcd).await?
        {
            etcd.revoke_lease(shared).await?;
        }
        etcd.revoke_lease(own).await?;
        tracing::info!("revoked the lease: every key of this exporter is gone");
        Ok(())
    }

    /// Whether another live exporter has the same instances in its file.
    async fn is_shared_by_another(&self, etcd: &Connection) -> Result<bool, EtcdError> {
        let own = self.registrations.name();
        let exporters = etcd.list(&self.exporters_prefix).await?;
        let others = exporters.iter().filter(|it| it.key != self.announcement.0);
        Ok(others
            .filter_map(|it| wire::decode_exporter(&it.value).ok())
            .any(|it| it.registrations == own))
    }

    /// Tries once more to leave, over a new connection.
    async fn leave_late(&mut self) {
        let Some(own) = self.tenure.lease() else { return };
        let left = match self.tenure.connect().await {
            Ok(etcd) => self.leave(&etcd, own).await,
            Err(err) => Err(err),
        };
        if let Err(err) = left {
            tracing::warn!("{}: the keys go when the lease ends", with_causes(&err));
        }
    }
}

/// Puts one key, and counts it.
pub async fn put(
    etcd: &Connection,
    metrics: &ExporterMetrics,
    key: String,
    value: Vec<u8>,
    lease: LeaseId,
) -> Result<(), EtcdError> {
    let (bytes, begun) = (value.len() as u64, Instant::now());
    match etcd.put(&key, value, Some(lease)).await {
        Ok(_) => {
            metrics.etcd_puts.inc();
            metrics.etcd_put_bytes.inc_by(bytes);
            metrics.etcd_put_seconds.observe(begun.elapsed().as_secs_f64());
            Ok(())
        }
        Err(err) => {
            metrics.etcd_put_failures.inc();
            Err(err)
        }
    }
}

/// Waits, deaf to what is known already: that writes fail.
async fn rest(failures: &mut mpsc::Receiver<EtcdError>, pause: Duration) -> Option<Closed> {
    let end = Instant::now() + pause;
    loop {
        tokio::select! {
            () = sleep_until(end) => return None,
            failure = failures.recv() => if failure.is_none() {
                return Some(Closed);
            },
        }
    }
}

/// What etcd needs to bear an exporter for long.
async fn warn_of_upkeep(etcd: &Connection, key: &str) {
    match etcd.upkeep(key).await {
        Ok(upkeep) => upkeep.warnings().iter().for_each(|warning| tracing::warn!("{warning}")),
        Err(err) => tracing::debug!("{}", with_causes(&err)),
    }
}
