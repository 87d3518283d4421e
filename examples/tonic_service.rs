//! The shortest gRPC service that tells how it is, on its own port.
//!
//! ```text
//! cargo run --example tonic_service
//! grpcurl -plaintext -import-path proto -proto ipconfig/v1/status.proto \
//!     127.0.0.1:9001 ipconfig.v1.StatusService/WatchStatus
//! ```
//!
//! Its status URL, for the field `status` of its registration, is
//! `grpc://127.0.0.1:9001`, or `orca://127.0.0.1:9001`. With a `tls_config` on the
//! server they are `grpcs://` and `orcas://`.

use ipconfig::service::Reporter;
use tokio::signal::ctrl_c;
use tonic::transport::Server;

use self::greeter::Greeter;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let reporter = Reporter::new()?;
    Server::builder()
        // The calls of the two status services are not counted.
        .layer(reporter.layer())
        .add_service(Greeter)
        .add_service(reporter.status_service())
        .add_service(reporter.orca_service())
        .serve_with_shutdown("127.0.0.1:9001".parse()?, async {
            _ = ctrl_c().await;
            // The server waits for its streams, and these have no end of their own.
            reporter.end_streams();
        })
        .await?;
    Ok(())
}

/// What tonic generates of a `.proto` file, for `rpc Greet(StringValue) returns
/// (StringValue)`. A service of one's own has it from `tonic-prost-build`.
mod greeter {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tonic::body::Body;
    use tonic::server::{Grpc, NamedService, UnaryService};
    use tonic::{Request, Response, Status};
    use tonic_prost::ProstCodec;
    use tower::Service;

    type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

    #[derive(Clone)]
    pub struct Greeter;

    impl UnaryService<String> for Greeter {
        type Response = String;
        type Future = Answer<Response<String>, Status>;

        fn call(&mut self, name: Request<String>) -> Self::Future {
            Box::pin(async move { Ok(Response::new(format!("hello {}", name.into_inner()))) })
        }
    }

    impl NamedService for Greeter {
        const NAME: &'static str = "demo.Greeter";
    }

    impl Service<http::Request<Body>> for Greeter {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Answer<Self::Response, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            Box::pin(async move {
                match request.uri().path() {
                    "/demo.Greeter/Greet" => {
                        let codec = ProstCodec::<String, String>::default();
                        Ok(Grpc::new(codec).unary(Greeter, request).await)
                    }
                    _ => Ok(Status::unimplemented("no such method").into_http()),
                }
            })
        }
    }
}
