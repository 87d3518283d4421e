//! The board and what is published with it, in every order in which threads can take
//! their steps and see those of others: [loom] tries them all.
//!
//! The code that is tried is the library's own, compiled with `cfg(loom)`, by
//! `make interleavings`. Without that there is nothing in here.
//!
//! loom's threads stand for nginx's processes: what these share is the board, whose
//! atomics know no difference.
//!
//! [loom]: https://docs.rs/loom
#![cfg(loom)]

mod boards;
mod published;

use loom::thread::{JoinHandle, spawn};

/// The library's own files.
#[path = "../../src"]
#[allow(dead_code, unused_imports, reason = "no more of it is tried than has an order")]
mod code {
    pub mod board;
    pub mod clock;
    pub mod health;
    #[path = "publish"]
    pub mod publish {
        pub mod store;
    }
    pub mod worker;
}

// What that code refers to as its crate's.
use code::{board, clock, health};
use ipconfig::{config, picker, ranking, reckon, value, wire};

use board::Board;

/// Tries `law` on a new board, in every order of what it spawns.
fn always(law: impl Fn(Board) + Send + Sync + 'static) {
    always_within(None, law);
}

/// The same of those orders in which threads are interrupted so many times together
/// at most, where all are too many.
fn always_within(preemptions: Option<usize>, law: impl Fn(Board) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.max_branches = 10_000;
    if model.preemption_bound.is_none() {
        model.preemption_bound = preemptions;
    }
    model.check(move || {
        let board = Board::apart().expect("a board");
        law(board);
        board.clear().expect("it is given back");
    });
}

/// What threads come to that run at the same time.
fn together<T: 'static>(acts: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let threads: Vec<JoinHandle<T>> = acts.into_iter().map(spawn).collect();
    threads.into_iter().map(|thread| thread.join().expect("its end")).collect()
}

/// One of what runs [`together`].
fn act<T>(act: impl FnOnce() -> T + Send + 'static) -> Box<dyn FnOnce() -> T + Send> {
    Box::new(act)
}
