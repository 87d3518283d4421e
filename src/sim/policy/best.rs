//! `best`: every request to the top of a ranking by reports, the design that
//! sends everybody to one server.
//!
//! Source: this project's first draft. That it cannot work with old reports is known
//! since M. Mitzenmacher, How Useful Is Old Information?, IEEE Transactions on
//! Parallel and Distributed Systems 11(1), 2000: going to the apparently least
//! loaded server can hurt significantly.
//!
//! ```text
//! age weight = 1 - age / 5 s                         of each report in the window
//! score      = 0.5 * mean utilization + 0.5 * mean latency / largest mean latency
//! ```
//!
//! The lowest score is first; equal ones stand by number. A new ranking is made
//! when a report comes in; with none in the window the last one stays, and before
//! the first requests go anywhere. Servers without a report in the window come last. Kept:
//! a report without answers has latency 0 and so looks best, and what a report
//! says is believed.

use rand::rngs::SmallRng;

use super::{Policy, ServerReport, World, draw};

const WINDOW_S: f64 = 5.0;
const UTILIZATION_PART: f64 = 0.5;
const LATENCY_PART: f64 = 0.5;

#[derive(Default)]
pub struct Best {
    windows: Vec<Window>,
    /// Best first.
    order: Vec<usize>,
}

/// One server's reports, oldest first.
#[derive(Default, Clone)]
struct Window {
    reports: Vec<ServerReport>,
    /// Of the last one.
    taken_s: Option<f64>,
}

impl Window {
    /// Whether the report is new.
    fn add(&mut self, report: ServerReport) -> bool {
        // By its bits, so that a time that is not a number is new only once.
        let is_new = self.taken_s.map(f64::to_bits) != Some(report.taken_s.to_bits());
        if is_new {
            self.taken_s = Some(report.taken_s);
            self.reports.push(report);
        }
        is_new
    }

    /// Utilization and latency, by age; `None` without a report in the window.
    fn means(&mut self, now_s: f64) -> Option<(f64, f64)> {
        let age_weight = |report: &ServerReport| 1.0 - (now_s - report.taken_s) / WINDOW_S;
        self.reports.retain(|report| age_weight(report) > 0.0);
        let total: f64 = self.reports.iter().map(age_weight).sum();
        let mean = |figure: fn(&ServerReport) -> f64| {
            self.reports.iter().map(|report| age_weight(report) * figure(report)).sum::<f64>()
                / total
        };
        (!self.reports.is_empty())
            .then(|| (mean(|report| report.utilization), mean(|report| report.latency_s)))
    }
}

impl Best {
    fn sync(&mut self, world: &dyn World) {
        self.windows.resize(world.servers(), Window::default());
        let mut any_new = false;
        for (server, window) in self.windows.iter_mut().enumerate() {
            if let Some(report) = world.report(server) {
                any_new |= window.add(report);
            }
        }
        if !any_new {
            return;
        }
        let now_s = world.now_s();
        let means: Vec<Option<(f64, f64)>> =
            self.windows.iter_mut().map(|window| window.means(now_s)).collect();
        if means.iter().flatten().next().is_none() {
            return;
        }
        let largest_s = means.iter().flatten().map(|&(_, latency_s)| latency_s).fold(0.0, f64::max);
        let score = |server: usize| {
            let (utilization, latency_s) = means[server]?;
            let latency = if largest_s > 0.0 { latency_s / largest_s } else { 0.0 };
            Some(UTILIZATION_PART * utilization + LATENCY_PART * latency)
        };
        // Unknown comes last, with what is not a number.
        let known = |score: &f64| !score.is_nan();
        let places: Vec<f64> = (0..world.servers())
            .map(|server| score(server).filter(known).unwrap_or(f64::INFINITY))
            .collect();
        self.order = (0..world.servers()).collect();
        self.order.sort_by(|&one, &other| places[one].total_cmp(&places[other]));
    }
}

impl Policy for Best {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        self.sync(world);
        let servers = world.servers();
        let is_open = |server: &usize| *server < servers && draw::is_open(world, *server);
        self.order.iter().copied().find(is_open).or_else(|| draw::any(world, rng))
    }
}
