//! What the watcher follows: a range of etcd's keys.

use std::ops::Range;

use etcd_client::{GetOptions, WatchOptions, WatchStream};
use tonic::Code;
use xxhash_rust::xxh64::Xxh64;

use super::error::Cause;
use super::{
    Connection, Connector, EtcdError, PAGE_KEYS, REQUEST_TIMEOUT, Version, again, call, first_after,
};
use crate::config::EtcdConfig;
use crate::watcher::{Change, Head, Message, Page, PageRequest, Record, Source, Watch};

/// A range of keys, for the watcher.
pub struct EtcdSource {
    connector: Connector,
    connection: Option<Connection>,
    /// At least one, in the order of their keys; none overlaps another.
    ranges: Vec<Range<Vec<u8>>>,
    page_keys: i64,
}

impl EtcdSource {
    /// All keys under `config.prefix` and `config.prefixes`. Reaches nothing yet.
    ///
    /// One watch from the first to the last, so that one cursor tells what was
    /// delivered of all: changes of what is between them come along. They are
    /// listed one after another, at one revision.
    pub fn new(config: &EtcdConfig) -> Self {
        // '0' is the character after '/', so that the range is all that begins
        // with the prefix and a slash.
        let below = |prefix: &String| range(prefix, "/", "0");
        let mut ranges: Vec<_> = config.prefixes.values().map(below).collect();
        ranges.push(below(&config.prefix));
        ranges.sort_unstable_by(|one, other| one.start.cmp(&other.start));
        Self::over(config, ranges)
    }

    /// The exporters and the instances under `config.prefix`, and nothing of what
    /// exporters write each second: `exporters/` and `instances/` are neighbours
    /// among the kinds of keys, which a test holds fast.
    pub fn of_exporters_and_instances(config: &EtcdConfig) -> Self {
        Self::over(config, vec![range(&config.prefix, "/exporters/", "/instances0")])
    }

    fn over(config: &EtcdConfig, ranges: Vec<Range<Vec<u8>>>) -> Self {
        let connector = Connector::new(config);
        Self { connector, connection: None, ranges, page_keys: PAGE_KEYS }
    }

    /// From the first of all ranges to the end of the last.
    fn all(&self) -> Range<Vec<u8>> {
        let first = self.ranges.first().map(|range| range.start.clone());
        let last = self.ranges.last().map(|range| range.end.clone());
        first.unwrap_or_default()..last.unwrap_or_default()
    }

    fn action(&self, verb: &str) -> String {
        format!("{verb} {}", String::from_utf8_lossy(&self.all().start))
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
        self.connection = Some(self.connector.connect().await?);
        Ok(())
    }

    /// By a read that etcd answers when a majority of its members is known to
    /// have no more, and this one has it all.
    async fn newest(&mut self) -> Result<Head, EtcdError> {
        let connection = self.connection("read the revision of")?;
        let all = self.all();
        let options = GetOptions::new().with_range(all.end).with_limit(1).with_keys_only();
        let action = self.action("read the revision of");
        let start = all.start;
        let read = again!(connection.kv, |kv, start, options| kv.get(start, Some(options)));
        let Some(header) = connection.call(&*action, read).await?.take_header() else {
            return Err(EtcdError::new(action, &connection.endpoint, Cause::NoHeader));
        };
        Ok(Head { cluster_id: header.cluster_id(), revision: header.revision() })
    }

    async fn is_outdated(&mut self) -> bool {
        self.connector.is_outdated().await
    }

    async fn list(&mut self, page: PageRequest) -> Result<Page, EtcdError> {
        let connection = self.connection("list")?;
        let action = self.action("list");
        // A range that the list is past, or in, is one that begins before its last key.
        let is_next =
            |range: &&Range<Vec<u8>>| page.after.as_ref().is_none_or(|it| *it < range.end);
        let mut ranges = self.ranges.iter().filter(is_next).peekable();
        let mut revision = page.revision;
        loop {
            let Some(range) = ranges.next() else {
                // Nothing is after the last key of the last range.
                return Err(EtcdError::new(action, &connection.endpoint, Cause::NoHeader));
            };
            let after = page.after.clone().filter(|it| *it >= range.start);
            let from = first_after(&range.start, after);
            let options = GetOptions::new().with_range(range.end.clone());
            let options = options.with_revision(revision.unwrap_or(0));
            let mut answer = connection.page(&action, from, options, &mut self.page_keys).await?;
            let Some(header) = answer.take_header() else {
                return Err(EtcdError::new(action, &connection.endpoint, Cause::NoHeader));
            };
            let is_last = ranges.peek().is_none();
            let records: Vec<Record> = answer.take_kvs().into_iter().map(record).collect();
            if records.is_empty() && !is_last {
                revision = revision.or(Some(header.revision()));
                continue;
            }
            return Ok(Page {
                cluster_id: header.cluster_id(),
                revision: revision.unwrap_or(header.revision()),
                more: answer.more() || !is_last,
                records,
            });
        }
    }

    /// One stream for the whole range.
    async fn watch(&mut self, from_revision: i64) -> Result<EtcdWatch, EtcdError> {
        let Connection { mut watch, endpoint, .. } = self.connection("watch")?;
        let all = self.all();
        let options = WatchOptions::new()
            .with_range(all.end)
            .with_start_revision(from_revision)
            .with_fragment();
        let opened = watch.watch(all.start, Some(options));
        let action = self.action("watch");
        let stream = call(action.clone(), &endpoint, REQUEST_TIMEOUT, opened).await?;
        Ok(EtcdWatch { stream, action, endpoint, assembly: Assembly::default() })
    }

    fn progress_is_exact(&self) -> bool {
        let version = self.connection.as_ref().and_then(Connection::version);
        version.is_some_and(Version::progress_is_exact)
    }

    /// Compacted, or more than one answer may hold.
    fn history_is_lost(error: &EtcdError) -> bool {
        error.code() == Some(Code::OutOfRange)
    }

    fn is_refusal(error: &EtcdError) -> bool {
        error.is_auth_failure()
    }
}

/// The keys of a prefix from one rest to another.
fn range(prefix: &str, first: &str, end: &str) -> Range<Vec<u8>> {
    format!("{prefix}{first}").into_bytes()..format!("{prefix}{end}").into_bytes()
}

fn record(kv: etcd_client::KeyValue) -> Record {
    let (mod_revision, mark) = (kv.mod_revision(), mark(&kv));
    let (key, value) = kv.into_key_value();
    Record { key, value, mod_revision, mark }
}

/// A lease's id is a random number, more or less, and so tells registrations apart
/// that are otherwise the same.
fn mark(kv: &etcd_client::KeyValue) -> u64 {
    let mut hash = Xxh64::new(0);
    for bytes in [kv.key(), kv.value()] {
        hash.update(&bytes.len().to_le_bytes());
        hash.update(bytes);
    }
    for number in [kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()] {
        hash.update(&number.to_le_bytes());
    }
    hash.digest()
}

/// A stream of changes under a prefix.
pub struct EtcdWatch {
    stream: WatchStream,
    action: String,
    endpoint: String,
    assembly: Assembly,
}

impl EtcdWatch {
    fn failed(&self, cause: impl Into<Cause>) -> EtcdError {
        EtcdError::new(&self.action, &self.endpoint, cause.into())
    }
}

impl Watch for EtcdWatch {
    type Error = EtcdError;

    async fn next(&mut self) -> Result<Message, EtcdError> {
        loop {
            let answer = match self.stream.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(self.failed(Cause::StreamEnded)),
                Err(error) => return Err(self.failed(error)),
            };
            let Some(header) = answer.header() else { return Err(self.failed(Cause::NoHeader)) };
            let changes = answer.events().iter().filter_map(|event| event.kv()).map(change);
            let (changes, is_fragment) = (changes.collect::<Vec<_>>(), answer.0.fragment);
            if self.assembly.is_torn_by(&changes) {
                return Err(self.failed(Cause::TornRevision));
            }
            let Some(changes) = self.assembly.add(changes, is_fragment) else { continue };
            return Ok(Message {
                cluster_id: header.cluster_id(),
                revision: header.revision(),
                compact_revision: answer.compact_revision(),
                canceled: answer.canceled().then(|| answer.cancel_reason().to_owned()),
                created: answer.created(),
                changes,
            });
        }
    }

    async fn request_progress(&mut self) -> Result<(), EtcdError> {
        self.stream.request_progress().await.map_err(|error| self.failed(error))
    }
}

/// Puts revisions together that came in several messages. etcd splits a message
/// where it grows larger than a request may be (1.5 MiB by default), also within a
/// revision, and sends its parts one right after the other.
#[derive(Debug, Default)]
struct Assembly {
    /// The last revision so far, which the next part may go on with.
    open: Vec<Change>,
}

impl Assembly {
    /// Whether a message with these changes cannot come next: another one came
    /// between two parts, or the rest of a revision is missing.
    fn is_torn_by(&self, changes: &[Change]) -> bool {
        let next = changes.first().map(|change| change.mod_revision);
        self.open.last().is_some_and(|open| next.is_none_or(|next| next < open.mod_revision))
    }

    /// Turns the changes of one message into those that are known to be whole
    /// revisions now; `None` if there is nothing to tell yet.
    fn add(&mut self, changes: Vec<Change>, is_fragment: bool) -> Option<Vec<Change>> {
        let mut whole = std::mem::take(&mut self.open);
        whole.extend(changes);
        if is_fragment {
            let last = whole.last().map(|change| change.mod_revision);
            let end = whole.partition_point(|change| Some(change.mod_revision) < last);
            self.open = whole.split_off(end);
            return (!whole.is_empty()).then_some(whole);
        }
        Some(whole)
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
        mark: mark(kv),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Key;

    fn changes(revisions: &[i64]) -> Vec<Change> {
        let change = |&mod_revision| Change { key: vec![], value: None, mod_revision, mark: 0 };
        revisions.iter().map(change).collect()
    }

    #[test]
    fn a_revision_that_comes_in_parts_is_told_when_it_is_whole() {
        let mut assembly = Assembly::default();
        let mut told = vec![];
        let parts: [&[i64]; 6] = [&[5, 5], &[5], &[5, 6, 7, 7], &[7], &[8], &[8, 9]];
        for (n, part) in parts.into_iter().enumerate() {
            let part = changes(part);
            assert!(!assembly.is_torn_by(&part));
            let whole = assembly.add(part, n + 1 < parts.len());
            told.push(whole.map(|it| it.iter().map(|it| it.mod_revision).collect::<Vec<_>>()));
        }
        let wanted =
            [None, None, Some(vec![5, 5, 5, 5, 6]), None, Some(vec![7, 7, 7]), Some(vec![8, 8, 9])];
        assert_eq!(told, wanted);
        assert!(assembly.open.is_empty());
    }

    #[test]
    fn what_comes_between_two_parts_tears_the_revision() {
        let mut assembly = Assembly::default();
        assert!(!assembly.is_torn_by(&[]), "a sign of life, with nothing under way");
        assembly.add(changes(&[5, 6]), true);
        assert!(assembly.is_torn_by(&[]), "a sign of life is not the rest of it");
        assert!(assembly.is_torn_by(&changes(&[5])));
        assert!(!assembly.is_torn_by(&changes(&[6])));
    }

    #[test]
    fn the_exporter_s_range_holds_exporters_and_instances_and_nothing_else() {
        let config = EtcdConfig::default();
        let source = EtcdSource::of_exporters_and_instances(&config);
        let (service, id, exporter) = ("~".to_owned(), "-".to_owned(), "e".to_owned());
        for (key, is_in) in [
            (Key::Exporter { id: id.clone() }, true),
            (Key::Instance { service: service.clone(), id: id.clone() }, true),
            (Key::Instance { service: "0".to_owned(), id }, true),
            (Key::Status { exporter, service: service.clone(), shard: 0 }, false),
            (Key::Control { service: service.clone() }, false),
            (Key::Policy { service: service.clone() }, false),
            (Key::Checks { gateway: "~".to_owned(), service }, false),
        ] {
            let path = key.to_path(&config.prefix).into_bytes();
            assert_eq!(source.all().contains(&path), is_in, "{key:?}");
        }
    }
}
