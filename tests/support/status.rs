//! A gRPC server of `ipconfig.v1.StatusService` that answers what the test or bench
//! wants it to, unlike the one that services have from the library.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use ipconfig::wire::proto;
use ipconfig::wire::proto::status_service_server::{StatusService, StatusServiceServer};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};

/// What answers. It has no stream.
pub trait Source: Send + Sync + 'static {
    /// The next answer; `asked` is the address that the question went to.
    fn status(
        &self,
        asked: Option<SocketAddr>,
    ) -> impl Future<Output = Result<proto::Status, tonic::Status>> + Send;
}

/// Serves until it is dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    source: Arc<impl Source>,
    listener: TcpIncoming,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .add_service(StatusServiceServer::new(Served(source)))
        .serve_with_incoming(listener)
        .await
}

/// The source for a server to own.
struct Served<S>(Arc<S>);

#[tonic::async_trait]
impl<S: Source> StatusService for Served<S> {
    type WatchStatusStream = tokio_stream::Empty<Result<proto::WatchStatusResponse, tonic::Status>>;

    async fn watch_status(
        &self,
        _request: Request<proto::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("no stream"))
    }

    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, tonic::Status> {
        let status = self.0.status(request.local_addr()).await?;
        Ok(Response::new(proto::GetStatusResponse { status: Some(status) }))
    }
}
