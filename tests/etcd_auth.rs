//! Users, tokens and certificates, against a real etcd.

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipconfig::config::{EtcdConfig, TlsConfig};
use ipconfig::etcd::{Connection, Connector, EtcdSource};
use ipconfig::watcher::{Event, PageRequest, Source, Timing, Watch, WatchState};
use support::Etcd;
use support::follower::{Follower, SOON, TIMING, config, texts};
use support::wait_until;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const PASSWORD: &str = "correct-horse";

/// An etcd with a user `reader` that may read and write `/t/` only.
async fn etcd_with_users(flags: &[&str]) -> Etcd {
    let etcd = Etcd::start_with(flags).await;
    etcd.admit("reader", PASSWORD, "/t/", "/t0");
    etcd
}

fn user_config(etcd: &Etcd, password: &str) -> EtcdConfig {
    let file = etcd.dir().join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    let password_file = path(&file);
    EtcdConfig { username: "reader".into(), password_file, ..config(&[etcd.endpoint()]) }
}

fn path(path: &Path) -> String {
    path.to_str().expect("a path of text").to_owned()
}

#[tokio::test]
async fn a_token_that_etcd_forgot_is_replaced_without_an_error() {
    let etcd = etcd_with_users(&[]).await;
    let connection = Connector::new(&user_config(&etcd, PASSWORD)).connect().await.unwrap();
    connection.put("/t/a", "1", None).await.unwrap();
    // The end of a user is the end of its tokens.
    for args in [
        &["user", "delete", "reader"][..],
        &["user", "add", &format!("reader:{PASSWORD}")],
        &["user", "grant-role", "reader", "reader"],
    ] {
        etcd.ctl(&[&["--user", "root:rootpw"], args].concat());
    }
    connection.put("/t/a", "2", None).await.unwrap();
}

#[tokio::test]
async fn auth_failures_say_so_and_keep_the_password_to_themselves() {
    let etcd = etcd_with_users(&[]).await;
    let wrong = user_config(&etcd, "hunter2-wrong");
    let error = Connector::new(&wrong).connect().await.err().unwrap();
    assert!(error.is_auth_failure(), "{}", texts(&error));
    assert!(!error.is_retryable(), "{}", texts(&error));
    assert!(!texts(&error).contains("hunter2"), "{}", texts(&error));
    assert!(!format!("{:?}", Connector::new(&wrong)).contains("hunter2"));

    let elsewhere = EtcdConfig { prefix: "/secret".into(), ..user_config(&etcd, PASSWORD) };
    let mut source = EtcdSource::new(&elsewhere);
    source.connect().await.unwrap();
    let error = source.list(PageRequest::default()).await.unwrap_err();
    assert!(error.is_auth_failure(), "{}", texts(&error));
    let mut watch = source.watch(1).await.unwrap();
    let refused = watch.next().await.unwrap();
    assert!(refused.canceled.is_some(), "{refused:?}");
    assert!(refused.created, "etcd sets both, so neither may be looked at alone: {refused:?}");

    let anonymous = Connector::new(&config(&[etcd.endpoint()])).connect().await.unwrap();
    let error = anonymous.get("/t/a").await.unwrap_err();
    assert!(error.is_auth_failure(), "{}", texts(&error));
}

#[tokio::test]
async fn a_missing_password_file_is_named() {
    let config = EtcdConfig {
        username: "reader".into(),
        password_file: "/nonexistent/password".into(),
        ..config(&["http://127.0.0.1:1".to_owned()])
    };
    let error = Connector::new(&config).connect().await.err().unwrap();
    assert!(texts(&error).contains("/nonexistent/password"), "{}", texts(&error));
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn tls_takes_both_sides_certificates_from_the_configured_authority_alone() {
    // Made for 127.0.0.1, for both sides, and valid for a hundred years.
    let file = |name: &str| format!("{}/tests/support/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let (ca, cert, key) = (file("ca.pem"), file("loopback.pem"), file("loopback.key"));
    let flags = ["--cert-file", &cert, "--key-file", &key];
    let flags = [&flags[..], &["--client-cert-auth", "--trusted-ca-file", &ca]].concat();
    let etcd = Etcd::start_with(&flags).await;
    let connect_with = async |tls: TlsConfig| {
        Connector::new(&EtcdConfig { tls, ..config(&[etcd.endpoint()]) }).connect().await
    };

    let full = TlsConfig { ca: ca.clone(), cert, key };
    let connection = connect_with(full.clone()).await.unwrap();
    connection.put("/t/a", "1", None).await.unwrap();

    let distrusting = connect_with(TlsConfig { ca: String::new(), ..full }).await.err().unwrap();
    assert!(texts(&distrusting).contains("UnknownIssuer"), "{}", texts(&distrusting));
    let anonymous = connect_with(TlsConfig { ca, ..TlsConfig::default() }).await.err().unwrap();
    assert!(anonymous.is_retryable(), "{}", texts(&anonymous));
}

/// How often users proved who they are, by etcd's own count.
async fn authentications(etcd: &Etcd) -> u64 {
    let mut stream = TcpStream::connect(etcd.address()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let lines = page.lines().filter(|line| {
        line.starts_with("grpc_server_handled_total") && line.contains(r#"="Authenticate""#)
    });
    let count = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
    lines.map(|line| count(line).expect("a number") as u64).sum()
}

/// Many calls at once, by which nothing is lost.
async fn use_at_once(connection: &Connection) {
    let mut calls = JoinSet::new();
    for n in 0..64 {
        let connection = connection.clone();
        calls.spawn(async move {
            let key = format!("/t/{n}");
            match n % 2 {
                0 => connection.put(&key, "1", None).await.map(drop),
                _ => connection.get(&key).await.map(drop),
            }
        });
    }
    for called in calls.join_all().await {
        called.unwrap_or_else(|error| panic!("{}", texts(&error)));
    }
}

/// On a machine that stands still meanwhile, a token may expire once more than
/// meant. What took longer than this is tried again, so often at most.
const IN_TIME: Duration = Duration::from_secs(1);
const TRIES: usize = 10;

/// A token that expires in two seconds, and is renewed.
async fn expires(etcd: Etcd) -> (Etcd, Connection) {
    for _ in 0..TRIES {
        let begun = Instant::now();
        let connection = Connector::new(&user_config(&etcd, PASSWORD)).connect().await.unwrap();
        use_at_once(&connection).await;
        let before = authentications(&etcd).await;
        use_at_once(&connection).await;
        let after = authentications(&etcd).await;
        if begun.elapsed() > IN_TIME {
            continue;
        }
        assert_eq!(after, before, "a token is good for many calls");
        sleep(Duration::from_millis(4500)).await;
        let begun = Instant::now();
        use_at_once(&connection).await;
        if begun.elapsed() > IN_TIME {
            continue;
        }
        assert_eq!(authentications(&etcd).await, before + 1, "one renewal for all calls");
        return (etcd, connection);
    }
    panic!("this machine is too slow for tokens of two seconds");
}

#[tokio::test]
async fn a_token_that_expired_is_renewed_once_for_all_calls() {
    expires(etcd_with_users(&["--auth-token-ttl", "2"]).await).await;
}

#[tokio::test]
async fn a_token_from_before_a_change_of_rights_is_renewed_once_for_all_calls() {
    let dir = TempDir::new().unwrap();
    openssl(dir.path(), "genrsa -out jwt.key 2048");
    openssl(dir.path(), "rsa -in jwt.key -pubout -out jwt.pub");
    let file = |name: &str| path(&dir.path().join(name));
    let (public, private) = (file("jwt.pub"), file("jwt.key"));
    let token = format!("jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=4s");
    let (etcd, connection) = expires(etcd_with_users(&["--auth-token", &token]).await).await;

    let root = ["--user", "root:rootpw"];
    for number in 0..TRIES {
        let elsewhere = format!("/elsewhere/{number}");
        etcd.ctl(
            &[&root[..], &["role", "grant-permission", "reader", "read", &elsewhere]].concat(),
        );
        let before = authentications(&etcd).await;
        let begun = Instant::now();
        use_at_once(&connection).await;
        if begun.elapsed() < IN_TIME {
            assert_eq!(authentications(&etcd).await, before + 1);
            return;
        }
    }
    panic!("this machine is too slow for tokens of four seconds");
}

#[tokio::test]
async fn a_wrong_password_is_tried_slowly_and_the_right_one_is_found() {
    let etcd = etcd_with_users(&[]).await;
    let config = user_config(&etcd, "wrong");
    let before = authentications(&etcd).await;
    let begun = Instant::now();
    let follower = Follower::of(&config);
    sleep(Duration::from_secs(4)).await;
    let tries = async || authentications(&etcd).await - before;
    wait_until("it is tried again", SOON, async || tries().await >= 4).await;
    let (tries, took) = (tries().await, begun.elapsed());
    // From half of the longest wait on, which is 500 ms here, from the first on.
    let most = 1 + took.as_millis() / 250;
    assert!(u128::from(tries) <= most, "{tries} tries in {took:?}");
    user_config(&etcd, PASSWORD);
    let root = Connector::new(&EtcdConfig { ..user_config(&etcd, PASSWORD) });
    root.clone().connect().await.unwrap().put("/t/a", "1", None).await.unwrap();
    follower.wait_for_key("/t/a", "1").await;
}

#[tokio::test]
async fn who_is_refused_is_named_with_the_endpoint() {
    let etcd = etcd_with_users(&[]).await;
    let error = Connector::new(&user_config(&etcd, "wrong")).connect().await.err().unwrap();
    let wanted = format!(
        r#"failed to connect as "reader" at {}: etcdserver: authentication failed, invalid user ID or password"#,
        etcd.endpoint()
    );
    assert!(texts(&error).contains(&wanted), "{}", texts(&error));
}

/// Runs openssl in `dir`.
fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
    let output = output.expect("openssl can be run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {error}");
}

/// Writes an authority and a pair of its own into `dir`, as `ca.pem`, `cert.pem` and
/// `key.pem`.
fn make_certificates(dir: &Path) {
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(dir, &format!("req -x509 {new} -keyout ca.key -out ca.pem -days 10 -subj /CN=ca"));
    openssl(dir, &format!("req {new} -keyout key.pem -out csr -subj /CN=loopback"));
    let extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
    std::fs::write(dir.join("ext"), extensions).unwrap();
    let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 10 -extfile ext -out cert.pem";
    openssl(dir, &format!("x509 -req -in csr {sign}"));
}

/// Takes a machine that stands still for a while for no end of the connection.
const PATIENT: Timing = Timing { answer: Duration::from_secs(30), ..TIMING };

#[tokio::test]
async fn certificates_that_change_are_read_again_and_bad_ones_cost_nothing() {
    let dir = TempDir::new().unwrap();
    make_certificates(dir.path());
    let file = |name: &str| path(&dir.path().join(name));
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let flags = ["--cert-file", &cert, "--key-file", &key];
    let flags = [&flags[..], &["--client-cert-auth", "--trusted-ca-file", &ca]].concat();
    let mut etcd = Etcd::start_with(&flags).await;
    let tls = TlsConfig { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
    let config = EtcdConfig { tls, ..config(&[etcd.endpoint()]) };
    let write = async |value: &str| {
        let connection = Connector::new(&config).connect().await.unwrap();
        connection.put("/t/a", value, None).await.unwrap();
        connection
    };
    let writer = write("1").await;
    let follower = Follower::with(&config, PATIENT);
    follower.wait_for_key("/t/a", "1").await;

    // Bad ones: what is connected stays so.
    let good = std::fs::read(&cert).unwrap();
    std::fs::write(&cert, "not a certificate").unwrap();
    sleep(Duration::from_secs(2)).await;
    writer.put("/t/a", "2", None).await.unwrap();
    follower.wait_for_key("/t/a", "2").await;
    let backoff = |event: &Event| *event == Event::State(WatchState::Backoff);
    assert_eq!(follower.count(backoff), 0);
    std::fs::write(&cert, good).unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(follower.count(backoff), 0);

    // Others, by another authority, on both sides.
    etcd.kill();
    make_certificates(dir.path());
    etcd.restart().await;
    write("3").await;
    follower.wait_for_key("/t/a", "3").await;
    assert_eq!(follower.lists(), 1);
    assert!(writer.get("/t/a").await.is_err(), "a connection keeps what it was made with");
}

#[tokio::test]
async fn a_password_file_that_is_written_anew_is_used_at_once() {
    let etcd = etcd_with_users(&[]).await;
    let config = user_config(&etcd, PASSWORD);
    let writer = Connector::new(&config).connect().await.unwrap();
    writer.put("/t/a", "1", None).await.unwrap();
    let follower = Follower::with(&config, PATIENT);
    follower.wait_for_key("/t/a", "1").await;
    let before = authentications(&etcd).await;
    user_config(&etcd, PASSWORD);
    let is_used = async || authentications(&etcd).await > before;
    wait_until("the file is read again", SOON, is_used).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(authentications(&etcd).await, before + 1, "and once");
    writer.put("/t/a", "2", None).await.unwrap();
    follower.wait_for_key("/t/a", "2").await;
    let backoff = |event: &Event| *event == Event::State(WatchState::Backoff);
    assert_eq!((follower.lists(), follower.count(backoff)), (1, 0));
    assert_eq!(follower.changes(), ["+/t/a"]);
}

#[tokio::test]
async fn a_connection_is_outdated_when_a_file_of_it_is_another_one() {
    let etcd = etcd_with_users(&[]).await;
    let mut connector = Connector::new(&user_config(&etcd, PASSWORD));
    assert!(connector.connect().await.is_ok() && !connector.is_outdated().await);
    user_config(&etcd, "wrong!");
    assert!(connector.is_outdated().await);
    assert!(connector.connect().await.is_err());
    assert!(connector.is_outdated().await, "as long as there is none that was made with it");
    user_config(&etcd, PASSWORD);
    assert!(connector.connect().await.is_ok() && !connector.is_outdated().await);
}
