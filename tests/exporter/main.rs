//! The exporter as it runs: the real program, a real etcd, and real
//! `StatusService`s, friendly and hostile.

mod faults;
mod parts;
mod refusals;
mod several;
#[path = "../support/mod.rs"]
mod support;
mod work;
mod writes;
