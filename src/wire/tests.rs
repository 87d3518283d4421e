//! Laws of the wire: what is read, what is refused, and that nothing panics.

use std::net::{IpAddr, SocketAddr};

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::model::{MAX_IN_FLIGHT, MAX_NAME_BYTES, StatusProtocol};

const PREFIX: &str = "/ipconfig/v1";

/// A status with another value in every field.
fn full_status() -> Status {
    Status {
        boot_id: 0xb007,
        seq: 2,
        age: Duration::new(3, 4),
        requests: 10,
        errors: 11,
        busy_ns: 12,
        latency_sum_ns: 13,
        cpu_used_cores: Some(1.5),
        cpu_limit_cores: Some(2.0),
        memory_used_bytes: Some(22),
        memory_limit_bytes: Some(23),
        in_flight: Some(24),
        queue: Some(25),
        application_utilization: Some(0.5),
        max_in_flight: Some(27),
    }
}

fn report(status: proto::Status) -> proto::instance_status::Report {
    proto::instance_status::Report::Status(status)
}

fn batch_of(message: proto::Status) -> Vec<u8> {
    let entry = proto::InstanceStatus {
        id: "chat-1".into(),
        report: Some(report(message)),
        interval: None,
    };
    proto::StatusBatch { instances: vec![entry] }.encode_to_vec()
}

#[test]
fn a_key_of_each_kind_is_read_and_written_back_as_it_was() {
    for path in [
        "/ipconfig/v1/instances/chat/chat-1",
        "/ipconfig/v1/status/exporter-1/chat/17",
        "/ipconfig/v1/control/chat",
        "/ipconfig/v1/policies/chat",
        "/ipconfig/v1/exporters/exporter-1",
        "/ipconfig/v1/checks/gateway-1/chat",
        "/ipconfig/v1/instances/a.B_c:9/10.0.0.5:8080",
    ] {
        let key = parse_key(PREFIX, path.as_bytes()).unwrap();
        assert_eq!(key.to_path(PREFIX), path);
    }
    assert_eq!(
        parse_key(PREFIX, b"/ipconfig/v1/status/e/chat/17").unwrap(),
        Key::Status { exporter: "e".into(), service: "chat".into(), shard: 17 }
    );
}

#[test]
fn a_key_that_is_none_of_ours_is_refused() {
    let long_name = format!("/ipconfig/v1/control/{}", "x".repeat(MAX_NAME_BYTES + 1));
    for (path, why) in [
        ("", "prefix"),
        ("/ipconfig/v1", "prefix"),
        ("/ipconfig/v10/control/chat", "prefix"),
        ("/other/control/chat", "prefix"),
        ("/ipconfig/v1/", "kind"),
        ("/ipconfig/v1//control/chat", "kind"),
        ("/ipconfig/v1/unheard/chat", "kind"),
        ("/ipconfig/v1/instances", "slashes"),
        ("/ipconfig/v1/instances/chat", "slashes"),
        ("/ipconfig/v1/instances/chat/1/2", "slashes"),
        ("/ipconfig/v1/instances/chat/1/", "slashes"),
        ("/ipconfig/v1/status/e/chat", "slashes"),
        ("/ipconfig/v1/status/e/chat/0/0", "slashes"),
        ("/ipconfig/v1/control/chat/0", "slashes"),
        ("/ipconfig/v1/checks/chat", "slashes"),
        ("/ipconfig/v1/instances//1", "name"),
        ("/ipconfig/v1/checks//chat", "name"),
        ("/ipconfig/v1/instances/chat/", "name"),
        ("/ipconfig/v1/instances/chat/a b", "name"),
        ("/ipconfig/v1/instances/chat/ä", "name"),
        ("/ipconfig/v1/instances/chat/a\0b", "name"),
        (&long_name, "name"),
        ("/ipconfig/v1/status/e/chat/", "shard"),
        ("/ipconfig/v1/status/e/chat/x", "shard"),
        ("/ipconfig/v1/status/e/chat/-1", "shard"),
        ("/ipconfig/v1/status/e/chat/+1", "shard"),
        ("/ipconfig/v1/status/e/chat/01", "shard"),
        ("/ipconfig/v1/status/e/chat/4294967296", "shard"),
    ] {
        let err = parse_key(PREFIX, path.as_bytes()).unwrap_err();
        assert_eq!(err.reason(), "key", "{path}");
        assert!(err.to_string().contains(why), "{path}: {err}");
    }
    assert_eq!(parse_key(PREFIX, b"/ipconfig/v1/control/\xff").unwrap_err().reason(), "key");
}

#[test]
fn an_address_is_all_that_a_registration_needs() {
    let instance = decode_instance("x", br#"{"addr":"127.0.0.1:9"}"#).unwrap();
    let expected = Instance {
        id: "x".into(),
        addr: "127.0.0.1:9".parse().unwrap(),
        weight: 1.0,
        zone: String::new(),
        labels: BTreeMap::new(),
        status: None,
        drain: false,
        max_in_flight: 0,
    };
    assert_eq!(instance, expected);
}

#[test]
fn a_registration_with_every_field_is_read_and_unknown_fields_are_ignored() {
    let json = br#"{"addr":"[fd00::5]:8080","weight":0,"zone":"a","labels":{"version":"1.4"},
        "status":"grpc://10.0.0.5:9090","drain":true,"max_in_flight":7,"from_a_newer_version":[1,{}]}"#;
    let instance = decode_instance("x", json).unwrap();
    assert_eq!(instance.addr, "[fd00::5]:8080".parse().unwrap());
    assert_eq!(instance.weight, 0.0);
    assert_eq!(instance.zone, "a");
    assert_eq!(instance.labels["version"], "1.4");
    assert_eq!(instance.status.unwrap().to_string(), "grpc://10.0.0.5:9090");
    assert!(instance.drain);
    assert_eq!(instance.max_in_flight, 7);
}

#[test]
fn a_bad_registration_is_refused_and_the_message_says_why() {
    for (json, reason, says) in [
        ("", "json", "EOF"),
        ("{", "json", "EOF"),
        ("null", "json", "expected a map"),
        (r#"["127.0.0.1:80"]"#, "json", "expected a map"),
        (r#"{"addr":"127.0.0.1:80","max_in_flight":-1}"#, "json", "max_in_flight: "),
        (r#"{"addr":"127.0.0.1:80","max_in_flight":1000001}"#, "json", "0 to 1000000"),
        (r#"{"addr":"127.0.0.1:80"} trailing"#, "json", "trailing"),
        (r#"{"addr":80}"#, "json", "addr"),
        (r#"{"addr":"127.0.0.1:80","weight":"2"}"#, "json", "weight"),
        (r#"{"addr":"127.0.0.1:80","weight":NaN}"#, "json", "expected value"),
        (r#"{"addr":"127.0.0.1:80","weight":1e999}"#, "json", "out of range"),
        (r#"{"addr":"127.0.0.1:80","drain":1}"#, "json", "drain"),
        (r#"{"addr":"127.0.0.1:80","zone":null}"#, "json", "zone"),
        (r#"{"addr":"127.0.0.1:80","labels":{"version":1.4}}"#, "json", "labels.version"),
        (r#"{"addr":"127.0.0.1:80","labels":["a"]}"#, "json", "labels"),
        ("{}", "addr", "no addr"),
        (r#"{"addr":""}"#, "addr", "no port"),
        (r#"{"addr":"127.0.0.1"}"#, "addr", "no port"),
        (r#"{"addr":"::1"}"#, "addr", "no port"),
        (r#"{"addr":"fd00::5:8080:"}"#, "addr", "not a number"),
        (r#"{"addr":"127.0.0.1:"}"#, "addr", "not a number"),
        (r#"{"addr":"127.0.0.1:http"}"#, "addr", "not a number"),
        (r#"{"addr":"127.0.0.1:0"}"#, "addr", "port is 0"),
        (r#"{"addr":"127.0.0.1:70000"}"#, "addr", "65535"),
        (r#"{"addr":"chat.internal:8080"}"#, "addr", "hostname"),
        (r#"{"addr":"localhost:8080"}"#, "addr", "hostname"),
        (r#"{"addr":"10.0.0.256:8080"}"#, "addr", "not an IP address"),
        (r#"{"addr":" 10.0.0.5:8080"}"#, "addr", "not an IP address"),
        (r#"{"addr":"fe80:0:0:0:0:0:0:1:80"}"#, "addr", "brackets"),
        (r#"{"addr":"[fe80::1%2]:80"}"#, "addr", "scope"),
        (r#"{"addr":"127.0.0.1:80","weight":-1}"#, "weight", "0 to 1000"),
        (r#"{"addr":"127.0.0.1:80","weight":-0.001}"#, "weight", "0 to 1000"),
        (r#"{"addr":"127.0.0.1:80","weight":1e9}"#, "weight", "1000000000"),
        (r#"{"addr":"127.0.0.1:80","weight":1000.001}"#, "weight", "1000.001"),
        (r#"{"addr":"127.0.0.1:80","status":"http://h:1"}"#, "status_url", "grpc://"),
        (r#"{"addr":"127.0.0.1:80","status":"grpc://h"}"#, "status_url", "grpc://"),
    ] {
        let err = decode_instance("x", json.as_bytes()).unwrap_err();
        assert_eq!(err.reason(), reason, "{json}: {err}");
        assert!(err.to_string().contains(says), "{json}: {err}");
    }
    assert_eq!(decode_instance("x", b"{\"addr\":\"\xff\"}").unwrap_err().reason(), "json");
}

#[test]
fn a_value_of_1_mb_is_refused_unparsed() {
    let mut json = br#"{"addr":"127.0.0.1:80"}"#.to_vec();
    json.resize(1 << 20, b' ');
    assert_eq!(decode_instance("x", &json).unwrap_err().reason(), "too_large");
    json.truncate(MAX_INSTANCE_BYTES);
    assert!(decode_instance("x", &json).is_ok(), "whitespace within the limit is JSON");

    let entries = vec![InstanceReport::new("chat-1", full_status().into()); 1 << 14];
    let batch = encode_batch(&entries);
    assert!(batch.len() > 1 << 20);
    assert_eq!(decode_batch(&batch).unwrap_err().reason(), "too_large");
}

#[test]
fn a_long_text_is_shortened_before_it_reaches_a_message() {
    let json = format!(r#"{{"addr":"{}"}}"#, "ä".repeat(4000));
    assert!(decode_instance("x", json.as_bytes()).unwrap_err().to_string().len() < 1000);
}

#[test]
fn a_batch_that_is_not_protobuf_is_refused_whole() {
    assert_eq!(decode_batch(b"garbage, not protobuf").unwrap_err().reason(), "protobuf");
    let whole = encode_batch(&[InstanceReport::new("chat-1", full_status().into())]);
    for length in 1..whole.len() {
        let err = decode_batch(&whole[..length]).unwrap_err();
        assert_eq!(err.reason(), "protobuf", "cut to {length} bytes");
    }
    assert!(decode_batch(b"").unwrap().reports.is_empty(), "no bytes are an empty batch");
}

#[test]
fn a_figure_out_of_range_drops_its_status() {
    type Spoil = fn(&mut proto::Status);
    let cases: [(&str, Spoil); 21] = [
        ("boot_id", |s| s.boot_id = 0),
        ("age", |s| s.age = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
        ("age", |s| s.age = Some(prost_types::Duration { seconds: 0, nanos: -1 })),
        ("age", |s| s.age = Some(prost_types::Duration { seconds: 0, nanos: i32::MAX })),
        ("age", |s| s.age = Some(prost_types::Duration { seconds: 86_400, nanos: 1 })),
        ("age", |s| s.age = Some(prost_types::Duration { seconds: i64::MIN, nanos: 0 })),
        ("cpu_used_cores", |s| s.cpu_used_cores = Some(f64::NAN)),
        ("cpu_used_cores", |s| s.cpu_used_cores = Some(f64::INFINITY)),
        ("cpu_used_cores", |s| s.cpu_used_cores = Some(-0.1)),
        ("cpu_limit_cores", |s| s.cpu_limit_cores = Some(f64::NAN)),
        ("cpu_limit_cores", |s| s.cpu_limit_cores = Some(f64::INFINITY)),
        ("cpu_limit_cores", |s| s.cpu_limit_cores = Some(0.0)),
        ("cpu_limit_cores", |s| s.cpu_limit_cores = Some(-0.0)),
        ("cpu_limit_cores", |s| s.cpu_limit_cores = Some(-2.0)),
        ("memory_limit_bytes", |s| s.memory_limit_bytes = Some(0)),
        ("max_in_flight", |s| s.max_in_flight = Some(MAX_IN_FLIGHT + 1)),
        ("application_utilization", |s| s.application_utilization = Some(f64::NAN)),
        ("application_utilization", |s| s.application_utilization = Some(f64::NEG_INFINITY)),
        ("application_utilization", |s| s.application_utilization = Some(f64::INFINITY)),
        ("application_utilization", |s| s.application_utilization = Some(-1.0)),
        ("age", |s| s.age = Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 })),
    ];
    for (field, spoil) in cases {
        let mut message = proto::Status::from(&full_status());
        spoil(&mut message);
        let found = format!("{message:?}");
        let batch = decode_batch(&batch_of(message)).unwrap();
        assert!(batch.reports.is_empty(), "{found}");
        assert_eq!(batch.bad[0].reason(), "status");
        assert!(batch.bad[0].to_string().contains(field), "{}", batch.bad[0]);
    }
}

#[test]
fn a_bad_status_is_dropped_and_those_beside_it_stay() {
    let good = |id: &str| proto::InstanceStatus {
        id: id.into(),
        report: Some(report((&full_status()).into())),
        interval: None,
    };
    let spoiled =
        proto::Status { cpu_used_cores: Some(f64::NAN), ..proto::Status::from(&full_status()) };
    let message = proto::StatusBatch {
        instances: vec![
            good("first"),
            proto::InstanceStatus {
                id: "spoiled".into(),
                report: Some(report(spoiled)),
                interval: None,
            },
            proto::InstanceStatus { id: "empty".into(), report: None, interval: None },
            good(""),
            good("a/b"),
            good("last"),
        ],
    };
    let batch = decode_batch(&message.encode_to_vec()).unwrap();
    let ids: Vec<&str> = batch.reports.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(ids, ["first", "last"]);
    assert_eq!(batch.bad.len(), 4);
    assert!(batch.bad.iter().all(|err| err.reason() == "status"));
}

fn unreachable_for(silent_for: prost_types::Duration) -> Batch {
    let report = proto::instance_status::Report::Unreachable(proto::Unreachable {
        silent_for: Some(silent_for),
    });
    let entry = proto::InstanceStatus { id: "chat-1".into(), report: Some(report), interval: None };
    decode_batch(&proto::StatusBatch { instances: vec![entry] }.encode_to_vec()).unwrap()
}

#[test]
fn an_instance_that_is_down_for_more_than_a_day_is_taken_for_down_for_a_day() {
    for seconds in [86_401, 25 * 3600, i64::MAX] {
        let batch = unreachable_for(prost_types::Duration { seconds, nanos: 999_999_999 });
        assert_eq!(batch.reports[0].report, Report::Unreachable { silent_for: MAX_STATUS_AGE });
        assert!(batch.bad.is_empty());
    }
    for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, 0)] {
        let batch = unreachable_for(prost_types::Duration { seconds, nanos });
        assert!(batch.reports.is_empty());
        assert!(batch.bad[0].to_string().contains("silent_for"), "{}", batch.bad[0]);
    }
}

#[test]
fn no_length_of_time_is_written_that_would_be_refused() {
    let long = Duration::from_secs(25 * 3600);
    let status = |age| Report::from(Status { age, ..full_status() });
    let unreachable = |silent_for| Report::Unreachable { silent_for };
    for (written, read) in [
        (unreachable(long), unreachable(MAX_STATUS_AGE)),
        (unreachable(Duration::MAX), unreachable(MAX_STATUS_AGE)),
        (status(long), status(MAX_STATUS_AGE)),
    ] {
        let entry = InstanceReport { interval: long, ..InstanceReport::new("chat-1", written) };
        let batch = decode_batch(&encode_batch(&[entry])).unwrap();
        let expected =
            InstanceReport { interval: MAX_STATUS_AGE, ..InstanceReport::new("chat-1", read) };
        assert_eq!(batch.reports, [expected]);
    }
}

#[test]
fn an_absent_gauge_is_unknown_and_zero_is_zero() {
    let message = proto::Status { boot_id: 1, in_flight: Some(0), ..Default::default() };
    let status = Status::try_from(message).unwrap();
    assert_eq!(status.in_flight, Some(0));
    assert_eq!(status.queue, None);
    assert_eq!(status.cpu_used_cores, None);
    assert_eq!(status.age, Duration::ZERO);
}

// Readers and writers of different versions meet in etcd, and services were built
// with other versions than the exporter that asks them: what is pinned below may
// be added to, and not changed. A number that was used is never used again.

/// The message is these bytes, and these bytes are the message.
fn assert_bytes<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, parts: &[&[u8]]) {
    let bytes = parts.concat();
    assert_eq!(message.encode_to_vec(), bytes);
    assert_eq!(M::decode(&*bytes).as_ref(), Ok(message));
}

/// A field that holds a message, or text: its tag, the length and the content.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, content.len() as u8], content].concat()
}

/// [`full_status`].
const STATUS: &[&[u8]] = &[
    b"\x08\x87\xe0\x02",             //  1 boot_id
    b"\x10\x02",                     //  2 seq
    b"\x1a\x04\x08\x03\x10\x04",     //  3 age { 1 seconds, 2 nanos }
    b"\x50\x0a",                     // 10 requests
    b"\x58\x0b",                     // 11 errors
    b"\x60\x0c",                     // 12 busy_ns
    b"\x68\x0d",                     // 13 latency_sum_ns
    b"\xa1\x01\0\0\0\0\0\0\xf8\x3f", // 20 cpu_used_cores
    b"\xa9\x01\0\0\0\0\0\0\x00\x40", // 21 cpu_limit_cores
    b"\xb0\x01\x16",                 // 22 memory_used_bytes
    b"\xb8\x01\x17",                 // 23 memory_limit_bytes
    b"\xc0\x01\x18",                 // 24 in_flight
    b"\xc8\x01\x19",                 // 25 queue
    b"\xd1\x01\0\0\0\0\0\0\xe0\x3f", // 26 application_utilization
    b"\xd8\x01\x1b",                 // 27 max_in_flight
];

#[test]
fn the_bytes_of_the_status_service_never_change() {
    let status = || Some(proto::Status::from(&full_status()));
    assert_bytes(&status().unwrap(), STATUS);
    let field_1 = field(b'\x0a', &STATUS.concat());
    assert_bytes(&proto::GetStatusRequest {}, &[]);
    assert_bytes(&proto::GetStatusResponse { status: status() }, &[&field_1]);
    let interval = Some(prost_types::Duration { seconds: 1, nanos: 500 });
    assert_bytes(&proto::WatchStatusRequest { interval }, &[b"\x0a\x05\x08\x01\x10\xf4\x03"]);
    assert_bytes(&proto::WatchStatusResponse { status: status() }, &[&field_1]);
}

#[test]
fn the_bytes_of_a_batch_never_change() {
    let batch = |report, interval| {
        encode_batch(&[InstanceReport { id: "chat-1".into(), report, interval }])
    };
    let expected = |parts: &[&[u8]]| {
        let entry = [b"\x0a\x06chat-1".as_slice(), &parts.concat()].concat(); // 1 id
        field(b'\x0a', &entry) // 1 instances
    };
    let status = field(b'\x12', &STATUS.concat()); // 2 status
    assert_eq!(batch(full_status().into(), Duration::ZERO), expected(&[&status]));
    assert_eq!(batch(Report::Serving, Duration::ZERO), expected(&[b"\x1a\0"])); // 3 serving
    assert_eq!(batch(Report::NotServing, Duration::ZERO), expected(&[b"\x22\0"])); // 4 not_serving
    let silent_for = Duration::new(3, 4);
    assert_eq!(
        batch(Report::Unreachable { silent_for }, Duration::from_secs(5)),
        expected(&[
            b"\x2a\x06\x0a\x04\x08\x03\x10\x04", // 5 unreachable { 1 silent_for }
            b"\x32\x02\x08\x05",                 // 6 interval
        ])
    );
}

#[test]
#[expect(deprecated, reason = "the number of `rps` is taken all the same")]
fn the_bytes_of_orca_are_those_of_its_other_speakers() {
    let one = |name: &str, value| [(name.to_owned(), value)].into();
    let report = xds::data::orca::v3::OrcaLoadReport {
        cpu_utilization: 0.5,
        mem_utilization: 1.0,
        rps: 7,
        request_cost: one("c", 1.5),
        utilization: one("u", 2.0),
        rps_fractional: 0.5,
        eps: 1.0,
        named_metrics: one("n", 1.5),
        application_utilization: 2.0,
    };
    let expected: &[&[u8]] = &[
        b"\x09\0\0\0\0\0\0\xe0\x3f",                  // 1 cpu_utilization
        b"\x11\0\0\0\0\0\0\xf0\x3f",                  // 2 mem_utilization
        b"\x18\x07",                                  // 3 rps
        b"\x22\x0c\x0a\x01c\x11\0\0\0\0\0\0\xf8\x3f", // 4 request_cost
        b"\x2a\x0c\x0a\x01u\x11\0\0\0\0\0\0\x00\x40", // 5 utilization
        b"\x31\0\0\0\0\0\0\xe0\x3f",                  // 6 rps_fractional
        b"\x39\0\0\0\0\0\0\xf0\x3f",                  // 7 eps
        b"\x42\x0c\x0a\x01n\x11\0\0\0\0\0\0\xf8\x3f", // 8 named_metrics
        b"\x49\0\0\0\0\0\0\x00\x40",                  // 9 application_utilization
    ];
    assert_bytes(&report, expected);

    let request = xds::service::orca::v3::OrcaLoadReportRequest {
        report_interval: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        request_cost_names: vec!["a".into(), "b".into()],
    };
    // 1 report_interval { 1 seconds }, 2 request_cost_names
    assert_bytes(&request, &[b"\x0a\x02\x08\x1e", b"\x12\x01a\x12\x01b"]);
}

#[test]
fn a_field_from_a_newer_version_is_passed_over() {
    let newer = [&STATUS.concat(), b"\xa2\x06\x01x".as_slice()].concat(); // 100
    assert_eq!(proto::Status::decode(&*newer), Ok((&full_status()).into()));
}

/// 64 KiB is what a key is meant to hold at the most; a shard has 100 instances.
#[test]
fn a_batch_of_100_instances_is_smaller_than_64_kib_whatever_their_figures() {
    let status = Status {
        boot_id: u64::MAX,
        seq: u64::MAX,
        age: MAX_STATUS_AGE - Duration::from_nanos(1),
        requests: u64::MAX,
        errors: u64::MAX,
        busy_ns: u64::MAX,
        latency_sum_ns: u64::MAX,
        cpu_used_cores: Some(f64::MAX),
        cpu_limit_cores: Some(f64::MAX),
        memory_used_bytes: Some(u64::MAX),
        memory_limit_bytes: Some(u64::MAX),
        in_flight: Some(u64::MAX),
        queue: Some(u64::MAX),
        application_utilization: Some(f64::MAX),
        max_in_flight: Some(MAX_IN_FLIGHT),
    };
    let entry = |n| InstanceReport {
        id: format!("{n:0>width$}", width = MAX_NAME_BYTES),
        report: status.clone().into(),
        interval: MAX_STATUS_AGE - Duration::from_nanos(1),
    };
    let entries: Vec<_> = (0..100).map(entry).collect();
    let batch = encode_batch(&entries);
    assert!(batch.len() < 65_536, "{} bytes", batch.len());
    assert_eq!(decode_batch(&batch).unwrap().reports, entries);
}

#[test]
fn an_announcement_is_json_with_units_in_its_names() {
    let record = ExporterRecord {
        version: "0.1.0".into(),
        listen: "127.0.0.1:9180".parse().unwrap(),
        interval_ms: 1000,
        started_unix_ms: 7,
        registrations: "00c0ffee00c0ffee".into(),
    };
    assert_eq!(
        String::from_utf8(encode_exporter(&record)).unwrap(),
        r#"{"version":"0.1.0","listen":"127.0.0.1:9180","interval_ms":1000,"started_unix_ms":7,"registrations":"00c0ffee00c0ffee"}"#
    );
}

fn any_name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._:-]{1,128}"
}

prop_compose! {
    fn any_status()(
        (boot_id, seq, secs, nanos) in (1u64.., any::<u64>(), 0u64..86_400, 0u32..1_000_000_000),
        (requests, errors, busy_ns, latency_sum_ns) in any::<(u64, u64, u64, u64)>(),
        cpu_used_cores in option::of(0.0..f64::MAX),
        cpu_limit_cores in option::of(f64::MIN_POSITIVE..f64::MAX),
        memory_used_bytes in any::<Option<u64>>(),
        memory_limit_bytes in option::of(1u64..),
        (in_flight, queue) in any::<(Option<u64>, Option<u64>)>(),
        application_utilization in option::of(0.0..f64::MAX),
        max_in_flight in option::of(0..=MAX_IN_FLIGHT),
    ) -> Status {
        Status {
            boot_id, seq, age: Duration::new(secs, nanos), requests, errors, busy_ns,
            latency_sum_ns, cpu_used_cores, cpu_limit_cores, memory_used_bytes,
            memory_limit_bytes, in_flight, queue, application_utilization,
            max_in_flight,
        }
    }
}

prop_compose! {
    fn any_report()(
        id in any_name(),
        report in prop_oneof![
            any_status().prop_map(Report::Status),
            Just(Report::Serving),
            Just(Report::NotServing),
            (0..=86_400u64).prop_map(|secs| Report::Unreachable {
                silent_for: Duration::from_secs(secs),
            }),
        ],
        interval in (0..86_400_000u64).prop_map(Duration::from_millis),
    ) -> InstanceReport {
        InstanceReport { id, report, interval }
    }
}

prop_compose! {
    fn any_instance()(
        id in any_name(),
        (ip, port) in (any::<IpAddr>(), 1u16..),
        // Thousandths, since the last bit of any longer number may change in JSON.
        weight in (0..=1_000_000).prop_map(|thousandths| f64::from(thousandths) / 1000.0),
        zone in ".{0,20}",
        labels in btree_map(".{0,10}", ".{0,10}", 0..4),
        status in option::of((1u16.., any::<bool>())),
        drain in any::<bool>(),
        max_in_flight in 0..=MAX_IN_FLIGHT,
    ) -> Instance {
        let status = status.map(|(port, tls)| StatusUrl {
            tls,
            protocol: StatusProtocol::Grpc,
            authority: format!("10.0.0.5:{port}"),
        });
        Instance { id, addr: SocketAddr::new(ip, port), weight, zone, labels, status, drain, max_in_flight }
    }
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded_as_it_was(
        reports in vec(any_report(), 0..20),
        instance in any_instance(),
        (service, id, shard) in (any_name(), any_name(), any::<u32>()),
    ) {
        let batch = decode_batch(&encode_batch(&reports)).unwrap();
        prop_assert_eq!(batch.reports, reports);
        prop_assert!(batch.bad.is_empty());

        prop_assert_eq!(decode_instance(&instance.id, &encode_instance(&instance)).unwrap(), instance);

        let key = Key::Status { exporter: id, service, shard };
        prop_assert_eq!(parse_key(PREFIX, key.to_path(PREFIX).as_bytes()).unwrap(), key);
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode_batch(&bytes);
        let _ = decode_instance("x", &bytes);
        let _ = parse_key(PREFIX, &bytes);
        let _ = parse_key("", &bytes);
    }

    /// Random bytes seldom get past the first field; a valid batch with
    /// some of its bytes replaced reaches the rest.
    #[test]
    fn a_damaged_batch_never_panics_nor_lets_a_bad_figure_through(
        reports in vec(any_report(), 1..5),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
    ) {
        let mut bytes = encode_batch(&reports);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(batch) = decode_batch(&bytes) {
            for InstanceReport { id, report, interval } in batch.reports {
                prop_assert!(is_name(&id));
                prop_assert!(interval <= MAX_STATUS_AGE);
                let Report::Status(status) = report else { continue };
                prop_assert!(status.age <= MAX_STATUS_AGE);
                prop_assert!(status.cpu_used_cores.is_none_or(|v| v.is_finite() && v >= 0.0));
                prop_assert!(status.cpu_limit_cores.is_none_or(|v| v.is_finite() && v > 0.0));
            }
        }
    }
}
