//! Functions that change which data nodes there are, what they take, and how many replicas a hypertable asks for.
//!
//! The catalog checks the rules and refuses; here arguments become commands, and its notices become the client's.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Int32Array, Int64Array, StringArray},
    datatypes::{DataType, Field},
};
use hypertide_meta::catalog::{Block, Command, DataNode, Detach, Outcome, Table, TableKind};
use hypertide_proto::ids::NodeId;

use super::{call::Arguments, parse::regclass, table::find_named};
use crate::{
    Error, Session,
    session::{DATABASE, Frame},
};

/// Parameters of `attach_data_node`, in order.
pub(crate) const ATTACH_PARAMETERS: &[&str] =
    &["node_name", "hypertable", "if_not_attached", "repartition"];
/// Parameters of `detach_data_node`, in order.
pub(crate) const DETACH_PARAMETERS: &[&str] =
    &["node_name", "hypertable", "if_attached", "force", "repartition", "drop_remote_data"];
/// Parameters of `delete_data_node`, in order.
pub(crate) const DELETE_PARAMETERS: &[&str] =
    &["node_name", "if_exists", "force", "repartition", "drop_database"];
/// Parameters of `alter_data_node`, in order.
pub(crate) const ALTER_PARAMETERS: &[&str] =
    &["node_name", "host", "database", "port", "available"];
/// Parameters of `block_new_chunks`, in order.
pub(crate) const BLOCK_PARAMETERS: &[&str] = &["data_node_name", "hypertable", "force"];
/// Parameters of `allow_new_chunks`, in order.
pub(crate) const ALLOW_PARAMETERS: &[&str] = &["data_node_name", "hypertable"];
/// Parameters of `set_replication_factor`, in order.
pub(crate) const FACTOR_PARAMETERS: &[&str] = &["hypertable", "replication_factor"];
/// Parameters of `drain_data_node`, in order.
pub(crate) const DRAIN_PARAMETERS: &[&str] = &["node_name", "draining"];
/// Parameters of `set_min_in_sync`, in order.
pub(crate) const MIN_PARAMETERS: &[&str] = &["hypertable", "replicas"];
/// Parameters of `set_rebalancing`, in order.
pub(crate) const REBALANCING_PARAMETERS: &[&str] = &["enabled", "bytes_per_second"];
/// Least that a copy may be allowed to take: with less, a chunk would never arrive.
const COPY_RATE_MIN: i64 = 64 << 10;
const PORT_MAX: i64 = 65_535;
const FACTOR_MAX: i64 = 32_767;

/// Columns of `attach_data_node`.
pub(crate) fn attach_columns() -> Vec<Field> {
    vec![
        Field::new("hypertable_id", DataType::Int32, true),
        Field::new("node_hypertable_id", DataType::Int32, true),
        Field::new("node_name", DataType::Utf8, true),
    ]
}

/// Columns of `alter_data_node`.
pub(crate) fn alter_columns() -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    vec![
        text("node_name"),
        text("host"),
        Field::new("port", DataType::Int32, true),
        text("database"),
        Field::new("available", DataType::Boolean, true),
    ]
}

/// Columns of `set_rebalancing`.
pub(crate) fn rebalancing_columns() -> Vec<Field> {
    vec![
        Field::new("enabled", DataType::Boolean, true),
        Field::new("bytes_per_second", DataType::Int64, true),
    ]
}

/// `set_rebalancing`: whether chunks are moved to even nodes out, and how fast any chunk is copied. What is not given
/// stays; the row says how it is now.
pub(crate) async fn set_rebalancing(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let now = frame.snapshot.image.catalog.rebalancing();
    let mut wanted = now.clone();
    if let Some(enabled) = arguments.bool("enabled")? {
        wanted.enabled = enabled;
    }
    if let Some(rate) = arguments.int("bytes_per_second")? {
        let rate = u64::try_from(rate).ok().filter(|_| rate >= COPY_RATE_MIN);
        wanted.bytes_per_second = rate.ok_or_else(|| {
            Error::of("22023", "invalid number of bytes per second")
                .with_hint(format_args!("Give {COPY_RATE_MIN} or more."))
        })?;
    }
    if wanted != *now {
        session.propose(Command::SetRebalancing(wanted.clone())).await?;
    }
    let rate = i64::try_from(wanted.bytes_per_second).unwrap_or(i64::MAX);
    Ok(vec![
        Arc::new(BooleanArray::from(vec![wanted.enabled])),
        Arc::new(Int64Array::from(vec![rate])),
    ])
}

/// `attach_data_node`.
pub(crate) async fn attach(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let node = node_name(arguments, "node_name")?;
    let table = distributed(session, frame, arguments)?;
    let table = table.ok_or_else(|| Error::of("22023", "hypertable cannot be NULL"))?;
    let command = Command::AttachDataNode {
        node: node.clone(),
        table: table.id,
        if_not_attached: arguments.bool("if_not_attached")?.unwrap_or(false),
        repartition: arguments.bool("repartition")?.unwrap_or(true),
    };
    nodes(session, command).await?;
    let id = i32::try_from(table.id.0).ok();
    Ok(vec![
        Arc::new(Int32Array::from(vec![id])),
        Arc::new(Int32Array::from(vec![id])),
        Arc::new(StringArray::from(vec![node])),
    ])
}

/// `detach_data_node`.
pub(crate) async fn detach(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let node = node_name(arguments, "node_name")?;
    let table = distributed(session, frame, arguments)?.map(|table| table.id);
    let how = Detach {
        if_attached: arguments.bool("if_attached")?.unwrap_or(false),
        force: arguments.bool("force")?.unwrap_or(false),
        repartition: arguments.bool("repartition")?.unwrap_or(true),
    };
    let changed = nodes(session, Command::DetachDataNode { node, table, how }).await?;
    Ok(count(changed))
}

/// `delete_data_node`.
pub(crate) async fn delete(
    session: &mut Session,
    _frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let command = Command::DeleteDataNode {
        node: node_name(arguments, "node_name")?,
        if_exists: arguments.bool("if_exists")?.unwrap_or(false),
        how: Detach {
            if_attached: true,
            force: arguments.bool("force")?.unwrap_or(false),
            repartition: arguments.bool("repartition")?.unwrap_or(true),
        },
    };
    let changed = nodes(session, command).await?;
    Ok(vec![Arc::new(BooleanArray::from(vec![changed > 0]))])
}

/// `alter_data_node`; with the name alone it shows the node.
pub(crate) async fn alter(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let name = node_name(arguments, "node_name")?;
    let old = existing(frame, &name)?;
    let (host, port) = old.rpc.rsplit_once(':').unwrap_or((&old.rpc, ""));
    let (new_host, new_port) = (arguments.text("host")?, arguments.int("port")?);
    if let Some(port) = new_port.filter(|port| !(1..=PORT_MAX).contains(port)) {
        return Err(Error::of("22023", format_args!("invalid port number {port}"))
            .with_hint(format_args!("The port number must be between 1 and {PORT_MAX}.")));
    }
    if arguments.text("database")?.is_some_and(|database| database != DATABASE) {
        let message = format_args!("a data node has one database, \"{DATABASE}\"");
        return Err(Error::of("0A000", message));
    }
    let available = arguments.bool("available")?;
    let moved = new_host.is_some() || new_port.is_some();
    let rpc = moved.then(|| {
        let host = new_host.as_deref().unwrap_or(host);
        let port = new_port.map_or_else(|| port.to_owned(), |port| port.to_string());
        format!("{host}:{port}")
    });
    if rpc.is_none() && available.is_none() {
        return Ok(shown(old));
    }
    let command = Command::AlterDataNode { node: name.clone(), rpc, available };
    session.propose(command).await?;
    let frame = session.frame().await?;
    Ok(shown(existing(&frame, &name)?))
}

/// `block_new_chunks` and `allow_new_chunks`.
pub(crate) async fn block(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
    block: bool,
) -> Result<Vec<ArrayRef>, Error> {
    let name = node_name(arguments, "data_node_name")?;
    let table = distributed(session, frame, arguments)?.map(|table| table.id);
    let force = arguments.bool("force")?.unwrap_or(false);
    let node = existing(frame, &name)?.id();
    let command = Command::BlockNewChunks(Block { node, table, block, force });
    Ok(count(nodes(session, command).await?))
}

/// `set_replication_factor`.
pub(crate) async fn set_replication_factor(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = distributed(session, frame, arguments)?;
    let table = table.ok_or_else(|| Error::of("22023", "hypertable cannot be NULL"))?;
    let factor = arguments.int("replication_factor")?;
    let factor = factor.filter(|factor| (1..=FACTOR_MAX).contains(factor)).ok_or_else(|| {
        Error::of("22023", "invalid replication factor").with_hint(format_args!(
            "A hypertable's replication factor must be between 1 and {FACTOR_MAX}."
        ))
    })?;
    let factor = u16::try_from(factor).unwrap_or(u16::MAX);
    nodes(session, Command::SetReplicationFactor { table: table.id, factor }).await?;
    Ok(vec![Arc::new(StringArray::from(vec![""]))])
}

/// `drain_data_node`: lets the chunks of a node move away, or stay again. Gives whether that is new.
pub(crate) async fn drain(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let node = node_name(arguments, "node_name")?;
    let draining = arguments.bool("draining")?.unwrap_or(true);
    let known = existing(frame, &node)?;
    let changed = known.draining != draining;
    if changed && draining {
        check_drain(frame, known)?;
    }
    if changed {
        session.propose(Command::SetDraining { node, draining }).await?;
    }
    Ok(vec![Arc::new(BooleanArray::from(vec![changed]))])
}

/// There must be enough other nodes for the replicas of each hypertable, or draining would never end.
fn check_drain(frame: &Frame, node: &DataNode) -> Result<(), Error> {
    let catalog = &frame.snapshot.image.catalog;
    let stays = |other: &NodeId| {
        let other = catalog.data_node(*other).filter(|other| other.id() != node.id());
        other.is_some_and(|other| !other.draining && !other.unavailable)
    };
    for table in catalog.tables() {
        let Some(made) = table.hypertable() else { continue };
        let held = catalog.replicas(table.id, node.id()) > 0;
        let stay = made.data_nodes.iter().filter(|other| stays(other)).count();
        if held && stay < usize::from(made.replication_factor) {
            let name = &table.name;
            let message = format_args!(
                "insufficient number of data nodes for distributed hypertable \"{name}\""
            );
            return Err(Error::of("TS160", message)
                .with_detail(format_args!(
                    "{stay} data nodes would be left for {} replicas.",
                    made.replication_factor
                ))
                .with_hint("Attach another data node or lower the replication factor."));
        }
    }
    Ok(())
}

/// `set_min_in_sync`: how many replicas must be in sync for a hypertable to take rows.
pub(crate) async fn set_min_in_sync(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = distributed(session, frame, arguments)?;
    let table = table.ok_or_else(|| Error::of("22023", "hypertable cannot be NULL"))?;
    let replicas = arguments.int("replicas")?;
    let replicas = replicas.and_then(|replicas| u16::try_from(replicas).ok());
    let replicas = replicas.filter(|replicas| *replicas > 0).ok_or_else(|| {
        Error::of("22023", "invalid number of replicas")
            .with_hint("Give a number from 1 to the replication factor.")
    })?;
    session.propose(Command::SetMinInSync { table: table.id, replicas }).await?;
    Ok(vec![Arc::new(StringArray::from(vec![""]))])
}

/// Puts a command about nodes into the log and passes its notices on; gives how many it changed.
async fn nodes(session: &mut Session, command: Command) -> Result<u64, Error> {
    match session.propose(command).await? {
        Outcome::Nodes { changed, notices } => {
            for notice in notices {
                let (severity, code) =
                    if notice.warning { ("WARNING", "01000") } else { ("NOTICE", "00000") };
                session.notice(severity, code, notice.text);
            }
            Ok(changed)
        }
        _ => Ok(0),
    }
}

fn node_name(arguments: &Arguments, parameter: &str) -> Result<String, Error> {
    let name = arguments.text(parameter)?;
    name.ok_or_else(|| Error::of("22023", "data node name cannot be NULL"))
}

fn existing<'a>(frame: &'a Frame, name: &str) -> Result<&'a DataNode, Error> {
    let node = frame.snapshot.image.catalog.data_node_named(name);
    node.ok_or_else(|| Error::of("42704", format_args!("data node \"{name}\" does not exist")))
}

/// The distributed hypertable that the arguments name, if they name a table.
fn distributed(
    session: &Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Option<Arc<Table>>, Error> {
    let Some(relation) = arguments.text("hypertable")? else { return Ok(None) };
    let (schema, name) = regclass(&relation)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = find_named(&frame.snapshot.image, schema.as_deref(), &name, path)?;
    match &table.kind {
        TableKind::Hypertable(made) if made.distributed => Ok(Some(table)),
        TableKind::Hypertable(_) => {
            Err(Error::of("0A000", format_args!("hypertable \"{name}\" is not distributed")))
        }
        TableKind::Reference => {
            Err(Error::of("TS001", format_args!("table \"{name}\" is not a hypertable")))
        }
    }
}

fn count(number: u64) -> Vec<ArrayRef> {
    vec![Arc::new(Int32Array::from(vec![i32::try_from(number).unwrap_or(i32::MAX)]))]
}

fn shown(node: &DataNode) -> Vec<ArrayRef> {
    let (host, port) = node.rpc.rsplit_once(':').unwrap_or((&node.rpc, ""));
    vec![
        Arc::new(StringArray::from(vec![node.name.as_str()])),
        Arc::new(StringArray::from(vec![host])),
        Arc::new(Int32Array::from(vec![port.parse::<i32>().ok()])),
        Arc::new(StringArray::from(vec![DATABASE])),
        Arc::new(BooleanArray::from(vec![node.serves()])),
    ]
}
