//! DROP TABLE and TRUNCATE.

use datafusion::sql::sqlparser::ast::{ObjectName, Truncate};
use hypertide_meta::catalog::{Command, Outcome};
use hypertide_proto::ids::TableId;

use super::{chunks::tell_dropped, parse::table_name, table::find};
use crate::{Error, Reply, Session};

/// Runs DROP TABLE: all of the tables, or none.
pub(crate) async fn drop_tables(
    session: &mut Session,
    names: &[ObjectName],
    if_exists: bool,
) -> Result<Reply, Error> {
    let tables = find_all(session, names, if_exists, "table").await?;
    if !tables.is_empty() {
        let outcome = session.propose(Command::DropTables { tables }).await?;
        if let Outcome::Dropped(chunks) = outcome {
            tell_dropped(session, chunks);
        }
    }
    Ok(Reply::Done("DROP TABLE".into()))
}

/// Runs TRUNCATE.
pub(crate) async fn truncate(session: &mut Session, truncate: &Truncate) -> Result<Reply, Error> {
    let names: Vec<ObjectName> =
        truncate.table_names.iter().map(|target| target.name.clone()).collect();
    let tables = find_all(session, &names, truncate.if_exists, "relation").await?;
    if let Outcome::Dropped(chunks) = session.propose(Command::TruncateTables { tables }).await? {
        tell_dropped(session, chunks);
    }
    Ok(Reply::Done("TRUNCATE TABLE".into()))
}

async fn find_all(
    session: &mut Session,
    names: &[ObjectName],
    if_exists: bool,
    what: &str,
) -> Result<Vec<TableId>, Error> {
    let snapshot = session.snapshot().await?;
    let path = session.settings.get("search_path").unwrap_or_default().to_owned();
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        let (_, shown) = table_name(name)?;
        match find(&snapshot.image, name, &path) {
            Ok(table) if !tables.contains(&table.id) => tables.push(table.id),
            Ok(_) => {}
            Err(error) if error.state.0 != "42P01" => return Err(error),
            Err(_) if if_exists => {
                session.notice(
                    "NOTICE",
                    "00000",
                    format_args!("table \"{shown}\" does not exist, skipping"),
                );
            }
            Err(_) => {
                return Err(Error::of("42P01", format_args!("{what} \"{shown}\" does not exist")));
            }
        }
    }
    Ok(tables)
}
