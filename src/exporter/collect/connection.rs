//! One instance's connection: made when it is first needed, kept, and made anew
//! after it broke; and what the instance refused on it.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::vec::IntoIter;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt, service_fn};

use super::{CollectError, Manner};
use crate::model::StatusUrl;

/// A peer that went without a word is found out by TCP: what is sent to it is
/// not acknowledged for so long…
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// … or, while nothing is sent, probes are not, the first of them after so long.
/// HTTP/2's own pings would say more, but stock gRPC servers take one in five
/// minutes and close the connection of whoever sends more.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 2;

/// How many bytes may be under way to here, of one stream and of all together:
/// the least that HTTP/2 begins with.
const WINDOW_BYTES: u32 = 65_535;

/// The largest headers that are taken, trailers likewise.
const MAX_HEADER_LIST_BYTES: u32 = 8 * 1024;

/// One of the two ways to ask an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By a call each tick.
    Poll,
    /// By a stream that is listened to.
    Stream,
}

/// One instance's connection.
#[derive(Clone)]
pub(super) struct Connection {
    channel: Channel,
    /// In the order in which they are tried.
    ways: &'static [Way],
    life: Arc<watch::Sender<Life>>,
}

/// What is known of the newest connection.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    /// Counts the connections.
    number: u64,
    is_open: bool,
    /// How many of the ways were answered with UNIMPLEMENTED on it.
    refused: usize,
}

impl Connection {
    /// Connects to nobody yet.
    pub fn new(
        url: &StatusUrl,
        ways: &'static [Way],
        manner: &Arc<Manner>,
    ) -> Result<Self, CollectError> {
        let refused = |source| CollectError::Url { url: url.clone(), source };
        let uri = |scheme| {
            let uri = format!("{scheme}://{}", url.authority).parse::<Uri>();
            uri.map_err(|err| refused(err.into()))
        };
        let mut endpoint = Endpoint::from(uri("http")?)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_max_header_list_size(MAX_HEADER_LIST_BYTES);
        let mut certified = None;
        if url.tls {
            let origin = uri("https")?;
            let host = ServerName::try_from(host(&origin).to_owned());
            certified = Some(host.map_err(|err| refused(err.into()))?);
            // For the requests alone: an endpoint of https would speak TLS itself.
            endpoint = endpoint.origin(origin);
        }
        let life = Arc::new(watch::Sender::default());
        let connector = connector(Arc::clone(manner), certified, Arc::clone(&life));
        Ok(Self { channel: endpoint.connect_with_connector_lazy(connector), ways, life })
    }

    /// To make a call on. Connects if need be.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// How the instance is asked now; `None` if it refused every way, until this
    /// connection has gone.
    pub fn way(&self) -> Option<Way> {
        self.ways.get(self.life.borrow().refused).copied()
    }

    /// Returns when the instance is to be asked this way.
    pub async fn turn_of(&self, way: Way) {
        let is_turn = |life: &Life| self.ways.get(life.refused) == Some(&way);
        // It ends only with its sender, of which this has a share.
        _ = self.life.subscribe().wait_for(is_turn).await;
    }

    /// `way` was answered with UNIMPLEMENTED: the next one's turn, as long as
    /// the connection stands.
    pub fn refuse(&self, way: Way) {
        self.life.send_if_modified(|life| {
            let is_turn = life.is_open && self.ways.get(life.refused) == Some(&way);
            life.refused += usize::from(is_turn);
            is_turn
        });
    }
}

/// The name or address, without the brackets of IPv6.
fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// An instance is at an address, or has a name, that leads out of the networks
/// that are allowed.
#[derive(Debug, Clone)]
pub struct Forbidden {
    host: String,
    addresses: Vec<IpAddr>,
    allow: String,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, addresses, allow } = self;
        match &addresses[..] {
            [only] if only.to_string() == *host => write!(f, "{host} is outside of allow: {allow}"),
            _ => write!(f, "{host} is at {addresses:?}, outside of allow: {allow}"),
        }
    }
}

impl std::error::Error for Forbidden {}

impl Manner {
    /// Those of `found` to which a connection may be made.
    fn allowed(&self, host: &str, found: &[SocketAddr]) -> Result<Vec<SocketAddr>, Forbidden> {
        let allowed: Vec<_> =
            found.iter().filter(|it| self.allow.contains(it.ip())).copied().collect();
        match allowed.is_empty() {
            false => Ok(allowed),
            true => Err(Forbidden {
                host: host.to_owned(),
                addresses: found.iter().map(SocketAddr::ip).collect(),
                allow: self.allow.to_string(),
            }),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
enum ConnectFailure {
    #[error("{0}")]
    Forbidden(#[from] Forbidden),
    #[error("failed to look up {host}: {source}")]
    Lookup { host: String, source: io::Error },
    /// There is nothing to check the instance by.
    #[error(transparent)]
    Roots(CollectError),
    #[error(transparent)]
    Tcp(Box<dyn std::error::Error + Send + Sync>),
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
}

/// The addresses that a name has, as far as they are allowed. To wait for room
/// to ask in counts as to wait for the answer.
async fn resolve(manner: Arc<Manner>, host: Name) -> Result<IntoIter<SocketAddr>, ConnectFailure> {
    let failed = |source| ConnectFailure::Lookup { host: host.to_string(), source };
    let found = match timeout(manner.schedule.timeout, manner.lookups.of(host.as_str())).await {
        Ok(found) => found.map_err(failed)?,
        Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
    };
    Ok(manner.allowed(host.as_str(), &found)?.into_iter())
}

/// Connects to where the URL leads, if that is allowed; over TLS if its name is to
/// be `certified`. A name is looked up each time: it may lead elsewhere by now.
fn connector(
    manner: Arc<Manner>,
    certified: Option<ServerName<'static>>,
    life: Arc<watch::Sender<Life>>,
) -> impl Service<Uri, Response = TokioIo<Watched>, Error = ConnectFailure, Future: Send> + Send + 'static
{
    let resolver = Arc::clone(&manner);
    let mut http = HttpConnector::new_with_resolver(service_fn(move |host: Name| {
        resolve(Arc::clone(&resolver), host)
    }));
    http.set_nodelay(true);
    http.set_connect_timeout(Some(manner.schedule.timeout));
    http.set_keepalive(Some(PROBE_AFTER));
    http.set_keepalive_interval(Some(PROBE_INTERVAL));
    http.set_keepalive_retries(Some(PROBES));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));

    service_fn(move |uri: Uri| {
        let (manner, http) = (Arc::clone(&manner), http.clone());
        let (certified, life) = (certified.clone(), Arc::clone(&life));
        async move {
            // An address is not looked up, so it does not come by the resolver.
            let host = host(&uri);
            if let Ok(ip) = host.parse::<IpAddr>() {
                manner.allowed(host, &[SocketAddr::new(ip, 0)])?;
            }
            let handshake = certified.map(|host| manner.tls.handshake(host)).transpose();
            let handshake = handshake.map_err(ConnectFailure::Roots)?;
            let stream = http.oneshot(uri).await.map_err(|err| ConnectFailure::Tcp(err.into()))?;
            let stream = stream.into_inner();
            let stream: Box<dyn Io> = match handshake {
                Some(handshake) => {
                    let secured = handshake.perform(stream, manner.schedule.timeout).await;
                    Box::new(secured.map_err(ConnectFailure::Tls)?)
                }
                None => Box::new(stream),
            };
            Ok(TokioIo::new(Watched { stream, _open: Open::begin(life) }))
        }
    })
}

/// A connection that stands, until this is dropped.
struct Open {
    number: u64,
    life: Arc<watch::Sender<Life>>,
}

impl Open {
    fn begin(life: Arc<watch::Sender<Life>>) -> Self {
        let mut number = 0;
        life.send_modify(|life| {
            number = life.number + 1;
            *life = Life { number, is_open: true, refused: 0 };
        });
        Self { number, life }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // One that finishes what it began may outlast the beginning of the next.
        self.life.send_if_modified(|life| {
            let is_newest = life.number == self.number;
            if is_newest {
                *life = Life { is_open: false, refused: 0, ..*life };
            }
            is_newest
        });
    }
}

/// A stream of bytes, plain or over TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

/// A stream whose end is noticed.
struct Watched {
    stream: Box<dyn Io>,
    _open: Open,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_refused_holds_for_the_connection_that_stands() {
        let manner = Manner::new(&crate::config::Config::default()).unwrap();
        let url = "grpc://127.0.0.1:1".parse().unwrap();
        let connection =
            Connection::new(&url, &[Way::Poll, Way::Stream], &Arc::new(manner)).unwrap();
        let begin = || Open::begin(Arc::clone(&connection.life));
        let refused = |way| {
            connection.refuse(way);
            connection.way()
        };
        assert_eq!(refused(Way::Poll), Some(Way::Poll), "there is no connection");

        let first = begin();
        assert_eq!(refused(Way::Stream), Some(Way::Poll), "it was not its turn");
        assert_eq!(refused(Way::Poll), Some(Way::Stream));
        assert_eq!(refused(Way::Stream), None);
        assert_eq!(refused(Way::Stream), None);
        let second = begin();
        assert_eq!(connection.way(), Some(Way::Poll));
        assert_eq!(refused(Way::Poll), Some(Way::Stream));
        drop(first);
        assert_eq!(connection.way(), Some(Way::Stream), "that was an older one");
        drop(second);
        assert_eq!(connection.way(), Some(Way::Poll));
    }
}
