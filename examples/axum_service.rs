//! The shortest HTTP service that tells how it is.
//!
//! ```text
//! cargo run --example axum_service
//! curl http://127.0.0.1:9001/
//! ```
//!
//! Its status URL, for the field `status` of its registration, is
//! `grpc://127.0.0.1:9101`, or `orca://127.0.0.1:9101`.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use ipconfig::service::Reporter;
use tokio::net::TcpListener;
use tokio::time::sleep;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reporter = Reporter::new()?;
    let app = Router::new()
        .route("/", get(hello))
        .layer(reporter.layer())
        // Routes that come after the layer are not counted.
        .route("/healthz", get(|| async { "ok\n" }));
    // For the exporter alone: it stays on an address that clients do not reach.
    tokio::spawn(reporter.serve("127.0.0.1:9101".parse()?)?);

    let listener = TcpListener::bind("127.0.0.1:9001").await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn hello() -> &'static str {
    sleep(Duration::from_millis(10)).await;
    "hello\n"
}
