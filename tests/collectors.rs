//! The exporter's collectors against real servers, friendly and hostile.

#[path = "support/python.rs"]
mod python;
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use ipconfig::config::Config;
use ipconfig::exporter::collect::{Answer, AskError, CollectError, Manner, News, Peer};
use ipconfig::model::{Report, Status};
use ipconfig::wire::proto;
use ipconfig::wire::proto::status_service_server::{StatusService, StatusServiceServer};
use ipconfig::wire::xds::data::orca::v3::OrcaLoadReport;
use ipconfig::wire::xds::service::orca::v3::OrcaLoadReportRequest;
use ipconfig::wire::xds::service::orca::v3::open_rca_service_server::{
    OpenRcaService, OpenRcaServiceServer,
};
use python::OrcaServer;
use serde_json::{Value, json};
use support::{free_port, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Request, Response};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const INTERVAL: Duration = Duration::from_millis(800);
const TIMEOUT: Duration = Duration::from_millis(400);
const RETRIES: u32 = 1;
/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

// ------------------------------------------------------------------ the parts

type Words<T> = mpsc::Sender<Result<T, tonic::Status>>;

/// What a server streams; the number is that of the call. The stream ends when
/// the sender is dropped.
type Speak<T> = fn(u64, Words<T>);

/// What a server does when it is asked; what is left out is UNIMPLEMENTED.
#[derive(Clone, Copy, Default)]
struct Script {
    /// How long each answer takes.
    late: Duration,
    get_status: Option<fn(u64) -> Result<proto::Status, tonic::Status>>,
    watch_status: Option<Speak<proto::WatchStatusResponse>>,
    orca: Option<Speak<OrcaLoadReport>>,
    watch: Option<Speak<HealthCheckResponse>>,
    check: Option<ServingStatus>,
}

/// How often what was asked.
#[derive(Default)]
struct Calls {
    connections: AtomicU64,
    get_status: AtomicU64,
    watch_status: AtomicU64,
    orca: AtomicU64,
    watch: AtomicU64,
    check: AtomicU64,
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A gRPC server in a thread of its own. When it is dropped, it and all its
/// connections are gone, as after `kill -9`.
struct Server {
    addr: SocketAddr,
    calls: Arc<Calls>,
    kill: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(script: Script) -> Self {
        Self::start_at(free_port(), script)
    }

    fn start_at(port: u16, script: Script) -> Self {
        Self::start_with(port, tonic::transport::Server::builder(), script)
    }

    fn start_with(port: u16, server: tonic::transport::Server, script: Script) -> Self {
        Self::serve(port, server, |calls| {
            let service = Scripted { script, calls };
            Routes::new(StatusServiceServer::new(service.clone()))
                .add_service(OpenRcaServiceServer::new(service.clone()))
                .add_service(HealthServer::new(service))
        })
    }

    fn serve(
        port: u16,
        mut server: tonic::transport::Server,
        routes: impl FnOnce(Arc<Calls>) -> Routes,
    ) -> Self {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let calls = Arc::new(Calls::default());
        let routes = routes(Arc::clone(&calls));
        let (kill, killed) = oneshot::channel::<()>();
        let (listening, listens) = std::sync::mpsc::channel();
        let connections = Arc::clone(&calls);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = TcpListener::bind(addr).await.unwrap();
                listening.send(()).unwrap();
                let incoming = Counted(TcpIncoming::from(listener), connections);
                tokio::select! {
                    served = server.add_routes(routes).serve_with_incoming(incoming) => served.unwrap(),
                    _ = killed => {}
                }
            });
        });
        listens.recv().unwrap();
        Self { addr, calls, kill: Some(kill), thread: Some(thread) }
    }

    fn connections(&self) -> u64 {
        count(&self.calls.connections)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.kill.take());
        _ = self.thread.take().unwrap().join();
    }
}

/// Counts the connections that come in.
struct Counted(TcpIncoming, Arc<Calls>);

impl tokio_stream::Stream for Counted {
    type Item = std::io::Result<TcpStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.0).poll_next(cx));
        self.1.connections.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(next)
    }
}

#[derive(Clone)]
struct Scripted {
    script: Script,
    calls: Arc<Calls>,
}

impl Scripted {
    async fn stream<T: Send + 'static>(
        &self,
        speak: Option<Speak<T>>,
        counter: &AtomicU64,
    ) -> Result<Response<ReceiverStream<Result<T, tonic::Status>>>, tonic::Status> {
        let call = counter.fetch_add(1, Ordering::Relaxed);
        sleep(self.script.late).await;
        let speak = speak.ok_or_else(|| tonic::Status::unimplemented("not here"))?;
        let (words, stream) = mpsc::channel(1);
        speak(call, words);
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl StatusService for Scripted {
    type WatchStatusStream = ReceiverStream<Result<proto::WatchStatusResponse, tonic::Status>>;

    async fn get_status(
        &self,
        _request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, tonic::Status> {
        let call = self.calls.get_status.fetch_add(1, Ordering::Relaxed);
        sleep(self.script.late).await;
        let unimplemented = || tonic::Status::unimplemented("not here");
        let status = self.script.get_status.ok_or_else(unimplemented)?(call)?;
        Ok(Response::new(proto::GetStatusResponse { status: Some(status) }))
    }

    async fn watch_status(
        &self,
        _request: Request<proto::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, tonic::Status> {
        self.stream(self.script.watch_status, &self.calls.watch_status).await
    }
}

#[tonic::async_trait]
impl OpenRcaService for Scripted {
    type StreamCoreMetricsStream = ReceiverStream<Result<OrcaLoadReport, tonic::Status>>;

    async fn stream_core_metrics(
        &self,
        _request: Request<OrcaLoadReportRequest>,
    ) -> Result<Response<Self::StreamCoreMetricsStream>, tonic::Status> {
        self.stream(self.script.orca, &self.calls.orca).await
    }
}

#[tonic::async_trait]
impl Health for Scripted {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, tonic::Status>>;

    async fn check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, tonic::Status> {
        self.calls.check.fetch_add(1, Ordering::Relaxed);
        sleep(self.script.late).await;
        let unimplemented = || tonic::Status::unimplemented("not here");
        let status = self.script.check.ok_or_else(unimplemented)?;
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, tonic::Status> {
        self.stream(self.script.watch, &self.calls.watch).await
    }
}

fn status(seq: u64) -> proto::Status {
    proto::Status { boot_id: 7, seq, requests: 10 * seq, in_flight: Some(3), ..Default::default() }
}

fn load() -> OrcaLoadReport {
    OrcaLoadReport { cpu_utilization: 0.5, rps_fractional: 1000.0, ..Default::default() }
}

/// Says it, and holds the stream open.
fn say_and_stay<T: Send + 'static>(words: Words<T>, word: T) {
    tokio::spawn(async move {
        _ = words.send(Ok(word)).await;
        words.closed().await;
    });
}

/// A peer that does something of its own to each connection.
async fn start_raw(treat: fn(TcpStream) -> Pin<Box<dyn Future<Output = ()> + Send>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (peer, _) = listener.accept().await.unwrap();
            tokio::spawn(treat(peer));
        }
    });
    addr
}

fn config(changes: &Value) -> Config {
    let mut exporter = json!({
        "interval": format!("{}ms", INTERVAL.as_millis()),
        "timeout": format!("{}ms", TIMEOUT.as_millis()),
        "retries": RETRIES,
    });
    let mut config = json!({ "services": {} });
    for (key, value) in changes.as_object().unwrap() {
        match key.as_str() {
            "allow" => config[key] = value.clone(),
            _ => exporter[key] = value.clone(),
        }
    }
    config["exporter"] = exporter;
    Config::parse(&config.to_string()).unwrap()
}

/// An exporter's view of one instance.
struct Asked(Peer);

impl Asked {
    fn new(url: &str) -> Self {
        Self::with(url, &json!({}))
    }

    fn with(url: &str, changes: &Value) -> Self {
        let manner = Arc::new(Manner::new(&config(changes)).unwrap());
        Self(Peer::new(&url.parse().unwrap(), &manner).unwrap())
    }

    /// One tick, and the rest of its interval.
    async fn tick(&self) -> Answer {
        let begun = Instant::now();
        let answer = timeout(PATIENCE, self.0.ask(begun, false)).await.expect("it never answers");
        sleep_until(begun + INTERVAL).await;
        answer
    }

    /// Ticks until there are news.
    async fn news(&self) -> News {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.tick().await.result {
                Ok(Some(news)) => return news,
                other => assert!(Instant::now() < deadline, "no news: {other:?}"),
            }
        }
    }

    /// Ticks until the instance is given up.
    async fn error(&self) -> AskError {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.tick().await.result {
                Err(err) => return err,
                other => assert!(Instant::now() < deadline, "no error: {other:?}"),
            }
        }
    }

    async fn status(&self) -> Status {
        status_of(self.news().await)
    }
}

fn status_of(news: News) -> Status {
    match news.report {
        Report::Status(status) => status,
        other => panic!("no status: {other:?}"),
    }
}

// --------------------------------------------------------------------- grpc://

#[tokio::test]
async fn a_poll_asks_once_a_tick_over_one_connection_that_is_kept() {
    let script = Script { get_status: Some(|call| Ok(status(1 + call))), ..Default::default() };
    let server = Server::start(script);
    let peer = Asked::new(&format!("grpc://{}", server.addr));
    assert_eq!(server.connections(), 0, "connects to nobody before it is asked to");
    for seq in 1..=5 {
        let answer = peer.tick().await;
        assert_eq!((answer.tries, answer.failures), (1, 0));
        let news = answer.result.unwrap().unwrap();
        assert_eq!(news.interval, Duration::ZERO);
        let status = status_of(news);
        assert_eq!((status.boot_id, status.seq, status.in_flight), (7, seq, Some(3)));
    }
    assert_eq!((server.connections(), count(&server.calls.get_status)), (1, 5));
}

#[tokio::test]
async fn a_try_that_failed_is_made_again_within_the_tick() {
    let every_other = |call| match call % 2 {
        0 => Err(tonic::Status::unavailable("not now")),
        _ => Ok(status(call)),
    };
    let server = Server::start(Script { get_status: Some(every_other), ..Default::default() });
    let peer = Asked::new(&format!("grpc://{}", server.addr));
    for _ in 0..3 {
        let answer = peer.tick().await;
        assert_eq!((answer.tries, answer.failures), (2, 1));
        assert!(matches!(answer.result, Ok(Some(_))), "{answer:?}");
    }
    let answer = peer.0.ask(Instant::now(), true).await;
    assert_eq!((answer.tries, answer.failures), (1, 1), "one try for who is down");
    assert_eq!(server.connections(), 1, "an error is no reason to connect anew");
}

#[tokio::test]
async fn hostile_polled_instances_are_given_up_within_their_tick_and_say_why() {
    async fn reason(url: &str) -> &'static str {
        let peer = Asked::new(url);
        let mut reasons = Vec::new();
        for _ in 0..3 {
            let begun = Instant::now();
            let answer = peer.0.ask(begun, false).await;
            // The margin is for a machine that has other things to do.
            assert!(begun.elapsed() < INTERVAL + TIMEOUT, "{url} took {:?}", begun.elapsed());
            assert!((1..=1 + RETRIES).contains(&answer.tries), "{answer:?}");
            assert_eq!(answer.failures, answer.tries);
            reasons.push(answer.result.unwrap_err().reason());
            sleep_until(begun + INTERVAL).await;
        }
        assert!(reasons.iter().all(|it| *it == reasons[0]), "{reasons:?}");
        reasons[0]
    }
    let says = |get_status| Script { get_status: Some(get_status), ..Default::default() };
    let not_a_number =
        says(|call| Ok(proto::Status { cpu_used_cores: Some(f64::NAN), ..status(1 + call) }));
    let negative =
        says(|call| Ok(proto::Status { cpu_used_cores: Some(-1.0), ..status(1 + call) }));
    let nobody = says(|call| Ok(proto::Status { boot_id: 0, ..status(1 + call) }));
    let late = Script { late: 2 * TIMEOUT, ..says(|call| Ok(status(1 + call))) };
    let never = Script { late: PATIENCE, ..late };
    for (script, expected) in [
        (not_a_number, "bad_status"),
        (negative, "bad_status"),
        (nobody, "bad_status"),
        (late, "timeout"),
        (never, "timeout"),
        (says(|_| Err(tonic::Status::internal("\n".repeat(1000)))), "call"),
    ] {
        let server = Server::start(script);
        assert_eq!(reason(&format!("grpc://{}", server.addr)).await, expected);
    }

    let garbage =
        start_raw(|mut peer| Box::pin(async move { _ = peer.write_all(&[0xff; 100_000]).await }));
    let resets = start_raw(|peer| {
        Box::pin(async move {
            _ = peer.readable().await;
            // Dropped with bytes unread, it is reset rather than closed.
        })
    });
    let mute = start_raw(|peer| {
        Box::pin(async move {
            sleep(PATIENCE).await;
            drop(peer);
        })
    });
    assert_eq!(reason(&format!("grpc://{}", garbage.await)).await, "call");
    assert_eq!(reason(&format!("grpc://{}", resets.await)).await, "call");
    assert_eq!(reason(&format!("grpc://{}", mute.await)).await, "timeout");
    assert_eq!(reason(&format!("grpc://127.0.0.1:{}", free_port())).await, "connect");
    assert_eq!(reason("grpc://no-such-host.invalid:1").await, "connect");
}

#[tokio::test]
async fn figures_that_are_odd_but_possible_are_passed_on_as_they_are() {
    // Counters that run backwards, a seq that stands still, a boot_id that never
    // comes back: what they mean is for whoever compares two statuses.
    let odd = |call| {
        let requests = u64::MAX - call;
        Ok(proto::Status { boot_id: 1 + call, seq: 9, requests, ..Default::default() })
    };
    let server = Server::start(Script { get_status: Some(odd), ..Default::default() });
    let peer = Asked::new(&format!("grpc://{}", server.addr));
    for call in 0..3 {
        let status = status_of(peer.tick().await.result.unwrap().unwrap());
        assert_eq!((status.boot_id, status.seq), (1 + call, 9));
        assert_eq!(status.requests, u64::MAX - call);
    }
}

#[tokio::test]
async fn a_hundred_megabytes_are_refused_by_their_announcement() {
    const MEGABYTE: usize = 1 << 20;
    /// How much the server got rid of.
    static SENT: AtomicU64 = AtomicU64::new(0);
    let answer = || async {
        let length = u32::try_from(100 * MEGABYTE).unwrap().to_be_bytes();
        let head = [&[0][..], &length].concat();
        let body = (0..100).map(|_| {
            SENT.fetch_add(MEGABYTE as u64, Ordering::Relaxed);
            vec![0; MEGABYTE]
        });
        let chunks = std::iter::once(head).chain(body).map(Ok::<_, std::io::Error>);
        let body = axum::body::Body::from_stream(tokio_stream::iter(chunks));
        ([("content-type", "application/grpc")], body)
    };
    let server = Server::serve(free_port(), tonic::transport::Server::builder(), |_| {
        axum::Router::new()
            .route("/ipconfig.v1.StatusService/GetStatus", axum::routing::post(answer))
            .route(
                "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics",
                axum::routing::post(answer),
            )
            .into()
    });
    for scheme in ["grpc", "orca"] {
        let error = Asked::new(&format!("{scheme}://{}", server.addr)).error().await;
        assert!(error.to_string().contains("too large"), "{error}");
    }
    assert_eq!(server.connections(), 2, "the connection is kept");
    let calls = 20;
    assert!(count(&SENT) < calls * MEGABYTE as u64, "{} bytes", count(&SENT));
}

#[tokio::test]
async fn a_server_without_get_status_is_listened_to_until_it_is_another_one() {
    fn watch(call: u64, words: Words<proto::WatchStatusResponse>) {
        let word = move |seq| proto::WatchStatusResponse { status: Some(status(100 * call + seq)) };
        tokio::spawn(async move {
            for seq in 1.. {
                if words.send(Ok(word(seq))).await.is_err() {
                    break;
                }
                sleep(INTERVAL).await;
            }
        });
    }
    let script = Script { watch_status: Some(watch), ..Default::default() };
    let server = Server::start(script);
    let port = server.addr.port();
    let peer = Asked::new(&format!("grpc://{}", server.addr));
    let mut last = peer.status().await.seq;
    while last < 4 {
        let news = peer.news().await;
        assert!(news.interval >= INTERVAL);
        let status = status_of(news);
        assert!(status.seq >= last, "{} after {last}", status.seq);
        assert!(status.age < 3 * INTERVAL, "{:?}", status.age);
        last = status.seq;
    }
    let calls = &server.calls;
    assert_eq!((count(&calls.get_status), count(&calls.watch_status)), (1, 1));
    assert_eq!(server.connections(), 1);

    drop(server);
    let error = peer.error().await;
    assert_eq!(error.reason(), "connect", "{error}");
    // The next version can be polled.
    let script = Script { get_status: Some(|call| Ok(status(5000 + call))), ..script };
    let server = Server::start_at(port, script);
    while peer.status().await.seq < 5000 {}
    assert_eq!(count(&server.calls.watch_status), 0);
}

#[tokio::test]
async fn a_connection_that_the_server_sends_away_is_replaced_without_a_failure() {
    let script = Script { get_status: Some(|call| Ok(status(1 + call))), ..Default::default() };
    let builder = tonic::transport::Server::builder().max_connection_age(3 * INTERVAL);
    let server = Server::start_with(free_port(), builder, script);
    let peer = Asked::new(&format!("grpc://{}", server.addr));
    for _ in 0..15 {
        let answer = peer.tick().await;
        assert!(matches!(answer.result, Ok(Some(_))), "{answer:?}");
    }
    assert!((2..=8).contains(&server.connections()), "{} connections", server.connections());
}

#[tokio::test]
async fn an_instance_that_is_gone_is_down_and_its_successor_at_the_same_address_is_up() {
    let script = Script { get_status: Some(|call| Ok(status(1 + call))), ..Default::default() };
    let server = Server::start(script);
    let port = server.addr.port();
    let peer = Asked::new(&format!("grpc://{}", server.addr));
    peer.status().await;
    drop(server);
    let error = peer.error().await;
    assert!(error.to_string().contains("failed to connect"), "{error}");
    let server = Server::start_at(port, script);
    assert!(matches!(peer.tick().await.result, Ok(Some(_))), "at the first tick");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_thousand_instances_that_refuse_are_tried_once_a_tick_each() {
    let manner = Arc::new(Manner::new(&config(&json!({}))).unwrap());
    let port = free_port();
    for scheme in ["grpc", "orca", "health"] {
        let url = format!("{scheme}://127.0.0.1:{port}").parse().unwrap();
        let peers: Vec<_> = (0..1000).map(|_| Peer::new(&url, &manner).unwrap()).collect();
        let (mut tries, mut errors) = (0, 0);
        let ticks = 10;
        for _ in 0..ticks {
            let begun = Instant::now();
            let asks: Vec<_> =
                peers.iter().map(|peer| tokio::spawn(peer.ask(begun, true))).collect();
            for ask in asks {
                let answer = ask.await.unwrap();
                tries += answer.tries;
                errors += u32::from(answer.result.is_err());
            }
            sleep_until(begun + INTERVAL).await;
        }
        assert!(tries <= ticks * 1000, "{scheme}: {tries} tries in {ticks} ticks");
        assert!(errors >= ticks * 1000 / 2, "{scheme}: given up {errors} times");
    }
}

#[tokio::test]
async fn an_instance_that_moves_each_second_leaves_no_connection_behind() {
    let script = Script {
        get_status: Some(|call| Ok(status(1 + call))),
        orca: Some(|_, words| say_and_stay(words, load())),
        ..Default::default()
    };
    let open = |port: u16| {
        let local = format!("{:08X}:{port:04X}", u32::from_le_bytes([127, 0, 0, 1]));
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let is_open = |line: &&str| {
            let columns: Vec<_> = line.split_whitespace().collect();
            columns.get(1) == Some(&local.as_str()) && columns.get(3) == Some(&"01")
        };
        table.lines().filter(is_open).count()
    };
    for scheme in ["grpc", "orca"] {
        let servers: Vec<_> = (0..5).map(|_| Server::start(script)).collect();
        for server in &servers {
            let peer = Asked::new(&format!("{scheme}://{}", server.addr));
            peer.status().await;
            assert_eq!(open(server.addr.port()), 1);
        }
        wait_until("no connection is open", PATIENCE, async || {
            servers.iter().all(|server| open(server.addr.port()) == 0)
        })
        .await;
    }
}

// --------------------------------------------------------------- allow and TLS

#[tokio::test]
async fn nobody_outside_of_the_allowed_networks_is_connected_to() {
    let script = Script { get_status: Some(|call| Ok(status(1 + call))), ..Default::default() };
    let server = Server::start(script);
    let port = server.addr.port();
    let elsewhere = json!({ "allow": ["10.0.0.0/8"] });
    // By address, by an address in IPv6 clothes, by name, by an old notation.
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "127.1"] {
        for scheme in ["grpc", "orca", "health"] {
            let error = Asked::with(&format!("{scheme}://{host}:{port}"), &elsewhere).error().await;
            assert_eq!(error.reason(), "refused_by_allow", "{host}: {error}");
            assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        }
    }
    assert_eq!(server.connections(), 0);

    let here = json!({ "allow": ["10.0.0.0/8", "127.0.0.0/8"] });
    for host in ["127.0.0.1", "localhost"] {
        Asked::with(&format!("grpc://{host}:{port}"), &here).status().await;
    }
}

/// A file that was made for 127.0.0.1, for both sides, and is valid for a
/// hundred years.
fn tls_file(name: &str) -> String {
    format!("{}/tests/support/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn tls_builder(asks_for_certificates: bool) -> tonic::transport::Server {
    let read = |name| std::fs::read(tls_file(name)).unwrap();
    let identity = Identity::from_pem(read("loopback.pem"), read("loopback.key"));
    let mut tls = ServerTlsConfig::new().identity(identity);
    if asks_for_certificates {
        tls = tls.client_ca_root(Certificate::from_pem(read("ca.pem")));
    }
    tonic::transport::Server::builder().tls_config(tls).unwrap()
}

fn tls_server(asks_for_certificates: bool) -> Server {
    let script = Script {
        get_status: Some(|call| Ok(status(1 + call))),
        orca: Some(|_, words| say_and_stay(words, load())),
        check: Some(ServingStatus::Serving),
        ..Default::default()
    };
    Server::start_with(free_port(), tls_builder(asks_for_certificates), script)
}

#[tokio::test]
async fn tls_takes_the_configured_authoritys_certificates_for_the_urls_host_alone() {
    let server = tls_server(false);
    let port = server.addr.port();
    let trusting = json!({ "tls": { "ca": tls_file("ca.pem") } });
    for scheme in ["grpcs", "orcas", "healths"] {
        Asked::with(&format!("{scheme}://127.0.0.1:{port}"), &trusting).news().await;
    }
    let by_name = Asked::with(&format!("grpcs://localhost:{port}"), &trusting).error().await;
    assert!(by_name.to_string().contains("certificate"), "{by_name}");
    let strangers = Asked::new(&format!("grpcs://127.0.0.1:{port}")).error().await;
    assert_eq!(strangers.reason(), "connect");
    assert!(strangers.to_string().contains("UnknownIssuer"), "{strangers}");
    let plain = Asked::new(&format!("grpc://127.0.0.1:{port}")).error().await;
    assert_eq!(plain.reason(), "call", "{plain}");
}

#[tokio::test]
async fn requests_over_tls_say_https() {
    let echo = |uri: http::Uri| async move {
        let status = tonic::Status::failed_precondition(uri.to_string());
        status.into_http::<axum::body::Body>()
    };
    let server = Server::serve(free_port(), tls_builder(false), |_| {
        let path = "/ipconfig.v1.StatusService/GetStatus";
        axum::Router::new().route(path, axum::routing::post(echo)).into()
    });
    let trusting = json!({ "tls": { "ca": tls_file("ca.pem") } });
    let error = Asked::with(&format!("grpcs://{}", server.addr), &trusting).error().await;
    assert!(error.to_string().contains(&format!("https://{}/", server.addr)), "{error}");
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_is_shown_the_configured_one() {
    let server = tls_server(true);
    let url = |scheme| format!("{scheme}://{}", server.addr);
    let (ca, cert, key) = (tls_file("ca.pem"), tls_file("loopback.pem"), tls_file("loopback.key"));
    let mutual = json!({ "tls": { "ca": ca, "cert": cert, "key": key } });
    for scheme in ["grpcs", "orcas", "healths"] {
        Asked::with(&url(scheme), &mutual).news().await;
    }
    let anonymous = Asked::with(&url("grpcs"), &json!({ "tls": { "ca": ca } })).error().await;
    assert!(matches!(anonymous, AskError::Call { .. }), "{anonymous}");
}

#[test]
fn pem_files_that_cannot_be_used_are_named_with_their_key() {
    let (ca, cert, key) = (tls_file("ca.pem"), tls_file("loopback.pem"), tls_file("loopback.key"));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let empty = file("empty.pem", "");
    let junk = "-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----\n";
    let junk = file("junk.pem", junk);
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";
    let broken = file(
        "broken.key",
        &format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n"),
    );
    for (tls, parts) in [
        (json!({ "ca": "/nonexistent/ca.pem" }), ["exporter.tls.ca", "/nonexistent/ca.pem"]),
        (json!({ "ca": empty }), ["exporter.tls.ca", "empty.pem holds no CERTIFICATE"]),
        (json!({ "ca": junk }), ["exporter.tls.ca", "junk.pem holds no CERTIFICATE"]),
        (json!({ "ca": ca, "cert": ca, "key": key }), ["exporter.tls.cert", "KeyMismatch"]),
        (json!({ "ca": ca, "cert": key, "key": key }), ["exporter.tls.cert", "loopback.key"]),
        (json!({ "ca": ca, "cert": cert, "key": cert }), ["exporter.tls.key", "loopback.pem"]),
        (json!({ "ca": ca, "cert": cert, "key": "/none" }), ["exporter.tls.key", "/none"]),
        (json!({ "cert": cert, "key": broken }), ["exporter.tls.key", "broken.key"]),
    ] {
        let error = Manner::new(&config(&json!({ "tls": tls }))).err().unwrap();
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(!format!("{text} {error:?}").contains(secret), "{error:?}");
        assert!(!matches!(error, CollectError::Url { .. }));
    }
}

// --------------------------------------------------------------------- orca://

#[tokio::test]
async fn a_server_that_reports_once_is_known_at_each_tick() {
    let server = Server::start(Script {
        orca: Some(|_, words| say_and_stay(words, load())),
        ..Default::default()
    });
    let peer = Asked::new(&format!("orca://{}", server.addr));
    let first = peer.status().await;
    assert_eq!(first.cpu_utilization(), Some(0.5));
    let mut last = first.clone();
    for _ in 0..5 {
        let status = status_of(peer.tick().await.result.unwrap().unwrap());
        assert_eq!((status.boot_id, status.seq), (first.boot_id, last.seq + 1));
        let elapsed = status.age - last.age;
        assert!(elapsed >= INTERVAL, "it grows older: {elapsed:?}");
        let grown = (status.requests - last.requests) as f64;
        let rate = grown / elapsed.as_secs_f64();
        assert!((990.0..=1010.0).contains(&rate), "{rate} requests a second");
        last = status;
    }
    assert_eq!((server.connections(), count(&server.calls.orca)), (1, 1));
}

#[tokio::test]
async fn unimplemented_ends_the_try_until_there_is_another_connection() {
    let server = Server::start(Script::default());
    let port = server.addr.port();
    let peer = Asked::new(&format!("orca://{}", server.addr));
    let error = peer.error().await;
    assert_eq!(error.reason(), "unimplemented");
    assert!(error.to_string().contains("xds.service.orca.v3.OpenRcaService"), "{error}");
    for _ in 0..10 {
        let answer = peer.tick().await;
        assert_eq!(answer.tries, 0);
        assert_eq!(answer.result.unwrap_err().reason(), "unimplemented");
    }
    assert_eq!((server.connections(), count(&server.calls.orca)), (1, 1));

    drop(server);
    let server = Server::start_at(port, Script::default());
    wait_until("the next server is asked", PATIENCE, async || count(&server.calls.orca) == 1).await;
    assert_eq!(peer.error().await.reason(), "unimplemented");
    for _ in 0..10 {
        peer.tick().await;
    }
    assert_eq!((server.connections(), count(&server.calls.orca)), (1, 1));

    drop(server);
    let speaks =
        Script { orca: Some(|_, words| say_and_stay(words, load())), ..Default::default() };
    let _server = Server::start_at(port, speaks);
    peer.status().await;
}

#[tokio::test]
async fn a_server_without_any_method_is_asked_for_each_once_a_connection() {
    let server = Server::start(Script::default());
    for (scheme, service) in [("grpc", "StatusService"), ("health", "grpc.health.v1.Health")] {
        let peer = Asked::new(&format!("{scheme}://{}", server.addr));
        let error = peer.error().await;
        assert!(error.to_string().contains(service), "{error}");
        for _ in 0..5 {
            assert!(peer.tick().await.result.is_err());
        }
    }
    let calls = &server.calls;
    for counter in [&calls.get_status, &calls.watch_status, &calls.watch, &calls.check] {
        assert_eq!(count(counter), 1);
    }
}

#[tokio::test]
async fn unimplemented_on_each_connection_anew_is_not_taken_for_a_beginning() {
    let server = tonic::transport::Server::builder().max_connection_age(Duration::from_millis(1));
    let server = Server::start_with(free_port(), server, Script::default());
    for scheme in ["grpc", "orca", "health"] {
        let peer = Asked::new(&format!("{scheme}://{}", server.addr));
        let error = peer.error().await;
        assert_eq!(error.reason(), "unimplemented", "{scheme}: {error}");
        let connections = server.connections();
        for _ in 0..5 {
            peer.tick().await;
        }
        let more = server.connections() - connections;
        assert!(more <= 5 * u64::from(2 + RETRIES), "{scheme}: {more} in 5 ticks");
    }
}

#[tokio::test]
async fn hostile_streams_are_given_up_after_their_retries_and_say_why() {
    let speaks = |orca: Speak<OrcaLoadReport>| Script { orca: Some(orca), ..Default::default() };
    let bad = |_, words| say_and_stay(words, OrcaLoadReport { eps: f64::NAN, ..load() });
    let negative = |_, words| say_and_stay(words, OrcaLoadReport { eps: -1.0, ..load() });
    let absurd = |_, words| {
        say_and_stay(words, OrcaLoadReport { cpu_utilization: 1e300, ..load() });
    };
    let silent = |_, words: Words<OrcaLoadReport>| {
        tokio::spawn(async move { words.closed().await });
    };
    let fails = |_, words: Words<OrcaLoadReport>| {
        tokio::spawn(async move { words.send(Err(tonic::Status::aborted("no"))).await });
    };
    for (script, expected) in [
        (speaks(bad), "bad_status"),
        (speaks(negative), "bad_status"),
        (speaks(absurd), "bad_status"),
        (speaks(silent), "timeout"),
        (speaks(fails), "call"),
        (speaks(|_, _words| {}), "ended"),
        (Script { late: PATIENCE, ..speaks(silent) }, "timeout"),
    ] {
        let server = Server::start(script);
        let peer = Asked::new(&format!("orca://{}", server.addr));
        let error = peer.error().await;
        assert_eq!(error.reason(), expected, "{error}");
        assert!(peer.tick().await.result.is_err(), "and stays so");
        assert_eq!(server.connections(), 1);
        assert!(count(&server.calls.orca) > u64::from(RETRIES));
    }
}

#[tokio::test]
async fn a_stream_that_fell_silent_is_asked_anew_and_given_up_if_that_is_not_answered() {
    let stops = |call, words: Words<OrcaLoadReport>| {
        tokio::spawn(async move {
            for _ in 0..if call == 0 { 3 } else { 0 } {
                _ = words.send(Ok(load())).await;
                sleep(INTERVAL).await;
            }
            words.closed().await;
        });
    };
    let server = Server::start(Script { orca: Some(stops), ..Default::default() });
    let peer = Asked::new(&format!("orca://{}", server.addr));
    peer.status().await;
    assert_eq!(peer.error().await.reason(), "timeout");
    assert_eq!(server.connections(), 1);

    // Silence is what a health stream is made of: it may last.
    let stops = |call, words: Words<HealthCheckResponse>| {
        tokio::spawn(async move {
            if call < 2 {
                let status = ServingStatus::Serving.into();
                _ = words.send(Ok(HealthCheckResponse { status })).await;
            }
            words.closed().await;
        });
    };
    let server = Server::start(Script { watch: Some(stops), ..Default::default() });
    let peer = Asked::new(&format!("health://{}", server.addr));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(15) {
        peer.news().await;
    }
    assert_eq!(count(&server.calls.watch), 2);
    assert_eq!(peer.error().await.reason(), "timeout");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_stream_that_breaks_after_each_word_is_believed_word_by_word() {
    let one_word = |_, words: Words<OrcaLoadReport>| {
        tokio::spawn(async move {
            _ = words.send(Ok(load())).await;
            _ = words.send(Err(tonic::Status::aborted("reset"))).await;
        });
    };
    let server = Server::start(Script { orca: Some(one_word), ..Default::default() });
    let peer = Asked::new(&format!("orca://{}", server.addr));
    peer.status().await;
    let (asked, begun) = (count(&server.calls.orca), Instant::now());
    let mut told = 0;
    for _ in 0..10 {
        match peer.tick().await.result {
            Ok(news) => told += usize::from(news.is_some()),
            Err(err) => panic!("given up: {err}"),
        }
    }
    assert!(told >= 8, "told {told} times in 10 ticks");
    let asked = count(&server.calls.orca) - asked;
    // Half of an interval's part for one try is the shortest pause.
    let most = begun.elapsed().as_millis() / (INTERVAL / (RETRIES + 1) / 2).as_millis();
    assert!(u128::from(asked) <= most + 1, "opened {asked} times in 10 ticks");
}

#[tokio::test]
async fn a_stream_that_broke_for_good_is_not_taken_for_an_instance_at_rest() {
    let only_once = |call, words: Words<OrcaLoadReport>| {
        if call == 0 {
            tokio::spawn(async move {
                _ = words.send(Ok(load())).await;
                sleep(3 * INTERVAL).await;
            });
        }
    };
    let server = Server::start(Script { orca: Some(only_once), ..Default::default() });
    let peer = Asked::new(&format!("orca://{}", server.addr));
    peer.status().await;
    assert_eq!(peer.error().await.reason(), "ended");
}

#[tokio::test]
async fn a_flood_of_reports_is_read_at_its_newest() {
    static SENT: AtomicU64 = AtomicU64::new(0);
    let flood = |_, words: Words<OrcaLoadReport>| {
        tokio::spawn(async move {
            // About as fast as a server that has nothing else to do.
            loop {
                for _ in 0..20 {
                    let sent = SENT.fetch_add(1, Ordering::Relaxed) as f64;
                    let named_metrics = [("queue".to_owned(), sent)].into();
                    if words.send(Ok(OrcaLoadReport { named_metrics, ..load() })).await.is_err() {
                        return;
                    }
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
    };
    let server = Server::start(Script { orca: Some(flood), ..Default::default() });
    let peer = Asked::new(&format!("orca://{}", server.addr));
    peer.status().await;
    for _ in 0..10 {
        peer.status().await;
    }
    let sent = count(&SENT);
    let queue = peer.status().await.queue.unwrap();
    // What waits in the windows alone would be more than that.
    assert!(queue > sent / 2, "{queue} is told when {sent} were sent");
}

#[tokio::test]
async fn a_server_that_never_stops_talking_is_cut_short_and_still_known() {
    static SENT: AtomicU64 = AtomicU64::new(0);
    let talk = |_, words: Words<OrcaLoadReport>| {
        tokio::spawn(async move {
            while words.send(Ok(load())).await.is_ok() {
                SENT.fetch_add(1, Ordering::Relaxed);
            }
        });
    };
    let server = Server::start(Script { orca: Some(talk), ..Default::default() });
    let peer = Asked::new(&format!("orca://{}", server.addr));
    peer.status().await;
    let (sent, asked) = (count(&SENT), count(&server.calls.orca));
    for _ in 0..10 {
        let answer = peer.tick().await;
        assert!(answer.result.is_ok(), "{answer:?}");
    }
    // Of each stream no more than its window has room for, thrice read empty.
    let asked = count(&server.calls.orca) - asked + 1;
    let sent = count(&SENT) - sent;
    assert!(sent < asked * 20_000, "{sent} reports in {asked} streams");
}

#[tokio::test]
async fn a_stock_server_of_another_language_is_read_as_it_is() {
    let start = |arguments: &'static [&str]| {
        tokio::task::spawn_blocking(move || OrcaServer::start(arguments))
    };
    // It reports every 30 s, like gRPC's own servers.
    let slow = start(&["--cpu", "0.25", "--rps", "100", "--latency-ms", "20"]).await.unwrap();
    let peer = Asked::new(&format!("orca://{}", slow.addr));
    let first = peer.status().await;
    assert_eq!(first.cpu_utilization(), Some(0.25));
    let mut last = first.clone();
    for _ in 0..10 {
        last = status_of(peer.tick().await.result.unwrap().unwrap());
    }
    let requests = last.requests - first.requests;
    let rate = requests as f64 / (last.age - first.age).as_secs_f64();
    assert!((90.0..=110.0).contains(&rate), "{rate} requests a second");
    assert_eq!((last.latency_sum_ns - first.latency_sum_ns) / requests, 20_000_000);

    let asked_for = start(&["--min-interval", "0"]).await.unwrap();
    let peer = Asked::new(&format!("orca://{}", asked_for.addr));
    peer.news().await;
    for _ in 0..10 {
        let status = peer.status().await;
        assert!(status.age < 3 * INTERVAL, "a report each interval: {:?}", status.age);
    }

    // It has no service of ours.
    let error = Asked::new(&format!("grpc://{}", slow.addr)).error().await;
    assert_eq!(error.reason(), "unimplemented", "{error}");
}

// ------------------------------------------------------------------- health://

#[tokio::test]
async fn health_is_watched_and_a_change_is_known_at_the_next_tick() {
    static IS_WELL: tokio::sync::Notify = tokio::sync::Notify::const_new();
    let turns = |_, words: Words<HealthCheckResponse>| {
        tokio::spawn(async move {
            for status in [ServingStatus::Serving, ServingStatus::NotServing].iter().cycle() {
                let word = HealthCheckResponse { status: (*status).into() };
                if words.send(Ok(word)).await.is_err() {
                    break;
                }
                IS_WELL.notified().await;
            }
        });
    };
    let server = Server::start(Script { watch: Some(turns), ..Default::default() });
    let peer = Asked::new(&format!("health://{}", server.addr));
    let news = peer.news().await;
    assert_eq!((&news.report, news.interval), (&Report::Serving, Duration::ZERO));
    for report in [Report::NotServing, Report::Serving] {
        IS_WELL.notify_one();
        wait_until("the change is known", PATIENCE, async || peer.news().await.report == report)
            .await;
    }
    let calls = &server.calls;
    assert_eq!((count(&calls.watch), count(&calls.check)), (1, 0));
}

#[tokio::test]
async fn health_is_checked_each_tick_where_it_cannot_be_watched() {
    let server =
        Server::start(Script { check: Some(ServingStatus::NotServing), ..Default::default() });
    let peer = Asked::new(&format!("health://{}", server.addr));
    assert_eq!(peer.news().await.report, Report::NotServing);
    let checked = count(&server.calls.check);
    for _ in 0..5 {
        let answer = peer.tick().await;
        assert_eq!(answer.tries, 1);
        assert_eq!(answer.result.unwrap().unwrap().report, Report::NotServing);
    }
    let calls = &server.calls;
    assert_eq!((count(&calls.watch), count(&calls.check)), (1, checked + 5));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_instance_that_does_not_know_its_health_is_not_well() {
    let unknown = |_, words| {
        let status = ServingStatus::ServiceUnknown.into();
        say_and_stay(words, HealthCheckResponse { status });
    };
    let watched = Server::start(Script { watch: Some(unknown), ..Default::default() });
    let checked =
        Server::start(Script { check: Some(ServingStatus::Unknown), ..Default::default() });
    for (server, found) in [(watched, "SERVICE_UNKNOWN"), (checked, "UNKNOWN")] {
        let error = Asked::new(&format!("health://{}", server.addr)).error().await;
        assert_eq!(error.reason(), "bad_status");
        assert!(error.to_string().contains(found), "{error}");
    }
}
