//! Script commands on replicas, data nodes and what operators ask for.

use goldenscript::Command as Line;
use hypertide_proto::ids::{ChunkId, Csn, DiskId, Epoch, JobId, Rid};

use super::script::{Answer, Script, id, key_value, listed, rid};
use crate::catalog::{
    Command, Compression, Detach, Health, Held, Order, OrderBy, Policy, Rebalancing, RowKey,
    Schedule, Span,
};

fn chunk(text: &str) -> Answer<ChunkId> {
    id(text, "c").map(ChunkId)
}

impl Script {
    /// What a replica holds: the chunk's last commit, or the place that was noted when `at` joined.
    fn held(&self, text: &str, joined: Option<Rid>) -> Answer<Held> {
        let chunk = self.kept.catalog.chunk(chunk(text)?).ok_or("no such chunk")?;
        let at = joined.and_then(|rid| chunk.joining.iter().find(|joiner| joiner.rid == rid));
        let (csn, chain) = at.map_or((chunk.last_csn, chunk.chain), |at| (at.csn, at.chain));
        Ok(Held { chunk: chunk.id, csn, chain })
    }

    /// What a disk says it holds: chunks to their last commit, and `chunk=csn` for what is not the truth.
    fn said(&self, chunks: &[&str], line: &Line) -> Answer<Vec<Held>> {
        let mut held: Vec<Held> =
            chunks.iter().map(|text| self.held(text, None)).collect::<Answer<_>>()?;
        let others = line.args.iter().filter_map(key_value).filter(|(key, _)| *key != "disk");
        for (text, csn) in others {
            held.push(Held { csn: Csn(csn.parse()?), ..self.held(text, None)? });
        }
        Ok(held)
    }
}

/// The command of a line; `None` when its name is another's.
pub(super) fn command(
    script: &Script,
    name: &str,
    words: &[&str],
    line: &Line,
) -> Answer<Option<Command>> {
    let mut args = line.consume_args();
    Ok(Some(match (name, words) {
        ("shrink", [from, chunks @ ..]) => {
            let chunks = chunks.iter().map(|text| chunk(text)).collect::<Answer<_>>()?;
            Command::Shrink { rid: rid(from)?, chunks }
        }
        ("return", [from, chunks @ ..]) => {
            Command::Return { rid: rid(from)?, held: script.said(chunks, line)? }
        }
        ("start_join", [text, from]) => Command::StartJoin { chunk: chunk(text)?, rid: rid(from)? },
        ("drop_join", [text, from]) => Command::DropJoin { chunk: chunk(text)?, rid: rid(from)? },
        ("finish_join", [text, from]) => {
            let rid = rid(from)?;
            let mut held = script.held(text, Some(rid))?;
            held.chain ^= args.take_key("flip").map_or(Ok(0), str::parse::<u128>)?;
            Command::FinishJoin { rid, held }
        }
        ("remove_replica", [text, from]) => {
            Command::RemoveReplica { chunk: chunk(text)?, rid: rid(from)? }
        }
        ("accept_loss", [text, from]) => {
            let mut held = script.held(text, None)?;
            let csn = args.take_key("csn").map(str::parse).transpose()?;
            held.csn = csn.map_or(held.csn, Csn);
            let rows = args.take_key("rows").map_or(Ok(0), str::parse)?;
            Command::AcceptLoss { rid: rid(from)?, held, rows }
        }
        ("seal", [text, epoch]) => {
            Command::Seal { chunk: chunk(text)?, epoch: Epoch(id(epoch, "e")?) }
        }
        ("reset", [from, chunks @ ..]) => {
            let disk = args.take_key("disk").ok_or("a disk")?;
            let held = script.said(chunks, line)?;
            Command::NodeReset { rid: rid(from)?, disk: DiskId([disk.parse()?; 16]), held }
        }
        ("health", [from, health]) => {
            let health = match *health {
                "up" => Health::Up,
                "suspect" => Health::Suspect,
                _ => Health::Down,
            };
            Command::SetHealth { rid: rid(from)?, health }
        }
        _ => return wish(script, name, words, line),
    }))
}

/// What operators ask for.
fn wish(script: &Script, name: &str, words: &[&str], line: &Line) -> Answer<Option<Command>> {
    let mut args = line.consume_args();
    let flag = |name: &str| words.contains(&name);
    let repartition = !flag("keep_partitions");
    let how = Detach { if_attached: flag("if_attached"), force: flag("force"), repartition };
    Ok(Some(match (name, words) {
        ("attach", [node, table, ..]) => Command::AttachDataNode {
            node: (*node).to_owned(),
            table: script.table(table)?,
            if_not_attached: flag("if_not_attached"),
            repartition,
        },
        ("detach", [node, ..]) => {
            let table = args.take_key("table").map(|name| script.table(name)).transpose()?;
            Command::DetachDataNode { node: (*node).to_owned(), table, how }
        }
        ("delete", [node, ..]) => {
            let if_exists = flag("if_exists");
            Command::DeleteDataNode { node: (*node).to_owned(), if_exists, how }
        }
        ("drain", [node]) => Command::SetDraining { node: (*node).to_owned(), draining: true },
        ("undrain", [node]) => Command::SetDraining { node: (*node).to_owned(), draining: false },
        ("alter", [node]) => Command::AlterDataNode {
            node: (*node).to_owned(),
            rpc: args.take_key("rpc").map(str::to_owned),
            available: args.take_key("available").map(|word| word == "yes"),
        },
        ("factor", [table, factor]) => {
            Command::SetReplicationFactor { table: script.table(table)?, factor: factor.parse()? }
        }
        ("min_in_sync", [table, replicas]) => {
            Command::SetMinInSync { table: script.table(table)?, replicas: replicas.parse()? }
        }
        ("compression", [table]) => {
            let segment_by = args.take_key("segment_by").map(str::to_owned);
            let order_by = args.take_key("order_by").map(str::to_owned);
            let order = |column| OrderBy { column, descending: true, nulls_first: false };
            let compression = args.take_key("off").is_none().then(|| Compression {
                segment_by: segment_by.into_iter().collect(),
                order_by: order_by.into_iter().map(order).collect(),
                chunk_interval: None,
            });
            Command::SetCompression { table: script.table(table)?, compression }
        }
        ("job", [table, kind, micros]) => {
            let after = Span { micros: micros.parse()?, ..Span::default() };
            let policy = match *kind {
                "retention" => Policy::Retention { drop_after: after },
                _ => Policy::Compression { compress_after: after },
            };
            let schedule = Schedule { every_ms: 100_000, from_ms: None };
            let (table, owner) = (script.table(table)?, "ann".to_owned());
            Command::AddJob { table, owner, policy, schedule, if_not_exists: false }
        }
        ("remove", [job]) => Command::RemoveJob { job: JobId(id(job, "j")?) },
        ("run", [job]) => {
            let at_once = args.take_key("now").is_some();
            Command::RunJob { job: JobId(id(job, "j")?), at_once }
        }
        ("compressed", [text, before, after]) => {
            let held = script.held(text, None)?;
            let bytes = (before.parse()?, after.parse()?);
            Command::SetChunkCompressed { chunk: held.chunk, bytes, csn: held.csn }
        }
        ("compress" | "decompress", chunks) => Command::AskCompression {
            chunks: chunks.iter().map(|text| chunk(text)).collect::<Answer<_>>()?,
            compress: name == "compress",
        },
        _ => return order(name, words, line),
    }))
}

/// Orders, clocks and access nodes.
fn order(name: &str, words: &[&str], line: &Line) -> Answer<Option<Command>> {
    let mut args = line.consume_args();
    Ok(Some(match (name, words) {
        ("order", [operation, text, target]) => Command::OrderCopy(Order {
            operation: (*operation).to_owned(),
            chunk: chunk(text)?,
            target: listed(target, |text| Ok(rid(text)?.node))?.remove(0),
            source: args.take_key("from").map(rid).transpose()?.map(|rid| rid.node),
            at_ms: 0,
        }),
        ("cancel", [operation]) => Command::CancelOrder { operation: (*operation).to_owned() },
        ("rebalancing", [enabled]) => Command::SetRebalancing(Rebalancing {
            enabled: *enabled == "on",
            ..Rebalancing::default()
        }),
        ("retire", [access]) => {
            Command::RemoveAccess { id: hypertide_proto::ids::AccessId(id(access, "a")?) }
        }
        ("told", [access, at_ms]) => Command::AdvanceTime {
            access: hypertide_proto::ids::AccessId(id(access, "a")?),
            at_ms: at_ms.parse()?,
        },
        _ => return Ok(None),
    }))
}

/// Each kind of row has a key of its own, so that a later kind cannot take the place of an earlier.
#[test]
fn row_keys_are_pinned() {
    // Catalogs on disk hold these: a changed one needs a new format.
    let key = RowKey::Order(ChunkId(1), hypertide_proto::ids::NodeId(2)).to_bytes();
    assert_eq!(key, [10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
}
