//! `ipconfigctl`: what an operator does by hand.
//!
//! Exit codes: 0 done; 2 wrong arguments; 64 (`EX_USAGE`) a configuration file
//! that is refused or cannot be read.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ipconfig::config::Config;
use ipconfig::exporter;

/// Commands for operators of resty.ipconfig.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Validate a configuration file, as the gateway and the exporter do at start.
    Check {
        /// The file, for instance /etc/ipconfig/ipconfig.json.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Check { file } => check(&file),
    }
}

/// `EX_USAGE` of sysexits.h, which other proxies end with on a bad configuration.
const BAD_CONFIG: u8 = 64;

fn check(file: &Path) -> ExitCode {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return refused(&error.to_string()),
    };
    if let Err(error) = exporter::check(&config) {
        return refused(&format!("{}: {error}", file.display()));
    }
    let services = counted(config.services.len(), "service");
    let instances = config.services.values().map(|service| service.instances.len()).sum();
    println!("{}: ok: {services}, {}", file.display(), counted(instances, "instance"));
    ExitCode::SUCCESS
}

fn refused(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(BAD_CONFIG)
}

fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
