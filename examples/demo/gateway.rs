//! The pages that the demo reads and the knobs that it turns, over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Response, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use tokio::time::timeout;

use crate::failure::Failure;

/// A request that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Keeps connections open between requests.
pub type Client = legacy::Client<HttpConnector, Empty<Bytes>>;

/// A client with connections of its own.
pub fn client() -> Client {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

/// Reads a page to its end, whatever its status.
pub async fn get(client: &Client, uri: Uri) -> Result<Response<Bytes>, Failure> {
    let failed = |source| Failure::Page { uri: uri.to_string(), source };
    let reading = async {
        let (head, body) = client.get(uri.clone()).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    match timeout(REQUEST_LIMIT, reading).await {
        Ok(answer) => answer.map_err(failed),
        Err(late) => Err(failed(late.into())),
    }
}

/// Whether a page answers with 200.
pub async fn is_well(client: &Client, uri: &Uri) -> bool {
    let answer = get(client, uri.clone()).await;
    answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

/// `http://<addr><path>`
pub fn uri(addr: SocketAddr, path: &str) -> Uri {
    let uri = Uri::builder().scheme("http").authority(addr.to_string()).path_and_query(path);
    uri.build().expect("an address and a path make a URI")
}

/// nginx, seen through its API.
#[derive(Clone)]
pub struct Gateway {
    pub addr: SocketAddr,
    client: Client,
}

/// What `GET /ipconfig/v1/services/<service>` answers.
#[derive(Debug, Default, Deserialize)]
pub struct Ranking {
    pub mode: String,
    pub version: u64,
    /// etcd's.
    pub revision: i64,
    pub age_ms: u64,
    pub instances: Vec<Ranked>,
}

#[derive(Debug, Deserialize)]
pub struct Ranked {
    pub id: String,
    /// 1 is the best.
    pub rank: u32,
    pub score: f64,
    pub weight: f64,
    pub state: String,
}

impl Gateway {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, client: client() }
    }

    /// Where one of its paths is.
    pub fn uri(&self, path: &str) -> Uri {
        uri(self.addr, path)
    }

    /// Whether every configured service can be served.
    pub async fn is_ready(&self) -> bool {
        is_well(&self.client, &self.uri("/ipconfig/healthz")).await
    }

    /// The ranking of a service; `None` if there is no such service.
    pub async fn ranking(&self, service: &str) -> Result<Option<Ranking>, Failure> {
        let uri = self.uri(&format!("/ipconfig/v1/services/{service}"));
        let failed = |source| Failure::Page { uri: uri.to_string(), source };
        let answer = get(&self.client, uri.clone()).await?;
        match answer.status() {
            StatusCode::OK => {
                let ranking = serde_json::from_slice(answer.body());
                ranking.map(Some).map_err(|error| failed(error.into()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(failed(format!("it answers {status}").into())),
        }
    }
}

impl Ranking {
    /// An instance's place; `None` if it has none.
    pub fn of(&self, id: &str) -> Option<&Ranked> {
        self.instances.iter().find(|instance| instance.id == id)
    }
}
