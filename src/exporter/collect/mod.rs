//! Asks instances how they are: each over one connection of its own, which is
//! kept, so that none waits for another.
//!
//! There are two ways of asking. A *poll* is a call in each tick, tried again
//! within the tick. A *stream* is opened once and says by itself what is new; a
//! task listens to it, and a tick reads what it heard last. Each protocol has an
//! order of ways, and the next one counts where a server answers UNIMPLEMENTED:
//!
//! | protocol | first | then |
//! |---|---|---|
//! | `grpc` | poll `GetStatus` | stream `WatchStatus` |
//! | `orca` | stream `StreamCoreMetrics` | |
//! | `health` | stream `Watch` | poll `Check` |
//!
//! After the last one nothing is asked any more. All that holds for the one
//! connection: the next one may lead to another version of the server, and
//! begins with the first way again.
//!
//! Whoever answers may be anybody. Connecting, answering and silence have their
//! limits of time; messages, headers and what may be under way have their limits
//! of size; and a stream is read so many times an interval, whatever it sends.

mod connection;
mod error;
mod grpc;
mod health;
mod lookup;
mod orca;
mod schedule;
mod stream;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::{SmallRng, SysRng};
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;

use self::connection::{Connection, Way};
pub use self::error::{AskError, CollectError};
use self::lookup::Lookups;
use self::schedule::Schedule;
use self::stream::{Listen, Stream};
use self::tls::Tls;
use crate::config::Config;
use crate::model::{Allow, Report, StatusProtocol, StatusUrl};

/// How instances are asked: the same for all of them.
pub struct Manner {
    schedule: Schedule,
    /// Where instances may be.
    allow: Allow,
    /// For URLs with names.
    lookups: Lookups,
    /// For URLs that ask for it.
    tls: Tls,
    /// Spreads what would otherwise happen at once.
    rng: Mutex<SmallRng>,
}

impl Manner {
    /// Reads the PEM files of `exporter.tls`.
    ///
    /// # Errors
    /// [`CollectError`] with the key and the file that cannot be used.
    pub fn new(config: &Config) -> Result<Self, CollectError> {
        let exporter = &config.exporter;
        let rng = SmallRng::try_from_rng(&mut SysRng);
        Ok(Self {
            schedule: Schedule {
                interval: exporter.interval,
                timeout: exporter.timeout,
                retries: exporter.retries,
            },
            allow: config.allow.clone(),
            lookups: Lookups::new(),
            tls: Tls::read(&exporter.tls)?,
            // Without the system's chance, another one for each process will do.
            rng: Mutex::new(
                rng.unwrap_or_else(|_| SmallRng::seed_from_u64(std::process::id().into())),
            ),
        })
    }

    /// A part from 0 up to 1, by chance.
    fn chance(&self) -> f64 {
        self.rng.lock().random()
    }

    /// A number other than 0, by chance.
    fn boot_id(&self) -> u64 {
        self.rng.lock().random_range(1..=u64::MAX)
    }
}

/// One instance that is asked, over one connection that is kept.
pub struct Peer(Arc<Instance>);

struct Instance {
    connection: Connection,
    poll: Option<Poll>,
    stream: Box<dyn Listen>,
    /// What it is asked by, for errors.
    service: &'static str,
    /// How many polls in a row were answered with UNIMPLEMENTED and followed by
    /// nothing better.
    refusals: AtomicU32,
    manner: Arc<Manner>,
}

/// What is known of an instance by one tick.
#[derive(Debug)]
pub struct Answer {
    /// When the figures came, or when it was found that there are none.
    pub at: Instant,
    /// How often the instance was asked since the last answer.
    pub tries: u32,
    /// How many of these tries failed.
    pub failures: u32,
    /// The news, if there are any; none yet, while a stream is being opened; or
    /// why the instance could not be read by any of the tries that it is allowed.
    pub result: Result<Option<News>, AskError>,
}

/// How an instance is.
#[derive(Debug)]
pub struct News {
    /// What it said; never [`Report::Unreachable`].
    pub report: Report,
    /// The spacing at which the instance is heard; 0 if that is each tick.
    pub interval: Duration,
}

impl Peer {
    /// Connects to nobody yet. To be called within a tokio runtime, like
    /// [`ask`](Self::ask); what runs there ends when the peer is dropped.
    ///
    /// # Errors
    /// [`CollectError::Url`] if there can never be a connection to this URL.
    pub fn new(url: &StatusUrl, manner: &Arc<Manner>) -> Result<Self, CollectError> {
        let ways: &[Way] = match url.protocol {
            StatusProtocol::Grpc => &[Way::Poll, Way::Stream],
            StatusProtocol::Orca => &[Way::Stream],
            StatusProtocol::Health => &[Way::Stream, Way::Poll],
        };
        let connection = Connection::new(url, ways, manner)?;
        let (service, poll, stream): (_, _, Box<dyn Listen>) = match url.protocol {
            StatusProtocol::Grpc => {
                let stream = Stream::new(grpc::WatchStatus::default(), &connection, manner);
                (grpc::SERVICE, Some(Poll::GetStatus), Box::new(stream))
            }
            StatusProtocol::Orca => {
                let reckoner = orca::Reckoner::new(manner.boot_id());
                (orca::SERVICE, None, Box::new(Stream::new(reckoner, &connection, manner)))
            }
            StatusProtocol::Health => {
                let stream = Stream::new(health::Watch::default(), &connection, manner);
                (health::SERVICE, Some(Poll::Check), Box::new(stream))
            }
        };
        let (refusals, manner) = (AtomicU32::new(0), Arc::clone(manner));
        Ok(Self(Arc::new(Instance { connection, poll, stream, service, refusals, manner })))
    }

    /// What is known of the instance by the tick that began at `begun`. A poll's
    /// tries are spread over the interval, so that this may last until the
    /// interval is over; an instance that `is_down`, as its reader believes,
    /// gets one try. A stream's last word is there at once.
    pub fn ask(
        &self,
        begun: Instant,
        is_down: bool,
    ) -> impl Future<Output = Answer> + Send + 'static + use<> {
        let instance = Arc::clone(&self.0);
        async move { instance.ask(begun, is_down).await }
    }
}

impl Instance {
    async fn ask(&self, begun: Instant, is_down: bool) -> Answer {
        let answer = match (self.connection.way(), self.poll) {
            (Some(Way::Poll), Some(poll)) => {
                let answer = poll.ask(&self.connection, &self.manner, begun, is_down).await;
                match answer.result {
                    Err(AskError::Unimplemented { .. }) => {
                        Answer { result: self.turn_to_stream(), ..answer }
                    }
                    _ => answer,
                }
            }
            (Some(_), _) => self.stream.answer(),
            (None, _) => {
                let result = Err(self.unimplemented());
                Answer { at: Instant::now(), tries: 0, failures: 0, result }
            }
        };
        if let Ok(Some(_)) = answer.result {
            self.refusals.store(0, Ordering::Relaxed);
        }
        answer
    }

    /// A poll was answered with UNIMPLEMENTED. That leads to news, or the
    /// instance is given up like others that fail: it may close its connection
    /// each time, and be asked the first way each time.
    fn turn_to_stream(&self) -> Result<Option<News>, AskError> {
        self.connection.refuse(Way::Poll);
        let refusals = self.refusals.fetch_add(1, Ordering::Relaxed);
        match self.connection.way() {
            Some(Way::Stream) if refusals <= self.manner.schedule.retries => {
                self.stream.start();
                Ok(None)
            }
            _ => Err(self.unimplemented()),
        }
    }

    fn unimplemented(&self) -> AskError {
        AskError::Unimplemented { service: self.service }
    }
}

/// A call that is made each tick.
#[derive(Debug, Clone, Copy)]
enum Poll {
    GetStatus,
    Check,
}

impl Poll {
    fn method(self) -> &'static str {
        match self {
            Self::GetStatus => "GetStatus",
            Self::Check => "Check",
        }
    }

    /// One tick's tries.
    async fn ask(
        self,
        connection: &Connection,
        manner: &Manner,
        begun: Instant,
        is_down: bool,
    ) -> Answer {
        let retries = if is_down { 0 } else { manner.schedule.retries };
        let schedule = Schedule { retries, ..manner.schedule };
        let mut tries = 0;
        loop {
            tries += 1;
            let limit = schedule.limit(begun, Instant::now());
            let result = match timeout(limit, self.call(connection.channel())).await {
                Ok(result) => result,
                Err(_) => Err(AskError::Timeout { method: self.method(), limit }),
            };
            let now = Instant::now();
            match result {
                Ok(report) => {
                    let news = News { report, interval: Duration::ZERO };
                    return Answer { at: now, tries, failures: tries - 1, result: Ok(Some(news)) };
                }
                Err(err) => match schedule.next_try(begun, tries, now, manner.chance()) {
                    Some(at) if err.retry_helps() => sleep_until(at).await,
                    _ => return Answer { at: now, tries, failures: tries, result: Err(err) },
                },
            }
        }
    }

    async fn call(self, channel: Channel) -> Result<Report, AskError> {
        match self {
            Self::GetStatus => grpc::get_status(channel).await,
            Self::Check => health::check(channel).await,
        }
    }
}
