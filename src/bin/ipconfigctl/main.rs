//! `ipconfigctl`: registrations and an operator's control of services, by hand, in
//! scripts and around a command; and what a strategy is worth before it is used.
//!
//! Exit codes:
//!
//! | code | says |
//! |---|---|
//! | 0 | done |
//! | 1 | failed: etcd cannot be reached, a command does not accept connections |
//! | 2 | wrong arguments |
//! | 3 | there is no such service or instance |
//! | 64 | a configuration file, a scenario, a control or an address is refused (`EX_USAGE`) |
//! | 126, 127 | `run`: the command cannot be executed, or is not there |
//! | any | `run`: the command's own; 128 and a signal's number if that ended it |
//!
//! Answers go to stdout, as text or with `--json` as one JSON document; errors and
//! logs go to stderr, the latter filtered by `RUST_LOG` (default: `info`, or `off` for
//! simulations). With `--json` an error is the last line of stderr, as
//! `{"error": "there is no service chat", "exit_code": 3}`.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use ipconfig::ctl::simulate::Simulate;
use ipconfig::ctl::{self, CtlError, GatewayError, Wish, print};
use ipconfig::exporter;
use ipconfig::sim;
use rustix::process::Signal;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

mod args;
mod control;
mod hand;

use args::{Args, Command, EtcdArgs, SimulateArgs};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Args { etcd, json, command } = Args::try_parse().unwrap_or_else(|error| refuse(&error));
    // What is logged in a simulated world is no news in this one.
    let level = if matches!(command, Command::Simulate(_)) { "off" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    execute(&etcd, json, command).await.unwrap_or_else(|error| {
        fail(json, &format!("ipconfigctl: {error}"), &error.to_string(), failure(&error))
    })
}

/// Tells an error: `text` to people, `error` to programs.
fn fail(json: bool, text: &str, error: &str, exit_code: u8) -> ExitCode {
    match json {
        true => eprintln!("{}", json!({ "error": error, "exit_code": exit_code })),
        false => eprintln!("{text}"),
    }
    exit_code.into()
}

/// Ends the program for its arguments, or with what they ask for: help, the version.
fn refuse(error: &clap::Error) -> ! {
    // What comes behind `--` are the words of another command.
    let wants_json = env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if !error.use_stderr() || !wants_json {
        error.exit()
    }
    let text = error.to_string();
    let why = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
    _ = fail(true, "", why, WRONG_ARGUMENTS);
    std::process::exit(WRONG_ARGUMENTS.into())
}

/// As clap has it.
const WRONG_ARGUMENTS: u8 = 2;

/// `EX_USAGE` of sysexits.h, which other proxies end with on a bad configuration.
const BAD_CONFIG: u8 = 64;

/// There is no such thing.
const NOT_FOUND: u8 = 3;

fn failure(error: &CtlError) -> u8 {
    match error {
        CtlError::Load(_) | CtlError::Overrides(_) | CtlError::NotAllowed(_) => BAD_CONFIG,
        CtlError::Refused { .. } | CtlError::NotManual(_) | CtlError::Read { .. } => BAD_CONFIG,
        CtlError::NoService(_) | CtlError::NoInstance { .. } => NOT_FOUND,
        CtlError::NotAmong { .. } | CtlError::NoneOf { .. } => NOT_FOUND,
        CtlError::Gateway(GatewayError::NoService { .. }) => NOT_FOUND,
        // As shells do.
        CtlError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
        CtlError::Start { .. } => 126,
        _ => 1,
    }
}

async fn execute(etcd: &EtcdArgs, json: bool, command: Command) -> Result<ExitCode, CtlError> {
    match command {
        Command::Check { file } => Ok(check(json, &file)),
        Command::Run(args) => {
            let wishes = wishes().map_err(CtlError::Signals)?;
            ctl::run(&etcd.settings()?, args.into_run(), wishes).await.map(ExitCode::from)
        }
        Command::Simulate(args) => simulate(json, args),
        Command::Explain { service, gateway, n } => {
            let explained = ctl::gateway::explain(&gateway, &service, n).await?;
            say(&answer(json, &explained, print::explained));
            Ok(ExitCode::SUCCESS)
        }
        Command::Hand(hand) => {
            say(&hand.execute(&etcd.settings()?, json).await?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Control(control) => {
            say(&control.execute(&etcd.settings()?, json).await?);
            Ok(ExitCode::SUCCESS)
        }
    }
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

fn check(json: bool, file: &Path) -> ExitCode {
    match exporter::check_file(file) {
        Ok(summary) => {
            say(&answer(json, &summary, |summary| format!("{summary}\n")));
            ExitCode::SUCCESS
        }
        Err(error) => {
            let why = error.to_string();
            fail(json, &why, &why, BAD_CONFIG)
        }
    }
}
