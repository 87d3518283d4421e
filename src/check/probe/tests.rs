//! Real sockets, on both sides.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Statuses;

const MS: Duration = Duration::from_millis(1);

fn config() -> CheckConfig {
    CheckConfig { http: "/healthz".into(), timeout: 500 * MS, ..CheckConfig::default() }
}

/// What a check says of a server that does this with its one connection.
async fn check_against<F: Future<Output = ()> + Send + 'static>(
    config: &CheckConfig,
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
    let result = check(addr, config).await;
    server.abort();
    result
}

/// The same of one that reads a request and answers with this, and stays.
async fn check_answer(config: &CheckConfig, answer: impl Into<Vec<u8>>) -> Result<(), Failure> {
    let answer = answer.into();
    check_against(config, |mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(&answer).await.unwrap();
        std::future::pending().await
    })
    .await
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn label(result: Result<(), Failure>) -> String {
    result.map_or_else(|failure| failure.to_string(), |()| "passed".into())
}

#[tokio::test]
async fn a_good_status_passes_and_another_one_is_named() {
    for (line, expected) in [
        ("HTTP/1.1 200 OK", "passed"),
        ("HTTP/1.0 204 No Content", "passed"),
        ("HTTP/1.1 399 Odd", "passed"),
        ("HTTP/1.1 404 Not Found", "status 404"),
        ("HTTP/1.1 500 Internal Server Error", "status 500"),
        ("HTTP/1.1 503", "status 503"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade", "status 101"),
    ] {
        let answer = format!("{line}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(label(check_answer(&config(), answer).await), expected, "{line}");
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let moved = "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(label(check_answer(&config(), moved).await), "passed");
    let mut strict = config();
    strict.status = Statuses::of_classes(2..=2);
    assert_eq!(label(check_answer(&strict, moved).await), "status 302");
}

#[tokio::test]
async fn what_comes_before_the_answer_is_not_the_answer() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n\
                  HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(label(check_answer(&config(), answer).await), "status 500");
    assert_eq!(label(check_answer(&config(), "HTTP/1.1 100 Continue\r\n\r\n").await), "timeout");
}

#[tokio::test]
async fn the_request_says_who_asks_for_what_and_that_it_is_the_last() {
    let asked = |config: CheckConfig| async move {
        let (sender, head) = oneshot::channel();
        let serve = |mut stream: TcpStream| async move {
            let peer = stream.local_addr().unwrap();
            let head = read_head(&mut stream).await;
            let _ = sender.send((head, peer));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        };
        check_against(&config, serve).await.unwrap();
        head.await.unwrap()
    };
    let (head, addr) = asked(config()).await;
    assert!(head.starts_with("GET /healthz HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {addr}\r\n")), "{head}");
    assert!(head.contains("\r\nuser-agent: resty.ipconfig/"), "{head}");
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    let (head, _) = asked(CheckConfig { host: "chat.example".into(), ..config() }).await;
    assert!(head.contains("\r\nhost: chat.example\r\n"), "{head}");
}

#[tokio::test]
async fn nobody_who_listens_is_a_refusal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let tcp = CheckConfig { tcp: true, http: String::new(), ..config() };
    for config in [config(), tcp] {
        assert_eq!(label(check(addr, &config).await), "connection refused");
    }
}

#[tokio::test]
async fn a_connection_that_is_accepted_is_enough_for_tcp() {
    let tcp = CheckConfig { tcp: true, http: String::new(), ..config() };
    let silent = |stream| async move {
        let _open = stream;
        std::future::pending().await
    };
    assert_eq!(label(check_against(&tcp, silent).await), "passed");
    assert_eq!(label(check_against(&config(), silent).await), "timeout");
}

#[tokio::test]
async fn an_answer_that_comes_in_drops_fails_when_its_time_is_over() {
    let begun = Instant::now();
    let drops = |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"X: y\r\n").await.is_ok() {
            tokio::time::sleep(20 * MS).await;
        }
    };
    assert_eq!(label(check_against(&config(), drops).await), "timeout");
    assert!((500 * MS..1500 * MS).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_not_http_fails_at_once() {
    for garbage in ["SSH-2.0-OpenSSH_9.9\r\n", "\0\u{1}\u{2}\u{3}\n\n", "HTTP/3.7 200 OK\r\n\r\n"] {
        let result = check_answer(&config(), garbage).await;
        assert!(matches!(result, Err(Failure::Malformed(_))), "{garbage:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_head_without_end_fails_before_it_fills_the_memory() {
    let one = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(4 * MAX_HEAD_BYTES));
    let many = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(4 * MAX_HEAD_BYTES / 6));
    for head in [one, many] {
        let result = check_against(&config(), |mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(head.as_bytes()).await;
            std::future::pending().await
        })
        .await;
        assert!(matches!(result, Err(Failure::Malformed(_))), "{result:?}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_is_named_so() {
    let at_once = |stream: TcpStream| async move { drop(stream) };
    assert_eq!(
        label(check_against(&config(), at_once).await),
        "connection closed without an answer"
    );
    let half = |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        stream.shutdown().await.unwrap();
        std::future::pending().await
    };
    assert_eq!(label(check_against(&config(), half).await), "connection closed without an answer");
    let torn = |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-").await.unwrap();
    };
    assert_eq!(label(check_against(&config(), torn).await), "connection closed without an answer");
}

#[tokio::test]
async fn a_server_that_closes_its_half_after_the_answer_has_answered() {
    let half = |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nwell").await.unwrap();
        stream.shutdown().await.unwrap();
        std::future::pending().await
    };
    assert_eq!(label(check_against(&config(), half).await), "passed");
}

#[tokio::test]
async fn a_body_that_never_ends_holds_nothing_up() {
    let begun = Instant::now();
    let silent = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
    assert_eq!(label(check_answer(&config(), silent).await), "passed");
    assert!(begun.elapsed() < 400 * MS, "{:?}", begun.elapsed());

    let (sender, sent) = oneshot::channel();
    let flood = |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let mut count = 0_usize;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {
            count += 4096;
        }
        let _ = sender.send(count);
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server: JoinHandle<()> =
        tokio::spawn(async move { flood(listener.accept().await.unwrap().0).await });
    assert_eq!(label(check(addr, &config()).await), "passed");
    // It was cut off: what went is the bound and what the buffers hold.
    timeout(5000 * MS, server).await.expect("it ends").unwrap();
    assert!(sent.await.unwrap() < 16 << 20);
}

#[tokio::test]
async fn a_body_is_read_so_that_the_server_is_not_cut_off() {
    let (sender, ended) = oneshot::channel();
    let patient = |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        let body = "x".repeat(MAX_BODY_BYTES / 2);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(20 * MS).await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let _ = sender.send(stream.read(&mut [0]).await.map_err(|error| error.kind()));
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { patient(listener.accept().await.unwrap().0).await });
    assert_eq!(label(check(addr, &config()).await), "passed");
    assert_eq!(ended.await, Ok(Ok(0)), "an end, and no reset");
}

#[test]
fn what_this_host_lacks_is_not_held_against_the_instance() {
    for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
        let failure = not_connected(io::Error::from_raw_os_error(code));
        assert!(matches!(failure, Failure::NotMade(_)), "{failure:?}");
    }
    for code in [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EPERM] {
        let failure = not_connected(io::Error::from_raw_os_error(code));
        assert!(matches!(failure, Failure::Unreachable(_)), "{failure:?}");
    }
}
