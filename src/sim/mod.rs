//! A discrete-event simulation of gateways before servers.

pub mod policy;
