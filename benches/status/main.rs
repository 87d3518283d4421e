//! The status plane at three sizes, on real parts: services that are asked, an
//! exporter, etcd, and a gateway: `make bench`, or `cargo bench --bench status`
//! after `cargo build --release`.
//!
//! It prints tables and judges nothing by its exit status: on a machine that does
//! other work at the same time, and for so many processes on few cores, a figure
//! says what it was there and then. `BENCH_SECONDS` (default 3) is a sixth of the
//! time that each row's figures are made of, as in the bench `gateway` it is what
//! each side gets in a round.

use std::time::Duration;

use crate::shared::table::{Table, percentile};
use crate::shared::{choice, http, machine, nginx, table, usage};
use crate::stage::Stage;

#[path = "../fleet/mod.rs"]
mod fleet;
mod latency;
mod page;
mod per_key;
mod servers;
#[path = "../shared/mod.rs"]
mod shared;
mod stage;
#[path = "../../tests/support/mod.rs"]
mod support;
mod work;

const SIZES: [usize; 3] = [100, 1_000, 10_000];

/// The worst that can happen, by which the goals are judged: every instance is
/// another one with each report.
const ALL: f64 = 1.0;

/// Seven in ten are as they were, within the exporter's deadband.
const SOME: f64 = 0.3;

/// Beside an instance's connection: what a process has open at most.
const OTHER_FILES: u64 = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Some((port, size)) = servers::role() {
        return servers::serve(port, size).await;
    }
    if let Some(word) = choice::words().next() {
        choice::refuse(format!("{word:?} means nothing here; BENCH_SECONDS=n is all there is"));
    }
    let time = Duration::from_secs(6 * u64::from(choice::seconds()));
    let open_files = usage::raise_open_files();
    machine::print();

    let empty_mb = stage::empty_gateway_mb().await;
    let (mut work, mut latencies) = (Vec::new(), Vec::new());
    for size in SIZES {
        let needed = size as u64 + OTHER_FILES;
        if open_files < needed {
            println!(
                "\n{size} instances are left out: a process may open {open_files} files here,"
            );
            println!("and {needed} are needed (ulimit -n).");
            continue;
        }
        eprintln!("{size} instances…");
        let Some(mut stage) = Stage::start(size).await else {
            println!("\n{size} instances: not all of them were registered and written after");
            println!("{:?}.", stage::START);
            continue;
        };
        work.push(work::measure(&stage, ALL, time).await);
        latencies.push((size, latency::measure(&stage, time * 4 / 3).await));
        if size == SIZES[SIZES.len() - 1] {
            stage.change(SOME).await;
            work.push(work::measure(&stage, SOME, time).await);
        }
    }
    work::print(&work, empty_mb, time);
    print_latencies(&latencies, time * 4 / 3);
    let largest = work.iter().rfind(|work| work.changing == ALL);
    if let Some(largest) = largest {
        per_key::run(largest, time / 3).await;
    }
}

fn print_latencies(latencies: &[(usize, latency::Latencies)], time: Duration) {
    println!("\n2. From a report that leaves a service to the gateway's ranking, all instances");
    println!("   changing: reports of {} probes, {time:?} each size.", servers::PROBES);
    let mut table = Table::new(&[
        "instances",
        "reports",
        "lost",
        "p50",
        "p99",
        "max",
        "spacing p50",
        "p99",
        "a question",
        "plugin thread",
    ]);
    for (size, it) in latencies {
        let ms = |samples: &[f64], percent| match samples {
            [] => "-".to_owned(),
            _ => format!("{:.1} ms", percentile(samples, percent)),
        };
        table.row(vec![
            size.to_string(),
            it.seen_ms.len().to_string(),
            it.lost.to_string(),
            ms(&it.seen_ms, 50.0),
            ms(&it.seen_ms, 99.0),
            ms(&it.seen_ms, 100.0),
            ms(&it.spacing_ms, 50.0),
            ms(&it.spacing_ms, 99.0),
            format!("{:.0} us", it.question_us),
            format!("{:.3}", it.thread_cores),
        ]);
    }
    table.print();
    println!("  A report leaves when its service has made it. It is seen by asking for the first");
    println!(
        "  {} of the ranking again and again; spacing is from one answer to the next, which",
        servers::PROBES
    );
    println!("  is what a figure may be too large by. A question is what one costs the worker's");
    println!("  event loop; the plugin's thread has no part in it.");
}
