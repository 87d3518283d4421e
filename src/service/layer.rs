//! Counts HTTP and gRPC requests on their way through a tower stack, whoever
//! serves them: axum, tonic, or hyper with tower.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prost::bytes::Buf;
use tonic::Code;
use tower::{Layer, Service};

use super::traffic::{Outcome, Request, Traffic};

/// Asked by those who watch a service, over a server that may be the service's
/// own: no work, and a watch would be in flight for good.
const NOT_COUNTED: [&str; 3] = [
    "/ipconfig.v1.StatusService/",
    "/xds.service.orca.v3.OpenRcaService/",
    "/grpc.health.v1.Health/",
];

/// A tower layer that counts each request into a [`Traffic`], from its arrival
/// to the end of its response's body: a stream is in flight until it ends.
///
/// Errors are HTTP's 5xx, what the inner service fails with, a body that breaks
/// off by a failure, and a panic; for gRPC the statuses UNKNOWN,
/// DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE
/// and DATA_LOSS, where the others are the client's doing. A request whose client
/// leaves before the body's end is in neither `requests` nor `errors`: no answer
/// was given whole. An upgraded connection, a WebSocket for instance, has been
/// answered when it is upgraded.
///
/// Requests of `ipconfig.v1.StatusService`, ORCA's `OpenRcaService` and
/// `grpc.health.v1.Health` are not counted. Whatever else should not be counted,
/// a health page for instance, goes beside the layer: axum counts only the routes
/// that were there before `layer` was called.
#[derive(Debug, Clone)]
pub struct TrafficLayer {
    traffic: Arc<Traffic>,
}

impl TrafficLayer {
    /// Counts into `traffic`.
    pub fn new(traffic: Arc<Traffic>) -> Self {
        Self { traffic }
    }
}

impl<S> Layer<S> for TrafficLayer {
    type Service = TrafficService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TrafficService { inner, traffic: Arc::clone(&self.traffic) }
    }
}

/// The service that [`TrafficLayer`] makes.
#[derive(Debug, Clone)]
pub struct TrafficService<S> {
    inner: S,
    traffic: Arc<Traffic>,
}

impl<S, A, B> Service<http::Request<A>> for TrafficService<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    B: Body,
{
    type Response = http::Response<CountedBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, asked: http::Request<A>) -> Self::Future {
        let path = asked.uri().path();
        let counts = !NOT_COUNTED.iter().any(|service| path.starts_with(service));
        let request = counts.then(|| self.traffic.begin());
        let for_head = asked.method() == Method::HEAD;
        ResponseFuture { inner: self.inner.call(asked), request, for_head }
    }
}

pin_project! {
    /// The answer to come of [`TrafficService`].
    pub struct ResponseFuture<F> {
        // Before the request, so that a wait within ends before it does.
        #[pin]
        inner: F,
        request: Option<Request>,
        for_head: bool,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
    B: Body,
{
    type Output = Result<http::Response<CountedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // On the stack, so that a panic within drops it while it unwinds.
        let request = this.request.take();
        let Poll::Ready(answer) = this.inner.poll(cx) else {
            *this.request = request;
            return Poll::Pending;
        };
        let response = match answer {
            Ok(response) => response,
            Err(err) => {
                if let Some(request) = request {
                    request.answered(Outcome::Failed);
                }
                return Poll::Ready(Err(err));
            }
        };
        let (head, inner) = response.into_parts();
        let mut open = request.map(|request| Open::new(request, &head, &inner));
        if *this.for_head || is_bodyless(head.status) || inner.is_end_stream() {
            // A server does not ask such a body for its end.
            end(&mut open);
        }
        Poll::Ready(Ok(http::Response::from_parts(head, CountedBody { inner, open })))
    }
}

/// Whether HTTP allows for no body.
fn is_bodyless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// A request whose answer has begun.
struct Open {
    request: Request,
    /// As far as the head tells; `None` where gRPC tells in the trailers.
    outcome: Option<Outcome>,
    /// What is left of the body, if its length was told: a server that has sent
    /// it all may not ask for the end.
    left: Option<u64>,
}

impl Open {
    fn new(request: Request, head: &response::Parts, body: &impl Body) -> Self {
        let outcome = if head.status.is_server_error() {
            Some(Outcome::Failed)
        } else if is_grpc(&head.headers) {
            grpc_outcome(&head.headers)
        } else {
            Some(Outcome::Served)
        };
        let told = head.headers.get(CONTENT_LENGTH);
        let told = told.and_then(|length| length.to_str().ok()?.parse().ok());
        Self { request, outcome, left: told.or_else(|| body.size_hint().exact()) }
    }

    /// Takes note of what the body gives out; whether nothing more is to come.
    fn see<D: Buf, E>(&mut self, frame: &Result<Frame<D>, E>) -> bool {
        let Ok(frame) = frame else {
            self.outcome = Some(Outcome::Failed);
            return true;
        };
        if let Some(trailers) = frame.trailers_ref() {
            self.outcome = self.outcome.or_else(|| grpc_outcome(trailers));
            return true;
        }
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
            *left = left.saturating_sub(data.remaining() as u64);
        }
        // The trailers of gRPC are still to come.
        self.left == Some(0) && self.outcome.is_some()
    }
}

/// The answer has been given whole. gRPC without a status is a failure: the
/// client takes it for UNKNOWN.
fn end(open: &mut Option<Open>) {
    if let Some(Open { request, outcome, .. }) = open.take() {
        request.answered(outcome.unwrap_or(Outcome::Failed));
    }
}

/// `application/grpc`, also with a codec as in `application/grpc+proto`. Not
/// `application/grpc-web`, whose trailers are in the body.
fn is_grpc(headers: &HeaderMap) -> bool {
    let rest = headers
        .get(CONTENT_TYPE)
        .and_then(|found| found.as_bytes().strip_prefix(b"application/grpc"));
    matches!(rest, Some([] | [b'+' | b';', ..]))
}

/// What `grpc-status` tells, if it is there.
fn grpc_outcome(headers: &HeaderMap) -> Option<Outcome> {
    let status = headers.get("grpc-status")?;
    Some(match Code::from_bytes(status.as_bytes()) {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Outcome::Failed,
        _ => Outcome::Served,
    })
}

pin_project! {
    /// A response's body, which ends its request when it ends.
    pub struct CountedBody<B> {
        #[pin]
        inner: B,
        open: Option<Open>,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        // On the stack, as in `ResponseFuture`.
        let mut open = this.open.take();
        let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
            *this.open = open;
            return Poll::Pending;
        };
        let over = match (&mut open, &frame) {
            (Some(open), Some(frame)) => open.see(frame),
            _ => true,
        };
        if over || this.inner.is_end_stream() {
            end(&mut open);
        }
        *this.open = open;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use std::convert::Infallible;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::Waker;

    #[test]
    fn a_panic_is_an_error_also_for_who_catches_it() {
        let traffic = Arc::new(Traffic::default());
        let serve = tower::service_fn(|_: http::Request<()>| async {
            panic!("on purpose") as Result<http::Response<String>, Infallible>
        });
        let mut counted = TrafficLayer::new(Arc::clone(&traffic)).layer(serve);
        let mut answer = Box::pin(counted.call(http::Request::new(())));
        let mut cx = Context::from_waker(Waker::noop());
        catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(&mut cx).is_ready())).unwrap_err();
        let counts = traffic.snapshot();
        assert_eq!((counts.requests, counts.errors, counts.in_flight), (1, 1, 0));
    }

    #[test]
    fn an_error_of_the_inner_service_is_an_error() {
        let traffic = Arc::new(Traffic::default());
        let serve = tower::service_fn(|_: http::Request<()>| async {
            Err::<http::Response<String>, _>("on purpose")
        });
        let mut counted = TrafficLayer::new(Arc::clone(&traffic)).layer(serve);
        let mut answer = Box::pin(counted.call(http::Request::new(())));
        assert!(answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        let counts = traffic.snapshot();
        assert_eq!((counts.requests, counts.errors, counts.in_flight), (1, 1, 0));
    }

    #[test]
    fn grpc_is_told_from_grpc_web_and_from_the_rest() {
        let is =
            |found: &str| is_grpc(&[(CONTENT_TYPE, found.parse().unwrap())].into_iter().collect());
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc;x"));
        assert!(!is("application/grpc-web+proto") && !is("application/json"));
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_grpc_status_is_the_services_failure_or_the_clients_doing() {
        let failed = |code: i32| {
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), code.into())]);
            grpc_outcome(&headers) == Some(Outcome::Failed)
        };
        let failures: Vec<i32> = (0..=16).filter(|code| failed(*code)).collect();
        assert_eq!(failures, [2, 4, 8, 12, 13, 14, 15]);
        assert!(failed(99), "the client takes it for UNKNOWN");
    }
}
