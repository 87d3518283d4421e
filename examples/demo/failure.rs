//! What gets in the way of the demo, as opposed to what it finds out.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use ipconfig::etcd::EtcdError;
use thiserror::Error;

/// Why the demo cannot go on.
#[derive(Debug, Error)]
pub enum Failure {
    /// The system refused something.
    #[error("failed to {action}: {source}")]
    Io { action: String, source: io::Error },
    /// A program or a file of the build is not there.
    #[error("{what} is missing: {remedy}")]
    Missing { what: String, remedy: &'static str },
    /// A part did not start, or ended by itself.
    #[error("{part} {what}; the end of {}:\n{tail}", log.display())]
    Part { part: String, what: String, log: PathBuf, tail: String },
    /// A page could not be read.
    #[error("failed to GET {uri}: {source}")]
    Page { uri: String, source: Box<dyn Error + Send + Sync> },
    /// etcd did not do what was asked.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The task that sends the requests is gone.
    #[error("the traffic ended by itself")]
    Traffic,
    /// Somebody asked for the end.
    #[error("ended early by {0}")]
    Signal(&'static str),
}

/// Says of a failed system call what it was for.
pub trait Context<T> {
    /// `action` completes "failed to …".
    fn context(self, action: impl Into<String>) -> Result<T, Failure>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|source| Failure::Io { action: action.into(), source })
    }
}
