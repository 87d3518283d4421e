//! stub
#![allow(missing_docs, unused)]
use crate::config::Config;
use crate::model::{Report, Status, StatusUrl};
use crate::wire::proto::GetStatusRequest;
use crate::wire::proto::status_service_client::StatusServiceClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct CollectError;
pub struct Manner {
    timeout: Duration,
    interval: Duration,
}
impl Manner {
    pub fn new(c: &Config) -> Result<Self, CollectError> {
        Ok(Self { timeout: c.exporter.timeout, interval: c.exporter.interval })
    }
}
pub struct Peer {
    client: StatusServiceClient<Channel>,
    timeout: Duration,
}
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AskError(String);
impl AskError {
    pub fn reason(&self) -> &'static str {
        "call"
    }
}
#[derive(Debug)]
pub struct News {
    pub report: Report,
    pub interval: Duration,
}
#[derive(Debug)]
pub struct Answer {
    pub at: Instant,
    pub tries: u32,
    pub failures: u32,
    pub result: Result<Option<News>, AskError>,
}
impl Peer {
    pub fn new(url: &StatusUrl, m: &Arc<Manner>) -> Result<Self, CollectError> {
        let ch = Endpoint::from_shared(format!("http://{}", url.authority))
            .map_err(|_| CollectError)?
            .connect_timeout(m.timeout)
            .connect_lazy();
        Ok(Self { client: StatusServiceClient::new(ch), timeout: m.timeout })
    }
    pub fn ask(
        &self,
        _begun: Instant,
        _is_down: bool,
    ) -> impl Future<Output = Answer> + Send + 'static + use<> {
        let mut c = self.client.clone();
        let t = self.timeout;
        async move {
            let r = timeout(t, c.get_status(GetStatusRequest {})).await;
            let result = match r {
                Ok(Ok(a)) => a
                    .into_inner()
                    .status
                    .ok_or(AskError("empty".into()))
                    .and_then(|s| Status::try_from(s).map_err(|e| AskError(e.to_string())))
                    .map(|s| Some(News { report: s.into(), interval: Duration::ZERO })),
                Ok(Err(e)) => Err(AskError(e.to_string())),
                Err(_) => Err(AskError("timeout".into())),
            };
            Answer { at: Instant::now(), tries: 1, failures: result.is_err() as u32, result }
        }
    }
}
