//! Exporters and etcd: what servers say of themselves, and what is kept of it.

use std::time::Duration;

use super::agenda::{Ns, to_s};
use super::plane;
use super::policy::ServerReport;
use super::scenario::Tale;
use super::server::{Counters, Server};
use crate::model::{InstanceReport, Report, Status};
use crate::watcher::Event;
use crate::wire;

/// What a server that lies about its rate says that it answers, a second.
const TOLD_RATE: f64 = 1e9;

/// What a gateway is told.
#[derive(Debug, Clone)]
pub struct Message {
    /// As etcd tells it.
    pub event: Event,
    pub news: News,
}

/// The same for those who do not read etcd.
#[derive(Debug, Clone)]
pub enum News {
    /// Of these servers.
    Reports(Vec<(u32, ServerReport)>),
    /// Registered from now on, or no more.
    Membership { server: u32, is_member: bool },
}

/// What an exporter knows of a server.
#[derive(Debug, Clone, Default)]
struct Asked {
    at: Ns,
    /// The last time that it answered.
    answered_at: Ns,
    boot: u64,
    seq: u64,
    counters: Counters,
    /// What its lies have added to, and taken from, what it counted.
    false_requests: u64,
    hidden_busy_ns: u64,
    hidden_latency_ns: u64,
}

/// What is kept: registrations and the exporters' last words.
pub struct Etcd {
    pub revision: i64,
    /// Which servers are registered.
    pub members: Vec<bool>,
    /// The last batch of each exporter.
    batches: Vec<Option<Event>>,
    asked: Vec<Asked>,
    /// A batch of each exporter that its successor has yet to overtake.
    held: Vec<Option<Message>>,
    interval: Duration,
    exporters: u32,
}

impl Etcd {
    pub fn new(servers: usize, exporters: u32, interval: Duration) -> Self {
        Self {
            revision: 1,
            members: vec![true; servers],
            batches: vec![None; exporters as usize],
            asked: vec![Asked::default(); servers],
            held: vec![None; exporters as usize],
            interval,
            exporters,
        }
    }

    fn next_revision(&mut self) -> i64 {
        self.revision += 1;
        self.revision
    }

    /// A server registers or deregisters; what gateways are told of it.
    pub fn set_member(&mut self, server: &Server, number: u32, is_member: bool) -> Message {
        self.members[number as usize] = is_member;
        let revision = self.next_revision();
        let event = match is_member {
            true => plane::registered(number, server, revision),
            false => plane::deregistered(number, revision),
        };
        Message { event, news: News::Membership { server: number, is_member } }
    }

    /// All there is, for a list.
    pub fn all(&self, servers: &[Server]) -> Vec<Event> {
        let members = (0..).zip(servers).filter(|(number, _)| self.members[*number as usize]);
        members
            .map(|(number, server)| plane::registered(number, server, self.revision))
            .chain(self.batches.iter().flatten().cloned())
            .collect()
    }

    /// An exporter asks its servers, those that are registered.
    pub fn ask(&mut self, exporter: u32, servers: &mut [Server], now: Ns) -> Message {
        let (mut reports, mut news) = (Vec::new(), Vec::new());
        for number in (exporter..servers.len() as u32).step_by(self.exporters as usize) {
            if !self.members[number as usize] {
                continue;
            }
            let server = &mut servers[number as usize];
            let asked = &mut self.asked[number as usize];
            let report = if server.trouble.down > 0 || server.trouble.paused > 0 {
                let silent_for = Duration::from_nanos(now - asked.answered_at);
                Report::Unreachable { silent_for }
            } else {
                let (status, report) = asked.ask(server, now);
                news.extend(report.map(|report| (number, report)));
                Report::Status(status)
            };
            let id = plane::id_of(number);
            reports.push(InstanceReport { id, report, interval: self.interval });
        }
        let event = Event::Put {
            key: plane::status_key(exporter),
            value: wire::encode_batch(&reports),
            mod_revision: 0, // given when it is put
        };
        Message { event, news: News::Reports(news) }
    }

    /// An exporter puts a batch; returns what gateways are told.
    pub fn put(&mut self, exporter: u32, mut batch: Message) -> Message {
        let revision = self.next_revision();
        if let Event::Put { mod_revision, .. } = &mut batch.event {
            *mod_revision = revision;
        }
        self.batches[exporter as usize] = Some(batch.event.clone());
        batch
    }

    /// Keeps a batch back, to be put after the next one.
    pub fn hold(&mut self, exporter: u32, batch: Message) {
        self.held[exporter as usize] = Some(batch);
    }

    /// The batch that was kept back, if any.
    pub fn take_held(&mut self, exporter: u32) -> Option<Message> {
        self.held[exporter as usize].take()
    }
}

impl Asked {
    /// What the server says at `now`, in our words and in those of others; the latter
    /// only of a time between two answers of one process.
    fn ask(&mut self, server: &mut Server, now: Ns) -> (Status, Option<ServerReport>) {
        server.advance(now);
        let (before, after) = (self.counters, server.counters);
        let is_new = server.boot != self.boot;
        let dt_s = to_s(now - self.at);
        let slots = f64::from(server.slots);
        let slot_s = to_s(after.slot_ns - before.slot_ns);
        let mut utilization = if dt_s > 0.0 { slot_s / dt_s / slots } else { 0.0 };
        if is_new {
            (self.false_requests, self.hidden_busy_ns, self.hidden_latency_ns) = (0, 0, 0);
        }
        if let Some(told) = server.told_utilization {
            utilization = told.of(utilization);
        }
        let mut told_rate = None;
        match server.trouble.tale {
            None => {}
            Some(Tale::Idle) => {
                utilization = 0.0;
                if !is_new {
                    self.hidden_busy_ns += after.busy_ns - before.busy_ns;
                }
            }
            Some(Tale::Rate) => {
                self.false_requests += (TOLD_RATE * dt_s) as u64;
                told_rate = Some(TOLD_RATE);
            }
            Some(Tale::Nan) => utilization = f64::NAN,
            Some(Tale::Instant) if is_new => {}
            Some(Tale::Instant) => self.hidden_latency_ns += after.latency_ns - before.latency_ns,
        }

        let report = (!is_new && dt_s > 0.0).then(|| {
            let answered = after.answered - before.answered;
            let is_instant = server.trouble.tale == Some(Tale::Instant);
            let latency_ns = if is_instant { 0 } else { after.latency_ns - before.latency_ns };
            ServerReport {
                taken_s: to_s(now),
                rate_per_s: told_rate.unwrap_or(answered as f64 / dt_s),
                utilization,
                errors_per_s: (after.failed - before.failed) as f64 / dt_s,
                latency_s: if answered > 0 { to_s(latency_ns) / answered as f64 } else { 0.0 },
                in_flight: server.in_flight(),
            }
        });
        self.seq = if is_new { 1 } else { self.seq + 1 };
        (self.at, self.answered_at, self.boot, self.counters) = (now, now, server.boot, after);
        // A process has no utilization before it was asked twice, unless it lies.
        let told = (report.is_some() || server.trouble.tale.is_some()).then_some(utilization);
        let status = Status {
            boot_id: self.boot,
            seq: self.seq,
            requests: after.answered + self.false_requests,
            errors: after.failed,
            busy_ns: after.busy_ns - self.hidden_busy_ns,
            latency_sum_ns: after.latency_ns - self.hidden_latency_ns,
            cpu_used_cores: told.map(|utilization| utilization * slots),
            cpu_limit_cores: Some(slots),
            in_flight: Some(server.in_flight().into()),
            queue: Some(server.waiting().into()),
            application_utilization: told,
            ..Status::default()
        };
        (status, report)
    }
}
