//! Channels to other nodes, and the loop that follows the access nodes: the only retry loops of the product.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tonic::transport::{Channel, Endpoint};

use crate::{
    error::{Code, Retry, RpcError},
    wire::{
        meta::{meta_client::MetaClient, raft_client::RaftClient},
        query::fragments_client::FragmentsClient,
        storage::storage_client::StorageClient,
    },
};

mod link;

pub use link::{Link, RELAY_HEADER};
use link::{Relays, Way};

/// Largest message that any node sends or takes; a prepare or a batch of rows stays well below.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// HTTP/2 window of a stream: what a sender may have under way.
pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// HTTP/2 window of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Largest HTTP/2 frame: each costs its sender a call of the system. A ping waits for one at most.
pub const FRAME_BYTES_MAX: u32 = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two pings over an open connection.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// A connection whose ping is not answered for this long is given up.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause between two rounds over the access nodes, doubled up to the greatest.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(20);
const RETRY_DELAY_MAX: Duration = Duration::from_millis(500);

/// A client for messages of the size that nodes send.
macro_rules! sized {
    ($client:expr) => {
        $client
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    };
}

/// Channels by address, made on first use. Making one does not connect, and cloning one is cheap.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    open: Arc<Mutex<HashMap<String, Channel>>>,
    ways: Arc<Mutex<HashMap<String, Arc<Way>>>>,
    relays: Relays,
}

impl Channels {
    /// The channel to `address` (`host:port`).
    pub fn get(&self, address: &str) -> Result<Channel, RpcError> {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(channel) = open.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| RpcError::new(Code::Invalid, format_args!("bad address {address:?}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .tcp_nodelay(true);
        let channel = endpoint.connect_lazy();
        open.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// The channel to the data node at `address`, that goes through another access node while the direct way is broken.
    pub fn link(&self, address: &str) -> Result<Link, RpcError> {
        let direct = self.get(address)?;
        Ok(Link::new(direct, self.way(address), self.relays.clone(), self.clone()))
    }

    fn way(&self, address: &str) -> Arc<Way> {
        let mut ways = self.ways.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(ways.entry(address.to_owned()).or_insert_with(|| Way::to(address)))
    }

    /// Whether links to the data node at `address` go through another access node now.
    #[must_use]
    pub fn goes_around(&self, address: &str) -> bool {
        self.way(address).is_broken()
    }

    /// Other access nodes, which pass calls on to data nodes that cannot be reached from here.
    pub fn relay_through(&self, addresses: Vec<String>) {
        self.relays.set(addresses);
    }

    /// Client of an access node's catalog service.
    pub fn meta(&self, address: &str) -> Result<MetaClient<Channel>, RpcError> {
        Ok(sized!(MetaClient::new(self.get(address)?)))
    }

    /// Client of an access node's Raft service.
    pub fn raft(&self, address: &str) -> Result<RaftClient<Channel>, RpcError> {
        Ok(sized!(RaftClient::new(self.get(address)?)))
    }

    /// Client of a data node's commit and administration service.
    pub fn storage(&self, address: &str) -> Result<StorageClient<Channel>, RpcError> {
        Ok(sized!(StorageClient::new(self.get(address)?)))
    }

    /// As [`Channels::storage`], by a [`Link`].
    pub fn linked_storage(&self, address: &str) -> Result<StorageClient<Link>, RpcError> {
        Ok(sized!(StorageClient::new(self.link(address)?)))
    }

    /// Client of a data node's fragment service, by a [`Link`].
    pub fn fragments(&self, address: &str) -> Result<FragmentsClient<Link>, RpcError> {
        Ok(sized!(FragmentsClient::new(self.link(address)?)))
    }
}

/// The access nodes of a cluster, the one that answered last first.
#[derive(Clone, Debug)]
pub struct AccessNodes {
    channels: Channels,
    addresses: Arc<Mutex<Vec<String>>>,
}

impl AccessNodes {
    /// Follows the access nodes at these addresses.
    #[must_use]
    pub fn new(channels: Channels, addresses: Vec<String>) -> Self {
        Self { channels, addresses: Arc::new(Mutex::new(addresses)) }
    }

    /// The addresses in the order they are asked.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces the addresses by what a node reported; an empty report is ignored.
    pub fn learn(&self, reported: Vec<String>) {
        if reported.is_empty() {
            return;
        }
        let mut known = self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.retain(|address| reported.contains(address));
        let fresh: Vec<String> =
            reported.into_iter().filter(|address| !known.contains(address)).collect();
        known.extend(fresh);
    }

    fn prefer(&self, address: &str) {
        let mut known = self.addresses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(at) = known.iter().position(|other| other == address) {
            let address = known.remove(at);
            known.insert(0, address);
        }
    }

    /// Asks the access nodes in turn until one answers, or until `deadline`.
    ///
    /// `ask` must be safe to repeat. An error that no other node and no later moment can mend is returned at once.
    pub async fn ask<T, F>(&self, deadline: Instant, ask: F) -> Result<T, RpcError>
    where
        F: AsyncFn(MetaClient<Channel>) -> Result<T, tonic::Status>,
    {
        let mut delay = RETRY_DELAY_MIN;
        let mut last = RpcError::new(Code::Unavailable, "no access node is known");
        loop {
            for address in self.addresses() {
                let left = deadline.saturating_duration_since(Instant::now());
                let answer = tokio::time::timeout(left, ask(self.channels.meta(&address)?)).await;
                match answer.map(|answer| answer.map_err(RpcError::from)) {
                    Ok(Ok(value)) => {
                        self.prefer(&address);
                        return Ok(value);
                    }
                    Ok(Err(error)) if error.retry() == Retry::Never => return Err(error),
                    Ok(Err(error)) => last = error,
                    Err(_) => return Err(out_of_time(&last)),
                }
            }
            if Instant::now() + delay >= deadline {
                return Err(out_of_time(&last));
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }
}

fn out_of_time(last: &RpcError) -> RpcError {
    RpcError::new(Code::DeadlineExceeded, format_args!("no access node answered in time: {last}"))
}
