//! What nginx, the gateways and the exporters are told in their files.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;

use crate::stage::{CHURN, Instance, PROBE, SERVICES, TRIED, WORKER};

/// What leads to the services, and to who answers.
pub fn locations() -> String {
    let services = SERVICES.map(|service| {
        format!(
            r#"
        location /{service}/ {{
            set $ipconfig_service {service};
            proxy_pass http://ipconfig/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream error timeout http_500 http_502 http_503 http_504;
            proxy_connect_timeout 2s;
            proxy_read_timeout 3s;
            add_header {TRIED} $upstream_addr always;
        }}
"#
        )
    });
    // Longer than any connection here is idle: one that nginx closes in the moment of
    // its use tells of nothing but that.
    let rest = format!(
        r#"
        keepalive_timeout 1h;
        location = {WORKER} {{ return 200 $pid; }}
"#
    );
    services.concat() + &rest
}

/// The configuration of a gateway or an exporter.
pub fn config_of(
    id: &str,
    endpoints: &[String],
    instances: &[Instance],
    interval: &str,
    listen: SocketAddr,
    folder: &Path,
) -> String {
    let named = instances.iter().filter(|instance| !instance.registers).map(|instance| {
        let status = format!("grpc://{}", instance.status);
        json!({ "id": instance.id, "addr": instance.addr, "status": status })
    });
    // An ejection that ends within the time of a fault.
    let health = json!({ "base_ejection": "1s", "max_ejection": "3s" });
    let config = json!({
        "etcd": { "endpoints": endpoints },
        "gateway": { "id": id },
        "discover": [PROBE, CHURN],
        "fallback": { "after": "2s" },
        "snapshot": { "path": folder.join(format!("{id}.snapshot")) },
        "services": {
            SERVICES[0]: { "health": health },
            SERVICES[1]: { "health": health, "instances": named.collect::<Vec<_>>() },
        },
        "exporter": {
            "id": id,
            "interval": interval,
            "timeout": "400ms",
            "listen": listen,
            "lease_ttl": "10s",
        },
    });
    format!("{config:#}\n")
}
