//! `ipconfig-exporter`: asks instances for their status and writes it into etcd.
//!
//! Exit codes: 0 ended by SIGTERM or SIGINT; 64 (`EX_USAGE`) wrong arguments or
//! a configuration that is refused; 1 anything else. Logs go to stderr,
//! filtered by `RUST_LOG` (default: `info`).

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ipconfig::config::Config;
use ipconfig::exporter;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Asks instances for their status and writes it into etcd.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The configuration file, the gateway's too.
    #[arg(long, env = "IPCONFIG_CONFIG", default_value = "/etc/ipconfig/ipconfig.json")]
    config: PathBuf,
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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();

    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(err) => return fail(&err, BAD_USAGE),
    };
    let shutdown = match termination() {
        Ok(shutdown) => shutdown,
        Err(err) => return fail(&format_args!("failed to listen to signals: {err}"), 1),
    };
    match exporter::run(&config, shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if err.is_config() => fail(&err, BAD_USAGE),
        Err(err) => fail(&err, 1),
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

fn fail(err: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("ipconfig-exporter: {err}");
    code.into()
}
