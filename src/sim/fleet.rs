//! Everything there is at one moment: servers, gateways with their workers, and
//! requests.

use super::agenda::{Ns, to_s};
use super::live::Seen;
use super::policy::{Outcome, ServerReport, World};
use super::server::{Server, Ticket};

/// The first try and the most retries that a scenario allows.
const MAX_TRIES: usize = 17;

/// Where a request is, at its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a slot, or not there any more.
    Served,
    /// In line.
    Waiting,
    /// In a black hole.
    Swallowed,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub arrived: Ns,
    /// When its try began.
    pub began: Ns,
    /// A hash of what it is to be kept together by.
    pub key: u64,
    pub gateway: u32,
    pub worker: u32,
    /// Where its try is.
    pub server: u32,
    /// Grows with each try, and with the end: what belongs to another try is late.
    pub try_no: u32,
    pub place: Place,
    tries: u8,
    tried: [u16; MAX_TRIES],
}

impl Request {
    /// Tries that it has had.
    pub fn tries(&self) -> u32 {
        self.tries.into()
    }

    fn tried(&self) -> &[u16] {
        &self.tried[..self.tries.into()]
    }
}

/// One host: what its workers share.
pub struct Gateway {
    /// What it has seen of each server.
    pub seen: Vec<Seen>,
    /// Requests that it has open.
    pub open: u64,
    /// Tries that it has sent out.
    pub picks: u64,
    /// Which servers are registered, as far as it knows.
    pub members: Vec<bool>,
    pub reports: Vec<Option<ServerReport>>,
    /// It has a watch.
    pub listens: bool,
    /// How far its clock is off, in nanoseconds.
    pub clock_off: i64,
    /// From an exporter's put to its receipt.
    pub delay: Ns,
    /// A watch does not let events overtake each other.
    pub last_delivery: Ns,
}

impl Gateway {
    /// Of so many servers, of which nothing is known.
    pub fn new(servers: usize, delay: Ns) -> Self {
        Self {
            seen: vec![Seen::new(0); servers],
            open: 0,
            picks: 0,
            members: vec![false; servers],
            reports: vec![None; servers],
            listens: false,
            clock_off: 0,
            delay,
            last_delivery: 0,
        }
    }

    /// Its own clock, in nanoseconds since the beginning.
    pub fn clock(&self, now: Ns) -> i64 {
        now as i64 + self.clock_off
    }

    /// It hears that a server is registered, or is not.
    pub fn set_member(&mut self, server: usize, is_member: bool, now: Ns) {
        let was_member = std::mem::replace(&mut self.members[server], is_member);
        if is_member && !was_member && self.seen[server].in_flight() == 0 {
            self.seen[server] = Seen::new(now);
        }
    }
}

/// What each worker knows for itself.
pub struct Worker {
    pub gateway: u32,
    pub in_flight: Vec<u32>,
}

/// Everything there is.
pub struct Fleet {
    pub now: Ns,
    pub servers: Vec<Server>,
    pub gateways: Vec<Gateway>,
    pub workers: Vec<Worker>,
    requests: Vec<Request>,
    free: Vec<u32>,
    /// Requests under way.
    pub open: u64,
}

impl Fleet {
    pub fn new(servers: Vec<Server>, gateways: Vec<Gateway>, workers: Vec<Worker>) -> Self {
        let (requests, free) = (Vec::new(), Vec::new());
        Self { now: 0, servers, gateways, workers, requests, free, open: 0 }
    }

    pub fn request(&self, id: u32) -> &Request {
        &self.requests[id as usize]
    }

    pub fn request_mut(&mut self, id: u32) -> &mut Request {
        &mut self.requests[id as usize]
    }

    /// Whether a ticket's try goes on, and its end is some gateway's concern.
    pub fn is_open(&self, ticket: Ticket) -> bool {
        let request = self.requests.get(ticket.request as usize);
        request.is_some_and(|request| request.try_no == ticket.try_no)
    }

    /// The servers, and whether somebody waits for an answer to a ticket.
    pub fn servers_and_requests(&mut self) -> (&mut [Server], impl Fn(Ticket) -> bool) {
        let requests = &self.requests;
        let is_awaited =
            |it: Ticket| it == Ticket::OTHER || requests[it.request as usize].try_no == it.try_no;
        (&mut self.servers, is_awaited)
    }

    /// A request comes to a worker.
    pub fn arrive(&mut self, worker: u32, key: u64) -> u32 {
        self.open += 1;
        let gateway = self.workers[worker as usize].gateway;
        let fresh = Request {
            arrived: self.now,
            began: self.now,
            key,
            gateway,
            worker,
            server: 0,
            try_no: 0,
            place: Place::Served,
            tries: 0,
            tried: [0; MAX_TRIES],
        };
        match self.free.pop() {
            Some(id) => {
                let request = &mut self.requests[id as usize];
                *request = Request { try_no: request.try_no, ..fresh };
                id
            }
            None => {
                self.requests.push(fresh);
                self.requests.len() as u32 - 1
            }
        }
    }

    /// A request is done with.
    pub fn leave(&mut self, id: u32) {
        self.open -= 1;
        self.free.push(id);
    }

    /// A try begins.
    pub fn begin_try(&mut self, id: u32, server: u32) -> Ticket {
        let now = self.now;
        let request = &mut self.requests[id as usize];
        request.began = now;
        request.server = server;
        request.try_no = request.try_no.wrapping_add(1);
        request.place = Place::Served;
        request.tried[usize::from(request.tries)] = server as u16;
        request.tries += 1;
        let gateway = &mut self.gateways[request.gateway as usize];
        gateway.seen[server as usize].begin(now);
        gateway.open += 1;
        gateway.picks += 1;
        self.workers[request.worker as usize].in_flight[server as usize] += 1;
        Ticket { request: id, try_no: request.try_no }
    }

    /// A try ends: nothing else that is on its way counts for it.
    pub fn end_try(&mut self, id: u32, outcome: Outcome) {
        let request = &mut self.requests[id as usize];
        request.try_no = request.try_no.wrapping_add(1);
        let gateway = &mut self.gateways[request.gateway as usize];
        gateway.seen[request.server as usize].end(self.now, outcome);
        gateway.open -= 1;
        self.workers[request.worker as usize].in_flight[request.server as usize] -= 1;
    }

    /// What a worker sees who decides on a request.
    pub fn view(&self, id: u32) -> View<'_> {
        let request = self.request(id);
        View {
            fleet: self,
            gateway: &self.gateways[request.gateway as usize],
            worker: &self.workers[request.worker as usize],
            request,
        }
    }
}

/// Everything, as one worker sees it who has one request at hand.
pub struct View<'a> {
    pub fleet: &'a Fleet,
    pub gateway: &'a Gateway,
    pub worker: &'a Worker,
    pub request: &'a Request,
}

impl World for View<'_> {
    fn servers(&self) -> usize {
        self.fleet.servers.len()
    }

    fn now_s(&self) -> f64 {
        to_s(self.fleet.now)
    }

    fn is_tried(&self, server: usize) -> bool {
        self.request.tried().iter().any(|tried| usize::from(*tried) == server)
    }

    fn is_member(&self, server: usize) -> bool {
        self.gateway.members[server]
    }

    fn weight(&self, server: usize) -> f64 {
        self.fleet.servers[server].weight
    }

    fn worker_in_flight(&self, server: usize) -> u32 {
        self.worker.in_flight[server]
    }

    fn gateway_in_flight(&self, server: usize) -> u32 {
        self.gateway.seen[server].in_flight()
    }

    fn report(&self, server: usize) -> Option<ServerReport> {
        self.gateway.reports[server]
    }

    fn true_in_flight(&self, server: usize) -> u32 {
        self.fleet.servers[server].in_flight()
    }

    fn true_service_s(&self, server: usize) -> f64 {
        self.fleet.servers[server].service_s()
    }

    fn slots(&self, server: usize) -> u32 {
        self.fleet.servers[server].slots
    }
}
