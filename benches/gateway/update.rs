//! What one report of all instances costs the plugin's thread, and the new values
//! a worker, by the number of instances.

use ipconfig::board::Board;
use ipconfig::worker::Worker;
use tokio::time::Instant;

use crate::fleet::Fleet;
use crate::table::{Table, median, micros};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const ROUNDS: usize = 30;

/// What a report cost, in microseconds.
#[derive(Default)]
struct Costs {
    apply: Vec<f64>,
    rank: Vec<f64>,
    publish: Vec<f64>,
    load: Vec<f64>,
    /// Where an instance changed too, with the report.
    publish_all: Vec<f64>,
    load_all: Vec<f64>,
}

pub fn run() {
    println!("\n3. One status of every instance, in batches of 100: medians of {ROUNDS} reports.");
    let mut table = Table::new(&[
        "instances",
        "apply",
        "score+rank",
        "publish",
        "thread",
        "load",
        "publish*",
        "thread*",
        "load*",
        "values",
    ]);
    for size in SIZES {
        let mut fleet = Fleet::new(size);
        let Costs { apply, rank, publish, load, publish_all, load_all } = measure(&mut fleet);
        let before = median(&apply) + median(&rank);
        let (instances, ranking) = fleet.values();
        let figures = [
            median(&apply),
            median(&rank),
            median(&publish),
            before + median(&publish),
            median(&load),
            median(&publish_all),
            before + median(&publish_all),
            median(&load_all),
        ];
        let mut row = vec![size.to_string()];
        row.extend(figures.map(|us| format!("{us:.0} us")));
        row.push(format!("{} + {} KiB", kib(&instances), kib(&ranking)));
        table.row(row);
    }
    table.print();
    println!(
        "  score+rank reads the windows too; thread = apply + score+rank + publish, into plain"
    );
    println!("  memory in place of the shared dict.");
    println!("  load = a worker's part, on its event loop: the values to a picker (adaptive).");
    println!("  * one registration changed too, so that both values are made and read.");
}

fn measure(fleet: &mut Fleet) -> Costs {
    let board = Board::open().expect("memory for a board");
    let mut worker = Worker::new(board, &fleet.config(), 1);
    let service = worker.service(fleet.name()).expect("it is configured");
    let mut load = |fleet: &Fleet| {
        let (instances, ranking) = fleet.values();
        time(|| worker.load(service, Some(&instances), &ranking).expect("sound values"))
    };
    load(fleet);
    let mut costs = Costs::default();
    for _ in 0..ROUNDS {
        let report = fleet.next_report();
        costs.apply.push(time(|| fleet.apply(&report)));
        let mut ranking = None;
        costs.rank.push(time(|| ranking = Some(fleet.rank())));
        let ranking = ranking.expect("it was just made");
        costs.publish.push(time(|| fleet.publish(ranking)));
        costs.load.push(load(fleet));

        let registration = fleet.next_registration();
        fleet.apply(&[registration]);
        let report = fleet.next_report();
        fleet.apply(&report);
        let ranking = fleet.rank();
        costs.publish_all.push(time(|| fleet.publish(ranking)));
        costs.load_all.push(load(fleet));
    }
    costs
}

fn kib(value: &[u8]) -> f64 {
    value.len() as f64 / 1024.0
}

/// How long something takes, in microseconds.
fn time(what: impl FnOnce()) -> f64 {
    let start = Instant::now();
    what();
    micros(start.elapsed())
}
