//! Optimal shares: how much traffic each instance should get so that the mean
//! latency of all requests is least.
//!
//! An instance of `k` servers with service time `s` at utilization `rho` is
//! taken for an M/M/k queue, whose mean wait is close to (Sakasegawa)
//!
//! ```text
//! W(rho) = s * rho^a / (k * (1 - rho)),   a = sqrt(2 * (k + 1)) - 1
//! ```
//!
//! One request more, a second, costs its own latency and what it adds to that of
//! all others, the marginal cost
//!
//! ```text
//! MC(rho) = s * (1 + ((a+1) * rho^a * (1-rho) + rho^(a+1)) / (k * (1-rho)^2))
//! ```
//!
//! The mean is least where that cost is the same for all instances that get
//! anything; one whose service time alone is above it gets nothing. While there is
//! room, fast instances get nearly all; when there is none, each gets as much as
//! it can bear: one formula spans best-first and weighted.
//!
//! Source: H. Sakasegawa, An approximation formula Lq ≃ α·ρ^β/(1-ρ), Annals of the
//! Institute of Statistical Mathematics 29, 1977; the condition is Kuhn and
//! Tucker's for the sum of all latencies.

use once_cell::sync::Lazy;

/// What an instance can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ability {
    /// What one request takes while none waits, in milliseconds; positive.
    pub service_ms: f64,
    /// Requests that it can answer, a second; positive.
    pub capacity_per_s: f64,
}

impl Ability {
    /// Requests that it serves at once, by Little's law; 1 at least.
    pub fn concurrency(&self) -> f64 {
        (self.capacity_per_s * self.service_ms / 1e3).max(1.0)
    }
}

/// More than is asked for, so that shares do not sit at an edge.
const HEADROOM: f64 = 1.05;

/// The most that is planned of what all can bear: beyond it the formula says
/// that latency has no bound, and shares by capacity are all that is left.
const FULL: f64 = 0.95;

/// The least that is planned of what all can bear: with next to no traffic the
/// least difference in service time would decide who gets all of it.
const LEAST: f64 = 0.1;

/// The utilization up to which the cost is reckoned.
const MAX_UTILIZATION: f64 = 0.98;

/// The part of an M/M/k queue's wait that requests have where each goes where there
/// is room: by simulation, between nothing and all of it. To take off too much
/// makes who is busy look fast, and busier.
const LIVE_WAIT: f64 = 0.5;

/// Bisections of the level of cost: to a millionth of the range.
const BISECTIONS: usize = 24;

/// The mean wait of an M/M/k queue, in the unit of `service`.
pub fn wait(service: f64, concurrency: f64, utilization: f64) -> f64 {
    let rho = utilization.clamp(0.0, MAX_UTILIZATION);
    let exponent = (2.0 * (concurrency + 1.0)).sqrt() - 1.0;
    service * rho.powf(exponent) / (concurrency * (1.0 - rho))
}

/// The service time, in the unit of `latency`, of an instance that answers after
/// `latency` on average at this utilization and capacity, the latter by the same
/// unit of time: what is left without the wait.
pub fn service_of(latency: f64, capacity: f64, utilization: f64) -> f64 {
    // One server serves a request in 1/capacity; more of them take longer each. A
    // latency below that is one server's.
    let shortest = (1.0 / capacity).min(latency);
    let mut service = latency;
    for _ in 0..20 {
        let concurrency = (capacity * service).max(1.0);
        let found = latency - LIVE_WAIT * wait(service, concurrency, utilization);
        service = f64::midpoint(service, found).max(shortest);
    }
    service
}

/// The utilization of an instance that answers after `latency` on average, and after
/// `service` while none waits, at this rate by the same unit of time.
pub fn utilization_of(latency: f64, service: f64, rate: f64) -> f64 {
    let (mut low, mut high) = (0.0, MAX_UTILIZATION);
    for _ in 0..12 {
        let middle = f64::midpoint(low, high);
        let concurrency = (rate * service / middle).max(1.0);
        if service + LIVE_WAIT * wait(service, concurrency, middle) < latency {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// The rate that each instance should get, a second, for `rate_per_s` in all.
pub fn optimal_rates(abilities: &[Ability], rate_per_s: f64) -> Vec<f64> {
    let all: f64 = abilities.iter().map(|ability| ability.capacity_per_s).sum();
    let wanted = (rate_per_s * HEADROOM).clamp(all * LEAST, all * FULL);
    let columns: Vec<_> =
        abilities.iter().map(|ability| Inverse::column(ability.concurrency())).collect();
    let rates_at = |level: f64| {
        abilities.iter().zip(&columns).map(move |(ability, &column)| {
            let ratio = level / ability.service_ms - 1.0;
            ability.capacity_per_s * INVERSE.utilization(column, ratio)
        })
    };

    // In logarithms, since levels differ by orders of magnitude.
    let fastest = abilities.iter().map(|ability| ability.service_ms).fold(f64::INFINITY, f64::min);
    let slowest = abilities.iter().map(|ability| ability.service_ms).fold(0.0, f64::max);
    let (mut low, mut high) = (fastest.ln(), slowest.ln() + Inverse::LAST + 1.0);
    for _ in 0..BISECTIONS {
        let middle = f64::midpoint(low, high);
        if rates_at(middle.exp()).sum::<f64>() < wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    rates_at(high.exp()).collect()
}

/// The utilization at which the marginal cost is `1 + ratio` service times, for
/// powers of concurrency, reckoned once: 10,000 instances need it 400,000 times a
/// ranking.
struct Inverse {
    /// By concurrency, then by the logarithm of the ratio.
    columns: Vec<[f32; Inverse::STEPS]>,
}

static INVERSE: Lazy<Inverse> = Lazy::new(Inverse::new);

impl Inverse {
    /// Columns for each doubling of the concurrency.
    const PER_DOUBLING: f64 = 4.0;
    /// The largest concurrency that is told apart: 2^16.
    const COLUMNS: usize = 65;
    const STEPS: usize = 129;
    const FIRST: f64 = -14.0;
    const LAST: f64 = 8.0;
    const STEP: f64 = (Self::LAST - Self::FIRST) / (Self::STEPS - 1) as f64;

    fn new() -> Self {
        let column = |index: usize| {
            let concurrency = (index as f64 / Self::PER_DOUBLING).exp2();
            std::array::from_fn(|step| {
                let ratio = (Self::FIRST + step as f64 * Self::STEP).exp();
                solve(concurrency, ratio) as f32
            })
        };
        Inverse { columns: (0..Self::COLUMNS).map(column).collect() }
    }

    fn column(concurrency: f64) -> usize {
        let column = (concurrency.log2() * Self::PER_DOUBLING).round();
        (column as usize).min(Self::COLUMNS - 1)
    }

    fn utilization(&self, column: usize, ratio: f64) -> f64 {
        if ratio <= 0.0 {
            return 0.0;
        }
        let column = &self.columns[column];
        let place = (ratio.ln() - Self::FIRST) / Self::STEP;
        if place < 0.0 {
            // Down to nothing in a straight line.
            return f64::from(column[0]) * ratio / Self::FIRST.exp();
        }
        let step = (place as usize).min(Self::STEPS - 2);
        let (low, high) = (f64::from(column[step]), f64::from(column[step + 1]));
        low + (high - low) * (place - step as f64).min(1.0)
    }
}

/// Bisects for the utilization.
fn solve(concurrency: f64, ratio: f64) -> f64 {
    let (mut low, mut high) = (0.0, MAX_UTILIZATION);
    for _ in 0..30 {
        let middle = f64::midpoint(low, high);
        if marginal_wait(concurrency, middle) < ratio {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// The marginal cost beyond the service time, in service times.
fn marginal_wait(concurrency: f64, rho: f64) -> f64 {
    let exponent = (2.0 * (concurrency + 1.0)).sqrt() - 1.0;
    let power = rho.powf(exponent);
    ((exponent + 1.0) * power * (1.0 - rho) + power * rho) / (concurrency * (1.0 - rho).powi(2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ability(service_ms: f64, concurrency: f64) -> Ability {
        Ability { service_ms, capacity_per_s: concurrency / service_ms * 1e3 }
    }

    fn shares(abilities: &[Ability], rate: f64) -> Vec<f64> {
        let rates = optimal_rates(abilities, rate);
        let sum: f64 = rates.iter().sum();
        rates.iter().map(|rate| rate / sum).collect()
    }

    /// Latency of all requests by the model, a second.
    fn cost(abilities: &[Ability], rates: &[f64]) -> f64 {
        let of = |(ability, rate): (&Ability, &f64)| {
            let rho = rate / ability.capacity_per_s;
            rate * (ability.service_ms + wait(ability.service_ms, ability.concurrency(), rho))
        };
        abilities.iter().zip(rates).map(of).sum()
    }

    #[test]
    fn the_wait_of_one_server_is_that_of_theory() {
        // M/M/1: s * rho / (1 - rho), exactly.
        assert!((wait(10.0, 1.0, 0.5) - 10.0).abs() < 1e-9);
        assert!((wait(10.0, 1.0, 0.9) - 90.0).abs() < 1e-9);
    }

    #[test]
    fn the_wait_of_four_servers_is_near_erlang_c_and_nearer_the_more_it_matters() {
        // The part of requests that wait, by Erlang C for k = 4.
        for (rho, delayed, near) in [(0.5, 0.1739, 0.3), (0.8, 0.5964, 0.05), (0.95, 0.8914, 0.02)]
        {
            let theory = delayed / (4.0 * (1.0 - rho));
            let found = wait(1.0, 4.0, rho);
            assert!((found / theory - 1.0).abs() < near, "{found} at {rho}, not {theory}");
        }
    }

    #[test]
    fn the_service_time_is_what_is_left_of_the_latency_without_the_wait() {
        for (service, concurrency, rho) in [(10.0, 4.0, 0.75), (30.0, 1.0, 0.5), (5.0, 64.0, 0.9)] {
            let latency = service + LIVE_WAIT * wait(service, concurrency, rho);
            let found = service_of(latency, concurrency / service, rho);
            assert!((found / service - 1.0).abs() < 0.01, "{found} for {service}");
        }
    }

    #[test]
    fn the_utilization_is_the_one_that_makes_such_a_latency() {
        for (service, concurrency, rho) in [(10.0, 4.0, 0.75), (30.0, 1.0, 0.5), (5.0, 64.0, 0.9)] {
            let latency = service + LIVE_WAIT * wait(service, concurrency, rho);
            let found = utilization_of(latency, service, rho * concurrency / service);
            assert!((found - rho).abs() < 0.01, "{found} for {rho}");
        }
        assert!(utilization_of(9.0, 10.0, 0.3) < 0.001, "no wait at all");
        assert!(utilization_of(1e9, 10.0, 0.3) > 0.97);
    }

    #[test]
    fn fast_instances_get_all_while_there_is_room() {
        let shares = shares(&[ability(10.0, 4.0), ability(30.0, 4.0)], 100.0);
        assert!(shares[0] > 0.999, "{shares:?}");
    }

    #[test]
    fn shares_are_in_proportion_to_capacity_when_there_is_no_room() {
        let abilities = [ability(10.0, 4.0), ability(30.0, 4.0)];
        let shares = shares(&abilities, 1e6);
        assert!((shares[0] - 0.75).abs() < 0.01, "{shares:?}");
    }

    #[test]
    fn equal_instances_get_equal_shares() {
        for rate in [0.0, 1.0, 100.0, 900.0, 1e9] {
            let shares = shares(&[ability(10.0, 4.0); 5], rate);
            assert!(shares.iter().all(|share| (share - 0.2).abs() < 1e-9), "{shares:?}");
        }
    }

    #[test]
    fn no_other_shares_cost_less() {
        let abilities = [ability(10.0, 4.0), ability(10.0, 1.0), ability(30.0, 12.0)];
        let rates = optimal_rates(&abilities, 500.0);
        let least = cost(&abilities, &rates);
        for from in 0..3 {
            for to in 0..3 {
                let mut other = rates.clone();
                let moved = (0.05 * rates.iter().sum::<f64>()).min(rates[from]);
                other[from] -= moved;
                other[to] += moved;
                let cost = cost(&abilities, &other);
                assert!(cost >= least * 0.999, "{from} to {to}: {cost} below {least}");
            }
        }
    }

    proptest! {
        #[test]
        fn rates_are_finite_and_sum_to_what_is_wanted(
            abilities in proptest::collection::vec((0.01..1e5f64, 1.0..1e4f64), 1..20),
            rate in 0.0..1e9f64,
        ) {
            let abilities: Vec<_> = abilities.iter().map(|&(s, k)| ability(s, k)).collect();
            let rates = optimal_rates(&abilities, rate);
            let all: f64 = abilities.iter().map(|ability| ability.capacity_per_s).sum();
            let wanted = (rate * HEADROOM).clamp(all * LEAST, all * FULL);
            prop_assert!(rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0));
            let sum: f64 = rates.iter().sum();
            prop_assert!((sum / wanted - 1.0).abs() < 0.05, "{} for {}", sum, wanted);
        }

        #[test]
        fn among_equal_sizes_a_faster_one_never_gets_less(
            first in 1.0..1e3f64, second in 1.0..1e3f64, load in 0.01..0.99f64,
        ) {
            let abilities = [ability(first, 4.0), ability(second, 4.0)];
            let all: f64 = abilities.iter().map(|ability| ability.capacity_per_s).sum();
            let rates = optimal_rates(&abilities, load * all);
            prop_assert!(first > second || rates[0] >= rates[1] * 0.999, "{:?}", rates);
        }
    }
}
