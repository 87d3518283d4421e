//! Slow start: an instance that is new, was started anew or is back gets a part of
//! its weight that grows with its age, as caches fill and connections open:
//!
//! ```text
//! ramp = max(min, (age / window)^(1 / aggression))
//! ```
//!
//! Its age is counted here, from when it came to be offered, so that no other clock
//! matters. Nobody is new to a gateway that starts: who is in its first complete list
//! has been there for as long as it likes.
//!
//! Source: Envoy, slow start mode (`load_balancer_impl.cc`, `applySlowStartFactor`).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use crate::config::SlowStartConfig;

/// How long the instances of one service have been offered.
#[derive(Debug, Default)]
pub struct Ages {
    by_id: HashMap<String, Age>,
    /// Whether who is not in `by_id` is new.
    knows_all: bool,
    /// Counts the looks, to tell who is gone.
    looks: u64,
}

#[derive(Debug, Clone, Copy)]
struct Age {
    /// Of a monotonic clock, in milliseconds; `None` is long ago.
    since_ms: Option<u64>,
    /// Where it is; `None` if an earlier thread knew.
    addr: Option<SocketAddr>,
    /// The process, by its own word.
    boot_id: Option<u64>,
    is_up: bool,
    look: u64,
}

impl Ages {
    /// Those that were in their slow start when an earlier thread ended.
    pub fn resumed(starts: &BTreeMap<String, u64>, now_ms: u64) -> Self {
        let age = |(id, since_ms): (&String, &u64)| {
            let since_ms = Some((*since_ms).min(now_ms));
            (id.clone(), Age { since_ms, addr: None, boot_id: None, is_up: true, look: 0 })
        };
        Ages { by_id: starts.iter().map(age).collect(), ..Ages::default() }
    }

    /// These are offered, each with where it is and what it said its process is.
    /// `is_complete`: no list of them is awaited.
    pub fn see<'a>(
        &mut self,
        offered: impl Iterator<Item = (&'a str, SocketAddr, Option<u64>)>,
        is_complete: bool,
        now_ms: u64,
    ) {
        self.looks += 1;
        let look = self.looks;
        for (id, addr, boot_id) in offered {
            match self.by_id.get_mut(id) {
                Some(age) => {
                    let is_known = boot_id.is_some() && age.boot_id.is_some();
                    let has_moved = age.addr.is_some_and(|known| known != addr);
                    if has_moved || is_known && boot_id != age.boot_id {
                        age.since_ms = Some(now_ms);
                    }
                    age.addr = Some(addr);
                    age.boot_id = boot_id.or(age.boot_id);
                    age.look = look;
                }
                None => {
                    let since_ms = self.knows_all.then_some(now_ms);
                    let age = Age { since_ms, addr: Some(addr), boot_id, is_up: true, look };
                    self.by_id.insert(id.to_owned(), age);
                }
            }
        }
        self.by_id.retain(|_, age| age.look == look);
        self.knows_all |= is_complete;
    }

    /// Whether an instance that is offered may get requests at all.
    pub fn hear(&mut self, id: &str, is_up: bool, now_ms: u64) {
        if let Some(age) = self.by_id.get_mut(id) {
            if is_up && !age.is_up {
                age.since_ms = Some(now_ms);
            }
            age.is_up = is_up;
        }
    }

    /// What part of its weight an instance gets; 1 if it is not new.
    pub fn ramp(&self, id: &str, config: &SlowStartConfig, now_ms: u64) -> f64 {
        let age = self.by_id.get(id).and_then(|age| age.since_ms);
        age.map_or(1.0, |since_ms| ramp(config, now_ms.saturating_sub(since_ms)))
    }

    /// Those in their slow start, and since when they have been offered.
    pub fn starts(&self, config: &SlowStartConfig, now_ms: u64) -> BTreeMap<String, u64> {
        let start = |(id, age): (&String, &Age)| {
            let since_ms = age.since_ms?;
            let is_new = ramp(config, now_ms.saturating_sub(since_ms)) < 1.0;
            is_new.then(|| (id.clone(), since_ms))
        };
        self.by_id.iter().filter_map(start).collect()
    }
}

/// What part of its weight an instance of this age gets, of `min` to 1.
fn ramp(config: &SlowStartConfig, age_ms: u64) -> f64 {
    let window_ms = config.window.as_millis() as f64;
    if age_ms as f64 >= window_ms {
        return 1.0;
    }
    let part = (age_ms as f64 / window_ms).powf(1.0 / config.aggression);
    part.max(f64::from(config.min) / 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: SlowStartConfig =
        SlowStartConfig { window: Duration::from_secs(10), min: 10, aggression: 1.0 };

    fn addr(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn see(ages: &mut Ages, ids: &[&str], now_ms: u64) {
        ages.see(ids.iter().map(|id| (*id, addr(80), None)), true, now_ms);
    }

    fn boots(ages: &mut Ages, boot_id: Option<u64>, now_ms: u64) -> f64 {
        ages.see([("a", addr(80), boot_id)].into_iter(), true, now_ms);
        ages.ramp("a", &WINDOW, now_ms)
    }

    #[test]
    fn a_new_instance_grows_in_a_line_from_the_least() {
        let mut ages = Ages::default();
        see(&mut ages, &["a"], 0);
        see(&mut ages, &["a", "b"], 1000);
        let at = |now_ms| ages.ramp("b", &WINDOW, now_ms);
        assert_eq!([1000, 1500, 3000, 6000, 10_999].map(at), [0.1, 0.1, 0.2, 0.5, 0.9999]);
        assert_eq!([11_000, 99_000].map(at), [1.0, 1.0]);
        assert_eq!(ages.ramp("a", &WINDOW, 1000), 1.0, "it was in the first list");
    }

    #[test]
    fn aggression_gives_more_at_the_beginning() {
        let config = SlowStartConfig { aggression: 2.0, ..WINDOW };
        assert_eq!([0, 2500, 10_000].map(|age| ramp(&config, age)), [0.1, 0.5, 1.0]);
    }

    #[test]
    fn without_a_window_nobody_is_new() {
        assert_eq!(ramp(&SlowStartConfig::default(), 0), 1.0);
    }

    #[test]
    fn who_comes_before_a_list_is_complete_was_there() {
        let mut ages = Ages::default();
        ages.see([("a", addr(80), None)].into_iter(), false, 0);
        see(&mut ages, &["a", "b"], 1000);
        assert!(ages.starts(&WINDOW, 1000).is_empty());
        see(&mut ages, &["a", "b", "c"], 2000);
        assert_eq!(ages.starts(&WINDOW, 2000), [("c".to_owned(), 2000)].into());
    }

    #[test]
    fn who_was_away_is_new_again() {
        let mut ages = Ages::default();
        see(&mut ages, &["a", "b"], 0);
        see(&mut ages, &["a"], 1000);
        see(&mut ages, &["a", "b"], 2000);
        assert_eq!(ages.starts(&WINDOW, 2000), [("b".to_owned(), 2000)].into());
    }

    #[test]
    fn who_gets_requests_again_after_it_failed_is_new() {
        let mut ages = Ages::default();
        see(&mut ages, &["a"], 0);
        ages.hear("a", false, 1000);
        assert_eq!(ages.ramp("a", &WINDOW, 1000), 1.0);
        ages.hear("a", true, 2000);
        ages.hear("a", true, 3000);
        assert_eq!(ages.ramp("a", &WINDOW, 4000), 0.2);
    }

    #[test]
    fn another_boot_id_is_a_new_process_and_none_says_nothing() {
        let mut ages = Ages::default();
        assert_eq!(boots(&mut ages, None, 0), 1.0);
        assert_eq!(boots(&mut ages, Some(7), 1000), 1.0, "the first that is known");
        assert_eq!(boots(&mut ages, None, 2000), 1.0);
        assert_eq!(boots(&mut ages, Some(7), 3000), 1.0);
        assert_eq!(boots(&mut ages, Some(8), 4000), 0.1);
        assert_eq!(boots(&mut ages, Some(8), 9000), 0.5);
    }

    #[test]
    fn who_is_elsewhere_is_new() {
        let mut ages = Ages::default();
        see(&mut ages, &["a"], 0);
        ages.see([("a", addr(81), None)].into_iter(), true, 1000);
        assert_eq!(ages.ramp("a", &WINDOW, 3000), 0.2);
    }

    #[test]
    fn a_slow_start_goes_on_after_a_reload_and_does_not_begin_for_others() {
        let starts = [("b".to_owned(), 1000), ("gone".to_owned(), 1), ("z".to_owned(), 9_000_000)];
        let mut ages = Ages::resumed(&starts.into(), 6000);
        see(&mut ages, &["a", "b", "z"], 6000);
        let of = |id| ages.ramp(id, &WINDOW, 6000);
        assert_eq!(["a", "b", "z"].map(of), [1.0, 0.5, 0.1], "none begins in the future");
    }

    proptest! {
        #[test]
        fn a_ramp_never_falls_and_ends_at_1(
            window_ms in 0..100_000u64, min in 1..=100u32, aggression in 1.0..10.0f64,
            ages in proptest::collection::vec(0..200_000u64, 2),
        ) {
            let window = Duration::from_millis(window_ms);
            let config = SlowStartConfig { window, min, aggression };
            let (early, late) = (ages[0].min(ages[1]), ages[0].max(ages[1]));
            let least = f64::from(min) / 100.0;
            prop_assert!((least..=1.0).contains(&ramp(&config, early)));
            prop_assert!(ramp(&config, early) <= ramp(&config, late));
            prop_assert_eq!(ramp(&config, window_ms), 1.0);
        }
    }
}
