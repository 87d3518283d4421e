//! Micro-benchmarks of the stages, each by itself: `cargo bench --bench core`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ipconfig::board::Board;
use ipconfig::config::{BalanceConfig, Strategy, WindowConfig};
use ipconfig::picker::{self, Live, Memory, Moment, Ranked};
use ipconfig::ranking::State;
use ipconfig::value::Record;
use ipconfig::window::Window;
use ipconfig::worker::Worker;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use fleet::Fleet;

#[path = "fleet/mod.rs"]
mod fleet;

const SIZES: [usize; 3] = [10, 1_000, 10_000];

fn window(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window");
    let config = WindowConfig::default();
    group.bench_function("record", |bencher| {
        let mut window = Window::new(&config);
        let mut report = 0;
        bencher.iter_batched(
            || {
                // A second later, so that each record begins a new bucket.
                report += 1;
                (fleet::status(0, report), report * 1000)
            },
            |(status, now_ms)| window.record(&status, now_ms),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("read", |bencher| {
        let mut window = Window::new(&config);
        for report in 1..=5 {
            window.record(&fleet::status(0, report), report * 1000);
        }
        bencher.iter(|| black_box(&mut window).load(black_box(5500)));
    });
}

fn ranking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ranking");
    for size in SIZES {
        let mut fleet = Fleet::new(size);
        let previous = fleet.rank();
        let report = fleet.next_report();
        fleet.apply(&report);
        group.bench_function(BenchmarkId::new("read", size), |bencher| {
            bencher.iter(|| fleet.reading().members.len());
        });
        let reading = fleet.reading();
        group.bench_function(BenchmarkId::new("score_and_rank", size), |bencher| {
            bencher.iter(|| fleet::rank(black_box(&reading), Some(&previous)));
        });
    }
}

/// Requests of their first try, and a few in flight everywhere.
struct SteadyTraffic;

impl Moment for SteadyTraffic {
    fn is_retry(&self) -> bool {
        false
    }

    fn is_barred(&self, _: usize) -> bool {
        false
    }

    fn key(&self) -> Option<u64> {
        Some(17)
    }

    fn in_flight(&self, index: usize) -> u32 {
        (index % 4) as u32
    }

    fn total_in_flight(&self) -> u64 {
        15
    }

    fn live(&self, index: usize) -> Live {
        Live { in_flight: self.in_flight(index), latency_ms: Some(12.0), ..Live::default() }
    }
}

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for strategy in Strategy::all() {
        for size in [10, 10_000_u32] {
            let identities: Vec<u64> = (1..=size).map(u64::from).collect();
            let record = |rank| Record {
                score: 0.0,
                weight: 1.0 + f64::from(rank % 10),
                rank,
                state: State::Reporting,
                service_ms: 10.0,
                concurrency: 4.0,
                factor: 1.0,
                capacity_per_s: 400.0,
                reported_s: 1,
                max_in_flight: 0,
            };
            let records: Vec<Record> = (0..size).map(record).collect();
            let priors = vec![1.0; records.len()];
            let mut rng = SmallRng::seed_from_u64(1);
            let ranked = Ranked {
                identities: &identities,
                priors: &priors,
                records: &records,
                own_part: 0.25,
                rate_per_s: 1000.0,
            };
            let mut picker = picker::build(strategy, ranked, &mut rng);
            group.bench_function(BenchmarkId::new(strategy.as_str(), size), |bencher| {
                bencher.iter(|| picker.pick(black_box(&SteadyTraffic), &mut rng));
            });
        }
    }
}

fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("worker_load");
    // Some milliseconds each.
    group.sample_size(50).measurement_time(Duration::from_secs(10));
    let mut fleet = Fleet::new(10_000);
    let board = Board::open().expect("memory for a board");
    let mut worker = Worker::new(board, &fleet.config(), 1);
    let service = worker.service(fleet.name()).expect("it is configured");

    let values = fleet.values();
    let (instances, ranking) = &values;
    worker.load(service, Some(instances), ranking).expect("sound values");
    group.bench_function("ranking_changed/10000", |bencher| {
        bencher.iter(|| worker.load(service, Some(instances), black_box(ranking)));
    });

    let registration = fleet.next_registration();
    fleet.apply(&[registration]);
    fleet.update();
    let newer = fleet.values();
    // Two versions in turns: to the worker, the instances change each time.
    let mut versions = [&values, &newer].into_iter().cycle();
    group.bench_function("instances_changed/10000", |bencher| {
        bencher.iter(|| {
            let (instances, ranking) = versions.next().expect("a cycle has no end");
            worker.load(service, Some(instances), black_box(ranking))
        });
    });
}

/// What consistent hashing does when instances come and go, not when requests do.
fn owners(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chash_owners");
    group.sample_size(20);
    let balance = BalanceConfig { strategy: Strategy::Chash, ..BalanceConfig::default() };
    for size in [1_000, 10_000_u32] {
        let build = |identities: std::ops::Range<u32>, memory| {
            let identities: Vec<u64> = identities.map(u64::from).collect();
            let record = Record {
                score: 0.0,
                weight: 1.0,
                rank: 0,
                state: State::Reporting,
                service_ms: 10.0,
                concurrency: 4.0,
                capacity_per_s: 400.0,
                reported_s: 1,
                factor: 1.0,
                max_in_flight: 0,
            };
            let (priors, records) = (vec![1.0; identities.len()], vec![record; identities.len()]);
            let ranked = Ranked {
                identities: &identities,
                priors: &priors,
                records: &records,
                own_part: 0.25,
                rate_per_s: 1000.0,
            };
            picker::rebuild(&balance, ranked, memory, &mut SmallRng::seed_from_u64(1))
        };
        let known = || build(0..size, Memory::Nothing).into_memory();
        let mut run = |name: &str, memory: &dyn Fn() -> Memory, next: std::ops::Range<u32>| {
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_batched(
                    memory,
                    |memory| build(next.clone(), memory),
                    BatchSize::LargeInput,
                );
            });
        };
        run("all_new", &|| Memory::Nothing, 0..size);
        run("none_changed", &known, 0..size);
        run("one_joined", &known, 0..size + 1);
        run("one_left", &known, 0..size - 1);
        run("ten_of_each", &known, 10..size + 10);
        run("a_tenth_left", &known, size / 10..size);
    }
}

criterion_group!(benches, window, ranking, pick, load, owners);
criterion_main!(benches);
