//! Commands of scripts that change tables: `alter t add x=bigint older=5`, `alter t drop x`, `alter t rename x y` …

use goldenscript::Command as Line;
use hypertide_proto::schema::Column;

use super::script::{Answer, Script, columns};
use crate::catalog::{Command, TableChange};

/// The command; `None` when the name is another's.
pub(super) fn command(
    script: &Script,
    name: &str,
    words: &[&str],
    line: &Line,
) -> Answer<Option<Command>> {
    // With one word it is a data node that is altered.
    let ("alter", [table, change @ ..]) = (name, words) else { return Ok(None) };
    if change.is_empty() {
        return Ok(None);
    }
    let mut args = line.consume_args();
    let (older, nullable) = (args.take_key("older"), args.take_key("null") != Some("no"));
    let named = |column: &str| column.to_owned();
    let changes = match change {
        ["add"] => {
            let typed = columns(line)?.columns;
            let add = typed.into_iter().map(|column| TableChange::AddColumn {
                column: Column { older: older.map(str::to_owned), nullable, ..column },
                if_not_exists: false,
            });
            add.collect()
        }
        ["drop", names @ ..] => {
            let drop =
                |name: &&str| TableChange::DropColumn { column: named(name), if_exists: false };
            names.iter().map(drop).collect()
        }
        ["rename", column, to] => {
            vec![TableChange::RenameColumn { column: named(column), to: named(to) }]
        }
        ["name", to] => vec![TableChange::Rename { to: named(to) }],
        ["forbid", column] => {
            vec![TableChange::SetNullable { column: named(column), nullable: false }]
        }
        ["allow", column] => {
            vec![TableChange::SetNullable { column: named(column), nullable: true }]
        }
        ["default", column, text @ ..] => {
            let default = text.first().map(|text| named(text));
            vec![TableChange::SetDefault { column: named(column), default }]
        }
        other => return Err(format!("unknown change {other:?}").into()),
    };
    Ok(Some(Command::AlterTable { table: script.table(table)?, changes }))
}

/// The columns of a table, each with what only chunk stores and the past know of it.
pub(super) fn shown(script: &Script, table: &str) -> Answer {
    let id = script.table(table)?;
    let table = script.kept.catalog.table(id).ok_or("no such table")?;
    let mut out = format!("v{} oldest=v{}\n", table.version, table.oldest);
    for column in &table.columns.columns {
        out.push_str(&format!("{} {}", column.name, column.column_type));
        out.push_str(if column.nullable { "" } else { " not null" });
        for (what, text) in
            [("default", &column.default), ("stored", &column.stored), ("older", &column.older)]
        {
            text.iter().for_each(|text| out.push_str(&format!(" {what}={text}")));
        }
        out.push('\n');
    }
    Ok(out)
}
