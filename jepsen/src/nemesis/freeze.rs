//! A node that the kernel's freezer stops: unlike a signal, the process cannot see it.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Effect, Nemesis, plan::Event, rest};
use crate::cluster::Node;

/// Where the control groups of the freezer are.
const FREEZER: &str = "/sys/fs/cgroup/freezer";

impl Nemesis {
    pub(super) async fn freeze(&self, event: &Event, nodes: &[&Node]) -> anyhow::Result<Effect> {
        let Some((node, pid)) = nodes.first().and_then(|node| Some((node, node.pid()?))) else {
            return Ok(Effect::Skipped("the node does not run".into()));
        };
        if !Path::new(FREEZER).join("tasks").exists() {
            return Ok(Effect::Skipped("there is no freezer".into()));
        }
        let group = Path::new(FREEZER).join(format!("htj{pid}"));
        if let Err(error) = std::fs::create_dir(&group) {
            return Ok(Effect::Skipped(format!("no control group can be made: {error}")));
        }
        let frozen = async {
            set(&group, "cgroup.procs", &pid.to_string())?;
            set(&group, "freezer.state", "FROZEN")?;
            rest(event).await;
            let state = std::fs::read_to_string(group.join("freezer.state"))?;
            anyhow::Ok(state.trim().to_owned())
        }
        .await;
        // Whatever came of it, the node is not left frozen.
        set(&group, "freezer.state", "THAWED")?;
        set(&PathBuf::from(FREEZER), "cgroup.procs", &pid.to_string())?;
        std::fs::remove_dir(&group).context("remove the control group")?;
        let state = frozen?;
        let proof = format!("{} was {state} until it was thawed", node.name);
        Ok(if state == "FROZEN" { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}

fn set(group: &Path, file: &str, value: &str) -> anyhow::Result<()> {
    std::fs::write(group.join(file), value).with_context(|| format!("set {file} to {value}"))
}
