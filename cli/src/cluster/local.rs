//! The directory of a local cluster: its nodes, and how each is started.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail};

use crate::endpoints::{Endpoints, Node, Role, make_dir};

/// Name of a node's log in its directory.
const LOG_NAME: &str = "log";
/// Lines of a log that are shown when a node does not start.
const TAIL_LINES: usize = 20;

/// The directory of a local cluster.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// Absolute path: nodes are recognised by it.
    pub(crate) dir: PathBuf,
}

impl Local {
    /// Opens the directory of a cluster that was started before.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let opened = dir.canonicalize();
        let local = Self { dir: opened.with_context(|| format!("open {}", dir.display()))? };
        if local.nodes()?.is_empty() {
            bail!("{} holds no cluster", dir.display());
        }
        Ok(local)
    }

    /// Opens the directory, or makes it.
    pub(crate) fn open_or_make(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { dir: make_dir(dir)? })
    }

    /// Every node that has been started here, access nodes first, each in the order of its number. One whose directory
    /// was lost is known from the cluster's list.
    pub(crate) fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        let mut found = Vec::new();
        for entry in
            fs::read_dir(&self.dir).with_context(|| format!("read {}", self.dir.display()))?
        {
            let entry = entry?;
            let name = entry.file_name();
            let Some((role, number)) = name.to_str().and_then(parse_name) else { continue };
            let endpoints = Endpoints::read(&entry.path())?;
            if let Some(node) = endpoints.and_then(|mut endpoints| endpoints.nodes.pop()) {
                found.push(((role, number), node));
            }
        }
        let listed = match found.is_empty() {
            // The list is that of `dev`, whose nodes are one process.
            true => Vec::new(),
            false => Endpoints::read(&self.dir)?.unwrap_or_default().nodes,
        };
        for node in listed {
            let Some(key) = parse_name(&node.name) else { continue };
            if found.iter().all(|(other, _)| *other != key) {
                found.push((key, node));
            }
        }
        found.sort_by_key(|(key, _)| *key);
        Ok(found.into_iter().map(|(_, node)| node).collect())
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<Node> {
        let nodes = self.nodes()?;
        let known: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let unknown = format!("there is no node {name:?}: this cluster has {}", known.join(", "));
        nodes.iter().find(|node| node.name == name).cloned().context(unknown)
    }

    /// The node's own `endpoints.json`, once its process has bound its ports.
    pub(crate) fn started(&self, name: &str) -> anyhow::Result<Option<Node>> {
        let endpoints = Endpoints::read(&self.dir.join(name))?;
        Ok(endpoints.and_then(|mut endpoints| endpoints.nodes.pop()))
    }

    /// Takes a node that was removed from the cluster off the list. Its directory is kept under another name.
    pub(crate) fn retire(&self, name: &str) -> anyhow::Result<PathBuf> {
        let from = self.dir.join(name);
        let numbered = (1u64..).map(|number| self.dir.join(format!("{name}.removed-{number}")));
        let mut free = numbered.filter(|path| !path.exists());
        let to = free.next().context("there are fewer directories than numbers")?;
        fs::rename(&from, &to).with_context(|| format!("rename {}", from.display()))?;
        let mut nodes = self.nodes()?;
        nodes.retain(|node| node.name != name);
        Endpoints { nodes }.write(&self.dir)?;
        Ok(to)
    }

    /// Removes the directory of a node that never belonged to the cluster.
    pub(crate) fn forget(&self, name: &str) -> anyhow::Result<()> {
        let dir = self.dir.join(name);
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))
    }

    /// The first name of this role that no node has.
    pub(crate) fn free_name(&self, role: Role) -> anyhow::Result<String> {
        let nodes = self.nodes()?;
        let mut names = (1u64..).map(|number| role.node(number));
        let free = names.find(|name| nodes.iter().all(|node| node.name != *name));
        free.context("there are fewer nodes than numbers")
    }

    /// The name of the next access node: the number of one that was removed is never given again.
    pub(crate) fn next_access(&self) -> anyhow::Result<String> {
        let mut last = 0;
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let name = name.to_str().map(|name| name.split('.').next().unwrap_or(name));
            if let Some((Role::Access, number)) = name.and_then(parse_name) {
                last = last.max(number);
            }
        }
        Ok(format!("a{}", last + 1))
    }

    /// Writes the cluster's `endpoints.json`.
    pub(crate) fn publish(&self) -> anyhow::Result<()> {
        Endpoints { nodes: self.nodes()? }.write(&self.dir)
    }

    /// Starts a node's process, detached from this one, with its log in its directory.
    pub(crate) fn spawn(&self, launch: &Launch) -> anyhow::Result<Child> {
        let dir = make_dir(&self.dir.join(&launch.name))?;
        let log = File::options().create(true).append(true).open(dir.join(LOG_NAME));
        let log = log.with_context(|| format!("open the log of {}", launch.name))?;
        let binary = std::env::current_exe().context("find this binary")?;
        Command::new(binary)
            .args(launch.arguments(&dir)?)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            // Out of the terminal's reach: Ctrl-C is for this process only.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", launch.name))
    }

    /// The end of a node's log.
    pub(crate) fn log_tail(&self, name: &str) -> String {
        let log = fs::read(self.dir.join(name).join(LOG_NAME)).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
        tail.join("\n")
    }
}

/// Role and number of `a1`, `d12` and so on.
pub(crate) fn parse_name(name: &str) -> Option<(Role, u64)> {
    let (role, number) = match name.split_at_checked(1)? {
        ("a", number) => (Role::Access, number),
        ("d", number) => (Role::Data, number),
        _ => return None,
    };
    let number = number.parse().ok().filter(|number| *number > 0)?;
    Some((role, number))
}

/// How to start a node.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// `a1` or `d1` and so on.
    pub(crate) name: String,
    /// PostgreSQL, access nodes only.
    pub(crate) pg: String,
    /// Flight SQL, access nodes only.
    pub(crate) flight: String,
    /// Internal gRPC.
    pub(crate) rpc: String,
    /// HTTP.
    pub(crate) http: String,
    /// Internal gRPC addresses of the access nodes, for a data node.
    pub(crate) access: Vec<String>,
}

impl Launch {
    /// As the node was started before, at the same ports.
    pub(crate) fn again(node: &Node, access: Vec<String>) -> Self {
        Self {
            name: node.name.clone(),
            pg: node.pg.clone().unwrap_or_default(),
            flight: node.flight.clone().unwrap_or_default(),
            rpc: node.rpc.clone(),
            http: node.http.clone(),
            access,
        }
    }

    fn arguments(&self, dir: &Path) -> anyhow::Result<Vec<OsString>> {
        let (role, number) = parse_name(&self.name).context("the node's name has no role")?;
        let mut arguments: Vec<OsString> = vec![role.name().into(), "--dir".into(), dir.into()];
        let mut add = |flag: &str, value: &str| arguments.extend([flag.into(), value.into()]);
        add("--rpc", &self.rpc);
        add("--http", &self.http);
        match role {
            Role::Access => {
                add("--id", &number.to_string());
                add("--pg", &self.pg);
                add("--flight", &self.flight);
            }
            Role::Data => {
                add("--name", &self.name);
                add("--access", &self.access.join(","));
            }
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_role_and_number() {
        assert_eq!(parse_name("a1"), Some((Role::Access, 1)));
        assert_eq!(parse_name("d12"), Some((Role::Data, 12)));
        for wrong in ["", "a", "a0", "x1", "d-1", "data", "äx"] {
            assert_eq!(parse_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_node_whose_directory_was_lost_is_known_and_a_removed_one_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = |name: &str| Node {
            name: name.to_owned(),
            role: Role::Data,
            pid: 1,
            pg: None,
            flight: None,
            rpc: format!("{name}:1"),
            http: String::new(),
            dir: dir.path().join(name),
        };
        for name in ["d1", "d2", "d3"] {
            fs::create_dir(dir.path().join(name)).expect("it is new");
            let endpoints = Endpoints { nodes: vec![node(name)] };
            endpoints.write(&dir.path().join(name)).expect("it is writable");
        }
        let local = Local::open(dir.path()).expect("it has nodes");
        local.publish().expect("it is writable");
        fs::remove_dir_all(dir.path().join("d2")).expect("it is there");
        let names = || -> Vec<String> {
            local.nodes().expect("they are valid").into_iter().map(|node| node.name).collect()
        };
        assert_eq!(names(), ["d1", "d2", "d3"]);
        assert_eq!(local.node("d2").expect("it is known").rpc, "d2:1");
        local.retire("d3").expect("it can be renamed");
        local.publish().expect("it is writable");
        assert_eq!(names(), ["d1", "d2"]);
        assert_eq!(local.free_name(Role::Data).expect("there is one"), "d3");
    }

    #[test]
    fn a_directory_without_nodes_is_no_cluster() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = Local::open(dir.path()).expect_err("it is empty");
        assert!(error.to_string().ends_with("holds no cluster"), "{error}");
    }

    #[test]
    fn nodes_come_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["d10", "d2", "a1", "other"] {
            let node = Node {
                name: name.to_owned(),
                role: Role::Data,
                pid: 1,
                pg: None,
                flight: None,
                rpc: String::new(),
                http: String::new(),
                dir: dir.path().join(name),
            };
            fs::create_dir(&node.dir).expect("it is new");
            Endpoints { nodes: vec![node.clone()] }.write(&node.dir).expect("it is writable");
        }
        let local = Local::open(dir.path()).expect("it has nodes");
        let names: Vec<String> =
            local.nodes().expect("they are valid").into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["a1", "d2", "d10"]);
        let error = local.node("d3").expect_err("there is none").to_string();
        assert!(error.contains("a1, d2, d10"), "{error}");
    }
}
