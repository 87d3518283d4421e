//! The exporter: asks instances for their status and writes it into etcd.
//!
//! ```text
//! discover -> collect -> put -> etcd
//!                 \        \
//!                  metrics  health -> serve
//! ```

mod check;
mod collect;
mod discover;
mod put;
mod serve;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

pub use self::check::{CheckError, Summary, check_file};
use self::collect::Collector;
use self::discover::{Target, UnsupportedProtocol};
use self::put::{WriteHealth, Writer};
use self::serve::Pages;
use crate::config::Config;
use crate::metrics::ExporterMetrics;
use crate::wire::{ExporterRecord, Key, encode_exporter};

/// The longest time between the wish to end and the end. What is written goes
/// by itself when the lease ends, so that an etcd that is away is not waited
/// for.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(1500);

/// An exporter that is well has written within so many intervals.
const HEALTHY_INTERVALS: u32 = 3;

/// Why an exporter did not start or came to an end.
#[derive(Debug, Error)]
pub enum ExporterError {
    /// The configuration asks for what this version cannot do.
    #[error(transparent)]
    UnsupportedProtocol(#[from] UnsupportedProtocol),
    /// An instance's status has no address to connect to.
    #[error("failed to prepare the connections: {0}")]
    Target(#[source] tonic::transport::Error),
    /// Its pages cannot be served.
    #[error("failed to serve /metrics and /healthz on {listen}: {source}")]
    Listen {
        /// `exporter.listen` of the configuration.
        listen: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The task that writes has ended though nobody asked it to.
    #[error("the writer ended: {0}")]
    Writer(#[source] tokio::task::JoinError),
}

impl ExporterError {
    /// Whether another configuration is needed, rather than another try.
    pub fn is_config(&self) -> bool {
        matches!(self, Self::UnsupportedProtocol(_) | Self::Target(_))
    }
}

/// Whether an exporter could run by a configuration that is valid by itself.
///
/// # Errors
/// [`ExporterError::UnsupportedProtocol`].
pub fn check(config: &Config) -> Result<(), ExporterError> {
    discover::targets(&config.services)?;
    Ok(())
}

/// Runs an exporter until `shutdown` is over; then nothing is asked any more,
/// and its keys are removed from etcd, which takes at most 1.5 s.
///
/// # Errors
/// [`ExporterError`] if it cannot start. What fails later is tried again.
pub async fn run(config: &Config, shutdown: impl Future<Output = ()>) -> Result<(), ExporterError> {
    let exporter = &config.exporter;
    let targets = discover::targets(&config.services)?;
    let mut registrations = discover::registrations(&config.services);
    registrations.push(announcement(config));

    let listen = exporter.listen;
    let listening = |source| ExporterError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(listening)?;

    let metrics = Arc::new(ExporterMetrics::new());
    let health = Arc::new(WriteHealth::default());
    let write_within = write_within(config, &targets);
    let mut collector =
        Collector::new(exporter, targets, Arc::clone(&metrics)).map_err(ExporterError::Target)?;
    let writer = Writer::new(config, registrations, Arc::clone(&metrics), Arc::clone(&health));
    let pages = Pages { metrics: Arc::clone(&metrics), health, write_within };

    // Room for one: what does not fit is not queued but skipped.
    let (reports, to_write) = mpsc::channel(1);
    let mut writing = tokio::spawn(writer.run(to_write));
    let serving = serve::serve(listener, pages);
    let asking = async {
        let mut ticks = interval(exporter.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let begun = ticks.tick().await;
            let report = collector.tick(begun).await;
            if reports.try_send(report).is_err() {
                metrics.ticks_skipped.inc();
            }
        }
    };

    tokio::select! {
        () = shutdown => {}
        () = asking => {}
        served = serving => served.map_err(listening)?,
        ended = &mut writing => return ended.map_err(ExporterError::Writer),
    }
    drop(reports);
    if timeout(SHUTDOWN_LIMIT, writing).await.is_err() {
        tracing::warn!("failed to revoke the lease in time: the keys go when it ends");
    }
    Ok(())
}

/// `exporters/<id>`: what this exporter says of itself.
fn announcement(config: &Config) -> (Key, Vec<u8>) {
    let exporter = &config.exporter;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let record = ExporterRecord {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: exporter.listen,
        interval_ms: milliseconds(exporter.interval),
        started_unix_ms: milliseconds(now),
    };
    (Key::Exporter { id: exporter.id.clone() }, encode_exporter(&record))
}

/// Where nobody is asked, renewing the lease is all the writing there is.
fn write_within(config: &Config, targets: &[Target]) -> Duration {
    match targets.is_empty() {
        true => config.exporter.lease_ttl,
        false => config.exporter.interval * HEALTHY_INTERVALS,
    }
}
