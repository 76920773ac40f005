//! The protocol over real sockets: hostile clients, who must be told why and must not hurt anybody else.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hypertide_meta::MemoryCatalog;
use hypertide_proto::client::Channels;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::serve_pg;
use crate::{Engine, EngineConfig, Error};

const DEADLINE: Duration = Duration::from_secs(30);

/// A server over an empty catalog.
struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), Error>>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let catalog = Arc::new(MemoryCatalog::default());
        let engine = Engine::new(catalog, Channels::default(), EngineConfig::default()).unwrap();
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve_pg(listener, engine, stopped));
        Self { address, stop, serving }
    }

    /// Sends bytes on a new connection, closes that direction, and gives all that comes back.
    async fn send(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut answer = Vec::new();
        let talk = async {
            // The server may close first.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut answer).await;
        };
        timeout(DEADLINE, talk).await.expect("the server ends the connection");
        answer
    }

    async fn connect(&self) -> tokio_postgres::Client {
        self.connect_as("user=hypertide dbname=hypertide").await.unwrap()
    }

    async fn connect_as(&self, who: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (host, port) = (self.address.ip(), self.address.port());
        let (client, connection) =
            tokio_postgres::connect(&format!("host={host} port={port} {who}"), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

fn startup() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0hypertide\0database\0hypertide\0\0";
    let mut bytes = (body.len() as u32 + 4).to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn query(sql: &str) -> Vec<u8> {
    let mut bytes = vec![b'Q'];
    bytes.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
    bytes.extend_from_slice(sql.as_bytes());
    bytes.push(0);
    bytes
}

/// The SQLSTATEs of the errors in what a server said.
fn states(answer: &[u8]) -> Vec<String> {
    let mut states = Vec::new();
    let mut rest = answer;
    while let Some((header, more)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4;
        let (body, more) = more.split_at(length.min(more.len()));
        if header[0] == b'E' {
            let fields = body.split(|byte| *byte == 0);
            let state = fields.filter_map(|field| field.strip_prefix(b"C")).next().unwrap();
            states.push(String::from_utf8(state.to_vec()).unwrap());
        }
        rest = more;
    }
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn startups_of_every_length_end_typed_and_hurt_nobody() {
    let server = Server::start().await;
    let bystander = server.connect().await;
    for length in (0..=300_u32).chain([9_999, 10_000, 10_001, 1 << 31, u32::MAX]) {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(std::iter::repeat_n(b'x', 300.min(length as usize)));
        let states = states(&server.send(&bytes).await);
        if !(8..=10_000).contains(&length) {
            assert_eq!(states, ["08P01"], "length {length}");
        }
    }
    let rows = bystander.simple_query("select 1").await.unwrap();
    assert!(matches!(&rows[1], SimpleQueryMessage::Row(row) if row.get(0) == Some("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_messages_end_only_their_connection() {
    let server = Server::start().await;
    let bystander = server.connect().await;
    let cases: [&[u8]; 9] = [
        b"~\0\0\0\x04",
        b"Q\0\0\0\x03",
        b"Q\x7f\xff\xff\xff",
        b"Q\xff\xff\xff\xff",
        b"S\0\0\0\x05x",
        b"B\0\0\0\x0a\0\0\xff\xff\0\0",
        b"B\0\0\0\x10\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0",
        b"P\0\0\0\x0c\0a\0\xff\xff\0\0\0",
        b"Q\0\0\0\x05a",
    ];
    for bytes in cases {
        let mut all = startup();
        all.extend_from_slice(bytes);
        let answer = server.send(&all).await;
        assert_eq!(states(&answer), ["08P01"], "{bytes:?}");
    }
    bystander.simple_query("select 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_why() {
    let server = Server::start().await;
    for (who, state) in [
        ("user=eve dbname=hypertide", "28000"),
        ("user=hypertide dbname=other", "3D000"),
        ("user=hypertide dbname=hypertide options='-c nonsense=1'", "42704"),
    ] {
        let Err(error) = server.connect_as(who).await else { panic!("{who}") };
        assert_eq!(error.code().unwrap().code(), state, "{who}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_beyond_the_limit_are_told_and_places_come_back() {
    let server = Server::start().await;
    let mut clients = Vec::new();
    for _ in 0..500 {
        clients.push(server.connect().await);
    }
    let error = server.connect_as("user=hypertide dbname=hypertide").await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "53300");
    clients.truncate(400);
    let again = async {
        while server.connect_as("user=hypertide dbname=hypertide").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, again).await.expect("places come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_idle_for_too_long_end() {
    let server = Server::start().await;
    for (sql, state) in [
        ("set idle_session_timeout = '20ms'", "57P05"),
        ("set idle_in_transaction_session_timeout = 20; begin", "25P03"),
        ("set idle_in_transaction_session_timeout = 20; begin; select 1/0", "25P03"),
    ] {
        let mut all = startup();
        all.extend_from_slice(&query(sql));
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&all).await.unwrap();
        let mut answer = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(states(&answer).last().map(String::as_str), Some(state), "{sql}");
    }
    let client = server.connect().await;
    let shown = client.query_one("show idle_in_transaction_session_timeout", &[]).await.unwrap();
    assert_eq!(shown.get::<_, String>(0), "1min");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_are_told_when_the_server_stops() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&startup()).await.unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).await.unwrap();
    server.stop.send(true).unwrap();
    let mut rest = first.to_vec();
    timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(states(&rest), ["57P01"]);
    timeout(DEADLINE, server.serving).await.unwrap().unwrap().unwrap();
}
