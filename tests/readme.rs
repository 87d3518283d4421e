//! The README keeps its word: what it quotes is in the repository, what it
//! computes is what the code computes, and its commands run.

#[path = "support/mod.rs"]
mod support;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ipconfig::config::ScoreConfig;
use ipconfig::ranking::{Observed, rank};
use ipconfig::registry::{Member, State};
use ipconfig::score::scores;
use ipconfig::window::Load;
use ipconfig::wire;
use support::free_ports;

const README: &str = include_str!("../README.md");

/// The fenced blocks of one language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let after = README.split(&*fence).skip(1);
    after.map(|rest| rest.split("```").next().expect("a first part")).collect()
}

#[test]
fn the_synopsis_is_the_example_configuration() {
    assert_eq!(blocks("nginx")[0], include_str!("../nginx/example.conf"));
}

#[test]
fn the_worked_example_is_what_the_code_computes() {
    let load = |cpu, free_gib: f64, rate, latency_ms, errors| Load {
        cpu: Some(cpu),
        memory_free_bytes: Some(free_gib * f64::from(1 << 30)),
        rate: Some(rate),
        latency_ms: Some(latency_ms),
        errors: Some(errors),
        ..Load::default()
    };
    let loads = [
        load(0.3, 6.0, 120.0, 12.0, 0.0),
        load(0.6, 4.0, 100.0, 24.0, 0.0),
        load(0.3, 5.0, 80.0, 12.0, 0.1),
    ];
    let scores = scores(&ScoreConfig::default(), &loads.map(Some));
    let total: f64 = scores.iter().map(|score| score.exp()).sum();
    let rows = README.lines().skip_while(|line| !line.starts_with("| a |"));
    for (row, score) in rows.zip(scores) {
        let weight = score.exp();
        let end = format!("| {score:.3} | {weight:.3} | {:.1} % |", 100.0 * weight / total);
        assert!(row.ends_with(&end), "{row}\nends with\n{end}");
    }
}

/// A row of two columns of the page about `adaptive` is checked for each load: what a
/// fast and a slow instance can do, and what they get.
#[test]
fn the_worked_example_of_adaptive_is_what_the_code_computes() {
    let page = std::fs::read_to_string("doc/adaptive.md").expect("the page");
    let load = |rate, utilization, latency_ms| Load {
        rate: Some(rate),
        utilization: Some(utilization),
        latency_ms: Some(latency_ms),
        errors: Some(0.0),
        ..Load::default()
    };
    let even = (load(120.0, 0.3, 10.13), load(120.0, 0.9, 59.9));
    let busy = (load(302.0, 0.755, 12.8), load(78.0, 0.585, 32.8));
    for (all, (fast, slow)) in [("1,200", even), ("1,900", busy)] {
        let instances: Vec<_> = (0..10)
            .map(|number| {
                let text = format!(r#"{{"addr":"127.0.0.1:{}"}}"#, 9000 + number);
                wire::decode_instance(&format!("i{number}"), text.as_bytes()).expect("an instance")
            })
            .collect();
        let members: Vec<_> = (0..)
            .zip(&instances)
            .map(|(number, instance)| Member {
                instance,
                state: State::Reporting,
                load: Some(if number < 5 { fast } else { slow }),
                boot_id: None,
                report_age_ms: None,
            })
            .collect();
        let observed = [Observed::default(); 10];
        let ranking = rank(&members, &ScoreConfig::default(), &observed, None, 1000);
        let sum: f64 = ranking.entries.iter().map(|entry| entry.weight).sum();
        for (name, id, load) in [("fast", "i0", fast), ("slow", "i5", slow)] {
            let entry = ranking.entries.iter().find(|entry| entry.id == id).expect("it is ranked");
            let ability = entry.ability.expect("it is known");
            let row = format!(
                "| {all}/s | {name} | {}/s | {:.1} % | {} ms | {:.0}/s | {:.1} ms | {:.1} | {:.2} % |",
                load.rate.unwrap(),
                100.0 * load.utilization.unwrap(),
                load.latency_ms.unwrap(),
                ability.capacity_per_s,
                ability.service_ms,
                ability.concurrency(),
                100.0 * entry.weight / sum,
            );
            assert!(page.lines().any(|line| line == row), "no row {row}");
        }
    }
}

#[test]
fn every_link_into_the_repository_leads_somewhere() {
    let doc = std::fs::read_dir("doc").expect("a folder");
    let doc = doc.map(|entry| entry.expect("an entry").path());
    let mut pages: Vec<_> = doc.filter(|path| path.extension() == Some("md".as_ref())).collect();
    pages.push("README.md".into());
    for page in pages {
        let text = std::fs::read_to_string(&page).expect("a page");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("https://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = page.parent().expect("a folder");
            let target = match file {
                "" => page.clone(),
                file => folder.join(file),
            };
            assert!(target.exists(), "{page:?}: no file {link}");
            let target = || std::fs::read_to_string(&target).expect("a text");
            assert!(anchor.is_empty() || has_heading(&target(), anchor), "{page:?}: no {link}");
        }
    }
}

fn has_heading(page: &str, anchor: &str) -> bool {
    let heading = |line: &str| {
        let title = line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
        title.replace(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'), "")
    };
    page.lines().filter(|line| line.starts_with('#')).any(|line| heading(line) == anchor)
}

/// The block that a reader pastes, with its ports and the example's replaced.
#[test]
fn the_commands_by_hand_work() {
    let dir = tempfile::tempdir().expect("a folder");
    let [etcd, peers, gateway, http_1, http_2, grpc_1, grpc_2, exporter] = free_ports::<8>();
    let ports = [
        ("2379", etcd),
        ("8080", gateway),
        ("9001", http_1),
        ("9002", http_2),
        ("9101", grpc_1),
        ("9102", grpc_2),
    ];
    let moved = |text: &str| {
        ports.iter().fold(text.to_owned(), |text, (port, free)| {
            text.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{free}"))
        })
    };
    // The files that the block names, with those ports.
    let config = moved(include_str!("../nginx/example.json"));
    let config = config.replacen(
        "\"services\"",
        &format!("\"exporter\": {{ \"listen\": \"127.0.0.1:{exporter}\" }},\n  \"services\""),
        1,
    );
    let conf = moved(include_str!("../nginx/example.conf"))
        .replace("/tmp/ipconfig-example.pid", &dir.path().join("nginx.pid").to_string_lossy());
    for (name, text) in [("example.json", &*config), ("example.conf", &*conf)] {
        std::fs::write(dir.path().join(name), text).expect("a file");
    }
    for include in ["ipconfig.conf", "ipconfig_api.conf"] {
        std::fs::copy(format!("nginx/{include}"), dir.path().join(include)).expect("a copy");
    }

    let block = blocks("sh").into_iter().find(|block| block.contains("etcd --data-dir"));
    let block = block.expect("the block by hand");
    let urls = format!(
        "etcd --listen-client-urls http://127.0.0.1:{etcd} \
         --advertise-client-urls http://127.0.0.1:{etcd} \
         --listen-peer-urls http://127.0.0.1:{peers} \
         --initial-advertise-peer-urls http://127.0.0.1:{peers} \
         --initial-cluster default=http://127.0.0.1:{peers} --data-dir"
    );
    let script = moved(block)
        .lines()
        .filter(|line| !line.starts_with("cargo build")) // `make test` has built it
        .map(|line| line.replacen("etcd --data-dir", &urls, usize::from(line.starts_with("etcd "))))
        .map(|line| line.replace("$PWD/nginx/", &format!("{}/", dir.path().display())))
        .map(|line| {
            line.replace("nginx/example.conf", &dir.path().join("example.conf").to_string_lossy())
        })
        .map(|line| line.replace("etcdctl ", &format!("etcdctl --endpoints 127.0.0.1:{etcd} ")))
        .collect::<Vec<_>>()
        .join("\n");
    // What the block leaves running ends with it.
    let script = format!(
        "set -e\ntrap 'kill $(jobs -p); wait' EXIT\nexec 3>&1 >&2\n{}",
        script.replace("curl -s ", "curl -sS -w '\\n' >&3 ")
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    let (shown, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut lines = shown.lines().filter(|line| !line.is_empty());
    let mut next = || lines.next().unwrap_or_else(|| panic!("no more lines in {shown}\n{log}"));
    let served = next();
    assert!(served.contains("chat-1") || served.contains("chat-2"), "{served}\n{log}");
    let ranking = next();
    assert!(ranking.contains("\"mode\":\"live\""), "{ranking}\n{log}");
    assert_eq!(ranking.matches("\"state\":\"reporting\"").count(), 2, "{ranking}\n{log}");
    let discovered = next();
    assert!(discovered.contains("\"addr\":\"127.0.0.1:9\""), "{discovered}\n{log}");
}

/// The Rust files below a folder, its tests left out.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path());
    let below = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    let mut files: Vec<_> = entries.flat_map(below).collect();
    files.retain(|file| {
        !file.ends_with("tests.rs") && file.extension().is_some_and(|it| it == "rs")
    });
    files.sort();
    files
}

#[test]
fn unsafe_stands_where_the_page_on_memory_says_and_so_often() {
    let opens = ["unsafe {", "unsafe fn", "unsafe extern", "unsafe impl", "unsafe trait"];
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let mut rows = String::new();
    for file in sources(Path::new("src")) {
        let text = fs::read_to_string(&file).expect("a source");
        let lines = || text.lines().filter(is_code);
        let count: usize =
            opens.iter().map(|it| lines().filter(|line| line.contains(it)).count()).sum();
        if count > 0 {
            writeln!(rows, "| `{}` | {count} |", file.display()).expect("a string takes it");
        }
    }
    let page = include_str!("../doc/memory.md");
    assert!(page.contains(&format!("|---|---|\n{rows}\n")), "doc/memory.md should say:\n{rows}");
}
