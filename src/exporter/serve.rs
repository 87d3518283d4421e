//! The exporter's pages: `GET /metrics` and `GET /healthz`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use super::put::{LastWrite, WriteHealth};
use crate::metrics::{self, ExporterMetrics};

/// What the pages show.
pub struct Pages {
    /// For `/metrics`.
    pub metrics: Arc<ExporterMetrics>,
    /// For `/healthz`.
    pub health: Arc<WriteHealth>,
    /// How long ago etcd may have been written by an exporter that is well.
    pub write_within: Duration,
}

/// Serves the pages until it is dropped.
pub async fn serve(listener: TcpListener, pages: Pages) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(health_page))
        .with_state(Arc::new(pages));
    axum::serve(listener, routes).await
}

async fn metrics_page(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], pages.metrics.to_text())
}

async fn health_page(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    let reasons = reasons(&pages.health.last(), pages.write_within);
    let (code, ready) = match reasons.is_empty() {
        true => (StatusCode::OK, true),
        false => (StatusCode::SERVICE_UNAVAILABLE, false),
    };
    let body = json!({ "ready": ready, "reasons": reasons });
    (code, [(CONTENT_TYPE, "application/json")], format!("{body}\n"))
}

/// Why the exporter is not well; empty if it is.
fn reasons(last: &LastWrite, write_within: Duration) -> Vec<String> {
    let late = match last.at.map(|at| at.elapsed()) {
        Some(ago) if ago <= write_within => return Vec::new(),
        Some(ago) => {
            format!("etcd was last written {ago:.1?} ago, expected within {write_within:?}")
        }
        None => "etcd has not been written yet".to_owned(),
    };
    let failure = last.failure.as_ref().map(|(failure, _)| failure.clone());
    std::iter::once(late).chain(failure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, advance};

    #[tokio::test(start_paused = true)]
    async fn an_exporter_is_well_while_its_last_write_is_young() {
        let within = Duration::from_secs(3);
        let failure = Some(("failed to put a: no answer".to_owned(), Instant::now()));
        let last = LastWrite { at: Some(Instant::now()), failure };
        advance(within).await;
        assert!(reasons(&last, within).is_empty());
        advance(Duration::from_millis(1)).await;
        let reasons = reasons(&last, within);
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[0].contains("expected within 3s"), "{reasons:?}");
        assert!(reasons[1].contains("failed to put"), "{reasons:?}");
    }

    #[test]
    fn an_exporter_that_never_wrote_is_not_well() {
        assert_eq!(reasons(&LastWrite::default(), Duration::from_secs(3)).len(), 1);
    }
}
