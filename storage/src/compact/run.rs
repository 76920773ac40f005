//! Rewrites the segments that [`super::plan`] chose as one, inside the chunk's file and in one transaction.

use std::sync::{Arc, PoisonError};

use arrow::{array::RecordBatch, compute::concat_batches};
use hypertide_proto::ids::ChunkId;

use super::plan::{Candidate, plan};
use crate::{
    Error,
    segment::Segment,
    store::{
        Inner,
        disk::contain,
        file::{ChunkFile, Write, segment_error},
        flush::{encode_runs, save_manifest},
        sort::{Sorted, sort},
    },
};

/// Merges small segments of a chunk, when it has many.
pub(crate) fn run(inner: &Inner, chunk: ChunkId) -> Result<(), Error> {
    let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
    inner.poison.check()?;
    if inner.replicas().damage(chunk).is_some() {
        return Ok(());
    }
    let merged = contain(|| merge(inner, chunk));
    let merged = merged.unwrap_or_else(|what| Err(Error::Damaged { chunk, what }));
    merged.inspect_err(|error| inner.note_failure(error))
}

fn merge(inner: &Inner, chunk: ChunkId) -> Result<(), Error> {
    let Some(file) = inner.files.get(&inner.node, chunk)? else { return Ok(()) };
    let segments = file.segments();
    let candidate = |segment: &Arc<Segment>| Candidate {
        segment: segment.key().segment,
        rows: segment.rows(),
        schema: Arc::clone(segment.schema()),
    };
    let chosen = plan(&segments.iter().map(candidate).collect::<Vec<_>>());
    if chosen.is_empty() {
        return Ok(());
    }
    let mut batches = Vec::new();
    let mut csns = Vec::new();
    for segment in segments.iter().filter(|segment| chosen.contains(&segment.key().segment)) {
        read_all(&file, chunk, segment, (&mut batches, &mut csns))?;
    }
    let Some(schema) = batches.first().map(RecordBatch::schema) else { return Ok(()) };
    let failed = |error| Error::Invalid(format!("merge segments of chunk {chunk}: {error}"));
    let rows = concat_batches(&schema, &batches).map_err(failed)?;
    drop(batches);
    let spec = file.spec();
    let sorted = sort(&spec, Sorted { rows, csns }).map_err(failed)?;
    let added = encode_runs(&file, chunk, vec![sorted])?;
    drop(segments);
    let flushed = file.manifest().flushed;
    let written = file.write(spec, Write { flushed, added, replaced: chosen })?;
    let (manifest, stored) = (written.manifest(), written.stored());
    {
        let mut replicas = inner.replicas();
        file.publish(written);
        replicas.merged(chunk, stored);
    }
    save_manifest(inner, chunk, manifest)
}

/// Appends all rows of a segment, with their commit numbers.
fn read_all(
    file: &ChunkFile,
    chunk: ChunkId,
    segment: &Segment,
    (batches, csns): (&mut Vec<RecordBatch>, &mut Vec<u64>),
) -> Result<(), Error> {
    let wrong = |error| segment_error(chunk, error);
    let id = segment.key().segment;
    let missing =
        || Error::Damaged { chunk, what: format!("segment {id} does not say where a block lies") };
    let mut last = None;
    let mut extent = |number: usize| match &last {
        Some((known, bytes)) if *known == number => Ok(bytes::Bytes::clone(bytes)),
        _ => {
            let bytes = file.extent(id, number)?;
            last = Some((number, bytes.clone()));
            Ok::<_, Error>(bytes)
        }
    };
    for block in 0..segment.block_count() {
        let mut columns = Vec::with_capacity(segment.schema().fields().len());
        for column in 0..segment.schema().fields().len() {
            let place = segment.place(block, column).ok_or_else(missing)?;
            let bytes = extent(place.extent)?;
            columns.push(segment.decode(block, column, &bytes).map_err(wrong)?);
        }
        let place = segment.csn_place(block).ok_or_else(missing)?;
        csns.extend(segment.decode_csns(block, &extent(place.extent)?).map_err(wrong)?);
        let batch = RecordBatch::try_new(Arc::clone(segment.schema()), columns);
        let batch = batch.map_err(|error| Error::Damaged { chunk, what: error.to_string() })?;
        batches.push(batch);
    }
    Ok(())
}
