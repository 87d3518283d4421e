//! The fuzz targets on stable Rust, without libFuzzer: inputs are made from the
//! corpora by chance, and those of which something new became are mutated further.
//! doc/fuzzing.md says how to run libFuzzer, which sees more and needs more.
//!
//! ```text
//! cargo test --release --test fuzz -- --nocapture     a million inputs for each target
//! FUZZ_RUNS=n FUZZ_SEED=n                             so many, by another seed
//! FUZZ_INPUT=path cargo test --test fuzz instance     that one alone
//! ```
//!
//! A debug build, which checks arithmetic, makes a few thousand, so that each plain
//! `cargo test` tries the corpora.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

mod corpus;
mod memory;
mod mutate;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use corpus::Corpus;
use mutate::Mutator;
use targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// The longest that one input may take, on a machine that others use too.
const MOST_TIME: Duration = Duration::from_secs(10);

/// The longest input, in bytes, but for one in [`LONG_EVERY`].
const MAX_LEN: usize = 2048;

/// And of those: past the largest value that most decoders read.
const MAX_LONG_LEN: usize = 300 * 1024;

/// Long ones are slow, and short ones find more.
const LONG_EVERY: u64 = 20_000;

/// Inputs that are kept as something new became of them.
const MAX_KEPT: usize = 4096;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: expected a number, found {value:?}")))
}

fn fuzz(name: &str) {
    let target = TARGETS.into_iter().find(|it| it.name == name).expect("one of the targets");
    if let Some(path) = std::env::var_os("FUZZ_INPUT") {
        (target.run)(&std::fs::read(&path).expect("the file of FUZZ_INPUT"));
        return;
    }
    let runs = number("FUZZ_RUNS").unwrap_or(if cfg!(debug_assertions) { 5000 } else { 1_000_000 });
    let seed = number("FUZZ_SEED").unwrap_or(6);
    let Corpus { inputs: mut kept, words } = Corpus::of(name);
    let seeds = kept.len();
    let mut mutator = Mutator { seeds, words, rng: SmallRng::seed_from_u64(seed) };
    let mut seen = HashSet::new();
    let (start, mut slowest) = (Instant::now(), Duration::ZERO);
    let mut most_memory = 0_usize;
    for run in 0..runs.max(seeds as u64) {
        let input = match kept.get(usize::try_from(run).unwrap_or(usize::MAX)) {
            Some(seed) if run < seeds as u64 => seed.clone(),
            _ => {
                let is_long = (run + 1).is_multiple_of(LONG_EVERY);
                mutator.next(&kept, if is_long { MAX_LONG_LEN } else { MAX_LEN }, is_long)
            }
        };
        let Tried { became, took, memory } = try_it(target, &input);
        slowest = slowest.max(took);
        if input.len() > MAX_LEN {
            most_memory = most_memory.max(memory / input.len());
        }
        if seen.insert(became) && run >= seeds as u64 && input.len() <= MAX_LEN {
            match kept.len() < MAX_KEPT {
                true => kept.push(input),
                false => {
                    let place = mutator.rng.random_range(seeds..MAX_KEPT);
                    kept[place] = input;
                }
            }
        }
    }
    println!(
        "fuzz {name}: {runs} inputs from {seeds}, seed {seed}, {:.1} s, {} outcomes, \
         slowest {slowest:.1?}, up to {most_memory} bytes held for a byte of long ones",
        start.elapsed().as_secs_f64(),
        seen.len(),
    );
}

struct Tried {
    became: targets::Seen,
    took: Duration,
    memory: usize,
}

/// Runs the target; writes down an input that breaks a law.
fn try_it(target: Target, input: &[u8]) -> Tried {
    let start = Instant::now();
    let (result, memory) =
        memory::most_held(|| catch_unwind(AssertUnwindSafe(|| (target.run)(input))));
    let took = start.elapsed();
    let became = result.unwrap_or_else(|panic| {
        eprintln!("{}", write_down(target, input));
        resume_unwind(panic)
    });
    let allowed = target.fixed_bytes + target.bytes_per_byte * input.len();
    if memory > allowed {
        let file = write_down(target, input);
        panic!("{memory} bytes were held for {} of input; {file}", input.len());
    }
    if took > MOST_TIME {
        panic!("{took:?} for {} bytes; {}", input.len(), write_down(target, input));
    }
    Tried { became, took, memory }
}

fn write_down(target: Target, input: &[u8]) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let crc = crc32fast::hash(input);
    let path = folder.join(format!("{}-{crc:08x}", target.name));
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, input));
    let path = path.display();
    match written {
        Ok(()) => format!("the input is in {path}: FUZZ_INPUT={path} runs it alone"),
        Err(error) => format!("{path}: {error}; the input is {:?}", input.escape_ascii()),
    }
}

macro_rules! fuzz {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

fuzz![
    instance, control, rules, checks, exporter, key, batch, status, orca, config, snapshot, value,
    view, tries, registry, watcher,
];

#[test]
fn each_target_has_its_test_its_program_and_its_corpus() {
    let names = TARGETS.map(|it| it.name);
    assert_eq!(TESTED, names);
    let manifest = corpus::read("Cargo.toml");
    for name in names {
        let program = corpus::read(&format!("fuzz_targets/{name}.rs"));
        assert!(program.contains(&format!("targets::{name}(bytes)")), "{name}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        assert!(!Corpus::of(name).inputs.is_empty(), "{name}");
    }
    let documented = std::fs::read_to_string("doc/fuzzing.md").expect("doc/fuzzing.md");
    for name in names {
        assert!(documented.contains(&format!("| `{name}` |")), "{name} in doc/fuzzing.md");
    }
}

#[test]
fn memory_that_a_run_holds_is_counted() {
    let ((), held) = memory::most_held(|| drop(vec![0_u8; 100_000]));
    assert!((100_000..110_000).contains(&held), "{held}");
    let ((), held) = memory::most_held(|| (0..9).for_each(|_| drop(vec![0_u8; 1000])));
    assert!((1000..2000).contains(&held), "at once, and not in all: {held}");
}
