//! A discrete-event simulation of gateways before servers: what a strategy is
//! worth, under load and in trouble, beside those that it is compared with.
//!
//! ```text
//! traffic -> gateway: worker -> decider -> server: slots, queue -> measures
//!               ^        live facts  ^          |
//!               |                    |          v
//!             plane <- watch <- etcd <- exporter: statuses
//! ```
//!
//! What is ours runs here as it runs in nginx: statuses go through
//! [`wire`](crate::wire), [`registry`](crate::registry) with its windows,
//! [`score`](crate::score) and [`ranking`](crate::ranking) into
//! [`picker`](crate::picker), past what governs them: [`govern`](crate::govern),
//! [`publish`](crate::publish), [`board`](crate::board) and health. Only servers,
//! requests, clocks and the way between them are made up. A [`scenario`] says which.
//!
//! A run is the same each time for one seed: there is no clock, and no order that
//! a hash map chose. Arrivals are open-loop, so that a slow server does not slow
//! its clients down, and have chance of their own: each policy meets the same ones.
//!
//! What is left out: the network, the exporter's deadband (each report is written),
//! leases, and health checks other than the exporter's. A gateway's live facts are
//! shared by its workers. A client that gives up is noticed when its request's turn
//! comes; what is being served by then is served to the end.

mod agenda;
mod decider;
mod distribution;
mod engine;
mod exporter;
mod faults;
mod fleet;
mod host;
mod live;
pub mod measure;
mod messages;
mod plane;
pub mod plot;
pub mod policy;
pub mod scenario;
mod server;

pub use decider::{Chooser, names};
pub use engine::run;

#[cfg(test)]
mod tests;
