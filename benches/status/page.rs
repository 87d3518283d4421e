//! The exporter's counters, from its own page.

use std::time::Duration;

use tokio::time::Instant;

use crate::http;

/// As they were at one moment.
pub struct Counters {
    at: Instant,
    took: Duration,
    text: String,
}

/// What was counted between two moments, in a second.
pub struct Rates {
    pub puts: f64,
    pub bytes: f64,
    /// Statuses that were read.
    pub read: f64,
    /// Of those, the ones that were not put, since they were as before.
    pub unchanged: f64,
    /// Counts, not rates: questions without an answer, and puts that were due and
    /// not made.
    pub failed: f64,
    pub skipped: f64,
    /// What half of the puts took at most, and 99 in 100, in milliseconds: as
    /// upper bounds, by the histogram's buckets.
    pub put_p50_ms: f64,
    pub put_p99_ms: f64,
}

impl Counters {
    /// As of just before the page was asked for: counters come first on it.
    pub fn read(port: u16) -> Self {
        let at = Instant::now();
        let page = http::Client::connect(port).and_then(|mut client| client.get("/metrics"));
        let text = page.expect("the exporter shows its metrics");
        Counters { at, took: at.elapsed(), text }
    }

    pub fn rates_since(&self, before: &Counters) -> Rates {
        let seconds = (self.at - before.at).as_secs_f64();
        let count = |name: &str| self.sum(name) - before.sum(name);
        let tries = count("collect_tries_total");
        let failed = count("collect_failures_total");
        let buckets: Vec<_> = self
            .buckets()
            .zip(before.buckets())
            .map(|(now, then)| (now.0, now.1 - then.1))
            .collect();
        let bound_ms = |part: f64| {
            let all = buckets.last().map_or(0.0, |(_, count)| *count);
            let bucket = buckets.iter().find(|(_, count)| *count >= part * all);
            bucket.map_or(f64::NAN, |(bound_s, _)| bound_s * 1e3)
        };
        Rates {
            puts: count("etcd_puts_total") / seconds,
            bytes: count("etcd_put_bytes_total") / seconds,
            read: (tries - failed) / seconds,
            unchanged: count("unchanged_total") / seconds,
            failed,
            skipped: count("ticks_skipped_total"),
            put_p50_ms: bound_ms(0.5),
            put_p99_ms: bound_ms(0.99),
        }
    }

    /// Of all services.
    fn sum(&self, name: &str) -> f64 {
        self.lines(name).map(|(_, value)| value).sum()
    }

    /// Upper bounds in seconds, each with the puts that took no longer.
    fn buckets(&self) -> impl Iterator<Item = (f64, f64)> {
        self.lines("etcd_put_seconds_bucket").map(|(labels, count)| {
            let bound = labels.trim_start_matches("le=\"").trim_end_matches('"');
            (bound.parse().unwrap_or(f64::INFINITY), count)
        })
    }

    /// The labels and the value of each line of a metric:
    ///
    /// ```text
    /// ipconfig_exporter_etcd_puts_total 1234
    /// ipconfig_exporter_etcd_put_seconds_bucket{le="0.001"} 12
    /// ```
    fn lines(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.text.lines().filter_map(move |line| {
            let rest = line.strip_prefix("ipconfig_exporter_")?.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let labels = match labels {
                "" => "",
                labels => labels.strip_prefix('{')?.strip_suffix('}')?,
            };
            Some((labels, value.parse().ok()?))
        })
    }

    /// How long the page took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// The page's size.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }
}
