//! Our own protocol: `GetStatus` is polled, `WatchStatus` streams the same.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use super::AskError;
use super::stream::Feed;
use crate::model::{Report, Status};
use crate::wire::proto::status_service_client::StatusServiceClient;
use crate::wire::proto::{GetStatusRequest, WatchStatusRequest, WatchStatusResponse};
use crate::wire::{self, MAX_STATUS_BYTES};

/// For errors.
pub(super) const SERVICE: &str = "ipconfig.v1.StatusService";

fn client(channel: Channel) -> StatusServiceClient<Channel> {
    StatusServiceClient::new(channel).max_decoding_message_size(MAX_STATUS_BYTES)
}

/// One call of `GetStatus`.
pub(super) async fn get_status(channel: Channel) -> Result<Report, AskError> {
    const METHOD: &str = "GetStatus";
    let answer = client(channel).get_status(GetStatusRequest {}).await;
    let answer = answer.map_err(|status| AskError::from_call(METHOD, SERVICE, status))?;
    let status = answer.into_inner().status.ok_or(AskError::Empty { method: METHOD })?;
    Ok(Report::Status(status.try_into()?))
}

/// What `WatchStatus` said last, and when.
#[derive(Default)]
pub(super) struct WatchStatus {
    last: Option<(Status, Instant)>,
}

impl Feed for WatchStatus {
    type Message = WatchStatusResponse;

    const METHOD: &'static str = "WatchStatus";
    const SERVICE: &'static str = SERVICE;

    async fn open(
        channel: Channel,
        interval: Duration,
    ) -> Result<Streaming<Self::Message>, tonic::Status> {
        let request = WatchStatusRequest { interval: Some(wire::proto_duration(interval)) };
        Ok(client(channel).watch_status(request).await?.into_inner())
    }

    fn hear(&mut self, message: Self::Message, now: Instant) -> Result<(), AskError> {
        let status = message.status.ok_or(AskError::Empty { method: Self::METHOD })?;
        self.last = Some((status.try_into()?, now));
        Ok(())
    }

    fn tell(&mut self, now: Instant) -> Option<Report> {
        let (status, at) = self.last.as_ref()?;
        let age = status.age + (now - *at);
        Some(Report::Status(Status { age, ..status.clone() }))
    }
}
