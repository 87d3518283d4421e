//! A steady request allocates nothing, by any strategy: first try, retry and end.

#![allow(unsafe_code, reason = "a test calls what is not safe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ipconfig::board::{self, Board, Refusal};
use ipconfig::config::{Config, Strategy};
use ipconfig::ranking::{Basis, State};
use ipconfig::value::{InstanceValue, RankingValue, Record, ServiceValue, seal};
use ipconfig::worker::{Choice, End, Request, Tries, Worker};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends allocates after its locals are gone.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: the system's allocator does it all; the count is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// A worker that has loaded a ranking of 100 instances of different weights.
fn worker(strategy: Strategy) -> (Worker, u32) {
    let name = strategy.as_str();
    let budget = r#"{"budget": {"percent": 1000}}"#;
    let service = format!(r#"{{"balance": {{"strategy": "{name}"}}, "failure": {budget}}}"#);
    let file = format!(r#"{{"services": {{"{name}": {service}}}}}"#);
    let config = Config::parse(&file).expect("a sound configuration");
    let board = Board::open().expect("memory for a board");
    let id = board.service(name).expect("room for a service");
    let instance = |index: u16| {
        let (id_text, addr) = (format!("i{index:03}"), ([127, 0, 0, 1], 9_000 + index).into());
        let identity = board::identity(name, &id_text, &addr);
        let slot = board.claim_slot(identity, id, 0, board::coarse_ms()).expect("a free slot");
        InstanceValue { id: id_text, addr, zone: String::new(), weight: 1.0, slot }
    };
    let record = |rank: u32| Record {
        score: 0.0,
        weight: 1.0 + f64::from(rank % 7),
        rank,
        state: State::Reporting,
        service_ms: 10.0,
        concurrency: 4.0,
        factor: 1.0,
        capacity_per_s: 400.0,
        reported_s: 1,
        max_in_flight: 0,
    };
    let instances: Vec<_> = (0..100).map(instance).collect();
    let ranking = RankingValue {
        instances_version: 1,
        published_ms: 1,
        revision: 1,
        own_part: 0.5,
        rate_per_s: 1000.0,
        basis: Basis::Reports,
        records: (0..100).map(record).collect(),
    };
    let mut worker = Worker::new(board, &config, 7);
    let service = worker.service(name).expect("it is configured");
    board.set_version(id, 1, 1);
    let (instances, ranking) =
        (ServiceValue { instances, ..ServiceValue::default() }.encode(), ranking.encode());
    worker.load(service, Some(&seal(1, &instances)), &seal(1, &ranking)).expect("sound values");
    (worker, service)
}

const TRIES: Tries<'_> = Tries {
    addrs: b"10.0.0.1:80, 127.0.0.1:9000",
    statuses: b"502, 200",
    times: b"0.000, 0.001",
    grpc_status: 0,
};

/// Eight requests under way at any time; every third moves on once.
fn requests(worker: &mut Worker, service: u32, count: usize) {
    const STATUSES: [u16; 4] = [200, 500, 499, 101];
    for number in 0..count {
        let address = 64 * (number % 8);
        let status = STATUSES[number % STATUSES.len()];
        if worker.finish(address, status) == End::Unclear {
            worker.finish_by_tries(address, status, &TRIES);
        }
        let key = (number % 2 == 0).then_some(number as u64);
        let mut request = Request {
            address,
            is_retry: false,
            moved_on_from: 0,
            failed_by: Refusal::Error,
            has_reached: true,
            tried: None,
            key,
            rules: 0,
        };
        for is_retry in [false, true].into_iter().take(1 + usize::from(number % 3 == 0)) {
            request.is_retry = is_retry;
            let choice = worker.balance(service, request);
            assert!(matches!(choice, Choice::Peer { .. }), "{choice:?}");
        }
    }
}

#[test]
fn a_steady_request_allocates_nothing_by_any_strategy() {
    for strategy in Strategy::all() {
        let (mut worker, service) = worker(strategy);
        requests(&mut worker, service, 1_000);
        let count = allocations_of(|| requests(&mut worker, service, 10_000));
        assert_eq!(count, 0, "{}", strategy.as_str());
    }
}

#[test]
fn an_allocation_is_seen() {
    assert_eq!(allocations_of(|| drop(std::hint::black_box(Box::new(1)))), 1);
}
