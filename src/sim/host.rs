//! What governs a gateway beside its ranking: its board, with who is ejected, who
//! rests and what is left of the retry budget, and those who write and read that.
//!
//! All of it is what nginx runs: the thread's [`Publisher`] and [`Health`], and of the
//! worker what ends a try, what bars instances, and what a retry is paid from. The
//! values go through the bytes of the shared dict. Only the clock is made up.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::plane::SERVICE;
use super::policy::Outcome;
use crate::board::{self, Board, Open, ServiceId};
use crate::config::{Config, FailureMode, ServiceConfig};
use crate::govern::{Facts, Governed, Health as Standing};
use crate::health::{self, Health};
use crate::publish::{Publisher, Store, StoreError};
use crate::ranking::{Entry, Ranking};
use crate::value::{self, RankingValue, Record};
use crate::worker::reach::{Bars, Known};
use crate::worker::{self, Failure};

/// Boards that nobody uses: what is mapped stays mapped.
static FREE: Mutex<Vec<Board>> = Mutex::new(Vec::new());

/// A board for as long as a host is simulated.
struct Lent(Board);

impl Lent {
    fn new() -> Self {
        let free = FREE.lock().pop();
        Lent(free.unwrap_or_else(|| Board::apart().expect("memory for a board")))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // One that cannot be cleared is not used again.
        if self.0.clear().is_ok() {
            FREE.lock().push(self.0);
        }
    }
}

/// What the shared dict would hold.
#[derive(Clone, Default)]
struct Kept(Rc<RefCell<HashMap<String, Vec<u8>>>>);

impl Store for Kept {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.0.borrow_mut().insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }
}

/// One gateway's host.
pub struct Host {
    service: ServiceId,
    store: Kept,
    publisher: Publisher<Kept>,
    health: Health,
    failure: Failure,
    /// What is open, by request.
    open: HashMap<u32, Open>,
    /// By index, those of the ranking in force.
    slots: Vec<u32>,
    known: Known,
    is_panic: bool,
    beaten_ms: u64,
    rng: SmallRng,
    /// Last, so that it outlives all that uses it.
    board: Lent,
}

/// What a host did to spare servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deeds {
    /// Ejections so far.
    pub ejections: u64,
    /// Whether all get requests, as too few are healthy.
    pub is_panic: bool,
}

impl Host {
    /// Of a gateway whose service is configured so.
    pub fn new(service: &ServiceConfig, mut rng: SmallRng) -> Self {
        let lent = Lent::new();
        let board = lent.0;
        let config = Config {
            services: BTreeMap::from([(SERVICE.to_owned(), service.clone())]),
            ..Config::default()
        };
        let store = Kept::default();
        Self {
            service: board.service(SERVICE).expect("an empty board has room"),
            publisher: Publisher::new(store.clone(), board),
            store,
            health: Health::new(&config, board, SmallRng::from_rng(&mut rng)),
            failure: Failure::new(&service.failure),
            open: HashMap::new(),
            slots: Vec::new(),
            known: Known::default(),
            is_panic: false,
            beaten_ms: 0,
            rng,
            board: lent,
        }
    }

    // ------------------------------------------------------------- the thread

    /// What is known of a ranking's instances beside how they rank.
    pub fn facts(&self, ranking: &Ranking) -> Vec<Facts> {
        let fact = |entry: &Entry| {
            let is_ejected = self.publisher.is_ejected(SERVICE, &entry.id, &entry.addr);
            Facts { health: if is_ejected { Standing::Ejected } else { Standing::Up } }
        };
        ranking.entries.iter().map(fact).collect()
    }

    /// Publishes a ranking, and has the workers read it.
    pub fn publish(&mut self, governed: &Governed<'_>, now_ms: u64) {
        let published = self.publisher.publish(SERVICE, governed, 0, now_ms);
        debug_assert!(published.is_ok(), "{published:?}");
        self.health.tell_panic(SERVICE, governed.is_panic);
        let value = self.store.get(&format!("ranking:{SERVICE}")).unwrap_or_default();
        let ranking = value::open(&value).and_then(|(_, body)| RankingValue::decode(body));
        let Ok(ranking) = ranking else { return };
        let instances = self.publisher.published().flat_map(|(_, _, instances)| instances);
        let (slots, priors): (Vec<_>, Vec<_>) = instances.map(|it| (it.slot, it.weight)).unzip();
        self.known = Known::new(&ranking, &priors, &self.failure, self.panic_percent());
        self.is_panic = ranking.is_panic();
        self.slots = slots;
    }

    /// With fewer percent of the instances healthy, all get requests.
    pub fn panic_percent(&self) -> u32 {
        self.health.config(SERVICE).panic
    }

    /// A beat of the thread; whether other ones than before are ejected.
    pub fn beat(&mut self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(std::mem::replace(&mut self.beaten_ms, now_ms));
        let budget = self.failure.budget;
        self.board.0.refill_retries(Duration::from_millis(passed), |_| budget);
        let mut has_changed = false;
        for (service, id, instances) in self.publisher.published() {
            has_changed |= self.health.look(service, id, instances, now_ms);
        }
        has_changed
    }

    /// What time alone changes.
    pub fn round(&mut self, now_ms: u64) {
        self.publisher.tidy(now_ms);
        self.health.tidy(self.publisher.published(), now_ms);
    }

    // ------------------------------------------------------------ the workers

    /// What keeps requests from some servers now.
    pub fn bars(&self, now_ms: u64) -> Bars {
        Bars::new(self.board.0, self.service, self.known, now_ms)
    }

    /// Whether it keeps them from the server of this index and record.
    pub fn keeps_from(&self, bars: Bars, index: usize, record: &Record, now_ms: u64) -> bool {
        bars.any()
            && self
                .slots
                .get(index)
                .is_some_and(|slot| bars.keep_from(self.board.0, *slot, record, now_ms))
    }

    /// Whether a request whose try failed may go on to another server at all.
    pub fn moves_on(&self) -> bool {
        matches!(self.failure.mode, FailureMode::Failover | FailureMode::Failcache)
    }

    /// Pays for a try that is about to begin; false if it cannot. `before` is that of the
    /// try that failed: whether it reached its server. `None` before the first one.
    pub fn pay(&self, before: Option<bool>) -> bool {
        let (board, id, budget) = (self.board.0, self.service, self.failure.budget);
        match before {
            None => board.deposit_retry(id, budget),
            Some(has_reached) => return !has_reached || board.withdraw_retry(id, budget),
        }
        true
    }

    /// A try begins.
    pub fn begin(&mut self, request: u32, index: usize, identity: u64, now_ms: u64) {
        let Some(slot) = self.slots.get(index) else { return };
        let open = self.board.0.begin_request(None, *slot, identity, now_ms);
        self.open.insert(request, open);
    }

    /// A try ends: its server rests or is ejected for it, if it failed so.
    pub fn end(&mut self, request: u32, outcome: Outcome, now_ms: u64) {
        let Some(open) = self.open.remove(&request) else { return };
        let board = self.board.0;
        let outcome = match outcome {
            Outcome::Answered(_) => board::Outcome::Answered,
            Outcome::Failed(_) | Outcome::TimedOut(_) => board::Outcome::Failed,
        };
        let who = (open.slot(), open.identity());
        worker::rest(board, &open, self.failure.rest_ms, outcome, now_ms);
        board.end_request(None, open, outcome, now_ms);
        if outcome == board::Outcome::Failed {
            let (config, count) = (self.health.config(SERVICE), self.slots.len());
            health::suspect(board, config, who, count, now_ms, &mut self.rng);
        }
    }

    /// What it did so far.
    pub fn deeds(&self) -> Deeds {
        let ejections = self.board.0.ejections(self.service).iter().sum();
        Deeds { ejections, is_panic: self.is_panic }
    }
}
