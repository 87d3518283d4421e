//! The only user of etcd-client: connections, authentication, TLS, and the
//! calls that the project makes.
//!
//! A [`Connector`] knows the endpoints, and connects to one of them at a time.
//! A [`Connection`] reads, writes and keeps leases there; [`EtcdSource`] is
//! what the watcher follows. None of them tries again by itself: whoever calls
//! decides that, by what [`EtcdError`] says of itself.

use std::fmt;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, KvClient,
    LeaseClient, LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions, TlsOptions, Txn,
    TxnOp, WatchClient, WatchOptions, WatchStream,
};
use tokio::time::timeout;
use tonic::Code;

use crate::config::{EtcdConfig, TlsConfig};
use crate::watcher::{Change, Message, Page, PageRequest, Record, Source, Watch};

mod error;

use error::Cause;
pub use error::EtcdError;

/// Time for a TCP connection and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the answer to a request that is small in both directions.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the answer to a request for a page, which may be as large as
/// [`MAX_MESSAGE_BYTES`]. Keep-alive notices a dead connection sooner.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// HTTP/2 pings find a peer that is gone without a word, for which TCP alone
/// takes a quarter of an hour and more. etcd refuses clients that ping more
/// often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Time for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys on a page of a list.
const PAGE_KEYS: i64 = 1000;

/// The largest answer that is read: bounds what one answer takes of the
/// gateway's memory. A page with 16 KiB a key fits; larger ones are asked for
/// in smaller pages.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Knows how to reach etcd.
#[derive(Debug, Clone)]
pub struct Connector {
    endpoints: Vec<String>,
    username: String,
    password_file: String,
    tls: TlsConfig,
    /// Connections asked for, which selects the endpoint.
    attempts: usize,
}

impl Connector {
    /// Reaches nothing yet.
    pub fn new(config: &EtcdConfig) -> Self {
        Self {
            endpoints: config.endpoints.clone(),
            username: config.username.clone(),
            password_file: config.password_file.clone(),
            tls: config.tls.clone(),
            attempts: 0,
        }
    }

    /// Connects to the next endpoint in the order of the configuration, and
    /// after the last one to the first again. The endpoint has then answered,
    /// has a leader, and knows the user.
    ///
    /// The password and the PEM files are read each time, so that they can be
    /// replaced at run time.
    pub async fn connect(&mut self) -> Result<Connection, EtcdError> {
        let index = self.attempts % self.endpoints.len().max(1);
        self.attempts = self.attempts.wrapping_add(1);
        let Some(endpoint) = self.endpoints.get(index).cloned() else {
            return Err(EtcdError::new("connect", "no endpoint", Cause::NoEndpoint));
        };
        let options = match self.options(&endpoint) {
            Ok(options) => options,
            Err(cause) => return Err(EtcdError::new("connect", &endpoint, cause)),
        };
        let connecting = Client::connect([&endpoint], Some(options));
        // A user is authenticated here; everything else connects when used.
        let client =
            call("connect", &endpoint, CONNECT_TIMEOUT + REQUEST_TIMEOUT, connecting).await?;
        let version = version(&client, &endpoint).await?;
        Ok(Connection {
            kv: client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES),
            watch: client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES),
            lease: client.lease_client(),
            endpoint,
            version,
        })
    }

    fn options(&self, endpoint: &str) -> Result<ConnectOptions, Cause> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A member that lost its cluster answers with an error, in place
            // of a watch on which nothing happens.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if !self.username.is_empty() {
            let password = String::from_utf8_lossy(&read(&self.password_file)?).into_owned();
            options = options.with_user(&self.username, password.trim_end_matches(['\r', '\n']));
        }
        if endpoint.starts_with("https://") {
            options = options.with_tls(tls(&self.tls)?);
        }
        Ok(options)
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

/// Asks for the version, which is also the proof that the endpoint lives.
/// `None` if it does not tell its version to this user.
async fn version(client: &Client, endpoint: &str) -> Result<Option<Version>, EtcdError> {
    let mut maintenance = client.maintenance_client();
    let status = maintenance.status();
    match call("connect", endpoint, CONNECT_TIMEOUT + REQUEST_TIMEOUT, status).await {
        Ok(status) => Ok(Version::parse(status.version())),
        Err(error) if error.code() == Some(Code::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Awaits an answer of etcd for at most `limit`.
async fn call<T>(
    action: impl Into<String>,
    endpoint: &str,
    limit: Duration,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, EtcdError> {
    let cause = match timeout(limit, answer).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error.into(),
        Err(_) => Cause::Timeout(limit),
    };
    Err(EtcdError::new(action, endpoint, cause))
}

/// A version of etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The 3 of 3.5.24.
    pub major: u32,
    /// The 5 of 3.5.24.
    pub minor: u32,
    /// The 24 of 3.5.24.
    pub patch: u32,
}

impl Version {
    /// Reads `3.5.24`, and `3.6.0-rc.1` as 3.6.0.
    fn parse(text: &str) -> Option<Self> {
        let number = text.split(['-', '+']).next()?;
        let mut parts = number.split('.').map(|part| part.parse().ok());
        let version = Self { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        parts.next().is_none().then_some(version)
    }

    /// Whether a progress message promises that everything up to its revision
    /// was delivered. Before these versions it may overtake a change
    /// (<https://github.com/etcd-io/etcd/issues/15220>).
    fn progress_is_exact(self) -> bool {
        let Self { major, minor, patch } = self;
        match (major, minor) {
            (3, 4) => patch >= 31,
            (3, 5) => patch >= 24,
            (3, 6) => patch >= 6,
            _ => (major, minor) > (3, 6),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A lease in etcd: the keys that are put with it are deleted when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(i64);

impl LeaseId {
    /// A lease of one's own choice, which several processes can so share: any
    /// number stands for one.
    pub fn shared(number: u64) -> Self {
        // etcd takes 0 for "choose one".
        Self(i64::try_from(number >> 1).unwrap_or(i64::MAX).max(1))
    }
}

/// A key, what it holds, and what it lives by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The whole key, with its prefix, as text; others are never put.
    pub key: String,
    /// What it holds.
    pub value: Vec<u8>,
    /// When it was written.
    pub mod_revision: i64,
    /// Whose end deletes it.
    pub lease: Option<LeaseId>,
}

/// A connection to one endpoint. Clones share it.
///
/// Every call ends within 5 s, with an error if need be, and is made once: a
/// second time only with a new token, where etcd forgot the one before.
#[derive(Clone)]
pub struct Connection {
    endpoint: String,
    version: Option<Version>,
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
}

impl Connection {
    /// Whom it is connected to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The endpoint's version; `None` if it does not tell.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Reads a key; `None`: there is none.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, EtcdError> {
        let mut kv = self.kv.clone();
        let mut answer = self.call(format!("get {key}"), kv.get(key, None)).await?;
        Ok(answer.take_kvs().pop().map(entry))
    }

    /// Reads a key as it was at `revision`; `None`: there was none, or etcd has
    /// forgotten what was then.
    pub async fn get_at(&self, key: &str, revision: i64) -> Result<Option<Entry>, EtcdError> {
        let options = GetOptions::new().with_revision(revision);
        let mut kv = self.kv.clone();
        match self.call(format!("get {key}"), kv.get(key, Some(options))).await {
            Ok(mut answer) => Ok(answer.take_kvs().pop().map(entry)),
            Err(error) if error.code() == Some(Code::OutOfRange) => Ok(None), // compacted
            Err(error) => Err(error),
        }
    }

    /// Reads every key that begins with `prefix`, in order. In pages: keys that
    /// are written meanwhile may be of different revisions.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, EtcdError> {
        let mut kv = self.kv.clone();
        let mut entries: Vec<Entry> = Vec::new();
        // What follows everything that begins with the prefix.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1; // '/' or a letter: far from 255
        }
        loop {
            let from = match entries.last() {
                None => prefix.to_owned(),
                Some(last) => format!("{}\0", last.key),
            };
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_KEYS);
            let page = kv.get(from, Some(options));
            let mut page =
                call(format!("list {prefix}"), &self.endpoint, PAGE_TIMEOUT, page).await?;
            let more = page.more();
            entries.extend(page.take_kvs().into_iter().map(entry));
            if !more {
                return Ok(entries);
            }
        }
    }

    /// Writes a key, which lives as long as `lease` if there is one. Returns
    /// the revision of the write.
    pub async fn put(
        &self,
        key: &str,
        value: impl Into<Vec<u8>>,
        lease: Option<LeaseId>,
    ) -> Result<i64, EtcdError> {
        let options = lease.map(|LeaseId(id)| PutOptions::new().with_lease(id));
        let mut kv = self.kv.clone();
        let answer = self.call(format!("put {key}"), kv.put(key, value, options)).await?;
        Ok(answer.header().map_or(0, |header| header.revision()))
    }

    /// Writes a key with a new value if it was last written at `mod_revision` (0:
    /// if there is none), under `lease` if there is one; says whether it was so.
    pub async fn replace(
        &self,
        key: &str,
        value: impl Into<Vec<u8>>,
        mod_revision: i64,
        lease: Option<LeaseId>,
    ) -> Result<bool, EtcdError> {
        let options = lease.map(|LeaseId(id)| PutOptions::new().with_lease(id));
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, mod_revision);
        let put = TxnOp::put(key, value, options);
        let mut kv = self.kv.clone();
        let write = kv.txn(Txn::new().when([unchanged]).and_then([put]));
        Ok(self.call(format!("replace {key}"), write).await?.succeeded())
    }

    /// Deletes a key; says whether there was one.
    pub async fn delete(&self, key: &str) -> Result<bool, EtcdError> {
        let mut kv = self.kv.clone();
        let answer = self.call(format!("delete {key}"), kv.delete(key, None)).await?;
        Ok(answer.deleted() > 0)
    }

    /// Creates a lease that ends `ttl` after it was last kept alive. Whole
    /// seconds, rounded up; etcd may make it longer.
    pub async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, EtcdError> {
        let mut lease = self.lease.clone();
        let answer = self.call("grant a lease", lease.grant(whole_seconds(ttl), None)).await?;
        Ok(LeaseId(answer.id()))
    }

    /// As [`grant_lease`](Self::grant_lease), with an id of one's own choice; a
    /// lease of that id is joined if there is one.
    pub async fn join_lease(&self, id: LeaseId, ttl: Duration) -> Result<(), EtcdError> {
        let options = LeaseGrantOptions::new().with_id(id.0);
        let mut lease = self.lease.clone();
        match self.call("grant a lease", lease.grant(whole_seconds(ttl), Some(options))).await {
            Err(error) if error.is_lease_taken() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Keeps a lease alive, and opens the stream on which it is kept.
    pub async fn keep_lease(&self, LeaseId(id): LeaseId) -> Result<LeaseKeepAlive, EtcdError> {
        let action = "open a stream to keep the lease alive";
        let mut lease = self.lease.clone();
        let (keeper, answers) = self.call(action, lease.keep_alive(id)).await?;
        Ok(LeaseKeepAlive { keeper, answers, endpoint: self.endpoint.clone() })
    }

    /// Ends a lease, and deletes its keys.
    pub async fn revoke_lease(&self, LeaseId(id): LeaseId) -> Result<(), EtcdError> {
        let mut lease = self.lease.clone();
        self.call("revoke the lease", lease.revoke(id)).await?;
        Ok(())
    }

    async fn call<T>(
        &self,
        action: impl Into<String>,
        answer: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, EtcdError> {
        call(action, &self.endpoint, REQUEST_TIMEOUT, answer).await
    }
}

/// Rounded up.
fn whole_seconds(time: Duration) -> i64 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A stream that keeps a lease alive.
pub struct LeaseKeepAlive {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    endpoint: String,
}

impl LeaseKeepAlive {
    /// Keeps the lease alive once more; returns the time that it has now. An
    /// error that [`is_lease_gone`](EtcdError::is_lease_gone) means that the
    /// lease and its keys are lost; after any other one a new stream may still
    /// save them.
    pub async fn renew(&mut self) -> Result<Duration, EtcdError> {
        let (keeper, answers) = (&mut self.keeper, &mut self.answers);
        let answer = async {
            keeper.keep_alive().await?;
            answers.message().await
        };
        let action = "keep the lease alive";
        let failed = |cause| EtcdError::new(action, &self.endpoint, cause);
        match call(action, &self.endpoint, REQUEST_TIMEOUT, answer).await? {
            None => Err(failed(Cause::StreamEnded)),
            // etcd answers a request for a lost lease with no time at all.
            Some(answer) => match u64::try_from(answer.ttl()) {
                Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
                _ => Err(failed(Cause::LeaseGone)),
            },
        }
    }
}

/// A range of keys, for the watcher.
pub struct EtcdSource {
    connector: Connector,
    connection: Option<Connection>,
    /// First of the range: the prefix and a slash.
    first: Vec<u8>,
    /// End of the range, which does not belong to it.
    end: Vec<u8>,
    page_keys: i64,
}

impl EtcdSource {
    /// All keys under `config.prefix`. Reaches nothing yet.
    pub fn new(config: &EtcdConfig) -> Self {
        // '0' is the character after '/', so that the range is all that begins
        // with the prefix and a slash.
        Self::range(config, "/", "0")
    }

    /// The exporters and the instances under `config.prefix`, and nothing of what
    /// exporters write each second: `exporters/` and `instances/` are neighbours
    /// among the kinds of keys, which a test holds fast.
    pub fn of_exporters_and_instances(config: &EtcdConfig) -> Self {
        Self::range(config, "/exporters/", "/instances0")
    }

    fn range(config: &EtcdConfig, first: &str, end: &str) -> Self {
        let bound = |rest: &str| format!("{}{rest}", config.prefix).into_bytes();
        Self {
            connector: Connector::new(config),
            connection: None,
            first: bound(first),
            end: bound(end),
            page_keys: PAGE_KEYS,
        }
    }

    fn action(&self, verb: &str) -> String {
        format!("{verb} {}", String::from_utf8_lossy(&self.first))
    }

    fn connection(&self, verb: &str) -> Result<Connection, EtcdError> {
        let missing = || EtcdError::new(self.action(verb), "no endpoint", Cause::NotConnected);
        self.connection.clone().ok_or_else(missing)
    }
}

impl Source for EtcdSource {
    type Error = EtcdError;
    type Watch = EtcdWatch;

    async fn connect(&mut self) -> Result<(), EtcdError> {
        self.connection = None;
        self.connection = Some(self.connector.connect().await?);
        Ok(())
    }

    async fn list(&mut self, page: PageRequest) -> Result<Page, EtcdError> {
        let Connection { mut kv, endpoint, .. } = self.connection("list")?;
        let from = match page.after {
            None => self.first.clone(),
            // The smallest key that is larger.
            Some(mut key) => {
                key.push(0);
                key
            }
        };
        let options = GetOptions::new().with_range(self.end.clone());
        let options = options.with_revision(page.revision.unwrap_or(0));
        loop {
            let options = options.clone().with_limit(self.page_keys);
            let answer = kv.get(from.clone(), Some(options));
            let mut answer = match call(self.action("list"), &endpoint, PAGE_TIMEOUT, answer).await
            {
                Ok(answer) => answer,
                Err(error) if error.is_too_large() && self.page_keys > 1 => {
                    self.page_keys /= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(header) = answer.take_header() else {
                return Err(EtcdError::new(self.action("list"), &endpoint, Cause::NoHeader));
            };
            return Ok(Page {
                cluster_id: header.cluster_id(),
                revision: header.revision(),
                more: answer.more(),
                records: answer.take_kvs().into_iter().map(record).collect(),
            });
        }
    }

    /// One stream for the whole range. Without fragments: the client does not
    /// tell which one is the last, and a cursor that moved between two of them
    /// would step over the rest of a revision.
    async fn watch(&mut self, from_revision: i64) -> Result<EtcdWatch, EtcdError> {
        let Connection { mut watch, endpoint, .. } = self.connection("watch")?;
        let options =
            WatchOptions::new().with_range(self.end.clone()).with_start_revision(from_revision);
        let opened = watch.watch(self.first.clone(), Some(options));
        let action = self.action("watch");
        let stream = call(action.clone(), &endpoint, REQUEST_TIMEOUT, opened).await?;
        Ok(EtcdWatch { stream, action, endpoint })
    }

    fn progress_is_exact(&self) -> bool {
        let version = self.connection.as_ref().and_then(Connection::version);
        version.is_some_and(Version::progress_is_exact)
    }

    /// Compacted, or more than one answer may hold.
    fn history_is_lost(error: &EtcdError) -> bool {
        error.code() == Some(Code::OutOfRange)
    }
}

fn entry(kv: etcd_client::KeyValue) -> Entry {
    let (mod_revision, lease) = (kv.mod_revision(), kv.lease());
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8_lossy(&key).into_owned();
    Entry { key, value, mod_revision, lease: (lease != 0).then_some(LeaseId(lease)) }
}

fn record(kv: etcd_client::KeyValue) -> Record {
    let mod_revision = kv.mod_revision();
    let (key, value) = kv.into_key_value();
    Record { key, value, mod_revision }
}

/// A stream of changes under a prefix.
pub struct EtcdWatch {
    stream: WatchStream,
    action: String,
    endpoint: String,
}

impl EtcdWatch {
    fn failed(&self, cause: impl Into<Cause>) -> EtcdError {
        EtcdError::new(&self.action, &self.endpoint, cause.into())
    }
}

impl Watch for EtcdWatch {
    type Error = EtcdError;

    async fn next(&mut self) -> Result<Message, EtcdError> {
        let answer = match self.stream.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(self.failed(Cause::StreamEnded)),
            Err(error) => return Err(self.failed(error)),
        };
        let Some(header) = answer.header() else { return Err(self.failed(Cause::NoHeader)) };
        Ok(Message {
            cluster_id: header.cluster_id(),
            revision: header.revision(),
            compact_revision: answer.compact_revision(),
            canceled: answer.canceled().then(|| answer.cancel_reason().to_owned()),
            created: answer.created(),
            changes: answer.events().iter().filter_map(|event| event.kv()).map(change).collect(),
        })
    }

    async fn request_progress(&mut self) -> Result<(), EtcdError> {
        self.stream.request_progress().await.map_err(|error| self.failed(error))
    }
}

/// Reads the kind of an event from the key as it is after the event: one that
/// was never created does not exist. That is how etcd itself tells the two
/// kinds apart, and `event_type()` panics on a kind that it does not know.
fn change(kv: &etcd_client::KeyValue) -> Change {
    Change {
        key: kv.key().to_vec(),
        value: (kv.create_revision() != 0).then(|| kv.value().to_vec()),
        mod_revision: kv.mod_revision(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap_or_else(|| panic!("{text} is a version"))
    }

    #[test]
    fn progress_is_believed_from_the_versions_on_that_report_it_right() {
        for text in ["3.4.31", "3.5.24", "3.6.6", "3.6.14", "3.7.0", "3.7.0-alpha.0", "4.0.0"] {
            assert!(version(text).progress_is_exact(), "{text}");
        }
        for text in ["3.4.23", "3.4.30", "3.5.23", "3.6.5", "3.6.0-rc.1", "3.3.99", "2.9.40"] {
            assert!(!version(text).progress_is_exact(), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_version_is_none() {
        for text in ["", "3", "3.4", "3.4.x", "3.4.5.6", "Not provided", "-1.2.3"] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }
}
