//! The value of `checks/<gateway>/<service>`: a gateway that checks some of the
//! service's instances for all gateways, and those of them that fail.
//!
//! ```json
//! {"revision":812,"follows":{"count":3,"digest":2868486144},"failing":{"chat-2":{"addr":"10.0.0.6:8080","since_unix_ms":1795212345678,"reason":"timeout"}}}
//! ```
//!
//! Whoever can write into etcd can have written one. It is taken whole or not at all,
//! and no text of it goes further than into a log, where it is one of a few words.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{RecordError, refuse_larger_than, shorten};
use crate::model::{is_name, parse_addr};

/// The largest value that is read, in bytes; etcd's own limit is 1.5 MiB.
pub const MAX_CHECKS_BYTES: usize = 1 << 20;

/// The most instances that one value names: with the longest names and addresses
/// they fit into [`MAX_CHECKS_BYTES`].
pub const MAX_FAILING: usize = 4096;

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 16;

/// What a gateway says of its checks of one service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checks {
    /// The revision of etcd that the gateway knew when it wrote this: who it checks
    /// follows from the keys of then.
    pub revision: i64,
    /// Whom all it follows; `None` if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<Follows>,
    /// Of those that it checks, who fails. All others that it follows pass, or were not
    /// checked yet.
    #[serde(default)]
    pub failing: BTreeMap<String, Failing>,
}

/// The instances of a service that a gateway follows, its own to check and the
/// others', in short: two that follow the same ones at the same addresses, and check
/// them in the same way, say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Follows {
    /// How many they are.
    pub count: u32,
    /// A hash of them, whatever their order, and of the check.
    pub digest: u32,
}

/// An instance that fails its checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// At which address: one that registered anew with another one is meant no more.
    pub addr: SocketAddr,
    /// Since when, in milliseconds of Unix time by the gateway's clock; 0 if it does
    /// not know.
    #[serde(default)]
    pub since_unix_ms: u64,
    /// The result of the check that put it out, one of
    /// [`RESULTS`](crate::check::RESULTS); empty if it does not know.
    #[serde(default)]
    pub reason: String,
}

/// Why a gateway's checks were refused.
#[derive(Debug, Error)]
pub enum ChecksError {
    /// The value is not such a JSON object.
    #[error(transparent)]
    Json(serde_json::Error),
    /// The revision is none.
    #[error("revision {0}: expected 0 or more")]
    Revision(i64),
    /// It names more than it may.
    #[error("{0} instances: at most {MAX_FAILING} are read")]
    TooMany(usize),
    /// What it says of an instance does not hold together.
    #[error("{id:?}: {why}")]
    Instance {
        /// The id as found, shortened.
        id: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Reads a gateway's checks. Unknown fields are ignored: they may be a newer
/// version's.
///
/// # Errors
/// [`RecordError`] if the value is larger than [`MAX_CHECKS_BYTES`], or
/// [`ChecksError`].
pub fn decode_checks(value: &[u8]) -> Result<Checks, RecordError> {
    refuse_larger_than(MAX_CHECKS_BYTES, value)?;
    let checks = decode(value).map_err(RecordError::Checks)?;
    Ok(checks)
}

fn decode(value: &[u8]) -> Result<Checks, ChecksError> {
    // By way of a map, since serde would read a struct's fields from an array too.
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(value).map_err(ChecksError::Json)?;
    let checks: Checks =
        serde_json::from_value(serde_json::Value::Object(object)).map_err(ChecksError::Json)?;
    if checks.revision < 0 {
        return Err(ChecksError::Revision(checks.revision));
    }
    if checks.failing.len() > MAX_FAILING {
        return Err(ChecksError::TooMany(checks.failing.len()));
    }
    for (id, Failing { addr, reason, .. }) in &checks.failing {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        let why = if !is_name(id) {
            "the id is not 1 to 128 bytes of [A-Za-z0-9._:-]"
        } else if parse_addr(&addr.to_string()).is_err() {
            "the address is none of an instance"
        } else if reason.len() > MAX_REASON_BYTES || !reason.bytes().all(is_word) {
            "the reason is not up to 16 bytes of [a-z_]"
        } else {
            continue;
        };
        return Err(ChecksError::Instance { id: shorten(id).into_owned(), why });
    }
    Ok(checks)
}

/// Writes a gateway's checks.
pub fn encode_checks(checks: &Checks) -> Vec<u8> {
    serde_json::to_vec(checks).expect("strings and integers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MAX_NAME_BYTES;

    fn failing(addr: &str, reason: &str) -> Failing {
        Failing {
            addr: addr.parse().unwrap(),
            since_unix_ms: 1_795_212_345_678,
            reason: reason.into(),
        }
    }

    fn checks(all: impl IntoIterator<Item = (String, Failing)>) -> Checks {
        let follows = Some(Follows { count: 3, digest: u32::MAX });
        Checks { revision: 812, follows, failing: all.into_iter().collect() }
    }

    #[test]
    fn checks_are_read_as_they_were_written() {
        let some = checks([("chat-2".to_owned(), failing("10.0.0.6:8080", "timeout"))]);
        let bytes = encode_checks(&some);
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            r#"{"revision":812,"follows":{"count":3,"digest":4294967295},"failing":{"chat-2":{"addr":"10.0.0.6:8080","since_unix_ms":1795212345678,"reason":"timeout"}}}"#
        );
        assert_eq!(decode_checks(&bytes).unwrap(), some);
        let short = br#"{"revision":1,"failing":{"a":{"addr":"[::1]:9"}},"newer":[]}"#;
        let failing = Failing { since_unix_ms: 0, ..failing("[::1]:9", "") };
        let read = decode_checks(short).unwrap();
        assert_eq!(
            read,
            Checks { revision: 1, follows: None, ..checks([("a".to_owned(), failing)]) }
        );
        assert!(decode_checks(br#"{"revision":0}"#).unwrap().failing.is_empty());
    }

    #[test]
    fn what_a_gateway_cannot_have_said_is_refused_whole() {
        for (value, why) in [
            ("", "EOF"),
            ("[1,{}]", "map"),
            ("{}", "revision"),
            (r#"{"revision":-1}"#, "expected 0 or more"),
            (r#"{"revision":1.5}"#, "i64"),
            (r#"{"revision":1,"failing":["a"]}"#, "map"),
            (r#"{"revision":1,"follows":{"count":1}}"#, "digest"),
            (r#"{"revision":1,"follows":{"count":-1,"digest":1}}"#, "u32"),
            (r#"{"revision":1,"failing":{"a":{}}}"#, "addr"),
            (r#"{"revision":1,"failing":{"a":{"addr":"host:1"}}}"#, "address"),
            (r#"{"revision":1,"failing":{"a":{"addr":"1.2.3.4:0"}}}"#, "address"),
            (r#"{"revision":1,"failing":{"a/b":{"addr":"1.2.3.4:1"}}}"#, "id is not"),
            (
                r#"{"revision":1,"failing":{"a":{"addr":"1.2.3.4:1","reason":"\n[error]"}}}"#,
                "reason",
            ),
            (
                r#"{"revision":1,"failing":{"a":{"addr":"1.2.3.4:1","reason":"abcdefghijklmnopq"}}}"#,
                "reason",
            ),
            (r#"{"revision":1,"failing":{"a":{"addr":"1.2.3.4:1","since_unix_ms":-1}}}"#, "u64"),
        ] {
            let error = decode_checks(value.as_bytes()).unwrap_err();
            assert_eq!(error.reason(), "checks", "{value}");
            assert!(error.to_string().contains(why), "{value}: {error}");
        }
    }

    #[test]
    fn as_many_as_may_be_fit_into_a_value_and_one_more_is_refused() {
        let longest = failing(
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            &"x".repeat(MAX_REASON_BYTES),
        );
        let all = |count| {
            let id = |number: usize| format!("{number:0>MAX_NAME_BYTES$}");
            encode_checks(&checks((0..count).map(|number| (id(number), longest.clone()))))
        };
        assert_eq!(decode_checks(&all(MAX_FAILING)).unwrap().failing.len(), MAX_FAILING);
        let error = decode_checks(&all(MAX_FAILING + 1)).unwrap_err();
        assert!(error.to_string().contains("at most 4096"), "{error}");
        let error = decode_checks(&vec![b' '; MAX_CHECKS_BYTES + 1]).unwrap_err();
        assert_eq!(error.reason(), "too_large");
    }
}
