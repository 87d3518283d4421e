use proptest::prelude::*;

use super::*;

const RULE: Rule = Rule { interval_ms: 1000, missed: 3, unreachable: Unreachable::Out };
const LIMIT_MS: u64 = 3000;
const SOURCE: Source<'_> = Source { exporter: "e", interval_ms: 0 };
const OTHER: Source<'_> = Source { exporter: "other", interval_ms: 0 };

/// A failed reading is told of when its tries have been used up.
const TRIES_MS: u64 = 20;

/// A service judged four times a second, out of step with the reports.
struct Service {
    now_ms: u64,
    rule: Rule,
    hears_all: bool,
    instances: Vec<Instance>,
}

#[derive(Clone, Default)]
struct Instance {
    reach: Reach,
    /// When it was read, or the exporter began to ask it.
    read_ms: u64,
}

impl Service {
    fn new(instances: usize) -> Self {
        let instances = vec![Instance::default(); instances];
        Self { now_ms: 0, rule: RULE, hears_all: true, instances }
    }

    fn add(&mut self) {
        self.instances.push(Instance { read_ms: self.now_ms, ..Instance::default() });
    }

    /// Passes time in which each instance is told of once a second, each a
    /// little after the one before it: as well, or as unreachable. Returns
    /// every set of instances in the ranking that was seen on the way.
    fn pass(&mut self, ms: u64, well: &[usize]) -> Vec<Vec<usize>> {
        self.pass_with(ms, |service, index| match well.contains(&index) {
            true => service.tell_good(index),
            false => service.tell_unreachable(index),
        })
    }

    /// Passes time in which nothing is told.
    fn pass_in_silence(&mut self, ms: u64) -> Vec<Vec<usize>> {
        self.pass_with(ms, |_, _| {})
    }

    fn pass_with(&mut self, ms: u64, tell: impl Fn(&mut Self, usize)) -> Vec<Vec<usize>> {
        let mut seen: Vec<Vec<usize>> = Vec::new();
        for _ in 0..ms / 10 {
            self.now_ms += 10;
            for index in 0..self.instances.len() {
                if self.now_ms % 1000 == (100 + 90 * index as u64) % 1000 {
                    tell(self, index);
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

    fn tell_good(&mut self, index: usize) {
        let Instance { reach, read_ms } = &mut self.instances[index];
        *read_ms = self.now_ms;
        reach.good(self.rule, SOURCE, self.now_ms, self.now_ms);
    }

    fn tell_unreachable(&mut self, index: usize) {
        let Instance { reach, read_ms } = &mut self.instances[index];
        let silent_ms = self.now_ms - *read_ms + TRIES_MS;
        reach.unreachable(self.rule, SOURCE, silent_ms, self.now_ms);
    }

    fn judge(&mut self) -> bool {
        let mut instances: Vec<_> = self.instances.iter_mut().map(|it| &mut it.reach).collect();
        judge(self.rule, self.hears_all, self.now_ms, &mut instances)
    }

    fn offered(&self) -> Vec<usize> {
        (0..self.instances.len()).filter(|i| !self.instances[*i].reach.is_out()).collect()
    }
}

#[test]
fn one_unreachable_instance_of_three_leaves_after_the_limit_and_not_before() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1, 2]);
    // It was read 720 ms ago, and is told of 20 ms before it is judged.
    assert_eq!(service.pass(2250, &[0, 1]), [[0, 1, 2]]);
    assert_eq!(service.pass(250, &[0, 1]), [[0, 1]]);
}

#[test]
fn no_silence_puts_anyone_out_however_long_and_whoever_is_silent() {
    for silent in [&[2][..], &[1, 2], &[0, 1, 2]] {
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1, 2]);
        let seen = service.pass_with(600_000, |service, index| {
            if !silent.contains(&index) {
                service.tell_good(index);
            }
        });
        assert_eq!(seen, [[0, 1, 2]]);
    }
}

#[test]
fn an_unreachable_instance_does_not_leave_by_time_when_its_exporter_dies() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1, 2]);
    service.pass(2000, &[0, 1]);
    assert_eq!(service.pass_in_silence(600_000), [[0, 1, 2]]);
}

#[test]
fn an_exporter_that_takes_over_begins_to_count_anew_and_brings_nobody_back() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1]);
    assert_eq!(service.offered(), [0, 1]);
    service.instances[2].reach.unreachable(RULE, OTHER, 500, service.now_ms);
    assert!(!service.judge());
    assert_eq!(service.offered(), [0, 1]);
}

#[test]
fn it_is_back_with_its_next_good_report() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1]);
    assert_eq!(service.offered(), [0, 1]);
    service.tell_good(2);
    assert_eq!(service.offered(), [0, 1, 2]);
}

#[test]
fn a_good_report_with_old_figures_does_not_bring_it_back() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1]);
    let now_ms = service.now_ms;
    service.instances[2].reach.good(RULE, SOURCE, now_ms - LIMIT_MS - 1, now_ms);
    assert!(!service.judge());
    assert_eq!(service.offered(), [0, 1]);
}

#[test]
fn older_figures_do_not_take_back_newer_ones() {
    let mut reach = Reach::default();
    reach.good(RULE, SOURCE, 10_000, 10_000);
    reach.good(RULE, SOURCE, 5000, 10_000);
    assert!(reach.is_fresh(RULE, 13_000) && !reach.is_fresh(RULE, 13_001));
}

#[test]
fn a_report_is_fresh_for_as_many_of_its_own_intervals_and_for_half_an_hour_at_most() {
    let fresh_for = |interval_ms| {
        let mut reach = Reach::default();
        let source = Source { interval_ms, ..SOURCE };
        reach.good(RULE, source, 0, 0);
        let fresh_for_ms = RULE.fresh_for_ms(source);
        assert!(reach.is_fresh(RULE, fresh_for_ms) && !reach.is_fresh(RULE, fresh_for_ms + 1));
        fresh_for_ms
    };
    assert_eq!(fresh_for(500), 3000);
    assert_eq!(fresh_for(2000), 6000);
    assert_eq!(fresh_for(86_400_000), 30 * 60 * 1000);
}

#[test]
fn the_limit_is_in_intervals_of_whoever_asks_and_half_an_hour_at_most() {
    for (interval_ms, limit_ms) in
        [(0, LIMIT_MS), (500, LIMIT_MS), (5000, 15_000), (86_400_000, 30 * 60 * 1000)]
    {
        let source = Source { interval_ms, ..SOURCE };
        let mut service = Service::new(3);
        service.pass(10_000, &[0, 1]);
        service.instances[2].reach = Reach::default();
        service.instances[2].reach.unreachable(RULE, source, limit_ms, service.now_ms);
        assert!(!service.judge(), "{interval_ms} ms");
        service.instances[2].reach.unreachable(RULE, source, limit_ms + 1, service.now_ms);
        assert!(service.judge(), "{interval_ms} ms");
    }
}

#[test]
fn when_an_exporter_that_asks_less_often_loses_all_nobody_leaves_nor_as_it_recovers() {
    let rare = Source { interval_ms: 5000, ..SOURCE };
    let all: Vec<usize> = (0..10).collect();
    let mut service = Service::new(10);
    let tell = |well: usize| {
        move |service: &mut Service, index: usize| {
            let now_ms = service.now_ms;
            let Instance { reach, read_ms } = &mut service.instances[index];
            if !(now_ms / 1000 + index as u64).is_multiple_of(5) {
                return;
            }
            if index < well {
                *read_ms = now_ms;
                reach.good(RULE, rare, now_ms, now_ms);
            } else {
                reach.unreachable(RULE, rare, now_ms - *read_ms + TRIES_MS, now_ms);
            }
        }
    };
    service.pass_with(20_000, tell(10));
    assert_eq!(service.pass_with(60_000, tell(0)), [&all[..]]);
    // Six at first, which is most of them.
    assert_eq!(service.pass_with(12_500, tell(6)), [&all[..]]);
    assert_eq!(service.pass_with(10_000, tell(10)), [&all[..]]);
    service.pass_with(25_000, tell(9));
    assert_eq!(service.offered(), all[..9]);
}

#[test]
fn an_instance_is_fresh_while_it_is_unreachable_for_less_than_the_limit() {
    let mut reach = Reach::default();
    reach.good(RULE, Source { interval_ms: 3000, ..SOURCE }, 0, 0);
    reach.unreachable(RULE, SOURCE, LIMIT_MS, 3000);
    assert!(reach.is_fresh(RULE, 3000));
    reach.unreachable(RULE, SOURCE, LIMIT_MS + 1, 3001);
    assert!(!reach.is_fresh(RULE, 3001));
}

#[test]
fn one_that_wants_no_requests_leaves_at_once_and_is_back_when_it_wants_some() {
    let mut service = Service::new(2);
    service.pass(10_000, &[0, 1]);
    service.instances[1].reach.not_serving();
    assert!(service.judge());
    assert_eq!(service.offered(), [0]);
    // Its process ends after that, and the next one begins.
    service.pass(1000, &[0]);
    assert_eq!(service.offered(), [0]);
    service.tell_good(1);
    assert_eq!(service.offered(), [0, 1]);
}

#[test]
fn when_no_instance_wants_requests_all_that_can_be_reached_are_offered() {
    let mut service = Service::new(4);
    service.pass(10_000, &[0, 1, 2]);
    for index in [0, 1] {
        service.instances[index].reach.not_serving();
        service.judge();
    }
    assert_eq!(service.offered(), [2]);
    service.instances[2].reach.not_serving();
    assert!(service.judge());
    assert_eq!(service.offered(), [0, 1, 2]);
    assert!(!service.judge());
    service.tell_good(1);
    service.judge();
    assert_eq!(service.offered(), [1]);
}

#[test]
fn where_unreachable_ones_are_kept_they_stay_and_others_still_leave_by_their_own_word() {
    let mut service = Service::new(3);
    service.rule.unreachable = Unreachable::Keep;
    service.pass(10_000, &[0, 1, 2]);
    assert_eq!(service.pass(60_000, &[0, 1]), [[0, 1, 2]]);
    assert!(!service.instances[2].reach.is_fresh(RULE, service.now_ms));
    service.instances[1].reach.not_serving();
    service.judge();
    assert_eq!(service.offered(), [0, 2]);
}

#[test]
fn when_the_exporter_loses_all_nobody_leaves_even_for_a_moment() {
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
fn when_an_exporter_that_tells_of_each_but_now_and_then_loses_all_nobody_leaves() {
    let mut service = Service::new(10);
    let all: Vec<usize> = (0..10).collect();
    service.pass(10_000, &all);
    let each_third_second = |service: &mut Service, index| {
        if (service.now_ms / 1000 + index as u64).is_multiple_of(3) {
            service.tell_unreachable(index);
        }
    };
    assert_eq!(service.pass_with(60_000, each_third_second), [all]);
}

#[test]
fn when_the_exporter_recovers_nobody_leaves_even_for_a_moment() {
    let mut service = Service::new(10);
    let all: Vec<usize> = (0..10).collect();
    service.pass(10_000, &all);
    service.pass(60_000, &[]);
    // Six at first, which is most of them, and the others a little later.
    assert_eq!(service.pass(2500, &[0, 1, 2, 3, 4, 5]), [&all[..]]);
    assert_eq!(service.pass(10_000, &all), [all]);
}

#[test]
fn those_that_stay_unreachable_after_the_exporter_recovered_leave() {
    let mut service = Service::new(5);
    service.pass(10_000, &[0, 1, 2, 3, 4]);
    service.pass(60_000, &[]);
    service.pass(6000, &[0, 1, 2]);
    assert_eq!(service.offered(), [0, 1, 2]);
}

#[test]
fn an_exporter_that_never_reached_any_costs_nobody_its_place() {
    let mut service = Service::new(1);
    for instances in 1..=5 {
        let all: Vec<usize> = (0..instances).collect();
        assert_eq!(service.pass(20_000, &[]), [all]);
        service.add();
    }
}

#[test]
fn instances_that_die_one_after_another_leave_one_after_another_but_the_last() {
    let mut service = Service::new(4);
    service.pass(10_000, &[0, 1, 2, 3]);
    for alive in (0..4).rev() {
        let well: Vec<usize> = (0..alive).collect();
        service.pass(10_000, &well);
        assert_eq!(service.offered(), if alive == 0 { vec![0] } else { well });
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
fn one_that_was_out_before_the_exporter_lost_the_others_stays_out() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1]);
    assert_eq!(service.pass(60_000, &[]), [[0, 1]]);
    assert_eq!(service.pass_in_silence(60_000), [[0, 1]]);
}

#[test]
fn one_that_registers_while_the_exporter_reaches_none_stays() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1, 2]);
    service.pass(20_000, &[]);
    service.add();
    assert_eq!(service.pass(20_000, &[]), [[0, 1, 2, 3]]);
    // The older ones are replaced, and still nobody is to blame.
    service.instances.drain(..2);
    assert_eq!(service.pass(20_000, &[]), [[0, 1]]);
}

#[test]
fn unreachable_ones_return_when_all_that_outlived_them_have_left() {
    let mut service = Service::new(2);
    service.pass(10_000, &[0]);
    assert_eq!(service.offered(), [0]);
    service.instances.remove(0);
    assert!(service.instances[0].reach.is_out());
    assert!(service.judge());
    assert_eq!(service.offered(), [0]);
    assert_eq!(service.pass(20_000, &[]), [[0]]);
}

#[test]
fn nobody_leaves_while_there_is_no_watch_nor_just_after() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1, 2]);
    service.pass(1500, &[0, 1]);
    service.hears_all = false;
    service.instances[1].reach.not_serving();
    assert_eq!(service.pass_in_silence(1000), [[0, 1, 2]]);
    assert_eq!(service.pass(60_000, &[0, 1]), [[0, 1, 2]]);
    service.hears_all = true;
    assert_eq!(service.pass(2500, &[0, 1]), [[0, 1, 2]]);
    service.pass(2500, &[0, 1]);
    assert_eq!(service.offered(), [0, 1]);
}

#[test]
fn one_exporter_that_reaches_an_instance_is_believed_over_one_that_does_not() {
    let mut service = Service::new(3);
    service.pass(10_000, &[0, 1, 2]);
    for _ in 0..60 {
        service.instances[2].reach.good(RULE, OTHER, service.now_ms, service.now_ms);
        assert_eq!(service.pass(1000, &[0, 1]), [[0, 1, 2]]);
    }
    service.pass(10_000, &[0, 1]);
    assert_eq!(service.offered(), [0, 1], "until the other one does not reach it either");
}

#[test]
fn another_exporter_s_figures_count_when_the_first_one_s_are_overdue() {
    let mut reach = Reach::default();
    assert!(!reach.is_held_from("other", 0));
    reach.good(RULE, Source { interval_ms: 3000, ..SOURCE }, 0, 0);
    assert!(reach.is_held_from("other", 6000) && !reach.is_held_from("other", 6001));
    assert!(!reach.is_held_from("e", 0));
    // Or when the first one does not reach the instance any more.
    reach.unreachable(RULE, SOURCE, 1000, 1000);
    assert!(!reach.is_held_from("other", 1000));
}

/// What is told of an instance in a second, if anything.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    Nothing,
    Good,
    Unreachable,
    NotServing,
}

/// For each second, for each instance: what is told of it.
fn any_history() -> impl Strategy<Value = Vec<Vec<Told>>> {
    let told = prop_oneof![
        4 => Just(Told::Good),
        3 => Just(Told::Unreachable),
        2 => Just(Told::Nothing),
        1 => Just(Told::NotServing),
    ];
    (1..8usize).prop_flat_map(move |instances| {
        let second = proptest::collection::vec(told.clone(), instances);
        let outage = Just(vec![Told::Unreachable; instances]);
        proptest::collection::vec(prop_oneof![3 => second, 1 => outage], 1..40)
    })
}

impl Service {
    fn tell(&mut self, index: usize, told: Told) {
        match told {
            Told::Nothing => {}
            Told::Good => self.tell_good(index),
            Told::Unreachable => self.tell_unreachable(index),
            Told::NotServing => self.instances[index].reach.not_serving(),
        }
    }
}

proptest! {
    #[test]
    fn nobody_leaves_unspoken_of_and_never_do_more_of_the_unreachable_leave_than_stay(
        history in any_history(),
    ) {
        let mut service = Service::new(history[0].len());
        for second in history {
            service.now_ms += 1000;
            let before = service.offered();
            for (index, told) in second.iter().enumerate() {
                service.tell(index, *told);
            }
            service.judge();
            let after = service.offered();
            prop_assert!(!after.is_empty());
            let left = |told: Told| {
                let has_left = |index: &&usize| {
                    !after.contains(index) && second[**index] == told
                };
                before.iter().filter(has_left).count()
            };
            prop_assert_eq!(left(Told::Good), 0);
            for index in before.iter().filter(|index| second[**index] == Told::Nothing) {
                // It had said so before, when nobody else was there.
                let is_known = service.instances[*index].reach.is_not_serving();
                prop_assert!(after.contains(index) || is_known);
            }
            prop_assert!(left(Told::Unreachable) <= after.len());
            for Instance { reach, .. } in &service.instances {
                prop_assert!(!(reach.has_fresh(RULE, service.now_ms)
                    && reach.against.is_none()
                    && reach.is_out()));
            }
            // Judging again at the same time changes nothing.
            prop_assert!(!service.judge());
        }
    }

    #[test]
    fn time_alone_changes_nothing(history in any_history(), ms in 0..600_000u64) {
        let mut service = Service::new(history[0].len());
        for second in history {
            service.now_ms += 1000;
            for (index, told) in second.iter().enumerate() {
                service.tell(index, *told);
            }
            service.judge();
        }
        service.now_ms += ms;
        prop_assert!(!service.judge());
    }

    #[test]
    fn the_order_of_the_instances_does_not_matter(history in any_history()) {
        let count = history[0].len();
        let mut one = Service::new(count);
        let mut other = Service::new(count);
        for second in history {
            one.now_ms += 1000;
            other.now_ms += 1000;
            for (index, told) in second.iter().enumerate() {
                one.tell(index, *told);
                other.tell(count - 1 - index, *told);
            }
            one.judge();
            other.judge();
            let mirrored: Vec<usize> =
                other.offered().into_iter().rev().map(|index| count - 1 - index).collect();
            prop_assert_eq!(one.offered(), mirrored);
        }
    }
}
