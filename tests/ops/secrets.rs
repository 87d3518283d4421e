//! A password goes from its file to etcd, and nowhere else.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use serde_json::json;

use crate::pages::get;
use crate::parts::{Manner, PATIENCE, Service, config};
use crate::support::{Etcd, Process, free_port, wait_until};

const PASSWORD: &str = "correct-horse-battery";

async fn etcd_with_an_exporters_user() -> Etcd {
    let etcd = Etcd::start().await;
    etcd.admit("exporter", PASSWORD, "/ipconfig/v1/", "/ipconfig/v10");
    etcd
}

/// The text as a log may have it: as it is, in base64, or as a list of bytes.
fn tells_password(text: &str) -> bool {
    let bytes = PASSWORD.bytes().map(|b| b.to_string()).collect::<Vec<_>>().join(", ");
    // base64 of "correct-horse-battery", whose length is a multiple of 3.
    [PASSWORD, "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5", &bytes].iter().any(|form| text.contains(form))
}

#[tokio::test]
async fn neither_the_most_talkative_log_nor_a_page_tells_the_password() {
    let etcd = etcd_with_an_exporters_user().await;
    let (_, service) = Service::start(Manner::Answers).await;
    let file = etcd.dir().join("password");
    for (password, is_right) in [(PASSWORD.to_owned(), true), (format!("{PASSWORD}2"), false)] {
        fs::write(&file, format!("{password}\n")).unwrap();
        let mut config = config(&etcd.endpoint(), &[service]);
        config["etcd"]["username"] = json!("exporter");
        config["etcd"]["password_file"] = json!(file);
        let path = etcd.dir().join("ipconfig.json");
        fs::write(&path, config.to_string()).unwrap();
        let log = etcd.dir().join(format!("exporter-{is_right}.log"));
        let mut exporter = Command::new(env!("CARGO_BIN_EXE_ipconfig-exporter"));
        exporter.env("IPCONFIG_CONFIG", &path).env("RUST_LOG", "trace");
        let _exporter = Process::start(&mut exporter, &log);

        let listen: SocketAddr = config["exporter"]["listen"].as_str().unwrap().parse().unwrap();
        let said = || fs::read_to_string(&log).unwrap_or_default();
        wait_until("the exporter is let in, or is not", PATIENCE, async || match is_right {
            true => {
                let page = get(listen, "/metrics").await;
                let puts = |line: &str| {
                    line.strip_prefix("ipconfig_exporter_etcd_puts_total ")?.parse().ok()
                };
                page.lines().find_map(puts).is_some_and(|puts: u64| puts > 0)
            }
            false => said().contains("authentication failed"),
        })
        .await;
        let log = said();
        assert!(log.contains("TRACE"), "RUST_LOG=trace did not reach it: {log}");
        for text in [log, get(listen, "/metrics").await, get(listen, "/healthz").await] {
            assert!(!text.is_empty());
            assert!(!tells_password(&text), "{text}");
        }
    }
}

#[test]
fn help_takes_passwords_from_files_alone_and_shows_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let config = json!({
        "etcd": { "username": "exporter", "password_file": file },
        "exporter": { "listen": SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())) },
        "services": {},
    });
    let path = dir.path().join("ipconfig.json");
    fs::write(&path, config.to_string()).unwrap();
    for program in [env!("CARGO_BIN_EXE_ipconfig-exporter"), env!("CARGO_BIN_EXE_ipconfigctl")] {
        let help = Command::new(program).arg("--help").env("IPCONFIG_CONFIG", &path).output();
        let help = help.unwrap();
        assert!(help.status.success(), "{program}");
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(!help.is_empty() && !tells_password(&help), "{help}");
        let options = help.split_whitespace().filter(|word| word.starts_with("--password"));
        for option in options {
            assert!(option.starts_with("--password-file"), "{option}: arguments are seen by all");
        }
    }
}
