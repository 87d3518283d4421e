//! What each part uses while a fleet reports, and what is written.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::page::{Counters, Rates};
use crate::stage::Stage;
use crate::table::{Table, print_goal};
use crate::{ALL, machine, usage};

/// The goals are for so many instances.
const GOALS_SIZE: usize = 10_000;
const GOAL_EXPORTER_CORES: f64 = 1.0;
const GOAL_THREAD_CORES: f64 = 0.05;
const GOAL_GATEWAY_MB: f64 = 60.0;
const GOAL_PUTS_PER_S: f64 = 110.0;

/// One row.
pub struct Work {
    pub size: usize,
    /// The part of the instances that are another one with each report.
    pub changing: f64,
    pub rates: Rates,
    /// Instances that the gateway ranked by their own reports at the end.
    ranked: usize,
    cores: Cores,
    exporter_mb: f64,
    etcd_mb: f64,
    gateway_mb: f64,
    page: Page,
}

/// CPU in use, in cores.
#[derive(Clone, Copy)]
struct Cores {
    exporter: f64,
    etcd: f64,
    thread: f64,
    servers: f64,
}

/// The exporter's page of metrics.
struct Page {
    bytes: usize,
    /// Until it was there.
    took: Duration,
}

/// CPU time used so far.
struct Times {
    at: Instant,
    exporter: Duration,
    etcd: Duration,
    thread: Duration,
    servers: Duration,
}

impl Times {
    fn read(stage: &Stage) -> Self {
        Times {
            at: Instant::now(),
            exporter: machine::cpu_time(stage.exporter.id()),
            etcd: machine::cpu_time(stage.etcd.id()),
            thread: usage::cpu_time_of_thread(stage.gateway.worker, stage.gateway.thread),
            servers: machine::cpu_time(stage.servers.id()),
        }
    }

    fn cores_since(&self, before: &Times) -> Cores {
        let elapsed = (self.at - before.at).as_secs_f64();
        let cores = |of: fn(&Times) -> Duration| (of(self) - of(before)).as_secs_f64() / elapsed;
        Cores {
            exporter: cores(|it| it.exporter),
            etcd: cores(|it| it.etcd),
            thread: cores(|it| it.thread),
            servers: cores(|it| it.servers),
        }
    }
}

impl Work {
    /// CPU time of etcd for a second of statuses.
    pub fn etcd_cores(&self) -> f64 {
        self.cores.etcd
    }
}

/// Lets everything run for so long, and asks nothing of anybody meanwhile.
pub async fn measure(stage: &Stage, changing: f64, time: Duration) -> Work {
    let counted_before = Counters::read(stage.metrics_port);
    let page = Page { bytes: counted_before.bytes(), took: counted_before.took() };
    // What the page itself has delayed is made up for.
    sleep(Duration::from_secs(1)).await;
    let before = Times::read(stage);
    sleep(time).await;
    let cores = Times::read(stage).cores_since(&before);
    let (exporter_mb, etcd_mb) = (
        usage::memory_mb(stage.exporter.id(), "VmRSS"),
        usage::memory_mb(stage.etcd.id(), "VmRSS"),
    );
    let gateway_mb = stage.gateway.memory_mb();
    let rates = Counters::read(stage.metrics_port).rates_since(&counted_before);
    let ranked = stage.reporting();
    Work {
        size: stage.size,
        changing,
        rates,
        ranked,
        cores,
        exporter_mb,
        etcd_mb,
        gateway_mb,
        page,
    }
}

pub fn print(rows: &[Work], empty_mb: f64, time: Duration) {
    println!("\n1. Every instance asked each second, through one exporter, for {time:?} each row.");
    println!("   CPU in cores. All parts share this machine.");
    let mut table = Table::new(&[
        "instances",
        "changing",
        "exporter",
        "etcd",
        "plugin thread",
        "services",
        "ranked",
        "read/s",
        "written/s",
        "failed",
        "puts/s",
        "skipped",
        "KB/s",
        "a put p50",
        "p99",
    ]);
    for Work { size, changing, rates, cores, ranked, .. } in rows {
        table.row(vec![
            size.to_string(),
            format!("{:.0} %", changing * 100.0),
            format!("{:.3}", cores.exporter),
            format!("{:.3}", cores.etcd),
            format!("{:.3}", cores.thread),
            format!("{:.3}", cores.servers),
            ranked.to_string(),
            format!("{:.0}", rates.read),
            format!("{:.0}", rates.read - rates.unchanged),
            format!("{:.0}", rates.failed),
            format!("{:.1}", rates.puts),
            format!("{:.0}", rates.skipped),
            format!("{:.1}", rates.bytes / 1e3),
            format!("<={:.0} ms", rates.put_p50_ms),
            format!("<={:.0} ms", rates.put_p99_ms),
        ]);
    }
    table.print();
    println!("  services are all that are asked, in one process of their own. Changing are those");
    println!("  whose figures have moved by a quarter since the last report; the others' stay");
    println!("  within 1 %. ranked are those that the gateway ranks by their own reports, at the");
    println!("  end; failed are questions without a status, skipped puts that were due while the");
    println!("  shard's last one was under way, both in all of the time. A put's time is the");
    println!("  exporter's own, by the buckets of its histogram.");

    let mut table =
        Table::new(&["instances", "exporter", "etcd", "gateway", "page of metrics", "takes"]);
    // Beyond the first row of a gateway, memory is also of what was asked of it.
    for row in rows.iter().filter(|row| row.changing == ALL) {
        table.row(vec![
            row.size.to_string(),
            format!("{:.0} MB", row.exporter_mb),
            format!("{:.0} MB", row.etcd_mb),
            format!("{:.1} MB", row.gateway_mb - empty_mb),
            format!("{:.2} MB", row.page.bytes as f64 / 1e6),
            format!("{:.0} ms", row.page.took.as_secs_f64() * 1e3),
        ]);
    }
    println!("  Resident memory, all changing, the exporter's after one page of metrics:");
    table.print();
    println!(
        "  gateway is anonymous memory of the worker, less the {empty_mb:.1} MB of one without a"
    );
    println!("  service. etcd's holds the pages of its file too, which grows with every put.");
    judge(rows, empty_mb);
}

/// By the largest fleet, where it is the one that the goals are for.
fn judge(rows: &[Work], empty_mb: f64) {
    let is_judged = |row: &&Work| row.changing == ALL && row.size == GOALS_SIZE;
    let Some(Work { cores, rates, gateway_mb, .. }) = rows.iter().find(is_judged) else { return };
    println!("  At {GOALS_SIZE} instances, all of them changing:");
    let goals = [
        ("the exporter at most", GOAL_EXPORTER_CORES, "core", cores.exporter),
        ("the plugin's thread at most", GOAL_THREAD_CORES, "core", cores.thread),
        ("the gateway at most", GOAL_GATEWAY_MB, "MB", gateway_mb - empty_mb),
        ("one exporter at most", GOAL_PUTS_PER_S, "puts/s", rates.puts),
    ];
    for (what, limit, unit, found) in goals {
        print_goal(
            found <= limit,
            &format!("{what} {limit} {unit}"),
            &format!("{found:.3} {unit}"),
        );
    }
}
