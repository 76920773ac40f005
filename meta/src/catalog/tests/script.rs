//! Runs the golden scripts under `src/testscripts/catalog`.
//!
//! A list is written with slashes (`n1i1/n2i1`), ids as they are displayed. After each command every invariant is
//! checked, and the catalog is rebuilt from its rows and compared.

use std::{error::Error, fmt::Display, path::Path};

use goldenscript::{Argument, Command as Line, Context};
use hypertide_proto::{
    ids::{
        AccessId, Boot, ChunkId, Csn, DiskId, Epoch, Incarnation, NodeId, Rid, TableId, TxnId,
        WriteId,
    },
    schema::{Column, ColumnType, TableSchema},
    time::TimeRange,
};
use test_each_file::test_each_path;

use super::{Kept, alter, replicas};
use crate::catalog::{
    Block, Changes, Chunk, ChunkState, Command, CommitPart, CommitRecord, DataNode, HypertableSpec,
    Joiner, apply::Step,
};

test_each_path! { in "./meta/src/testscripts/catalog" as golden => run_script }

fn run_script(path: &Path) {
    goldenscript::run(&mut Script::default(), path).unwrap();
}

pub(super) type Answer<T = String> = Result<T, Box<dyn Error>>;

#[derive(Default)]
pub(super) struct Script {
    pub(super) kept: Kept,
}

impl goldenscript::Runner for Script {
    type Command = Line;

    fn run(&mut self, line: &Line, context: &Context) -> Answer {
        let words: Vec<&str> = line.args.iter().filter_map(positional).collect();
        match (line.name.as_str(), words.as_slice()) {
            ("time", [at_ms]) => self.kept.turn_clocks(at_ms.parse()?),
            ("clock", [at_ms]) => self.kept.at_ms = at_ms.parse()?,
            ("now", []) => return Ok(self.kept.catalog.time_ms().to_string()),
            ("forge", [chunk]) => return self.forge(chunk, line),
            ("chunk_at", [table, point]) => {
                let (table, point) = (self.table(table)?, coordinates(point)?);
                return show(self.kept.catalog.chunk_at(table, &point));
            }
            ("overlapping", [table, start, end]) => {
                let range = TimeRange::new(start.parse()?, end.parse()?).ok_or("empty range")?;
                return show(self.kept.catalog.chunks_overlapping(self.table(table)?, &range));
            }
            ("fate", [txn]) => {
                let fate = self.kept.catalog.fate(txn_id(txn)?);
                return Ok(fate.map_or_else(|| "open".to_owned(), |fate| fate.to_string()));
            }
            ("show", [what]) => return self.show(what),
            ("columns", [table]) => return alter::shown(self, table),
            (name, words) => {
                let exists = context.tags.contains("if_not_exists");
                let command = match data_definition(self, name, words, (line, exists))? {
                    Some(command) => command,
                    None => match alter::command(self, name, words, line)? {
                        Some(command) => command,
                        None => match replicas::command(self, name, words, line)? {
                            Some(command) => command,
                            None => manipulation(self, name, words, line)?,
                        },
                    },
                };
                return Ok(self.kept.apply(&command)?.to_string());
            }
        }
        Ok(String::new())
    }
}

impl Script {
    pub(super) fn table(&self, name: &str) -> Answer<TableId> {
        let table = self.kept.catalog.table_named("public", name);
        // A table that is not there can be named by its id, to see what the catalog says.
        table.map_or_else(|| id(name, "t").map(TableId), |table| Ok(table.id))
    }

    fn tables(&self, names: &[&str]) -> Answer<Vec<TableId>> {
        names.iter().map(|name| self.table(name)).collect()
    }

    /// Puts a chunk into a state that only later commands can reach.
    fn forge(&mut self, chunk: &str, line: &Line) -> Answer {
        let mut chunk: Chunk =
            self.kept.catalog.chunk(ChunkId(id(chunk, "c")?)).ok_or("no such chunk")?.clone();
        let mut args = line.consume_args();
        match args.take_key("state") {
            Some("sealed") => chunk.state = ChunkState::Sealed,
            Some("damaged") => (chunk.state, chunk.in_sync) = (ChunkState::Damaged, Vec::new()),
            _ => {}
        }
        if let Some(rids) = args.take_key("in_sync") {
            chunk.in_sync = listed(rids, rid)?;
        }
        if let Some(rids) = args.take_key("joining") {
            let (csn, chain) = (chunk.last_csn, chunk.chain);
            let joining = listed(rids, rid)?.into_iter();
            chunk.joining = joining.map(|rid| Joiner { rid, csn, chain }).collect();
        }
        let text = chunk.to_string();
        let mut step = Step { csn: Csn(0), at_ms: 0, changes: Changes::default() };
        self.kept.catalog.put_chunk(chunk, &mut step);
        self.kept.write(&step.changes);
        Ok(text)
    }

    fn show(&self, what: &str) -> Answer {
        let catalog = &self.kept.catalog;
        match what {
            "tables" => show(catalog.tables()),
            "chunks" => show(catalog.chunks.values()),
            "nodes" => show(catalog.data_nodes()),
            "access" => show(catalog.access_nodes()),
            "tails" => show(catalog.tails.iter().map(|(id, tail)| format!("{id} {tail}"))),
            "decided" => show(catalog.decided.keys().filter_map(|txn| catalog.fate(*txn))),
            "ended" => {
                let run = |((access, boot, first), last): (&(AccessId, Boot, u64), &u64)| {
                    format!("{access}{boot} s{first}..=s{last}")
                };
                show(catalog.ended.iter().map(run))
            }
            "writes" => {
                show(catalog.writes.iter().map(|(id, write)| format!("{id} csn={}", write.csn)))
            }
            "orders" => show(catalog.orders()),
            "jobs" => show(catalog.jobs()),
            "states" => {
                let state = |node: &DataNode| format!("{} {}", node.name, catalog.node_state(node));
                show(catalog.data_nodes().map(state))
            }
            "rows" => Ok(format!("{} rows", catalog.rows().count())),
            other => Err(format!("unknown thing to show: {other}").into()),
        }
    }
}

/// Commands on tables and nodes; `None` when the name is another's.
fn data_definition(
    script: &Script,
    name: &str,
    words: &[&str],
    (line, if_not_exists): (&Line, bool),
) -> Answer<Option<Command>> {
    let mut args = line.consume_args();
    Ok(Some(match (name, words) {
        ("access", [access]) => {
            let at = |kind: &str| format!("{access}:{kind}");
            let (rpc, pg, flight, http) = (at("rpc"), at("pg"), at("flight"), at("http"));
            Command::RegisterAccess { id: AccessId(id(access, "a")?), rpc, pg, flight, http }
        }
        ("data", []) => {
            let disk = args.take_key("disk").ok_or("a data node has a disk")?;
            Command::RegisterData {
                rid: args.take_key("rid").map(rid).transpose()?,
                name: args.take_key("name").unwrap_or_default().to_owned(),
                disk: DiskId([disk.parse()?; 16]),
                rpc: args.take_key("rpc").unwrap_or("host:1").to_owned(),
                http: "host:2".to_owned(),
            }
        }
        ("table", [name]) => Command::CreateTable {
            schema: "public".to_owned(),
            name: (*name).to_owned(),
            owner: "ann".to_owned(),
            columns: columns(line)?,
            if_not_exists,
        },
        ("hypertable", [table]) => {
            let table = script.table(table)?;
            Command::CreateHypertable { table, spec: spec(line)?, if_not_exists }
        }
        ("drop", names) => Command::DropTables { tables: script.tables(names)? },
        ("truncate", names) => Command::TruncateTables { tables: script.tables(names)? },
        ("block" | "allow", [node, tables @ ..]) => {
            let table = tables.first().map(|table| script.table(table)).transpose()?;
            let force = args.take_key("force") != Some("false");
            let node = NodeId(id(node, "n")?);
            Command::BlockNewChunks(Block { node, table, block: name == "block", force })
        }
        _ => return Ok(None),
    }))
}

/// Commands on chunks and transactions.
fn manipulation(script: &Script, name: &str, words: &[&str], line: &Line) -> Answer<Command> {
    Ok(match (name, words) {
        ("chunks", [table, points @ ..]) => {
            let points = points.iter().map(|point| coordinates(point)).collect::<Answer<_>>()?;
            Command::EnsureChunks { table: script.table(table)?, points }
        }
        ("drop_chunks", [table, chunks @ ..]) => {
            let chunks = chunks.iter().map(|chunk| Ok(ChunkId(id(chunk, "c")?)));
            let chunks = chunks.collect::<Answer<_>>()?;
            Command::DropChunks { table: script.table(table)?, chunks }
        }
        ("commit", [txn]) => Command::Commit(commit(txn_id(txn)?, line)?),
        ("abort", [txn]) => Command::Abort { txn: txn_id(txn)? },
        ("progress", [from]) => {
            let reports = line.args.iter().filter_map(key_value);
            let report = |(chunk, csn): (&str, &str)| -> Answer<_> {
                Ok((ChunkId(id(chunk, "c")?), Csn(csn.parse()?)))
            };
            Command::Progress {
                rid: rid(from)?,
                applied: reports.map(report).collect::<Answer<_>>()?,
            }
        }
        _ => return Err(format!("unknown command {line}").into()),
    })
}

/// `c1=n1i1/n2i1` is a part with its acknowledgements, keyed at the epoch that `keyed` names.
fn commit(txn: TxnId, line: &Line) -> Answer<CommitRecord> {
    let mut args = line.consume_args();
    let hash: u128 = args.take_key("hash").unwrap_or("9").parse()?;
    let write = args.take_key("write").map(str::parse).transpose()?;
    let rows = args.take_key("rows").unwrap_or("1").parse()?;
    let table_version = args.take_key("version").unwrap_or("2").parse()?;
    let keyed: Option<u64> = args.take_key("keyed").map(str::parse).transpose()?;
    let epoch = Epoch(keyed.unwrap_or_default());
    let mut parts = Vec::new();
    while let Some((chunk, acks)) = args.next_key() {
        let (chunk, acks) = (ChunkId(id(chunk, "c")?), listed(acks, rid)?);
        let keyed = keyed.is_some();
        parts.push(CommitPart { chunk, epoch, acks, hash, rows, table_version, keyed });
    }
    Ok(CommitRecord { txn, write: write.map(|number: u8| (WriteId([number; 16]), hash)), parts })
}

/// The columns among the arguments: `x=bigint`.
pub(super) fn columns(line: &Line) -> Answer<TableSchema> {
    let column = |(name, column_type): (&str, &str)| -> Answer<Column> {
        let column_type = match column_type {
            "timestamptz" => ColumnType::TimestampTz,
            "bigint" => ColumnType::BigInt,
            "text" => ColumnType::Text,
            "double" => ColumnType::Double,
            other => return Err(format!("unknown type {other}").into()),
        };
        Ok(Column::new(name, column_type))
    };
    let options = ["older", "null"];
    let columns = line.args.iter().filter_map(key_value).filter(|(key, _)| !options.contains(key));
    let columns = columns.map(column);
    Ok(TableSchema::of(columns.collect::<Answer<_>>()?))
}

fn spec(line: &Line) -> Answer<HypertableSpec> {
    let mut args = line.consume_args();
    let partitions = args.take_key("partitions").map(str::parse).transpose()?;
    let spec = HypertableSpec {
        distributed: args.take_key("distributed") != Some("no"),
        time_column: args.take_key("time").unwrap_or("time").to_owned(),
        interval: args.take_key("interval").unwrap_or("10").parse()?,
        space: args.take_key("space").map(|column| (column.to_owned(), partitions)),
        replication_factor: args.take_key("rf").unwrap_or("1").parse()?,
        data_nodes: args
            .take_key("nodes")
            .map(|names| names.split('/').filter(|name| !name.is_empty()))
            .map(|names| names.map(str::to_owned).collect()),
        chunk_schema: args.take_key("schema").map(str::to_owned),
        chunk_prefix: args.take_key("prefix").map(str::to_owned),
    };
    args.next_pos();
    args.reject_next()?;
    Ok(spec)
}

fn positional(argument: &Argument) -> Option<&str> {
    match argument {
        Argument::Positional(word) => Some(word),
        _ => None,
    }
}

pub(super) fn key_value(argument: &Argument) -> Option<(&str, &str)> {
    match argument {
        Argument::KeyValue(key, value) => Some((key, value)),
        _ => None,
    }
}

fn show<T: Display>(things: impl IntoIterator<Item = T>) -> Answer {
    let lines: Vec<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    Ok(if lines.is_empty() { "none".to_owned() } else { lines.join("\n") })
}

pub(super) fn listed<T>(text: &str, parse: impl Fn(&str) -> Answer<T>) -> Answer<Vec<T>> {
    text.split('/').filter(|item| !item.is_empty()).map(parse).collect()
}

fn coordinates(text: &str) -> Answer<Vec<i64>> {
    listed(text, |number| Ok(number.parse()?))
}

pub(super) fn id(text: &str, letter: &str) -> Answer<u64> {
    let number = text.strip_prefix(letter).ok_or_else(|| format!("no id: {text}"))?;
    Ok(number.parse()?)
}

pub(super) fn rid(text: &str) -> Answer<Rid> {
    let (node, incarnation) = text.split_once('i').ok_or_else(|| format!("no rid: {text}"))?;
    Ok(Rid { node: NodeId(id(node, "n")?), incarnation: Incarnation(incarnation.parse()?) })
}

fn txn_id(text: &str) -> Answer<TxnId> {
    let (access, rest) = text.split_once('b').ok_or_else(|| format!("no txn: {text}"))?;
    let (boot, seq) = rest.split_once('s').ok_or_else(|| format!("no txn: {text}"))?;
    Ok(TxnId { access: AccessId(id(access, "a")?), boot: Boot(boot.parse()?), seq: seq.parse()? })
}
