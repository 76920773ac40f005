//! Samples of the cluster once a second: `metrics.csv`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::cluster::Cluster;

const INTERVAL: Duration = Duration::from_secs(1);

/// Writes samples until it is aborted: time, leader, term, applied entry, and memory and open files of each node.
pub(crate) async fn sample(cluster: Arc<Cluster>, clock: Instant, path: PathBuf) {
    let Ok(file) = File::create(&path) else {
        eprintln!("{} cannot be made: there will be no samples", path.display());
        return;
    };
    let mut file = BufWriter::new(file);
    let names: Vec<String> =
        cluster.nodes.iter().map(|node| format!("{0}_rss_kib,{0}_files", node.name)).collect();
    let mut head = format!("seconds,leader,term,applied,{}\n", names.join(","));
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        // A disk that is full for the harness ends the samples, not the run.
        if file.write_all(head.as_bytes()).and_then(|()| file.flush()).is_err() {
            return;
        }
        tick.tick().await;
        let status = cluster.status().await.unwrap_or_default();
        let usage: Vec<String> = cluster
            .nodes
            .iter()
            .map(|node| node.usage().map_or(",".into(), |(rss, files)| format!("{rss},{files}")))
            .collect();
        head = format!(
            "{:.3},{},{},{},{}\n",
            clock.elapsed().as_secs_f64(),
            status.leader,
            status.term,
            status.applied,
            usage.join(",")
        );
    }
}
