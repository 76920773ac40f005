//! Listeners: bound before anything else is started, so that a port in use is said at once.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rand::Rng;
use tokio::net::TcpListener;

use crate::config::usage;

/// Lowest port that is given out when any port will do.
const PORT_MIN: u16 = 10_000;
/// The usual lower end of the ports that the system gives to outgoing connections.
const EPHEMERAL_MIN_DEFAULT: u16 = 32_768;
/// Ports tried before the system is asked for any.
const ATTEMPTS: usize = 64;

/// How long a port that is in use is waited for, and the time between two attempts.
const CLOSING: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A bound listener and the address under which others reach it.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The listener.
    pub(crate) listener: TcpListener,
    /// `host:port`.
    pub(crate) address: String,
}

/// What to bind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    /// What is to be served there, for messages.
    pub(crate) what: &'a str,
    /// `host:port`; port 0 takes the earlier port or any that is free.
    pub(crate) address: &'a str,
    /// The address of the last run.
    pub(crate) earlier: Option<&'a str>,
    /// Host under which others reach this node, when it is not the one of `address`.
    pub(crate) advertise: Option<&'a str>,
}

/// Binds a listener, or says in words why it cannot.
pub(crate) async fn bind(wish: Wish<'_>) -> anyhow::Result<Bound> {
    let (host, port) = split(wish.address)?;
    let advertised = wish.advertise.unwrap_or(host);
    if matches!(advertised, "0.0.0.0" | "[::]" | "") {
        bail!(usage(format_args!(
            "{} listens on every interface ({}): say with --advertise under which host others reach it",
            wish.what, wish.address
        )));
    }
    let listener = match port {
        0 => any_port(host, wish.earlier).await,
        port => this_port(bare(host), port).await,
    };
    let listener = listener.map_err(|error| in_words(&error, &wish))?;
    let port = listener.local_addr().context("read the bound address")?.port();
    Ok(Bound { listener, address: format!("{advertised}:{port}") })
}

/// A listener on the port. The sockets of a process that was killed just now may take a moment to close.
async fn this_port(host: &str, port: u16) -> io::Result<TcpListener> {
    let deadline = Instant::now() + CLOSING;
    loop {
        match TcpListener::bind((host, port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            bound => return bound,
        }
    }
}

/// Host and port of `host:port`; an IPv6 host stands in brackets.
pub(crate) fn split(address: &str) -> anyhow::Result<(&str, u16)> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parts.ok_or_else(|| usage(format_args!("{address:?} is not an address: expected host:port")))
}

fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The port of the last run, or one that is free.
///
/// A port from the system's ephemeral range may be taken by an outgoing connection while the node is down, and the
/// node could not come back under its address: so ports below that range are tried first.
async fn any_port(host: &str, earlier: Option<&str>) -> io::Result<TcpListener> {
    let host = bare(host);
    if let Some((_, port)) = earlier.and_then(|earlier| split(earlier).ok()) {
        return TcpListener::bind((host, port)).await;
    }
    let end = ephemeral_min().max(PORT_MIN + 1);
    for _ in 0..ATTEMPTS {
        let port = rand::rng().random_range(PORT_MIN..end);
        match TcpListener::bind((host, port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound_or_failed => return bound_or_failed,
        }
    }
    TcpListener::bind((host, 0)).await
}

fn ephemeral_min() -> u16 {
    let range = std::fs::read_to_string(Path::new("/proc/sys/net/ipv4/ip_local_port_range"));
    let first = range.ok().and_then(|range| range.split_whitespace().next()?.parse().ok());
    first.unwrap_or(EPHEMERAL_MIN_DEFAULT)
}

fn in_words(error: &io::Error, wish: &Wish<'_>) -> anyhow::Error {
    let Wish { what, address, earlier, .. } = wish;
    let address = earlier.unwrap_or(address);
    match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!("{what}: address {address} is in use"),
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{what}: no permission to listen on {address}")
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("{what}: {address} is not an address of this machine")
        }
        _ => anyhow::anyhow!("{what}: cannot listen on {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(address: &str) -> Wish<'_> {
        Wish { what: "PostgreSQL", address, earlier: None, advertise: None }
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_in_words() {
        let first = bind(wish("127.0.0.1:0")).await.expect("some port is free");
        let error = bind(wish(&first.address)).await.expect_err("it is in use");
        assert_eq!(error.to_string(), format!("PostgreSQL: address {} is in use", first.address));
    }

    #[tokio::test]
    async fn port_zero_takes_the_earlier_port_again() {
        let first = bind(wish("127.0.0.1:0")).await.expect("some port is free").address;
        let again = Wish { earlier: Some(&first), ..wish("127.0.0.1:0") };
        assert_eq!(bind(again).await.expect("it is free again").address, first);
    }

    #[tokio::test]
    async fn a_wildcard_needs_a_name_for_others() {
        assert!(bind(wish("0.0.0.0:0")).await.is_err());
        let named = Wish { advertise: Some("localhost"), ..wish("0.0.0.0:0") };
        assert!(bind(named).await.expect("it has a name").address.starts_with("localhost:"));
    }

    #[test]
    fn addresses_are_split_at_the_last_colon() {
        assert_eq!(split("[::1]:80").expect("it is valid"), ("[::1]", 80));
        assert!(split("localhost").is_err());
        assert!(split("localhost:x").is_err());
    }
}
