//! ORCA's out-of-band reports, as a stream.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Channel;

use super::AskError;
use super::stream::Feed;
use crate::model::Report;
pub(super) use crate::reckon::Reckoner;
use crate::wire;
use crate::wire::xds::data::orca::v3::OrcaLoadReport;
use crate::wire::xds::service::orca::v3::OrcaLoadReportRequest;
use crate::wire::xds::service::orca::v3::open_rca_service_client::OpenRcaServiceClient;

/// For errors.
pub(super) const SERVICE: &str = "xds.service.orca.v3.OpenRcaService";

/// The largest report that is read, in bytes: room for a thousand metrics of the
/// application's own, none of which matter here.
const MAX_REPORT_BYTES: usize = 64 * 1024;

impl Feed for Reckoner {
    type Message = OrcaLoadReport;

    const METHOD: &'static str = "StreamCoreMetrics";
    const SERVICE: &'static str = SERVICE;

    async fn open(
        channel: Channel,
        interval: Duration,
    ) -> Result<Streaming<Self::Message>, tonic::Status> {
        let mut client =
            OpenRcaServiceClient::new(channel).max_decoding_message_size(MAX_REPORT_BYTES);
        let request = OrcaLoadReportRequest {
            report_interval: Some(wire::proto_duration(interval)),
            ..Default::default()
        };
        Ok(client.stream_core_metrics(request).await?.into_inner())
    }

    fn hear(&mut self, message: Self::Message, now: Instant) -> Result<(), AskError> {
        self.hear(wire::orca::figures(&message)?, now);
        Ok(())
    }

    fn broke(&mut self, now: Instant) {
        self.broke(now);
    }

    fn tell(&mut self, now: Instant) -> Option<Report> {
        self.tell(now).map(Report::Status)
    }
}
