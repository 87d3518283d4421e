//! The exporter's pages: `GET /metrics` and `GET /healthz`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::put::{LastWrite, WriteHealth};
use crate::metrics::{self, ExporterMetrics};

/// A connection is for one request, and lasts for so long: whoever is slow to ask
/// or to read keeps nothing for himself.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

/// How many connections there may be. One more ends the oldest, which has had
/// more time than a request takes.
const MAX_CONNECTIONS: usize = 64;

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
pub async fn serve(mut listener: TcpListener, pages: Pages) -> Infallible {
    let routes = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(health_page))
        .with_state(Arc::new(pages));
    let service = TowerToHyperService::new(routes);
    let mut http = Builder::new(TokioExecutor::new()).http1_only();
    http.http1().keep_alive(false);
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        // Its own errors are logged, and it is tried again.
        let (stream, _) = Listener::accept(&mut listener).await;
        open.retain(|connection| !connection.is_finished());
        if open.len() == MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let (http, service) = (http.clone(), service.clone());
        let connection = tokio::spawn(async move {
            // How it ends is the other side's affair.
            let serving = http.serve_connection(TokioIo::new(stream), service);
            _ = timeout(CONNECTION_LIMIT, serving).await;
        });
        open.push_back(connection.abort_handle());
    }
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
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::{Instant, advance};

    async fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let metrics = Arc::new(ExporterMetrics::new());
        let health = Arc::new(WriteHealth::default());
        let pages = Pages { metrics, health, write_within: Duration::from_secs(3) };
        tokio::spawn(serve(listener, pages));
        addr
    }

    /// Connects, sends that, and returns all that is answered until the end.
    async fn answer(addr: SocketAddr, sent: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    const REQUEST: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

    #[tokio::test]
    async fn hundreds_that_connect_and_do_nothing_are_in_nobodys_way() {
        let addr = start().await;
        let mut idle = Vec::new();
        for _ in 0..200 {
            idle.push(TcpStream::connect(addr).await.unwrap());
        }
        let metrics = timeout(CONNECTION_LIMIT, answer(addr, REQUEST)).await.unwrap();
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        // Of those that are left, the oldest made room for it.
        let is_open = |it: &TcpStream| {
            let err = it.try_read(&mut [0]).err();
            err.is_some_and(|err| err.kind() == std::io::ErrorKind::WouldBlock)
        };
        for it in &idle[..=200 - MAX_CONNECTIONS] {
            it.readable().await.unwrap();
        }
        let open: Vec<bool> = idle.iter().map(is_open).collect();
        assert!(!open[..=200 - MAX_CONNECTIONS].contains(&true), "{open:?}");
        assert!(!open[201 - MAX_CONNECTIONS..].contains(&false), "{open:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_says_what_it_wants_ends() {
        let addr = start().await;
        let begun = Instant::now();
        assert_eq!(answer(addr, "").await, "");
        assert_eq!(answer(addr, "GET /metrics HTTP/1.1\r\nHost:").await, "");
        assert!(begun.elapsed() >= CONNECTION_LIMIT);
    }

    #[tokio::test]
    async fn a_connection_is_for_one_request() {
        let answer = answer(start().await, &REQUEST.repeat(2)).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }

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
