//! Streams that clients send, with their ends told apart: one that the client ended, and one that broke off.
//!
//! tonic takes the reset of a request's stream for its end, so that half an ingest would look like a whole one and be
//! committed. Here a stream that breaks off ends with an error, before tonic sees it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http::Request},
    server::NamedService,
};

/// A service whose requests tell the two ends apart.
#[derive(Clone, Debug)]
pub(super) struct Uploads<S>(pub(super) S);

impl<S: NamedService> NamedService for Uploads<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Uploads<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(request.map(|body| Body::new(Upload(body))))
    }
}

/// The body of a request.
struct Upload(Body);

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => Some(Err(broken_off(error.message()))),
            // HTTP/2 has a reset without an error, too.
            None if !self.0.is_end_stream() => Some(Err(broken_off("no end was sent"))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Any class but `Cancelled`, which tonic makes nothing of.
fn broken_off(why: &str) -> Status {
    Status::aborted(format!("the client broke its stream off: {why}"))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use arrow_flight::FlightData;
    use futures::StreamExt;
    use prost::Message;
    use tonic::{Streaming, codec::Codec};
    use tonic_prost::ProstCodec;

    use super::*;

    /// Frames that come, and whether an end comes after them.
    struct Sent(VecDeque<Result<Bytes, Status>>, bool);

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|frame| frame.map(Frame::data)))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty() && self.1
        }
    }

    fn message() -> Bytes {
        let data = FlightData { app_metadata: Bytes::from_static(b"x"), ..FlightData::default() };
        let data = data.encode_to_vec();
        let length = u32::try_from(data.len()).expect("it is short").to_be_bytes();
        [&[0][..], &length, &data].concat().into()
    }

    async fn received(body: Body) -> Vec<Result<FlightData, Status>> {
        let decoder = ProstCodec::<FlightData, FlightData>::default().decoder();
        Streaming::new_request(decoder, body, None, None).collect().await
    }

    /// One message, and then an error, which tonic tells once more when it is asked again.
    fn ends_with_an_error(told: &[Result<FlightData, Status>]) -> bool {
        told.len() > 1 && told[0].is_ok() && told[1..].iter().all(Result::is_err)
    }

    fn reset() -> Result<Bytes, Status> {
        Err(Status::cancelled("stream was reset by the client"))
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_ends_with_an_error() {
        let sent = || Body::new(Sent([Ok(message()), reset()].into(), false));
        // What tonic makes of it, for which this is here.
        let bare = received(sent()).await;
        assert!(bare.len() == 1 && bare[0].is_ok(), "{bare:?}");
        let told = received(Body::new(Upload(sent()))).await;
        assert!(ends_with_an_error(&told), "{told:?}");
    }

    #[tokio::test]
    async fn a_reset_without_an_error_is_no_end() {
        let sent = Body::new(Sent([Ok(message())].into(), false));
        let told = received(Body::new(Upload(sent))).await;
        assert!(ends_with_an_error(&told), "{told:?}");
    }

    #[tokio::test]
    async fn a_stream_that_was_ended_ends() {
        let sent = Body::new(Sent([Ok(message()), Ok(message())].into(), true));
        let told = received(Body::new(Upload(sent))).await;
        assert!(told.len() == 2 && told.iter().all(Result::is_ok), "{told:?}");
    }
}
