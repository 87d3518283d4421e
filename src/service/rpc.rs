//! `StatusService` and ORCA's `OpenRcaService`, over whatever knows a status.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};

use super::ServiceError;
use crate::model::Status;
use crate::wire::MAX_STATUS_AGE;
use crate::wire::proto::status_service_server::{StatusService, StatusServiceServer};
use crate::wire::proto::{
    GetStatusRequest, GetStatusResponse, WatchStatusRequest, WatchStatusResponse,
};
use crate::wire::xds::data::orca::v3::OrcaLoadReport;
use crate::wire::xds::service::orca::v3::OrcaLoadReportRequest;
use crate::wire::xds::service::orca::v3::open_rca_service_server::{
    OpenRcaService, OpenRcaServiceServer,
};

/// How often `WatchStatus` tells, if it is not asked for another interval.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// `WatchStatus` does not tell more often.
const MIN_WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// ORCA's stream does not tell more often, by default. gRPC's own servers begin
/// at 30 s, which is too slow to balance by.
pub(super) const MIN_ORCA_INTERVAL: Duration = Duration::from_secs(1);

/// A client that answers no ping for so long is gone, and its stream with it.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// What knows how a process is.
pub(super) trait Source: Send + Sync + 'static {
    /// The status as of now, with a `seq` of its own.
    fn status(&self) -> Result<Status, tonic::Status>;
}

/// Answers both services from one source.
#[derive(Clone)]
pub struct StatusRpc {
    source: Arc<dyn Source>,
    min_orca_interval: Duration,
    ended: watch::Receiver<bool>,
}

impl StatusRpc {
    /// Streams end when `ended` turns true.
    pub(super) fn new(
        source: Arc<dyn Source>,
        min_orca_interval: Duration,
        ended: watch::Receiver<bool>,
    ) -> Self {
        Self { source, min_orca_interval, ended }
    }

    /// Serves both until `shutdown` is over. It is the caller who ends the streams
    /// then, since the server waits for them.
    pub(super) async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServiceError> {
        Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .add_service(StatusServiceServer::new(self.clone()))
            .add_service(OpenRcaServiceServer::new(self))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown)
            .await
            .map_err(ServiceError::Serve)
    }

    fn stream<T>(
        &self,
        interval: Duration,
        next: impl FnMut() -> Result<T, tonic::Status> + Send + 'static,
    ) -> Response<Reports<T>> {
        Response::new(Reports::new(interval, self.ended.clone(), next))
    }
}

#[tonic::async_trait]
impl StatusService for StatusRpc {
    type WatchStatusStream = Reports<WatchStatusResponse>;

    async fn get_status(
        &self,
        _request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, tonic::Status> {
        let status = self.source.status()?;
        Ok(Response::new(GetStatusResponse { status: Some((&status).into()) }))
    }

    async fn watch_status(
        &self,
        request: Request<WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, tonic::Status> {
        let interval = request.into_inner().interval.map_or(WATCH_INTERVAL, length);
        let source = Arc::clone(&self.source);
        let next = move || Ok(WatchStatusResponse { status: Some((&source.status()?).into()) });
        Ok(self.stream(interval.max(MIN_WATCH_INTERVAL), next))
    }
}

#[tonic::async_trait]
impl OpenRcaService for StatusRpc {
    type StreamCoreMetricsStream = Reports<OrcaLoadReport>;

    async fn stream_core_metrics(
        &self,
        request: Request<OrcaLoadReportRequest>,
    ) -> Result<Response<Self::StreamCoreMetricsStream>, tonic::Status> {
        let interval = request.into_inner().report_interval.map_or(Duration::ZERO, length);
        let source = Arc::clone(&self.source);
        let mut last = None;
        let next = move || {
            let status = source.status()?;
            let now = Instant::now();
            let since = last.as_ref().map(|(status, at)| (status, now - *at));
            let report = orca_report(since, &status);
            last = Some((status, now));
            Ok(report)
        };
        Ok(self.stream(interval.max(self.min_orca_interval), next))
    }
}

/// A length of time that a client asks for; 0 for one below it.
fn length(asked: prost_types::Duration) -> Duration {
    Duration::try_from(asked).unwrap_or_default().min(MAX_STATUS_AGE)
}

/// ORCA's view of a status. Rates and latencies are those since the last report
/// of the same stream; the first one has none.
fn orca_report(last: Option<(&Status, Duration)>, now: &Status) -> OrcaLoadReport {
    let mut report = OrcaLoadReport {
        cpu_utilization: now.cpu_utilization().map_or(0.0, told),
        // 1 is the most that ORCA knows.
        mem_utilization: now.memory_utilization().map_or(0.0, |part| part.min(1.0)),
        application_utilization: now.application_utilization.unwrap_or_default(),
        ..OrcaLoadReport::default()
    };
    for (name, gauge) in [("inflight", now.in_flight), ("queue", now.queue)] {
        report.named_metrics.extend(gauge.map(|gauge| (name.to_owned(), gauge as f64)));
    }
    // A process that started anew counts from 0.
    if let Some((last, elapsed)) = last.filter(|(last, _)| last.boot_id == now.boot_id) {
        let seconds = elapsed.as_secs_f64();
        let requests = now.requests.saturating_sub(last.requests) as f64;
        let errors = now.errors.saturating_sub(last.errors) as f64;
        let latency_ns = now.latency_sum_ns.saturating_sub(last.latency_sum_ns) as f64;
        if seconds > 0.0 {
            (report.rps_fractional, report.eps) = (requests / seconds, errors / seconds);
        }
        if requests > 0.0 {
            report.named_metrics.insert("latency_ms".to_owned(), latency_ns / requests / 1e6);
        }
    }
    report
}

/// A utilization that is known: for ORCA 0 is one that is not.
fn told(utilization: f64) -> f64 {
    utilization.max(f64::MIN_POSITIVE)
}

/// A report at once, and one after each interval while the client reads them:
/// for one that reads slowly none are kept. Ends with the server or with the
/// first failure.
pub struct Reports<T> {
    ticks: Interval,
    next: Box<dyn FnMut() -> Result<T, tonic::Status> + Send>,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
}

impl<T> Reports<T> {
    fn new(
        every: Duration,
        mut ended: watch::Receiver<bool>,
        next: impl FnMut() -> Result<T, tonic::Status> + Send + 'static,
    ) -> Self {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = Box::pin(async move {
            if ended.wait_for(|ended| *ended).await.is_err() {
                // Nobody is left who could end them.
                std::future::pending::<()>().await;
            }
        });
        Self { ticks, next: Box::new(next), ended, is_over: false }
    }
}

impl<T> Stream for Reports<T> {
    type Item = Result<T, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let report = match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(tonic::Status::unavailable("the server is ending")),
            Poll::Pending => {
                ready!(self.ticks.poll_tick(cx));
                (self.next)()
            }
        };
        self.is_over = report.is_err();
        Poll::Ready(Some(report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn status(requests: u64) -> Status {
        Status {
            boot_id: 7,
            requests,
            errors: requests / 10,
            latency_sum_ns: requests * 5_000_000,
            ..Status::default()
        }
    }

    #[test]
    fn orca_tells_the_rates_of_the_last_interval() {
        let report = orca_report(Some((&status(100), Duration::from_secs(2))), &status(150));
        assert_eq!((report.rps_fractional, report.eps), (25.0, 2.5));
        assert_eq!(report.named_metrics, [("latency_ms".to_owned(), 5.0)].into());
    }

    #[test]
    fn orca_tells_no_rates_before_there_is_an_interval_or_across_a_restart() {
        let before = Status { boot_id: 6, ..status(100) };
        let since = Some((&before, Duration::from_secs(2)));
        for report in [orca_report(None, &status(150)), orca_report(since, &status(150))] {
            assert_eq!((report.rps_fractional, report.eps), (0.0, 0.0));
            assert!(report.named_metrics.is_empty(), "{report:?}");
        }
    }

    #[test]
    fn orca_tells_no_latency_of_an_interval_without_answers() {
        let report = orca_report(Some((&status(9), Duration::from_secs(1))), &status(9));
        assert!(report.named_metrics.is_empty(), "{report:?}");
    }

    #[test]
    fn orca_tells_resources_as_parts_of_their_limits() {
        let status = Status {
            cpu_used_cores: Some(3.0),
            cpu_limit_cores: Some(2.0),
            memory_used_bytes: Some(3),
            memory_limit_bytes: Some(2),
            in_flight: Some(4),
            queue: Some(0),
            application_utilization: Some(1.25),
            ..status(0)
        };
        let report = orca_report(None, &status);
        assert_eq!((report.cpu_utilization, report.mem_utilization), (1.5, 1.0));
        assert_eq!(report.application_utilization, 1.25);
        let named = [("inflight".to_owned(), 4.0), ("queue".to_owned(), 0.0)];
        assert_eq!(report.named_metrics, named.into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_reports_at_once_and_then_after_each_interval() {
        let (_running, ended) = watch::channel(false);
        let begun = Instant::now();
        let mut reports = Reports::new(Duration::from_secs(2), ended, || Ok(()));
        for expected in [0, 2, 4] {
            reports.next().await.unwrap().unwrap();
            assert_eq!(begun.elapsed().as_secs(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_with_its_server_and_says_so() {
        let (running, ended) = watch::channel(false);
        let mut reports = Reports::new(Duration::from_secs(2), ended, || Ok(()));
        reports.next().await.unwrap().unwrap();
        running.send_replace(true);
        let end = reports.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::Unavailable);
        assert!(reports.next().await.is_none());
    }

    #[test]
    fn lengths_below_0_are_0_and_none_is_longer_than_a_day() {
        let asked = |seconds, nanos| length(prost_types::Duration { seconds, nanos });
        assert_eq!(asked(-1, 0), Duration::ZERO);
        assert_eq!(asked(1, 500_000_000), Duration::from_millis(1500));
        assert_eq!(asked(i64::MAX, 0), MAX_STATUS_AGE);
    }
}
