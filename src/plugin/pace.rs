//! When which services are published.
//!
//! A service whose instances came or left is published at once: an instance that
//! drains is to get no request more. What was reported may wait, and has to: ten
//! thousand instances report in a hundred batches, spread over each second, and a
//! ranking of all of them takes some 15 ms to make and to store, twice what it
//! takes to read the batches. So reports are collected until publishing takes no
//! more than its part of the thread's time.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// The part of the thread's time that publishing reports may take. Rankings of 10
/// instances, which take some hundredths of a millisecond, follow each batch at
/// once; those of 10,000 come every 0.75 s, about as often as there is news of
/// each instance. With the reading of the batches and a look at all instances
/// each second, 10,000 of them take 3 % of a core.
const REPORTS_DUTY: u32 = 50; // one fiftieth

/// The longest that a report waits for that reason: the default interval, so that
/// no status is skipped however many instances there are.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The part that publishing comings and goings may take: one waits for no longer
/// than the one before it took.
const MEMBERS_DUTY: u32 = 2; // a half

/// The services that are to be published, and from when on they may be.
pub struct Pace {
    dirty: BTreeSet<String>,
    /// Those of them that do not wait for the others.
    urgent: BTreeSet<String>,
    dirty_from: Instant,
    urgent_from: Instant,
}

/// Services to be published now.
#[derive(Debug, PartialEq)]
pub struct Round {
    /// In order of their names.
    pub services: Vec<String>,
    /// Whether these are all that waited.
    is_whole: bool,
}

impl Pace {
    /// Nothing waits.
    pub fn new(now: Instant) -> Self {
        Self { dirty: BTreeSet::new(), urgent: BTreeSet::new(), dirty_from: now, urgent_from: now }
    }

    /// These are to be published when it is time again.
    pub fn add(&mut self, services: impl IntoIterator<Item = String>) {
        self.dirty.extend(services);
    }

    /// These are to be published at once.
    pub fn add_urgent(&mut self, services: impl IntoIterator<Item = String>) {
        self.urgent.extend(services);
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.dirty.is_empty() && self.urgent.is_empty()
    }

    /// When the next of them are due; `None` if nothing waits.
    pub fn due(&self) -> Option<Instant> {
        let dirty = (!self.dirty.is_empty()).then_some(self.dirty_from);
        let urgent = (!self.urgent.is_empty()).then_some(self.urgent_from);
        [dirty, urgent].into_iter().flatten().min()
    }

    /// Those that are due; `None` if none are.
    pub fn take_due(&mut self, now: Instant) -> Option<Round> {
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        let mut services = std::mem::take(&mut self.urgent);
        let is_whole = now >= self.dirty_from;
        if is_whole {
            services.append(&mut self.dirty);
        } else {
            self.dirty.retain(|service| !services.contains(service));
        }
        Some(Round { services: services.into_iter().collect(), is_whole })
    }

    /// A round was published, from `started` to `ended`.
    pub fn finish(&mut self, round: &Round, started: Instant, ended: Instant) {
        let took = ended - started;
        self.urgent_from = ended + (took * (MEMBERS_DUTY - 1)).min(LONGEST_WAIT);
        if round.is_whole {
            self.dirty_from = ended + (took * (REPORTS_DUTY - 1)).min(LONGEST_WAIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Publishes what is due, which takes so long; says what that was.
    fn publish(pace: &mut Pace, now: &mut Instant, took: Duration) -> Vec<String> {
        let Some(round) = pace.take_due(*now) else { return Vec::new() };
        pace.finish(&round, *now, *now + took);
        *now += took;
        round.services
    }

    #[test]
    fn reports_are_published_at_once_and_then_for_a_fiftieth_of_the_time() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let (start, mut rounds) = (now, 0);
        while now < start + 10_000 * MS {
            pace.add(names(&["chat"]));
            rounds += publish(&mut pace, &mut now, 14 * MS).len();
            now = pace.due().unwrap_or(now + MS).max(now);
        }
        assert_eq!(rounds, 15, "14 ms of each 700 ms");
        pace.add(names(&["chat"]));
        assert_eq!(pace.due().unwrap(), now);
    }

    #[test]
    fn no_report_waits_longer_than_a_second() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        pace.add(names(&["chat"]));
        publish(&mut pace, &mut now, 100 * MS);
        pace.add(names(&["chat"]));
        assert_eq!(pace.due(), Some(now + 1000 * MS));
    }

    #[test]
    fn who_comes_or_leaves_waits_neither_for_reports_nor_behind_them() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        pace.add(names(&["chat", "mail"]));
        assert_eq!(publish(&mut pace, &mut now, 14 * MS), ["chat", "mail"]);
        pace.add(names(&["chat", "mail"]));
        pace.add_urgent(names(&["chat"]));
        assert_eq!(pace.due(), Some(now + 14 * MS), "as long as the last round took");
        now += 14 * MS;
        assert_eq!(publish(&mut pace, &mut now, 14 * MS), ["chat"]);
        assert_eq!(publish(&mut pace, &mut now, MS), [""; 0], "mail waits on");
        now += 672 * MS;
        assert_eq!(publish(&mut pace, &mut now, MS), ["mail"], "and no longer for that");
        assert!(pace.is_idle());
    }

    #[test]
    fn comings_and_goings_that_do_not_end_take_half_of_the_time() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        pace.add_urgent(names(&["chat"]));
        publish(&mut pace, &mut now, 14 * MS);
        pace.add_urgent(names(&["chat"]));
        assert_eq!(publish(&mut pace, &mut now, 14 * MS), [""; 0]);
        now += 14 * MS;
        assert_eq!(publish(&mut pace, &mut now, 14 * MS), ["chat"]);
    }
}
