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
mod orca;
mod schedule;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::{SmallRng, SysRng};
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use self::connection::{Connection, Way};
pub use self::error::{AskError, CollectError};
use self::schedule::Schedule;
use self::stream::{Listen, Stream};
use crate::config::{Config, TlsConfig};
use crate::model::{Allow, Report, StatusProtocol, StatusUrl};

/// How instances are asked: the same for all of them.
pub struct Manner {
    schedule: Schedule,
    /// Where instances may be.
    allow: Allow,
    /// For URLs that ask for it.
    tls: ClientTlsConfig,
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
            tls: tls(&exporter.tls)?.timeout(exporter.timeout),
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

fn tls(config: &TlsConfig) -> Result<ClientTlsConfig, CollectError> {
    let TlsConfig { ca, cert, key } = config;
    let mut tls = ClientTlsConfig::new();
    if ca.is_empty() {
        tls = tls.with_enabled_roots();
    } else {
        let pem = read_pem("exporter.tls.ca", ca, "CERTIFICATE")?;
        tls = tls.ca_certificate(Certificate::from_pem(pem));
        check_tls(&tls, "exporter.tls.ca", ca)?;
    }
    if !cert.is_empty() {
        let pem = read_pem("exporter.tls.cert", cert, "CERTIFICATE")?;
        let identity = Identity::from_pem(pem, read_pem("exporter.tls.key", key, "PRIVATE KEY")?);
        // By itself: which of the system's authorities there are is of no account.
        let own = ClientTlsConfig::new().identity(identity.clone());
        check_tls(&own, "exporter.tls.cert and exporter.tls.key", &format!("{cert} and {key}"))?;
        tls = tls.identity(identity);
    }
    Ok(tls)
}

/// A file that holds a `kind` at least by its looks: one without any would count
/// as an empty list.
fn read_pem(key: &'static str, path: &str, kind: &'static str) -> Result<Vec<u8>, CollectError> {
    let named = |source| CollectError::Read { key, path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(named)?;
    let end = format!("{kind}-----");
    match pem.windows(end.len()).any(|part| part == end.as_bytes()) {
        true => Ok(pem),
        false => Err(CollectError::NotPem { key, path: path.to_owned(), kind }),
    }
}

fn check_tls(tls: &ClientTlsConfig, key: &'static str, path: &str) -> Result<(), CollectError> {
    let refused = |source| CollectError::Tls { key, path: path.to_owned(), source };
    Endpoint::from_static("https://localhost").tls_config(tls.clone()).map_err(refused)?;
    Ok(())
}

/// One instance that is asked, over one connection that is kept.
pub struct Peer {
    poll: Option<Poll>,
    stream: Arc<dyn Listen>,
    connection: Connection,
    manner: Arc<Manner>,
    protocol: StatusProtocol,
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
    /// [`CollectError`] if there can be no connection to this URL, ever.
    pub fn new(url: &StatusUrl, manner: &Arc<Manner>) -> Result<Self, CollectError> {
        const POLL_FIRST: &[Way] = &[Way::Poll, Way::Stream];
        const STREAM_FIRST: &[Way] = &[Way::Stream, Way::Poll];
        let ways = match url.protocol {
            StatusProtocol::Grpc => POLL_FIRST,
            StatusProtocol::Orca => &STREAM_FIRST[..1],
            StatusProtocol::Health => STREAM_FIRST,
        };
        let connection = Connection::new(url, ways, manner)?;
        let (poll, stream): (_, Arc<dyn Listen>) = match url.protocol {
            StatusProtocol::Grpc => (
                Some(Poll::GetStatus),
                Stream::new(grpc::WatchStatus::default(), &connection, manner),
            ),
            StatusProtocol::Orca => {
                (None, Stream::new(orca::Reckoner::new(manner.boot_id()), &connection, manner))
            }
            StatusProtocol::Health => {
                (Some(Poll::Check), Stream::new(health::Watch::default(), &connection, manner))
            }
        };
        Ok(Self { poll, stream, connection, manner: Arc::clone(manner), protocol: url.protocol })
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
        let told = match (self.connection.way(), self.poll) {
            (Some(Way::Poll), Some(poll)) => Err(poll),
            (Some(_), _) => Ok(self.stream.answer()),
            (None, _) => Ok(Answer {
                at: Instant::now(),
                tries: 0,
                failures: 0,
                result: Err(AskError::Unimplemented { service: service(self.protocol) }),
            }),
        };
        let (stream, connection) = (Arc::clone(&self.stream), self.connection.clone());
        let (manner, service) = (Arc::clone(&self.manner), service(self.protocol));
        async move {
            let poll = match told {
                Ok(answer) => return answer,
                Err(poll) => poll,
            };
            let mut answer = poll.ask(&connection, &manner, begun, is_down).await;
            if let Err(AskError::Unimplemented { .. }) = answer.result {
                connection.refuse(Way::Poll);
                answer.result = match connection.way() {
                    Some(Way::Stream) => {
                        stream.start();
                        Ok(None)
                    }
                    // The connection went meanwhile.
                    Some(Way::Poll) => Ok(None),
                    None => Err(AskError::Unimplemented { service }),
                };
            }
            answer
        }
    }
}

/// The service that an instance offers to be asked by `protocol`.
fn service(protocol: StatusProtocol) -> &'static str {
    match protocol {
        StatusProtocol::Grpc => "ipconfig.v1.StatusService",
        StatusProtocol::Orca => "xds.service.orca.v3.OpenRcaService",
        StatusProtocol::Health => "grpc.health.v1.Health",
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
