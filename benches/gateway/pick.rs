//! What a pick costs inside nginx, in LuaJIT, beside the ways of plain Lua.

use std::fs;
use std::path::Path;
use std::time::Duration;

use etcd_client::Client;
use ipconfig::config::EtcdConfig;
use ipconfig::model::InstanceReport;
use ipconfig::wire::{self, Key};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::fleet;
use crate::http;
use crate::nginx::{self, Nginx};
use crate::support::{Etcd, free_ports};
use crate::table::{Table, median};

const ROUNDS: usize = 5;

/// Instances of the services that are picked from.
const SIZES: [u32; 4] = [10, 100, 1_000, 10_000];

/// The most that a pick and its feedback may cost, in nanoseconds, by instances.
const GOALS: [(u32, f64); 2] = [(10, 150.0), (10_000, 250.0)];

/// What `pick.lua` times, in its order; all but the last one are picks.
const ROWS: [&str; 12] = [
    "ipconfig, adaptive: balance() and finish(), 10 instances",
    "  100",
    "  1,000",
    "  10,000",
    "shared dict: EWMA of latency, better of two, pick and feedback, 10 instances",
    "  100",
    "  1,000",
    "  10,000",
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
    for size in SIZES {
        nginx::wait_until_live(port, &service(size), size as usize).await;
    }

    report(etcd).await;
    for size in SIZES {
        let is_known = |view: &Value| view["mode"] == "live" && view["basis"] != "priors";
        nginx::wait_until(port, &service(size), is_known).await;
    }

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
    println!("   LuaJIT; medians of {ROUNDS} rounds.");
    let mut table = Table::new(&["", "each"]);
    for (name, samples) in ROWS.iter().zip(&samples) {
        table.row(vec![(*name).to_owned(), show_ns(median(samples))]);
    }
    table.print();
    for (size, goal) in GOALS {
        let row = SIZES.iter().position(|&it| it == size).expect("one of the sizes");
        let each = median(&samples[row]);
        let verdict = if each <= goal { "met" } else { "NOT met" };
        println!("  Goal at {size} instances: at most {goal} ns; {verdict}: {each:.0} ns.");
    }
    println!(
        "  The last one is no pick: a worker does it once for each new ranking, before load in 3."
    );
}

/// Has every instance report twice, so that what it can do is known and a pick is
/// the one of a gateway in service.
async fn report(etcd: &Etcd) {
    let mut client = Client::connect([etcd.endpoint()], None).await.expect("etcd answers");
    for report in 1..=2 {
        for size in SIZES {
            let status = |index: u32| {
                let status = fleet::status(index as usize, report);
                InstanceReport::new(instance_id(index), status.into())
            };
            let statuses: Vec<_> = (0..size).map(status).collect();
            for (shard, batch) in (0..).zip(statuses.chunks(100)) {
                let (exporter, service) = ("exporter-1".to_owned(), service(size));
                let key = Key::Status { exporter, service, shard };
                let key = key.to_path(&EtcdConfig::default().prefix);
                client.put(key, wire::encode_batch(batch), None).await.expect("a put");
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

fn instance_id(index: u32) -> String {
    format!("instance-{index:05}")
}

fn show_ns(ns: f64) -> String {
    if ns < 1e5 { format!("{ns:.0} ns") } else { format!("{:.0} us", ns / 1e3) }
}

fn gateway_config(etcd: &Etcd) -> String {
    let instances = |count: u32| -> Vec<_> {
        let instance = |index: u32| {
            let [_, high, mid, low] = index.to_be_bytes();
            let addr = format!("10.{high}.{mid}.{low}:8080");
            json!({ "id": instance_id(index), "addr": addr, "zone": "zone-a" })
        };
        (0..count).map(instance).collect()
    };
    json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "services": SIZES
            .map(|size| (service(size), json!({ "instances": instances(size) })))
            .into_iter()
            .collect::<serde_json::Map<_, _>>(),
    })
    .to_string()
}

fn service(size: u32) -> String {
    format!("fleet-{size}")
}

fn gateway_http(port: u16, config: &Path) -> String {
    let repository = env!("CARGO_MANIFEST_DIR");
    let gateway = nginx::gateway_http(config);
    format!(
        r#"
{gateway}
    lua_shared_dict bench 8m;
    server {{
        listen 127.0.0.1:{port};
        include {repository}/nginx/ipconfig_api.conf;
        location = /pick {{ content_by_lua_file {repository}/benches/gateway/pick.lua; }}
    }}
"#
    )
}
