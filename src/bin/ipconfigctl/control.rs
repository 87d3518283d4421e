//! An operator's control of services.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Subcommand};
use ipconfig::config::Strategy;
use ipconfig::ctl::control::{Change, Edit, Lasts};
use ipconfig::ctl::gateway::GatewayUrl;
use ipconfig::ctl::hand::{self, Manner};
use ipconfig::ctl::{self, CtlError, Settings, print};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;

use crate::args::{Args, host, name, weight};
use crate::{answer, refuse};

/// The longest time that a control is written for: longer is for ever.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// What an operator wants of a service: `control/<service>` in etcd, which every
/// gateway follows.
#[derive(Subcommand)]
pub enum ControlCommand {
    /// Divide a service's requests by these weights; an instance that is not named gets
    /// none.
    Weights {
        #[command(flatten)]
        service: Service,
        /// An instance and its weight, 0 to 1000.
        #[arg(value_name = "ID=WEIGHT", value_parser = id_and_weight)]
        #[arg(required_unless_present = "auto", conflicts_with = "auto")]
        weights: Vec<(String, f64)>,
        /// Change these alone of the weights that are in force by hand.
        #[arg(long, conflicts_with = "auto")]
        add: bool,
        /// Back to the ranking's weights.
        #[arg(long)]
        auto: bool,
        #[command(flatten)]
        how: How,
    },
    /// Send no new requests to these instances, without a word to them, also after they
    /// register anew.
    Drain {
        #[command(flatten)]
        these: These,
        /// Let them in again, as undrain does.
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        how: How,
    },
    /// End a drain, whether it is the control's or that of the registration itself.
    Undrain {
        #[command(flatten)]
        these: These,
        #[command(flatten)]
        how: How,
    },
    /// Treat these instances as if they were not registered.
    Disable {
        #[command(flatten)]
        these: These,
        #[command(flatten)]
        how: How,
    },
    /// End that.
    Enable {
        #[command(flatten)]
        these: These,
        #[command(flatten)]
        how: How,
    },
    /// Choose instances by this strategy, whatever the gateways' files say.
    Strategy {
        #[command(flatten)]
        service: Service,
        /// For instance adaptive, chash or round_robin.
        #[arg(value_parser = strategy)]
        #[arg(required_unless_present = "default", conflicts_with = "default")]
        name: Option<Strategy>,
        /// Back to what the gateways' files say.
        #[arg(long)]
        default: bool,
        #[command(flatten)]
        how: How,
    },
    /// Show what is in force by hand for a service: what, who, why, until when.
    Control {
        #[command(flatten)]
        service: Service,
        /// Remove all of it.
        #[arg(long, conflicts_with = "file")]
        clear: bool,
        /// Write this JSON in its place; - is stdin.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        how: How,
    },
}

#[derive(clap::Args)]
pub struct Service {
    /// The service's name.
    #[arg(value_parser = name)]
    service: String,
}

#[derive(clap::Args)]
pub struct These {
    /// The service's name.
    #[arg(value_parser = name)]
    service: String,
    /// The instances' ids.
    #[arg(required = true, value_name = "ID", value_parser = name)]
    ids: Vec<String>,
}

/// How a control is written, and what is said of it.
#[derive(clap::Args)]
#[command(next_help_heading = "control")]
pub struct How {
    /// Why, for whoever finds it.
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Who [default: the user at this host].
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// All of the service's control lapses after this time, for instance 1h; `ever`
    /// takes such a time away.
    #[arg(long = "for", value_name = "TIME", value_parser = lasts)]
    lasts: Option<Lasts>,
    /// Write nothing: show what would be written, and the shares before and after.
    #[arg(long)]
    dry_run: bool,
    /// Ask this gateway for the weights in force, http://HOST:PORT; without it, those
    /// of the registrations serve.
    #[arg(long, value_name = "URL", requires = "dry_run")]
    gateway: Option<GatewayUrl>,
    /// Take also a service or instances that are not registered (yet).
    #[arg(long)]
    force: bool,
    /// Take the place of a control that cannot be read.
    #[arg(long)]
    overwrite: bool,
}

impl ControlCommand {
    /// Does it, and says what to answer.
    pub async fn execute(self, settings: &Settings, json: bool) -> Result<String, CtlError> {
        let (service, change, how) = match self {
            Self::Weights { service, auto: true, how, .. } => (service, Change::Auto, how),
            Self::Weights { service, weights, add, how, .. } => {
                let weights = each_once(weights);
                let change = if add { Change::SomeWeights } else { Change::Weights };
                (service, change(weights), how)
            }
            Self::Drain { these, undo: false, how } => these.into_change(Change::Drain, how),
            Self::Drain { these, how, .. } | Self::Undrain { these, how } => {
                these.into_change(Change::Undrain, how)
            }
            Self::Disable { these, how } => these.into_change(Change::Disable, how),
            Self::Enable { these, how } => these.into_change(Change::Enable, how),
            // `--default` leaves the name out.
            Self::Strategy { service, name, how, .. } => (service, Change::Strategy(name), how),
            Self::Control { service, clear: true, how, .. } => (service, Change::Clear, how),
            Self::Control { service, file: Some(file), how, .. } => {
                (service, Change::Whole(read(&file)?), how)
            }
            Self::Control { service, how, .. } if how.says_something() => {
                (service, Change::Same, how)
            }
            Self::Control { service: Service { service }, .. } => {
                let etcd = ctl::connect(&settings.etcd).await?;
                let found = hand::standing(&etcd, settings, &service).await?;
                return Ok(answer(json, &found, print::standing));
            }
        };
        let etcd = ctl::connect(&settings.etcd).await?;
        let (edit, manner) = how.split(change);
        let done = hand::steer(&etcd, settings, &service.service, &edit, &manner).await?;
        Ok(answer(json, &done, print::steered))
    }
}

impl These {
    fn into_change(
        self,
        change: fn(BTreeSet<String>) -> Change,
        how: How,
    ) -> (Service, Change, How) {
        (Service { service: self.service }, change(BTreeSet::from_iter(self.ids)), how)
    }
}

impl How {
    fn says_something(&self) -> bool {
        self.why.is_some() || self.lasts.is_some()
    }

    fn split(self, change: Change) -> (Edit, Manner) {
        let edit = Edit {
            change,
            by: self.by,
            by_default: user_at_host(),
            why: self.why,
            lasts: self.lasts,
            overwrites_bad: self.overwrite,
        };
        let manner = Manner { is_dry: self.dry_run, is_forced: self.force, gateway: self.gateway };
        (edit, manner)
    }
}

/// Who sits there; behind `sudo`, too.
fn user_at_host() -> String {
    let said = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(said);
    let user = user.unwrap_or_else(|| "somebody".to_owned());
    host().map_or_else(|| user.clone(), |host| format!("{user}@{host}"))
}

fn read(file: &Path) -> Result<Vec<u8>, CtlError> {
    let mut text = Vec::new();
    let read = match file.to_str() {
        Some("-") => io::stdin().read_to_end(&mut text).map(|_| text),
        _ => std::fs::read(file),
    };
    read.map_err(|source| CtlError::Read { path: file.to_owned(), source })
}

fn id_and_weight(text: &str) -> Result<(String, f64), String> {
    // An id may hold anything but this.
    let (id, number) = text.split_once('=').ok_or("expected ID=WEIGHT")?;
    Ok((name(id)?, weight(number)?))
}

/// Of two weights of an instance neither is more right than the other.
fn each_once(weights: Vec<(String, f64)>) -> BTreeMap<String, f64> {
    let mut once = BTreeMap::new();
    for (id, weight) in weights {
        if once.insert(id.clone(), weight).is_some() {
            let why = format!("two weights for {id}\n");
            refuse(&Args::command().error(ErrorKind::ArgumentConflict, why))
        }
    }
    once
}

fn strategy(text: &str) -> Result<Strategy, String> {
    Strategy::deserialize(text.into_deserializer()).map_err(|error: ValueError| error.to_string())
}

fn lasts(text: &str) -> Result<Lasts, String> {
    if text == "ever" {
        return Ok(Lasts::Ever);
    }
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(1)..=LONGEST;
    let expected = || "expected 1s to 3650d, or ever".to_owned();
    allowed.contains(&time).then_some(Lasts::For(time)).ok_or_else(expected)
}
