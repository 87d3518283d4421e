//! The files that a connection is made with. They are read, and looked at, on a thread of
//! its own: a network's file system that is away holds up whoever asks for a moment, and
//! nobody else.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use etcd_client::{Certificate, Identity, TlsOptions};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::error::Cause;
use crate::config::{EtcdConfig, TlsConfig};

/// By which another content of a file shows; `None` if there is no such file.
pub(super) type Stamp = Option<(u64, u64, SystemTime)>;

/// Which files.
#[derive(Debug, Clone)]
pub(super) struct Files {
    password: String,
    tls: TlsConfig,
    /// Whether any endpoint wants TLS.
    has_tls: bool,
}

/// What they held, as far as they are for anything.
pub(super) struct Contents {
    /// From before they were read: what was written in between is newer.
    pub stamps: Vec<Stamp>,
    /// Without the end of its line.
    pub password: Result<String, Cause>,
    pub tls: Result<TlsOptions, Cause>,
}

impl Files {
    pub fn new(config: &EtcdConfig) -> Self {
        Self {
            // Of nobody there is no password.
            password: match &*config.username {
                "" => String::new(),
                _ => config.password_file.clone(),
            },
            tls: config.tls.clone(),
            has_tls: config.endpoints.iter().any(|it| it.starts_with("https://")),
        }
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.paths().next().is_some()
    }

    fn paths(&self) -> impl Iterator<Item = &String> {
        let TlsConfig { ca, cert, key } = &self.tls;
        [&self.password, ca, cert, key].into_iter().filter(|path| !path.is_empty())
    }

    /// Waits for the file system, however long that takes.
    pub fn stamps(&self) -> Vec<Stamp> {
        let stamp = |path: &String| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.ino(), file.len(), file.modified().ok()?))
        };
        self.paths().map(stamp).collect()
    }

    /// As [`stamps`](Self::stamps).
    pub fn read(&self) -> Contents {
        let stamps = self.stamps();
        let password = match &*self.password {
            "" => Ok(String::new()),
            path => read(path).map(|bytes| {
                String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()
            }),
        };
        let tls = if self.has_tls { tls(&self.tls) } else { Ok(TlsOptions::new()) };
        Contents { stamps, password, tls }
    }
}

fn tls(config: &TlsConfig) -> Result<TlsOptions, Cause> {
    let mut options = TlsOptions::new();
    options = if config.ca.is_empty() {
        options.with_native_roots()
    } else {
        options.ca_certificate(Certificate::from_pem(read(&config.ca)?))
    };
    if !config.cert.is_empty() {
        options = options.identity(Identity::from_pem(read(&config.cert)?, read(&config.key)?));
    }
    Ok(options)
}

fn read(path: &str) -> Result<Vec<u8>, Cause> {
    std::fs::read(path).map_err(|source| Cause::File { path: path.to_owned(), source })
}

/// Work on a thread of its own, one piece at a time: where the file system hangs, one
/// thread hangs, however often it is asked. A clone does work of its own.
pub(super) struct Background<T>(Option<JoinHandle<T>>);

/// What comes of it may be a secret.
impl<T> fmt::Debug for Background<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "under way" } else { "idle" })
    }
}

impl<T> Default for Background<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Clone for Background<T> {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Background<T> {
    /// What comes of the work that is under way, or else of this. `None` if that is not
    /// within the limit, or it panicked: it goes on, and may be asked for again.
    pub async fn within(
        &mut self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let under_way = self.0.get_or_insert_with(|| spawn_blocking(work));
        let ended = timeout(limit, under_way).await.ok()?;
        self.0 = None;
        ended.ok()
    }

    /// Whatever is under way is of no use any more.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::time::Instant;

    use super::*;
    use crate::etcd::Connector;

    /// Looks and reads while the one thread for files waits, as for a server that is
    /// away; then goes on.
    fn while_files_hang<T>(what: impl AsyncFnOnce(&mut Connector) -> T) -> (T, Connector) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (answer, answers) = mpsc::channel::<()>();
            let hangs = spawn_blocking(move || answers.recv());
            let config = EtcdConfig {
                endpoints: vec!["http://127.0.0.1:1".to_owned()],
                username: "reader".to_owned(),
                password_file: "/dev/null".to_owned(),
                ..EtcdConfig::default()
            };
            let mut connector = Connector::new(&config);
            let result = what(&mut connector).await;
            drop(answer);
            assert!(hangs.await.unwrap().is_err());
            let begun = Instant::now();
            // No connection was made with this file yet.
            while !connector.is_outdated().await {
                assert!(begun.elapsed() < Duration::from_secs(10), "it is found out at last");
            }
            (result, connector)
        })
    }

    #[test]
    fn files_that_take_long_to_look_at_hold_nothing_up() {
        while_files_hang(async |connector| {
            for _ in 0..2 {
                assert!(!connector.is_outdated().await);
            }
        });
    }

    #[test]
    fn files_that_cannot_be_read_in_time_are_an_error_and_the_runtime_goes_on() {
        let (beats, _) = while_files_hang(async |connector| {
            let connecting = connector.connect();
            tokio::pin!(connecting);
            let mut beats = 0;
            let mut beat = tokio::time::interval(Duration::from_millis(250));
            let error = loop {
                tokio::select! {
                    connected = &mut connecting => break connected.err().unwrap(),
                    _ = beat.tick() => beats += 1,
                }
            };
            let error = crate::error::with_causes(&error);
            assert!(error.contains("could not be read within 5s"), "{error}");
            beats
        });
        assert!(beats >= 10, "{beats} beats in 5 s");
    }
}
