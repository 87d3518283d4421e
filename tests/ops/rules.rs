//! The scrape configuration, and the recording and alert rules.

use std::collections::BTreeSet;

use crate::pages::{System, get, promtool, series};
use crate::promql::Named;

const RULES: &str = include_str!("../../examples/prometheus/ipconfig.rules.yml");
const TESTS: &str = include_str!("../../examples/prometheus/ipconfig.test.yml");

/// What stands behind `key: ` in the rules.
fn values(key: &str) -> BTreeSet<String> {
    let key = format!("{key}: ");
    let lines = RULES.lines().map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| Some(line.strip_prefix(&key)?.to_owned())).collect()
}

/// The names of the series that the rules record.
pub fn records() -> BTreeSet<String> {
    values("record")
}

/// Each rule's expression, of one line or of an indented block.
fn exprs() -> Vec<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut lines = RULES.lines().peekable();
    let mut exprs = Vec::new();
    while let Some(line) = lines.next() {
        let Some(expr) = line.trim_start().strip_prefix("expr: ") else { continue };
        let mut expr = expr.trim_start_matches('|').to_owned();
        while let Some(more) = lines.next_if(|next| depth(next) > depth(line)) {
            expr.push_str(more);
        }
        exprs.push(expr);
    }
    exprs
}

#[test]
fn promtool_takes_the_configuration_the_rules_and_their_tests() {
    for arguments in [
        ["check", "config", "examples/prometheus/prometheus.yml"],
        ["check", "rules", "examples/prometheus/ipconfig.rules.yml"],
        ["test", "rules", "examples/prometheus/ipconfig.test.yml"],
    ] {
        let (is_well, said) = promtool(&arguments, "");
        assert!(is_well, "promtool {arguments:?}: {said}");
    }
}

#[test]
fn every_alert_is_seen_to_fire_and_says_what_to_do() {
    let alerts = values("alert");
    assert!(alerts.len() >= 20, "{alerts:?}");
    for alert in &alerts {
        assert!(TESTS.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
    }
    for annotation in ["summary", "action"] {
        assert_eq!(values(annotation).len(), alerts.len(), "of {annotation}");
    }
}

#[tokio::test]
async fn every_rule_asks_for_what_is_there() {
    let system = System::start().await;
    let [gateway, exporter] = system.pages().await;
    let etcd = get(system.etcd.address(), "/metrics").await;
    let mut known = records();
    known.extend([gateway, exporter, etcd].iter().flat_map(|page| series(page)));
    known.insert("up".to_owned());
    let exprs = exprs();
    assert!(exprs.len() >= 30, "{exprs:?}");
    for expr in exprs {
        let unknown: Vec<_> = Named::of(&expr).metrics.difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "no series {unknown:?} for {expr}");
    }
}
