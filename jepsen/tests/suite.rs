//! The short suite: real processes, real faults, with a fixed and a random seed, and all checkers.
//!
//! The binary under test is the one that the build of the workspace puts beside the harness.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// The seed of every build.
const FIXED_SEED: u64 = 20_261_128;
/// Limits of time are so many times longer here: debug builds, and other tests at the same time.
const SLACK: &str = "6";

fn harness() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypertide-jepsen"));
    command.stdin(Stdio::null());
    command
}

/// Where runs go; what fails stays there.
fn place(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_hypertide-jepsen")).parent();
    target.expect("it lies in a directory").join("jepsen-runs").join(name)
}

/// Runs a scenario with a seed; it must be valid. Its directory goes only then.
#[expect(clippy::print_stdout, reason = "the seed is told before the run")]
fn scenario(workload: &str, faults: &str, seed: u64) -> Value {
    let name = format!("{workload}-{faults}-{seed}-{}", std::process::id());
    let dir = place(&name);
    println!("workload {workload}, faults {faults}, seed {seed}, in {}", dir.display());
    let line = ["run", "--workload", workload, "--nemesis", faults, "--slack", SLACK];
    let numbers = ["--seconds", "20", "--clients", "4", "--access", "3", "--data", "3"];
    let output = harness()
        .args(line)
        .args(numbers)
        .args(["--seed", &seed.to_string()])
        .arg("--dir")
        .arg(&dir)
        .output()
        .expect("the harness can be run");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "seed {seed}: the run is kept in {}\n{out}\n{err}",
        dir.display()
    );
    let results = serde_json::from_str(&out).expect("the results are JSON");
    std::fs::remove_dir_all(&dir).expect("the run can be removed");
    results
}

fn random_seed() -> u64 {
    u64::from(std::process::id()) ^ std::time::UNIX_EPOCH.elapsed().map_or(1, |age| age.as_secs())
}

#[test]
fn faults_of_processes_do_no_harm() {
    let results = scenario("mixed", "kill,pause,terminate", FIXED_SEED);
    let effective: u64 = results["faults"]
        .as_object()
        .expect("faults are told")
        .values()
        .filter_map(|count| count["effective"].as_u64())
        .sum();
    assert!(effective > 0, "{results}");
    assert!(results["operations"]["ok"].as_u64() > Some(100), "{results}");
}

#[test]
fn faults_of_a_random_seed_do_no_harm() {
    let results = scenario("retry", "kill,pause,throttle", random_seed());
    assert_eq!(results["valid"], true);
}

/// The faults of a run: kind and whom it was planned for.
fn faults_of(dir: &Path) -> Vec<(Value, Value)> {
    let text = std::fs::read_to_string(dir.join("schedule.jsonl")).expect("it was written");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("it is JSON"));
    let mut records: Vec<Value> = lines.collect();
    let at = |record: &Value, path: &str| record.pointer(path).cloned().unwrap_or_default();
    records.sort_by_key(|record| at(record, "/event/id").as_u64());
    let begun = records.iter().filter(|record| at(record, "/nodes") != serde_json::json!([]));
    begun.map(|record| (at(record, "/event/kind"), at(record, "/event/target"))).collect()
}

/// On loopback addresses, with the link proxy: that way is not taken by the others where there are namespaces.
#[test]
fn a_run_is_done_again_with_the_same_faults() {
    let dir = place(&format!("again-{}", std::process::id()));
    let output = harness()
        .args([
            "run",
            "--workload",
            "retry",
            "--nemesis",
            "pair,reorder",
            "--seed",
            "5",
            "--loopback",
        ])
        .args(["--slack", SLACK, "--seconds", "15", "--clients", "4", "--rate", "3", "--keep"])
        .arg("--dir")
        .arg(&dir)
        .output()
        .expect("the harness can be run");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the run is kept in {}\n{err}", dir.display());
    let again = dir.with_extension("replay");
    let output =
        harness().arg("replay").arg(&dir).arg("--dir").arg(&again).output().expect("it can be run");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the run is kept in {}\n{err}", again.display());
    assert!(faults_of(&dir).len() > 1);
    assert_eq!(faults_of(&dir), faults_of(&again));
    let shrunk = harness().arg("shrink").arg(&dir).output().expect("the harness can be run");
    assert!(!shrunk.status.success(), "there is nothing that fails in it");
    for dir in [dir, again] {
        std::fs::remove_dir_all(&dir).expect("the run can be removed");
    }
}

#[test]
fn a_bad_history_is_refused_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = serde_json::json!({
        "workload": "insert", "faults": [], "seed": 1, "seconds": 1, "access": 1, "data": 1, "clients": 1,
        "pause_ms": 1, "slack": 1.0, "binary": "", "version": "", "times": "spread",
    });
    let closing = serde_json::json!({
        "healed_us": 0, "stopped_us": 0, "restored_us": 0, "catalogs": {}, "replicas": [], "complaints": [],
        "damage_lines": 0, "unstoppable": [], "missing": [],
    });
    let insert = serde_json::json!({
        "id": 0, "process": 0, "node": "a1", "start_us": 0, "end_us": 10, "outcome": "ok",
        "action": {"insert": {"wid": 3, "path": "text"}},
    });
    let read = serde_json::json!({
        "id": 1, "process": 0, "node": "a1", "start_us": 20, "end_us": 30, "outcome": "ok",
        "action": {"read": {"wid": 3}}, "answer": {"rows": {"at": 5, "uids": [], "twice": [], "odd": []}},
    });
    for (name, text) in [
        ("config.json", config.to_string()),
        ("closing.json", closing.to_string()),
        ("schedule.jsonl", String::new()),
        ("history.jsonl", format!("{insert}\n{read}\n")),
    ] {
        std::fs::write(dir.path().join(name), text).expect("it can be written");
    }
    let output = harness().arg("check").arg(dir.path()).output().expect("the harness can be run");
    assert_eq!(output.status.code(), Some(1));
    let results = std::fs::read(dir.path().join("results.json")).expect("it was written");
    let results: Value = serde_json::from_slice(&results).expect("it is JSON");
    assert!(results["violation_counts"]["C1"].as_u64() > Some(0), "{results}");
    let page = std::fs::read_to_string(dir.path().join("timeline.html")).expect("it was written");
    assert!(page.contains("First violation") && page.ends_with("</html>\n"));
}
