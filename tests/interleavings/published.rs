//! What a writer publishes is what workers read: the dict's two values and the
//! version on the board.

use std::collections::HashMap;
use std::sync::Arc;

use ipconfig::config::Config;
use ipconfig::ranking::State;
use ipconfig::value::{InstanceValue, RankingValue, Record, ServiceValue};
use loom::sync::Mutex;

use crate::board::{Board, NO_SLOT, ServiceId};
use crate::code::publish::store::{Store, StoreError, Values};
use crate::code::worker::{Due, Worker};
use crate::{act, always_within, together};

/// The shared dict: one lock around each access, as nginx has.
#[derive(Default)]
struct Dict(Mutex<HashMap<String, Vec<u8>>>);

impl Store for Dict {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.0.lock().expect("no panic").insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().expect("no panic").get(key).cloned()
    }
}

/// A writer as [`ipconfig::publish::Publisher`] is one: of this epoch, and what it
/// knows to be stored.
struct Writer {
    dict: Arc<Dict>,
    board: Board,
    epoch: u64,
    id: ServiceId,
    instances_version: u64,
}

impl Writer {
    fn begin(dict: &Arc<Dict>, board: Board) -> Self {
        let epoch = board.begin_epoch();
        let id = board.service("a").expect("room");
        Writer { dict: Arc::clone(dict), board, epoch, id, instances_version: 0 }
    }

    /// Publishes a ranking of so many instances; whether it is still the writer.
    fn publish(&mut self, instances: Option<u16>, of: u16) -> bool {
        let version = self.board.version(self.id) + 1;
        if instances.is_some() {
            self.instances_version = version;
        }
        let body = instances.map(|count| ServiceValue {
            instances: (0..count).map(instance).collect(),
            ..ServiceValue::default()
        });
        let ranking = RankingValue {
            instances_version: self.instances_version,
            records: (0..of).map(record).collect(),
            ..RankingValue::default()
        };
        let values = Values {
            service: "a",
            version,
            instances_version: self.instances_version,
            instances: body.map(|body| body.encode()).as_deref(),
            ranking: &ranking.encode(),
        }
        .store(&*self.dict, self.board, self.epoch, self.id);
        values.map(|stored| stored.expect("room")).is_some()
    }
}

fn instance(index: u16) -> InstanceValue {
    InstanceValue {
        id: index.to_string(),
        addr: ([127, 0, 0, 1], 9000 + index).into(),
        zone: String::new(),
        weight: 1.0,
        slot: NO_SLOT,
    }
}

fn record(rank: u16) -> Record {
    Record {
        score: 0.0,
        weight: 1.0,
        rank: rank.into(),
        state: State::Reporting,
        service_ms: 0.0,
        concurrency: 0.0,
        capacity_per_s: 0.0,
        reported_s: 0,
        factor: 1.0,
        max_in_flight: 0,
    }
}

/// A worker of nginx, and the steps of `native.lua`'s `refresh`.
struct Reader {
    dict: Arc<Dict>,
    board: Board,
    worker: Worker,
    service: u32,
}

impl Reader {
    fn new(dict: &Arc<Dict>, board: Board) -> Self {
        let config = Config::parse(r#"{"services": {"a": {}}}"#).expect("it is sound");
        let mut worker = Worker::new(board, &config, 1);
        let service = worker.service("a").expect("it is configured");
        Reader { dict: Arc::clone(dict), board, worker, service }
    }

    /// Whether there was something to load, and it could be used.
    fn refresh(&mut self) -> bool {
        let due = self.worker.due(self.service);
        if due == Due::Nothing {
            return false;
        }
        let value = |kind| self.dict.get(kind).unwrap_or_default();
        let ranking = value("ranking:a");
        let instances = (due == Due::Both).then(|| value("instances:a"));
        let loaded = self.worker.load(self.service, instances.as_deref(), &ranking);
        loaded.expect("nothing to complain of");
        assert_eq!(self.board.view_errors(), 0);
        true
    }

    /// Says so unless it serves so many instances.
    fn has(&self, count: usize) {
        let best = self.worker.best(self.service, 9, 0).expect("a ranking");
        assert_eq!(best.matches("\"addr\"").count(), count, "{best}");
    }
}

#[test]
fn a_worker_that_reads_while_the_writer_stores_has_nothing_to_complain_of() {
    always_within(Some(3), |board| {
        let dict = Arc::new(Dict::default());
        let mut writer = Writer::begin(&dict, board);
        assert!(writer.publish(Some(1), 1));
        let mut reader = Reader::new(&dict, board);
        assert!(reader.refresh());

        let write = act(move || {
            assert!(writer.publish(Some(2), 2) && writer.publish(None, 2));
            None
        });
        let read = act(move || {
            reader.refresh();
            reader.refresh();
            Some(reader)
        });
        let reader = together(vec![write, read]).into_iter().flatten().next();
        let mut reader = reader.expect("one of them");
        // The instances may not have been asked for, and are then.
        while reader.refresh() {}
        reader.has(2);
    });
}

#[test]
fn a_worker_finds_what_the_newer_of_two_writers_stored_and_versions_only_grow() {
    always_within(Some(2), |board| {
        let dict = Arc::new(Dict::default());
        let mut old = Writer::begin(&dict, board);
        assert!(old.publish(Some(1), 1));
        let mut reader = Reader::new(&dict, board);
        let id = old.id;

        let theirs = Arc::clone(&dict);
        let write_old = act(move || {
            old.publish(Some(2), 2);
        });
        let write_new = act(move || assert!(Writer::begin(&theirs, board).publish(Some(3), 3)));
        let look = act(move || {
            let first = board.version(id);
            assert!(first <= board.version(id));
        });
        together(vec![write_old, write_new, look]);
        while reader.refresh() {}
        assert!((2..=3).contains(&board.version(id)));
        reader.has(3);
    });
}
