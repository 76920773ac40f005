//! `add_data_node`: takes a data node that waits into the cluster.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, BooleanArray, Int32Array, StringArray},
    datatypes::{DataType, Field},
};
use hypertide_proto::{error::RpcError, wire::storage::AdoptRequest};

use super::call::Arguments;
use crate::{
    Error, Session,
    session::{DATABASE, Frame},
};

/// Names of its parameters, in order.
pub(crate) const PARAMETERS: &[&str] =
    &["node_name", "host", "database", "port", "if_not_exists", "bootstrap", "password"];
/// Port of a data node when none is given.
const PORT_DEFAULT: i64 = 5461;
const PORT_MAX: i64 = 65_535;
/// Time that a node has to register after it was taken in.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks whether it has.
const LOOK_DELAY: Duration = Duration::from_millis(100);

/// Columns of its row.
pub(crate) fn columns() -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let flag = |name: &str| Field::new(name, DataType::Boolean, true);
    vec![
        text("node_name"),
        text("host"),
        Field::new("port", DataType::Int32, true),
        text("database"),
        flag("node_created"),
        flag("database_created"),
        flag("extension_created"),
    ]
}

/// Takes a data node in and waits until the catalog knows it.
pub(crate) async fn add(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    if session.block.is_explicit() {
        return Err(Error::of("25001", "add_data_node cannot run inside a transaction block"));
    }
    let name = arguments.text("node_name")?;
    let name = name.ok_or_else(|| Error::of("22023", "data node name cannot be NULL"))?;
    let host = arguments.text("host")?;
    let host = host.ok_or_else(|| {
        Error::of("22023", "a host needs to be specified")
            .with_hint("Provide a host name or IP address of a data node to add.")
    })?;
    let port = arguments.int("port")?.unwrap_or(PORT_DEFAULT);
    if !(1..=PORT_MAX).contains(&port) {
        return Err(Error::of("22023", format_args!("invalid port number {port}"))
            .with_hint(format_args!("The port number must be between 1 and {PORT_MAX}.")));
    }
    let catalog = &frame.snapshot.image.catalog;
    if catalog.data_node_named(&name).is_some() {
        let message = format!("server \"{name}\" already exists");
        if !arguments.bool("if_not_exists")?.unwrap_or(false) {
            return Err(Error::of("42710", message));
        }
        session.notice("NOTICE", "42710", format_args!("{message}, skipping"));
        return Ok(row(&name, &host, port, false));
    }
    let address = format!("{host}:{port}");
    let access = catalog.access_nodes().map(|node| node.rpc.clone()).collect();
    adopt(session, &name, &address, access).await?;
    wait(session, &name).await?;
    Ok(row(&name, &host, port, true))
}

async fn adopt(
    session: &Session,
    name: &str,
    address: &str,
    access: Vec<String>,
) -> Result<(), Error> {
    let cluster = session.engine.catalog.cluster();
    let cluster =
        cluster.ok_or_else(|| Error::of("57P03", "this access node belongs to no cluster yet"))?;
    let request =
        AdoptRequest { cluster: cluster.0.to_vec().into(), name: name.to_owned(), access };
    let unreachable = |why: &dyn std::fmt::Display| {
        Error::of("08001", format_args!("could not connect to data node \"{name}\" at {address}"))
            .with_detail(why)
    };
    let mut client =
        session.engine.channels.storage(address).map_err(|error| unreachable(&error))?;
    match tokio::time::timeout(REGISTER_TIMEOUT, client.adopt(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => {
            let error = RpcError::from(status);
            match error.code {
                hypertide_proto::error::Code::Unavailable => Err(unreachable(&error)),
                _ => Err(Error::of("55000", format_args!("cannot add \"{name}\" as a data node"))
                    .with_detail(error)),
            }
        }
        Err(_) => Err(unreachable(&"no answer in time")),
    }
}

/// Waits until the catalog knows the node.
async fn wait(session: &mut Session, name: &str) -> Result<(), Error> {
    let deadline = session.deadline().min(Instant::now() + REGISTER_TIMEOUT);
    loop {
        let image = session.engine.catalog.barrier(deadline).await?;
        if image.catalog.data_node_named(name).is_some() {
            session.changed_at(image.applied);
            return Ok(());
        }
        if Instant::now() + LOOK_DELAY >= deadline {
            return Err(Error::of(
                "57014",
                format_args!("data node \"{name}\" was taken in and did not register in time"),
            ));
        }
        tokio::time::sleep(LOOK_DELAY).await;
    }
}

fn row(name: &str, host: &str, port: i64, created: bool) -> Vec<ArrayRef> {
    vec![
        Arc::new(StringArray::from(vec![name])),
        Arc::new(StringArray::from(vec![host])),
        Arc::new(Int32Array::from(vec![i32::try_from(port).unwrap_or_default()])),
        Arc::new(StringArray::from(vec![DATABASE])),
        Arc::new(BooleanArray::from(vec![created])),
        Arc::new(BooleanArray::from(vec![false])),
        Arc::new(BooleanArray::from(vec![false])),
    ]
}
