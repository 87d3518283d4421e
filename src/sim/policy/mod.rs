//! What decides in a simulation who gets a request: the strategies of this
//! project, and those that they are compared with.
//!
//! The latter are here, one file each, after their published formulas and with
//! their published defaults. What is known to be wrong with them is kept: it is
//! what they are compared for.

mod best;
mod draw;
mod ewma;
mod ewma_apisix;
mod ewma_ingress;
mod least_conn;
mod nginx;
mod oracle_jsq;
mod oracle_p2c;
mod oracle_sed;
mod peak_ewma;
mod random;
mod random_two;
mod round_robin;
#[cfg(test)]
mod tests;
mod wrr_a58;

use rand::rngs::SmallRng;

/// What [`by_name`] knows.
pub const NAMES: &[&str] = &[
    "round_robin",
    "random",
    "least_conn",
    "least_conn_worker",
    "random_two",
    "random_two_worker",
    "ewma_ingress",
    "ewma_apisix",
    "peak_ewma",
    "wrr_a58",
    "best",
    "oracle_jsq",
    "oracle_sed",
    "oracle_p2c",
];

/// What the workers of one gateway have in common, as nginx's `zone` or a shared
/// dict: make one for each gateway with [`gateway_shared`] and give it to all of
/// its workers. All of them run one policy.
#[derive(Default)]
pub struct Shared {
    peers: nginx::SharedPeers,
    averages: ewma::SharedAverages,
}

/// For a new gateway: nothing is known yet.
pub fn gateway_shared() -> Shared {
    Shared::default()
}

/// The policy of one worker, one of [`NAMES`]; `None` for any other name. `shared`
/// is its gateway's. `seed` decides what a policy takes by chance when it is made,
/// and should differ from worker to worker.
///
/// A policy reads the number of servers, who is registered and the weights at each
/// call; all of them may change between calls. It does not keep requests: what is
/// open comes from the [`World`], in which a request that was just picked for
/// counts from the next pick on.
///
/// Those after nginx (`round_robin`, `random`, `least_conn…`, `random_two…`) give
/// `None` also where nginx would answer 502 without asking any server: when the
/// last try at each of those left timed out less than 10 s ago, or their weight
/// is 0.
pub fn by_name(name: &str, shared: &Shared, seed: u64) -> Option<Box<dyn Policy>> {
    let peers = || shared.peers.clone();
    let averages = || shared.averages.clone();
    Some(match name {
        "round_robin" => Box::new(round_robin::RoundRobin::default()),
        "random" => Box::new(random::Random::default()),
        "least_conn" => Box::new(least_conn::LeastConn::of_gateway(peers())),
        "least_conn_worker" => Box::new(least_conn::LeastConn::of_worker()),
        "random_two" => Box::new(random_two::RandomTwo::of_gateway(peers())),
        "random_two_worker" => Box::new(random_two::RandomTwo::of_worker()),
        "ewma_ingress" => Box::new(ewma_ingress::EwmaIngress::new(averages())),
        "ewma_apisix" => Box::new(ewma_apisix::EwmaApisix::new(averages())),
        "peak_ewma" => Box::new(peak_ewma::PeakEwma::default()),
        "wrr_a58" => Box::new(wrr_a58::WrrA58::new(seed)),
        "best" => Box::new(best::Best::default()),
        "oracle_jsq" => Box::new(oracle_jsq::OracleJsq),
        "oracle_sed" => Box::new(oracle_sed::OracleSed),
        "oracle_p2c" => Box::new(oracle_p2c::OracleP2c),
        _ => return None,
    })
}

/// How long it took, however it ended.
fn latency_s(outcome: Outcome) -> f64 {
    let (Outcome::Answered(s) | Outcome::Failed(s) | Outcome::TimedOut(s)) = outcome;
    s
}

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
