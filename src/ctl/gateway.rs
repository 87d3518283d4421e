//! A gateway's word on a service: its ranking, as its HTTP API tells it.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{StatusCode, Uri};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tokio::time::timeout;

use crate::error::with_causes;

/// Time for the whole answer; [`GatewayError::Timeout`] says so.
const LIMIT: Duration = Duration::from_secs(5);

/// The largest answer that is read, in bytes: room for 100,000 instances.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// Where a gateway's HTTP API is: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayUrl(String);

impl FromStr for GatewayUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let base = text.trim_end_matches('/');
        let uri: Option<Uri> = base.parse().ok();
        let is_plain = |uri: &Uri| uri.scheme_str() == Some("http") && uri.path() == "/";
        match uri.filter(is_plain) {
            Some(_) => Ok(Self(base.to_owned())),
            None => Err("expected http://HOST:PORT"),
        }
    }
}

impl std::fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a gateway says of a service, as far as it is asked for.
#[derive(Debug, Clone, Deserialize)]
pub struct View {
    /// Whence its ranking comes.
    pub mode: String,
    /// Present if an operator's hand is on it.
    #[serde(default)]
    pub control: Option<ControlView>,
    /// Those that it offers.
    pub instances: Vec<InstanceView>,
}

/// The operator's hand, as the gateway has it.
#[derive(Debug, Clone, Deserialize)]
pub struct ControlView {
    /// Whether the weights are the operator's.
    #[serde(default)]
    pub is_manual: bool,
}

/// One instance that a gateway offers.
#[derive(Debug, Clone, Deserialize)]
pub struct InstanceView {
    /// Unique within the service.
    pub id: String,
    /// Where requests go.
    pub addr: SocketAddr,
    /// Its share of the traffic is this over the sum of all.
    pub weight: f64,
    /// What its place rests on, or what it is left out for.
    pub state: String,
}

/// Why a gateway said nothing.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// It cannot be reached.
    #[error("failed to ask the gateway at {url}: {}", with_causes(.cause))]
    Unreachable {
        /// Whom.
        url: GatewayUrl,
        /// The connection's end.
        cause: legacy::Error,
    },
    /// It takes too long.
    #[error("the gateway at {0} did not answer within 5 s")]
    Timeout(GatewayUrl),
    /// It does not know the service.
    #[error("the gateway at {url} has no service {service}")]
    NoService {
        /// Whom.
        url: GatewayUrl,
        /// The service's name.
        service: String,
    },
    /// It has something else to say.
    #[error("the gateway at {url} answers {status} when asked for {service}")]
    Status {
        /// Whom.
        url: GatewayUrl,
        /// The service's name.
        service: String,
        /// 404: what answers there is not its API.
        status: StatusCode,
    },
    /// Its answer broke off, or is too large.
    #[error("failed to read the answer of the gateway at {url}: {}", with_causes(.cause))]
    Body {
        /// Whom.
        url: GatewayUrl,
        /// The connection's end.
        cause: axum::Error,
    },
    /// Its answer is no ranking.
    #[error("the gateway at {url} answers with something else than a ranking: {cause}")]
    Answer {
        /// Whom.
        url: GatewayUrl,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
}

/// Asks a gateway for a service's ranking.
///
/// # Errors
/// [`GatewayError`], at the latest after 5 s.
pub async fn view(url: &GatewayUrl, service: &str) -> Result<View, GatewayError> {
    page(url, service, "").await
}

/// Asks a gateway why the best `n` instances of a service, 1 to 1000, get what they
/// get.
///
/// # Errors
/// [`GatewayError`], at the latest after 5 s.
pub async fn explain(url: &GatewayUrl, service: &str, n: u32) -> Result<Value, GatewayError> {
    page(url, service, &format!("/explain?n={n}")).await
}

async fn page<T: DeserializeOwned>(
    url: &GatewayUrl,
    service: &str,
    rest: &str,
) -> Result<T, GatewayError> {
    let asked = timeout(LIMIT, ask(url, service, rest)).await;
    asked.unwrap_or_else(|_| Err(GatewayError::Timeout(url.clone())))
}

async fn ask<T: DeserializeOwned>(
    url: &GatewayUrl,
    service: &str,
    rest: &str,
) -> Result<T, GatewayError> {
    let path = format!("{url}/ipconfig/v1/services/{service}{rest}");
    let uri = Uri::try_from(path).expect("a checked URL and a checked name");
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
    let unreachable = |cause| GatewayError::Unreachable { url: url.clone(), cause };
    let answer = client.get(uri).await.map_err(unreachable)?;
    let status = answer.status();
    // What is no page of the API has no page in JSON.
    let is_json = answer.headers().get(CONTENT_TYPE).is_some_and(|it| it == "application/json");
    if status == StatusCode::NOT_FOUND && is_json {
        return Err(GatewayError::NoService { url: url.clone(), service: service.to_owned() });
    }
    if status != StatusCode::OK {
        return Err(GatewayError::Status { url: url.clone(), service: service.to_owned(), status });
    }
    let body = axum::body::to_bytes(Body::new(answer.into_body()), MAX_ANSWER_BYTES).await;
    let body = body.map_err(|cause| GatewayError::Body { url: url.clone(), cause })?;
    let wrong = |cause| GatewayError::Answer { url: url.clone(), cause };
    serde_json::from_slice(&body).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_named_by_scheme_host_and_port_alone() {
        for (text, url) in [
            ("http://127.0.0.1:8080", Some("http://127.0.0.1:8080")),
            ("http://web-7:8080/", Some("http://web-7:8080")),
            ("http://[::1]:8080", Some("http://[::1]:8080")),
            ("https://127.0.0.1:8080", None),
            ("127.0.0.1:8080", None),
            ("http://127.0.0.1:8080/x", None),
            ("http://", None),
            ("", None),
        ] {
            let parsed = text.parse::<GatewayUrl>();
            assert_eq!(parsed.ok().map(|it| it.to_string()).as_deref(), url, "{text}");
        }
    }
}
