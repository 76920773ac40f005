//! Rewrites the segments that [`super::plan`] chose as one, inside the chunk's file and in one transaction.

use std::sync::{Arc, PoisonError};

use arrow::array::RecordBatch;
use hypertide_proto::ids::ChunkId;

use super::{
    plan::{Candidate, plan},
    read::Blocks,
};
use crate::{
    Error,
    segment::Segment,
    store::{
        Inner,
        contain::contain,
        file::Write,
        flush::{encode_runs, save_manifest},
        order::natural,
        sort::{Unsorted, sort},
    },
};

/// Merges small segments of a chunk, when it has many.
pub(crate) fn run(inner: &Inner, chunk: ChunkId) -> Result<(), Error> {
    // While its file is being written anew, its segments stay as they are.
    let Some(_turn) = inner.rewriting.begin(chunk) else { return Ok(()) };
    let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
    inner.poison.check()?;
    if inner.replicas().wrong(chunk).is_some() {
        return Ok(());
    }
    let merged = contain(|| merge(inner, chunk));
    let merged = merged.unwrap_or_else(|what| Err(Error::Damaged { chunk, what }));
    merged.inspect_err(|error| inner.note_failed_rewrite(error))
}

fn merge(inner: &Inner, chunk: ChunkId) -> Result<(), Error> {
    let Some(file) = inner.file(chunk)? else { return Ok(()) };
    let segments = file.segments();
    let header = file.header();
    // What is compressed waits for the next compression.
    let below = header.compression.as_ref().map_or(0, |compression| compression.below);
    let candidate = |segment: &Arc<Segment>| Candidate {
        segment: segment.key().segment,
        rows: segment.rows(),
        schema: Arc::clone(segment.schema()),
    };
    let open = segments.iter().filter(|segment| segment.key().segment >= below);
    let chosen = plan(&open.map(candidate).collect::<Vec<_>>());
    if chosen.is_empty() {
        return Ok(());
    }
    let mut batches = Vec::new();
    let mut csns = Vec::new();
    for segment in segments.iter().filter(|segment| chosen.contains(&segment.key().segment)) {
        let mut blocks = Blocks::of(&file, chunk);
        for block in 0..segment.block_count() {
            batches.push(blocks.rows(segment, block)?);
            csns.extend(blocks.csns(segment, block)?);
        }
    }
    let Some(schema) = batches.first().map(RecordBatch::schema) else { return Ok(()) };
    let failed = |error| Error::Invalid(format!("merge segments of chunk {chunk}: {error}"));
    let spec = header.spec;
    let sorted = sort(&natural(&spec), Unsorted { schema, batches, csns }).map_err(failed)?;
    let added = encode_runs(&file, chunk, vec![sorted])?;
    drop(segments);
    let flushed = header.manifest.flushed;
    let write = Write { added, replaced: chosen, ..Write::to(flushed) };
    let written = file.write(spec, write)?;
    let (manifest, stored) = (written.manifest(), written.stored());
    {
        let mut replicas = inner.replicas();
        file.publish(written);
        replicas.rewritten(chunk, stored);
    }
    save_manifest(inner, chunk, manifest)
}
