//! A service's control, what became of it, and what that comes to.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::{cells, duration, or_none, table};
use crate::ctl::control::Standing;
use crate::ctl::hand::Steered;
use crate::ctl::shares::{Out, ShareLine, Shares, Source};
use crate::printable;

/// The order of the keys; others follow.
const KEYS: [&str; 8] = ["mode", "weights", "strategy", "drain", "disable", "by", "why", "expires"];

/// A service's control, a line a key.
pub fn standing(of: &Standing) -> String {
    match &of.control {
        Some(control) => value(&of.service, control),
        None => format!("{} has no control\n", of.service),
    }
}

/// What became of a service's control, or would; and what it comes to.
pub fn steered(of: &Steered) -> String {
    let Steered { service, changed, dry_run, control, undrained, shares } = of;
    if let (false, None, true) = (changed, control, undrained.is_empty()) {
        return format!("{service} has no control\n");
    }
    let became = match (changed, dry_run, control) {
        (false, ..) => "is so already",
        (true, false, Some(_)) => "is changed",
        (true, true, Some(_)) => "would be changed",
        (true, false, None) => "is no longer there",
        (true, true, None) => "would be no longer there",
    };
    let mut text = match (changed, undrained.is_empty()) {
        // The registrations alone are.
        (false, false) => String::new(),
        _ => format!("the control of {service} {became}\n"),
    };
    let verb = if *dry_run { "would be" } else { "is" };
    for id in undrained {
        text += &format!("the drain of {service}/{id}'s registration {verb} taken away\n");
    }
    if let Some(control) = control {
        text += &format!("\n{}", value(service, control));
    }
    if let Some(shares) = shares {
        text += &format!("\n{}", table_of(shares));
    }
    text
}

fn value(service: &str, control: &Map<String, Value>) -> String {
    let others = control.keys().map(String::as_str).filter(|key| !KEYS.contains(key));
    let row = |key: &str| {
        let text = match (key, control.get(key)) {
            ("mode", None) => "auto".to_owned(),
            ("expires", None) => "never".to_owned(),
            ("expires", Some(Value::String(time))) => expiry(time),
            (_, None) => or_none(""),
            (_, Some(value)) => plain(value),
        };
        vec![key.to_owned(), text]
    };
    let mut rows = vec![vec!["service".to_owned(), service.to_owned()]];
    rows.extend(KEYS.into_iter().chain(others).map(row));
    table(rows)
}

/// As an operator types it, where that is possible.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
        Value::Object(entries) if entries.values().all(Value::is_number) => {
            let entry = |(key, value): (&String, &Value)| {
                let number = value.as_f64().unwrap_or_default();
                format!("{key}={number}")
            };
            entries.iter().map(entry).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

fn expiry(time: &str) -> String {
    let left = humantime::parse_rfc3339(time)
        .ok()
        .and_then(|time| time.duration_since(SystemTime::now()).ok())
        .map(|left| Duration::from_secs(left.as_secs()));
    match left {
        Some(left) => format!("{time} (in {})", duration(left)),
        None => format!("{time} (lapsed)"),
    }
}

fn table_of(shares: &Shares) -> String {
    let percent = |part: f64| format!("{:.1} %", part * 100.0);
    let note = |out: Option<Out>| out.map_or(String::new(), |out| out.as_str().to_owned());
    let mut rows = vec![cells(["INSTANCE", "BEFORE", "AFTER", ""])];
    rows.extend(shares.instances.iter().map(|line: &ShareLine| {
        vec![line.id.clone(), percent(line.before), percent(line.after), note(line.out)]
    }));
    let mode = shares.gateway_mode.as_deref().unwrap_or_default();
    let by = match shares.by {
        Source::Registrations => {
            "by the weights of the registrations; --gateway URL asks for those in force".to_owned()
        }
        Source::Gateway => format!("by the weights of the gateway, in mode {mode}"),
        Source::GatewayAndRegistrations => format!(
            "before: by the weights of the gateway, in mode {mode}; after: by those of the \
             registrations, since a gateway shows no others while manual weights are in force"
        ),
    };
    format!("{}{}\n", table(rows), printable::text(&by))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn control(json: Value) -> Option<Map<String, Value>> {
        json.as_object().cloned()
    }

    #[test]
    fn a_control_is_shown_as_it_is_typed_and_keys_of_tomorrow_as_they_are() {
        let control = control(json!({"mode": "manual", "weights": {"a": 3.0, "b": 0.5},
            "drain": ["c", "d"], "by": "ann\u{1b}", "expires": "2001-01-01T00:00:00Z",
            "rules": [{"x": 1}]}));
        let standing_ = Standing { service: "chat".into(), control, lapsed: true };
        let expected = "\
service   chat
mode      manual
weights   a=3 b=0.5
strategy  -
drain     c d
disable   -
by        ann\\u{1b}
why       -
expires   2001-01-01T00:00:00Z (lapsed)
rules     [{\"x\":1}]
";
        assert_eq!(standing(&standing_), expected);
        let none = Standing { service: "chat".into(), control: None, lapsed: false };
        assert_eq!(standing(&none), "chat has no control\n");
    }
}
