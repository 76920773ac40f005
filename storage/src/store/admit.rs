//! What becomes of a part on its way in: its payload is checked and decoded, it is compared with what is there, and queued
//! for the journal.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use hypertide_proto::ids::TxnId;

use super::{DELETES_MAX, Inner, Part, memory::Charge};
use crate::{
    Error, Tombstone, batch,
    chunk::{Admission, Contention, Replicas, Rows},
    journal::Change,
    tables::{PartHeader, PartKey},
};

/// A part whose payload was checked.
pub(super) struct Decoded {
    rows: Rows,
    header: PartHeader,
    payload: Bytes,
}

/// Checks and decodes the parts of one request.
pub(super) fn decode_parts(
    txn: TxnId,
    parts: Vec<Part>,
    mut charge: Charge,
) -> Result<Vec<Decoded>, Error> {
    let decode = |part: Part| {
        let Part { spec, epoch, number, rows, hash, payload, decoded_bytes } = part;
        let key = PartKey { txn, chunk: spec.chunk, number };
        if xxhash_rust::xxh3::xxh3_128(&payload) != hash {
            return Err(Error::Invalid(format!("{key}: the payload does not have the hash given")));
        }
        let header = PartHeader { spec, epoch, rows, hash, decoded_bytes };
        let rows = decode_part(key, &header, &payload, charge.split(decoded_bytes as usize))?;
        Ok(Decoded { rows, header, payload })
    };
    let decoded: Result<Vec<Decoded>, Error> = parts.into_iter().map(decode).collect();
    let decoded = decoded?;
    let mut keys: Vec<PartKey> = decoded.iter().map(|part| part.rows.key).collect();
    keys.sort_unstable();
    match keys.array_windows().find(|[one, other]| one == other) {
        Some([key, _]) => Err(Error::Invalid(format!("{key} stands twice in one request"))),
        None => Ok(decoded),
    }
}

/// Decodes the payload of a part that its header describes.
pub(super) fn decode_part(
    key: PartKey,
    header: &PartHeader,
    payload: &[u8],
    charge: Charge,
) -> Result<Rows, Error> {
    let tombstone = Tombstone::decode(payload).transpose()?;
    let batches = match tombstone {
        Some(_) => Vec::new(),
        None => batch::decode(payload, header.decoded_bytes)?,
    };
    let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    if rows != header.rows as usize {
        let said = header.rows;
        return Err(Error::Invalid(format!("{key} holds {rows} rows instead of {said}")));
    }
    Ok(Rows { key, epoch: header.epoch, hash: header.hash, batches, tombstone, charge })
}

impl Inner {
    /// Takes in decoded parts and queues them; the receiver hears when they are durable.
    pub(super) fn admit(
        &self,
        parts: Vec<Decoded>,
    ) -> Result<tokio::sync::oneshot::Receiver<()>, Error> {
        let mut replicas = self.replicas();
        let mut fresh = Vec::new();
        for part in parts {
            let key = part.rows.key;
            if let Some(what) = replicas.damage(key.chunk) {
                return Err(Error::Damaged { chunk: key.chunk, what: what.to_owned() });
            }
            match replicas.admit(key, part.rows.hash) {
                Admission::New => {
                    if let Some(tombstone) = &part.rows.tombstone {
                        check_delete(&replicas, key, tombstone)?;
                    }
                    fresh.push(part);
                }
                Admission::Known => {}
                Admission::Conflict => {
                    let PartKey { txn, chunk, number } = key;
                    return Err(Error::Conflict { txn, chunk, number });
                }
            }
        }
        let now = Instant::now();
        let mut changes = Vec::with_capacity(fresh.len());
        for Decoded { rows, header, payload } in fresh {
            let key = rows.key;
            replicas.prepare(header.spec.clone(), Arc::new(rows), now);
            changes.push(Change::PutPart(key, Box::new(header), payload));
        }
        // Also without a change: a part that came before may still be on its way to the disk, ahead in the queue.
        Ok(self.journal.submit(changes))
    }
}

/// Refuses a tombstone that another transaction crosses, and a delete too many.
fn check_delete(replicas: &Replicas, key: PartKey, tombstone: &Tombstone) -> Result<(), Error> {
    let chunk = key.chunk;
    match replicas.contention(key, tombstone) {
        Some(Contention::Committed(what)) => return Err(Error::Contended { chunk, what }),
        Some(Contention::Pending(what)) => return Err(Error::Reserved { chunk, what }),
        None if !tombstone.takes_rows() => return Ok(()),
        None => {}
    }
    let waiting = replicas.delete_count(chunk);
    if waiting >= DELETES_MAX {
        let what = format!("chunk {chunk} has {waiting} deletes whose rows are not gone yet");
        return Err(Error::Overloaded(what));
    }
    Ok(())
}
