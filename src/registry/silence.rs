//! Who is at fault when an instance falls silent: it, or who reports on it.
//!
//! An instance that has been silent for longer than the limit is out, until it
//! reports again. When most of a service is silent, though, the likelier cause is
//! the one thing that they share, the reporter, and all of them stay.
//!
//! "Most" is more than half of those that are not out already: when instances of
//! a service die one after another, each is a minority at its time, and each is
//! out by itself. Three details keep instances from going in and out:
//!
//! - An instance counts as silent for this one interval before it reaches the
//!   limit. Those that a reporter left at the same moment reach it a little apart,
//!   and the first of them must not be judged as if it were alone.
//! - One that was excused stays so for a further limit after the excuse has gone.
//!   A reporter that comes back does not reach all of its instances at once.
//! - Without a watch nothing can be heard, and all silence is excused.
//!
//! The last ones are never put out: a service that is down to one silent instance
//! keeps it, since it may be well and there is nothing better to offer.

/// How long silence may last.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Between two reports on an instance.
    pub interval_ms: u64,
    /// Silence for longer than this is too long.
    pub limit_ms: u64,
}

/// What is known of one instance's reports. Times are milliseconds of one
/// monotonic clock.
#[derive(Debug, Clone)]
pub struct Silence {
    first_seen_ms: u64,
    reported_ms: Option<u64>,
    /// When its silence was last laid to the reporter.
    excused_ms: Option<u64>,
    out: bool,
}

impl Silence {
    /// An instance that is there from `now_ms` on and has not reported.
    pub fn new(now_ms: u64) -> Self {
        Self { first_seen_ms: now_ms, reported_ms: None, excused_ms: None, out: false }
    }

    /// The instance reported; its figures are those of `sampled_ms`.
    pub fn report(&mut self, sampled_ms: u64) {
        self.reported_ms = self.reported_ms.max(Some(sampled_ms));
    }

    /// Whether the last report is recent enough to go by.
    pub fn is_fresh(&self, rule: Rule, now_ms: u64) -> bool {
        self.reported_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) <= rule.limit_ms)
    }

    /// Whether the instance was put out for its silence.
    pub fn is_out(&self) -> bool {
        self.out
    }

    /// Since the last report, or since it was first seen.
    fn lasts_ms(&self, now_ms: u64) -> u64 {
        let last_ms = self.reported_ms.map_or(self.first_seen_ms, |at| at.max(self.first_seen_ms));
        now_ms.saturating_sub(last_ms)
    }
}

/// Judges the instances of one service that declare a status and could be
/// offered. `is_watching` is whether their reports could be heard at all. Returns
/// whether any of them went out or came back.
pub fn judge(rule: Rule, is_watching: bool, now_ms: u64, instances: &mut [&mut Silence]) -> bool {
    let mut changed = false;
    for instance in instances.iter_mut().filter(|i| i.lasts_ms(now_ms) <= rule.limit_ms) {
        changed |= std::mem::take(&mut instance.out);
        instance.excused_ms = None;
    }

    let remaining = instances.iter().filter(|i| !i.out).count();
    if remaining == 0 {
        // Whoever outlived these has left of its own will.
        for instance in instances.iter_mut() {
            instance.out = false;
            instance.excused_ms = Some(now_ms);
        }
        return !instances.is_empty();
    }

    let quiet_ms = rule.limit_ms.saturating_sub(rule.interval_ms);
    let quiet = instances.iter().filter(|i| !i.out && i.lasts_ms(now_ms) >= quiet_ms).count();
    let reporter_at_fault = !is_watching || 2 * quiet > remaining;
    let silent = instances.iter_mut().filter(|i| !i.out && i.lasts_ms(now_ms) > rule.limit_ms);
    for instance in silent {
        if reporter_at_fault {
            instance.excused_ms = Some(now_ms);
        } else {
            instance.out = instance
                .excused_ms
                .is_none_or(|excused_ms| now_ms.saturating_sub(excused_ms) > rule.limit_ms);
            changed |= instance.out;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule = Rule { interval_ms: 1000, limit_ms: 3000 };

    /// A service judged four times a second, out of step with the reports.
    struct Service {
        now_ms: u64,
        is_watching: bool,
        instances: Vec<Silence>,
    }

    impl Service {
        fn new(instances: usize) -> Self {
            let instances = vec![Silence::new(0); instances];
            Self { now_ms: 0, is_watching: true, instances }
        }

        /// Passes time in which `reporting` report once a second, each a little
        /// after the one before it. Returns every set of instances in the ranking
        /// that was seen on the way.
        fn pass(&mut self, ms: u64, reporting: &[usize]) -> Vec<Vec<usize>> {
            let mut seen: Vec<Vec<usize>> = Vec::new();
            for _ in 0..ms / 10 {
                self.now_ms += 10;
                for (turn, index) in reporting.iter().enumerate() {
                    if self.now_ms % 1000 == (100 + 90 * turn as u64) % 1000 {
                        self.instances[*index].report(self.now_ms);
                    }
                }
                if self.now_ms.is_multiple_of(250) {
                    self.judge();
                    let offered = self.offered();
                    if seen.last() != Some(&offered) {
                        seen.push(offered);
                    }
                }
            }
            seen
        }

        fn judge(&mut self) -> bool {
            let mut instances: Vec<_> = self.instances.iter_mut().collect();
            judge(RULE, self.is_watching, self.now_ms, &mut instances)
        }

        fn offered(&self) -> Vec<usize> {
            (0..self.instances.len()).filter(|i| !self.instances[*i].is_out()).collect()
        }
    }

    #[test]
    fn one_silent_instance_of_three_leaves_after_the_limit_and_not_before() {
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1, 2]);
        // Its last report is 720 ms old by now.
        assert_eq!(service.pass(2250, &[0, 1]), [[0, 1, 2]]);
        assert_eq!(service.pass(250, &[0, 1]), [[0, 1]]);
    }

    #[test]
    fn it_is_back_with_its_next_report() {
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1]);
        assert_eq!(service.offered(), [0, 1]);
        service.instances[2].report(service.now_ms);
        assert!(service.judge());
        assert_eq!(service.offered(), [0, 1, 2]);
    }

    #[test]
    fn an_old_report_does_not_bring_it_back() {
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1]);
        service.instances[2].report(service.now_ms - 3001);
        assert!(!service.judge());
        assert_eq!(service.offered(), [0, 1]);
    }

    #[test]
    fn an_older_report_does_not_take_back_a_newer_one() {
        let mut silence = Silence::new(0);
        silence.report(10_000);
        silence.report(5000);
        assert!(silence.is_fresh(RULE, 13_000) && !silence.is_fresh(RULE, 13_001));
    }

    #[test]
    fn when_the_reporter_dies_nobody_leaves_even_for_a_moment() {
        for instances in [1, 2, 3, 10] {
            let all: Vec<usize> = (0..instances).collect();
            let mut service = Service::new(instances);
            for phase_ms in [0, 250, 500, 750] {
                service.pass(10_000 + phase_ms, &all);
                assert_eq!(service.pass(60_000, &[]), [&all[..]]);
            }
        }
    }

    #[test]
    fn when_the_reporter_comes_back_nobody_leaves_even_for_a_moment() {
        let mut service = Service::new(10);
        let all: Vec<usize> = (0..10).collect();
        service.pass(10_000, &all);
        service.pass(60_000, &[]);
        // Six at first, which is most of them, and the others a little later.
        assert_eq!(service.pass(2500, &[0, 1, 2, 3, 4, 5]), [&all[..]]);
        assert_eq!(service.pass(10_000, &all), [all]);
    }

    #[test]
    fn those_that_stay_silent_after_the_reporter_came_back_leave() {
        let mut service = Service::new(5);
        service.pass(10_000, &[0, 1, 2, 3, 4]);
        service.pass(60_000, &[]);
        service.pass(5000, &[0, 1, 2]);
        assert_eq!(service.offered(), [0, 1, 2]);
    }

    #[test]
    fn a_reporter_that_never_started_costs_nobody_its_place() {
        let mut service = Service::new(1);
        for instances in 1..=5 {
            let all: Vec<usize> = (0..instances).collect();
            assert_eq!(service.pass(20_000, &[]), [all]);
            service.instances.push(Silence::new(service.now_ms));
        }
    }

    #[test]
    fn instances_that_die_one_after_another_leave_one_after_another_but_the_last() {
        let mut service = Service::new(4);
        service.pass(10_000, &[0, 1, 2, 3]);
        for alive in (0..4).rev() {
            let reporting: Vec<usize> = (0..alive).collect();
            service.pass(10_000, &reporting);
            assert_eq!(service.offered(), if alive == 0 { vec![0] } else { reporting });
        }
    }

    #[test]
    fn one_of_two_leaves_and_both_of_two_stay() {
        let mut service = Service::new(2);
        service.pass(10_000, &[0]);
        assert_eq!(service.offered(), [0]);
        service.pass(2000, &[0, 1]);
        assert_eq!(service.pass(60_000, &[]), [[0, 1]]);
    }

    #[test]
    fn one_that_was_out_before_the_reporter_died_stays_out() {
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1]);
        assert_eq!(service.pass(60_000, &[]), [[0, 1]]);
    }

    #[test]
    fn one_that_registers_while_the_reporter_is_away_stays() {
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1, 2]);
        service.pass(20_000, &[]);
        service.instances.push(Silence::new(service.now_ms));
        assert_eq!(service.pass(20_000, &[]), [[0, 1, 2, 3]]);
        // The older ones are replaced, and still nobody is to blame.
        service.instances.drain(..2);
        assert_eq!(service.pass(20_000, &[]), [[0, 1]]);
    }

    #[test]
    fn silent_ones_return_when_all_that_outlived_them_have_left() {
        let mut service = Service::new(2);
        service.pass(10_000, &[0]);
        assert_eq!(service.offered(), [0]);
        service.instances.remove(0);
        assert!(service.instances[0].is_out());
        assert!(service.judge());
        assert_eq!(service.offered(), [0]);
        assert_eq!(service.pass(20_000, &[]), [[0]]);
    }

    #[test]
    fn nobody_leaves_while_there_is_no_watch_nor_just_after() {
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1, 2]);
        // One of them was late when the watch broke.
        service.pass(1500, &[0, 1]);
        service.is_watching = false;
        assert_eq!(service.pass(60_000, &[]), [[0, 1, 2]]);
        service.is_watching = true;
        assert_eq!(service.pass(2500, &[0, 1]), [[0, 1, 2]]);
        service.pass(2500, &[0, 1]);
        assert_eq!(service.offered(), [0, 1]);
    }

    /// For each instance, in each second: whether it reports.
    fn any_history() -> impl Strategy<Value = Vec<Vec<bool>>> {
        (1..8usize).prop_flat_map(|instances| {
            let second = proptest::collection::vec(proptest::bool::weighted(0.6), instances);
            let silence = Just(vec![false; instances]);
            proptest::collection::vec(prop_oneof![3 => second, 1 => silence], 1..40)
        })
    }

    proptest! {
        #[test]
        fn the_fresh_are_in_and_never_do_more_leave_than_stay(
            history in any_history(),
        ) {
            let mut service = Service::new(history[0].len());
            for second in history {
                service.now_ms += 1000;
                for (instance, reports) in service.instances.iter_mut().zip(second) {
                    if reports {
                        instance.report(service.now_ms);
                    }
                }
                let before = service.offered();
                let changed = service.judge();
                let after = service.offered();
                prop_assert_eq!(changed, before != after);
                let left = before.iter().filter(|index| !after.contains(index)).count();
                prop_assert!(left <= after.len() && !after.is_empty());
                for instance in &service.instances {
                    let fresh = instance.is_fresh(RULE, service.now_ms);
                    prop_assert!(!(fresh && instance.is_out()));
                }
                // Judging again at the same time changes nothing.
                prop_assert!(!service.judge());
            }
        }

        #[test]
        fn the_order_of_the_instances_does_not_matter(history in any_history()) {
            let count = history[0].len();
            let mut one = Service::new(count);
            let mut other = Service::new(count);
            for second in history {
                one.now_ms += 1000;
                other.now_ms += 1000;
                for (index, _) in second.iter().enumerate().filter(|(_, reports)| **reports) {
                    one.instances[index].report(one.now_ms);
                    other.instances[count - 1 - index].report(other.now_ms);
                }
                one.judge();
                other.judge();
                let mirrored: Vec<usize> =
                    other.offered().into_iter().rev().map(|index| count - 1 - index).collect();
                prop_assert_eq!(one.offered(), mirrored);
            }
        }
    }
}
