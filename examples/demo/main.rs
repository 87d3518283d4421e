//! `make demo`: the main job of resty.ipconfig on real parts, as a play that one
//! can watch.
//!
//! A private etcd, four demo services, the exporter and nginx with the plugin are
//! started on free loopback ports, and requests are sent through nginx all the
//! time. Then things happen to the parts, and the table shows what the ranking
//! makes of it. The end is a summary; the exit code is 0 if no request failed and
//! everything happened that should, else 1.
//!
//! ```text
//! cargo build --release --lib --bins --example demo --example demo_service
//! target/release/examples/demo            # DEMO_SECONDS=n, 12 or more
//! target/release/examples/demo --stay     # `make up`: until Ctrl-C
//! ```

mod failure;
mod gateway;
mod parts;
mod probe;
mod programs;
mod screen;
mod script;
mod stage;
mod stay;
mod summary;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod traffic;

use std::fs;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use self::failure::{Context, Failure};
use self::screen::Screen;
use self::stage::Stage;

/// Shows resty.ipconfig at work on real parts.
#[derive(Parser)]
struct Args {
    /// How long the demo takes, in seconds: 12 at least, in which all of it just
    /// fits; a slow machine may need longer.
    #[arg(long, env = "DEMO_SECONDS", default_value = "40")]
    seconds: u32,
    /// Starts everything, keeps some traffic running, prints where to look, and
    /// ends with Ctrl-C.
    #[arg(long)]
    stay: bool,
}

/// Below so many seconds, phases would end before what they show has happened.
const SHORTEST: u32 = 12;

/// How a run ended that nothing got in the way of.
enum Ending {
    AsExpected,
    Otherwise,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let folder = tempfile::Builder::new()
        .prefix("ipconfig-demo-")
        // What explains a failure, a panic included, is kept.
        .disable_cleanup(true)
        .tempdir();
    let folder = match folder {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("demo: failed to make a temporary folder: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ending = show(&args, folder.path()).await;
    if let Err(failure) = &ending {
        eprintln!("\ndemo: {failure}");
    }
    match ending {
        // Nothing went wrong, or nothing was started.
        Ok(Ending::AsExpected) | Err(Failure::Signal(_) | Failure::Missing { .. }) => {
            if let Err(error) = fs::remove_dir_all(folder.path()) {
                eprintln!("demo: failed to remove {}: {error}", folder.path().display());
            }
        }
        _ => eprintln!("demo: logs and configuration are kept in {}", folder.path().display()),
    }
    match ending {
        Ok(Ending::AsExpected) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Sets up, plays, and takes everything down again, whatever happens between.
async fn show(args: &Args, folder: &Path) -> Result<Ending, Failure> {
    let mut interrupted = pin!(interrupted().context("listen to signals")?);
    let mut screen = Screen::new();
    screen.say(format!(
        "starting etcd, four services, nginx and the exporter; logs in {}",
        folder.display()
    ))?;
    let mut stage = tokio::select! {
        stage = Stage::start(folder) => stage?,
        name = &mut interrupted => return Err(Failure::Signal(name)),
    };
    let ending = if args.stay {
        stay::until(interrupted, &mut stage, &mut screen).await
    } else {
        let length = Duration::from_secs(args.seconds.max(SHORTEST).into());
        tokio::select! {
            ending = script::play(&mut stage, &mut screen, length) => ending,
            name = interrupted => Err(Failure::Signal(name)),
        }
    };
    drop(screen);
    stage.stop().await;
    ending
}

/// Ends with the name of the first signal that asks to end.
fn interrupted() -> io::Result<impl Future<Output = &'static str>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    })
}
