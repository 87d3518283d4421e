//! The simulation itself: what happens next, and what comes of it.

use std::collections::VecDeque;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::agenda::{Agenda, Event, Ns, SECOND, from_duration, from_s, to_s};
use super::decider::{Chooser, Decider};
use super::distribution::exponential;
use super::exporter::{Etcd, Message};
use super::faults::Disturbance;
use super::fleet::{Fleet, Gateway, Place, Worker};
use super::host::Deeds;
use super::measure::{End, Measures, Tally};
use super::messages::Messages;
use super::plane::Plane;
use super::policy::Outcome;
use super::scenario::Scenario;
use super::server::{Admission, Server, Ticket};
use crate::config::BalanceConfig;
use crate::plugin::BEAT;

/// How long a sinkhole takes to fail a request.
const SINK: Ns = 100_000;

/// Between two looks at what changes by time alone, as in the plugin's thread.
const ROUND: Ns = SECOND;

/// Bins of the timeline.
const BINS: u64 = 120;

/// Runs a scenario with one policy. The same for the same seed; arrivals are the same
/// for each policy.
pub fn run(scenario: &Scenario, chooser: Chooser, seed: u64) -> Measures {
    let mut simulation = Simulation::new(scenario, chooser, seed);
    simulation.start();
    while simulation.step() {}
    simulation.into_measures()
}

/// One run.
pub struct Simulation<'a> {
    pub scenario: &'a Scenario,
    chooser: Chooser,
    pub fleet: Fleet,
    pub agenda: Agenda,
    /// By gateway; none if the policy is not ours.
    pub planes: Vec<Plane>,
    /// By worker.
    deciders: Vec<Decider>,
    pub etcd: Etcd,
    pub disturbance: Disturbance,
    messages: Messages,
    /// When tries are given up, in that order.
    deadlines: VecDeque<(Ns, Ticket)>,
    next_arrival: Ns,
    arrivals: u64,
    timeout: Ns,
    warm: Ns,
    /// No request comes from here on.
    pub end: Ns,

    traffic_rng: SmallRng,
    service_rng: SmallRng,
    choice_rng: SmallRng,
    pub trouble_rng: SmallRng,
    other_rng: SmallRng,

    measures: Measures,
    bin: Ns,
    /// Each server's picks, in bins of `share_bin`, since the warm-up.
    picks: Vec<Vec<u32>>,
    share_bin: Ns,
    /// The gateways' zone that each server is in.
    zones: Vec<Option<usize>>,
    /// What each gateway's host had done when it was looked at last.
    deeds: Vec<Deeds>,
    /// Each server's slot and request time at the end of the warm-up, and at the end.
    from: Vec<(u64, u64)>,
    tally: Tally,
}

impl<'a> Simulation<'a> {
    /// Everything is there, and nothing has happened yet.
    pub fn new(scenario: &'a Scenario, chooser: Chooser, seed: u64) -> Self {
        // Each has a stream of its own, so that what one policy draws more often
        // does not change what others meet.
        let mut seeds = SmallRng::seed_from_u64(seed);
        let mut stream = || SmallRng::seed_from_u64(seeds.random());
        let (traffic_rng, service_rng, mut choice_rng, trouble_rng, other_rng) =
            (stream(), stream(), stream(), stream(), stream());

        let groups = scenario.servers.iter().enumerate();
        let of_group =
            groups.flat_map(|(number, group)| (0..group.count).map(move |_| (number, group)));
        let servers: Vec<_> = (0..)
            .zip(of_group)
            .map(|(me, (number, group))| Server::new(me, number, group))
            .collect();
        let count = servers.len();

        let gateways = scenario.gateways.count;
        let workers = scenario.gateways.workers;
        let delay_of = |gateway: u32| {
            let place = f64::from(gateway) / f64::from((gateways - 1).max(1));
            from_duration(scenario.reports.delay + scenario.reports.spread.mul_f64(place))
        };
        let zones = &scenario.gateways.zones;
        let zone_of = |server: &Server| zones.iter().position(|zone| *zone == server.zone);
        let server_zones = servers.iter().map(zone_of).collect();
        let mut deciders = Vec::new();
        for _ in 0..gateways {
            let seeds: Vec<u64> = (0..workers).map(|_| choice_rng.random()).collect();
            deciders.extend(chooser.deciders(&seeds));
        }
        let mut plane =
            |gateway, strategy| Plane::new(scenario, gateway, strategy, &mut choice_rng);
        let planes: Vec<Plane> = match chooser.strategy() {
            Some(strategy) => (0..gateways).map(|gateway| plane(gateway, strategy)).collect(),
            None => Vec::new(),
        };
        let is_governed = scenario.service.is_some() && !planes.is_empty();
        let worker = |number| Worker { gateway: number / workers, in_flight: vec![0; count] };
        let fleet = Fleet::new(
            servers,
            (0..gateways).map(|gateway| Gateway::new(count, delay_of(gateway))).collect(),
            (0..gateways * workers).map(worker).collect(),
        );

        let (warm, end) = (from_duration(scenario.warmup), from_duration(scenario.duration));
        let measured = end - warm;
        // Half a report's interval, so that a swing from report to report shows, within
        // bounds for the number of bins and for what is in one.
        let share_bin = from_duration(scenario.reports.interval / 2)
            .clamp(SECOND / 20, SECOND * 60)
            .clamp(measured / 1000, measured / 40)
            .max(1);
        Simulation {
            scenario,
            chooser,
            fleet,
            agenda: Agenda::default(),
            planes,
            deciders,
            etcd: Etcd::new(count, scenario.reports.exporters, scenario.reports.interval),
            disturbance: Disturbance::default(),
            messages: Messages::default(),
            deadlines: VecDeque::new(),
            next_arrival: Ns::MAX,
            arrivals: 0,
            timeout: from_duration(scenario.gateways.timeout),
            warm,
            end,
            traffic_rng,
            service_rng,
            choice_rng,
            trouble_rng,
            other_rng,
            measures: Measures::new(
                BINS as usize,
                scenario.servers.len(),
                scenario.gateways.zones.len(),
                is_governed,
            ),
            bin: end.div_ceil(BINS),
            picks: vec![vec![0; count]; measured.div_ceil(share_bin) as usize],
            share_bin,
            zones: server_zones,
            deeds: vec![Deeds::default(); gateways as usize],
            from: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Time begins.
    pub fn start(&mut self) {
        self.plan_faults();
        for gateway in 0..self.fleet.gateways.len() {
            self.list(gateway);
        }
        let (interval, exporters) = (self.interval(), self.scenario.reports.exporters);
        for exporter in 0..exporters {
            let phase = interval / u64::from(exporters) * u64::from(exporter + 1);
            self.agenda.add(phase, Event::Export { exporter });
        }
        if !self.planes.is_empty() {
            let gateways = self.fleet.gateways.len() as u64;
            for gateway in 0..gateways {
                let at = ROUND + ROUND / gateways * gateway;
                self.agenda.add(at, Event::Round { gateway: gateway as u32 });
                if self.scenario.service.is_some() {
                    let at = at - ROUND + from_duration(BEAT);
                    self.agenda.add(at, Event::Beat { gateway: gateway as u32 });
                }
            }
        }
        self.agenda.add(self.warm, Event::Warm);
        for server in 0..self.fleet.servers.len() as u32 {
            self.schedule_other(server);
        }
        self.schedule_arrival();
    }

    /// What came of it.
    pub fn into_measures(mut self) -> Measures {
        self.measures.finish(&self.tally);
        self.measures
    }

    /// The next thing happens; false once all requests are done with.
    pub fn step(&mut self) -> bool {
        let event_at = self.agenda.next_at().unwrap_or(Ns::MAX);
        let deadline = self.deadlines.front().map_or(Ns::MAX, |(at, _)| *at);
        let next = event_at.min(deadline).min(self.next_arrival);
        if self.fleet.now < self.end && next >= self.end {
            self.fleet.now = self.end;
            self.tally();
        }
        if next >= self.end && self.fleet.open == 0 {
            return false;
        }
        self.fleet.now = next;
        if next == event_at {
            if let Some(event) = self.agenda.take() {
                self.happen(event);
            }
        } else if next == self.next_arrival {
            self.arrive();
        } else if let Some((_, ticket)) = self.deadlines.pop_front() {
            self.expire(ticket);
        }
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Served { server, slot, epoch } => self.serve(server, slot, epoch),
            Event::Sunk { request, try_no } => {
                if self.fleet.is_open(Ticket { request, try_no }) {
                    let after_s = self.try_s(request);
                    self.conclude(request, Outcome::Failed(after_s));
                }
            }
            Event::Other { server } => self.arrive_past_gateways(server),
            Event::Export { exporter } => self.export(exporter),
            Event::Deliver { gateway, message } => {
                if let Some(message) = self.messages.take(message) {
                    self.hear(gateway as usize, &message);
                }
            }
            Event::Round { gateway } => {
                self.agenda.add(self.fleet.now + ROUND, event);
                let gateway = gateway as usize;
                let now = self.fleet.now;
                self.planes[gateway].tick(self.fleet.gateways[gateway].clock(now), now);
                self.rank(gateway);
            }
            Event::Beat { gateway } => {
                self.agenda.add(self.fleet.now + from_duration(BEAT), event);
                let gateway = gateway as usize;
                self.planes[gateway].beat(self.fleet.now);
                self.rank(gateway);
                self.look_at_deeds(gateway, true);
            }
            Event::Begin { fault } => self.begin_fault(fault),
            Event::Redraw { fault } => self.redraw_fault(fault),
            Event::Restarted { server } => self.restarted(server),
            Event::End { fault } => self.end_fault(fault),
            Event::Warm => {
                self.from = self.server_times();
                for server in &mut self.fleet.servers {
                    server.max_in_flight = server.in_flight();
                }
            }
        }
    }

    // === requests ===

    /// Draws when the next request comes: a Poisson process, thinned out from the
    /// largest rate.
    fn schedule_arrival(&mut self) {
        let traffic = &self.scenario.traffic;
        let largest = traffic.largest_rate();
        let rng = &mut self.traffic_rng;
        let mut at = self.fleet.now;
        loop {
            at = at.saturating_add(from_s(exponential(rng) / largest));
            if at >= self.end {
                at = Ns::MAX;
                break;
            }
            let is_steady = traffic.changes.is_empty();
            if is_steady || rng.random::<f64>() * largest < traffic.rate_at(to_s(at)) {
                break;
            }
        }
        self.next_arrival = at;
    }

    /// Draws when the next request comes to a server past the gateways.
    fn schedule_other(&mut self, server: u32) {
        let group = self.fleet.servers[server as usize].group;
        let rate = self.scenario.servers[group].other_rate;
        if rate > 0.0 {
            let after = from_s(exponential(&mut self.other_rng) / rate);
            self.agenda.add(self.fleet.now.saturating_add(after), Event::Other { server });
        }
    }

    /// Who is refused, failed or swallowed there is not heard of again.
    fn arrive_past_gateways(&mut self, server: u32) {
        self.schedule_other(server);
        let Self { fleet, agenda, service_rng, .. } = self;
        let (now, it) = (fleet.now, &mut fleet.servers[server as usize]);
        if it.admit(Ticket::OTHER, now, agenda, service_rng) == Admission::Swallowed {
            it.abandon_swallowed(now);
        }
    }

    fn arrive(&mut self) {
        self.schedule_arrival();
        let worker = self.traffic_rng.random_range(..self.fleet.workers.len() as u32);
        self.arrivals += 1;
        // Any two requests have different keys that look random.
        let key = self.arrivals.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let request = self.fleet.arrive(worker, key ^ (key >> 32));
        self.attempt(request, End::Failed, None);
    }

    /// Sends a request to a server, and to another one as long as it is refused and
    /// may move on. It ends like its last try, `before`, where there is none to try, or
    /// none is paid for. `has_reached`: whether that try reached its server.
    fn attempt(&mut self, request: u32, mut before: End, mut has_reached: Option<bool>) {
        loop {
            let Some(server) = self.pick(request) else { return self.finish(request, before) };
            if !self.pay(request, has_reached) {
                self.count_denied(request);
                return self.finish(request, before);
            }
            let ticket = self.fleet.begin_try(request, server);
            let now = self.fleet.now;
            self.count_pick(request, server);
            if let Some(plane) = self.plane_of(request) {
                plane.begin(request, server, now);
            }
            let it = &mut self.fleet.servers[server as usize];
            match it.admit(ticket, now, &mut self.agenda, &mut self.service_rng) {
                Admission::Refused => {
                    let is_down = it.trouble.down > 0;
                    self.end_try(request, Outcome::Failed(0.0));
                    (before, has_reached) = (End::Failed, Some(!is_down));
                    if !self.may_retry(request) {
                        return self.finish(request, before);
                    }
                    continue;
                }
                Admission::Waiting => self.fleet.request_mut(request).place = Place::Waiting,
                Admission::Sunk => {
                    let Ticket { request, try_no } = ticket;
                    self.agenda.add(now + SINK, Event::Sunk { request, try_no });
                }
                Admission::Swallowed => self.fleet.request_mut(request).place = Place::Swallowed,
                Admission::Serving => {}
            }
            self.deadlines.push_back((now.saturating_add(self.timeout), ticket));
            return;
        }
    }

    fn pick(&mut self, request: u32) -> Option<u32> {
        let view = self.fleet.view(request);
        let it = view.request;
        let plane = self.planes.get(it.gateway as usize);
        let decider = &mut self.deciders[it.worker as usize];
        let server = decider.pick(plane, &view, &mut self.choice_rng)?;
        u32::try_from(server).ok().filter(|_| server < self.fleet.servers.len())
    }

    fn may_retry(&self, request: u32) -> bool {
        let it = self.fleet.request(request);
        let host = self.planes.get(it.gateway as usize).and_then(|plane| plane.host.as_ref());
        it.tries() <= self.scenario.gateways.retries && host.is_none_or(|host| host.moves_on())
    }

    fn pay(&self, request: u32, has_reached: Option<bool>) -> bool {
        let gateway = self.fleet.request(request).gateway as usize;
        let host = self.planes.get(gateway).and_then(|plane| plane.host.as_ref());
        host.is_none_or(|host| host.pay(has_reached))
    }

    /// That of a request's gateway, if its policy is ours.
    fn plane_of(&mut self, request: u32) -> Option<&mut Plane> {
        self.planes.get_mut(self.fleet.request(request).gateway as usize)
    }

    /// How long a request's try has been under way, in seconds.
    pub fn try_s(&self, request: u32) -> f64 {
        to_s(self.fleet.now - self.fleet.request(request).began)
    }

    /// A try ends, and the request with it unless it may move on.
    pub fn conclude(&mut self, request: u32, outcome: Outcome) {
        self.end_try(request, outcome);
        let end = match outcome {
            Outcome::Answered(_) => return self.finish(request, End::Answered),
            Outcome::Failed(_) => End::Failed,
            Outcome::TimedOut(_) => End::TimedOut,
        };
        match self.may_retry(request) {
            true => self.attempt(request, end, Some(true)),
            false => self.finish(request, end),
        }
    }

    fn end_try(&mut self, request: u32, outcome: Outcome) {
        self.fleet.end_try(request, outcome);
        let view = self.fleet.view(request);
        let server = view.request.server as usize;
        self.deciders[view.request.worker as usize].ended(&view, server, outcome);
        let (now, gateway) = (self.fleet.now, self.fleet.request(request).gateway as usize);
        if let Some(plane) = self.planes.get_mut(gateway) {
            plane.end(request, outcome, now);
            if !matches!(outcome, Outcome::Answered(_)) {
                self.look_at_deeds(gateway, false);
            }
        }
    }

    fn finish(&mut self, request: u32, end: End) {
        let arrived = self.fleet.request(request).arrived;
        self.fleet.leave(request);
        let took = self.fleet.now - arrived;
        let latency = if end == End::Answered { took } else { took.max(self.timeout) };
        let bin = &mut self.measures.timeline[(arrived / self.bin) as usize];
        bin.latency.add(to_s(latency));
        bin.errors += u64::from(end != End::Answered);
        if arrived >= self.warm {
            self.measures.end(end, to_s(latency));
        }
    }

    fn expire(&mut self, ticket: Ticket) {
        if !self.fleet.is_open(ticket) {
            return;
        }
        let request = *self.fleet.request(ticket.request);
        let server = &mut self.fleet.servers[request.server as usize];
        match request.place {
            // It is served to the end, for nothing.
            Place::Served => {}
            Place::Waiting => server.abandon_waiting(self.fleet.now),
            Place::Swallowed => server.abandon_swallowed(self.fleet.now),
        }
        let after_s = self.try_s(ticket.request);
        self.conclude(ticket.request, Outcome::TimedOut(after_s));
    }

    fn serve(&mut self, server: u32, slot: u32, epoch: u32) {
        let now = self.fleet.now;
        let Some(done) = self.fleet.servers[server as usize].serve(slot, epoch, now) else {
            return;
        };
        let Self { fleet, agenda, service_rng, .. } = self;
        let (servers, is_awaited) = fleet.servers_and_requests();
        let next = servers[server as usize].next_in_line(is_awaited, now, agenda, service_rng);
        if let Some(next) = next.filter(|next| fleet.is_open(*next)) {
            fleet.request_mut(next.request).place = Place::Served;
        }
        let it = &mut self.fleet.servers[server as usize];
        let errors = it.trouble.errors;
        let has_failed = errors > 0.0 && self.trouble_rng.random::<f64>() < errors;
        if has_failed {
            it.count_failure();
        }
        if self.fleet.is_open(done) {
            let after_s = self.try_s(done.request);
            let outcome = if has_failed { Outcome::Failed } else { Outcome::Answered };
            self.conclude(done.request, outcome(after_s));
        }
    }

    // === reports ===

    fn interval(&self) -> Ns {
        from_duration(self.scenario.reports.interval)
    }

    fn export(&mut self, exporter: u32) {
        let now = self.fleet.now;
        self.agenda.add(now + self.interval(), Event::Export { exporter });
        if self.disturbance.silent > 0 || self.disturbance.lost > 0 {
            return;
        }
        let batch = self.etcd.ask(exporter, &mut self.fleet.servers, now);
        let late = self.etcd.take_held(exporter);
        let Disturbance { reordered, duplicated, .. } = self.disturbance;
        // Drawn only where there is a fault, for the sake of what is drawn later.
        let mut is = |odds: f64| odds > 0.0 && self.trouble_rng.random::<f64>() < odds;
        let (is_late, is_twofold) = (is(reordered) && late.is_none(), is(duplicated));
        if is_late {
            self.etcd.hold(exporter, batch);
            return;
        }
        let twin = is_twofold.then(|| batch.clone());
        for batch in [Some(batch), twin, late].into_iter().flatten() {
            let message = self.etcd.put(exporter, batch);
            self.tell(message);
        }
    }

    /// Sends a message to all gateways.
    pub fn tell(&mut self, message: Message) {
        let late: Ns = self.disturbance.late.iter().map(|(_, by)| by).sum();
        let gateways = self.fleet.gateways.len() as u32;
        let message = self.messages.add(message, gateways);
        for (number, gateway) in (0..).zip(&mut self.fleet.gateways) {
            let at = (self.fleet.now + gateway.delay + late).max(gateway.last_delivery);
            gateway.last_delivery = at;
            self.agenda.add(at, Event::Deliver { gateway: number, message });
        }
    }

    /// A gateway ranks, if there is reason to, and its workers build new pickers.
    pub fn rank(&mut self, gateway: usize) {
        let Some(strategy) = self.chooser.strategy() else { return };
        let balance = BalanceConfig { strategy, ..BalanceConfig::default() };
        let it = &self.fleet.gateways[gateway];
        let now = self.fleet.now;
        let plane = &mut self.planes[gateway];
        if plane.rank(it.clock(now), now, &it.seen) {
            let workers = self.scenario.gateways.workers as usize;
            for decider in &mut self.deciders[gateway * workers..][..workers] {
                let last = decider.take_picker();
                let picker = plane.picker(&balance, last, &mut self.choice_rng);
                *decider = Decider::Strategy(Some(picker));
            }
        }
    }

    // === measures ===

    fn count_pick(&mut self, request: u32, server: u32) {
        let now = self.fleet.now;
        let gateway = self.fleet.request(request).gateway;
        let group = self.fleet.servers[server as usize].group;
        if let Some(bin) = self.measures.timeline.get_mut((now / self.bin) as usize) {
            bin.picks[group] += 1;
            if let Some(zone) = self.scenario.gateways.zone_of(gateway) {
                bin.zones[zone].sent += 1;
                bin.zones[zone].stayed += u64::from(self.zones[server as usize] == Some(zone));
            }
        }
        self.measures.tries += u64::from(now >= self.warm);
        if now >= self.warm
            && let Some(bin) = self.picks.get_mut(((now - self.warm) / self.share_bin) as usize)
        {
            bin[server as usize] += 1;
        }
    }

    fn count_denied(&mut self, request: u32) {
        let arrived = self.fleet.request(request).arrived;
        if let Some(governance) = &mut self.measures.governance {
            governance.denied += u64::from(arrived >= self.warm);
        }
    }

    /// Counts what a gateway's host has done since it was looked at last, and, on a
    /// beat, whether there is a panic.
    fn look_at_deeds(&mut self, gateway: usize, is_beat: bool) {
        let now = self.fleet.now;
        let host = self.planes.get(gateway).and_then(|plane| plane.host.as_ref());
        let (Some(host), Some(governance)) = (host, &mut self.measures.governance) else { return };
        let deeds = host.deeds();
        let before = std::mem::replace(&mut self.deeds[gateway], deeds).ejections;
        let at = (to_s(now), gateway as u32);
        governance.ejected.extend((before..deeds.ejections).map(|_| at));
        if is_beat && (self.warm..self.end).contains(&now) {
            governance.beats += 1;
            governance.panics += u64::from(deeds.is_panic);
        }
    }

    /// Slot and request time of each server so far.
    fn server_times(&mut self) -> Vec<(u64, u64)> {
        let now = self.fleet.now;
        let times = self.fleet.servers.iter_mut().map(|server| {
            server.advance(now);
            (server.counters.slot_ns, server.counters.request_ns)
        });
        times.collect()
    }

    /// What is measured of servers, from the warm-up's end to now.
    fn tally(&mut self) {
        let measured = (self.end - self.warm) as f64;
        let times = self.server_times();
        let grown = times.iter().zip(&self.from);
        let slots = self.fleet.servers.iter().map(|server| f64::from(server.slots));
        let utilizations = grown
            .clone()
            .zip(slots)
            .map(|((after, before), slots)| (after.0 - before.0) as f64 / measured / slots)
            .collect();
        let request_ns: u64 = grown.map(|(after, before)| after.1 - before.1).sum();
        let largest = self.fleet.servers.iter().map(|server| server.max_in_flight).max();
        self.tally = Tally {
            max_in_flight: largest.unwrap_or_default(),
            mean_in_flight: request_ns as f64 / measured / times.len() as f64,
            utilizations,
            picks: std::mem::take(&mut self.picks),
        };
    }
}
