//! A service that tells how it is: real servers of axum and tonic with the layer,
//! read over real gRPC; the agent beside real processes.

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use ipconfig::service::Reporter;
use ipconfig::wire::proto::status_service_client::StatusServiceClient;
use ipconfig::wire::proto::{GetStatusRequest, Status, WatchStatusRequest};
use ipconfig::wire::proto_duration;
use ipconfig::wire::xds::service::orca::v3::OrcaLoadReportRequest;
use ipconfig::wire::xds::service::orca::v3::open_rca_service_client::OpenRcaServiceClient;
use parking_lot::Mutex;
use serde_json::Value;
use support::{Process, free_port, wait_until};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(15);

// ------------------------------------------------------------------ the parts

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
}

/// Reads a status as the exporter does.
#[derive(Clone)]
struct Reader(StatusServiceClient<Channel>);

impl Reader {
    fn of(addr: SocketAddr) -> Self {
        Self(StatusServiceClient::new(channel(addr)))
    }

    async fn try_get(&mut self) -> Result<Status, tonic::Status> {
        let answer = timeout(PATIENCE, self.0.get_status(GetStatusRequest {}));
        let answer = answer.await.expect("no answer")?;
        Ok(answer.into_inner().status.expect("an answer without a status"))
    }

    async fn get(&mut self) -> Status {
        self.try_get().await.unwrap()
    }

    /// Requests, errors and those in flight.
    async fn counts(&mut self) -> (u64, u64, u64) {
        let status = self.get().await;
        (status.requests, status.errors, status.in_flight.unwrap())
    }

    /// Waits for those counts: a server that has sent an answer may be about to
    /// count it.
    async fn wait_for(&mut self, expected: (u64, u64, u64)) {
        let mut found = (0, 0, 0);
        let what = format!("requests, errors and in flight are {expected:?}");
        let wait = wait_until(&what, PATIENCE, async || {
            found = self.counts().await;
            found == expected
        });
        wait.await;
    }

    /// Waits until the service answers, and returns that status.
    async fn first(&mut self) -> Status {
        let mut first = None;
        wait_until("a status", PATIENCE, async || {
            first = self.try_get().await.ok();
            first.is_some()
        })
        .await;
        first.unwrap()
    }

    /// Waits until the service says that it has none, and returns why.
    async fn gone(&mut self) -> String {
        let mut why = String::new();
        wait_until("UNAVAILABLE", PATIENCE, async || match self.try_get().await {
            Err(status) if status.code() == Code::Unavailable => {
                why = status.message().to_owned();
                true
            }
            _ => false,
        })
        .await;
        why
    }
}

/// Serves the reporter's status; whoever reads it.
fn serve(reporter: &Reporter) -> Reader {
    let addr = loopback(free_port());
    tokio::spawn(reporter.serve(addr).unwrap());
    Reader::of(addr)
}

/// An axum server with the layer.
struct Web {
    addr: SocketAddr,
    status: Reader,
    /// What `/stream` sends; it ends when this goes.
    chunks: mpsc::Sender<Result<Bytes, &'static str>>,
}

impl Web {
    async fn start() -> Self {
        let reporter = Reporter::new().unwrap();
        let (chunks, to_send) = mpsc::channel(1);
        let to_send = Arc::new(Mutex::new(Some(to_send)));
        let stream = move || {
            let chunks = to_send.lock().take().expect("asked once");
            std::future::ready(Body::from_stream(ReceiverStream::new(chunks)))
        };
        // As a server of files does: the length is told, and the stream has no end
        // that is known beforehand.
        let file = || async {
            let chunks = [Ok::<_, Infallible>("half "), Ok("full\n")];
            let body = Body::from_stream(tokio_stream::iter(chunks));
            ([(header::CONTENT_LENGTH, "10")], body)
        };
        let routes = Router::new()
            .route("/ok", get(|| async { "ok\n" }))
            .route("/none", get(|| async { StatusCode::NO_CONTENT }))
            .route("/fail", get(|| async { StatusCode::INTERNAL_SERVER_ERROR.into_response() }))
            .route("/panic", get(|| async { panic!("on purpose") as &str }))
            .route("/never", get(|| async { std::future::pending::<&str>().await }))
            .route("/file", get(file))
            .route("/stream", get(stream))
            .layer(reporter.layer())
            .route("/healthz", get(|| async { "ok\n" }));
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, routes).into_future());
        Self { addr, status: serve(&reporter), chunks }
    }

    /// Sends a request and leaves the answer unread.
    async fn ask(&self, method: &str, path: &str) -> TcpStream {
        let mut server = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        server.write_all(request.as_bytes()).await.unwrap();
        server
    }

    /// Sends a request and reads the answer to its end.
    async fn get(&self, path: &str) -> String {
        read(self.ask("GET", path).await).await
    }
}

async fn read(mut server: TcpStream) -> String {
    let mut answer = String::new();
    timeout(PATIENCE, server.read_to_string(&mut answer)).await.expect("no end").unwrap();
    answer
}

// -------------------------------------------------------------------- over HTTP

#[tokio::test]
async fn answers_are_requests_and_only_5xx_are_errors() {
    let mut web = Web::start().await;
    assert_eq!(web.status.counts().await, (0, 0, 0));
    assert!(web.get("/ok").await.ends_with("ok\n"));
    web.status.wait_for((1, 0, 0)).await;
    assert!(web.get("/nowhere").await.starts_with("HTTP/1.1 404"));
    web.status.wait_for((2, 0, 0)).await;
    assert!(web.get("/fail").await.starts_with("HTTP/1.1 500"));
    web.status.wait_for((3, 1, 0)).await;
    assert!(web.get("/healthz").await.ends_with("ok\n"));
    web.status.wait_for((3, 1, 0)).await;

    let status = web.status.get().await;
    assert!(status.latency_sum_ns > 0 && status.busy_ns > 0, "{status:?}");
    assert!(status.memory_used_bytes.unwrap() < status.memory_limit_bytes.unwrap(), "{status:?}");
    assert!(status.cpu_limit_cores.unwrap() > 0.0, "{status:?}");
    assert_eq!(status.queue, Some(0));
}

#[tokio::test]
async fn answers_whose_end_the_server_does_not_ask_for_end_too() {
    let mut web = Web::start().await;
    assert!(web.get("/file").await.ends_with("half full\n"));
    web.status.wait_for((1, 0, 0)).await;
    assert!(web.get("/none").await.starts_with("HTTP/1.1 204"));
    web.status.wait_for((2, 0, 0)).await;
    read(web.ask("HEAD", "/file").await).await;
    web.status.wait_for((3, 0, 0)).await;
}

#[tokio::test]
async fn who_hangs_up_before_the_answer_is_in_flight_no_more_and_is_not_counted() {
    let mut web = Web::start().await;
    let client = web.ask("GET", "/never").await;
    web.status.wait_for((0, 0, 1)).await;
    let before = web.status.get().await.busy_ns;
    let after = web.status.get().await.busy_ns;
    assert!(after > before, "busy time grows while it is served: {before}, then {after}");
    drop(client);
    web.status.wait_for((0, 0, 0)).await;
}

#[tokio::test]
async fn a_stream_is_in_flight_until_it_ends() {
    let mut web = Web::start().await;
    let mut client = web.ask("GET", "/stream").await;
    web.chunks.send(Ok("first".into())).await.unwrap();
    let mut begun = [0; 512];
    assert!(client.read(&mut begun).await.unwrap() > 0);
    web.status.wait_for((0, 0, 1)).await;
    let Web { chunks, mut status, .. } = web;
    drop(chunks);
    read(client).await;
    status.wait_for((1, 0, 0)).await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error() {
    let mut web = Web::start().await;
    let client = web.ask("GET", "/stream").await;
    web.chunks.send(Ok("first".into())).await.unwrap();
    web.chunks.send(Err("on purpose")).await.unwrap();
    read(client).await;
    web.status.wait_for((1, 1, 0)).await;
}

#[tokio::test]
async fn a_handler_that_panics_is_an_error() {
    let mut web = Web::start().await;
    assert_eq!(web.get("/panic").await, "", "the server hangs up");
    web.status.wait_for((1, 1, 0)).await;
}

// -------------------------------------------------------------------- over gRPC

/// A service with the one method `Say`, which streams words and ends as its
/// request tells.
#[derive(Clone)]
struct Speaker;

type Words = Pin<Box<dyn tokio_stream::Stream<Item = Result<String, tonic::Status>> + Send>>;
type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl tonic::server::ServerStreamingService<String> for Speaker {
    type Response = String;
    type ResponseStream = Words;
    type Future = Answer<tonic::Response<Words>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<String>) -> Self::Future {
        use tokio_stream::{StreamExt, iter, pending};
        let word = Ok("word".to_owned());
        let words: Result<Words, _> = match request.into_inner().as_str() {
            "well" => Ok(Box::pin(iter([word]))),
            "fail late" => Ok(Box::pin(iter([word, Err(tonic::Status::internal("late"))]))),
            "refuse late" => Ok(Box::pin(iter([word, Err(tonic::Status::not_found("late"))]))),
            "fail" => Err(tonic::Status::unavailable("at once")),
            "refuse" => Err(tonic::Status::invalid_argument("at once")),
            _ => Ok(Box::pin(iter([word]).chain(pending()))),
        };
        Box::pin(std::future::ready(words.map(tonic::Response::new)))
    }
}

impl tonic::server::NamedService for Speaker {
    const NAME: &'static str = "test.Speaker";
}

impl tower::Service<http::Request<tonic::body::Body>> for Speaker {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
        Box::pin(async move { Ok(grpc.server_streaming(Speaker, request).await) })
    }
}

/// A tonic server with the layer, with the status services on the same port.
async fn start_speaker() -> (SocketAddr, Reader) {
    let reporter = Reporter::new().unwrap();
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .layer(reporter.layer())
        .add_service(Speaker)
        .add_service(reporter.status_service())
        .add_service(reporter.orca_service())
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    (addr, Reader::of(addr))
}

/// Asks for words.
async fn say(addr: SocketAddr, how: &str) -> Result<tonic::Streaming<String>, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(channel(addr));
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/test.Speaker/Say");
    let codec = ProstCodec::<String, String>::default();
    let request = tonic::Request::new(how.to_owned());
    Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
}

/// Asks for words and reads them to the end; how it ended.
async fn say_all(addr: SocketAddr, how: &str) -> Code {
    let read = async {
        let mut words = say(addr, how).await?;
        while words.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    read.await.map_or_else(|status| status.code(), |()| Code::Ok)
}

#[tokio::test]
async fn grpc_errors_are_those_of_the_service_wherever_the_status_is() {
    let (addr, mut status) = start_speaker().await;
    for (how, code, requests, errors) in [
        ("well", Code::Ok, 1, 0),
        ("fail late", Code::Internal, 2, 1),
        ("refuse late", Code::NotFound, 3, 1),
        ("fail", Code::Unavailable, 4, 2),
        ("refuse", Code::InvalidArgument, 5, 2),
    ] {
        assert_eq!(say_all(addr, how).await, code, "{how}");
        status.wait_for((requests, errors, 0)).await;
    }
    let mut unknown = tonic_health::pb::health_client::HealthClient::new(channel(addr));
    let answer = unknown.check(tonic_health::pb::HealthCheckRequest::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(status.counts().await, (5, 2, 0), "who watches is not counted");
}

#[tokio::test]
async fn a_grpc_stream_is_in_flight_until_its_client_goes() {
    let (addr, mut status) = start_speaker().await;
    let mut words = say(addr, "for ever").await.unwrap();
    assert_eq!(words.message().await.unwrap().as_deref(), Some("word"));
    status.wait_for((0, 0, 1)).await;
    drop(words);
    status.wait_for((0, 0, 0)).await;
}

// ------------------------------------------------------------------ the reports

#[tokio::test]
async fn a_watch_tells_at_once_and_again_and_not_faster_than_every_100_ms() {
    let mut web = Web::start().await;
    let asked = Instant::now();
    let request = WatchStatusRequest { interval: Some(proto_duration(Duration::from_millis(1))) };
    let mut statuses = web.status.0.watch_status(request).await.unwrap().into_inner();
    let mut seqs = Vec::new();
    for _ in 0..4 {
        let status = timeout(PATIENCE, statuses.message()).await.unwrap().unwrap().unwrap();
        seqs.push(status.status.unwrap().seq);
    }
    assert!(asked.elapsed() >= Duration::from_millis(300), "took {:?}", asked.elapsed());
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    assert!(web.status.get().await.seq > seqs[3], "one count for all that is told");
}

#[tokio::test]
async fn a_watch_without_an_interval_tells_every_second() {
    let mut web = Web::start().await;
    let asked = Instant::now();
    let watch = web.status.0.watch_status(WatchStatusRequest::default());
    let mut statuses = watch.await.unwrap().into_inner();
    for _ in 0..2 {
        timeout(PATIENCE, statuses.message()).await.unwrap().unwrap().unwrap();
    }
    assert!(asked.elapsed() >= Duration::from_secs(1), "took {:?}", asked.elapsed());
}

#[tokio::test]
async fn orca_tells_rates_latency_and_gauges_of_the_last_interval() {
    let reporter = Reporter::new().unwrap().with_min_orca_interval(Duration::from_millis(500));
    reporter.set_application_utilization(Some(0.75));
    let addr = loopback(free_port());
    tokio::spawn(reporter.serve(addr).unwrap());
    let asked = Instant::now();
    let stream = OpenRcaServiceClient::new(channel(addr))
        .stream_core_metrics(OrcaLoadReportRequest::default())
        .await;
    let mut stream = stream.unwrap().into_inner();
    let mut report = async || timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();

    let first = report().await;
    assert_eq!((first.rps_fractional, first.eps), (0.0, 0.0), "no interval is over");
    assert_eq!(first.application_utilization, 0.75);
    assert!(first.mem_utilization > 0.0, "{first:?}");
    assert!(!first.named_metrics.contains_key("latency_ms"), "{first:?}");

    let traffic = reporter.traffic();
    let _under_way = traffic.begin();
    traffic.begin().answered(ipconfig::service::Outcome::Served);
    traffic.begin().answered(ipconfig::service::Outcome::Failed);
    // An interval may end before the requests do.
    let mut second = report().await;
    while second.rps_fractional == 0.0 {
        second = report().await;
    }
    assert!(asked.elapsed() >= Duration::from_millis(500), "took {:?}", asked.elapsed());
    assert!((second.rps_fractional / second.eps - 2.0).abs() < 1e-9, "{second:?}");
    assert!(second.named_metrics["latency_ms"] > 0.0, "{second:?}");
    assert_eq!(second.named_metrics["inflight"], 1.0);
    assert_eq!(second.named_metrics["queue"], 0.0);

    let third = report().await;
    assert_eq!(third.rps_fractional, 0.0, "the last interval had none");
    assert!(!third.named_metrics.contains_key("latency_ms"), "{third:?}");
}

#[tokio::test]
async fn a_server_that_is_asked_to_end_does_so_under_an_open_watch() {
    let reporter = Reporter::new().unwrap();
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = reporter.serve_with_shutdown(listener, async { _ = stopped.await });
    let served = tokio::spawn(served);
    let watch = Reader::of(addr).0.watch_status(WatchStatusRequest::default()).await;
    let mut statuses = watch.unwrap().into_inner();
    statuses.message().await.unwrap().unwrap();

    drop(stop);
    timeout(PATIENCE, served).await.expect("it does not end").unwrap().unwrap();
    let end = loop {
        if let Err(end) = statuses.message().await {
            break end;
        }
    };
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    assert!(TcpStream::connect(addr).await.is_err(), "it still listens");
}

#[tokio::test]
async fn streams_of_a_server_of_ones_own_go_on_without_the_reporter() {
    let (_, mut status) = start_speaker().await;
    let request = WatchStatusRequest { interval: Some(proto_duration(Duration::from_millis(100))) };
    let mut statuses = status.0.watch_status(request).await.unwrap().into_inner();
    for _ in 0..3 {
        timeout(PATIENCE, statuses.message()).await.unwrap().unwrap().unwrap();
    }
}

// -------------------------------------------------------------------- the agent

fn exporter() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipconfig-exporter"));
    command.env_remove("IPCONFIG_CONFIG").env_remove("IPCONFIG_LOG_FORMAT").env_remove("RUST_LOG");
    command
}

/// The agent as it runs.
struct Agent {
    process: Process,
    status: Reader,
    log: PathBuf,
    _dir: TempDir,
}

impl Agent {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let addr = loopback(free_port());
        let mut command = exporter();
        command.arg("agent").args(arguments).args(["--listen", &addr.to_string()]);
        let process = Process::start(&mut command, &log);
        Self { process, status: Reader::of(addr), log, _dir: dir }
    }

    fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it as an init system does.
    async fn end(&mut self) {
        self.process.signal("TERM");
        wait_until("its end", PATIENCE, async || !self.process.is_running()).await;
    }
}

/// A process that does nothing.
fn sleeper() -> Process {
    Process::start(Command::new("sleep").arg("1000"), Path::new("/dev/null"))
}

/// A process that listens on a port: the agent again, of this test.
fn listening_process(port: u16) -> Process {
    let mut command = exporter();
    command.args(["agent", "--pid", &std::process::id().to_string()]);
    command.args(["--listen", &loopback(port).to_string()]);
    Process::start(&mut command, Path::new("/dev/null"))
}

#[tokio::test]
async fn the_agent_tells_of_a_process_by_its_id_until_it_is_killed() {
    let mut process = sleeper();
    let pid = process.id().to_string();
    let mut agent = Agent::start(&["--pid", &pid]);
    let status = agent.status.first().await;
    assert!(status.memory_used_bytes.unwrap() > 0, "{status:?}");
    assert!(status.cpu_limit_cores.unwrap() > 0.0, "{status:?}");
    assert_eq!((status.requests, status.in_flight, status.queue), (0, None, None));
    wait_until("a use of CPU", PATIENCE, async || {
        agent.status.get().await.cpu_used_cores.is_some()
    })
    .await;

    process.kill();
    assert_eq!(agent.status.gone().await, format!("process {pid} is gone"));
    agent.end().await;
}

#[tokio::test]
async fn the_agent_follows_a_pid_file_and_its_own_restart_is_none_of_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pid");
    let name = file.to_str().unwrap();
    let write = |process: &Process| std::fs::write(&file, format!("{}\n", process.id())).unwrap();
    let mut agent = Agent::start(&["--pid-file", name]);
    wait_until("its answer", PATIENCE, async || agent.status.gone().await.contains(name)).await;

    let mut first = sleeper();
    write(&first);
    let before = agent.status.first().await;
    agent.end().await;
    agent = Agent::start(&["--pid-file", name]);
    let after = agent.status.first().await;
    assert_eq!(after.boot_id, before.boot_id);
    assert!(after.seq > before.seq, "{} after {}", after.seq, before.seq);

    first.kill();
    assert_eq!(agent.status.gone().await, format!("process {} is gone", first.id()));
    let second = sleeper();
    write(&second);
    assert_ne!(agent.status.first().await.boot_id, before.boot_id);
}

#[tokio::test]
async fn the_agent_follows_whoever_listens_on_a_port() {
    let port = free_port();
    let mut agent = Agent::start(&["--port", &port.to_string()]);
    let nobody = format!("nobody listens on port {port}");
    wait_until(&nobody, PATIENCE, async || agent.status.gone().await == nobody).await;

    let mut process = listening_process(port);
    let first = agent.status.first().await;
    assert_eq!((first.queue, first.in_flight), (Some(0), None));
    process.kill();
    assert_eq!(agent.status.gone().await, nobody);
    let _process = listening_process(port);
    assert_ne!(agent.status.first().await.boot_id, first.boot_id);
    agent.end().await;
    let logged = agent.logged();
    for line in [nobody, format!("tells of process {}", _process.id())] {
        assert!(logged.contains(&line), "{line} is not in\n{logged}");
    }
}

#[tokio::test]
async fn connections_that_nobody_accepts_are_the_queue() {
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut agent = Agent::start(&["--port", &addr.port().to_string()]);
    assert_eq!(agent.status.first().await.queue, Some(0));
    let _clients =
        [TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap()];
    wait_until("2 wait", PATIENCE, async || agent.status.get().await.queue == Some(2)).await;
    listener.accept().await.unwrap();
    wait_until("1 waits", PATIENCE, async || agent.status.get().await.queue == Some(1)).await;
}

// ------------------------------------------------------------------ the program

/// Runs the exporter to its end.
fn run(arguments: &[&str]) -> Output {
    exporter().args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_agent_wants_exactly_one_process_and_says_so_with_64() {
    for (arguments, says) in [
        (&["agent"][..], "--pid"),
        (&["agent", "--pid", "1", "--port", "80"], "cannot be used with"),
        (&["agent", "--pid", "1", "--pid-file", "x"], "cannot be used with"),
        (&["agent", "--pid", "0"], "--pid"),
        (&["agent", "--pid", "-3"], "-3"),
        (&["agent", "--port", "65536"], "--port"),
        (&["agent", "--pid", "1", "--listen", "localhost:1"], "--listen"),
        (&["--log-format", "xml"], "--log-format"),
    ] {
        let output = run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
    assert_eq!(run(&["agent", "--help"]).status.code(), Some(0));
}

#[test]
fn an_agent_whose_address_is_taken_ends_with_1() {
    let taken = std::net::TcpListener::bind(loopback(0)).unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = run(&["agent", "--pid", "1", "--listen", &listen]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&listen) && stderr.contains("in use"), "{stderr}");
}

/// Each line of a log as an object with a level and a message.
fn parse_log(log: &str) -> Vec<Value> {
    let parse = |line: &str| {
        let entry: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["level"].is_string() && entry["message"].is_string(), "{line}");
        entry
    };
    log.lines().map(parse).collect()
}

#[tokio::test]
async fn json_logs_are_an_object_a_line() {
    let mut agent = Agent::start(&["--pid-file", "/nowhere/x.pid", "--log-format", "json"]);
    let told = async || agent.status.gone().await.contains("/nowhere/x.pid");
    wait_until("its answer", PATIENCE, told).await;
    agent.end().await;
    let log = parse_log(&agent.logged());
    let levels: Vec<&str> = log.iter().map(|entry| entry["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["INFO", "WARN"], "{log:?}");
    assert!(log[1]["message"].as_str().unwrap().contains("/nowhere/x.pid"), "{log:?}");

    let arguments = ["--config", "/nowhere/ipconfig.json"];
    let output = exporter().args(arguments).env("IPCONFIG_LOG_FORMAT", "json").output().unwrap();
    let log = parse_log(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0]["message"].as_str().unwrap().contains("/nowhere/ipconfig.json"), "{log:?}");
}

#[test]
fn why_the_program_ends_is_told_whatever_the_filter() {
    let arguments = ["--config", "/nowhere/ipconfig.json"];
    let output = exporter().args(arguments).env("RUST_LOG", "tonic=info").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("/nowhere/ipconfig.json"), "{stderr:?}");
}

#[test]
fn check_config_tells_what_ipconfigctl_tells() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file(
        "good.json",
        r#"{"services": {"chat": {"instances": [{"id": "a", "addr": "127.0.0.1:1"}]}, "mail": {}}}"#,
    );
    let bad = file("bad.json", r#"{"services": {}, "window": {"buckets": 0}}"#);
    for (file, code) in [(good.as_str(), 0), (&bad, 64), ("/nowhere/ipconfig.json", 64)] {
        let ours = run(&["--config", file, "--check-config"]);
        let ctl = Command::new(env!("CARGO_BIN_EXE_ipconfigctl")).args(["check", file]).output();
        let ctl = ctl.unwrap();
        assert_eq!(ours.status.code(), Some(code), "{file}");
        assert_eq!(ctl.status.code(), Some(code), "{file}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&ours.stdout), text(&ctl.stdout), "{file}");
        assert_eq!(text(&ours.stderr), text(&ctl.stderr), "{file}");
    }
    let told = String::from_utf8(run(&["--config", &good, "--check-config"]).stdout).unwrap();
    assert_eq!(told, format!("{good}: ok: 2 services, 1 instance\n"));
}

#[test]
fn help_does_not_show_what_the_environment_holds() {
    let output = exporter().arg("--help").env("IPCONFIG_CONFIG", "/secret/place").output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(help.contains("IPCONFIG_CONFIG") && !help.contains("/secret/place"), "{help}");
}
