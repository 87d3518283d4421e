//! When a list of all keys is asked for out of its turn: where somebody would learn from
//! one, soon, and not over and over.

use std::time::Duration;

use rand::{Rng, RngExt};
use tokio::time::Instant;

/// The least time from a loss to the list that is to confirm it, and the longest: many
/// gateways see it at the same moment, and whoever registered may be about to do so
/// again.
const FIRST: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// The least time from one to the next; doubled by each in a row, for a list that does
/// not come to its end keeps etcd and the watch busy.
const APART: Duration = Duration::from_secs(5);

/// The longest of these.
const LONGEST: Duration = Duration::from_mins(5);

/// Asks for lists.
#[derive(Debug, Default)]
pub struct Relist {
    /// When to ask; `None` while nobody wants one.
    at: Option<Instant>,
    asked: u32,
    not_before: Option<Instant>,
}

impl Relist {
    /// Whether to ask now, if one `is_wanted`. To be called several times a second.
    pub fn is_due(&mut self, is_wanted: bool, now: Instant, rng: &mut impl Rng) -> bool {
        if !is_wanted {
            (self.at, self.asked) = (None, 0);
            return false;
        }
        let at = *self.at.get_or_insert_with(|| {
            let soon = now + rng.random_range(FIRST[0]..=FIRST[1]);
            self.not_before.map_or(soon, |not_before| soon.max(not_before))
        });
        if now < at {
            return false;
        }
        let rest = APART.saturating_mul(2_u32.saturating_pow(self.asked)).min(LONGEST);
        self.asked = self.asked.saturating_add(1);
        self.at = Some(now + rest);
        self.not_before = Some(now + APART);
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// When it asks, in seconds, with `is_wanted` looked at four times a second.
    fn asks(seconds: u64, is_wanted: impl Fn(f64) -> bool) -> Vec<f64> {
        let (start, mut rng) = (Instant::now(), SmallRng::seed_from_u64(3));
        let mut relist = Relist::default();
        let times = (0..4 * seconds).map(|beat| beat as f64 / 4.0);
        times
            .filter(|&s| relist.is_due(is_wanted(s), start + Duration::from_secs_f64(s), &mut rng))
            .collect()
    }

    #[test]
    fn a_list_that_is_wanted_is_asked_for_within_seconds_and_then_ever_less_often() {
        let asked = asks(3600, |s| s >= 10.0);
        assert!((11.0..=13.25).contains(&asked[0]), "{asked:?}");
        let apart: Vec<_> = asked.windows(2).map(|it| it[1] - it[0]).collect();
        assert_eq!(apart[..7], [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0]);
        assert!(asks(3600, |_| false).is_empty());
    }

    #[test]
    fn lists_that_are_wanted_again_and_again_are_some_seconds_apart() {
        let asked = asks(600, |s| s % 4.0 < 3.5);
        assert!(asked.len() > 60, "each is asked for anew: {}", asked.len());
        assert!(asked.windows(2).all(|it| it[1] - it[0] >= 5.0), "{asked:?}");
    }
}
