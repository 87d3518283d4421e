//! What is fuzzed: one function for each decoder of bytes that somebody else wrote,
//! with the laws that hold whatever the bytes are. doc/fuzzing.md has the table.
//!
//! Two drivers run the same functions. libFuzzer, which sees what code an input
//! reaches, by the programs in `fuzz_targets`; and `tests/fuzz`, which does not and
//! needs nothing but stable Rust, for the short form in `make test`. They go through
//! the crate's public functions alone.

mod etcd_values;
mod files;
mod reports;
mod shared_dict;
mod watch;

use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};

pub use etcd_values::{checks, control, exporter, instance, key, rules};
pub use files::{config, snapshot};
pub use reports::{batch, orca, status};
pub use shared_dict::{tries, value, view};
pub use watch::{registry, watcher};

/// A number for what became of an input: inputs of another number are worth keeping.
pub type Seen = u64;

/// One thing that is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// As of the function, the program in `fuzz_targets` and the folder in `corpus`.
    pub name: &'static str,
    /// Panics where a law is broken.
    pub run: fn(&[u8]) -> Seen,
    /// The most memory that it may hold at once: so many bytes, whatever its input is,
    pub fixed_bytes: usize,
    /// and so many for each byte of its input.
    pub bytes_per_byte: usize,
}

impl Target {
    const fn new(name: &'static str, run: fn(&[u8]) -> Seen, bytes_per_byte: usize) -> Self {
        Target { name, run, fixed_bytes: 128 * 1024, bytes_per_byte }
    }

    const fn with_fixed_bytes(self, fixed_bytes: usize) -> Self {
        Target { fixed_bytes, ..self }
    }
}

/// All of them.
pub const TARGETS: [Target; 16] = [
    Target::new("instance", instance, 100),
    Target::new("control", control, 200),
    Target::new("rules", rules, 400),
    Target::new("checks", checks, 100),
    Target::new("exporter", exporter, 20),
    Target::new("key", key, 20),
    Target::new("batch", batch, 400),
    Target::new("status", status, 100),
    Target::new("orca", orca, 100),
    Target::new("config", config, 1000),
    Target::new("snapshot", snapshot, 400),
    Target::new("value", value, 200),
    // `chash` has a table of 256 KiB, and one for each of 16 rules, the old and the new.
    Target::new("view", view, 400).with_fixed_bytes(10 << 20),
    Target::new("tries", tries, 20),
    Target::new("registry", registry, 1000),
    Target::new("watcher", watcher, 1000),
];

/// What became of an input that was taken, by whatever tells such inputs apart.
fn taken(by: impl Hash) -> Seen {
    let mut hasher = DefaultHasher::new();
    by.hash(&mut hasher);
    hasher.finish()
}

/// What became of an input that was refused. The law: an error says something, and
/// not more than a few times what was read.
fn refused(input: &[u8], error: &impl Display) -> Seen {
    let text = error.to_string();
    assert!(!text.is_empty(), "an error that says nothing");
    // One byte is quoted in ten at the most: `\u{10ffff}`.
    assert!(text.len() <= 10 * input.len() + 2000, "an error of {} bytes", text.len());
    // The same complaint of another name or number is the same.
    let text = unquoted(&text);
    let is_word = |word: &&str| word.bytes().all(|it| it.is_ascii_alphabetic() || it == b'_');
    // Of a path, its last part.
    let words = text.split_whitespace().filter_map(|word| word.rsplit('.').next());
    let words = words.map(|word| word.trim_end_matches([':', ',', ';']));
    taken(words.filter(is_word).take(8).collect::<Vec<_>>())
}

/// A text without what it quotes.
fn unquoted(text: &str) -> String {
    let mut quote = None;
    let mut is_escaped = false;
    let is_said = |it: &char| {
        let was_escaped = is_escaped;
        is_escaped = *it == '\\' && !was_escaped;
        match (quote, it) {
            (None, '"' | '`') => quote = Some(*it),
            (Some(begun), it) if begun == *it && !was_escaped => quote = None,
            (Some(_), _) => {}
            (None, _) => return true,
        }
        false
    };
    text.chars().filter(is_said).collect()
}

/// Whether two numbers are one that was written and read: JSON is read with an error
/// in the last digit.
fn is_same(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-12 * one.abs().max(other.abs())
}

/// The same bytes but for one bit, another one for other bytes.
fn with_one_other_bit(bytes: &[u8]) -> Vec<u8> {
    let place = taken(bytes) as usize % (8 * bytes.len().max(1));
    let mut damaged = bytes.to_vec();
    if let Some(byte) = damaged.get_mut(place / 8) {
        *byte ^= 1 << (place % 8);
    }
    damaged
}

/// How many bits it takes, for [`taken`].
fn size(number: usize) -> u32 {
    usize::BITS - number.leading_zeros()
}
