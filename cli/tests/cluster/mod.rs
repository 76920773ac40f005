//! A cluster of real processes for tests: started through the binary, always ended with the test.

#![allow(dead_code, reason = "each test binary uses its own part of the harness")]
#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

pub(crate) mod load;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// Longest wait for anything in a test.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at a condition.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The binary under test.
pub(crate) fn hypertide() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypertide"));
    // What the developer's shell holds must not reach the test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HYPERTIDE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    hypertide().args(arguments).output().expect("the binary can be run")
}

/// Runs the binary; it must succeed. Gives its standard output.
pub(crate) fn run_ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "hypertide {arguments:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A local cluster in a directory of its own.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: TempDir,
}

impl Cluster {
    /// Starts a cluster and waits until SQL is served.
    pub(crate) fn start(access: u16, data: u16) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cluster = Self { dir };
        let (access, data) = (access.to_string(), data.to_string());
        let sizes = ["--access", &access, "--data", &data, "--base-port", "0"];
        cluster.verb("start", &sizes);
        cluster
    }

    /// The cluster's directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn dir_argument(&self) -> &str {
        self.dir.path().to_str().expect("temporary directories have plain names")
    }

    /// Runs `hypertide cluster VERB ... --dir DIR`.
    pub(crate) fn verb(&self, verb: &str, arguments: &[&str]) -> String {
        let line = [&["cluster", verb], arguments, &["--dir", self.dir_argument()]].concat();
        run_ok(&line)
    }

    /// Runs any other verb with `--dir DIR`.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        run(&[arguments, &["--dir", self.dir_argument()]].concat())
    }

    /// `endpoints.json`.
    pub(crate) fn endpoints(&self) -> Vec<Value> {
        let file = std::fs::read(self.dir().join("endpoints.json")).expect("it was written");
        let mut file: Value = serde_json::from_slice(&file).expect("it is JSON");
        let nodes = file.get_mut("nodes").map(Value::take);
        serde_json::from_value(nodes.expect("it has nodes")).expect("they are a list")
    }

    /// A field of a node in `endpoints.json`.
    pub(crate) fn endpoint(&self, node: &str, field: &str) -> String {
        let nodes = self.endpoints();
        let node = nodes.iter().find(|entry| entry["name"] == node).expect("the node is listed");
        node[field].as_str().expect("the node has this endpoint").to_owned()
    }

    /// `cluster status --format json`.
    pub(crate) fn status(&self) -> Value {
        let out = self.verb("status", &["--format", "json"]);
        serde_json::from_str(&out).expect("it is JSON")
    }

    /// Names of the access nodes.
    pub(crate) fn access(&self) -> Vec<String> {
        let nodes = self.endpoints();
        let access = nodes.iter().filter(|node| node["role"] == "access");
        access.map(|node| node["name"].as_str().expect("it has a name").to_owned()).collect()
    }

    /// Connects to an access node.
    pub(crate) async fn connect(&self, node: &str) -> Client {
        connect(&self.endpoint(node, "pg")).await
    }

    /// Waits until the status satisfies `wanted`.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let output = self.run(&["cluster", "status", "--format", "json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if output.status.success() && wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what} did not come about: {status}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// ERROR and WARN lines of every node's log that no word of `expected` explains.
    pub(crate) fn complaints(&self, expected: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for node in self.endpoints() {
            let name = node["name"].as_str().expect("it has a name");
            let log = std::fs::read(self.dir().join(name).join("log")).unwrap_or_default();
            let lines = text(&log);
            let bad = lines.lines().filter(|line| {
                (line.contains(" ERROR ") || line.contains(" WARN ") || line.contains("panicked"))
                    && !expected.iter().any(|word| line.contains(word))
            });
            found.extend(bad.map(str::to_owned));
        }
        found
    }

    /// Waits until all chunks have the replicas that they should have, and none is damaged.
    pub(crate) fn wait_whole(&self) -> Value {
        self.wait_for("every chunk in sync", |status| {
            let chunks = &status["chunks"];
            chunks["total"].as_u64() > Some(0)
                && chunks["in_sync"] == chunks["total"]
                && chunks["joining"] == 0
                && chunks["damaged"] == 0
        })
    }

    /// `hypertide_check` by the command line, with checksums: it fails when anything is wrong.
    pub(crate) fn check_chunks(&self) {
        let output = self.run(&["chunk", "check", "--checksums", "--all"]);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        assert!(out.contains("_chunk") && !out.contains("wrong"), "{out}");
    }

    /// What a node has logged.
    pub(crate) fn log_of(&self, node: &str) -> String {
        text(&std::fs::read(self.dir().join(node).join("log")).unwrap_or_default())
    }

    /// Says how much a node has fetched, to people who run a test with `--no-capture`.
    pub(crate) fn say_fetched(&self, node: &str) {
        let log = self.log_of(node);
        for kind in ["delta of ", "whole copy of "] {
            let fetched = log.lines().filter_map(|line| line.split_once(kind));
            let bytes = fetched.filter_map(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
            let bytes: Vec<u64> = bytes.collect();
            eprintln!(
                "{node}: {} times {kind}{} bytes in all",
                bytes.len(),
                bytes.iter().sum::<u64>()
            );
        }
    }

    /// The logs, for a failing test's message.
    pub(crate) fn logs(&self) -> String {
        let mut all = String::new();
        for node in self.endpoints() {
            let name = node["name"].as_str().expect("it has a name");
            let log = std::fs::read(self.dir().join(name).join("log")).unwrap_or_default();
            let log = text(&log);
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            all.push_str(&format!("--- {name}\n{tail}\n"));
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && self.dir().join("endpoints.json").exists() {
            eprintln!("{}", self.logs());
        }
        // Kill every node that has a directory, even one that never came up.
        for entry in std::fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|_| entry.path().is_dir()) else { continue };
            let _ = self.run(&["cluster", "kill", name]);
        }
    }
}

/// Connects to a PostgreSQL endpoint.
pub(crate) async fn connect(address: &str) -> Client {
    let (host, port) = address.rsplit_once(':').expect("it is host:port");
    let settings =
        format!("host={host} port={port} user=hypertide dbname=hypertide connect_timeout=10");
    let (client, connection) = tokio_postgres::connect(&settings, NoTls).await.expect("it serves");
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// A process that is killed with the test.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts the binary in the background; its output goes to `log`.
    pub(crate) fn start(arguments: &[&str], log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("the log can be made");
        let out = log.try_clone().expect("the log can be shared");
        let child = hypertide().args(arguments).stdout(out).stderr(log).spawn();
        Self { child: child.expect("the binary can be run") }
    }

    /// Whether the process runs.
    pub(crate) fn alive(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Asks it to end and gives its exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "the process runs");
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `path` satisfies `wanted`.
pub(crate) fn wait_for_file(path: &Path, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = std::fs::read_to_string(path).unwrap_or_default();
        if wanted(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "{} has only: {found}", path.display());
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The status line, the headers and the body of an answer over HTTP.
pub(crate) fn http_get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in text");
    answer
}

/// A listener that keeps its port from everyone else.
pub(crate) fn occupied_port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

/// The weather of two cities, as published.
pub(crate) fn weather_csv() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/data/weather.csv")
}

/// One row of the weather.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// City.
    pub(crate) location: String,
    /// `2012-01-31`.
    pub(crate) date: String,
    /// Mean of the day's extremes.
    pub(crate) temperature: f64,
    /// Millimetres.
    pub(crate) precipitation: f64,
}

/// All rows of the weather, read by hand.
pub(crate) fn observations() -> Vec<Observation> {
    let text = std::fs::read_to_string(weather_csv()).expect("the file is part of the repository");
    let mut rows = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields[at].parse::<f64>().expect("it is a number");
        rows.push(Observation {
            location: fields[0].to_owned(),
            date: fields[1].to_owned(),
            temperature: (number(3) + number(4)) / 2.0,
            precipitation: number(2),
        });
    }
    rows
}
