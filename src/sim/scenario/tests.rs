use serde_json::{Value, json};

use super::*;
use crate::sim::distribution::Distribution;

const WHOLE: &str = r#"{
    "about": "one of five",
    "servers": [
        {"name": "a", "count": 4, "slots": 4, "queue": 10, "speed": 0.5, "weight": 2, "zone": "x",
         "service": {"distribution": "lognormal", "mean": "10ms", "cv": 2}},
        {"name": "b", "service": {"mean": "250us"},
         "told_utilization": {"factor": 0.05}, "other_rate": 10, "serves_abandoned": true}
    ],
    "traffic": {"rate": 1200, "changes": [{"at": "20s", "rate": 2000.5, "over": "5s"}]},
    "gateways": {"count": 2, "workers": 3, "timeout": "2s", "retries": 1, "zones": ["x", "y"]},
    "reports": {"interval": "250ms", "delay": "5ms", "spread": "10ms", "exporters": 2,
                "window": {"buckets": 3, "bucket": "500ms"}},
    "faults": [{"slowdown": {"servers": "b", "from": "20s", "for": "10s", "speed": 0.2}},
               {"join": {"servers": "a", "count": 2, "at": "3s"}},
               {"silent_etcd": {}}],
    "policies": ["random", "p2c"],
    "seeds": [1, 2],
    "duration": "60s",
    "warmup": "5s"
}"#;

fn minimal() -> Value {
    json!({
        "servers": [{"name": "a", "service": {"mean": "10ms"}}],
        "traffic": {"rate": 1},
        "duration": "60s",
    })
}

/// What is said of the minimal scenario with this patch.
fn refused(patch: Value) -> String {
    let mut of = minimal();
    merge(&mut of, patch);
    parse("test", &of.to_string()).unwrap_err().to_string()
}

#[test]
fn every_key_is_read() {
    let found = parse("five", WHOLE).unwrap();
    let [Named { name, scenario }] = &found[..] else { panic!("{found:?}") };
    assert_eq!(name, "five");
    let [a, b] = &scenario.servers[..] else { panic!() };
    assert_eq!((a.count, a.slots, a.queue, a.speed, a.weight), (4, 4, Some(10), 0.5, 2.0));
    assert_eq!(a.service.distribution(), Distribution::lognormal(0.01, 2.0));
    assert_eq!((b.count, b.slots, b.queue, b.speed, b.weight), (1, 1, None, 1.0, 1.0));
    assert_eq!(b.service.distribution(), Distribution::exponential(0.00025));
    assert_eq!((a.told_utilization, a.other_rate), (None, 0.0));
    assert_eq!((b.told_utilization, b.other_rate), (Some(Told::Factor(0.05)), 10.0));
    let Gateways { count, workers, timeout, retries, zones } = &scenario.gateways;
    assert_eq!((*count, *workers, *timeout, *retries), (2, 3, Duration::from_secs(2), 1));
    assert_eq!((&zones[..], &a.zone[..], &b.zone[..]), (&["x".into(), "y".into()][..], "x", ""));
    assert_eq!(
        (0..4).map(|it| scenario.gateways.zone_of(it)).collect::<Vec<_>>(),
        [0, 1, 0, 1].map(Some)
    );
    assert_eq!((a.serves_abandoned, b.serves_abandoned), (false, true));
    assert_eq!(scenario.reports.window.as_ref().unwrap().buckets, 3);
    assert_eq!(scenario.hit(Some("b"), None), 4..5);
    assert_eq!(scenario.hit(Some("a"), Some(9)), 0..4);
    assert_eq!(scenario.hit(None, Some(2)), 0..2);
    let spans: Vec<_> =
        scenario.faults.iter().map(|fault| (fault.name(), fault.span().from.as_secs())).collect();
    assert_eq!(spans, [("slowdown", 20), ("join", 3), ("silent_etcd", 0)]);
}

#[test]
fn a_service_is_read_as_the_configuration_reads_it() {
    let service = json!({
        "health": {"panic": 30, "base_ejection": "2s"},
        "failure": {"mode": "failcache", "budget": {"percent": 5}},
        "slow_start": {"window": "3s"},
        "zone": {"floor": 2},
    });
    let of = |service: &Value| {
        let mut of = minimal();
        merge(&mut of, json!({"service": service}));
        parse("test", &of.to_string()).unwrap().remove(0).scenario.service.unwrap().config()
    };
    let config = json!({"services": {"s": service}}).to_string();
    assert_eq!(of(&service), crate::config::Config::parse(&config).unwrap().services["s"]);
    assert_eq!(of(&json!({})), ServiceConfig::default());
    assert_eq!(parse("test", &minimal().to_string()).unwrap()[0].scenario.service, None);
    for (patch, said) in [
        (json!({"service": {"health": {"panic": 101}}}), "service.health.panic"),
        (json!({"service": {"rules": []}}), "unknown field `rules`"),
        (json!({"gateways": {"zones": ["a b"]}}), "gateways.zones[0]"),
        (
            json!({"servers": [{"name": "a", "service": {"mean": "1ms"}, "zone": "/"}]}),
            "servers[0].zone",
        ),
        (json!({"faults": [{"cold": {"speed": 0}}]}), "faults[0].cold.speed"),
        (json!({"faults": [{"errors": {"part": 1.1}}]}), "faults[0].errors.part"),
        (json!({"faults": [{"rolling_restart": {"down": "1s"}}]}), "every"),
    ] {
        let found = refused(patch);
        assert!(found.contains(said), "{found}, expected {said}");
    }
}

#[test]
fn a_rate_goes_evenly_to_the_next() {
    let traffic = &parse("five", WHOLE).unwrap()[0].scenario.traffic;
    for (at, rate) in
        [(0.0, 1200.0), (19.9, 1200.0), (22.5, 1600.25), (25.0, 2000.5), (1e9, 2000.5)]
    {
        assert_eq!(traffic.rate_at(at), rate, "{at}");
    }
    assert_eq!(traffic.largest_rate(), 2000.5);
}

#[test]
fn what_is_left_out_has_a_default() {
    let scenario = parse("test", &minimal().to_string()).unwrap().remove(0).scenario;
    assert_eq!(scenario.gateways, Gateways::default());
    assert_eq!(scenario.reports, Reports::default());
    assert_eq!(scenario.policies, crate::sim::names());
    assert_eq!((scenario.seeds, scenario.warmup), (vec![1], Duration::from_secs(10)));
}

#[test]
fn an_error_names_the_key_what_was_found_and_what_is_allowed() {
    let service = |service: Value| json!({"servers": [{"name": "a", "service": service}]});
    let told = |told: Value| {
        json!({"servers": [
            {"name": "a", "service": {"mean": "1s"}, "told_utilization": told},
        ]})
    };
    let fault = |fault: Value| json!({"faults": [fault]});
    for (patch, parts) in [
        (json!({"trafic": {}}), ["trafic", "unknown field", "traffic"]),
        (json!({"traffic": {"rate": -1}}), ["traffic.rate", "-1", "0 to 10000000"]),
        (json!({"traffic": {"rate": "1"}}), ["traffic.rate", "string", "a number"]),
        (json!({"traffic": null}), ["", "missing field", "traffic"]),
        (json!({"servers": [["a", 1]]}), ["servers[0]", "sequence", "an object"]),
        (json!({"servers": []}), ["servers", "empty", "at least one"]),
        (json!({"duration": 60}), ["duration", "60", "a duration with a unit"]),
        (json!({"duration": "60"}), ["duration", "60", "from 1s to 1h"]),
        (json!({"warmup": "60s"}), ["warmup", "not shorter", "less than"]),
        (
            json!({"servers": [{"name": "a", "service": {"mean": "1s"}, "other_rate": -1}]}),
            ["servers[0].other_rate", "-1", "0 to 1000000"],
        ),
        (told(json!({"fixed": -0.1})), ["servers[0].told_utilization.fixed", "-0.1", "0 to 1000"]),
        (told(json!({"factor": 1001})), ["servers[0].told_utilization.factor", "1001", "0 to"]),
        (told(json!({"part": 1})), ["servers[0].told_utilization", "`part`", "`fixed`"]),
        (service(json!({"mean": "0s"})), ["servers[0].service.mean", "0s", "more than 0s"]),
        (service(json!({})), ["servers[0].service", "missing field", "mean"]),
        (
            service(json!({"mean": "1s", "distribution": "normal"})),
            ["servers[0].service.distribution", "\"normal\"", "truncated_normal"],
        ),
        (service(json!({"mean": "1s", "cv": 1})), ["servers[0].service.cv", "lognormal", "alone"]),
        (
            service(json!({"mean": "1s", "alpha": 2})),
            ["servers[0].service.alpha", "bounded_pareto", "alone"],
        ),
        (json!({"gateways": {"count": 2000}}), ["gateways.count", "2000", "1 to 1024"]),
        (
            json!({"gateways": {"count": 512, "workers": 4}}),
            ["gateways.workers", "2048", "at most 1024"],
        ),
        (
            json!({"reports": {"window": {"buckets": 0}}}),
            ["reports.window.buckets", "0", "1 to 60"],
        ),
        (json!({"policies": ["p2c", "p3c"]}), ["policies[1]", "\"p3c\"", "p2c"]),
        (json!({"seeds": [-1]}), ["seeds[0]", "-1", "u64"]),
        (fault(json!({"slow": {}})), ["faults[0]", "slow", "slowdown"]),
        (
            fault(json!({"slowdown": {"speed": 0}})),
            ["faults[0].slowdown.speed", "0", "more than 0"],
        ),
        (
            fault(json!({"crash": {"servers": "b"}})),
            ["faults[0].crash.servers", "\"b\"", "one of a"],
        ),
        (fault(json!({"crash": {"speed": 1}})), ["faults[0].crash.speed", "unknown field", "for"]),
        (fault(json!({"lie": {"tells": "truth"}})), ["faults[0].lie.tells", "truth", "idle"]),
        (
            json!({"variants": [{"name": "x", "with": {"traffic": {"rate": true}}}]}),
            ["variants[0].with.traffic.rate", "true", "a number"],
        ),
        (
            json!({"variants": [{"name": "x y", "with": {}}]}),
            ["variants[0].name", "\"x y\"", "128"],
        ),
    ] {
        let message = refused(patch);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}, expected {parts:?}");
    }
}

#[test]
fn all_contradictions_are_told_at_once() {
    let message = refused(json!({"warmup": "70s", "seeds": [], "policies": []}));
    for key in ["warmup", "seeds", "policies"] {
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn groups_have_names_of_their_own() {
    let group = json!({"name": "a", "service": {"mean": "1s"}});
    let message = refused(json!({"servers": [group, group]}));
    assert!(message.contains("servers[1].name"), "{message}");
}

#[test]
fn a_variant_is_the_file_with_other_values() {
    let mut of = minimal();
    of["variants"] = json!([
        {"name": "more", "with": {"traffic": {"rate": 5}, "gateways": {"retries": 2}}},
        {"name": "same", "with": {}},
    ]);
    let found = parse("test", &of.to_string()).unwrap();
    let names: Vec<_> = found.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["test: more", "test: same"]);
    let rates: Vec<_> = found.iter().map(|it| it.scenario.traffic.rate).collect();
    assert_eq!(rates, [5.0, 1.0]);
    assert_eq!(found[0].scenario.gateways, Gateways { retries: 2, ..Gateways::default() });
    assert!(found.iter().all(|it| it.scenario.variants.is_empty()));
}

#[test]
fn a_patch_replaces_lists_and_takes_away_what_is_null() {
    let mut value = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
    merge(&mut value, json!({"a": {"b": null, "c": [3]}, "e": {"f": {"g": null, "h": 1}}}));
    assert_eq!(value, json!({"a": {"c": [3]}, "d": 1, "e": {"f": {"h": 1}}}));
}

const PAGE: &str = include_str!("../../../doc/simulate.md");

/// What the parser would take in place of `?`, out of its own mouth.
fn expected_at(pointer: &str, what: &str) -> Vec<String> {
    let mut of: Value = serde_json::from_str(WHOLE).unwrap();
    of["variants"] = json!([{"name": "a", "with": {}}]);
    of.pointer_mut(pointer).unwrap()["?"] = json!({});
    let message = parse("test", &of.to_string()).unwrap_err().to_string();
    let (_, known) = message.split_once(&format!("unknown {what} `?`, expected ")).expect(&message);
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_page_has_each_key_once_and_no_other() {
    let sections = [
        ("", ""),
        ("/servers/0", "servers[]."),
        ("/servers/0/service", "servers[].service."),
        ("/traffic", "traffic."),
        ("/traffic/changes/0", "traffic.changes[]."),
        ("/gateways", "gateways."),
        ("/reports", "reports."),
        ("/variants/0", "variants[]."),
    ];
    let keys_of = |(pointer, prefix): (&str, &str)| {
        let keys = expected_at(pointer, "field").into_iter();
        keys.map(|key| format!("{prefix}{key}")).collect::<Vec<_>>()
    };
    let mut known: Vec<_> = sections.into_iter().flat_map(keys_of).collect();
    // Those with a table of their own.
    known.retain(|key| !["servers[].service", "traffic", "gateways", "reports"].contains(&&**key));
    let begins = |line: &&str| line.starts_with("| `");
    let rows = |of: &'static str| of.lines().filter(begins).map(|row| row.split('`').nth(1));
    let part = |from: &str| PAGE.split(from).nth(1).unwrap().split("\n## ").next().unwrap();
    let mut documented: Vec<_> = rows(part("\n## The file")).flatten().map(str::to_owned).collect();
    known.sort();
    documented.sort();
    assert_eq!(documented, known);

    let mut of: Value = minimal();
    of["faults"] = json!([{"?": {}}]);
    let message = parse("test", &of.to_string()).unwrap_err().to_string();
    let (_, faults) = message.split_once("unknown variant `?`, expected one of ").expect(&message);
    let mut documented: Vec<&str> = rows(part("\n## Faults")).flatten().collect();
    let mut known: Vec<_> = faults.split('`').skip(1).step_by(2).collect();
    documented.sort_unstable();
    known.sort_unstable();
    assert_eq!(documented, known);
    for row in part("\n## Faults").lines().filter(begins) {
        let cells: Vec<_> = row.split('|').collect();
        let quoted = |cell: &str| -> Vec<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let mut of = minimal();
        of["faults"] = json!([{ quoted(cells[1])[0].clone(): {"?": 0} }]);
        let message = parse("test", &of.to_string()).unwrap_err().to_string();
        let (_, keys) = message.split_once("unknown field `?`, expected ").expect(&message);
        let (mut known, mut documented) = (quoted(keys), quoted(cells[2]));
        known.sort();
        documented.sort();
        assert_eq!(documented, known, "{row}");
    }
}

#[test]
fn the_page_has_each_policy_once_and_no_other() {
    let part = PAGE.split("\n## Policies").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    let documented: Vec<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert_eq!(documented, crate::sim::names());
}
