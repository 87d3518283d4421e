//! Who is in the ranking, by what exporters say of it.
//!
//! Only evidence puts an instance out: its exporter's word that it could not be
//! read for longer than the limit, or its own that it wants no requests. No word
//! at all is no evidence, however long it lasts. Exporters leave out what is as
//! it was, and one that is killed is silent for its share until others have taken
//! it over; the instances are well all the while.
//!
//! An instance that is out is back with its next good report. When most of a
//! service cannot be read, though, the likelier cause is the one thing that they
//! share, the exporter's way to them, and all of them stay.
//!
//! "Most" is more than half of those that are not out already: when instances of
//! a service die one after another, each is a minority at its time, and each is
//! out by itself. Three details keep instances from going in and out:
//!
//! - An instance counts as unreachable for this one interval before it reaches
//!   the limit, and as if it had been so since it was last spoken of. Those that
//!   an exporter lost at the same moment reach the limit a little apart, are told
//!   of apart, and the first of them must not be judged as if it were alone.
//! - One that was excused stays so for what is said within a further limit. An
//!   exporter that recovers does not reach all of its instances at once.
//! - Without a watch only a part of what is said may have been heard, and all are
//!   excused. A list that was just completed shows all that is said, and is as good
//!   as a watch: else a gateway that starts would bring back who was long out.
//!
//! The last ones are never put out: a service that is down to one unreachable
//! instance keeps it, since it may be well and there is nothing better to offer.
//! For the same reason those that want no requests are all offered where there is
//! nobody else.
//!
//! Several exporters may speak of one instance. One good report is enough to know
//! that it can be reached, so that an exporter that cannot reach it is not heard
//! while another one can.

use crate::config::{StatusConfig, Unreachable};

/// What one service's instances are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The exporter's interval, as configured here.
    interval_ms: u64,
    /// How many intervals may go by without a status.
    missed: u64,
    /// What becomes of those that cannot be read for longer.
    unreachable: Unreachable,
}

/// Who tells of an instance, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The exporter's id.
    pub exporter: &'a str,
    /// The longest time until its next report on the instance; 0 if it does not
    /// say.
    pub interval_ms: u64,
}

/// Whose the reports are that responses brought: no exporter may have such an id.
pub const IN_BAND: &str = "(in-band)";

/// What is known of one instance. Times are milliseconds of one monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// The last good report.
    good: Option<Good>,
    /// What was said against it since then.
    against: Option<Against>,
    /// When that was last laid to the exporter.
    excused_ms: Option<u64>,
    out: bool,
}

#[derive(Debug, Clone)]
struct Good {
    exporter: Box<str>,
    received_ms: u64,
    /// When the figures were taken, of the newest ones so far.
    sampled_ms: u64,
    /// Between two reports, by what the exporter said and by what is configured.
    interval_ms: u64,
    /// How long another exporter's figures do not take the place of these.
    held_ms: u64,
}

#[derive(Debug, Clone, Copy)]
enum Against {
    NotServing,
    Unreachable(Unread),
}

/// A word that an instance could not be read.
#[derive(Debug, Clone, Copy)]
struct Unread {
    silent_ms: u64,
    received_ms: u64,
    /// As in [`Good`]: an exporter that asks less often has missed nothing sooner.
    interval_ms: u64,
}

/// The longest time between two reports that an exporter is believed.
const MAX_INTERVAL_MS: u64 = 10 * 60 * 1000;

/// So many of its intervals an exporter may be silent until another one's figures
/// take the place of its own.
const HOLD_INTERVALS: u64 = 2;

/// An exporter speaks of each of its instances at least so often, however seldom
/// that one speaks itself: the longest that its `refresh` may be.
const SPOKEN_OF_MS: u64 = 5000;

impl Rule {
    /// The rule for a service, by its configuration and the exporter's.
    pub fn new(config: &StatusConfig, interval_ms: u64) -> Self {
        let StatusConfig { missed, unreachable } = *config;
        Self { interval_ms, missed: missed.into(), unreachable }
    }

    /// The time between two reports of such a source.
    pub fn interval_of_ms(self, source: Source<'_>) -> u64 {
        source.interval_ms.min(MAX_INTERVAL_MS).max(self.interval_ms)
    }

    /// How long a good report of such a source is fresh.
    pub fn fresh_for_ms(self, source: Source<'_>) -> u64 {
        self.limit_ms(self.interval_of_ms(source))
    }

    /// What is read at such an interval, and was not for longer than this, is
    /// unreachable for too long.
    fn limit_ms(self, interval_ms: u64) -> u64 {
        self.missed * interval_ms
    }
}

impl Reach {
    /// The instance is well, as of `sampled_ms`.
    pub fn good(&mut self, rule: Rule, source: Source<'_>, sampled_ms: u64, now_ms: u64) {
        let last_ms = self.good.as_ref().map_or(0, |last| last.sampled_ms);
        let exporter = match self.good.take() {
            Some(last) if *last.exporter == *source.exporter => last.exporter,
            _ => source.exporter.into(),
        };
        let interval_ms = rule.interval_of_ms(source);
        self.good = Some(Good {
            exporter,
            held_ms: HOLD_INTERVALS * interval_ms.min(rule.interval_ms.max(SPOKEN_OF_MS)),
            received_ms: now_ms,
            sampled_ms: sampled_ms.max(last_ms),
            interval_ms,
        });
        self.against = None;
        self.excused_ms = None;
        self.out &= !self.has_fresh(rule, now_ms);
    }

    /// The instance wants no requests.
    pub fn not_serving(&mut self) {
        self.against = Some(Against::NotServing);
    }

    /// The instance could not be read for `silent_ms`.
    pub fn unreachable(&mut self, rule: Rule, source: Source<'_>, silent_ms: u64, now_ms: u64) {
        let by_another = |good: &Good| *good.exporter != *source.exporter;
        if !(self.has_fresh(rule, now_ms) && self.good.as_ref().is_some_and(by_another)) {
            let interval_ms = rule.interval_of_ms(source);
            let unread = Unread { silent_ms, received_ms: now_ms, interval_ms };
            self.against = Some(Against::Unreachable(unread));
        }
    }

    /// Whether the instance's figures are another exporter's to tell: two that
    /// make up their counters would otherwise take turns to start it anew. What
    /// responses brought stands back for any exporter's.
    pub fn is_held_from(&self, exporter: &str, now_ms: u64) -> bool {
        self.against.is_none()
            && self.good.as_ref().is_some_and(|good| {
                let silent_ms = now_ms.saturating_sub(good.received_ms);
                let is_exporters = *good.exporter != *IN_BAND;
                is_exporters && *good.exporter != *exporter && silent_ms <= good.held_ms
            })
    }

    /// How old the figures of the last good report are.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        self.good.as_ref().map(|good| now_ms.saturating_sub(good.sampled_ms))
    }

    /// Whether the last good report is recent enough to go by, and nothing that
    /// counts was said against the instance since.
    pub fn is_fresh(&self, rule: Rule, now_ms: u64) -> bool {
        let is_doubted = match self.against {
            None => false,
            Some(Against::NotServing) => true,
            Some(Against::Unreachable(unread)) => unread.is_too_long(rule),
        };
        !self.out && !is_doubted && self.has_fresh(rule, now_ms)
    }

    /// Whether the instance could not be read when it was last spoken of.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.against, Some(Against::Unreachable(_)))
    }

    /// Whether the instance wanted no requests when it was last spoken of.
    pub fn is_not_serving(&self) -> bool {
        matches!(self.against, Some(Against::NotServing))
    }

    /// Whether the instance was put out.
    pub fn is_out(&self) -> bool {
        self.out
    }

    fn has_fresh(&self, rule: Rule, now_ms: u64) -> bool {
        self.good.as_ref().is_some_and(|good| {
            now_ms.saturating_sub(good.sampled_ms) <= rule.limit_ms(good.interval_ms)
        })
    }

    /// Whether it is in, and may have been unreachable by now for all but one of
    /// the intervals that it may.
    fn is_in_and_quiet(&self, rule: Rule, now_ms: u64) -> bool {
        match self.against {
            Some(Against::Unreachable(Unread { silent_ms, received_ms, interval_ms }))
                if !self.out =>
            {
                let quiet_ms = silent_ms + now_ms.saturating_sub(received_ms);
                quiet_ms >= rule.limit_ms(interval_ms) - interval_ms
            }
            _ => false,
        }
    }
}

impl Unread {
    fn is_too_long(self, rule: Rule) -> bool {
        self.silent_ms > rule.limit_ms(self.interval_ms)
    }
}

/// Judges the instances of one service that declare a status and could be
/// offered. `hears_all` is whether all that is said of them is heard. Returns
/// whether any of them went out or came back.
pub fn judge(rule: Rule, hears_all: bool, now_ms: u64, instances: &mut [&mut Reach]) -> bool {
    let mut changed = false;
    let remaining = instances.iter().filter(|i| !i.out && !i.is_not_serving()).count();
    if remaining == 0 {
        // Whoever outlived these has left of its own will. Those that can be
        // reached go before those that cannot.
        let some_answer = instances.iter().any(|i| i.is_not_serving());
        for instance in instances.iter_mut().filter(|i| !some_answer || i.is_not_serving()) {
            changed |= std::mem::take(&mut instance.out);
            instance.excused_ms = Some(now_ms);
        }
        return changed;
    }
    if hears_all {
        for instance in instances.iter_mut().filter(|i| !i.out && i.is_not_serving()) {
            instance.out = true;
            changed = true;
        }
    }
    if rule.unreachable == Unreachable::Keep {
        return changed;
    }

    let quiet = instances.iter().filter(|i| i.is_in_and_quiet(rule, now_ms)).count();
    let exporter_at_fault = !hears_all || 2 * quiet > remaining;
    for instance in instances.iter_mut().filter(|i| !i.out) {
        match instance.against {
            Some(Against::Unreachable(unread)) if unread.is_too_long(rule) => {
                if exporter_at_fault {
                    instance.excused_ms = Some(now_ms);
                } else {
                    // By a word that came after the excuse had ended, for the
                    // excused one to leave: by evidence, and not by time.
                    let limit_ms = rule.limit_ms(unread.interval_ms);
                    instance.out = instance.excused_ms.is_none_or(|excused_ms| {
                        unread.received_ms.saturating_sub(excused_ms) > limit_ms
                    });
                    changed |= instance.out;
                }
            }
            _ => {}
        }
    }
    changed
}

#[cfg(test)]
mod tests;
