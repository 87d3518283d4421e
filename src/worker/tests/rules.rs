//! Routing rules, from the values to where requests go and why.

use super::*;

impl Gateway {
    /// Stores and announces these instances, each with the rules that select it.
    fn publish_routed(&mut self, rules: &Value, instances: &[(char, u16)]) {
        self.store_routed(rules, instances);
        let version = self.board.version(self.id()) + 1;
        self.board.set_version(self.id(), version, version);
    }

    fn store_routed(&mut self, rules: &Value, instances: &[(char, u16)]) {
        let weighted: Vec<(char, f64)> = instances.iter().map(|&(id, _)| (id, 1.0)).collect();
        self.store(&weighted);
        let (version, body) = value::open(self.instances.as_deref().unwrap()).unwrap();
        let mut body: Value = serde_json::from_slice(body).unwrap();
        body["rules"] = rules.clone();
        body["groups"] = instances.iter().map(|&(_, groups)| groups).collect();
        self.instances = Some(seal(version, body.to_string().as_bytes()));
    }

    /// Where a request that these rules take goes.
    fn route(&mut self, request: usize, rules: u16, is_retry: bool) -> Option<char> {
        if self.worker.due(self.chat) != Due::Nothing {
            self.load().unwrap();
        }
        let request = Request { is_retry, rules, ..first_try(request) };
        match self.worker.balance(self.chat, request) {
            Choice::Peer { port, .. } => Some(letter(port)),
            Choice::Refused { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    fn why(&self) -> (String, u32, Option<u32>, Reason) {
        let why = self.worker.explain(0).unwrap();
        (why.instance.to_owned(), why.tries, why.rule, why.reason)
    }

    fn requests_by_rule(&self) -> Vec<(&str, u64)> {
        self.worker.rule_requests().map(|(_, rule, requests)| (rule, requests)).collect()
    }
}

fn two_rules() -> Value {
    json!([{"name": "one", "to": {"v": "2"}}, {"name": "two", "to": {"v": "3"}}])
}

fn routed() -> Gateway {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    gateway.publish_routed(&two_rules(), &[('a', 0), ('b', 0b01), ('c', 0b10)]);
    gateway
}

#[test]
fn a_retry_stays_with_the_rules_of_the_first_try_and_ends_with_any() {
    let mut gateway = routed();
    assert_eq!(gateway.route(1, 0b01, false), Some('b'));
    assert_eq!(gateway.why(), ("b".into(), 1, Some(0), Reason::Rule));
    // What a draw by chance says the second time is not asked.
    assert_eq!(gateway.route(1, 0b10, true), Some('a'), "the rest");
    assert_eq!(gateway.why(), ("a".into(), 2, None, Reason::Strategy));
    assert_eq!(gateway.route(1, 0b10, true), Some('c'), "any");
    assert_eq!(gateway.route(1, 0b10, true), None);
    assert_eq!(gateway.why(), (String::new(), 3, None, Reason::Nothing));
    assert_eq!(gateway.requests_by_rule(), [("one", 1), ("two", 0)]);
}

#[test]
fn rules_of_another_version_are_those_that_lua_says_anew() {
    let mut gateway = routed();
    assert_eq!(gateway.route(1, 0b01, false), Some('b'));
    let turned = json!([two_rules()[1], two_rules()[0]]);
    gateway.publish_routed(&turned, &[('a', 0), ('b', 0b10), ('c', 0b01), ('d', 0b10)]);
    assert_eq!(gateway.route(1, 0b10, true), Some('d'), "rule one still, by its new number");
}

#[test]
fn a_rules_requests_are_counted_by_its_name_wherever_it_stands() {
    let mut gateway = routed();
    (1..4).for_each(|request| _ = gateway.route(request, 0b01, false));
    gateway.route(9, 0b10, false);
    let turned = json!([two_rules()[1], two_rules()[0]]);
    gateway.publish_routed(&turned, &[('a', 0), ('b', 0b10), ('c', 0b01)]);
    gateway.load().unwrap();
    assert_eq!(gateway.requests_by_rule(), [("two", 1), ("one", 3)]);
    let page = gateway.best(0, 0).unwrap();
    assert_eq!(
        page["rules"][1],
        json!({"name": "one", "to": {"v": "2"}, "percent": 100.0,
                                        "selected": 1, "requests": 3})
    );
}

#[test]
fn a_retry_within_a_rule_is_no_further_request_of_it() {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    gateway.publish_routed(&two_rules(), &[('a', 0), ('b', 0b01), ('c', 0b01)]);
    assert_eq!(gateway.route(1, 0b01, false), Some('b'));
    assert_eq!(gateway.route(1, 0b01, true), Some('c'));
    assert_eq!(gateway.why(), ("c".into(), 2, Some(0), Reason::Rule));
    assert_eq!(gateway.requests_by_rule(), [("one", 1), ("two", 0)]);
}

#[test]
fn where_every_instance_is_selected_requests_of_no_rule_go_to_any() {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    gateway.publish_routed(&two_rules(), &[('a', 0b01), ('b', 0b10)]);
    assert_eq!(gateway.route(1, 0, false), Some('a'));
    assert_eq!(gateway.why().2, None);
    assert_eq!(gateway.route(1, 0, true), Some('b'));
}

#[test]
fn the_rules_are_told_as_long_as_there_are_some() {
    let mut gateway = Gateway::ranked("best", 2, "a");
    assert_eq!(gateway.worker.rules(gateway.chat), None);
    gateway.publish_routed(&two_rules(), &[('a', 0)]);
    gateway.load().unwrap();
    let told = gateway.worker.rules(gateway.chat).unwrap();
    assert!(told.starts_with(r#"[{"name":"one","to":{"v":"2"}"#), "{told}");
    gateway.publish("a");
    gateway.load().unwrap();
    assert_eq!(gateway.worker.rules(gateway.chat), None);
}

#[test]
fn rules_without_a_group_for_each_instance_are_refused_whole_and_the_old_ones_stay() {
    let mut gateway = routed();
    gateway.load().unwrap();
    gateway.publish("ab");
    let body = value::open(gateway.instances.as_deref().unwrap()).unwrap().1;
    let mut body: Value = serde_json::from_slice(body).unwrap();
    (body["rules"], body["groups"]) = (two_rules(), json!([1]));
    gateway.instances = Some(seal(2, body.to_string().as_bytes()));
    let error = gateway.load().unwrap_err().to_string();
    assert_eq!(error, "the body is not valid: 1 groups, expected 2");
    let request = Request { rules: 0b10, ..first_try(1) };
    let choice = gateway.worker.balance(gateway.chat, request);
    assert!(matches!(choice, Choice::Peer { port: 9003, .. }), "{choice:?}");
}

#[test]
fn an_instance_that_serves_because_too_few_are_healthy_says_so() {
    let mut gateway = Gateway::new(&json!({"strategy": "best"}));
    for (factor, reason) in [(1.0, Reason::Panic), (0.0, Reason::Strategy)] {
        gateway.publish("a");
        let (version, body) = value::open(gateway.ranking.as_deref().unwrap()).unwrap();
        let mut ranking = RankingValue::decode(body).unwrap();
        ranking.records[0].state = State::Failing;
        (ranking.records[0].factor, ranking.records[0].weight) = (factor, f64::from(factor));
        gateway.ranking = Some(seal(version, &ranking.encode()));
        assert_eq!(gateway.send(version as usize), Some('a'));
        assert_eq!(gateway.why().3, reason, "factor {factor}");
    }
}
