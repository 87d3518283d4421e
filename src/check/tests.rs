//! The checker over real sockets.

#![allow(unsafe_code, reason = "a test calls what is not safe")]

use std::collections::HashSet;

use rand::SeedableRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn checker() -> Checker {
    Checker::new(SmallRng::seed_from_u64(7))
}

fn config() -> CheckConfig {
    CheckConfig { http: "/".into(), interval: 100 * MS, timeout: 50 * MS, ..CheckConfig::default() }
}

fn instance(id: &str, addr: SocketAddr) -> Instance {
    Instance {
        id: id.into(),
        addr,
        weight: 1.0,
        zone: String::new(),
        labels: BTreeMap::new(),
        status: None,
        drain: false,
        max_in_flight: 0,
    }
}

/// A server that answers with 200 until it is aborted.
async fn serve(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    }
}

async fn server(addr: &str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(addr).await.unwrap();
    (listener.local_addr().unwrap(), tokio::spawn(serve(listener)))
}

async fn change(checker: &mut Checker) -> Option<String> {
    timeout(3000 * MS, checker.change()).await.ok()
}

#[tokio::test]
async fn an_instance_that_dies_goes_out_and_one_that_is_started_again_comes_back() {
    let (addr, serving) = server("127.0.0.1:0").await;
    let (a, mut checker) = (instance("a", addr), checker());
    checker.follow("chat", &config(), [&a].into_iter(), |_| None);
    assert!(timeout(500 * MS, checker.change()).await.is_err(), "it is well");
    let figures = checker.figures()["chat"].clone();
    assert_eq!((figures.up, figures.down, figures.unknown), (1, 0, 0));
    assert!(figures.results["passed"] >= 3 && figures.seconds > 0.0, "{figures:?}");

    serving.abort();
    let _ = serving.await;
    assert_eq!(change(&mut checker).await.as_deref(), Some("chat"));
    assert!(checker.is_failing("chat", "a", addr));
    assert_eq!(checker.figures()["chat"].results["refused"], 3);
    let (_, _serving) = server(&addr.to_string()).await;
    assert_eq!(change(&mut checker).await.as_deref(), Some("chat"));
    assert!(!checker.is_failing("chat", "a", addr));
}

#[tokio::test]
async fn one_that_hangs_delays_nobody_and_is_out_by_its_own_timeouts() {
    let (good, _serving) = server("127.0.0.1:0").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hung = instance("hung", silent.local_addr().unwrap());
    let (good, mut checker) = (instance("good", good), checker());
    checker.follow("chat", &config(), [&good, &hung].into_iter(), |_| None);
    assert_eq!(change(&mut checker).await.as_deref(), Some("chat"));
    assert!(checker.is_failing("chat", "hung", hung.addr));
    assert!(!checker.is_failing("chat", "good", good.addr));
    assert!(timeout(500 * MS, checker.change()).await.is_err());
    let figures = checker.figures()["chat"].clone();
    assert!(figures.results["passed"] >= 4 && figures.results["timeout"] >= 4, "{figures:?}");
}

#[tokio::test]
async fn a_checker_without_anybody_to_check_waits() {
    let mut checker = checker();
    assert!(timeout(20 * MS, checker.change()).await.is_err());
    checker.follow("chat", &config(), [].into_iter(), |_| None);
    assert!(timeout(20 * MS, checker.change()).await.is_err());
    assert_eq!(checker.figures()["chat"], Figures::default());
    checker.forget("chat");
    assert!(checker.figures().is_empty());
}

#[test]
fn each_result_has_a_name_of_its_own() {
    let error = || std::io::Error::other("x");
    let failures = [
        Failure::Refused,
        Failure::Timeout,
        Failure::Unreachable(error()),
        Failure::Closed,
        Failure::Status(500),
        Failure::NotMade(error()),
    ];
    let labels: HashSet<_> = failures.iter().map(Failure::label).collect();
    assert_eq!(labels.len(), failures.len());
    assert!(labels.iter().all(|label| RESULTS.contains(label)), "{labels:?}");
}

/// What 1,000 instances at 2 s, and 10,000, take of a core: `cargo test --release
/// --lib what_checks_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_checks_cost() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { serve(TcpListener::from_std(listener).unwrap()).await });
    });
    let cpu = || {
        // SAFETY: a plain struct of numbers, which the call fills.
        let usage = unsafe {
            let mut usage = std::mem::zeroed::<libc::rusage>();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        (seconds(usage.ru_utime), seconds(usage.ru_stime))
    };
    for (count, http) in [(1000, "/"), (1000, ""), (10_000, "/")] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config =
            CheckConfig { http: http.into(), tcp: http.is_empty(), port, ..CheckConfig::default() };
        let instances: Vec<_> = (1..=count)
            .map(|port: u16| instance(&port.to_string(), ([127, 0, 0, 1], port).into()))
            .collect();
        let mut checker = checker();
        let made =
            |checker: &Checker| -> u64 { checker.figures()["chat"].results.values().sum::<u64>() };
        runtime.block_on(async {
            checker.follow("chat", &config, instances.iter(), |_| None);
            let _ = timeout(4000 * MS, checker.change()).await;
            let (before, (user, system)) = (made(&checker), cpu());
            let mut waits = Vec::new();
            let until = Instant::now() + 10_000 * MS;
            while Instant::now() < until {
                let due = Instant::now() + 10 * MS;
                let _ = tokio::time::timeout_at(due, checker.change()).await;
                waits.push(due.elapsed());
            }
            waits.sort();
            let (u, s) = cpu();
            println!(
                "{count} instances, {:?}: {} checks in 10 s, {:.1} % of a core in user mode, \
                 {:.1} % in the kernel; a timer of 10 ms is late by {:?} at most, {:?} at 99 %; {:?}",
                if http.is_empty() { "tcp" } else { "http" },
                made(&checker) - before,
                10.0 * (u - user),
                10.0 * (s - system),
                waits[waits.len() - 1],
                waits[waits.len() * 99 / 100],
                checker.figures()["chat"],
            );
        });
    }
}
