//! Active checks: a request, or a connection, from this gateway to each instance of
//! the services that ask for it (`services.<service>.check`), whatever the
//! instance says of itself.
//!
//! What several say of one instance is merged by one rule: any of them puts it out,
//! none brings it back against another. It may be out by its own word or its
//! exporter's (`registry`), rest for its failures, or fail here; a good check does
//! not bring back one that says it is not serving, and no good report one whose
//! checks fail. What was never checked is unknown, and unknown is not down.
//!
//! - An instance that is known as well goes out after `fall` failed checks in a row,
//!   and comes back after `rise` good ones.
//! - The first check of a new instance decides at once. Nothing speaks for one that
//!   was never seen well, and many register before they listen.
//! - Instances do not start anew with the thread: who failed before a reload fails
//!   until `rise` checks are good, and who did not needs `fall` failures.
//! - A check that this host could not make says nothing.
//!
//! Which gateway checks an instance is either all of them, or one: see [`sharing`].
//!
//! No two gateways check in step: the first checks come after a time that chance
//! says, the second ones anywhere within an interval, and each interval is up to a
//! tenth longer or shorter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

pub mod doubts;
pub mod notices;
mod plan;
mod probe;
pub mod sharing;

pub use self::plan::{Duty, Word};
use self::plan::{Job, Plan, Turned};
use self::probe::Failure;
use crate::clock::unix_ms;
use crate::config::CheckConfig;
use crate::model::Instance;
use crate::wire::checks::Failing;

/// Makes the checks and remembers what came of them. A current-thread runtime is
/// enough; nothing here blocks.
pub struct Checker {
    plan: Plan,
    under_way: JoinSet<Done>,
    figures: BTreeMap<String, Figures>,
    /// Whether the last check could not even be made, so that it is said once.
    is_hindered: bool,
}

/// A check that ended.
struct Done {
    job: Job,
    result: Result<(), Failure>,
    took: Duration,
}

/// The checks of one service, for its metrics.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Instances that pass.
    pub up: u64,
    /// Instances that fail.
    pub down: u64,
    /// Instances that were not checked yet.
    pub unknown: u64,
    /// Those of all of these that this gateway checks.
    pub here: u64,
    /// Checks that ended, by [`RESULTS`], since the thread began.
    pub results: BTreeMap<String, u64>,
    /// What they took together, in seconds.
    pub seconds: f64,
}

/// How a check may end.
pub const RESULTS: [&str; 8] =
    [PASSED, "refused", "timeout", "unreachable", "closed", "malformed", "status", "not_made"];

const PASSED: &str = "passed";

impl Checker {
    /// Checks nobody yet.
    pub fn new(rng: SmallRng) -> Self {
        Self {
            plan: Plan::new(rng),
            under_way: JoinSet::new(),
            figures: BTreeMap::new(),
            is_hindered: false,
        }
    }

    /// Checks these instances of a service from now on, and no other ones of it. Of
    /// one that is new here, `failed` says whether it failed before, if it was
    /// offered before.
    pub fn follow<'a>(
        &mut self,
        service: &str,
        config: &CheckConfig,
        instances: impl Iterator<Item = &'a Instance>,
        failed: impl Fn(&Instance) -> Option<bool>,
    ) {
        self.figures.entry(service.to_owned()).or_default();
        self.plan.follow(service, config, instances, failed, Instant::now());
    }

    /// The instances of a service that are followed, with their addresses.
    pub fn instances(&self, service: &str) -> Vec<(Arc<str>, SocketAddr)> {
        self.plan.instances(service)
    }

    /// Leaves to other gateways what is theirs to check of a service, and takes in what
    /// they say, which is logged where it changes anything. Who becomes this gateway's
    /// is checked soon, or within an interval if there `is_time`.
    pub fn assign(&mut self, service: &str, duties: Vec<(Arc<str>, Duty<'_>)>, is_time: bool) {
        let turned = self.plan.assign(service, duties, is_time, Instant::now());
        for Turned { id, addr, gateway, fails } in turned {
            match fails {
                Some(Failing { reason, .. }) => {
                    tracing::warn!(
                        "{service}: {id} fails the checks of {gateway} at {addr}: {reason}"
                    );
                }
                None => tracing::info!("{service}: {id} passes the checks of {gateway} at {addr}"),
            }
        }
    }

    /// The instances of a service that this gateway checks and that fail.
    pub fn failing_here(&self, service: &str) -> BTreeMap<String, Failing> {
        self.plan.failing_here(service)
    }

    /// Checks no instance of a service any more.
    pub fn forget(&mut self, service: &str) {
        self.figures.remove(service);
        self.plan.forget(service);
    }

    /// Whether the instance is checked, and fails.
    pub fn is_failing(&self, service: &str, id: &str, addr: SocketAddr) -> bool {
        self.plan.is_failing(service, id, addr)
    }

    /// Goes on checking until an instance goes out or comes back, and logs it;
    /// returns its service. May be dropped and called again.
    pub async fn change(&mut self) -> String {
        loop {
            let now = Instant::now();
            while let Some(job) = self.plan.take_due(now) {
                self.under_way.spawn(async move {
                    let result = probe::check(job.addr, &job.config).await;
                    Done { job, result, took: now.elapsed() }
                });
            }
            let due = self.plan.due();
            tokio::select! {
                Some(done) = self.under_way.join_next() => {
                    if let Some(service) = self.finish(done) {
                        return service;
                    }
                }
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// The services whose instances are checked, with their figures.
    pub fn figures(&self) -> BTreeMap<String, Figures> {
        let mut all = self.figures.clone();
        for (service, figures) in &mut all {
            [figures.up, figures.down, figures.unknown] = self.plan.count(service);
            figures.here = self.plan.count_ours(service);
        }
        all
    }

    fn finish(&mut self, done: Result<Done, JoinError>) -> Option<String> {
        let Done { job, result, took } = match done.map_err(JoinError::try_into_panic) {
            Ok(done) => done,
            // For the thread to start anew with, as with any other panic.
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => return None,
        };
        let label = result.as_ref().err().map_or(PASSED, Failure::label);
        let passed = match &result {
            Ok(()) => Some(true),
            Err(Failure::NotMade(_)) => None,
            Err(_) => Some(false),
        };
        self.show_hindrance(&result);
        let (id, addr) = (job.id.clone(), job.addr);
        let finished = self.plan.finish(job, passed, Instant::now())?;
        if let Some(figures) = self.figures.get_mut(&*finished.service) {
            *figures.results.entry(label.to_owned()).or_default() += 1;
            figures.seconds += took.as_secs_f64();
        }
        if !finished.has_turned {
            return None;
        }
        let service = finished.service;
        match result {
            Ok(()) => tracing::info!("{service}: {id} passes its checks at {addr} again"),
            Err(failure) => {
                tracing::warn!("{service}: {id} fails its checks at {addr}: {failure}");
                self.plan.explain(&service, &id, failure.label(), unix_ms());
            }
        }
        Some(service)
    }

    fn show_hindrance(&mut self, result: &Result<(), Failure>) {
        let was_hindered = self.is_hindered;
        self.is_hindered = matches!(result, Err(Failure::NotMade(_)));
        if let Err(failure @ Failure::NotMade(_)) = result
            && !was_hindered
        {
            tracing::error!("{failure}; instances count as they did before");
        }
    }
}

#[cfg(test)]
mod tests;
