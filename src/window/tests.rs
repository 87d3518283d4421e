use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn config(buckets: u32, bucket_ms: u64, decay: Decay) -> WindowConfig {
    WindowConfig { buckets, bucket: Duration::from_millis(bucket_ms), decay }
}

fn window() -> Window {
    Window::new(&WindowConfig::default())
}

fn status(seq: u64, requests: u64) -> Status {
    Status {
        boot_id: 1,
        seq,
        requests,
        errors: requests / 10,
        busy_ns: requests * 1_000_000,
        latency_sum_ns: requests * 20_000_000,
        ..Status::default()
    }
}

#[test]
fn counters_become_rates_and_means_over_the_time_they_cover() {
    let mut window = window();
    for second in 0..=4 {
        assert!(window.record(&status(second + 1, second * 100), second * 1000));
    }
    let load = window.load(4000);
    assert_eq!(load.rate, Some(100.0));
    assert_eq!(load.latency_ms, Some(20.0));
    assert_eq!(load.errors, Some(0.1));
    assert_eq!(load.busy, Some(0.1));
}

#[test]
fn the_first_status_is_a_baseline_and_says_nothing_of_rates() {
    let mut window = window();
    window.record(&status(1, 1_000_000), 0);
    assert_eq!(window.load(0), Load::default());
}

#[test]
fn no_completions_mean_an_unknown_latency_and_not_a_latency_of_zero() {
    let mut window = window();
    window.record(&status(1, 50), 0);
    window.record(&status(2, 50), 1000);
    let load = window.load(1000);
    assert_eq!((load.rate, load.latency_ms, load.errors), (Some(0.0), None, None));
}

#[test]
fn newer_buckets_weigh_more_linearly_by_default() {
    let mut window = window();
    window.record(&status(1, 0), 0);
    window.record(&status(2, 100), 1000);
    window.record(&status(3, 100), 2000);
    // Weights 5 and 4: (4 * 100 + 5 * 0) requests over (4 + 5) seconds.
    assert_eq!(window.load(2000).rate, Some(400.0 / 9.0));
}

#[test]
fn newer_buckets_weigh_twice_as_much_as_the_one_before_with_exponential_decay() {
    let mut window = Window::new(&config(5, 1000, Decay::Exponential));
    window.record(&status(1, 0), 0);
    window.record(&status(2, 90), 1000);
    window.record(&status(3, 90), 2000);
    assert_eq!(window.load(2000).rate, Some(30.0));
}

#[test]
fn a_duplicate_or_overtaken_status_changes_nothing() {
    let mut window = window();
    window.record(&status(1, 0), 0);
    window.record(&status(3, 200), 1000);
    let before = window.load(1000);
    assert!(!window.record(&status(3, 200), 1000));
    let late = Status { in_flight: Some(9), ..status(2, 100) };
    assert!(!window.record(&late, 1000));
    assert_eq!(window.load(1000), before);
    assert!(window.record(&status(4, 300), 2000));
    assert_eq!(window.load(2000).latency_ms, Some(20.0));
}

#[test]
fn what_came_in_an_interval_is_not_told_as_the_rate_of_a_moment() {
    let mut window = window();
    let status = |seq| Status { busy_ns: seq * 500_000_000, ..status(seq, seq * 100) };
    window.record(&status(1), 1000);
    window.record(&status(2), 1010);
    let load = window.load(1010);
    assert_eq!((load.rate, load.busy), (None, None), "of 10 ms");
    window.record(&status(3), 2010);
    let load = window.load(2010);
    assert!(load.rate.is_some_and(|rate| rate < 200.0), "{load:?}");
    assert!(load.busy.is_some_and(|busy| busy <= 1.0), "{load:?}");
}

#[test]
fn another_boot_starts_the_window_anew() {
    let mut window = window();
    window.record(&status(8, 100), 0);
    window.record(&status(9, 900), 1000);
    assert!(window.record(&Status { boot_id: 2, in_flight: Some(3), ..status(1, 5) }, 2000));
    assert_eq!(window.load(2000), Load { in_flight: Some(3.0), ..Load::default() });
    window.record(&Status { boot_id: 2, ..status(2, 15) }, 3000);
    assert_eq!(window.load(3000).rate, Some(10.0));
}

#[test]
fn a_counter_that_ran_backwards_discards_its_interval_and_no_other() {
    let mut window = window();
    window.record(&status(1, 0), 0);
    window.record(&status(2, 100), 1000);
    window.record(&Status { errors: 0, ..status(3, 200) }, 2000);
    assert_eq!(window.load(2000).rate, Some(100.0));
    window.record(&status(4, 300), 3000);
    assert_eq!(window.load(3000).rate, Some(100.0));
}

#[test]
fn a_clock_that_runs_backwards_is_held_still() {
    let mut window = window();
    window.record(&status(1, 0), 5000);
    window.record(&status(2, 100), 6000);
    window.record(&status(3, 150), 10);
    assert_eq!(window.load(0).rate, Some(150.0));
    assert_eq!(window.load(u64::MAX), Load::default());
}

#[test]
fn a_gauge_that_is_absent_or_not_a_number_is_unknown() {
    let mut window = window();
    let gauges = |used, limit| Status {
        cpu_used_cores: used,
        cpu_limit_cores: limit,
        memory_used_bytes: Some(10),
        ..Status::default()
    };
    for (seq, (used, limit)) in
        [(Some(1.0), None), (Some(f64::NAN), Some(1.0)), (Some(1.0), Some(0.0))]
            .into_iter()
            .enumerate()
    {
        window.record(&Status { seq: seq as u64 + 1, ..gauges(used, limit) }, 0);
    }
    assert_eq!((window.load(0).cpu, window.load(0).memory_free_bytes), (None, None));
    window.record(&Status { seq: 9, ..gauges(Some(1.0), Some(4.0)) }, 0);
    assert_eq!(window.load(0).cpu, Some(0.25));
}

#[test]
fn a_window_without_reports_for_its_whole_length_is_empty() {
    let mut window = window();
    window.record(&Status { in_flight: Some(4), ..status(1, 0) }, 0);
    assert_eq!(window.load(4999).in_flight, Some(4.0));
    assert_eq!(window.load(5000), Load::default());
}

/// One status and the time since the one before it.
#[derive(Debug, Clone)]
struct Step {
    wait_ms: u64,
    status: Status,
}

fn any_counter() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..10_000u64, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

prop_compose! {
    fn any_step()(
        wait_ms in prop_oneof![6 => 0..1500u64, 1 => 0..100_000u64],
        boot_id in prop_oneof![9 => Just(1u64), 1 => Just(2u64)],
        seq in 0..60u64,
        (requests, errors, busy_ns, latency_sum_ns) in
            (any_counter(), any_counter(), any_counter(), any_counter()),
        cpu in proptest::option::of(prop_oneof![9 => 0.0..8.0f64, 1 => any::<f64>()]),
        in_flight in proptest::option::of(any_counter()),
        memory in proptest::option::of((any::<u64>(), any::<u64>())),
    ) -> Step {
        Step {
            wait_ms,
            status: Status {
                boot_id, seq, requests, errors, busy_ns, latency_sum_ns, in_flight,
                cpu_used_cores: cpu,
                cpu_limit_cores: Some(2.0),
                memory_used_bytes: memory.map(|(used, _)| used),
                memory_limit_bytes: memory.map(|(_, limit)| limit),
                ..Status::default()
            },
        }
    }
}

/// Counters that mostly grow, so that most intervals count.
fn any_history() -> impl Strategy<Value = Vec<Step>> {
    let growing = proptest::collection::vec(any_step(), 0..60).prop_map(|mut steps| {
        let mut last = Status::default();
        for (seq, step) in steps.iter_mut().enumerate() {
            let status = &mut step.status;
            status.seq = seq as u64 + 1;
            status.requests = last.requests.saturating_add(status.requests);
            status.errors = last.errors.saturating_add(status.errors);
            status.busy_ns = last.busy_ns.saturating_add(status.busy_ns);
            status.latency_sum_ns = last.latency_sum_ns.saturating_add(status.latency_sum_ns);
            last = status.clone();
        }
        steps
    });
    prop_oneof![growing, proptest::collection::vec(any_step(), 0..60)]
}

/// What a window should hold, from the whole list of samples and with nothing
/// carried over: each bucket by its age, times its weight.
fn recompute(config: &WindowConfig, history: &[Step]) -> Sums {
    let bucket_ms = config.bucket.as_millis() as u64;
    let mut samples: Vec<(u64, Bucket)> = Vec::new();
    let mut accepted: Option<(u64, &Status)> = None;
    let mut now_ms = 0;
    for Step { wait_ms, status } in history {
        now_ms += wait_ms;
        let mut sample = [0; QUANTITIES];
        if let Some((then_ms, last)) = accepted {
            if status.boot_id != last.boot_id {
                samples.clear();
            } else if status.seq <= last.seq {
                continue;
            } else if status.requests >= last.requests
                && status.errors >= last.errors
                && status.busy_ns >= last.busy_ns
                && status.latency_sum_ns >= last.latency_sum_ns
            {
                sample[0] = now_ms - then_ms;
                sample[1] = status.requests - last.requests;
                sample[2] = status.errors - last.errors;
                sample[3] = status.busy_ns - last.busy_ns;
                sample[4] = status.latency_sum_ns - last.latency_sum_ns;
            }
        }
        if let Some(cpu) = status.cpu_utilization().filter(|x| x.is_finite() && *x >= 0.0) {
            sample[5] = (cpu * 1e6).round() as u64;
            sample[6] = 1;
        }
        let used = status.application_utilization.or(status.cpu_utilization());
        if let Some(used) = used.filter(|x| x.is_finite() && *x >= 0.0) {
            sample[7] = (used * 1e6).round() as u64;
            sample[8] = 1;
        }
        if let Some(free) = status.memory_free_bytes() {
            sample[9] = free;
            sample[10] = 1;
        }
        if let Some(in_flight) = status.in_flight {
            sample[11] = in_flight;
            sample[12] = 1;
        }
        accepted = Some((now_ms, status));
        samples.push((now_ms / bucket_ms, sample));
    }

    let mut sums = [0; QUANTITIES];
    for age in 0..u64::from(config.buckets) {
        let weight: u128 = match config.decay {
            Decay::Linear => u128::from(u64::from(config.buckets) - age),
            Decay::Exponential => 1 << (u64::from(config.buckets) - 1 - age),
        };
        for (quantity, sum) in sums.iter_mut().enumerate() {
            let bucket = samples
                .iter()
                .filter(|(epoch, _)| epoch + age == now_ms / bucket_ms)
                .fold(0u64, |total, (_, sample)| total.saturating_add(sample[quantity]));
            *sum += weight * u128::from(bucket);
        }
    }
    sums
}

#[test]
fn what_the_application_says_of_itself_comes_before_its_cpu() {
    let mut window = window();
    let cpu = |used| Status {
        cpu_used_cores: Some(used),
        cpu_limit_cores: Some(1.0),
        ..Status::default()
    };
    window.record(&Status { seq: 1, ..cpu(0.25) }, 1000);
    assert_eq!(window.load(1000).utilization, Some(0.25));
    window.record(
        &Status { boot_id: 1, seq: 1, application_utilization: Some(0.75), ..cpu(0.25) },
        1000,
    );
    let load = window.load(1000);
    assert_eq!((load.utilization, load.cpu), (Some(0.75), Some(0.25)));
}

proptest! {
    #[test]
    fn running_sums_equal_the_plain_recomputation_after_every_sample(
        history in any_history(),
        buckets in prop_oneof![4 => 1..8u32, 1 => Just(60u32)],
        bucket_ms in prop_oneof![Just(1000u64), 100..2000u64],
        exponential in any::<bool>(),
    ) {
        let decay = if exponential { Decay::Exponential } else { Decay::Linear };
        let config = config(buckets, bucket_ms, decay);
        let mut window = Window::new(&config);
        let mut now_ms = 0;
        for (index, step) in history.iter().enumerate() {
            now_ms += step.wait_ms;
            window.record(&step.status, now_ms);
            prop_assert_eq!(window.weighted, recompute(&config, &history[..=index]));
        }
    }

    #[test]
    fn every_figure_is_finite_and_not_negative_whatever_the_statuses(history in any_history()) {
        let mut window = window();
        let mut now_ms = 0;
        for step in &history {
            now_ms += step.wait_ms;
            window.record(&step.status, now_ms);
            let load = window.load(now_ms);
            let figures = [
                load.cpu, load.utilization, load.memory_free_bytes, load.rate, load.latency_ms,
                load.errors, load.busy, load.in_flight,
            ];
            for figure in figures.into_iter().flatten() {
                prop_assert!(figure.is_finite() && figure >= 0.0, "{load:?}");
            }
        }
    }
}
