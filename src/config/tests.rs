use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::model::StatusProtocol;

const REFERENCE: &str = include_str!("../../doc/configuration.md");

fn refusal(text: &str) -> String {
    match Config::parse(text) {
        Err(err) => err.to_string(),
        Ok(config) => panic!("{text} must be refused, and is read as {config:?}"),
    }
}

/// Each text must be refused with its message, wherever in the text that is.
fn assert_refused(table: &[(&str, &str)]) {
    for (text, expected) in table {
        let message = refusal(text);
        let message = message.rsplit_once(" at line ").map_or(&*message, |(start, _)| start);
        assert_eq!(message, *expected, "for {text}");
    }
}

/// A file with `value`, a JSON text, at `path`, beside the least that the path
/// needs.
fn file_with(path: &str, value: &str) -> String {
    // By hand: a `serde_json::Value` would not keep numbers as they are written.
    let mut text = value.to_owned();
    for key in path.rsplit('.') {
        text = match key.strip_suffix("[]") {
            Some(list) => format!(r#"{{"{list}": [{text}]}}"#),
            None => format!(r#"{{"{key}": {text}}}"#),
        };
    }
    text
}

#[test]
fn a_file_with_empty_services_alone_is_all_defaults() {
    assert_eq!(Config::parse(r#"{"services": {}}"#).unwrap(), Config::default());
}

#[test]
fn an_empty_section_is_its_defaults() {
    let text = r#"{"etcd": {"tls": {}}, "window": {}, "snapshot": {}, "fallback": {}, "exporter": {},
                   "services": {"chat": {"balance": {}, "score": {}, "instances": []}}}"#;
    let services = BTreeMap::from([("chat".to_owned(), ServiceConfig::default())]);
    assert_eq!(Config::parse(text).unwrap(), Config { services, ..Config::default() });
}

#[test]
fn the_reference_s_sample_means_what_it_says() {
    let sample = REFERENCE.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let chat = ServiceConfig {
        instances: vec![Instance {
            id: "chat-1".into(),
            addr: SocketAddr::from(([127, 0, 0, 1], 9001)),
            weight: 2.0,
            zone: String::new(),
            labels: BTreeMap::new(),
            status: Some(StatusUrl {
                protocol: StatusProtocol::Grpc,
                tls: false,
                authority: "127.0.0.1:9101".into(),
            }),
            drain: false,
            max_in_flight: 0,
        }],
        ..ServiceConfig::default()
    };
    let expected = Config {
        snapshot: SnapshotConfig { path: "/var/lib/ipconfig/snapshot".into() },
        services: BTreeMap::from([("chat".into(), chat)]),
        ..Config::default()
    };
    assert_eq!(Config::parse(sample).unwrap(), expected);
}

#[test]
fn every_key_is_read_into_its_field() {
    let text = r#"{
        "etcd": {"endpoints": ["https://a.example:2379", "http://[::1]:2379"], "prefix": "/p",
                 "prefixes": {"west": "/west"},
                 "username": "u", "password_file": "/pw",
                 "tls": {"ca": "/ca", "cert": "/cert", "key": "/key"}},
        "window": {"buckets": 60, "bucket": "250ms", "decay": "exponential"},
        "snapshot": {"path": "/snapshot"},
        "allow": ["10.0.0.0/8", "fd00::/8"],
        "discover": ["a", "b*"],
        "fallback": {"after": "1m 30s"},
        "gateway": {"id": "g", "zone": "z"},
        "services": {"s.1_x:y-z": {
            "failure": {"mode": "failcache", "rest": "3s",
                        "budget": {"percent": 30, "reserve": 7, "per_second": 1}},
            "balance": {"strategy": "p2c", "tries": 0, "hash_balance_factor": 1000},
            "score": {"cpu": 1, "memory": 2, "rate": 3, "latency": 4, "errors": 5.5, "memory_unit_mib": 64},
            "status": {"missed": 7, "unreachable": "keep"},
            "health": {"consecutive_failures": 0, "interval": "1s", "base_ejection": "2s",
                       "max_ejection": "3s", "max_ejected": 100, "panic": 0, "failures": ["5xx"],
                       "success_rate": {"stdev": 3, "min_instances": 4, "min_requests": 5},
                       "failure_percentage": {"threshold": 6.5, "min_instances": 7, "min_requests": 8}},
            "guard": {"max_loss": 30, "window": "20s", "hold": "1m"},
            "slow_start": {"window": "1m", "min": 20, "aggression": 2.5},
            "zone": {"prefer": false, "utilization": 70, "floor": 3}, "subset": {"size": 20},
            "check": {"http": "/healthz?full=1", "interval": "5s", "timeout": "2s", "rise": 4, "fall": 5,
                      "port": 8081, "host": "chat.example:80", "status": ["4xx", "5xx"], "by": "one"},
            "rules": [{"name": "r", "to": {"version": "1.4"}, "percent": 5}],
            "instances": [{"id": "i", "addr": "[fd00::5]:8080", "weight": 0.5, "zone": "z",
                           "labels": {"version": "1.4"}, "status": "orcas://host:1", "drain": true, "max_in_flight": 9}]}},
        "exporter": {"id": "e", "interval": "2s", "timeout": "2s", "retries": 0, "listen": "[::]:1",
                     "lease_ttl": "3s", "deadband": 0.5, "refresh": "1s",
                     "tls": {"ca": "/ca2", "cert": "/cert2", "key": "/key2"}}
    }"#;
    let service = ServiceConfig {
        failure: FailureConfig {
            mode: FailureMode::Failcache,
            rest: Duration::from_secs(3),
            budget: BudgetConfig { percent: 30, reserve: 7, per_second: 1 },
        },
        balance: BalanceConfig { strategy: Strategy::P2c, tries: 0, hash_balance_factor: 1000 },
        score: ScoreConfig {
            cpu: 1.0,
            memory: 2.0,
            rate: 3.0,
            latency: 4.0,
            errors: 5.5,
            memory_unit_mib: 64,
        },
        status: StatusConfig { missed: 7, unreachable: Unreachable::Keep },
        health: HealthConfig {
            consecutive_failures: 0,
            interval: Duration::from_secs(1),
            base_ejection: Duration::from_secs(2),
            max_ejection: Duration::from_secs(3),
            max_ejected: 100,
            success_rate: SuccessRateConfig { stdev: 3.0, min_instances: 4, min_requests: 5 },
            failure_percentage: FailurePercentageConfig {
                threshold: 6.5,
                min_instances: 7,
                min_requests: 8,
            },
            failures: Statuses::of_classes(5..=5),
            panic: 0,
        },
        guard: GuardConfig {
            max_loss: 30,
            window: Duration::from_secs(20),
            hold: Duration::from_mins(1),
        },
        slow_start: SlowStartConfig { window: Duration::from_mins(1), min: 20, aggression: 2.5 },
        zone: ZoneConfig { prefer: false, utilization: 70, floor: 3 },
        subset: SubsetConfig { size: 20 },
        check: CheckConfig {
            http: "/healthz?full=1".into(),
            tcp: false,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 4,
            fall: 5,
            port: 8081,
            host: "chat.example:80".into(),
            status: Statuses::of_classes(4..=5),
            by: CheckBy::One,
        },
        rules: vec![Rule {
            name: "r".into(),
            to: BTreeMap::from([("version".into(), "1.4".into())]),
            header: BTreeMap::new(),
            cookie: BTreeMap::new(),
            query: BTreeMap::new(),
            percent: 5.0,
            key: String::new(),
        }],
        instances: vec![Instance {
            id: "i".into(),
            addr: "[fd00::5]:8080".parse().unwrap(),
            weight: 0.5,
            zone: "z".into(),
            labels: BTreeMap::from([("version".into(), "1.4".into())]),
            status: Some("orcas://host:1".parse().unwrap()),
            drain: true,
            max_in_flight: 9,
        }],
    };
    let expected = Config {
        etcd: EtcdConfig {
            endpoints: vec!["https://a.example:2379".into(), "http://[::1]:2379".into()],
            prefix: "/p".into(),
            prefixes: BTreeMap::from([("west".into(), "/west".into())]),
            username: "u".into(),
            password_file: "/pw".into(),
            tls: TlsConfig { ca: "/ca".into(), cert: "/cert".into(), key: "/key".into() },
        },
        window: WindowConfig {
            buckets: 60,
            bucket: Duration::from_millis(250),
            decay: Decay::Exponential,
        },
        snapshot: SnapshotConfig { path: "/snapshot".into() },
        allow: Allow(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]),
        discover: Discover::Names(vec!["a".into(), "b*".into()]),
        fallback: FallbackConfig { after: Duration::from_secs(90) },
        gateway: GatewayConfig { id: "g".into(), zone: "z".into() },
        services: BTreeMap::from([("s.1_x:y-z".into(), service)]),
        exporter: ExporterConfig {
            id: "e".into(),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            retries: 0,
            listen: "[::]:1".parse().unwrap(),
            lease_ttl: Duration::from_secs(3),
            deadband: 0.5,
            refresh: Duration::from_secs(1),
            tls: TlsConfig { ca: "/ca2".into(), cert: "/cert2".into(), key: "/key2".into() },
        },
    };
    assert_eq!(Config::parse(text).unwrap(), expected);
}

#[test]
fn each_strategy_is_read_from_its_name() {
    for (name, strategy) in Strategy::ALL {
        let text = format!(r#"{{"services": {{"s": {{"balance": {{"strategy": "{name}"}}}}}}}}"#);
        assert_eq!(Config::parse(&text).unwrap().services["s"].balance.strategy, *strategy);
        assert_eq!(strategy.as_str(), *name);
    }
}

#[test]
fn a_bound_of_0_is_none() {
    let text = r#"{"services": {"s": {"balance": {"hash_balance_factor": 0}}}}"#;
    assert_eq!(Config::parse(text).unwrap().services["s"].balance.hash_balance_factor, 0);
}

#[test]
fn an_empty_lua_table_is_an_empty_list() {
    let text = r#"{"services": {"chat": {"instances": {}}}, "discover": {}}"#;
    let config = Config::parse(text).unwrap();
    assert_eq!(config.services["chat"].instances, []);
    assert_eq!(config.discover, Discover::Names(Vec::new()));
}

#[test]
fn discover_allows_what_it_names_and_nothing_else() {
    let discover = |value: &str| {
        Config::parse(&format!(r#"{{"services": {{}}, "discover": {value}}}"#)).unwrap().discover
    };
    let allowed = |value, service| discover(value).allows(service);
    assert!(allowed("true", "chat") && !allowed("false", "chat"));
    assert!(allowed(r#"["chat", "mail"]"#, "mail") && !allowed(r#"["chat", "mail"]"#, "mailer"));
    assert!(
        allowed(r#"["team-a.*"]"#, "team-a.chat") && !allowed(r#"["team-a.*"]"#, "team-b.chat")
    );
    assert!(allowed(r#"["*"]"#, "chat") && !allowed("[]", "chat"));
}

#[test]
fn what_is_not_json_is_refused_with_line_and_column() {
    for (text, message) in [
        ("", "not JSON: EOF while parsing a value at line 1 column 0"),
        (
            "{\n  \"services\": {},\n  \"window\": {\"buckets\" 5}\n}",
            "not JSON: expected `:` at line 3 column 24",
        ),
        (r#"{"services": {}"#, "not JSON: EOF while parsing an object at line 1 column 15"),
        (r#"{"services": {}} x"#, "not JSON: trailing characters at line 1 column 18"),
        (r#"{"window": {"buckets": NaN}}"#, "not JSON: expected value at line 1 column 24"),
        (r#"{"window": {"buckets": 1e999}}"#, "not JSON: number out of range at line 1 column 28"),
    ] {
        assert_eq!(refusal(text), message, "for {text}");
    }
}

#[test]
fn a_key_that_is_wrong_by_itself_is_refused_with_line_and_column() {
    assert_eq!(
        refusal("{\n  \"services\": {},\n  \"window\": {\"bucket\": 5}\n}"),
        "window.bucket: invalid type: integer `5`, expected a duration with a unit, \
         such as \"1s\" or \"250ms\", from 100ms to 1m at line 3 column 24"
    );
}

#[test]
fn an_unknown_missing_or_repeated_key_is_refused() {
    assert_refused(&[
        ("{}", "top level: missing field `services`"),
        (
            r#"{"": 1}"#,
            "top level: unknown field ``, expected one of `etcd`, `window`, `snapshot`, \
             `allow`, `discover`, `fallback`, `gateway`, `services`, `exporter`",
        ),
        (
            r#"{"services": {}, "service": {}}"#,
            "service: unknown field `service`, expected one of `etcd`, `window`, `snapshot`, \
             `allow`, `discover`, `fallback`, `gateway`, `services`, `exporter`",
        ),
        (
            r#"{"services": {}, "etcd": {"tls": {"crt": ""}}}"#,
            "etcd.tls.crt: unknown field `crt`, expected one of `ca`, `cert`, `key`",
        ),
        (
            r#"{"services": {"chat": {"instances": [{"id": "a", "addr": "[::1]:1"}, {"id": "b"}]}}}"#,
            "services.chat.instances[1]: missing field `addr`",
        ),
        (
            r#"{"services": {"chat": {"instances": [{"addr": "[::1]:1"}]}}}"#,
            "services.chat.instances[0]: missing field `id`",
        ),
        (
            r#"{"services": {}, "window": {"buckets": 5, "buckets": 6}}"#,
            "window: duplicate field `buckets`",
        ),
        (r#"{"services": {"chat": {}, "chat": {}}}"#, "services: duplicate key \"chat\""),
        (
            r#"{"services": {"a/b": {}}}"#,
            "services.a/b: \"a/b\" is not a name: 1 to 128 characters out of A-Z a-z 0-9 . _ : -",
        ),
    ]);
}

/// Each value, a JSON text, must be refused at `path`, with its finding.
fn assert_refused_at(path: &str, expected: &str, values: &[(&str, &str)]) {
    for (value, found) in values {
        let message = format!("{}: {found}, expected {expected}", path.replace("[]", "[0]"));
        assert_refused(&[(&file_with(path, value), &message)]);
    }
}

#[test]
fn a_section_that_is_no_object_is_refused() {
    for path in [
        "etcd",
        "etcd.tls",
        "window",
        "snapshot",
        "fallback",
        "exporter",
        "exporter.tls",
        "services",
        "services.chat",
        "services.chat.balance",
        "services.chat.score",
        "services.chat.status",
        "services.chat.health",
        "services.chat.health.success_rate",
        "services.chat.health.failure_percentage",
        "services.chat.check",
        "services.chat.instances[]",
        "services.chat.instances[].labels",
    ] {
        let values = [
            ("[5]", "invalid type: sequence"),
            (r#""x""#, r#"invalid type: string "x""#),
            ("null", "invalid type: null"),
        ];
        assert_refused_at(path, "an object", &values);
    }
    assert_refused(&[("[]", "top level: invalid type: sequence, expected an object")]);
}

#[test]
fn a_list_that_is_none_or_lacks_what_it_needs_is_refused() {
    assert_refused_at(
        "services.chat.instances",
        "a list",
        &[(r#"{"id": "a"}"#, "invalid type: map"), ("true", "invalid type: boolean `true`")],
    );
    assert_refused_at(
        "etcd.endpoints",
        "a list",
        &[(r#""http://a:1""#, r#"invalid type: string "http://a:1""#)],
    );
    assert_refused_at("etcd.endpoints", "at least one endpoint", &[("[]", "the list is empty")]);
    assert_refused_at(
        "discover",
        "true, false or a list of service names",
        &[(r#""chat""#, r#"invalid type: string "chat""#), ("1", "invalid type: integer `1`")],
    );
}

#[test]
fn a_number_of_a_wrong_type_or_out_of_its_range_is_refused() {
    assert_refused_at(
        "window.buckets",
        "an integer from 1 to 60",
        &[
            ("0", "invalid value: integer `0`"),
            ("61", "invalid value: integer `61`"),
            ("-1", "invalid value: integer `-1`"),
            ("5.5", "invalid type: floating point `5.5`"),
            (r#""5""#, r#"invalid type: string "5""#),
        ],
    );
    assert_refused_at(
        "services.s.status.missed",
        "an integer from 1 to 100",
        &[("0", "invalid value: integer `0`"), ("101", "invalid value: integer `101`")],
    );
    assert_refused_at(
        "services.s.balance.hash_balance_factor",
        "0 or an integer from 101 to 1000",
        &[("1", "invalid value: integer `1`"), ("100", "invalid value: integer `100`")],
    );
    assert_refused_at(
        "exporter.deadband",
        "a number from 0 to 1",
        &[
            ("-0.01", "invalid value: floating point `-0.01`"),
            ("1.01", "invalid value: floating point `1.01`"),
            (r#""5%""#, r#"invalid type: string "5%""#),
        ],
    );
    assert_refused_at(
        "services.s.instances[].weight",
        "a number from 0 to 1000",
        &[
            ("-0.1", "invalid value: floating point `-0.1`"),
            ("-1", "invalid value: floating point `-1.0`"),
            ("1000.1", "invalid value: floating point `1000.1`"),
            ("1e9", "invalid value: floating point `1000000000.0`"),
            (r#""1""#, r#"invalid type: string "1""#),
        ],
    );
}

/// Each text must be refused at `path`, and so must what is no string.
fn assert_strings_refused_at(path: &str, expected: &str, texts: &[&str]) {
    assert_refused_at(path, expected, &[("5", "invalid type: integer `5`")]);
    for text in texts {
        let message = format!("{}: {text:?} is not {expected}", path.replace("[]", "[0]"));
        assert_refused(&[(&file_with(path, &format!("{text:?}")), &message)]);
    }
}

#[test]
fn a_duration_without_a_unit_or_out_of_its_range_is_refused() {
    assert_strings_refused_at(
        "fallback.after",
        r#"a duration with a unit, such as "1s" or "250ms", from 1s to 10m"#,
        &["5", "0", "", "-1s", "1 fortnight", "999ms", "601s"],
    );
}

#[test]
fn a_string_that_its_key_does_not_allow_is_refused() {
    let too_long = "x".repeat(129);
    for path in ["services.s.instances[].id", "exporter.id"] {
        assert_strings_refused_at(
            path,
            "a name: 1 to 128 characters out of A-Z a-z 0-9 . _ : -",
            &["", "a/b", "a b", "ä", &too_long],
        );
    }
    assert_strings_refused_at(
        "discover[]",
        "a name of characters out of A-Z a-z 0-9 . _ : -, or the beginning of one and *",
        &["", "a*b", "a/*", "**"],
    );
    assert_strings_refused_at(
        "services.s.balance.strategy",
        "one of best, weighted_random, round_robin, random, least_conn, p2c, adaptive, chash",
        &["fastest", "Best", ""],
    );
    assert_strings_refused_at("window.decay", "one of linear, exponential", &["none"]);
    assert_strings_refused_at(
        "etcd.endpoints[]",
        "an endpoint: http://HOST:PORT or https://HOST:PORT",
        &[
            "127.0.0.1:2379",
            "http://127.0.0.1",
            "http://:2379",
            "http://127.0.0.1:0",
            "http://127.0.0.1:70000",
            "http://127.0.0.1:2379/v3",
            "http://u:p@127.0.0.1:2379",
            "unix://127.0.0.1:2379",
        ],
    );
    assert_strings_refused_at(
        "etcd.prefix",
        "a path that begins with / and does not end with it",
        &["", "ipconfig", "/ipconfig/", "/"],
    );
    assert_strings_refused_at(
        "snapshot.path",
        "an absolute path, or empty for no snapshot",
        &["snapshot", "./snapshot"],
    );
}

#[test]
fn a_name_may_be_128_characters_long() {
    let name = "x".repeat(128);
    let config = Config::parse(&json!({"services": {&name: {}}}).to_string()).unwrap();
    assert!(config.services.contains_key(&name));
}

#[test]
fn an_address_that_is_no_ip_address_with_a_port_is_refused() {
    for path in ["services.s.instances[].addr", "exporter.listen"] {
        for (addr, why) in [
            ("localhost:9001", "it is a hostname"),
            ("chat.example.com:9001", "it is a hostname"),
            ("127.0.0.1", "it has no port"),
            ("fd00::5", "it has no port"),
            ("fd00:0:0:0:0:0:0:5:8080", "an IPv6 address needs brackets"),
            ("127.0.0.1:0", "its port is 0"),
            ("127.0.0.1:70000", "its port is larger than 65535"),
            ("127.0.0.1:http", "its port is not a number"),
            ("127.0.0.256:80", "it is not an IP address"),
            ("[fe80::1%2]:80", "it has a scope"),
            ("", "it has no port"),
        ] {
            let expected = "an IP address with a port from 1 to 65535, \
                            as in 10.0.0.5:8080 or [fd00::5]:8080";
            let finding = format!("{addr:?} is not an address: {why};");
            let message = format!("{}: {finding} expected {expected}", path.replace("[]", "[0]"));
            assert_refused(&[(&file_with(path, &format!("{addr:?}")), &message)]);
        }
        assert_refused_at(
            path,
            "an IP address with a port, such as 10.0.0.5:8080",
            &[("8080", "invalid type: integer `8080`")],
        );
    }
}

#[test]
fn a_status_url_of_another_scheme_or_without_a_port_is_refused() {
    for url in [
        "127.0.0.1:9101",
        "http://127.0.0.1:9101",
        "https://127.0.0.1:9101",
        "GRPC://127.0.0.1:9101",
        "grpc://127.0.0.1",
        "grpc://[::1]:0",
        "grpc://127.0.0.1:9101/path",
        "healths://user@127.0.0.1:9101",
        "",
    ] {
        let text = file_with("services.s.instances[].status", &format!("{url:?}"));
        let message = format!(
            "services.s.instances[0].status: {url:?} is not a status URL: \
             expected grpc://HOST:PORT, orca://HOST:PORT or health://HOST:PORT, \
             or with TLS grpcs://, orcas:// or healths://"
        );
        assert_refused(&[(&text, &message)]);
    }
}

#[test]
fn each_scheme_says_how_to_ask_and_whether_over_tls() {
    for (scheme, protocol, tls) in [
        ("grpc", StatusProtocol::Grpc, false),
        ("orca", StatusProtocol::Orca, false),
        ("health", StatusProtocol::Health, false),
        ("grpcs", StatusProtocol::Grpc, true),
        ("orcas", StatusProtocol::Orca, true),
        ("healths", StatusProtocol::Health, true),
    ] {
        let text = format!("{scheme}://chat.example:9101");
        let url: StatusUrl = text.parse().unwrap();
        assert_eq!((url.protocol, url.tls, &*url.authority), (protocol, tls, "chat.example:9101"));
        assert_eq!((url.scheme(), url.to_string()), (scheme, text));
    }
}

#[test]
fn allow_is_a_list_of_networks_without_bits_behind_the_prefix() {
    assert_strings_refused_at(
        "allow[]",
        "a network in CIDR notation, such as 10.0.0.0/8 or fd00::/8, \
         with no bit set after the prefix",
        &["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/8", "fd00::1/8", "10.0.0.0/8 ", "chat.example"],
    );
    assert_refused_at(
        "allow",
        "a list",
        &[(r#""10.0.0.0/8""#, r#"invalid type: string "10.0.0.0/8""#)],
    );
}

#[test]
fn an_instance_of_the_file_outside_of_allow_is_refused() {
    let file = |allow: Value, addr: &str| {
        let instances = json!([{"id": "a", "addr": "10.1.2.3:80"}, {"id": "b", "addr": addr}]);
        json!({"allow": allow, "services": {"chat": {"instances": instances}}}).to_string()
    };
    assert_refused(&[(
        &file(json!(["10.0.0.0/8", "fd00::/8"]), "192.168.0.1:80"),
        "services.chat.instances[1].addr: 192.168.0.1:80 is outside of allow: 10.0.0.0/8, fd00::/8",
    )]);
    for addr in ["10.9.9.9:80", "[fd00::1]:80", "[::ffff:10.9.9.9]:80"] {
        assert!(Config::parse(&file(json!(["10.0.0.0/8", "fd00::/8"]), addr)).is_ok(), "{addr}");
    }
    assert!(Config::parse(&file(json!([]), "192.168.0.1:80")).is_ok(), "no network: any");
}

#[test]
fn an_ipv4_address_written_as_an_ipv6_one_counts_as_itself() {
    let allow = |net: &str| Allow(vec![net.parse().unwrap()]);
    let mapped = "::ffff:10.0.0.5".parse().unwrap();
    assert!(allow("10.0.0.0/8").contains(mapped));
    assert!(!allow("192.168.0.0/16").contains(mapped));
    assert!(!allow("fd00::/8").contains(mapped));
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    assert_refused(&[
        (
            r#"{"services": {}, "etcd": {"username": "root"}}"#,
            "etcd.password_file: empty while etcd.username is set, expected both or neither",
        ),
        (
            r#"{"services": {}, "etcd": {"password_file": "/pw"}}"#,
            "etcd.username: empty while etcd.password_file is set, expected both or neither",
        ),
        (
            r#"{"services": {}, "etcd": {"tls": {"cert": "/c"}}}"#,
            "etcd.tls.key: empty while etcd.tls.cert is set, expected both or neither",
        ),
        (
            r#"{"services": {}, "etcd": {"tls": {"key": "/k"}}}"#,
            "etcd.tls.cert: empty while etcd.tls.key is set, expected both or neither",
        ),
        (
            r#"{"services": {}, "exporter": {"timeout": "1100ms"}}"#,
            "exporter.timeout: 1s 100ms is longer than exporter.interval, expected at most 1s",
        ),
        (
            r#"{"services": {}, "exporter": {"interval": "200ms", "timeout": "501ms"}}"#,
            "exporter.timeout: 501ms is longer than exporter.interval, expected at most 200ms",
        ),
        (
            r#"{"services": {}, "exporter": {"interval": "3s"}}"#,
            "window: buckets x bucket is 5s, expected at least 6s: twice exporter.interval",
        ),
        (
            r#"{"services": {}, "exporter": {"refresh": "4001ms"}}"#,
            "exporter.refresh: 4s 1ms and exporter.interval are longer than the window, \
             expected at most 4s",
        ),
        (
            r#"{"services": {}, "exporter": {"tls": {"cert": "/c"}}}"#,
            "exporter.tls.key: empty while exporter.tls.cert is set, expected both or neither",
        ),
        (
            r#"{"services": {}, "exporter": {"tls": {"key": "/k"}}}"#,
            "exporter.tls.cert: empty while exporter.tls.key is set, expected both or neither",
        ),
    ]);
}

#[test]
fn the_default_timeout_is_never_longer_than_the_interval() {
    let timeout = |exporter: &str| {
        let text = format!(r#"{{"services": {{}}, "exporter": {exporter}}}"#);
        Config::parse(&text).unwrap().exporter.timeout
    };
    assert_eq!(timeout(r#"{"interval": "200ms"}"#), Duration::from_millis(200));
    assert_eq!(timeout(r#"{"interval": "2s"}"#), Duration::from_millis(500));
}

#[test]
fn the_default_refresh_fits_into_the_window() {
    let refresh = |text: &str| Config::parse(text).unwrap().exporter.refresh;
    assert_eq!(refresh(r#"{"services": {}}"#), Duration::from_secs(3));
    let short = r#"{"services": {}, "window": {"buckets": 3}}"#;
    assert_eq!(refresh(short), Duration::from_secs(2));
    let slow = r#"{"services": {}, "exporter": {"interval": "2500ms"}}"#;
    assert_eq!(refresh(slow), Duration::from_millis(2500));
}

#[test]
fn a_check_is_of_one_kind_and_its_keys_fit_it() {
    let refused = |check: &str, expected: &str| {
        let text = format!(r#"{{"services": {{"s": {{"check": {check}}}}}}}"#);
        assert_refused(&[(&text, expected)]);
    };
    let path = "services.s.check";
    refused(
        r#"{"http": "/", "tcp": true}"#,
        &format!("{path}: found http and tcp, expected one of them"),
    );
    refused(
        r#"{"interval": "1s"}"#,
        &format!("{path}: neither http nor tcp is set, expected one of them beside other keys"),
    );
    refused(
        r#"{"tcp": true, "host": "a", "status": ["200"]}"#,
        &format!(
            "{path}.host: a tcp check sends no request, expected no host; \
             {path}.status: a tcp check has no status, expected no list of them"
        ),
    );
    refused(
        r#"{"tcp": true, "timeout": "2001ms"}"#,
        &format!("{path}.timeout: 2s 1ms is longer than interval, expected at most 2s"),
    );
    assert_refused_at(
        "services.s.check.status",
        "at least one status",
        &[("[]", "the list is empty"), ("{}", "the list is empty")],
    );
    assert_strings_refused_at(
        "services.s.check.http",
        "a path that begins with /, or empty for no request",
        &["healthz", "http://a/", "/a b", "/a#b", "/a\n", "*"],
    );
    assert_strings_refused_at(
        "services.s.check.host",
        "a host name, with or without a port, or empty",
        &["a/b", "a b", "u@a", "a\r\nX: y"],
    );
    assert_strings_refused_at(
        "services.s.check.status[]",
        r#""2xx", "3xx", "4xx", "5xx" or a status from "200" to "599""#,
        &["", "1xx", "6xx", "xx", "+2xx", "20x", "2XX", "199", "600", "0200", "+20", "2000"],
    );
}

#[test]
fn which_statuses_are_good_is_what_the_list_says() {
    let good = |list: &str| {
        let text =
            format!(r#"{{"services": {{"s": {{"check": {{"http": "/", "status": {list}}}}}}}}}"#);
        let check = Config::parse(&text).unwrap().services["s"].check.clone();
        (100..700).filter(|status| check.is_good(*status)).collect::<Vec<u16>>()
    };
    assert_eq!(good(r#"["2xx", "3xx"]"#), (200..400).collect::<Vec<_>>());
    assert_eq!(good(r#"["200", "503"]"#), [200, 503]);
    assert_eq!(CheckConfig::default().status, Statuses::of_classes(2..=3));
}

#[test]
fn a_check_is_off_by_default_and_its_timeout_no_longer_than_its_interval() {
    let check = |text: &str| {
        let text = format!(r#"{{"services": {{"s": {{"check": {text}}}}}}}"#);
        Config::parse(&text).unwrap().services["s"].check.clone()
    };
    assert!(!check("{}").is_on());
    assert!(check(r#"{"tcp": true}"#).is_on() && check(r#"{"http": "/"}"#).is_on());
    let timeout = |text| check(text).timeout;
    assert_eq!(timeout(r#"{"tcp": true, "interval": "200ms"}"#), Duration::from_millis(200));
    assert_eq!(timeout(r#"{"tcp": true, "interval": "20s"}"#), Duration::from_secs(1));
}

#[test]
fn what_becomes_of_unreachable_instances_is_out_or_keep() {
    assert_strings_refused_at(
        "services.s.status.unreachable",
        "one of out, keep",
        &["in", "Out", ""],
    );
    let text = r#"{"services": {"s": {"status": {"unreachable": "keep"}}}}"#;
    let status = &Config::parse(text).unwrap().services["s"].status;
    assert_eq!(*status, StatusConfig { missed: 3, unreachable: Unreachable::Keep });
}

#[test]
fn failures_are_statuses_by_class_or_one_by_one() {
    let failures = |list: &str| {
        let text = file_with("services.s.health.failures", list);
        let failures = Config::parse(&text).unwrap().services["s"].health.failures;
        (0..1000).filter(|status| failures.has(*status)).collect::<Vec<u16>>()
    };
    assert_eq!(failures("[]"), [0; 0]);
    assert_eq!(failures(r#"["429", "503", "400", "599"]"#), [400, 429, 503, 599]);
    assert_eq!(failures(r#"["4xx", "5xx"]"#), (400..600).collect::<Vec<u16>>());
    assert_strings_refused_at(
        "services.s.health.failures[]",
        r#""4xx", "5xx" or a status from "400" to "599""#,
        &["", "6xx", "xx", "399", "600", "0500", "+42", "-1"],
    );
}

#[test]
fn two_instances_of_one_service_share_neither_id_nor_address() {
    let file = |services: Value| json!({"services": services}).to_string();
    let a = json!({"id": "a", "addr": "127.0.0.1:1"});
    let b = json!({"id": "b", "addr": "127.0.0.1:2"});

    assert_refused(&[
        (
            &file(json!({"chat": {"instances": [a, b, {"id": "a", "addr": "127.0.0.1:3"}]}})),
            "services.chat.instances[2].id: a is that of services.chat.instances[0] too, \
             expected another one for each instance",
        ),
        (
            &file(json!({"chat": {"instances": [a, b, {"id": "c", "addr": "127.0.0.1:2"}]}})),
            "services.chat.instances[2].addr: 127.0.0.1:2 is that of services.chat.instances[1] \
             too, expected another one for each instance",
        ),
    ]);
    // One process may serve two services.
    let shared = file(json!({"chat": {"instances": [a]}, "mail": {"instances": [a]}}));
    assert!(Config::parse(&shared).is_ok());
}

#[test]
fn all_contradictions_are_named_at_once() {
    let text = r#"{"services": {}, "etcd": {"username": "root", "tls": {"key": "/k"}},
                   "exporter": {"timeout": "2s"}}"#;
    let Err(ConfigError::Conflicts(conflicts)) = Config::parse(text) else {
        panic!("{text} must be refused for its contradictions")
    };
    let paths: Vec<_> = conflicts.iter().map(|conflict| conflict.path.as_str()).collect();
    assert_eq!(paths, ["etcd.password_file", "etcd.tls.cert", "exporter.timeout"]);
}

#[test]
fn load_names_the_file_in_each_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ipconfig.json");
    let message = || Config::load(&file).unwrap_err().to_string();
    let name = file.display();

    assert_eq!(message(), format!("failed to read {name}: No such file or directory (os error 2)"));
    std::fs::write(&file, "{").unwrap();
    assert_eq!(
        message(),
        format!("{name}: not JSON: EOF while parsing an object at line 1 column 1")
    );
    std::fs::write(&file, r#"{"services": {}}"#).unwrap();
    assert_eq!(Config::load(&file).unwrap(), Config::default());
}

/// A row of a table in the reference.
struct Row {
    /// For instance `services.<service>.instances[].weight`.
    path: &'static str,
    allowed: &'static str,
    default: &'static str,
}

fn reference_rows() -> Vec<Row> {
    let unquoted = |cell: &'static str| cell.trim().trim_matches('`');
    REFERENCE
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<_> = line.split('|').collect();
            Row { path: unquoted(cells[1]), allowed: cells[2], default: unquoted(cells[3]) }
        })
        .collect()
}

/// The paths of all keys that the parser knows, out of its own mouth: it refuses
/// an unknown key with the list of the known ones.
fn known_paths(section: &str) -> Vec<String> {
    let probe = format!("{section}.?").trim_start_matches('.').replace("<service>", "s");
    let message = refusal(&file_with(&probe, "0"));
    let Some((_, known)) = message.split_once("unknown field `?`, expected ") else {
        return vec![section.to_owned()];
    };
    let of_key = |key| match format!("{section}.{key}").trim_start_matches('.') {
        path @ "services" => [vec![path.into()], known_paths("services.<service>")].concat(),
        path if ["instances", "rules"].contains(&key) => {
            [vec![path.into()], known_paths(&format!("{path}[]"))].concat()
        }
        path => known_paths(path),
    };
    known.split('`').skip(1).step_by(2).flat_map(of_key).collect()
}

#[test]
fn the_reference_has_each_key_once_and_no_other() {
    let mut documented: Vec<_> = reference_rows().iter().map(|row| row.path.to_owned()).collect();
    let mut known = known_paths("");
    documented.sort();
    known.sort();
    assert_eq!(documented, known);
}

/// A file with one service and one instance, and what it has beside its required
/// keys.
fn file_with_all(values: &[(&str, Value)]) -> String {
    let mut file = json!({"services": {"s": {
        "instances": [{"id": "a", "addr": "127.0.0.1:1"}],
        "rules": [{"name": "r", "to": {"a": "b"}}],
    }}});
    for (path, value) in values {
        let path = format!("/{path}").replace("<service>", "s").replace("[]", ".0");
        let mut at = &mut file;
        for key in path.trim_start_matches('/').split('.') {
            at = if at.is_array() { &mut at[0] } else { &mut at[key] };
        }
        *at = value.clone();
    }
    file.to_string()
}

#[test]
fn the_reference_s_defaults_are_those_of_the_code() {
    let defaults: Vec<_> = reference_rows()
        .into_iter()
        // The list of instances is the parent of rows that follow.
        .filter(|row| !["required", "none", "[]"].contains(&row.default))
        .map(|row| (row.path, serde_json::from_str(row.default).expect(row.default)))
        .collect();
    assert_eq!(
        Config::parse(&file_with_all(&defaults)).unwrap(),
        Config::parse(&file_with_all(&[])).unwrap()
    );
    assert_eq!(ServiceConfig::default().instances, []);
    assert_eq!(ServiceConfig::default().rules, []);
}

#[test]
fn the_reference_s_ranges_are_those_of_the_code() {
    // A value within its own range may still contradict another key's.
    let in_range = |path, value: &Value| {
        let parsed = Config::parse(&file_with_all(&[(path, value.clone())]));
        matches!(parsed, Ok(_) | Err(ConfigError::Conflicts(_)))
    };
    let mut ranges = 0;
    for Row { path, allowed, .. } in reference_rows() {
        let Some((low, high)) = allowed.split_once("` to `") else { continue };
        let low: Value = serde_json::from_str(low.rsplit('`').next().unwrap()).unwrap();
        let high: Value = serde_json::from_str(high.split('`').next().unwrap()).unwrap();
        assert!(in_range(path, &low), "{path}: {low}");
        assert!(in_range(path, &high), "{path}: {high}");
        let (below, above) = (moved(&low, -1), moved(&high, 1));
        assert!(!in_range(path, &below), "{path}: {below}");
        assert!(!in_range(path, &above), "{path}: {above}");
        ranges += 1;
    }
    assert_eq!(ranges, 51, "a range is not written as `low` to `high`");
}

/// The integer, or the duration in milliseconds, that is `steps` away.
fn moved(end: &Value, steps: i64) -> Value {
    match end.as_str() {
        None => json!(end.as_i64().unwrap() + steps),
        Some(text) => {
            let ms = humantime::parse_duration(text).unwrap().as_millis() as i64 + steps;
            json!(format!("{ms}ms"))
        }
    }
}
