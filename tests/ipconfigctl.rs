//! `ipconfigctl` as a shell sees it.

use std::path::Path;
use std::process::{Command, Output};

const EX_USAGE: i32 = 64;

fn ipconfigctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ipconfigctl"))
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

#[test]
fn check_refuses_what_the_exporter_cannot_ask() {
    let (file, output) = check(
        r#"{"services": {"chat": {"instances": [
            {"id": "a", "addr": "127.0.0.1:1", "status": "orca://127.0.0.1:2"}]}}}"#,
    );
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with(&format!("{file}: ")) && error.contains("orca://"), "{error}");
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
