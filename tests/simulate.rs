//! `ipconfigctl simulate` as a shell sees it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const WRONG_ARGUMENTS: i32 = 2;
const EX_USAGE: i32 = 64;

const SCENARIO: &str = r#"{
    "about": "two speeds",
    "servers": [{"name": "fast", "count": 2, "service": {"mean": "5ms"}},
                {"name": "slow", "count": 2, "service": {"mean": "20ms"}}],
    "traffic": {"rate": 150},
    "faults": [{"lie": {"servers": "slow", "count": 1, "from": "6s", "tells": "nan"}}],
    "policies": ["random", "p2c"],
    "seeds": [1, 2],
    "duration": "8s",
    "warmup": "2s"
}"#;

fn simulate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ipconfigctl"))
        .env_remove("IPCONFIG_CONFIG")
        .arg("simulate")
        .args(args)
        .output()
        .expect("ipconfigctl is built beside its tests")
}

fn file(dir: &Path, text: &str) -> String {
    let file: PathBuf = dir.join("two-speeds.json");
    std::fs::write(&file, text).expect("the file is written");
    file.to_str().expect("a UTF-8 path").to_owned()
}

/// What the programs would log in a simulated world is no news in this one.
fn stdout(output: &Output) -> String {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_scenario_becomes_a_table_with_a_line_a_policy() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), SCENARIO);
    let table = stdout(&simulate(&[&file]));
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines[0], "two-speeds: two speeds (seeds 1, 2; ms)");
    assert!(lines[1].starts_with("POLICY  MEAN"), "{table}");
    let policies: Vec<_> = lines[2..4].iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(policies, ["random", "p2c"]);
    assert_eq!(table, stdout(&simulate(&[&file])), "the same each time");
    assert_ne!(table, stdout(&simulate(&[&file, "--seed", "3"])));
}

#[test]
fn arguments_stand_in_place_of_the_files_values() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), SCENARIO);
    let args = [&file, "--json", "--policy", "adaptive,random", "--seed", "7", "--seconds", "2.5"];
    let found: Value = serde_json::from_str(&stdout(&simulate(&args))).unwrap();
    let scenario = &found[0];
    assert_eq!(scenario["scenario"], "two-speeds");
    assert_eq!(scenario["seeds"], serde_json::json!([7]));
    let policies = scenario["policies"].as_array().unwrap();
    let names: Vec<_> = policies.iter().map(|it| it["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["adaptive", "random"]);
    for policy in policies {
        // 150 a second for 1.25 s that count.
        let requests = policy["requests"].as_u64().unwrap();
        assert!((120..260).contains(&requests), "{requests}");
        let [mean, p50, p99, p999] =
            ["mean_ms", "p50_ms", "p99_ms", "p999_ms"].map(|key| policy[key].as_f64().unwrap());
        assert!(5.0 < mean && p50 < p99 && p99 <= p999, "{policy}");
        let shares = policy["timeline"][60]["shares"].as_array().unwrap();
        let sum: f64 = shares.iter().map(|share| share.as_f64().unwrap()).sum();
        assert!(shares.len() == 2 && ((sum - 1.0).abs() < 1e-9 || sum == 0.0), "{shares:?}");
    }
}

#[test]
fn plots_are_svg_with_their_text_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = file(dir.path(), SCENARIO);
    let plots = dir.path().join("new/plots");
    stdout(&simulate(&[&file, "--plot", plots.to_str().unwrap()]));
    let mut names: Vec<_> = std::fs::read_dir(&plots)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = ["latency", "share-p2c", "share-random"];
    assert_eq!(names, expected.map(|what| format!("two-speeds-{what}.svg")));
    for (name, texts) in [(&names[0], ["random", "p2c"]), (&names[1], ["fast", "slow"])] {
        let svg = std::fs::read_to_string(plots.join(name)).unwrap();
        assert!(svg.starts_with("<svg ") && svg.contains("<polyline "), "{name}");
        for text in texts {
            assert!(svg.contains(&format!("\n{text}\n</text>")), "{name} has no {text}");
        }
    }
    let refused = simulate(&[&file, "--plot", &file]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("failed to write plots into"), "{error}");
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn the_policies_are_listed() {
    let listed = stdout(&simulate(&["--list"]));
    for name in ["adaptive", "p2c", "random"] {
        assert!(listed.lines().any(|line| line == name), "{listed}");
    }
    let found: Vec<String> =
        serde_json::from_str(&stdout(&simulate(&["--list", "--json"]))).unwrap();
    assert_eq!(found, listed.lines().collect::<Vec<_>>());
}

#[test]
fn a_bad_scenario_is_refused_by_file_and_key_before_anything_is_simulated() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), SCENARIO);
    let bad = dir.path().join("bad.json");
    std::fs::write(&bad, SCENARIO.replace("150", "\"many\"")).unwrap();
    let bad = bad.to_str().unwrap();
    let output = simulate(&[&good, bad]);
    assert_eq!(output.status.code(), Some(EX_USAGE));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let error = String::from_utf8_lossy(&output.stderr);
    let begin = format!("ipconfigctl: {bad}: traffic.rate: ");
    assert!(error.starts_with(&begin) && error.contains("\"many\""), "{error}");

    let output = simulate(&["/nowhere.json"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/nowhere.json"), "{error}");
    assert_eq!(output.status.code(), Some(EX_USAGE));
}

#[test]
fn wrong_arguments_say_what_is_allowed() {
    for (args, part) in [
        (&["x.json", "--policy", "fastest"][..], "adaptive"),
        (&["x.json", "--seconds", "0"], "1 to 3600"),
        (&["x.json", "--seed", "one"], "--seed"),
        (&[], "FILE"),
    ] {
        let output = simulate(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(part), "{error}");
        assert_eq!(output.status.code(), Some(WRONG_ARGUMENTS));
    }
}
