//! How long requests take.

use std::f64::consts::{SQRT_2, TAU};

use rand::RngExt;
use rand::rngs::SmallRng;

/// The largest over the smallest value of a bounded Pareto distribution.
const PARETO_SPAN: f64 = 1000.0;

/// What a normal distribution whose deviation is its mean of 1 has for a mean
/// once all below 0 is left out: 1 + φ(1)/Φ(1).
const TRUNCATED_MEAN: f64 = 1.287_599_970_939_178;

/// A distribution of service times. Its mean is what was asked for, whatever its
/// form, so that forms compare at one load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distribution {
    mean_s: f64,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Exponential,
    Deterministic,
    /// `scale * exp(sigma * normal)`.
    Lognormal {
        scale: f64,
        sigma: f64,
    },
    /// A normal one of this mean and deviation, drawn anew where it is below 0.
    TruncatedNormal {
        mean: f64,
    },
    /// From `least` to [`PARETO_SPAN`] times that.
    BoundedPareto {
        least: f64,
        alpha: f64,
    },
}

impl Distribution {
    /// Memoryless.
    pub fn exponential(mean_s: f64) -> Self {
        Self { mean_s, form: Form::Exponential }
    }

    /// Always the same.
    pub fn deterministic(mean_s: f64) -> Self {
        Self { mean_s, form: Form::Deterministic }
    }

    /// `cv`: the deviation as a part of the mean.
    pub fn lognormal(mean_s: f64, cv: f64) -> Self {
        let variance = (1.0 + cv * cv).ln();
        let scale = mean_s * (-variance / 2.0).exp();
        Self { mean_s, form: Form::Lognormal { scale, sigma: variance.sqrt() } }
    }

    /// Normal with a deviation like its mean, without what is below 0: how Prequal's
    /// test queries are spread.
    pub fn truncated_normal(mean_s: f64) -> Self {
        Self { mean_s, form: Form::TruncatedNormal { mean: mean_s / TRUNCATED_MEAN } }
    }

    /// Heavy-tailed: `P(> x) ~ x^-alpha` over three orders of magnitude. `alpha` is
    /// positive.
    pub fn bounded_pareto(mean_s: f64, alpha: f64) -> Self {
        let bulk = 1.0 - PARETO_SPAN.powf(-alpha);
        let mean_of_least = match (alpha - 1.0).abs() < 1e-9 {
            true => PARETO_SPAN.ln() / bulk,
            false => alpha / (alpha - 1.0) * (1.0 - PARETO_SPAN.powf(1.0 - alpha)) / bulk,
        };
        Self { mean_s, form: Form::BoundedPareto { least: mean_s / mean_of_least, alpha } }
    }

    /// Its mean, in seconds.
    pub fn mean_s(&self) -> f64 {
        self.mean_s
    }

    /// A time by chance, in seconds.
    pub fn draw(&self, rng: &mut SmallRng) -> f64 {
        match self.form {
            Form::Exponential => self.mean_s * exponential(rng),
            Form::Deterministic => self.mean_s,
            Form::Lognormal { scale, sigma } => scale * (sigma * normal(rng)).exp(),
            Form::TruncatedNormal { mean } => loop {
                let time = mean * (1.0 + normal(rng));
                if time >= 0.0 {
                    return time;
                }
            },
            Form::BoundedPareto { least, alpha } => {
                let part = rng.random::<f64>() * (1.0 - PARETO_SPAN.powf(-alpha));
                least * (1.0 - part).powf(-1.0 / alpha)
            }
        }
    }
}

/// An exponential number of mean 1.
pub fn exponential(rng: &mut SmallRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// A standard normal number.
///
/// Source: G. E. P. Box, M. E. Muller, A Note on the Generation of Random Normal
/// Deviates, Annals of Mathematical Statistics 29(2), 1958.
fn normal(rng: &mut SmallRng) -> f64 {
    SQRT_2 * exponential(rng).sqrt() * (TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// Mean and coefficient of variation of many draws.
    fn moments(of: Distribution) -> (f64, f64) {
        let mut rng = SmallRng::seed_from_u64(1);
        let draws: Vec<f64> = (0..400_000).map(|_| of.draw(&mut rng)).collect();
        assert!(draws.iter().all(|draw| *draw >= 0.0));
        let count = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / count;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / count;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn each_form_has_the_mean_and_the_spread_that_it_says() {
        for (of, cv) in [
            (Distribution::exponential(0.01), 1.0),
            (Distribution::deterministic(0.01), 0.0),
            (Distribution::lognormal(0.01, 1.0), 1.0),
            (Distribution::lognormal(0.01, 0.3), 0.3),
            // (1 - m - m^2) of the inverse Mills ratio m = 0.2876 at 1, over 1 + m.
            (Distribution::truncated_normal(0.01), 0.616_3),
        ] {
            let (mean, found) = moments(of);
            assert!((mean / 0.01 - 1.0).abs() < 0.01, "{of:?}: {mean}");
            assert!((found - cv).abs() < 0.02, "{of:?}: {found}");
        }
        for alpha in [1.0, 1.1, 1.5] {
            let of = Distribution::bounded_pareto(0.01, alpha);
            let (mean, _) = moments(of);
            assert!((mean / 0.01 - 1.0).abs() < 0.05, "{of:?}: {mean}");
        }
    }
}
