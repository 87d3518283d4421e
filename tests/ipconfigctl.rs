//! `ipconfigctl` as a shell sees it, with a real etcd.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use ipconfig::config::EtcdConfig;
use ipconfig::etcd::{Connection, Connector};
use ipconfig::model::{InstanceReport, Report, Status};
use ipconfig::wire::encode_batch;
use serde_json::{Value, json};
use support::{Etcd, Process, free_port, wait_until};

const KEY: &str = "/ipconfig/v1/instances/chat/chat-1";

const NOT_FOUND: i32 = 3;
const EX_USAGE: i32 = 64;

/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

fn ipconfigctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ipconfigctl"))
        .env_remove("IPCONFIG_CONFIG")
        .env_remove("IPCONFIG_ENDPOINTS")
        .args(args)
        .output()
        .expect("ipconfigctl is built beside its tests")
}

fn check(text: &str) -> (String, Output) {
    let dir = tempfile::tempdir().expect("a directory for the file");
    let file = dir.path().join("ipconfig.json");
    std::fs::write(&file, text).expect("the file is written");
    let name = file.to_str().expect("a UTF-8 path").to_owned();
    let output = ipconfigctl(&["check", &name]);
    (name, output)
}

#[test]
fn check_counts_what_a_good_file_holds() {
    let (file, output) = check(
        r#"{"services": {
            "chat": {"instances": [{"id": "a", "addr": "127.0.0.1:1"},
                                   {"id": "b", "addr": "127.0.0.1:2"}]},
            "mail": {}}}"#,
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("{file}: ok: 2 services, 2 instances\n")
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

/// With `--json`: the error and the exit code that it names, which is the program's.
fn error_json(args: &[&str]) -> (String, i64) {
    let output = ipconfigctl(args);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let told = String::from_utf8_lossy(&output.stderr);
    let last = told.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|why| panic!("{why}: {told}"));
    let code = error["exit_code"].as_i64().expect("a number");
    assert_eq!(output.status.code().map(i64::from), Some(code), "{told}");
    (error["error"].as_str().expect("text").to_owned(), code)
}

#[tokio::test]
async fn with_json_an_error_is_json_whatever_went_wrong() {
    let etcd = Etcd::start().await;
    let missing = error_json(&["ls", "none", "--json", "--endpoints", &etcd.endpoint()]);
    assert_eq!(missing, ("there is no service none".into(), 3));
    let (error, code) = error_json(&["ls", "--json", "--endpoints", "http://127.0.0.1:1"]);
    assert!(error.contains("127.0.0.1:1") && code == 1, "{code} {error}");
    let (error, code) = error_json(&["check", "/nonexistent", "--json"]);
    assert!(error.starts_with("failed to read /nonexistent: ") && code == 64, "{code} {error}");
    let (error, code) = error_json(&["--json", "weights", "chat", "a=x"]);
    assert!(error.starts_with("invalid value 'a=x'") && code == 2, "{code} {error}");
    let (error, code) = error_json(&["--json", "weights", "chat", "a=1", "a=2"]);
    assert!(error.starts_with("two weights for a") && code == 2, "{code} {error}");
}

#[test]
fn with_json_check_tells_what_a_good_file_holds_in_json() {
    let dir = tempfile::tempdir().expect("a directory for the file");
    let file = dir.path().join("ipconfig.json");
    std::fs::write(&file, r#"{"services": {"chat": {}}}"#).expect("the file is written");
    let file = file.to_str().expect("a UTF-8 path");
    let output = ipconfigctl(&["check", file, "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found, json!({"file": file, "services": 1, "instances": 0}));
}

#[test]
fn what_a_command_is_told_behind_two_dashes_is_its_own() {
    let output = ipconfigctl(&["run", "--bad", "--", "it", "--json"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.starts_with("error: ") && output.status.code() == Some(2), "{told}");
}

#[test]
fn check_refuses_a_status_that_nobody_can_be_asked_for() {
    let (file, output) = check(
        r#"{"services": {"chat": {"instances": [
            {"id": "a", "addr": "127.0.0.1:1", "status": "http://127.0.0.1:2"}]}}}"#,
    );
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with(&format!("{file}: ")) && error.contains("http://"), "{error}");
    assert_eq!(output.status.code(), Some(EX_USAGE));
}

#[test]
fn check_of_a_bad_file_names_the_file_and_the_key_and_exits_with_64() {
    let (file, output) = check(r#"{"services": {}, "window": {"buckets": 0}}"#);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "{file}: window.buckets: invalid value: integer `0`, \
             expected an integer from 1 to 60 at line 1 column 40\n"
        )
    );
    assert_eq!(output.status.code(), Some(EX_USAGE));
}

#[test]
fn check_of_a_missing_file_says_so_and_exits_with_64() {
    let file = "/nonexistent/ipconfig.json";
    assert!(!Path::new(file).exists());
    let output = ipconfigctl(&["check", file]);
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!("failed to read {file}: No such file or directory (os error 2)\n")
    );
    assert_eq!(output.status.code(), Some(EX_USAGE));
}

// ------------------------------------------------------------------- etcd by hand

/// What a command answers at `etcd`, which must have gone well.
fn answer(etcd: &Etcd, args: &[&str]) -> String {
    let endpoint = etcd.endpoint();
    let output = ipconfigctl(&[args, &["--endpoints", &endpoint]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// The same, for programs.
fn answer_json(etcd: &Etcd, args: &[&str]) -> Value {
    let answer = answer(etcd, &[args, &["--json"]].concat());
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// The exit code and the error of a command that must fail.
fn failure(etcd: &Etcd, args: &[&str]) -> (i32, String) {
    let endpoint = etcd.endpoint();
    let output = ipconfigctl(&[args, &["--endpoints", &endpoint]].concat());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it exits"), error)
}

async fn connect(etcd: &Etcd) -> Connection {
    let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..Default::default() };
    Connector::new(&config).connect().await.expect("etcd answers")
}

async fn record(etcd: &Connection) -> Option<Value> {
    let entry = etcd.get(KEY).await.expect("etcd answers")?;
    Some(serde_json::from_slice(&entry.value).expect("JSON"))
}

#[tokio::test]
async fn a_registration_stays_until_it_is_deregistered() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let register = ["register", "chat", "chat-1", "--addr", "10.0.0.5:8080", "--zone", "a"];
    assert_eq!(answer(&etcd, &register), "chat/chat-1 is registered\n");
    let expected = json!({"addr": "10.0.0.5:8080", "weight": 1.0, "zone": "a", "drain": false});
    assert_eq!(record(&client).await, Some(expected));
    assert_eq!(client.get(KEY).await.unwrap().unwrap().lease, None);
    assert_eq!(answer(&etcd, &register), "chat/chat-1 is registered already\n");

    let deregister = ["deregister", "chat", "chat-1"];
    assert_eq!(
        answer_json(&etcd, &deregister),
        json!({"service": "chat", "id": "chat-1", "now": "deregistered", "changed": true})
    );
    assert_eq!(record(&client).await, None);
    let (code, error) = failure(&etcd, &deregister);
    assert_eq!(code, NOT_FOUND);
    assert_eq!(error, "ipconfigctl: service chat has no instance chat-1\n");
}

#[tokio::test]
async fn a_registration_with_a_ttl_lives_as_long_as_its_command() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipconfigctl"));
    command.env_remove("IPCONFIG_CONFIG").args([
        "register",
        "chat",
        "chat-1",
        "--addr",
        "10.0.0.5:8080",
        "--ttl",
        "1h",
    ]);
    assert_eq!(command.output().unwrap().status.code(), Some(2));
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipconfigctl"));
    command
        .env_remove("IPCONFIG_CONFIG")
        .args(["register", "chat", "chat-1", "--addr", "10.0.0.5:8080", "--ttl", "10s"])
        .args(["--endpoints", &etcd.endpoint()]);
    let mut register = Process::start(&mut command, &etcd.dir().join("ipconfigctl.log"));
    wait_until("it is registered", PATIENCE, async || record(&client).await.is_some()).await;
    assert!(client.get(KEY).await.unwrap().unwrap().lease.is_some());
    register.signal("TERM");
    wait_until("it ends", PATIENCE, async || !register.is_running()).await;
    assert_eq!(record(&client).await, None);
}

#[tokio::test]
async fn what_a_running_command_keeps_comes_back_after_a_deregistration_which_says_so() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let endpoint = etcd.endpoint();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipconfigctl"));
    command
        .env_remove("IPCONFIG_CONFIG")
        .args(["register", "chat", "chat-1", "--addr", "10.0.0.5:8080", "--ttl", "2s"])
        .args(["--endpoints", &endpoint]);
    let _register = Process::start(&mut command, &etcd.dir().join("ipconfigctl.log"));
    wait_until("it is registered", PATIENCE, async || record(&client).await.is_some()).await;
    let before = client.get(KEY).await.unwrap().unwrap();

    let output = ipconfigctl(&["deregister", "chat", "chat-1", "--endpoints", &endpoint]);
    assert_eq!(output.status.code(), Some(0));
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(warning.contains("registers it again"), "{warning}");
    wait_until("it is back", PATIENCE, async || record(&client).await.is_some()).await;
    let after = client.get(KEY).await.unwrap().unwrap();
    assert!(after.lease == before.lease && after.mod_revision > before.mod_revision);
}

#[tokio::test]
async fn lists_name_what_is_there_and_what_is_bad() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (code, error) = failure(&etcd, &["ls", "chat"]);
    assert_eq!((code, error.as_str()), (NOT_FOUND, "ipconfigctl: there is no service chat\n"));
    assert_eq!(answer_json(&etcd, &["ls"]), json!({"services": [], "bad": []}));

    let lease = client.grant_lease(Duration::from_secs(60)).await.unwrap();
    client.put(KEY, r#"{"addr":"10.0.0.5:8080","zone":"a"}"#, Some(lease)).await.unwrap();
    let put = async |name: &str, value: &str| {
        client.put(&format!("/ipconfig/v1/instances/{name}"), value, None).await.unwrap()
    };
    put("chat/chat-2", r#"{"addr":"10.0.0.6:8080","weight":2,"drain":true}"#).await;
    put("chat/chat-3", r#"{"addr":"chat.local:80"}"#).await;
    put("chat/x/y", "{}").await;
    put("chatter/c", r#"{"addr":"10.0.0.7:8080"}"#).await;

    let (services, chat) = (answer(&etcd, &["ls"]), answer(&etcd, &["ls", "chat"]));
    let bad_key = "bad: /ipconfig/v1/instances/chat/x/y: ";
    let expected = "\
SERVICE  INSTANCES  DRAINING  BAD  CONTROL
chat     2          1         1    -
chatter  1          0         0    -
";
    assert_eq!(services.split(bad_key).next(), Some(expected));
    let expected = "\
ID      ADDR           WEIGHT  ZONE  STATUS  DRAIN  LEASE  CONTROL  REPORT
chat-1  10.0.0.5:8080  1       a     -       no     yes    -        -
chat-2  10.0.0.6:8080  2       -     -       yes    no     -        -
bad: /ipconfig/v1/instances/chat/chat-3: failed to read addr: ";
    assert!(chat.starts_with(expected) && chat.contains(bad_key), "{chat}");

    let services = answer_json(&etcd, &["ls"]);
    let chat = json!({"service": "chat", "instances": 2, "draining": 1, "bad": 1});
    assert_eq!(services["services"][0], chat);
    let chat = answer_json(&etcd, &["ls", "chat"]);
    let ids: Vec<_> = chat["instances"].as_array().unwrap().iter().map(|it| &it["id"]).collect();
    assert_eq!(ids, ["chat-1", "chat-2"]);
    assert_eq!(
        (&chat["bad"][0]["reason"], &chat["bad"][1]["reason"]),
        (&json!("addr"), &json!("key"))
    );
}

#[tokio::test]
async fn the_last_report_is_found_though_later_batches_left_it_out() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    for (id, port) in [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)] {
        let addr = format!("10.0.0.5:{port}");
        let status = format!("grpc://10.0.0.5:{port}");
        answer(&etcd, &["register", "chat", id, "--addr", &addr, "--status", &status]);
    }
    let report = |id: &str, report: Report| InstanceReport::new(id, report);
    let status = Status { boot_id: 1, seq: 1, requests: 40, errors: 2, ..Default::default() };
    let silent_for = Duration::from_secs(7);
    let shard = |exporter: &str| format!("/ipconfig/v1/status/{exporter}/chat/0");
    for batch in [
        vec![report("a", Status { requests: 30, ..status.clone() }.into())],
        vec![report("a", status.into()), report("b", Report::Serving)],
        vec![],
        vec![report("c", Report::NotServing)],
        vec![],
    ] {
        client.put(&shard("exporter-1"), encode_batch(&batch), None).await.unwrap();
    }
    let batch = [report("d", Report::Unreachable { silent_for })];
    client.put(&shard("exporter-2"), encode_batch(&batch), None).await.unwrap();
    client.put("/ipconfig/v1/status/exporter-1/mail/0", "no protobuf", None).await.unwrap();

    let chat = answer(&etcd, &["ls", "chat"]);
    let column = chat.lines().next().unwrap().find("REPORT").unwrap();
    let reports: Vec<_> = chat.lines().skip(1).map(|line| &line[column..]).collect();
    let expected = [
        "reporting (exporter-1)",
        "serving (exporter-1)",
        "not serving (exporter-1)",
        "unreachable for 7s (exporter-2)",
        "-",
    ];
    assert_eq!(reports, expected);

    let found = answer_json(&etcd, &["get", "chat", "a"]);
    assert_eq!(found["report"]["figures"]["requests"], 40);
    assert_eq!(found["report"]["exporter"], "exporter-1");
    let found = answer_json(&etcd, &["get", "chat", "d"]);
    assert_eq!(
        (&found["report"]["state"], &found["report"]["silent_ms"]),
        (&json!("unreachable"), &json!(7000))
    );
    let found = answer(&etcd, &["get", "chat", "a"]);
    assert!(found.contains("requests  40, 2 of them failed\n"), "{found}");
    assert_eq!(failure(&etcd, &["get", "chat", "z"]).0, NOT_FOUND);
}

#[tokio::test]
async fn exporters_are_listed_by_what_they_say_of_themselves() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let record = json!({"version": "0.1.0", "listen": "127.0.0.1:9180", "interval_ms": 1000});
    client.put("/ipconfig/v1/exporters/exporter-1", record.to_string(), None).await.unwrap();
    let expected = "\
EXPORTER    VERSION  LISTEN          INTERVAL
exporter-1  0.1.0    127.0.0.1:9180  1s
";
    assert_eq!(answer(&etcd, &["ls", "--exporters"]), expected);
    let found = answer_json(&etcd, &["ls", "--exporters"]);
    assert_eq!(found["exporters"][0]["listen"], "127.0.0.1:9180");
}

#[tokio::test]
async fn every_endpoint_is_tried_and_each_failure_is_told() {
    let etcd = Etcd::start().await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let both = format!("{dead},{}", etcd.endpoint());
    assert_eq!(ipconfigctl(&["ls", "--endpoints", &both]).status.code(), Some(0));

    let dead_too = format!("http://127.0.0.1:{}", free_port());
    let output = ipconfigctl(&["ls", "--endpoints", &format!("{dead},{dead_too}")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for part in [&dead, &dead_too, "Connection refused"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn where_etcd_is_stands_in_the_file_and_arguments_win() {
    let etcd = Etcd::start().await;
    let file = etcd.dir().join("ipconfig.json");
    let config = json!({"services": {}, "allow": ["10.0.0.0/8"],
        "etcd": {"endpoints": [etcd.endpoint()], "prefix": "/other"}});
    std::fs::write(&file, config.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let register = ["register", "chat", "chat-1", "--config", file, "--addr"];
    assert_eq!(ipconfigctl(&[&register[..], &["10.0.0.5:80"]].concat()).status.code(), Some(0));
    let client = connect(&etcd).await;
    assert!(client.get("/other/instances/chat/chat-1").await.unwrap().is_some());
    assert_eq!(ipconfigctl(&["ls", "chat", "--config", file]).status.code(), Some(0));
    let elsewhere = ["ls", "chat", "--config", file, "--prefix", "/ipconfig/v1"];
    assert_eq!(ipconfigctl(&elsewhere).status.code(), Some(NOT_FOUND));

    let refused = ipconfigctl(&[&register[..], &["192.0.2.1:80"]].concat());
    assert_eq!(refused.status.code(), Some(EX_USAGE));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("192.0.2.1:80 is outside of allow: 10.0.0.0/8"), "{error}");
}

#[test]
fn wrong_arguments_exit_with_2_and_refused_ones_with_64() {
    let code = |args: &[&str]| ipconfigctl(args).status.code();
    assert_eq!(code(&["ls", "a/b"]), Some(2));
    assert_eq!(code(&["register", "chat", "a", "--addr", "chat.local:80"]), Some(2));
    assert_eq!(
        code(&["register", "chat", "a", "--addr", "10.0.0.5:80", "--weight", "-1"]),
        Some(2)
    );
    assert_eq!(code(&["frobnicate"]), Some(2));
    assert_eq!(code(&["ls", "--endpoints", "127.0.0.1:2379"]), Some(EX_USAGE));
    assert_eq!(code(&["ls", "--username", "operator"]), Some(EX_USAGE));
    assert_eq!(code(&["ls", "--config", "/nonexistent/ipconfig.json"]), Some(EX_USAGE));
}
