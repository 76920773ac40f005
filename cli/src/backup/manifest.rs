//! `manifest.json`: what a backup is of, and every file of it.
//!
//! ```text
//! DIR/manifest.json                   written last
//!     schema.sql                      makes the tables again
//!     data/<table>/<part>-<file>.arrow.zst
//! ```
//!
//! The manifest holds a checksum of itself, over its content as compact JSON, so that a number that was changed in it is
//! found like one in a file.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::content::Content;

/// Name of the file.
pub(super) const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file that makes the tables again.
pub(super) const SCHEMA_FILE: &str = "schema.sql";
/// The one format there is.
const FORMAT: u32 = 1;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Version of all that lies in the directory.
    pub(super) format: u32,
    /// Version of the program that wrote it.
    pub(super) version: String,
    /// The cluster, in hexadecimal.
    pub(super) cluster: String,
    /// Entry of the log up to which it has everything, and nothing after it: what `hypertide_snapshot()` told.
    pub(super) snapshot: u64,
    /// When it was begun.
    pub(super) created_at: String,
    /// The statements that make the tables again.
    pub(super) schema: Schema,
    /// The tables.
    pub(super) tables: Vec<Table>,
}

/// The file of statements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Schema {
    /// Where it is.
    #[serde(flatten)]
    pub(super) file: Stored,
    /// Statements to run before there are rows; the rest is for after.
    pub(super) statements_before_rows: usize,
}

/// A table and its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    /// Schema of its name.
    pub(super) schema: String,
    /// Its name.
    pub(super) name: String,
    /// Its columns in their order.
    pub(super) columns: Vec<Column>,
    /// Rows in all.
    pub(super) rows: u64,
    /// Hash of all rows in whatever order, in hexadecimal.
    pub(super) hash: String,
    /// Where the rows are.
    pub(super) files: Vec<DataFile>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Column {
    /// Its name.
    pub(super) name: String,
    /// Its SQL type.
    #[serde(rename = "type")]
    pub(super) column_type: String,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DataFile {
    /// Where it is.
    #[serde(flatten)]
    pub(super) file: Stored,
    /// Rows in it.
    pub(super) rows: u64,
}

/// A file of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Path within the directory.
    pub(super) path: String,
    /// Its size.
    pub(super) bytes: u64,
    /// xxh3-128 of its bytes, in hexadecimal.
    pub(super) checksum: String,
}

/// The manifest as it lies in the file.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    checksum: String,
    backup: T,
}

/// A hash as the manifest has it.
pub(super) fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

impl Table {
    /// What its rows come to.
    pub(super) fn agrees(&self, content: Content) -> bool {
        self.rows == content.rows && self.hash == hex(content.hash)
    }

    /// Its name as people write it.
    pub(super) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl Manifest {
    /// An empty one of this format and program.
    pub(super) fn new(cluster: String, snapshot: u64, schema: Schema) -> Self {
        let created_at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, version, cluster, snapshot, created_at, schema, tables: Vec::new() }
    }

    /// The bytes of the file.
    pub(super) fn to_bytes(&self) -> anyhow::Result<Vec<u8>> {
        let checksum = hex(xxh3_128(&serde_json::to_vec(self)?));
        let mut bytes = serde_json::to_vec_pretty(&Sealed { checksum, backup: self })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads the manifest of a directory.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = fs::read(&path)
            .with_context(|| format!("{} holds no backup: read {MANIFEST_FILE}", dir.display()))?;
        Self::from_bytes(&bytes).with_context(|| path.display().to_string())
    }

    fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        // Another format may look otherwise, so that it is asked for first.
        let sealed: Sealed<serde_json::Value> =
            serde_json::from_slice(bytes).context("it is not the manifest of a backup")?;
        let format = sealed.backup.get("format").and_then(serde_json::Value::as_u64);
        if format != Some(FORMAT.into()) {
            let found = format.map_or("none".to_owned(), |format| format.to_string());
            let written = sealed.backup.get("version").and_then(|version| version.as_str());
            let written = written.unwrap_or("of unknown version");
            bail!(
                "the backup has format {found}, written by hypertide {written}; this program reads format {FORMAT}"
            );
        }
        let manifest: Self =
            serde_json::from_value(sealed.backup).context("it is not the manifest of a backup")?;
        let checksum = hex(xxh3_128(&serde_json::to_vec(&manifest)?));
        if checksum != sealed.checksum {
            bail!(
                "the manifest was changed: its checksum is {checksum}, it says {}",
                sealed.checksum
            );
        }
        Ok(manifest)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A manifest of one table without rows.
    pub(in super::super) fn manifest() -> Manifest {
        let file = Stored { path: SCHEMA_FILE.to_owned(), bytes: 0, checksum: hex(xxh3_128(b"")) };
        let mut manifest =
            Manifest::new("00ff".to_owned(), 17, Schema { file, statements_before_rows: 0 });
        let column = Column { name: "A \"b\"".to_owned(), column_type: "bigint".to_owned() };
        manifest.tables.push(Table {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![column],
            rows: 0,
            hash: hex(0),
            files: Vec::new(),
        });
        manifest
    }

    fn refused(bytes: &[u8]) -> String {
        format!("{:#}", Manifest::from_bytes(bytes).expect_err("it is not to be read"))
    }

    #[test]
    fn it_survives_its_file() {
        let manifest = manifest();
        let bytes = manifest.to_bytes().expect("it can be written");
        assert_eq!(Manifest::from_bytes(&bytes).expect("it is whole"), manifest);
    }

    #[test]
    fn a_changed_number_is_found() {
        let bytes = manifest().to_bytes().expect("it can be written");
        let text = String::from_utf8(bytes).expect("it is text");
        for (old, new) in [("\"snapshot\": 17", "\"snapshot\": 18"), ("\"rows\": 0", "\"rows\": 1")]
        {
            assert!(text.contains(old), "{text}");
            let error = refused(text.replacen(old, new, 1).as_bytes());
            assert!(error.contains("was changed"), "{error}");
        }
        let torn = text.get(..text.len() / 2).expect("it is long");
        assert!(refused(torn.as_bytes()).contains("not the manifest"), "{}", refused(b""));
    }

    #[test]
    fn another_format_is_named() {
        let later = r#"{"checksum":"x","backup":{"format":2,"version":"9.9","what":"else"}}"#;
        let error = refused(later.as_bytes());
        assert!(error.contains("format 2") && error.contains("9.9"), "{error}");
        let none = refused(br#"{"checksum":"x","backup":{}}"#);
        assert!(none.contains("format none"), "{none}");
    }
}
