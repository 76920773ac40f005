//! The link proxy: calls between nodes go through the harness, which may hold them back, send them twice, or let them
//! overtake each other, for each pair of nodes and each direction by itself.
//!
//! Every node has a second address, its shadow, at which the proxy listens and which is the one that the others know. A
//! call from A to B is accepted at B's shadow and goes on from A's shadow, so that packet filters that name a node by its
//! two addresses hit both of its sides. Who calls is told by the address where nodes have network namespaces, and by
//! whose process has the socket where they do not.
//!
//! It works on calls of gRPC, not on packets: TCP would mend those before anyone noticed. Calls with a stream of
//! requests are passed on as they come, and never twice.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use super::RPC;
use crate::seed::Rng;

/// How often a held call looks whether it may go on.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Longest lateness of a delayed call, of an overtaken one, and of a second copy, in milliseconds.
const DELAY_MS: (u64, u64) = (20, 500);
const OVERTAKEN_MS: u64 = 400;
const COPY_MS: u64 = 3_000;
/// What a lost packet costs until it is sent again, in milliseconds.
const LOST_MS: (u64, u64) = (200, 1_000);
/// Bytes a second over a slow link.
const RATE_BYTES: u64 = 16 << 10;
/// Most bytes of a call that is kept to be sent twice.
const CALL_BYTES_MAX: usize = 64 << 20;
/// Calls whose requests come as a stream.
const STREAMED: [&str; 1] = ["Snapshot"];

type Body = Either<Full<Bytes>, Incoming>;
type Upstream = SendRequest<Body>;

/// What happens to calls over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// They are held until the trouble is over.
    Cut,
    /// Every fifth is late by as much as TCP needs to send again.
    Lose,
    /// Connections break.
    Reset,
    /// Few bytes a second.
    Rate,
    /// Each is late by so much.
    Delay,
    /// Half of them come once more, some time later.
    Duplicate,
    /// Each is late by something else, so that they overtake each other.
    Reorder,
}

/// A trouble of one direction of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkRule {
    /// Who sends.
    pub(crate) from: String,
    /// Who gets.
    pub(crate) to: String,
    /// What happens.
    pub(crate) trouble: Trouble,
    /// What delays follow from.
    pub(crate) salt: u64,
}

/// A node as the proxy knows it.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Its name.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) real: Ipv4Addr,
    /// Where the proxy listens for it.
    pub(crate) shadow: Ipv4Addr,
}

#[derive(Debug)]
struct Shared {
    ends: Vec<End>,
    rules: Mutex<BTreeMap<u64, Vec<LinkRule>>>,
    /// Calls that each fault has met.
    met: Mutex<BTreeMap<u64, u64>>,
    /// Processes by name, where addresses do not tell.
    pids: Mutex<BTreeMap<String, u32>>,
    drawn: AtomicU64,
}

/// All links of a cluster.
#[derive(Debug)]
pub(crate) struct Links {
    shared: Arc<Shared>,
    /// They listen as long as this lives.
    _listening: JoinSet<()>,
}

impl Links {
    /// Listens for every node.
    pub(crate) async fn start(ends: Vec<End>) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            ends,
            rules: Mutex::default(),
            met: Mutex::default(),
            pids: Mutex::default(),
            drawn: AtomicU64::new(0),
        });
        let mut listening = JoinSet::new();
        for end in shared.ends.clone() {
            let listener = TcpListener::bind((end.shadow, RPC)).await;
            let listener = listener.with_context(|| format!("listen for {}", end.name))?;
            listening.spawn(serve(Arc::clone(&shared), end, listener));
        }
        Ok(Self { shared, _listening: listening })
    }

    /// The address that others are to know a node by.
    pub(crate) fn shadow(&self, name: &str) -> Option<Ipv4Addr> {
        self.shared.ends.iter().find(|end| end.name == name).map(|end| end.shadow)
    }

    /// Notes whose process is whose.
    pub(crate) fn tell_pids(&self, pids: BTreeMap<String, u32>) {
        *lock(&self.shared.pids) = pids;
    }

    /// Sets the rules of a fault.
    pub(crate) fn set(&self, fault: u64, rules: Vec<LinkRule>) {
        lock(&self.shared.met).insert(fault, 0);
        lock(&self.shared.rules).insert(fault, rules);
    }

    /// Takes the rules of a fault back; gives how many calls met them.
    pub(crate) fn clear(&self, fault: u64) -> u64 {
        lock(&self.shared.rules).remove(&fault);
        lock(&self.shared.met).remove(&fault).unwrap_or_default()
    }

    /// Takes all rules back.
    pub(crate) fn clear_all(&self) {
        lock(&self.shared.rules).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Troubles of a direction, each counted as met by the faults that make them.
    fn troubles(&self, from: &str, to: &str) -> Vec<LinkRule> {
        let rules = lock(&self.rules);
        let mut met = lock(&self.met);
        let mut found = Vec::new();
        for (fault, rules) in &*rules {
            let mut hit = rules.iter().filter(|rule| rule.from == from && rule.to == to);
            if let Some(rule) = hit.next() {
                *met.entry(*fault).or_default() += 1;
                found.push(rule.clone());
            }
        }
        found
    }

    fn cut(&self, from: &str, to: &str) -> bool {
        let rules = lock(&self.rules);
        let mut all = rules.values().flatten();
        all.any(|rule| rule.trouble == Trouble::Cut && rule.from == from && rule.to == to)
    }

    /// Random numbers of one call.
    fn rng(&self, salt: u64) -> Rng {
        Rng::new(salt, self.drawn.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits as long as what goes this way has to; false when the connection breaks. Gives whether it is to come twice.
    async fn pass(&self, from: &str, to: &str, bytes: u64) -> io::Result<bool> {
        let mut twice = false;
        for rule in self.troubles(from, to) {
            let mut rng = self.rng(rule.salt);
            let late_ms = match rule.trouble {
                Trouble::Cut => 0,
                Trouble::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
                Trouble::Lose if rng.chance(20) => rng.range(LOST_MS.0, LOST_MS.1),
                Trouble::Lose => 0,
                Trouble::Rate => bytes * 1000 / RATE_BYTES,
                Trouble::Delay => Rng::new(rule.salt, 5).range(DELAY_MS.0, DELAY_MS.1),
                Trouble::Reorder => rng.range(0, OVERTAKEN_MS),
                Trouble::Duplicate => {
                    twice |= rng.chance(50);
                    0
                }
            };
            tokio::time::sleep(Duration::from_millis(late_ms)).await;
        }
        while self.cut(from, to) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(twice)
    }

    /// Who calls from this address.
    fn caller(&self, peer: SocketAddr, at: SocketAddr) -> Option<&End> {
        let IpAddr::V4(ip) = peer.ip() else { return None };
        let by_address = self.ends.iter().find(|end| end.real == ip);
        by_address.or_else(|| {
            let inode = inode_of(peer, at)?;
            let pids = lock(&self.pids).clone();
            self.ends.iter().find(|end| pids.get(&end.name).is_some_and(|pid| holds(*pid, inode)))
        })
    }
}

/// The number of the socket that is connected from `peer` to `at`, as the kernel lists it.
fn inode_of(peer: SocketAddr, at: SocketAddr) -> Option<u64> {
    let text = |address: SocketAddr| {
        let IpAddr::V4(ip) = address.ip() else { return None };
        Some(format!("{:08X}:{:04X}", u32::from_le_bytes(ip.octets()), address.port()))
    };
    let (peer, at) = (text(peer)?, text(at)?);
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = words.get(1) == Some(&peer.as_str()) && words.get(2) == Some(&at.as_str());
        if found { words.get(9)?.parse().ok() } else { None }
    })
}

/// Whether a process has the socket.
fn holds(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    links.any(|link| link.to_string_lossy() == wanted)
}

async fn serve(shared: Arc<Shared>, end: End, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(link(Arc::clone(&shared), end.clone(), (stream, peer)));
            }
            // No file is free for it: the caller tries again.
            Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

/// One connection; it ends with either side. Errors are those of the nodes, who see them themselves.
async fn link(shared: Arc<Shared>, to: End, (stream, peer): (TcpStream, SocketAddr)) {
    let at = SocketAddr::from((to.shadow, RPC));
    let caller = shared.caller(peer, at).cloned();
    let from = caller.as_ref().map_or(String::new(), |end| end.name.clone());
    if shared.pass(&from, &to.name, 0).await.is_err() {
        return;
    }
    let Ok(upstream) = connect(&to, caller.as_ref()).await else { return };
    stream.set_nodelay(true).ok();
    upstream.set_nodelay(true).ok();
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let Ok((sender, connection)) = client.handshake(TokioIo::new(upstream)).await else { return };
    let passing = hyper::service::service_fn(|request| {
        let (shared, from, to) = (Arc::clone(&shared), from.clone(), to.name.clone());
        let sender = sender.clone();
        async move { call(&shared, (&from, &to), sender, request).await }
    });
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let served = server.serve_connection(TokioIo::new(stream), passing);
    tokio::select! {
        _ = served => {}
        _ = connection => {}
        () = reset(&shared, &from, &to.name) => {}
    }
}

/// Bytes under way to one side, at most.
const WINDOW_BYTES: u32 = 8 << 20;

/// Resolves when the link is reset.
async fn reset(shared: &Shared, from: &str, to: &str) {
    let hit = |rule: &LinkRule| {
        let this = (rule.from == from && rule.to == to) || (rule.from == to && rule.to == from);
        rule.trouble == Trouble::Reset && this
    };
    loop {
        let found: Option<u64> = lock(&shared.rules)
            .iter()
            .find(|(_, rules)| rules.iter().any(hit))
            .map(|(fault, _)| *fault);
        if let Some(fault) = found {
            *lock(&shared.met).entry(fault).or_default() += 1;
            return;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn connect(to: &End, caller: Option<&End>) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(caller) = caller {
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((caller.shadow, 0)))?;
    }
    socket.connect(SocketAddr::from((to.real, RPC))).await
}

async fn call(
    shared: &Arc<Shared>,
    (from, to): (&str, &str),
    mut sender: Upstream,
    request: Request<Incoming>,
) -> io::Result<Response<Incoming>> {
    let streamed = STREAMED.iter().any(|name| request.uri().path().ends_with(name));
    let (head, body) = request.into_parts();
    let response = if streamed {
        shared.pass(from, to, 0).await?;
        sender.send_request(Request::from_parts(head, Either::Right(body))).await
    } else {
        let bytes = http_body_util::Limited::new(body, CALL_BYTES_MAX).collect();
        let bytes = bytes.await.map_err(io::Error::other)?.to_bytes();
        let again = Request::from_parts(head.clone(), Either::Left(Full::new(bytes.clone())));
        if shared.pass(from, to, bytes.len() as u64).await? {
            let late = shared.rng(0).range(0, COPY_MS);
            let mut sender = sender.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(late)).await;
                // Nobody waits for the second answer. It is read, so that the call is not taken for given up.
                if let Ok(answer) = sender.send_request(again).await {
                    answer.into_body().collect().await.ok();
                }
            });
        }
        sender.send_request(Request::from_parts(head, Either::Left(Full::new(bytes)))).await
    };
    let response = response.map_err(io::Error::other)?;
    let size = hyper::body::Body::size_hint(response.body()).lower();
    shared.pass(to, from, size).await?;
    Ok(response)
}
