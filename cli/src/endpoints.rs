//! `endpoints.json`: where the nodes of a directory are reached, for scripts and other programs.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Name of the file in a node's and in a local cluster's directory.
const FILE_NAME: &str = "endpoints.json";

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Takes SQL, holds the catalog.
    Access,
    /// Holds chunks.
    Data,
}

impl Role {
    /// The name of the n-th node of a local cluster.
    pub(crate) fn node(self, number: impl std::fmt::Display) -> String {
        match self {
            Self::Access => format!("a{number}"),
            Self::Data => format!("d{number}"),
        }
    }

    /// As in the file.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Data => "data",
        }
    }
}

/// A node and its addresses, each `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// `a1`, `d1` and so on in a local cluster.
    pub(crate) name: String,
    /// What it does.
    pub(crate) role: Role,
    /// Process that serves it, or served it last.
    pub(crate) pid: u32,
    /// PostgreSQL; access nodes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pg: Option<String>,
    /// Flight SQL; access nodes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flight: Option<String>,
    /// Internal gRPC.
    pub(crate) rpc: String,
    /// Health and metrics.
    pub(crate) http: String,
    /// Its directory.
    pub(crate) dir: PathBuf,
}

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// Access nodes first.
    pub(crate) nodes: Vec<Node>,
}

impl Endpoints {
    /// Reads the file of `dir`; `None` when there is none.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE_NAME);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        let endpoints = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a list of endpoints", path.display()))?;
        Ok(Some(endpoints))
    }

    /// Replaces the file of `dir`: a reader sees the old or the new content, never a part.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FILE_NAME);
        self.replace(dir, &path).with_context(|| format!("write {}", path.display()))
    }

    fn replace(&self, dir: &Path, path: &Path) -> anyhow::Result<()> {
        let mut fresh = tempfile::NamedTempFile::new_in(dir)?;
        fresh.write_all(&serde_json::to_vec_pretty(self)?)?;
        fresh.write_all(b"\n")?;
        fresh.as_file().sync_all()?;
        fresh.persist(path)?;
        Ok(())
    }
}

/// Makes a directory that only its owner may read, with its parents.
pub(crate) fn make_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("open directory {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_survives_and_a_data_node_has_no_sql() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Endpoints::read(dir.path()).expect("it may be absent"), None);
        let node = Node {
            name: "d1".to_owned(),
            role: Role::Data,
            pid: 7,
            pg: None,
            flight: None,
            rpc: "127.0.0.1:1".to_owned(),
            http: "127.0.0.1:2".to_owned(),
            dir: dir.path().to_owned(),
        };
        let endpoints = Endpoints { nodes: vec![node] };
        endpoints.write(dir.path()).expect("it is writable");
        assert_eq!(Endpoints::read(dir.path()).expect("it is valid"), Some(endpoints));
        let text = fs::read_to_string(dir.path().join(FILE_NAME)).expect("it is there");
        assert!(text.contains("\"role\": \"data\"") && !text.contains("\"pg\""), "{text}");
    }

    #[test]
    fn a_torn_file_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join(FILE_NAME), "{\"nodes\":[").expect("it is writable");
        let error = Endpoints::read(dir.path()).expect_err("it is torn");
        assert!(error.to_string().contains(FILE_NAME), "{error}");
    }
}
