//! Tables for people. Text that came from etcd is printed without the characters
//! that would steer a terminal.

use std::fmt::Write;
use std::time::Duration;

use super::hand::{Now, Outcome};
use super::simulate::{PolicyLine, Simulated};
use super::view::{
    BadRecord, ControlLine, ExporterLine, Exporters, Figures, HandLine, InstanceLine, Instances,
    ReportLine, ReportState, Services,
};
use crate::printable;

mod control;
mod explain;

pub use control::{standing, steered};
pub use explain::explained;

/// Between columns.
const GAP: usize = 2;

/// For what there is not.
const NONE: &str = "-";

/// What was done, in one line.
pub fn outcome(outcome: &Outcome) -> String {
    let Outcome { service, id, now, changed } = outcome;
    let already = if *changed { "" } else { " already" };
    let now = match now {
        Now::Registered => "is registered",
        Now::Deregistered => "is deregistered",
    };
    format!("{service}/{id} {now}{already}\n")
}

/// A line a service.
pub fn services(view: &Services) -> String {
    let mut rows = vec![cells(["SERVICE", "INSTANCES", "DRAINING", "BAD", "CONTROL"])];
    rows.extend(view.services.iter().map(|line| {
        let counts = [line.instances, line.draining, line.bad].map(|count| count.to_string());
        let control = line.control.as_ref().map_or(NONE.to_owned(), control_line);
        [vec![line.service.clone()], counts.to_vec(), vec![control]].concat()
    }));
    table(rows) + &bad_records(&view.bad)
}

/// A line an instance.
pub fn instances(view: &Instances) -> String {
    let head = ["ID", "ADDR", "WEIGHT", "ZONE", "STATUS", "DRAIN", "LEASE", "CONTROL", "REPORT"];
    let mut rows = vec![cells(head)];
    rows.extend(view.instances.iter().map(|line| {
        vec![
            line.id.clone(),
            line.addr.clone(),
            line.weight.to_string(),
            or_none(&line.zone),
            line.status.clone().unwrap_or_else(|| NONE.to_owned()),
            yes_or_no(line.drain),
            yes_or_no(line.leased),
            line.control.as_ref().map_or(NONE.to_owned(), hand_line),
            report(line.report.as_ref()),
        ]
    }));
    table(rows) + &bad_records(&view.bad)
}

/// One instance, a line for each thing that is known of it.
pub fn instance(line: &InstanceLine) -> String {
    let labels: Vec<_> =
        line.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut rows = vec![
        vec!["service".to_owned(), line.service.clone()],
        vec!["id".to_owned(), line.id.clone()],
        vec!["addr".to_owned(), line.addr.clone()],
        vec!["weight".to_owned(), line.weight.to_string()],
        vec!["zone".to_owned(), or_none(&line.zone)],
        vec!["labels".to_owned(), or_none(&labels.join(" "))],
        vec!["status".to_owned(), or_none(line.status.as_deref().unwrap_or_default())],
        vec!["drain".to_owned(), yes_or_no(line.drain)],
        vec!["limit".to_owned(), limit(line.max_in_flight)],
        vec!["lease".to_owned(), yes_or_no(line.leased)],
        vec!["control".to_owned(), line.control.as_ref().map_or(NONE.to_owned(), hand_line)],
        vec!["why".to_owned(), or_none(line.control.as_ref().map_or("", |it| it.why.as_str()))],
        vec!["report".to_owned(), report(line.report.as_ref())],
    ];
    if let Some(figures) = line.report.as_ref().and_then(|report| report.figures.as_ref()) {
        rows.extend(figure_rows(figures));
    }
    table(rows)
}

fn limit(max_in_flight: u32) -> String {
    match max_in_flight {
        0 => NONE.to_owned(),
        max => format!("{max} in flight, for each gateway host"),
    }
}

/// What is in force for a service, and by whom.
fn control_line(line: &ControlLine) -> String {
    let counted = |count: usize, what: &str| (count > 0).then(|| format!("{count} {what}"));
    let parts = [
        line.manual.then(|| "manual weights".to_owned()),
        line.strategy.map(str::to_owned),
        counted(line.drained, "drained"),
        counted(line.disabled, "disabled"),
        line.rules.map(|count| match count {
            0 => "no rules".to_owned(),
            1 => "1 rule".to_owned(),
            count => format!("{count} rules"),
        }),
    ];
    signed(parts, &line.by)
}

/// What is in force for an instance, and by whom.
fn hand_line(line: &HandLine) -> String {
    let parts = [
        line.disabled.then(|| "disabled".to_owned()),
        line.drained.then(|| "drained".to_owned()),
        line.weight.map(|weight| format!("weight {weight}")),
    ];
    signed(parts, &line.by)
}

fn signed<const N: usize>(parts: [Option<String>; N], by: &str) -> String {
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    let by = if by.is_empty() { String::new() } else { format!(" ({by})") };
    format!("{}{by}", or_none(&parts.join(", ")))
}

/// A line an exporter.
pub fn exporters(view: &Exporters) -> String {
    let mut rows = vec![cells(["EXPORTER", "VERSION", "LISTEN", "INTERVAL"])];
    rows.extend(view.exporters.iter().map(|line| {
        let interval = line.record.get("interval_ms").and_then(serde_json::Value::as_u64);
        let interval = interval.map(|ms| duration(Duration::from_millis(ms)));
        vec![
            line.id.clone(),
            text(line, "version"),
            text(line, "listen"),
            interval.unwrap_or_else(|| NONE.to_owned()),
        ]
    }));
    table(rows)
}

/// A line a policy, below what the scenario is about.
pub fn simulated(of: &Simulated) -> String {
    let head =
        ["POLICY", "MEAN", "P50", "P99", "P99.9", "ERRORS", "IN FLIGHT", "OSCILLATION", "CV UTIL"];
    let mut rows = vec![cells(head)];
    let is_governed = of.policies.iter().any(|line| line.summary.governed.is_some());
    if is_governed {
        rows[0].extend(cells(["TRIES", "DENIED", "EJECTIONS", "PANIC"]));
    }
    rows.extend(of.policies.iter().map(|PolicyLine { policy, summary, .. }| {
        let governed = match &summary.governed {
            _ if !is_governed => Vec::new(),
            None => cells([NONE; 4]),
            Some(it) => vec![
                format!("{:.2}", it.tries),
                format!("{:.2} %", it.denied * 100.0),
                format!("{:.1}", it.ejected_s.len() as f64 / of.seeds.len().max(1) as f64),
                format!("{:.0} %", it.panic * 100.0),
            ],
        };
        let figures = vec![
            policy.clone(),
            ms(summary.mean_ms),
            ms(summary.p50_ms),
            ms(summary.p99_ms),
            ms(summary.p999_ms),
            format!("{:.2} %", (summary.failed + summary.timed_out) * 100.0),
            format!("{:.1}, up to {}", summary.mean_in_flight, summary.max_in_flight),
            format!("{:.2}", summary.oscillation),
            format!("{:.2}", summary.utilization_cv),
        ];
        [figures, governed].concat()
    }));
    let about = if of.about.is_empty() { String::new() } else { format!(": {}", of.about) };
    let seeds: Vec<_> = of.seeds.iter().map(u64::to_string).collect();
    let word = if seeds.len() == 1 { "seed" } else { "seeds" };
    let title = format!("{}{about} ({word} {}; ms)", of.scenario, seeds.join(", "));
    format!("{}\n{}\n", printable::text(&title), table(rows))
}

/// Milliseconds, to three digits or to the whole one.
fn ms(time: f64) -> String {
    match time {
        time if time < 10.0 => format!("{time:.2}"),
        time if time < 100.0 => format!("{time:.1}"),
        time => format!("{time:.0}"),
    }
}

fn text(line: &ExporterLine, field: &str) -> String {
    or_none(line.record.get(field).and_then(serde_json::Value::as_str).unwrap_or_default())
}

fn report(report: Option<&ReportLine>) -> String {
    let Some(ReportLine { exporter, state, silent_ms, .. }) = report else {
        return NONE.to_owned();
    };
    let state = match state {
        ReportState::Reporting => "reporting".to_owned(),
        ReportState::Serving => "serving".to_owned(),
        ReportState::NotServing => "not serving".to_owned(),
        ReportState::Unreachable => {
            let silent = Duration::from_millis(silent_ms.unwrap_or_default());
            format!("unreachable for {}", duration(silent))
        }
    };
    format!("{state} ({exporter})")
}

fn figure_rows(figures: &Figures) -> Vec<Vec<String>> {
    let mut rows = vec![vec![
        "requests".to_owned(),
        format!("{}, {} of them failed", figures.requests, figures.errors),
    ]];
    if let Some(mean_ns) = figures.latency_sum_ns.checked_div(figures.requests) {
        let mean_ms = Duration::from_nanos(mean_ns).as_secs_f64() * 1e3;
        rows.push(vec!["latency".to_owned(), format!("{mean_ms:.1} ms on average")]);
    }
    let used_of = |used: Option<String>, limit: Option<String>| match (used, limit) {
        (Some(used), Some(limit)) => Some(format!("{used} of {limit}")),
        (used, None) => used,
        (None, Some(limit)) => Some(format!("? of {limit}")),
    };
    let cores = |cores: f64| format!("{cores:.2} cores");
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let cpu = used_of(figures.cpu_used_cores.map(cores), figures.cpu_limit_cores.map(cores));
    let memory = used_of(figures.memory_used_bytes.map(mib), figures.memory_limit_bytes.map(mib));
    let others = [
        ("cpu", cpu),
        ("memory", memory),
        ("in flight", figures.in_flight.map(|count| count.to_string())),
        ("queue", figures.queue.map(|count| count.to_string())),
        ("utilization", figures.application_utilization.map(|part| format!("{part:.2}"))),
    ];
    rows.extend(others.into_iter().filter_map(|(name, it)| Some(vec![name.to_owned(), it?])));
    rows
}

fn bad_records(bad: &[BadRecord]) -> String {
    bad.iter().fold(String::new(), |mut lines, BadRecord { key, error, .. }| {
        _ = writeln!(lines, "bad: {}: {}", printable::text(key), printable::text(error));
        lines
    })
}

/// Rows with their columns aligned; the last one is as long as it is.
fn table(mut rows: Vec<Vec<String>>) -> String {
    for cell in rows.iter_mut().flatten() {
        *cell = printable::text(cell);
    }
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0) + GAP).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

fn cells<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn yes_or_no(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn or_none(text: &str) -> String {
    if text.is_empty() { NONE } else { text }.to_owned()
}

fn duration(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_heads_and_lines_end_with_text() {
        let rows = vec![cells(["ID", "ADDR", "Z"]), cells(["chat-1", "127.0.0.1:9001", "b"])];
        assert_eq!(table(rows), "ID      ADDR            Z\nchat-1  127.0.0.1:9001  b\n");
    }

    #[test]
    fn what_a_record_says_does_not_reach_the_terminal_as_a_command() {
        let printed = table(vec![vec!["\x1b[2Jb\nc\u{9b}ä".to_owned()]]);
        assert_eq!(printed, "\\u{1b}[2Jb\\nc\\u{9b}ä\n");
    }
}
