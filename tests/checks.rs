//! `check.by` `one` on real gateways and a real etcd: each instance is checked by one
//! gateway, all go by that, and nobody is unchecked for long.

#[path = "support/gateway.rs"]
mod gateway;
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gateway::Gateway;
use ipconfig::check::notices::{Announcer, Notices, Standing, Tenancy};
use ipconfig::config::EtcdConfig;
use ipconfig::etcd::Tenure;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use support::wire::Wire;
use support::{Etcd, free_port, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two checks, and the time that one may take: two in a row that are late make
/// nobody fail, on a machine that stands still for a while.
const INTERVAL: Duration = Duration::from_millis(500);
const FALL: u32 = 4;
/// How long a gateway's key outlives it, with this interval.
const LEASE_TTL: Duration = Duration::from_secs(3);
const KEY: &str = "/ipconfig/v1/checks";

/// An instance, which counts what it is asked.
struct Backend {
    id: String,
    addr: SocketAddr,
    asked: Arc<AtomicU64>,
    serving: Option<JoinHandle<()>>,
}

impl Backend {
    async fn start(number: usize) -> Self {
        let mut backend = Self {
            id: format!("chat-{number}"),
            addr: ([127, 0, 0, 1], free_port()).into(),
            asked: Arc::default(),
            serving: None,
        };
        backend.revive().await;
        backend
    }

    async fn revive(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("its own port");
        let asked = Arc::clone(&self.asked);
        self.serving = Some(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked = Arc::clone(&asked);
                tokio::spawn(async move {
                    let read = stream.read(&mut [0; 1024]).await;
                    if read.is_ok_and(|count| count > 0) {
                        asked.fetch_add(1, Ordering::Relaxed);
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        let _ = stream.write_all(answer).await;
                    }
                });
            }
        }));
    }

    async fn kill(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// An etcd and eight instances.
struct Fleet {
    etcd: Etcd,
    backends: Vec<Backend>,
}

const COUNT: usize = 8;

impl Fleet {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let mut backends = Vec::new();
        for number in 1..=COUNT {
            backends.push(Backend::start(number).await);
        }
        Self { etcd, backends }
    }

    fn config(&self, id: &str) -> Value {
        let instance = |it: &Backend| json!({ "id": it.id, "addr": it.addr.to_string() });
        json!({
            "etcd": { "endpoints": [self.etcd.endpoint()] },
            "gateway": { "id": id },
            "services": { "chat": {
                "check": {
                    "http": "/",
                    "interval": format!("{}ms", INTERVAL.as_millis()),
                    "timeout": format!("{}ms", INTERVAL.as_millis()),
                    "fall": FALL,
                    "by": "one",
                },
                "instances": self.backends.iter().map(instance).collect::<Vec<_>>(),
            } },
        })
    }

    async fn gateway(&self, id: &str) -> Gateway {
        Gateway::start(&self.config(id)).await
    }

    /// Two that share the work.
    async fn two(&self) -> [Gateway; 2] {
        let two = [self.gateway("gw-1").await, self.gateway("gw-2").await];
        are_sharing(&two.each_ref()).await;
        two
    }

    /// How often each instance is asked in some intervals, in the mean.
    async fn asked_in(&self, intervals: u32) -> f64 {
        let sum = || self.backends.iter().map(Backend::asked).sum::<u64>();
        let before = sum();
        let begun = Instant::now();
        sleep(INTERVAL * intervals).await;
        let passed = begun.elapsed().as_secs_f64() / INTERVAL.as_secs_f64();
        (sum() - before) as f64 / COUNT as f64 / passed
    }
}

async fn state(gateway: &Gateway) -> Option<&'static str> {
    for state in ["shared", "alone", "refused"] {
        let name = format!(r#"ipconfig_check_sharing{{state="{state}"}}"#);
        if gateway.metric(&name).await == Some(1.0) {
            return Some(state);
        }
    }
    None
}

/// How many instances it checks itself; `None` if it does not answer.
async fn here(gateway: &Gateway) -> Option<usize> {
    let here = gateway.metric(r#"ipconfig_checked_here{service="chat"}"#).await;
    here.map(|count| count as usize)
}

/// Whether one of them has not been able to renew its lease in time, since this machine
/// stood still for too long: what moved then had to.
async fn have_stalled(gateways: &[&Gateway]) -> bool {
    // Lines come into the log four times a second.
    sleep(Duration::from_secs(1)).await;
    gateways.iter().any(|gateway| gateway.log().contains("checks are not shared"))
}

async fn are_sharing(gateways: &[&Gateway]) {
    wait_until("the gateways share the work", PATIENCE, async || {
        let mut sum = 0;
        for gateway in gateways {
            let few = here(gateway).await.unwrap_or(0);
            if state(gateway).await != Some("shared") || few == 0 {
                return false;
            }
            sum += few;
        }
        sum == COUNT
    })
    .await;
}

async fn checks_all(gateway: &Gateway, because: &str) {
    wait_until(&format!("all are checked, {because}"), PATIENCE, async || {
        here(gateway).await == Some(COUNT) && state(gateway).await == Some(because)
    })
    .await;
}

/// Waits until just these fail, there.
async fn fail(gateway: &Gateway, ids: &[&str]) {
    wait_until(&format!("{ids:?} fail"), PATIENCE, async || failing(gateway).await == ids).await;
}

async fn failing(gateway: &Gateway) -> Vec<String> {
    let mut states = BTreeMap::new();
    wait_until("it answers", PATIENCE, async || {
        states = gateway.states().await;
        !states.is_empty()
    })
    .await;
    let mut failing: Vec<_> =
        states.into_iter().filter(|(_, state)| state == "failing").map(|(id, _)| id).collect();
    failing.sort_unstable();
    failing
}

/// That nobody of these passes now.
async fn none_is_back(gateway: &Gateway, ids: &[&str], since: Instant) {
    let failing = failing(gateway).await;
    let is_failing = |id: &&str| failing.iter().any(|it| it == id);
    assert!(ids.iter().all(is_failing), "{failing:?} fail after {:?}", since.elapsed());
}

#[tokio::test]
async fn an_instance_is_checked_once_an_interval_and_all_gateways_go_by_that() {
    let mut fleet = Fleet::start().await;
    let two = fleet.two().await;
    // If each checked all, it would be twice an interval, always.
    wait_until("each is checked once an interval", PATIENCE, async || {
        let asked = fleet.asked_in(12).await;
        println!("{asked:.2} checks an interval by two gateways");
        (0.5..1.4).contains(&asked)
    })
    .await;

    // Of both gateways' instances.
    for index in 0..COUNT {
        fleet.backends[index].kill().await;
        let id = fleet.backends[index].id.clone();
        let killed = Instant::now();
        for gateway in &two {
            fail(gateway, &[&id]).await;
        }
        println!("{id} is out of both after {:?}", killed.elapsed());
        fleet.backends[index].revive().await;
        for gateway in &two {
            fail(gateway, &[]).await;
        }
    }
    let own = |log: &str| log.matches("fails its checks at").count();
    let others = |log: &str, of: &str| log.matches(&format!("fails the checks of {of} at")).count();
    if !have_stalled(&[&two[0], &two[1]]).await {
        let logs = [two[0].log(), two[1].log()];
        assert_eq!(own(&logs[0]) + own(&logs[1]), COUNT, "each is found by one");
        assert_eq!(own(&logs[0]), others(&logs[1], "gw-1"));
        assert_eq!(own(&logs[1]), others(&logs[0], "gw-2"));
    }
    let keys = fleet.etcd.ctl(&["get", "--prefix", KEY]);
    assert!(keys.contains("gw-1/chat") && keys.contains("gw-2/chat"), "{keys}");
}

#[tokio::test]
async fn when_a_gateway_is_killed_its_instances_are_checked_by_others_and_its_word_stands() {
    let mut fleet = Fleet::start().await;
    let [mut one, two] = fleet.two().await;
    // Half of the service, so that some of each gateway's fail.
    let dead: Vec<_> = (0..COUNT).step_by(2).collect();
    for index in &dead {
        fleet.backends[*index].kill().await;
    }
    let ids: Vec<_> = dead.iter().map(|index| fleet.backends[*index].id.clone()).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    for gateway in [&one, &two] {
        fail(gateway, &ids).await;
    }
    // Lines come into the log four times a second.
    wait_until("some of them are the other one's", PATIENCE, async || {
        let log = two.log();
        let found = log.matches("fails the checks of gw-1 at").count();
        found > 0 && found + log.matches("fails its checks at").count() == ids.len()
    })
    .await;

    one.kill();
    let killed = Instant::now();
    let mut took_over = None;
    while took_over.is_none_or(|it| killed.elapsed() < it + LEASE_TTL) {
        none_is_back(&two, &ids, killed).await;
        if took_over.is_none() && here(&two).await == Some(COUNT) {
            took_over = Some(killed.elapsed());
        }
        assert!(killed.elapsed() < PATIENCE, "nobody takes over");
        sleep(Duration::from_millis(20)).await;
    }
    println!("all are checked {took_over:?} after the kill");
    // With itself alone.
    checks_all(&two, "shared").await;
    for index in dead {
        fleet.backends[index].revive().await;
    }
    fail(&two, &[]).await;
    for index in [1, 3, 5, 7] {
        fleet.backends[index].kill().await;
    }
    fail(&two, &["chat-2", "chat-4", "chat-6", "chat-8"]).await;
}

#[tokio::test]
async fn a_reload_moves_no_instance_and_brings_back_nobody_who_fails() {
    let mut fleet = Fleet::start().await;
    let [one, two] = fleet.two().await;
    for index in (0..COUNT).step_by(2) {
        fleet.backends[index].kill().await;
    }
    let ids = ["chat-1", "chat-3", "chat-5", "chat-7"];
    for gateway in [&one, &two] {
        fail(gateway, &ids).await;
    }
    are_sharing(&[&one, &two]).await;
    let theirs = here(&two).await;
    let mut others = Vec::new();
    let begun = Instant::now();
    // Until the lease of each thread that ended is over.
    for reload in 1..=3 {
        one.reload();
        while begun.elapsed() < LEASE_TTL * 3 / 2 * reload {
            none_is_back(&two, &ids, begun).await;
            if let Some(count) = here(&two).await.filter(|it| Some(*it) != theirs) {
                others.push((count, begun.elapsed()));
            }
            none_is_back(&one, &ids, begun).await;
            sleep(Duration::from_millis(10)).await;
        }
    }
    let is_good = others.is_empty() || have_stalled(&[&one, &two]).await;
    assert!(is_good, "{theirs:?} were checked by the other one, and then {others:?}");
    are_sharing(&[&one, &two]).await;
}

#[tokio::test]
async fn a_gateway_that_is_started_anew_at_once_brings_back_nobody_who_fails() {
    let mut fleet = Fleet::start().await;
    let [mut one, two] = fleet.two().await;
    for index in (0..COUNT).step_by(2) {
        fleet.backends[index].kill().await;
    }
    let ids = ["chat-1", "chat-3", "chat-5", "chat-7"];
    for gateway in [&one, &two] {
        fail(gateway, &ids).await;
    }
    for _ in 0..3 {
        one.kill();
        one = fleet.gateway("gw-1").await;
        let begun = Instant::now();
        while begun.elapsed() < LEASE_TTL * 3 / 2 {
            none_is_back(&two, &ids, begun).await;
            sleep(Duration::from_millis(5)).await;
        }
    }
    are_sharing(&[&one, &two]).await;
}

#[tokio::test]
async fn without_etcd_every_gateway_checks_all_and_shares_again_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    let two = fleet.two().await;
    fleet.backends[0].kill().await;
    for gateway in &two {
        fail(gateway, &["chat-1"]).await;
    }
    fleet.etcd.kill();
    for gateway in &two {
        checks_all(gateway, "alone").await;
        assert_eq!(failing(gateway).await, ["chat-1"], "what was known stands");
    }
    fleet.backends[0].revive().await;
    fleet.backends[1].kill().await;
    for gateway in &two {
        fail(gateway, &["chat-2"]).await;
    }
    fleet.backends[1].revive().await;
    for gateway in &two {
        fail(gateway, &[]).await;
    }
    wait_until("each checks all", PATIENCE, async || {
        let asked = fleet.asked_in(12).await;
        println!("{asked:.2} checks an interval by two gateways that are alone");
        asked > 1.4
    })
    .await;

    fleet.backends[2].kill().await;
    for gateway in &two {
        fail(gateway, &["chat-3"]).await;
    }
    fleet.etcd.restart().await;
    let back = Instant::now();
    // The words in etcd are from before, when nobody but the first one failed.
    while back.elapsed() < 4 * LEASE_TTL {
        for gateway in &two {
            none_is_back(gateway, &["chat-3"], back).await;
        }
        sleep(Duration::from_millis(20)).await;
    }
    are_sharing(&two.each_ref()).await;
    fleet.backends[2].revive().await;
    for gateway in &two {
        fail(gateway, &[]).await;
    }
}

#[tokio::test]
async fn a_gateway_that_alone_lost_etcd_checks_all_and_so_do_the_others_for_it() {
    let fleet = Fleet::start().await;
    let link = Wire::to(fleet.etcd.address()).await;
    let mut config = fleet.config("gw-1");
    config["etcd"]["endpoints"] = json!([link.endpoint()]);
    let two = [Gateway::start(&config).await, fleet.gateway("gw-2").await];
    are_sharing(&two.each_ref()).await;
    link.cut();
    checks_all(&two[0], "alone").await;
    checks_all(&two[1], "shared").await;
    link.mend();
    are_sharing(&two.each_ref()).await;
}

#[tokio::test]
async fn a_gateway_that_may_not_write_checks_all_and_says_so_once() {
    let fleet = Fleet::start().await;
    for args in [
        &["user", "add", "root:rootpw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "gateway:secret"],
        &["role", "add", "gateway"],
        &["role", "grant-permission", "gateway", "read", "/ipconfig/v1/", "/ipconfig/v10"],
        &["user", "grant-role", "gateway", "gateway"],
        &["auth", "enable"],
    ] {
        fleet.etcd.ctl(args);
    }
    let password = fleet.etcd.dir().join("password");
    std::fs::write(&password, "secret").expect("a file in the directory");
    let mut config = fleet.config("gw-1");
    config["etcd"]["username"] = json!("gateway");
    config["etcd"]["password_file"] = json!(password);
    let gateway = Gateway::start(&config).await;
    checks_all(&gateway, "refused").await;
    // More than one try.
    wait_until("it tries again", PATIENCE, async || {
        gateway.metric("ipconfig_check_sharing_failures_total").await > Some(1.0)
    })
    .await;
    let log = gateway.log();
    let said: Vec<_> = log.lines().filter(|it| it.contains("cannot tell the others")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("[error]") && said[0].contains("write below checks/"), "{said:?}");

    let grant = ["role", "grant-permission", "gateway", "readwrite"];
    let range = ["/ipconfig/v1/checks/", "/ipconfig/v1/checks0", "--user", "root:rootpw"];
    fleet.etcd.ctl(&[grant, range].concat());
    wait_until("it shares", PATIENCE, async || state(&gateway).await == Some("shared")).await;
}

#[tokio::test]
async fn what_others_write_into_the_keys_is_refused_and_made_good() {
    let mut fleet = Fleet::start().await;
    let two = fleet.two().await;
    let bad = async || two[0].metric(r#"ipconfig_bad_records_total{reason="checks"}"#).await;
    let put = |value: &str| {
        fleet.etcd.ctl(&["put", &format!("{KEY}/gw-2/chat"), value]);
    };
    put("no JSON");
    wait_until("it is counted", PATIENCE, async || bad().await == Some(1.0)).await;
    are_sharing(&two.each_ref()).await;
    // What it might have said, and never did.
    let lie = |it: &Backend| (it.id.clone(), json!({ "addr": it.addr.to_string() }));
    let lies: serde_json::Map<_, _> = fleet.backends.iter().map(lie).collect();
    put(&json!({ "revision": 1_000_000, "failing": lies }).to_string());
    wait_until("it is made good", PATIENCE, async || {
        failing(&two[0]).await.is_empty()
            && fleet.etcd.ctl(&["get", &format!("{KEY}/gw-2/chat")]).contains(r#""failing":{}"#)
    })
    .await;
    fleet.etcd.ctl(&["del", "--prefix", KEY]);
    are_sharing(&two.each_ref()).await;
    fleet.backends[0].kill().await;
    for gateway in &two {
        fail(gateway, &["chat-1"]).await;
    }
}

/// Copies what comes, a while later.
async fn delay(from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin)) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        sleep(Duration::from_millis(10)).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn keys_that_take_longer_to_put_than_a_lease_lives_are_put_under_one_lease() {
    const KEYS: usize = 400;
    let etcd = Etcd::start().await;
    let far = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", far.local_addr().expect("a bound address"));
    let near = etcd.address();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = far.accept().await {
            let mut server = TcpStream::connect(near).await.expect("etcd");
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                tokio::select! {
                    () = delay(&mut from_client, &mut to_server) => {}
                    () = delay(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    let config = EtcdConfig { endpoints: vec![endpoint], ..EtcdConfig::default() };
    let key = |number| (format!("{KEY}/gw-1/service-{number}"), b"{}".to_vec());
    let notices = Notices { keys: (0..KEYS).map(key).collect(), round: 0, version: 7 };
    let (_wanted, wanted) = watch::channel(notices);
    let sought = Tenancy { standing: Standing::Sought, written: 0, failures: 0 };
    let (sender, tenancy) = watch::channel(sought);
    let tenure = Tenure::new(&config, LEASE_TTL);
    let announcer = Announcer::new(tenure, wanted, sender, SmallRng::seed_from_u64(1));
    let begun = Instant::now();
    let keeping = tokio::spawn(announcer.keep());
    wait_until("all is written", PATIENCE, async || {
        matches!(tenancy.borrow().standing, Standing::Held { .. })
    })
    .await;
    assert!(begun.elapsed() > LEASE_TTL, "that proves nothing: {:?}", begun.elapsed());
    assert_eq!(tenancy.borrow().written, 7);
    let written = etcd.ctl(&["get", "--prefix", "--keys-only", KEY]);
    assert_eq!(written.matches("service-").count(), KEYS);
    keeping.abort();
}
