//! Takes connections in, each into a task of its own, until the server stops.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{cancel::Sessions, connection::stopped, startup};
use crate::{Engine, Error};

/// Most connections at a time, with those that only start or cancel; sessions have a bound of their own.
const CONNECTIONS_MAX: usize = 700;
/// How long running statements may take when the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long to wait when the system has no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the PostgreSQL protocol until `shutdown` is true.
///
/// Idle sessions are told then; statements that run get some seconds to end.
pub async fn serve_pg(
    listener: TcpListener,
    engine: Arc<Engine>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let sessions = Arc::new(Sessions::default());
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        while let Some(ended) = tasks.try_join_next() {
            log_panic(ended);
        }
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    wait_for_room(&error).await;
                    continue;
                }
            },
            () = stopped(&mut shutdown) => break,
        };
        // Beyond the bound nobody can be told anything: the connection is closed at once.
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (engine, sessions) = (Arc::clone(&engine), Arc::clone(&sessions));
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            let _place = place;
            serve_one(stream, engine, sessions, shutdown).await;
        });
    }
    drop(listener);
    drain(tasks).await;
    Ok(())
}

async fn serve_one(
    stream: TcpStream,
    engine: Arc<Engine>,
    sessions: Arc<Sessions>,
    mut shutdown: watch::Receiver<bool>,
) {
    // Answers are whole when they are sent, so that waiting for more only adds time.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "set TCP_NODELAY");
    }
    let connection = tokio::select! {
        connection = startup::begin(stream, engine, &sessions) => connection,
        () = stopped(&mut shutdown) => None,
    };
    if let Some(connection) = connection {
        connection.run(shutdown).await;
    }
}

async fn wait_for_room(error: &io::Error) {
    tracing::warn!(%error, "accept a connection");
    sleep(ACCEPT_PAUSE).await;
}

async fn drain(mut tasks: JoinSet<()>) {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended);
        }
    };
    if timeout(DRAIN_MAX, all).await.is_err() {
        tracing::info!(sessions = tasks.len(), "end sessions that still run");
        tasks.shutdown().await;
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a session panicked");
    }
}
