//! The parts and how they are put together: etcd, four services, the exporter
//! and nginx, all private, on free loopback ports.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::StatusCode;
use serde_json::json;

use crate::failure::{Context, Failure};
use crate::gateway::{self, Client, Gateway};
use crate::parts::Part;
use crate::programs::Programs;
use crate::support::{Etcd, free_ports};

/// The service that the instances belong to.
pub const SERVICE: &str = "chat";

/// The response header in which nginx tells the addresses that it tried.
pub const TRIED: &str = "x-tried";

const INSTANCES: usize = 4;

/// The instances to begin with: three fast ones and a slow one.
const KNOBS: [Knob; INSTANCES] = [Knob::ms(4), Knob::ms(4), Knob::ms(25), Knob::ms(4)];

/// Everything that runs.
pub struct Stage {
    pub gateway: Gateway,
    pub exporter_addr: SocketAddr,
    pub etcd: Etcd,
    pub instances: Vec<Instance>,
    folder: PathBuf,
    programs: Programs,
    client: Client,
    exporter: Option<Part>,
    nginx: Part,
}

/// A demo service that may be running.
pub struct Instance {
    pub id: String,
    pub addr: SocketAddr,
    pub status_addr: SocketAddr,
    pub knob: Knob,
    part: Option<Part>,
}

/// How a demo service behaves.
#[derive(Clone, Copy)]
pub struct Knob {
    pub delay_ms: u32,
    pub fail_percent: u32,
}

impl Stage {
    /// Starts everything but the exporter, and returns when it answers.
    pub async fn start(folder: &Path) -> Result<Self, Failure> {
        let programs = Programs::find()?;
        let client = gateway::client();
        let ports: [u16; 2 * INSTANCES + 2] = free_ports();
        let mut addrs = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).into_iter();
        let mut addr = || addrs.next().expect("a port for each use");
        let (gateway, exporter_addr) = (Gateway::new(addr()), addr());

        let etcd = Etcd::start().await;
        let mut instances = Vec::new();
        for (number, knob) in (1..).zip(KNOBS) {
            let id = format!("{SERVICE}-{number}");
            instances.push(Instance { id, addr: addr(), status_addr: addr(), knob, part: None });
        }
        for instance in &mut instances {
            instance.start(&programs, &client, folder).await?;
        }
        let config = config(&etcd, &instances, exporter_addr);
        write(&folder.join("ipconfig.json"), &config)?;
        let conf = programs.nginx_conf(gateway.addr, &location())?;
        write(&folder.join("nginx.conf"), &conf)?;
        let mut nginx = Command::new(&programs.nginx);
        nginx.env("IPCONFIG_CONFIG", folder.join("ipconfig.json"));
        nginx.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
        let mut nginx = Part::start("nginx", &mut nginx, folder)?;
        nginx.ready(async || gateway.is_ready().await).await?;
        Ok(Self {
            gateway,
            exporter_addr,
            etcd,
            instances,
            folder: folder.to_owned(),
            programs,
            client,
            exporter: None,
            nginx,
        })
    }

    /// Starts the exporter; from then on the ranking goes by reports.
    pub async fn start_exporter(&mut self) -> Result<(), Failure> {
        let mut command = Command::new(&self.programs.exporter);
        command.arg("--config").arg(self.folder.join("ipconfig.json"));
        let mut exporter = Part::start("exporter", &mut command, &self.folder)?;
        let page = gateway::uri(self.exporter_addr, "/healthz");
        exporter.ready(async || gateway::is_well(&self.client, &page).await).await?;
        self.exporter = Some(exporter);
        Ok(())
    }

    /// Makes an instance behave otherwise.
    pub async fn turn(&mut self, index: usize, knob: Knob) -> Result<(), Failure> {
        let instance = &mut self.instances[index];
        let answer = gateway::get(&self.client, instance.knob_uri(knob)).await?;
        if answer.status() != StatusCode::OK {
            let source = format!("it answers {}", answer.status()).into();
            return Err(Failure::Page { uri: instance.knob_uri(knob).to_string(), source });
        }
        instance.knob = knob;
        Ok(())
    }

    /// Kills an instance as `kill -9` does.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut part) = self.instances[index].part.take() {
            part.kill();
        }
    }

    /// Starts an instance that was killed, at the same address.
    pub async fn restart(&mut self, index: usize) -> Result<(), Failure> {
        self.instances[index].start(&self.programs, &self.client, &self.folder).await
    }

    /// Where the logs and the configuration are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fails if a part is gone that was not killed on purpose.
    pub fn check(&mut self) -> Result<(), Failure> {
        let instances = self.instances.iter_mut().filter_map(|instance| instance.part.as_mut());
        let mut parts = instances.chain(self.exporter.as_mut()).chain([&mut self.nginx]);
        parts.try_for_each(Part::check)
    }

    /// Stops everything in the order in which nobody misses anybody, and leaves
    /// etcd's log beside the others.
    pub async fn stop(mut self) {
        self.nginx.stop().await;
        let exporter = self.exporter.iter_mut();
        let instances = self.instances.iter_mut().filter_map(|instance| instance.part.as_mut());
        for part in exporter.chain(instances) {
            part.stop().await;
        }
        if let Err(error) = fs::copy(self.etcd.dir().join("log"), self.folder.join("etcd.log")) {
            eprintln!("demo: failed to keep etcd's log: {error}");
        }
    }
}

impl Instance {
    async fn start(
        &mut self,
        programs: &Programs,
        client: &Client,
        folder: &Path,
    ) -> Result<(), Failure> {
        let mut command = Command::new(&programs.demo_service);
        command.args(["--id", &self.id]);
        command.args(["--http", &self.addr.to_string()]);
        command.args(["--status", &self.status_addr.to_string()]);
        command.args(["--delay-ms", &self.knob.delay_ms.to_string()]);
        command.args(["--fail-percent", &self.knob.fail_percent.to_string()]);
        let part = self.part.insert(Part::start(&self.id, &mut command, folder)?);
        let page = gateway::uri(self.addr, "/healthz");
        part.ready(async || gateway::is_well(client, &page).await).await
    }

    /// Its process id; `None` while it is killed.
    pub fn process_id(&self) -> Option<u32> {
        self.part.as_ref().map(Part::id)
    }

    /// What turns its knobs when it is read.
    pub fn knob_uri(&self, knob: Knob) -> hyper::Uri {
        let Knob { delay_ms, fail_percent } = knob;
        let path = format!("/knob?delay_ms={delay_ms}&fail_percent={fail_percent}");
        gateway::uri(self.addr, &path)
    }
}

impl Knob {
    /// Serves within so many milliseconds on average, and never fails.
    pub const fn ms(delay_ms: u32) -> Self {
        Self { delay_ms, fail_percent: 0 }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delay_ms, fail_percent } = self;
        match fail_percent {
            0 => f.pad(&format!("{delay_ms} ms")),
            _ => f.pad(&format!("{delay_ms} ms {fail_percent}% 503")),
        }
    }
}

/// Sends `/<service>/` through the plugin, and says in each answer who was tried.
fn location() -> String {
    format!(
        r#"
        location /{SERVICE}/ {{
            set $ipconfig_service {SERVICE};
            proxy_pass http://ipconfig/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream error timeout http_502 http_503 http_504;
            proxy_connect_timeout 1s;
            proxy_read_timeout 5s;
            add_header {TRIED} $upstream_addr always;
        }}
"#
    )
}

/// The one file that nginx and the exporter read. The times are the shortest that
/// are of use, so that a short demo shows all there is.
fn config(etcd: &Etcd, instances: &[Instance], exporter_addr: SocketAddr) -> String {
    let instances = instances.iter().map(|instance| {
        let status = format!("grpc://{}", instance.status_addr);
        json!({ "id": instance.id, "addr": instance.addr, "status": status })
    });
    let config = json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "window": { "buckets": 5, "bucket": "250ms" },
        // What is registered by hand shows up too.
        "discover": true,
        "fallback": { "after": "1s" },
        "services": { SERVICE: {
            "balance": { "strategy": "adaptive" },
            "instances": instances.collect::<Vec<_>>(),
        } },
        "exporter": {
            "interval": "250ms",
            "timeout": "200ms",
            "listen": exporter_addr,
            "lease_ttl": "5s",
        },
    });
    format!("{config:#}\n")
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).context(format!("write {}", path.display()))
}
