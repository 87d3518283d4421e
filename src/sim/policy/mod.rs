//! What decides in a simulation who gets a request: the strategies of this
//! project, and those that they are compared with.

use rand::rngs::SmallRng;

/// What a server told of itself, as a gateway has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServerReport {
    /// When its figures were taken, in seconds of simulated time.
    pub taken_s: f64,
    /// Requests answered, a second, since its report before.
    pub rate_per_s: f64,
    /// The part of its slots that was busy since its report before; may be a lie.
    pub utilization: f64,
    /// Failed answers, a second.
    pub errors_per_s: f64,
    /// Mean latency of its answers, waiting included; 0 without any.
    pub latency_s: f64,
    /// Requests that it had when the figures were taken, waiting ones included.
    pub in_flight: u32,
}

/// What is there to decide by, at the moment of a request. Servers are numbered
/// from 0.
pub trait World {
    /// How many servers there are.
    fn servers(&self) -> usize;
    /// Seconds of simulated time.
    fn now_s(&self) -> f64;
    /// Whether this request has tried the server already.
    fn is_tried(&self, server: usize) -> bool;
    /// Whether the server is registered now: others must not be picked.
    fn is_member(&self, server: usize) -> bool;
    /// The weight that an operator gave it.
    fn weight(&self, server: usize) -> f64;
    /// Requests that this worker has open on it.
    fn worker_in_flight(&self, server: usize) -> u32;
    /// Requests that all workers of this gateway have open on it.
    fn gateway_in_flight(&self, server: usize) -> u32;
    /// The last report that has reached this gateway.
    fn report(&self, server: usize) -> Option<ServerReport>;

    // What no gateway can know; for oracles.

    /// Requests that it has from everywhere, waiting ones included.
    fn true_in_flight(&self, server: usize) -> u32;
    /// Its mean service time as of now, in seconds; infinite while it is stuck.
    fn true_service_s(&self, server: usize) -> f64;
    /// How many requests it serves at once.
    fn slots(&self, server: usize) -> u32;
}

/// How a request ended at a server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// Answered after so many seconds.
    Answered(f64),
    /// Answered with a failure after so many seconds.
    Failed(f64),
    /// Given up after so many seconds.
    TimedOut(f64),
}

/// One worker's way to decide.
pub trait Policy {
    /// The server for a request, one that it has not tried; `None` if it has tried
    /// all.
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize>;

    /// A request that this worker sent to `server` has ended.
    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        let _ = (world, server, outcome);
    }
}
