//! A network of the run's own: a bridge, and one namespace a node.
//!
//! Names begin with `htj` and the harness's process id, so that what a killed run left behind is known as such.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context, bail};

use super::command::{run, run_with};

/// What every name begins with.
const PREFIX: &str = "htj";
/// The harness's own address in the last part.
const HOST: u8 = 254;
/// Subnets tried before giving up.
const SUBNETS: u32 = 64;

/// The network.
#[derive(Debug)]
pub(crate) struct Net {
    bridge: String,
    subnet: [u8; 3],
}

impl Net {
    /// Whether this user may make namespaces here; the reason if not.
    pub(crate) async fn possible() -> Result<(), String> {
        if !super::is_root() {
            return Err("not root".into());
        }
        let probe = format!("{PREFIX}{}-probe", std::process::id());
        let made = run(&["ip", "netns", "add", &probe]).await;
        made.map_err(|error| format!("{error:#}"))?;
        run(&["ip", "netns", "del", &probe]).await.map_err(|error| format!("{error:#}"))?;
        Ok(())
    }

    /// Makes the bridge.
    pub(crate) async fn make() -> anyhow::Result<Self> {
        let bridge = format!("{PREFIX}{}", std::process::id());
        let taken = run(&["ip", "-4", "-o", "addr"]).await?;
        let free = (0..SUBNETS).map(|at| subnet(std::process::id() + at));
        let mut free = free.filter(|subnet| !taken.contains(&format!(" {}.", dotted(*subnet))));
        let subnet = free.next().context("no subnet is free")?;
        let net = Self { bridge, subnet };
        run(&["ip", "link", "add", &net.bridge, "type", "bridge"]).await?;
        let host = format!("{}/24", net.ip(HOST));
        run(&["ip", "addr", "add", &host, "dev", &net.bridge]).await?;
        run(&["ip", "link", "set", &net.bridge, "up"]).await?;
        Ok(net)
    }

    /// An address.
    pub(crate) fn ip(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    /// Gives the harness a further address on the bridge.
    pub(crate) async fn alias(&self, ip: Ipv4Addr) -> anyhow::Result<()> {
        run(&["ip", "addr", "add", &format!("{ip}/24"), "dev", &self.bridge]).await?;
        Ok(())
    }

    /// Makes the namespace of a node with this address; gives its name.
    pub(crate) async fn attach(&self, node: &str, ip: Ipv4Addr) -> anyhow::Result<String> {
        let namespace = format!("{}-{node}", self.bridge);
        let outer = format!("{}{node}", self.bridge);
        run(&["ip", "netns", "add", &namespace]).await?;
        let pair = ["type", "veth", "peer", "name", "eth0", "netns", &namespace];
        run(&[&["ip", "link", "add", &outer][..], &pair].concat()).await?;
        run(&["ip", "link", "set", &outer, "master", &self.bridge, "up"]).await?;
        let inside = ["ip", "-n", &namespace];
        let address = format!("{ip}/24");
        run(&[&inside[..], &["addr", "add", &address, "dev", "eth0"]].concat()).await?;
        run(&[&inside[..], &["link", "set", "eth0", "up"]].concat()).await?;
        run(&[&inside[..], &["link", "set", "lo", "up"]].concat()).await?;
        Ok(namespace)
    }

    /// Removes the bridge and every namespace of this run, with what still runs in them.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        remove_named(&self.bridge).await
    }
}

fn subnet(number: u32) -> [u8; 3] {
    let part = |number: u32| u8::try_from(number % 250).unwrap_or_default();
    [10, 200 + part(number) % 50, part(number / 50)]
}

fn dotted([a, b, c]: [u8; 3]) -> String {
    format!("{a}.{b}.{c}")
}

async fn remove_named(bridge: &str) -> anyhow::Result<()> {
    for namespace in namespaces(bridge).await? {
        let pids = run(&["ip", "netns", "pids", &namespace]).await?;
        for pid in pids.split_whitespace() {
            // It may have ended by itself.
            run(&["kill", "-KILL", pid]).await.ok();
        }
        run(&["ip", "netns", "del", &namespace]).await?;
    }
    let links = run(&["ip", "-o", "link", "show", "type", "bridge"]).await?;
    if links.contains(&format!(" {bridge}:")) {
        run(&["ip", "link", "del", bridge]).await?;
    }
    Ok(())
}

async fn namespaces(bridge: &str) -> anyhow::Result<Vec<String>> {
    let all = run(&["ip", "netns", "list"]).await?;
    let names = all.lines().filter_map(|line| line.split_whitespace().next());
    let ours =
        names.filter(|name| name.strip_prefix(bridge).is_some_and(|rest| rest.starts_with('-')));
    Ok(ours.map(str::to_owned).collect())
}

/// Removes what runs that were killed left behind; `alive` tells whether a harness still runs.
pub(crate) async fn sweep(alive: impl Fn(u32) -> bool) -> anyhow::Result<()> {
    let all = run(&["ip", "netns", "list"]).await?;
    let bridges = run(&["ip", "-o", "link", "show", "type", "bridge"]).await?;
    let words = all.lines().chain(bridges.lines()).flat_map(str::split_whitespace);
    let mut owners: Vec<u32> = words
        .filter_map(|word| word.trim_end_matches(':').strip_prefix(PREFIX))
        .filter_map(|rest| rest.split('-').next()?.parse().ok())
        .collect();
    owners.sort_unstable();
    owners.dedup();
    for owner in owners.into_iter().filter(|owner| !alive(*owner)) {
        remove_named(&format!("{PREFIX}{owner}")).await?;
    }
    Ok(())
}

/// What one node does with packets from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They vanish.
    Drop,
    /// Every fifth vanishes.
    Lose,
    /// Connections are reset.
    Reset,
    /// What is over 16 KB a second vanishes.
    Rate,
}

/// A rule at a node: what becomes of packets from `source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Namespace of the node that gets the packets.
    pub(crate) namespace: String,
    /// Who sends them: its address, and the one that stands for it.
    pub(crate) source: (Ipv4Addr, Ipv4Addr),
    /// What becomes of them.
    pub(crate) verdict: Verdict,
}

impl Rule {
    fn text(&self) -> String {
        let (own, shadow) = self.source;
        let from = match own == shadow {
            true => format!("ip saddr {own}"),
            false => format!("ip saddr {{ {own}, {shadow} }}"),
        };
        match self.verdict {
            Verdict::Drop => format!("{from} counter drop"),
            Verdict::Lose => format!("{from} numgen random mod 100 < 20 counter drop"),
            Verdict::Reset => format!("{from} ip protocol tcp counter reject with tcp reset"),
            Verdict::Rate => {
                format!("{from} limit rate over 16 kbytes/second burst 8 kbytes counter drop")
            }
        }
    }
}

/// The rules in force, by the fault that set them.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    by_fault: BTreeMap<u64, Vec<Rule>>,
}

impl Rules {
    /// Sets the rules of a fault.
    pub(crate) async fn set(&mut self, fault: u64, rules: Vec<Rule>) -> anyhow::Result<()> {
        let namespaces: Vec<String> = rules.iter().map(|rule| rule.namespace.clone()).collect();
        self.by_fault.insert(fault, rules);
        for namespace in namespaces {
            self.load(&namespace, fault).await?;
        }
        Ok(())
    }

    /// Takes the rules of a fault back; gives how many packets they caught.
    pub(crate) async fn clear(&mut self, fault: u64) -> anyhow::Result<u64> {
        let mut namespaces: Vec<String> = Vec::new();
        for rule in self.by_fault.remove(&fault).unwrap_or_default() {
            if !namespaces.contains(&rule.namespace) {
                namespaces.push(rule.namespace);
            }
        }
        let mut caught = 0;
        for namespace in namespaces {
            let table = format!("{PREFIX}{fault}");
            let listing =
                ["ip", "netns", "exec", &namespace, "nft", "list", "table", "inet", &table];
            caught += packets(&run(&listing).await?);
            let delete = ["nft", "delete", "table", "inet", &table];
            run(&[&["ip", "netns", "exec", &namespace][..], &delete].concat()).await?;
        }
        Ok(caught)
    }

    /// Every fault has a table of its own, so that one that ends does not disturb another.
    async fn load(&self, namespace: &str, fault: u64) -> anyhow::Result<()> {
        let rules = self.by_fault.get(&fault).into_iter().flatten();
        let rules = rules.filter(|rule| rule.namespace == namespace);
        let rules: Vec<String> = rules.map(Rule::text).collect();
        let table = format!("table inet {PREFIX}{fault}");
        let text = format!(
            "add {table}\ndelete {table}\n{table} {{\n chain in {{\n  \
             type filter hook input priority 0; policy accept;\n  {}\n }}\n}}\n",
            rules.join("\n  ")
        );
        run_with(&["ip", "netns", "exec", namespace, "nft", "-f", "-"], &text).await?;
        Ok(())
    }
}

/// Whether packets can be filtered.
pub(crate) async fn filter_possible() -> anyhow::Result<()> {
    let version = run(&["nft", "--version"]).await.context("nft is not there")?;
    if version.is_empty() {
        bail!("nft says nothing");
    }
    Ok(())
}

/// Sum of the counters in a listing of rules.
fn packets(listing: &str) -> u64 {
    let counts = listing.split("packets ").skip(1);
    counts.filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_up() {
        let listing = "ip saddr 10.0.0.1 counter packets 12 bytes 900 drop\n\
                       ip saddr 10.0.0.2 counter packets 5 bytes 1 drop";
        assert_eq!(packets(listing), 17);
        assert_eq!(packets(""), 0);
    }

    #[test]
    fn subnets_are_private_and_differ() {
        let (one, other) = (subnet(1), subnet(2));
        assert_ne!(one, other);
        assert!((0..100_000).all(|number| subnet(number)[1] >= 200));
    }
}
