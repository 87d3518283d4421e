//! A service that loses most of its instances at once.

use super::*;
use crate::registry::guard::{Figures, Outcome};

impl Fixture {
    /// With the guard as it is by default.
    fn guarded() -> Self {
        let services = BTreeMap::from([("chat".to_owned(), ServiceConfig::default())]);
        Self::with(Config { services, ..Config::default() })
    }

    /// Of `count` instances, that have been there for long.
    fn guarded_with(count: u16) -> Self {
        let mut fixture = Self::guarded();
        fixture.list(10, &[]);
        for n in 0..count {
            fixture.put_instance(&numbered(n));
        }
        fixture.pass(60_000);
        fixture.registry.take_dirty();
        fixture.registry.take_urgent();
        fixture
    }

    fn delete_all(&mut self, numbers: std::ops::Range<u16>) {
        numbers.for_each(|n| self.delete_instance(&numbered(n).id));
    }

    /// A list of these.
    fn relist(&mut self, numbers: std::ops::Range<u16>) {
        self.revision += 1;
        let revision = self.revision;
        let records: Vec<_> = numbers
            .map(|n| {
                let instance = numbered(n);
                (instance_key("chat", &instance.id), wire::encode_instance(&instance), 11)
            })
            .collect();
        let records: Vec<_> = records.iter().map(|(k, v, r)| (k, v.clone(), *r)).collect();
        self.list(revision, &records);
    }

    fn doubtful(&mut self) -> Vec<String> {
        self.ids();
        let doubtful = self.registry.doubtful("chat").into_iter().flat_map(|(_, all)| all);
        doubtful.map(|it| it.id.clone()).collect()
    }

    fn refute(&mut self, n: u16) {
        let Instance { id, addr, .. } = numbered(n);
        self.registry.refute("chat", &id, addr, Outcome::Dead);
    }

    fn figures(&self) -> &Figures {
        self.registry.guards()
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.figures().outcomes.get(outcome.as_str()).copied().unwrap_or(0)
    }
}

fn numbered(n: u16) -> Instance {
    instance(&format!("i{n:02}"), 9000 + n)
}

fn names(numbers: std::ops::Range<u16>) -> Vec<String> {
    numbers.map(|n| numbered(n).id).collect()
}

#[test]
fn most_that_are_deleted_at_once_stay_and_show_as_doubtful() {
    let mut gateway = Fixture::guarded_with(10);
    gateway.delete_all(0..8);
    assert_eq!(gateway.ids(), names(0..10));
    assert_eq!(gateway.state("i00"), Some(State::Doubtful));
    assert_eq!(gateway.state("i09"), Some(State::Unreported));
    assert_eq!(gateway.doubtful(), names(0..8));
    assert_eq!(gateway.figures().doubtful["chat"], 8);
    assert_eq!(gateway.figures().trips, 1);
    assert_eq!(gateway.registry.take_urgent(), ["chat"]);
    assert!(gateway.registry.wants_list());
}

#[test]
fn half_of_them_and_one_of_two_leave_at_once_and_the_last_one_does_not() {
    let mut gateway = Fixture::guarded_with(10);
    gateway.delete_all(0..5);
    assert_eq!(gateway.ids(), names(5..10));
    let mut gateway = Fixture::guarded_with(2);
    gateway.delete_all(0..1);
    assert_eq!(gateway.ids(), names(1..2));
    let mut gateway = Fixture::guarded_with(1);
    gateway.delete_all(0..1);
    assert_eq!(gateway.ids(), names(0..1), "until it refuses");
    gateway.refute(0);
    assert!(gateway.ids().is_empty());
}

#[test]
fn a_rolling_restart_disturbs_nobody() {
    let mut gateway = Fixture::guarded_with(3);
    for n in [0, 1, 2, 0, 1, 2] {
        gateway.delete_instance(&numbered(n).id);
        assert_eq!(gateway.ids().len(), 2);
        gateway.pass(1000);
        gateway.put_instance(&numbered(n));
        assert_eq!(gateway.ids().len(), 3);
    }
    assert_eq!(*gateway.figures(), Figures::default());
}

#[test]
fn who_drains_or_wants_no_requests_before_it_goes_is_no_loss() {
    let mut gateway = Fixture::guarded_with(10);
    for n in 0..9 {
        gateway.put_instance(&Instance { drain: true, ..numbered(n) });
        gateway.delete_instance(&numbered(n).id);
    }
    assert_eq!(gateway.ids(), names(9..10));

    let mut gateway = Fixture::guarded_with(10);
    let control = r#"{"drain":["i00","i01","i02","i03","i04"],"disable":["i05","i06"]}"#;
    gateway.put(&Key::Control { service: "chat".into() }, control.into());
    gateway.delete_all(0..7);
    assert_eq!(gateway.registry.known("chat", gateway.now).len(), 3);
    assert_eq!(*gateway.figures(), Figures::default());
}

#[test]
fn who_was_drained_stays_so_when_the_wish_is_lost_with_the_instances() {
    let mut gateway = Fixture::guarded_with(4);
    let (key, value) = (Key::Control { service: "chat".into() }, r#"{"drain":["i00"]}"#);
    gateway.put(&key, value.into());
    gateway.delete(&key);
    gateway.delete_all(0..4);
    assert_eq!(gateway.ids(), names(1..4));
    (1..4).for_each(|n| gateway.put_instance(&numbered(n)));
    assert_eq!(gateway.ids(), names(1..4));
    gateway.put_instance(&numbered(0));
    assert_eq!(gateway.ids(), names(0..4), "all are back, and nobody wishes otherwise");
    // A wish that was taken back before is not remembered.
    gateway.put(&key, value.into());
    gateway.delete(&key);
    gateway.pass(60_000);
    gateway.delete_all(0..4);
    assert_eq!(gateway.ids(), names(0..4));
}

#[test]
fn those_of_the_file_remain_and_count() {
    let mut gateway = Fixture::with(Config {
        services: BTreeMap::from([(
            "chat".to_owned(),
            ServiceConfig { instances: vec![numbered(0), numbered(1)], ..ServiceConfig::default() },
        )]),
        ..Config::default()
    });
    gateway.list(10, &[]);
    (0..4).for_each(|n| gateway.put_instance(&numbered(n)));
    gateway.delete_all(0..4);
    assert_eq!(gateway.ids(), names(0..2), "two are lost of four");
}

#[test]
fn who_moves_to_another_id_or_another_address_is_no_loss() {
    // All at the same addresses under other ids, which come later.
    let mut gateway = Fixture::guarded_with(4);
    gateway.delete_all(0..4);
    assert_eq!(gateway.doubtful().len(), 4);
    for n in 0..4 {
        gateway.put_instance(&Instance { id: format!("new-{n}"), ..numbered(n) });
    }
    assert_eq!(gateway.ids(), ["new-0", "new-1", "new-2", "new-3"]);
    assert!(gateway.registry.bad_records().is_empty(), "no duplicates");
    assert_eq!(gateway.count(Outcome::Replaced), 4);
    // Others are there first, as with blue and green.
    let mut gateway = Fixture::guarded_with(4);
    (10..14).for_each(|n| gateway.put_instance(&numbered(n)));
    gateway.delete_all(0..4);
    assert_eq!(gateway.ids(), names(10..14));
    // Or at the same moment.
    let mut gateway = Fixture::guarded_with(4);
    for n in 0..4 {
        gateway.delete_instance(&numbered(n).id);
    }
    (10..14).for_each(|n| gateway.put_instance(&numbered(n)));
    assert_eq!(gateway.ids(), names(10..14));
    assert_eq!(gateway.figures().trips, 0, "one transaction is judged as a whole");
}

#[test]
fn a_list_that_has_nobody_is_doubted_and_a_second_one_and_time_are_believed() {
    let mut gateway = Fixture::guarded_with(3);
    gateway.relist(0..0);
    assert_eq!(gateway.ids(), names(0..3));
    gateway.pass(120_000);
    assert_eq!(gateway.ids(), names(0..3), "nobody has listed again");
    gateway.relist(0..0);
    assert!(!gateway.registry.wants_list());
    gateway.pass(1000);
    assert!(gateway.ids().is_empty());
    assert_eq!(gateway.count(Outcome::Deregistered), 3);
}

#[test]
fn who_answers_leaves_after_its_time_once_a_second_list_agrees() {
    let mut gateway = Fixture::guarded_with(10);
    gateway.delete_all(0..8);
    gateway.pass(2000);
    gateway.relist(8..10);
    gateway.pass(27_000);
    assert_eq!(gateway.ids(), names(0..10));
    gateway.pass(2000);
    assert_eq!(gateway.ids(), names(8..10));
    assert!(gateway.figures().doubtful.is_empty());
    assert_eq!(gateway.registry.take_urgent(), ["chat"]);
}

#[test]
fn who_is_registered_again_is_as_it_was_with_its_window() {
    let mut gateway = Fixture::guarded();
    gateway.list(10, &[]);
    gateway.put_instance(&reporting("a", 1));
    gateway.put_instance(&reporting("b", 2));
    for _ in 0..3 {
        gateway.second(&["a", "b"]);
    }
    gateway.delete_instance("a");
    gateway.delete_instance("b");
    assert_eq!(gateway.state("a"), Some(State::Doubtful));
    let known = gateway.load("a");
    assert!(known.is_some(), "its reports count on");
    gateway.put_instance(&reporting("a", 1));
    gateway.put_instance(&reporting("b", 2));
    assert_eq!(gateway.state("a"), Some(State::Reporting));
    assert_eq!(gateway.load("a"), known);
    assert_eq!(gateway.count(Outcome::Returned), 2);
}

#[test]
fn an_address_that_is_refused_is_that_of_the_doubtful_one() {
    let mut gateway = Fixture::guarded_with(2);
    gateway.delete_all(0..2);
    gateway.ids();
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 1));
    gateway.registry.refute("chat", "i00", elsewhere, Outcome::Dead);
    assert_eq!(gateway.ids(), names(0..2));
    gateway.put_instance(&numbered(1));
    gateway.refute(1);
    gateway.refute(0);
    assert_eq!(gateway.ids(), names(1..2), "who is registered is not judged by this");
}

#[test]
fn the_first_list_is_believed() {
    let mut gateway = Fixture::guarded();
    (0..4).for_each(|n| gateway.put_instance(&numbered(n)));
    gateway.relist(0..1);
    assert_eq!(gateway.ids(), names(0..1));
}

#[test]
fn what_cannot_be_read_takes_nobody_away_and_an_empty_list_is_another_thing() {
    let mut gateway = Fixture::guarded_with(4);
    // Values that cannot be read.
    let keys: Vec<_> = (0..4).map(|n| instance_key("chat", &numbered(n).id)).collect();
    let bad: Vec<_> = keys.iter().map(|key| (key, b"{".to_vec(), 50)).collect();
    gateway.list(50, &bad);
    assert_eq!(gateway.state("i00"), Some(State::Unreported));
    // A list that breaks off.
    gateway.apply(Event::Init);
    gateway.apply(Event::State(WatchState::Backoff));
    gateway.pass(60_000);
    assert_eq!(gateway.state("i00"), Some(State::Unreported));
    assert_eq!(gateway.figures().trips, 0);
    gateway.list(60, &[]);
    assert_eq!(gateway.state("i00"), Some(State::Doubtful));
}

#[test]
fn an_exporter_that_dies_takes_its_reports_with_it_and_nobody_else() {
    let mut gateway = Fixture::guarded();
    gateway.list(10, &[]);
    for n in 0..4 {
        gateway.put_instance(&reporting(&numbered(n).id, 9000 + n));
    }
    gateway.second(&["i00", "i01", "i02", "i03"]);
    gateway.delete(&batch_key("chat"));
    gateway.pass(60_000);
    assert_eq!(gateway.ids(), names(0..4));
    assert_eq!(gateway.state("i00"), Some(State::Unknown));
    assert_eq!(*gateway.figures(), Figures::default());
    // Those that it had registered, with its lease.
    gateway.delete_all(0..4);
    assert_eq!(gateway.ids(), names(0..4));
}

#[test]
fn a_discovered_service_exists_until_the_last_doubt_ends() {
    let config = Config { discover: Discover::All, ..Config::default() };
    let mut gateway = Fixture::with(config);
    gateway.list(10, &[]);
    gateway.put_instance(&numbered(0));
    gateway.delete_all(0..1);
    assert_eq!(gateway.ids(), names(0..1));
    gateway.refute(0);
    assert!(gateway.registry.service("chat", gateway.now).is_none());
    assert_eq!(gateway.registry.take_urgent(), ["chat"]);
    assert!(gateway.figures().doubtful.is_empty());
}

#[test]
fn what_an_earlier_thread_doubted_is_doubtful_again_unless_more_is_known() {
    let mut gateway = Fixture::guarded_with(2);
    let taken = Instance { id: "other".into(), ..numbered(1) };
    let doubtful = vec![numbered(0), taken, numbered(5), numbered(6)];
    gateway.registry.recall("chat", doubtful, gateway.now);
    assert_eq!(gateway.doubtful(), names(5..7));
    assert_eq!(gateway.ids(), ["i00", "i01", "i05", "i06"]);
    gateway.relist(0..2);
    assert_eq!(gateway.ids(), names(0..2), "two of four are no mass loss");

    let mut gateway = Fixture::guarded();
    gateway.list(10, &[]);
    gateway.registry.recall("chat", vec![numbered(5)], gateway.now);
    gateway.relist(0..0);
    assert_eq!(gateway.ids(), names(5..6));
    gateway.pass(31_000);
    assert!(gateway.ids().is_empty());
    gateway.registry.recall("none", vec![numbered(5)], gateway.now);
    assert!(gateway.registry.service("none", gateway.now).is_none());
}

#[test]
fn one_line_says_that_a_guard_holds_and_one_how_it_ended() {
    let mut gateway = Fixture::guarded_with(10);
    let log = logged(|| {
        gateway.delete_all(1..5);
        gateway.delete_all(5..10);
        gateway.ids();
        gateway.put_instance(&numbered(1));
        (2..5).for_each(|n| gateway.refute(n));
        gateway.pass(31_000);
        gateway.relist(0..2);
        gateway.pass(1000);
    });
    assert_eq!(log.matches("chat: etcd lost 9 of 10 instances at once").count(), 1, "{log}");
    let end = "chat: no instance is doubtful any more (returned: 1, dead: 3, deregistered: 5)";
    assert_eq!(log.matches(end).count(), 1, "{log}");
}
