//! What each instance can do, from what it reports and what this host sees.
//!
//! Reports say how many requests an instance answers, how busy that makes it and
//! how long they take. From these follow its capacity (gRPC's A58: rate over
//! utilization, which does not depend on how the traffic is split) and its service
//! time (the latency less the wait that such a utilization makes, see
//! [`shares`](super::shares)).
//!
//! A report is a claim. It is believed as far as what this host sees allows:
//!
//! - a capacity, as far as twice the typical one, or twice what the others' reports
//!   make of the requests that this host sent there;
//! - a latency, unless this host's own requests take more than twice as long;
//! - a utilization, down to a quarter: below it, what an instance could bear is not
//!   told by how it bears what it gets, and it counts as a typical one;
//!   unless much of the service's traffic is borne at so little: then latency tells,
//!   see below;
//! - a good service time, as far as the requests do not fail.
//!
//! Who waits (for a database, for disks) rather than computes is full long before its
//! CPU is. Where much of the traffic goes to instances that tell of less than a
//! quarter, utilization is taken for what no queue explains: the best latency that an
//! instance has had is its service time, what it takes beyond that and noise is wait,
//! and the utilization is the one that makes such a wait, half at least. Were the
//! latency of the moment the service time, who gets little would look fast, get all,
//! and look slow.
//!
//! What differs by chance counts as equal: with few requests in the window two
//! equal instances look different, and whoever acts on that sends all hosts to
//! the lucky one. An estimate that is as near to the service's middle one as noise
//! explains is that, and one that is farther stays as it is (firm shrinkage: H. Gao
//! and A. Bruce, WaveShrink with Firm Shrinkage, Statistica Sinica 7, 1997).

use super::shares::{self, Ability};
use crate::window::Load;

/// What this host itself has seen of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Observed {
    /// Requests that it sent there, since whenever.
    pub requests: u64,
    /// Their mean latency of late, in milliseconds; `None` without any.
    pub latency_ms: Option<f64>,
}

/// What is known of an instance, kept from ranking to ranking.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimate {
    /// Of its own, not yet drawn towards the mean.
    known: Option<Known>,
    /// [`Observed::requests`] when it was last looked at.
    requests: u64,
    /// Requests that this host sends there, a second.
    own_rate: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Known {
    ln_service_ms: f64,
    ln_capacity: f64,
    /// The best mean latency of the last ten minutes or so.
    ln_best_ms: f64,
    /// Latency over service time, 1 or more, of the last report.
    stretch: f64,
    /// Requests that the last report told of.
    samples: f64,
    /// When a report last confirmed it.
    reported_ms: u64,
    /// It was drawn towards the middle one already.
    is_drawn: bool,
}

/// What a ranking tells of an instance's estimate, for a thread that finds no more
/// than that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Left {
    /// As it was ranked by.
    pub ability: Ability,
    /// When a report of its own last confirmed it; 0 if none ever did.
    pub reported_ms: u64,
    /// Requests that it gets from everywhere, a second.
    pub rate_per_s: f64,
    /// Those of them that this host sends.
    pub own_rate: f64,
    /// [`Observed::requests`] of now.
    pub requests: u64,
}

/// What a service's instances can do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Abilities {
    /// One for each instance, the typical one for those that are not known; empty
    /// if none is.
    pub of: Vec<Ability>,
    /// Requests that the service gets from everywhere, a second.
    pub rate_per_s: f64,
    /// This host's part of them, 0 to 1.
    pub own_part: f64,
    /// Instances whose ability rests on a report of now.
    pub fresh: usize,
}

/// Abilities of another thread that are gone on from: in milliseconds, and in
/// requests a second. None is beyond that.
const SOUND: std::ops::RangeInclusive<f64> = 1e-6..=1e12;

/// How long what was known of an instance is used without a report.
pub(crate) const KEPT_MS: u64 = 60_000;

/// Over so long this host's own rates are averaged, in seconds: as long as the
/// reports' window, whose weights fall with age, reaches back on average twice.
const OWN_RATE_S: f64 = 3.0;

/// How much more than by this host's own requests a rate may be.
const RATE_FACTOR: f64 = 2.0;

/// Requests a second beyond that, since a few are no measure.
const RATE_SLACK_PER_S: f64 = 2.0;

/// How much longer than reported this host's own requests may take until they
/// are believed in the report's place. Some of it is the way there and back.
const LATENCY_FACTOR: f64 = 2.0;
const LATENCY_SLACK_MS: f64 = 1.0;

/// With fewer requests a second of its own than this, a host believes a report: what
/// it has seen may be long ago.
const OWN_LATENCY_PER_S: f64 = 3.0;

/// A capacity is believed to so many times the typical one, and beyond that as far
/// as this host's own requests bear it out.
const CLAIM: f64 = 2.0;

/// Below this utilization a capacity is not told from a typical one.
const MIN_UTILIZATION: f64 = 0.25;

/// The least utilization of who tells too little where many do: enough that one's own
/// open requests count, as on who has few slots left.
const WAITING: f64 = 0.5;

/// So much of the traffic makes a service one of such instances.
const MUCH: f64 = 0.25;

/// In so long the best latency is forgotten, in seconds: far more slowly than shares
/// move, so that nobody is moved by having been moved.
const BEST_S: f64 = 600.0;

/// A failed request counts as one that took so many times the usual.
pub const FAILURE_FACTOR: f64 = 10.0;

/// Requests in a window below which a report tells too little.
const MIN_SAMPLES: f64 = 1.0;

/// This host's own requests in a window from which on they tell its part of all.
const OWN_SAMPLES: f64 = 10.0;

/// The window's mean reach, in seconds, by which a rate makes samples.
const SAMPLES_S: f64 = 3.0;

/// So many requests weigh as much as what was known before, at one report a
/// second.
const PRIOR_SAMPLES: f64 = 50.0;

/// The variance of the logarithm of a mean of `n` samples is taken for
/// `NOISE / (n + NOISE_SAMPLES)`: 1/n for exponential service times, doubled for
/// neighbours that wait for each other, and no more than a long memory leaves.
const NOISE: f64 = 2.0;
const NOISE_SAMPLES: f64 = 100.0;

/// As service times differ, so do waits, and by more: noise grows with the latency
/// over the service time, as far as this.
const MOST_STRETCH: f64 = 2.0;

/// Differences up to so many standard deviations are chance, and from so many on
/// they are not.
const CHANCE: f64 = 2.0;
const CERTAIN: f64 = 4.0;

/// An instance to be estimated.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// What it reports; `None` if no report is fresh.
    pub load: Option<Load>,
    /// What this host has seen.
    pub observed: Observed,
    /// What was known before.
    pub before: Option<Estimate>,
}

/// Estimates all instances of a service, `seconds` after the last time.
pub fn estimate(subjects: &[Subject], seconds: f64, now_ms: u64) -> (Vec<Estimate>, Abilities) {
    let mut estimates: Vec<_> = subjects.iter().map(|it| it.count_own(seconds)).collect();
    let own_part = own_part(subjects, &estimates);
    let waits = waits(subjects);
    let reports: Vec<Option<Believed>> = subjects
        .iter()
        .zip(&estimates)
        .map(|(subject, estimate)| subject.believed(estimate.own_rate, own_part, waits))
        .collect();
    let capacities = |of: fn(&Believed) -> bool| {
        median(reports.iter().flatten().filter(|it| of(it)).map(|it| it.capacity_per_s).collect())
    };
    let typical_capacity = capacities(Believed::tells_capacity).or_else(|| capacities(|_| true));
    // Half of it goes by the middle one for all: who is busier than others would look
    // faster by a longer wait taken off, and become busier still.
    let utilization = median(reports.iter().flatten().map(|report| report.utilization).collect())
        .unwrap_or_default();
    let services: Vec<Option<f64>> = reports
        .iter()
        .map(|report| report.as_ref().map(|report| report.service_ms(utilization)))
        .collect();
    let typical_service = median(services.iter().flatten().copied().collect());

    for ((estimate, report), service) in estimates.iter_mut().zip(&reports).zip(services) {
        if let (Some(report), Some(service), Some(typical_capacity), Some(typical_service)) =
            (report, service, typical_capacity, typical_service)
        {
            let new = report.known(service, typical_capacity, typical_service, now_ms);
            estimate.known = Some(new.after(estimate.known));
        }
        estimate.known =
            estimate.known.filter(|it| now_ms.saturating_sub(it.reported_ms) < KEPT_MS);
    }
    // What was told of an instance last stands for it.
    let known = estimates.iter().filter_map(|estimate| estimate.known);
    let rate_per_s: f64 = known.map(|it| it.samples / SAMPLES_S).sum();
    let own_rate: f64 = estimates.iter().map(|estimate| estimate.own_rate).sum();
    let of_own = || if rate_per_s > 0.0 { (own_rate / rate_per_s).min(1.0) } else { 0.0 };
    let abilities = Abilities {
        of: abilities(&estimates),
        rate_per_s,
        own_part: own_part.unwrap_or_else(of_own),
        fresh: reports.iter().flatten().count(),
    };
    (estimates, abilities)
}

impl Estimate {
    /// What a thread before this one knew of an instance. It is as old as it was
    /// there, and what cannot be is not known.
    pub(crate) fn resumed(left: Left, now_ms: u64) -> Self {
        let Left { ability: Ability { service_ms, capacity_per_s }, .. } = left;
        let is_sound = SOUND.contains(&service_ms) && SOUND.contains(&capacity_per_s);
        let known = (left.reported_ms > 0 && is_sound).then(|| Known {
            ln_service_ms: service_ms.ln(),
            ln_capacity: capacity_per_s.ln(),
            samples: left.rate_per_s.min(*SOUND.end()) * SAMPLES_S,
            ln_best_ms: service_ms.ln(),
            stretch: 1.0,
            reported_ms: left.reported_ms.min(now_ms),
            is_drawn: true,
        });
        let own_rate = left.own_rate.min(*SOUND.end());
        Estimate { known, requests: left.requests, own_rate }
    }

    /// When a report of its own last confirmed what is known of the instance; 0 if
    /// nothing is.
    pub(crate) fn reported_ms(&self) -> u64 {
        self.known.map_or(0, |known| known.reported_ms)
    }

    /// Requests that the instance gets from everywhere, a second, as its last report
    /// tells; 0 is unknown.
    pub(crate) fn rate_per_s(&self) -> f64 {
        self.known.map_or(0.0, |known| known.samples / SAMPLES_S)
    }
}

impl Subject {
    /// Moves the own rate on.
    fn count_own(&self, seconds: f64) -> Estimate {
        let requests = self.observed.requests;
        let Some(before) = self.before else {
            return Estimate { requests, ..Estimate::default() };
        };
        // A counter that fell is another one: the instance was away for long.
        let grown = requests.saturating_sub(before.requests) as f64;
        let own_rate = if seconds > 0.0 {
            let gain = seconds / (seconds + OWN_RATE_S);
            before.own_rate + gain * (grown / seconds - before.own_rate)
        } else {
            before.own_rate
        };
        let requests = if seconds > 0.0 { requests } else { before.requests };
        Estimate { requests, own_rate, ..before }
    }

    /// What of the report is believed; `None` if it tells too little.
    fn believed(&self, own_rate: f64, own_part: Option<f64>, waits: bool) -> Option<Believed> {
        let load = self.load?;
        let sound = |figure: &f64| figure.is_finite() && *figure >= 0.0;
        let rate = load.rate.filter(sound)?;
        let provable = own_part
            .map_or(rate, |part| rate.min((RATE_FACTOR * own_rate + RATE_SLACK_PER_S) / part));
        let utilization = load.utilization.filter(sound)?;
        let reported = load.latency_ms.filter(|ms| sound(ms) && *ms > 0.0);
        let latency_ms = match (reported, self.observed.latency_ms) {
            (Some(told), Some(seen))
                if own_rate >= OWN_LATENCY_PER_S
                    && seen > LATENCY_FACTOR * told + LATENCY_SLACK_MS =>
            {
                seen
            }
            (told, seen) => told.or(seen)?,
        };
        let latency_ms = latency_ms.max(1e-3);
        let failed = load.errors.filter(sound).unwrap_or(0.0).min(1.0);
        let told = utilization + failed;
        let best_ms = self.before.and_then(|it| it.known).map(|it| it.ln_best_ms.exp());
        let idle_ms = best_ms.filter(|_| waits && told < MIN_UTILIZATION);
        let shown = idle_ms.map_or(0.0, |best_ms| {
            let certain_ms = latency_ms * (-CHANCE * noise(rate * SAMPLES_S)).exp();
            shares::utilization_of(certain_ms, best_ms, rate / 1e3).max(WAITING)
        });
        let utilization = told.max(shown).max(MIN_UTILIZATION);
        (rate * SAMPLES_S >= MIN_SAMPLES).then(|| Believed {
            rate,
            utilization,
            capacity_per_s: rate / utilization,
            provable_per_s: provable / utilization,
            latency_ms,
            idle_ms,
            failed,
        })
    }
}

/// Whether much of the traffic goes to instances whose utilization tells too little,
/// as that of who waits rather than computes.
fn waits(subjects: &[Subject]) -> bool {
    let rate_of = |is_counted: fn(f64) -> bool| -> f64 {
        let loads = subjects.iter().filter_map(|subject| subject.load);
        let counted = loads.filter(|load| load.utilization.is_some_and(is_counted));
        counted.filter_map(|load| load.rate).filter(|rate| rate.is_finite()).sum()
    };
    rate_of(|told| told < MIN_UTILIZATION) > MUCH * rate_of(|_| true)
}

/// This host's part of all requests: the middle one of what the instances'
/// reports say, so that one that lies changes nothing. `None` without reports.
fn own_part(subjects: &[Subject], estimates: &[Estimate]) -> Option<f64> {
    let parts = |own_samples: f64| -> Vec<f64> {
        let part = |(subject, estimate): (&Subject, &Estimate)| {
            let rate = subject.load?.rate?;
            let is_told = rate * SAMPLES_S >= MIN_SAMPLES;
            let is_seen = estimate.own_rate * SAMPLES_S >= own_samples;
            (is_told && is_seen).then(|| estimate.own_rate / rate)
        };
        subjects.iter().zip(estimates).filter_map(part).collect()
    };
    // By those that this host sends more than a few requests, if there are any.
    median(parts(OWN_SAMPLES))
        .or_else(|| median(parts(0.0)))
        .filter(|part| *part > 0.0)
        .map(|part| part.min(1.0))
}

/// A report as far as it is believed.
struct Believed {
    rate: f64,
    utilization: f64,
    capacity_per_s: f64,
    /// As far as this host's own requests bear it out.
    provable_per_s: f64,
    latency_ms: f64,
    /// The service time where utilization tells too little, and latency has to.
    idle_ms: Option<f64>,
    failed: f64,
}

impl Believed {
    fn tells_capacity(&self) -> bool {
        self.utilization > MIN_UTILIZATION
    }

    /// Whether what it could bear is known, be it by its latency.
    fn shows(&self) -> bool {
        self.idle_ms.is_none() || self.utilization > WAITING
    }

    fn service_ms(&self, typical_utilization: f64) -> f64 {
        if let Some(idle_ms) = self.idle_ms {
            return idle_ms.min(self.latency_ms);
        }
        let utilization = f64::midpoint(self.utilization, typical_utilization);
        shares::service_of(self.latency_ms, self.capacity_per_s / 1e3, utilization)
    }

    fn known(
        &self,
        service: f64,
        typical_capacity: f64,
        typical_service: f64,
        now_ms: u64,
    ) -> Known {
        let capacity = if self.tells_capacity() {
            let least = if self.shows() { 0.0 } else { typical_capacity };
            self.capacity_per_s.max(least).min(self.provable_per_s.max(CLAIM * typical_capacity))
        } else {
            // What it could bear is not known; who gets more is not to count as larger.
            typical_capacity
        };
        let failing = FAILURE_FACTOR * service.max(typical_service);
        let service = service + self.failed * (failing - service);
        Known {
            ln_service_ms: service.ln(),
            ln_capacity: capacity.max(1e-6).ln(),
            ln_best_ms: self.latency_ms.ln(),
            stretch: (self.latency_ms / service).clamp(1.0, MOST_STRETCH),
            samples: self.rate * SAMPLES_S,
            reported_ms: now_ms,
            is_drawn: false,
        }
    }
}

impl Known {
    /// Averaged with what was known: the longer ago that was told, and the more
    /// requests the report tells of, the less it counts.
    fn after(self, before: Option<Known>) -> Known {
        let Some(before) = before else { return self };
        let age_s = self.reported_ms.saturating_sub(before.reported_ms) as f64 / 1e3;
        let few = PRIOR_SAMPLES / (self.samples * (1.0 + age_s));
        let gain = age_s / (age_s + 1.0 + few);
        let mix = |before: f64, new: f64| before + gain * (new - before);
        let is_best = self.ln_best_ms < before.ln_best_ms;
        let forgetting = gain.min(age_s / BEST_S);
        let best_gain = if is_best { gain } else { forgetting };
        Known {
            ln_service_ms: mix(before.ln_service_ms, self.ln_service_ms),
            ln_capacity: mix(before.ln_capacity, self.ln_capacity),
            ln_best_ms: before.ln_best_ms + best_gain * (self.ln_best_ms - before.ln_best_ms),
            ..self
        }
    }

    /// The standard deviation of a logarithm; next to none of one that is to stand
    /// as it is.
    fn noise(&self) -> f64 {
        if self.is_drawn {
            return f64::MIN_POSITIVE;
        }
        noise(self.samples)
    }
}

/// The standard deviation of the logarithm of a mean of so many samples.
fn noise(samples: f64) -> f64 {
    (NOISE / (samples + NOISE_SAMPLES)).sqrt()
}

fn abilities(estimates: &[Estimate]) -> Vec<Ability> {
    let known: Vec<Known> = estimates.iter().filter_map(|estimate| estimate.known).collect();
    if known.is_empty() {
        return Vec::new();
    }
    let service = Typical::of(&known, |it| it.ln_service_ms);
    let capacity = Typical::of(&known, |it| it.ln_capacity);
    let ability = |estimate: &Estimate| match &estimate.known {
        Some(known) => Ability {
            service_ms: service.drawn(known.ln_service_ms, known.stretch * known.noise()).exp(),
            capacity_per_s: capacity.drawn(known.ln_capacity, known.noise()).exp(),
        },
        None => Ability { service_ms: service.0.exp(), capacity_per_s: capacity.0.exp() },
    };
    estimates.iter().map(ability).collect()
}

/// Where figures are drawn to: the middle one.
struct Typical(f64);

impl Typical {
    /// `known` is not empty.
    fn of(known: &[Known], figure: fn(&Known) -> f64) -> Self {
        Typical(median(known.iter().map(figure).collect()).unwrap_or_default())
    }

    /// The figure, if it differs by more than noise; in between, in between.
    fn drawn(&self, figure: f64, noise: f64) -> f64 {
        let difference = figure - self.0;
        let part = (difference.abs() / noise - CHANCE) / (CERTAIN - CHANCE);
        self.0 + difference * part.clamp(0.0, 1.0)
    }
}

/// The middle value; the upper one of two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of `rate` requests a second at this utilization and latency.
    fn load(rate: f64, utilization: f64, latency_ms: f64) -> Load {
        Load {
            rate: Some(rate),
            utilization: Some(utilization),
            latency_ms: Some(latency_ms),
            errors: Some(0.0),
            ..Load::default()
        }
    }

    fn subject(load: Load) -> Subject {
        Subject { load: Some(load), observed: Observed::default(), before: None }
    }

    /// Estimates again and again, a second apart, until they stand.
    fn settle(subjects: &mut [Subject], own_rates: &[u64]) -> Abilities {
        let mut last = Abilities::default();
        for second in 1..=30 {
            for (subject, rate) in subjects.iter_mut().zip(own_rates) {
                subject.observed.requests = rate * second;
            }
            let (estimates, abilities) = estimate(subjects, 1.0, 1000 * second);
            for (subject, estimate) in subjects.iter_mut().zip(estimates) {
                subject.before = Some(estimate);
            }
            last = abilities;
        }
        last
    }

    fn near(found: f64, expected: f64, part: f64) -> bool {
        (found / expected - 1.0).abs() < part
    }

    #[test]
    fn capacity_is_rate_over_utilization_and_service_time_the_latency_without_its_wait() {
        // The middle utilization is the higher one, of two.
        let waits = 0.5 * shares::wait(10.0, 4.0, 0.75);
        let mut subjects = [
            subject(load(300.0, 0.75, 10.0 + waits)),
            subject(load(60.0, 0.45, 30.0 + 0.5 * shares::wait(30.0, 4.0, 0.6))),
        ];
        let abilities = settle(&mut subjects, &[75, 15]);
        let [fast, slow] = abilities.of[..] else { panic!("two") };
        assert!(near(fast.service_ms, 10.0, 0.05) && near(fast.capacity_per_s, 400.0, 0.05));
        assert!(near(slow.service_ms, 30.0, 0.05) && near(slow.capacity_per_s, 133.3, 0.05));
        assert!(near(slow.concurrency(), 4.0, 0.1), "{slow:?}");
        assert!(near(abilities.own_part, 0.25, 0.01), "{abilities:?}");
        assert_eq!((abilities.rate_per_s, abilities.fresh), (360.0, 2));
    }

    #[test]
    fn what_differs_by_chance_counts_as_equal_and_what_differs_for_good_does_not() {
        let mut alike: Vec<_> =
            (0..10).map(|n| subject(load(100.0, 0.5 + 0.01 * f64::from(n % 3), 20.0))).collect();
        let abilities = settle(&mut alike, &[100; 10]);
        let capacities: Vec<_> = abilities.of.iter().map(|it| it.capacity_per_s).collect();
        assert!(capacities.iter().all(|it| near(*it, capacities[0], 1e-6)), "{capacities:?}");

        let mut two: Vec<_> =
            (0..10).map(|n| subject(load(100.0, if n < 5 { 0.4 } else { 0.8 }, 20.0))).collect();
        let abilities = settle(&mut two, &[100; 10]);
        assert!(near(abilities.of[0].capacity_per_s / abilities.of[9].capacity_per_s, 2.0, 0.1));
    }

    #[test]
    fn a_claim_is_believed_to_twice_the_typical_capacity() {
        let mut subjects = vec![subject(load(100.0, 0.5, 20.0)); 4];
        subjects.push(subject(load(1e9, 0.5, 20.0)));
        let abilities = settle(&mut subjects, &[50; 5]);
        let (honest, liar) = (abilities.of[0].capacity_per_s, abilities.of[4].capacity_per_s);
        assert!(liar < 2.2 * honest, "{liar} beside {honest}");
        assert!(near(abilities.own_part, 0.5, 0.01), "the liar has no say in it");
    }

    #[test]
    fn an_idle_one_is_not_believed_to_bear_without_bound() {
        let mut subjects = vec![subject(load(100.0, 0.5, 20.0)); 4];
        subjects.push(subject(load(100.0, 0.0, 20.0)));
        let abilities = settle(&mut subjects, &[100; 5]);
        let ratio = abilities.of[4].capacity_per_s / abilities.of[0].capacity_per_s;
        assert!((1.0..=2.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_latency_that_this_host_sees_to_be_much_longer_is_not_believed() {
        let mut subjects = vec![subject(load(100.0, 0.3, 10.0)); 4];
        subjects[3].observed.latency_ms = Some(80.0);
        let abilities = settle(&mut subjects, &[100; 4]);
        assert!(abilities.of[3].service_ms > 5.0 * abilities.of[0].service_ms, "{abilities:?}");
    }

    #[test]
    fn failures_count_as_slow_however_fast_they_come() {
        let mut subjects = vec![subject(load(100.0, 0.4, 20.0)); 4];
        let failing = Load { errors: Some(1.0), ..load(100.0, 0.05, 0.2) };
        subjects.push(subject(failing));
        let abilities = settle(&mut subjects, &[100; 5]);
        assert!(abilities.of[4].service_ms > 5.0 * abilities.of[0].service_ms, "{abilities:?}");
        assert!(abilities.of[4].capacity_per_s < abilities.of[0].capacity_per_s);
    }

    #[test]
    fn an_instance_of_which_nothing_is_known_is_a_typical_one() {
        let mut subjects: Vec<_> =
            [0.4, 0.5, 0.6].map(|used| subject(load(100.0, used, 20.0))).into();
        subjects.push(Subject { load: None, ..subjects[0] });
        let abilities = settle(&mut subjects, &[100; 4]);
        assert!(near(abilities.of[3].capacity_per_s, abilities.of[1].capacity_per_s, 0.02));
        assert_eq!(abilities.fresh, 3);
    }

    #[test]
    fn what_was_known_is_kept_for_a_minute_and_then_forgotten() {
        let (estimates, _) = estimate(&[subject(load(100.0, 0.5, 20.0))], 1.0, 1000);
        let silent =
            Subject { load: None, observed: Observed::default(), before: Some(estimates[0]) };
        let (_, kept) = estimate(&[silent], 1.0, 1000 + KEPT_MS - 1);
        assert_eq!((kept.of.len(), kept.fresh), (1, 0));
        let (_, forgotten) = estimate(&[silent], 1.0, 1000 + KEPT_MS);
        assert!(forgotten.of.is_empty());
    }

    #[test]
    fn what_another_thread_left_is_as_old_as_it_was_there() {
        let ability = Ability { service_ms: 20.0, capacity_per_s: 200.0 };
        let left =
            Left { ability, reported_ms: 1000, rate_per_s: 90.0, own_rate: 45.0, requests: 7 };
        let now_ms = 5000;
        let of = |left, at_ms| {
            let observed = Observed { requests: 7, latency_ms: None };
            let before = Some(Estimate::resumed(left, now_ms));
            estimate(&[Subject { load: None, observed, before }], 0.0, at_ms).1
        };
        let kept = of(left, 1000 + KEPT_MS - 1);
        assert!(near(kept.of[0].service_ms, 20.0, 1e-9), "{kept:?}");
        assert!(near(kept.of[0].capacity_per_s, 200.0, 1e-9), "{kept:?}");
        assert_eq!((kept.fresh, kept.rate_per_s, kept.own_part), (0, 90.0, 0.5));
        assert!(of(left, 1000 + KEPT_MS).of.is_empty());

        assert!(of(Left { reported_ms: 0, ..left }, now_ms).of.is_empty(), "of others");
        assert!(of(Left { reported_ms: u64::MAX, ..left }, now_ms + KEPT_MS).of.is_empty());
        for figure in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e30] {
            let slow = Ability { service_ms: figure, ..ability };
            let wide = Ability { capacity_per_s: figure, ..ability };
            assert!(of(Left { ability: slow, ..left }, now_ms).of.is_empty(), "{figure}");
            assert!(of(Left { ability: wide, ..left }, now_ms).of.is_empty(), "{figure}");
        }
    }

    #[test]
    fn who_waits_and_gets_more_than_others_counts_as_full_and_not_as_slow() {
        let mut subjects = vec![subject(load(100.0, 0.03, 10.0)); 4];
        settle(&mut subjects, &[100; 4]);
        // One gets three times as much, and its requests wait as long as they take.
        subjects[0].load = Some(load(300.0, 0.1, 20.0));
        let abilities = settle(&mut subjects, &[300, 100, 100, 100]);
        let [first, second] = [abilities.of[0], abilities.of[1]];
        assert!(near(first.service_ms, second.service_ms, 0.1), "{abilities:?}");
        assert!(first.capacity_per_s < 360.0, "{abilities:?}");
        assert!(first.capacity_per_s > 300.0, "{abilities:?}");
    }

    #[test]
    fn who_is_idle_among_the_busy_is_no_service_that_waits() {
        let mut subjects = vec![subject(load(100.0, 0.6, 10.0)); 4];
        subjects.push(subject(load(10.0, 0.02, 10.0)));
        settle(&mut subjects, &[100, 100, 100, 100, 10]);
        // Its latency, and not the best one that it has had, is its service time.
        subjects[4].load = Some(load(10.0, 0.02, 40.0));
        let abilities = settle(&mut subjects, &[100, 100, 100, 100, 10]);
        assert!(abilities.of[4].service_ms > 25.0, "{abilities:?}");
    }

    #[test]
    fn a_best_latency_is_learnt_at_once_and_forgotten_in_minutes() {
        let known = |ms: f64, reported_ms| Known {
            ln_best_ms: ms.ln(),
            ln_service_ms: ms.ln(),
            samples: 1e6,
            reported_ms,
            ..Known::default()
        };
        let lower = known(10.0, 1000).after(Some(known(20.0, 0)));
        assert!(near(lower.ln_best_ms.exp(), 14.1, 0.01), "half of the way in a second");
        let higher = known(20.0, 6000).after(Some(known(10.0, 0)));
        assert!(near(higher.ln_best_ms.exp(), 10.06, 0.001), "a hundredth in six seconds");
        assert!(higher.ln_service_ms.exp() > 15.0);
    }

    #[test]
    fn absurd_reports_make_no_absurd_abilities() {
        let absurd = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, f64::MIN_POSITIVE];
        for rate in absurd {
            for utilization in absurd {
                for latency in absurd {
                    let mut subjects =
                        [subject(load(rate, utilization, latency)), subject(load(100.0, 0.5, 9.0))];
                    let abilities = settle(&mut subjects, &[100; 2]);
                    assert!(abilities.of.iter().all(|it| {
                        it.service_ms.is_finite()
                            && it.service_ms > 0.0
                            && it.capacity_per_s.is_finite()
                            && it.capacity_per_s > 0.0
                    }));
                }
            }
        }
    }
}
