//! Passing calls on to data nodes for access nodes that cannot reach them.
//!
//! A call comes to this node's internal gRPC with the address of a data node in its header; the call and its answer pass
//! through unread. Only data nodes of the cluster are reached, and only directly: a call is passed on once.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use hypertide_meta::{CatalogWriter as _, MetaNode};
use hypertide_proto::client::{Channels, RELAY_HEADER};
use tonic::{Status, codegen::Service as _, service::Routes};

/// What calls are passed on by.
#[derive(Clone, Debug)]
struct Relay {
    node: Arc<MetaNode>,
    channels: Channels,
}

/// The services, and calls that are passed on.
pub(crate) fn relaying(routes: Routes, node: &Arc<MetaNode>, channels: &Channels) -> Routes {
    let relay = Relay { node: Arc::clone(node), channels: channels.clone() };
    Routes::from(routes.into_axum_router().layer(middleware::from_fn_with_state(relay, pass)))
}

async fn pass(State(relay): State<Relay>, mut request: Request, next: Next) -> Response {
    let Some(address) = request.headers_mut().remove(RELAY_HEADER) else {
        return next.run(request).await;
    };
    let address = address.to_str().unwrap_or_default().to_owned();
    match relay.pass_on(&address, request).await {
        Ok(response) => response,
        Err(status) => status.into_http(),
    }
}

impl Relay {
    async fn pass_on(&self, address: &str, request: Request) -> Result<Response, Status> {
        let image = self.node.image();
        if !image.catalog.data_nodes().any(|node| node.rpc == address) {
            return Err(Status::unavailable(format!("there is no data node at {address:?}")));
        }
        let unreachable = |error: &dyn std::fmt::Display| {
            Status::unavailable(format!(
                "data node at {address}, by way of {}: {error}",
                self.node.rpc()
            ))
        };
        let mut channel = self.channels.get(address).map_err(|error| unreachable(&error))?;
        let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
        ready.map_err(|error| unreachable(&error))?;
        let answer = channel.call(request.map(tonic::body::Body::new)).await;
        Ok(answer.map_err(|error| unreachable(&error))?.map(Body::new))
    }
}
