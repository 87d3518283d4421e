//! `ipconfig-exporter`: asks instances for their status and writes it into etcd.
//! `ipconfig-exporter agent`: answers for a process that cannot be asked.
//!
//! Exit codes: 0 ended by SIGTERM or SIGINT, or a configuration that
//! `--check-config` finds good; 64 (`EX_USAGE`) wrong arguments or a configuration
//! that is refused; 1 anything else. Logs go to stderr, filtered by `RUST_LOG`
//! (default: `info`).

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use ipconfig::config::{Config, ExporterConfig};
use ipconfig::exporter;
use ipconfig::model::{is_name, parse_addr};
use ipconfig::service::agent::{self, Target};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Asks instances for their status and writes it into etcd.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The configuration file, the gateway's too.
    #[arg(
        long,
        env = "IPCONFIG_CONFIG",
        hide_env_values = true,
        default_value = "/etc/ipconfig/ipconfig.json"
    )]
    config: PathBuf,
    /// This exporter's id, in place of the file's exporter.id.
    #[arg(long, env = "IPCONFIG_EXPORTER_ID", hide_env_values = true, value_parser = exporter_id)]
    id: Option<String>,
    /// Where its pages are served, in place of the file's exporter.listen.
    #[arg(long, env = "IPCONFIG_EXPORTER_LISTEN", hide_env_values = true, value_parser = parse_addr)]
    listen: Option<SocketAddr>,
    /// Validate the configuration file, say so, and start nothing.
    #[arg(long)]
    check_config: bool,
    /// How logs are written.
    #[arg(
        long,
        global = true,
        value_enum,
        env = "IPCONFIG_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text"
    )]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the status of a process that cannot serve its own.
    Agent(Agent),
}

#[derive(clap::Args)]
struct Agent {
    #[command(flatten)]
    process: ProcessArgs,
    /// Where the status is asked for, over gRPC without TLS.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9101")]
    listen: SocketAddr,
}

/// Exactly one of them.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct ProcessArgs {
    /// The process by its id; when it ends there is no other.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// The process whose id is in this file, also after a restart.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// The process that listens on this TCP port, also after a restart.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

impl From<ProcessArgs> for Target {
    fn from(args: ProcessArgs) -> Self {
        let pid = args.pid.map(Self::Pid);
        let pid_file = args.pid_file.map(Self::PidFile);
        let port = args.port.map(Self::Port);
        pid.or(pid_file).or(port).expect("one of the three is required")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
}

/// `EX_USAGE` of sysexits.h, which other proxies end with on a bad configuration.
const BAD_USAGE: u8 = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            // Help and version are errors to clap, but not to the user.
            _ = err.print();
            return if err.use_stderr() { BAD_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    if args.check_config {
        return check(&args.config);
    }
    log_to_stderr(args.log_format);
    let shutdown = match termination() {
        Ok(shutdown) => shutdown,
        Err(err) => return fail(&format_args!("failed to listen to signals: {err}"), 1),
    };
    match args.command {
        Some(Command::Agent(agent)) => {
            match agent::run(agent.process.into(), agent.listen, shutdown).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(err) => fail(&err, 1),
            }
        }
        None => {
            let changed = |exporter: &mut ExporterConfig| {
                exporter.id = args.id.unwrap_or_else(|| exporter.id.clone());
                exporter.listen = args.listen.unwrap_or(exporter.listen);
            };
            export(&args.config, changed, shutdown).await
        }
    }
}

fn exporter_id(text: &str) -> Result<String, &'static str> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 128 characters out of A-Z a-z 0-9 . _ : -"),
    }
}

async fn export(
    file: &Path,
    change: impl FnOnce(&mut ExporterConfig),
    shutdown: impl Future<Output = ()>,
) -> ExitCode {
    let mut config = match Config::load(file) {
        Ok(config) => config,
        Err(err) => return fail(&err, BAD_USAGE),
    };
    change(&mut config.exporter);
    match exporter::run(&config, shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if err.is_config() => fail(&err, BAD_USAGE),
        Err(err) => fail(&err, 1),
    }
}

/// Tells as `ipconfigctl check` does.
fn check(file: &Path) -> ExitCode {
    match exporter::check_file(file) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("{err}");
            BAD_USAGE.into()
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Whatever the filter: why the program ends is told.
    let filter = filter.add_directive("ipconfig_exporter=error".parse().expect("a directive"));
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Ends with the first SIGTERM or SIGINT from now on.
fn termination() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The last line of the log says why there is no other.
fn fail(err: &dyn std::fmt::Display, code: u8) -> ExitCode {
    tracing::error!("{err}");
    code.into()
}
