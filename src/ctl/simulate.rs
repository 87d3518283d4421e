//! Scenarios, simulated: what each policy makes of them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::CtlError;
use crate::sim::measure::{Measures, Summary};
use crate::sim::scenario::{self, Named, Scenario};
use crate::sim::{self, Chooser, plot};

/// What to simulate.
#[derive(Debug, Clone, Default)]
pub struct Simulate {
    /// Scenario files.
    pub files: Vec<PathBuf>,
    /// Policies in place of the files'; empty: as the files say.
    pub policies: Vec<String>,
    /// A seed in place of the files'.
    pub seed: Option<u64>,
    /// A duration in place of the files', in simulated time; the warm-up is at most
    /// half of it.
    pub duration: Option<Duration>,
    /// A directory for plots.
    pub plots: Option<PathBuf>,
}

/// One scenario's outcome.
#[derive(Debug, Clone, Serialize)]
pub struct Simulated {
    /// The file's name, and the variant's.
    pub scenario: String,
    /// What it is about.
    pub about: String,
    /// The seeds; there was a run of each.
    pub seeds: Vec<u64>,
    /// In the order in which they were asked for.
    pub policies: Vec<PolicyLine>,
}

/// What one policy made of it.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyLine {
    /// Its name.
    pub policy: String,
    /// The figures.
    #[serde(flatten)]
    pub summary: Summary,
    /// How they came about.
    pub timeline: Vec<Moment>,
}

/// A bin of the timeline.
#[derive(Debug, Clone, Serialize)]
pub struct Moment {
    /// Where it begins.
    pub from_s: f64,
    /// Requests that came in it.
    pub requests: u64,
    /// Their mean latency.
    pub mean_ms: f64,
    /// Its 99th percentile.
    pub p99_ms: f64,
    /// The part of them that was not answered, 0 to 1.
    pub errors: f64,
    /// Each group's part of the tries, 0 to 1, in the scenario's order.
    pub shares: Vec<f64>,
    /// Of each zone's gateways, the part of the tries that stayed in the zone, 0 to 1,
    /// in the order of `gateways.zones`; left out without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<f64>,
}

/// Reads all files, then simulates them one after the other; `each` is told of each
/// scenario once it is through.
///
/// # Errors
/// [`CtlError::Load`] if a file is not taken; nothing is simulated then.
/// [`CtlError::Plot`] if a plot cannot be written.
pub fn simulate(task: &Simulate, mut each: impl FnMut(&Simulated)) -> Result<(), CtlError> {
    let mut scenarios = Vec::new();
    for file in &task.files {
        scenarios.extend(scenario::load(file)?);
    }
    for Named { name, scenario } in &mut scenarios {
        task.adjust(scenario);
        let measured = measure(scenario);
        if let Some(dir) = &task.plots {
            plot::write(dir, name, scenario, &measured)
                .map_err(|cause| CtlError::Plot { dir: dir.clone(), cause })?;
        }
        each(&outcome(name, scenario, &measured));
    }
    Ok(())
}

impl Simulate {
    fn adjust(&self, scenario: &mut Scenario) {
        if !self.policies.is_empty() {
            scenario.policies.clone_from(&self.policies);
        }
        if let Some(seed) = self.seed {
            scenario.seeds = vec![seed];
        }
        if let Some(duration) = self.duration {
            scenario.duration = duration;
            scenario.warmup = scenario.warmup.min(duration / 2);
        }
    }
}

/// Each policy's runs of all seeds, as many at a time as the machine has cores.
fn measure(scenario: &Scenario) -> Vec<(String, Measures)> {
    let policies = scenario.policies.iter().enumerate();
    let runs: Vec<(usize, Chooser, u64)> = policies
        .filter_map(|(place, name)| Chooser::named(name).map(|chooser| (place, chooser)))
        .flat_map(|(place, chooser)| scenario.seeds.iter().map(move |seed| (place, chooser, *seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((place, chooser, seed)) = runs.get(number) else { return done };
            done.push((number, *place, sim::run(scenario, *chooser, *seed)));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(runs.len());
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let join = |thread: ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    });
    // Whoever was through first: sums of floating-point numbers depend on the order.
    done.sort_by_key(|(number, _, _)| *number);
    let mut measured: Vec<_> =
        scenario.policies.iter().map(|name| (name.clone(), Measures::default())).collect();
    for (_, place, measures) in &done {
        measured[*place].1.merge(measures);
    }
    measured
}

fn outcome(name: &str, scenario: &Scenario, measured: &[(String, Measures)]) -> Simulated {
    let bin_s = |measures: &Measures| {
        scenario.duration.as_secs_f64() / measures.timeline.len().max(1) as f64
    };
    let line = |(policy, measures): &(String, Measures)| PolicyLine {
        policy: policy.clone(),
        summary: measures.summary(),
        timeline: (0..)
            .zip(&measures.timeline)
            .map(|(number, bin)| {
                let requests = bin.latency.count();
                Moment {
                    from_s: f64::from(number) * bin_s(measures),
                    requests,
                    mean_ms: bin.latency.mean_s() * 1e3,
                    p99_ms: bin.latency.quantile_s(0.99) * 1e3,
                    errors: bin.errors as f64 / requests.max(1) as f64,
                    shares: bin.shares(),
                    local: bin.local(),
                }
            })
            .collect(),
    };
    Simulated {
        scenario: name.to_owned(),
        about: scenario.about.clone(),
        seeds: scenario.seeds.clone(),
        policies: measured.iter().map(line).collect(),
    }
}
