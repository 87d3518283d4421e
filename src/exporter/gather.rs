//! Asks the instances for their status, all at once and each on its own
//! connection, so that none waits for another.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::discover::Target;
use crate::config::ExporterConfig;
use crate::metrics::{ExporterMetrics, InstanceLabels, ServiceLabel};
use crate::model::Status;
use crate::wire::proto::GetStatusRequest;
use crate::wire::proto::status_service_client::StatusServiceClient;
use crate::wire::{MAX_STATUS_BYTES, RecordError};

/// A connection is pinged after so long without an answer of the peer…
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// … and given up when the ping is not answered either.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// What is to be written after one tick.
#[derive(Debug)]
pub struct Report {
    /// When the tick began.
    pub begun: Instant,
    /// Every shard of every service, also one of which nobody answered: that a
    /// key is written at all says that the exporter lives.
    pub shards: Vec<Shard>,
}

/// The statuses of one shard's instances that answered.
#[derive(Debug, PartialEq)]
pub struct Shard {
    /// The service's name.
    pub service: String,
    /// Its number within the service.
    pub number: u32,
    /// Statuses by the instance's id.
    pub statuses: Vec<(String, Status)>,
}

/// Asks a fixed set of instances, once a tick.
pub struct Collector {
    schedule: Schedule,
    /// Ordered by service and shard.
    peers: Vec<Peer>,
    /// Under way; those of an earlier tick that still retry among them.
    asks: JoinSet<Answer>,
    metrics: Arc<ExporterMetrics>,
}

/// When tries begin and how long they last.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    interval: Duration,
    timeout: Duration,
    retries: u32,
}

impl Schedule {
    /// When to try again after `tries` tries of the tick that began at `begun`,
    /// the last of which ended at `now`. Tries are spread over the interval,
    /// since what broke needs a moment to mend; `None` if there were enough of
    /// them or the interval is over.
    fn next_try(self, begun: Instant, tries: u32, now: Instant) -> Option<Instant> {
        let Self { interval, retries, .. } = self;
        let next = now.max(begun + interval / (retries + 1) * tries);
        (tries <= retries && next < begun + interval).then_some(next)
    }

    /// How long a try may take that begins at `now`: the interval's end cuts it,
    /// where the next tick asks anew.
    fn limit(self, begun: Instant, now: Instant) -> Duration {
        self.timeout.min((begun + self.interval).saturating_duration_since(now))
    }
}

/// An instance, its connection, and what is known of it.
struct Peer {
    target: Target,
    /// Connects when it is first used and again after it broke.
    client: StatusServiceClient<Channel>,
    /// What the instance said, and when, until it has been reported.
    news: Option<(Status, Instant)>,
    health: Health,
}

/// Whether the last tick's tries found the instance; a change is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Untried,
    Up,
    Down,
}

struct Answer {
    peer: usize,
    at: Instant,
    result: Result<Status, AskError>,
}

/// Why an instance's status is not known.
#[derive(Debug, Error)]
enum AskError {
    #[error("no answer within {limit:?}")]
    Timeout { limit: Duration },
    #[error("failed to call GetStatus: {}: {}", .0.code(), .0.message())]
    Call(#[source] tonic::Status),
    #[error("the answer holds no status")]
    Empty,
    #[error("failed to read the answer: {0}")]
    Status(#[source] RecordError),
}

impl AskError {
    /// Whether the next try may end otherwise.
    fn retry_helps(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Call(status) => status.code() != Code::Unimplemented,
            Self::Empty | Self::Status(_) => false,
        }
    }
}

impl Collector {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// [`tonic::transport::Error`] if a target's authority is none.
    pub fn new(
        config: &ExporterConfig,
        targets: Vec<Target>,
        metrics: Arc<ExporterMetrics>,
    ) -> Result<Self, tonic::transport::Error> {
        let ExporterConfig { interval, timeout, retries, .. } = *config;
        let schedule = Schedule { interval, timeout, retries };
        let peer = |target| Peer::new(target, schedule);
        let peers = targets.into_iter().map(peer).collect::<Result<_, _>>()?;
        Ok(Self { schedule, peers, asks: JoinSet::new(), metrics })
    }

    /// Asks every instance, and reports as soon as all have answered, at the
    /// latest when a first try's timeout is over: by then whoever is well has
    /// answered. Who answers a later try of this tick is part of the next
    /// report, unless the next tick has newer news.
    pub async fn tick(&mut self, begun: Instant) -> Report {
        for index in 0..self.peers.len() {
            self.asks.spawn(self.ask(index, begun));
        }
        let report_at = begun + self.schedule.timeout;
        while let Ok(Some(ended)) = timeout_at(report_at, self.asks.join_next()).await {
            match ended {
                Ok(answer) => self.take(answer),
                Err(err) => tracing::error!("failed to ask an instance: {err}"),
            }
        }
        Report { begun, shards: self.take_news() }
    }

    /// One instance's tries of one tick.
    fn ask(&self, peer: usize, begun: Instant) -> impl Future<Output = Answer> + use<> {
        let Peer { target, client, .. } = &self.peers[peer];
        let (client, schedule) = (client.clone(), self.schedule);
        let label = ServiceLabel { service: target.service.clone() };
        let tries_total = self.metrics.collect_tries.get_or_create_owned(&label);
        let failures_total = self.metrics.collect_failures.get_or_create_owned(&label);
        async move {
            let mut tries = 0;
            let result = loop {
                tries += 1;
                tries_total.inc();
                let limit = schedule.limit(begun, Instant::now());
                let result = get_status(client.clone(), limit).await;
                let Err(err) = result else { break result };
                failures_total.inc();
                match schedule.next_try(begun, tries, Instant::now()) {
                    Some(at) if err.retry_helps() => sleep_until(at).await,
                    _ => break Err(err),
                }
            };
            Answer { peer, at: Instant::now(), result }
        }
    }

    fn take(&mut self, Answer { peer, at, result }: Answer) {
        let peer = &mut self.peers[peer];
        let Target { service, id, .. } = &peer.target;
        let labels = InstanceLabels { service: service.clone(), instance: id.clone() };
        match result {
            Ok(status) => {
                if peer.health != Health::Up {
                    tracing::info!("{service}/{id} answers");
                }
                peer.health = Health::Up;
                self.metrics.set_up(labels, status.clone());
                peer.news = Some((status, at));
            }
            Err(err) => {
                if peer.health != Health::Down {
                    let authority = &peer.target.authority;
                    tracing::warn!(
                        "{service}/{id} at grpc://{authority} does not tell its status: {err}"
                    );
                }
                peer.health = Health::Down;
                self.metrics.set_down(labels);
            }
        }
    }

    /// Every shard with what is new in it. The time that news waited here adds
    /// to their age.
    fn take_news(&mut self) -> Vec<Shard> {
        let mut shards: Vec<Shard> = Vec::new();
        for Peer { target, news, .. } in &mut self.peers {
            let Target { service, id, shard: number, .. } = target;
            let same = |last: &&mut Shard| last.service == *service && last.number == *number;
            let shard = match shards.last_mut().filter(same) {
                Some(last) => last,
                None => {
                    let statuses = Vec::new();
                    shards.push(Shard { service: service.clone(), number: *number, statuses });
                    shards.last_mut().expect("one was just pushed")
                }
            };
            if let Some((mut status, at)) = news.take() {
                status.age += at.elapsed();
                shard.statuses.push((id.clone(), status));
            }
        }
        shards
    }
}

impl Peer {
    fn new(target: Target, schedule: Schedule) -> Result<Self, tonic::transport::Error> {
        let channel = Endpoint::from_shared(format!("http://{}", target.authority))?
            .connect_timeout(schedule.timeout)
            // Finds out that a host went without a word, for which TCP alone
            // takes a quarter of an hour.
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .connect_lazy();
        let client = StatusServiceClient::new(channel).max_decoding_message_size(MAX_STATUS_BYTES);
        Ok(Self { target, client, news: None, health: Health::Untried })
    }
}

/// One try.
async fn get_status(
    mut client: StatusServiceClient<Channel>,
    limit: Duration,
) -> Result<Status, AskError> {
    let call = timeout(limit, client.get_status(GetStatusRequest {})).await;
    let answer = call.map_err(|_| AskError::Timeout { limit })?.map_err(AskError::Call)?;
    let status = answer.into_inner().status.ok_or(AskError::Empty)?;
    Status::try_from(status).map_err(AskError::Status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    const SCHEDULE: Schedule = Schedule {
        interval: Duration::from_millis(1000),
        timeout: Duration::from_millis(500),
        retries: 3,
    };

    /// When the next try begins, in milliseconds of the tick.
    fn next_try_ms(schedule: Schedule, tries: u32, ended_ms: u32) -> Option<u128> {
        let begun = Instant::now();
        let next = schedule.next_try(begun, tries, begun + ended_ms * MS)?;
        Some((next - begun).as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_spread_over_the_interval_and_begin_within_it() {
        let fails_at_once = [(1, 0), (2, 250), (3, 500)];
        let next = fails_at_once.map(|(tries, ended)| next_try_ms(SCHEDULE, tries, ended));
        assert_eq!(next, [Some(250), Some(500), Some(750)]);

        let times_out = [(1, 501), (2, 1000)];
        let next = times_out.map(|(tries, ended)| next_try_ms(SCHEDULE, tries, ended));
        assert_eq!(next, [Some(501), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_try_outlasts_the_interval() {
        let begun = Instant::now();
        let limit = |began_ms: u32| SCHEDULE.limit(begun, begun + began_ms * MS);
        assert_eq!([limit(0), limit(501), limit(1001)], [500 * MS, 499 * MS, Duration::ZERO]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_configured_retries_are_made() {
        assert!(next_try_ms(SCHEDULE, 3, 500).is_some());
        assert!(next_try_ms(SCHEDULE, 4, 750).is_none());
        assert!(next_try_ms(Schedule { retries: 0, ..SCHEDULE }, 1, 0).is_none());
    }

    #[tokio::test]
    async fn a_shard_that_nobody_answered_is_reported_empty_and_news_once() {
        let target = |service: &str, id: &str, shard| Target {
            service: service.into(),
            id: id.into(),
            shard,
            authority: "127.0.0.1:1".into(),
        };
        let targets = vec![target("a", "1", 0), target("a", "2", 1), target("b", "1", 0)];
        let config = ExporterConfig::default();
        let mut collector =
            Collector::new(&config, targets, Arc::new(ExporterMetrics::new())).unwrap();
        let status = Status { boot_id: 1, ..Status::default() };
        collector.take(Answer { peer: 1, at: Instant::now(), result: Ok(status) });
        let told = |shards: Vec<Shard>| {
            let told = |s: Shard| (s.service, s.number, s.statuses.len());
            shards.into_iter().map(told).collect::<Vec<_>>()
        };
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let expected = [(a.clone(), 0, 0), (a.clone(), 1, 1), (b.clone(), 0, 0)];
        assert_eq!(told(collector.take_news()), expected);
        assert_eq!(told(collector.take_news()), [(a.clone(), 0, 0), (a, 1, 0), (b, 0, 0)]);
    }
}
