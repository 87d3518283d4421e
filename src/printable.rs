//! What others wrote, on its way to a log or a terminal: shown, and never obeyed.

/// A key of etcd, which may be any bytes.
pub fn key(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// A text: neither an escape sequence nor the end of a line gets out.
pub fn text(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}
