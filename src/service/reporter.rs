//! What a service tells of itself: its requests and its process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::ServiceError;
use super::layer::TrafficLayer;
use super::rpc::{MIN_ORCA_INTERVAL, Source, StatusRpc};
use super::sampler::{Process, Resources, Sampler};
use super::traffic::Traffic;
use crate::model::{MAX_IN_FLIGHT, Status};
use crate::wire::proto::status_service_server::StatusServiceServer;
use crate::wire::xds::service::orca::v3::open_rca_service_server::OpenRcaServiceServer;

/// Counts the requests of this process's service, measures the process, and
/// serves both. A clone is the same reporter: a process needs one.
#[derive(Clone)]
pub struct Reporter {
    own: Arc<Own>,
    min_orca_interval: Duration,
    /// Turns true when the streams are to end.
    ended: watch::Sender<bool>,
}

/// The status of this process.
struct Own {
    traffic: Arc<Traffic>,
    boot_id: u64,
    last: Mutex<Last>,
}

/// What the next status builds upon.
struct Last {
    sampler: Sampler,
    seq: u64,
    application_utilization: Option<f64>,
    max_in_flight: Option<u32>,
}

impl Reporter {
    /// A reporter that has counted nothing.
    ///
    /// # Errors
    /// [`ServiceError::BootId`] if the system has no random numbers.
    pub fn new() -> Result<Self, ServiceError> {
        // 0 stands for none.
        let boot_id = SysRng.try_next_u64().map_err(ServiceError::BootId)?.max(1);
        let sampler = Sampler::new(Process::Own);
        let last = Mutex::new(Last {
            sampler,
            seq: 0,
            application_utilization: None,
            max_in_flight: None,
        });
        let own = Arc::new(Own { traffic: Arc::default(), boot_id, last });
        let ended = watch::Sender::new(false);
        Ok(Self { own, min_orca_interval: MIN_ORCA_INTERVAL, ended })
    }

    /// Lets ORCA's stream report as often as every `interval`, in place of 1 s.
    pub fn with_min_orca_interval(self, interval: Duration) -> Self {
        // No time at all would be a busy loop.
        Self { min_orca_interval: interval.max(Duration::from_millis(1)), ..self }
    }

    /// What counts requests in a tower stack.
    pub fn layer(&self) -> TrafficLayer {
        TrafficLayer::new(Arc::clone(&self.own.traffic))
    }

    /// What the layer counts into, for requests that come another way and for
    /// those that wait.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.own.traffic
    }

    /// The service's own measure of how busy it is, until told otherwise; 1 is
    /// full, more is overload. `None`, and what is not a finite number of 0 or
    /// more, is not told.
    pub fn set_application_utilization(&self, utilization: Option<f64>) {
        let told = utilization.filter(|it| it.is_finite() && *it >= 0.0);
        self.own.last.lock().application_utilization = told;
    }

    /// The most requests that each gateway host may have in flight on this process,
    /// until told otherwise: it can lower the registration's limit and not raise it.
    /// `None` and 0 are no limit of its own; more than [`MAX_IN_FLIGHT`] is that.
    pub fn set_max_in_flight(&self, limit: Option<u32>) {
        self.own.last.lock().max_in_flight = limit.map(|limit| limit.min(MAX_IN_FLIGHT));
    }

    /// `ipconfig.v1.StatusService`, for a tonic server of one's own and its TLS.
    /// Before that server ends it wants [`end_streams`](Self::end_streams).
    pub fn status_service(&self) -> StatusServiceServer<StatusRpc> {
        StatusServiceServer::new(self.rpc())
    }

    /// `xds.service.orca.v3.OpenRcaService`, as
    /// [`status_service`](Self::status_service).
    pub fn orca_service(&self) -> OpenRcaServiceServer<StatusRpc> {
        OpenRcaServiceServer::new(self.rpc())
    }

    fn rpc(&self) -> StatusRpc {
        let source = Arc::clone(&self.own) as Arc<dyn Source>;
        StatusRpc::new(source, self.min_orca_interval, self.ended.subscribe())
    }

    /// Ends all streams for good, those to come at their beginning: a server that
    /// ends gracefully waits for them, and they have no end of their own.
    pub fn end_streams(&self) {
        self.ended.send_replace(true);
    }

    /// Listens on `listen`, and returns what serves both services there, without
    /// TLS, for as long as it is polled.
    ///
    /// # Errors
    /// [`ServiceError::Listen`] at once if the address cannot be had.
    pub fn serve(
        &self,
        listen: SocketAddr,
    ) -> Result<impl Future<Output = Result<(), ServiceError>> + Send + use<>, ServiceError> {
        let listening = move |source| ServiceError::Listen { listen, source };
        let listener = std::net::TcpListener::bind(listen).map_err(listening)?;
        listener.set_nonblocking(true).map_err(listening)?;
        let reporter = self.clone();
        Ok(async move {
            let listener = TcpListener::from_std(listener).map_err(listening)?;
            reporter.serve_with_shutdown(listener, std::future::pending()).await
        })
    }

    /// Serves both services, without TLS, until `shutdown` is over: then the
    /// streams of this reporter end, and what has been asked is answered.
    ///
    /// # Errors
    /// [`ServiceError::Serve`] if it ends before.
    pub fn serve_with_shutdown<F>(
        &self,
        listener: TcpListener,
        shutdown: F,
    ) -> impl Future<Output = Result<(), ServiceError>> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        let reporter = self.clone();
        let shutdown = async move {
            shutdown.await;
            reporter.end_streams();
        };
        self.rpc().serve(listener, shutdown)
    }
}

impl Source for Own {
    fn status(&self) -> Result<Status, tonic::Status> {
        // Under the lock, so that the higher number has the later figures.
        let mut last = self.last.lock();
        last.seq += 1;
        let counts = self.traffic.snapshot();
        let Resources { cpu_used_cores, cpu_limit_cores, memory_used_bytes, memory_limit_bytes } =
            last.sampler.sample();
        Ok(Status {
            boot_id: self.boot_id,
            seq: last.seq,
            // The figures are read for this answer.
            age: Duration::ZERO,
            requests: counts.requests,
            errors: counts.errors,
            busy_ns: nanoseconds(counts.busy),
            latency_sum_ns: nanoseconds(counts.latency_sum),
            cpu_used_cores,
            cpu_limit_cores,
            memory_used_bytes,
            memory_limit_bytes,
            in_flight: Some(counts.in_flight),
            queue: Some(counts.queue),
            application_utilization: last.application_utilization,
            max_in_flight: last.max_in_flight,
        })
    }
}

/// 2^64 ns are 584 years.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_utilization_that_is_none_is_not_told() {
        let reporter = Reporter::new().unwrap();
        let told = |utilization| {
            reporter.set_application_utilization(utilization);
            reporter.own.status().unwrap().application_utilization
        };
        assert_eq!(told(Some(1.5)), Some(1.5));
        assert_eq!(told(None), None);
        for none in [f64::NAN, f64::INFINITY, -0.1] {
            assert_eq!(told(Some(none)), None, "{none}");
        }
    }

    #[test]
    fn a_limit_is_told_and_never_more_than_is_read() {
        let reporter = Reporter::new().unwrap();
        let told = |limit| {
            reporter.set_max_in_flight(limit);
            reporter.own.status().unwrap().max_in_flight
        };
        assert_eq!(told(Some(8)), Some(8));
        assert_eq!(told(Some(u32::MAX)), Some(MAX_IN_FLIGHT));
        assert_eq!(told(None), None);
    }

    #[test]
    fn each_status_is_newer_than_the_last_and_each_start_is_another() {
        let reporter = Reporter::new().unwrap();
        let status = |of: &Reporter| of.own.status().unwrap();
        let (first, second) = (status(&reporter), status(&reporter.clone()));
        assert!(first.boot_id != 0 && second.seq > first.seq);
        assert_eq!(first.boot_id, second.boot_id);
        assert_ne!(first.boot_id, status(&Reporter::new().unwrap()).boot_id);
    }

    #[test]
    fn an_address_in_use_is_told_at_once() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let error = Reporter::new().unwrap().serve(addr).err().unwrap().to_string();
        assert!(error.contains(&addr.to_string()), "{error}");
    }
}
