//! The systemd units. systemd-analyze, which knows more, is not on every machine
//! that runs these tests.

const UNITS: [(&str, &str); 3] = [
    ("exporter", include_str!("../../examples/systemd/ipconfig-exporter.service")),
    ("agent", include_str!("../../examples/systemd/ipconfig-exporter-agent@.service")),
    ("service", include_str!("../../examples/systemd/chat.service")),
];

/// The values of a key, in order; a line that ends in `\` goes on.
fn values(unit: &str, key: &str) -> Vec<String> {
    let unit = unit.replace("\\\n", "");
    let line = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned());
    unit.lines().filter_map(line).collect()
}

#[test]
fn every_unit_starts_what_make_install_installs_and_gives_up_on_a_refused_configuration() {
    for (name, unit) in UNITS {
        let starts = values(unit, "ExecStart");
        let program = starts[0].split(' ').next().unwrap_or_default();
        let installed = ["/usr/local/bin/ipconfig-exporter", "/usr/local/bin/ipconfigctl"];
        assert!(installed.contains(&program), "{name}: {program}");
        assert_eq!(values(unit, "Type"), ["exec"], "{name}");
        assert_eq!(values(unit, "Restart"), ["on-failure"], "{name}");
        assert_eq!(values(unit, "RestartPreventExitStatus"), ["64"], "{name}");
        assert_eq!(values(unit, "ExecStartPre"), [""; 0], "{name}: it would be tried for ever");
    }
}

#[test]
fn every_unit_is_without_rights_that_it_does_not_need() {
    for (name, unit) in UNITS {
        for (key, value) in [
            ("DynamicUser", "yes"),
            ("NoNewPrivileges", "yes"),
            ("CapabilityBoundingSet", ""),
            ("ProtectSystem", "strict"),
            ("ProtectHome", "yes"),
            ("PrivateDevices", "yes"),
            ("RestrictNamespaces", "yes"),
            ("UMask", "0077"),
        ] {
            assert_eq!(values(unit, key), [value], "{name}: {key}");
        }
    }
}

#[test]
fn the_agent_sees_the_process_that_it_tells_of() {
    let (_, agent) = UNITS[1];
    for (key, value) in [("ProtectProc", "default"), ("ProcSubset", "all"), ("PrivateUsers", "no")]
    {
        assert_eq!(values(agent, key), [value], "{key}");
    }
    assert_eq!(values(agent, "PrivateNetwork"), [""; 0]);
}

#[test]
fn the_service_has_time_to_leave() {
    let (_, service) = UNITS[2];
    assert_eq!(values(service, "KillMode"), ["mixed"], "ipconfigctl passes the signal on");
    let start = &values(service, "ExecStart")[0];
    let words: Vec<_> = start.split_whitespace().collect();
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u32>().unwrap();
    let after = |flag| seconds(words[1 + words.iter().position(|word| *word == flag).unwrap()]);
    let limit = seconds(&values(service, "TimeoutStopSec")[0]);
    assert!(after("--drain-wait") + after("--stop-wait") < limit, "{start}");
}
