//! A whole request through the gateway, beside nginx's own `least_conn` over the
//! same backends in the same worker.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::machine::{self, Cores};
use crate::nginx::{self, Nginx};
use crate::support::{Etcd, free_ports};
use crate::table::{Table, median, print_goal};

const BACKENDS: usize = 4;
const ROUNDS: usize = 5;
const CONNECTIONS: u32 = 32;
const GOAL: f64 = 0.95;

/// One way to the backends.
struct Side {
    name: &'static str,
    path: &'static str,
}

/// The last one is what all are compared with. The one before is the same again,
/// to show how much two equal sides differ; the one before that takes any backend
/// in a few lines of Lua, to show what ngx_lua's hooks cost by themselves.
const SIDES: [Side; 5] = [
    Side { name: "ipconfig, adaptive", path: "/adaptive" },
    Side { name: "ipconfig, round_robin", path: "/round_robin" },
    Side { name: "plain Lua, same hooks", path: "/lua" },
    Side { name: "least_conn, again", path: "/again" },
    Side { name: "least_conn", path: "/least_conn" },
];
const ADAPTIVE: usize = 0;
const BASE: usize = SIDES.len() - 1;

/// What one second of one side gave.
struct Slice {
    requests: f64,
    elapsed_s: f64,
    /// CPU time of the gateway's worker.
    cpu_s: f64,
    p50_us: f64,
    p99_us: f64,
    failed: u64,
}

/// What one round of one side gave.
struct Round {
    requests_per_s: f64,
    requests_per_cpu_s: f64,
    /// Part of the round that the worker used a core.
    busy: f64,
    p50_us: f64,
    p99_us: f64,
    failed: u64,
}

impl Round {
    /// Latencies are the medians of the slices'.
    fn of(slices: &[Slice]) -> Self {
        let sum = |figure: fn(&Slice) -> f64| slices.iter().map(figure).sum::<f64>();
        let middle =
            |figure: fn(&Slice) -> f64| median(&slices.iter().map(figure).collect::<Vec<_>>());
        let requests = sum(|slice| slice.requests);
        let (elapsed_s, cpu_s) = (sum(|slice| slice.elapsed_s), sum(|slice| slice.cpu_s));
        Round {
            requests_per_s: requests / elapsed_s,
            requests_per_cpu_s: requests / cpu_s,
            busy: cpu_s / elapsed_s,
            p50_us: middle(|slice| slice.p50_us),
            p99_us: middle(|slice| slice.p99_us),
            failed: slices.iter().map(|slice| slice.failed).sum(),
        }
    }
}

pub async fn run(etcd: &Etcd, seconds: u32) {
    let cores = Cores::assign();
    println!("\n1. Whole request: {BACKENDS} backends, {CONNECTIONS} connections,");
    println!("   {ROUNDS} rounds of {seconds} s each, alternating by the second; medians.");
    println!("   {}", describe(cores));

    let backend_ports: [u16; BACKENDS] = free_ports();
    let [gateway_port] = free_ports();
    let _backends = Nginx::start(cores.backends, &backends_http(&backend_ports)).await;
    let dir = TempDir::with_prefix("ipconfig-bench-").expect("a temporary directory");
    let config = dir.path().join("ipconfig.json");
    fs::write(&config, gateway_config(etcd, &backend_ports)).expect("a file in the directory");
    let gateway =
        Nginx::start(cores.gateway, &gateway_http(gateway_port, &backend_ports, &config)).await;
    for service in ["adaptive", "round_robin"] {
        nginx::wait_until_live(gateway_port, service, BACKENDS).await;
    }

    let pid = gateway.worker_pid();
    let measure = |side: &Side| measure_second(cores, pid, gateway_port, side);
    for side in &SIDES {
        measure(side); // warms up
    }
    let mut rounds: [Vec<Round>; SIDES.len()] = Default::default();
    for round in 0..ROUNDS {
        let mut slices: [Vec<Slice>; SIDES.len()] = Default::default();
        for second in 0..seconds as usize {
            for place in 0..SIDES.len() {
                // Each side comes first once in a while, and last.
                let side = (round + second + place) % SIDES.len();
                slices[side].push(measure(&SIDES[side]));
            }
        }
        for (rounds, slices) in rounds.iter_mut().zip(&slices) {
            rounds.push(Round::of(slices));
        }
    }
    print(&rounds);
}

fn print(rounds: &[Vec<Round>; SIDES.len()]) {
    let mut table = Table::new(&[
        "",
        "requests/s",
        "ratio",
        "of each round",
        "requests/CPU s",
        "ratio",
        "busy",
        "p50",
        "p99",
        "failed",
    ]);
    for (side, of_side) in SIDES.iter().zip(rounds) {
        let middle = |figure: fn(&Round) -> f64| median(&figures(of_side, figure));
        let ratios = ratios(of_side, &rounds[BASE], |round| round.requests_per_s);
        let each: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        table.row(vec![
            side.name.to_owned(),
            format!("{:.0}", middle(|round| round.requests_per_s)),
            format!("{:.3}", median(&ratios)),
            each.join(" "),
            format!("{:.0}", middle(|round| round.requests_per_cpu_s)),
            format!("{:.3}", cpu_ratio(of_side, &rounds[BASE])),
            format!("{:.0} %", middle(|round| round.busy) * 100.0),
            format!("{:.0} us", middle(|round| round.p50_us)),
            format!("{:.0} us", middle(|round| round.p99_us)),
            of_side.iter().map(|round| round.failed).sum::<u64>().to_string(),
        ]);
    }
    table.print();
    println!("  CPU s is a second of CPU time of the gateway's worker, busy the part of a core");
    println!("  that it used: where that is low, something else set the pace of requests/s.");
    judge(&rounds[ADAPTIVE], &rounds[BASE]);
}

/// The goal is one of requests/s. Where the gateway's worker was not what limited
/// them, that ratio says more of the machine's other work than of the sides, so
/// the CPU time of a request is told beside it.
fn judge(adaptive: &[Round], base: &[Round]) {
    let ratio = median(&ratios(adaptive, base, |round| round.requests_per_s));
    let goal = format!("at least {GOAL} of least_conn's requests/s");
    print_goal(ratio >= GOAL, &goal, &format!("{ratio:.3}"));
    println!("  per CPU second of the gateway's worker it is {:.3}", cpu_ratio(adaptive, base));
}

fn cpu_ratio(side: &[Round], base: &[Round]) -> f64 {
    median(&ratios(side, base, |round| round.requests_per_cpu_s))
}

fn figures(rounds: &[Round], figure: fn(&Round) -> f64) -> Vec<f64> {
    rounds.iter().map(figure).collect()
}

/// Of each round by itself, as the machine's other work changes from round to
/// round.
fn ratios(side: &[Round], base: &[Round], figure: fn(&Round) -> f64) -> Vec<f64> {
    side.iter().zip(base).map(|(side, base)| figure(side) / figure(base)).collect()
}

/// A second of requests: short, so that other work on the machine falls on all
/// sides alike.
fn measure_second(cores: Cores, pid: u32, port: u16, side: &Side) -> Slice {
    let cpu_before = machine::cpu_time(pid);
    let output = machine::command_on(cores.load, Path::new("wrk"))
        .args(["--threads", "1", "--latency", "--connections", &CONNECTIONS.to_string()])
        .args(["--duration", "1s"])
        .arg(format!("http://127.0.0.1:{port}{}", side.path))
        .output()
        .expect("wrk can be run: .ci/setup bench installs it");
    let cpu = machine::cpu_time(pid) - cpu_before;
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "wrk failed on {}:\n{report}", side.path);
    WrkReport(&report).slice(cpu)
}

/// What wrk prints:
///
/// ```text
///   Latency Distribution
///      50%    1.23ms
///      99%    4.56ms
///   12345 requests in 1.00s, 2.34MB read
///   Socket errors: connect 0, read 0, write 0, timeout 0
///   Non-2xx or 3xx responses: 7
/// Requests/sec:  12345.00
/// ```
struct WrkReport<'a>(&'a str);

impl WrkReport<'_> {
    fn slice(&self, cpu: Duration) -> Slice {
        let (requests, elapsed_s) = self.requests_and_seconds();
        Slice {
            requests,
            elapsed_s,
            cpu_s: cpu.as_secs_f64(),
            p50_us: self.latency_us("50%"),
            p99_us: self.latency_us("99%"),
            failed: self.failed(),
        }
    }

    fn requests_and_seconds(&self) -> (f64, f64) {
        let parse = || {
            let mut lines = self.0.lines();
            let (requests, rest) =
                lines.find_map(|line| line.trim().split_once(" requests in "))?;
            let (seconds, _) = rest.split_once("s,")?;
            Some((requests.parse().ok()?, seconds.parse().ok()?))
        };
        parse().unwrap_or_else(|| panic!("wrk counts no requests:\n{}", self.0))
    }

    fn latency_us(&self, label: &str) -> f64 {
        let parse = || {
            let text = self.after(label)?;
            let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let value: f64 = text.strip_suffix(unit)?.parse().ok()?;
            let scale = match unit {
                "us" => 1.0,
                "ms" => 1e3,
                "s" => 1e6,
                _ => return None,
            };
            Some(value * scale)
        };
        parse().unwrap_or_else(|| panic!("wrk prints no latency for {label}:\n{}", self.0))
    }

    /// Requests without an answer of 2xx, and connections that broke.
    fn failed(&self) -> u64 {
        let bad_answers = self.after("Non-2xx or 3xx responses:").and_then(|it| it.parse().ok());
        let counts = self.after("Socket errors:").unwrap_or_default().split([' ', ',']);
        bad_answers.unwrap_or(0) + counts.filter_map(|it| it.parse::<u64>().ok()).sum::<u64>()
    }

    fn after(&self, label: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim)
    }
}

fn describe(cores: Cores) -> String {
    let Cores { gateway: Some(gateway), load: Some(load), backends: Some(backends) } = cores else {
        return "All share one core.".to_owned();
    };
    format!("Gateway (one worker) on core {gateway}, wrk on {load}, backends on {backends}.")
}

fn backends_http(ports: &[u16]) -> String {
    let server = |port| {
        format!(
            "    server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"ok\\n\"; }} }}\n"
        )
    };
    ports.iter().map(server).collect()
}

fn gateway_config(etcd: &Etcd, ports: &[u16]) -> String {
    let instances: Vec<_> = ports
        .iter()
        .map(|port| json!({ "id": format!("i-{port}"), "addr": format!("127.0.0.1:{port}") }))
        .collect();
    json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "services": {
            "adaptive": { "balance": { "strategy": "adaptive" }, "instances": instances },
            "round_robin": { "balance": { "strategy": "round_robin" }, "instances": instances },
        }
    })
    .to_string()
}

fn gateway_http(port: u16, backend_ports: &[u16], config: &Path) -> String {
    let each = |format: fn(&u16) -> String| backend_ports.iter().map(format).collect::<String>();
    let servers = each(|port| format!("server 127.0.0.1:{port}; "));
    let ports = each(|port| format!("{port}, "));
    let repository = env!("CARGO_MANIFEST_DIR");
    let gateway = nginx::gateway_http(config);
    format!(
        r#"
{gateway}
    upstream static {{ least_conn; {servers} keepalive 64; }}
    upstream lua {{
        server 0.0.0.1;
        balancer_by_lua_block {{
            local ports = {{ {ports} }}
            local port = ports[math.random(#ports)]
            require("ngx.balancer").set_current_peer("127.0.0.1", port)
        }}
        keepalive 64;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    server {{
        listen 127.0.0.1:{port};
        include {repository}/nginx/ipconfig_api.conf;
        location = /least_conn {{ proxy_pass http://static; }}
        location = /again {{ proxy_pass http://static; }}
        location = /lua {{
            proxy_pass http://lua;
            log_by_lua_block {{ local status = ngx.status }}
        }}
        location = /adaptive {{
            set $ipconfig_service adaptive;
            proxy_pass http://ipconfig;
            log_by_lua_block {{ require("resty.ipconfig").log() }}
        }}
        location = /round_robin {{
            set $ipconfig_service round_robin;
            proxy_pass http://ipconfig;
            log_by_lua_block {{ require("resty.ipconfig").log() }}
        }}
    }}
"#
    )
}
