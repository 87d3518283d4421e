//! Registrations by hand, and what is there.

use std::time::Duration;

use clap::Subcommand;
use ipconfig::ctl::{self, CtlError, Keeper, Settings, Wish, hand, print, view};

use crate::args::{InstanceArgs, name, ttl};
use crate::{answer, wishes};

/// Steps by hand, each one exchange with etcd.
#[derive(Subcommand)]
pub enum Hand {
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
pub struct Name {
    /// The service's name.
    #[arg(value_parser = name)]
    service: String,
    /// The instance's id.
    #[arg(value_parser = name)]
    id: String,
}

impl Hand {
    /// Does it, and says what to answer.
    pub async fn execute(self, settings: &Settings, json: bool) -> Result<String, CtlError> {
        if let Hand::Register { name: Name { id, .. }, instance, .. } = &self {
            settings.allow.check(&instance.clone().named(id.clone()))?;
        }
        if let Hand::Register { name: Name { service, id }, instance, ttl: Some(ttl) } = self {
            keep(Keeper::new(settings, &service, instance.named(id), ttl)).await?;
            return Ok(String::new());
        }
        let prefix = &settings.etcd.prefix;
        let etcd = ctl::connect(&settings.etcd).await?;
        Ok(match self {
            Hand::Register { name: Name { service, id }, instance, ttl: _ } => {
                let done = hand::register(&etcd, prefix, &service, &instance.named(id)).await?;
                answer(json, &done, print::outcome)
            }
            Hand::Deregister { name: Name { service, id } } => {
                let done = hand::deregister(&etcd, prefix, &service, &id).await?;
                answer(json, &done, print::outcome)
            }
            Hand::Ls { exporters: true, .. } => {
                answer(json, &view::exporters(&etcd, prefix).await?, print::exporters)
            }
            Hand::Ls { service: Some(service), .. } => answer(
                json,
                &view::instances(&etcd, &settings.etcd, &service).await?,
                print::instances,
            ),
            Hand::Ls { service: None, .. } => {
                answer(json, &view::services(&etcd, &settings.etcd).await?, print::services)
            }
            Hand::Get { name: Name { service, id } } => answer(
                json,
                &view::instance(&etcd, &settings.etcd, &service, &id).await?,
                print::instance,
            ),
        })
    }
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
