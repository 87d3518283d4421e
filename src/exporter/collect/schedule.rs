//! When tries begin and how long they last.

use std::time::Duration;

use tokio::time::Instant;

/// The longest wait between two tries to open a stream, unless the interval is
/// longer: who comes back is to be read again soon.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// When tries begin and how long they last. Chance is an argument, a part from
/// 0 up to 1: what broke for many instances at once is not to be asked by all of
/// them at once again and again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub interval: Duration,
    pub timeout: Duration,
    pub retries: u32,
}

impl Schedule {
    /// When to try again after `tries` tries of the tick that began at `begun`,
    /// the last of which ended at `now`. Tries are spread over the interval,
    /// since what broke needs a moment to mend; `None` if there were enough of
    /// them or the interval is over.
    pub fn next_try(
        self,
        begun: Instant,
        tries: u32,
        now: Instant,
        chance: f64,
    ) -> Option<Instant> {
        let part = self.part();
        let next = now.max(begun + part * tries + part.mul_f64(chance / 2.0));
        (tries <= self.retries && next < begun + self.interval).then_some(next)
    }

    /// How long a try may take that begins at `now`: the interval's end cuts it,
    /// where the next tick asks anew.
    pub fn limit(self, begun: Instant, now: Instant) -> Duration {
        self.timeout.min((begun + self.interval).saturating_duration_since(now))
    }

    /// How long to wait after a stream failed `failures` times in a row, at
    /// least once. The retries fit into an interval; from then on the longest
    /// wait is doubled each time.
    pub fn backoff(self, failures: u32, chance: f64) -> Duration {
        match failures.saturating_sub(self.retries) {
            0 => self.part().mul_f64((1.0 + chance) / 2.0),
            further => {
                let longest = self.interval.saturating_mul(1 << further.min(16));
                longest.min(MAX_BACKOFF.max(self.interval)).mul_f64(chance)
            }
        }
    }

    /// The part of the interval that belongs to one try.
    fn part(self) -> Duration {
        self.interval / (self.retries + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    const SCHEDULE: Schedule = Schedule {
        interval: Duration::from_millis(1000),
        timeout: Duration::from_millis(500),
        retries: 3,
    };

    /// When the next try begins, in milliseconds of the tick.
    fn next_try_ms(schedule: Schedule, tries: u32, ended_ms: u32, chance: f64) -> Option<u128> {
        let begun = Instant::now();
        let next = schedule.next_try(begun, tries, begun + ended_ms * MS, chance)?;
        Some((next - begun).as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_spread_over_the_interval_and_begin_within_it() {
        let fails_at_once = [(1, 0), (2, 250), (3, 500)];
        let next = fails_at_once.map(|(tries, ended)| next_try_ms(SCHEDULE, tries, ended, 0.0));
        assert_eq!(next, [Some(250), Some(500), Some(750)]);
        let next = fails_at_once.map(|(tries, ended)| next_try_ms(SCHEDULE, tries, ended, 0.96));
        assert_eq!(next, [Some(370), Some(620), Some(870)]);

        let times_out = [(1, 501), (2, 1000)];
        let next = times_out.map(|(tries, ended)| next_try_ms(SCHEDULE, tries, ended, 0.0));
        assert_eq!(next, [Some(501), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_try_outlasts_the_interval() {
        let begun = Instant::now();
        let limit = |began_ms: u32| SCHEDULE.limit(begun, begun + began_ms * MS);
        assert_eq!([limit(0), limit(501), limit(1001)], [500 * MS, 499 * MS, Duration::ZERO]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_configured_retries_are_made() {
        assert!(next_try_ms(SCHEDULE, 3, 500, 0.0).is_some());
        assert!(next_try_ms(SCHEDULE, 4, 750, 0.0).is_none());
        assert!(next_try_ms(Schedule { retries: 0, ..SCHEDULE }, 1, 0, 0.0).is_none());
    }

    #[test]
    fn a_streams_retries_fit_into_an_interval_and_then_become_rare() {
        let retries: Duration = (1..=3).map(|failures| SCHEDULE.backoff(failures, 1.0)).sum();
        assert!(retries < SCHEDULE.interval, "{retries:?}");
        let longest = |failures| SCHEDULE.backoff(failures, 1.0).as_secs();
        assert_eq!([4, 5, 6, 7, 8, u32::MAX].map(longest), [2, 4, 8, 10, 10, 10]);
        assert_eq!(SCHEDULE.backoff(8, 0.25), Duration::from_millis(2500));

        let slow = Schedule { interval: Duration::from_secs(60), ..SCHEDULE };
        assert_eq!(slow.backoff(9, 1.0), slow.interval, "no wait is longer than it need be");
    }
}
