//! Random histories of an etcd and of the way to it: whatever happens, at each quiet
//! moment the registry is what a fresh list says.
//!
//! Runs for `WATCH_MODEL_SECONDS` (default 24), one history after the other, and
//! prints each one's seed; `WATCH_MODEL_SEED` repeats one.

#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use etcd_client::{Client, GetOptions, PutOptions, Txn, TxnOp};
use ipconfig::config::{Config, EtcdConfig};
use ipconfig::etcd::EtcdSource;
use ipconfig::registry::Registry;
use ipconfig::watcher::{self, Event, Timing, WatchState};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use support::Etcd;
use support::wire::{Weather, Wire};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const PREFIX: &str = "/ipconfig/v1";

/// One service keeps what it loses with most of its instances, and shows as doubtful that
/// it does; two do not.
const CONFIG: &str = r#"{"discover": true, "services": {
    "s1": {"guard": {"max_loss": 100}}, "s2": {"guard": {"max_loss": 100}}}}"#;

/// Whose keys may be of any kind here.
const POLICIES: &str = "/ipconfig/v1/policies/";

/// Messages of a watch are split at so many bytes and 512 KiB.
const FLAGS: [&str; 2] = ["--max-request-bytes", "300000"];

/// For what has to come true when all is well again.
const SOON: Duration = Duration::from_secs(20);

/// Of one history.
const ACTS: usize = 60;

/// From one quiet moment to the next.
const ACTS_TO_REST: usize = 12;

/// By key: the value, and when it was written.
type Keys = BTreeMap<String, (Vec<u8>, i64)>;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Put,
    Delete,
    PutLeased,
    Revoke,
    /// Transactions that are as large as they can be.
    PutMany,
    DeleteMany,
    Compact,
    Rest,
    Cut,
    Stall,
    Slow,
    Garble,
    Clear,
    Pause,
    Kill,
    KillMost,
    Wipe,
    /// With more revisions after it than there were before, while nobody sees.
    WipeAndOvertake,
    Save,
    Restore,
    RestoreAndOvertake,
}

/// With how often they happen, and whether more than one member is of use or too many.
const ACTS_WEIGHTS: [(Act, u32); 21] = [
    (Act::Put, 30),
    (Act::Delete, 14),
    (Act::PutLeased, 8),
    (Act::Revoke, 4),
    (Act::PutMany, 5),
    (Act::DeleteMany, 4),
    (Act::Compact, 4),
    (Act::Rest, 6),
    (Act::Cut, 4),
    (Act::Stall, 2),
    (Act::Slow, 2),
    (Act::Garble, 3),
    (Act::Clear, 6),
    (Act::Pause, 2),
    (Act::Kill, 2),
    (Act::KillMost, 1),
    (Act::Wipe, 1),
    (Act::WipeAndOvertake, 1),
    (Act::Save, 2),
    (Act::Restore, 1),
    (Act::RestoreAndOvertake, 2),
];

impl Act {
    fn draw(rng: &mut SmallRng, members: usize) -> Self {
        loop {
            let all: u32 = ACTS_WEIGHTS.iter().map(|(_, weight)| weight).sum();
            let mut drawn = rng.random_range(0..all);
            let hit = ACTS_WEIGHTS.iter().find(|(_, weight)| {
                let is_it = drawn < *weight;
                drawn = drawn.saturating_sub(*weight);
                is_it
            });
            let act = hit.expect("within the sum").0;
            // Backups are of one member.
            let of_one = [
                Self::Wipe,
                Self::WipeAndOvertake,
                Self::Save,
                Self::Restore,
                Self::RestoreAndOvertake,
            ];
            let fits = if act == Self::KillMost { members > 1 } else { members == 1 };
            if fits || !(of_one.contains(&act) || act == Self::KillMost) {
                return act;
            }
        }
    }
}

/// The watcher and the registry as the plugin has them, and what the events amount to.
struct Gateway {
    seen: Arc<Mutex<Seen>>,
    tasks: [JoinHandle<()>; 2],
}

struct Seen {
    registry: Registry,
    keys: Keys,
    list: Option<Keys>,
    state: WatchState,
    events: u64,
    lists: u64,
}

impl Seen {
    fn apply(&mut self, event: Event) {
        self.events += 1;
        self.registry.apply(&event, Instant::now());
        let text = |key: Vec<u8>| String::from_utf8(key).expect("keys of text");
        match event {
            Event::State(state) => self.state = state,
            Event::Init => {
                self.list = Some(Keys::new());
                self.lists += 1;
            }
            Event::InitDone { .. } => self.keys = self.list.take().expect("a list that began"),
            Event::Put { key, value, mod_revision } => {
                let keys = self.list.as_mut().unwrap_or(&mut self.keys);
                keys.insert(text(key), (value, mod_revision));
            }
            Event::Delete { key, .. } => {
                self.keys.remove(&text(key));
            }
            Event::Audit | Event::Progress { .. } => {}
        }
    }
}

impl Gateway {
    fn start(endpoints: Vec<String>, audit: Duration, seed: u64) -> Self {
        let config = Config {
            etcd: EtcdConfig { endpoints, prefix: PREFIX.into(), ..EtcdConfig::default() },
            ..serde_json::from_str(CONFIG).expect("a configuration")
        };
        let timing = Timing {
            idle: Duration::from_millis(400),
            answer: Duration::from_millis(600),
            backoff_base: Duration::from_millis(20),
            backoff_max: Duration::from_millis(300),
            settled: Duration::from_secs(1),
            audit,
            audit_limit: Duration::from_secs(1),
        };
        let seen = Arc::new(Mutex::new(Seen {
            registry: Registry::new(&config, Instant::now()),
            keys: Keys::new(),
            list: None,
            state: WatchState::Connecting,
            events: 0,
            lists: 0,
        }));
        let (sender, mut receiver) = mpsc::channel(64);
        let applied = Arc::clone(&seen);
        let read = async move {
            while let Some(event) = receiver.recv().await {
                applied.lock().unwrap().apply(event);
            }
        };
        let source = EtcdSource::new(&config.etcd);
        let watch = watcher::run(source, timing, SmallRng::seed_from_u64(seed), sender);
        Self { seen, tasks: [tokio::spawn(watch), tokio::spawn(read)] }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct World {
    rng: SmallRng,
    members: Vec<Etcd>,
    wires: Vec<Wire>,
    client: Option<Client>,
    leases: Vec<i64>,
    written: u32,
    log: String,
}

impl World {
    async fn new(seed: u64, members: usize) -> Self {
        let members = match members {
            1 => vec![Etcd::start_with(&FLAGS).await],
            _ => Etcd::start_three(&FLAGS).await,
        };
        let mut wires = vec![];
        for member in &members {
            wires.push(Wire::to(member.address()).await);
        }
        let rng = SmallRng::seed_from_u64(seed);
        let log = String::new();
        Self { rng, members, wires, client: None, leases: vec![], written: 0, log }
    }

    /// Straight to the members.
    async fn client(&mut self) -> Client {
        if let Some(client) = &self.client {
            return client.clone();
        }
        let endpoints: Vec<_> = self.members.iter().map(Etcd::endpoint).collect();
        let client = Client::connect(endpoints, None).await.expect("a client");
        self.client = Some(client.clone());
        client
    }

    /// Writes, as often as it takes: what is tested is not the writer. A write that
    /// was made and not confirmed is made again.
    async fn write<T>(
        &mut self,
        write: impl AsyncFn(Client) -> Result<T, etcd_client::Error>,
    ) -> T {
        let deadline = Instant::now() + SOON;
        loop {
            let client = self.client().await;
            let error = match timeout(Duration::from_secs(2), write(client)).await {
                Ok(Ok(written)) => return written,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            self.client = None;
            assert!(Instant::now() < deadline, "etcd takes no writes: {error}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn key(&mut self) -> String {
        let (service, id) = (self.rng.random_range(0..3), self.rng.random_range(0..12));
        format!("{PREFIX}/instances/s{service}/i{id}")
    }

    /// An instance like no other one.
    fn value(&mut self) -> String {
        self.written += 1;
        let port = 1 + self.written % 65_000;
        format!(r#"{{"addr":"127.0.0.1:{port}","weight":{}}}"#, 1 + self.written % 999)
    }

    async fn put(&mut self, lease: Option<i64>) {
        let (key, value) = (self.key(), self.value());
        let options = lease.map(|id| PutOptions::new().with_lease(id));
        self.write(async |mut client: Client| {
            client.put(&*key, &*value, options.clone()).await.map(drop)
        })
        .await;
    }

    /// Revisions of 250 KB, by long keys. What a stream catches up on after a cut, and
    /// the one revision that takes all of them out, then come in several messages.
    async fn put_many(&mut self) {
        let is_unseen = self.rng.random_bool(0.5);
        if is_unseen {
            self.set_all(Weather::Cut);
        }
        let tag = self.value();
        for part in 0..self.rng.random_range(3..7) {
            let put = |n: usize| TxnOp::put(format!("{POLICIES}{n:0>2000}-{part}"), &*tag, None);
            let txn = Txn::new().and_then((0..120).map(put).collect::<Vec<_>>());
            self.write(async |mut client: Client| client.txn(txn.clone()).await.map(drop)).await;
        }
        if is_unseen {
            self.rest(200).await;
            self.set_all(Weather::Fair);
        }
    }

    async fn revoke(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let n = self.rng.random_range(0..self.leases.len());
        let lease = self.leases.swap_remove(n);
        // It may have ended.
        self.write(async |mut client: Client| {
            drop(client.lease_revoke(lease).await);
            Ok(())
        })
        .await;
    }

    async fn grant(&mut self) -> i64 {
        let ttl = if self.rng.random_bool(0.5) { 1 } else { 60 };
        let grant = async |mut client: Client| client.lease_grant(ttl, None).await;
        let lease = self.write(grant).await.id();
        self.leases.push(lease);
        lease
    }

    async fn revision(&mut self) -> i64 {
        self.list().await.1
    }

    /// All there is, and its revision.
    async fn list(&mut self) -> (Keys, i64) {
        let options = GetOptions::new().with_prefix();
        let get = async |client: Client| {
            let mut kv = client.kv_client().max_decoding_message_size(64 << 20);
            kv.get(format!("{PREFIX}/"), Some(options.clone())).await
        };
        let mut answer = self.write(get).await;
        let revision = answer.header().expect("a header").revision();
        let entry = |kv: etcd_client::KeyValue| {
            let (mod_revision, (key, value)) = (kv.mod_revision(), kv.into_key_value());
            (String::from_utf8(key).expect("keys of text"), (value, mod_revision))
        };
        (answer.take_kvs().into_iter().map(entry).collect(), revision)
    }

    async fn compact(&mut self) {
        let revision = self.revision().await;
        self.write(async |mut client: Client| {
            drop(client.compact(revision, None).await); // it may have been done
            Ok(())
        })
        .await;
    }

    fn set_all(&self, weather: Weather) {
        self.wires.iter().for_each(|wire| wire.set(weather));
    }

    fn any(&mut self) -> usize {
        self.rng.random_range(0..self.members.len())
    }

    async fn rest(&mut self, longest_ms: u64) {
        let ms = self.rng.random_range(0..longest_ms);
        sleep(Duration::from_millis(ms)).await;
    }

    /// Puts other data in the place of what there is; in secret, if the watcher is to
    /// see nothing of it before there are more revisions than it knew.
    async fn replace(&mut self, in_secret: bool, replace: fn(&mut Etcd)) {
        let before = self.revision().await;
        if in_secret {
            self.set_all(Weather::Cut);
        }
        replace(&mut self.members[0]);
        self.members[0].restart().await;
        self.client = None;
        self.leases.clear();
        if in_secret {
            while self.revision().await < before + 3 {
                for _ in 0..10 {
                    self.put(None).await;
                }
            }
            self.set_all(Weather::Fair);
        }
    }

    async fn act(&mut self, act: Act) {
        _ = write!(self.log, "{act:?} ");
        match act {
            Act::Put => self.put(None).await,
            Act::Delete => {
                let key = self.key();
                self.write(async |mut client: Client| client.delete(&*key, None).await).await;
            }
            Act::PutLeased => {
                let lease = self.grant().await;
                for _ in 0..3 {
                    let (key, value) = (self.key(), self.value());
                    let options = PutOptions::new().with_lease(lease);
                    self.write(async |mut client: Client| {
                        // The lease may have ended, or be of another history.
                        drop(client.put(&*key, &*value, Some(options.clone())).await);
                        Ok(())
                    })
                    .await;
                }
            }
            Act::Revoke => self.revoke().await,
            Act::PutMany => self.put_many().await,
            Act::DeleteMany => {
                let options = etcd_client::DeleteOptions::new().with_prefix();
                self.write(async |mut client: Client| {
                    client.delete(POLICIES, Some(options.clone())).await
                })
                .await;
            }
            Act::Compact => self.compact().await,
            Act::Rest => self.rest(400).await,
            Act::Cut => {
                let n = self.any();
                self.wires[n].set(Weather::Cut);
            }
            Act::Stall => {
                let n = self.any();
                self.wires[n].set(Weather::Stalled);
            }
            Act::Slow => {
                let by = Duration::from_millis(self.rng.random_range(1..60));
                self.set_all(Weather::Slow(by));
            }
            Act::Garble => {
                let (n, seed) = (self.any(), self.rng.next_u64());
                self.wires[n].garble(seed);
            }
            Act::Clear => self.set_all(Weather::Fair),
            Act::Pause => {
                let n = self.any();
                self.members[n].pause();
                self.rest(1500).await;
                self.members[n].resume();
            }
            Act::Kill => {
                let n = self.any();
                self.members[n].kill();
                self.rest(300).await;
                self.members[n].restart().await;
            }
            Act::KillMost => {
                let n = self.any();
                let others: Vec<_> = (0..3).filter(|other| *other != n).collect();
                others.iter().for_each(|other| self.members[*other].kill());
                self.rest(1500).await;
                others.iter().for_each(|other| self.members[*other].spawn());
                for other in others {
                    self.members[other].wait_until_ready().await;
                }
            }
            Act::Wipe => self.replace(false, Etcd::wipe).await,
            Act::WipeAndOvertake => self.replace(true, Etcd::wipe).await,
            Act::Save => {
                self.members[0].save();
                self.members[0].restart().await;
            }
            Act::Restore | Act::RestoreAndOvertake => {
                if self.members[0].is_saved() {
                    self.replace(act == Act::RestoreAndOvertake, Etcd::restore).await;
                }
            }
        }
        if self.rng.random_bool(0.3) {
            self.rest(40).await;
        }
    }

    /// Makes all well, and waits until the gateway has what etcd has.
    async fn be_quiet(&mut self, gateway: &Gateway) -> Result<(), String> {
        self.log.push_str("| ");
        self.set_all(Weather::Fair);
        let deadline = Instant::now() + SOON;
        loop {
            let (listed, _) = self.list().await;
            let difference = {
                let mut seen = gateway.seen.lock().unwrap();
                differ(&mut seen, &listed)
            };
            let Some(difference) = difference else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(difference);
            }
            sleep(Duration::from_millis(30)).await;
        }
    }
}

/// What is not as it is in etcd.
fn differ(seen: &mut Seen, listed: &Keys) -> Option<String> {
    if seen.state != WatchState::Watching {
        return Some(format!("the watch is {}", seen.state.as_str()));
    }
    let mut text = String::new();
    for (key, (_, revision)) in listed {
        match seen.keys.get(key) {
            None => _ = writeln!(text, "{key} of {revision} is missing"),
            Some(found) if *found != listed[key] => {
                _ = writeln!(text, "{key} of {revision} is that of {}", found.1);
            }
            Some(_) => {}
        }
    }
    for (key, (_, revision)) in seen.keys.iter().filter(|(key, _)| !listed.contains_key(*key)) {
        _ = writeln!(text, "{key} of {revision} is gone in etcd");
    }
    for service in ["s0", "s1", "s2"] {
        let begin = format!("{PREFIX}/instances/{service}/");
        let wanted: BTreeMap<_, _> = listed
            .iter()
            .filter_map(|(key, (value, _))| Some((key.strip_prefix(&begin)?, addr(value))))
            .collect();
        let known = seen.registry.known(service, Instant::now());
        let known: Vec<_> = known.iter().map(|it| it.instance.clone()).collect();
        let doubtful = seen.registry.doubtful(service).into_iter().flat_map(|(_, all)| all);
        let doubtful: BTreeSet<_> = doubtful.map(|it| it.id.clone()).collect();
        if !doubtful.is_empty() && service != "s0" {
            _ = writeln!(text, "doubtful of {service}: {doubtful:?}");
        }
        let believed = known.iter().filter(|it| !doubtful.contains(&it.id));
        let known: BTreeMap<_, _> = believed.map(|it| (&*it.id, it.addr.to_string())).collect();
        if known != wanted {
            _ = writeln!(text, "the registry has {known:?} of {service}, etcd {wanted:?}");
        }
    }
    let audits = seen.registry.audits();
    if audits.differences > 0 {
        _ = writeln!(text, "an audit found what was lost: {audits:?}");
    }
    (!text.is_empty()).then_some(text)
}

fn addr(value: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(value).expect("an instance");
    value["addr"].as_str().expect("an address").to_owned()
}

/// One history, on an etcd of so many members.
async fn live(seed: u64, members: usize) {
    let mut world = World::new(seed, members).await;
    // Without audits in every other history: they would hide what they put right.
    let audit = if seed.is_multiple_of(2) { 3600.0 } else { 0.1 };
    let endpoints = world.wires.iter().map(Wire::endpoint).collect();
    let gateway = Gateway::start(endpoints, Duration::from_secs_f64(audit), seed);
    for n in 1..=ACTS {
        let act = Act::draw(&mut world.rng, world.members.len());
        world.act(act).await;
        if n % ACTS_TO_REST == 0
            && let Err(difference) = world.be_quiet(&gateway).await
        {
            let log = &world.log;
            panic!("WATCH_MODEL_SEED={seed} ({members} members)\n{log}\n{difference}");
        }
    }
    let seen = gateway.seen.lock().unwrap();
    let (events, lists) = (seen.events, seen.lists);
    println!(
        "seed {seed}: {ACTS} acts, {members} members, {events} events, {lists} lists, {} audits",
        seen.registry.audits().complete
    );
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}")))
}

#[test]
fn whatever_happens_to_etcd_the_registry_is_what_a_fresh_list_says() {
    if let Some(seed) = number("WATCH_MODEL_SEED") {
        run(seed);
        return;
    }
    let limit = Duration::from_secs(number("WATCH_MODEL_SECONDS").unwrap_or(24));
    let began = Instant::now();
    let histories = |lane: u64| {
        let mut seeds = SmallRng::seed_from_u64(u64::from(std::process::id()) << 1 | lane);
        let mut count = 0;
        while began.elapsed() < limit {
            run(seeds.next_u64() >> 16);
            count += 1;
        }
        count
    };
    // Two at a time: most of the time one waits.
    let count: usize = thread::scope(|scope| {
        let lanes = [0, 1].map(|lane| scope.spawn(move || histories(lane)));
        lanes.map(|lane| lane.join().unwrap_or_else(|panic| resume_unwind(panic))).iter().sum()
    });
    println!("{count} histories, {} acts, in {:?}", count * ACTS, began.elapsed());
}

fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(live(seed, members_of(seed)));
}

/// Every fourth history is one of three members.
fn members_of(seed: u64) -> usize {
    if (seed / 2).is_multiple_of(4) { 3 } else { 1 }
}
