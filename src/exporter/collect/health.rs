//! gRPC's health protocol: `Watch` streams, `Check` is polled where there is no
//! `Watch`. Asked for the server as a whole, whose name is empty.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::AskError;
use super::stream::Feed;
use crate::model::Report;
use crate::wire::MAX_STATUS_BYTES;

/// For errors.
pub(super) const SERVICE: &str = "grpc.health.v1.Health";

fn client(channel: Channel) -> HealthClient<Channel> {
    HealthClient::new(channel).max_decoding_message_size(MAX_STATUS_BYTES)
}

/// One call of `Check`.
pub(super) async fn check(channel: Channel) -> Result<Report, AskError> {
    let answer = client(channel).check(HealthCheckRequest::default()).await;
    let answer = answer.map_err(|status| AskError::from_call("Check", SERVICE, status))?;
    report(answer.get_ref())
}

fn report(answer: &HealthCheckResponse) -> Result<Report, AskError> {
    match ServingStatus::try_from(answer.status) {
        Ok(ServingStatus::Serving) => Ok(Report::Serving),
        Ok(ServingStatus::NotServing) => Ok(Report::NotServing),
        Ok(unknown) => Err(AskError::Health(unknown.as_str_name())),
        Err(_) => Err(AskError::Health("what no version of the protocol knows")),
    }
}

/// What `Watch` said last.
#[derive(Default)]
pub(super) struct Watch {
    last: Option<Report>,
}

impl Feed for Watch {
    type Message = HealthCheckResponse;

    const METHOD: &'static str = "Watch";
    const SERVICE: &'static str = SERVICE;
    const IS_REGULAR: bool = false;

    async fn open(
        channel: Channel,
        _interval: Duration,
    ) -> Result<Streaming<Self::Message>, tonic::Status> {
        Ok(client(channel).watch(HealthCheckRequest::default()).await?.into_inner())
    }

    fn hear(&mut self, message: Self::Message, _now: Instant) -> Result<(), AskError> {
        self.last = Some(report(&message)?);
        Ok(())
    }

    fn tell(&mut self, _now: Instant) -> Option<Report> {
        self.last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_instance_that_knows_how_it_is_is_believed() {
        let said = |status| report(&HealthCheckResponse { status });
        assert_eq!(said(1).unwrap(), Report::Serving);
        assert_eq!(said(2).unwrap(), Report::NotServing);
        for status in [0, 3, 4, -1] {
            let err = said(status).unwrap_err();
            assert_eq!(err.reason(), "bad_status", "{err}");
        }
    }
}
