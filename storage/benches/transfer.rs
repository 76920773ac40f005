//! How fast a replica is copied between two data nodes, and what a delta takes, over gRPC on loopback.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::time::Instant;

use hypertide_proto::{client::Channels, ids::ChunkId, wire::storage::CatchUpRequest};

#[path = "../tests/support/mod.rs"]
mod support;
use support::*;
#[path = "../tests/support/cluster.rs"]
mod cluster;
use cluster::*;

const CHUNK: u64 = 5;
const TXNS: u64 = 24;
const ROWS: i64 = 100_000;

fn noise(seed: u64, count: i64) -> Vec<Row> {
    let mut random = Random(seed);
    let mut row = |i| {
        let reading = f64::from_bits(random.next() >> 2);
        (seed as i64 * 10_000_000 + i, format!("d{}", random.below(100)), Some(reading))
    };
    (0..count).map(&mut row).collect()
}

#[tokio::main]
async fn main() {
    let access = access_node().await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (source, source_rpc) = data_node(dirs[0].path(), "", &[&access]).await;
    source.ready().await.unwrap();
    let (target, target_rpc) = data_node(dirs[1].path(), "", &[&access]).await;
    target.ready().await.unwrap();
    let write = async |seq: u64, rows: i64| {
        let parts = vec![part(CHUNK, 0, &noise(seq, rows))];
        source.store().prepare(txn(seq), parts).await.unwrap();
        source.store().decide(&[commit(seq, seq * 10, &[(CHUNK, seq * 10 - 10)])]).unwrap();
        source.store().flush(&[ChunkId(CHUNK)]).unwrap();
    };
    for seq in 1..=TXNS {
        write(seq, ROWS).await;
    }
    let request = CatchUpRequest {
        cluster: CLUSTER.0.to_vec().into(),
        rid: Some(target.membership().unwrap().rid.into()),
        spec: wire_part(part(CHUNK, 0, &[])).spec,
        epoch: 1,
        source: source_rpc,
        source_rid: Some(source.membership().unwrap().rid.into()),
        deadline_ms: 600_000,
        ..CatchUpRequest::default()
    };
    let mut client = Channels::default().storage(&target_rpc).unwrap();
    for seq in [TXNS, TXNS + 1, TXNS + 2, TXNS + 3] {
        if seq > TXNS {
            write(seq, 1000).await;
        }
        let started = Instant::now();
        let reply = client.catch_up(request.clone()).await.unwrap().into_inner();
        let seconds = started.elapsed().as_secs_f64();
        let rate = reply.bytes as f64 / 1e6 / seconds;
        let kind = if reply.whole { "whole copy" } else { "delta" };
        println!(
            "{kind}: {} rows, {} bytes in {:.1} ms, {rate:.0} MB/s",
            reply.rows,
            reply.bytes,
            seconds * 1000.0
        );
    }
    target.shutdown().await;
    source.shutdown().await;
}
