mod rules;

use serde_json::{Value, json};

use super::*;
use crate::board::{Freshness, NO_SLOT, Vouched};
use crate::clock::unix_ms;
use crate::config::Strategy;
use crate::freshness::Step;
use crate::picker::{Live, Moment};
use crate::ranking::{Basis, State};
use crate::reckon::Figures;
use crate::value::{self, InstanceValue, RankingValue, Record, ServiceValue, seal};

mod failures;

const STRATEGIES: [&str; 6] =
    ["best", "weighted_random", "round_robin", "random", "p2c", "adaptive"];

/// A worker that serves `chat`, and the two values that its writer has stored.
///
/// Instances are lowercase letters; `a` is at port 9001, `b` at 9002.
struct Gateway {
    board: Board,
    worker: Worker,
    chat: u32,
    instances: Option<Vec<u8>>,
    ranking: Option<Vec<u8>>,
    /// Those that find no slot on the board.
    without_slots: &'static str,
    /// What the ranking says of each: service time in milliseconds, concurrency.
    ability: (f32, f32),
}

fn first_try(address: usize) -> Request<'static> {
    Request {
        address,
        is_retry: false,
        moved_on_from: 0,
        failed_by: Refusal::Error,
        has_reached: true,
        tried: None,
        key: None,
        rules: 0,
    }
}

/// nginx's final status of a request that ended so.
fn status_of(outcome: Outcome) -> u16 {
    match outcome {
        Outcome::Answered => 200,
        Outcome::Failed => 502,
        Outcome::Aborted => 499,
        Outcome::Upgraded => 101,
        Outcome::Unseen => 0,
    }
}

impl Gateway {
    fn new(balance: &Value) -> Self {
        Self::with(balance, &json!({"budget": {"percent": 1000}}))
    }

    fn with(balance: &Value, failure: &Value) -> Self {
        let file = json!({"services": {"chat": {"balance": balance, "failure": failure}}});
        let board = Board::map_for_tests();
        let config = Config::parse(&file.to_string()).unwrap();
        let mut worker = Worker::new(board, &config, 7);
        let chat = worker.service("chat").unwrap();
        let (instances, ranking, without_slots, ability) = (None, None, "", (0.0, 0.0));
        Gateway { board, worker, chat, instances, ranking, without_slots, ability }
    }

    /// One that has loaded a ranking of these instances, all of weight 1.
    fn ranked(strategy: &str, tries: u32, ids: &str) -> Self {
        let mut gateway = Gateway::new(&json!({"strategy": strategy, "tries": tries}));
        gateway.publish(ids);
        gateway.load().unwrap();
        gateway
    }

    /// Stores and announces the next version: instances of weight 1, best first.
    fn publish(&mut self, ids: &str) {
        self.publish_weighted(&ids.chars().map(|id| (id, 1.0)).collect::<Vec<_>>());
    }

    fn publish_weighted(&mut self, ranked: &[(char, f64)]) {
        self.store(ranked);
        self.announce();
    }

    fn announce(&mut self) {
        let version = self.board.version(self.id()) + 1;
        self.board.set_version(self.id(), version, version);
    }

    /// Stores the next version and does not announce it yet.
    fn store(&mut self, ranked: &[(char, f64)]) {
        let version = self.board.version(self.id()) + 1;
        let mut by_id: Vec<_> = (0..).zip(ranked).collect();
        by_id.sort_unstable_by_key(|(_, (id, _))| *id);
        let instances: Vec<_> = by_id.iter().map(|(_, (id, _))| self.instance(*id)).collect();
        let record = |&(rank, &(_, weight))| Record {
            score: -f64::from(rank),
            weight,
            rank,
            state: State::Unreported,
            service_ms: self.ability.0,
            concurrency: self.ability.1,
            factor: 1.0,
            capacity_per_s: 0.0,
            reported_s: 0,
            max_in_flight: 0,
        };
        let ranking = RankingValue {
            instances_version: version,
            published_ms: 1000 * version,
            revision: 17,
            own_part: 1.0,
            rate_per_s: 100.0,
            basis: Basis::Reports,
            records: by_id.iter().map(record).collect(),
        };
        self.instances =
            Some(seal(version, &ServiceValue { instances, ..ServiceValue::default() }.encode()));
        self.ranking = Some(seal(version, &ranking.encode()));
    }

    fn instance(&self, id: char) -> InstanceValue {
        let addr = ([127, 0, 0, 1], port(id)).into();
        let identity = board::identity("chat", &id.to_string(), &addr);
        let known = self.board.used_slots().find(|(_, known)| *known == identity);
        let slot = known
            .map(|(slot, _)| slot)
            .or_else(|| self.board.claim_slot(identity, self.id(), 0, 0));
        let slot = if self.without_slots.contains(id) { NO_SLOT } else { slot.unwrap() };
        let (id, zone) = (id.to_string(), "z".to_owned());
        InstanceValue { id, addr, zone, weight: 1.0, slot }
    }

    fn load(&mut self) -> Result<(), ValueError> {
        let value = |value: &Option<Vec<u8>>| value.clone().unwrap_or_default();
        let (instances, ranking) = (value(&self.instances), value(&self.ranking));
        self.worker.load(self.chat, Some(&instances), &ranking)
    }

    /// A request's first try: the instance that it goes to, if to any.
    fn send(&mut self, request: usize) -> Option<char> {
        self.balance(request, false)
    }

    /// Its next try, after the last one failed.
    fn resend(&mut self, request: usize) -> Option<char> {
        self.balance(request, true)
    }

    fn balance(&mut self, request: usize, retry: bool) -> Option<char> {
        if self.worker.due(self.chat) != Due::Nothing {
            self.load().unwrap();
        }
        let request = Request { is_retry: retry, moved_on_from: 0, ..first_try(request) };
        match self.worker.balance(self.chat, request) {
            Choice::Open => {
                self.worker.finish_by_tries(
                    request.address,
                    status_of(Outcome::Unseen),
                    &Tries::default(),
                );
                self.balance(request.address, retry)
            }
            Choice::Peer { host: "127.0.0.1", port, .. } => Some(letter(port)),
            Choice::Refused { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    /// The end of a request, of which nginx says what its last try says; whether
    /// its response is to be looked at for a load report.
    fn end(&mut self, request: usize, outcome: Outcome) -> bool {
        let mut end = self.worker.finish(request, status_of(outcome));
        if end == End::Unclear {
            let status = match outcome {
                Outcome::Answered => "200",
                Outcome::Failed => "502",
                _ => "-",
            };
            end = self.end_by(request, outcome, status, "-");
        }
        assert_ne!(end, End::Unclear);
        end == End::Look
    }

    /// The same of one whose only try, or its last, nginx tells so.
    fn end_by(&mut self, request: usize, outcome: Outcome, status: &str, time: &str) -> End {
        let addr = self.worker.flights[&request].addr.unwrap().to_string();
        let [addrs, statuses, times] = [&addr, status, time].map(str::as_bytes);
        let tries = Tries { addrs, statuses, times, grpc_status: 0 };
        self.worker.finish_by_tries(request, status_of(outcome), &tries)
    }

    fn in_flight(&self) -> i64 {
        self.board.used_slots().map(|(slot, _)| i64::from(self.board.in_flight(slot))).sum()
    }

    /// Requests and failed tries of one instance, as the metrics page has them.
    fn counted(&self, id: char) -> (u64, u64) {
        let id = id.to_string();
        let counters = self.worker.counters().find(|counters| counters.instance == id);
        counters.map(|counters| (counters.requests, counters.failed)).unwrap()
    }

    fn id(&self) -> ServiceId {
        self.board.find_service("chat").unwrap()
    }

    fn best(&self, n: usize, now_ms: u64) -> Option<Value> {
        let json = self.worker.best(self.chat, n, now_ms)?;
        Some(serde_json::from_str(&json).unwrap())
    }
}

/// Why a request is refused.
fn refusal(gateway: &mut Gateway, request: Request<'_>) -> Refusal {
    match gateway.worker.balance(gateway.chat, request) {
        Choice::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn port(id: char) -> u16 {
    9000 + u16::try_from(u32::from(id) - u32::from('a')).unwrap() + 1
}

fn letter(port: u16) -> char {
    char::from(b'a' + u8::try_from(port - 9001).unwrap())
}

// === loading ===

#[test]
fn a_service_that_was_never_published_is_unranked_and_not_loaded() {
    let mut gateway = Gateway::new(&json!({}));
    assert!(gateway.worker.due(gateway.chat) == Due::Nothing);
    assert_eq!(gateway.worker.balance(gateway.chat, first_try(1)), Choice::Unranked);
    assert_eq!(gateway.best(9, 0), None);
    assert_eq!(gateway.in_flight(), 0);
}

#[test]
fn a_new_version_is_loaded_before_the_next_request_and_once() {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    gateway.publish("ab");
    assert!(gateway.worker.due(gateway.chat) != Due::Nothing);
    assert_eq!(gateway.worker.balance(gateway.chat, first_try(1)), Choice::Load);
    gateway.load().unwrap();
    assert!(gateway.worker.due(gateway.chat) == Due::Nothing);
    let peer = Choice::Peer { host: "127.0.0.1", port: 9001, more_tries: 1 };
    assert_eq!(gateway.worker.balance(gateway.chat, first_try(1)), peer);

    gateway.publish("ba");
    assert_eq!(gateway.worker.balance(gateway.chat, first_try(2)), Choice::Load);
    gateway.load().unwrap();
    assert_eq!(gateway.send(2), Some('b'));
}

#[test]
fn a_version_that_is_stored_but_not_announced_yet_is_not_loaded_again_and_again() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    gateway.publish("a");
    gateway.store(&[('b', 1.0)]); // the writer is about to announce it, or was killed
    gateway.load().unwrap();
    assert!(
        gateway.worker.due(gateway.chat) == Due::Nothing,
        "what was read is newer than announced"
    );
    assert_eq!(gateway.send(1), Some('b'));
}

#[test]
fn instances_that_are_at_hand_are_not_read_again() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    let stored = gateway.ranking.take().unwrap();
    let mut ranking = RankingValue::decode(value::open(&stored).unwrap().1).unwrap();
    (ranking.records[0].rank, ranking.records[1].rank) = (1, 0);
    gateway.ranking = Some(seal(2, &ranking.encode()));
    gateway.instances = None;
    gateway.board.set_version(gateway.id(), 2, 1);
    assert_eq!(gateway.worker.due(gateway.chat), Due::Ranking);
    assert_eq!(gateway.send(1), Some('b'));
}

#[test]
fn instances_that_change_after_they_were_not_asked_for_are_still_due() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    gateway.publish("bc");
    let (chat, ranking) = (gateway.chat, gateway.ranking.clone().unwrap());
    assert_eq!(gateway.worker.load(chat, None, &ranking), Ok(()));
    assert_eq!(gateway.worker.due(chat), Due::Both);
    assert_eq!(gateway.board.view_errors(), 0, "nothing is damaged");
    assert_eq!(gateway.send(1), Some('b'));
}

#[test]
fn instances_whose_ranking_is_still_to_be_stored_are_waited_for_and_no_damage() {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    gateway.publish("ab");
    let first = gateway.ranking.clone();
    gateway.store(&[('b', 1.0), ('c', 1.0)]);
    let second = std::mem::replace(&mut gateway.ranking, first);
    assert_eq!(gateway.load(), Ok(()));
    assert_eq!(gateway.worker.due(gateway.chat), Due::Nothing, "the next version is awaited");
    assert_eq!(gateway.board.view_errors(), 0);
    gateway.ranking = second;
    gateway.board.set_version(gateway.id(), 2, 2);
    assert_eq!(gateway.send(1), Some('b'));
}

/// Damages what was stored, in one way.
type Damage = fn(&mut Gateway);

#[test]
fn values_that_cannot_be_used_leave_the_view_and_are_reported_to_the_writer() {
    let cases: [(&str, Damage); 8] = [
        ("the value is missing", |gateway| gateway.ranking = None),
        ("the value is missing", |gateway| gateway.instances = None),
        ("the value does not begin with ipconfig1", |gateway| {
            gateway.ranking = Some(b"somebody else's".to_vec());
        }),
        ("the checksum is", |gateway| gateway.ranking.as_mut().unwrap()[60] ^= 1),
        ("the value is cut short: 80 bytes", |gateway| {
            gateway.ranking.as_mut().unwrap().truncate(80);
        }),
        ("the ranking is of instances version 2 and the instances are of 1", |gateway| {
            let (_, body) = value::open(gateway.instances.as_ref().unwrap()).unwrap();
            gateway.instances = Some(seal(1, body));
        }),
        ("the body is not valid: ", |gateway| gateway.instances = Some(seal(2, b"{}"))),
        ("the body is not valid: 2 records for 0 instances", |gateway| {
            gateway.instances = Some(seal(2, br#"{"instances": []}"#));
        }),
    ];
    for (expected, damage) in cases {
        let mut gateway = Gateway::ranked("best", 2, "ab");
        gateway.publish("cd");
        damage(&mut gateway);
        let error = gateway.load().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error:?}, expected {expected:?}");
        assert_eq!(gateway.board.view_errors(), 1, "{expected}");
        assert!(gateway.board.is_damaged(gateway.id()), "{expected}: to be stored again");
        assert!(
            gateway.worker.due(gateway.chat) == Due::Nothing,
            "{expected}: not read once a request"
        );
        assert_eq!(gateway.send(1), Some('a'), "{expected}: the view at hand stays");
        assert_eq!(gateway.resend(1), Some('b'), "{expected}");

        gateway.publish("cd");
        assert_eq!(gateway.send(2), Some('c'), "{expected}: healed by the next version");
        assert!(!gateway.board.is_damaged(gateway.id()));
    }
}

#[test]
fn the_same_failure_is_told_once_until_something_else_happens() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    let mut fail_with = |value: Option<&[u8]>| {
        gateway.publish("b");
        gateway.ranking = value.map(<[u8]>::to_vec);
        gateway.load()
    };
    assert_eq!(fail_with(None), Err(ValueError::Missing));
    assert_eq!(fail_with(None), Ok(()), "known");
    assert_eq!(fail_with(Some(b"x")), Err(ValueError::Foreign), "another failure is news");
    assert_eq!(fail_with(None), Err(ValueError::Missing));
    assert_eq!(gateway.board.view_errors(), 4, "all of them count");

    gateway.publish("b");
    assert_eq!(gateway.load(), Ok(()));
    gateway.publish("b");
    gateway.ranking = None;
    assert_eq!(gateway.load(), Err(ValueError::Missing), "news again, after a good one");
}

#[test]
fn a_handle_that_was_never_given_out_is_refused_and_harmless() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    assert!(gateway.worker.due(99) == Due::Nothing);
    assert_eq!(gateway.worker.load(99, None, b""), Ok(()));
    assert_eq!(gateway.worker.balance(99, first_try(1)), Choice::Unranked);
    assert_eq!(gateway.worker.best(99, 1, 0), None);
    assert_eq!(gateway.in_flight(), 0);
}

// === tries ===

#[test]
fn a_request_moves_through_all_instances_and_never_back_to_one_by_any_strategy() {
    for strategy in STRATEGIES {
        let mut gateway = Gateway::ranked(strategy, 16, "abcde");
        for request in 1..200 {
            let mut tried = vec![gateway.send(request).unwrap()];
            tried.extend((0..4).map(|_| gateway.resend(request).unwrap()));
            tried.sort_unstable();
            assert_eq!(tried, ['a', 'b', 'c', 'd', 'e'], "{strategy}");
            assert_eq!(gateway.resend(request), None, "{strategy}: all were tried");
        }
        assert_eq!(gateway.in_flight(), 0, "{strategy}");
    }
}

#[test]
fn an_instance_that_was_tried_stays_so_when_the_members_change_in_between() {
    for strategy in STRATEGIES {
        let mut gateway = Gateway::ranked(strategy, 16, "bcd");
        for request in 1..200 {
            gateway.publish("bcd");
            let first = gateway.send(request).unwrap();
            // `a` and `e` move all indexes, and the first one is gone for a try.
            let others: String = "abcde".chars().filter(|id| *id != first).collect();
            gateway.publish(&others);
            let second = gateway.resend(request).unwrap();
            gateway.publish("bcd");
            let third = gateway.resend(request).unwrap_or('-');
            let fourth = gateway.resend(request).unwrap_or('-');
            let tried = [first, second, third, fourth];
            let repeated = (1..4).any(|n| tried[n] != '-' && tried[..n].contains(&tried[n]));
            assert!(!repeated, "{strategy}: {tried:?}");
            gateway.end(request, Outcome::Answered);
        }
    }
}

#[test]
fn an_instance_at_another_address_is_another_instance() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    assert_eq!(gateway.send(1), Some('a'));
    let moved = InstanceValue { addr: ([127, 0, 0, 1], 9002).into(), ..gateway.instance('a') };
    gateway.publish("a");
    gateway.instances =
        Some(seal(2, &ServiceValue { instances: vec![moved], ..ServiceValue::default() }.encode()));
    assert_eq!(gateway.resend(1), Some('b'), "port 9002, which this request has not tried");
}

#[test]
fn a_request_may_move_on_as_often_as_is_configured_and_there_are_others() {
    for (tries, ids, more_tries) in
        [(2, "a", 0), (2, "ab", 1), (2, "abc", 2), (2, "abcde", 2), (0, "abc", 0), (16, "abc", 2)]
    {
        let mut gateway = Gateway::ranked("best", tries, ids);
        let peer = Choice::Peer { host: "127.0.0.1", port: 9001, more_tries };
        assert_eq!(
            gateway.worker.balance(gateway.chat, first_try(1)),
            peer,
            "{tries} tries, {ids}"
        );
    }
}

#[test]
fn the_longest_chain_of_tries_ends_in_nothing_and_not_in_a_panic() {
    let ids: String = ('a'..='z').collect();
    let mut gateway = Gateway::ranked("round_robin", 16, &ids);
    gateway.send(1).unwrap();
    for _ in 1..MAX_TRIES {
        gateway.resend(1).unwrap();
    }
    assert_eq!(gateway.resend(1), None);
    assert_eq!(gateway.in_flight(), 0);
}

#[test]
fn a_service_without_instances_has_nothing_to_offer() {
    for strategy in STRATEGIES {
        let mut gateway = Gateway::ranked(strategy, 2, "");
        assert_eq!(gateway.send(1), None, "{strategy}");
        assert_eq!(gateway.resend(1), None, "{strategy}");
        assert_eq!(gateway.in_flight(), 0);
    }
}

// === in flight ===

#[test]
fn a_request_is_in_flight_from_its_choice_to_its_end() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    gateway.send(1);
    gateway.send(2);
    assert_eq!(gateway.in_flight(), 2);
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.in_flight(), 1);
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.in_flight(), 1, "a request ends once");
    gateway.end(2, Outcome::Failed);
    assert_eq!((gateway.in_flight(), gateway.counted('a')), (0, (2, 1)));
}

#[test]
fn a_try_that_failed_ends_where_it_was_and_begins_at_the_next() {
    let mut gateway = Gateway::ranked("best", 2, "abc");
    gateway.send(1);
    gateway.resend(1);
    gateway.resend(1);
    assert_eq!(gateway.in_flight(), 1);
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.in_flight(), 0);
    assert_eq!(['a', 'b', 'c'].map(|id| gateway.counted(id)), [(1, 1), (1, 1), (1, 0)]);
}

#[test]
fn a_request_that_ran_out_of_instances_is_over() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    gateway.send(1);
    assert_eq!(gateway.resend(1), None);
    assert_eq!((gateway.in_flight(), gateway.counted('a')), (0, (1, 1)));
    gateway.end(1, Outcome::Failed); // its log phase comes all the same
    assert_eq!((gateway.in_flight(), gateway.counted('a')), (0, (1, 1)), "counted once");
}

#[test]
fn a_request_whose_log_phase_never_came_ends_when_its_address_is_used_again() {
    let mut gateway = Gateway::ranked("best", 2, "abc");
    gateway.send(1);
    gateway.resend(1);
    assert_eq!(gateway.worker.balance(gateway.chat, first_try(1)), Choice::Open);
    gateway.send(1);
    assert_eq!(gateway.in_flight(), 1);
    assert_eq!(gateway.counted('b'), (1, 0), "how it ended was not seen");
    assert_eq!(gateway.resend(1), Some('b'), "the tries of the earlier one are forgotten");
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.in_flight(), 0);
}

// === load reports in responses ===

const REPORT: ReportHeader<'_> = ReportHeader::Any(b"TEXT cpu_utilization=0.5");

#[test]
fn of_many_responses_one_is_looked_at() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    let looks = (1..=1000).filter(|&request| {
        gateway.send(request);
        gateway.end(request, Outcome::Answered)
    });
    assert!((1..=3).contains(&looks.count()), "less than half a second has passed");
}

#[test]
fn a_report_is_taken_for_the_instance_that_the_response_came_from() {
    for (addrs, taken) in [
        ("127.0.0.1:9001", 1),
        ("127.0.0.1:9002, 127.0.0.1:9001", 1),
        ("127.0.0.1:9002 : 127.0.0.1:9001", 1),
        ("127.0.0.1:9001, 127.0.0.1:9002", 0),
        ("127.0.0.1:9001 : 127.0.0.1:80", 0),
        ("unix:/run/app.sock", 0),
        ("", 0),
    ] {
        let mut gateway = Gateway::ranked("best", 2, "a");
        gateway.send(1);
        assert!(gateway.end(1, Outcome::Answered));
        gateway.worker.report(addrs.as_bytes(), REPORT).unwrap();
        assert_eq!(gateway.board.report_counts(), (taken, 0), "{addrs}");
        gateway.worker.report(addrs.as_bytes(), REPORT).unwrap();
        assert_eq!(gateway.board.report_counts(), (taken, 0), "{addrs}: once");
    }
}

#[test]
fn a_try_that_failed_and_a_request_of_others_are_not_looked_at() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    gateway.send(1);
    assert!(!gateway.end(1, Outcome::Failed));
    assert!(!gateway.end(2, Outcome::Answered));
    gateway.worker.report(b"127.0.0.1:9001", REPORT).unwrap();
    assert_eq!(gateway.board.report_counts(), (0, 0));
}

#[test]
fn a_report_that_is_refused_is_told_of_once_in_a_while() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    let mut report = |request, header| {
        gateway.board.put_report(0, Figures::default(), 0); // so that a look is due soon
        gateway.send(request);
        while !gateway.end(request, Outcome::Answered) {
            gateway.send(request);
        }
        gateway.worker.report(b"127.0.0.1:9001", header).is_err()
    };
    assert!(report(1, ReportHeader::Any(b"TEXT cpu_utilization=NaN")));
    assert!(!report(2, ReportHeader::Binary(b"?")));
    assert_eq!(gateway.board.report_counts(), (2, 2));
}

#[test]
fn the_end_of_a_request_that_was_balanced_elsewhere_counts_nothing() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    gateway.end(1, Outcome::Failed);
    gateway.send(2);
    gateway.end(3, Outcome::Failed);
    assert_eq!((gateway.in_flight(), gateway.counted('a')), (1, (1, 0)));
}

#[test]
fn an_instance_that_left_is_still_counted_down() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    gateway.send(1);
    gateway.publish("b");
    gateway.send(2);
    gateway.end(1, Outcome::Answered);
    assert_eq!(gateway.in_flight(), 1);
    gateway.end(2, Outcome::Answered);
    assert_eq!(gateway.in_flight(), 0);
}

#[test]
fn a_retry_of_a_try_that_lua_made_is_left_to_lua() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    let retry = Request { is_retry: true, moved_on_from: 0, ..first_try(1) };
    assert_eq!(gateway.worker.balance(gateway.chat, retry), Choice::Unranked);
    assert_eq!((gateway.in_flight(), gateway.counted('a')), (0, (0, 0)));
}

#[test]
fn a_request_without_a_log_phase_is_counted_and_never_in_flight() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    let subrequest = Request { tried: Some(b""), ..first_try(1) };
    gateway.worker.balance(gateway.chat, subrequest);
    assert_eq!((gateway.in_flight(), gateway.counted('a')), (0, (1, 0)));
    let retry = Request { is_retry: true, tried: Some(b"127.0.0.1:9001, "), ..subrequest };
    gateway.worker.balance(gateway.chat, retry);
    assert_eq!((gateway.in_flight(), gateway.counted('b')), (0, (1, 0)), "never the tried one");
    let retry = Request { tried: Some(b"127.0.0.1:9001, 127.0.0.1:9002, "), ..retry };
    assert_eq!(refusal(&mut gateway, retry), Refusal::AllTried);
    gateway.worker.finish(1, status_of(Outcome::Failed)); // log_subrequest
    assert_eq!((gateway.in_flight(), gateway.counted('b')), (0, (1, 0)));
}

#[test]
fn nothing_is_kept_of_requests_without_a_log_phase() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    for address in 1..=1000 {
        let subrequest = Request { tried: Some(b""), ..first_try(address) };
        gateway.worker.balance(gateway.chat, subrequest);
        let retry = Request { is_retry: true, tried: Some(b"127.0.0.1:9001, "), ..subrequest };
        gateway.worker.balance(gateway.chat, retry);
    }
    assert_eq!(gateway.worker.flights.len(), 0);
    assert_eq!((gateway.counted('a'), gateway.counted('b')), ((1000, 0), (1000, 0)));
    let many = "127.0.0.1:9001, ".repeat(MAX_TRIES + 1);
    let retry = Request { is_retry: true, tried: Some(many.as_bytes()), ..first_try(1) };
    assert_eq!(refusal(&mut gateway, retry), Refusal::AllTried, "as many as any");
}

// === how a request ended ===

/// Answers until one is taken at its word.
fn until_untimed(gateway: &mut Gateway) {
    loop {
        gateway.send(1);
        match gateway.worker.finish(1, status_of(Outcome::Answered)) {
            End::Unclear => gateway.end_by(1, Outcome::Answered, "200", "-"),
            _ => return,
        };
    }
}

#[test]
fn an_answer_is_looked_into_when_it_is_timed_and_a_failure_always() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    gateway.send(1);
    assert_eq!(gateway.worker.finish(1, status_of(Outcome::Answered)), End::Unclear);
    assert_eq!(gateway.in_flight(), 1, "it is open until it is clear how it ended");
    gateway.end(1, Outcome::Answered);
    until_untimed(&mut gateway);
    gateway.send(1);
    gateway.send(2);
    assert_eq!(gateway.worker.finish(2, status_of(Outcome::Failed)), End::Unclear);
    for outcome in [Outcome::Aborted, Outcome::Upgraded, Outcome::Unseen] {
        gateway.send(3);
        assert_eq!(gateway.worker.finish(3, status_of(outcome)), End::Done, "{outcome:?}");
    }
}

#[test]
fn where_an_answer_covered_a_failure_up_every_answer_is_looked_into_for_a_while() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    gateway.send(1);
    gateway.end_by(1, Outcome::Answered, "503", "-");
    assert_eq!(gateway.counted('a'), (1, 1));
    for request in 2..=101 {
        gateway.send(request);
    }
    for request in 2..=101 {
        assert_eq!(
            gateway.worker.finish(request, status_of(Outcome::Answered)),
            End::Unclear,
            "{request}"
        );
        gateway.end_by(request, Outcome::Answered, "503", "-");
    }
    assert_eq!(gateway.counted('a'), (101, 101), "each of them counts");
    // Answers that are some: a part of 1 fades to nothing in 1200 of them.
    for _ in 0..2000 {
        gateway.send(1);
        gateway.end(1, Outcome::Answered);
    }
    until_untimed(&mut gateway);
}

#[test]
fn a_request_counts_as_its_last_try_here_ended_whatever_its_own_status() {
    for (outcome, addrs, statuses, failed) in [
        (Outcome::Answered, "127.0.0.1:9001", "200", 0),
        (Outcome::Answered, "127.0.0.1:9001", "503", 1),
        (Outcome::Answered, "127.0.0.1:9001 : 10.0.0.9:80", "503 : 200", 1),
        (Outcome::Failed, "127.0.0.1:9001 : 10.0.0.9:80", "404 : 502", 0),
        (Outcome::Failed, "127.0.0.1:9001", "200", 0),
        (Outcome::Failed, "127.0.0.1:9001", "-", 1),
        (Outcome::Answered, "127.0.0.1:9001", "-", 0),
        (Outcome::Failed, "127.0.0.1:1", "503", 0), // where it was refused
    ] {
        let mut gateway = Gateway::ranked("best", 2, "a");
        gateway.send(1);
        let tries =
            Tries { addrs: addrs.as_bytes(), statuses: statuses.as_bytes(), ..Tries::default() };
        gateway.worker.finish_by_tries(1, status_of(outcome), &tries);
        let figures = (gateway.in_flight(), gateway.counted('a'));
        assert_eq!(figures, (0, (1, failed)), "{outcome:?}: {addrs} | {statuses}");
    }
}

#[test]
fn an_instance_took_no_longer_than_nginx_says_nor_than_was_measured_here() {
    let wait = || {
        let begin_ms = board::monotonic_ms();
        while board::monotonic_ms() - begin_ms < 61 {
            std::hint::spin_loop();
        }
    };
    for (time, range) in
        [("0.005", 5.9..6.5), ("0.000", 0.9..1.5), ("9.000", 60.0..500.0), ("-", 60.0..500.0)]
    {
        let mut gateway = Gateway::ranked("best", 2, "a");
        gateway.send(1);
        wait();
        gateway.end_by(1, Outcome::Answered, "200", time);
        let latency_ms = gateway.worker.counters().next().unwrap().latency_ms.unwrap();
        assert!(range.contains(&latency_ms), "{time}: {latency_ms}");
    }
}

#[test]
fn a_request_that_was_refused_still_knows_what_it_tried() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    assert_eq!(gateway.send(1), Some('a'));
    assert_eq!(gateway.resend(1), None);
    assert_eq!(gateway.resend(1), None, "not the tried one again");
    gateway.end(1, Outcome::Answered);
    assert_eq!((gateway.in_flight(), gateway.counted('a')), (0, (1, 1)));
}

#[test]
fn what_a_picker_asks_for_is_what_the_board_has_seen() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    gateway.send(1);
    gateway.end(1, Outcome::Failed);
    gateway.send(2);
    let (service, worker) = (gateway.id(), &gateway.worker);
    let view = worker.services[0].view.as_ref().unwrap();
    let now_ms = board::coarse_ms() + 700;
    let now = Try {
        board: gateway.board,
        service,
        peers: &view.peers,
        records: &view.ranking.records,
        counted_weight: view.counted_weight,
        rounding: 0.0,
        tried: &[],
        key: None,
        now_ms,
        bars: Bars::default(),
    };
    let seen = gateway.board.seen(view.peers.slots[0], now_ms);
    let live = now.live(0);
    assert_eq!((live.in_flight, live.failed, live.consecutive_failures), (1, 1.0, 1));
    assert_eq!((live.stalled_ms, live.unpicked_ms), (seen.stalled_ms, seen.unpicked_ms));
    assert!(live.stalled_ms >= 700 && live.unpicked_ms >= 700, "{live:?}");
    assert_eq!(live.latency_ms, None, "of failures alone nothing is known");
    assert_eq!((now.in_flight(0), now.in_flight(1), now.total_in_flight()), (1, 0, 1));
    let idle = now.live(1);
    assert_eq!(idle, Live { unpicked_ms: idle.unpicked_ms, ..Live::default() });
}

#[test]
fn handles_stay_valid_when_the_worker_is_reconfigured() {
    let config = |names: &[&str]| {
        let services: serde_json::Map<_, _> =
            names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
        Config::parse(&json!({ "services": services }).to_string()).unwrap()
    };
    let mut worker = Worker::new(Board::map_for_tests(), &config(&["m", "z"]), 7);
    let before = [worker.service("m"), worker.service("z")];
    let mut worker = worker.reconfigured(&config(&["a", "m", "z"]), 7);
    assert_eq!([worker.service("m"), worker.service("z")], before);
    assert!(worker.service("a").is_some_and(|new| !before.contains(&Some(new))));
}

// === what others see ===

#[test]
fn best_gives_each_field_of_the_api_in_rank_order() {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    gateway.publish_weighted(&[('b', 3.0), ('a', 1.0)]);
    gateway.load().unwrap();
    gateway.board.set_source(board::SourceState {
        synced: true,
        revision: 42,
        confirmed_ms: 4_000,
        ..Default::default()
    });
    gateway.send(1);
    gateway.board.vouch(Vouched { revision: 41, at_ms: 4_200 });
    let known = Freshness { step: Step::Aging, expected: 2, fresh: 0, fresh_ms: 3_000 };
    gateway.board.set_freshness(gateway.id(), Some(known));
    gateway.board.set_reported(gateway.slot('b'), 3_000);
    let expected = json!({
        "service": "chat", "mode": "live", "freshness": "aging", "reports": {"expected": 2, "fresh": 0},
        "strategy": "best", "basis": "reports", "version": 1, "revision": 42, "age_ms": 500, "count": 2,
        "ranking_age_ms": 3500, "confirmed_age_ms": 300, "applied_revision": 41,
        "zones": [{"zone": "z", "share": 1.0}],
        "instances": [
            {"id": "b", "addr": "127.0.0.1:9002", "zone": "z", "rank": 1, "score": 0.0,
             "weight": 3.0, "share": 0.75, "in_flight": 1, "state": "unreported", "status_age_ms": 1500},
            {"id": "a", "addr": "127.0.0.1:9001", "zone": "z", "rank": 2, "score": -1.0,
             "weight": 1.0, "share": 0.25, "in_flight": 0, "state": "unreported", "status_age_ms": null},
        ],
    });
    assert_eq!(gateway.best(2, 4_500), Some(expected.clone()));
    assert_eq!(gateway.best(99, 4_500), Some(expected));
}

/// Age and revision that the worker knows its ranking by.
fn proof(gateway: &Gateway, now_ms: u64) -> (u64, i64) {
    let proofs: Vec<_> = gateway.worker.freshness(now_ms).filter_map(|it| it.proof).collect();
    let [Proof { revision, age_ms }] = proofs[..] else { panic!("one service") };
    (age_ms, revision)
}

#[test]
fn a_worker_claims_of_the_newest_ranking_what_the_thread_vouches_for_and_of_an_older_one_no_more_than_it_says()
 {
    let mut gateway = Gateway::new(&json!({}));
    assert!(gateway.worker.freshness(0).all(|it| it.proof.is_none()));
    gateway.publish("ab"); // at 1 s, as of revision 17
    gateway.load().unwrap();
    assert_eq!(proof(&gateway, 9000), (8000, 17), "nobody has vouched for it");
    gateway.board.vouch(Vouched { revision: 40, at_ms: 8500 });
    assert_eq!(proof(&gateway, 9000), (500, 40));
    // A newer one was announced, and what is vouched for is vouched for with it.
    gateway.publish("abc");
    gateway.board.vouch(Vouched { revision: 41, at_ms: 9000 });
    assert_eq!(proof(&gateway, 9000), (8000, 17));
    gateway.load().unwrap();
    assert_eq!(proof(&gateway, 9000), (0, 41));
}

#[test]
fn what_was_vouched_for_before_a_ranking_was_made_says_nothing_of_it() {
    let mut gateway = Gateway::new(&json!({}));
    gateway.board.vouch(Vouched { revision: 99, at_ms: 500 }); // of an etcd that was wiped
    gateway.publish("ab");
    gateway.load().unwrap();
    assert_eq!(proof(&gateway, 1000), (0, 17));
}

#[test]
fn a_service_is_on_its_step_unless_etcd_was_never_read() {
    let gateway = Gateway::ranked("best", 2, "ab");
    let step = |gateway: &Gateway| gateway.worker.freshness(0).map(|it| it.step).next().unwrap();
    assert_eq!(step(&gateway), "static");
    gateway.board.set_source(board::SourceState { synced: true, ..Default::default() });
    assert_eq!(step(&gateway), "board", "nothing was told");
    for known in Step::ALL {
        let told = Freshness { step: known, expected: 2, fresh: 1, fresh_ms: 0 };
        gateway.board.set_freshness(gateway.id(), Some(told));
        assert_eq!(step(&gateway), known.as_str());
    }
    gateway.board.set_reported(gateway.slot('b'), 2_000);
    gateway.board.set_reported(gateway.slot('a'), 3_000);
    let oldest: Vec<_> = gateway.worker.freshness(5_000).map(|it| it.oldest_ms).collect();
    assert_eq!(oldest, [Some(3_000)]);
}

#[test]
fn what_governs_a_prior_goes_by_steps_and_nothing_stays_nothing() {
    let record = |factor| Record {
        score: 0.0,
        weight: 1.0,
        rank: 0,
        state: State::Unreported,
        service_ms: 0.0,
        concurrency: 0.0,
        factor,
        capacity_per_s: 0.0,
        reported_s: 0,
        max_in_flight: 0,
    };
    let of = |factors: [f32; 4]| governed_priors(&[2.0; 4], &factors.map(record)).into_owned();
    assert_eq!(of([1.0; 4]), [2.0; 4]);
    assert_eq!(of([1.0, 0.0, 0.5, 0.25]), [2.0, 0.0, 1.0, 0.5]);
    assert_eq!(of([0.9, 0.51, 0.49, 1.1]), [2.0, 1.0, 1.0, 2.0], "small changes are none");
}

#[test]
fn best_gives_no_more_than_was_asked_for_and_counts_all() {
    let gateway = Gateway::ranked("best", 2, "abc");
    for (n, expected) in [(0, json!([])), (1, json!(["a"])), (2, json!(["a", "b"]))] {
        let view = gateway.best(n, 0).unwrap();
        let ids: Vec<_> =
            view["instances"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
        assert_eq!((json!(ids), &view["count"]), (expected, &json!(3)));
    }
}

#[test]
fn the_age_of_a_view_is_the_time_since_it_was_last_known_to_be_true() {
    let mut gateway = Gateway::new(&json!({}));
    gateway.publish("a"); // at 1000 ms
    gateway.load().unwrap();
    assert_eq!(gateway.best(0, 1_200).unwrap()["age_ms"], 200);
    let confirmed_ms = 5_000;
    gateway.board.set_source(board::SourceState { confirmed_ms, ..Default::default() });
    assert_eq!(gateway.best(0, 5_100).unwrap()["age_ms"], 100);
    assert_eq!(gateway.best(0, 900).unwrap()["age_ms"], 0, "never below 0");
}

#[test]
fn weights_that_are_all_zero_share_nothing_and_divide_nothing() {
    let mut gateway = Gateway::new(&json!({"strategy": "weighted_random"}));
    gateway.publish_weighted(&[('a', 0.0), ('b', 0.0)]);
    gateway.load().unwrap();
    assert_eq!(gateway.best(1, 0).unwrap()["instances"][0]["share"], 0.0);
    assert!(gateway.send(1).is_some(), "any is better than none");
}

#[test]
fn the_mode_is_static_until_the_first_list_then_live_then_stale_once_the_source_is_lost() {
    let gateway = Gateway::new(&json!({})); // fallback.after is 5 s
    let mode = |synced, lost_since_ms, now_ms| {
        let source = board::SourceState { synced, lost_since_ms, ..Default::default() };
        gateway.board.set_source(source);
        gateway.worker.mode(now_ms)
    };
    assert_eq!(mode(false, 1, 2), "static");
    assert_eq!(mode(false, 1, 1_000_000), "static", "for as long as nothing was ever read");
    assert_eq!(mode(true, 0, 1_000_000), "live");
    assert_eq!(mode(true, 1_000, 6_000), "live");
    assert_eq!(mode(true, 1_000, 6_001), "stale");
    assert_eq!(mode(true, 9_000, 8_000), "live", "not lost yet, by this worker's clock");
}

#[test]
fn with_a_snapshot_the_mode_says_so_until_the_first_list_and_ages_are_the_snapshot_s() {
    let mut gateway = Gateway::new(&json!({}));
    gateway.publish_weighted(&[('b', 3.0)]);
    gateway.load().unwrap();
    let seen = |synced| {
        let restored_as_of_ms = unix_ms() - 90_000;
        let source = board::SourceState { synced, restored_as_of_ms, ..Default::default() };
        gateway.board.set_source(source);
        let view = gateway.best(1, 4_500).unwrap();
        (view["mode"].clone(), view["age_ms"].as_u64().unwrap() / 10_000)
    };
    assert_eq!(seen(false), ("snapshot".into(), 9));
    assert_eq!(seen(true), ("live".into(), 0), "a list was read since");
}

#[test]
fn counters_and_versions_are_those_of_the_views() {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    assert_eq!(gateway.worker.counters().count(), 0);
    assert_eq!(gateway.worker.versions().count(), 0);
    gateway.publish("ab");
    gateway.send(1);
    let counters: Vec<_> = gateway
        .worker
        .counters()
        .map(|c| (c.service, c.instance, c.requests, c.failed, c.in_flight))
        .collect();
    assert_eq!(counters, [("chat", "a", 1, 0, 1), ("chat", "b", 0, 0, 0)]);
    assert_eq!(gateway.worker.versions().collect::<Vec<_>>(), [("chat", 1, 1000)]);
}

// === services ===

#[test]
fn a_service_that_only_etcd_knows_is_served_where_discover_allows_it() {
    for (discover, allowed) in [
        (json!(false), &[][..]),
        (json!(true), &["mail", "team-a.x"][..]),
        (json!(["mail"]), &["mail"][..]),
        (json!(["team-a.*"]), &["team-a.x"][..]),
    ] {
        let board = Board::map_for_tests();
        for name in ["mail", "team-a.x"] {
            board.set_version(board.service(name).unwrap(), 1, 1);
        }
        let file = json!({"discover": discover, "services": {"chat": {}}});
        let mut worker = Worker::new(board, &Config::parse(&file.to_string()).unwrap(), 7);
        for name in ["mail", "team-a.x"] {
            assert_eq!(worker.service(name).is_some(), allowed.contains(&name), "{discover}");
        }
        assert_eq!(worker.service_names(), [&["chat"], allowed].concat(), "{discover}");
    }
}

#[test]
fn a_discovered_service_has_no_handle_until_it_is_published_and_then_keeps_it() {
    let board = Board::map_for_tests();
    let config = Config::parse(r#"{"discover": true, "services": {"chat": {}}}"#).unwrap();
    let mut worker = Worker::new(board, &config, 7);
    assert_eq!(worker.service("mail"), None);
    let id = board.service("mail").unwrap();
    assert_eq!(worker.service("mail"), None, "no ranking yet");
    board.set_version(id, 1, 1);
    let mail = worker.service("mail");
    assert!(mail.is_some() && mail != worker.service("chat"));
    assert_eq!(worker.service("mail"), mail);
}

#[test]
fn an_instance_without_a_slot_gets_its_part_of_the_requests_and_no_more() {
    for strategy in crate::config::Strategy::all().filter(|it| it.as_str() != "best") {
        for (ability, weights) in [
            ((0.0, 0.0), [('a', 1.0), ('b', 1.0), ('c', 1.0), ('z', 1.0)]),
            ((10.0, 4.0), [('a', 1.0), ('b', 1.0), ('c', 1.0), ('z', 1.0)]),
            ((0.0, 0.0), [('a', 3.0), ('b', 3.0), ('c', 3.0), ('z', 3.0)]),
        ] {
            let mut gateway = Gateway::new(&json!({"strategy": strategy.as_str()}));
            (gateway.without_slots, gateway.ability) = ("z", ability);
            gateway.publish_weighted(&weights);
            let mut uncounted = 0;
            // 40 of them are open at any time.
            for request in 0..4000_usize {
                gateway.worker.finish(request.wrapping_sub(40), 200);
                uncounted += u32::from(gateway.send(request) == Some('z'));
            }
            let name = strategy.as_str();
            assert!((500..1500).contains(&uncounted), "{name}, {ability:?}: {uncounted}");
        }
    }
}

#[test]
fn instances_without_slots_alone_share_the_requests() {
    for strategy in crate::config::Strategy::all().filter(|it| it.as_str() != "best") {
        let mut gateway = Gateway::new(&json!({"strategy": strategy.as_str()}));
        gateway.without_slots = "xyz";
        gateway.publish("xyz");
        let mut counts = HashMap::new();
        for request in 0..3000 {
            *counts.entry(gateway.send(request)).or_insert(0) += 1;
        }
        let shared = counts.values().all(|count| (800..1200).contains(count));
        assert!(shared && counts.len() == 3, "{}: {counts:?}", strategy.as_str());
    }
}

// === ejections ===

impl Gateway {
    fn with_health(strategy: &str, health: &Value, ids: &str) -> Self {
        let mut gateway = Gateway::new(&json!({"strategy": strategy}));
        let file =
            json!({"services": {"chat": {"balance": {"strategy": strategy}, "health": health}}});
        let config = Config::parse(&file.to_string()).unwrap();
        gateway.worker = Worker::new(gateway.board, &config, 7);
        gateway.chat = gateway.worker.service("chat").unwrap();
        gateway.publish(ids);
        gateway.load().unwrap();
        gateway
    }

    /// Another worker of the same host, which has loaded the same values.
    fn another_worker(&self, health: &Value) -> Self {
        let file =
            json!({"services": {"chat": {"balance": {"strategy": "best"}, "health": health}}});
        let config = Config::parse(&file.to_string()).unwrap();
        let mut worker = Worker::new(self.board, &config, 8);
        let chat = worker.service("chat").unwrap();
        let (instances, ranking) = (self.instances.clone(), self.ranking.clone());
        let (without_slots, ability) = (self.without_slots, self.ability);
        let mut other =
            Gateway { board: self.board, worker, chat, instances, ranking, without_slots, ability };
        other.load().unwrap();
        other
    }

    fn fail(&mut self, times: u32) {
        for _ in 0..times {
            self.send(1);
            self.end(1, Outcome::Failed);
        }
    }

    fn slot(&self, id: char) -> u32 {
        self.instance(id).slot
    }

    /// Who gets requests.
    fn served(&mut self, requests: usize) -> String {
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..requests {
            ids.extend(self.send(1));
            self.end(1, Outcome::Answered);
        }
        ids.into_iter().collect()
    }
}

#[test]
fn five_failures_in_a_row_eject_for_all_workers_at_once() {
    let mut gateway = Gateway::with_health("best", &json!({}), "abc");
    let mut other = gateway.another_worker(&json!({}));
    gateway.fail(4);
    assert_eq!((gateway.served(1), gateway.board.ejected(gateway.id())), ("a".into(), 0));
    gateway.fail(3);
    other.fail(1);
    assert_eq!(other.served(1), "a", "an answer came between them");
    gateway.fail(4);
    assert_eq!(other.board.ejected(gateway.id()), 0);
    other.fail(1);
    assert_eq!((gateway.served(1), other.served(1)), ("b".into(), "b".into()));
    let ejection = gateway.board.ejection(gateway.slot('a')).unwrap();
    assert_eq!(ejection.reason, board::Reason::ConsecutiveFailures);
    let left_ms = ejection.until_ms - board::monotonic_ms();
    assert!((29_000..=33_000).contains(&left_ms), "{left_ms}");
}

#[test]
fn a_try_that_moved_on_counts_towards_the_failures_in_a_row() {
    let mut gateway = Gateway::with_health("best", &json!({}), "abc");
    for _ in 0..5 {
        assert_eq!((gateway.send(1), gateway.resend(1)), (Some('a'), Some('b')));
        gateway.end(1, Outcome::Answered);
    }
    assert_eq!((gateway.send(1), gateway.resend(1)), (Some('b'), Some('c')));
}

#[test]
fn no_strategy_picks_the_ejected_while_another_is_left_and_each_does_when_none_is() {
    for strategy in Strategy::all() {
        let mut gateway = Gateway::with_health(strategy.as_str(), &json!({}), "abcd");
        let (slot, identity) = (gateway.slot('b'), {
            let b = gateway.instance('b');
            board::identity("chat", &b.id, &b.addr)
        });
        let now_ms = board::monotonic_ms();
        assert!(gateway.board.eject(
            (slot, identity),
            1,
            board::Reason::SuccessRate,
            now_ms,
            |_| 60_000
        ));
        for key in 0..200 {
            let request = Request { key: Some(key), ..first_try(1) };
            let choice = gateway.worker.balance(gateway.chat, request);
            let Choice::Peer { port: first, .. } = choice else { panic!("{strategy:?}") };
            assert_ne!(letter(first), 'b', "{strategy:?}");
            gateway.end(1, Outcome::Answered);
        }
        gateway.send(1);
        let rest: Vec<_> = (0..4).map(|_| gateway.resend(1)).collect();
        assert_eq!(rest[2..], [Some('b'), None], "{strategy:?}: the last resort");
    }
}

#[test]
fn with_too_few_healthy_the_ejected_get_requests_before_the_ranking_says_so() {
    let health = json!({"max_ejected": 100});
    let mut gateway = Gateway::with_health("best", &health, "abcd");
    gateway.fail(5);
    gateway.fail(5);
    assert_eq!((gateway.served(1), gateway.board.ejected(gateway.id())), ("c".into(), 2));
    gateway.fail(5);
    assert_eq!((gateway.served(1), gateway.board.ejected(gateway.id())), ("a".into(), 3));

    let never = json!({"max_ejected": 100, "panic": 0});
    let mut gateway = Gateway::with_health("best", &never, "abcd");
    gateway.fail(15);
    assert_eq!(gateway.served(1), "d");
}

#[test]
fn no_more_than_a_tenth_and_one_in_any_case_are_ejected() {
    let mut gateway = Gateway::with_health("best", &json!({}), "abc");
    gateway.fail(5);
    gateway.fail(20);
    assert_eq!((gateway.served(1), gateway.board.ejected(gateway.id())), ("b".into(), 1));
    let mut gateway = Gateway::with_health("best", &json!({"max_ejected": 0}), "abc");
    gateway.fail(20);
    assert_eq!(gateway.served(1), "a");
    let mut gateway = Gateway::with_health("best", &json!({"consecutive_failures": 0}), "abc");
    gateway.fail(20);
    assert_eq!(gateway.served(1), "a");
}

#[test]
fn when_an_ejection_is_over_the_first_request_decides() {
    let health = json!({"base_ejection": "100ms"});
    let mut gateway = Gateway::with_health("best", &health, "abc");
    gateway.fail(5);
    assert_eq!(gateway.served(1), "b");
    let until_ms = gateway.board.ejection(gateway.slot('a')).unwrap().until_ms;
    while board::coarse_ms() < until_ms {
        std::thread::yield_now();
    }
    assert_eq!(gateway.send(1), Some('a'), "though nobody has taken it back");
    gateway.end(1, Outcome::Failed);
    gateway.board.take_back(gateway.slot('a'), board::monotonic_ms());
    gateway.fail(1);
    assert_eq!(gateway.served(1), "b", "again, by one failure more");
    assert_eq!(gateway.board.times_ejected(gateway.slot('a')), 2);
    gateway.board.take_back(gateway.slot('a'), board::monotonic_ms());
    assert_eq!(gateway.served(1), "a");
    gateway.fail(4);
    assert_eq!(gateway.served(1), "a", "an answer has wiped the slate clean");
}

#[test]
fn what_counts_as_a_failure_is_configured_for_each_service() {
    let mut gateway = Gateway::with_health("best", &json!({"failures": ["404"]}), "abc");
    let end_by = |gateway: &mut Gateway, status: u16| {
        gateway.send(1);
        if gateway.worker.finish(1, status) == End::Unclear {
            let addr = gateway.worker.flights[&1].addr.unwrap().to_string();
            let (addrs, statuses) = (addr.as_bytes(), status.to_string());
            let tries = Tries { addrs, statuses: statuses.as_bytes(), ..Tries::default() };
            gateway.worker.finish_by_tries(1, status, &tries);
        }
    };
    for _ in 0..5 {
        end_by(&mut gateway, 500);
    }
    assert_eq!((gateway.counted('a').1, gateway.served(1)), (0, "a".into()));
    for _ in 0..4 {
        end_by(&mut gateway, 404);
    }
    assert_eq!(gateway.send(1), Some('a'));
    let moved_on = Request { is_retry: true, moved_on_from: 404, ..first_try(1) };
    gateway.worker.balance(gateway.chat, moved_on);
    gateway.end(1, Outcome::Answered);
    assert_eq!((gateway.counted('a').1, gateway.served(1)), (5, "b".into()));
}

#[test]
fn a_panic_is_what_the_ranking_says_it_is() {
    let mut gateway = Gateway::ranked("best", 2, "ab");
    let view = |gateway: &Gateway| {
        let text = gateway.worker.best(gateway.chat, 9, 1500).unwrap();
        let view: Value = serde_json::from_str(&text).unwrap();
        view["panic"].clone()
    };
    assert_eq!(view(&gateway), Value::Null);
    for (factor, expected) in [(0.0, Value::Null), (1.0, json!(true))] {
        gateway.publish("ab");
        let (version, body) = value::open(gateway.ranking.as_ref().unwrap()).unwrap();
        let mut ranking = RankingValue::decode(body).unwrap();
        ranking.records[0] = Record { state: State::Ejected, factor, ..ranking.records[0] };
        gateway.ranking = Some(seal(version, &ranking.encode()));
        gateway.load().unwrap();
        assert_eq!(view(&gateway), expected);
    }
}
