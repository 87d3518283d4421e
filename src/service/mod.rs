//! For a service written in Rust: counts its requests, measures its process, and
//! tells both to whoever asks.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use ipconfig::service::Reporter;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reporter = Reporter::new()?;
//! let app = Router::new().route("/", get(|| async { "hello" })).layer(reporter.layer());
//! tokio::spawn(reporter.serve("127.0.0.1:9101".parse()?)?);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9001").await?;
//! axum::serve(listener, app).await?;
//! # Ok(())
//! # }
//! ```
//!
//! From then on `grpc://127.0.0.1:9101` is a status URL of that service, and
//! `orca://127.0.0.1:9101` another. A tonic server takes the same layer, and the
//! two services beside its own:
//!
//! ```no_run
//! # use ipconfig::service::Reporter;
//! # async fn run(
//! #     greeter: tonic_health::pb::health_server::HealthServer<
//! #         impl tonic_health::pb::health_server::Health,
//! #     >,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let reporter = Reporter::new()?;
//! tonic::transport::Server::builder()
//!     .layer(reporter.layer())
//!     .add_service(greeter)
//!     .add_service(reporter.status_service())
//!     .add_service(reporter.orca_service())
//!     .serve("127.0.0.1:9001".parse()?)
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//! requests -> layer -> traffic --+
//!                                +-> reporter --+
//! /proc, cgroups ----> sampler --+              +-> rpc -> who asks
//! /proc, cgroups ----> sampler ----> agent -----+
//! ```
//!
//! A service that cannot be changed is told of by an [`agent`] beside it.

pub mod agent;
mod layer;
mod reporter;
mod rpc;
mod sampler;
mod traffic;

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

pub use self::layer::{CountedBody, ResponseFuture, TrafficLayer, TrafficService};
pub use self::reporter::Reporter;
pub use self::rpc::StatusRpc;
pub use self::sampler::{Process, Resources, Sampler};
pub use self::traffic::{Outcome, Request, Traffic, TrafficSnapshot, Waiting};

/// Why a service does not tell how it is.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The system gave no random number, which tells one start of the process
    /// from another.
    #[error("failed to draw a boot id: {0}")]
    BootId(#[source] rand::rngs::SysError),
    /// The status cannot be served at that address.
    #[error("failed to serve the status on {listen}: {source}")]
    Listen {
        /// Where it was to be served.
        listen: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The server ended though nobody asked it to.
    #[error("failed to go on serving the status: {0}")]
    Serve(#[source] tonic::transport::Error),
}
