//! What a worker reads: the values of the shared dict, which any Lua of this nginx may
//! write, and nginx's account of a request's tries.

use std::cell::RefCell;
use std::net::SocketAddr;

use ipconfig::board::{Board, Refusal, coarse_ms, identity};
use ipconfig::config::Config;
use ipconfig::ranking::{Basis, State};
use ipconfig::value::{InstanceValue, RankingValue, Record, ServiceValue, open, seal};
use ipconfig::worker::{Choice, End, ReportHeader, Request, Tries, Worker};

use super::{Seen, refused, size, taken, with_one_other_bit};

/// A value as it is, and its two kinds of body.
pub fn value(bytes: &[u8]) -> Seen {
    let opened = match open(bytes) {
        Ok((version, body)) => {
            assert!(body.len() < bytes.len());
            let written = &bytes[..end_of(body, bytes)];
            // A digit of the checksum may be a capital letter.
            let damaged = with_one_other_bit(written);
            assert!(open(&damaged).is_err() || open(&damaged) == Ok((version, body)), "damaged");
            assert_eq!(open(&seal(version, body)), Ok((version, body)));
            taken(size(body.len()))
        }
        Err(error) => refused(bytes, &error),
    };
    let sealed = seal(u64::MAX, bytes);
    assert_eq!(open(&sealed), Ok((u64::MAX, bytes)));
    assert!(sealed.len().is_power_of_two());

    let service = match ServiceValue::decode(bytes) {
        Ok(found) => {
            let read = ServiceValue::decode(&found.encode()).expect("what was written is read");
            assert_eq!(read.instances.len(), found.instances.len());
            assert_eq!(read.groups, found.groups);
            taken((size(found.instances.len()), found.rules.len(), found.control.is_some()))
        }
        Err(error) => refused(bytes, &error),
    };
    let ranking = match RankingValue::decode(bytes) {
        Ok(found) => {
            assert_eq!(found.encode(), bytes, "a ranking is written in one way alone");
            taken((size(found.records.len()), found.is_panic()))
        }
        Err(error) => refused(bytes, &error),
    };
    opened ^ service.rotate_left(1) ^ ranking.rotate_left(2)
}

/// Where the body ends and its padding begins.
fn end_of(body: &[u8], value: &[u8]) -> usize {
    body.as_ptr_range().end.addr() - value.as_ptr().addr()
}

const SERVICE: &str = "fuzzed";

thread_local! {
    /// A process has one worker; it is configured anew for each input.
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };

    static CONFIG: Config = {
        let service = r#"{"balance": {"tries": 16}, "failure": {"budget": {"percent": 1000}}}"#;
        let config = Config::parse(&format!(r#"{{"services": {{"{SERVICE}": {service}}}}}"#));
        config.expect("a sound configuration")
    };
}

/// Lends the thread's worker, which knows nothing of earlier inputs.
fn with_worker<T>(work: impl FnOnce(&mut Worker, u32) -> T) -> T {
    let mut worker = CONFIG.with(|config| match WORKER.take() {
        Some(worker) => worker.reconfigured(config, 7),
        None => Worker::new(Board::open().expect("memory for a board"), config, 7),
    });
    let service = worker.service(SERVICE).expect("room for a service");
    let result = work(&mut worker, service);
    WORKER.set(Some(worker));
    result
}

/// Values that a worker loads one after the other, each with some requests after it.
///
/// Each round is a byte of flags, a length of two bytes (little-endian) and so many of
/// the instances' body, and the same of the ranking's. Checksums are put right here:
/// no fuzzer finds one.
pub fn view(bytes: &[u8]) -> Seen {
    with_worker(|worker, service| {
        let mut rest = bytes;
        let (mut seen, mut addrs, mut version) = (0, None, 0);
        for _ in 0..MAX_ROUNDS {
            let Some((&flags, after)) = rest.split_first() else { break };
            let (instances, after) = part(after);
            let (ranking, after) = part(after);
            rest = after;
            version += 1;
            let ranking = match flags & FITS {
                0 => ranking.to_vec(),
                _ => fitted(version, instances, ranking),
            };
            let ranking = seal(version, &ranking);
            let instances = (flags & RANKING_ALONE == 0).then(|| seal(version, instances));
            match worker.load(service, instances.as_deref(), &ranking) {
                Ok(()) => seen = taken((seen, pick(worker, service, flags, &mut addrs))),
                Err(error) => {
                    let _ = pick(worker, service, flags, &mut addrs);
                    seen = taken((seen, refused(bytes, &error)));
                }
            }
            if addrs.is_none() && worker.best(service, 0, coarse_ms()).is_some() {
                addrs = Some(());
            }
        }
        seen
    })
}

const MAX_ROUNDS: usize = 8;
/// The ranking is made to fit the instances: their version, and as many records.
const FITS: u8 = 1;
/// The instances are not told.
const RANKING_ALONE: u8 = 2;

fn part(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.split_first_chunk() {
        Some((len, rest)) => rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len())),
        None => (&[], &[]),
    }
}

fn fitted(version: u64, instances: &[u8], ranking: &[u8]) -> Vec<u8> {
    let (Ok(service), Ok(mut ranking)) =
        (ServiceValue::decode(instances), RankingValue::decode(ranking))
    else {
        return ranking.to_vec();
    };
    let count = service.instances.len();
    let Some(&last) = ranking.records.last() else { return ranking.encode() };
    ranking.records.resize(count, last);
    ranking.records.iter_mut().for_each(|it| it.rank = it.rank.min(count as u32 - 1));
    RankingValue { instances_version: version, ..ranking }.encode()
}

/// Requests, as many as tell each strategy's ways apart. They go to instances that are
/// listed; and once there was a view, there is one.
fn pick(worker: &mut Worker, service: u32, flags: u8, had: &mut Option<()>) -> Seen {
    let Some(page) = worker.best(service, usize::MAX, coarse_ms()) else {
        assert!(had.is_none(), "the last good view is gone");
        return 0;
    };
    let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    let listed = page["instances"].as_array().expect("a list");
    let listed: Vec<SocketAddr> = listed
        .iter()
        .map(|it| it["addr"].as_str().and_then(|it| it.parse().ok()).expect("an address"))
        .collect();
    let mut sent = 0;
    for address in 1..=4_usize {
        for is_retry in [false, true, true] {
            let request = Request {
                address,
                is_retry,
                moved_on_from: if address == 3 { 503 } else { 0 },
                failed_by: Refusal::Error,
                has_reached: true,
                tried: (address == 4).then_some(b"10.0.0.5:80, 10.0.0.6:80".as_slice()),
                key: (flags & 4 != 0).then_some(u64::from(flags) << 32 | address as u64),
                rules: u16::MAX,
            };
            match worker.balance(service, request) {
                Choice::Peer { host, port, .. } => {
                    let addr: SocketAddr = format!("{host}:{port}").parse().expect("an address");
                    let bare = |it: &SocketAddr| (it.ip(), it.port());
                    assert!(
                        listed.iter().any(|it| bare(it) == bare(&addr)),
                        "{addr} is not listed"
                    );
                    sent += 1;
                }
                Choice::Refused { .. } => {}
                other => panic!("there is a view, and {other:?}"),
            }
        }
        worker.finish_by_tries(address, 200, &Tries::default());
    }
    let explained = worker.explain(coarse_ms()).map(|it| it.reason);
    for (_, _, share) in worker.zones() {
        assert!((0.0..=1.0 + 1e-9).contains(&share), "a share of {share}");
    }
    assert_eq!(worker.health().count(), 1);
    let rules = worker.rules(service).is_some();
    taken((size(listed.len()), sent, format!("{explained:?}"), page["strategy"].as_str(), rules))
}

/// `$upstream_addr`, `$upstream_status` and `$upstream_response_time`, a line each, of
/// a request that went to `10.0.0.5:80` and `[::1]:80`; and after them a header.
pub fn tries(bytes: &[u8]) -> Seen {
    let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
    let [addrs, statuses, times, header] = [(); 4].map(|()| lines.next().unwrap_or_default());
    with_worker(|worker, service| {
        let known = ["10.0.0.5:80", "[::1]:80"];
        let known: [SocketAddr; 2] = known.map(|it| it.parse().expect("an address"));
        let board = worker.board();
        let slots = load(worker, service, &known);
        let request = Request {
            address: 1,
            is_retry: false,
            moved_on_from: 0,
            failed_by: Refusal::Error,
            has_reached: true,
            tried: None,
            key: None,
            rules: 0,
        };
        let first = format!("{:?}", worker.balance(service, request));
        assert!(first.starts_with("Peer"), "{first}");
        // One without a log phase: whom it went to is read from the variable.
        let unlogged = Request { address: 2, is_retry: true, tried: Some(addrs), ..request };
        let next = match worker.balance(service, unlogged) {
            Choice::Peer { host, port, .. } => {
                let addr: SocketAddr = format!("{host}:{port}").parse().expect("an address");
                assert!(known.contains(&addr));
                Some(addr)
            }
            Choice::Refused { .. } => None,
            other => panic!("there is a view, and {other:?}"),
        };
        let grpc_status = statuses.first().map_or(0, |byte| i32::from(*byte % 17));
        let told = Tries { addrs, statuses, times, grpc_status };
        let end = worker.finish_by_tries(1, 200, &told);
        assert_ne!(end, End::Unclear, "the tries are its end");
        assert_eq!(worker.finish(1, 200), End::Done, "it is under way no more");
        let reported = worker.report(addrs, ReportHeader::Any(header)).is_ok();
        let counted = slots.map(|slot| {
            let now = board.seen(slot, coarse_ms());
            assert_eq!(now.in_flight, 0, "nothing is in flight at rest");
            assert!(now.latency_ms.is_none_or(|it| it.is_finite() && it >= 0.0), "{now:?}");
            assert!(board.release_slot(slot));
            (now.latency_ms.is_some(), now.failed > 0.0)
        });
        taken((first, next, end == End::Look, reported, counted))
    })
}

/// A ranking of these addresses, with counters that know of nothing.
fn load<const N: usize>(worker: &mut Worker, service: u32, addrs: &[SocketAddr; N]) -> [u32; N] {
    let board = worker.board();
    // Other threads fuzz too, on the same board.
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], ".");
    let id = |index| format!("{thread}{index}");
    let service_id = board.service(SERVICE).expect("room for a service");
    let slots = std::array::from_fn(|index| {
        let identity = identity(SERVICE, &id(index), &addrs[index]);
        let slot = board.claim_slot(identity, service_id, 0, coarse_ms());
        slot.expect("room for an instance")
    });
    let instance = |(index, addr): (usize, &SocketAddr)| InstanceValue {
        id: id(index),
        addr: *addr,
        zone: String::new(),
        weight: 1.0,
        slot: slots[index],
    };
    let record = |rank| Record {
        score: 0.0,
        weight: 1.0,
        rank,
        state: State::Unreported,
        service_ms: 0.0,
        concurrency: 0.0,
        capacity_per_s: 0.0,
        reported_s: 0,
        factor: 1.0,
        max_in_flight: 0,
    };
    let instances = addrs.iter().enumerate().map(instance).collect();
    let instances = ServiceValue { instances, ..ServiceValue::default() };
    let ranking = RankingValue {
        instances_version: 1,
        published_ms: 1,
        revision: 1,
        own_part: 1.0,
        rate_per_s: 0.0,
        basis: Basis::Priors,
        records: (0..addrs.len() as u32).map(record).collect(),
    };
    let loaded =
        worker.load(service, Some(&seal(1, &instances.encode())), &seal(1, &ranking.encode()));
    loaded.expect("sound values");
    slots
}
