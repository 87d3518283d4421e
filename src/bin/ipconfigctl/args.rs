//! What may be typed, and what is made of it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use ipconfig::ctl::gateway::GatewayUrl;
use ipconfig::ctl::{CtlError, Overrides, Run, Settings};
use ipconfig::model::{Instance, MAX_IN_FLIGHT, MAX_WEIGHT, StatusUrl, is_name, parse_addr};
use ipconfig::sim;

use crate::control::ControlCommand;
use crate::hand::Hand;
use crate::refuse;

/// Taken where nothing else is said, if it is there.
const DEFAULT_CONFIG: &str = "/etc/ipconfig/ipconfig.json";

const EXIT_CODES: &str = "\
Exit codes:
  0         done
  1         failed: etcd cannot be reached, a command does not accept connections
  2         wrong arguments
  3         there is no such service or instance
  64        a configuration file, a scenario, a control or an address is refused
  126, 127  run: the command cannot be executed, or is not there
  any       run: the command's own; 128 and a signal's number if that ended it";

/// Commands for operators of resty.ipconfig.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
pub struct Args {
    /// Answer in JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Where etcd is.
#[derive(clap::Args)]
#[command(next_help_heading = "etcd")]
pub struct EtcdArgs {
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
pub enum Command {
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
    /// Show why each instance of a service gets what it gets: every factor of its
    /// weight, by a gateway's account. With --json, all that the gateway tells.
    ///
    /// share = base x health x zone x slow start, of the sum of all.
    Explain {
        /// The service's name.
        #[arg(value_parser = name)]
        service: String,
        /// The gateway to ask, http://HOST:PORT.
        #[arg(long, value_name = "URL")]
        gateway: GatewayUrl,
        /// The best so many instances.
        #[arg(short, long = "instances", default_value = "100", value_name = "N")]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
        n: u32,
    },
    #[command(flatten)]
    Hand(Hand),
    #[command(flatten)]
    Control(ControlCommand),
}

/// What is registered, but for its name.
#[derive(Clone, clap::Args)]
pub struct InstanceArgs {
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
pub struct RunArgs {
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
pub struct SimulateArgs {
    /// Scenario files, JSON, such as those in examples/simulate.
    #[arg(required_unless_present = "list", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// List the policies.
    #[arg(long, conflicts_with = "files")]
    pub list: bool,
    /// Compare these, whatever the files say.
    #[arg(long = "policy", value_name = "NAME", value_delimiter = ',', value_parser = policy)]
    pub policies: Vec<String>,
    /// One run, by this seed, whatever the files say.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Simulate so many seconds, whatever the files say; at most half of them warm up.
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// Plot latencies and shares over time into this directory, SVG.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

fn policy(text: &str) -> Result<String, String> {
    let known = || format!("expected one of {}", sim::names().join(", "));
    sim::Chooser::named(text).map(|_| text.to_owned()).ok_or_else(known)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (1.0..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected 1 to 3600".to_owned())
}

pub fn name(text: &str) -> Result<String, String> {
    let why = "expected 1 to 128 characters of A-Z a-z 0-9 . _ : -";
    is_name(text).then(|| text.to_owned()).ok_or_else(|| why.to_owned())
}

pub fn max_in_flight(text: &str) -> Result<u32, String> {
    let limit = text.parse().ok().filter(|limit| *limit <= MAX_IN_FLIGHT);
    limit.ok_or_else(|| format!("expected an integer from 0 to {MAX_IN_FLIGHT}"))
}

pub fn weight(text: &str) -> Result<f64, String> {
    let weight = text.parse().ok().filter(|weight| (0.0..=MAX_WEIGHT).contains(weight));
    weight.ok_or_else(|| format!("expected a number from 0 to {MAX_WEIGHT}"))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(2)..=Duration::from_secs(600);
    allowed.contains(&ttl).then_some(ttl).ok_or_else(|| "expected 2s to 10m".to_owned())
}

impl EtcdArgs {
    pub fn settings(&self) -> Result<Settings, CtlError> {
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
    pub fn named(self, id: String) -> Instance {
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
    pub fn into_run(self) -> Run {
        let id = self.id.or_else(|| default_id(self.instance.addr)).unwrap_or_else(|| {
            let why = "--id is required: the host's name cannot be a part of it\n";
            refuse(&Args::command().error(ErrorKind::MissingRequiredArgument, why))
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
    Some(format!("{}:{}", host()?, addr.port())).filter(|id| is_name(id))
}

/// This host's name.
pub fn host() -> Option<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(host.trim().to_owned())
}
