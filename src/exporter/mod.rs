//! The exporter: asks instances for their status and writes it into etcd.
//!
//! ```text
//! etcd -> discover -> rounds: collect -> deadband, shard -> etcd
//!                        \                                   ^
//!                         metrics, health -> serve    put ---+ (leases, registrations)
//! ```

mod check;
pub mod collect;
mod deadband;
mod discover;
mod member;
mod put;
mod rounds;
mod serve;
mod shard;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::{SmallRng, SysRng};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

pub use self::check::{CheckError, Summary, check_file};
use self::collect::CollectError;
use self::discover::Fleet;
use self::put::{Registrar, Registrations, Told, WriteHealth};
use self::rounds::Rounds;
use self::serve::Pages;
use crate::clock::unix_ms;
use crate::config::Config;
use crate::etcd::EtcdSource;
use crate::metrics::ExporterMetrics;
use crate::watcher::{self, Timing};
use crate::wire::{ExporterRecord, encode_exporter};

/// The longest time between the wish to end and the end. What is written goes
/// by itself when the lease ends, so that an etcd that is away is not waited
/// for.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(1500);

/// An exporter that is well has renewed its lease in so much of its time to live.
const HEALTHY_PART_OF_TTL: f64 = 0.6;

/// Events of the watch that may wait.
const EVENTS: usize = 1024;

/// Why an exporter did not start or came to an end.
#[derive(Debug, Error)]
pub enum ExporterError {
    /// The configuration asks for what cannot be done.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// Its pages cannot be served.
    #[error("failed to serve /metrics and /healthz on {listen}: {source}")]
    Listen {
        /// `exporter.listen` of the configuration.
        listen: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A task has ended though nobody asked it to.
    #[error("a part of the exporter ended: {0}")]
    Task(#[source] tokio::task::JoinError),
}

impl ExporterError {
    /// Whether another configuration is needed, rather than another try.
    pub fn is_config(&self) -> bool {
        matches!(self, Self::Collect(_))
    }
}

/// Whether an exporter could run by a configuration that is valid by itself.
///
/// # Errors
/// [`ExporterError::Collect`].
pub fn check(config: &Config) -> Result<(), ExporterError> {
    collect::Manner::new(config)?;
    Ok(())
}

/// Runs an exporter until `shutdown` is over; then nothing is asked any more,
/// and its keys are removed from etcd, which takes at most 1.5 s.
///
/// # Errors
/// [`ExporterError`] if it cannot start. What fails later is tried again.
pub async fn run(config: &Config, shutdown: impl Future<Output = ()>) -> Result<(), ExporterError> {
    let exporter = &config.exporter;
    let metrics = Arc::new(ExporterMetrics::new());
    let health = Arc::new(WriteHealth::default());
    let registrations = Registrations::new(config);
    let announcement = announcement(config, registrations.name());

    // Room for a few: a failure that finds none says what those before it say.
    let (failures, failed) = mpsc::channel(4);
    let missing = Arc::new(Notify::new());
    let told = Told { failures: failed, missing: Arc::clone(&missing) };
    let (sessions, session) = watch::channel(None);
    let (events, followed) = mpsc::channel(EVENTS);
    let fleet = Fleet::new(config, &announcement);
    let (shown, wrote) = (Arc::clone(&metrics), Arc::clone(&health));
    let rounds = Rounds::new(config, fleet, session, failures, missing, shown, wrote)?;
    let (shown, wrote) = (Arc::clone(&metrics), Arc::clone(&health));
    let registrar = Registrar::new(config, announcement, registrations, shown, wrote, sessions);

    let listen = exporter.listen;
    let listening = |source| ExporterError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(listening)?;
    let write_within = exporter.lease_ttl.mul_f64(HEALTHY_PART_OF_TTL);
    let serving = serve::serve(listener, Pages { metrics, health, write_within });

    let rng = SmallRng::try_from_rng(&mut SysRng).unwrap_or_else(|_| SmallRng::seed_from_u64(0));
    let source = EtcdSource::of_exporters_and_instances(&config.etcd);
    let watching = watcher::run(source, Timing::default(), rng, events);
    let mut registering = tokio::spawn(registrar.run(told));
    let mut asking = tokio::spawn(rounds.run(followed));

    tokio::select! {
        // What ended first may be what the others end by.
        biased;
        () = shutdown => {}
        ended = &mut asking => return ended.map_err(ExporterError::Task),
        ended = &mut registering => return ended.map_err(ExporterError::Task),
        () = watching => {}
        never = serving => match never {},
    }
    // With the rounds goes the sender of failures, which the registrar ends by.
    asking.abort();
    if timeout(SHUTDOWN_LIMIT, registering).await.is_err() {
        tracing::warn!("failed to revoke the lease in time: the keys go when it ends");
    }
    Ok(())
}

/// `exporters/<id>`: what this exporter says of itself.
fn announcement(config: &Config, registrations: String) -> Vec<u8> {
    let exporter = &config.exporter;
    encode_exporter(&ExporterRecord {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: exporter.listen,
        interval_ms: u64::try_from(exporter.interval.as_millis()).unwrap_or(u64::MAX),
        started_unix_ms: unix_ms(),
        registrations,
    })
}
