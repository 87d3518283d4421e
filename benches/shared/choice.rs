//! What a bench is told on its command line and by its environment. What it does
//! not understand ends it with one line and exit code 2, before anything starts.

use std::fmt::Display;
use std::process;

/// `BENCH_SECONDS` where it is not set.
const DEFAULT_SECONDS: u32 = 3;

/// The words of the command line.
pub fn words() -> impl Iterator<Item = String> {
    // cargo adds --bench.
    std::env::args().skip(1).filter(|word| !word.starts_with('-'))
}

/// `BENCH_SECONDS`: what a bench's times are made of.
pub fn seconds() -> u32 {
    number("BENCH_SECONDS", DEFAULT_SECONDS)
}

/// A variable that holds a number from 1 on, or `default` where it is not set.
pub fn number(name: &str, default: u32) -> u32 {
    let Ok(text) = std::env::var(name) else { return default };
    let number = text.parse().ok().filter(|&number| number > 0);
    number.unwrap_or_else(|| {
        refuse(format!("{name} is {text:?}; expected a whole number from 1 to {}", u32::MAX))
    })
}

/// Ends the bench: it was told something that it cannot do.
pub fn refuse(why: impl Display) -> ! {
    eprintln!("bench: {why}");
    process::exit(2)
}
