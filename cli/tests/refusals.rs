//! What is refused at the start, in words and with the right exit code.

mod cluster;

use std::{fs, process::Stdio};

use cluster::{Cluster, hypertide, occupied_port, run, text};

#[test]
fn wrong_use_is_exit_code_two() {
    for line in [&["nonsense"][..], &["access"], &["cluster", "start"], &["sql", "--format", "xml"]]
    {
        assert_eq!(run(line).status.code(), Some(2), "{line:?}");
    }
    for line in
        [&["--help"][..], &["--version"], &["cluster", "--help"], &["cluster", "start", "--help"]]
    {
        assert_eq!(run(line).status.code(), Some(0), "{line:?}");
    }
}

#[test]
fn an_unknown_key_of_a_file_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("node.toml");
    fs::write(&file, "flihgt = \"127.0.0.1:0\"\n").expect("it is writable");
    let output = run(&["access", "--config", file.to_str().expect("it is plain")]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("\"flihgt\"") && error.contains("did you mean \"flight\"?"), "{error}");
}

#[test]
fn a_port_in_use_is_said() {
    let (_listener, address) = occupied_port();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().to_str().expect("it is plain");
    let output = run(&["data", "--dir", dir, "--rpc", &address, "--http", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains(&format!("{address} is in use")), "{error}");
}

#[test]
fn a_cluster_whose_port_is_in_use_leaves_nothing_behind() {
    let (_listener, address) = occupied_port();
    let (_, port) = address.rsplit_once(':').expect("it is host:port");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().to_str().expect("it is plain");
    let line =
        ["cluster", "start", "--access", "1", "--data", "1", "--dir", dir, "--base-port", port];
    let output = run(&line);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("a1 ended") && error.contains("is in use"), "{error}");
}

#[test]
fn a_directory_in_use_or_of_another_node_is_refused() {
    let one = Cluster::start(1, 1);
    let dir = |node: &str| one.dir().join(node).to_str().expect("it is plain").to_owned();
    let ports = ["--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let access = |id: &str| {
        let sql = ["--pg", "127.0.0.1:0", "--flight", "127.0.0.1:0"];
        run(&[&["access", "--id", id, "--dir", &dir("a1")], &ports[..], &sql].concat())
    };
    let data = |access: &str| {
        run(&[&["data", "--dir", &dir("d1"), "--access", access], &ports[..]].concat())
    };
    // The ports of the last run are taken, or the directory is: in use either way.
    let rpc = one.endpoint("a1", "rpc");
    for output in [access("1"), data(&rpc)] {
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("in use"), "{}", text(&output.stderr));
    }
    one.verb("stop", &[]);
    let output = access("2");
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("node") && error.contains('1') && error.contains('2'), "{error}");
}

#[test]
fn a_data_node_of_another_cluster_is_refused() {
    let one = Cluster::start(1, 1);
    let other = Cluster::start(1, 1);
    one.verb("stop", &[]);
    let dir = one.dir().join("d1");
    let access = other.endpoint("a1", "rpc");
    let output = run(&[
        "data",
        "--dir",
        dir.to_str().expect("it is plain"),
        "--access",
        &access,
        "--rpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cluster"), "{}", text(&output.stderr));
}

#[test]
fn verbs_say_what_they_do_not_find() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path().to_str().expect("it is plain");
    for line in [
        &["cluster", "status", "--dir", dir][..],
        &["cluster", "stop", "--dir", dir],
        &["cluster", "kill", "a1", "--dir", dir],
        &["node", "ls", "--dir", dir],
    ] {
        let output = run(line);
        assert_eq!(output.status.code(), Some(1), "{line:?}");
        assert!(text(&output.stderr).contains("holds no cluster"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_reader_that_goes_away_ends_nothing() {
    let cluster = Cluster::start(1, 1);
    let dir = cluster.dir().to_str().expect("it is text");
    let mut start = hypertide();
    start.args(["cluster", "start", "--dir", dir]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut start = start.spawn().expect("the binary can be run");
    drop(start.stdout.take());
    let ended = start.wait_with_output().expect("it ends");
    assert!(ended.status.success() && ended.stderr.is_empty(), "{}", text(&ended.stderr));
}
