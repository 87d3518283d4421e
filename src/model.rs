//! What the project talks about: instances and what they report. No I/O, no
//! protobuf, no etcd.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

/// The largest fallback weight of an instance.
pub const MAX_WEIGHT: f64 = 1000.0;

/// The largest limit of the requests that an instance may have in flight.
pub const MAX_IN_FLIGHT: u32 = 1_000_000;

/// The longest service name, instance id or exporter id, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Whether `text` may name a service, an instance or an exporter: 1 to
/// [`MAX_NAME_BYTES`] bytes of `A-Z a-z 0-9 . _ : -`.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{found:?} is not an address: {why}; expected an IP address with a port from 1 to 65535, as in 10.0.0.5:8080 or [fd00::5]:8080"
)]
pub struct AddrError {
    found: String,
    why: &'static str,
}

/// Reads an address: an IPv4 or an `[IPv6]` address with a port. A hostname is
/// refused: nginx would have to resolve it in the middle of a request.
///
/// # Errors
/// [`AddrError`], which says what is wrong.
pub fn parse_addr(text: &str) -> Result<SocketAddr, AddrError> {
    let refused = |why| AddrError { found: text.to_owned(), why };
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.port() == 0 => Err(refused("its port is 0")),
        Ok(SocketAddr::V6(addr)) if addr.scope_id() != 0 => Err(refused("it has a scope")),
        Ok(addr) => Ok(addr),
        Err(_) => Err(refused(why_no_addr(text))),
    }
}

fn why_no_addr(text: &str) -> &'static str {
    if text.parse::<IpAddr>().is_ok() {
        return "it has no port";
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return "it has no port";
    };
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return "its port is not a number";
    }
    if port.parse::<u16>().is_err() {
        return "its port is larger than 65535";
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        return "an IPv6 address needs brackets";
    }
    match host.starts_with(|c: char| c.is_ascii_alphabetic()) {
        true => "it is a hostname",
        false => "it is not an IP address",
    }
}

/// One process that serves a service, as its registration describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Unique within its service.
    pub id: String,
    /// Where requests go.
    pub addr: SocketAddr,
    /// The fallback weight and the prior of the ranking's weight, 0 to
    /// [`MAX_WEIGHT`].
    pub weight: f64,
    /// Where the instance runs; empty if it does not say.
    pub zone: String,
    /// Anything else that rules may ask for.
    pub labels: BTreeMap<String, String>,
    /// Where and how its status is asked for; `None` means membership only.
    pub status: Option<StatusUrl>,
    /// Taken out of the ranking by its own wish.
    pub drain: bool,
    /// Requests that each gateway host may have in flight on it, up to
    /// [`MAX_IN_FLIGHT`]; 0 for no limit.
    pub max_in_flight: u32,
}

/// How an instance is asked for its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusProtocol {
    /// `ipconfig.v1.StatusService`.
    Grpc,
    /// `xds.service.orca.v3.OpenRcaService`.
    Orca,
    /// `grpc.health.v1.Health`.
    Health,
}

/// `scheme://host:port`, for instance `grpc://10.0.0.5:9090`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StatusUrl {
    /// How to ask.
    pub protocol: StatusProtocol,
    /// Whether over TLS.
    pub tls: bool,
    /// Whom to ask, `host:port`.
    pub authority: String,
}

impl StatusUrl {
    /// The schemes, each with its protocol and whether it is over TLS.
    const SCHEMES: [(&'static str, StatusProtocol, bool); 6] = [
        ("grpc", StatusProtocol::Grpc, false),
        ("orca", StatusProtocol::Orca, false),
        ("health", StatusProtocol::Health, false),
        ("grpcs", StatusProtocol::Grpc, true),
        ("orcas", StatusProtocol::Orca, true),
        ("healths", StatusProtocol::Health, true),
    ];

    /// Its host, if that is an address rather than a name.
    pub fn ip(&self) -> Option<IpAddr> {
        let (host, _port) = self.authority.rsplit_once(':')?;
        host.trim_matches(['[', ']']).parse().ok()
    }

    /// For instance `grpcs`.
    pub fn scheme(&self) -> &'static str {
        let is_own =
            |(_, protocol, tls): &&(_, _, _)| (*protocol, *tls) == (self.protocol, self.tls);
        Self::SCHEMES.iter().find(is_own).map_or("grpc", |(name, _, _)| name)
    }
}

/// Why a status URL was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{found:?} is not a status URL: expected grpc://HOST:PORT, orca://HOST:PORT or health://HOST:PORT, or with TLS grpcs://, orcas:// or healths://"
)]
pub struct StatusUrlError {
    found: String,
}

impl FromStr for StatusUrl {
    type Err = StatusUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (scheme, rest) = text.split_once("://")?;
            let (_, protocol, tls) = *Self::SCHEMES.iter().find(|(name, _, _)| *name == scheme)?;
            let authority = http::uri::Authority::from_str(rest).ok()?;
            let port = authority.port_u16()?;
            let plain = !authority.host().is_empty() && !rest.contains('@');
            let authority = authority.to_string();
            (plain && port != 0).then_some(StatusUrl { protocol, tls, authority })
        };
        parse().ok_or_else(|| StatusUrlError { found: text.to_owned() })
    }
}

impl fmt::Display for StatusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority)
    }
}

/// Which addresses instances may have; none listed: any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow(pub Vec<IpNet>);

impl Allow {
    /// Whether an instance may be at `ip`. An IPv4 address counts as itself also
    /// where it is written as an IPv6 one.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.is_empty() || self.0.iter().any(|net| net.contains(&ip))
    }
}

impl Allow {
    /// Whether an instance, and its status service if that is named by its
    /// address, are where they may be; else what is not. A name is looked up, and
    /// checked, when it is connected to.
    pub fn check(&self, instance: &Instance) -> Result<(), Outside> {
        let refused = |what, found: String| Outside { what, found, allow: self.to_string() };
        let Instance { addr, status, .. } = instance;
        if !self.contains(addr.ip()) {
            return Err(refused("addr", addr.to_string()));
        }
        match status {
            Some(url) if url.ip().is_some_and(|ip| !self.contains(ip)) => {
                Err(refused("status", url.to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// An address is in none of the networks that are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found} is outside of allow: {allow}")]
pub struct Outside {
    /// The field of the registration.
    pub what: &'static str,
    found: String,
    allow: String,
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nets: Vec<_> = self.0.iter().map(IpNet::to_string).collect();
        f.write_str(&nets.join(", "))
    }
}

/// What an exporter tells of one instance.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceReport {
    /// The instance's id.
    pub id: String,
    /// How it is.
    pub report: Report,
    /// The longest time until its next report, while its exporter lives; 0 if
    /// the exporter does not say.
    pub interval: Duration,
}

impl InstanceReport {
    /// A report whose exporter does not say when the next one is due.
    pub fn new(id: impl Into<String>, report: Report) -> Self {
        Self { id: id.into(), report, interval: Duration::ZERO }
    }
}

impl From<Status> for Report {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// How an instance is, as far as its exporter knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// It said how it is.
    Status(Status),
    /// It is well, and has no figures to tell.
    Serving,
    /// It is there, and wants no requests.
    NotServing,
    /// It could not be read, by any of the tries that it is allowed.
    Unreachable {
        /// Since it last was, or since the exporter began to ask it.
        silent_for: Duration,
    },
}

/// What a process says of itself at one moment. Counters are cumulative since
/// `boot_id` began.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// Another one after each start of the process.
    pub boot_id: u64,
    /// Grows with each status of one boot.
    pub seq: u64,
    /// How old the figures were when they were sent.
    pub age: Duration,
    /// Requests answered, failed ones included.
    pub requests: u64,
    /// Requests answered with a failure.
    pub errors: u64,
    /// Time with at least one request being served.
    pub busy_ns: u64,
    /// Sum of all answered requests' latencies.
    pub latency_sum_ns: u64,
    /// CPU in use, in cores; finite and not negative.
    pub cpu_used_cores: Option<f64>,
    /// CPU that may be used, in cores; finite and positive.
    pub cpu_limit_cores: Option<f64>,
    /// Memory in use.
    pub memory_used_bytes: Option<u64>,
    /// Memory that may be used.
    pub memory_limit_bytes: Option<u64>,
    /// Requests being served.
    pub in_flight: Option<u64>,
    /// Requests waiting.
    pub queue: Option<u64>,
    /// 1 is full; finite and not negative.
    pub application_utilization: Option<f64>,
    /// Requests that a gateway host may have in flight on it, up to
    /// [`MAX_IN_FLIGHT`]; 0 is no limit, as `None` is.
    pub max_in_flight: Option<u32>,
}

impl Status {
    /// CPU in use as a part of what may be used; 1 is all of it.
    pub fn cpu_utilization(&self) -> Option<f64> {
        Some(self.cpu_used_cores? / self.cpu_limit_cores?)
    }

    /// Memory in use as a part of what may be used; 1 is all of it.
    pub fn memory_utilization(&self) -> Option<f64> {
        Some(self.memory_used_bytes? as f64 / self.memory_limit_bytes? as f64)
    }

    /// Memory that is left to the process, in bytes.
    pub fn memory_free_bytes(&self) -> Option<u64> {
        Some(self.memory_limit_bytes?.saturating_sub(self.memory_used_bytes?))
    }
}
