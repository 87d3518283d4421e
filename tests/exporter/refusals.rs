//! What must not start.

use std::net::SocketAddr;

use crate::support::Etcd;
use serde_json::json;
use tokio::net::TcpListener;

use crate::parts::*;

#[tokio::test]
async fn wrong_arguments_and_refused_configurations_end_with_64_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let base = config("http://127.0.0.1:1", &[]);
    let with_status = |url: &str| {
        let mut config = base.clone();
        config["services"]["chat"]["instances"] =
            json!([{ "id": "chat-1", "addr": "127.0.0.1:9001", "status": url }]);
        config.to_string()
    };
    let scheme = file("scheme", with_status("http://127.0.0.1:9101"));
    let tls = file("tls", {
        let mut config = base.clone();
        config["exporter"]["tls"] = json!({ "ca": "/nowhere/ca.pem" });
        config.to_string()
    });
    let broken = file("broken", "{".into());
    let long = file("long", {
        let mut config = base.clone();
        config["exporter"]["timeout"] = json!("1s");
        config.to_string()
    });
    for (arguments, says) in [
        (vec!["--unheard-of"], "--unheard-of"),
        (vec!["--id", "a/b"], "--id"),
        (vec!["--config", "/nowhere/ipconfig.json"], "/nowhere/ipconfig.json"),
        (vec!["--config", &broken], "JSON"),
        (vec!["--config", &long], "exporter.timeout"),
        (vec!["--config", &scheme], "services.chat.instances[0].status"),
        (vec!["--config", &tls], "/nowhere/ca.pem"),
    ] {
        let output = run(&arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
    assert_eq!(run(&["--help"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_listen_address_in_use_ends_with_1_and_writes_nothing() {
    let etcd = Etcd::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let mut config = config(&etcd.endpoint(), &[SocketAddr::from(([127, 0, 0, 1], 1))]);
    config["exporter"]["listen"] = json!(listen);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ipconfig.json");
    std::fs::write(&path, config.to_string()).unwrap();

    let output = run(&["--config", path.to_str().unwrap()]).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&listen) && stderr.contains("in use"), "{stderr}");
    let etcd = connect(&etcd).await;
    for key in keys() {
        assert!(!exists(&etcd, key).await, "{key} was written");
    }
}
