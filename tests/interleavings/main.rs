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

use std::sync::Arc;

use loom::thread::{Builder, JoinHandle};

/// Of each thread, in words: JSON is read on it.
const STACK: usize = 64 * 1024;

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
use ipconfig::{config, freshness, picker, ranking, reckon, value, wire};

use board::Board;

/// Tries `law` on a new board, in every order of what it spawns in which threads are
/// interrupted twice at most; LOOM_MAX_PREEMPTIONS=n tries more.
fn always(law: impl Fn(Board) + Send + Sync + 'static) {
    always_within(Some(2), law);
}

/// The same with another number of interruptions.
fn always_within(preemptions: Option<usize>, law: impl Fn(Board) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.max_branches = 10_000;
    if model.preemption_bound.is_none() {
        model.preemption_bound = preemptions;
    }
    let law = Arc::new(law);
    model.check(move || {
        let law = Arc::clone(&law);
        let all = move || {
            let board = Board::apart().expect("a board");
            law(board);
            board.clear().expect("it is given back");
        };
        let all = Builder::new().stack_size(STACK).spawn(all).expect("a thread");
        all.join().expect("its end");
    });
}

/// What threads come to that run at the same time.
fn together<T: Send + 'static>(acts: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let spawn = |act| Builder::new().stack_size(STACK).spawn(act).expect("a thread");
    let threads: Vec<JoinHandle<T>> = acts.into_iter().map(spawn).collect();
    threads.into_iter().map(|thread| thread.join().expect("its end")).collect()
}

/// One of what runs [`together`].
fn act<T>(act: impl FnOnce() -> T + Send + 'static) -> Box<dyn FnOnce() -> T + Send> {
    Box::new(act)
}
