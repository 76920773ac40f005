//! The gRPC server: its limits and its end.

use std::{sync::Arc, time::Duration};

use arrow_flight::flight_service_server::FlightServiceServer;
use hypertide_proto::client::FRAME_BYTES_MAX;
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tonic::transport::{Server, server::TcpIncoming};

use super::{service::FlightService, upload::Uploads};
use crate::{Engine, Error, SqlState};

/// Largest message in either direction: clients send a record batch as one message.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Most calls of a connection at a time.
const STREAMS_MAX: u32 = 256;
/// What a client may send ahead of being read, a call and a connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How often an idle connection is asked whether it is there, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long running calls may take when the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Serves Arrow Flight SQL until `shutdown` is true; calls that run get some seconds to end.
pub async fn serve_flight(
    listener: TcpListener,
    engine: Arc<Engine>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let service = FlightServiceServer::new(FlightService::new(engine))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(Uploads(service))
        .serve_with_incoming_shutdown(incoming, stopped(shutdown.clone()));
    tokio::select! {
        served = serving => served.map_err(|error| {
            Error::new(SqlState("58030"), format!("serve Flight SQL: {error}"))
        }),
        () = async { stopped(shutdown).await; sleep(DRAIN_MAX).await } => Ok(()),
    }
}

async fn stopped(mut shutdown: watch::Receiver<bool>) {
    // An error means that nobody can stop the server any more: it goes on.
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}
