//! The dashboard: valid, and about series that there are.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::pages::{System, get, labels, promtool, series};
use crate::promql::Named;
use crate::rules::records;

fn dashboard() -> Value {
    let text = include_str!("../../examples/grafana/ipconfig.json");
    serde_json::from_str(text).expect("the dashboard is JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key} in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

/// The panels that show something; rows only divide.
fn panels(dashboard: &Value) -> Vec<&Value> {
    list(dashboard, "panels").iter().filter(|panel| panel["type"] != "row").collect()
}

/// Every expression, as Prometheus gets it.
fn exprs(dashboard: &Value) -> Vec<String> {
    let targets = panels(dashboard).into_iter().flat_map(|panel| list(panel, "targets"));
    targets.map(|target| text(target, "expr").replace("$__rate_interval", "1m")).collect()
}

/// What the variables' choices are read from: `label_values(series, label)`.
fn choices(dashboard: &Value) -> Vec<(String, String)> {
    let variables = list(&dashboard["templating"], "list").iter();
    let queries = variables.filter_map(|variable| variable["query"]["query"].as_str());
    let choice = |query: &str| {
        let inner = query.strip_prefix("label_values(")?.strip_suffix(')')?;
        let (series, label) = inner.rsplit_once(", ")?;
        Some((series.to_owned(), label.to_owned()))
    };
    queries.map(|query| choice(query).unwrap_or_else(|| panic!("{query}"))).collect()
}

#[test]
fn every_panel_has_an_id_a_title_an_explanation_a_unit_and_a_place() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36), "{}", dashboard["schemaVersion"]);
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in list(&dashboard, "panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "an id twice: {panel}");
        assert!(!text(panel, "title").is_empty(), "{panel}");
        let place = &panel["gridPos"];
        let [x, y, width] = ["x", "y", "w"].map(|key| place[key].as_u64().expect("a number"));
        assert!(x + width <= 24, "{panel}");
        assert!(places.insert((x, y)), "two panels at {x}, {y}: {panel}");
    }
    for panel in panels(&dashboard) {
        assert!(text(panel, "description").ends_with('.'), "{panel}");
        assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
    }
}

#[test]
fn every_expression_is_valid_and_every_variable_in_it_is_declared() {
    let dashboard = dashboard();
    let variables = list(&dashboard["templating"], "list").iter();
    let declared: BTreeSet<_> = variables.map(|variable| text(variable, "name")).collect();
    let mut rules = "groups: [{ name: dashboard, rules: [\n".to_owned();
    for (index, expr) in exprs(&dashboard).into_iter().enumerate() {
        for used in expr.split('$').skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(declared.contains(used), "no variable {used} for {expr}");
        }
        let expr = Value::from(expr);
        rules.push_str(&format!("{{ record: panel:{index}, expr: {expr} }},\n"));
    }
    rules.push_str("] }]\n");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.yml");
    std::fs::write(&path, rules).unwrap();
    let (is_well, said) = promtool(&["check", "rules", path.to_str().unwrap()], "");
    assert!(is_well, "{said}");
}

#[tokio::test]
async fn every_metric_and_label_of_the_dashboard_is_there() {
    let system = System::start().await;
    let [gateway, exporter] = system.pages().await;
    let own = [gateway, exporter];
    let etcd = get(system.etcd.address(), "/metrics").await;
    let mut metrics = records();
    metrics.extend(own.iter().chain([&etcd]).flat_map(|page| series(page)));
    let mut known_labels: BTreeSet<String> = own.iter().flat_map(|page| labels(page)).collect();
    // Prometheus has a label `instance` of its own, and renames that of the pages.
    assert!(known_labels.contains("instance"), "{known_labels:?}");
    known_labels.extend(["exported_instance", "job"].map(str::to_owned));

    let dashboard = dashboard();
    let (read, shown): (Vec<_>, Vec<_>) = choices(&dashboard).into_iter().unzip();
    for label in shown {
        assert!(known_labels.contains(&label), "no label {label} for a variable");
    }
    for expr in exprs(&dashboard).into_iter().chain(read) {
        let named = Named::of(&expr);
        assert!(!named.metrics.is_empty(), "{expr}");
        let unknown: Vec<_> = named.metrics.difference(&metrics).collect();
        assert!(unknown.is_empty(), "no series {unknown:?} for {expr}");
        let unknown: Vec<_> = named.labels.difference(&known_labels).collect();
        assert!(unknown.is_empty(), "no label {unknown:?} for {expr}");
    }
}
