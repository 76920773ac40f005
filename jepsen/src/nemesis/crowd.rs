//! An access node that strangers hold all connections of, saying nothing.

use std::time::Duration;

use super::{Effect, Nemesis, plan::Event, rest};
use crate::cluster::{Node, PG};

/// Connections that are tried: more than a node takes.
const CONNECTIONS: usize = 700;
/// Time for one.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

impl Nemesis {
    pub(super) async fn crowd(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let mut held = Vec::with_capacity(CONNECTIONS);
        let mut refused = 0;
        for _ in 0..CONNECTIONS {
            let connect = tokio::net::TcpStream::connect((node.ip, PG));
            match tokio::time::timeout(CONNECT_LIMIT, connect).await {
                Ok(Ok(stream)) => held.push(stream),
                _ => refused += 1,
            }
            if refused > 3 {
                break;
            }
        }
        rest(event).await;
        // Those that the node has closed by now were one too many.
        let mut closed = 0;
        for stream in &held {
            let mut byte = [0];
            let peeked =
                tokio::time::timeout(Duration::from_millis(1), stream.peek(&mut byte)).await;
            closed += usize::from(matches!(peeked, Ok(Ok(_) | Err(_))));
        }
        let proof =
            format!("{} connections, {closed} of them answered or closed by then", held.len());
        drop(held);
        Ok(Effect::seen(proof))
    }
}
