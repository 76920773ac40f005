//! `hypertide backup verify`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use indicatif::{HumanBytes, HumanCount};

use super::{
    content::Content,
    data_file::{check_bytes, read},
    manifest::{DataFile, Manifest, Table, hex},
};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the backup.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Verifies the backup.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let manifest = verify(&args.dir).await?;
    let rows = manifest.tables.iter().map(|table| table.rows).sum();
    let files = manifest.tables.iter().flat_map(|table| &table.files);
    let bytes = files.map(|file| file.file.bytes).sum();
    say!(
        "{}: {} tables, {} rows, {} at snapshot {}, whole, verified in {:.1} s",
        args.dir.display(),
        manifest.tables.len(),
        HumanCount(rows),
        HumanBytes(bytes),
        manifest.snapshot,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Reads all of a backup; tells everything that is wrong with it on standard error, and fails when something is.
pub(super) async fn verify(dir: &Path) -> anyhow::Result<Manifest> {
    let manifest = Manifest::read(dir)?;
    let problems = problems(dir, &manifest).await?;
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    match problems.len() {
        0 => Ok(manifest),
        1 => bail!("{} is damaged: one thing is wrong", dir.display()),
        many => bail!("{} is damaged: {many} things are wrong", dir.display()),
    }
}

/// All that is wrong.
async fn problems(dir: &Path, manifest: &Manifest) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let schema = &manifest.schema.file;
    if let Err(error) = check_bytes(dir, schema) {
        problems.push(format!("{}: {error:#}", schema.path));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for table in &manifest.tables {
        let columns = Arc::new(table.columns.clone());
        let reading = table.files.iter().map(|file| {
            let (dir, file, columns) = (dir.to_owned(), file.clone(), Arc::clone(&columns));
            tokio::task::spawn_blocking(move || read_checked(&dir, &file, &columns))
        });
        // As many at once as there are cores: a task begins when it is made.
        let mut reading = stream::iter(reading).buffered(cores);
        let (mut content, mut whole) = (Content::default(), true);
        while let Some(read) = reading.next().await {
            match read.context("a reader ended unexpectedly")? {
                Ok(part) => content.merge(part),
                Err(problem) => {
                    whole = false;
                    problems.push(problem);
                }
            }
        }
        if whole && !table.agrees(content) {
            problems.push(difference(table, content));
        }
    }
    Ok(problems)
}

fn read_checked(
    dir: &Path,
    file: &DataFile,
    columns: &[super::manifest::Column],
) -> Result<Content, String> {
    let read = check_bytes(dir, &file.file).and_then(|()| read(dir, file, columns));
    read.map_err(|error| format!("{}: {error:#}", file.file.path))
}

/// How rows differ from what the manifest says.
pub(super) fn difference(table: &Table, found: Content) -> String {
    let (name, rows, hash) = (table.shown(), table.rows, &table.hash);
    let (found_rows, found_hash) = (found.rows, hex(found.hash));
    format!(
        "table {name}: {found_rows} rows with hash {found_hash}, the manifest says {rows} with {hash}"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};

    use super::*;
    use crate::backup::{
        data_file::{Writer, columns},
        draft::Draft,
        manifest::{Column, Schema},
    };

    type Alter = fn(&mut Manifest);

    /// A backup of one table of two files.
    async fn backup(root: &Path, alter: Alter) -> PathBuf {
        let target = root.join("backup");
        let draft = Draft::begin(&target).expect("nothing is there");
        let dir = draft.table_dir(1).expect("it can be made");
        let (mut content, mut files) = (Content::default(), Vec::new());
        let mut names = Vec::new();
        for part in 0..2 {
            let numbers: ArrayRef =
                Arc::new(Int64Array::from_iter_values(part * 10..part * 10 + 9));
            let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("x"); 9]));
            let batch = RecordBatch::try_from_iter([("n", numbers), ("t", texts)]);
            let batch = batch.expect("they are as long");
            names = columns(&batch.schema()).expect("they have SQL types");
            let place = (draft.dir().to_owned(), format!("{dir}/{part}"));
            let mut writer = Writer::new(batch.schema(), Some(place));
            writer.add(&batch).expect("it can be written");
            let written = writer.finish().expect("it can be written");
            content.merge(written.content);
            files.extend(written.files);
        }
        let file = draft.write_schema("CREATE TABLE t (n bigint, t text);").expect("it is written");
        let schema = Schema { file, statements_before_rows: 1 };
        let mut manifest = Manifest::new("ff".to_owned(), 3, schema);
        let (schema, name, hash) = ("public".to_owned(), "t".to_owned(), hex(content.hash));
        manifest.tables.push(Table {
            schema,
            name,
            columns: names,
            rows: content.rows,
            hash,
            files,
        });
        alter(&mut manifest);
        draft.publish(&manifest).expect("it can be renamed");
        target
    }

    async fn found(dir: &Path) -> Vec<String> {
        let manifest = Manifest::read(dir).expect("it is whole");
        problems(dir, &manifest).await.expect("the files can be looked at")
    }

    #[tokio::test]
    async fn a_whole_backup_has_no_problem() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = backup(root.path(), |_| {}).await;
        assert_eq!(found(&dir).await, Vec::<String>::new());
        assert_eq!(verify(&dir).await.expect("it is whole").tables.len(), 1);
    }

    #[tokio::test]
    async fn damaged_files_are_named() {
        let (first, second) = ("data/0001/0-001.arrow.zst", "data/0001/1-001.arrow.zst");
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = backup(root.path(), |_| {}).await;
        let whole = fs::read(dir.join(first)).expect("it is there");
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(dir.join(first), flipped).expect("it can be written");
            let found = found(&dir).await;
            assert!(found.len() == 1 && found[0].starts_with(first), "{found:?}");
            assert!(found[0].contains("checksum"), "{found:?}");
        }
        fs::write(dir.join(first), &whole[..whole.len() - 1]).expect("it can be written");
        fs::remove_file(dir.join(second)).expect("it is there");
        fs::write(dir.join("schema.sql"), "DROP TABLE t;").expect("it can be written");
        let found = found(&dir).await;
        assert_eq!(found.len(), 3, "{found:?}");
        for (name, what) in [("schema.sql", "bytes"), (first, "bytes"), (second, "open it")] {
            let named = found.iter().find(|problem| problem.starts_with(name));
            assert!(named.is_some_and(|problem| problem.contains(what)), "{found:?}");
        }
        assert!(verify(&dir).await.is_err());
    }

    #[tokio::test]
    async fn rows_are_counted_and_hashed() {
        let one_more = |manifest: &mut Manifest| manifest.tables[0].files[1].rows += 1;
        let lost = |manifest: &mut Manifest| drop(manifest.tables[0].files.pop());
        let twice = |manifest: &mut Manifest| {
            let file = manifest.tables[0].files[0].clone();
            manifest.tables[0].files[1] = file;
        };
        let renamed = |manifest: &mut Manifest| {
            let column_type = "bigint".to_owned();
            manifest.tables[0].columns[1] = Column { name: "t".to_owned(), column_type };
        };
        let cases: [(Alter, &str); 4] = [
            (one_more, "it has 9 rows, the manifest says 10"),
            (lost, "table public.t: 9 rows"),
            (twice, "table public.t: 18 rows with hash"),
            (renamed, "its columns are not those of the table"),
        ];
        for (alter, expected) in cases {
            let root = tempfile::tempdir().expect("a temporary directory");
            let dir = backup(root.path(), alter).await;
            let found = found(&dir).await;
            assert!(found.iter().any(|problem| problem.contains(expected)), "{found:?}");
        }
    }
}
