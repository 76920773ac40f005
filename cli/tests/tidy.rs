//! What is mechanical in the house style: the import table, the pure files, sizes and heads.
//!
//! Each rule is a function over text, and is shown a bad case beside the real sources: a rule that was never seen
//! failing proves nothing.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// Lines of code a file may have; tests at its end are not counted.
const FILE_LINES_MAX: usize = 800;

/// Which crates of ours a crate may depend on.
const OWN_DEPENDENCIES: [(&str, &[&str]); 6] = [
    ("proto", &[]),
    ("meta", &["proto"]),
    ("storage", &["proto"]),
    ("query", &["proto", "meta", "storage"]),
    ("cli", &["proto", "meta", "storage", "query"]),
    ("jepsen", &["proto"]),
];

/// Crates that only these of ours may name in their manifest.
const DOORS: [(&str, &[&str]); 11] = [
    ("openraft", &["meta"]),
    ("redb", &["meta", "storage"]),
    // What chunk stores keep, and the files of a backup.
    ("zstd", &["storage", "cli"]),
    ("datafusion", &["query"]),
    ("datafusion-proto", &["query"]),
    ("pgwire", &["query"]),
    // The command line's own client, and the harness's.
    ("arrow-flight", &["query", "cli", "jepsen"]),
    ("adya", &["jepsen"]),
    ("clap", &["cli", "jepsen"]),
    ("anyhow", &["cli", "jepsen"]),
    ("prost", &["proto", "query"]),
];

/// Crates that only files under these prefixes may name.
///
/// redb in `storage`: a chunk's file, the journal and the node's identity are separate files of separate formats, each
/// with its one owner, so the directory `store/` stands beside the three files of the style guide.
const FILE_DOORS: [(&str, &str, &[&str]); 3] = [
    ("openraft", "meta/src", &["meta/src/raft/", "meta/src/raft.rs"]),
    ("redb", "meta/src", &["meta/src/raft/", "meta/src/raft.rs"]),
    (
        "redb",
        "storage/src",
        &[
            "storage/src/tables.rs",
            "storage/src/journal.rs",
            "storage/src/store.rs",
            "storage/src/store/",
            "storage/src/journal/",
        ],
    ),
];

/// Files that are functions of their input alone: each ends with `/` for a directory.
const PURE: [&str; 16] = [
    "proto/src/",
    "meta/src/catalog/",
    "meta/src/placement.rs",
    "meta/src/reconcile/plan.rs",
    "storage/src/codec/",
    "storage/src/segment/",
    "storage/src/chunk.rs",
    "storage/src/compact/plan.rs",
    "query/src/prune.rs",
    "query/src/route.rs",
    "query/src/ingest/split.rs",
    "jepsen/src/seed.rs",
    "jepsen/src/history.rs",
    "jepsen/src/workload/",
    "jepsen/src/checker/",
    "jepsen/src/nemesis/plan.rs",
];

/// Files below the pure ones that have a part in input or output.
const NOT_PURE: [&str; 4] =
    ["proto/src/wire.rs", "proto/src/client.rs", "proto/src/client/", "proto/src/planted.rs"];

/// What a pure file does not say, and what it would mean.
const IMPURE: [(&str, &str); 12] = [
    ("async ", "waits"),
    (".await", "waits"),
    ("Instant::now", "reads the clock"),
    ("SystemTime", "reads the clock"),
    ("Utc::now", "reads the clock"),
    ("Local::now", "reads the clock"),
    ("rand::", "draws random numbers"),
    ("std::env", "reads the environment"),
    ("std::fs", "touches files"),
    ("std::net", "touches the network"),
    ("tokio::", "waits"),
    ("tracing::", "writes the log"),
];

/// Names that say nothing of what a file holds.
const EMPTY_NAMES: [&str; 8] =
    ["utils", "util", "common", "helpers", "helper", "manager", "misc", "shared"];

/// A source file.
#[derive(Debug)]
struct Source {
    /// Path from the workspace's root.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("the crate lies in the workspace").to_owned()
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    for (member, _) in OWN_DEPENDENCIES {
        for directory in ["src", "tests", "benches"] {
            collect(&root, &root.join(member).join(directory), &mut found);
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

fn collect(root: &Path, directory: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are text");
            let path = path.strip_prefix(root).expect("it lies below the root");
            found.push(Source { path: path.to_string_lossy().into_owned(), text });
        }
    }
}

/// Applies a rule to every file and fails with all that it found.
fn judge(rule: impl Fn(&str, &str) -> Vec<String>) {
    let mut report = String::new();
    for source in sources() {
        for finding in rule(&source.path, &source.text) {
            writeln!(report, "{}: {finding}", source.path).expect("it is memory");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// The text before inline tests.
fn code_part(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").and_then(|end| text.get(..end)).unwrap_or(text)
}

/// The code part without comments and string literals, for rules about what code does.
fn bare_code(text: &str) -> String {
    let mut bare = String::new();
    for line in code_part(text).lines() {
        let mut quoted = false;
        let mut last = ' ';
        let mut characters = line.chars().peekable();
        while let Some(c) = characters.next() {
            if !quoted && c == '/' && characters.peek() == Some(&'/') {
                break;
            }
            if c == '"' && last != '\\' && last != '\'' {
                quoted = !quoted;
            } else if !quoted {
                bare.push(c);
            }
            last = c;
        }
        bare.push('\n');
    }
    bare
}

fn under(path: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| match prefix.strip_suffix('/') {
        Some(_) => path.starts_with(prefix),
        None => path == *prefix,
    })
}

/// Names in the dependency sections of a manifest, tests' included only when asked for.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut section = "";
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" || section == "[build-dependencies]" {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if !name.is_empty() && !name.starts_with('#') {
                names.push(name.to_owned());
            }
        }
    }
    names
}

fn import_faults(member: &str, manifest: &str) -> Vec<String> {
    let allowed = OWN_DEPENDENCIES.iter().find(|(name, _)| *name == member).map(|(_, own)| *own);
    let allowed = allowed.unwrap_or_default();
    let mut faults = Vec::new();
    for name in dependencies(manifest) {
        if let Some(own) = name.strip_prefix("hypertide-")
            && !allowed.contains(&own)
        {
            faults.push(format!("{member} may not depend on {own}"));
        }
        let door = DOORS.iter().find(|(foreign, _)| *foreign == name);
        if door.is_some_and(|(_, members)| !members.contains(&member)) {
            faults.push(format!("{member} may not know {name}"));
        }
    }
    faults
}

fn door_faults(path: &str, text: &str) -> Vec<String> {
    let code = bare_code(text);
    let names = |krate: &str| {
        code.match_indices(krate).any(|(at, _)| {
            let before = code.get(..at).and_then(|before| before.chars().next_back());
            let after = code.get(at + krate.len()..).unwrap_or_default();
            before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '.')
                && after.starts_with("::")
        })
    };
    let broken = FILE_DOORS.iter().filter(|(krate, within, doors)| {
        path.starts_with(within) && !under(path, doors) && names(krate)
    });
    broken.map(|(krate, ..)| format!("names {krate}, which has its own place")).collect()
}

fn purity_faults(path: &str, text: &str) -> Vec<String> {
    let tests = path.ends_with("tests.rs") || path.contains("/tests/");
    if !under(path, &PURE) || under(path, &NOT_PURE) || tests {
        return Vec::new();
    }
    let code = bare_code(text);
    let impure = IMPURE.iter().filter(|(word, _)| code.contains(word));
    let impure = impure.map(|(word, meaning)| format!("is pure and says {word:?}: it {meaning}"));
    let iterated = hash_names(&code).into_iter().filter(|name| iterates(&code, name));
    let iterated = iterated.map(|name| format!("is pure and iterates the hash table {name:?}"));
    impure.chain(iterated).collect()
}

/// Names that the code gives to hash tables: `name: HashMap<`, `name = HashMap::`.
fn hash_names(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for kind in ["HashMap", "HashSet"] {
        for (at, _) in code.match_indices(kind) {
            let before = code.get(..at).unwrap_or_default().trim_end_matches(['&', ' ']);
            let before = before.strip_suffix("mut").unwrap_or(before).trim_end_matches(['&', ' ']);
            let Some(before) = before.strip_suffix([':', '=']) else { continue };
            let before = before.trim_end();
            let start =
                before.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
            let name = before.get(start..).unwrap_or_default();
            if !name.is_empty() {
                names.push(name.to_owned());
            }
        }
    }
    names
}

/// Whether the code goes through all of `name`, in whatever order it has.
fn iterates(code: &str, name: &str) -> bool {
    let ways =
        ["iter()", "iter_mut()", "into_iter()", "keys()", "values()", "drain(", "into_values()"];
    ways.iter().any(|way| code.contains(&format!("{name}.{way}")))
        || ["in ", "in &", "in &mut "].iter().any(|way| code.contains(&format!("{way}{name} {{")))
}

fn size_faults(_: &str, text: &str) -> Vec<String> {
    let lines = code_part(text).lines().count();
    let over = lines > FILE_LINES_MAX;
    over.then(|| format!("has {lines} lines of code, at most {FILE_LINES_MAX} may be"))
        .into_iter()
        .collect()
}

fn name_faults(path: &str, _: &str) -> Vec<String> {
    let mut parts = path.split('/').map(|part| part.trim_end_matches(".rs"));
    let empty = parts.find(|part| EMPTY_NAMES.contains(part));
    empty.map(|name| format!("{name:?} does not say what it holds")).into_iter().collect()
}

fn head_faults(_: &str, text: &str) -> Vec<String> {
    let headed = text.starts_with("//!");
    (!headed).then(|| "does not start with what it is (//!)".to_owned()).into_iter().collect()
}

fn unfinished_faults(path: &str, text: &str) -> Vec<String> {
    if path == "cli/tests/tidy.rs" {
        return Vec::new();
    }
    let words = ["#[ignore", "todo!(", "unimplemented!("];
    let found = words.iter().filter(|word| text.contains(**word));
    found.map(|word| format!("holds {word}")).collect()
}

#[test]
fn crates_import_one_way() {
    for (member, _) in OWN_DEPENDENCIES {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml"));
        let faults = import_faults(member, &manifest.expect("every member has a manifest"));
        assert!(faults.is_empty(), "{faults:?}");
    }
    let bad = "[dependencies]\nhypertide-meta.workspace = true\nopenraft = \"1\"\n";
    assert_eq!(import_faults("storage", bad).len(), 2);
    assert_eq!(import_faults("query", bad), ["query may not know openraft"]);
    let tests_only = "[dev-dependencies]\nhypertide-query.workspace = true\n";
    assert!(import_faults("meta", tests_only).is_empty());
}

#[test]
fn foreign_crates_stay_behind_their_doors() {
    judge(door_faults);
    let bad = "//! x\nuse openraft::Raft;\n";
    assert_eq!(door_faults("meta/src/node.rs", bad).len(), 1);
    assert!(door_faults("meta/src/raft/types.rs", bad).is_empty());
    assert_eq!(door_faults("storage/src/rpc.rs", "fn f(t: &redb::Table) {}").len(), 1);
    assert!(door_faults("storage/src/rpc.rs", "// redb::Table\nfn my_redb() {}").is_empty());
}

#[test]
fn pure_files_are_functions_of_their_input() {
    judge(purity_faults);
    let bad = "//! x\nfn now() -> Instant { Instant::now() }\n";
    assert_eq!(purity_faults("meta/src/placement.rs", bad).len(), 1);
    let iterated = "let mut m: HashMap<u8, u8> = HashMap::new();\nfor x in m.keys() {}";
    assert_eq!(purity_faults("query/src/prune.rs", iterated).len(), 1);
    let looked_up = "fn f(m: &HashMap<u8, u8>) { m.get(&1); }";
    assert!(purity_faults("query/src/prune.rs", looked_up).is_empty());
    assert!(purity_faults("meta/src/node.rs", bad).is_empty());
    assert!(purity_faults("proto/src/client.rs", bad).is_empty());
    let tests_only = "//! x\n// async is spoken of\n#[cfg(test)]\nmod tests { use rand::Rng; }";
    assert!(purity_faults("meta/src/placement.rs", tests_only).is_empty());
}

#[test]
fn files_stay_small() {
    judge(size_faults);
    let bad = "//! x\n".repeat(FILE_LINES_MAX + 1);
    assert_eq!(size_faults("a.rs", &bad).len(), 1);
    let tested = format!("//! x\n#[cfg(test)]\nmod tests {{\n{bad}}}");
    assert!(size_faults("a.rs", &tested).is_empty());
}

#[test]
fn names_say_what_files_hold() {
    judge(name_faults);
    assert_eq!(name_faults("meta/src/utils.rs", "").len(), 1);
    assert_eq!(name_faults("meta/src/common/x.rs", "").len(), 1);
    assert!(name_faults("meta/src/commit.rs", "").is_empty());
}

#[test]
fn every_file_has_a_head() {
    judge(head_faults);
    assert_eq!(head_faults("a.rs", "use std::fs;").len(), 1);
}

#[test]
fn nothing_is_left_unfinished() {
    judge(unfinished_faults);
    assert_eq!(unfinished_faults("a.rs", "fn f() { todo!() }\n#[ignore]").len(), 2);
}
