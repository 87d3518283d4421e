//! What a pick costs inside nginx, in LuaJIT, beside the ways of plain Lua.

use std::fs;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::http;
use crate::nginx::{self, Nginx};
use crate::support::{Etcd, free_ports};
use crate::table::{Table, median};

const ROUNDS: usize = 5;

/// What `pick.lua` times, in its order; all but the last one are picks.
const ROWS: [&str; 6] = [
    "ipconfig, adaptive, 10 instances: balance() and finish()",
    "ipconfig, adaptive, 10,000 instances",
    "round robin over a Lua table, of this worker alone",
    "shared dict: get()",
    "shared dict: incr() and get(), round robin of all workers",
    "shared dict: get() of both values of 10,000 instances",
];

pub async fn run(etcd: &Etcd) {
    let [port] = free_ports();
    let dir = TempDir::with_prefix("ipconfig-bench-").expect("a temporary directory");
    let config = dir.path().join("ipconfig.json");
    fs::write(&config, gateway_config(etcd)).expect("a file in the directory");
    let _gateway = Nginx::start(None, &gateway_http(port, &config)).await;
    nginx::wait_until_live(port, "small", 10).await;
    nginx::wait_until_live(port, "large", 10_000).await;

    let mut samples: [Vec<f64>; ROWS.len()] = Default::default();
    for _ in 0..ROUNDS {
        let answer = http::get(port, "/pick").expect("pick.lua runs");
        let figures: Vec<f64> = answer.split(' ').filter_map(|it| it.parse().ok()).collect();
        assert_eq!(figures.len(), ROWS.len(), "pick.lua gave {answer:?}");
        for (samples, figure) in samples.iter_mut().zip(figures) {
            samples.push(figure);
        }
    }

    println!("\n4. A pick inside nginx, without the request around it: CPU time in a loop of");
    println!("   1,000,000 in LuaJIT; medians of {ROUNDS} rounds.");
    let mut table = Table::new(&["", "each"]);
    for (name, samples) in ROWS.iter().zip(&samples) {
        table.row(vec![(*name).to_owned(), show_ns(median(samples))]);
    }
    table.print();
    println!(
        "  The last one is no pick: a worker does it once for each new ranking, before load in 3."
    );
}

fn show_ns(ns: f64) -> String {
    if ns < 1e5 { format!("{ns:.0} ns") } else { format!("{:.0} us", ns / 1e3) }
}

fn gateway_config(etcd: &Etcd) -> String {
    let instances = |count: u32| -> Vec<_> {
        let instance = |index: u32| {
            let [_, high, mid, low] = index.to_be_bytes();
            let addr = format!("10.{high}.{mid}.{low}:8080");
            json!({ "id": format!("instance-{index:05}"), "addr": addr, "zone": "zone-a" })
        };
        (0..count).map(instance).collect()
    };
    json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "services": {
            "small": { "instances": instances(10) },
            "large": { "instances": instances(10_000) },
        }
    })
    .to_string()
}

fn gateway_http(port: u16, config: &Path) -> String {
    let repository = env!("CARGO_MANIFEST_DIR");
    let gateway = nginx::gateway_http(config);
    format!(
        r#"
{gateway}
    lua_shared_dict bench 1m;
    server {{
        listen 127.0.0.1:{port};
        include {repository}/nginx/ipconfig_api.conf;
        location = /pick {{ content_by_lua_file {repository}/benches/gateway/pick.lua; }}
    }}
"#
    )
}
