//! What is done to the parts, one thing at a time, and undone again.

use std::time::Duration;

use clap::ValueEnum;
use etcd_client::Client;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use rustix::process::Signal;
use serde::Serialize;
use serde_json::{Map, json};
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::host::send;
use crate::stage::{Instance, PATIENCE, SERVICES, Stage, TTL};
use crate::support::wire::Weather;
use crate::wait::until;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// kill -9 of etcd, of all its members; it comes back with its data
    EtcdKill,
    /// SIGSTOP of etcd, of all its members, and SIGCONT
    EtcdPause,
    /// SIGTERM and a start
    EtcdRestart,
    /// all data deleted, as if it had never been; who is there registers again
    EtcdWipe,
    /// as etcd-wipe, and nobody registers again for a while: all are gone at once
    EtcdWipeSilent,
    /// stopped for longer than the leases last
    EtcdPauseLeases,
    /// SIGSTOP of all who keep registrations, until all of these have expired at once
    RegistrarsPause,
    /// the ways cut, changes, a compaction of what was not seen yet
    Compaction,
    /// kill -9 of the leader of three
    LeaderKill,
    /// kill -9 of two of three
    QuorumLoss,
    /// all ways of a gateway, or of both, broken
    WireCut,
    /// everything on the ways takes longer
    WireSlow,
    /// nonsense on the ways
    WireGarble,
    /// connections stay and nothing comes through
    WireStall,
    /// an exporter's lease revoked
    ExporterLease,
    /// an instance's lease revoked
    InstanceLease,
    /// kill -9 of an exporter
    ExporterKill,
    /// SIGSTOP of an exporter
    ExporterPause,
    /// kill -9 of an instance's process
    InstanceKill,
    /// kill -9 of an instance and of who keeps its registration
    InstanceHostLost,
    /// SIGSTOP of an instance's process
    InstanceHang,
    /// an instance answers all requests with 503
    InstanceErrors,
    /// an instance takes 60 times as long
    InstanceSlow,
    /// kill -9 of a worker without the thread
    WorkerKill,
    /// kill -9 of worker 0, with the thread
    WorkerZeroKill,
    /// kill -9 of worker 0 a moment after a change, several times
    PublishKill,
    /// SIGSTOP of a worker without the thread
    WorkerPause,
    /// SIGSTOP of worker 0 for longer than its silence is borne
    WorkerZeroPause,
    /// a reload each two seconds
    HupStorm,
    /// USR2, WINCH, QUIT
    Upgrade,
    /// a gateway killed as a whole and started while etcd is down
    ColdStart,
    /// nonsense in etcd, at keys of all kinds
    Garbage,
}

impl Kind {
    /// Whether it is of use with so many members of etcd.
    pub fn suits(self, members: usize) -> bool {
        match self {
            Self::EtcdWipe | Self::EtcdWipeSilent => members == 1,
            Self::LeaderKill | Self::QuorumLoss => members > 1,
            _ => true,
        }
    }

    /// What the short form has: the ones that take the least time.
    pub const SHORT: [Self; 12] = [
        Self::EtcdKill,
        Self::EtcdPause,
        Self::Compaction,
        Self::WireCut,
        Self::WireGarble,
        Self::InstanceLease,
        Self::ExporterPause,
        Self::InstanceKill,
        Self::InstanceErrors,
        Self::WorkerKill,
        Self::WorkerZeroKill,
        Self::Upgrade,
    ];
}

/// What one fault is made of: drawn before anything is done, so that the same seed
/// makes the same ones.
pub struct Draw {
    /// How long it lasts, where it does.
    hold: Duration,
    host: usize,
    is_both: bool,
    exporter: usize,
    instance: usize,
    number: u64,
}

impl Draw {
    pub fn new(rng: &mut SmallRng, is_short: bool, instances: usize) -> Self {
        let hold = if is_short { 500..1000 } else { 1000..4000 };
        Self {
            hold: Duration::from_millis(rng.random_range(hold)),
            host: rng.random_range(0..2),
            is_both: rng.random(),
            exporter: rng.random_range(0..2),
            instance: rng.random_range(0..instances),
            number: rng.next_u64(),
        }
    }
}

/// What was seen while it lasted.
#[derive(Default)]
pub struct Seen {
    /// Until no gateway offered what was gone.
    pub out: Option<Duration>,
    /// When the harm was done that ends by itself.
    pub undone: Option<Instant>,
    /// What did not happen that should.
    pub missed: Option<String>,
}

/// Does it and undoes it.
pub async fn play(kind: Kind, draw: &Draw, stage: &mut Stage) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    let &Draw { hold, host, exporter, instance, number, .. } = draw;
    match kind {
        Kind::EtcdKill | Kind::EtcdRestart => {
            for etcd in &mut stage.etcd {
                if kind == Kind::EtcdRestart {
                    let pid = etcd.id();
                    send(pid, Signal::TERM);
                    until(Duration::from_secs(10), async || has_ended(pid)).await;
                }
                etcd.kill();
            }
            sleep(hold).await;
            restart_etcd(stage).await;
        }
        Kind::EtcdPause | Kind::EtcdPauseLeases => {
            stage.etcd.iter().for_each(|etcd| etcd.pause());
            let beyond = Duration::from_millis(2500);
            sleep(if kind == Kind::EtcdPause { hold } else { TTL + beyond }).await;
            stage.etcd.iter().for_each(|etcd| etcd.resume());
        }
        Kind::EtcdWipe => {
            stage.etcd.iter_mut().for_each(|etcd| etcd.wipe());
            sleep(hold).await;
            restart_etcd(stage).await;
        }
        Kind::EtcdWipeSilent => {
            signal_registrars(stage, Signal::STOP);
            stage.etcd.iter_mut().for_each(|etcd| etcd.wipe());
            restart_etcd(stage).await;
            sleep(hold).await;
            signal_registrars(stage, Signal::CONT);
        }
        Kind::RegistrarsPause => {
            signal_registrars(stage, Signal::STOP);
            sleep(TTL + Duration::from_millis(1500)).await;
            signal_registrars(stage, Signal::CONT);
        }
        Kind::Compaction => {
            set_ways(stage, draw, Weather::Cut);
            for _ in 0..20 {
                stage.put("instances/churn/none", "{}").await?;
            }
            stage.delete("instances/churn/none").await?;
            compact(stage).await?;
            sleep(hold).await;
            set_ways(stage, draw, Weather::Fair);
        }
        Kind::LeaderKill => {
            if let Some(leader) = leader(stage).await {
                stage.etcd[leader].kill();
                sleep(hold).await;
                stage.etcd[leader].restart().await;
            } else {
                seen.missed = Some("no leader was found".into());
            }
        }
        Kind::QuorumLoss => {
            let spared = number as usize % stage.etcd.len();
            let others = stage.etcd.iter_mut().enumerate().filter(|(index, _)| *index != spared);
            others.for_each(|(_, etcd)| etcd.kill());
            sleep(hold).await;
            restart_etcd(stage).await;
        }
        Kind::WireCut | Kind::WireSlow | Kind::WireStall => {
            let weather = match kind {
                Kind::WireCut => Weather::Cut,
                Kind::WireStall => Weather::Stalled,
                _ => Weather::Slow(Duration::from_millis(50 + number % 250)),
            };
            set_ways(stage, draw, weather);
            // A silence is noticed after some ten seconds.
            sleep(if kind == Kind::WireStall { hold * 3 } else { hold }).await;
            set_ways(stage, draw, Weather::Fair);
        }
        Kind::WireGarble => {
            for round in 0..3 {
                let hosts = stage.hosts.iter().enumerate();
                for (_, host) in hosts.filter(|(index, _)| draw.is_both || *index == host) {
                    host.wires.iter().for_each(|wire| wire.garble(number.wrapping_add(round)));
                }
                sleep(hold / 3).await;
            }
        }
        Kind::ExporterLease => {
            let key = format!("exporters/{}", stage.exporters[exporter].id());
            seen.missed = revoke(stage, &key).await?;
        }
        Kind::InstanceLease => {
            let instance = &stage.instances[instance];
            let key = format!("instances/{}/{}", instance.service, instance.id);
            seen.missed = revoke(stage, &key).await?;
        }
        Kind::ExporterKill => {
            if let Some(mut part) = stage.exporters[exporter].part.take() {
                part.kill();
            }
            sleep(hold).await;
            stage.restart_exporter(exporter).await?;
        }
        Kind::ExporterPause => {
            let pid = stage.exporters[exporter].part.as_ref().map(crate::parts::Part::id);
            seen.missed = pause(pid, hold).await;
        }
        Kind::InstanceKill | Kind::InstanceHostLost => {
            stage.kill_instance(instance, kind == Kind::InstanceHostLost);
            // One that the file names stays, and is tried in vain, until an exporter
            // has told for long enough that it is not there.
            note_out(stage, instance, &mut seen).await;
            stage.restart_instance(instance).await?;
        }
        Kind::InstanceHang => {
            let pid = stage.instances[instance].process();
            let stopped = pid.is_some_and(|pid| send(pid, Signal::STOP));
            note_out(stage, instance, &mut seen).await;
            if !pid.is_some_and(|pid| stopped && send(pid, Signal::CONT)) {
                seen.missed = Some("there was no process to stop".into());
            }
        }
        Kind::InstanceErrors => {
            stage.turn(instance, 5, 100).await?;
            sleep(hold).await;
            stage.turn(instance, 5, 0).await?;
        }
        Kind::InstanceSlow => {
            stage.turn(instance, 300, 0).await?;
            sleep(hold).await;
            stage.turn(instance, 5, 0).await?;
        }
        Kind::WorkerKill | Kind::WorkerZeroKill => {
            let host = &stage.hosts[host];
            let worker = match kind {
                Kind::WorkerKill => host.other_worker(),
                _ => host.worker_zero(),
            };
            match worker {
                Some(worker) => {
                    seen.undone = Some(Instant::now());
                    host.kill_worker(worker).await;
                }
                None => seen.missed = Some("there was no worker to kill".into()),
            }
        }
        Kind::PublishKill => publish_and_kill(stage, draw, &mut seen).await?,
        Kind::WorkerPause => {
            let worker = stage.hosts[host].other_worker();
            seen.missed = pause(worker, hold.min(Duration::from_secs(2))).await;
        }
        Kind::WorkerZeroPause => {
            let worker = stage.hosts[host].worker_zero();
            seen.missed = pause(worker, Duration::from_millis(2500) + hold / 2).await;
        }
        Kind::HupStorm => {
            for _ in 0..3 {
                stage.hosts[host].reload();
                sleep(Duration::from_secs(2)).await;
            }
        }
        Kind::Upgrade => {
            if !stage.hosts[host].upgrade(hold.min(Duration::from_secs(1))).await {
                seen.missed = Some("the upgrade did not come to its end".into());
            }
        }
        Kind::ColdStart => {
            stage.etcd.iter_mut().for_each(|etcd| etcd.kill());
            stage.hosts[host].kill().await;
            stage.hosts[host].start_again().await?;
            // It takes requests from here on, with what it has on its disk.
            sleep(hold).await;
            let view = stage.hosts[host].view(SERVICES[0]).await.unwrap_or_default();
            if view.mode != "snapshot" || view.members().len() != 5 {
                let (mode, found) = (&view.mode, view.members());
                seen.missed = Some(format!("started without etcd it is {mode} with {found:?}"));
            }
            restart_etcd(stage).await;
        }
        Kind::Garbage => garbage(stage, draw).await?,
    }
    Ok(seen)
}

fn signal_registrars(stage: &Stage, signal: Signal) {
    let registrars = stage.instances.iter().filter_map(Instance::registrar);
    registrars.for_each(|pid| {
        send(pid, signal);
    });
}

async fn note_out(stage: &Stage, instance: usize, seen: &mut Seen) {
    match stage.out(instance).await {
        Ok(after) => seen.out = Some(after),
        Err(why) => seen.missed = Some(why),
    }
}

fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands after the name, which is in brackets.
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

async fn restart_etcd(stage: &mut Stage) {
    stage.etcd.iter_mut().for_each(|etcd| etcd.spawn());
    for etcd in &mut stage.etcd {
        etcd.wait_until_ready().await;
    }
}

/// What the ways of a gateway are like, or of both, as was drawn.
fn set_ways(stage: &Stage, draw: &Draw, weather: Weather) {
    let hosts = stage.hosts.iter().enumerate();
    let hit = hosts.filter(|(index, _)| draw.is_both || *index == draw.host);
    hit.flat_map(|(_, host)| &host.wires).for_each(|wire| wire.set(weather));
}

/// Compacts all that is past.
pub async fn compact(stage: &Stage) -> Result<(), Failure> {
    stage
        .with_etcd("compact", async |mut client: Client| {
            let answer = client.get("none", None).await?;
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            // It may have been done already.
            drop(client.compact(revision, None).await);
            Ok(())
        })
        .await
}

/// Revokes the lease of a key; what was missed if it has none.
async fn revoke(stage: &Stage, key: &str) -> Result<Option<String>, Failure> {
    let lease = stage.get(key).await?.map_or(0, |(_, lease)| lease);
    if lease == 0 {
        return Ok(Some(format!("{key} had no lease")));
    }
    stage
        .with_etcd("revoke a lease", async |mut client: Client| {
            client.lease_revoke(lease).await.map(drop)
        })
        .await?;
    Ok(None)
}

/// Stops a process for a while.
async fn pause(pid: Option<u32>, hold: Duration) -> Option<String> {
    let stopped = pid.is_some_and(|pid| send(pid, Signal::STOP));
    sleep(hold).await;
    let went_on = pid.is_some_and(|pid| send(pid, Signal::CONT));
    (!stopped || !went_on).then(|| "there was no process to stop".into())
}

/// The member that leads.
async fn leader(stage: &Stage) -> Option<usize> {
    for (index, etcd) in stage.etcd.iter().enumerate() {
        let client = Client::connect([etcd.endpoint()], None).await;
        let Ok(mut client) = client else { continue };
        let Ok(status) = client.status().await else { continue };
        let id = status.header().map(etcd_client::ResponseHeader::member_id);
        if id == Some(status.leader()) {
            return Some(index);
        }
    }
    None
}

/// Kills worker 0 a moment after a change that it publishes: 0 to 5 ms, which is
/// before, amid and after that.
async fn publish_and_kill(stage: &mut Stage, draw: &Draw, seen: &mut Seen) -> Result<(), Failure> {
    let service = SERVICES[0];
    for round in 0..3 {
        let members = stage.instances.iter().filter(|instance| instance.service == service);
        let weights: Map<_, _> =
            members.zip(1..).map(|(it, number)| (it.id.clone(), json!(number + round))).collect();
        let control =
            json!({ "mode": "manual", "weights": weights, "by": "chaos", "why": "a test" });
        stage.put(&format!("control/{service}"), control.to_string()).await?;
        sleep(Duration::from_micros((draw.number >> (8 * round)) % 5000)).await;
        let host = &stage.hosts[draw.host];
        match host.worker_zero() {
            Some(worker) => {
                seen.undone = Some(Instant::now());
                host.kill_worker(worker).await;
            }
            None => seen.missed = Some("there was no worker 0 to kill".into()),
        }
        // The next one is killed as soon as there is one.
        until(PATIENCE, async || stage.hosts[draw.host].is_complete()).await;
    }
    stage.delete(&format!("control/{service}")).await
}

/// Writes nonsense at keys of all kinds, lets it be for a while, and puts back what
/// was there.
async fn garbage(stage: &mut Stage, draw: &Draw) -> Result<(), Failure> {
    let victim = &stage.instances[draw.instance];
    let own = format!("instances/{}/{}", victim.service, victim.id);
    let had = stage.get(&own).await?;
    let service = victim.service;
    let keys = [
        format!("instances/{service}/rubbish"),
        format!("instances/{service}/a/b/c"),
        "instances".to_owned(),
        format!("control/{service}"),
        format!("status/rubbish/{service}/0"),
        format!("status/{}/{service}/rubbish", stage.exporters[draw.exporter].id()),
        "exporters/rubbish".to_owned(),
        format!("checks/rubbish/{service}"),
        "nothing/of/the/kind".to_owned(),
    ];
    let mut rng: SmallRng = rand::SeedableRng::seed_from_u64(draw.number);
    for key in keys.iter().chain([&own]) {
        let value = nonsense(&mut rng);
        stage.put(key, value).await?;
    }
    sleep(draw.hold).await;
    for key in &keys {
        stage.delete(key).await?;
    }
    // Who keeps it may have written it again, under another lease.
    if let Some((value, _)) = had {
        stage.put(&own, value).await?;
    }
    Ok(())
}

/// What no reader can make anything of.
fn nonsense(rng: &mut SmallRng) -> Vec<u8> {
    let texts: [&[u8]; 8] = [
        b"",
        b"{",
        b"[]",
        b"{\"addr\":\"localhost:1\"}",
        b"{\"addr\":\"127.0.0.1:70000\"}",
        b"{\"addr\":\"127.0.0.1:1\",\"weight\":-1}",
        b"{\"addr\":7,\"mode\":9,\"weights\":[]}",
        b"\xff\xfe\x00\x00\n\x1b[2J",
    ];
    if rng.random_range(0..4) > 0 {
        return texts.choose(rng).map(|text| text.to_vec()).unwrap_or_default();
    }
    let mut bytes = vec![0; rng.random_range(1..100_000)];
    rng.fill_bytes(&mut bytes);
    bytes
}
