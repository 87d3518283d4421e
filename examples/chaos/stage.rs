//! The parts: etcd, one or three; two gateways, each behind ways of its own to it; two
//! exporters; and the services' instances, of which most register themselves.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, GetOptions, PutOptions};
use ipconfig::wire;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::failure::{Context, Failure};
use crate::files::{config_of, locations};
use crate::gateway;
use crate::host::{Host, children_of, send};
use crate::parts::Part;
use crate::programs::Programs;
use crate::support::wire::Wire;
use crate::support::{Etcd, free_port};
use crate::wait::until;

/// The response header in which a gateway tells the addresses that it tried.
pub const TRIED: &str = "x-tried";

/// The page on which a gateway tells which worker answers.
pub const WORKER: &str = "/worker";

/// The one whose instances register themselves, under `ipconfigctl run`, and the one
/// whose instances the configuration names, so that exporters register them.
pub const SERVICES: [&str; 2] = ["chat", "mail"];

/// A service without requests: a key of it tells whether gateways follow etcd.
pub const PROBE: &str = "probe";

/// A service without requests, whose instances come and go.
pub const CHURN: &str = "churn";

/// Instances of each of [`SERVICES`].
const SIZES: [usize; 2] = [5, 3];

/// For how long etcd keeps the registration of an instance whose host is lost: longer
/// than any fault lasts that is not to end it.
pub const TTL: Duration = Duration::from_secs(10);

/// What takes longer than this has not happened.
pub const PATIENCE: Duration = Duration::from_secs(90);

const PREFIX: &str = "/ipconfig/v1";

/// Addresses by id, by service.
pub type Fleet = BTreeMap<String, BTreeMap<String, SocketAddr>>;

/// Everything that runs.
pub struct Stage {
    pub hosts: Vec<Host>,
    pub exporters: Vec<Exporter>,
    pub instances: Vec<Instance>,
    pub etcd: Vec<Etcd>,
    client: gateway::Client,
    folder: PathBuf,
    /// The address that the probe has now; it is changed to see who notices.
    probe: SocketAddr,
}

/// An exporter, which may be killed.
pub struct Exporter {
    id: String,
    listen: SocketAddr,
    program: PathBuf,
    config: PathBuf,
    pub part: Option<Part>,
}

/// An instance of a service, which may be killed.
pub struct Instance {
    pub service: &'static str,
    pub id: String,
    pub addr: SocketAddr,
    pub status: SocketAddr,
    pub registers: bool,
    programs: (PathBuf, PathBuf),
    endpoints: String,
    part: Option<Part>,
}

impl Stage {
    /// Starts everything with so many members of etcd, and returns when it is as it
    /// should be.
    pub async fn start(members: usize, interval: &str, folder: &Path) -> Result<Self, Failure> {
        let programs = Programs::find()?;
        let etcd = match members {
            1 => vec![Etcd::start().await],
            _ => Etcd::start_three(&[]).await,
        };
        let endpoints: Vec<_> = etcd.iter().map(Etcd::endpoint).collect();
        let mut instances: Vec<_> = SERVICES
            .into_iter()
            .zip(SIZES)
            .flat_map(|(service, size)| (1..=size).map(move |number| (service, number)))
            .map(|(service, number)| Instance {
                service,
                id: format!("{service}-{number}"),
                addr: local(free_port()),
                status: local(free_port()),
                registers: service == SERVICES[0],
                programs: (
                    programs.exporter.with_file_name("ipconfigctl"),
                    programs.demo_service.clone(),
                ),
                endpoints: endpoints.join(","),
                part: None,
            })
            .collect();
        for instance in &mut instances {
            instance.start(folder)?;
        }
        let mut exporters = Vec::new();
        for number in 1..=2 {
            let id = format!("exporter-{number}");
            let config = folder.join(format!("{id}.json"));
            let listen = local(free_port());
            write(&config, &config_of(&id, &endpoints, &instances, interval, listen, folder))?;
            let program = programs.exporter.clone();
            let mut exporter = Exporter { id, listen, program, config, part: None };
            exporter.start(folder).await?;
            exporters.push(exporter);
        }
        let mut hosts = Vec::new();
        for number in 1..=2 {
            let name = format!("gateway-{number}");
            let dir = folder.join(&name);
            fs::create_dir_all(&dir).context("make a folder")?;
            let mut wires = Vec::new();
            for member in &etcd {
                wires.push(Wire::to(member.address()).await);
            }
            let ways: Vec<_> = wires.iter().map(Wire::endpoint).collect();
            let (addr, unused) = (local(free_port()), local(free_port()));
            let config = config_of(&name, &ways, &instances, interval, unused, &dir);
            write(&dir.join("ipconfig.json"), &config)?;
            let conf = programs.nginx_conf(addr, &locations())?;
            // As in production, and as USR2 needs it.
            write(&dir.join("nginx.conf"), &conf.replace("daemon off", "daemon on"))?;
            hosts.push(Host::start(name, addr, wires, dir, programs.nginx.clone()).await?);
        }
        let stage = Self {
            hosts,
            exporters,
            instances,
            etcd,
            client: gateway::client(),
            folder: folder.to_owned(),
            probe: probe(0),
        };
        Ok(stage)
    }

    /// A client of etcd, or `None` if none of its members answers.
    pub async fn etcd(&self) -> Option<Client> {
        let endpoints: Vec<_> = self.etcd.iter().map(Etcd::endpoint).collect();
        let limit = Duration::from_secs(2);
        let options = ConnectOptions::new().with_connect_timeout(limit).with_timeout(limit);
        Client::connect(endpoints, Some(options)).await.ok()
    }

    /// Does something with etcd until it succeeds, for as long as [`PATIENCE`] lasts.
    pub async fn with_etcd<T>(
        &self,
        what: &str,
        mut act: impl AsyncFnMut(Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, Failure> {
        let mut done = None;
        until(PATIENCE, async || {
            if let Some(client) = self.etcd().await {
                done = act(client).await.ok();
            }
            done.is_some()
        })
        .await;
        done.ok_or_else(|| self.failure("etcd", format!("did not {what} within {PATIENCE:?}")))
    }

    pub fn failure(&self, part: &str, what: impl Into<String>) -> Failure {
        let (part, what) = (part.to_owned(), what.into());
        Failure::Part { part, what, log: self.folder.clone(), tail: String::new() }
    }

    /// What etcd has registered that can be read, by service.
    async fn listed(&self) -> Option<Fleet> {
        let options = GetOptions::new().with_prefix();
        let mut client = self.etcd().await?;
        let answer = client.get(format!("{PREFIX}/instances/"), Some(options)).await.ok()?;
        let mut fleet = Fleet::new();
        for kv in answer.kvs() {
            let key = kv.key_str().ok()?.strip_prefix(&format!("{PREFIX}/instances/"))?;
            let (service, id) = key.split_once('/')?;
            if let Ok(instance) = wire::decode_instance(id, kv.value()) {
                fleet.entry(service.into()).or_default().insert(id.into(), instance.addr);
            }
        }
        Some(fleet)
    }

    /// What should be registered now: all instances, as each fault puts right what it
    /// did.
    fn expected(&self) -> Fleet {
        let mut fleet = Fleet::new();
        for Instance { service, id, addr, .. } in &self.instances {
            fleet.entry((*service).into()).or_default().insert(id.clone(), *addr);
        }
        fleet.entry(PROBE.into()).or_default().insert("probe".into(), self.probe);
        fleet
    }

    /// Why a gateway does not say of every service just what etcd and the truth say;
    /// `None` if both do.
    pub async fn wrong(&self) -> Option<String> {
        let Some(mut listed) = self.listed().await else {
            return Some("etcd cannot be listed".into());
        };
        listed.remove(CHURN);
        let expected = self.expected();
        if listed != expected {
            return Some(format!("etcd has {listed:?}, and there is {expected:?}"));
        }
        for host in &self.hosts {
            for (service, members) in &listed {
                let Some(view) = host.view(service).await else {
                    return Some(format!("{} does not tell of {service}", host.name));
                };
                if view.mode != "live" {
                    return Some(format!("{}: {service} is {}", host.name, view.mode));
                }
                let found = view.members();
                if found != *members {
                    let name = &host.name;
                    return Some(format!("{name}: {service} is {found:?}, etcd has {members:?}"));
                }
                if let Some((id, state)) = view.not_reporting().filter(|_| service != PROBE) {
                    return Some(format!("{}: {id} is {state}", host.name));
                }
            }
            if !host.is_complete() {
                return Some(format!("{} has not all its workers", host.name));
            }
        }
        None
    }

    /// Waits until both gateways say what etcd and the truth say, every instance
    /// reports, and a change that is made now has come to both; how long that took
    /// from `since` on, or what is still wrong.
    pub async fn right(&mut self, since: Instant) -> Result<Duration, String> {
        /// Both workers may answer: a few answers in a row are of each of them.
        const IN_A_ROW: u32 = 3;
        let port = self.probe.port();
        self.probe = probe(port % 60_000);
        let registration = json!({ "addr": self.probe }).to_string();
        let key = format!("{PREFIX}/instances/{PROBE}/probe");
        let put = async |mut client: Client| {
            client.put(key.clone(), registration.clone(), None).await.map(drop)
        };
        self.with_etcd("take a put", put).await.map_err(|failure| failure.to_string())?;
        let mut first = None;
        let mut in_a_row = 0;
        let mut wrong = None;
        let is_right = until(PATIENCE, async || {
            let now = Instant::now();
            wrong = self.wrong().await;
            if wrong.is_some() {
                (first, in_a_row) = (None, 0);
                return false;
            }
            first = first.or(Some(now));
            in_a_row += 1;
            in_a_row == IN_A_ROW
        })
        .await;
        match first.filter(|_| is_right) {
            Some(first) => Ok(first.saturating_duration_since(since)),
            None => Err(wrong.unwrap_or_default()),
        }
    }

    /// Waits until an instance is in no gateway's ranking; how long that took.
    pub async fn out(&self, index: usize) -> Result<Duration, String> {
        let Instance { service, id, .. } = &self.instances[index];
        let since = Instant::now();
        let is_out = async || {
            for host in &self.hosts {
                let view = host.view(service).await;
                if view.is_none_or(|view| view.members().contains_key(id)) {
                    return false;
                }
            }
            true
        };
        let is_out = until(PATIENCE, is_out).await;
        is_out.then(|| since.elapsed()).ok_or_else(|| format!("{id} stays in a ranking"))
    }

    /// Makes an instance slow or fail.
    pub async fn turn(&self, index: usize, delay_ms: u32, fail: u32) -> Result<(), Failure> {
        let path = format!("/knob?delay_ms={delay_ms}&fail_percent={fail}");
        let uri = gateway::uri(self.instances[index].addr, &path);
        gateway::get(&self.client, uri).await.map(drop)
    }

    /// Kills an instance's process, and with `with_its_host` first who keeps its
    /// registration.
    pub fn kill_instance(&mut self, index: usize, with_its_host: bool) {
        let instance = &mut self.instances[index];
        let process = instance.process();
        if with_its_host && let Some(mut part) = instance.part.take() {
            part.kill();
        }
        if let Some(process) = process {
            send(process, Signal::KILL);
        }
    }

    /// Starts an instance that was killed, and returns when it answers.
    pub async fn restart_instance(&mut self, index: usize) -> Result<(), Failure> {
        let folder = self.folder.clone();
        let instance = &mut self.instances[index];
        if let Some(mut part) = instance.part.take() {
            // It has nothing to keep any more and ends by itself: killed before that,
            // its registration would stay for a while, and be found again.
            until(Duration::from_secs(10), async || part.check().is_err()).await;
            part.kill();
        }
        instance.start(&folder)?;
        let page = gateway::uri(instance.addr, "/healthz");
        if until(PATIENCE, async || gateway::is_well(&self.client, &page).await).await {
            return Ok(());
        }
        let id = instance.id.clone();
        Err(self.failure(&id, "does not answer"))
    }

    /// Starts an exporter that was killed.
    pub async fn restart_exporter(&mut self, index: usize) -> Result<(), Failure> {
        self.exporters[index].start(&self.folder).await
    }

    /// Puts a value at a key below the prefix, with the lease that it has.
    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<(), Failure> {
        let (key, value) = (format!("{PREFIX}/{key}"), value.into());
        self.with_etcd("take a put", async |mut client: Client| {
            let had = client.get(key.clone(), None).await?;
            let lease = had.kvs().first().map_or(0, etcd_client::KeyValue::lease);
            let options = PutOptions::new().with_lease(lease);
            client.put(key.clone(), value.clone(), Some(options)).await.map(drop)
        })
        .await
    }

    /// What is at a key below the prefix, and its lease.
    pub async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, i64)>, Failure> {
        let key = format!("{PREFIX}/{key}");
        self.with_etcd("answer", async |mut client: Client| {
            let had = client.get(key.clone(), None).await?;
            Ok(had.kvs().first().map(|kv| (kv.value().to_vec(), kv.lease())))
        })
        .await
    }

    /// Deletes a key below the prefix.
    pub async fn delete(&self, key: &str) -> Result<(), Failure> {
        let key = format!("{PREFIX}/{key}");
        self.with_etcd("delete", async |mut client: Client| {
            client.delete(key.clone(), None).await.map(drop)
        })
        .await
    }

    /// Requests in flight by the gateways' accounts.
    pub async fn in_flight(&self) -> u64 {
        let mut sum = 0;
        for host in &self.hosts {
            for service in SERVICES {
                let view = host.view(service).await;
                sum += view.map_or(u64::MAX / 4, |view| view.in_flight());
            }
        }
        sum
    }

    /// Stops everything in the order in which nobody misses anybody, and leaves etcd's
    /// log beside the others.
    pub async fn stop(mut self) {
        for host in &mut self.hosts {
            host.stop().await;
        }
        for exporter in &mut self.exporters {
            if let Some(part) = &mut exporter.part {
                part.stop().await;
            }
        }
        for instance in &mut self.instances {
            instance.kill();
        }
        for (number, etcd) in self.etcd.iter().enumerate() {
            let kept = self.folder.join(format!("etcd-{}.log", number + 1));
            // Without it there is less to look at, and that is all.
            let _ = fs::copy(etcd.dir().join("log"), kept);
        }
    }
}

impl Exporter {
    async fn start(&mut self, folder: &Path) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config);
        let part = self.part.insert(Part::start(&self.id, &mut command, folder)?);
        let (client, page) = (gateway::client(), gateway::uri(self.listen, "/healthz"));
        part.ready(async || gateway::is_well(&client, &page).await).await
    }

    /// Its id, by which etcd has it.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Instance {
    fn start(&mut self, folder: &Path) -> Result<(), Failure> {
        let (ctl, program) = &self.programs;
        let mut command;
        if self.registers {
            command = Command::new(ctl);
            // Nobody's configuration: the arguments say all.
            command.env_remove("IPCONFIG_CONFIG");
            command.args(["run", "--service", self.service, "--id", &self.id]);
            command.args(["--endpoints", &self.endpoints, "--addr", &self.addr.to_string()]);
            command.args(["--status", &format!("grpc://{}", self.status)]);
            command.args(["--ttl", &format!("{}s", TTL.as_secs()), "--"]).arg(program);
        } else {
            command = Command::new(program);
        }
        command.args(["--id", &self.id, "--delay-ms", "5"]);
        command.args(["--http", &self.addr.to_string(), "--status", &self.status.to_string()]);
        self.part = Some(Part::start(&self.id, &mut command, folder)?);
        Ok(())
    }

    /// The service's own process; `None` if it was killed.
    pub fn process(&self) -> Option<u32> {
        let pid = self.part.as_ref()?.id();
        if self.registers { children_of(pid).first().copied() } else { Some(pid) }
    }

    /// Who keeps its registration, if that is a process of its own.
    pub fn registrar(&self) -> Option<u32> {
        self.part.as_ref().filter(|_| self.registers).map(Part::id)
    }

    fn kill(&mut self) {
        let process = self.process();
        if let Some(mut part) = self.part.take() {
            part.kill();
        }
        if let Some(process) = process {
            send(process, Signal::KILL);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The next address after the one with this port; nobody is there.
fn probe(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port + 1))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).context(format!("write {}", path.display()))
}
