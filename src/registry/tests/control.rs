use super::*;

fn key() -> Key {
    Key::Control { service: "chat".into() }
}

impl Fixture {
    fn control(&mut self, value: &str) {
        self.put(&key(), value.into());
    }

    /// Who wrote what is in force.
    fn in_force(&self) -> Option<&str> {
        self.registry.control("chat").map(|control| control.by.as_str())
    }
}

fn of_two() -> Fixture {
    let mut fixture = Fixture::new(&[]);
    for (id, port) in [("a", 1), ("b", 2)] {
        fixture.put_instance(&instance(id, port));
    }
    fixture.registry.take_urgent();
    fixture
}

#[test]
fn who_is_drained_or_disabled_is_not_offered_and_that_does_not_wait() {
    let mut fixture = of_two();
    fixture.control(r#"{"drain": ["a"]}"#);
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    assert_eq!(fixture.ids(), ["b"]);
    fixture.control(r#"{"disable": ["b"]}"#);
    assert_eq!(fixture.ids(), ["a"]);
    fixture.delete(&key());
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    assert_eq!(fixture.ids(), ["a", "b"]);
}

#[test]
fn a_bad_value_leaves_the_last_good_one_and_is_counted() {
    let mut fixture = of_two();
    fixture.control(r#"{"drain": ["a"], "by": "ann"}"#);
    fixture.control(r#"{"drain": ["b"], "by": 7}"#);
    assert_eq!((fixture.in_force(), fixture.bad("control")), (Some("ann"), 1));
    assert_eq!(fixture.ids(), ["b"]);
}

#[test]
fn a_list_without_it_ends_it() {
    let mut fixture = of_two();
    fixture.control(r#"{"by": "ann"}"#);
    let a = (&instance_key("chat", "a"), wire::encode_instance(&instance("a", 1)), 11);
    fixture.list(20, &[a]);
    assert_eq!(fixture.in_force(), None);
}

#[test]
fn one_that_came_before_the_services_first_instance_is_in_force_for_it() {
    let discover = Discover::All;
    let mut fixture = Fixture::with(Config { discover, ..Config::default() });
    fixture.control(r#"{"drain": ["a"]}"#);
    for (id, port) in [("a", 1), ("b", 2)] {
        fixture.put_instance(&instance(id, port));
    }
    assert_eq!(fixture.ids(), ["b"]);
}

#[test]
fn it_lapses_at_its_time() {
    let mut fixture = of_two();
    let at = |time| humantime::format_rfc3339(time).to_string();
    let future = SystemTime::now() + Duration::from_secs(3600);
    fixture.control(&format!(r#"{{"drain": ["a"], "expires": "{}"}}"#, at(future)));
    fixture.pass(1000);
    assert_eq!(fixture.ids(), ["b"]);
    let control = fixture.registry.controls.get_mut("chat").unwrap();
    control.expires = Some(SystemTime::UNIX_EPOCH);
    assert_eq!(fixture.ids(), ["a", "b"], "at once");
    fixture.registry.take_dirty();
    fixture.pass(1000);
    assert_eq!(fixture.registry.take_dirty(), ["chat"], "so that it is published");
}

#[test]
fn one_that_has_lapsed_ends_the_one_before_and_is_not_revived_by_a_list() {
    let mut fixture = of_two();
    let [a, b] = ["a", "b"].map(|id| instance_key("chat", id));
    let lapsed = br#"{"drain": ["a"], "expires": "2001-01-01T00:00:00Z", "by": "ann"}"#.to_vec();
    fixture.control(r#"{"drain": ["b"], "by": "bob"}"#);
    fixture.registry.take_urgent();
    fixture.put(&key(), lapsed.clone());
    assert_eq!(
        (fixture.ids(), fixture.registry.take_urgent()),
        (vec!["a".into(), "b".into()], vec!["chat".into()])
    );
    fixture.pass(1000);
    fixture.registry.take_dirty();
    let revision = fixture.revision;
    let log = logged(|| {
        fixture.apply(Event::Audit);
        let value = |id, port| wire::encode_instance(&instance(id, port));
        fixture.list(
            revision,
            &[(&key(), lapsed, revision), (&a, value("a", 1), 11), (&b, value("b", 2), 12)],
        );
        assert!(fixture.registry.controls.is_empty());
        fixture.pass(1000);
    });
    assert_eq!(log, "");
    assert!(fixture.registry.take_urgent().is_empty() && fixture.registry.take_dirty().is_empty());
}

#[test]
fn a_control_of_another_gateways_service_is_not_kept() {
    let mut fixture = of_two();
    fixture.put(&Key::Control { service: "mail".into() }, b"{}".to_vec());
    assert!(fixture.registry.control("mail").is_none());
    assert_eq!(fixture.bad("unknown_service"), 1);
}

#[test]
fn the_operators_rules_stand_in_place_of_the_files_until_they_go() {
    let rules = |name: &str| format!(r#"[{{"name": "{name}", "to": {{"v": "2"}}}}]"#);
    let file = format!(r#"{{"services": {{"chat": {{"rules": {}}}}}}}"#, rules("file"));
    let config = Config::parse(&file).unwrap();
    let mut registry = Registry::new(&config, Instant::now());
    let mut revision = 0;
    let mut put = |registry: &mut Registry, value: String| {
        revision += 1;
        let key = key().to_path(&config.etcd.prefix).into_bytes();
        let event = Event::Put { key, value: value.into_bytes(), mod_revision: revision };
        registry.apply(&event, Instant::now());
    };
    let names = |registry: &Registry| -> Vec<String> {
        registry.rules("chat").iter().map(|rule| rule.name.clone()).collect()
    };
    assert_eq!(names(&registry), ["file"]);
    put(&mut registry, format!(r#"{{"rules": {}}}"#, rules("control")));
    assert_eq!(names(&registry), ["control"]);
    assert!(registry.take_urgent().contains(&"chat".to_owned()));
    put(&mut registry, r#"{"rules": [{"name": "bad"}]}"#.into());
    assert_eq!(names(&registry), ["control"]);
    put(&mut registry, r#"{"rules": []}"#.into());
    assert_eq!(names(&registry), [] as [&str; 0]);
    put(&mut registry, "{}".into());
    assert_eq!(names(&registry), ["file"]);
    assert_eq!(registry.rules("mail"), []);
}

#[test]
fn the_labels_are_those_of_the_registration_in_force_and_a_change_does_not_wait() {
    let mut fixture = of_two();
    let labels = BTreeMap::from([("version".to_owned(), "2".to_owned())]);
    fixture.put_instance(&Instance { labels: labels.clone(), ..instance("a", 1) });
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    assert_eq!(fixture.registry.labels("chat", "a"), Some(&labels));
    assert_eq!(fixture.registry.labels("chat", "b"), Some(&BTreeMap::new()));
    assert_eq!(fixture.registry.labels("chat", "x"), None);
}
