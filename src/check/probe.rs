//! One check over the network: a connection, and a GET request if there is one.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use http::Request;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::CheckConfig;

/// The longest head of an answer that is read, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// So much of a body is read, in bytes, and for so long: an instance that is cut off
/// in the middle of its answer would log an error for each check. Neither has a say
/// in the result.
const MAX_BODY_BYTES: usize = 64 * 1024;
const MAX_BODY_TIME: Duration = Duration::from_millis(100);

/// Who asks, for the instances' own logs.
const AGENT: &str = concat!("resty.ipconfig/", env!("CARGO_PKG_VERSION"));

/// Why a check was not good.
#[derive(Debug, Error)]
pub enum Failure {
    /// Nobody listens.
    #[error("connection refused")]
    Refused,
    /// It was not done in time.
    #[error("timeout")]
    Timeout,
    /// There is no way there.
    #[error("unreachable: {0}")]
    Unreachable(#[source] io::Error),
    /// The connection ended before there was an answer.
    #[error("connection closed without an answer")]
    Closed,
    /// The answer is not one of HTTP, or its head is too long.
    #[error("no answer of HTTP: {0}")]
    Malformed(#[source] hyper::Error),
    /// The answer has a status that is not good.
    #[error("status {0}")]
    Status(u16),
    /// This host lacks what a check takes. It says nothing of the instance.
    #[error("checks cannot be made: {0}")]
    NotMade(#[source] io::Error),
}

impl Failure {
    /// One of [`RESULTS`](super::RESULTS).
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Closed => "closed",
            Self::Malformed(_) => "malformed",
            Self::Status(_) => "status",
            Self::NotMade(_) => "not_made",
        }
    }
}

/// Makes one check.
///
/// # Errors
/// [`Failure`].
pub async fn check(addr: SocketAddr, config: &CheckConfig) -> Result<(), Failure> {
    let deadline = Instant::now() + config.timeout;
    let connected = timeout_at(deadline, TcpStream::connect(addr)).await;
    let stream = connected.map_err(|_| Failure::Timeout)?.map_err(not_connected)?;
    match config.http.is_empty() {
        true => Ok(()),
        false => get(stream, addr, config, deadline).await,
    }
}

fn not_connected(error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset => Failure::Closed,
        ErrorKind::TimedOut => Failure::Timeout,
        _ if is_of_this_host(&error) => Failure::NotMade(error),
        _ => Failure::Unreachable(error),
    }
}

/// No descriptor, port or memory is left.
fn is_of_this_host(error: &io::Error) -> bool {
    let lacking = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| lacking.contains(&code))
}

async fn get(
    stream: TcpStream,
    addr: SocketAddr,
    config: &CheckConfig,
    deadline: Instant,
) -> Result<(), Failure> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_BYTES);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(not_answered)?;
    let mut connection = Some(Box::pin(connection));

    let host = if config.host.is_empty() { addr.to_string() } else { config.host.clone() };
    let request = Request::get(&config.http)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(String::new())
        // The configuration's rules leave nothing that is none.
        .map_err(|error| Failure::NotMade(io::Error::other(error)))?;
    let answer = while_driven(&mut connection, sender.send_request(request));
    let answer = timeout_at(deadline, answer).await;
    let response = answer.map_err(|_| Failure::Timeout)?.map_err(not_answered)?;

    let status = response.status().as_u16();
    let drained = while_driven(&mut connection, drain(response.into_body()));
    // Whether it could be read to its end is of no interest.
    let _ = timeout(MAX_BODY_TIME, drained).await;
    match config.is_good(status) {
        true => Ok(()),
        false => Err(Failure::Status(status)),
    }
}

fn not_answered(error: hyper::Error) -> Failure {
    if error.is_parse() { Failure::Malformed(error) } else { Failure::Closed }
}

/// What `work` comes to, with the connection kept going until it ends by itself.
async fn while_driven<T, C: Future>(
    connection: &mut Option<Pin<Box<C>>>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Some(open) = connection
            && open.as_mut().poll(context).is_ready()
        {
            *connection = None;
        }
        work.as_mut().poll(context)
    })
    .await
}

/// Reads a body to its end, or as much of it as is enough.
async fn drain<B: Body<Data = hyper::body::Bytes> + Unpin>(mut body: B) {
    let mut left = MAX_BODY_BYTES;
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
