//! What goes wrong, and what comes right again.

use rand::seq::SliceRandom;

use super::agenda::{Event, Ns, SECOND, from_duration};
use super::engine::Simulation;
use super::exporter::{Message, News};
use super::fleet::Place;
use super::policy::Outcome;
use super::scenario::{
    Antagonist, ClockJump, Cold, Direction, Disorder, Errors, Fault, Late, Lie, Membership, Outage,
    RollingRestart, Slowdown,
};

/// Between two steps of a server that gets warm.
const WARMER: Ns = SECOND / 10;

/// What disturbs the way of reports. Faults may overlap.
#[derive(Default)]
pub struct Disturbance {
    /// Exporters that write nothing.
    pub silent: u32,
    /// etcd is away.
    pub lost: u32,
    /// The watch takes so much longer, by fault.
    pub late: Vec<(u32, u64)>,
    /// Odds that a batch is overtaken, and that it comes twice.
    pub reordered: f64,
    pub duplicated: f64,
}

impl Simulation<'_> {
    /// Enters all faults. What joins later is not there at first.
    pub fn plan_faults(&mut self) {
        for (number, fault) in (0..).zip(&self.scenario.faults) {
            let begin = from_duration(fault.span().from);
            let end = begin.saturating_add(from_duration(fault.span().lasts));
            self.agenda.add(begin, Event::Begin { fault: number });
            if end < self.end {
                self.agenda.add(end, Event::End { fault: number });
            }
        }
        // The first word on a server says whether it is there before.
        let mut said = vec![false; self.fleet.servers.len()];
        let mut words: Vec<_> = self
            .scenario
            .faults
            .iter()
            .filter_map(|fault| match fault {
                Fault::Join(it) => Some((it, true)),
                Fault::Leave(it) => Some((it, false)),
                _ => None,
            })
            .collect();
        words.sort_by_key(|(it, _)| it.at);
        for (Membership { servers, count, .. }, joins) in words {
            for server in self.scenario.hit(servers.as_deref(), *count) {
                if !std::mem::replace(&mut said[server as usize], true) {
                    self.etcd.members[server as usize] = !joins;
                }
            }
        }
    }

    /// A fault begins.
    pub fn begin_fault(&mut self, number: u32) {
        let scenario = self.scenario;
        match &scenario.faults[number as usize] {
            Fault::Slowdown(Slowdown { servers, count, speed, .. }) => {
                for server in scenario.hit(servers.as_deref(), *count) {
                    self.set_factor(server, number, Some(*speed));
                }
            }
            Fault::Antagonist(_) | Fault::Cold(_) => self.redraw_fault(number),
            Fault::Errors(Errors { servers, count, part, .. }) => {
                for server in scenario.hit(servers.as_deref(), *count) {
                    self.fleet.servers[server as usize].trouble.errors = *part;
                }
            }
            Fault::RollingRestart(it) => {
                let RollingRestart { servers, count, from, every, .. } = it;
                for place in 0..scenario.hit(servers.as_deref(), *count).len() as u32 {
                    let at = from_duration(*from + *every * place);
                    self.agenda.add(at, Event::Redraw { fault: number });
                }
            }
            Fault::Pause(it) => self.each(it, |sim, server| sim.set_paused(server, true)),
            Fault::BlackHole(it) => self.each(it, |sim, server| {
                sim.fleet.servers[server as usize].trouble.black_hole += 1;
                let now = sim.fleet.now;
                for lost in sim.fleet.servers[server as usize].drop_all(now) {
                    if sim.fleet.is_open(lost) {
                        sim.fleet.request_mut(lost.request).place = Place::Swallowed;
                        sim.fleet.servers[server as usize].swallow();
                    }
                }
            }),
            Fault::Sinkhole(it) => self
                .each(it, |sim, server| sim.fleet.servers[server as usize].trouble.sinkhole += 1),
            Fault::Crash(it) => self.each(it, Self::crash),
            Fault::Lie(Lie { servers, count, tells, .. }) => {
                for server in scenario.hit(servers.as_deref(), *count) {
                    self.fleet.servers[server as usize].trouble.tale = Some(*tells);
                }
            }
            Fault::Join(it) => self.register(it, true),
            Fault::Leave(it) => self.register(it, false),
            Fault::SilentExporter(_) => self.disturbance.silent += 1,
            Fault::SilentEtcd(_) => {
                self.disturbance.lost += 1;
                for gateway in 0..self.fleet.gateways.len() {
                    self.lose_watch(gateway);
                }
            }
            Fault::LateWatch(Late { by, .. }) => {
                self.disturbance.late.push((number, from_duration(*by)));
            }
            Fault::ClockJump(ClockJump { by, direction, gateways, .. }) => {
                let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
                let by = if *direction == Direction::Back { -by } else { by };
                let count = gateways.map_or(usize::MAX, |count| count as usize);
                self.fleet.gateways.iter_mut().take(count).for_each(|it| it.clock_off += by);
            }
            Fault::Disorder(Disorder { reordered, duplicated, .. }) => {
                self.disturbance.reordered = *reordered;
                self.disturbance.duplicated = *duplicated;
            }
        }
    }

    /// A fault ends.
    pub fn end_fault(&mut self, number: u32) {
        let scenario = self.scenario;
        match &scenario.faults[number as usize] {
            Fault::Slowdown(_) | Fault::Antagonist(_) | Fault::Cold(_) => {
                for server in 0..self.fleet.servers.len() as u32 {
                    self.set_factor(server, number, None);
                }
            }
            Fault::Pause(it) => self.each(it, |sim, server| sim.set_paused(server, false)),
            Fault::BlackHole(it) => self
                .each(it, |sim, server| sim.fleet.servers[server as usize].trouble.black_hole -= 1),
            Fault::Sinkhole(it) => self
                .each(it, |sim, server| sim.fleet.servers[server as usize].trouble.sinkhole -= 1),
            Fault::Crash(it) => self.each(it, Self::restarted),
            Fault::Errors(Errors { servers, count, .. }) => {
                for server in scenario.hit(servers.as_deref(), *count) {
                    self.fleet.servers[server as usize].trouble.errors = 0.0;
                }
            }
            Fault::Lie(Lie { servers, count, .. }) => {
                for server in scenario.hit(servers.as_deref(), *count) {
                    self.fleet.servers[server as usize].trouble.tale = None;
                }
            }
            Fault::SilentExporter(_) => self.disturbance.silent -= 1,
            Fault::SilentEtcd(_) => {
                self.disturbance.lost -= 1;
                if self.disturbance.lost == 0 {
                    for gateway in 0..self.fleet.gateways.len() {
                        self.list(gateway);
                    }
                }
            }
            Fault::LateWatch(_) => self.disturbance.late.retain(|(of, _)| *of != number),
            Fault::Disorder(_) => {
                (self.disturbance.reordered, self.disturbance.duplicated) = (0.0, 0.0);
            }
            Fault::Join(_) | Fault::Leave(_) | Fault::ClockJump(_) | Fault::RollingRestart(_) => {}
        }
    }

    /// A fault goes one step on.
    pub fn redraw_fault(&mut self, number: u32) {
        let scenario = self.scenario;
        match &scenario.faults[number as usize] {
            Fault::Antagonist(it) => self.move_antagonist(number, it),
            Fault::Cold(it) => self.warm(number, it),
            Fault::RollingRestart(it) => {
                let RollingRestart { servers, count, from, every, down } = it;
                let since = self.fleet.now - from_duration(*from);
                let place = (since / from_duration(*every)) as usize;
                if let Some(server) = scenario.hit(servers.as_deref(), *count).nth(place) {
                    self.crash(server);
                    let back = self.fleet.now + from_duration(*down);
                    self.agenda.add(back, Event::Restarted { server });
                }
            }
            _ => {}
        }
    }

    /// Servers are as warm as they are by now, until that is all.
    fn warm(&mut self, number: u32, it: &Cold) {
        let Cold { servers, count, speed, from, lasts } = it;
        let (now, lasts) = (self.fleet.now, from_duration(*lasts).max(1));
        let part = (now - from_duration(*from)) as f64 / lasts as f64;
        if part >= 1.0 {
            return; // its end sees to it
        }
        for server in self.scenario.hit(servers.as_deref(), *count) {
            self.set_factor(server, number, Some(speed + (1.0 - speed) * part));
        }
        self.agenda.add(now + WARMER, Event::Redraw { fault: number });
    }

    fn crash(&mut self, server: u32) {
        self.fleet.servers[server as usize].trouble.down += 1;
        let now = self.fleet.now;
        for lost in self.fleet.servers[server as usize].drop_all(now) {
            if self.fleet.is_open(lost) {
                let after_s = self.try_s(lost.request);
                self.conclude(lost.request, Outcome::Failed(after_s));
            }
        }
    }

    /// A server that had crashed is there again, as a new process.
    pub fn restarted(&mut self, server: u32) {
        let now = self.fleet.now;
        let server = &mut self.fleet.servers[server as usize];
        server.trouble.down -= 1;
        server.restart(now);
    }

    /// An antagonist moves on to other servers, unless it has ended.
    fn move_antagonist(&mut self, number: u32, it: &Antagonist) {
        let scenario = self.scenario;
        let Antagonist { servers, count, part, speed, every, from, lasts } = it;
        let now = self.fleet.now;
        if now >= from_duration(*from).saturating_add(from_duration(*lasts)) {
            return;
        }
        let mut there: Vec<u32> = scenario.hit(servers.as_deref(), *count).collect();
        there.shuffle(&mut self.trouble_rng);
        let hit = (there.len() as f64 * part).round() as usize;
        for (place, server) in there.into_iter().enumerate() {
            self.set_factor(server, number, (place < hit).then_some(*speed));
        }
        self.agenda.add(now + from_duration(*every), Event::Redraw { fault: number });
    }

    fn each(&mut self, of: &Outage, mut act: impl FnMut(&mut Self, u32)) {
        for server in self.scenario.hit(of.servers.as_deref(), of.count) {
            act(self, server);
        }
    }

    fn set_factor(&mut self, server: u32, fault: u32, factor: Option<f64>) {
        let now = self.fleet.now;
        self.fleet.servers[server as usize].set_factor(fault, factor, now, &mut self.agenda);
    }

    fn set_paused(&mut self, server: u32, is_paused: bool) {
        let now = self.fleet.now;
        self.fleet.servers[server as usize].pause(is_paused, now, &mut self.agenda);
    }

    fn register(&mut self, of: &Membership, is_member: bool) {
        for server in self.scenario.hit(of.servers.as_deref(), of.count) {
            let it = &self.fleet.servers[server as usize];
            let message = self.etcd.set_member(it, server, is_member);
            self.tell(message);
        }
    }

    /// A gateway takes in a message.
    pub fn hear(&mut self, gateway: usize, message: &Message) {
        let now = self.fleet.now;
        let it = &mut self.fleet.gateways[gateway];
        if !it.listens {
            return; // it will come with the list
        }
        match &message.news {
            News::Reports(reports) => {
                for (server, report) in reports {
                    let known = &mut it.reports[*server as usize];
                    // What overtook it is newer.
                    if known.is_none_or(|known| known.taken_s < report.taken_s) {
                        *known = Some(*report);
                    }
                }
            }
            News::Membership { server, is_member } => {
                it.set_member(*server as usize, *is_member, now);
            }
        }
        let clock = it.clock(now);
        if let Some(plane) = self.planes.get_mut(gateway) {
            plane.apply(&message.event, clock);
            self.rank(gateway);
        }
    }

    /// A gateway has no watch any more.
    fn lose_watch(&mut self, gateway: usize) {
        let now = self.fleet.now;
        let it = &mut self.fleet.gateways[gateway];
        it.listens = false;
        let clock = it.clock(now);
        if let Some(plane) = self.planes.get_mut(gateway) {
            plane.lose(clock);
            self.rank(gateway);
        }
    }

    /// A gateway lists what there is, and watches from then on.
    pub fn list(&mut self, gateway: usize) {
        let now = self.fleet.now;
        let it = &mut self.fleet.gateways[gateway];
        it.listens = true;
        for (server, is_member) in self.etcd.members.iter().enumerate() {
            it.set_member(server, *is_member, now);
        }
        let clock = it.clock(now);
        if let Some(plane) = self.planes.get_mut(gateway) {
            plane.list(&self.etcd.all(&self.fleet.servers), self.etcd.revision, clock);
            self.rank(gateway);
        }
    }
}
