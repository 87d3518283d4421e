//! `make chaos`: faults of many kinds, one after the other, while requests keep
//! coming, and what each of them cost.
//!
//! etcd (one, then three members), two exporters, eight instances and two gateways of
//! two workers are started on free loopback ports. Each fault is done and undone by
//! a seeded schedule; then it is waited for that both gateways say what etcd and the
//! truth say. The exit code is 0 if no request failed that could have been served
//! and all was right after each fault, else 1. [`traffic`] says which requests count;
//! doc/chaos.md has the rest.
//!
//! ```text
//! cargo build --release --lib --bins --example chaos --example demo_service
//! target/release/examples/chaos                 # CHAOS_SECONDS=n
//! target/release/examples/chaos --short         # as in `make test`
//! target/release/examples/chaos --kinds etcd-wipe,cold-start --seed 7
//! target/release/examples/chaos soak            # `make soak`, SOAK_SECONDS=n
//! ```

#[path = "../demo/failure.rs"]
#[allow(dead_code, reason = "a part of it is for the demo")]
mod failure;
mod fault;
mod files;
#[path = "../demo/gateway.rs"]
#[allow(dead_code, reason = "a part of it is for the demo")]
mod gateway;
mod host;
#[path = "../demo/parts.rs"]
#[allow(dead_code, reason = "a part of it is for the demo")]
mod parts;
#[path = "../demo/programs.rs"]
mod programs;
mod report;
mod soak;
mod stage;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../benches/shared/table.rs"]
#[allow(dead_code, reason = "a part of it is for the benches")]
mod table;
mod traffic;
#[path = "../../benches/shared/usage.rs"]
#[allow(dead_code, reason = "a part of it is for the benches")]
mod usage;
mod wait;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use rand::rngs::{SmallRng, SysRng};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use self::failure::{Context, Failure};
use self::fault::{Draw, Kind};
use self::report::{Fault, Report, name};
use self::stage::Stage;
use self::traffic::Traffic;

/// Breaks the parts of resty.ipconfig one after the other and says what that cost.
#[derive(Parser)]
struct Args {
    /// For how long faults are made; the one under way is ended.
    #[arg(long, env = "CHAOS_SECONDS", default_value = "300")]
    seconds: u64,
    /// What the schedule is drawn from; any number by default.
    #[arg(long, env = "CHAOS_SEED")]
    seed: Option<u64>,
    /// These alone.
    #[arg(long, env = "CHAOS_KINDS", value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// One fault of each of a few kinds, each as short as it can be.
    #[arg(long)]
    short: bool,
    /// Requests a second through both gateways together.
    #[arg(long, env = "CHAOS_RATE", default_value = "300")]
    rate: f64,
    /// Where every fault is written.
    #[arg(long, env = "CHAOS_JSON", default_value = "target/chaos.json")]
    json: PathBuf,
    #[command(subcommand)]
    command: Option<Other>,
}

/// What else there is to do with the parts.
#[derive(Subcommand)]
enum Other {
    /// Hours of coming and going, and what every process grows by
    Soak(soak::Soak),
}

/// How long an act lasts at least that has the time for one round.
const LEAST: Duration = Duration::from_secs(30);

/// For how long after all is right again requests count for a fault.
const AFTERMATH: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    // nginx's processes, being daemons, are this program's to wait for.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("chaos: failed to become a subreaper: {error}");
        return ExitCode::FAILURE;
    }
    let folder = tempfile::Builder::new().prefix("ipconfig-chaos-").disable_cleanup(true).tempdir();
    let folder = match folder {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("chaos: failed to make a temporary folder: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = tokio::select! {
        ended = run(&args, folder.path()) => ended,
        name = interrupted() => Err(Failure::Signal(name)),
    };
    if let Err(failure) = &ended {
        eprintln!("\nchaos: {failure}");
    }
    if matches!(ended, Ok(true)) {
        if let Err(error) = fs::remove_dir_all(folder.path()) {
            eprintln!("chaos: failed to remove {}: {error}", folder.path().display());
        }
        return ExitCode::SUCCESS;
    }
    eprintln!("chaos: logs and configuration are kept in {}", folder.path().display());
    ExitCode::FAILURE
}

/// Ends with the name of the first signal that asks to end.
async fn interrupted() -> &'static str {
    let listen = |kind| signal(kind).expect("a signal that can be listened to");
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

/// Does what was asked for; whether all was well.
async fn run(args: &Args, folder: &Path) -> Result<bool, Failure> {
    match &args.command {
        Some(Other::Soak(soak)) => soak::run(soak, folder).await,
        None => play(args, folder).await,
    }
}

/// Plays all acts; whether everything was survived.
async fn play(args: &Args, folder: &Path) -> Result<bool, Failure> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => {
            let chance = SmallRng::try_from_rng(&mut SysRng);
            chance.map_err(std::io::Error::other).context("draw a seed")?.random_range(0..1_000_000)
        }
    };
    println!("chaos: seed {seed}, logs in {}", folder.display());
    let mut report =
        Report { seed, requests_per_second: args.rate, faults: Vec::new(), amiss: Vec::new() };
    let begun = Instant::now();
    // Three members take more of the machine, and half as much can happen to them that
    // cannot happen to one.
    let acts: &[(usize, f64)] = if args.short { &[(1, 1.0)] } else { &[(1, 0.65), (3, 0.35)] };
    for &(members, share) in acts {
        let length = Duration::from_secs(args.seconds).mul_f64(share);
        let folder = folder.join(format!("etcd-{members}"));
        fs::create_dir_all(&folder).context("make a folder")?;
        act(args, members, length, begun, &folder, &mut report).await?;
    }
    report.print();
    let text = serde_json::to_string_pretty(&report).expect("figures and texts are JSON");
    if let Some(folder) = args.json.parent() {
        fs::create_dir_all(folder).context("make a folder")?;
    }
    fs::write(&args.json, text).context(format!("write {}", args.json.display()))?;
    let count = report.faults.len();
    println!(
        "\nchaos: seed {seed}, {count} faults in {:.0} s, {}; each one in {}",
        begun.elapsed().as_secs_f64(),
        if report.is_good() { "all survived" } else { "NOT all survived" },
        args.json.display()
    );
    Ok(report.is_good())
}

/// Starts everything, makes faults for so long, and stops it.
async fn act(
    args: &Args,
    members: usize,
    length: Duration,
    begun: Instant,
    folder: &Path,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut rng = SmallRng::seed_from_u64(report.seed ^ members as u64);
    let mut stage = Stage::start(members, "500ms", folder).await?;
    if let Err(wrong) = stage.right(Instant::now()).await {
        return Err(stage.failure("the stage", format!("is not as it should be: {wrong}")));
    }
    let traffic = Traffic::start(&stage.hosts, args.rate, rng.random());
    // Every worker has taken requests, and windows are full.
    sleep(Duration::from_secs(2)).await;

    let until = Instant::now() + length.max(LEAST);
    'rounds: loop {
        for kind in round(args, members, &mut rng) {
            let draw = Draw::new(&mut rng, args.short, stage.instances.len());
            if !args.short && Instant::now() > until {
                break 'rounds;
            }
            let number = report.faults.len() + 1;
            let fault = one(number, kind, &draw, members, begun, &mut stage, &traffic).await?;
            tell(&fault);
            report.faults.push(fault);
        }
        if args.short || Instant::now() > until {
            break;
        }
    }
    end(&stage, &traffic, members, report).await;
    stage.stop().await;
    Ok(())
}

/// Each kind once, in an order drawn.
fn round(args: &Args, members: usize, rng: &mut SmallRng) -> Vec<Kind> {
    let all = match (&args.kinds[..], args.short) {
        ([], true) => &Kind::SHORT[..],
        ([], false) => Kind::value_variants(),
        (some, _) => some,
    };
    let mut kinds: Vec<_> = all.iter().copied().filter(|kind| kind.suits(members)).collect();
    kinds.shuffle(rng);
    kinds
}

/// Makes one fault, and waits until all is right again.
async fn one(
    number: usize,
    kind: Kind,
    draw: &Draw,
    members: usize,
    begun: Instant,
    stage: &mut Stage,
    traffic: &Traffic,
) -> Result<Fault, Failure> {
    let at = Instant::now();
    let seen = fault::play(kind, draw, stage).await?;
    let undone = seen.undone.unwrap_or_else(Instant::now);
    let right = stage.right(undone).await;
    // What it leaves behind may show a moment later.
    sleep(AFTERMATH).await;
    let millis = |it: Duration| it.as_millis() as u64;
    Ok(Fault {
        number,
        kind,
        members,
        at_ms: millis(at - begun),
        lasted_ms: millis(undone - at),
        out_ms: seen.out.map(millis),
        right_ms: right.as_ref().ok().copied().map(millis),
        wrong: seen.missed.or(right.err()),
        requests: traffic.take(),
    })
}

fn tell(fault: &Fault) {
    let Fault { number, kind, lasted_ms, right_ms, wrong, requests, .. } = fault;
    let right = right_ms.map_or("never".into(), |ms| format!("{:.1} s", ms as f64 / 1e3));
    println!(
        "{number:>4} {:<18} {:>5.1} s, right after {right:>6}, {:>5} requests, {} failed, {} lost{}",
        name(*kind),
        *lasted_ms as f64 / 1e3,
        requests.sent,
        requests.failed,
        requests.lost,
        wrong.as_ref().map_or(String::new(), |wrong| format!(": {wrong}")),
    );
}

/// What must hold at the end of an act, whatever was done in it.
async fn end(stage: &Stage, traffic: &Traffic, members: usize, report: &mut Report) {
    let mut amiss = |what: String| report.amiss.push(format!("etcd of {members}: {what}"));
    if !traffic.end().await {
        amiss("requests did not come to their end".into());
    }
    let rest = traffic.take();
    if rest.failed > 0 {
        amiss(format!("{} requests failed at the end: {:?}", rest.failed, rest.failures));
    }
    let is_at_rest = async || stage.in_flight().await == 0;
    if !wait::until(Duration::from_secs(20), is_at_rest).await {
        amiss(format!("{} requests are in flight at rest", stage.in_flight().await));
    }
    for host in &stage.hosts {
        for crash in host.crashes() {
            amiss(format!("{}: {crash}", host.name));
        }
        for metric in ["ipconfig_thread_restarts_total", "ipconfig_audit_differences_total"] {
            match host.metric(metric).await {
                Some(0.0) => {}
                found => amiss(format!("{}: {metric} is {found:?}", host.name)),
            }
        }
    }
}
