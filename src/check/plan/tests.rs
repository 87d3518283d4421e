use proptest::prelude::*;
use rand::SeedableRng;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> CheckConfig {
    CheckConfig { tcp: true, interval: 2 * SECOND, ..CheckConfig::default() }
}

fn instance(number: u16) -> Instance {
    Instance {
        id: format!("i{number}"),
        addr: ([10, 0, 0, 1], number).into(),
        weight: 1.0,
        zone: String::new(),
        labels: Default::default(),
        status: None,
        drain: false,
        max_in_flight: 0,
    }
}

fn instances(count: u16) -> Vec<Instance> {
    (1..=count).map(instance).collect()
}

/// A plan that checks these, of which nothing is known.
fn plan(instances: &[Instance], now: Instant) -> Plan {
    let mut plan = Plan::new(SmallRng::seed_from_u64(7));
    plan.follow("chat", &config(), instances.iter(), |_| None, now);
    plan
}

/// Makes the next check, at its time, with this result; whether the instance turned.
fn check_next(plan: &mut Plan, now: &mut Instant, passed: Option<bool>) -> bool {
    *now = plan.due().expect("somebody waits").max(*now);
    let job = plan.take_due(*now).expect("it is due");
    plan.finish(job, passed, *now).expect("it is there").has_turned
}

fn is_failing(plan: &Plan, instance: &Instance) -> bool {
    plan.is_failing("chat", &instance.id, instance.addr)
}

#[test]
fn an_instance_goes_out_after_fall_failures_in_a_row_and_comes_back_after_rise_good_ones() {
    let (a, mut now) = (instance(1), Instant::now());
    let mut plan = plan(std::slice::from_ref(&a), now);
    let table = [
        (true, false, false),
        (false, false, false),
        (false, false, false),
        (true, false, false), // breaks the row
        (false, false, false),
        (false, false, false),
        (false, true, true),
        (false, false, true),
        (true, false, true),
        (false, false, true), // breaks it, too
        (true, false, true),
        (true, true, false),
        (false, false, false),
    ];
    for (step, (passed, turns, fails)) in table.into_iter().enumerate() {
        assert_eq!(check_next(&mut plan, &mut now, Some(passed)), turns, "{step}");
        assert_eq!(is_failing(&plan, &a), fails, "{step}");
    }
}

#[test]
fn who_was_never_checked_is_in_and_the_first_check_decides() {
    let (a, mut now) = (instance(1), Instant::now());
    let mut plan = plan(std::slice::from_ref(&a), now);
    assert!(!is_failing(&plan, &a));
    assert_eq!(plan.count("chat"), [0, 0, 1]);
    assert!(check_next(&mut plan, &mut now, Some(false)));
    assert!(is_failing(&plan, &a));
    assert_eq!(plan.count("chat"), [0, 1, 0]);
    assert!(!check_next(&mut plan, &mut now, Some(true)), "one is not enough to come back");
    assert!(check_next(&mut plan, &mut now, Some(true)));
    assert_eq!(plan.count("chat"), [1, 0, 0]);
}

#[test]
fn what_was_known_before_a_reload_stands_until_as_many_checks_speak_against_it() {
    let (all, mut now) = (instances(2), Instant::now());
    let failed = |it: &Instance| Some(it.id == "i1");
    let mut plan = Plan::new(SmallRng::seed_from_u64(7));
    plan.follow("chat", &config(), all[..1].iter(), failed, now);
    assert!(is_failing(&plan, &all[0]));
    assert!(!check_next(&mut plan, &mut now, Some(true)));
    assert!(check_next(&mut plan, &mut now, Some(true)));

    plan.follow("chat", &config(), all[1..].iter(), failed, now);
    assert!(!is_failing(&plan, &all[1]));
    assert!(!check_next(&mut plan, &mut now, Some(false)));
    assert!(!check_next(&mut plan, &mut now, Some(false)));
    assert!(check_next(&mut plan, &mut now, Some(false)));
}

#[test]
fn who_was_not_checked_yet_is_out_if_it_becomes_known_that_it_failed() {
    let (all, mut now) = (instances(2), Instant::now());
    let mut plan = plan(&all, now);
    let due = plan.due();
    plan.follow("chat", &config(), all.iter(), |it| Some(it.id == "i1"), now);
    assert_eq!((plan.count("chat"), plan.due()), ([0, 1, 1], due), "its turn stays");
    assert!(is_failing(&plan, &all[0]));
    for _ in 0..2 {
        check_next(&mut plan, &mut now, Some(true));
    }
    plan.follow("chat", &config(), all.iter(), |_| Some(true), now);
    assert_eq!(plan.count("chat"), [1, 1, 0], "what was checked here counts for more");
    for _ in 0..20 {
        check_next(&mut plan, &mut now, Some(true));
    }
    assert_eq!((plan.count("chat"), plan.lanes[1].waiting.len()), ([2, 0, 0], 0));
}

#[test]
fn a_check_that_could_not_be_made_says_nothing_and_is_made_again() {
    let (a, mut now) = (instance(1), Instant::now());
    let mut plan = plan(std::slice::from_ref(&a), now);
    for _ in 0..10 {
        assert!(!check_next(&mut plan, &mut now, None));
        assert_eq!(plan.count("chat"), [0, 0, 1]);
    }
    check_next(&mut plan, &mut now, Some(true));
    check_next(&mut plan, &mut now, Some(false));
    check_next(&mut plan, &mut now, Some(false));
    assert!(!check_next(&mut plan, &mut now, None));
    assert!(check_next(&mut plan, &mut now, Some(false)), "neither does it break a row");
}

#[test]
fn another_address_is_another_instance_and_who_left_is_checked_no_more() {
    let (mut a, b, mut now) = (instance(1), instance(2), Instant::now());
    let mut plan = plan(&[a.clone(), b.clone()], now);
    check_next(&mut plan, &mut now, Some(false));
    check_next(&mut plan, &mut now, Some(false));
    assert!(is_failing(&plan, &a) && is_failing(&plan, &b));

    let old = a.addr;
    a.addr.set_port(9);
    plan.follow("chat", &config(), [&a].into_iter(), |_| None, now);
    assert_eq!(plan.count("chat"), [0, 0, 1]);
    assert!(!is_failing(&plan, &a) && !is_failing(&plan, &b));
    assert!(!plan.is_failing("chat", &a.id, old));
    now += 10 * SECOND;
    let job = plan.take_due(now).unwrap();
    assert_eq!((&*job.id, job.addr), ("i1", a.addr));
    assert!(plan.take_due(now).is_none());
    plan.finish(job, Some(false), now);
    assert!(is_failing(&plan, &a) && !plan.is_failing("chat", &a.id, old));
    now += 10 * SECOND;
    let job = plan.take_due(now).unwrap();
    plan.forget("chat");
    assert!(plan.finish(job, Some(false), now).is_none(), "it left while it was checked");
    assert_eq!((plan.due(), plan.targets.len(), plan.count("chat")), (None, 0, [0; 3]));
    assert_eq!(plan.lanes.iter().map(|lane| lane.under_way).sum::<usize>(), 0);
}

#[test]
fn who_stays_keeps_what_is_known_and_its_turn() {
    let (all, mut now) = (instances(2), Instant::now());
    let mut plan = plan(&all[..1], now);
    check_next(&mut plan, &mut now, Some(false));
    let due = plan.due();
    let changed = CheckConfig { rise: 1, ..config() };
    plan.follow("chat", &changed, all[..1].iter(), |_| None, now);
    assert_eq!((plan.due(), is_failing(&plan, &all[0])), (due, true));
    assert!(check_next(&mut plan, &mut now, Some(true)), "by the new configuration");
}

#[test]
fn another_port_is_checked_where_one_is_configured() {
    let (a, now) = (instance(1), Instant::now());
    let mut plan = Plan::new(SmallRng::seed_from_u64(7));
    let elsewhere = CheckConfig { port: 8081, ..config() };
    plan.follow("chat", &elsewhere, [&a].into_iter(), |_| None, now);
    let job = plan.take_due(now + SECOND).unwrap();
    assert_eq!(job.addr, "10.0.0.1:8081".parse().unwrap());
    plan.finish(job, Some(false), now);
    assert!(is_failing(&plan, &a), "by its own address");
}

fn refused(instance: &Instance) -> Failing {
    Failing { addr: instance.addr, since_unix_ms: 7, reason: "refused".into() }
}

fn assign(plan: &mut Plan, duties: &[(&str, Duty<'_>)], now: Instant) -> Vec<String> {
    let duties = duties.iter().map(|(id, duty)| (Arc::from(*id), *duty)).collect();
    let turned = plan.assign("chat", duties, false, now);
    turned.into_iter().map(|turned| turned.id.to_string()).collect()
}

#[test]
fn who_is_another_gateway_s_is_not_checked_and_stands_as_that_one_says() {
    let (all, now) = (instances(3), Instant::now());
    let mut plan = plan(&all, now);
    let failing = refused(&all[1]);
    let (passes, fails) =
        (Duty::Theirs("gw", Word::Passes), Duty::Theirs("gw", Word::Fails(&failing)));
    assert_eq!(assign(&mut plan, &[("i1", passes), ("i2", fails), ("i9", fails)], now), ["i2"]);
    assert_eq!((plan.count("chat"), plan.count_ours("chat")), ([1, 1, 1], 1));
    assert!(starts(&mut plan, now, 100 * SECOND).iter().all(|(_, id)| &**id == "i3"));
    assert!(plan.failing_here("chat").is_empty(), "that is the other one's to tell");
    assert_eq!(assign(&mut plan, &[("i2", fails)], now), [""; 0]);
    assert_eq!(assign(&mut plan, &[("i2", Duty::Theirs("gw", Word::None))], now), [""; 0]);
    assert!(is_failing(&plan, &all[1]));
    assert_eq!(assign(&mut plan, &[("i2", passes)], now), ["i2"]);
    assert!(!is_failing(&plan, &all[1]));
}

#[test]
fn who_becomes_ours_is_checked_soon_and_goes_on_from_what_is_known() {
    let (all, mut now) = (instances(2), Instant::now());
    let mut plan = plan(&all, now);
    let failing = refused(&all[0]);
    let fails = Duty::Theirs("gw", Word::Fails(&failing));
    assign(&mut plan, &[("i1", fails), ("i2", Duty::Theirs("gw", Word::Passes))], now);
    assert_eq!(plan.due(), None);
    assert_eq!(assign(&mut plan, &[("i1", Duty::Ours)], now), [""; 0]);
    assert!(plan.due().unwrap() <= now + FIRST_WITHIN);
    assert_eq!(plan.failing_here("chat"), BTreeMap::from([("i1".to_owned(), failing.clone())]));
    assert!(!check_next(&mut plan, &mut now, Some(true)), "one is not enough to come back");
    assert!(check_next(&mut plan, &mut now, Some(true)));

    assign(&mut plan, &[("i1", fails), ("i2", Duty::Ours)], now);
    assert!(!check_next(&mut plan, &mut now, Some(false)));
    assert!(!check_next(&mut plan, &mut now, Some(false)));
    assert!(check_next(&mut plan, &mut now, Some(false)));
    plan.explain("chat", "i2", "timeout", 9);
    let told = &plan.failing_here("chat")["i2"];
    assert_eq!((told.addr, &*told.reason, told.since_unix_ms), (all[1].addr, "timeout", 9));
}

#[test]
fn what_comes_of_a_check_counts_for_whose_instance_it_is_by_then() {
    let (a, mut now) = (instance(1), Instant::now());
    let mut plan = plan(std::slice::from_ref(&a), now);
    now += SECOND;
    let job = plan.take_due(now).unwrap();
    assign(&mut plan, &[("i1", Duty::Theirs("gw", Word::Passes))], now);
    assert!(!plan.finish(job, Some(false), now).unwrap().has_turned);
    assert!(!is_failing(&plan, &a) && plan.due().is_none());

    assign(&mut plan, &[("i1", Duty::Ours)], now);
    now += SECOND;
    let job = plan.take_due(now).unwrap();
    assign(&mut plan, &[("i1", Duty::Theirs("gw", Word::None))], now);
    assign(&mut plan, &[("i1", Duty::Ours)], now);
    assert_eq!(plan.due(), None, "it is being checked");
    plan.finish(job, Some(true), now);
    assert!(plan.due().is_some());
}

#[test]
fn where_there_is_time_the_first_checks_are_spread_over_an_interval() {
    let (all, now) = (instances(100), Instant::now());
    let mut plan = plan(&all, now);
    let each = |duty| all.iter().map(|it| (Arc::from(&*it.id), duty)).collect::<Vec<_>>();
    plan.assign("chat", each(Duty::Theirs("gw", Word::None)), false, now);
    plan.assign("chat", each(Duty::Ours), true, now);
    let begun = starts(&mut plan, now, 2 * SECOND);
    let late = begun.iter().filter(|(at, _)| *at > SECOND).count();
    assert!((30..=120).contains(&late), "{late}");
}

/// When each check begins, of checks that take no time, within so long.
fn starts(plan: &mut Plan, from: Instant, within: Duration) -> Vec<(Duration, Arc<str>)> {
    let mut starts = Vec::new();
    while let Some(due) = plan.due().filter(|due| *due < from + within) {
        let job = plan.take_due(due).unwrap();
        starts.push((due - from, Arc::clone(&job.id)));
        plan.finish(job, Some(true), due);
    }
    starts
}

#[test]
fn a_new_instance_is_checked_soon_and_thousands_within_an_interval() {
    let now = Instant::now();
    let alone = starts(&mut plan(&instances(1), now), now, FIRST_WITHIN);
    assert!(!alone.is_empty());
    let begun = starts(&mut plan(&instances(10_000), now), now, 2 * SECOND);
    let ids: HashSet<_> = begun.iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 10_000);
    for ms in (0..2000).step_by(100) {
        let part = Duration::from_millis(ms)..Duration::from_millis(ms + 100);
        let count = begun.iter().filter(|(at, _)| part.contains(at)).count();
        assert!(count < 1500, "{count} in the 100 ms from {ms} ms on");
    }
}

#[test]
fn two_gateways_do_not_check_in_step() {
    let now = Instant::now();
    let times = |seed| {
        let mut plan = Plan::new(SmallRng::seed_from_u64(seed));
        plan.follow("chat", &config(), instances(1).iter(), |_| None, now);
        starts(&mut plan, now, 100 * SECOND)
    };
    // Thirty gateways that hear of an instance at the same moment: after a while its
    // checks are evenly spread over the interval.
    let all: Vec<_> = (0..30).flat_map(times).map(|(at, _)| at).collect();
    for half_s in 20..200 {
        let part = Duration::from_millis(500) * half_s..Duration::from_millis(500) * (half_s + 1);
        let count = all.iter().filter(|at| part.contains(at)).count();
        assert!((1..=18).contains(&count), "{count} of 7.5 in half second {half_s}");
    }
}

#[test]
fn each_instance_is_checked_once_an_interval_up_to_a_tenth() {
    let now = Instant::now();
    let mut plan = plan(&instances(50), now);
    let mut last: HashMap<Arc<str>, (Duration, u32)> = HashMap::new();
    let begun = starts(&mut plan, now, 60 * SECOND);
    assert!((1450..1560).contains(&begun.len()), "{}", begun.len());
    for (at, id) in begun {
        let (before, count) = last.get(&id).copied().unwrap_or_default();
        if count > 1 {
            let gap = (at - before).as_secs_f64();
            assert!((1.8..=2.2).contains(&gap), "{gap}");
        }
        last.insert(id, (at, count + 1));
    }
}

#[test]
fn those_that_fail_hold_up_nobody_else_and_no_more_are_under_way_than_may_be() {
    let (all, mut now) = (instances(1000), Instant::now());
    let mut plan = Plan::new(SmallRng::seed_from_u64(7));
    let failed = |it: &Instance| Some(it.addr.port().is_multiple_of(2));
    plan.follow("chat", &config(), all.iter(), failed, now);
    now += 10 * SECOND;
    // None of them ends.
    let mut jobs = Vec::new();
    while let Some(job) = plan.take_due(now) {
        jobs.push(job);
    }
    let failing = jobs.iter().filter(|job| job.addr.port().is_multiple_of(2)).count();
    assert_eq!((jobs.len() - failing, failing), (AT_ONCE, FAILING_AT_ONCE));
    assert_eq!(plan.due(), None, "as long as there is no room");
    let good = jobs.iter().position(|job| job.addr.port() % 2 == 1).unwrap();
    plan.finish(jobs.swap_remove(good), Some(true), now);
    assert_eq!(plan.take_due(now).unwrap().addr.port() % 2, 1);
}

/// What an instance is by the rule, told without any state: by all its results.
fn expected(results: &[bool], rise: usize, fall: usize) -> bool {
    let mut fails = false;
    for end in 1..=results.len() {
        let tail = |count: usize, passed: bool| {
            end >= count && results[end - count..end].iter().all(|it| *it == passed)
        };
        fails = match fails {
            _ if end == 1 => !results[0],
            false => tail(fall, false),
            true => !tail(rise, true),
        };
    }
    fails
}

proptest! {
    #[test]
    fn the_rule_holds_for_any_results(
        results in proptest::collection::vec(any::<bool>(), 1..40),
        rise in 1..5_usize,
        fall in 1..5_usize,
    ) {
        let mut standing = Standing::Unknown;
        for (index, passed) in results.iter().enumerate() {
            standing = standing.after(*passed, rise as u32, fall as u32);
            prop_assert_eq!(standing.is_down(), expected(&results[..=index], rise, fall));
        }
    }

    /// Instances that come, leave, turn and are being checked meanwhile.
    #[test]
    fn nobody_is_forgotten_or_checked_twice_at_once(
        steps in proptest::collection::vec((0..8_u8, any::<u16>()), 1..200),
    ) {
        let mut now = Instant::now();
        let mut plan = plan(&instances(3), now);
        let (mut there, mut jobs) = (instances(3), Vec::<Job>::new());
        for (what, number) in steps {
            match what {
                0 => {
                    there = (1..=8).filter(|bit| number >> bit & 1 == 1).map(instance).collect();
                    plan.follow("chat", &config(), there.iter(), |_| None, now);
                }
                3 | 4 => {
                    let id = format!("i{}", number % 8 + 1);
                    let duty = match what {
                        3 => Duty::Ours,
                        _ => Duty::Theirs("gw", Word::Passes),
                    };
                    assign(&mut plan, &[(&id, duty)], now);
                }
                1 | 2 if !jobs.is_empty() => {
                    let job = jobs.swap_remove(usize::from(number) % jobs.len());
                    plan.finish(job, Some(what == 1), now);
                }
                _ => now += Duration::from_millis(u64::from(number % 3000)),
            }
            while let Some(job) = plan.take_due(now) {
                prop_assert!(jobs.iter().all(|it| it.target != job.target), "twice at once");
                prop_assert!(there.iter().any(|it| *it.id == *job.id), "one that left");
                jobs.push(job);
            }
            let under_way: usize = plan.lanes.iter().map(|lane| lane.under_way).sum();
            prop_assert_eq!(under_way, jobs.len());
            let waiting: usize = plan.lanes.iter().map(|lane| lane.waiting.len()).sum();
            let is_ours = |target: &u64| plan.targets.get(target).is_some_and(|it| it.is_ours);
            let known = jobs.iter().filter(|job| is_ours(&job.target)).count();
            prop_assert_eq!((waiting + known) as u64, plan.count_ours("chat"));
            prop_assert_eq!(plan.count("chat").iter().sum::<u64>(), there.len() as u64);
        }
    }
}
