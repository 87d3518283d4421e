//! An operator's control of a service by `ipconfigctl`, as a shell sees it, with a real
//! etcd; and what a real gateway makes of it.

#[path = "support/gateway.rs"]
mod gateway;
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use gateway::{Gateway, client, get};
use ipconfig::config::EtcdConfig;
use ipconfig::etcd::{Connection, Connector};
use ipconfig::wire::control::decode_control;
use serde_json::{Value, json};
use support::{Etcd, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// For what has to come; how soon is no law.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTROL: &str = "/ipconfig/v1/control/chat";

const FAILED: i32 = 1;
const WRONG: i32 = 2;
const NOT_FOUND: i32 = 3;
const EX_USAGE: i32 = 64;

/// An etcd with instances a, b and c of the service chat, and d of mail.
struct System {
    etcd: Etcd,
    client: Connection,
}

impl System {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..Default::default() };
        let client = Connector::new(&config).connect().await.expect("etcd answers");
        let system = Self { etcd, client };
        for (service, id, record) in [
            ("chat", "a", json!({"addr": "10.0.0.1:80"})),
            ("chat", "b", json!({"addr": "10.0.0.2:80"})),
            ("chat", "c", json!({"addr": "10.0.0.3:80", "weight": 2})),
            ("mail", "d", json!({"addr": "10.0.0.4:80"})),
        ] {
            system.put(&format!("/ipconfig/v1/instances/{service}/{id}"), &record).await;
        }
        system
    }

    async fn put(&self, key: &str, value: &Value) {
        self.client.put(key, value.to_string(), None).await.expect("etcd answers");
    }

    async fn read(&self, key: &str) -> Value {
        let entry = self.client.get(key).await.expect("etcd answers");
        entry.map_or(Value::Null, |entry| serde_json::from_slice(&entry.value).expect("JSON"))
    }

    /// The control of chat, but for who wrote it, and which gateways take.
    async fn control(&self) -> Value {
        let mut value = self.read(CONTROL).await;
        if !value.is_null() {
            decode_control(value.to_string().as_bytes()).expect("gateways take it");
            value.as_object_mut().expect("an object").remove("by");
        }
        value
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ipconfigctl"));
        command
            .env_remove("IPCONFIG_CONFIG")
            .env_remove("SUDO_USER")
            .env("USER", "ann")
            .args(args)
            .args(["--endpoints", &self.etcd.endpoint()]);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("ipconfigctl is built beside its tests")
    }

    /// What a command answers, which must have gone well.
    #[track_caller]
    fn answer(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn answer_json(&self, args: &[&str]) -> Value {
        let answer = self.answer(&[args, &["--json"]].concat());
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// The exit code and the error of a command that must fail, and that writes nothing.
    #[track_caller]
    fn failure(&self, args: &[&str]) -> (i32, String) {
        let before = self.etcd.ctl(&["get", "--prefix", "/ipconfig"]);
        let output = self.run(args);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
        assert_eq!(self.etcd.ctl(&["get", "--prefix", "/ipconfig"]), before, "{args:?}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().expect("it exits"), error)
    }
}

#[tokio::test]
async fn a_drain_stands_in_the_control_and_an_undrain_ends_the_registrations_own_too() {
    let system = System::start().await;
    let key = "/ipconfig/v1/instances/chat/a";
    let lease = system.client.grant_lease(Duration::from_secs(60)).await.unwrap();
    let before = json!({"addr": "10.0.0.1:80", "of_tomorrow": [1, {"b": null}], "drain": true});
    system.client.put(key, before.to_string(), Some(lease)).await.unwrap();

    let said = system.answer(&["drain", "chat", "a", "b", "--why", "a bad disk"]);
    assert!(said.starts_with("the control of chat is changed\n"), "{said}");
    assert_eq!(system.control().await, json!({"drain": ["a", "b"], "why": "a bad disk"}));
    assert_eq!(system.read(key).await, before, "its record is its own");
    let by = system.read(CONTROL).await["by"].as_str().unwrap_or_default().to_owned();
    assert!(by.starts_with("ann@") && by.len() > 4, "{by}");

    let again = system.answer(&["drain", "chat", "b"]);
    assert!(again.starts_with("the control of chat is so already\n"), "{again}");
    assert_eq!(system.control().await["why"], "a bad disk");

    let undone = system.answer_json(&["undrain", "chat", "a"]);
    assert_eq!((&undone["changed"], &undone["undrained"]), (&json!(true), &json!(["a"])));
    assert_eq!(system.control().await, json!({"drain": ["b"], "why": "a bad disk"}));
    let mut after = before.clone();
    after["drain"] = false.into();
    assert_eq!(system.read(key).await, after);
    assert_eq!(system.client.get(key).await.unwrap().unwrap().lease, Some(lease));

    let undone = system.answer(&["drain", "--undo", "chat", "b"]);
    assert_eq!(undone, "the control of chat is no longer there\n");
    assert!(system.client.get(CONTROL).await.unwrap().is_none(), "nothing is left in it");
}

#[tokio::test]
async fn each_command_changes_its_own_part_and_leaves_the_others() {
    let system = System::start().await;
    system.answer(&["weights", "chat", "a=3", "b=1"]);
    system.answer(&["disable", "chat", "c"]);
    system.answer(&["strategy", "chat", "chash"]);
    let mut expected = json!({"mode": "manual", "weights": {"a": 3.0, "b": 1.0},
        "disable": ["c"], "strategy": "chash"});
    assert_eq!(system.control().await, expected);

    system.answer(&["weights", "chat", "--add", "c=0.5"]);
    expected["weights"] = json!({"a": 3.0, "b": 1.0, "c": 0.5});
    assert_eq!(system.control().await, expected);
    system.answer(&["weights", "chat", "b=2"]);
    expected["weights"] = json!({"b": 2.0});
    assert_eq!(system.control().await, expected);

    system.answer(&["strategy", "chat", "--default"]);
    system.answer(&["weights", "chat", "--auto"]);
    assert_eq!(system.control().await, json!({"disable": ["c"]}));
    system.answer(&["enable", "chat", "c"]);
    assert!(system.client.get(CONTROL).await.unwrap().is_none());
    assert_eq!(system.answer(&["control", "chat"]), "chat has no control\n");
}

#[tokio::test]
async fn who_why_and_until_when_is_said_and_shown() {
    let system = System::start().await;
    let drain = ["drain", "chat", "a", "--by", "bob", "--why", "a bad day", "--for", "1h"];
    system.answer(&drain);
    let shown = system.answer_json(&["control", "chat"]);
    assert_eq!(
        (&shown["control"]["by"], &shown["control"]["why"]),
        (&json!("bob"), &json!("a bad day"))
    );
    let expires = shown["control"]["expires"].as_str().expect("a time");
    let left = humantime::parse_rfc3339(expires).unwrap().duration_since(SystemTime::now());
    assert!((3500..=3601).contains(&left.unwrap().as_secs()), "{expires}");
    let shown = system.answer(&["control", "chat"]);
    for says in ["drain     a\n", "by        bob\n", "why       a bad day\n", "Z (in "] {
        assert!(shown.contains(says), "{says}: {shown}");
    }

    let output = system.run(&["disable", "chat", "b"]);
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(warning.contains("this lapses at"), "{warning}");
    system.answer(&["control", "chat", "--for", "ever"]);
    let expected = json!({"drain": ["a"], "disable": ["b"]});
    assert_eq!(system.control().await, expected, "bob's reason is not ann's");
}

#[tokio::test]
async fn what_is_not_there_is_an_error_that_says_what_is() {
    let system = System::start().await;
    for (args, says) in [
        (
            &["drain", "chat", "a", "x", "y"][..],
            "service chat has no instance x, y; it has a, b, c",
        ),
        (&["weights", "chat", "x=1"], "no instance x"),
        (&["disable", "chat", "d"], "no instance d"),
        (&["undrain", "chat", "x"], "no instance x"),
        (&["drain", "chatt", "a"], "there is no service chatt; there is chat, mail"),
        (&["strategy", "chatt", "best"], "there is no service chatt"),
        (&["control", "chatt"], "there is no service chatt"),
        (&["control", "chatt", "--clear"], "there is no service chatt"),
    ] {
        let (code, error) = system.failure(args);
        assert_eq!(code, NOT_FOUND, "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
    system.answer(&["drain", "chat", "x", "--force"]);
    assert_eq!(system.control().await, json!({"drain": ["x"]}));
    // Whom the control names can be let in, registered or not.
    system.answer(&["undrain", "chat", "x"]);
    system.answer(&["drain", "later", "x", "--force"]);
    assert_eq!(system.read("/ipconfig/v1/control/later").await["drain"], json!(["x"]));
    system.answer(&["control", "later", "--clear"]);
    assert!(system.read("/ipconfig/v1/control/later").await.is_null());

    let file = system.etcd.dir().join("ipconfig.json");
    let config =
        json!({"services": {"files": {"instances": [{"id": "f", "addr": "10.0.0.6:80"}]}}});
    std::fs::write(&file, config.to_string()).unwrap();
    system.answer(&["drain", "files", "f", "--config", file.to_str().unwrap()]);
}

#[tokio::test]
async fn what_gateways_would_refuse_is_not_written() {
    let system = System::start().await;
    let dir = system.etcd.dir();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let draining = file("draining.json", r#"{"draining": ["a"]}"#);
    let absent = file("absent.json", r#"{"drain": ["x"]}"#);
    for (args, code, says) in [
        (&["weights", "chat", "a=0"][..], EX_USAGE, "no weight is above 0"),
        (&["weights", "chat", "--add", "a=1"], EX_USAGE, "not manual"),
        (&["control", "chat", "--file", &draining], EX_USAGE, "unknown field `draining`"),
        (&["control", "chat", "--file", "/nonexistent"], EX_USAGE, "/nonexistent"),
        (&["control", "chat", "--file", &absent], NOT_FOUND, "no instance x"),
    ] {
        let (found, error) = system.failure(args);
        assert_eq!(found, code, "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
    let whole = file("whole.json", r#"{"disable": ["c"], "by": "bob", "why": "x"}"#);
    system.answer(&["drain", "chat", "a"]);
    system.answer(&["control", "chat", "--file", &whole]);
    let expected = json!({"disable": ["c"], "by": "bob", "why": "x"});
    assert_eq!(system.read(CONTROL).await, expected);

    let mut command = system.command(&["control", "chat", "--file", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"drain": ["b"]}"#).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(system.control().await, json!({"drain": ["b"]}));
}

#[tokio::test]
async fn a_value_that_cannot_be_read_stays_until_somebody_says_that_it_may_go() {
    let system = System::start().await;
    system.put(CONTROL, &json!({"drain": ["a"], "of_tomorrow": 1})).await;
    for args in [&["drain", "chat", "b"][..], &["control", "chat"]] {
        let (code, error) = system.failure(args);
        assert!(code == FAILED && error.contains("unknown field `of_tomorrow`"), "{error}");
    }
    let chat = system.answer(&["ls", "chat"]);
    assert!(chat.contains("\nbad: /ipconfig/v1/control/chat: refused the control value"), "{chat}");
    system.answer(&["drain", "chat", "b", "--overwrite"]);
    assert_eq!(system.control().await, json!({"drain": ["b"]}));
    system.put(CONTROL, &json!(7)).await;
    system.answer(&["control", "chat", "--clear"]);
    assert!(system.client.get(CONTROL).await.unwrap().is_none());
}

#[tokio::test]
async fn of_changes_at_the_same_time_none_is_lost() {
    let system = System::start().await;
    let ids: Vec<_> = (0..8).map(|number| format!("x{number}")).collect();
    let start = |id: &String| {
        let mut command = system.command(&["drain", "chat", id, "--force"]);
        command.stdout(Stdio::null()).spawn().expect("ipconfigctl")
    };
    for mut child in ids.iter().map(start).collect::<Vec<_>>() {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(system.control().await, json!({"drain": ids}));
}

#[tokio::test]
async fn a_dry_run_shows_the_shares_before_and_after_and_writes_nothing() {
    let system = System::start().await;
    system.put(CONTROL, &json!({"drain": ["b"], "by": "bob"})).await;
    let before = system.client.get(CONTROL).await.unwrap();
    let weights = ["weights", "chat", "a=3", "b=9", "c=1", "--dry-run"];
    let expected = "
INSTANCE  BEFORE  AFTER
a         33.3 %  75.0 %
b         0.0 %   0.0 %   drained
c         66.7 %  25.0 %
by the weights of the registrations; --gateway URL asks for those in force
";
    let said = system.answer(&weights);
    assert!(said.starts_with("the control of chat would be changed\n\nservice   chat\n"), "{said}");
    assert!(said.ends_with(expected), "{said}");
    let said = system.answer_json(&weights);
    assert_eq!((&said["dry_run"], &said["changed"]), (&json!(true), &json!(true)));
    assert_eq!(said["control"]["weights"], json!({"a": 3.0, "b": 9.0, "c": 1.0}));
    assert_eq!(said["shares"]["by"], "registrations");
    assert_eq!(
        said["shares"]["instances"][1],
        json!({"id": "b", "before": 0.0, "after": 0.0, "out": "drained"})
    );

    system
        .put("/ipconfig/v1/instances/chat/a", &json!({"addr": "10.0.0.1:80", "drain": true}))
        .await;
    let said = system.answer_json(&["undrain", "chat", "a", "b", "--dry-run"]);
    assert_eq!((&said["control"], &said["undrained"]), (&Value::Null, &json!(["a"])));
    let afters: Vec<_> =
        said["shares"]["instances"].as_array().unwrap().iter().map(|it| &it["after"]).collect();
    assert_eq!(afters, [0.25, 0.25, 0.5]);
    assert_eq!(system.client.get(CONTROL).await.unwrap(), before);
    assert_eq!(system.read("/ipconfig/v1/instances/chat/a").await["drain"], true);
}

#[tokio::test]
async fn lists_show_what_the_control_does_and_who_wrote_it() {
    let system = System::start().await;
    let control = json!({"mode": "manual", "weights": {"a": 3}, "strategy": "best",
        "drain": ["b"], "disable": ["c"], "by": "bob", "why": "a bad day"});
    system.put(CONTROL, &control).await;
    let services = system.answer(&["ls"]);
    let expected = "\
SERVICE  INSTANCES  DRAINING  BAD  CONTROL
chat     3          1         0    manual weights, best, 1 drained, 1 disabled (bob)
mail     1          0         0    -
";
    assert_eq!(services, expected);
    let chat = system.answer(&["ls", "chat"]);
    for says in ["  weight 3 (bob)", "  drained, weight 0 (bob)", "  disabled, weight 0 (bob)"] {
        assert!(chat.contains(says), "{says}: {chat}");
    }
    let found = system.answer(&["get", "chat", "b"]);
    assert!(found.contains("control  drained, weight 0 (bob)\nwhy      a bad day\n"), "{found}");
    let found = system.answer_json(&["get", "chat", "c"]);
    assert_eq!(
        (&found["control"]["disabled"], &found["control"]["by"]),
        (&json!(true), &json!("bob"))
    );

    let lapsed = json!({"drain": ["b"], "expires": "2001-01-01T00:00:00Z"});
    system.put(CONTROL, &lapsed).await;
    assert_eq!(system.answer_json(&["get", "chat", "b"]).get("control"), None);
    assert!(system.answer(&["control", "chat"]).contains("(lapsed)"));
}

#[tokio::test]
async fn wrong_arguments_exit_with_2() {
    let system = System::start().await;
    for args in [
        &["weights", "chat"][..],
        &["weights", "chat", "a"],
        &["weights", "chat", "a=-1"],
        &["weights", "chat", "a=1", "a=2"],
        &["weights", "chat", "a=1", "--auto"],
        &["drain", "chat"],
        &["drain", "chat", "a/b"],
        &["drain", "chat", "a", "--for", "0s"],
        &["drain", "chat", "a", "--gateway", "http://127.0.0.1:1"],
        &["drain", "chat", "a", "--dry-run", "--gateway", "127.0.0.1:1"],
        &["strategy", "chat"],
        &["strategy", "chat", "fastest"],
        &["strategy", "chat", "best", "--default"],
        &["control", "chat", "--clear", "--file", "x"],
    ] {
        assert_eq!(system.failure(args).0, WRONG, "{args:?}");
    }
}

/// What stands between a line of three backticks with this word and the next such line.
fn blocks<'a>(page: &'a str, word: &str) -> Vec<&'a str> {
    let start = format!("\n```{word}\n");
    let block = |rest: &'a str| rest.split("\n```").next().unwrap_or_default();
    page.split(start.as_str()).skip(1).map(block).collect()
}

#[tokio::test]
async fn the_commands_of_the_page_run_and_its_value_is_one() {
    let page = include_str!("../doc/control.md");
    let system = System::start().await;
    for number in 1..=4 {
        let key = format!("/ipconfig/v1/instances/chat/chat-{number}");
        system.put(&key, &json!({"addr": format!("10.0.1.{number}:80")})).await;
    }
    let ctl =
        format!("{} --endpoints {}", env!("CARGO_BIN_EXE_ipconfigctl"), system.etcd.endpoint());
    let mut shown = String::new();
    for line in blocks(page, "sh").into_iter().flat_map(str::lines) {
        assert!(line.starts_with("ipconfigctl "), "{line}");
        let line = line.replacen("ipconfigctl", &ctl, 1);
        let line = line.replace(" --gateway http://127.0.0.1:8080", "");
        let output = Command::new("sh").args(["-c", &line]).env_remove("IPCONFIG_CONFIG").output();
        let output = output.expect("a shell");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {error}");
        if line.ends_with(" control chat") {
            shown = String::from_utf8(output.stdout).expect("text");
        }
    }
    let differ = |line: &&str| line.starts_with("by ") || line.starts_with("expires ");
    let lines = |text: &'static str| text.lines().filter(|it| !differ(it)).collect::<Vec<_>>();
    let told = blocks(page, "").into_iter().find(|block| block.starts_with("service "));
    let shown: &'static str = shown.leak();
    assert_eq!(lines(told.expect("what control shows")), lines(shown));

    let value = blocks(page, "json")[0];
    let read = decode_control(value.as_bytes()).expect("gateways take it");
    assert!(!read.weights.is_empty() && read.strategy.is_some() && !read.disable.is_empty());
}

// ------------------------------------------------------------------- a real gateway

/// A service that says its name, and nothing else, for ever.
async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a bound address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                _ = stream.read(&mut request).await;
                let length = name.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}"
                );
                _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_gateway_acts_on_a_change_at_once_and_tells_what_a_dry_run_foretold() {
    let system = System::start().await;
    for (id, weight) in [("a", 1), ("b", 1), ("c", 2)] {
        let record = json!({"addr": backend(id).await.to_string(), "weight": weight});
        system.put(&format!("/ipconfig/v1/instances/chat/{id}"), &record).await;
    }
    let mut gateway = Gateway::start(&json!({
        "etcd": {"endpoints": [system.etcd.endpoint()]},
        "services": {"chat": {"balance": {"strategy": "round_robin"}}},
    }))
    .await;
    gateway.wait_until_ranked(&["a", "b", "c"]).await;
    let client = client();
    let page = gateway.uri("/ipconfig/v1/services/chat");
    let view = async || {
        let body = get(&client, page.clone()).await.expect("the page").into_body();
        serde_json::from_slice::<Value>(&body).expect("JSON")
    };
    let served = async |requests: usize| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..requests {
            let answer = get(&client, gateway.uri("/chat/")).await.expect("an answer");
            let name = String::from_utf8_lossy(answer.body()).into_owned();
            *counts.entry(name).or_default() += 1;
        }
        counts
    };
    let api = page.to_string().replace("/ipconfig/v1/services/chat", "");
    let weights = ["weights", "chat", "a=3", "c=1", "--by", "ann", "--why", "a bad day"];

    let foretold = system.answer_json(&[&weights[..], &["--dry-run", "--gateway", &api]].concat());
    let shares = &foretold["shares"];
    assert_eq!((&shares["by"], &shares["gateway_mode"]), (&json!("gateway"), &json!("live")));
    let expected = json!([{"id": "a", "before": 0.25, "after": 0.75},
        {"id": "b", "before": 0.25, "after": 0.0}, {"id": "c", "before": 0.5, "after": 0.25}]);
    assert_eq!(shares["instances"], expected);

    system.answer(&weights);
    let written = Instant::now();
    wait_until("it is in force", PATIENCE, async || view().await["mode"] == "manual").await;
    println!("in force after {:?}", written.elapsed());
    let counts = BTreeMap::from([("a".to_owned(), 30), ("c".to_owned(), 10)]);
    assert_eq!(served(40).await, counts);
    let told = view().await;
    assert_eq!(
        (&told["control"]["by"], &told["control"]["why"]),
        (&json!("ann"), &json!("a bad day"))
    );

    let by = ["--by", "bob"];
    let drain = [&["drain", "chat", "a"][..], &by].concat();
    let foretold = system.answer_json(&[&drain[..], &["--dry-run", "--gateway", &api]].concat());
    let expected = json!([{"id": "a", "before": 0.75, "after": 0.0, "out": "drained"},
        {"id": "b", "before": 0.0, "after": 0.0}, {"id": "c", "before": 0.25, "after": 1.0}]);
    assert_eq!(foretold["shares"]["instances"], expected);
    system.answer(&drain);
    wait_until("it is drained", PATIENCE, async || view().await["control"]["by"] == "bob").await;
    assert_eq!(served(20).await, BTreeMap::from([("c".to_owned(), 20)]));

    let explained = system.answer(&["explain", "chat", "--gateway", &api]);
    let words = |id: &str| {
        let line = explained.lines().find(|line| line.split_whitespace().next() == Some(id));
        line.expect("a line for each").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(words("c").starts_with("c unreported 0 - 0.000 - 1.000 1 1.00 1.00 100.0 %"));
    assert!(words("a").starts_with("a draining - "), "{explained}");
    assert!(explained.contains("the operator's weight"), "{explained}");

    system.answer(&["control", "chat", "--clear"]);
    wait_until("it is over", PATIENCE, async || view().await["mode"] == "live").await;
    assert_eq!(served(40).await.len(), 3);

    let gone = ["drain", "mail", "d", "--dry-run", "--gateway", &api];
    let (code, error) = system.failure(&gone);
    assert!(code == NOT_FOUND && error.contains("has no service mail"), "{error}");
}

#[tokio::test]
async fn instances_of_other_clusters_are_listed_and_controlled_by_the_names_that_gateways_have() {
    let system = System::start().await;
    let file = system.etcd.dir().join("ipconfig.json");
    let config = json!({"services": {}, "etcd": {"prefixes": {"west": "/west"}}});
    std::fs::write(&file, config.to_string()).expect("the file is written");
    let with = ["--config", file.to_str().expect("a UTF-8 path")];
    let with = |args: &[&'static str]| [args, &with].concat();
    let key = "/west/instances/chat/a";
    let record = json!({"addr": "10.0.1.1:80", "drain": true, "max_in_flight": 7});
    system.put(key, &record).await;
    system.put("/west/instances/web/e", &json!({"addr": "10.0.1.2:80"})).await;

    let found = system.answer_json(&with(&["ls"]));
    let counts = |line: &Value| (line["service"].clone(), line["instances"].clone());
    let counts: Vec<_> = found["services"].as_array().expect("a list").iter().map(counts).collect();
    assert_eq!(counts, [("chat", 4), ("mail", 1), ("web", 1)].map(|(a, b)| (json!(a), json!(b))));
    let chat = system.answer_json(&with(&["ls", "chat"]));
    let ids: Vec<_> =
        chat["instances"].as_array().expect("a list").iter().map(|it| &it["id"]).collect();
    assert_eq!(ids, ["a", "b", "c", "west:a"]);
    let found = system.answer_json(&with(&["get", "chat", "west:a"]));
    assert_eq!(
        (&found["addr"], &found["labels"], &found["max_in_flight"]),
        (&json!("10.0.1.1:80"), &json!({"cluster": "west"}), &json!(7))
    );

    system.answer(&with(&["weights", "chat", "west:a=1", "a=3"]));
    let expected = json!({"mode": "manual", "weights": {"a": 3.0, "west:a": 1.0}});
    assert_eq!(system.control().await, expected);
    let undrained = system.answer_json(&with(&["undrain", "chat", "west:a"]));
    assert_eq!(undrained["undrained"], json!(["west:a"]));
    assert_eq!(system.read(key).await["drain"], json!(false));

    let (code, error) = system.failure(&with(&["drain", "chat", "west:x"]));
    assert!(code == NOT_FOUND && error.contains("it has a, b, c, west:a"), "{error}");
}
