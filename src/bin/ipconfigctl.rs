//! `ipconfigctl`: registrations, by hand, in scripts and around a command; and what
//! a strategy is worth before it is used.
//!
//! Exit codes:
//!
//! | code | says |
//! |---|---|
//! | 0 | done |
//! | 1 | failed: etcd cannot be reached, a command does not accept connections |
//! | 2 | wrong arguments |
//! | 3 | there is no such service or instance |
//! | 64 | a configuration file, a scenario or an address is refused (`EX_USAGE`) |
//! | 126, 127 | `run`: the command cannot be executed, or is not there |
//! | any | `run`: the command's own; 128 and a signal's number if that ended it |
//!
//! Answers go to stdout, as text or with `--json` as one JSON document; errors and
//! logs go to stderr, the latter filtered by `RUST_LOG` (default: `info`, or `off` for
//! simulations).

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use ipconfig::ctl::simulate::Simulate;
use ipconfig::ctl::{self, CtlError, Keeper, Overrides, Run, Settings, Wish, hand, print, view};
use ipconfig::exporter;
use ipconfig::model::{Instance, MAX_IN_FLIGHT, MAX_WEIGHT, StatusUrl, is_name, parse_addr};
use ipconfig::sim;
use rustix::process::Signal;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

/// Taken where nothing else is said, if it is there.
const DEFAULT_CONFIG: &str = "/etc/ipconfig/ipconfig.json";

const EXIT_CODES: &str = "\
Exit codes:
  0         done
  1         failed: etcd cannot be reached, a command does not accept connections
  2         wrong arguments
  3         there is no such service or instance
  64        a configuration file, a scenario or an address is refused
  126, 127  run: the command cannot be executed, or is not there
  any       run: the command's own; 128 and a signal's number if that ended it";

/// Commands for operators of resty.ipconfig.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Args {
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(subcommand)]
    command: Command,
}

/// Where etcd is.
#[derive(clap::Args)]
#[command(next_help_heading = "etcd")]
struct EtcdArgs {
    /// The configuration file, the gateway's too; the arguments below stand in
    /// place of its keys [default: /etc/ipconfig/ipconfig.json if it is there].
    #[arg(
        long,
        global = true,
        env = "IPCONFIG_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    config: Option<PathBuf>,
    /// The members, http://HOST:PORT or https://HOST:PORT.
    #[arg(
        long,
        global = true,
        env = "IPCONFIG_ENDPOINTS",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ','
    )]
    endpoints: Vec<String>,
    /// What all keys begin with.
    #[arg(long, global = true)]
    prefix: Option<String>,
    /// The user to authenticate as.
    #[arg(long, global = true, value_name = "NAME")]
    username: Option<String>,
    /// The file that holds the user's password.
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<String>,
    /// The authority that signed the members' certificates, PEM.
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<String>,
    /// The certificate to show to the members, PEM.
    #[arg(long, global = true, value_name = "FILE")]
    cert: Option<String>,
    /// The private key of that certificate, PEM.
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Validate a configuration file, as the gateway and the exporter do at start.
    Check {
        /// The file, for instance /etc/ipconfig/ipconfig.json.
        file: PathBuf,
    },
    /// Run a command as an instance: registered when it accepts connections, out of
    /// the rankings before it ends.
    ///
    /// SIGTERM and SIGINT drain the instance, wait, send SIGTERM to the command,
    /// wait for its end and deregister; SIGQUIT does so with SIGQUIT. Once more, and
    /// a wait is over. SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the command.
    Run(RunArgs),
    /// Simulate scenarios, and compare strategies and other policies in them.
    ///
    /// Prints a table for each scenario: mean latency and percentiles in
    /// milliseconds, in which a request that was not answered counts with the timeout;
    /// the part of such requests; how many requests a server had on average and at the
    /// most; how far the servers' shares swing (0: not at all, 1: fully); and how
    /// unevenly they are used (deviation over mean of their utilization).
    Simulate(SimulateArgs),
    #[command(flatten)]
    Hand(Hand),
}

/// Steps by hand, each one exchange with etcd.
#[derive(Subcommand)]
enum Hand {
    /// Register an instance, until it is deregistered.
    Register {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        instance: InstanceArgs,
        /// Keep the registration only as long as this command runs, and so long
        /// after it was killed; SIGTERM and SIGINT end it.
        #[arg(long, value_parser = ttl)]
        ttl: Option<Duration>,
    },
    /// Remove an instance's registration.
    ///
    /// One that a running `run` or `register --ttl` keeps comes back: stop that, or
    /// drain the instance.
    Deregister {
        #[command(flatten)]
        name: Name,
    },
    /// Take an instance out of the rankings, without a word to the instance.
    Drain {
        #[command(flatten)]
        name: Name,
        /// Let it in again.
        #[arg(long)]
        undo: bool,
    },
    /// List the services, or the instances of one.
    Ls {
        /// The service whose instances to list.
        #[arg(value_parser = name)]
        service: Option<String>,
        /// List the exporters that run.
        #[arg(long, conflicts_with = "service")]
        exporters: bool,
    },
    /// Show one instance, with what it last reported.
    Get {
        #[command(flatten)]
        name: Name,
    },
}

#[derive(clap::Args)]
struct Name {
    /// The service's name.
    #[arg(value_parser = name)]
    service: String,
    /// The instance's id.
    #[arg(value_parser = name)]
    id: String,
}

/// What is registered, but for its name.
#[derive(Clone, clap::Args)]
struct InstanceArgs {
    /// Where requests go: an IP address with a port.
    #[arg(long, value_parser = parse_addr)]
    addr: SocketAddr,
    /// The fallback weight, 0 to 1000.
    #[arg(long, default_value = "1", value_parser = weight)]
    weight: f64,
    /// Requests that each gateway host may have in flight on it, 0 for no limit.
    #[arg(long, default_value = "0", value_parser = max_in_flight)]
    max_in_flight: u32,
    /// Where the instance runs.
    #[arg(long, default_value = "", hide_default_value = true)]
    zone: String,
    /// Anything else that rules may ask for; once for each.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Where the exporter asks for the status: grpc://, orca:// or health://, with
    /// TLS grpcs://, orcas:// or healths://.
    #[arg(long, value_name = "URL")]
    status: Option<StatusUrl>,
}

#[derive(clap::Args)]
struct RunArgs {
    /// The service's name.
    #[arg(long, value_parser = name)]
    service: String,
    /// The instance's id [default: the host's name and the port].
    #[arg(long, value_parser = name)]
    id: Option<String>,
    #[command(flatten)]
    instance: InstanceArgs,
    /// How long the registration stays if this program is killed.
    #[arg(long, default_value = "10s", value_parser = ttl)]
    ttl: Duration,
    /// The wait between the drain and the signal, for requests under way.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    drain_wait: Duration,
    /// The wait between the signal and SIGKILL.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    stop_wait: Duration,
    /// The wait for the first connection that the command accepts.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    start_timeout: Duration,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(clap::Args)]
struct SimulateArgs {
    /// Scenario files, JSON, such as those in examples/simulate.
    #[arg(required_unless_present = "list", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// List the policies.
    #[arg(long, conflicts_with = "files")]
    list: bool,
    /// Compare these, whatever the files say.
    #[arg(long = "policy", value_name = "NAME", value_delimiter = ',', value_parser = policy)]
    policies: Vec<String>,
    /// One run, by this seed, whatever the files say.
    #[arg(long)]
    seed: Option<u64>,
    /// Simulate so many seconds, whatever the files say; at most half of them warm up.
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Plot latencies and shares over time into this directory, SVG.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

fn policy(text: &str) -> Result<String, String> {
    let known = || format!("expected one of {}", sim::names().join(", "));
    sim::Chooser::named(text).map(|_| text.to_owned()).ok_or_else(known)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (1.0..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected 1 to 3600".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let why = "expected 1 to 128 characters of A-Z a-z 0-9 . _ : -";
    is_name(text).then(|| text.to_owned()).ok_or_else(|| why.to_owned())
}

fn max_in_flight(text: &str) -> Result<u32, String> {
    let limit = text.parse().ok().filter(|limit| *limit <= MAX_IN_FLIGHT);
    limit.ok_or_else(|| format!("expected an integer from 0 to {MAX_IN_FLIGHT}"))
}

fn weight(text: &str) -> Result<f64, String> {
    let weight = text.parse().ok().filter(|weight| (0.0..=MAX_WEIGHT).contains(weight));
    weight.ok_or_else(|| format!("expected a number from 0 to {MAX_WEIGHT}"))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(2)..=Duration::from_secs(600);
    allowed.contains(&ttl).then_some(ttl).ok_or_else(|| "expected 2s to 10m".to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Args { etcd, json, command } = Args::parse();
    // What is logged in a simulated world is no news in this one.
    let level = if matches!(command, Command::Simulate(_)) { "off" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    execute(&etcd, json, command).await.unwrap_or_else(|error| {
        eprintln!("ipconfigctl: {error}");
        failure(&error).into()
    })
}

/// `EX_USAGE` of sysexits.h, which other proxies end with on a bad configuration.
const BAD_CONFIG: u8 = 64;

/// There is no such thing.
const NOT_FOUND: u8 = 3;

fn failure(error: &CtlError) -> u8 {
    match error {
        CtlError::Load(_) | CtlError::Overrides(_) | CtlError::NotAllowed(_) => BAD_CONFIG,
        CtlError::NoService(_) | CtlError::NoInstance { .. } => NOT_FOUND,
        // As shells do.
        CtlError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
        CtlError::Start { .. } => 126,
        _ => 1,
    }
}

async fn execute(etcd: &EtcdArgs, json: bool, command: Command) -> Result<ExitCode, CtlError> {
    match command {
        Command::Check { file } => Ok(check(&file)),
        Command::Run(args) => {
            let wishes = wishes().map_err(CtlError::Signals)?;
            ctl::run(&etcd.settings()?, args.into_run(), wishes).await.map(ExitCode::from)
        }
        Command::Simulate(args) => simulate(json, args),
        Command::Hand(hand) => {
            say(&by_hand(&etcd.settings()?, json, hand).await?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Does it, and says what to answer.
async fn by_hand(settings: &Settings, json: bool, hand: Hand) -> Result<String, CtlError> {
    if let Hand::Register { name: Name { id, .. }, instance, .. } = &hand {
        settings.allow.check(&instance.clone().named(id.clone()))?;
    }
    if let Hand::Register { name: Name { service, id }, instance, ttl: Some(ttl) } = hand {
        keep(Keeper::new(settings, &service, instance.named(id), ttl)).await?;
        return Ok(String::new());
    }
    let prefix = &settings.etcd.prefix;
    let etcd = ctl::connect(&settings.etcd).await?;
    Ok(match hand {
        Hand::Register { name: Name { service, id }, instance, ttl: _ } => {
            let done = hand::register(&etcd, prefix, &service, &instance.named(id)).await?;
            answer(json, &done, print::outcome)
        }
        Hand::Deregister { name: Name { service, id } } => {
            let done = hand::deregister(&etcd, prefix, &service, &id).await?;
            answer(json, &done, print::outcome)
        }
        Hand::Drain { name: Name { service, id }, undo } => {
            let done = hand::drain(&etcd, prefix, &service, &id, !undo).await?;
            answer(json, &done, print::outcome)
        }
        Hand::Ls { exporters: true, .. } => {
            answer(json, &view::exporters(&etcd, prefix).await?, print::exporters)
        }
        Hand::Ls { service: Some(service), .. } => {
            answer(json, &view::instances(&etcd, prefix, &service).await?, print::instances)
        }
        Hand::Ls { service: None, .. } => {
            answer(json, &view::services(&etcd, prefix).await?, print::services)
        }
        Hand::Get { name: Name { service, id } } => {
            answer(json, &view::instance(&etcd, prefix, &service, &id).await?, print::instance)
        }
    })
}

/// Tables as they come, or one document at the end.
fn simulate(json: bool, args: SimulateArgs) -> Result<ExitCode, CtlError> {
    if args.list {
        say(&answer(json, &sim::names(), |names| names.join("\n") + "\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let SimulateArgs { files, policies, seed, seconds, plot, .. } = args;
    let task = Simulate { files, policies, seed, duration: seconds, plots: plot };
    let mut all = Vec::new();
    ctl::simulate::simulate(&task, |simulated| match json {
        true => all.push(simulated.clone()),
        false => say(&print::simulated(simulated)),
    })?;
    if json {
        say(&answer(json, &all, |_| String::new()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps a registration until this program is told to stop.
async fn keep(mut keeper: Keeper) -> Result<(), CtlError> {
    let mut wishes = wishes().map_err(CtlError::Signals)?;
    let stop = async { while let Some(Wish::Pass(_)) = wishes.recv().await {} };
    tokio::select! {
        () = stop => keeper.leave().await,
        _ = keeper.keep() => {}
    }
    Ok(())
}

fn answer<T: Serialize>(json: bool, found: &T, to_text: impl FnOnce(&T) -> String) -> String {
    match json {
        true => serde_json::to_string_pretty(found).expect("names and numbers are JSON") + "\n",
        false => to_text(found),
    }
}

/// To stdout. Whoever reads it may have read enough.
fn say(answer: &str) {
    _ = io::stdout().write_all(answer.as_bytes());
}

/// What signals ask for, from now on.
fn wishes() -> io::Result<mpsc::Receiver<Wish>> {
    let (sender, wishes) = mpsc::channel(16);
    for (kind, wish) in [
        (SignalKind::terminate(), Wish::Stop(Signal::TERM)),
        (SignalKind::interrupt(), Wish::Stop(Signal::TERM)),
        (SignalKind::quit(), Wish::Stop(Signal::QUIT)),
        (SignalKind::hangup(), Wish::Pass(Signal::HUP)),
        (SignalKind::user_defined1(), Wish::Pass(Signal::USR1)),
        (SignalKind::user_defined2(), Wish::Pass(Signal::USR2)),
    ] {
        let mut signals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() && sender.send(wish).await.is_ok() {}
        });
    }
    Ok(wishes)
}

impl EtcdArgs {
    fn settings(&self) -> Result<Settings, CtlError> {
        // A variable that is set to nothing says nothing.
        let said = self.config.as_deref().filter(|path| !path.as_os_str().is_empty());
        let default = Some(Path::new(DEFAULT_CONFIG)).filter(|path| path.exists());
        let endpoints = self.endpoints.iter().filter(|url| !url.is_empty()).cloned();
        let overrides = Overrides {
            endpoints: endpoints.collect(),
            prefix: self.prefix.clone(),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
        };
        Settings::load(said.or(default), &overrides)
    }
}

impl InstanceArgs {
    fn named(self, id: String) -> Instance {
        Instance {
            id,
            addr: self.addr,
            weight: self.weight,
            zone: self.zone,
            labels: self.labels.into_iter().collect(),
            status: self.status,
            drain: false,
            max_in_flight: self.max_in_flight,
        }
    }
}

impl RunArgs {
    fn into_run(self) -> Run {
        let id = self.id.or_else(|| default_id(self.instance.addr)).unwrap_or_else(|| {
            let why = "--id is required: the host's name cannot be a part of it\n";
            Args::command().error(ErrorKind::MissingRequiredArgument, why).exit()
        });
        let mut command = self.command.into_iter();
        Run {
            service: self.service,
            instance: self.instance.named(id),
            ttl: self.ttl,
            drain_wait: self.drain_wait,
            stop_wait: self.stop_wait,
            start_timeout: self.start_timeout,
            program: command.next().unwrap_or_default(),
            args: command.collect(),
        }
    }
}

/// For instance `web-7:8080`, which is another one for each instance of a service.
fn default_id(addr: SocketAddr) -> Option<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(format!("{}:{}", host.trim(), addr.port())).filter(|id| is_name(id))
}

fn check(file: &Path) -> ExitCode {
    match exporter::check_file(file) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => refused(&error.to_string()),
    }
}

fn refused(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(BAD_CONFIG)
}
