use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::board::Outcome;

fn config(health: &str) -> Config {
    let text = format!(r#"{{"services": {{"chat": {{"health": {health}}}}}}}"#);
    Config::parse(&text).unwrap()
}

fn sent(counts: &[(u64, u64)]) -> Vec<Sent> {
    let sent = |(index, &(requests, failures))| Sent { index, requests, failures };
    counts.iter().enumerate().map(sent).collect()
}

fn rare(counts: &[(u64, u64)]) -> Vec<usize> {
    rare_successes(&SuccessRateConfig::default(), &sent(counts))
}

fn frequent(counts: &[(u64, u64)]) -> Vec<usize> {
    frequent_failures(&FailurePercentageConfig::default(), &sent(counts))
}

#[test]
fn who_succeeds_less_often_than_the_others_is_an_outlier() {
    let good = (1000, 10);
    assert_eq!(rare(&[good, good, (1000, 200), good, good]), [2]);
    assert_eq!(rare(&[good; 5]), [0; 0]);
    assert_eq!(rare(&[(1000, 200); 5]), [0; 0], "they all fail alike");
}

#[test]
fn with_few_instances_or_few_requests_nobody_is_compared() {
    let (good, bad) = ((1000, 10), (1000, 900));
    assert_eq!(rare(&[good, good, bad, good]), [0; 0]);
    assert_eq!(frequent(&[good, good, bad, good]), [0; 0]);
    assert_eq!(rare(&[good, good, bad, good, (99, 0)]), [0; 0], "one has too few");
    assert_eq!(frequent(&[good, good, bad, good, (49, 0)]), [0; 0]);
    assert_eq!(frequent(&[good, good, bad, good, (50, 0)]), [2]);
    assert_eq!(rare(&[(100, 0), (100, 0), (100, 0), (100, 0), (100, 0), (99, 99)]), [0; 0]);
}

#[test]
fn a_failure_that_chance_explains_makes_no_outlier_however_alike_the_others_are() {
    assert_eq!(rare(&[(1000, 0), (1000, 0), (1000, 1), (1000, 0), (1000, 0)]), [0; 0]);
    assert_eq!(rare(&[(1000, 0), (1000, 0), (1000, 50), (1000, 0), (1000, 0)]), [2]);
}

#[test]
fn the_failure_percentage_is_reached_at_its_threshold() {
    let good = (100, 0);
    assert_eq!(frequent(&[good, good, good, good, (100, 85)]), [4]);
    assert_eq!(frequent(&[good, good, good, good, (100, 84)]), [0; 0]);
    assert_eq!(frequent(&[(100, 90); 5]), [0, 1, 2, 3, 4], "however the others are");
}

#[test]
fn a_rule_of_0_ejects_nobody() {
    let counts = sent(&[(100, 0), (100, 0), (100, 0), (100, 0), (100, 100)]);
    let never = SuccessRateConfig { stdev: 0.0, ..SuccessRateConfig::default() };
    assert_eq!(rare_successes(&never, &counts), [0; 0]);
    let never = FailurePercentageConfig { threshold: 0.0, ..FailurePercentageConfig::default() };
    assert_eq!(frequent_failures(&never, &counts), [0; 0]);
}

#[test]
fn a_tenth_may_be_ejected_and_one_in_any_case() {
    let most = |percent, instances| {
        most_ejected(&HealthConfig { max_ejected: percent, ..HealthConfig::default() }, instances)
    };
    assert_eq!([1, 2, 10, 19, 20, 100].map(|it| most(10, it)), [1, 1, 1, 1, 2, 10]);
    assert_eq!((most(0, 100), most(100, 3)), (0, 3));
}

#[test]
fn so_many_are_left_out_until_too_few_are_healthy() {
    assert_eq!(most_without_panic(10, 0, 50), Some(5));
    assert_eq!(most_without_panic(10, 2, 50), Some(3));
    assert_eq!(most_without_panic(10, 5, 50), Some(0));
    assert_eq!(most_without_panic(10, 6, 50), None);
    assert_eq!(most_without_panic(3, 0, 50), Some(1));
    assert_eq!(most_without_panic(1, 0, 50), Some(0));
    assert_eq!(most_without_panic(1, 0, 0), Some(1), "0 is never");
    assert_eq!(most_without_panic(0, 0, 50), Some(0));
}

#[test]
fn an_ejection_lasts_longer_each_time_up_to_the_longest() {
    let config = HealthConfig::default();
    let seconds = |times| ejection_ms(&config, times, 0.0) / 1000;
    assert_eq!([0, 1, 2, 3, 10, 11, u32::MAX].map(seconds), [30, 30, 60, 90, 300, 300, 300]);
    assert_eq!(ejection_ms(&config, 1, 1.0), 33_000, "a tenth longer by chance");
    let long = HealthConfig { base_ejection: Duration::from_secs(400), ..config };
    assert_eq!(ejection_ms(&long, 2, 0.0), 400_000, "the first one is never cut");
}

proptest! {
    #[test]
    fn an_outlier_fails_more_than_the_mean_and_most_are_none(
        counts in proptest::collection::vec((100_u64..2000, 0.0..=1.0f64), 5..30),
    ) {
        let counts: Vec<_> =
            counts.iter().map(|&(n, part)| (n, (n as f64 * part) as u64)).collect();
        let outliers = rare(&counts);
        let failed: Vec<f64> = sent(&counts).iter().map(Sent::failed).collect();
        let mean = failed.iter().sum::<f64>() / failed.len() as f64;
        prop_assert!(outliers.iter().all(|&index| failed[index] > mean));
        // Chebyshev: no more than 1 / 1.9² are beyond 1.9 standard deviations.
        prop_assert!(outliers.len() as f64 <= failed.len() as f64 / (1.9 * 1.9));
    }

    #[test]
    fn the_bound_and_the_panic_leave_no_fewer_than_they_promise(
        offered in 1_usize..500, failing in 0_usize..500, percent in 0_u32..=100,
    ) {
        if let Some(most) = most_without_panic(offered, failing, percent) {
            let healthy = offered - failing - most as usize;
            prop_assert!(healthy * 100 >= offered * percent as usize);
            let one_more = healthy.checked_sub(1);
            prop_assert!(one_more.is_none_or(|it| it * 100 < offered * percent as usize));
        }
    }
}

/// A service of instances a, b, …, and what looks at it.
struct World {
    board: Board,
    id: ServiceId,
    health: Health,
    instances: Vec<InstanceValue>,
}

impl World {
    fn new(health: &str, count: u8) -> Self {
        let board = Board::map_for_tests();
        let id = board.service("chat").unwrap();
        let instance = |index: u8| {
            let id_text = char::from(b'a' + index).to_string();
            let addr = ([127, 0, 0, 1], 9000 + u16::from(index)).into();
            let identity = board::identity("chat", &id_text, &addr);
            let slot = board.claim_slot(identity, id, 0, 0).unwrap();
            InstanceValue { id: id_text, addr, zone: String::new(), weight: 1.0, slot }
        };
        let instances = (0..count).map(instance).collect();
        let health = Health::new(&config(health), board, SmallRng::seed_from_u64(7));
        World { board, id, health, instances }
    }

    fn look(&mut self, now_ms: u64) -> bool {
        self.health.look("chat", self.id, &self.instances, now_ms)
    }

    fn identity(&self, index: usize) -> u64 {
        let instance = &self.instances[index];
        board::identity("chat", &instance.id, &instance.addr)
    }

    fn send(&self, index: usize, requests: u64, failures: u64) {
        let (slot, identity) = (self.instances[index].slot, self.identity(index));
        for number in 0..requests {
            let outcome = if number < failures { Outcome::Failed } else { Outcome::Answered };
            let open = self.board.begin_request(None, slot, identity, 0);
            self.board.end_request(None, open, outcome, 0);
        }
    }

    fn eject(&mut self, index: usize, now_ms: u64) -> bool {
        let who = (self.instances[index].slot, self.identity(index));
        let config = self.health.config("chat").clone();
        let mut rng = SmallRng::seed_from_u64(now_ms);
        let why = Reason::ConsecutiveFailures;
        eject(self.board, &config, who, self.instances.len(), why, now_ms, &mut rng)
    }

    fn ejected(&self) -> Vec<&str> {
        let is = |it: &&InstanceValue| self.board.ejection(it.slot).is_some();
        self.instances.iter().filter(is).map(|it| it.id.as_str()).collect()
    }

    fn tidy(&mut self, now_ms: u64) {
        let World { id, health, instances, .. } = self;
        health.tidy(std::iter::once(("chat", *id, instances.as_slice())), now_ms);
    }
}

#[test]
fn each_interval_is_judged_by_what_came_in_it() {
    let mut world = World::new(r#"{"interval": "10s"}"#, 6);
    world.send(0, 200, 200); // before anybody looked
    assert!(!world.look(1000));
    for index in 0..6 {
        world.send(index, 200, if index == 3 { 60 } else { 0 });
    }
    assert!(!world.look(10_999), "the interval is not over");
    assert!(world.look(11_000));
    assert_eq!(world.ejected(), ["d"]);
    assert_eq!(world.board.ejections(world.id), [0, 1, 0]);
    assert!(!world.look(21_000), "and nothing came since");
}

#[test]
fn with_the_success_rate_off_the_failure_percentage_ejects() {
    let mut world = World::new(r#"{"success_rate": {"stdev": 0}}"#, 6);
    world.look(0);
    for index in 0..6 {
        world.send(index, 100, if index == 3 { 85 } else { 84 });
    }
    assert!(world.look(10_000));
    assert_eq!((world.ejected(), world.board.ejections(world.id)), (vec!["d"], [0, 0, 1]));
}

#[test]
fn no_more_are_ejected_than_may_be_by_whatever_rule() {
    let mut world = World::new(r#"{"max_ejected": 10}"#, 20);
    world.look(0);
    assert!(world.eject(19, 0));
    for index in 0..19 {
        world.send(index, 100, if index < 3 { 100 } else { 0 });
    }
    world.look(10_000);
    assert_eq!(world.ejected(), ["a", "t"]);
    assert!(!world.eject(10, 10_000));
}

#[test]
fn the_ejected_come_back_at_their_time_and_are_ejected_for_longer_if_they_fail_again() {
    let health = r#"{"base_ejection": "1s", "interval": "10s", "panic": 0}"#;
    let mut world = World::new(health, 3);
    assert!(world.eject(0, 0));
    assert!(world.look(1), "a new ejection is to be published");
    assert!(!world.look(500), "once");
    let until = |world: &World| world.board.ejection(world.instances[0].slot).unwrap().until_ms;
    assert!((1000..=1100).contains(&until(&world)));
    assert!(world.look(1101), "and so is its end");
    assert_eq!(world.ejected(), [""; 0]);
    assert!(world.eject(0, 2000));
    assert!((4000..=4200).contains(&until(&world)), "{}", until(&world));
    world.look(4300);
    // Two clean intervals later nothing is left of it.
    for now_ms in [15_000, 30_000] {
        world.look(now_ms);
    }
    assert!(world.eject(0, 40_000));
    assert!((41_000..=41_100).contains(&until(&world)), "{}", until(&world));
}

#[test]
fn an_ejection_that_ended_before_anybody_looked_is_told_as_both() {
    let mut world = World::new(r#"{"base_ejection": "1s", "panic": 0}"#, 3);
    assert!(world.eject(0, 0));
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    assert!(tracing::subscriber::with_default(subscriber, || world.look(5000)));
    assert_eq!(world.ejected(), [""; 0]);
    let text = log.0.lock().unwrap();
    let text = str::from_utf8(&text).unwrap();
    let [out, back] = ["instance a is ejected", "instance a gets requests again"]
        .map(|line| text.find(line).unwrap_or_else(|| panic!("no {line}: {text}")));
    assert!(out < back, "{text}");
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn gateways_that_ejected_together_do_not_take_back_together() {
    let config = HealthConfig::default();
    let time = |seed| ejection_ms(&config, 1, SmallRng::seed_from_u64(seed).random());
    let times: HashSet<u64> = (0..20).map(time).collect();
    assert!(times.len() > 15 && times.iter().all(|ms| (30_000..=33_000).contains(ms)));
}

#[test]
fn who_is_gone_takes_no_place_among_the_ejected() {
    let mut world = World::new(r#"{"max_ejected": 10}"#, 3);
    assert!(world.eject(0, 0) && !world.eject(1, 0));
    world.instances.remove(0);
    world.look(1);
    world.tidy(1);
    assert_eq!(world.board.ejected(world.id), 0);
    assert!(world.eject(0, 2), "b may be");
    world.tidy(3);
    assert_eq!(world.ejected(), ["b"], "one that is there stays ejected");
}

#[test]
fn a_count_that_stays_wrong_is_mended() {
    let mut world = World::new("{}", 3);
    world.look(0);
    let fourth = ([127, 0, 0, 1], 9100).into();
    let identity = board::identity("chat", "x", &fourth);
    let slot = world.board.claim_slot(identity, world.id, 0, 0).unwrap();
    assert!(world.board.eject((slot, identity), 1, Reason::SuccessRate, 0, |_| 1000));
    world.board.mend_ejected(world.id, 1, 2); // as if one had died over it
    world.tidy(0); // x is gone
    assert_eq!(world.board.ejected(world.id), 1);
    world.tidy(1000);
    assert_eq!(world.board.ejected(world.id), 0);
}
