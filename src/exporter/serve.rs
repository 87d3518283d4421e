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

/// What is read of a request before its headers have ended, in bytes. Of its body
/// nothing is read.
const MAX_HEAD: usize = 16 << 10;

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
    http.http1().keep_alive(false).max_buf_size(MAX_HEAD);
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

    /// Connects, sends this again and again until it is not taken any more, and returns
    /// what was answered and how much was taken.
    async fn answer_to_flood(addr: SocketAddr, head: &str, again: &[u8]) -> (String, usize) {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (mut from, mut to) = stream.into_split();
        to.write_all(head.as_bytes()).await.unwrap();
        let mut taken = 0;
        let flood = async {
            while to.write_all(again).await.is_ok() {
                taken += again.len();
            }
        };
        let mut answer = Vec::new();
        let reading = async {
            // It ends with a reset where more was on its way.
            let _ = from.read_to_end(&mut answer).await;
        };
        timeout(4 * CONNECTION_LIMIT, async { tokio::join!(flood, reading) }).await.unwrap();
        (String::from_utf8_lossy(&answer).into_owned(), taken)
    }

    #[tokio::test]
    async fn whatever_is_sent_is_given_up_after_16_kib_of_head_and_5_s() {
        let addr = start().await;
        let megabyte = vec![b'a'; 1 << 20];
        // What the system takes for a peer that does not read any more.
        let room = 64 << 20;
        for head in ["GET /metrics HTTP/1.1\r\nHost: x\r\nX: ", "GET /", ""] {
            let (answer, taken) = answer_to_flood(addr, head, &megabyte).await;
            let is_refused =
                ["400", "414", "431"].map(|code| answer.starts_with(&format!("HTTP/1.1 {code}")));
            // A reset may take the answer with it.
            assert!(is_refused.contains(&true) || answer.is_empty(), "{head:?}: {answer}");
            assert!(taken < room, "{head:?}: {taken} bytes");
        }
        for (len, code) in [(MAX_HEAD / 2, "200"), (2 * MAX_HEAD, "431")] {
            let long = "y".repeat(len);
            let answer = answer(addr, &format!("GET /metrics HTTP/1.1\r\nX: {long}\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{len}: {answer}");
        }
        let many = "X: y\r\n".repeat(1000);
        let answer = answer(addr, &format!("GET /metrics HTTP/1.1\r\n{many}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    #[tokio::test]
    async fn a_body_is_not_read_and_nothing_but_get_and_head_is_answered() {
        let addr = start().await;
        let head = "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n";
        let (answer_to_get, taken) = answer_to_flood(addr, head, &vec![b'a'; 1 << 20]).await;
        assert!(answer_to_get.starts_with("HTTP/1.1 200") || answer_to_get.is_empty());
        assert!(taken < 64 << 20, "{taken} bytes");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            let text = format!("{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            let answer = answer(addr, &text).await;
            assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
            assert!(answer.contains("allow: GET,HEAD"), "{answer}");
        }
        let head = answer(addr, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_a_byte_now_and_then_has_no_more_time_than_others() {
        let addr = start().await;
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let begun = Instant::now();
        for byte in REQUEST.as_bytes().iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() || begun.elapsed() > CONNECTION_LIMIT * 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!(begun.elapsed() < CONNECTION_LIMIT * 2, "{:?}", begun.elapsed());
    }

    #[test]
    fn an_exporter_that_never_wrote_is_not_well() {
        assert_eq!(reasons(&LastWrite::default(), Duration::from_secs(3)).len(), 1);
    }
}
