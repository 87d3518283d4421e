//! Laws of a change: what it keeps, what it removes, and what it never writes.

use serde_json::json;

use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn edit(change: Change) -> Edit {
    Edit {
        change,
        by: None,
        by_default: "ann".into(),
        why: None,
        lasts: None,
        overwrites_bad: false,
    }
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

fn weights(weights: &[(&str, f64)]) -> BTreeMap<String, f64> {
    weights.iter().map(|&(id, weight)| (id.to_owned(), weight)).collect()
}

/// At the hundredth second; `Null` is no value.
fn try_edit(value: &Value, edit: &Edit) -> Result<Edited, String> {
    let entry = Entry {
        key: "control/chat".into(),
        value: value.to_string().into_bytes(),
        mod_revision: 1,
        lease: None,
    };
    let entry = Some(&entry).filter(|_| !value.is_null());
    edited("chat", entry, edit, at(100)).map_err(|error| error.to_string())
}

#[track_caller]
fn changes(value: &Value, edit: &Edit) -> Value {
    let edited = try_edit(value, edit).unwrap();
    let after = edited.value.map_or(Value::Null, Value::Object);
    assert_eq!(edited.is_changed, after != *value, "{after}");
    after
}

#[test]
fn a_change_keeps_all_that_it_is_not_about() {
    let value = json!({"mode": "manual", "weights": {"a": 3.0}, "strategy": "chash",
        "drain": ["b"], "disable": ["c"], "by": "ann", "why": "a bad day"});
    let with = |key: &str, json: Value| {
        let mut value = value.clone();
        value[key] = json;
        value
    };
    for (change, after) in [
        (Change::Drain(ids(&["d"])), with("drain", json!(["b", "d"]))),
        (Change::Disable(ids(&["d"])), with("disable", json!(["c", "d"]))),
        (Change::Weights(weights(&[("b", 1.0)])), with("weights", json!({"b": 1.0}))),
        (Change::SomeWeights(weights(&[("b", 1.0)])), with("weights", json!({"a": 3.0, "b": 1.0}))),
        (Change::Strategy(Some(Strategy::Best)), with("strategy", json!("best"))),
        (Change::Same, value.clone()),
    ] {
        assert_eq!(changes(&value, &edit(change.clone())), after, "{change:?}");
    }
    let without = |keys: &[&str]| {
        let mut value = value.clone();
        value.as_object_mut().unwrap().retain(|key, _| !keys.contains(&key.as_str()));
        value
    };
    for (change, gone) in [
        (Change::Undrain(ids(&["b"])), &["drain"][..]),
        (Change::Enable(ids(&["c"])), &["disable"]),
        (Change::Auto, &["mode", "weights"]),
        (Change::Strategy(None), &["strategy"]),
    ] {
        assert_eq!(changes(&value, &edit(change.clone())), without(gone), "{change:?}");
    }
}

#[test]
fn a_key_in_which_nothing_is_left_goes() {
    let value = json!({"drain": ["a"], "by": "ann", "why": "x"});
    assert_eq!(changes(&value, &edit(Change::Undrain(ids(&["a"])))), Value::Null);
    let clear = edit(Change::Clear);
    assert_eq!(changes(&value, &clear), Value::Null);
    assert_eq!(changes(&json!({"of_tomorrow": 1}), &clear), Value::Null);
    assert_eq!(changes(&Value::Null, &clear), Value::Null);
    assert_eq!(changes(&Value::Null, &edit(Change::Undrain(ids(&["a"])))), Value::Null);
}

#[test]
fn what_is_so_already_is_not_written_unless_something_is_said_of_it() {
    let value = json!({"drain": ["a"], "by": "bob", "why": "x"});
    let drain = edit(Change::Drain(ids(&["a"])));
    assert_eq!(changes(&value, &drain), value);
    let said = Edit { why: Some("y".into()), ..drain.clone() };
    assert_eq!(changes(&value, &said), json!({"drain": ["a"], "by": "ann", "why": "y"}));
    let longer = Edit { lasts: Some(Lasts::For(Duration::from_millis(19_001))), ..drain };
    let until = json!({"drain": ["a"], "by": "ann", "expires": "1970-01-01T00:02:00Z"});
    assert_eq!(changes(&value, &longer), until);
    let ever = Edit { lasts: Some(Lasts::Ever), ..edit(Change::Same) };
    assert_eq!(changes(&until, &ever), json!({"drain": ["a"], "by": "ann"}));
}

#[test]
fn nobody_gives_the_reason_of_somebody_else() {
    let value = json!({"drain": ["a"], "by": "bob", "why": "x"});
    let drain = edit(Change::Drain(ids(&["b"])));
    assert_eq!(changes(&value, &drain), json!({"drain": ["a", "b"], "by": "ann"}));
    let as_bob = Edit { by: Some("bob".into()), ..drain };
    let after = json!({"drain": ["a", "b"], "by": "bob", "why": "x"});
    assert_eq!(changes(&value, &as_bob), after);
}

#[test]
fn what_has_lapsed_does_not_come_back_with_a_later_change() {
    let value = json!({"drain": ["a"], "by": "ann", "expires": "1970-01-01T00:01:39Z"});
    let drain = edit(Change::Drain(ids(&["b"])));
    assert_eq!(changes(&value, &drain), json!({"drain": ["b"], "by": "ann"}));
    assert_eq!(changes(&value, &edit(Change::Auto)), Value::Null);
    let longer = Edit { lasts: Some(Lasts::For(Duration::from_secs(9))), ..edit(Change::Same) };
    assert_eq!(changes(&value, &longer), Value::Null);
}

#[test]
fn a_value_that_cannot_be_read_stays_unless_it_is_said_otherwise() {
    let bad = json!({"drain": ["a"], "of_tomorrow": 1});
    let drain = edit(Change::Drain(ids(&["b"])));
    let error = try_edit(&bad, &drain).unwrap_err();
    assert!(error.contains("of_tomorrow"), "{error}");
    let over = Edit { overwrites_bad: true, ..drain };
    assert_eq!(changes(&bad, &over), json!({"drain": ["b"], "by": "ann"}));
}

#[test]
fn nothing_is_written_that_gateways_would_refuse() {
    let zero = edit(Change::Weights(weights(&[("a", 0.0)])));
    let error = try_edit(&Value::Null, &zero).unwrap_err();
    assert!(error.contains("no weight is above 0"), "{error}");
    let last = edit(Change::SomeWeights(weights(&[("a", 0.0)])));
    let value = json!({"mode": "manual", "weights": {"a": 1.0}});
    assert!(try_edit(&value, &last).is_err());
    let error = try_edit(&Value::Null, &last).unwrap_err();
    assert!(error.contains("not manual"), "{error}");
    let long = Edit { why: Some("x".repeat(600_000)), ..edit(Change::Drain(ids(&["a"]))) };
    assert!(try_edit(&Value::Null, &long).unwrap_err().contains("600"));
    let whole = edit(Change::Whole(br#"{"mode": "manual"}"#.to_vec()));
    assert!(try_edit(&Value::Null, &whole).is_err());
}

#[test]
fn a_whole_value_is_signed_where_it_says_nothing_itself() {
    let whole = |text: &str| edit(Change::Whole(text.into()));
    let before = json!({"disable": ["z"], "by": "eve", "why": "x"});
    let after = changes(&before, &whole(r#"{"drain": ["a"], "why": "y"}"#));
    assert_eq!(after, json!({"drain": ["a"], "by": "ann", "why": "y"}));
    let signed = r#"{"drain": ["a"], "by": "bob"}"#;
    assert_eq!(changes(&before, &whole(signed)), json!({"drain": ["a"], "by": "bob"}));
    let by_eve = Edit { by: Some("eve".into()), ..whole(signed) };
    assert_eq!(changes(&before, &by_eve), json!({"drain": ["a"], "by": "eve"}));
}

#[test]
fn one_time_for_all_of_it_is_told_where_that_may_surprise() {
    let warned = |value: Value, change: Change, lasts: Option<Lasts>| {
        let edit = Edit { lasts, ..edit(change) };
        !try_edit(&value, &edit).unwrap().warnings(&edit).is_empty()
    };
    let (drain, hour) = (|| Change::Drain(ids(&["a"])), Lasts::For(Duration::from_secs(3600)));
    let ever = json!({"disable": ["b"]});
    let soon = json!({"disable": ["b"], "expires": "1970-01-01T01:00:00Z"});
    assert!(warned(ever.clone(), drain(), Some(hour)), "the other lapses, too");
    assert!(warned(soon.clone(), drain(), None), "this one lapses, too");
    assert!(!warned(soon.clone(), drain(), Some(hour)));
    assert!(!warned(soon, drain(), Some(Lasts::Ever)));
    assert!(!warned(ever.clone(), drain(), None));
    assert!(!warned(ever, Change::Same, Some(hour)), "that is what was asked for");
    assert!(!warned(Value::Null, drain(), Some(hour)));
}
