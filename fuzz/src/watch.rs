//! The watcher and the registry, on whatever a source says: streams that end before
//! they begin, forgotten and foreign histories, parts, repetitions, revisions in any
//! order, deletes of what never was.
//!
//! Inputs are bytes from which `arbitrary` makes a history. The registry is compared
//! with a model of it: keys with revisions and the last good value, and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use ipconfig::config::Config;
use ipconfig::registry::Registry;
use ipconfig::watcher::{
    Change, Event, Head, Message, Page, PageRequest, Record, Source, Timing, Watch, run,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::{Seen, size, taken};

// ------------------------------------------------------------ what is said

/// A revision: mostly a small one, so that they meet, and sometimes the last there is.
#[derive(Debug, Clone, Copy)]
struct Revision(i64);

impl<'a> Arbitrary<'a> for Revision {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Revision(match from.arbitrary::<u8>()? {
            small @ 0..=249 => i64::from(small % 50),
            250 => i64::MAX,
            251 => i64::MAX - 1,
            252 => i64::MIN,
            253 => -1,
            _ => from.arbitrary()?,
        }))
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Key {
    /// One of four instances.
    Instance(u8),
    /// One of a service that is not served.
    Unserved,
    Control,
    Status,
    /// Below the prefix, and none that is known.
    Malformed,
    Elsewhere,
}

impl Key {
    fn bytes(self) -> Vec<u8> {
        let rest = match self {
            Key::Instance(n) => return instance_key(n % 4),
            Key::Unserved => "v1/instances/other/a",
            Key::Control => "v1/control/chat",
            Key::Status => "v1/status/exporter-1/chat/0",
            Key::Malformed => "v1/instances/chat",
            Key::Elsewhere => "v2/instances/chat/a",
        };
        format!("/ipconfig/{rest}").into_bytes()
    }
}

fn instance_key(n: u8) -> Vec<u8> {
    format!("/ipconfig/v1/instances/chat/{}", char::from(b'a' + n)).into_bytes()
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Value {
    /// One of 16 addresses.
    Addr(u8),
    Draining(u8),
    Control,
    Batch,
    Bad,
}

impl Value {
    fn bytes(self) -> Vec<u8> {
        match self {
            Value::Addr(n) => format!(r#"{{"addr": "10.0.0.1:{}"}}"#, 1 + n % 16).into_bytes(),
            Value::Draining(n) => {
                format!(r#"{{"addr": "10.0.0.1:{}", "drain": true}}"#, 1 + n % 16).into_bytes()
            }
            Value::Control => br#"{"mode": "manual", "weights": {"a": 1}, "drain": ["b"]}"#.into(),
            Value::Batch => b"\x0a\x05\x0a\x01a\x1a\x00\x0a\x05\x0a\x01x\x22\x00".into(),
            Value::Bad => b"{".into(),
        }
    }
}

// ------------------------------------------------------------ the registry

/// What a history holds at the most.
const MAX_STEPS: usize = 200;

#[derive(Debug, Arbitrary)]
enum Step {
    Init,
    Audit,
    Put(Key, Value, Revision),
    Delete(Key, Revision),
    InitDone(Revision),
    Progress(Revision),
    /// So many tenths of a second pass.
    Wait(u8),
}

/// The registry, on events in any order, also those that no watcher says.
pub fn registry(bytes: &[u8]) -> Seen {
    let mut from = Unstructured::new(bytes);
    let mut followed = Followed::new();
    for step in from.arbitrary_iter::<Step>().into_iter().flatten().take(MAX_STEPS) {
        let Ok(step) = step else { break };
        followed.apply(&match step {
            Step::Init => Event::Init,
            Step::Audit => Event::Audit,
            Step::Put(key, value, Revision(mod_revision)) => {
                Event::Put { key: key.bytes(), value: value.bytes(), mod_revision }
            }
            Step::Delete(key, Revision(mod_revision)) => {
                Event::Delete { key: key.bytes(), mod_revision }
            }
            Step::InitDone(Revision(revision)) => Event::InitDone { revision },
            Step::Progress(Revision(revision)) => Event::Progress { revision },
            Step::Wait(tenths) => {
                followed.wait(Duration::from_millis(100 * u64::from(tenths)));
                continue;
            }
        });
    }
    followed.end()
}

/// A registry, and the model of it.
struct Followed {
    registry: Registry,
    now: Instant,
    /// By instance: when it was written, in which list it was last seen, and the port of
    /// the last good value.
    keys: BTreeMap<Vec<u8>, (i64, u64, Option<u16>)>,
    absent_at: i64,
    list: u64,
    is_listing: bool,
    seen: Seen,
}

impl Followed {
    fn new() -> Self {
        // What is doubted is not what was said: the guard has laws of its own.
        let config = r#"{"services": {"chat": {"guard": {"max_loss": 100}}}}"#;
        let config = Config::parse(config).expect("a configuration");
        let now = Instant::now();
        Followed {
            registry: Registry::new(&config, now),
            now,
            keys: BTreeMap::new(),
            absent_at: 0,
            list: 0,
            is_listing: false,
            seen: 0,
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.registry.tick(self.now);
    }

    fn apply(&mut self, event: &Event) {
        let before = self.registry.revision();
        self.registry.apply(event, self.now);
        let after = self.registry.revision();
        match event {
            Event::InitDone { revision } => assert_eq!(after, *revision),
            Event::Put { mod_revision: revision, .. }
            | Event::Delete { mod_revision: revision, .. }
            | Event::Progress { revision } => {
                assert!(after == before || (after == *revision && after > before));
            }
            Event::Init | Event::Audit | Event::State(_) => assert_eq!(after, before),
        }
        self.model(event);
        if matches!(event, Event::InitDone { .. }) {
            self.compare();
        }
        let dirty = self.registry.take_dirty();
        let urgent = self.registry.take_urgent();
        assert!(!self.is_listing || urgent.is_empty(), "a part of a list says nothing");
        self.registry.service("chat", self.now).expect("a configured service");
        let moved = (before < after, before > after, dirty.len(), urgent.len());
        self.seen = self.seen.wrapping_add(taken((std::mem::discriminant(event), moved)));
    }

    fn model(&mut self, event: &Event) {
        match event {
            Event::Init => {
                self.is_listing = true;
                self.list += 1;
            }
            Event::Put { key, value, mod_revision } => {
                let is_ours = key.starts_with(b"/ipconfig/v1/")
                    && !key.ends_with(b"/other/a")
                    && !key.ends_with(b"instances/chat");
                let known = self.keys.get(key);
                let newest = known.map_or(self.absent_at, |(revision, ..)| *revision);
                if !is_ours || (!self.is_listing && *mod_revision <= newest) {
                    return;
                }
                let last_good = known.and_then(|(.., port)| *port);
                let port = port_of(value).or(last_good);
                self.keys.insert(key.clone(), (*mod_revision, self.list, port));
            }
            Event::Delete { key, mod_revision } => {
                if self.keys.get(key).is_none_or(|(revision, ..)| revision <= mod_revision) {
                    self.keys.remove(key);
                    self.absent_at = self.absent_at.max(mod_revision.saturating_sub(1));
                }
            }
            Event::InitDone { revision } => {
                self.keys.retain(|_, (_, list, _)| *list == self.list);
                self.is_listing = false;
                self.absent_at = *revision;
            }
            Event::Progress { .. } | Event::Audit | Event::State(_) => {}
        }
    }

    fn compare(&mut self) {
        let known = self.registry.known("chat", self.now);
        let found: Vec<_> = known
            .iter()
            .map(|it| (it.instance.id.as_bytes()[0] - b'a', it.instance.addr.port()))
            .collect();
        let port = |n| Some((n, self.keys.get(&instance_key(n))?.2?));
        let expected: Vec<_> = (0..4).filter_map(port).collect();
        assert_eq!(found, expected, "the registry is not what was said");
    }

    fn end(mut self) -> Seen {
        self.compare();
        self.wait(Duration::from_mins(1));
        self.compare();
        self.seen
    }
}

/// The port of a value that registers an instance.
fn port_of(value: &[u8]) -> Option<u16> {
    let value: serde_json::Value = serde_json::from_slice(value).ok()?;
    value["addr"].as_str()?.parse::<SocketAddr>().ok().map(|addr| addr.port())
}

// ------------------------------------------------------------ the watcher

/// What a source answers, in the order of the calls of each kind. After the last
/// answer, it says nothing.
#[derive(Debug, Clone, Arbitrary)]
struct Script {
    progress_is_exact: bool,
    is_outdated: bool,
    connects: VecDeque<Option<Fault>>,
    heads: VecDeque<At>,
    lists: VecDeque<Result<Listing, Fault>>,
    watches: VecDeque<Result<VecDeque<Say>, Fault>>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Fault {
    history_is_lost: bool,
    is_refusal: bool,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a fault")
    }
}

impl std::error::Error for Fault {}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct At {
    is_other_cluster: bool,
    revision: Revision,
}

impl From<At> for Head {
    fn from(at: At) -> Head {
        Head { cluster_id: u64::from(at.is_other_cluster), revision: at.revision.0 }
    }
}

#[derive(Debug, Clone, Arbitrary)]
struct Listing {
    at: At,
    records: Vec<(Key, Value, Revision, u8)>,
    more: bool,
}

#[derive(Debug, Clone, Arbitrary)]
enum Say {
    Message {
        at: At,
        compacted: Option<Revision>,
        is_canceled: bool,
        is_created: bool,
        changes: Vec<(Key, Option<Value>, Revision, u8)>,
    },
    /// A sound answer to whoever opens a stream.
    Created(Revision),
    Silence(u8),
    /// Nothing until it is asked for a sign of life.
    Asleep,
    Break(Fault),
}

/// A source, and the most that it has said that is to move a cursor.
#[derive(Clone)]
struct Scripted(Arc<Mutex<(Script, i64)>>);

impl Scripted {
    fn next<T>(&self, of: impl Fn(&mut Script) -> Option<T>) -> Option<T> {
        of(&mut self.0.lock().expect("no other thread").0)
    }

    fn most(&self) -> i64 {
        self.0.lock().expect("no other thread").1
    }

    fn said(&self, revision: i64) {
        let mut script = self.0.lock().expect("no other thread");
        script.1 = script.1.max(revision);
    }
}

impl Source for Scripted {
    type Error = Fault;
    type Watch = Stream;

    async fn connect(&mut self) -> Result<(), Fault> {
        match self.next(|it| it.connects.pop_front()) {
            Some(Some(fault)) => Err(fault),
            Some(None) => Ok(()),
            None => pending().await,
        }
    }

    async fn list(&mut self, _: PageRequest) -> Result<Page, Fault> {
        let Some(listing) = self.next(|it| it.lists.pop_front()) else { return pending().await };
        let Listing { at, records, more } = listing?;
        let Head { cluster_id, revision } = at.into();
        self.said(revision);
        let record = |(key, value, at, mark): (Key, Value, Revision, u8)| Record {
            key: key.bytes(),
            value: value.bytes(),
            mod_revision: at.0,
            mark: u64::from(mark % 2),
        };
        let records = records.into_iter().map(record).collect();
        Ok(Page { cluster_id, revision, records, more })
    }

    async fn watch(&mut self, from_revision: i64) -> Result<Stream, Fault> {
        let most = self.most();
        let is_moved_by_more = from_revision > most.saturating_add(1);
        assert!(!is_moved_by_more, "from {from_revision}, and {most} is the most that was said");
        let Some(says) = self.next(|it| it.watches.pop_front()) else { return pending().await };
        Ok(Stream { script: self.clone(), says: says?, is_asked: false })
    }

    async fn newest(&mut self) -> Result<Head, Fault> {
        let head = self.next(|it| it.heads.pop_front());
        Ok(head.map_or(Head { cluster_id: 0, revision: i64::MAX }, Head::from))
    }

    async fn is_outdated(&mut self) -> bool {
        self.next(|it| Some(std::mem::take(&mut it.is_outdated))) == Some(true)
    }

    fn progress_is_exact(&self) -> bool {
        self.next(|it| Some(it.progress_is_exact)) == Some(true)
    }

    fn history_is_lost(error: &Fault) -> bool {
        error.history_is_lost
    }

    fn is_refusal(error: &Fault) -> bool {
        error.is_refusal
    }
}

struct Stream {
    script: Scripted,
    says: VecDeque<Say>,
    is_asked: bool,
}

impl Watch for Stream {
    type Error = Fault;

    async fn next(&mut self) -> Result<Message, Fault> {
        loop {
            match self.says.front() {
                None => pending().await,
                Some(Say::Asleep) if !self.is_asked => pending().await,
                Some(Say::Silence(seconds)) => {
                    tokio::time::sleep(Duration::from_secs(u64::from(*seconds))).await;
                }
                Some(_) => {}
            }
            let (at, compacted, is_canceled, created, changes) = match self.says.pop_front() {
                Some(Say::Message { at, compacted, is_canceled, is_created, changes }) => {
                    (at, compacted, is_canceled, is_created, changes)
                }
                Some(Say::Created(revision)) => {
                    (At { is_other_cluster: false, revision }, None, false, true, vec![])
                }
                Some(Say::Break(fault)) => return Err(fault),
                Some(Say::Silence(_) | Say::Asleep) | None => continue,
            };
            self.is_asked = false;
            let Head { cluster_id, revision } = at.into();
            if changes.is_empty() && !created && self.script.progress_is_exact() {
                self.script.said(revision);
            }
            let change = |(key, value, at, mark): (Key, Option<Value>, Revision, u8)| {
                self.script.said(at.0);
                Change {
                    key: key.bytes(),
                    value: value.map(Value::bytes),
                    mod_revision: at.0,
                    mark: u64::from(mark % 2),
                }
            };
            return Ok(Message {
                cluster_id,
                revision,
                compact_revision: compacted.map_or(0, |at| at.0),
                canceled: is_canceled.then(|| "why".to_owned()),
                created,
                changes: changes.into_iter().map(change).collect(),
            });
        }
    }

    async fn request_progress(&mut self) -> Result<(), Fault> {
        self.is_asked = true;
        Ok(())
    }
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
}

/// Longer than any script takes; it is time that does not pass.
const LONG: Duration = Duration::from_hours(24);

/// The watcher, on a source that says anything at any time, and the registry behind it.
pub fn watcher(bytes: &[u8]) -> Seen {
    let Ok(script) = Script::arbitrary_take_rest(Unstructured::new(bytes)) else { return 0 };
    let source = Scripted(Arc::new(Mutex::new((script, 0))));
    RUNTIME.with(|runtime| runtime.block_on(follow(source)))
}

async fn follow(source: Scripted) -> Seen {
    let (sender, mut receiver) = mpsc::channel(4);
    let said = source.clone();
    let watching = run(source, Timing::default(), SmallRng::seed_from_u64(7), sender);
    let mut followed = Followed::new();
    let mut known = None;
    let mut is_audit = false;
    let mut follow = async |event: Event| {
        match &event {
            Event::Init | Event::State(_) => {}
            Event::Audit => is_audit = true,
            // An audit says again what was said, up to where that went.
            Event::InitDone { revision } if std::mem::take(&mut is_audit) => {
                assert_eq!(known, Some(*revision), "an audit moved the revision");
            }
            Event::InitDone { revision } => known = Some(*revision),
            _ if followed.is_listing => {
                assert!(matches!(event, Event::Put { .. }), "{event:?} within a list");
            }
            Event::Put { mod_revision: revision, .. }
            | Event::Delete { mod_revision: revision, .. } => {
                known = Some(known.expect("a list comes first").max(*revision));
            }
            Event::Progress { revision } => {
                assert!(known.is_some_and(|known| *revision >= known), "progress went back");
                assert!(*revision <= said.most(), "progress to what was never delivered");
                known = Some(*revision);
            }
        }
        followed.now = Instant::now();
        followed.apply(&event);
    };
    let collect = async {
        while let Some(event) = receiver.recv().await {
            follow(event).await;
        }
    };
    tokio::select! {
        () = watching => panic!("the watcher ended while it was listened to"),
        ended = timeout(LONG, collect) => assert!(ended.is_err(), "the watcher hung up"),
    }
    followed.now = Instant::now();
    followed.end() ^ taken(known.map(|it| size(it as usize)))
}
