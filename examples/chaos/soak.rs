//! `make soak`: hours of coming and going under requests, and what every process
//! grows by.
//!
//! Instances come and go 10,000 times an hour each way, every instance reports each
//! second, gateway 1 is reloaded each minute and gateway 2 never (a worker that lives
//! for a minute has no time to show that it leaks), and etcd is compacted each minute.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::failure::{Context, Failure};
use crate::fault::compact;
use crate::stage::{CHURN, Stage};
use crate::table::Table;
use crate::traffic::{Count, Traffic};
use crate::wait::until;

/// 10,000 an hour.
const BETWEEN_CHANGES: Duration = Duration::from_millis(360);

/// Instances of the service that comes and goes, at any time.
const PRESENT: usize = 20;

const BETWEEN_RELOADS: Duration = Duration::from_secs(60);

/// A number that no minute is a multiple of, so that samples are of every moment
/// between two reloads.
const BETWEEN_SAMPLES: Duration = Duration::from_secs(7);

/// For so long after a reload a gateway has two generations of workers.
const OVERLAP: Duration = Duration::from_secs(5);

/// What a gateway keeps of an instance that is gone, it keeps no longer than this.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// For how long, and how much.
#[derive(clap::Args)]
pub struct Soak {
    /// How long it takes, in seconds.
    #[arg(long, env = "SOAK_SECONDS", default_value = "3600")]
    seconds: u64,
    /// Requests a second through both gateways together.
    #[arg(long, env = "SOAK_RATE", default_value = "100")]
    rate: f64,
    /// Where all samples are written.
    #[arg(long, env = "SOAK_JSON", default_value = "target/soak.json")]
    json: PathBuf,
}

/// What a process had at a moment.
#[derive(Clone, Copy, Serialize)]
struct Sample {
    at_s: f64,
    rss_kib: f64,
    /// Resident, shared pages by the part that is its own.
    pss_kib: f64,
    /// Of no file: what the process itself allocated. Unlike the others it does not
    /// move as other processes come and go that share a page.
    anonymous_kib: f64,
    files: f64,
}

/// All that was measured.
#[derive(Default, Serialize)]
struct Measured {
    seconds: u64,
    registrations: u64,
    deregistrations: u64,
    reloads: u64,
    requests: Count,
    /// By the process's part.
    processes: BTreeMap<String, Vec<Sample>>,
    /// Counters of gateway 1 and 2 in use at the end, and the instances there are.
    slots: Vec<Option<f64>>,
    instances: usize,
    in_flight_at_rest: u64,
    amiss: Vec<String>,
}

/// Runs it; whether nothing was amiss.
pub async fn run(soak: &Soak, folder: &Path) -> Result<bool, Failure> {
    println!("soak: {} s, logs in {}", soak.seconds, folder.display());
    let mut stage = Stage::start(1, "1s", folder).await?;
    let traffic = Traffic::start(&stage.hosts, soak.rate, 1);
    let mut measured = Measured { seconds: soak.seconds, ..Measured::default() };
    churn(soak, &stage, &mut measured).await?;

    let mut amiss = Vec::new();
    if !traffic.end().await {
        amiss.push("requests did not come to their end".to_owned());
    }
    measured.requests = traffic.take();
    if measured.requests.failed > 0 {
        amiss.push(format!("requests failed: {:?}", measured.requests.failures));
    }
    until(Duration::from_secs(20), async || stage.in_flight().await == 0).await;
    measured.in_flight_at_rest = stage.in_flight().await;
    if measured.in_flight_at_rest > 0 {
        amiss.push(format!("{} requests are in flight at rest", measured.in_flight_at_rest));
    }
    if let Err(wrong) = stage.right(Instant::now()).await {
        amiss.push(wrong);
    }
    // And the probe.
    measured.instances = stage.instances.len() + 1;
    let of = measured.instances as f64;
    until(FORGOTTEN, async || slots(&stage).await.iter().all(|it| *it == Some(of))).await;
    measured.slots = slots(&stage).await;
    if measured.slots.iter().any(|slots| *slots != Some(of)) {
        amiss.push(format!("slots in use {:?} for {of} instances", measured.slots));
    }
    amiss.extend(stage.hosts.iter().flat_map(|host| host.crashes()));
    measured.amiss = amiss;

    let text = serde_json::to_string_pretty(&measured).expect("figures and texts are JSON");
    fs::write(&soak.json, text).context(format!("write {}", soak.json.display()))?;
    print(&measured);
    println!("every sample in {}", soak.json.display());
    stage.stop().await;
    Ok(measured.amiss.is_empty())
}

async fn slots(stage: &Stage) -> Vec<Option<f64>> {
    let mut slots = Vec::new();
    for host in &stage.hosts {
        slots.push(host.metric("ipconfig_counted_instances").await);
    }
    slots
}

/// Lets instances come and go, reloads and takes samples until the time is over.
async fn churn(soak: &Soak, stage: &Stage, measured: &mut Measured) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut changes = interval(BETWEEN_CHANGES);
    // What a busy machine is late with is made up for.
    changes.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut reloads = interval(BETWEEN_RELOADS);
    let mut samples = interval(BETWEEN_SAMPLES);
    reloads.tick().await;
    let mut reloaded = begun;
    let mut present = VecDeque::new();
    let mut number = 0_u32;
    while begun.elapsed() < Duration::from_secs(soak.seconds) {
        tokio::select! {
            _ = changes.tick() => {
                let [_, high, mid, low] = number.to_be_bytes();
                let key = format!("instances/{CHURN}/{number}");
                let addr = format!("127.{}.{mid}.{low}:9", 1 + high);
                stage.put(&key, json!({ "addr": addr }).to_string()).await?;
                present.push_back(key);
                number += 1;
                measured.registrations += 1;
                if present.len() > PRESENT && let Some(key) = present.pop_front() {
                    stage.delete(&key).await?;
                    measured.deregistrations += 1;
                }
            }
            _ = reloads.tick() => {
                stage.hosts[0].reload();
                measured.reloads += 1;
                reloaded = Instant::now();
                compact(stage).await?;
            }
            _ = samples.tick() => {
                if reloaded == begun || reloaded.elapsed() > OVERLAP {
                    sample(stage, begun, &mut measured.processes);
                }
            }
        }
    }
    for key in present {
        stage.delete(&key).await?;
        measured.deregistrations += 1;
    }
    Ok(())
}

/// Takes a sample of every process.
fn sample(stage: &Stage, begun: Instant, processes: &mut BTreeMap<String, Vec<Sample>>) {
    let mut pids = Vec::new();
    for host in &stage.hosts {
        let name = &host.name;
        pids.push((format!("{name} master"), host.master()));
        pids.push((format!("{name} worker 0"), host.worker_zero()));
        pids.push((format!("{name} worker 1"), host.other_worker()));
    }
    for exporter in &stage.exporters {
        pids.push((exporter.id().to_owned(), exporter.part.as_ref().map(crate::parts::Part::id)));
    }
    for (name, pid) in pids {
        let sample = pid.and_then(|pid| {
            let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let kib = |name: &str| {
                let line = memory.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
            };
            Some(Sample {
                at_s: begun.elapsed().as_secs_f64(),
                rss_kib: kib("Rss:")?,
                pss_kib: kib("Pss:")?,
                anonymous_kib: kib("Anonymous:")?,
                files: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as f64,
            })
        });
        // A worker that was just replaced has none.
        processes.entry(name).or_default().extend(sample);
    }
}

fn print(measured: &Measured) {
    let mut table = Table::new(&[
        "process",
        "samples",
        "RSS MiB",
        "at the end",
        "KiB/h",
        "anonymous",
        "at the end",
        "KiB/h",
        "PSS",
        "at the end",
        "KiB/h",
        "files",
        "at the end",
        "1/h",
    ]);
    for (name, samples) in &measured.processes {
        // A process is warm after the first quarter.
        let warm = measured.seconds as f64 / 4.0;
        let warm: Vec<_> = samples.iter().filter(|sample| sample.at_s > warm).collect();
        let [Some(first), Some(last)] = [warm.first(), warm.last()] else { continue };
        let slope = |of: fn(&Sample) -> f64| {
            let points: Vec<_> = warm.iter().map(|it| (it.at_s / 3600.0, of(it))).collect();
            format!("{:+.0}", slope(&points))
        };
        let mib = |kib: f64| format!("{:.1}", kib / 1024.0);
        table.row(vec![
            name.clone(),
            warm.len().to_string(),
            mib(first.rss_kib),
            mib(last.rss_kib),
            slope(|it| it.rss_kib),
            mib(first.anonymous_kib),
            mib(last.anonymous_kib),
            slope(|it| it.anonymous_kib),
            mib(first.pss_kib),
            mib(last.pss_kib),
            slope(|it| it.pss_kib),
            first.files.to_string(),
            last.files.to_string(),
            slope(|it| it.files),
        ]);
    }
    table.print();
    let Measured { registrations, deregistrations, reloads, requests, .. } = measured;
    println!(
        "{registrations} registrations, {deregistrations} deregistrations, {reloads} reloads; \
         {} requests, {} failed, {} reconnected; slots {:?} for {} instances; {} in flight at rest",
        requests.sent,
        requests.failed,
        requests.reconnected,
        measured.slots,
        measured.instances,
        measured.in_flight_at_rest,
    );
    measured.amiss.iter().for_each(|what| println!("amiss: {what}"));
}

/// Of the line through these points from which the squares of their distances are
/// least; 0 where there is none.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|it| it.0), mean(|it| it.1));
    let above: f64 = points.iter().map(|it| (it.0 - x) * (it.1 - y)).sum();
    let below: f64 = points.iter().map(|it| (it.0 - x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}
