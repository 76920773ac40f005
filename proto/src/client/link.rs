//! Links to data nodes: direct, or through another access node while the direct way is broken.
//!
//! ```text
//! direct --no connection in time, or one that fell silent--> broken --a connection is made--> direct
//! ```
//!
//! A call that fails by the way is not repeated here: its sender knows whether that is safe, and its next attempt takes
//! the other way. A node that refuses connections is reached, and is not there: no way helps.

use std::{
    error::Error as StdError,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::net::TcpStream;
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
    transport::{Channel, Error},
};

use super::Channels;

/// Names the data node that a call is for, when it is sent to an access node.
pub const RELAY_HEADER: &str = "hypertide-relay";
/// How long a connection may take when a broken way is tried, and the pause between two attempts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The access nodes that pass calls on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays {
    addresses: Arc<Mutex<Vec<String>>>,
    turn: Arc<AtomicUsize>,
}

impl Relays {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, addresses: Vec<String>) {
        *self.lock() = addresses;
    }

    /// The one whose turn it is.
    fn current(&self) -> Option<String> {
        let addresses = self.lock();
        let turn = self.turn.load(Ordering::Relaxed).checked_rem(addresses.len())?;
        addresses.get(turn).cloned()
    }

    /// The one whose turn it was is of no use.
    fn next(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }
}

/// The way to a data node, shared by all of its links.
#[derive(Debug)]
pub(crate) struct Way {
    address: String,
    broken: AtomicBool,
}

impl Way {
    pub(crate) fn to(address: &str) -> Arc<Self> {
        Arc::new(Self { address: address.to_owned(), broken: AtomicBool::new(false) })
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Notes that the direct way is broken, and looks until it is not.
    fn give_up(self: &Arc<Self>) {
        if self.broken.swap(true, Ordering::AcqRel) {
            return;
        }
        let way = Arc::clone(self);
        tracing::warn!(
            "{} cannot be reached from here; what is for it goes through other access nodes",
            way.address
        );
        tokio::spawn(async move {
            while !reached(&way.address).await {
                tokio::time::sleep(PROBE_INTERVAL).await;
                if Arc::strong_count(&way) == 1 {
                    return;
                }
            }
            way.broken.store(false, Ordering::Release);
            tracing::info!("{} can be reached from here again", way.address);
        });
    }
}

/// Whether the node, or at least its host, answers.
async fn reached(address: &str) -> bool {
    match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

/// A channel to a data node.
#[derive(Clone, Debug)]
pub struct Link {
    direct: Channel,
    way: Arc<Way>,
    relays: Relays,
    channels: Channels,
}

impl Link {
    pub(crate) fn new(direct: Channel, way: Arc<Way>, relays: Relays, channels: Channels) -> Self {
        Self { direct, way, relays, channels }
    }

    async fn call_direct(
        self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Error> {
        let answer = ask(self.direct, request).await;
        if let Err(error) = &answer
            && is_broken(error)
            && self.relays.current().is_some()
        {
            self.way.give_up();
        }
        answer
    }

    async fn call_through(
        self,
        (relay, channel): (String, Channel),
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Error> {
        if let Ok(address) = http::HeaderValue::from_str(&self.way.address) {
            request.headers_mut().insert(RELAY_HEADER, address);
        }
        let answer = ask(channel, request).await;
        if let Err(error) = &answer {
            tracing::debug!("call {} through {relay}: {error}", self.way.address);
            self.relays.next();
        }
        answer
    }
}

async fn ask(
    mut channel: Channel,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Error> {
    std::future::poll_fn(|context| channel.poll_ready(context)).await?;
    channel.call(request).await
}

/// Whether an error says that nothing came back on the way: neither an answer, nor a refusal, nor the end of a process.
fn is_broken(error: &Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        let silent = error.downcast_ref::<io::Error>().is_some_and(|error| {
            use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
            matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
        });
        // A ping that was not answered has no kind of its own.
        if silent || error.to_string().contains("timed out") {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Service<http::Request<Body>> for Link {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = BoxFuture<Self::Response, Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let link = self.clone();
        if !link.way.is_broken() {
            return Box::pin(link.call_direct(request));
        }
        let relay = link.relays.current();
        let channel = relay.and_then(|relay| Some((link.channels.get(&relay).ok()?, relay)));
        match channel {
            Some((channel, relay)) => Box::pin(link.call_through((relay, channel), request)),
            None => Box::pin(link.call_direct(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// An address at which nothing answers: the queue of those who want to connect is full.
    async fn hole() -> (String, Vec<TcpStream>, TcpListener) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("it is free");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("it has one").to_string();
        let mut queued = Vec::new();
        let wait = Duration::from_millis(200);
        while let Ok(stream) = tokio::time::timeout(wait, TcpStream::connect(&address)).await {
            queued.push(stream.expect("it is queued"));
        }
        (address, queued, listener)
    }

    /// A server that answers every call with the relay header that it came with.
    async fn mirror() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one").to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let io = hyper_util::rt::TokioIo::new(stream);
                let executor = hyper_util::rt::TokioExecutor::new();
                let answer = hyper::service::service_fn(async |request: http::Request<_>| {
                    let request: http::Request<hyper::body::Incoming> = request;
                    let mut response = http::Response::new(Body::empty());
                    if let Some(value) = request.headers().get(RELAY_HEADER) {
                        response.headers_mut().insert(RELAY_HEADER, value.clone());
                    }
                    Ok::<_, std::convert::Infallible>(response)
                });
                let server = hyper::server::conn::http2::Builder::new(executor);
                tokio::spawn(server.serve_connection(io, answer));
            }
        });
        address
    }

    async fn call(link: &Link) -> Result<Option<String>, Error> {
        let request = http::Request::builder().uri("/any/call").body(Body::empty());
        let mut link = link.clone();
        let answer = link.call(request.expect("it is one")).await?;
        let header = answer.headers().get(RELAY_HEADER);
        Ok(header.map(|value| value.to_str().expect("it is text").to_owned()))
    }

    #[tokio::test]
    async fn a_broken_way_is_gone_around_until_it_is_whole() {
        let (address, queued, listener) = hole().await;
        let channels = Channels::default();
        let link = channels.link(&address).expect("an address");
        let lonely = call(&link).await.expect_err("nobody answers");
        assert!(is_broken(&lonely), "{lonely:?}");
        assert!(!channels.goes_around(&address), "there is no other way");

        let relay = mirror().await;
        channels.relay_through(vec!["127.0.0.1:1".to_owned(), relay]);
        call(&link).await.expect_err("the first to fail shows that the way is broken");
        assert!(channels.goes_around(&address));
        call(&link).await.expect_err("one that passes calls on may be away");
        assert_eq!(call(&link).await.expect("the next is there"), Some(address.clone()));

        // Those who waited are let in, and the next attempt reaches the host.
        drop(queued);
        let letting_in = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while channels.goes_around(&address) {
            assert!(std::time::Instant::now() < deadline, "the way stays broken");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        letting_in.abort();
    }

    #[tokio::test]
    async fn a_node_that_refuses_is_not_a_broken_way() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = free.local_addr().expect("it has one").to_string();
        drop(free);
        let channels = Channels::default();
        channels.relay_through(vec![mirror().await]);
        let link = channels.link(&address).expect("an address");
        call(&link).await.expect_err("nobody is there");
        assert!(!channels.goes_around(&address));
        let there = channels.link(&mirror().await).expect("an address");
        assert_eq!(call(&there).await.expect("it answers"), None, "and directly");
    }
}
