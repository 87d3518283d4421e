//! ORCA's out-of-band reports, which say how things are going: rates and
//! utilizations, no counters. Counters are what [`Status`] is made of, so they
//! are reckoned here: a rate counts from its report until the next one.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use super::AskError;
use super::stream::Feed;
use crate::model::{Report, Status};
use crate::wire;
use crate::wire::xds::data::orca::v3::OrcaLoadReport;
use crate::wire::xds::service::orca::v3::OrcaLoadReportRequest;
use crate::wire::xds::service::orca::v3::open_rca_service_client::OpenRcaServiceClient;

/// For errors.
pub(super) const SERVICE: &str = "xds.service.orca.v3.OpenRcaService";

/// The largest report that is read, in bytes: room for a thousand metrics of the
/// application's own, none of which matter here.
const MAX_REPORT_BYTES: usize = 64 * 1024;

/// The largest rates, a second, and numbers of requests that are believed.
const MAX_REQUESTS: f64 = 1e9;

/// The largest utilization that is believed: a thousand times what there is.
const MAX_UTILIZATION: f64 = 1e3;

/// The largest mean latency that is believed: a day.
const MAX_LATENCY_MS: f64 = 86.4e6;

/// The figures of a report that are of use here; `None` is not told.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    cpu: Option<f64>,
    application: Option<f64>,
    requests_per_second: f64,
    errors_per_second: f64,
    latency_ms: Option<f64>,
    in_flight: Option<f64>,
    queue: Option<f64>,
}

impl Load {
    /// Takes the report whole or not at all: where one figure is none, the
    /// others may be no better.
    fn new(report: &OrcaLoadReport) -> Result<Self, AskError> {
        let checked = |field, found: f64, allowed: f64| match (0.0..=allowed).contains(&found) {
            true => Ok(found),
            false => Err(AskError::Load { field, found, allowed }),
        };
        let named = |field, allowed| {
            let found = report.named_metrics.get(field).copied();
            found.map(|found| checked(field, found, allowed)).transpose()
        };
        // There are no presence bits: 0 is what a server sends that cannot tell.
        let told = |figure: f64| (figure != 0.0).then_some(figure);
        #[expect(deprecated, reason = "older servers have no rps_fractional")]
        let rounded_rps = report.rps as f64;
        let rps = told(report.rps_fractional).unwrap_or(rounded_rps);

        // Not used, but checked: it says what the rest is worth.
        checked("mem_utilization", report.mem_utilization, MAX_UTILIZATION)?;
        let utilization = |field, found| checked(field, found, MAX_UTILIZATION).map(told);
        Ok(Self {
            cpu: utilization("cpu_utilization", report.cpu_utilization)?,
            application: utilization("application_utilization", report.application_utilization)?,
            requests_per_second: checked("rps_fractional", rps, MAX_REQUESTS)?,
            errors_per_second: checked("eps", report.eps, MAX_REQUESTS)?,
            latency_ms: named("latency_ms", MAX_LATENCY_MS)?,
            in_flight: match named("inflight", MAX_REQUESTS)? {
                None => named("in_flight", MAX_REQUESTS)?,
                told => told,
            },
            queue: named("queue", MAX_REQUESTS)?,
        })
    }

    /// Mean latency of the answered requests. Where it is not told, it follows
    /// from how many are being served and how many a second are done (Little's
    /// law), which says much too much where next to none are.
    fn latency_ns(&self) -> f64 {
        let by_law = || Some(self.in_flight? / self.requests_per_second * 1e3);
        let latency_ms = self.latency_ms.or_else(by_law).filter(|ms| ms.is_finite());
        latency_ms.unwrap_or(0.0).min(MAX_LATENCY_MS) * 1e6
    }
}

/// Makes a [`Status`] out of the reports so far.
///
/// A utilization is given as that part of one core, which is all that matters to
/// whoever divides the two. Memory stays unknown: a part of an unknown number of
/// bytes says nothing of how many there are left.
pub(super) struct Reckoner {
    boot_id: u64,
    seq: u64,
    /// The last report, and when it came.
    last: Option<(Load, Instant)>,
    /// Up to when the counters are reckoned; `None` while no report counts.
    until: Option<Instant>,
    requests: Counter,
    errors: Counter,
    latency_sum_ns: u64,
}

/// Counts parts, and tells whole ones.
#[derive(Debug, Default)]
struct Counter {
    whole: u64,
    part: f64,
}

impl Counter {
    /// Returns how many whole ones came about.
    fn add(&mut self, amount: f64) -> u64 {
        let sum = self.part + amount;
        self.part = sum.fract();
        let new = sum.trunc() as u64; // finite and not negative
        self.whole = self.whole.saturating_add(new);
        new
    }
}

impl Reckoner {
    /// With counters that begin at 0. `boot_id` stands for them: that the
    /// instance started anew does not show in its reports, and changes nothing.
    pub fn new(boot_id: u64) -> Self {
        Self {
            boot_id,
            seq: 0,
            last: None,
            until: None,
            requests: Counter::default(),
            errors: Counter::default(),
            latency_sum_ns: 0,
        }
    }

    fn reckon(&mut self, now: Instant) {
        let (Some((load, _)), Some(until)) = (self.last, self.until) else { return };
        let seconds = (now - until).as_secs_f64();
        let requests = self.requests.add(load.requests_per_second * seconds);
        self.errors.add(load.errors_per_second * seconds);
        self.until = Some(now);
        let latency_ns = (load.latency_ns() * requests as f64) as u64;
        match self.latency_sum_ns.checked_add(latency_ns) {
            Some(sum) => self.latency_sum_ns = sum,
            // A thousand requests in flight fill it in half a year. A counter
            // never falls, so that all begin anew, as after a restart.
            None => {
                let Self { seq, last, until, .. } = *self;
                let boot_id = self.boot_id.wrapping_add(1).max(1);
                *self = Self { seq, last, until, ..Self::new(boot_id) };
            }
        }
    }
}

impl Feed for Reckoner {
    type Message = OrcaLoadReport;

    const METHOD: &'static str = "StreamCoreMetrics";
    const SERVICE: &'static str = SERVICE;

    async fn open(
        channel: Channel,
        interval: Duration,
    ) -> Result<Streaming<Self::Message>, tonic::Status> {
        let mut client =
            OpenRcaServiceClient::new(channel).max_decoding_message_size(MAX_REPORT_BYTES);
        let request = OrcaLoadReportRequest {
            report_interval: Some(wire::proto_duration(interval)),
            ..Default::default()
        };
        Ok(client.stream_core_metrics(request).await?.into_inner())
    }

    fn hear(&mut self, message: Self::Message, now: Instant) -> Result<(), AskError> {
        let load = Load::new(&message)?;
        self.reckon(now);
        self.last = Some((load, now));
        self.until = Some(now);
        Ok(())
    }

    fn broke(&mut self, now: Instant) {
        self.reckon(now);
        self.until = None;
    }

    fn tell(&mut self, now: Instant) -> Option<Report> {
        self.reckon(now);
        let (load, at) = self.last?;
        self.seq += 1;
        let whole = |number: Option<f64>| number.map(|number| number.round() as u64);
        Some(Report::Status(Status {
            boot_id: self.boot_id,
            seq: self.seq,
            age: now - at,
            requests: self.requests.whole,
            errors: self.errors.whole,
            busy_ns: 0,
            latency_sum_ns: self.latency_sum_ns,
            cpu_used_cores: load.cpu,
            cpu_limit_cores: load.cpu.map(|_| 1.0),
            memory_used_bytes: None,
            memory_limit_bytes: None,
            in_flight: whole(load.in_flight),
            queue: whole(load.queue),
            application_utilization: load.application,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn report(rps_fractional: f64, eps: f64, named: &[(&str, f64)]) -> OrcaLoadReport {
        let named_metrics = named.iter().map(|(name, value)| ((*name).to_owned(), *value));
        OrcaLoadReport {
            cpu_utilization: 0.25,
            rps_fractional,
            eps,
            named_metrics: named_metrics.collect(),
            ..Default::default()
        }
    }

    fn told(reckoner: &mut Reckoner, now: Instant) -> Status {
        match reckoner.tell(now) {
            Some(Report::Status(status)) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_counts_from_its_report_until_the_next_one() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(report(100.0, 10.0, &[("latency_ms", 20.0)]), start).unwrap();
        assert_eq!(told(&mut reckoner, start).requests, 0);

        let status = told(&mut reckoner, start + 2 * SECOND);
        assert_eq!((status.requests, status.errors), (200, 20));
        assert_eq!(status.latency_sum_ns, 200 * 20_000_000);
        assert_eq!((status.boot_id, status.seq, status.age), (7, 2, 2 * SECOND));
        assert_eq!(status.cpu_utilization(), Some(0.25));

        reckoner.hear(report(10.0, 0.0, &[("latency_ms", 1.0)]), start + 3 * SECOND).unwrap();
        let status = told(&mut reckoner, start + 4 * SECOND);
        assert_eq!((status.requests, status.errors), (310, 30));
        assert_eq!(status.age, SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_rates_lose_nothing_to_rounding() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(report(0.25, 0.0, &[]), start).unwrap();
        let last = (1..=80).map(|n| told(&mut reckoner, start + n * SECOND).requests).last();
        assert_eq!(last, Some(20));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_counted_while_no_report_stands() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(report(100.0, 0.0, &[]), start).unwrap();
        reckoner.broke(start + SECOND);
        assert_eq!(told(&mut reckoner, start + 9 * SECOND).requests, 100);
        reckoner.hear(report(100.0, 0.0, &[]), start + 10 * SECOND).unwrap();
        assert_eq!(told(&mut reckoner, start + 11 * SECOND).requests, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_cannot_tell_stays_unknown() {
        let mut reckoner = Reckoner::new(7);
        let now = Instant::now();
        assert!(reckoner.tell(now).is_none(), "before the first report");
        reckoner.hear(OrcaLoadReport::default(), now).unwrap();
        let status = told(&mut reckoner, now);
        assert_eq!(status.cpu_utilization(), None);
        assert_eq!((status.in_flight, status.queue), (None, None));
        assert_eq!(status.application_utilization, None);
        assert_eq!(status.memory_free_bytes(), None);

        reckoner.hear(report(0.0, 0.0, &[("inflight", 0.0), ("queue", 2.0)]), now).unwrap();
        let status = told(&mut reckoner, now);
        assert_eq!((status.in_flight, status.queue), (Some(0), Some(2)), "a named 0 is told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_latency_that_is_not_told_follows_from_what_is_in_flight() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(report(100.0, 0.0, &[("in_flight", 5.0)]), start).unwrap();
        let status = told(&mut reckoner, start + SECOND);
        assert_eq!(status.latency_sum_ns / status.requests, 50_000_000);
        reckoner.hear(report(0.0, 0.0, &[("in_flight", 5.0)]), start + SECOND).unwrap();
        let later = told(&mut reckoner, start + 2 * SECOND);
        assert_eq!(later.latency_sum_ns, status.latency_sum_ns, "nothing was answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_latency_that_is_not_told_is_believed_as_far_as_one_that_is() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(report(1e-6, 0.0, &[("in_flight", MAX_REQUESTS)]), start).unwrap();
        let status = told(&mut reckoner, start + Duration::from_secs(3_000_000));
        assert!(status.requests > 0);
        assert_eq!(status.latency_sum_ns / status.requests, (MAX_LATENCY_MS * 1e6) as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_counter_grows_until_all_begin_anew() {
        let mut reckoner = Reckoner::new(u64::MAX);
        let start = Instant::now();
        // 18e9 requests of a second each fill it, in a thousand seconds.
        reckoner.hear(report(18e6, 0.0, &[("latency_ms", 1e3)]), start).unwrap();
        let mut last = told(&mut reckoner, start);
        let mut boots = 1;
        for n in 1..=3000 {
            let status = told(&mut reckoner, start + n * SECOND);
            match status.boot_id == last.boot_id {
                true => assert!(status.latency_sum_ns > last.latency_sum_ns),
                false => {
                    boots += 1;
                    assert_eq!((status.requests, status.latency_sum_ns), (0, 0));
                    assert_ne!(status.boot_id, 0, "that stands for none");
                }
            }
            assert!(status.seq > last.seq);
            last = status;
        }
        assert_eq!(boots, 3);
    }

    #[test]
    fn rounded_rates_of_older_servers_count() {
        #[expect(deprecated, reason = "older servers have no rps_fractional")]
        let report = OrcaLoadReport { rps: 70, ..Default::default() };
        assert_eq!(Load::new(&report).unwrap().requests_per_second, 70.0);
    }

    #[test]
    fn a_report_with_a_figure_that_cannot_be_is_refused_whole() {
        let sane = report(100.0, 0.0, &[]);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300] {
            let reports = [
                OrcaLoadReport { cpu_utilization: bad, ..sane.clone() },
                OrcaLoadReport { mem_utilization: bad, ..sane.clone() },
                OrcaLoadReport { application_utilization: bad, ..sane.clone() },
                OrcaLoadReport { rps_fractional: bad, ..sane.clone() },
                OrcaLoadReport { eps: bad, ..sane.clone() },
                report(100.0, 0.0, &[("latency_ms", bad)]),
                report(100.0, 0.0, &[("inflight", bad)]),
                report(100.0, 0.0, &[("queue", bad)]),
            ];
            for report in reports {
                let err = Load::new(&report).unwrap_err();
                assert_eq!(err.reason(), "bad_status", "{err}");
            }
        }
        assert!(Load::new(&report(1.0, 0.0, &[("my_own", f64::NAN)])).is_ok(), "of no account");
    }
}
