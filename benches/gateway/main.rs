//! The gateway beside its peers, on a real nginx and a real etcd, in one run:
//! `make bench`, or `cargo bench --bench gateway` after `cargo build --release`.
//!
//! It prints tables and judges nothing by its exit status: on a machine that
//! does other work at the same time only the ratios within a run mean something.
//! `BENCH_SECONDS` is how long each side of the first table gets in each of its
//! rounds (default 3). With `-- pick`, the part of that name runs alone; the others
//! are `whole_request`, `put_to_visible` and `update`.

use crate::shared::{choice, http, machine, nginx, table};
use crate::support::Etcd;

#[path = "../fleet/mod.rs"]
mod fleet;
mod pick;
mod put_to_visible;
#[path = "../shared/mod.rs"]
mod shared;
#[path = "../../tests/support/mod.rs"]
mod support;
mod update;
mod whole_request;

/// What can be run alone, in the order in which all are.
const PARTS: [&str; 4] = ["whole_request", "put_to_visible", "update", "pick"];

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let seconds = choice::seconds();
    let only: Vec<String> = choice::words().collect();
    if let Some(unknown) = only.iter().find(|word| !PARTS.contains(&word.as_str())) {
        choice::refuse(format!("{unknown:?} is no part; there are {}", PARTS.join(", ")));
    }
    machine::print();
    let etcd = Etcd::start().await;
    let is_wanted = |part: &str| only.is_empty() || only.iter().any(|only| only == part);
    if is_wanted("whole_request") {
        whole_request::run(&etcd, seconds).await;
    }
    if is_wanted("put_to_visible") {
        put_to_visible::run(&etcd).await;
    }
    if is_wanted("update") {
        update::run();
    }
    if is_wanted("pick") {
        pick::run(&etcd).await;
    }
}
