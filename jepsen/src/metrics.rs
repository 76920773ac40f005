//! Samples of the cluster once a second: `metrics.csv`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{checker::evidence::Usage, cluster::Cluster};

const INTERVAL: Duration = Duration::from_secs(1);
/// What is sampled of each node, in order.
const OF_NODE: [&str; 3] = ["pid", "rss_kib", "files"];

/// Writes samples until it is aborted: time, leader, term, applied entry, and what each node uses.
pub(crate) async fn sample(cluster: Arc<Cluster>, clock: Instant, path: PathBuf) {
    let Ok(file) = File::create(&path) else {
        eprintln!("{} cannot be made: there will be no samples", path.display());
        return;
    };
    let mut file = BufWriter::new(file);
    let names =
        cluster.nodes.iter().flat_map(|node| OF_NODE.map(|of| format!("{}_{of}", node.name)));
    let names: Vec<String> = names.collect();
    let mut line = format!("seconds,leader,term,applied,{}\n", names.join(","));
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        // A disk that is full for the harness ends the samples, not the run.
        if file.write_all(line.as_bytes()).and_then(|()| file.flush()).is_err() {
            return;
        }
        tick.tick().await;
        let status = cluster.status().await.unwrap_or_default();
        let usage: Vec<String> = cluster
            .nodes
            .iter()
            .map(|node| match node.usage(0) {
                None => ",,".to_owned(),
                Some(Usage { pid, rss_kib, files, .. }) => format!("{pid},{rss_kib},{files}"),
            })
            .collect();
        line = format!(
            "{:.3},{},{},{},{}\n",
            clock.elapsed().as_secs_f64(),
            status.leader,
            status.term,
            status.applied,
            usage.join(",")
        );
    }
}

/// What the samples say of the nodes. Those of runs from before process ids were noted say nothing.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Usage>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Usage> {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let nodes: Vec<(usize, &str)> = head
        .iter()
        .enumerate()
        .filter_map(|(at, name)| Some((at, name.strip_suffix("_pid")?)))
        .collect();
    let mut usage = Vec::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |at: usize| cells.get(at)?.parse::<u64>().ok();
        let seconds: Option<f64> = cells.first().and_then(|cell| cell.parse().ok());
        let Some(at) = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()) else { continue };
        let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        for (place, node) in &nodes {
            let cells = number(*place).zip(number(place + 1)).zip(number(place + 2));
            let Some(((pid, rss_kib), files)) = cells else { continue };
            usage.push(Usage { node: (*node).to_owned(), at_us, pid, rss_kib, files });
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_again_and_nodes_that_do_not_run_left_out() {
        let text = "seconds,leader,term,applied,a1_pid,a1_rss_kib,a1_files,d1_pid,d1_rss_kib,d1_files\n\
                    0.500,a1,1,2,10,1000,20,11,2000,30\n\
                    1.500,,0,0,10,1001,21,,,\n\
                    2.5";
        let of = |node: &str, at_us, pid, rss_kib, files| Usage {
            node: node.to_owned(),
            at_us,
            pid,
            rss_kib,
            files,
        };
        let wanted = [
            of("a1", 500_000, 10, 1000, 20),
            of("d1", 500_000, 11, 2000, 30),
            of("a1", 1_500_000, 10, 1001, 21),
        ];
        assert_eq!(parse(text), wanted);
        assert_eq!(parse("seconds,leader,term,applied,a1_rss_kib,a1_files\n1.0,a1,1,2,3,4\n"), []);
    }
}
