//! resty.ipconfig: load-aware balancing for OpenResty.
//!
//! Three programs share this crate. The cdylib runs inside nginx: a thread of
//! worker 0 turns what etcd holds into rankings, and every worker picks by them.
//! The exporter asks the business services how they are and puts that into etcd.
//! `ipconfigctl` registers services that do not talk to etcd themselves ([`ctl`]),
//! and simulates what a strategy is worth ([`sim`]).
//! A service written in Rust takes [`service`] to say how it is.
//!
//! ```text
//!         the plugin's thread, in worker 0                                        every worker
//! etcd -> watcher -> registry -> window -> score -> ranking -> govern -> publish -> worker -> picker
//!   ^                                                                      |          |
//!   |                                                                 shared dict, board (in-flight)
//!   +-- exporter: discover -> collect (gRPC) -> put
//!                                ^
//!                                +-- service: layer, sampler -> reporter; or an agent beside it
//! ```
//!
//! One thing goes the other way: a load report that a response carries, from its
//! worker over the board to the registry.
//!
//! Else data flows one way, and each module knows the output of its left neighbour
//! alone: `score` cannot reach etcd, `picker` cannot reach nginx, protobuf is
//! known to [`wire`], etcd-client to [`etcd`], and `unsafe` stands in [`ffi`]
//! and [`board`]. The modules below are in the order of the flow.

mod clock;
pub mod config;
mod error;
pub mod model;
mod printable;
pub mod reckon;
mod rendezvous;
pub mod wire;

pub mod etcd;
mod rejects;
pub mod watcher;

pub mod registry;
pub mod snapshot;
pub mod window;

pub mod score;

pub mod ranking;

pub mod freshness;

pub mod check;
pub mod govern;
mod health;

pub mod board;
pub mod publish;
pub mod value;

pub mod picker;
pub mod worker;

pub mod explain;
pub mod plugin;

pub mod metrics;

pub mod ctl;
pub mod exporter;
pub mod service;
pub mod sim;

pub mod ffi;
