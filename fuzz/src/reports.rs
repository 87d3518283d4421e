//! What is said of how instances are: by exporters in etcd, by the instances
//! themselves when they are asked, and in the headers of their responses.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipconfig::model::{MAX_IN_FLIGHT, Report, Status, is_name};
use ipconfig::reckon::{Figures, MAX_LATENCY_MS, MAX_REQUESTS, MAX_UTILIZATION, Reckoner};
use ipconfig::wire::orca::{figures, parse_binary_header, parse_header};
use ipconfig::wire::xds::data::orca::v3::OrcaLoadReport;
use ipconfig::wire::{MAX_BATCH_BYTES, MAX_STATUS_AGE, decode_batch, encode_batch, proto};
use prost::Message;
use tokio::time::Instant;

use super::{Seen, refused, size, taken};

/// `status/<exporter>/<service>/<shard>`.
pub fn batch(bytes: &[u8]) -> Seen {
    let found = match decode_batch(bytes) {
        Ok(found) => found,
        Err(error) => return refused(bytes, &error),
    };
    assert!(bytes.len() <= MAX_BATCH_BYTES);
    for it in &found.reports {
        assert!(is_name(&it.id) && it.interval <= MAX_STATUS_AGE);
        match &it.report {
            Report::Status(status) => assert_is_sound(status),
            Report::Unreachable { silent_for } => assert!(*silent_for <= MAX_STATUS_AGE),
            Report::Serving | Report::NotServing => {}
        }
    }
    let written = encode_batch(&found.reports);
    if written.len() <= MAX_BATCH_BYTES {
        let read = decode_batch(&written).expect("what was written is read");
        assert!(read.bad.is_empty(), "{:?}", read.bad);
        assert_eq!(read.reports, found.reports);
    }
    let kinds = found.reports.iter().take(3).map(|it| std::mem::discriminant(&it.report));
    let bad = found.bad.iter().take(3).map(|bad| refused(bytes, bad));
    taken((kinds.collect::<Vec<_>>(), bad.collect::<Vec<_>>(), size(found.reports.len())))
}

/// The answer of a status service: ours if the first byte is even, ORCA's if it is odd.
pub fn status(bytes: &[u8]) -> Seen {
    match bytes.split_first() {
        None => 0,
        Some((kind, answer)) if kind % 2 == 0 => own_status(answer),
        Some((_, answer)) => match OrcaLoadReport::decode(answer) {
            Ok(report) => figures(&report).map_or_else(|it| refused(answer, &it), told),
            Err(error) => refused(answer, &error),
        },
    }
}

fn own_status(answer: &[u8]) -> Seen {
    let message = match proto::Status::decode(answer) {
        Ok(message) => message,
        Err(error) => return refused(answer, &error),
    };
    match Status::try_from(message) {
        Ok(status) => {
            assert_is_sound(&status);
            let read = Status::try_from(proto::Status::from(&status));
            assert_eq!(read.expect("what was written is read"), status);
            let Status { cpu_used_cores, in_flight, queue, max_in_flight, .. } = status;
            let cpu = status.cpu_utilization().map(|it| it > 1.0);
            let parts = (cpu_used_cores.is_some(), in_flight.is_some(), queue.is_some());
            taken((cpu, status.memory_free_bytes().map(|it| it > 0), parts, max_in_flight > None))
        }
        Err(error) => refused(answer, &error),
    }
}

fn assert_is_sound(status: &Status) {
    assert!(status.boot_id != 0 && status.age <= MAX_STATUS_AGE);
    let is_gauge = |figure: Option<f64>| figure.is_none_or(|it| it.is_finite() && it >= 0.0);
    assert!(is_gauge(status.cpu_used_cores) && is_gauge(status.application_utilization));
    assert!(status.cpu_limit_cores.is_none_or(|it| it.is_finite() && it > 0.0));
    assert!(status.memory_limit_bytes != Some(0));
    assert!(status.max_in_flight.is_none_or(|it| it <= MAX_IN_FLIGHT));
    assert!(status.memory_utilization().is_none_or(f64::is_finite));
}

/// The headers `endpoint-load-metrics` and `endpoint-load-metrics-bin`.
pub fn orca(bytes: &[u8]) -> Seen {
    let binary = match parse_binary_header(bytes) {
        Ok(figures) => told(figures),
        Err(error) => refused(bytes, &error),
    };
    match parse_header(bytes) {
        Ok(figures) => told(figures),
        Err(error) => refused(bytes, &error) ^ binary,
    }
}

/// Figures that were taken: within their ranges, the same in each format, and of no
/// harm to who reckons with them.
fn told(found: Figures) -> Seen {
    let Figures { cpu, application, requests_per_second, errors_per_second, .. } = found;
    let Figures { latency_ms, in_flight, queue, .. } = found;
    for (figure, most) in [
        (cpu, MAX_UTILIZATION),
        (application, MAX_UTILIZATION),
        (Some(requests_per_second), MAX_REQUESTS),
        (Some(errors_per_second), MAX_REQUESTS),
        (latency_ms, MAX_LATENCY_MS),
        (in_flight, MAX_REQUESTS),
        (queue, MAX_REQUESTS),
    ] {
        assert!(figure.is_none_or(|it| (0.0..=most).contains(&it)), "{found:?}");
    }

    let named = [("latency_ms", latency_ms), ("inflight", in_flight), ("queue", queue)];
    let named = named.into_iter().filter_map(|(name, it)| Some((name.to_owned(), it?)));
    let report = OrcaLoadReport {
        cpu_utilization: cpu.unwrap_or(0.0),
        application_utilization: application.unwrap_or(0.0),
        rps_fractional: requests_per_second,
        eps: errors_per_second,
        named_metrics: named.collect(),
        ..OrcaLoadReport::default()
    };
    let base64 = STANDARD.encode(report.encode_to_vec());
    assert_eq!(parse_binary_header(base64.as_bytes()).expect("a sound report"), found);
    let mut text = format!(
        "TEXT cpu_utilization={},application_utilization={},rps_fractional={},eps={}",
        report.cpu_utilization, report.application_utilization, report.rps_fractional, report.eps
    );
    for (name, number) in &report.named_metrics {
        text.push_str(&format!(",named_metrics.{name}:{number}"));
    }
    assert_eq!(parse_header(text.as_bytes()).expect("a sound report"), found);

    let start = Instant::now();
    let mut reckoner = Reckoner::new(7);
    let mut last = 0;
    reckoner.hear(found, start);
    for hours in [1, 24, 365 * 24] {
        let at = start + Duration::from_secs(3600 * hours);
        let status = reckoner.tell(at).expect("something was heard");
        assert_is_sound(&Status { age: Duration::ZERO, ..status.clone() });
        assert!(status.boot_id != 7 || status.requests >= last, "a counter fell");
        last = status.requests;
    }
    let parts = [cpu, application, latency_ms, in_flight, queue].map(|it| it.is_some());
    taken((parts, requests_per_second > 0.0, errors_per_second > 0.0))
}
