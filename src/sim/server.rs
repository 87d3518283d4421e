//! A server: slots, a queue before them, and what it counts of itself.

use std::collections::VecDeque;

use rand::rngs::SmallRng;

use super::agenda::{Agenda, Event, Ns};
use super::distribution::Distribution;
use super::scenario::{Group, Tale, Told};

/// A try of a request. It is over once the request has moved on to another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub request: u32,
    pub try_no: u32,
}

impl Ticket {
    /// Of whoever came past the gateways, who waits for an answer however long it
    /// takes, and is not counted.
    pub const OTHER: Self = Self { request: u32::MAX, try_no: 0 };
}

/// What a server does with a request that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is being served.
    Serving,
    /// It waits for a slot.
    Waiting,
    /// The server fails it at once: it is down, or its queue is full.
    Refused,
    /// The server fails it without having done anything.
    Sunk,
    /// The server will never answer.
    Swallowed,
}

/// What is the matter with a server. Faults may overlap, so each is counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// It stands still.
    pub paused: u32,
    /// It accepts, and does not answer.
    pub black_hole: u32,
    /// It answers failures at once.
    pub sinkhole: u32,
    /// It does not accept.
    pub down: u32,
    /// The part of the requests that it serves and then fails.
    pub errors: f64,
    /// What it tells instead of the truth.
    pub tale: Option<Tale>,
}

/// Sums, as of the time that they were advanced to: the last two since the server's
/// beginning, the others since that of its process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    pub answered: u64,
    pub failed: u64,
    /// Sum of the latencies, waiting included, of what was answered.
    pub latency_ns: u64,
    /// Time with at least one slot busy.
    pub busy_ns: u64,
    /// Time that slots were busy, summed over slots.
    pub slot_ns: u64,
    /// Time that requests were there, summed over requests.
    pub request_ns: u64,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    ticket: Ticket,
    came: Ns,
    /// Nanoseconds of work left at speed 1, as of `since`.
    left: f64,
    since: Ns,
    /// Of the only [`Event::Served`] that holds.
    epoch: u32,
}

struct Waiting {
    ticket: Ticket,
    came: Ns,
}

/// One server.
pub struct Server {
    me: u32,
    /// Its group's number.
    pub group: usize,
    pub slots: u32,
    pub weight: f64,
    pub zone: String,
    serves_abandoned: bool,
    /// What it tells of its utilization, if that is not the truth.
    pub told_utilization: Option<Told>,
    pub trouble: Trouble,
    pub counters: Counters,
    /// The process's number, another one after each crash.
    pub boot: u64,
    /// The most requests that it ever had.
    pub max_in_flight: u32,
    service: Distribution,
    speed: f64,
    /// By fault.
    factors: Vec<(u32, f64)>,
    queue: Option<u32>,
    jobs: Vec<Option<Job>>,
    free: Vec<u32>,
    line: VecDeque<Waiting>,
    /// Those in line whose clients still wait.
    waiting: u32,
    /// Those that it will never answer, and whose clients still wait.
    swallowed: u32,
    epoch: u32,
    /// What `counters` are of.
    as_of: Ns,
}

impl Server {
    pub fn new(me: u32, group_number: usize, group: &Group) -> Self {
        Self {
            me,
            group: group_number,
            slots: group.slots,
            weight: group.weight,
            zone: group.zone.clone(),
            serves_abandoned: group.serves_abandoned,
            told_utilization: group.told_utilization,
            trouble: Trouble::default(),
            counters: Counters::default(),
            boot: 1,
            max_in_flight: 0,
            service: group.service.distribution(),
            speed: group.speed,
            factors: Vec::new(),
            queue: group.queue,
            jobs: vec![None; group.slots as usize],
            free: (0..group.slots).rev().collect(),
            line: VecDeque::new(),
            waiting: 0,
            swallowed: 0,
            epoch: 0,
            as_of: 0,
        }
    }

    /// Requests that it has.
    pub fn in_flight(&self) -> u32 {
        self.busy() + self.waiting + self.swallowed
    }

    /// Requests that wait for a slot.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Mean service time as of now, in seconds; infinite while it answers nothing
    /// good.
    pub fn service_s(&self) -> f64 {
        let Trouble { black_hole, sinkhole, down, .. } = self.trouble;
        match black_hole + sinkhole + down {
            0 => self.service.mean_s() / self.pace(),
            _ => f64::INFINITY,
        }
    }

    /// Brings the counters up to date.
    pub fn advance(&mut self, now: Ns) {
        let dt = now - self.as_of;
        let (busy, there) = (u64::from(self.busy()), u64::from(self.in_flight()));
        self.counters.slot_ns += busy * dt;
        self.counters.busy_ns += if busy > 0 { dt } else { 0 };
        self.counters.request_ns += there * dt;
        self.as_of = now;
    }

    /// A request comes.
    pub fn admit(
        &mut self,
        ticket: Ticket,
        now: Ns,
        agenda: &mut Agenda,
        rng: &mut SmallRng,
    ) -> Admission {
        let Trouble { black_hole, sinkhole, down, .. } = self.trouble;
        if down > 0 {
            return Admission::Refused;
        }
        self.advance(now);
        if sinkhole > 0 {
            self.counters.answered += 1;
            self.counters.failed += 1;
            return Admission::Sunk;
        }
        if black_hole > 0 {
            self.swallow();
            return Admission::Swallowed;
        }
        let admission = if let Some(slot) = self.free.pop() {
            self.start(slot, ticket, now, now, agenda, rng);
            Admission::Serving
        } else if self.queue.is_some_and(|queue| self.waiting >= queue) {
            self.counters.answered += 1;
            self.counters.failed += 1;
            return Admission::Refused;
        } else {
            self.line.push_back(Waiting { ticket, came: now });
            self.waiting += 1;
            Admission::Waiting
        };
        self.max_in_flight = self.max_in_flight.max(self.in_flight());
        admission
    }

    /// A slot may be through with its request; returns the request, if it is.
    pub fn serve(&mut self, slot: u32, epoch: u32, now: Ns) -> Option<Ticket> {
        let job = self.jobs[slot as usize].filter(|job| job.epoch == epoch)?;
        self.advance(now);
        self.jobs[slot as usize] = None;
        self.free.push(slot);
        self.counters.answered += 1;
        self.counters.latency_ns += now - job.came;
        Some(job.ticket)
    }

    /// It has failed what it has just served.
    pub fn count_failure(&mut self) {
        self.counters.failed += 1;
    }

    /// Gives a free slot to the next in line whose client still waits; returns its
    /// ticket.
    pub fn next_in_line(
        &mut self,
        still_waits: impl Fn(Ticket) -> bool,
        now: Ns,
        agenda: &mut Agenda,
        rng: &mut SmallRng,
    ) -> Option<Ticket> {
        let slot = *self.free.last()?;
        while let Some(next) = self.line.pop_front() {
            if self.serves_abandoned || still_waits(next.ticket) {
                self.advance(now);
                self.free.pop();
                self.waiting -= 1;
                self.start(slot, next.ticket, next.came, now, agenda, rng);
                return Some(next.ticket);
            }
        }
        None
    }

    /// Takes a request in for good.
    pub fn swallow(&mut self) {
        self.swallowed += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight());
    }

    /// The client of one that was swallowed has gone.
    pub fn abandon_swallowed(&mut self, now: Ns) {
        self.advance(now);
        self.swallowed -= 1;
    }

    /// The client of one in line has gone.
    pub fn abandon_waiting(&mut self, now: Ns) {
        self.advance(now);
        if !self.serves_abandoned {
            self.waiting -= 1;
        }
    }

    /// Lets go of all requests; returns those whose clients may still wait.
    pub fn drop_all(&mut self, now: Ns) -> Vec<Ticket> {
        self.advance(now);
        self.waiting = 0;
        let waiting: Vec<_> = self.line.drain(..).map(|waiting| waiting.ticket).collect();
        let mut dropped = Vec::new();
        for (slot, job) in (0..).zip(&mut self.jobs) {
            if let Some(job) = job.take() {
                dropped.push(job.ticket);
                self.free.push(slot);
            }
        }
        [dropped, waiting].concat()
    }

    /// Begins anew after a crash.
    pub fn restart(&mut self, now: Ns) {
        self.advance(now);
        self.boot += 1;
        let Counters { slot_ns, request_ns, .. } = self.counters;
        self.counters = Counters { slot_ns, request_ns, ..Counters::default() };
    }

    /// Sets or takes away (`None`) a fault's effect on the speed.
    pub fn set_factor(&mut self, fault: u32, factor: Option<f64>, now: Ns, agenda: &mut Agenda) {
        let before = self.pace();
        self.factors.retain(|(of, _)| *of != fault);
        self.factors.extend(factor.map(|factor| (fault, factor)));
        self.keep_pace(before, now, agenda);
    }

    /// Stands still, or goes on.
    pub fn pause(&mut self, paused: bool, now: Ns, agenda: &mut Agenda) {
        let before = self.pace();
        self.trouble.paused = match paused {
            true => self.trouble.paused + 1,
            false => self.trouble.paused - 1,
        };
        self.keep_pace(before, now, agenda);
    }

    fn busy(&self) -> u32 {
        self.slots - self.free.len() as u32
    }

    /// Work done in a second, in seconds.
    fn pace(&self) -> f64 {
        match self.trouble.paused {
            0 => self.factors.iter().fold(self.speed, |speed, (_, factor)| speed * factor),
            _ => 0.0,
        }
    }

    fn start(
        &mut self,
        slot: u32,
        ticket: Ticket,
        came: Ns,
        now: Ns,
        agenda: &mut Agenda,
        rng: &mut SmallRng,
    ) {
        let left = self.service.draw(rng) * 1e9;
        self.jobs[slot as usize] = Some(Job { ticket, came, left, since: now, epoch: 0 });
        self.schedule(slot, now, agenda);
    }

    /// Enters the end of a job at the pace as of now.
    fn schedule(&mut self, slot: u32, now: Ns, agenda: &mut Agenda) {
        let pace = self.pace();
        let Some(job) = &mut self.jobs[slot as usize] else { return };
        self.epoch = self.epoch.wrapping_add(1);
        job.epoch = self.epoch;
        if pace > 0.0 {
            let at = now.saturating_add((job.left / pace) as Ns);
            agenda.add(at, Event::Served { server: self.me, slot, epoch: job.epoch });
        }
    }

    /// The pace has changed: what is under way ends at another time.
    fn keep_pace(&mut self, before: f64, now: Ns, agenda: &mut Agenda) {
        self.advance(now);
        if before == self.pace() {
            return;
        }
        for slot in 0..self.slots {
            if let Some(job) = &mut self.jobs[slot as usize] {
                job.left = (job.left - (now - job.since) as f64 * before).max(0.0);
                job.since = now;
                self.schedule(slot, now, agenda);
            }
        }
    }
}
