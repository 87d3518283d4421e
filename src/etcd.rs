//! The only user of etcd-client: connections, authentication, TLS, and the
//! calls that the project makes.
//!
//! A [`Connector`] knows the endpoints, and connects to one of them at a time.
//! A [`Connection`] reads, writes and keeps leases there; [`EtcdSource`] is
//! what the watcher follows, and a [`Tenure`] is a lease of one's own over
//! connections that come and go. None of them tries again by itself: whoever calls
//! decides that, by what [`EtcdError`] says of itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, GetResponse, KvClient, LeaseClient,
    LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp, WatchClient,
};
use tokio::time::timeout;
use tonic::Code;

use crate::config::EtcdConfig;

mod error;
mod files;
mod source;
mod tenure;

use error::Cause;
pub use error::EtcdError;
use files::{Background, Contents, Files, Stamp};
pub use source::{EtcdSource, EtcdWatch};
pub use tenure::Tenure;

/// Time for a TCP connection and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time to read the password and the certificates. On a network's file system that is
/// away that takes for ever.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// For so long a look at the files keeps whoever looks waiting. One that takes longer is
/// asked again the next time.
const LOOK_LIMIT: Duration = Duration::from_millis(100);

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
    files: Files,
    /// Connections asked for, which selects the endpoint.
    attempts: usize,
    /// As the files were for the last connection.
    used: Vec<Stamp>,
    /// And for the last attempt to make one.
    tried: Vec<Stamp>,
    reading: Background<Contents>,
    look: Background<Vec<Stamp>>,
}

impl Connector {
    /// Reaches nothing yet.
    pub fn new(config: &EtcdConfig) -> Self {
        Self {
            endpoints: config.endpoints.clone(),
            username: config.username.clone(),
            files: Files::new(config),
            attempts: 0,
            used: Vec::new(),
            tried: Vec::new(),
            reading: Background::default(),
            look: Background::default(),
        }
    }

    /// Connects to the next endpoint in the order of the configuration, and
    /// after the last one to the first again. The endpoint has then answered,
    /// has a leader, and knows the user.
    ///
    /// The password and the PEM files are read each time, so that they can be
    /// replaced at run time; a file system that hangs is given 5 s.
    pub async fn connect(&mut self) -> Result<Connection, EtcdError> {
        let index = self.attempts % self.endpoints.len().max(1);
        self.attempts = self.attempts.wrapping_add(1);
        let Some(endpoint) = self.endpoints.get(index).cloned() else {
            return Err(EtcdError::new("connect", "no endpoint", Cause::NoEndpoint));
        };
        let action = match &*self.username {
            "" => "connect".to_owned(),
            user => format!("connect as {user:?}"),
        };
        let options = match self.options(&endpoint).await {
            Ok(options) => options,
            Err(cause) => return Err(EtcdError::new(action, &endpoint, cause)),
        };
        let connecting = Client::connect([&endpoint], Some(options));
        // A user is authenticated here; everything else connects when used.
        let client = call(action, &endpoint, CONNECT_TIMEOUT + REQUEST_TIMEOUT, connecting).await?;
        let server = server(&client, &endpoint).await?;
        self.used.clone_from(&self.tried);
        // It was at the files of the connection before.
        self.look.forget();
        Ok(Connection {
            renewals: Arc::new(Renewals::of(&client, !self.username.is_empty())),
            kv: client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES),
            watch: client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES),
            lease: client.lease_client(),
            endpoint,
            server,
        })
    }

    /// Whether a file has changed since the last connection was made with it. Where the
    /// file system does not say so within a tenth of a second: not that anybody knows, and
    /// it is asked again the next time.
    pub async fn is_outdated(&mut self) -> bool {
        self.stamps().await.is_some_and(|stamps| stamps != self.used)
    }

    /// Whether a file has changed since the last attempt to connect, well or not, as
    /// [`is_outdated`](Self::is_outdated) says it: to make one is worth it.
    pub async fn has_untried_files(&mut self) -> bool {
        self.stamps().await.is_some_and(|stamps| stamps != self.tried)
    }

    /// The last attempt does not count as one.
    fn forget_attempt(&mut self) {
        self.tried.clear();
    }

    /// `None` if they are not known now, or there are none.
    async fn stamps(&mut self) -> Option<Vec<Stamp>> {
        if !self.files.is_any() {
            return None;
        }
        let files = self.files.clone();
        self.look.within(LOOK_LIMIT, move || files.stamps()).await
    }

    async fn options(&mut self, endpoint: &str) -> Result<ConnectOptions, Cause> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A member that lost its cluster answers with an error, in place
            // of a watch on which nothing happens.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let files = self.files.clone();
        let contents = match self.files.is_any() {
            true => self.reading.within(READ_TIMEOUT, move || files.read()).await,
            false => Some(files.read()),
        };
        let Contents { stamps, password, tls } =
            contents.ok_or(Cause::FilesTimeout(READ_TIMEOUT))?;
        self.tried = stamps;
        if !self.username.is_empty() {
            options = options.with_user(&self.username, password?);
        }
        if endpoint.starts_with("https://") {
            options = options.with_tls(tls?);
        }
        Ok(options)
    }
}

/// Asks for the server's state, which is also the proof that the endpoint lives.
/// `None` if it does not tell that to this user.
async fn server(client: &Client, endpoint: &str) -> Result<Option<Server>, EtcdError> {
    let mut maintenance = client.maintenance_client();
    let status = maintenance.status();
    match call("connect", endpoint, CONNECT_TIMEOUT + REQUEST_TIMEOUT, status).await {
        Ok(status) => Ok(Some(Server {
            version: Version::parse(status.version()),
            database_bytes: u64::try_from(status.db_size()).unwrap_or_default(),
            alarms: status.errors().to_vec(),
        })),
        Err(error) if error.code() == Some(Code::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an endpoint says of itself.
#[derive(Debug, Clone)]
struct Server {
    version: Option<Version>,
    database_bytes: u64,
    /// For instance that its quota is used up.
    alarms: Vec<String>,
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

/// How well an etcd is looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upkeep {
    is_compacted: bool,
    database_bytes: u64,
    alarms: Vec<String>,
}

/// etcd's default quota, from which on it takes no more puts, is 2 GiB.
const LARGE_DATABASE_BYTES: u64 = 3 << 29;

impl Upkeep {
    /// What an operator should see to.
    pub fn warnings(&self) -> Vec<String> {
        let history = (!self.is_compacted).then(|| {
            "etcd still holds its first revision, and keeps every one until it is compacted: \
             unless that is so because it is new, start it with \
             --auto-compaction-mode=periodic --auto-compaction-retention=5m"
                .to_owned()
        });
        let size = (self.database_bytes >= LARGE_DATABASE_BYTES).then(|| {
            format!(
                "etcd's database has {} MiB; at its quota (2048 MiB by default, \
                 --quota-backend-bytes) it takes no more puts: compact and defragment it",
                self.database_bytes >> 20
            )
        });
        let alarms = self.alarms.iter().map(|alarm| format!("etcd raises an alarm: {alarm}"));
        history.into_iter().chain(size).chain(alarms).collect()
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

/// A call that can be made more than once: each time by a client of its own, with
/// copies of what it takes.
macro_rules! again {
    ($client:expr, |$by:ident $(, $with:ident)*| $call:expr) => {
        || {
            let mut $by = $client.clone();
            $(let $with = $with.clone();)*
            async move { $call.await }
        }
    };
}
use again;

/// A connection to one endpoint. Clones share it.
///
/// Every call ends within 5 s, with an error if need be, and is made once: a
/// second time only with a new token, where etcd forgot the one before or has
/// changed who may do what since then. Calls that need a new token at the same
/// time get it together.
#[derive(Clone)]
pub struct Connection {
    renewals: Arc<Renewals>,
    endpoint: String,
    server: Option<Server>,
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
        self.server.as_ref()?.version
    }

    /// Looks for what makes etcd fail in the long run; `key` is one that may be
    /// read.
    pub async fn upkeep(&self, key: &str) -> Result<Upkeep, EtcdError> {
        let first = GetOptions::new().with_revision(1).with_count_only();
        let read = again!(self.kv, |kv, first| kv.get(key, Some(first)));
        let has_first = match self.call("read revision 1", read).await {
            Ok(_) => true,
            Err(error) if error.code() == Some(Code::OutOfRange) => false,
            Err(error) => return Err(error),
        };
        let (database_bytes, alarms) = match &self.server {
            Some(server) => (server.database_bytes, server.alarms.clone()),
            None => (0, Vec::new()),
        };
        Ok(Upkeep { is_compacted: !has_first, database_bytes, alarms })
    }

    /// Reads a key; `None`: there is none.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, EtcdError> {
        let get = again!(self.kv, |kv| kv.get(key, None));
        let mut answer = self.call(format!("get {key}"), get).await?;
        Ok(answer.take_kvs().pop().map(entry))
    }

    /// Reads a key as it was at `revision`; `None`: there was none, or etcd has
    /// forgotten what was then.
    pub async fn get_at(&self, key: &str, revision: i64) -> Result<Option<Entry>, EtcdError> {
        let options = GetOptions::new().with_revision(revision);
        let get = again!(self.kv, |kv, options| kv.get(key, Some(options)));
        match self.call(format!("get {key}"), get).await {
            Ok(mut answer) => Ok(answer.take_kvs().pop().map(entry)),
            Err(error) if error.code() == Some(Code::OutOfRange) => Ok(None), // compacted
            Err(error) => Err(error),
        }
    }

    /// Reads every key that begins with `prefix`, in order. In pages: keys that
    /// are written meanwhile may be of different revisions.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, EtcdError> {
        let mut entries: Vec<Entry> = Vec::new();
        // What follows everything that begins with the prefix.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1; // '/' or a letter: far from 255
        }
        let mut after = None;
        let mut page_keys = PAGE_KEYS;
        loop {
            let from = first_after(prefix.as_bytes(), after.take());
            let options = GetOptions::new().with_range(end.clone());
            let action = format!("list {prefix}");
            let mut page = self.page(&action, from, options, &mut page_keys).await?;
            // As it is, which its text may not be.
            after = page.kvs().last().map(|kv| kv.key().to_vec());
            let more = page.more() && after.is_some();
            entries.extend(page.take_kvs().into_iter().map(entry));
            if !more {
                return Ok(entries);
            }
        }
    }

    /// Reads a part of a range, `page_keys` at most: fewer from now on if so many
    /// are more than an answer may hold.
    async fn page(
        &self,
        action: &str,
        from: Vec<u8>,
        options: GetOptions,
        page_keys: &mut i64,
    ) -> Result<GetResponse, EtcdError> {
        loop {
            let options = options.clone().with_limit(*page_keys);
            let get = again!(self.kv, |kv, from, options| kv.get(from, Some(options)));
            match self.call_within(PAGE_TIMEOUT, action, get).await {
                Err(error) if error.is_too_large() && *page_keys > 1 => *page_keys /= 2,
                answer => return answer,
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
        let value = value.into();
        let put = again!(self.kv, |kv, value, options| kv.put(key, value, options));
        let answer = self.call(format!("put {key}"), put).await?;
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
        let write = Txn::new().when([unchanged]).and_then([put]);
        let replace = again!(self.kv, |kv, write| kv.txn(write));
        Ok(self.call(format!("replace {key}"), replace).await?.succeeded())
    }

    /// Deletes a key if it was last written at `mod_revision`; says whether it was so.
    pub async fn remove(&self, key: &str, mod_revision: i64) -> Result<bool, EtcdError> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, mod_revision);
        let write = Txn::new().when([unchanged]).and_then([TxnOp::delete(key, None)]);
        let delete = again!(self.kv, |kv, write| kv.txn(write));
        Ok(self.call(format!("delete {key}"), delete).await?.succeeded())
    }

    /// Deletes a key; says whether there was one.
    pub async fn delete(&self, key: &str) -> Result<bool, EtcdError> {
        let delete = again!(self.kv, |kv| kv.delete(key, None));
        let answer = self.call(format!("delete {key}"), delete).await?;
        Ok(answer.deleted() > 0)
    }

    /// Creates a lease that ends `ttl` after it was last kept alive. Whole
    /// seconds, rounded up; etcd may make it longer.
    pub async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, EtcdError> {
        let grant = again!(self.lease, |lease| lease.grant(whole_seconds(ttl), None));
        let answer = self.call("grant a lease", grant).await?;
        Ok(LeaseId(answer.id()))
    }

    /// As [`grant_lease`](Self::grant_lease), with an id of one's own choice; a
    /// lease of that id is joined if there is one.
    pub async fn join_lease(&self, id: LeaseId, ttl: Duration) -> Result<(), EtcdError> {
        let options = LeaseGrantOptions::new().with_id(id.0);
        let seconds = whole_seconds(ttl);
        let grant = again!(self.lease, |lease, options| lease.grant(seconds, Some(options)));
        match self.call("grant a lease", grant).await {
            Err(error) if error.is_lease_taken() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Keeps a lease alive, and opens the stream on which it is kept.
    pub async fn keep_lease(&self, LeaseId(id): LeaseId) -> Result<LeaseKeepAlive, EtcdError> {
        let action = "open a stream to keep the lease alive";
        let keep = again!(self.lease, |lease| lease.keep_alive(id));
        let (keeper, answers) = self.call(action, keep).await?;
        Ok(LeaseKeepAlive { keeper, answers, endpoint: self.endpoint.clone() })
    }

    /// Ends a lease, and deletes its keys.
    pub async fn revoke_lease(&self, LeaseId(id): LeaseId) -> Result<(), EtcdError> {
        self.call("revoke the lease", again!(self.lease, |lease| lease.revoke(id))).await?;
        Ok(())
    }

    async fn call<T, A>(
        &self,
        action: impl Into<String>,
        ask: impl FnMut() -> A,
    ) -> Result<T, EtcdError>
    where
        A: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call_within(REQUEST_TIMEOUT, action, ask).await
    }

    async fn call_within<T, A>(
        &self,
        limit: Duration,
        action: impl Into<String>,
        mut ask: impl FnMut() -> A,
    ) -> Result<T, EtcdError>
    where
        A: Future<Output = Result<T, etcd_client::Error>>,
    {
        let asked = async {
            let before = self.renewals.count();
            match ask().await {
                Err(error) if error::is_of_old_rights(&error) => {
                    self.renewals.renew_after(before).await?;
                    ask().await
                }
                answer => answer,
            }
        };
        call(action, &self.endpoint, limit, asked).await
    }
}

/// The tokens of a connection: the client itself gets a new one where etcd does
/// not know the old one, and not where etcd finds that it is from before a change
/// of users or roles.
struct Renewals {
    /// `None` without a user.
    client: Option<Client>,
    count: AtomicU64,
    renewing: tokio::sync::Mutex<()>,
}

impl Renewals {
    fn of(client: &Client, has_user: bool) -> Self {
        let client = has_user.then(|| client.clone());
        Self { client, count: AtomicU64::new(0), renewing: tokio::sync::Mutex::default() }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Gets a new token, unless somebody did since there were `before`.
    async fn renew_after(&self, before: u64) -> Result<(), etcd_client::Error> {
        let Some(client) = &self.client else { return Ok(()) };
        let _renewing = self.renewing.lock().await;
        if self.count() == before {
            client.refresh_token().await?;
            self.count.store(before + 1, Ordering::Release);
        }
        Ok(())
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

/// Where a page begins: at `first`, or with the smallest key after `after`.
fn first_after(first: &[u8], after: Option<Vec<u8>>) -> Vec<u8> {
    match after {
        None => first.to_vec(),
        Some(mut key) => {
            key.push(0);
            key
        }
    }
}

fn entry(kv: etcd_client::KeyValue) -> Entry {
    let (mod_revision, lease) = (kv.mod_revision(), kv.lease());
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8_lossy(&key).into_owned();
    Entry { key, value, mod_revision, lease: (lease != 0).then_some(LeaseId(lease)) }
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
    fn an_etcd_is_warned_of_for_its_history_its_size_and_its_alarms() {
        let well = Upkeep { is_compacted: true, database_bytes: 1 << 30, alarms: vec![] };
        assert!(well.warnings().is_empty());
        let ill =
            Upkeep { is_compacted: false, database_bytes: 2 << 30, alarms: vec!["NOSPACE".into()] };
        let warnings = ill.warnings();
        for (warning, says) in warnings.iter().zip(["auto-compaction", "2048 MiB", "NOSPACE"]) {
            assert!(warning.contains(says), "{warning}");
        }
        assert_eq!(warnings.len(), 3);
    }

    #[test]
    fn what_is_not_a_version_is_none() {
        for text in ["", "3", "3.4", "3.4.x", "3.4.5.6", "Not provided", "-1.2.3"] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }
}
