//! What came of it: a table by kind, and a JSON file with every fault.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::fault::Kind;
use crate::table::{Table, median};
use crate::traffic::Count;

/// One fault, and what came of it.
#[derive(Serialize)]
pub struct Fault {
    pub number: usize,
    pub kind: Kind,
    /// Members of etcd.
    pub members: usize,
    /// Since the begin.
    pub at_ms: u64,
    /// From when it was done until it was undone.
    pub lasted_ms: u64,
    /// Until no gateway offered the instance that was gone.
    pub out_ms: Option<u64>,
    /// From when it was undone until everything was right again.
    pub right_ms: Option<u64>,
    /// What was not as it should be.
    pub wrong: Option<String>,
    #[serde(flatten)]
    pub requests: Count,
}

impl Fault {
    /// Whether nothing failed and everything was right in the end.
    pub fn is_survived(&self) -> bool {
        self.requests.failed == 0 && self.wrong.is_none()
    }
}

/// All of it.
#[derive(Serialize)]
pub struct Report {
    pub seed: u64,
    pub requests_per_second: f64,
    pub faults: Vec<Fault>,
    /// What was found amiss at the end, or in the logs.
    pub amiss: Vec<String>,
}

impl Report {
    /// Whether every fault was survived and nothing else was amiss.
    pub fn is_good(&self) -> bool {
        self.amiss.is_empty() && self.faults.iter().all(Fault::is_survived)
    }

    /// Prints the table.
    pub fn print(&self) {
        let mut by_kind = BTreeMap::<Kind, Vec<&Fault>>::new();
        for fault in &self.faults {
            by_kind.entry(fault.kind).or_default().push(fault);
        }
        let mut table = Table::new(&[
            "fault",
            "times",
            "requests",
            "avoidable",
            "lost",
            "reconnected",
            "moved on",
            "out s",
            "max",
            "right s",
            "max",
            "slowest s",
            "equal",
        ]);
        for (kind, faults) in &by_kind {
            table.row(row(&name(*kind), faults));
        }
        table.row(row("all", &self.faults.iter().collect::<Vec<_>>()));
        table.print();
        for fault in self.faults.iter().filter(|fault| !fault.is_survived()) {
            let Fault { number, kind, wrong, requests, .. } = fault;
            let failures = requests.failures.join("\n    ");
            println!("\nfault {number}, {}: {} avoidable failures", name(*kind), requests.failed);
            if let Some(wrong) = wrong {
                println!("    {wrong}");
            }
            if !failures.is_empty() {
                println!("    {failures}");
            }
        }
        for what in &self.amiss {
            println!("\namiss: {what}");
        }
    }
}

/// As the command line has it.
pub fn name(kind: Kind) -> String {
    kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn row(name: &str, faults: &[&Fault]) -> Vec<String> {
    let sum = |of: fn(&Count) -> u64| faults.iter().map(|it| of(&it.requests)).sum::<u64>();
    let times = |of: fn(&Fault) -> Option<u64>| {
        let times: Vec<f64> = faults.iter().filter_map(|it| of(it)).map(seconds).collect();
        if times.is_empty() {
            return ["-".to_owned(), "-".to_owned()];
        }
        [median(&times), times.iter().copied().fold(0.0, f64::max)].map(|it| format!("{it:.1}"))
    };
    let ([out, out_max], [right, right_max]) = (times(|it| it.out_ms), times(|it| it.right_ms));
    let longest = faults.iter().map(|it| it.requests.longest_ms).max().unwrap_or_default();
    let equal = faults.iter().filter(|it| it.wrong.is_none()).count();
    vec![
        name.to_owned(),
        faults.len().to_string(),
        sum(|it| it.sent).to_string(),
        sum(|it| it.failed).to_string(),
        sum(|it| it.lost).to_string(),
        sum(|it| it.reconnected).to_string(),
        sum(|it| it.moved_on).to_string(),
        out,
        out_max,
        right,
        right_max,
        format!("{:.1}", seconds(longest)),
        format!("{equal}/{}", faults.len()),
    ]
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}
