//! Why each instance of a service gets what it gets.

use serde_json::Value;

use super::{NONE, cells, table};

/// A line an instance: the factors of its weight, in their order, and what they rest on.
pub fn explained(of: &Value) -> String {
    let head = [
        "INSTANCE",
        "STATE",
        "SAMPLES",
        "AGE",
        "SCORE",
        "CAPACITY",
        "BASE",
        "HEALTH",
        "ZONE",
        "SLOW START",
        "SHARE",
        "IN FLIGHT",
        "RULES",
    ];
    let mut rows = vec![cells(head)];
    let list = |key: &str| of[key].as_array().cloned().unwrap_or_default();
    for line in list("instances") {
        let factors = &line["factors"];
        let rules: Vec<&str> =
            line["rules"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        rows.push(vec![
            text(&line["id"]),
            text(&line["state"]),
            text(&line["samples"]),
            figure(&line["report_age_ms"], |ms| format!("{:.1} s", ms / 1e3)),
            figure(&line["score"], |it| format!("{it:.3}")),
            figure(&line["capacity_per_s"], |it| format!("{it:.0}/s")),
            figure(&line["base"], |it| format!("{it:.3}")),
            figure(&factors["health"], |it| it.to_string()),
            figure(&factors["zone"], |it| format!("{it:.2}")),
            figure(&factors["slow_start"], |it| format!("{it:.2}")),
            figure(&line["share"], |it| format!("{:.1} %", 100.0 * it)),
            text(&line["seen"]["in_flight"]),
            if rules.is_empty() { NONE.to_owned() } else { rules.join(",") },
        ]);
    }
    for line in list("absent") {
        let empty = vec![NONE.to_owned(); head.len() - 2];
        rows.push([vec![text(&line["id"]), text(&line["state"])], empty].concat());
    }
    let base = if of["manual"] == true { "the operator's weight" } else { "the ranking's weight" };
    let panic = if of["panic"] == true { "; panic: all count as healthy" } else { "" };
    format!("{}base: {base}, by {}{panic}\n", table(rows), text(&of["basis"]))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => NONE.to_owned(),
        other => other.to_string(),
    }
}

fn figure(value: &Value, to_text: impl FnOnce(f64) -> String) -> String {
    value.as_f64().map_or(NONE.to_owned(), to_text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_has_the_factors_in_their_order_and_who_is_absent_says_why() {
        let explanation = json!({
            "manual": false, "basis": "reports", "panic": true,
            "instances": [{
                "id": "chat-1", "state": "reporting", "samples": 5, "report_age_ms": 400,
                "score": 0.25, "capacity_per_s": 120.4, "base": 1.5,
                "factors": {"health": 1.0, "zone": 0.5, "slow_start": 0.1},
                "share": 0.125, "seen": {"in_flight": 3}, "rules": ["canary", "beta"],
            }],
            "absent": [{"id": "chat-2", "state": "draining"}],
        });
        let printed = explained(&explanation);
        let words: Vec<Vec<&str>> =
            printed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words[1].join(" "),
            "chat-1 reporting 5 0.4 s 0.250 120/s 1.500 1 0.50 0.10 12.5 % 3 canary,beta"
        );
        assert_eq!(words[2][..3], ["chat-2", "draining", "-"]);
        assert!(printed.ends_with("by reports; panic: all count as healthy\n"), "{printed}");
    }

    #[test]
    fn what_a_gateway_does_not_say_is_a_dash() {
        let printed = explained(&json!({"instances": [{"id": "a"}]}));
        assert!(printed.contains("a         -"), "{printed}");
    }
}
