use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::reckon::{MAX_LATENCY_MS, MAX_REQUESTS};

fn report(rps_fractional: f64, eps: f64, named: &[(&str, f64)]) -> OrcaLoadReport {
    let named_metrics = named.iter().map(|(name, value)| ((*name).to_owned(), *value));
    OrcaLoadReport {
        cpu_utilization: 0.25,
        rps_fractional,
        eps,
        named_metrics: named_metrics.collect(),
        ..Default::default()
    }
}

fn parse(header: &str) -> Result<Figures, HeaderError> {
    parse_header(header.as_bytes())
}

/// Of a report that cannot be taken.
fn refusal(header: &str) -> String {
    parse(header).unwrap_err().to_string()
}

#[test]
fn every_format_says_the_same() {
    let expected = Figures {
        cpu: Some(0.7),
        application: Some(0.9),
        requests_per_second: 1000.0,
        errors_per_second: 2.0,
        latency_ms: Some(12.5),
        in_flight: Some(0.0),
        queue: Some(3.0),
    };
    for header in [
        "TEXT cpu_utilization=0.7,application_utilization=0.9,rps_fractional=1000,eps=2,\
         named_metrics.latency_ms=12.5,named_metrics.inflight=0,named_metrics.queue=3",
        "TEXT cpu_utilization:0.7, application_utilization : .9 ,rps:1000,eps=2e0,\
         named_metrics.latency_ms=12.5,named_metrics.in_flight=0,named_metrics.queue:3,\
         named_metrics.foo=123,utilization.total=0.5,mem_utilization=1",
        r#"JSON {"cpu_utilization": 0.7, "application_utilization": 0.9, "rps": 1000, "eps": 2,
           "named_metrics": {"latency_ms": 12.5, "in_flight": 0, "queue": 3, "foo": -1}}"#,
        r#"JSON {"cpuUtilization": "0.7", "applicationUtilization": 9e-1, "rpsFractional": 1e3,
           "rps": "1", "eps": 2, "namedMetrics": {"latency_ms": 12.5, "inflight": 0, "queue": 3},
           "utilization": {"total": 0.5}, "requestCost": null, "a": ["newer", {"field": 1}]}"#,
    ] {
        assert_eq!(parse(header).unwrap(), expected, "{header}");
    }
}

#[test]
fn padding_may_be_there_or_not() {
    for name in ["a", "ab", "abc"] {
        let bytes = report(1.0, 0.0, &[(name, 3.0)]).encode_to_vec();
        for text in [STANDARD.encode(&bytes), STANDARD_NO_PAD.encode(&bytes)] {
            assert_eq!(parse_binary_header(text.as_bytes()).unwrap().cpu, Some(0.25), "{text}");
            assert_eq!(parse(&format!("BIN {text}")).unwrap().cpu, Some(0.25), "{text}");
        }
    }
    assert_eq!(parse("BIN CWZmZmZmZuY/").unwrap().cpu, Some(0.7), "as the module's head says");
}

#[test]
fn a_name_that_came_before_is_refused_in_whatever_spelling() {
    for header in [
        "TEXT cpu_utilization=0.1,cpu_utilization=0.1",
        "TEXT foo=1,foo=1",
        "TEXT named_metrics.queue=1,eps=1,named_metrics.queue:2",
        r#"JSON {"eps": 1, "eps": 1}"#,
        r#"JSON {"cpu_utilization": 0.1, "cpuUtilization": 0.1}"#,
        r#"JSON {"named_metrics": {"foo": 1, "foo": 1}}"#,
    ] {
        assert!(parse(header).is_err(), "{header}");
    }
}

#[test]
fn what_is_no_report_is_refused() {
    for header in [
        "",
        "TEXT",
        "TEXT ",
        "TEXT ,",
        "TEXT eps",
        "TEXT eps=",
        "TEXT =1",
        "TEXT eps=1,",
        "eps=1",
        "text eps=1",
        "TEXTeps=1",
        "TEXT eps=1;cpu_utilization=0.1",
        "TEXT eps=0x1",
        "TEXT eps=1 2",
        "TEXT eps=1, TEXT foo=1",
        "TEXT ep s=1",
        "TEXT \u{e9}=1",
        "JSON",
        "JSON ",
        "JSON {",
        "JSON []",
        "JSON [0.1, 0.2]",
        "JSON 1",
        "JSON {\"eps\": []}",
        "JSON {\"eps\": 1} x",
        "JSON {\"eps\": 1e999}",
        "JSON {\"eps\": \"much\"}",
        "JSON {\"eps\": true}",
        "JSON {\"named_metrics\": 1}",
        "JSON {\"named_metrics\": {\"queue\": null}}",
        "JSON {\"named_metrics\": {\"queue\": \"long\"}}",
        "TEXT named_metrics.queue=long",
        "BIN",
        "BIN !",
        "BIN /w",
        "BIN CWZmZmZmZuY",
        "XML <a/>",
    ] {
        assert!(parse(header).is_err(), "{header}");
    }
}

#[test]
fn a_report_with_a_figure_that_cannot_be_is_refused_whole() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300] {
        let sane = report(100.0, 0.0, &[]);
        for report in [
            OrcaLoadReport { cpu_utilization: bad, ..sane.clone() },
            OrcaLoadReport { mem_utilization: bad, ..sane.clone() },
            OrcaLoadReport { application_utilization: bad, ..sane.clone() },
            OrcaLoadReport { rps_fractional: bad, ..sane.clone() },
            OrcaLoadReport { eps: bad, ..sane },
            report(100.0, 0.0, &[("latency_ms", bad)]),
            report(100.0, 0.0, &[("inflight", bad)]),
            report(100.0, 0.0, &[("queue", bad)]),
        ] {
            assert!(figures(&report).is_err(), "{report:?}");
            let binary = STANDARD.encode(report.encode_to_vec());
            assert!(parse_binary_header(binary.as_bytes()).is_err(), "{report:?}");
        }
        for name in [
            "cpu_utilization",
            "mem_utilization",
            "application_utilization",
            "rps_fractional",
            "rps",
            "eps",
            "named_metrics.latency_ms",
            "named_metrics.in_flight",
            "named_metrics.queue",
        ] {
            assert!(parse(&format!("TEXT {name}={bad}")).is_err(), "{name} {bad}");
            let json = match name.strip_prefix("named_metrics.") {
                Some(name) => format!(r#"JSON {{"named_metrics": {{"{name}": "{bad}"}}}}"#),
                None => format!(r#"JSON {{"{name}": "{bad}"}}"#),
            };
            assert!(parse(&json).is_err(), "{json}");
        }
    }
    assert!(figures(&report(1.0, 0.0, &[("my_own", f64::NAN)])).is_ok(), "of no account");
}

#[test]
fn rounded_rates_of_older_servers_count() {
    #[expect(deprecated, reason = "older servers have no rps_fractional")]
    let report = OrcaLoadReport { rps: 70, ..Default::default() };
    assert_eq!(figures(&report).unwrap().requests_per_second, 70.0);
}

#[test]
fn an_error_repeats_little_of_what_it_found_and_on_one_line() {
    let text = refusal(&format!("TEXT eps=1,{}\n", "x".repeat(5000)));
    assert!(text.len() < 500 && !text.contains('\n'), "{text}");
}

#[test]
fn a_long_header_is_refused_unread_and_the_longest_is_read() {
    let padded = |len: usize| format!("TEXT eps=1,x={}", "1".repeat(len - 13));
    assert!(parse(&padded(MAX_HEADER_BYTES)).is_ok());
    for len in [MAX_HEADER_BYTES + 1, 64 * 1024] {
        assert!(
            matches!(parse(&padded(len)), Err(HeaderError::TooLarge { found_bytes }) if found_bytes == len)
        );
        let text = "A".repeat(len);
        let refused = parse_binary_header(text.as_bytes());
        assert!(matches!(refused, Err(HeaderError::TooLarge { .. })));
    }
}

fn any_report() -> impl Strategy<Value = OrcaLoadReport> {
    let utilization = 0.0..=MAX_UTILIZATION;
    let requests = 0.0..=MAX_REQUESTS;
    (
        (utilization.clone(), utilization.clone(), utilization),
        (requests.clone(), requests.clone()),
        option::of(0.0..=MAX_LATENCY_MS),
        option::of(requests.clone()),
        option::of(requests),
    )
        .prop_map(|((cpu, memory, application), (rps, eps), latency_ms, in_flight, queue)| {
            let named = [("latency_ms", latency_ms), ("inflight", in_flight), ("queue", queue)];
            let named = named.into_iter().filter_map(|(name, it)| Some((name.to_owned(), it?)));
            OrcaLoadReport {
                cpu_utilization: cpu,
                mem_utilization: memory,
                application_utilization: application,
                rps_fractional: rps,
                eps,
                named_metrics: named.collect(),
                ..Default::default()
            }
        })
}

fn to_text(report: &OrcaLoadReport) -> String {
    let mut text = format!(
        "TEXT cpu_utilization={},mem_utilization={},application_utilization={},rps_fractional={},eps={}",
        report.cpu_utilization,
        report.mem_utilization,
        report.application_utilization,
        report.rps_fractional,
        report.eps
    );
    for (name, value) in &report.named_metrics {
        text += &format!(",named_metrics.{name}={value}");
    }
    text
}

fn to_json(report: &OrcaLoadReport) -> String {
    let json = serde_json::json!({
        "cpuUtilization": report.cpu_utilization,
        "memUtilization": report.mem_utilization,
        "applicationUtilization": report.application_utilization,
        "rpsFractional": report.rps_fractional,
        "eps": report.eps,
        "namedMetrics": report.named_metrics,
    });
    format!("JSON {json}")
}

proptest! {
    #[test]
    fn the_formats_of_one_report_give_the_same_figures(report in any_report()) {
        let expected = figures(&report).unwrap();
        let binary = STANDARD_NO_PAD.encode(report.encode_to_vec());
        prop_assert_eq!(parse(&to_text(&report)).unwrap(), expected);
        prop_assert_eq!(parse(&format!("BIN {binary}")).unwrap(), expected);
        prop_assert_eq!(parse_binary_header(binary.as_bytes()).unwrap(), expected);
        // serde_json's reading of a decimal may be off by one in the last place.
        let json = parse(&to_json(&report)).unwrap();
        let near = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * b,
            (a, b) => a == b,
        };
        prop_assert!(near(json.cpu, expected.cpu));
        prop_assert!(near(json.application, expected.application));
        prop_assert!(near(Some(json.requests_per_second), Some(expected.requests_per_second)));
        prop_assert!(near(Some(json.errors_per_second), Some(expected.errors_per_second)));
        prop_assert!(near(json.latency_ms, expected.latency_ms));
        prop_assert!(near(json.in_flight, expected.in_flight));
        prop_assert!(near(json.queue, expected.queue));
    }

    #[test]
    fn no_bytes_panic_nor_let_a_bad_figure_through(
        prefix in prop::sample::select(&["", "TEXT ", "JSON ", "JSON {\"", "BIN "][..]),
        bytes in vec(any::<u8>(), 0..200),
    ) {
        let header = [prefix.as_bytes(), &bytes].concat();
        for figures in [parse_binary_header(&bytes), parse_header(&header)].into_iter().flatten() {
            prop_assert!(figures.checked().is_ok());
        }
    }

    /// Random bytes seldom get far; a report with some of its bytes replaced does.
    #[test]
    fn a_damaged_report_never_panics_nor_lets_a_bad_figure_through(
        report in any_report(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let binary = format!("BIN {}", STANDARD.encode(report.encode_to_vec()));
        for header in [to_text(&report), to_json(&report), binary] {
            let mut bytes = header.into_bytes();
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Ok(figures) = parse_header(&bytes) {
                prop_assert!(figures.checked().is_ok());
            }
        }
    }
}
