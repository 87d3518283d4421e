//! The gateway beside its peers, on a real nginx and a real etcd, in one run:
//! `make bench`, or `cargo bench --bench gateway` after `cargo build --release`.
//!
//! It prints tables and judges nothing by its exit status: on a machine that
//! does other work at the same time only the ratios within a run mean something.
//! `BENCH_SECONDS` is how long each side of the first table gets in each of its
//! rounds (default 3). With `-- pick`, the part of that name runs alone.

use crate::support::Etcd;

#[path = "../fleet/mod.rs"]
mod fleet;
mod http;
mod machine;
mod nginx;
mod pick;
mod put_to_visible;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod update;
mod whole_request;

const DEFAULT_SECONDS: u32 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let seconds = std::env::var("BENCH_SECONDS").map_or(DEFAULT_SECONDS, |text| {
        text.parse().ok().filter(|&seconds| seconds > 0).unwrap_or_else(|| {
            panic!("BENCH_SECONDS is {text:?}; expected a whole number of seconds from 1 on")
        })
    });
    machine::print();
    let etcd = Etcd::start().await;
    // cargo adds `--bench`.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let is_wanted = |part: &str| only.as_ref().is_none_or(|only| only == part);
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
