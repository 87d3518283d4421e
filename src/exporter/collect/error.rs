//! Why an instance is not asked, and why it could not be read.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio_rustls::rustls;
use tonic::Code;

use super::connection::Forbidden;
use crate::error::{chain, with_causes};
use crate::model::StatusUrl;
use crate::reckon::FigureError;
use crate::wire::RecordError;

/// Why instances cannot be asked as the configuration wants it.
#[derive(Debug, Error)]
pub enum CollectError {
    /// A PEM file cannot be read.
    #[error("{key}: failed to read {path}: {source}")]
    Read {
        /// The key of the configuration.
        key: &'static str,
        /// The file that it names.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{key}: {path} holds no {kind} in PEM format")]
    NotPem {
        /// The key of the configuration.
        key: &'static str,
        /// The file that it names.
        path: String,
        /// What it should hold.
        kind: &'static str,
    },
    /// The certificates or the private key are none, or do not fit each other.
    #[error("{key}: failed to use {path}: {source}")]
    Tls {
        /// The key or keys of the configuration.
        key: &'static str,
        /// The file or files that they name.
        path: String,
        /// What is wrong.
        source: Box<rustls::Error>,
    },
    /// Instances are to be checked by the system's certificates, and it has none.
    #[error("exporter.tls.ca: empty, and the system has no certificates{}", listed(.errors))]
    NoRoots {
        /// What went wrong on the way to them.
        errors: Vec<rustls_native_certs::Error>,
    },
    /// There is no way to connect to a URL.
    #[error("failed to prepare a connection to {url}: {}", with_causes(&**.source))]
    Url {
        /// Where the instance is said to be.
        url: StatusUrl,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Why an instance's status is not known.
#[derive(Debug, Clone, Error)]
pub enum AskError {
    /// It did not answer in time.
    #[error("{method} was not answered within {limit:?}")]
    Timeout {
        /// What was asked.
        method: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// There is no connection to it.
    #[error("failed to connect: {0}")]
    Connect(String),
    /// It is where no instance may be.
    #[error("did not connect: {0}")]
    Forbidden(Forbidden),
    /// It offers no service by which it could be asked. It is not asked again on
    /// the same connection.
    #[error("the instance does not implement {service}")]
    Unimplemented {
        /// The service's full name.
        service: &'static str,
    },
    /// It, or the connection, answered with an error.
    #[error("failed to call {method}: {}: {}", .status.code(), message(.status))]
    Call {
        /// What was asked.
        method: &'static str,
        /// The answer.
        status: tonic::Status,
    },
    /// Its stream came to an end though nobody asked it to.
    #[error("{method} ended")]
    Ended {
        /// The stream.
        method: &'static str,
    },
    /// Its stream brings more than can be of use.
    #[error("{method} brought more than {allowed} messages at once")]
    Flood {
        /// The stream.
        method: &'static str,
        /// What is taken.
        allowed: usize,
    },
    /// Its answer was empty.
    #[error("the answer to {method} holds no status")]
    Empty {
        /// What was asked.
        method: &'static str,
    },
    /// What it said cannot be.
    #[error("failed to read the answer: {0}")]
    Status(#[source] Arc<RecordError>),
    /// What it reported cannot be.
    #[error("{0}")]
    Load(#[from] FigureError),
    /// It does not know how it is.
    #[error("the instance says {0} of its own health")]
    Health(&'static str),
}

impl AskError {
    /// What a call's failure means.
    pub(super) fn from_call(
        method: &'static str,
        service: &'static str,
        status: tonic::Status,
    ) -> Self {
        if let Some(forbidden) = chain(&status).find_map(|it| it.downcast_ref::<Forbidden>()) {
            return Self::Forbidden(forbidden.clone());
        }
        if let Some(failure) = chain(&status).find(|it| it.is::<tonic::ConnectError>()) {
            return Self::Connect(with_causes(failure));
        }
        match status.code() {
            Code::Unimplemented => Self::Unimplemented { service },
            _ => Self::Call { method, status },
        }
    }

    /// The reason in one word out of a small fixed set, fit for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Connect(_) => "connect",
            Self::Forbidden(_) => "refused_by_allow",
            Self::Unimplemented { .. } => "unimplemented",
            Self::Call { .. } => "call",
            Self::Ended { .. } => "ended",
            Self::Flood { .. } => "flood",
            Self::Empty { .. } | Self::Status(_) | Self::Load(_) | Self::Health(_) => "bad_status",
        }
    }

    /// Whether the next try of the same tick may end otherwise.
    pub(super) fn retry_helps(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Connect(_) | Self::Call { .. })
    }
}

impl From<RecordError> for AskError {
    fn from(err: RecordError) -> Self {
        Self::Status(Arc::new(err))
    }
}

/// As much of a stranger's text as a log should repeat, on one line.
fn message(status: &tonic::Status) -> impl fmt::Display {
    const MAX_CHARS: usize = 200;
    status.message().escape_debug().take(MAX_CHARS).collect::<String>()
}

/// The errors behind what they led to.
fn listed(errors: &[rustls_native_certs::Error]) -> String {
    errors.iter().map(|err| format!(": {err}")).collect()
}
