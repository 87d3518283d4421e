use super::*;
use crate::wire::checks::{Failing, encode_checks};

fn key(gateway: &str) -> Key {
    Key::Checks { gateway: gateway.into(), service: "chat".into() }
}

/// A gateway for `chat`, with this in its `check`.
fn checking(check: &str) -> Fixture {
    let text = format!(r#"{{"services": {{"chat": {{"check": {check}}}}}}}"#);
    let mut fixture = Fixture::with(Config::parse(&text).unwrap());
    fixture.registry.take_urgent();
    fixture
}

fn sharing() -> Fixture {
    checking(r#"{"tcp": true, "by": "one"}"#)
}

fn checks(revision: i64) -> Checks {
    let failing =
        Failing { addr: ([10, 0, 0, 1], 1).into(), since_unix_ms: 1, reason: "timeout".into() };
    Checks { revision, follows: None, failing: BTreeMap::from([("a".to_owned(), failing)]) }
}

impl Fixture {
    fn say(&mut self, gateway: &str, checks: &Checks) {
        self.put(&key(gateway), encode_checks(checks));
    }

    fn sharers(&self) -> (Vec<&str>, i64) {
        let sharers = self.registry.sharers("chat");
        (sharers.checks.keys().map(String::as_str).collect(), sharers.since)
    }
}

#[test]
fn what_a_gateway_says_is_known_with_the_revision_at_which_one_came_or_left_last() {
    let mut fixture = sharing();
    assert_eq!(fixture.sharers(), (vec![], 0));
    fixture.say("gw-1", &checks(10));
    let first = fixture.revision;
    assert_eq!(fixture.sharers(), (vec!["gw-1"], first));
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    fixture.say("gw-1", &checks(20));
    assert_eq!(fixture.sharers(), (vec!["gw-1"], first), "a word is no coming");
    assert_eq!(fixture.registry.sharers("chat").checks["gw-1"], checks(20));
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    fixture.say("gw-2", &checks(20));
    assert_eq!(fixture.sharers(), (vec!["gw-1", "gw-2"], fixture.revision));
    fixture.registry.take_urgent();
    fixture.delete(&key("gw-1"));
    assert_eq!(fixture.sharers(), (vec!["gw-2"], fixture.revision));
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
}

#[test]
fn bad_checks_leave_the_last_good_ones_and_are_counted() {
    let mut fixture = sharing();
    fixture.say("gw-1", &checks(10));
    fixture.put(&key("gw-1"), br#"{"revision":11,"failing":{"a":{"addr":"host:1"}}}"#.to_vec());
    fixture.put(&key("gw-2"), b"?".to_vec());
    assert_eq!(fixture.registry.sharers("chat").checks["gw-1"], checks(10));
    assert_eq!((fixture.sharers().0, fixture.bad("checks")), (vec!["gw-1"], 2));
    fixture.delete(&key("gw-1"));
    assert!(fixture.sharers().0.is_empty());
}

#[test]
fn a_list_without_a_gateway_ends_it() {
    let mut fixture = sharing();
    fixture.say("gw-1", &checks(10));
    fixture.say("gw-2", &checks(10));
    fixture.list(20, &[(&key("gw-2"), encode_checks(&checks(12)), 12)]);
    assert_eq!(fixture.sharers().0, ["gw-2"]);
}

#[test]
fn where_etcd_was_restored_the_last_coming_is_no_later_than_what_it_holds_now() {
    let mut fixture = sharing();
    fixture.revision = 1000;
    fixture.say("gw-1", &checks(1000));
    fixture.say("gw-2", &checks(1000));
    let word = |revision| encode_checks(&checks(revision));
    fixture.list(2000, &[(&key("gw-1"), word(1000), 1001), (&key("gw-2"), word(1000), 1002)]);
    assert_eq!(fixture.sharers(), (vec!["gw-1", "gw-2"], 1002), "a list says nothing new");
    fixture.list(5, &[(&key("gw-1"), word(3), 4)]);
    assert_eq!(fixture.sharers(), (vec!["gw-1"], 5));
}

#[test]
fn where_checks_are_not_shared_other_gateways_words_are_nothing() {
    for check in ["{}", r#"{"tcp": true}"#] {
        let mut fixture = checking(check);
        fixture.say("gw-1", &checks(10));
        let of_mail = Key::Checks { gateway: "gw-1".into(), service: "mail".into() };
        fixture.put(&of_mail, b"?".to_vec());
        assert!(fixture.sharers().0.is_empty());
        assert!(fixture.registry.bad_records().is_empty());
        assert!(fixture.registry.take_urgent().is_empty());
    }
}
