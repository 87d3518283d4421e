//! Which metrics and labels an expression asks for.

use std::collections::BTreeSet;

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub metrics: BTreeSet<String>,
    pub labels: BTreeSet<String>,
}

/// A word is a label in braces and in the list behind one of these, a function
/// before any other list or before its grouping, and a metric else.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: [&str; 5] = ["and", "or", "unless", "offset", "bool"];

impl Named {
    /// Reads an expression that promtool would find valid.
    pub fn of(expr: &str) -> Self {
        let mut named = Self::default();
        let mut rest = expr;
        let mut in_labels = false;
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            let length = match first {
                '"' => 2 + rest[1..].find('"').expect("a string that ends"),
                '[' => 1 + rest.find(']').expect("a range that ends"),
                c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                c => c.len_utf8(),
            };
            let (word, behind) = rest.split_at(length);
            let next = behind.trim_start();
            let has_list = next.starts_with('(');
            let is_grouped = next.starts_with("by (") || next.starts_with("without (");
            match first {
                '{' => in_labels = true,
                '}' | ')' => in_labels = false,
                '"' | '[' | '0'..='9' => {}
                c if !is_word(c) => {}
                _ if in_labels => _ = named.labels.insert(word.to_owned()),
                _ if LISTS.contains(&word) => in_labels = has_list,
                _ if has_list || is_grouped || OPERATORS.contains(&word) => {}
                _ => _ = named.metrics.insert(word.to_owned()),
            }
            rest = behind;
        }
        named
    }
}

#[test]
fn metrics_labels_functions_and_numbers_are_told_apart() {
    let expr = r#"histogram_quantile(0.99, sum by (job, le) (rate(a_bucket{x=~"y|z", w!="b"}[5m])))
        / on (job) group_left max(service:c:avg offset 1h) > 1e3 and up == bool 1"#;
    let set = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let metrics = set(&["a_bucket", "service:c:avg", "up"]);
    assert_eq!(Named::of(expr), Named { metrics, labels: set(&["job", "le", "w", "x"]) });
}
