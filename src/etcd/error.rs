//! Why a call to etcd failed, and what that means for whoever made it.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;
use tonic::Code;

/// What could not be done, at which endpoint, and why. Holds no secrets.
#[derive(Debug, Error)]
#[error("failed to {action} at {endpoint}")]
pub struct EtcdError {
    action: String,
    endpoint: String,
    #[source]
    cause: Cause,
}

/// What stood in the way.
#[derive(Debug, Error)]
pub(super) enum Cause {
    #[error(transparent)]
    Refused(Refusal),
    #[error(transparent)]
    Client(etcd_client::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the password and the certificates could not be read within {0:?}")]
    FilesTimeout(Duration),
    #[error("cannot read {path:?}")]
    File { path: String, source: io::Error },
    #[error("the stream ended")]
    StreamEnded,
    #[error("the answer has no header")]
    NoHeader,
    #[error("a revision came in parts, and not with all of them")]
    TornRevision,
    #[error("the lease is gone")]
    LeaseGone,
    #[error("the configuration names no endpoint")]
    NoEndpoint,
    #[error("there is no connection")]
    NotConnected,
}

/// A gRPC status that is an error. Its causes are left to `source`, where
/// tonic's own text has them in debug format.
#[derive(Debug)]
pub(super) struct Refusal(tonic::Status);

impl EtcdError {
    pub(super) fn new(action: impl Into<String>, endpoint: &str, cause: Cause) -> Self {
        Self { action: action.into(), endpoint: endpoint.to_owned(), cause }
    }

    /// Whether the same call may succeed later, on a new connection, without
    /// anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        match &self.cause {
            Cause::Refused(Refusal(status)) => match status.code() {
                Code::Unavailable
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Cancelled
                | Code::Internal
                | Code::Unknown
                // The token expired; a new connection gets a new one.
                | Code::Unauthenticated => true,
                _ => status.message() == AUTH_STORE_IS_OLD,
            },
            Cause::Client(error) => matches!(error, etcd_client::Error::TransportError(_)),
            Cause::Timeout(_)
            | Cause::FilesTimeout(_)
            | Cause::StreamEnded
            | Cause::TornRevision => true,
            Cause::File { .. }
            | Cause::NoHeader
            | Cause::LeaseGone
            | Cause::NoEndpoint
            | Cause::NotConnected => false,
        }
    }

    /// Whether the user, the password or the user's rights are at fault. A
    /// call that fails so must not be repeated fast: each attempt costs etcd a
    /// password hash.
    pub fn is_auth_failure(&self) -> bool {
        let Cause::Refused(Refusal(status)) = &self.cause else { return false };
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => true,
            Code::InvalidArgument => {
                [AUTH_FAILED, AUTH_USER_EMPTY, AUTH_STORE_IS_OLD].contains(&status.message())
            }
            Code::FailedPrecondition => status.message() == AUTH_NOT_ENABLED,
            _ => false,
        }
    }

    /// Whether the call named a lease that etcd does not have (any more).
    pub fn is_lease_gone(&self) -> bool {
        match &self.cause {
            Cause::LeaseGone => true,
            Cause::Refused(Refusal(status)) => status.message() == LEASE_NOT_FOUND,
            _ => false,
        }
    }

    /// Whether a lease was to be granted under an id that another one has.
    pub(super) fn is_lease_taken(&self) -> bool {
        match &self.cause {
            Cause::Refused(Refusal(status)) => status.message() == LEASE_EXISTS,
            _ => false,
        }
    }

    /// Whether the answer is larger than a connection reads. The decoder
    /// says so with the same code as etcd does for a compacted revision.
    pub(super) fn is_too_large(&self) -> bool {
        let Cause::Refused(Refusal(status)) = &self.cause else { return false };
        status.code() == Code::OutOfRange && !status.message().starts_with("etcdserver:")
    }

    pub(super) fn code(&self) -> Option<Code> {
        match &self.cause {
            Cause::Refused(Refusal(status)) => Some(status.code()),
            _ => None,
        }
    }
}

// etcd's messages, where its codes are not enough
// (<https://github.com/etcd-io/etcd/blob/main/api/v3rpc/rpctypes/error.go>).
const AUTH_FAILED: &str = "etcdserver: authentication failed, invalid user ID or password";
const AUTH_USER_EMPTY: &str = "etcdserver: user name is empty";
const AUTH_STORE_IS_OLD: &str = "etcdserver: revision of auth store is old";
const AUTH_NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
const LEASE_EXISTS: &str = "etcdserver: lease already exists";
const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";

/// Whether a call was made with a token from before a change of users or roles.
pub(super) fn is_of_old_rights(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.message() == AUTH_STORE_IS_OLD)
}

impl From<etcd_client::Error> for Cause {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => Self::Refused(Refusal(status)),
            // How the client reports a lease that has no time left when a
            // stream is opened for it.
            etcd_client::Error::LeaseKeepAliveError(text) if text == "lease not found" => {
                Self::LeaseGone
            }
            error => Self::Client(error),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(status) = self;
        if status.message().is_empty() {
            return write!(f, "{}", status.code());
        }
        write!(f, "{}", status.message())
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code, message: &str) -> EtcdError {
        EtcdError::new(
            "put a",
            "http://h:1",
            Cause::Refused(Refusal(tonic::Status::new(code, message))),
        )
    }

    #[test]
    fn an_error_knows_whether_a_retry_helps() {
        assert!(refused(Code::Unavailable, "etcdserver: no leader").is_retryable());
        assert!(refused(Code::InvalidArgument, AUTH_STORE_IS_OLD).is_retryable());
        assert!(refused(Code::Unauthenticated, "etcdserver: invalid auth token").is_retryable());
        assert!(!refused(Code::InvalidArgument, AUTH_FAILED).is_retryable());
        assert!(!refused(Code::PermissionDenied, "etcdserver: permission denied").is_retryable());
        assert!(!refused(Code::NotFound, LEASE_NOT_FOUND).is_retryable());
    }

    /// That a full etcd answers with the same code is tested with a real one.
    #[test]
    fn too_many_requests_are_no_reason_to_give_up_a_lease_or_a_user() {
        let error = refused(Code::ResourceExhausted, "etcdserver: too many requests");
        assert!(error.is_retryable());
        assert!(!error.is_lease_gone() && !error.is_auth_failure() && !error.is_too_large());
    }

    #[test]
    fn an_error_knows_whether_the_user_is_at_fault() {
        for message in [AUTH_FAILED, AUTH_USER_EMPTY, AUTH_STORE_IS_OLD] {
            assert!(refused(Code::InvalidArgument, message).is_auth_failure(), "{message}");
        }
        assert!(refused(Code::PermissionDenied, "").is_auth_failure());
        assert!(
            !refused(Code::InvalidArgument, "etcdserver: key is not provided").is_auth_failure()
        );
        assert!(!refused(Code::Unavailable, "etcdserver: no leader").is_auth_failure());
    }

    #[test]
    fn a_compacted_revision_is_not_an_answer_that_is_too_large() {
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert!(!refused(Code::OutOfRange, compacted).is_too_large());
        let large = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert!(refused(Code::OutOfRange, large).is_too_large());
    }
}
